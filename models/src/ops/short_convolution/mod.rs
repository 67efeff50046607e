//! Mamba's short convolution: a few taps per channel, then SiLU (Gu & Dao, arXiv 2312.00752, section 3.4). HGRN2's has no
//! SiLU, and no kernel.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::activation;

/// The short convolution.
pub trait ShortConvolutionOp: RunKernels {
    /// A causal convolution of each channel with a few taps of its own, and its SiLU if `silu`: `x` `[batch, seq, channels]`, `weight`
    /// `[channels, 1, taps]` (the last tap is the present), `bias` `[channels]`, after the inputs `before` `[batch,
    /// taps − 1, channels]` (zero if `None`) → `[batch, seq, channels]`.
    fn short_convolution(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 3>,
        bias: Tensor<Self, 1>,
        before: Option<Tensor<Self, 3>>,
        silu: bool,
    ) -> Tensor<Self, 3> {
        let padded = before.is_none();
        let x = match before {
            Some(before) => Tensor::cat(vec![before, x], 1),
            None => x,
        };
        let fast = if silu { cpu::short_convolution(&x, &weight, &bias, padded) } else { None };
        fast.unwrap_or_else(|| {
            let y = reference(x, weight, bias, padded);
            if silu { activation::silu(y) } else { y }
        })
    }
}

impl<B: RunKernels> ShortConvolutionOp for B {}

/// Σ_j weight_j⊙x_{t+j} + bias over the taps j: `x` `[batch, seq, channels]`, `weight` `[channels, 1, taps]`,
/// `bias` `[channels]` → taps − 1 time steps fewer, unless as many zeros come before them (`padded`).
pub fn reference<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 3>, bias: Tensor<B, 1>, padded: bool) -> Tensor<B, 3> {
    let ([batch, _, channels], [_, _, taps]) = (x.dims(), weight.dims());
    let zeros = padded.then(|| super::zeros(&x, [batch, taps - 1, channels]));
    let x = Tensor::cat(zeros.into_iter().chain([x]).collect(), 1);
    let seq = x.dims()[1] + 1 - taps;
    let weight = weight.permute([2, 1, 0]); // [taps, 1, channels]
    let sum = (0..taps).map(|tap| x.clone().narrow(1, tap, seq) * weight.clone().narrow(0, tap, 1));
    sum.fold(bias.unsqueeze(), |sum, tap| tap + sum)
}
