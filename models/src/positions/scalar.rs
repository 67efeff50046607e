//! The position itself, a fraction in [0, 1], is the last channel (arXiv 2405.20131).

use super::{Input, Scheme};
use crate::error::ConfigError;
use crate::transformer::TransformerConfig;
use crate::{Init, Positions};
use burn::module::Module;
use burn::prelude::*;
use data::Augmentation;
use std::marker::PhantomData;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Scalar<B: Backend> {
    backend: PhantomData<B>,
}

impl<B: Backend> Scheme<B> for Scalar<B> {
    const INPUT: Input = Input::Scalars;
    const AUGMENTATIONS: &'static [Augmentation] = &[Augmentation::None, Augmentation::Shift];
    const CHANNELS: usize = 1;

    fn augmentation(setting: Augmentation) -> Augmentation {
        match setting {
            Augmentation::None => Augmentation::Zooming,
            Augmentation::Shift => Augmentation::ScalerShift,
            other => other,
        }
    }

    fn check(config: &TransformerConfig) -> Result<(), ConfigError> {
        if config.hidden_size < 2 {
            let reason = "with scalar positions, one channel is the position; 2 is the least";
            return Err(ConfigError::new("hidden_size", reason));
        }
        if config.tie_word_embeddings {
            let reason = "with scalar positions, an embedding has a channel less than the decoder; untie them";
            return Err(ConfigError::new("tie_word_embeddings", reason));
        }
        Ok(())
    }

    fn new(_config: &TransformerConfig, _init: &mut Init<'_, B>) -> Self {
        Self { backend: PhantomData }
    }

    fn embed(&self, x: Tensor<B, 3>, positions: Positions<B>) -> Tensor<B, 3> {
        let positions = positions.floats().unsqueeze_dim(2).cast(x.dtype()); // [batch, seq, 1]
        Tensor::cat(vec![x, positions], 2)
    }
}
