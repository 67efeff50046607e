//! Sums of squares by vectors, blocks of them by threads.

use crate::ops::cpu::simd::V;
use crate::ops::cpu::{tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::*;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Numbers that one unit of work takes.
const BLOCK: usize = 1 << 14;

/// The operation, where kernels can run.
pub fn sum_of_squares<B: RunKernels, const D: usize>(x: &Tensor<B, D>) -> Option<Tensor<B, 1>> {
    let [sum] = B::run(SquaresKernel, [float(x)])?;
    Some(kernel::tensor(sum))
}

/// The sum of the squares of a tensor, `[1]`.
#[derive(Debug, Clone, Copy)]
pub struct SquaresKernel;

impl Kernel<1, 1> for SquaresKernel {
    type Saved = ();

    fn forward(&self, [x]: [FlexTensor; 1], _: bool) -> ([FlexTensor; 1], Option<()>) {
        let blocks: Vec<f64> = values(&x).par_chunks(BLOCK).map(|x| f64::from(with_simd(Squares(x)))).collect();
        ([tensor(vec![blocks.iter().sum::<f64>() as f32], [1])], None)
    }

    /// For the norm of a gradient, which is not differentiated again.
    fn backward(&self, (): (), _: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [None]
    }
}

struct Squares<'a>(&'a [f32]);

impl WithSimd for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let mut sum = V::splat(simd, 0.0);
        for x in self.0.chunks(V::<S>::LANES) {
            let x = V::load(simd, x);
            sum = x.mul_add(x, sum);
        }
        sum.sum()
    }
}
