//! Normalisation of rows: LayerNorm, RMSNorm, and both per head.

use crate::ops::cpu::memory::uninit;
use crate::ops::cpu::simd::{V, sum_blocks};
use crate::ops::cpu::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers that one unit of work takes, about.
const BLOCK: usize = 1 << 14;

/// Rows to normalise: y = (x − mean)/√(variance + ε)·weight + bias, all row-major.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[rows, groups, width]`; each group of each row is normalised on its own.
    pub x: &'a [f32],
    /// `[groups, width]`.
    pub weight: &'a [f32],
    /// `[groups, width]`. Without one, the mean is taken as zero: RMSNorm.
    pub bias: Option<&'a [f32]>,
    /// Numbers that are normalised together.
    pub width: usize,
    /// ε.
    pub epsilon: f32,
}

/// The gradients of the parameters of [`Norm`], of their shape.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Gradients {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

impl Norm<'_> {
    /// Numbers of a unit of work: whole rows of all groups.
    fn block(&self) -> usize {
        (BLOCK / self.weight.len()).max(1) * self.weight.len()
    }

    /// `[rows, groups, width]`, in uninitialised memory.
    ///
    /// # Panics
    /// `x` does not consist of whole rows.
    #[allow(unsafe_code)]
    pub fn forward(&self) -> Vec<f32> {
        let (numbers, columns) = (self.x.len(), self.weight.len());
        assert!(
            numbers.is_multiple_of(columns) && columns.is_multiple_of(self.width),
            "{numbers} numbers are no rows of {columns}"
        );
        let mut y = uninit(numbers);
        let blocks = y.par_chunks_mut(self.block()).zip(self.x.par_chunks(self.block()));
        blocks.for_each(|(y, x)| with_simd(Forward { norm: self, x, y }));
        // SAFETY: `Forward` writes all groups of its block, and the assertion leaves nothing between them.
        unsafe { y.assume_init() }.into_vec()
    }

    /// From the gradient of the outputs to that of `x`, in its place, and those of the parameters.
    pub fn backward(&self, gradient: &mut [f32]) -> Gradients {
        let (block, columns) = (self.block(), self.weight.len());
        let mut parameters = vec![0.0; self.x.len().div_ceil(block).max(1) * 2 * columns];
        let blocks = gradient.par_chunks_mut(block).zip(parameters.par_chunks_mut(2 * columns));
        blocks.zip(self.x.par_chunks(block)).for_each(|((gradient, parameters), x)| {
            let (dweight, dbias) = parameters.split_at_mut(columns);
            with_simd(Backward { norm: self, x, gradient, dweight, dbias });
        });
        let mut weight = sum_blocks(&parameters, 2 * columns);
        let bias = weight.split_off(columns);
        Gradients { weight, bias }
    }

    /// The mean and 1/√(variance + ε) of a row.
    #[inline(always)]
    fn moments<S: Simd>(&self, simd: S, x: &[f32]) -> (V<S>, V<S>) {
        let (lanes, n) = (V::<S>::LANES, self.width as f32);
        let mut sum = V::splat(simd, 0.0);
        if self.bias.is_some() {
            for x in x.chunks(lanes) {
                sum += V::load(simd, x);
            }
        }
        let mean = sum.sum() / n;
        let center = V::splat(simd, mean);
        let mut squares = V::splat(simd, 0.0);
        let (whole, rest) = x.split_at(x.len() / lanes * lanes);
        for x in whole.chunks_exact(lanes) {
            let x = V::load(simd, x) - center;
            squares = x.mul_add(x, squares);
        }
        let squares = rest.iter().fold(squares.sum(), |sum, x| sum + (x - mean) * (x - mean));
        (center, V::splat(simd, 1.0 / (squares / n + self.epsilon).sqrt()))
    }
}

/// The operation on tensors: x `[batch, seq, channels]`, the weight and, for LayerNorm, the bias `[channels]` → y.
#[derive(Debug, Clone, Copy)]
pub struct NormKernel {
    /// See [`Norm`].
    pub width: usize,
    /// See [`Norm`].
    pub epsilon: f64,
}

impl NormKernel {
    fn of<'a>(&self, x: &'a FlexTensor, weight: &'a FlexTensor, bias: Option<&'a FlexTensor>) -> Norm<'a> {
        let [x, weight] = [x, weight].map(values);
        Norm { x, weight, bias: bias.map(values), width: self.width, epsilon: self.epsilon as f32 }
    }
}

