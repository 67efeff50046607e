//! The costly sequence operations, behind one trait so that a backend can bring a faster version of any of them
//! without a model changing. The defaults in [`plain`] are ordinary tensor operations: the readable definition.

pub mod plain;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::prelude::*;

/// The weights of one recurrent layer in PyTorch's layout; G is 1 for an RNN and 4 for an LSTM (gates i, f, g, o).
#[derive(Debug, Clone)]
pub struct RecurrentWeights<B: Backend> {
    /// `[G·hidden, input]`.
    pub weight_ih: Tensor<B, 2>,
    /// `[G·hidden, hidden]`.
    pub weight_hh: Tensor<B, 2>,
    /// `[G·hidden]`.
    pub bias_ih: Tensor<B, 1>,
    /// `[G·hidden]`.
    pub bias_hh: Tensor<B, 1>,
}

/// Which keys attention may see; the causal mask comes on top.
#[derive(Debug, Clone)]
pub struct KeyMask<B: Backend> {
    /// `[batch, seq]`, 0 at keys that no query may see, 1 at the others.
    pub keys: Tensor<B, 2>,
    /// Every query may see itself, whatever `keys` says of it.
    pub identity: bool,
}

/// Operations over whole sequences.
pub trait SequenceOps: Backend {
    /// An Elman layer from state `h` `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all states
    /// `[batch, seq, hidden]`, and the last one.
    fn rnn_layer(
        x: Tensor<Self, 3>,
        weights: RecurrentWeights<Self>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        plain::rnn_layer(x, weights, h)
    }

    /// An LSTM layer from state `(h, c)`, each `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all
    /// hidden states `[batch, seq, hidden]`, and the last `(h, c)`.
    fn lstm_layer(
        x: Tensor<Self, 3>,
        weights: RecurrentWeights<Self>,
        state: Option<(Tensor<Self, 2>, Tensor<Self, 2>)>,
    ) -> (Tensor<Self, 3>, (Tensor<Self, 2>, Tensor<Self, 2>)) {
        plain::lstm_layer(x, weights, state)
    }

    /// Causal attention: `q`, `k`, `v` `[batch, heads, seq, head_dim]` → `[batch, heads, seq, head_dim]`. Scores are
    /// `scale`·q·kᵀ.
    fn causal_attention(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        mask: Option<KeyMask<Self>>,
        scale: f64,
    ) -> Tensor<Self, 4> {
        plain::causal_attention(q, k, v, mask, scale)
    }
}

impl SequenceOps for crate::Cpu {}

#[cfg(feature = "cuda")]
impl SequenceOps for crate::Cuda {}

impl<B: SequenceOps, C: CheckpointStrategy> SequenceOps for Autodiff<B, C> {}
