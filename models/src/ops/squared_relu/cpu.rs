//! max(x, 0)² and its gradient, in one pass over memory each.

use crate::ops::cpu::pointwise::{Pointwise, map};
use crate::ops::cpu::simd::V;
use crate::ops::cpu::{like, values};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::Simd;

/// max(x, 0)² (So et al., arXiv 2109.08668).
#[derive(Debug, Clone, Copy)]
pub struct SquaredRelu;

impl Pointwise<1, 1> for SquaredRelu {
    #[inline(always)]
    fn apply<S: Simd>(self, [x]: [V<S>; 1]) -> [V<S>; 1] {
        let positive = x.max(0.0);
        [positive * positive]
    }
}

/// The gradient of x from (x, that of max(x, 0)²).
#[derive(Debug, Clone, Copy)]
pub struct SquaredReluGradient;

impl Pointwise<2, 1> for SquaredReluGradient {
    #[inline(always)]
    fn apply<S: Simd>(self, [x, g]: [V<S>; 2]) -> [V<S>; 1] {
        [g * x.max(0.0) * 2.0]
    }
}

impl Kernel<1, 1> for SquaredRelu {
    type Saved = FlexTensor;

    fn forward(&self, [x]: [FlexTensor; 1], save: bool) -> ([FlexTensor; 1], Option<FlexTensor>) {
        (map(*self, [values(&x)]).map(|y| like(&x, y)), save.then_some(x))
    }

    fn backward(&self, x: FlexTensor, [dy]: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let Some(dy) = dy else { return [None] };
        map(SquaredReluGradient, [values(&x), values(&dy)]).map(|dx| Some(like(&x, dx)))
    }
}

/// The operation, where kernels can run.
pub fn squared_relu<B: RunKernels>(x: &Tensor<B, 3>) -> Option<Tensor<B, 3>> {
    B::run(SquaredRelu, [float(x)]).map(|[y]| kernel::tensor(y))
}
