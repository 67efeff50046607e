//! Rotary positions: queries and keys are rotated by their position (Su et al., arXiv 2104.09864).

use super::{Input, Places, Scheme, Score};
use crate::Init;
use crate::error::ConfigError;
use crate::ops::{Rotation, SequenceOps};
use crate::transformer::TransformerConfig;
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;
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

    fn score(&self, _layer: usize, places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        Score::Rotation(rotation(places, &self.frequencies))
    }
}

/// The rotation of queries and keys; the angles themselves are never of half precision.
fn rotation<B: Backend>(places: &Places<B>, frequencies: &[f32]) -> Rotation<B> {
    let (wide, dtype) = (places.wide(), places.dtype);
    let positions = places.positions.clone().floats().cast(wide);
    let [batch, seq] = positions.dims();
    let frequencies = TensorData::new(frequencies.to_vec(), [1, 1, 1, frequencies.len()]);
    let frequencies = Tensor::<B, 4>::from_data(frequencies, (&positions.device(), wide));
    let angles = positions.reshape([batch, 1, seq, 1]) * frequencies; // [batch, 1, seq, head_dim / 2]
    let angles = Tensor::cat(vec![angles.clone(), angles], 3);
    Rotation { cos: angles.clone().cos().cast(dtype), sin: angles.sin().cast(dtype) }
}
