//! The parts shared by RWKV-5, RWKV-6 and RWKV-7: the shift by one token, the normalisation per head, the state, and the
//! constants of their initialisation.
//!
//! Source: Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", arXiv 2404.05892, and
//! the code published with it.

use crate::error::ConfigError;
use crate::layers::{Embedding, Linear};
use crate::ops::SequenceOps;
use crate::{Init, ParameterGroup};
use burn::module::{Module, Param};
use burn::prelude::*;

/// LayerNorm's ε.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;

/// ε of the normalisation of heads: RWKV-5 divides their outputs by 8 and normalises with 1e-5, which is the same.
pub const HEAD_NORM_EPSILON: f64 = 1e-5 * 64.0;

/// The recurrent state of one block.
#[derive(Debug, Clone)]
pub struct RwkvState<B: Backend> {
    /// The last input of the time mix, `[batch, 1, hidden]`.
    pub att_shift: Tensor<B, 3>,
    /// The matrix of every head, `[batch, heads, key, value]`.
    pub wkv: Tensor<B, 4>,
    /// The last input of the channel mix, `[batch, 1, hidden]`.
    pub ffn_shift: Tensor<B, 3>,
}

/// Refuses heads that do not divide the width, and widths without a channel mix.
pub(crate) fn check_sizes(hidden: usize, head_size: usize) -> Result<(), ConfigError> {
    check_heads(hidden, head_size)?;
    if ffn_size(hidden) == 0 {
        let reason = format!("{hidden} leaves no channels for the channel mix\n  hint: choose at least 10");
        return Err(ConfigError::new("hidden_size", reason));
    }
    Ok(())
}

/// Refuses heads that do not divide the width.
pub(crate) fn check_heads(hidden: usize, head_size: usize) -> Result<(), ConfigError> {
    if head_size == 0 || !hidden.is_multiple_of(head_size) {
        let reason = format!(
            "hidden_size {hidden} cannot be split into heads of {head_size}\n  hint: choose a divisor of {hidden}"
        );
        return Err(ConfigError::new("head_size", reason));
    }
    Ok(())
}

/// `time_decay`, but not the matrices `time_decay_w1` and `time_decay_w2`, learns twice as fast (Peng et al.,
/// arXiv 2404.05892).
pub(crate) fn parameter_group(name: &str) -> ParameterGroup {
    match name.ends_with(".att.time_decay") {
        true => ParameterGroup { lr_scale: 2.0, ..ParameterGroup::DEFAULT },
        false => ParameterGroup::DEFAULT,
    }
}

/// Channels of the channel mix: 3.5·hidden, down to a multiple of 32.
pub fn ffn_size(hidden: usize) -> usize {
    hidden * 7 / 2 / 32 * 32
}

/// The last token of `[batch, seq, hidden]`, for the next piece of the sequence.
pub(crate) fn last_token<B: Backend>(x: &Tensor<B, 3>) -> Tensor<B, 3> {
    x.clone().narrow(1, x.dims()[1] - 1, 1)
}

