//! x·Φ(x) and its gradient, in one pass over memory each.

use crate::ops::cpu::pointwise::{Pointwise, map};
use crate::ops::cpu::simd::V;
use crate::ops::cpu::{like, values};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::Simd;

/// x·Φ(x), Φ the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415).
#[derive(Debug, Clone, Copy)]
pub struct Gelu;

impl Pointwise<1, 1> for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, [x]: [V<S>; 1]) -> [V<S>; 1] {
        [x * x.normal().0]
    }
}

/// The gradient of x from (x, that of x·Φ(x)).
#[derive(Debug, Clone, Copy)]
pub struct GeluGradient;

impl Pointwise<2, 1> for GeluGradient {
    #[inline(always)]
    fn apply<S: Simd>(self, [x, g]: [V<S>; 2]) -> [V<S>; 1] {
        let (distribution, density) = x.normal();
        [g * x.mul_add(density, distribution)]
    }
}

impl Kernel<1, 1> for Gelu {
    type Saved = FlexTensor;

    fn forward(&self, [x]: [FlexTensor; 1], save: bool) -> ([FlexTensor; 1], Option<FlexTensor>) {
        (map(*self, [values(&x)]).map(|y| like(&x, y)), save.then_some(x))
    }

    fn backward(&self, x: FlexTensor, [dy]: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let Some(dy) = dy else { return [None] };
        map(GeluGradient, [values(&x), values(&dy)]).map(|dx| Some(like(&x, dx)))
    }
}

/// The operation, where kernels can run.
pub fn gelu<B: RunKernels>(x: &Tensor<B, 3>) -> Option<Tensor<B, 3>> {
    B::run(Gelu, [float(x)]).map(|[y]| kernel::tensor(y))
}
