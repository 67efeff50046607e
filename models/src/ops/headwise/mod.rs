//! Products with matrices of blocks on the diagonal: every group of channels has a small matrix of its own.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;

/// Products with matrices of blocks on the diagonal.
pub trait HeadwiseOp: RunKernels {
    /// y = W_g·x for every group g of channels: `x` `[batch, seq, groups·in]`, `weight` `[groups, out, in]` →
    /// `[batch, seq, groups·out]`.
    fn headwise(x: Tensor<Self, 3>, weight: Tensor<Self, 3>) -> Tensor<Self, 3> {
        cpu::headwise(&x, &weight).unwrap_or_else(|| reference(x, weight))
    }

    /// Two products of the same `x`, which is read once.
    fn headwise_pair(x: Tensor<Self, 3>, weights: [Tensor<Self, 3>; 2]) -> [Tensor<Self, 3>; 2] {
        cpu::headwise_pair(&x, weights.each_ref())
            .unwrap_or_else(|| weights.map(|weight| Self::headwise(x.clone(), weight)))
    }
}

impl<B: RunKernels> HeadwiseOp for B {}

/// A product of matrices for each group.
pub fn reference<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 3>) -> Tensor<B, 3> {
    let ([batch, seq, _], [groups, out, input]) = (x.dims(), weight.dims());
    let x = x.reshape([batch * seq, groups, input]).swap_dims(0, 1); // [groups, batch·seq, in]
    let y = x.matmul(weight.transpose()); // [groups, batch·seq, out]
    y.swap_dims(0, 1).reshape([batch, seq, groups * out])
}
