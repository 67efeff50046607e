//! RWKV's mixtures of every token with the one before it: several in one pass over the tokens, and one in the backward
//! pass.

use crate::ops::cpu::memory::uninit;
use crate::ops::cpu::simd::{V, sum_blocks};
use crate::ops::cpu::{dims, like, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::array::from_fn;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows that one unit of work takes.
const ROWS: usize = 64;

/// The numbers that the mixtures read, row-major: y_t = x_t + (x_{t−1} − x_t)⊙(weight + weights_t), for every row of
/// `weight`.
#[derive(Debug, Clone, Copy)]
pub struct TokenMix<'a> {
    /// `[batch, seq, channels]`.
    pub shape: [usize; 3],
    /// `[batch, seq, channels]`.
    pub x: &'a [f32],
    /// The token before the first, `[batch, channels]`; zero if `None`.
    pub last: Option<&'a [f32]>,
    /// `[mixtures, channels]`.
    pub weight: &'a [f32],
    /// Added to every row of `weight` at each token, `[batch, seq, channels]`.
    pub weights: Option<&'a [f32]>,
}

/// The gradient of each field of [`TokenMix`], of its shape; `weights` is empty where there were none.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Gradients {
    pub x: Vec<f32>,
    pub last: Vec<f32>,
    pub weight: Vec<f32>,
    pub weights: Vec<f32>,
}

impl TokenMix<'_> {
    /// Each mixture, `[batch, seq, channels]`, in uninitialised memory.
    ///
    /// # Panics
    /// `x` has the wrong shape.
    #[allow(unsafe_code)]
    pub fn forward(&self) -> Vec<Vec<f32>> {
        let block = self.block();
        let mixtures = self.weight.len() / self.shape[2];
        let mut outputs: Vec<_> = (0..mixtures).map(|_| uninit(self.x.len())).collect();
        let mut units: Vec<Vec<&mut [MaybeUninit<f32>]>> =
            (0..self.x.len().div_ceil(block)).map(|_| Vec::with_capacity(mixtures)).collect();
        for output in &mut outputs {
            units.iter_mut().zip(output.chunks_mut(block)).for_each(|(unit, rows)| unit.push(rows));
        }
        units.into_par_iter().enumerate().for_each(|(block, outputs)| {
            with_simd(Forward { mix: self, first: block * ROWS, outputs });
        });
        // SAFETY: the blocks are all of every output, of whole rows, and `Forward` writes all channels of every row.
        outputs.into_iter().map(|y| unsafe { y.assume_init() }.into_vec()).collect()
    }

    /// From the gradients of the mixtures to those of all inputs, the larger in uninitialised memory.
    ///
    /// # Panics
    /// `x` or a gradient has the wrong shape.
    #[allow(unsafe_code)]
    pub fn backward(&self, dy: &[&[f32]]) -> Gradients {
        let [batch, seq, channels] = self.shape;
        let (block, parameters) = (self.block(), self.weight.len());
        let mut dx = uninit(self.x.len());
        let mut weight = vec![0.0; self.x.len().div_ceil(block).max(1) * parameters];
        let mut weights = uninit(self.weights.map_or(0, |_| self.x.len()));
        let mut weights_blocks: Vec<&mut [MaybeUninit<f32>]> = weights.chunks_mut(block).collect();
        weights_blocks.resize_with(dx.len().div_ceil(block), Default::default);
        let units = (dx.par_chunks_mut(block), weight.par_chunks_mut(parameters), weights_blocks);
        units.into_par_iter().enumerate().for_each(|(block, (dx, dweight, dweights))| {
            with_simd(Backward { mix: self, first: block * ROWS, dy, dx, dweight, dweights });
        });
        let mut last = vec![0.0; batch * channels];
        for (example, last) in last.chunks_exact_mut(channels).enumerate() {
            let row = example * seq * channels;
            for (dy, weight) in dy.iter().zip(self.weight.chunks_exact(channels)) {
                let weights = |i: usize| self.weights.map_or(0.0, |w| w[row + i]);
                last.iter_mut().enumerate().for_each(|(i, last)| *last += dy[row + i] * (weight[i] + weights(i)));
            }
        }
        // SAFETY: the blocks are all of both, of whole rows, and `Backward` writes all channels of every row: of `dx`,
        // and of `weights` unless it is empty.
        let (x, weights) = unsafe { (dx.assume_init().into_vec(), weights.assume_init().into_vec()) };
        Gradients { x, last, weight: sum_blocks(&weight, parameters), weights }
    }

    /// Numbers of a unit of work: whole rows, at most all of `x`.
    fn block(&self) -> usize {
        let [batch, seq, channels] = self.shape;
        assert!(self.x.len() == batch * seq * channels, "{} numbers are not {:?}", self.x.len(), self.shape);
        ROWS * channels
    }

    /// A row of a tensor like `x`.
    #[inline(always)]
    fn row<'a>(&self, x: &'a [f32], row: usize) -> &'a [f32] {
        &x[row * self.shape[2]..][..self.shape[2]]
    }

    /// A row of `x`, the one before it, and what is added to the weights between them.
    #[inline(always)]
    fn rows(&self, row: usize) -> [Option<&[f32]>; 3] {
        let seq = self.shape[1];
        let before = match row % seq {
            0 => self.last.map(|last| self.row(last, row / seq)),
            _ => Some(self.row(self.x, row - 1)),
        };
        [Some(self.row(self.x, row)), before, self.weights.map(|weights| self.row(weights, row))]
    }
}