/// Normalisation of every head over its channels, with one scale and shift per channel of all heads (Wu and He,
/// arXiv 1803.08494).
#[derive(Module, Debug)]
pub(crate) struct GroupNorm<B: Backend> {
    weight: Param<Tensor<B, 1>>,
    bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> GroupNorm<B> {
    /// Weight `scale`, bias 0.
    pub(crate) fn new(init: &mut Init<'_, B>, hidden: usize, scale: f32) -> Self {
        Self { weight: init.constant([hidden], scale), bias: init.constant([hidden], 0.0) }
    }
}

impl<B: SequenceOps> GroupNorm<B> {
    /// `[batch, heads, seq, head_size]` → `[batch, seq, hidden]`.
    pub(crate) fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 3> {
        let [batch, heads, seq, size] = x.dims();
        let merged = x.swap_dims(1, 2).reshape([batch, seq, heads * size]);
        B::norm(merged, self.weight.val(), Some(self.bias.val()), size, HEAD_NORM_EPSILON)
    }
}

/// Embedding U(±1e-4).
pub(crate) fn embedding<B: Backend>(init: &mut Init<'_, B>, vocab: usize, hidden: usize) -> Embedding<B> {
    Embedding { weight: init.uniform([vocab, hidden], 1e-4) }
}

/// The decoder: orthogonal, with gain ½·√(vocab/hidden), at least ½.
pub(crate) fn head<B: Backend>(init: &mut Init<'_, B>, vocab: usize, hidden: usize) -> Linear<B> {
    orthogonal(init, hidden, vocab, 0.5 * (vocab as f64 / hidden as f64).sqrt().max(1.0))
}

/// A linear layer whose initial rows or columns are orthogonal, of length `gain`.
pub(crate) fn orthogonal<B: Backend>(init: &mut Init<'_, B>, input: usize, output: usize, gain: f64) -> Linear<B> {
    Linear { weight: init.orthogonal([output, input], gain) }
}

/// A linear layer that starts at zero.
pub(crate) fn zero<B: Backend>(init: &mut Init<'_, B>, input: usize, output: usize) -> Linear<B> {
    Linear { weight: init.constant([output, input], 0.0) }
}

/// The place of a block among the others, which its initial values depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Depth {
    layer: usize,
    layers: usize,
    hidden: usize,
}

impl Depth {
    pub(crate) fn new(layer: usize, layers: usize, hidden: usize) -> Self {
        Self { layer, layers, hidden }
    }

    /// From 0 in the first block to 1 in the last; 0 in an only block.
    pub(crate) fn rise(self) -> f64 {
        self.layer as f64 / (self.layers - 1).max(1) as f64
    }

    /// From 1 in the first block to 1/layers in the last.
    pub(crate) fn fall(self) -> f64 {
        1.0 - self.layer as f64 / self.layers as f64
    }

    /// A token's part in its mixture with its predecessor, per channel: c^fall, where c is the channel's place in 0..1.
    pub(crate) fn mix(self) -> Vec<f32> {
        self.per_channel(|c| c.powf(self.fall()))
    }

    /// The same for values: c^fall + 0.3·rise.
    pub(crate) fn mix_value(self) -> Vec<f32> {
        self.per_channel(|c| c.powf(self.fall()) + 0.3 * self.rise())
    }

    /// The same for receptance and gate: c^(fall/2).
    pub(crate) fn mix_gate(self) -> Vec<f32> {
        self.per_channel(|c| c.powf(self.fall() / 2.0))
    }

    /// The same with another exponent: c^(exponent·fall).
    pub(crate) fn mix_with(self, exponent: f64) -> Vec<f32> {
        self.per_channel(|c| c.powf(exponent * self.fall()))
    }

    /// w, where the decay is exp(−exp(w)): from −6 in the first channel to −1 in the last, bent with depth.
    pub(crate) fn decay(self) -> Vec<f32> {
        let bend = 0.7 + 1.3 * self.rise();
        (0..self.hidden).map(|n| (5.0 * self.along(n).powf(bend) - 6.0) as f32).collect()
    }

    /// The weight of the current token: falling along the channels with depth, plus a zigzag of 0, 0.1, −0.1.
    pub(crate) fn bonus(self) -> Vec<f32> {
        let zigzag = |n: usize| 0.1 * (((n + 1) % 3) as f64 - 1.0);
        (0..self.hidden).map(|n| (self.rise() * (1.0 - self.along(n)) + zigzag(n)) as f32).collect()
    }

    /// The scale of the normalisation of heads: ((1 + layer)/layers)^0.7.
    pub(crate) fn head_scale(self) -> f32 {
        ((1 + self.layer) as f64 / self.layers as f64).powf(0.7) as f32
    }

    /// From 0 in the first channel to 1 in the last.
    pub(crate) fn along(self, n: usize) -> f64 {
        n as f64 / (self.hidden - 1).max(1) as f64
    }

    fn per_channel(self, value: impl Fn(f64) -> f64) -> Vec<f32> {
        (0..self.hidden).map(|n| value(n as f64 / self.hidden as f64) as f32).collect()
    }
}
