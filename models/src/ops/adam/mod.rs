//! The optimiser's step: Adam with decoupled weight decay.

pub mod cpu;

pub use cpu::AdamKernel;

use super::kernel::RunKernels;
use burn::prelude::*;

/// The step of AdamW.
pub trait AdamOp: RunKernels {
    /// A step of AdamW on one parameter: see [`AdamKernel`] for the formula and its source. `factor` `[1]`; all others
    /// have the parameter's shape. It is not differentiable.
    fn adam_step<const D: usize>(
        rule: AdamKernel,
        parameter: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
        moments: [Tensor<Self, D>; 2],
        factor: Tensor<Self, 1>,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        let fast = cpu::adam_step(rule, &parameter, &gradient, &moments, &factor);
        fast.unwrap_or_else(|| reference(rule, parameter, gradient, moments, factor))
    }
}

impl<B: RunKernels> AdamOp for B {}

/// A step of AdamW, see [`AdamKernel`]: the next parameter and moments, from those before it and the gradient.
pub fn reference<B: Backend, const D: usize>(
    rule: AdamKernel,
    parameter: Tensor<B, D>,
    gradient: Tensor<B, D>,
    [first, second]: [Tensor<B, D>; 2],
    factor: Tensor<B, 1>,
) -> (Tensor<B, D>, [Tensor<B, D>; 2]) {
    let AdamKernel { betas: [beta1, beta2], epsilon, rate, root, keep } = rule;
    let gradient = gradient * factor.unsqueeze();
    let first = first * beta1 + gradient.clone() * (1.0 - beta1);
    let second = second * beta2 + gradient.square() * (1.0 - beta2);
    let change = first.clone() * rate / (second.clone().sqrt() / root + epsilon);
    (parameter * keep - change, [first, second])
}
