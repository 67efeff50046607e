//! Gated linear attention: blocks of a matrix memory whose key channels are forgotten each at its own rate, and of a gated
//! MLP.
//!
//! Source: S. Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635;
//! parameters as in `GLAForCausalLM` of flash-linear-attention.

use crate::architecture::{Architecture, Heads};
use crate::checkpoint::original::{Fields, OriginalError};
use crate::layers::fla::{FlaModel, STD, Sizes, check_epsilon, convolved};
use crate::layers::{Affine, Linear, RmsNorm, ShortConv, by_head};
use crate::ops::gated_linear_attention::GatedLinearAttention;
use crate::ops::{Activation, Gate, SequenceOps};
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::Module;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

/// Sizes of a [`Gla`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GlaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Heads of the queries.
    pub num_heads: usize,
    /// Heads of keys, values and decays, each of which serves as many heads of queries; 0: as many as `num_heads`.
    pub num_kv_heads: usize,
    /// Channels of all queries, as a multiple of `hidden_size`.
    pub expand_k: f64,
    /// Channels of all values, as a multiple of `hidden_size`.
    pub expand_v: f64,
    /// Taps of the convolutions of queries, keys and values; 0: none.
    pub conv_kernel: usize,
    /// Whether outputs have a gate.
    pub output_gate: bool,
    /// The decay is σ(…) to the power of 1 over this.
    pub gate_logit_normalizer: f64,
    /// Rank of the projection that makes the decays.
    pub gate_low_rank: usize,
    /// Channels inside an MLP; 0: ⌊8·hidden_size/3⌋, rounded up to a multiple of 256.
    pub intermediate_size: usize,
    /// ε of every norm.
    pub norm_epsilon: f64,
    /// Whether the decoder is the embedding.
    pub tie_word_embeddings: bool,
}

impl Default for GlaConfig {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 0,
            expand_k: 0.5,
            expand_v: 1.0,
            conv_kernel: 0,
            output_gate: true,
            gate_logit_normalizer: 16.0,
            gate_low_rank: 16,
            intermediate_size: 0,
            norm_epsilon: 1e-6,
            tie_word_embeddings: false,
        }
    }
}

impl Architecture for GlaConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["lm_head.weight", "model.embeddings.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        check_epsilon(self.norm_epsilon)?;
        if !(self.gate_logit_normalizer > 0.0 && self.gate_logit_normalizer.is_finite()) {
            return Err(ConfigError::new("gate_logit_normalizer", "must be a positive number"));
        }
        for (key, size) in [("num_heads", self.num_heads), ("gate_low_rank", self.gate_low_rank)] {
            if size == 0 {
                return Err(ConfigError::new(key, "must be at least 1"));
            }
        }
        if self.conv_kernel == 1 {
            return Err(ConfigError::new("conv_kernel", "must be 0, for no convolutions, or at least 2"));
        }
        if !self.num_heads.is_multiple_of(self.kv_heads()) {
            let reason = format!("{} does not divide num_heads, {}", self.num_kv_heads, self.num_heads);
            return Err(ConfigError::new("num_kv_heads", reason));
        }
        for (key, factor) in [("expand_k", self.expand_k), ("expand_v", self.expand_v)] {
            let channels = self.hidden_size as f64 * factor;
            let fits = channels.fract() == 0.0 && (1.0..=1e9).contains(&channels);
            if !fits || !(channels as usize).is_multiple_of(self.num_heads) {
                let reason = format!(
                    "{factor} times hidden_size, {channels}, cannot be split into {} heads\n  hint: choose num_heads so \
                     that it divides {channels}",
                    self.num_heads
                );
                return Err(ConfigError::new(key, reason));
            }
        }
        Ok(())
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 24, ..Self::default() };
        vec![
            small.clone(),
            Self { num_heads: 4, num_kv_heads: 2, conv_kernel: 3, tie_word_embeddings: true, ..small.clone() },
            Self {
                output_gate: false,
                expand_k: 1.5,
                gate_logit_normalizer: 4.0,
                gate_low_rank: 3,
                norm_epsilon: 1e-5,
                ..small
            },
        ]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Number("num_heads"))
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("lm_head.weight", "model.embeddings.weight"))
    }

    fn original(f: &Fields<'_>) -> Option<Result<Self, OriginalError>> {
        Some(Self::of(f))
    }
}

