//! Products with a number for each head and their gradients, on all cores.

use crate::ops::cpu::memory::{in_pieces, unwritten};
use crate::ops::cpu::simd::V;
use crate::ops::cpu::{dims, like, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Heads of a unit of work.
const HEADS: usize = 256;

/// The operation on tensors: `[batch, seq, heads, size]` and `[batch, seq, heads]` → the shape of the former.
#[derive(Debug, Clone, Copy)]
pub struct HeadScale;

/// Heads of so many numbers, each times its scale.
struct Scaled<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    size: usize,
    y: &'a mut [f32],
}

impl WithSimd for Scaled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let heads = self.x.chunks_exact(self.size).zip(self.y.chunks_exact_mut(self.size));
        for ((x, y), &scale) in heads.zip(self.scale) {
            for (x, y) in x.chunks(V::<S>::LANES).zip(y.chunks_mut(V::<S>::LANES)) {
                (V::load(simd, x) * scale).store(y);
            }
        }
    }
}

/// The sums of the products of two heads' numbers.
struct Dots<'a> {
    a: &'a [f32],
    b: &'a [f32],
    size: usize,
    out: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let heads = self.a.chunks_exact(self.size).zip(self.b.chunks_exact(self.size));
        for ((a, b), out) in heads.zip(self.out) {
            let mut sum = V::splat(simd, 0.0);
            for (a, b) in a.chunks(V::<S>::LANES).zip(b.chunks(V::<S>::LANES)) {
                sum = V::load(simd, a).mul_add(V::load(simd, b), sum);
            }
            *out = sum.sum();
        }
    }
}

fn scaled(x: &[f32], scale: &[f32], size: usize) -> Vec<f32> {
    in_pieces(x.len(), HEADS * size, |unit, y| {
        let x = &x[unit * HEADS * size..][..y.len()];
        with_simd(Scaled { x, scale: &scale[unit * HEADS..], size, y });
    })
}

impl Kernel<2, 1> for HeadScale {
    type Saved = [FlexTensor; 2];

    fn forward(&self, [x, scale]: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [.., size] = dims::<4>(&x);
        let y = scaled(values(&x), values(&scale), size);
        ([like(&x, y)], save.then_some([x, scale]))
    }

    fn backward(
        &self,
        [x, scale]: Self::Saved,
        [dy]: [Option<FlexTensor>; 1],
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let Some(dy) = dy else { return [None, None] };
        let [.., size] = dims::<4>(&x);
        let dx = scaled(values(&dy), values(&scale), size);
        let mut dscale = unwritten(values(&scale).len());
        let rows = values(&x).par_chunks(HEADS * size).zip(values(&dy).par_chunks(HEADS * size));
        let units = dscale.par_chunks_mut(HEADS).zip(rows);
        units.for_each(|(out, (a, b))| with_simd(Dots { a, b, size, out }));
        [Some(like(&x, dx)), Some(like(&scale, dscale))]
    }
}

/// The operation, where kernels can run.
pub fn head_scale<B: RunKernels>(x: &Tensor<B, 4>, scale: &Tensor<B, 3>) -> Option<Tensor<B, 4>> {
    B::run(HeadScale, [float(x), float(scale)]).map(|[y]| kernel::tensor(y))
}
