//! x·gate(z) and its gradients, in one pass over memory each.

use crate::ops::cpu::pointwise::{Pointwise, map};
use crate::ops::cpu::simd::V;
use crate::ops::cpu::{like, values};
use crate::ops::gated::Gate;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::Simd;

/// x·gate(z) from (x, z).
#[derive(Debug, Clone, Copy)]
pub struct Gated(pub Gate);

impl Pointwise<2, 1> for Gated {
    #[inline(always)]
    fn apply<S: Simd>(self, [x, z]: [V<S>; 2]) -> [V<S>; 1] {
        let sigmoid = z.sigmoid();
        match self.0 {
            Gate::Sigmoid => [x * sigmoid],
            Gate::Silu => [x * z * sigmoid],
        }
    }
}

/// The gradients of x and z from (x, z, that of x·gate(z)).
#[derive(Debug, Clone, Copy)]
pub struct GatedGradient(pub Gate);

impl Pointwise<3, 2> for GatedGradient {
    #[inline(always)]
    fn apply<S: Simd>(self, [x, z, g]: [V<S>; 3]) -> [V<S>; 2] {
        let sigmoid = z.sigmoid();
        let one = V::splat(z.0, 1.0);
        let rest = one - sigmoid;
        match self.0 {
            Gate::Sigmoid => [g * sigmoid, g * x * sigmoid * rest],
            Gate::Silu => [g * z * sigmoid, g * x * sigmoid * z.mul_add(rest, one)],
        }
    }
}

impl Kernel<2, 1> for Gated {
    type Saved = [FlexTensor; 2];

    fn forward(&self, [x, z]: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        (map(*self, [values(&x), values(&z)]).map(|y| like(&x, y)), save.then_some([x, z]))
    }

    fn backward(&self, [x, z]: Self::Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let Some(dy) = dy else { return [None, None] };
        map(GatedGradient(self.0), [values(&x), values(&z), values(&dy)]).map(|gradient| Some(like(&x, gradient)))
    }
}

/// The operation, where kernels can run.
pub fn gated<B: RunKernels>(x: &Tensor<B, 3>, z: &Tensor<B, 3>, gate: Gate) -> Option<Tensor<B, 3>> {
    B::run(Gated(gate), [float(x), float(z)]).map(|[y]| kernel::tensor(y))
}