impl GlaConfig {
    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        if self.num_kv_heads == 0 { self.num_heads } else { self.num_kv_heads }
    }

    /// Key channels of a head.
    pub fn key_size(&self) -> usize {
        (self.hidden_size as f64 * self.expand_k) as usize / self.num_heads
    }

    /// Value channels of a head.
    pub fn value_size(&self) -> usize {
        (self.hidden_size as f64 * self.expand_v) as usize / self.num_heads
    }

    /// The sizes of what is around the mixers.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden_size,
            layers: self.num_layers,
            intermediate: Sizes::intermediate(self.intermediate_size, self.hidden_size),
            norm_epsilon: self.norm_epsilon,
            tied: self.tie_word_embeddings,
        }
    }

    /// A model over `vocab` tokens: all weights N(0, 0.02²), scales 1, the bias of the decays 0.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Gla<B> {
        FlaModel::new(self.sizes(), vocab, init, |init| self.attention(init))
    }

    pub(crate) fn attention<B: Backend>(&self, init: &mut Init<'_, B>) -> GlaAttention<B> {
        let (hidden, kv_heads) = (self.hidden_size, self.kv_heads());
        let (queries, values) = (self.num_heads * self.key_size(), self.num_heads * self.value_size());
        let (kv_keys, kv_values) = (kv_heads * self.key_size(), kv_heads * self.value_size());
        let conv = |init: &mut Init<'_, B>, channels| {
            (self.conv_kernel > 0).then(|| ShortConv::new(init, channels, self.conv_kernel, STD))
        };
        GlaAttention {
            q_proj: Linear::new(init, hidden, queries, STD),
            k_proj: Linear::new(init, hidden, kv_keys, STD),
            v_proj: Linear::new(init, hidden, kv_values, STD),
            q_conv1d: conv(init, queries),
            k_conv1d: conv(init, kv_keys),
            v_conv1d: conv(init, kv_values),
            gk_proj: (
                Linear::new(init, hidden, self.gate_low_rank, STD),
                Affine { weight: init.normal([kv_keys, self.gate_low_rank], STD), bias: init.constant([kv_keys], 0.0) },
            ),
            g_proj: self.output_gate.then(|| Linear::new(init, hidden, values, STD)),
            g_norm_swish_gate: self.output_gate.then(|| RmsNorm::new(init, self.value_size(), self.norm_epsilon)),
            g_norm: (!self.output_gate).then(|| RmsNorm::new(init, self.value_size(), self.norm_epsilon)),
            o_proj: Linear::new(init, values, hidden, STD),
            key_size: self.key_size(),
            gate_logit_normalizer: self.gate_logit_normalizer,
        }
    }

    pub(crate) fn of(f: &Fields<'_>) -> Result<Self, OriginalError> {
        f.only("hidden_act", &String::from("swish"))?;
        f.absent("clamp_min")?;
        f.absent("feature_map")?;
        f.only("use_gk", &true)?;
        f.only("use_gv", &false)?;
        f.only("elementwise_affine", &true)?;
        f.only("hidden_ratio", &4)?;
        let default = Self::default();
        let conv = f.flag("use_short_conv")?;
        let taps = f.get("conv_size")?.unwrap_or(4);
        Ok(Self {
            hidden_size: f.required("hidden_size")?,
            num_layers: f.required("num_hidden_layers")?,
            num_heads: f.get("num_heads")?.unwrap_or(default.num_heads),
            num_kv_heads: f.get("num_kv_heads")?.unwrap_or(0),
            expand_k: f.get("expand_k")?.unwrap_or(default.expand_k),
            expand_v: f.get("expand_v")?.unwrap_or(default.expand_v),
            conv_kernel: if conv { taps } else { 0 },
            output_gate: f.get("use_output_gate")?.unwrap_or(true),
            gate_logit_normalizer: f.get("gate_logit_normalizer")?.unwrap_or(default.gate_logit_normalizer),
            gate_low_rank: f.get("gate_low_rank_dim")?.unwrap_or(default.gate_low_rank),
            intermediate_size: f.get("intermediate_size")?.unwrap_or(0),
            norm_epsilon: f.get("norm_eps")?.unwrap_or(default.norm_epsilon),
            tie_word_embeddings: f.flag("tie_word_embeddings")?,
        })
    }
}

