//! Sums of squares, for the norm of a gradient.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;

/// The sum of squares.
pub trait SumOfSquaresOp: RunKernels {
    /// The sum of the squares of all numbers, `[1]`.
    fn sum_of_squares<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, 1> {
        cpu::sum_of_squares(&x).unwrap_or_else(|| reference(x))
    }
}

impl<B: RunKernels> SumOfSquaresOp for B {}

/// The sum of the squares, `[1]`.
pub fn reference<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    x.square().sum()
}
