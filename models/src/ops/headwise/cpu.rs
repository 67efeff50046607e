//! Products with blocks on the diagonal and their gradients: the blocks are too small for the products of whole matrices.

use crate::ops::autocast::is_autocast;
use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows of a unit of work; the gradients of the weights are sums over its rows, and then over the units in their order.
const ROWS: usize = 256;

/// The operation on tensors: `[batch, seq, groups·in]` and `[groups, out, in]` → `[batch, seq, groups·out]`.
#[derive(Debug, Clone, Copy)]
pub struct HeadwiseKernel;

/// Rows of numbers times blocks.
struct Products<'a> {
    /// `[rows, groups·in]`.
    x: &'a [f32],
    /// `[groups, in, out]`.
    blocks: &'a [f32],
    /// Groups, in, out.
    size: [usize; 3],
    /// `[rows, groups·out]`.
    y: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, blocks, size: [groups, input, output], y } = self;
        for (x, y) in x.chunks_exact(groups * input).zip(y.chunks_exact_mut(groups * output)) {
            if (input, output) == (4, 4) {
                // As many as the compiler can keep in registers: the usual size.
                let groups = x.as_chunks::<4>().0.iter().zip(y.as_chunks_mut::<4>().0);
                for ((x, y), block) in groups.zip(blocks.as_chunks::<4>().0.as_chunks::<4>().0) {
                    *y = std::array::from_fn(|o| (0..4).map(|i| x[i] * block[i][o]).sum());
                }
                continue;
            }
            let groups = x.chunks_exact(input).zip(y.chunks_exact_mut(output));
            for ((x, y), block) in groups.zip(blocks.chunks_exact(input * output)) {
                y.fill(0.0);
                for (x, row) in x.iter().zip(block.chunks_exact(output)) {
                    y.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
                }
            }
        }
    }
}

/// Sums over rows of the products of all pairs of a group's numbers.
struct Squares<'a> {
    /// `[rows, groups·in]`.
    x: &'a [f32],
    /// `[rows, groups·out]`.
    dy: &'a [f32],
    /// Groups, in, out.
    size: [usize; 3],
    /// `[groups, out, in]`, which is added to.
    sum: &'a mut [f32],
}

impl WithSimd for Squares<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, dy, size: [groups, input, output], sum } = self;
        for (x, dy) in x.chunks_exact(groups * input).zip(dy.chunks_exact(groups * output)) {
            let groups = x.chunks_exact(input).zip(dy.chunks_exact(output));
            for ((x, dy), sum) in groups.zip(sum.chunks_exact_mut(input * output)) {
                for (dy, row) in dy.iter().zip(sum.chunks_exact_mut(input)) {
                    row.iter_mut().zip(x).for_each(|(sum, x)| *sum += dy * x);
                }
            }
        }
    }
}

/// Every block `[rows, columns]` transposed.
fn transposed(blocks: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(blocks.len());
    for block in blocks.chunks_exact(rows * columns) {
        out.extend((0..columns).flat_map(|column| (0..rows).map(move |row| block[row * columns + column])));
    }
    out
}

fn products(x: &[f32], blocks: &[f32], size: [usize; 3]) -> Vec<f32> {
    let [groups, input, output] = size;
    let mut y = unwritten(x.len() / input * output);
    let units = y.par_chunks_mut(ROWS * groups * output).zip(x.par_chunks(ROWS * groups * input));
    units.for_each(|(y, x)| with_simd(Products { x, blocks, size, y }));
    y
}

impl Kernel<2, 1> for HeadwiseKernel {
    type Saved = [FlexTensor; 2];

    fn forward(&self, [x, weight]: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let ([batch, seq, _], [groups, output, input]) = (dims(&x), dims(&weight));
        let y = products(values(&x), &transposed(values(&weight), output, input), [groups, input, output]);
        ([tensor(y, [batch, seq, groups * output])], save.then_some([x, weight]))
    }

    fn backward(
        &self,
        [x, weight]: Self::Saved,
        [dy]: [Option<FlexTensor>; 1],
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let Some(dy) = dy else { return [None, None] };
        let [groups, output, input] = dims(&weight);
        let dx = products(values(&dy), values(&weight), [groups, output, input]);
        let units = values(&x).par_chunks(ROWS * groups * input).zip(values(&dy).par_chunks(ROWS * groups * output));
        let sums: Vec<Vec<f32>> = units
            .map(|(x, dy)| {
                let mut sum = vec![0.0; groups * output * input];
                with_simd(Squares { x, dy, size: [groups, input, output], sum: &mut sum });
                sum
            })
            .collect();
        let mut sums = sums.into_iter();
        let mut dweight = sums.next().unwrap_or_else(|| vec![0.0; groups * output * input]);
        sums.for_each(|sum| dweight.iter_mut().zip(sum).for_each(|(total, sum)| *total += sum));
        [Some(like(&x, dx)), Some(like(&weight, dweight))]
    }
}

/// The operation, where kernels can run.
pub fn headwise<B: RunKernels>(x: &Tensor<B, 3>, weight: &Tensor<B, 3>) -> Option<Tensor<B, 3>> {
    if is_autocast() {
        return None;
    }
    B::run(HeadwiseKernel, [float(x), float(weight)]).map(|[y]| kernel::tensor(y))
}
