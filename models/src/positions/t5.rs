//! T5's bias: the score of a key is raised by a learned number, looked up by head and by the bucket of the distance
//! (Raffel et al., arXiv 1910.10683, 2.1). One table serves all layers; checkpoints have it in the first block.

use super::{Input, Places, Scheme, Score};
use crate::Init;
use crate::error::ConfigError;
use crate::layers::Embedding;
use crate::ops::SequenceOps;
use crate::training::ParameterGroup;
use crate::transformer::TransformerConfig;
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;

/// The largest `t5_max_distance`: an exported file has a number per distance and head.
const LARGEST_DISTANCE: usize = 1 << 16;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct T5<B: Backend> {
    /// The first layer's.
    layers: [Layer<B>; 1],
    max_distance: usize,
}

#[derive(Module, Debug)]
struct Layer<B: Backend> {
    /// `[buckets, heads]`.
    relative_attention_bias: Embedding<B>,
}

/// The bucket of a distance δ, from 0: with e half the buckets, δ below e, and else
/// e + ⌊ln(δ/e)/ln(max_distance/e)·(buckets − e)⌋, but at most the last one. In 32 bits, in the order of the published
/// code's operations.
pub fn bucket(distance: usize, buckets: usize, max_distance: usize) -> usize {
    let exact = buckets / 2;
    if distance < exact {
        return distance;
    }
    let range = (max_distance as f64 / exact as f64).ln() as f32;
    let log = (distance as f32 / exact as f32).ln() / range * (buckets - exact) as f32;
    (exact + log as usize).min(buckets - 1)
}

impl<B: Backend> Scheme<B> for T5<B> {
    const INPUT: Input = Input::None;

    const BOTH_DIRECTIONS: bool = false;

    fn check(config: &TransformerConfig) -> Result<(), ConfigError> {
        let (buckets, most) = (config.t5_buckets, config.t5_max_distance);
        if buckets < 2 {
            return Err(ConfigError::new("t5_buckets", format!("{buckets} is too few; 2 is the least")));
        }
        if most <= buckets / 2 || most > LARGEST_DISTANCE {
            let reason = format!(
                "{most} must be above half of t5_buckets, {}, and at most {LARGEST_DISTANCE}: distances from it on share \
                 the last bucket",
                buckets / 2
            );
            return Err(ConfigError::new("t5_max_distance", reason));
        }
        Ok(())
    }

    fn parameter_group(_name: &str) -> ParameterGroup {
        ParameterGroup::UNDECAYED
    }

    fn examples(small: &TransformerConfig) -> Vec<TransformerConfig> {
        vec![small.clone(), TransformerConfig { t5_buckets: 5, t5_max_distance: 6, ..small.clone() }]
    }

    fn new(config: &TransformerConfig, init: &mut Init<'_, B>) -> Self {
        let relative_attention_bias = Embedding::new(init, config.t5_buckets, config.num_heads, 0.02);
        Self { layers: [Layer { relative_attention_bias }], max_distance: config.t5_max_distance }
    }

    fn score(&self, _layer: usize, places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        let table = self.layers[0].relative_attention_bias.weight.val();
        let ([buckets, _], seq) = (table.dims(), places.seq());
        let rows: Vec<i64> = (0..seq).map(|distance| bucket(distance, buckets, self.max_distance) as i64).collect();
        let rows = Tensor::from_data(TensorData::new(rows, [seq]), &places.device());
        Score::Bias(B::by_distance(table.select(0, rows).transpose())) // [1, heads, query, key]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The buckets that transformers' `T5Attention._relative_position_bucket(bidirectional=False)` gives.
    #[test]
    fn buckets_are_those_of_the_published_code() {
        let starts: Vec<usize> = (0..32).map(|b| (0..).find(|d| bucket(*d, 32, 128) == b).unwrap_or(0)).collect();
        let logarithmic = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113];
        assert_eq!(starts, (0..16).chain(logarithmic).collect::<Vec<_>>());
        assert_eq!([113, 128, 5000].map(|d| bucket(d, 32, 128)), [31; 3]);
        // Borders that are powers of two, where a logarithm is whole but for its rounding.
        assert_eq!(
            [3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 999].map(|d| bucket(d, 8, 64)),
            [3, 4, 4, 5, 5, 6, 6, 7, 7, 7, 7]
        );
    }
}
