//! Gated DeltaNet and Gated DeltaProduct of flash-linear-attention (fla-org), number for number: a fast-weight memory that
//! is decayed once and corrected once or several times at every token, behind short convolutions, in blocks with a gated
//! MLP ([`fla`](crate::layers::fla)). [`deltanet`](super::deltanet) is the same memory in the blocks of this program's
//! other models.
//!
//! Sources: S. Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv 2412.06464; J. Siems et al.,
//! "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products", arXiv 2502.10297; R. Grazzi et al.,
//! "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", arXiv 2411.12537.
#![allow(non_snake_case)] // A, as in the papers and in checkpoints

use super::deltanet::LENGTH_EPSILON;
use crate::architecture::{Architecture, Heads};
use crate::checkpoint::original::{Fields, OriginalError};
use crate::layers::fla::{FlaModel, STD, Sizes, check_epsilon, convolved};
use crate::layers::{Linear, RmsNorm, ShortConv, repeat_heads, unit};
use crate::ops::delta::DeltaRule;
use crate::ops::scan::softplus;
use crate::ops::{Activation, Gate, SequenceOps, zero_pad};
use crate::training::ParameterGroup;
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use serde::{Deserialize, Serialize};

/// Sizes of a [`GatedDeltanet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatedDeltanetConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Heads of queries and keys.
    pub num_heads: usize,
    /// Heads of values, steps and decays, each of which has a memory: a multiple of `num_heads`, whose queries and keys
    /// are shared. 0: `num_heads`.
    pub num_v_heads: usize,
    /// Channels of a query and of a key.
    pub head_size: usize,
    /// A value has `expand_v`·`head_size` channels.
    pub expand_v: f64,
    /// Corrections per token, each with a key, a value and a step of its own: 1 is Gated DeltaNet, more are Gated
    /// DeltaProduct.
    pub num_householder: usize,
    /// Whether a correction's step goes up to 2, and the eigenvalues of its factor down to −1, instead of 1 and 0.
    pub negative_eigenvalues: bool,
    /// Whether the memory decays.
    pub forget_gate: bool,
    /// Whether outputs have a gate.
    pub output_gate: bool,
    /// Taps of the convolutions of queries, keys and values; 0: none.
    pub conv_kernel: usize,
    /// Channels inside an MLP; 0: ⌊8·hidden_size/3⌋, rounded up to a multiple of 256.
    pub intermediate_size: usize,
    /// ε of every norm.
    pub norm_epsilon: f64,
    /// Whether the decoder is the embedding.
    pub tie_word_embeddings: bool,
}

impl Default for GatedDeltanetConfig {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_layers: 2,
            num_heads: 2,
            num_v_heads: 0,
            head_size: 48,
            expand_v: 2.0,
            num_householder: 1,
            negative_eigenvalues: false,
            forget_gate: true,
            output_gate: true,
            conv_kernel: 4,
            intermediate_size: 0,
            norm_epsilon: 1e-6,
            tie_word_embeddings: false,
        }
    }
}

/// The most corrections per token.
const MOST_CORRECTIONS: usize = 16;

