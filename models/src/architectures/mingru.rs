//! minGRU: blocks of a GRU whose gate and candidate see only the input, so that the recurrence is linear in its state,
//! and of an MLP; both are added to the residual stream ([`min_rnn`](crate::layers::min_rnn)).
//!
//! Source: L. Feng et al., "Were RNNs All We Needed?", arXiv 2410.01201, section 3.1 (the form without logarithms).

use crate::architecture::{Architecture, check_dropout};
use crate::layers::Affine;
use crate::layers::min_rnn::{EXPANSION, MinRnn, Recurrence};
use crate::ops::SequenceOps;
use crate::{ConfigError, Init, Network};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Sizes of a [`Mingru`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MinGruConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Dropout of what a block adds.
    pub dropout: f64,
}

impl Default for MinGruConfig {
    fn default() -> Self {
        Self { hidden_size: 128, num_layers: 2, dropout: 0.1 }
    }
}

impl Architecture for MinGruConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["decoder.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        check_dropout(self.dropout)
    }

    fn has_dropout(&self) -> bool {
        self.dropout > 0.0
    }

    fn examples() -> Vec<Self> {
        vec![Self { hidden_size: 16, num_layers: 2, ..Self::default() }]
    }

    fn benchmark(_seq: usize) -> Vec<(&'static str, Value)> {
        vec![("dropout", 0.0.into())]
    }
}

impl MinGruConfig {
    /// A model over `vocab` tokens: embedding and decoder N(0, 0.02²), the rest PyTorch's default U(±1/√in).
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Mingru<B> {
        let hidden = self.hidden_size;
        MinRnn::new([hidden, self.num_layers], self.dropout, vocab, init, |init| GruMixer {
            linear_z: Affine::new(init, hidden, EXPANSION * hidden),
            linear_h: Affine::new(init, hidden, EXPANSION * hidden),
            linear_out: Affine::new(init, EXPANSION * hidden, hidden),
        })
    }
}

/// See the [module documentation](self).
pub type Mingru<B> = MinRnn<B, GruMixer<B>>;

impl<B: Backend> Network<B> for Mingru<B> {}

/// z = σ(W_z·x), h_t = (1 − z_t)·h_{t−1} + z_t·(W_h·x_t).
#[derive(Module, Debug)]
pub struct GruMixer<B: Backend> {
    linear_z: Affine<B>,
    linear_h: Affine<B>,
    linear_out: Affine<B>,
}

impl<B: SequenceOps> Recurrence<B> for GruMixer<B> {
    fn mix(&self, x: Tensor<B, 3>, h: Option<Tensor<B, 2>>) -> (Tensor<B, 3>, Tensor<B, 2>) {
        let z = sigmoid(self.linear_z.forward(x.clone())); // [batch, seq, 2·hidden]
        let candidate = self.linear_h.forward(x);
        let (states, last) = B::linear_recurrence(z.clone().neg() + 1.0, z * candidate, h);
        (self.linear_out.forward(states), last)
    }
}
