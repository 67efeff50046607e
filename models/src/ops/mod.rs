//! The costly sequence operations, behind one trait so that a backend can bring a faster version of any of them
//! without a model changing. The defaults in [`plain`] are ordinary tensor operations: the readable definition. On the
//! CPU, operations have hand-written forward and backward passes as well: see [`kernel`].

pub mod cpu;
pub mod delta;
pub mod kernel;
pub mod plain;
pub mod s4;
pub mod scan;
pub mod wkv;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::prelude::*;
use burn::tensor::module::embedding;
use kernel::RunKernels;
use s4::S4Kernel;
use scan::SelectiveScan;

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

/// What a recurrent layer reads.
#[derive(Debug, Clone)]
pub enum LayerInput<B: Backend> {
    /// `[batch, seq, input]`.
    Rows(Tensor<B, 3>),
    /// An embedding: the rows of `table` `[vocab, input]` that `ids` `[batch, seq]` say. Products need then be computed once
    /// for every token of the vocabulary, not for every place where it stands.
    Embedded {
        /// `[vocab, input]`.
        table: Tensor<B, 2>,
        /// `[batch, seq]`.
        ids: Tensor<B, 2, Int>,
    },
}

impl<B: Backend> LayerInput<B> {
    /// `[batch, seq, input]`.
    pub fn rows(self) -> Tensor<B, 3> {
        match self {
            Self::Rows(x) => x,
            Self::Embedded { table, ids } => embedding(table, ids),
        }
    }
}

impl<B: Backend> From<Tensor<B, 3>> for LayerInput<B> {
    fn from(x: Tensor<B, 3>) -> Self {
        Self::Rows(x)
    }
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
pub trait SequenceOps: RunKernels {
    /// An Elman layer from state `h` `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all states
    /// `[batch, seq, hidden]`, and the last one.
    fn rnn_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        let x = x.into();
        cpu::recurrent::rnn_layer(&x, &weights, h.as_ref()).unwrap_or_else(|| plain::rnn_layer(x.rows(), weights, h))
    }

    /// An LSTM layer from state `(h, c)`, each `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all
    /// hidden states `[batch, seq, hidden]`, and the last `(h, c)`.
    fn lstm_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        state: Option<(Tensor<Self, 2>, Tensor<Self, 2>)>,
    ) -> (Tensor<Self, 3>, (Tensor<Self, 2>, Tensor<Self, 2>)) {
        let x = x.into();
        cpu::recurrent::lstm_layer(&x, &weights, state.as_ref())
            .unwrap_or_else(|| plain::lstm_layer(x.rows(), weights, state))
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

    /// The first `length` taps of S4's kernel, `[hidden, length]`. See [`s4::kernel`] for the definition.
    fn s4_kernel(parameters: S4Kernel<Self>, length: usize) -> Tensor<Self, 2> {
        s4::kernel(parameters, length)
    }

    /// Causal convolution of every channel with a kernel of its own: `u` `[batch, seq, hidden]`, `k` `[hidden, seq]` →
    /// `[batch, seq, hidden]`. See [`s4::causal_convolution`] for the definition.
    fn causal_convolution(u: Tensor<Self, 3>, k: Tensor<Self, 2>) -> Tensor<Self, 3> {
        s4::causal_convolution(u, k)
    }

    /// Mamba's selective scan from state `h` `[batch, channels, state]` (zero if `None`): outputs
    /// `[batch, seq, channels]`, and the last state. See [`scan::selective_scan`] for the definition.
    fn selective_scan(inputs: SelectiveScan<Self>, h: Option<Tensor<Self, 3>>) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
        scan::selective_scan(inputs, h)
    }

    /// A GRU layer from state `h` `[batch, hidden]` (zero if `None`), gates r, z, n: `x` `[batch, seq, input]` → all
    /// states `[batch, seq, hidden]`, and the last one.
    fn gru_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        let x = x.into();
        cpu::recurrent::gru_layer(&x, &weights, h.as_ref()).unwrap_or_else(|| plain::gru_layer(x.rows(), weights, h))
    }

    /// h_t = a_t·h_{t−1} + b_t in every channel, from state `h` `[batch, channels]` (zero if `None`): `a` and `b`
    /// `[batch, seq, channels]` → all states `[batch, seq, channels]`, and the last one.
    fn linear_recurrence(
        a: Tensor<Self, 3>,
        b: Tensor<Self, 3>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        plain::linear_recurrence(a, b, h)
    }

    /// The gated delta rule from `state` `[batch, heads, size, size]` (zero if `None`) → outputs
    /// `[batch, heads, seq, size]`, and the last state. See [`delta::recurrent`] for the definition.
    fn delta_rule(
        inputs: delta::DeltaRule<Self>,
        state: Option<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        delta::chunked(inputs, state)
    }

    /// RWKV's matrix state with decays, from `state` `[batch, heads, size, size]` (zero if `None`): `r`, `k`, `v` and
    /// `decay` (in 0..=1) `[batch, heads, seq, size]`, `bonus` `[heads, size]` → outputs `[batch, heads, seq, size]`, and
    /// the last state. See [`wkv::recurrent`] for the definition.
    fn wkv(
        r: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        decay: Tensor<Self, 4>,
        bonus: Tensor<Self, 2>,
        state: Option<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        wkv::chunked(r, k, v, decay, bonus, state)
    }
}

impl SequenceOps for crate::Cpu {}

#[cfg(feature = "cuda")]
impl SequenceOps for crate::Cuda {}

impl<B: SequenceOps, C: CheckpointStrategy> SequenceOps for Autodiff<B, C> {}
