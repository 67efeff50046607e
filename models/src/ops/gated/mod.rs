//! Products with a gate.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::activation::{sigmoid, silu};

/// The function of a gate's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// 1/(1 + e⁻ᶻ).
    Sigmoid,
    /// z/(1 + e⁻ᶻ).
    Silu,
}

/// The product with a gate.
pub trait GatedOp: RunKernels {
    /// `x`·gate(`z`), entry by entry, all `[batch, seq, channels]`.
    fn gated(x: Tensor<Self, 3>, z: Tensor<Self, 3>, gate: Gate) -> Tensor<Self, 3> {
        cpu::gated(&x, &z, gate).unwrap_or_else(|| reference(x, z, gate))
    }

    /// (`x` + `scale`⊙`u`)·silu(`z`), entry by entry, all `[batch, seq, channels]` but `scale`, `[channels]`.
    fn gated_sum(
        x: Tensor<Self, 3>,
        u: Tensor<Self, 3>,
        scale: Tensor<Self, 1>,
        z: Tensor<Self, 3>,
    ) -> Tensor<Self, 3> {
        cpu::gated_sum(&x, &u, &scale, &z).unwrap_or_else(|| sum_reference(x, u, scale, z))
    }
}

impl<B: RunKernels> GatedOp for B {}

/// x·gate(z).
pub fn reference<B: Backend>(x: Tensor<B, 3>, z: Tensor<B, 3>, gate: Gate) -> Tensor<B, 3> {
    match gate {
        Gate::Sigmoid => x * sigmoid(z),
        Gate::Silu => x * silu(z),
    }
}

/// (x + scale⊙u)·silu(z).
pub fn sum_reference<B: Backend>(
    x: Tensor<B, 3>,
    u: Tensor<B, 3>,
    scale: Tensor<B, 1>,
    z: Tensor<B, 3>,
) -> Tensor<B, 3> {
    reference(x + u * scale.unsqueeze(), z, Gate::Silu)
}
