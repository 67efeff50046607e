//! RWKV's mixture of every token with the one before it.

use super::simd::{V, sum_blocks};
use super::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows that one unit of work takes.
const ROWS: usize = 64;

/// What the mixture reads, row-major: y_t = x_t + (x_{t−1} − x_t)⊙(weight + weights_t).
#[derive(Debug, Clone, Copy)]
pub struct TokenMix<'a> {
    /// `[batch, seq, channels]`.
    pub shape: [usize; 3],
    /// `[batch, seq, channels]`.
    pub x: &'a [f32],
    /// The token before the first, `[batch, channels]`; zero if `None`.
    pub last: Option<&'a [f32]>,
    /// `[channels]`.
    pub weight: &'a [f32],
    /// What is added to `weight` at each token, `[batch, seq, channels]`.
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
    /// `[batch, seq, channels]`.
    pub fn forward(&self) -> Vec<f32> {
        let mut y = vec![0.0; self.x.len()];
        let blocks = y.par_chunks_mut(ROWS * self.shape[2]).enumerate();
        blocks.for_each(|(block, y)| with_simd(Forward { mix: self, first: block * ROWS, y }));
        y
    }

    /// From the gradient of the outputs to those of everything read.
    pub fn backward(&self, dy: &[f32]) -> Gradients {
        let [batch, seq, channels] = self.shape;
        let block = ROWS * channels;
        let mut dx = vec![0.0; self.x.len()];
        let mut weight = vec![0.0; self.x.len().div_ceil(block) * channels];
        let mut weights = vec![0.0; self.weights.map_or(0, <[f32]>::len)];
        let mut weights_blocks: Vec<&mut [f32]> = weights.chunks_mut(block).collect();
        weights_blocks.resize_with(dx.len().div_ceil(block), Default::default);
        let units = (dx.par_chunks_mut(block), weight.par_chunks_mut(channels), weights_blocks);
        units.into_par_iter().enumerate().for_each(|(block, (dx, dweight, dweights))| {
            with_simd(Backward { mix: self, first: block * ROWS, dy, dx, dweight, dweights });
        });
        let mut last = vec![0.0; batch * channels];
        for (example, last) in last.chunks_exact_mut(channels).enumerate() {
            let row = example * seq * channels;
            let weights = |i: usize| self.weights.map_or(0.0, |w| w[row + i]);
            last.iter_mut().enumerate().for_each(|(i, last)| *last = dy[row + i] * (self.weight[i] + weights(i)));
        }
        Gradients { x: dx, last, weight: sum_blocks(&weight, channels), weights }
    }

    /// Some channels of a row of `x`, of the one before it, and the weights between them.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, row: usize, lanes: std::ops::Range<usize>) -> [V<S>; 3] {
        let [_, seq, channels] = self.shape;
        let at = |x: &[f32], row: usize| V::load(simd, &x[row * channels..][lanes.clone()]);
        let before = match (row % seq, self.last) {
            (0, Some(last)) => at(last, row / seq),
            (0, None) => V::splat(simd, 0.0),
            _ => at(self.x, row - 1),
        };
        let weight = at(self.weight, 0);
        [at(self.x, row), before, self.weights.map_or(weight, |weights| weight + at(weights, row))]
    }
}

/// The operation on tensors: x, the token before, the weight and perhaps what is added to it → y.
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

impl Kernel<3, 1> for TokenMixKernel {
    type Saved = [FlexTensor; 3];

    fn forward(&self, inputs: [FlexTensor; 3], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [x, last, weight] = &inputs;
        let y = tensor(Self::of(x, last, weight, None).forward(), dims::<3>(x));
        ([y], save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let Some(dy) = dy else { return Default::default() };
        let [x, last, weight] = &inputs;
        let gradients = Self::of(x, last, weight, None).backward(values(&dy));
        [Some(like(x, gradients.x)), Some(like(last, gradients.last)), Some(like(weight, gradients.weight))]
    }
}

impl Kernel<4, 1> for TokenMixKernel {
    type Saved = [FlexTensor; 4];

    fn forward(&self, inputs: [FlexTensor; 4], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [x, last, weight, weights] = &inputs;
        let y = tensor(Self::of(x, last, weight, Some(weights)).forward(), dims::<3>(x));
        ([y], save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let Some(dy) = dy else { return Default::default() };
        let [x, last, weight, weights] = &inputs;
        let gradients = Self::of(x, last, weight, Some(weights)).backward(values(&dy));
        [
            Some(like(x, gradients.x)),
            Some(like(last, gradients.last)),
            Some(like(weight, gradients.weight)),
            Some(like(weights, gradients.weights)),
        ]
    }
}

struct Forward<'a> {
    mix: &'a TokenMix<'a>,
    first: usize,
    y: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let channels = self.mix.shape[2];
        for (row, y) in self.y.chunks_exact_mut(channels).enumerate() {
            for (i, y) in y.chunks_mut(V::<S>::LANES).enumerate() {
                let start = i * V::<S>::LANES;
                let [x, before, weight] = self.mix.load(simd, self.first + row, start..start + y.len());
                (before - x).mul_add(weight, x).store(y);
            }
        }
    }
}

struct Backward<'a> {
    mix: &'a TokenMix<'a>,
    first: usize,
    dy: &'a [f32],
    dx: &'a mut [f32],
    dweight: &'a mut [f32],
    dweights: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mix, first, dy, dx, dweight, dweights } = self;
        let [_, seq, channels] = mix.shape;
        for (i, dx) in dx.chunks_exact_mut(channels).enumerate() {
            let row = first + i;
            for (j, dx) in dx.chunks_mut(V::<S>::LANES).enumerate() {
                let lanes = j * V::<S>::LANES..j * V::<S>::LANES + dx.len();
                let g = |row: usize| V::load(simd, &dy[row * channels..][lanes.clone()]);
                let [x, before, weight] = mix.load(simd, row, lanes.clone());
                let dy = g(row);
                let mut sum = dy - dy * weight;
                if (row + 1) % seq != 0 {
                    let [_, _, next] = mix.load(simd, row + 1, lanes.clone());
                    sum = g(row + 1).mul_add(next, sum);
                }
                sum.store(dx);
                let product = (before - x) * dy;
                (V::load(simd, &dweight[lanes.clone()]) + product).store(&mut dweight[lanes.clone()]);
                if !dweights.is_empty() {
                    product.store(&mut dweights[i * channels..][lanes]);
                }
            }
        }
    }
}

/// The kernel's version of [`token_mix`](crate::ops::plain::token_mix).
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
