//! The recurrent block of Griffin: a convolution and a gated linear recurrence in every channel (RG-LRU), beside a gate.
//!
//! Source: S. De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models", arXiv
//! 2402.19427, section 2.4; gates are full matrices, as in the paper's equations.

use super::HybridConfig;
use crate::Init;
use crate::layers::{Affine, Linear, ShortConv};
use crate::ops::SequenceOps;
use crate::ops::scan::softplus;
use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::activation::{sigmoid, tanh};

/// c: the decay is σ(Λ) to the power of c·r.
pub const POWER: f64 = 8.0;

/// Taps of the convolution.
pub const TAPS: usize = 4;

/// The least 1 − a², so that its root has a gradient.
pub const LEAST: f32 = 1e-12;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Rglru<B: Backend> {
    /// `[channels, hidden]`: the gate, before its GELU.
    linear_y: Linear<B>,
    /// `[channels, hidden]`: the input.
    linear_x: Linear<B>,
    conv1d: ShortConv<B>,
    /// W_a and b_a: how much of the state decays.
    recurrence_gate: Affine<B>,
    /// W_x and b_x: how much of the input is added.
    input_gate: Affine<B>,
    /// Λ, `[channels]`.
    lambda: Param<Tensor<B, 1>>,
    /// `[hidden, channels]`.
    linear_out: Linear<B>,
}

/// The state of one block between tokens.
#[derive(Debug, Clone)]
pub struct RglruState<B: Backend> {
    /// The last inputs of the convolution, `[batch, channels, taps − 1]`.
    pub conv: Tensor<B, 3>,
    /// h, `[batch, channels]`.
    pub h: Tensor<B, 2>,
}

impl<B: Backend> Rglru<B> {
    /// Projections N(0, 1/in), gates PyTorch's default U(±1/√in), and Λ so that σ(Λ)^c is uniform on 0.9 … 0.999.
    pub(super) fn new(config: &HybridConfig, init: &mut Init<'_, B>) -> Self {
        let (hidden, channels) = (config.hidden_size, config.hidden_size);
        let linear = |init: &mut Init<'_, B>| Linear::new(init, hidden, channels, (hidden as f64).powf(-0.5));
        Self {
            linear_y: linear(init),
            linear_x: linear(init),
            conv1d: ShortConv::biased(init, channels, TAPS),
            recurrence_gate: Affine::new(init, channels, channels),
            input_gate: Affine::new(init, channels, channels),
            lambda: {
                let kept = init.draw_uniform(channels, 0.9, 0.999);
                let logit = |kept: f32| {
                    let root = f64::from(kept).powf(1.0 / POWER);
                    (root / (1.0 - root)).ln() as f32
                };
                init.values(kept.into_iter().map(logit).collect(), [channels])
            },
            linear_out: linear(init),
        }
    }
}

impl<B: SequenceOps> Rglru<B> {
    /// `[batch, seq, hidden]` → the same shape, and the state after it: with r = σ(W_a·u + b_a) and i = σ(W_x·u + b_x) of the
    /// convolved input u, a = σ(Λ)^(c·r) and h_t = a_t·h_{t−1} + √(1 − a_t²)·(i_t·u_t) (equations 3 and 4).
    pub(super) fn forward(&self, x: Tensor<B, 3>, state: Option<RglruState<B>>) -> (Tensor<B, 3>, RglruState<B>) {
        let (conv, h) = state.map(|state| (state.conv, state.h)).unzip();
        let gate = B::exact_gelu(self.linear_y.forward(x.clone()));
        let (u, conv) = self.conv1d.forward(self.linear_x.forward(x), conv, false); // [batch, seq, channels]
        let r = sigmoid(self.recurrence_gate.forward(u.clone()));
        let i = sigmoid(self.input_gate.forward(u.clone()));
        // −log a, and 1 − a² from it without the difference of two numbers close to 1: 2t/(1 + t), t = tanh(−log a)
        let rate = r * (softplus(self.lambda.val().neg().unsqueeze::<3>()) * POWER);
        let t = tanh(rate.clone());
        let written = ((t.clone() * 2.0) / (t + 1.0)).clamp_min(LEAST).sqrt();
        let (states, h) = B::linear_recurrence(rate.neg().exp(), written * i * u, h);
        (self.linear_out.forward(states * gate), RglruState { conv, h })
    }
}
