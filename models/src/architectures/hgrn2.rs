//! HGRN2: blocks of a matrix memory that writes as much as it forgets, and of a gated MLP. The lower the layer, the more it
//! may forget.
//!
//! Source: Z. Qin et al., "HGRN2: Gated Linear RNNs with State Expansion", arXiv 2404.07904; parameters as in
//! `HGRN2ForCausalLM` of flash-linear-attention.

use crate::architecture::{Architecture, Heads};
use crate::checkpoint::original::{Fields, OriginalError};
use crate::layers::fla::{FlaModel, STD, Sizes, check_epsilon, convolved};
use crate::layers::{Linear, RmsNorm, ShortConv, by_head};
use crate::ops::gated_linear_attention::GatedLinearAttention;
use crate::ops::{Activation, SequenceOps};
use crate::training::ParameterGroup;
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::activation::softmax;
use serde::{Deserialize, Serialize};

/// Sizes of an [`Hgrn2`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hgrn2Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Key and value channels of a head; divides `hidden_size`.
    pub expand_ratio: usize,
    /// Taps of the convolutions of queries, forget gates and inputs; 0: none.
    pub conv_kernel: usize,
    /// Whether the forget gates of all layers but the first have a learned lower bound.
    pub lower_bound: bool,
    /// Channels inside an MLP; 0: ⌊8·hidden_size/3⌋, rounded up to a multiple of 256.
    pub intermediate_size: usize,
    /// ε of the norms on the residual stream.
    pub norm_epsilon: f64,
    /// Whether the decoder is the embedding.
    pub tie_word_embeddings: bool,
}

/// ε of the norm of the memory's outputs, which no setting changes.
pub const OUTPUT_EPSILON: f64 = 1e-5;

impl Default for Hgrn2Config {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_layers: 2,
            expand_ratio: 32,
            conv_kernel: 0,
            lower_bound: true,
            intermediate_size: 0,
            norm_epsilon: 1e-6,
            tie_word_embeddings: false,
        }
    }
}

impl Architecture for Hgrn2Config {
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
        if self.conv_kernel == 1 {
            return Err(ConfigError::new("conv_kernel", "must be 0, for no convolutions, or at least 2"));
        }
        let (hidden, size) = (self.hidden_size, self.expand_ratio);
        if size == 0 || !hidden.is_multiple_of(size) {
            let reason = format!(
                "hidden_size {hidden} cannot be split into heads of {size}\n  hint: choose a divisor of {hidden}"
            );
            return Err(ConfigError::new("expand_ratio", reason));
        }
        Ok(())
    }

    fn parameter_group(&self, name: &str) -> ParameterGroup {
        if name == "model.lower_bounds" { ParameterGroup::UNDECAYED } else { ParameterGroup::DEFAULT }
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, expand_ratio: 8, intermediate_size: 24, ..Self::default() };
        vec![
            small.clone(),
            Self { num_layers: 3, expand_ratio: 4, conv_kernel: 3, tie_word_embeddings: true, ..small.clone() },
            Self { lower_bound: false, norm_epsilon: 1e-5, ..small },
        ]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Size("expand_ratio"))
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("lm_head.weight", "model.embeddings.weight"))
    }

    fn original(f: &Fields<'_>) -> Option<Result<Self, OriginalError>> {
        Some(Self::of(f))
    }
}

impl Hgrn2Config {
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

    /// A model over `vocab` tokens: all weights N(0, 0.02²), scales 1, lower bounds 0.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Hgrn2<B> {
        let mut model = FlaModel::new(self.sizes(), vocab, init, |init| self.attention(init));
        model.model.lower_bounds = self.lower_bound.then(|| init.constant([self.num_layers, self.hidden_size], 0.0));
        model
    }

    pub(crate) fn attention<B: Backend>(&self, init: &mut Init<'_, B>) -> Hgrn2Attention<B> {
        let hidden = self.hidden_size;
        let conv = |init: &mut Init<'_, B>| {
            (self.conv_kernel > 0).then(|| ShortConv::new(init, hidden, self.conv_kernel, STD))
        };
        Hgrn2Attention {
            q_proj: Linear::new(init, hidden, hidden, STD),
            f_proj: Linear::new(init, hidden, hidden, STD),
            i_proj: Linear::new(init, hidden, hidden, STD),
            q_conv1d: conv(init),
            f_conv1d: conv(init),
            i_conv1d: conv(init),
            g_norm: RmsNorm::new(init, hidden, OUTPUT_EPSILON),
            o_proj: Linear::new(init, hidden, hidden, STD),
            head_size: self.expand_ratio,
        }
    }

    fn of(f: &Fields<'_>) -> Result<Self, OriginalError> {
        f.only("hidden_act", &String::from("swish"))?;
        f.only("elementwise_affine", &true)?;
        f.only("hidden_ratio", &4)?;
        f.absent("attn")?;
        let default = Self::default();
        let hidden_size = f.required("hidden_size")?;
        let size = match f.get::<usize>("num_heads")? {
            Some(heads) if f.get::<usize>("expand_ratio")?.is_none() && heads > 0 => hidden_size / heads,
            _ => f.get("expand_ratio")?.unwrap_or(128),
        };
        let conv = f.flag("use_short_conv")?;
        let taps = f.get("conv_size")?.unwrap_or(4);
        Ok(Self {
            hidden_size,
            num_layers: f.required("num_hidden_layers")?,
            expand_ratio: size,
            conv_kernel: if conv { taps } else { 0 },
            lower_bound: f.get("use_lower_bound")?.unwrap_or(true),
            intermediate_size: f.get("intermediate_size")?.unwrap_or(0),
            norm_epsilon: f.get("norm_eps")?.unwrap_or(default.norm_epsilon),
            tie_word_embeddings: f.flag("tie_word_embeddings")?,
        })
    }
}

