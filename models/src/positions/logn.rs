//! The scores of query number n, counted from 1, are multiplied by ln(n), the logarithm of the keys that it sees, so that
//! attention does not flatten as keys are added (Chiang and Cholak, arXiv 2202.12172). Nothing is trained.

use super::{Input, Places, Scheme, Score};
use crate::Init;
use crate::ops::SequenceOps;
use crate::transformer::TransformerConfig;
use burn::module::Module;
use burn::prelude::*;
use std::marker::PhantomData;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Logn<B: Backend> {
    backend: PhantomData<B>,
}

impl<B: Backend> Scheme<B> for Logn<B> {
    const INPUT: Input = Input::None;

    const BOTH_DIRECTIONS: bool = false;

    fn new(_config: &TransformerConfig, _init: &mut Init<'_, B>) -> Self {
        Self { backend: PhantomData }
    }

    fn score(&self, _layer: usize, places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        Score::Factor(log_counts(places).cast(places.dtype))
    }
}

/// ln(n) of query number n, from 1: `[1, 1, query, 1]` in [`Places::wide`] numbers.
pub(super) fn log_counts<B: Backend>(places: &Places<B>) -> Tensor<B, 4> {
    (places.indices() + 1.0).log().reshape([1, 1, places.seq(), 1])
}
