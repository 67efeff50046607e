//! The squared ReLU of RWKV's channel mixing.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::activation::relu;

/// The squared ReLU.
pub trait SquaredReluOp: RunKernels {
    /// max(x, 0)², entry by entry, `[batch, seq, channels]` (So et al., arXiv 2109.08668).
    fn squared_relu(x: Tensor<Self, 3>) -> Tensor<Self, 3> {
        cpu::squared_relu(&x).unwrap_or_else(|| reference(x))
    }
}

impl<B: RunKernels> SquaredReluOp for B {}

/// max(x, 0)².
pub fn reference<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    relu(x).square()
}
