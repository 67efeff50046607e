//! RNN, LSTM and GRU layers.

pub mod cells;
pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;
pub mod time_loop;

use super::autocast::{matmul_rows, product};
use super::kernel::RunKernels;
use super::unbind_time;
use burn::prelude::*;
use burn::tensor::activation::{sigmoid, tanh};
use burn::tensor::module::embedding;

/// The weights of one recurrent layer in PyTorch's layout; G is 1 for an RNN, 3 for a GRU (gates r, z, n) and 4 for an
/// LSTM (gates i, f, g, o).
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

/// The input of a recurrent layer.
#[derive(Debug, Clone)]
pub enum LayerInput<B: Backend> {
    /// `[batch, seq, input]`.
    Rows(Tensor<B, 3>),
    /// An embedding: the rows of `table` `[vocab, input]` that `ids` `[batch, seq]` say. Products are then computed
    /// once per token of the vocabulary, not once per position.
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

/// Recurrent layers.
pub trait RecurrentOps: RunKernels {
    /// An Elman layer from state `h` `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all states
    /// `[batch, seq, hidden]`, and the last one. See [`rnn_reference`] for the formula.
    fn rnn_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        let x = x.into();
        cpu::rnn_layer(&x, &weights, h.as_ref()).unwrap_or_else(|| rnn_reference(x.rows(), weights, h))
    }

    /// An LSTM layer from state `(h, c)`, each `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all
    /// hidden states `[batch, seq, hidden]`, and the last `(h, c)`. See [`lstm_reference`] for the formula.
    fn lstm_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        state: Option<(Tensor<Self, 2>, Tensor<Self, 2>)>,
    ) -> (Tensor<Self, 3>, (Tensor<Self, 2>, Tensor<Self, 2>)) {
        let x = x.into();
        cpu::lstm_layer(&x, &weights, state.as_ref()).unwrap_or_else(|| lstm_reference(x.rows(), weights, state))
    }

    /// A GRU layer from state `h` `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all states
    /// `[batch, seq, hidden]`, and the last one. See [`gru_reference`] for the formula.
    fn gru_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        let x = x.into();
        cpu::gru_layer(&x, &weights, h.as_ref()).unwrap_or_else(|| gru_reference(x.rows(), weights, h))
    }
}

impl<B: RunKernels> RecurrentOps for B {}

/// h_t = tanh(W_ih·x_t + b_ih + W_hh·h_{t−1} + b_hh) (Elman, 1990).
pub fn rnn_reference<B: Backend>(
    x: Tensor<B, 3>,
    weights: RecurrentWeights<B>,
    h: Option<Tensor<B, 2>>,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    let [batch, _, _] = x.dims();
    let hidden = weights.weight_hh.dims()[1];
    let recurrent = weights.weight_hh.clone().transpose(); // [hidden, hidden]
    let mut h = h.unwrap_or_else(|| Tensor::zeros([batch, hidden], (&x.device(), x.dtype())));
    let mut states = Vec::new();
    for input in unbind_time(input_product(x, weights)) {
        h = tanh(input + product(h, recurrent.clone())); // [batch, hidden]
        states.push(h.clone());
    }
    (Tensor::stack(states, 1), h)
}

/// i, f, g, o = gates(W_ih·x_t + b_ih + W_hh·h_{t−1} + b_hh); c = σ(f)·c + σ(i)·tanh(g); h = σ(o)·tanh(c)
/// (Hochreiter & Schmidhuber, 1997, with the forget gate of Gers et al., 2000).
#[allow(clippy::type_complexity)] // the state of an LSTM is the pair (h, c)
pub fn lstm_reference<B: Backend>(
    x: Tensor<B, 3>,
    weights: RecurrentWeights<B>,
    state: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
) -> (Tensor<B, 3>, (Tensor<B, 2>, Tensor<B, 2>)) {
    let [batch, _, _] = x.dims();
    let hidden = weights.weight_hh.dims()[1];
    let recurrent = weights.weight_hh.clone().transpose(); // [hidden, 4·hidden]
    let zero = || Tensor::zeros([batch, hidden], (&x.device(), x.dtype()));
    let (mut h, mut c) = state.unwrap_or_else(|| (zero(), zero()));
    let mut states = Vec::new();
    for input in unbind_time(input_product(x, weights)) {
        let gates = input + product(h, recurrent.clone()); // [batch, 4·hidden]
        let gate = |k: usize| gates.clone().slice([0..batch, k * hidden..(k + 1) * hidden]);
        c = sigmoid(gate(1)) * c + sigmoid(gate(0)) * tanh(gate(2));
        h = sigmoid(gate(3)) * tanh(c.clone());
        states.push(h.clone());
    }
    (Tensor::stack(states, 1), (h, c))
}

/// r, z = σ(W·x_t + b + V·h_{t−1} + c); n = tanh(W_n·x_t + b_n + r·(V_n·h_{t−1} + c_n)); h_t = (1 − z)·n + z·h_{t−1}
/// (Cho et al., arXiv 1406.1078, with the reset gate after the product, as PyTorch and cuDNN have it).
pub fn gru_reference<B: Backend>(
    x: Tensor<B, 3>,
    weights: RecurrentWeights<B>,
    h: Option<Tensor<B, 2>>,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    let [batch, _, _] = x.dims();
    let hidden = weights.weight_hh.dims()[1];
    let recurrent = weights.weight_hh.transpose(); // [hidden, 3·hidden]
    let bias = weights.bias_hh.unsqueeze::<2>(); // the candidate's part is inside the reset gate
    let inputs = matmul_rows(x.clone(), weights.weight_ih.transpose()) + weights.bias_ih.unsqueeze();
    let mut h = h.unwrap_or_else(|| Tensor::zeros([batch, hidden], (&x.device(), x.dtype())));
    let mut states = Vec::new();
    for input in unbind_time(inputs) {
        let recalled = product(h.clone(), recurrent.clone()) + bias.clone(); // [batch, 3·hidden]
        let gate = |x: &Tensor<B, 2>, k: usize| x.clone().narrow(1, k * hidden, hidden);
        let r = sigmoid(gate(&input, 0) + gate(&recalled, 0));
        let z = sigmoid(gate(&input, 1) + gate(&recalled, 1));
        let n = tanh(gate(&input, 2) + r * gate(&recalled, 2));
        h = n.clone() + z * (h - n);
        states.push(h.clone());
    }
    (Tensor::stack(states, 1), h)
}

/// Everything that does not depend on the state, for all time steps in one product: `[batch, seq, G·hidden]`.
fn input_product<B: Backend>(x: Tensor<B, 3>, weights: RecurrentWeights<B>) -> Tensor<B, 3> {
    let bias = weights.bias_ih + weights.bias_hh;
    matmul_rows(x, weights.weight_ih.transpose()) + bias.unsqueeze()
}