impl Architecture for GatedDeltanetConfig {
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
        let sizes = [
            ("num_heads", self.num_heads, 1),
            ("head_size", self.head_size, 1),
            ("num_householder", self.num_householder, 1),
        ];
        if let Some((key, _, least)) = sizes.into_iter().find(|(_, size, least)| size < least) {
            return Err(ConfigError::new(key, format!("must be at least {least}")));
        }
        if self.num_householder > MOST_CORRECTIONS {
            return Err(ConfigError::new("num_householder", format!("must be at most {MOST_CORRECTIONS}")));
        }
        if self.conv_kernel == 1 {
            return Err(ConfigError::new("conv_kernel", "must be 0, for no convolutions, or at least 2"));
        }
        let (heads, value_heads) = (self.num_heads, self.num_v_heads);
        if !value_heads.is_multiple_of(heads) {
            let reason = format!(
                "{value_heads} heads of values cannot share {heads} heads of keys\n  hint: choose a multiple of {heads}"
            );
            return Err(ConfigError::new("num_v_heads", reason));
        }
        let channels = self.head_size as f64 * self.expand_v;
        if !(channels >= 1.0 && channels.fract() == 0.0 && channels <= LARGEST_VALUE) {
            let reason = format!(
                "{} times head_size, {}, is no number of channels\n  hint: choose a whole number",
                self.expand_v, self.head_size
            );
            return Err(ConfigError::new("expand_v", reason));
        }
        check_epsilon(self.norm_epsilon)
    }

    fn parameter_group(&self, name: &str) -> ParameterGroup {
        match name.ends_with(".A_log") || name.ends_with(".dt_bias") {
            true => ParameterGroup::UNDECAYED,
            false => ParameterGroup::DEFAULT,
        }
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, head_size: 4, intermediate_size: 24, ..Self::default() };
        let shared = Self {
            num_v_heads: 4,
            expand_v: 1.5,
            negative_eigenvalues: true,
            output_gate: false,
            conv_kernel: 3,
            tie_word_embeddings: true,
            ..small.clone()
        };
        let product = Self {
            num_householder: 2,
            negative_eigenvalues: true,
            expand_v: 0.5,
            conv_kernel: 0,
            norm_epsilon: 1e-5,
            ..small.clone()
        };
        let steady = Self { num_householder: 3, num_v_heads: 4, forget_gate: false, ..small.clone() };
        vec![small, shared, product, steady]
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

/// The most channels of a value.
const LARGEST_VALUE: f64 = 65536.0;

impl GatedDeltanetConfig {
    /// Heads of values.
    pub fn value_heads(&self) -> usize {
        if self.num_v_heads == 0 { self.num_heads } else { self.num_v_heads }
    }

    /// Channels of a value.
    pub fn value_size(&self) -> usize {
        (self.head_size as f64 * self.expand_v) as usize
    }

    /// The largest step of a correction, β.
    pub fn largest_step(&self) -> f64 {
        if self.negative_eigenvalues { 2.0 } else { 1.0 }
    }

    /// The sizes of the model around the mixers.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden_size,
            layers: self.num_layers,
            intermediate: Sizes::intermediate(self.intermediate_size, self.hidden_size),
            norm_epsilon: self.norm_epsilon,
            tied: self.tie_word_embeddings,
        }
    }

    /// A model over `vocab` tokens: all weights N(0, 0.02²). As in Mamba-2, the rates of decay begin with A = 1 … 16 (in
    /// fla, 0 … 16) and step sizes log-uniform on 0.001 … 0.1.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> GatedDeltanet<B> {
        FlaModel::new(self.sizes(), vocab, init, |init| GatedDeltanetAttention::new(self, init))
    }

    /// The defaults are those of flash-linear-attention's configs.
    pub(crate) fn of(f: &Fields<'_>) -> Result<Self, OriginalError> {
        let mut product = false;
        for field in ["arch", "model", "model_type"] {
            product |= f.get::<String>(field)?.is_some_and(|name| name.eq_ignore_ascii_case("gated_deltaproduct"));
        }
        f.only("hidden_act", &String::from("swish"))?;
        f.only("hidden_ratio", &4)?;
        let default = Self::default();
        let taps = f.get("conv_size")?.unwrap_or(4);
        let convolution = f.get("use_short_conv")?.unwrap_or(true);
        if !product {
            f.only("num_householder", &1)?;
        }
        Ok(Self {
            hidden_size: f.required("hidden_size")?,
            num_layers: f.required("num_hidden_layers")?,
            num_heads: f.get("num_heads")?.unwrap_or(6),
            num_v_heads: f.get("num_v_heads")?.unwrap_or(0),
            head_size: f.get("head_dim")?.unwrap_or(256),
            expand_v: f.get("expand_v")?.unwrap_or(2.0),
            num_householder: f.get("num_householder")?.unwrap_or(1),
            negative_eigenvalues: f.flag("allow_neg_eigval")?,
            forget_gate: f.get("use_forget_gate")?.unwrap_or(!product),
            output_gate: f.get("use_gate")?.unwrap_or(true),
            conv_kernel: if convolution { taps } else { 0 },
            intermediate_size: f.get("intermediate_size")?.unwrap_or(0),
            norm_epsilon: f.get("norm_eps")?.unwrap_or(default.norm_epsilon),
            tie_word_embeddings: f.flag("tie_word_embeddings")?,
        })
    }
}

