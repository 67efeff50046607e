//! Products with a number for each head.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;

/// Products with a number for each head.
pub trait HeadScaleOp: RunKernels {
    /// Every head of `x` `[batch, seq, heads, size]` times its number in `scale` `[batch, seq, heads]`.
    fn head_scale(x: Tensor<Self, 4>, scale: Tensor<Self, 3>) -> Tensor<Self, 4> {
        cpu::head_scale(&x, &scale).unwrap_or_else(|| reference(x, scale))
    }
}

impl<B: RunKernels> HeadScaleOp for B {}

/// A product in which the numbers are repeated.
pub fn reference<B: Backend>(x: Tensor<B, 4>, scale: Tensor<B, 3>) -> Tensor<B, 4> {
    x * scale.unsqueeze_dim(3)
}
