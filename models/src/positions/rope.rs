//! Rotary positions: queries and keys are rotated by their position (Su et al., arXiv 2104.09864).

use super::{Input, Scheme, Score};
use crate::error::ConfigError;
use crate::ops::Rotation;
use crate::transformer::TransformerConfig;
use crate::{Init, Positions};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use data::Augmentation;
use std::marker::PhantomData;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Rope<B: Backend> {
    frequencies: Vec<f32>,
    backend: PhantomData<B>,
}

impl<B: Backend> Scheme<B> for Rope<B> {
    const INPUT: Input = Input::Integers;
    const AUGMENTATIONS: &'static [Augmentation] = &[Augmentation::None, Augmentation::Shift, Augmentation::Randomized];

    fn check(config: &TransformerConfig) -> Result<(), ConfigError> {
        let width = config.head_dim();
        if width.is_multiple_of(2) {
            return Ok(());
        }
        let reason = format!("rope rotates pairs of channels, but a head has {width} (hidden_size / num_heads)");
        Err(ConfigError::new("num_heads", reason))
    }

    fn new(config: &TransformerConfig, _init: &mut Init<'_, B>) -> Self {
        Self { frequencies: config.inverse_frequencies(), backend: PhantomData }
    }

    fn score(&self, positions: Positions<B>, dtype: DType) -> Score<B> {
        Score::Rotation(rotation(positions, &self.frequencies, dtype))
    }
}

/// The rotation of queries and keys of this type; the angles themselves are never of half precision.
fn rotation<B: Backend>(positions: Positions<B>, frequencies: &[f32], dtype: DType) -> Rotation<B> {
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let positions = positions.floats().cast(wide);
    let [batch, seq] = positions.dims();
    let frequencies = TensorData::new(frequencies.to_vec(), [1, 1, 1, frequencies.len()]);
    let frequencies = Tensor::<B, 4>::from_data(frequencies, (&positions.device(), wide));
    let angles = positions.reshape([batch, 1, seq, 1]) * frequencies; // [batch, 1, seq, head_dim / 2]
    let angles = Tensor::cat(vec![angles.clone(), angles], 3);
    Rotation { cos: angles.clone().cos().cast(dtype), sin: angles.sin().cast(dtype) }
}
