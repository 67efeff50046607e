//! A number per distance, spread over all pairs of a query and a key: a bias of attention scores.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::TensorData;

/// A bias by distance.
pub trait ByDistanceOp: RunKernels {
    /// A number per head and distance `[heads, seq]` → `[1, heads, query, key]`, where the entry of query i and key j is
    /// that of distance i − j, and 0 for keys after the query.
    fn by_distance(values: Tensor<Self, 2>) -> Tensor<Self, 4> {
        cpu::by_distance(&values).unwrap_or_else(|| reference(values))
    }
}

impl<B: RunKernels> ByDistanceOp for B {}

/// See [`ByDistanceOp::by_distance`].
pub fn reference<B: Backend>(values: Tensor<B, 2>) -> Tensor<B, 4> {
    let [heads, seq] = values.dims();
    let device = values.device();
    let pairs = (0..seq as i64).flat_map(|query| (0..seq as i64).map(move |key| (query - key).max(0)));
    let pairs = Tensor::<B, 1, Int>::from_data(TensorData::new(pairs.collect(), [seq * seq]), &device);
    let future = Tensor::<B, 2, Bool>::tril_mask([seq, seq], 0, &device).unsqueeze(); // true where key > query
    values.select(1, pairs).reshape([1, heads, seq, seq]).mask_fill(future, 0.0)
}