/// See the [module documentation](self).
pub type Gla<B> = FlaModel<B, GlaAttention<B>>;

/// The mixer of a block.
#[derive(Module, Debug)]
pub struct GlaAttention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    q_conv1d: Option<ShortConv<B>>,
    k_conv1d: Option<ShortConv<B>>,
    v_conv1d: Option<ShortConv<B>>,
    /// The decays before the sigmoid, of low rank.
    gk_proj: (Linear<B>, Affine<B>),
    g_proj: Option<Linear<B>>,
    /// Of a head, where there is a gate.
    g_norm_swish_gate: Option<RmsNorm<B>>,
    /// Of a head, where there is none.
    g_norm: Option<RmsNorm<B>>,
    o_proj: Linear<B>,
    key_size: usize,
    gate_logit_normalizer: f64,
}

/// The state of one block between tokens.
#[derive(Debug, Clone)]
pub struct GlaState<B: Backend> {
    /// The last inputs of the convolutions of queries, keys and values, `[batch, channels, taps − 1]`; `None` without
    /// convolutions.
    pub conv: [Option<Tensor<B, 3>>; 3],
    /// `[batch, heads, key, value]`.
    pub memory: Tensor<B, 4>,
}

impl<B: Backend> Network<B> for Gla<B> {}

impl<B: SequenceOps> Gla<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of tokens that follow those which left `state` behind (none if `None`), and the
    /// state of every block after them.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<GlaState<B>>>,
    ) -> (Tensor<B, 3>, Vec<GlaState<B>>) {
        self.run(input, state, |_, mixer, x, state| mixer.forward(x, state))
    }
}

impl<B: SequenceOps> GlaAttention<B> {
    /// `[batch, seq, hidden]` → the same shape, and the state after it.
    pub(crate) fn forward(&self, x: Tensor<B, 3>, state: Option<GlaState<B>>) -> (Tensor<B, 3>, GlaState<B>) {
        let [batch, seq, _] = x.dims();
        let ([before_q, before_k, before_v], memory) =
            state.map_or_else(|| (Default::default(), None), |state| (state.conv, Some(state.memory)));
        let q = self.q_proj.forward(x.clone());
        let (q, conv_q) = convolved(&self.q_conv1d, q, before_q, true); // [batch, seq, heads·key]
        let (k, conv_k) = convolved(&self.k_conv1d, self.k_proj.forward(x.clone()), before_k, true);
        let (v, conv_v) = convolved(&self.v_conv1d, self.v_proj.forward(x.clone()), before_v, true);
        let (low, high) = &self.gk_proj;
        let decay = B::activation(high.forward(low.forward(x.clone())), Activation::LogSigmoid);
        let decay = B::activation(decay / self.gate_logit_normalizer, Activation::Exp);

        let heads = q.dims()[2] / self.key_size;
        let value_size = self.o_proj.weight.dims()[1] / heads;
        let inputs = GatedLinearAttention {
            q: by_head(q / (self.key_size as f64).sqrt(), self.key_size),
            k: by_head(k, self.key_size),
            v: by_head(v, value_size),
            decay: by_head(decay, self.key_size),
        };
        let (y, memory) = B::gated_linear_attention(inputs, memory);
        let y = y.reshape([batch, seq, heads * value_size]);
        let y = match (&self.g_norm_swish_gate, &self.g_norm, &self.g_proj) {
            (Some(norm), _, Some(gate)) => B::gated(norm.of_heads(y), gate.forward(x), Gate::Silu),
            (_, Some(norm), _) => norm.of_heads(y),
            _ => y,
        };
        (self.o_proj.forward(y), GlaState { conv: [conv_q, conv_k, conv_v], memory })
    }
}
