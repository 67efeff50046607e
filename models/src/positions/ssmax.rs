//! Scalable softmax: head h of a layer multiplies the scores of query number n by s_h·ln(n), s_h learned, so that
//! attention does not flatten as keys are added (Nakanishi, arXiv 2501.19399). Queries are numbered from 1.

use super::logn::log_counts;
use super::{Input, Places, Scheme, Score};
use crate::Init;
use crate::error::ConfigError;
use crate::ops::SequenceOps;
use crate::training::ParameterGroup;
use crate::transformer::TransformerConfig;
use burn::module::{Module, Param};
use burn::prelude::*;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Ssmax<B: Backend> {
    layers: Vec<Layer<B>>,
}

#[derive(Module, Debug)]
struct Layer<B: Backend> {
    /// `[heads]`.
    ssmax_s: Param<Tensor<B, 1>>,
}

impl<B: Backend> Scheme<B> for Ssmax<B> {
    const INPUT: Input = Input::None;

    const BOTH_DIRECTIONS: bool = false;

    const PER_LAYER: bool = true;

    fn check(config: &TransformerConfig) -> Result<(), ConfigError> {
        let start = config.ssmax_init;
        if start.is_finite() {
            return Ok(());
        }
        Err(ConfigError::new("ssmax_init", format!("{start} is not a finite number")))
    }

    fn parameter_group(_name: &str) -> ParameterGroup {
        ParameterGroup::UNDECAYED
    }

    fn examples(small: &TransformerConfig) -> Vec<TransformerConfig> {
        vec![small.clone(), TransformerConfig { ssmax_init: 1.5, ..small.clone() }]
    }

    /// `ssmax_init` in every head.
    fn new(config: &TransformerConfig, init: &mut Init<'_, B>) -> Self {
        let layer = |_| Layer { ssmax_s: init.constant([config.num_heads], config.ssmax_init as f32) };
        Self { layers: (0..config.num_layers).map(layer).collect() }
    }

    fn score(&self, layer: usize, places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        let s = self.layers[layer].ssmax_s.val().cast(places.wide());
        let heads = s.dims()[0];
        Score::Factor((s.reshape([1, heads, 1, 1]) * log_counts(places)).cast(places.dtype)) // [1, heads, query, 1]
    }
}
