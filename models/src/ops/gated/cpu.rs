//! x·gate(z) and its gradients, in one pass over memory each.

use crate::ops::cpu::memory::{all_in_pieces, in_pieces};
use crate::ops::cpu::pointwise::{Pointwise, map};
use crate::ops::cpu::simd::{V, sum_blocks};
use crate::ops::cpu::{like, values, with_simd};
use crate::ops::gated::Gate;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};

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

/// Numbers that one unit of work takes, about.
const BLOCK: usize = 1 << 14;

/// (x + scale⊙u)·silu(z) from (x, u, scale, z).
#[derive(Debug, Clone, Copy)]
pub struct GatedSum;

/// Some rows of the operation.
struct Sums<'a> {
    x: &'a [f32],
    u: &'a [f32],
    scale: &'a [f32],
    z: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, u, scale, z, y } = self;
        let (width, lanes) = (scale.len(), V::<S>::LANES);
        for row in (0..y.len()).step_by(width) {
            for column in (0..width).step_by(lanes) {
                let at = row + column..row + width.min(column + lanes);
                let [x, u, z] = [x, u, z].map(|x| V::load(simd, &x[at.clone()]));
                let sum = u.mul_add(V::load(simd, &scale[column..]), x);
                (sum * z * z.sigmoid()).store(&mut y[at]);
            }
        }
    }
}

/// Some rows of the backward pass.
struct SumGradients<'a> {
    rows: Sums<'a>,
    /// The gradient of the output.
    dy: &'a [f32],
    /// Of x; that of z is in `rows.y`.
    dx: &'a mut [f32],
    du: &'a mut [f32],
    /// Of the scales, which is added to.
    dscale: &'a mut [f32],
}

impl WithSimd for SumGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows: Sums { x, u, scale, z, y: dz }, dy, dx, du, dscale } = self;
        let (width, lanes) = (scale.len(), V::<S>::LANES);
        let one = V::splat(simd, 1.0);
        for row in (0..dx.len()).step_by(width) {
            for column in (0..width).step_by(lanes) {
                let at = row + column..row + width.min(column + lanes);
                let [x, u, z, g] = [x, u, z, dy].map(|x| V::load(simd, &x[at.clone()]));
                let scale = V::load(simd, &scale[column..]);
                let (sum, sigmoid) = (u.mul_add(scale, x), z.sigmoid());
                let (part, rest) = (g * sigmoid, one - sigmoid);
                let gradient = part * z;
                gradient.store(&mut dx[at.clone()]);
                (gradient * scale).store(&mut du[at.clone()]);
                (part * sum * z.mul_add(rest, one)).store(&mut dz[at]);
                let dscale = &mut dscale[column..];
                gradient.mul_add(u, V::load(simd, dscale)).store(dscale);
            }
        }
    }
}

impl Kernel<4, 1> for GatedSum {
    type Saved = [FlexTensor; 4];

    fn forward(&self, inputs: [FlexTensor; 4], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [x, u, scale, z] = inputs.each_ref().map(values);
        let block = (BLOCK / scale.len()).max(1) * scale.len();
        let y = in_pieces(x.len(), block, |i, y| {
            let [x, u, z] = [x, u, z].map(|x| &x[i * block..][..y.len()]);
            with_simd(Sums { x, u, scale, z, y });
        });
        ([like(&inputs[0], y)], save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let Some(dy) = dy else { return Default::default() };
        let ([x, u, scale, z], dy) = (inputs.each_ref().map(values), values(&dy));
        let block = (BLOCK / scale.len()).max(1) * scale.len();
        let lengths = [x.len(), x.len(), x.len(), x.len().div_ceil(block) * scale.len()];
        let gradients = all_in_pieces(lengths, [block, block, block, scale.len()], |i, [dx, du, dz, dscale]| {
            dscale.fill(0.0);
            let [x, u, z, dy] = [x, u, z, dy].map(|x| &x[i * block..][..dx.len()]);
            with_simd(SumGradients { rows: Sums { x, u, scale, z, y: dz }, dy, dx, du, dscale });
        });
        let [dx, du, dz, dscale] = gradients;
        let [x, u, scale, z] = &inputs;
        let dscale = sum_blocks(&dscale, values(scale).len());
        [Some(like(x, dx)), Some(like(u, du)), Some(like(scale, dscale)), Some(like(z, dz))]
    }
}

/// The sum with a gate, where kernels can run.
pub fn gated_sum<B: RunKernels>(
    x: &Tensor<B, 3>,
    u: &Tensor<B, 3>,
    scale: &Tensor<B, 1>,
    z: &Tensor<B, 3>,
) -> Option<Tensor<B, 3>> {
    B::run(GatedSum, [float(x), float(u), float(scale), float(z)]).map(|[y]| kernel::tensor(y))
}
