//! Normalisation of rows: LayerNorm, RMSNorm, and both per head.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;

/// Normalisation.
pub trait NormOp: RunKernels {
    /// Normalisation of `x` `[batch, seq, channels]` in groups of `width` channels, times `weight` plus `bias`
    /// `[channels]`; a weight and bias of one group, `[width]`, serve them all. Without a bias, the mean is taken as
    /// zero (RMSNorm). See [`reference()`] for the formula.
    fn norm(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 1>,
        bias: Option<Tensor<Self, 1>>,
        width: usize,
        epsilon: f64,
    ) -> Tensor<Self, 3> {
        let fast = cpu::norm(&x, &weight, bias.as_ref(), width, epsilon);
        fast.unwrap_or_else(|| reference(x, weight, bias, width, epsilon))
    }
}

impl<B: RunKernels> NormOp for B {}

/// (x − mean)/√(variance + ε)·weight + bias in every group of `width` channels (Ba et al., arXiv 1607.06450, and per
/// group Wu and He, arXiv 1803.08494); without a bias, x/√(mean of x² + ε)·weight (Zhang and Sennrich, arXiv
/// 1910.07467).
pub fn reference<B: Backend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    bias: Option<Tensor<B, 1>>,
    width: usize,
    epsilon: f64,
) -> Tensor<B, 3> {
    let [batch, seq, channels] = x.dims();
    let x = x.reshape([batch, seq, channels / width, width]);
    let centred = if bias.is_some() { x.clone() - x.mean_dim(3) } else { x };
    let variance = centred.clone().square().mean_dim(3); // [batch, seq, groups, 1]
    let normal = centred / (variance + epsilon).sqrt();
    let parameter = |p: Tensor<B, 1>| {
        let groups = p.dims()[0] / width;
        p.reshape([1, 1, groups, width])
    };
    let y = normal * parameter(weight);
    let y = bias.into_iter().fold(y, |y, bias| y + parameter(bias));
    y.reshape([batch, seq, channels])
}
