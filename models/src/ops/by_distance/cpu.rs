//! Numbers by distance, forward and backward: every row of the result is a part of the numbers in reverse.

use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::{dims, like, tensor, values};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// The operation on tensors, see [`ByDistanceOp`](super::ByDistanceOp).
#[derive(Debug, Clone, Copy)]
pub struct ByDistance;

impl Kernel<1, 1> for ByDistance {
    /// The numbers, for their shape.
    type Saved = FlexTensor;

    fn forward(&self, [x]: [FlexTensor; 1], save: bool) -> ([FlexTensor; 1], Option<FlexTensor>) {
        let [heads, seq] = dims(&x);
        let mut bias = unwritten(heads * seq * seq);
        bias.par_chunks_exact_mut(seq * seq).zip(values(&x).par_chunks_exact(seq)).for_each(|(square, numbers)| {
            let reversed: Vec<f32> = numbers.iter().rev().copied().collect();
            for (query, row) in square.chunks_exact_mut(seq).enumerate() {
                let (visible, future) = row.split_at_mut(query + 1);
                visible.copy_from_slice(&reversed[seq - query - 1..]);
                future.fill(0.0);
            }
        });
        ([tensor(bias, [1, heads, seq, seq])], save.then_some(x))
    }

    /// Summed query by query, so that the number of threads does not matter.
    fn backward(&self, x: FlexTensor, [dy]: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let Some(dy) = dy else { return [None] };
        let [heads, seq] = dims(&x);
        let mut dx = vec![0.0; heads * seq];
        dx.par_chunks_exact_mut(seq).zip(values(&dy).par_chunks_exact(seq * seq)).for_each(|(dx, square)| {
            for (query, row) in square.chunks_exact(seq).enumerate() {
                let visible = dx[seq - query - 1..].iter_mut().zip(row);
                visible.for_each(|(sum, d)| *sum += d);
            }
            dx.reverse();
        });
        [Some(like(&x, dx))]
    }
}

/// The operation, where kernels can run.
pub fn by_distance<B: RunKernels>(x: &Tensor<B, 2>) -> Option<Tensor<B, 4>> {
    B::run(ByDistance, [float(x)]).map(|[y]| kernel::tensor(y))
}
