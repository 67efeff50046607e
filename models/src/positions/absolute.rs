//! A learned row per position is added to the token's embedding, as in GPT-2.

use super::sinusoidal::sinusoids;
use super::{Input, Scheme};
use crate::layers::Embedding;
use crate::transformer::{AbsoluteInit, TransformerConfig};
use crate::{Init, Positions};
use burn::module::Module;
use burn::prelude::*;
use data::Augmentation;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Absolute<B: Backend> {
    /// `[max_position_embeddings, hidden]`.
    wpe: Embedding<B>,
}

impl<B: Backend> Scheme<B> for Absolute<B> {
    const INPUT: Input = Input::Integers;
    const AUGMENTATIONS: &'static [Augmentation] = &[Augmentation::None, Augmentation::Shift, Augmentation::Randomized];

    fn limit(config: &TransformerConfig) -> Option<usize> {
        Some(config.max_position_embeddings)
    }

    fn examples(small: &TransformerConfig) -> Vec<TransformerConfig> {
        let computed =
            TransformerConfig { absolute_freeze: true, absolute_init: AbsoluteInit::Sinusoidal, ..small.clone() };
        vec![small.clone(), computed]
    }

    fn new(config: &TransformerConfig, init: &mut Init<'_, B>) -> Self {
        let shape @ [positions, hidden] = [config.max_position_embeddings, config.hidden_size];
        let wpe = match config.absolute_init {
            AbsoluteInit::Normal => Embedding::new(init, positions, hidden, 0.02),
            AbsoluteInit::Sinusoidal => Embedding { weight: init.values(sinusoids(positions, hidden), shape) },
        };
        Self { wpe: if config.absolute_freeze { wpe.no_grad() } else { wpe } }
    }

    fn embed(&self, x: Tensor<B, 3>, positions: Positions<B>) -> Tensor<B, 3> {
        x + self.wpe.forward(positions.indices())
    }
}
