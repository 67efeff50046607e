//! Contextual positions: a key's position is how many of the keys from it to the query are counted, each by a gate
//! between 0 and 1 that depends on query and key; the score gets the product of the query and a learned vector of this
//! position, interpolated between whole ones (Golovneva et al., arXiv 2405.18719). All heads of a layer share its vectors.

use super::{ContentBias, Input, Places, Scheme, Score};
use crate::Init;
use crate::error::ConfigError;
use crate::ops::autocast::product;
use crate::ops::{KeyMask, SequenceOps};
use crate::training::ParameterGroup;
use crate::transformer::TransformerConfig;
use burn::module::{Module, Param};
use burn::prelude::*;
use std::rc::Rc;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Cope<B: Backend> {
    layers: Vec<Layer<B>>,
}

#[derive(Module, Debug)]
struct Layer<B: Backend> {
    cope: Vectors<B>,
}

#[derive(Module, Debug)]
struct Vectors<B: Backend> {
    /// `[1, head_dim, positions]`.
    pos_emb: Param<Tensor<B, 3>>,
}

impl<B: Backend> Scheme<B> for Cope<B> {
    const INPUT: Input = Input::None;

    const BOTH_DIRECTIONS: bool = false;

    const PER_LAYER: bool = true;

    fn check(config: &TransformerConfig) -> Result<(), ConfigError> {
        if config.cope_positions == 0 {
            return Err(ConfigError::new("cope_positions", "must be at least 1: positions are counted from 0"));
        }
        Ok(())
    }

    fn parameter_group(_name: &str) -> ParameterGroup {
        ParameterGroup::UNDECAYED
    }

    fn examples(small: &TransformerConfig) -> Vec<TransformerConfig> {
        vec![small.clone(), TransformerConfig { cope_positions: 3, ..small.clone() }]
    }

    /// Zeros.
    fn new(config: &TransformerConfig, init: &mut Init<'_, B>) -> Self {
        let shape = [1, config.head_dim(), config.cope_positions];
        let layer = |_| Layer { cope: Vectors { pos_emb: init.constant(shape, 0.0) } };
        Self { layers: (0..config.num_layers).map(layer).collect() }
    }

    fn score(&self, layer: usize, _places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        Score::Content(Rc::new(Counted { vectors: self.layers[layer].cope.pos_emb.val() }))
    }
}

/// The vectors of a layer, `[1, head_dim, positions]`.
#[derive(Debug)]
struct Counted<B: Backend> {
    vectors: Tensor<B, 3>,
}

impl<B: SequenceOps> ContentBias<B> for Counted<B> {
    fn bias(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, scale: f64, mask: Option<&KeyMask<B>>) -> Tensor<B, 4> {
        let q = q * scale;
        let logits = product(q.clone(), k.transpose()); // [batch, heads, query, key]
        let by_position = product(q, self.vectors.clone().unsqueeze()); // [batch, heads, query, positions]
        B::contextual_positions(logits, by_position, mask)
    }
}
