//! y = x·W + b, with or without a ReLU: the sum and the ReLU in one pass over the product, and in the backward pass one
//! pass over the gradient before the two products.

use crate::ops::autocast::is_autocast;
use crate::ops::cpu::gemm::{Matrix, new_product};
use crate::ops::cpu::simd::{V, sum_blocks};
use crate::ops::cpu::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::*;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Numbers that one unit of work takes, about.
const BLOCK: usize = 1 << 15;

/// The operation, where kernels can run.
pub fn affine<B: RunKernels>(
    x: &Tensor<B, 3>,
    weight: &Tensor<B, 2>,
    bias: &Tensor<B, 1>,
    relu: bool,
) -> Option<Tensor<B, 3>> {
    if is_autocast() {
        return None;
    }
    let [y] = B::run(AffineKernel { relu }, [float(x), float(weight), float(bias)])?;
    Some(kernel::tensor(y))
}

/// The operation on tensors: x `[batch, seq, in]`, W `[in, out]`, b `[out]` → `[batch, seq, out]`.
#[derive(Debug, Clone, Copy)]
pub struct AffineKernel {
    /// Whether negative outputs become 0.
    pub relu: bool,
}

impl Kernel<3, 1> for AffineKernel {
    /// x and W, and with ReLU y.
    type Saved = ([FlexTensor; 2], Option<FlexTensor>);

    fn forward(&self, [x, weight, bias]: [FlexTensor; 3], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let ([batch, seq, _], [inputs, outputs]) = (dims(&x), dims(&weight));
        let (a, b) = (Matrix::rows(values(&x), inputs), Matrix::rows(values(&weight), outputs));
        let mut y = new_product([batch * seq, inputs, outputs], a, b);
        let (bias, relu) = (values(&bias), self.relu);
        y.par_chunks_mut(block(outputs)).for_each(|y| with_simd(AddBias { bias, relu, y }));
        let y = tensor(y, [batch, seq, outputs]);
        let kept = self.relu.then(|| y.clone());
        ([y], save.then_some(([x, weight], kept)))
    }

    fn backward(
        &self,
        ([x, weight], y): Self::Saved,
        [dy]: [Option<FlexTensor>; 1],
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let Some(mut dy) = dy else { return Default::default() };
        let ([batch, seq, _], [inputs, outputs]) = (dims(&x), dims(&weight));
        let rows = batch * seq;
        let block = block(outputs);
        let mut bias = vec![0.0; (rows * outputs).div_ceil(block).max(1) * outputs];
        // Nothing else holds its storage unless the model uses y twice; then it is copied.
        let gradient: &mut [f32] = dy.storage_mut();
        let y = y.as_ref().map(values);
        gradient.par_chunks_mut(block).zip(bias.par_chunks_mut(outputs)).enumerate().for_each(|(i, (dy, bias))| {
            let y = y.map(|y| &y[i * block..i * block + dy.len()]);
            with_simd(Backward { y, dy, bias });
        });
        let gradient = Matrix::rows(values(&dy), outputs);
        let dx = wanted[0].then(|| {
            let weight = Matrix::rows(values(&weight), outputs);
            like(&x, new_product([rows, outputs, inputs], gradient, weight.transposed()))
        });
        let dweight = wanted[1].then(|| {
            let x = Matrix::rows(values(&x), inputs);
            like(&weight, new_product([inputs, rows, outputs], x.transposed(), gradient))
        });
        [dx, dweight, Some(tensor(sum_blocks(&bias, outputs), [outputs]))]
    }
}

/// Numbers of a unit of work: whole rows.
fn block(width: usize) -> usize {
    (BLOCK / width).max(1) * width
}

/// Some rows: adds the bias, then with `relu` zeroes negative values.
struct AddBias<'a> {
    bias: &'a [f32],
    relu: bool,
    y: &'a mut [f32],
}

impl WithSimd for AddBias<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { bias, relu, y } = self;
        let lanes = V::<S>::LANES;
        let lowest = if relu { 0.0 } else { f32::NEG_INFINITY };
        for y in y.chunks_exact_mut(bias.len()) {
            for (y, bias) in y.chunks_mut(lanes).zip(bias.chunks(lanes)) {
                (V::load(simd, y) + V::load(simd, bias)).max(lowest).store(y);
            }
        }
    }
}

/// Some rows: zeroes the gradient where y is 0, and adds up its rows.
struct Backward<'a> {
    y: Option<&'a [f32]>,
    dy: &'a mut [f32],
    bias: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, dy, bias } = self;
        let (lanes, width) = (V::<S>::LANES, bias.len());
        let zero = simd.splat_f32s(0.0);
        for (row, dy) in dy.chunks_exact_mut(width).enumerate() {
            for (at, (dy, bias)) in (0..).step_by(lanes).zip(dy.chunks_mut(lanes).zip(bias.chunks_mut(lanes))) {
                let mut gradient = V::load(simd, dy);
                if let Some(y) = y {
                    let y = V::load(simd, &y[row * width + at..(row + 1) * width]);
                    gradient.1 = simd.select_f32s(simd.greater_than_f32s(y.1, zero), gradient.1, zero);
                    gradient.store(dy);
                }
                (V::load(simd, bias) + gradient).store(bias);
            }
        }
    }
}
