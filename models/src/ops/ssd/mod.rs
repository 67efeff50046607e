//! Linear attention with one decay per head: the state space duality (SSD) of Mamba-2 (Dao and Gu, arXiv 2405.21060) and the
//! memory of the mLSTM (Beck et al., arXiv 2405.04517).
//!
//! It has kernels for the CPU; elsewhere it is [`gated_linear_attention`](super::gated_linear_attention) between products.

pub mod cpu;

use super::gated_linear_attention::{GatedLinearAttention, GatedLinearAttentionOp};
use super::head_scale::HeadScaleOp;
use burn::prelude::*;

/// The tensors that the operation reads. `heads` is a multiple of the heads of q and k, of which each serves as many in a row.
#[derive(Debug, Clone)]
pub struct Ssd<B: Backend> {
    /// `[batch, seq, heads or a divisor, key]`.
    pub q: Tensor<B, 4>,
    /// As q.
    pub k: Tensor<B, 4>,
    /// `[batch, seq, heads, value]`.
    pub v: Tensor<B, 4>,
    /// In 0..=1, `[batch, seq, heads]`.
    pub decay: Tensor<B, 3>,
    /// Factors of what a step writes, `[batch, seq, heads]`.
    pub write: Tensor<B, 3>,
}

/// The results of [`SsdOp::normalised_ssd`].
#[derive(Debug, Clone)]
pub struct Normalised<B: Backend> {
    /// The outputs, `[batch, seq, heads, value]`.
    pub y: Tensor<B, 4>,
    /// The last state, `[batch, heads, key, value]`.
    pub state: Tensor<B, 4>,
    /// The last normaliser, `[batch, heads, key]`.
    pub normaliser: Tensor<B, 3>,
}

/// The normaliser of an mLSTM.
#[derive(Debug, Clone)]
pub struct Divisor<B: Backend> {
    /// The least that it is, `[batch, seq, heads]`.
    pub least: Tensor<B, 3>,
    /// Added to it.
    pub epsilon: f32,
}

/// Linear attention with one decay per head. Per head, with the state S `[key, value]`, S_t = a_t·S_{t−1} + w_t·k_t·v_tᵀ.
pub trait SsdOp: GatedLinearAttentionOp + HeadScaleOp {
    /// The outputs y_t = S_tᵀ·q_t + skip·v_t `[batch, seq, heads, value]`, with a `skip` for every head `[heads]`, and the last
    /// state, from `state` `[batch, heads, key, value]` (zero if `None`).
    fn ssd(
        inputs: Ssd<Self>,
        skip: Tensor<Self, 1>,
        state: Option<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        cpu::ssd(&inputs, &skip, state.as_ref())
            .unwrap_or_else(|| reference(inputs, skip, state, Self::gated_linear_attention))
    }

    /// With the normaliser n_t = a_t·n_{t−1} + w_t·k_t, the outputs y_t = S_tᵀ·q_t/(max(|n_t·q_t|, least_t) + ε), from a state
    /// `[batch, heads, key, value]` and a normaliser `[batch, heads, key]` (zero if `None`).
    fn normalised_ssd(
        inputs: Ssd<Self>,
        divisor: Divisor<Self>,
        state: Option<(Tensor<Self, 4>, Tensor<Self, 3>)>,
    ) -> Normalised<Self> {
        cpu::normalised_ssd(&inputs, &divisor, state.as_ref())
            .unwrap_or_else(|| normalised_reference(inputs, divisor, state, Self::gated_linear_attention))
    }
}

impl<B: GatedLinearAttentionOp + HeadScaleOp> SsdOp for B {}

/// Linear attention from a state: outputs and the last state.
pub type Attention<B> = fn(GatedLinearAttention<B>, Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>);

impl<B: HeadScaleOp> Ssd<B> {
    /// Values that are written in full.
    fn attention(self) -> GatedLinearAttention<B> {
        let Self { q, k, v, decay, write } = self;
        GatedLinearAttention { q, k, v: B::head_scale(v, write), decay: decay.unsqueeze_dim(3) }
    }
}

/// [`SsdOp::ssd`] by `attention`.
pub fn reference<B: HeadScaleOp>(
    inputs: Ssd<B>,
    skip: Tensor<B, 1>,
    state: Option<Tensor<B, 4>>,
    attention: Attention<B>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let heads = skip.dims()[0];
    let skipped = inputs.v.clone() * skip.reshape([1, 1, heads, 1]);
    let (y, state) = attention(inputs.attention(), state);
    (y + skipped, state)
}

/// [`SsdOp::normalised_ssd`] by two runs of `attention`: the normaliser is a state with one value channel, of ones.
pub fn normalised_reference<B: HeadScaleOp>(
    inputs: Ssd<B>,
    divisor: Divisor<B>,
    state: Option<(Tensor<B, 4>, Tensor<B, 3>)>,
    attention: Attention<B>,
) -> Normalised<B> {
    let ([batch, seq, heads, _], (state, normaliser)) = (inputs.v.dims(), state.unzip());
    let counted = GatedLinearAttention {
        q: inputs.q.clone(),
        k: inputs.k.clone(),
        v: inputs.write.clone().unsqueeze_dim(3),
        decay: inputs.decay.clone().unsqueeze_dim(3),
    };
    let (read, normaliser) = attention(counted, normaliser.map(|n| n.unsqueeze_dim(3)));
    let (y, state) = attention(inputs.attention(), state);
    let divisor = read.reshape([batch, seq, heads]).abs().max_pair(divisor.least) + divisor.epsilon;
    Normalised { y: B::head_scale(y, divisor.recip()), state, normaliser: normaliser.squeeze_dim(3) }
}
