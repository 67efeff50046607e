//! Functions of single numbers, several inputs and outputs in one pass over memory. (The kernels are not generic: generic
//! code would be compiled where it is used, with another crate's optimisations.)

use super::simd::V;
use super::{like, values, with_simd};
use crate::ops::Gate;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::fmt::Debug;
use std::mem::MaybeUninit;

/// Numbers that one unit of work takes.
const BLOCK: usize = 1 << 14;

/// A function from `IN` numbers to `OUT` numbers.
pub trait Pointwise<const IN: usize, const OUT: usize>: Copy + Debug + Send + Sync + 'static {
    /// Its values, lane by lane.
    fn apply<S: Simd>(self, x: [V<S>; IN]) -> [V<S>; OUT];
}

/// The function of every number of the inputs, which are equally long, in memory that nobody has to clear before.
#[allow(unsafe_code)]
pub fn map<P: Pointwise<IN, OUT>, const IN: usize, const OUT: usize>(
    function: P,
    inputs: [&[f32]; IN],
) -> [Vec<f32>; OUT] {
    let length = inputs[0].len();
    let mut outputs: [Box<[MaybeUninit<f32>]>; OUT] = std::array::from_fn(|_| Box::new_uninit_slice(length));
    let mut units: Vec<[&mut [MaybeUninit<f32>]; OUT]> =
        (0..length.div_ceil(BLOCK)).map(|_| std::array::from_fn(|_| Default::default())).collect();
    for (i, output) in outputs.iter_mut().enumerate() {
        units.iter_mut().zip(output.chunks_mut(BLOCK)).for_each(|(unit, block)| unit[i] = block);
    }
    units.into_par_iter().enumerate().for_each(|(block, outputs)| {
        with_simd(Block { function, inputs: inputs.map(|x| &x[block * BLOCK..]), outputs });
    });
    // SAFETY: the blocks are all of every output, and `Block` writes them from end to end.
    outputs.map(|output| unsafe { output.assume_init() }.into_vec())
}

struct Block<'a, P, const IN: usize, const OUT: usize> {
    function: P,
    inputs: [&'a [f32]; IN],
    outputs: [&'a mut [MaybeUninit<f32>]; OUT],
}

impl<P: Pointwise<IN, OUT>, const IN: usize, const OUT: usize> WithSimd for Block<'_, P, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { function, inputs, mut outputs } = self;
        for start in (0..outputs[0].len()).step_by(V::<S>::LANES) {
            let mut values = [V::splat(simd, 0.0); IN]; // (the compiler would call a function for `inputs.map`)
            for (value, x) in values.iter_mut().zip(inputs) {
                *value = V::load(simd, &x[start..]);
            }
            let values = function.apply(values);
            for (output, value) in outputs.iter_mut().zip(values) {
                value.init(&mut output[start..]);
            }
        }
    }
}

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

/// The kernel's version of [`gated`](crate::ops::plain::gated).
pub fn gated<B: RunKernels>(x: &Tensor<B, 3>, z: &Tensor<B, 3>, gate: Gate) -> Option<Tensor<B, 3>> {
    B::run(Gated(gate), [float(x), float(z)]).map(|[y]| kernel::tensor(y))
}

/// The kernel's version of burn's `gelu`.
pub fn gelu<B: RunKernels>(x: &Tensor<B, 3>) -> Option<Tensor<B, 3>> {
    B::run(Gelu, [float(x)]).map(|[y]| kernel::tensor(y))
}

/// The kernel's version of [`squared_relu`](crate::ops::plain::squared_relu).
pub fn squared_relu<B: RunKernels>(x: &Tensor<B, 3>) -> Option<Tensor<B, 3>> {
    B::run(SquaredRelu, [float(x)]).map(|[y]| kernel::tensor(y))
}