/// See the [module documentation](self).
pub type GatedDeltanet<B> = FlaModel<B, GatedDeltanetAttention<B>>;

impl<B: Backend> Network<B> for GatedDeltanet<B> {}

impl<B: SequenceOps> GatedDeltanet<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of tokens that follow those which left `state` behind (none if `None`), and the
    /// state of every block after them.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<GatedDeltanetState<B>>>,
    ) -> (Tensor<B, 3>, Vec<GatedDeltanetState<B>>) {
        self.run(input, state, |_, mixer, x, state| mixer.forward(x, state))
    }
}

/// The state of one block between tokens.
#[derive(Debug, Clone)]
pub struct GatedDeltanetState<B: Backend> {
    /// The last inputs of the convolutions of queries, keys and values, `[batch, channels, taps − 1]`; `None` without
    /// convolutions.
    pub conv: [Option<Tensor<B, 3>>; 3],
    /// `[batch, value heads, key, value]`.
    pub memory: Tensor<B, 4>,
}

/// The mixer of a block. Parameters are named as in flash-linear-attention; the rows of a projection for several
/// corrections are ordered by correction, head and channel.
#[derive(Module, Debug)]
pub struct GatedDeltanetAttention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    /// The steps of the corrections, one per correction and head of values.
    b_proj: Linear<B>,
    /// The step sizes of the decay, one per head of values; `None`, as `A_log` and `dt_bias`, without a forget gate.
    a_proj: Option<Linear<B>>,
    A_log: Option<Param<Tensor<B, 1>>>,
    dt_bias: Option<Param<Tensor<B, 1>>>,
    q_conv1d: Option<ShortConv<B>>,
    k_conv1d: Option<ShortConv<B>>,
    v_conv1d: Option<ShortConv<B>>,
    /// The gate of the output.
    g_proj: Option<Linear<B>>,
    /// RMSNorm of every head, with one scale per channel of a head.
    o_norm: RmsNorm<B>,
    o_proj: Linear<B>,
    heads: usize,
    value_heads: usize,
    corrections: usize,
    largest_step: f64,
}

impl<B: Backend> GatedDeltanetAttention<B> {
    pub(crate) fn new(config: &GatedDeltanetConfig, init: &mut Init<'_, B>) -> Self {
        let (hidden, corrections) = (config.hidden_size, config.num_householder);
        let (heads, value_heads) = (config.num_heads, config.value_heads());
        let (keys, values) = (heads * config.head_size, value_heads * config.value_size());
        let linear = |init: &mut Init<'_, B>, output| Linear::new(init, hidden, output, STD);
        let conv = |init: &mut Init<'_, B>, channels| {
            (config.conv_kernel > 0).then(|| ShortConv::new(init, channels, config.conv_kernel, STD))
        };
        Self {
            q_proj: linear(init, keys),
            k_proj: linear(init, corrections * keys),
            v_proj: linear(init, corrections * values),
            b_proj: linear(init, corrections * value_heads),
            a_proj: config.forget_gate.then(|| linear(init, value_heads)),
            A_log: config.forget_gate.then(|| {
                let a = init.draw_uniform(value_heads, 1.0, 16.0);
                init.values(a.into_iter().map(f32::ln).collect(), [value_heads])
            }),
            dt_bias: config.forget_gate.then(|| {
                let logs = init.draw_uniform(value_heads, 0.001f64.ln(), 0.1f64.ln());
                // softplus⁻¹(x) = log(eˣ − 1)
                let bias = logs.into_iter().map(|log| f64::from(log).exp().max(1e-4).exp_m1().ln() as f32).collect();
                init.values(bias, [value_heads])
            }),
            q_conv1d: conv(init, keys),
            k_conv1d: conv(init, corrections * keys),
            v_conv1d: conv(init, corrections * values),
            g_proj: config.output_gate.then(|| linear(init, values)),
            o_norm: RmsNorm::new(init, config.value_size(), config.norm_epsilon),
            o_proj: Linear::new(init, values, hidden, STD),
            heads,
            value_heads,
            corrections,
            largest_step: config.largest_step(),
        }
    }
}

