//! Dropout with a mask that can be drawn again from its seed.

pub mod cpu;

pub use cpu::Mask;

use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::TensorData;

/// Dropout.
pub trait DropoutOp: RunKernels {
    /// `x` times random factors, the first of `mask`, in this shape: that of `x`, or 1 on axes along which they are the
    /// same.
    fn dropout<const D: usize>(x: Tensor<Self, D>, shape: [usize; D], mask: Mask) -> Tensor<Self, D> {
        cpu::dropout(&x, shape, mask).unwrap_or_else(|| reference(x, shape, mask))
    }
}

impl<B: RunKernels> DropoutOp for B {}

/// `x` times the first factors of `mask`, in this shape.
pub fn reference<B: Backend, const D: usize>(x: Tensor<B, D>, shape: [usize; D], mask: Mask) -> Tensor<B, D> {
    let factors = TensorData::new(mask.factors(shape.iter().product()), shape);
    let factors = Tensor::from_data(factors, (&x.device(), x.dtype()));
    x * factors
}
