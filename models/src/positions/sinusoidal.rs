//! The sine and cosine table of Vaswani et al., arXiv 1706.03762, is added to √hidden times the token's embedding.

use super::{FREQUENCY_BASE, Input, Scheme};
use crate::error::ConfigError;
use crate::transformer::TransformerConfig;
use crate::{Init, Positions};
use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::module::embedding;
use data::Augmentation;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Sinusoidal<B: Backend> {
    sine: Table<B>,
}

/// A table of position vectors that is computed, not trained; checkpoints have it anyway.
#[derive(Module, Debug)]
struct Table<B: Backend> {
    /// `[max_position_embeddings, hidden]`.
    pe: Param<Tensor<B, 2>>,
}

impl<B: Backend> Scheme<B> for Sinusoidal<B> {
    const INPUT: Input = Input::Integers;
    const AUGMENTATIONS: &'static [Augmentation] = &[Augmentation::None, Augmentation::Shift];

    fn limit(config: &TransformerConfig) -> Option<usize> {
        Some(config.max_position_embeddings)
    }

    fn check(config: &TransformerConfig) -> Result<(), ConfigError> {
        let hidden = config.hidden_size;
        if hidden.is_multiple_of(2) {
            return Ok(());
        }
        Err(ConfigError::new("hidden_size", format!("sine and cosine come in pairs, but {hidden} is odd")))
    }

    fn new(config: &TransformerConfig, init: &mut Init<'_, B>) -> Self {
        let shape @ [positions, hidden] = [config.max_position_embeddings, config.hidden_size];
        let pe = init.values(sinusoids(positions, hidden), shape);
        Self { sine: Table { pe: pe.set_require_grad(false) } }
    }

    fn embed(&self, x: Tensor<B, 3>, positions: Positions<B>) -> Tensor<B, 3> {
        let hidden = x.dims()[2];
        x * (hidden as f64).sqrt() + embedding(self.sine.pe.val(), positions.indices())
    }
}

/// pe[p, 2j] = sin(p·f_j), pe[p, 2j+1] = cos(p·f_j) with f_j = base^(−2j/hidden), `[positions, hidden]`
/// (arXiv 1706.03762, 3.5).
pub(super) fn sinusoids(positions: usize, hidden: usize) -> Vec<f32> {
    let angle = |p: usize, c: usize| p as f64 * FREQUENCY_BASE.powf(-((c / 2 * 2) as f64) / hidden as f64);
    let value = |p, c| if c % 2 == 0 { angle(p, c).sin() } else { angle(p, c).cos() };
    (0..positions).flat_map(|p| (0..hidden).map(move |c| value(p, c) as f32)).collect()
}
