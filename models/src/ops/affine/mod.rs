//! Linear layers with a bias, and an optional ReLU.

pub mod cpu;

use super::autocast::matmul_rows;
use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::activation::relu;

/// The linear layer with a bias.
pub trait AffineOp: RunKernels {
    /// y = x·W + b, and max(y, 0) with `relu`: `x` `[batch, seq, in]`, `weight` `[in, out]`, `bias` `[out]` →
    /// `[batch, seq, out]`.
    fn affine(x: Tensor<Self, 3>, weight: Tensor<Self, 2>, bias: Tensor<Self, 1>, relu: bool) -> Tensor<Self, 3> {
        cpu::affine(&x, &weight, &bias, relu).unwrap_or_else(|| reference(x, weight, bias, relu))
    }
}

impl<B: RunKernels> AffineOp for B {}

/// x·W + b, and max(·, 0) of it with `relu`.
pub fn reference<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 2>, bias: Tensor<B, 1>, rectify: bool) -> Tensor<B, 3> {
    let y = matmul_rows(x, weight) + bias.unsqueeze();
    if rectify { relu(y) } else { y }
}