/// Some channels of an optional row; zeros without it.
#[inline(always)]
fn load<S: Simd>(simd: S, row: Option<&[f32]>, lanes: &Range<usize>) -> V<S> {
    match row {
        Some(row) => V::load(simd, &row[lanes.clone()]),
        None => V::splat(simd, 0.0),
    }
}

/// The operation on tensors: x, the token before, `M` weights and, for a single one, an optional term added to it → `M`
/// mixtures.
#[derive(Debug, Clone, Copy)]
pub struct TokenMixKernel;

impl TokenMixKernel {
    fn of<'a>(
        x: &'a FlexTensor,
        last: &'a FlexTensor,
        weight: &'a FlexTensor,
        weights: Option<&'a FlexTensor>,
    ) -> TokenMix<'a> {
        TokenMix {
            shape: dims(x),
            x: values(x),
            last: Some(values(last)),
            weight: values(weight),
            weights: weights.map(values),
        }
    }
}

impl<const M: usize> Kernel<3, M> for TokenMixKernel {
    type Saved = [FlexTensor; 3];

    fn forward(&self, inputs: [FlexTensor; 3], save: bool) -> ([FlexTensor; M], Option<Self::Saved>) {
        let [x, last, weight] = &inputs;
        let mut mixtures = Self::of(x, last, weight, None).forward().into_iter();
        let outputs = from_fn(|_| like(x, mixtures.next().unwrap_or_default()));
        (outputs, save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, dy: [Option<FlexTensor>; M], _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [x, last, weight] = &inputs;
        let dy = dy.map(|dy| dy.unwrap_or_else(|| like(x, vec![0.0; values(x).len()])));
        let gradients = Self::of(x, last, weight, None).backward(&dy.each_ref().map(values));
        [Some(like(x, gradients.x)), Some(like(last, gradients.last)), Some(like(weight, gradients.weight))]
    }
}

impl Kernel<4, 1> for TokenMixKernel {
    type Saved = [FlexTensor; 4];

