//! y = x·Wᵀ, which is three products, forward and backward.

use crate::ops::autocast::is_autocast;
use crate::ops::cpu::gemm::{Matrix, new_product};
use crate::ops::cpu::{dims, like, tensor, values};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::*;
use burn_flex::FlexTensor;

/// The operation, where kernels can run.
pub fn projection<B: RunKernels>(x: &Tensor<B, 3>, weight: &Tensor<B, 2>) -> Option<Tensor<B, 3>> {
    if is_autocast() {
        return None;
    }
    let [y] = B::run(ProjectionKernel, [float(x), float(weight)])?;
    Some(kernel::tensor(y))
}

/// The operation on tensors: x `[batch, seq, in]`, W `[out, in]` → `[batch, seq, out]`.
#[derive(Debug, Clone, Copy)]
pub struct ProjectionKernel;

impl Kernel<2, 1> for ProjectionKernel {
    /// x and W.
    type Saved = [FlexTensor; 2];

    fn forward(&self, [x, weight]: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let ([batch, seq, _], [outputs, inputs]) = (dims(&x), dims(&weight));
        let (a, b) = (Matrix::rows(values(&x), inputs), Matrix::rows(values(&weight), inputs));
        let y = new_product([batch * seq, inputs, outputs], a, b.transposed());
        ([tensor(y, [batch, seq, outputs])], save.then_some([x, weight]))
    }

    fn backward(
        &self,
        [x, weight]: Self::Saved,
        [dy]: [Option<FlexTensor>; 1],
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let Some(dy) = dy else { return [None, None] };
        let ([batch, seq, _], [outputs, inputs]) = (dims(&x), dims(&weight));
        let rows = batch * seq;
        let gradient = Matrix::rows(values(&dy), outputs);
        let dx = wanted[0].then(|| {
            let weight = Matrix::rows(values(&weight), inputs);
            like(&x, new_product([rows, outputs, inputs], gradient, weight))
        });
        let dweight = wanted[1].then(|| {
            let x = Matrix::rows(values(&x), inputs);
            like(&weight, new_product([outputs, rows, inputs], gradient.transposed(), x))
        });
        [dx, dweight]
    }
}
