//! The sLSTM's recurrence (Beck et al., arXiv 2405.04517, section 2.2): an LSTM with exponential input gates, a normaliser
//! and a stabiliser, whose heads read their own last outputs only.

pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;

use super::kernel::RunKernels;
use super::{unbind_time, zeros};
use burn::prelude::*;
use burn::tensor::activation::{log_sigmoid, sigmoid};

/// Gates: input, forget, cell input, output, in this order.
pub const GATES: usize = 4;

/// The states of every channel between two tokens, each `[batch, hidden]`.
#[derive(Debug, Clone)]
pub struct SlstmState<B: Backend> {
    /// The output.
    pub y: Tensor<B, 2>,
    /// The cell, times e^−m.
    pub c: Tensor<B, 2>,
    /// The normaliser, times e^−m.
    pub n: Tensor<B, 2>,
    /// The stabiliser.
    pub m: Tensor<B, 2>,
}

/// The sLSTM's recurrence.
pub trait SlstmOp: RunKernels {
    /// The recurrence from `state` (none: the first token). `gates` are the gates' inputs from tokens, biases included,
    /// `[batch, seq, 4·hidden]`, gate by gate; `recurrent` `[heads, 4·size, size]` is what the last outputs of a head add to
    /// them, gate by gate. Gives the outputs `[batch, seq, hidden]`, and the last state, to which no gradients belong.
    /// See [`reference()`] for the formula.
    fn slstm(
        gates: Tensor<Self, 3>,
        recurrent: Tensor<Self, 3>,
        state: Option<SlstmState<Self>>,
    ) -> (Tensor<Self, 3>, SlstmState<Self>) {
        cpu::slstm(&gates, &recurrent, state.as_ref()).unwrap_or_else(|| reference(gates, recurrent, state))
    }
}

impl<B: RunKernels> SlstmOp for B {}

/// One time step after another. With the gates ĩ, f̃, z̃, õ = gates_t + R·y_{t−1}:
///
/// m_t = max(ĩ, m_{t−1} + log σ(f̃)), or ĩ at the first token; i = exp(ĩ − m_t), f = exp(m_{t−1} + log σ(f̃) − m_t);
/// c_t = f·c_{t−1} + i·tanh(z̃), n_t = f·n_{t−1} + i, y_t = σ(õ)·c_t/n_t.
///
/// The result does not depend on the stabiliser m, so that it passes no gradients.
pub fn reference<B: Backend>(
    gates: Tensor<B, 3>,
    recurrent: Tensor<B, 3>,
    state: Option<SlstmState<B>>,
) -> (Tensor<B, 3>, SlstmState<B>) {
    let ([batch, _, width], [heads, _, size]) = (gates.dims(), recurrent.dims());
    let hidden = width / GATES;
    let mut state = state;
    let mut outputs = Vec::new();
    for gates in unbind_time(gates) {
        let last = state.as_ref().map(|state| state.y.clone());
        let own = match last {
            Some(y) => {
                let y = y.reshape([batch, heads, size, 1]);
                let own = recurrent.clone().unsqueeze::<4>().matmul(y); // [batch, heads, 4·size, 1]
                own.reshape([batch, heads, GATES, size]).swap_dims(1, 2).reshape([batch, width])
            }
            None => zeros(&gates, [batch, width]),
        };
        let gates = gates + own;
        let gate = |i: usize| gates.clone().narrow(1, i * hidden, hidden);
        let (input, forget, z, output) = (gate(0), log_sigmoid(gate(1)), gate(2).tanh(), sigmoid(gate(3)));
        let (c, n, m) = match state.take() {
            None => {
                let m = input.clone().detach();
                let i = (input - m.clone()).exp();
                (i.clone() * z, i, m)
            }
            Some(before) => {
                let kept = before.m + forget;
                let m = input.clone().max_pair(kept.clone()).detach();
                let (i, f) = ((input - m.clone()).exp(), (kept - m.clone()).exp());
                (f.clone() * before.c + i.clone() * z, f * before.n + i, m)
            }
        };
        let y = output * c.clone() / n.clone();
        outputs.push(y.clone());
        state = Some(SlstmState { y, c, n, m });
    }
    let state = state.unwrap_or_else(|| {
        let empty = || zeros(&recurrent, [batch, hidden]);
        SlstmState { y: empty(), c: empty(), n: empty(), m: empty() }
    });
    (Tensor::stack(outputs, 1), state)
}