    fn forward(&self, inputs: [FlexTensor; 4], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [x, last, weight, weights] = &inputs;
        let mut mixtures = Self::of(x, last, weight, Some(weights)).forward().into_iter();
        let y = like(x, mixtures.next().unwrap_or_default());
        ([y], save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let Some(dy) = dy else { return Default::default() };
        let [x, last, weight, weights] = &inputs;
        let gradients = Self::of(x, last, weight, Some(weights)).backward(&[values(&dy)]);
        [
            Some(like(x, gradients.x)),
            Some(like(last, gradients.last)),
            Some(like(weight, gradients.weight)),
            Some(like(weights, gradients.weights)),
        ]
    }
}

/// Some rows of all mixtures.
struct Forward<'a> {
    mix: &'a TokenMix<'a>,
    first: usize,
    outputs: Vec<&'a mut [MaybeUninit<f32>]>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mix, first, mut outputs } = self;
        let channels = mix.shape[2];
        let rows = outputs.first().map_or(0, |y| y.len() / channels);
        for row in 0..rows {
            let [x, before, added] = mix.rows(first + row);
            for start in (0..channels).step_by(V::<S>::LANES) {
                let lanes = start..channels.min(start + V::<S>::LANES);
                let (x, before) = (load(simd, x, &lanes), load(simd, before, &lanes));
                let added = load(simd, added, &lanes);
                for (y, weight) in outputs.iter_mut().zip(mix.weight.chunks_exact(channels)) {
                    let weight = V::load(simd, &weight[lanes.clone()]) + added;
                    (before - x).mul_add(weight, x).init(&mut y[row * channels..][lanes.clone()]);
                }
            }
        }
    }
}

/// Some rows of the gradients of all inputs.
struct Backward<'a> {
    mix: &'a TokenMix<'a>,
    first: usize,
    dy: &'a [&'a [f32]],
    dx: &'a mut [MaybeUninit<f32>],
    dweight: &'a mut [f32],
    dweights: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mix, first, dy, dx, dweight, dweights } = self;
        let [_, seq, channels] = mix.shape;
        let zero = V::splat(simd, 0.0);
        for (i, dx) in dx.chunks_exact_mut(channels).enumerate() {
            let row = first + i;
            let [x, before, added] = mix.rows(row);
            let has_next = !(row + 1).is_multiple_of(seq); // in the same example
            let added_next = if has_next { mix.rows(row + 1)[2] } else { None };
            for (j, dx) in dx.chunks_mut(V::<S>::LANES).enumerate() {
                let lanes = j * V::<S>::LANES..j * V::<S>::LANES + dx.len();
                let (x, before) = (load(simd, x, &lanes), load(simd, before, &lanes));
                let (added, added_next) = (load(simd, added, &lanes), load(simd, added_next, &lanes));
                let (mut sum, mut dadded) = (zero, zero);
                let weights = mix.weight.chunks_exact(channels).zip(dweight.chunks_exact_mut(channels));
                for (dy, (weight, dweight)) in dy.iter().zip(weights) {
                    let weight = V::load(simd, &weight[lanes.clone()]);
                    let dweight = &mut dweight[lanes.clone()];
                    if has_next {
                        let dy = V::load(simd, &mix.row(dy, row + 1)[lanes.clone()]);
                        sum = dy.mul_add(weight + added_next, sum);
                    }
                    let dy = V::load(simd, &mix.row(dy, row)[lanes.clone()]);
                    sum += dy - dy * (weight + added);
                    let product = (before - x) * dy;
                    (V::load(simd, dweight) + product).store(dweight);
                    dadded += product;
                }
                sum.init(dx);
                if !dweights.is_empty() {
                    dadded.init(&mut dweights[i * channels..][lanes]);
                }
            }
        }
    }
}

/// The operation, where kernels can run.
pub fn token_mix<B: RunKernels>(
    x: &Tensor<B, 3>,
    last: &Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    weights: Option<&Tensor<B, 3>>,
) -> Option<Tensor<B, 3>> {
    let (x, last, weight) = (float(x), float(last), float(weight));
    let [y] = match weights {
        Some(weights) => B::run(TokenMixKernel, [x, last, weight, float(weights)])?,
        None => B::run(TokenMixKernel, [x, last, weight])?,
    };
    Some(kernel::tensor(y))
}

/// The same with `M` weights, `[M, channels]`.
pub fn token_mixes<B: RunKernels, const M: usize>(
    x: &Tensor<B, 3>,
    last: &Tensor<B, 3>,
    weights: &Tensor<B, 2>,
) -> Option<[Tensor<B, 3>; M]> {
    B::run(TokenMixKernel, [float(x), float(last), float(weights)]).map(|mixtures| mixtures.map(kernel::tensor))
}