impl Kernel<3, 1> for NormKernel {
    type Saved = [FlexTensor; 3];

    fn forward(&self, inputs: [FlexTensor; 3], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [x, weight, bias] = &inputs;
        let y = tensor(self.of(x, weight, Some(bias)).forward(), dims::<3>(x));
        ([y], save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let Some(mut gradient) = dy else { return Default::default() };
        let [x, weight, bias] = &inputs;
        // Nothing else holds its storage unless the model uses y twice; then it is copied.
        let gradients = self.of(x, weight, Some(bias)).backward(gradient.storage_mut());
        [Some(gradient), Some(like(weight, gradients.weight)), Some(like(bias, gradients.bias))]
    }
}

impl Kernel<2, 1> for NormKernel {
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [x, weight] = &inputs;
        let y = tensor(self.of(x, weight, None).forward(), dims::<3>(x));
        ([y], save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let Some(mut gradient) = dy else { return Default::default() };
        let [x, weight] = &inputs;
        let gradients = self.of(x, weight, None).backward(gradient.storage_mut());
        [Some(gradient), Some(like(weight, gradients.weight))]
    }
}

struct Forward<'a> {
    norm: &'a Norm<'a>,
    x: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm, x, y } = self;
        let (lanes, width) = (V::<S>::LANES, norm.width);
        for (i, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let (mean, scale) = norm.moments(simd, x);
            let start = i * width % norm.weight.len();
            for (j, (x, y)) in x.chunks(lanes).zip(y.chunks_mut(lanes)).enumerate() {
                let parameter = |p: &[f32]| V::load(simd, &p[start + j * lanes..]);
                let normal = (V::load(simd, x) - mean) * scale;
                let bias = norm.bias.map_or(V::splat(simd, 0.0), parameter);
                normal.mul_add(parameter(norm.weight), bias).init(y);
            }
        }
    }
}

struct Backward<'a> {
    norm: &'a Norm<'a>,
    x: &'a [f32],
    /// In: of the outputs. Out: of `x`.
    gradient: &'a mut [f32],
    dweight: &'a mut [f32],
    dbias: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    /// With the normal numbers n and g = dy·weight: dx = (g − mean(g) − n·mean(g·n))/√(variance + ε), without mean(g)
    /// where no mean was taken.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm, x, gradient, dweight, dbias } = self;
        let (lanes, width) = (V::<S>::LANES, norm.width);
        for (i, (x, gradient)) in x.chunks_exact(width).zip(gradient.chunks_exact_mut(width)).enumerate() {
            let (mean, scale) = norm.moments(simd, x);
            let first = i * width % norm.weight.len();
            let weight = &norm.weight[first..][..width];
            let (dweight, dbias) = (&mut dweight[first..][..width], &mut dbias[first..][..width]);
            let (mut sum, mut product) = (V::splat(simd, 0.0), V::splat(simd, 0.0));
            for at in (0..width).step_by(lanes) {
                let (normal, dy) = ((V::load(simd, &x[at..]) - mean) * scale, V::load(simd, &gradient[at..]));
                let g = dy * V::load(simd, &weight[at..]);
                sum += g;
                product = g.mul_add(normal, product);
                g.store(&mut gradient[at..]);
                dy.mul_add(normal, V::load(simd, &dweight[at..])).store(&mut dweight[at..]);
                (V::load(simd, &dbias[at..]) + dy).store(&mut dbias[at..]);
            }
            let sum = if norm.bias.is_some() { sum.sum() / width as f32 } else { 0.0 };
            let (sum, product) = (V::splat(simd, sum), V::splat(simd, product.sum() / width as f32));
            for (x, gradient) in x.chunks(lanes).zip(gradient.chunks_mut(lanes)) {
                let normal = (V::load(simd, x) - mean) * scale;
                ((V::load(simd, gradient) - sum - normal * product) * scale).store(gradient);
            }
        }
    }
}

/// The operation, where kernels can run.
pub fn norm<B: RunKernels>(
    x: &Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    bias: Option<&Tensor<B, 1>>,
    width: usize,
    epsilon: f64,
) -> Option<Tensor<B, 3>> {
    let kernel = NormKernel { width, epsilon };
    let [y] = match bias {
        Some(bias) => B::run(kernel, [float(x), float(weight), float(bias)])?,
        None => B::run(kernel, [float(x), float(weight)])?,
    };
    Some(kernel::tensor(y))
}