/// See the [module documentation](self).
pub type Hgrn2<B> = FlaModel<B, Hgrn2Attention<B>>;

/// The mixer of a block.
#[derive(Module, Debug)]
pub struct Hgrn2Attention<B: Backend> {
    q_proj: Linear<B>,
    /// The forget gates.
    f_proj: Linear<B>,
    /// The inputs, which are the values.
    i_proj: Linear<B>,
    q_conv1d: Option<ShortConv<B>>,
    f_conv1d: Option<ShortConv<B>>,
    i_conv1d: Option<ShortConv<B>>,
    g_norm: RmsNorm<B>,
    o_proj: Linear<B>,
    head_size: usize,
}

/// The state of one block between tokens.
#[derive(Debug, Clone)]
pub struct Hgrn2State<B: Backend> {
    /// The last inputs of the convolutions of queries, forget gates and inputs, `[batch, channels, taps − 1]`; `None`
    /// without convolutions.
    pub conv: [Option<Tensor<B, 3>>; 3],
    /// `[batch, heads, key, value]`.
    pub memory: Tensor<B, 4>,
}

impl<B: Backend> Network<B> for Hgrn2<B> {}

impl<B: SequenceOps> Hgrn2<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of tokens that follow those which left `state` behind (none if `None`), and the
    /// state of every block after them.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<Hgrn2State<B>>>,
    ) -> (Tensor<B, 3>, Vec<Hgrn2State<B>>) {
        let bounds = self.model.lower_bounds.as_ref().map(|bounds| lower_bounds(bounds.val()));
        self.run(input, state, |layer, mixer, x, state| {
            let bound = bounds.as_ref().filter(|_| layer > 0).map(|bounds| bounds.clone().narrow(0, layer, 1));
            mixer.forward(x, bound, state)
        })
    }
}

/// The least that the forget gates of every layer let through, from the parameters, both `[layers, hidden]`: sums over
/// the layers below of shares that are positive and, over all layers, sum up to 1. The first layer's is 0.
fn lower_bounds<B: Backend>(bounds: Tensor<B, 2>) -> Tensor<B, 2> {
    let shares = softmax(bounds, 0);
    shares.clone().cumsum(0) - shares.narrow(0, 0, 1)
}

impl<B: SequenceOps> Hgrn2Attention<B> {
    /// `[batch, seq, hidden]` → the same shape, and the state after it. `bound` is `[1, hidden]`.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        bound: Option<Tensor<B, 2>>,
        state: Option<Hgrn2State<B>>,
    ) -> (Tensor<B, 3>, Hgrn2State<B>) {
        let [batch, seq, hidden] = x.dims();
        let ([before_q, before_f, before_i], memory) =
            state.map_or_else(|| (Default::default(), None), |state| (state.conv, Some(state.memory)));
        let (q, conv_q) = convolved(&self.q_conv1d, self.q_proj.forward(x.clone()), before_q, false);
        let (f, conv_f) = convolved(&self.f_conv1d, self.f_proj.forward(x.clone()), before_f, false);
        let (i, conv_i) = convolved(&self.i_conv1d, self.i_proj.forward(x), before_i, false);
        // The gates b + (1 − b)·σ(f), and what they leave, (1 − b)·σ(−f), without the difference of two numbers close to 1.
        let [kept, written] = [f.clone(), -f].map(|f| B::activation(f, Activation::Sigmoid));
        let (decay, k) = match bound {
            Some(bound) => {
                let bound = bound.unsqueeze::<3>();
                let rest = -bound.clone() + 1.0;
                (kept * rest.clone() + bound, written * rest)
            }
            None => (kept, written),
        };
        let heads = |x: Tensor<B, 3>| by_head(x, self.head_size); // [batch, seq, heads, head_size]
        let inputs = GatedLinearAttention {
            q: heads(B::activation(q, Activation::Silu) / (self.head_size as f64).sqrt()),
            k: heads(k),
            v: heads(i),
            decay: heads(decay),
        };
        let (y, memory) = B::gated_linear_attention(inputs, memory);
        let y = self.g_norm.forward(y.reshape([batch, seq, hidden]));
        (self.o_proj.forward(y), Hgrn2State { conv: [conv_q, conv_f, conv_i], memory })
    }
}
