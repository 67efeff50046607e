//! The scores of query number n are multiplied by max(1, ln(n)/ln(N)), with the length N of training: as
//! [`logn`](super::logn), but only beyond that length (the variant of Qwen, Bai et al., arXiv 2309.16609).

use super::logn::log_counts;
use super::{Input, Places, Scheme, Score};
use crate::Init;
use crate::error::ConfigError;
use crate::ops::SequenceOps;
use crate::transformer::TransformerConfig;
use burn::module::Module;
use burn::prelude::*;
use std::marker::PhantomData;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct LognClip<B: Backend> {
    train_length: usize,
    backend: PhantomData<B>,
}

impl<B: Backend> Scheme<B> for LognClip<B> {
    const INPUT: Input = Input::None;

    const BOTH_DIRECTIONS: bool = false;

    fn check(config: &TransformerConfig) -> Result<(), ConfigError> {
        let length = config.logn_clip_train_length;
        if length > 1 {
            return Ok(());
        }
        Err(ConfigError::new("logn_clip_train_length", format!("{length} has no logarithm above 0; 2 is the least")))
    }

    fn examples(small: &TransformerConfig) -> Vec<TransformerConfig> {
        vec![small.clone(), TransformerConfig { logn_clip_train_length: 4, ..small.clone() }]
    }

    fn new(config: &TransformerConfig, _init: &mut Init<'_, B>) -> Self {
        Self { train_length: config.logn_clip_train_length, backend: PhantomData }
    }

    fn score(&self, _layer: usize, places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        let factor = (log_counts(places) / (self.train_length as f64).ln()).clamp_min(1.0);
        Score::Factor(factor.cast(places.dtype))
    }
}
