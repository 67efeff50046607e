//! Parameter groups: which parameters have their own learning rate or no weight decay.
//!
//! The groups are those of the recipes in arXiv 2405.20131; a group is a pure function of the architecture's
//! config and the parameter's checkpoint name: [`Architecture::parameter_group`](crate::Architecture::parameter_group).

use crate::checkpoint::weights::checkpoint_name;
use crate::ops::SequenceOps;
use crate::{Model, Weights};
use burn::module::ParamId;
use burn_store::ModuleSnapshot;

/// How the optimiser treats a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterGroup {
    /// Factor on the configured learning rate.
    pub lr_scale: f64,
    /// The learning rate is at most this (before the schedule's factor).
    pub lr_max: f64,
    /// Whether weight decay applies.
    pub weight_decay: bool,
    /// Smaller numbers are set to this one before every step.
    pub least: f64,
}

impl ParameterGroup {
    /// The configured learning rate and weight decay as they are.
    pub const DEFAULT: Self =
        Self { lr_scale: 1.0, lr_max: f64::INFINITY, weight_decay: true, least: f64::NEG_INFINITY };

    /// [`DEFAULT`](Self::DEFAULT) without weight decay.
    pub const UNDECAYED: Self = Self { weight_decay: false, ..Self::DEFAULT };

    /// The parameter's learning rate where `lr` is the configured one.
    pub fn lr(&self, lr: f64) -> f64 {
        (lr * self.lr_scale).min(self.lr_max)
    }
}

impl Weights {
    /// The checkpoint name of every parameter of `model`, with the id under which burn keeps its gradient.
    pub fn names<B: SequenceOps>(model: &Model<B>) -> Vec<(ParamId, String)> {
        let snapshots = model.collect(None, None, true);
        snapshots.iter().filter_map(|s| Some((s.tensor_id?, checkpoint_name(&s.full_path())))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::{PositionalEmbedding, TransformerConfig};
    use crate::{Architecture, ModelConfig};

    fn group(arch: &str, name: &str) -> ParameterGroup {
        let kind = ModelConfig::kind(arch).map(|kind| (kind.examples)()).unwrap_or_default();
        kind[0].parameter_group(name)
    }

    #[test]
    fn s4_kernels_learn_slowly_and_only_c_decays() {
        let of = |name: &str| group("s4", &format!("s4_layers.0.layer.{name}"));
        for name in ["kernel.inv_dt", "kernel.A_real", "kernel.A_imag", "kernel.B", "kernel.P"] {
            assert_eq!((of(name).lr(0.01), of(name).weight_decay), (0.001, false), "{name}");
        }
        assert_eq!((of("kernel.C").lr(0.01), of("kernel.C").weight_decay), (0.001, true));
        assert_eq!(of("kernel.C").lr(1e-4), 1e-4, "a limit, not a value");
        assert_eq!(of("D"), ParameterGroup::DEFAULT);
        assert_eq!(group("s4", "s4_layers.0.output_linear.0.weight"), ParameterGroup::DEFAULT);
    }

    #[test]
    fn rwkv_decay_learns_twice_as_fast_but_not_its_low_rank_matrices() {
        for arch in ["rwkv5", "rwkv6"] {
            let lr = |name: &str| group(arch, &format!("blocks.3.att.{name}")).lr(1e-4);
            assert_eq!((lr("time_decay"), lr("time_decay_w1"), lr("time_decay_w2")), (2e-4, 1e-4, 1e-4));
        }
    }

    #[test]
    fn numbers_that_positions_enter_by_do_not_decay() {
        let of = |scheme: &str, name: &str| {
            let config = PositionalEmbedding::ALL.iter().find(|s| s.name() == scheme);
            let positional_embedding = config.copied().unwrap_or(PositionalEmbedding::None);
            TransformerConfig { positional_embedding, ..Default::default() }.parameter_group(name)
        };
        for (scheme, name) in [
            ("t5", "h.0.attn.relative_attention_bias.weight"),
            ("fire", "h.1.attn.fire.c"),
            ("fire", "h.1.attn.fire.L_multiplier"),
            ("cope", "h.1.attn.cope.pos_emb"),
            ("ssmax", "h.0.attn.ssmax_s"),
        ] {
            assert_eq!(of(scheme, name), ParameterGroup::UNDECAYED, "{name}");
        }
        for name in ["rpe.bias_p", "rpe.bias_a"] {
            assert_eq!((of("kerple_log", name).weight_decay, of("kerple_log", name).least), (false, 0.01));
        }
        let usual =
            [("fire", "h.0.attn.fire.mlp.0.weight"), ("absolute", "wpe.weight"), ("t5", "h.0.attn.c_attn.weight")];
        for (scheme, name) in usual.into_iter().chain([("kerple_log", "wte.weight"), ("cope", "h.0.mlp.c_fc.bias")]) {
            assert_eq!(of(scheme, name), ParameterGroup::DEFAULT, "{name}");
        }
    }

    #[test]
    fn other_architectures_have_one_group() {
        for (arch, name) in [("lstm", "lstm.weight_ih_l0"), ("mamba", "backbone.layers.0.mixer.A_log"), ("rnn", "C")] {
            assert_eq!(group(arch, name), ParameterGroup::DEFAULT);
        }
    }
}
