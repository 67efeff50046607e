//! Linear layers without a bias.

pub mod cpu;

use super::autocast::matmul_rows;
use super::kernel::RunKernels;
use burn::prelude::*;

/// The linear layer without a bias.
pub trait ProjectionOp: RunKernels {
    /// y = x·Wᵀ: `x` `[batch, seq, in]`, `weight` `[out, in]` → `[batch, seq, out]`.
    fn projection(x: Tensor<Self, 3>, weight: Tensor<Self, 2>) -> Tensor<Self, 3> {
        cpu::projection(&x, &weight).unwrap_or_else(|| reference(x, weight))
    }
}

impl<B: RunKernels> ProjectionOp for B {}

/// x·Wᵀ.
pub fn reference<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 2>) -> Tensor<B, 3> {
    matmul_rows(x, weight.transpose())
}
