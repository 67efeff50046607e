//! Functions of single numbers, in one pass over memory.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::activation::{log_sigmoid, sigmoid, silu, tanh};

/// A function of single numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// eˣ.
    Exp,
    /// log(1/(1 + e⁻ˣ)).
    LogSigmoid,
    /// 1/(1 + e⁻ˣ).
    Sigmoid,
    /// x/(1 + e⁻ˣ).
    Silu,
    /// (eˣ − e⁻ˣ)/(eˣ + e⁻ˣ).
    Tanh,
}

/// Functions of single numbers.
pub trait ActivationOp: RunKernels {
    /// The function of every number of `x` `[batch, seq, channels]`.
    fn activation(x: Tensor<Self, 3>, activation: Activation) -> Tensor<Self, 3> {
        cpu::activation(&x, activation).unwrap_or_else(|| reference(x, activation))
    }
}

impl<B: RunKernels> ActivationOp for B {}

/// burn's own functions.
pub fn reference<B: Backend>(x: Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
    match activation {
        Activation::Exp => x.exp(),
        Activation::LogSigmoid => log_sigmoid(x),
        Activation::Sigmoid => sigmoid(x),
        Activation::Silu => silu(x),
        Activation::Tanh => tanh(x),
    }
}