impl<B: SequenceOps> GatedDeltanetAttention<B> {
    /// `[batch, seq, hidden]` → the same shape, from and to the state.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        state: Option<GatedDeltanetState<B>>,
    ) -> (Tensor<B, 3>, GatedDeltanetState<B>) {
        let [batch, seq, _] = x.dims();
        let ([before_q, before_k, before_v], memory) =
            state.map_or_else(|| (Default::default(), None), |state| (state.conv, Some(state.memory)));
        let branch = |linear: &Linear<B>, conv: &Option<ShortConv<B>>, before| {
            let (y, after) = convolved(conv, linear.forward(x.clone()), before, true);
            (if conv.is_some() { y } else { B::activation(y, Activation::Silu) }, after)
        };
        let (q, conv_q) = branch(&self.q_proj, &self.q_conv1d, before_q); // [batch, seq, heads·key]
        let (k, conv_k) = branch(&self.k_proj, &self.k_conv1d, before_k); // [batch, seq, corrections·heads·key]
        let (v, conv_v) = branch(&self.v_proj, &self.v_conv1d, before_v); // [batch, seq, corrections·value heads·value]

        // A time step of the rule is one correction: the first of a token decays, and the last is read after.
        let (heads, value_heads, corrections) = (self.heads, self.value_heads, self.corrections);
        let steps = seq * corrections;
        let (size, value_size) = (q.dims()[2] / heads, self.o_norm.weight.dims()[0]);
        // [batch, steps, heads, size] → [batch, value heads, steps, size]
        let shared = |x: Tensor<B, 4>| repeat_heads(x.swap_dims(1, 2), value_heads);
        let q = unit(q, size, LENGTH_EPSILON) * (size as f64).powf(-0.5);
        let q = q.reshape([batch, seq, 1, heads, size]);
        let step = sigmoid(self.b_proj.forward(x.clone())) * self.largest_step;
        let inputs = DeltaRule {
            q: shared(zero_pad(q, 2, [corrections - 1, 0]).reshape([batch, steps, heads, size])),
            k: shared(unit(k, size, LENGTH_EPSILON).reshape([batch, steps, heads, size])),
            v: v.reshape([batch, steps, value_heads, value_size]).swap_dims(1, 2),
            step: step.reshape([batch, steps, value_heads]).swap_dims(1, 2),
            decay: self.decay(&x).swap_dims(1, 2),
        };
        let (y, memory) = B::delta_rule(inputs, memory);
        let y = y.swap_dims(1, 2).reshape([batch, seq, corrections, value_heads * value_size]);
        let y = y.narrow(2, corrections - 1, 1).reshape([batch, seq, value_heads * value_size]);
        let y = self.o_norm.of_heads(y);
        let y = match &self.g_proj {
            Some(gate) => B::gated(y, gate.forward(x), Gate::Silu),
            None => y,
        };
        (self.o_proj.forward(y), GatedDeltanetState { conv: [conv_q, conv_k, conv_v], memory })
    }

    /// What the memory is multiplied by before every correction, `[batch, corrections of all tokens, value heads]`.
    fn decay(&self, x: &Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, _] = x.dims();
        let shape = [batch, seq * self.corrections, self.value_heads];
        let (Some(a_proj), Some(A_log), Some(dt_bias)) = (&self.a_proj, &self.A_log, &self.dt_bias) else {
            return Tensor::ones(shape, (&x.device(), x.dtype()));
        };
        let a = a_proj.forward(x.clone()) + dt_bias.val().unsqueeze();
        let log = (softplus(a) * A_log.val().exp().unsqueeze()).neg(); // [batch, seq, value heads]
        zero_pad(log.unsqueeze_dim::<4>(2), 2, [0, self.corrections - 1]).reshape(shape).exp()
    }
}
