//! minGRU: blocks of a GRU whose gate and candidate see only the input, so that the recurrence is linear in its state,
//! and of an MLP; both are added to the residual stream.
//!
//! Source: L. Feng et al., "Were RNNs All We Needed?", arXiv 2410.01201, section 3.1 (the form without logarithms). As
//! there, a block is a minRNN and an MLP with norms and residuals; the short convolution of the paper's language models
//! is left out.

use crate::architecture::{Architecture, check_dropout};
use crate::layers::{Affine, Embedding, LayerNorm, Linear, Mlp, dropout};
use crate::ops::SequenceOps;
use crate::{ConfigError, Init, ModelInput, Network};
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

/// LayerNorm's ε.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Channels of the state per channel of the residual stream.
pub const EXPANSION: usize = 2;

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
        let norm = |init: &mut Init<'_, B>| LayerNorm::new(init, hidden, LAYER_NORM_EPSILON);
        Mingru {
            encoder: Embedding::new(init, vocab, hidden, 0.02),
            blocks: (0..self.num_layers)
                .map(|_| Block {
                    norm_1: norm(init),
                    mixer: Mixer {
                        linear_z: Affine::new(init, hidden, EXPANSION * hidden),
                        linear_h: Affine::new(init, hidden, EXPANSION * hidden),
                        linear_out: Affine::new(init, EXPANSION * hidden, hidden),
                    },
                    norm_2: norm(init),
                    mlp: Mlp::new(init, hidden),
                })
                .collect(),
            norm_f: norm(init),
            decoder: Linear::new(init, hidden, vocab, 0.02),
            dropout: self.dropout,
        }
    }
}

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Mingru<B: Backend> {
    encoder: Embedding<B>,
    blocks: Vec<Block<B>>,
    norm_f: LayerNorm<B>,
    decoder: Linear<B>,
    dropout: f64,
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    norm_1: LayerNorm<B>,
    mixer: Mixer<B>,
    norm_2: LayerNorm<B>,
    mlp: Mlp<B>,
}

#[derive(Module, Debug)]
struct Mixer<B: Backend> {
    linear_z: Affine<B>,
    linear_h: Affine<B>,
    linear_out: Affine<B>,
}

impl<B: Backend> Network<B> for Mingru<B> {}

impl<B: SequenceOps> Mingru<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of a piece of a sequence, from the state after the piece before it (one
    /// `[batch, 2·hidden]` per block), and the state after this one.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<Tensor<B, 2>>>,
    ) -> (Tensor<B, 3>, Vec<Tensor<B, 2>>) {
        let mut x = self.encoder.forward(input.input_ids); // [batch, seq, hidden]
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let drop = |y, place| dropout(y, self.dropout, input.dropout, 2 * i as u64 + place);
            let (y, last) = block.mixer.forward(block.norm_1.forward(x.clone()), before.next());
            x = x + drop(y, 0);
            x = x.clone() + drop(block.mlp.forward(block.norm_2.forward(x)), 1);
            after.push(last);
        }
        (self.decoder.forward(self.norm_f.forward(x)), after)
    }
}

impl<B: SequenceOps> Mixer<B> {
    /// z = σ(W_z·x), h_t = (1 − z_t)·h_{t−1} + z_t·(W_h·x_t): `[batch, seq, hidden]` → the same shape, and the last h.
    fn forward(&self, x: Tensor<B, 3>, h: Option<Tensor<B, 2>>) -> (Tensor<B, 3>, Tensor<B, 2>) {
        let z = sigmoid(self.linear_z.forward(x.clone())); // [batch, seq, 2·hidden]
        let candidate = self.linear_h.forward(x);
        let (states, last) = B::linear_recurrence(z.clone().neg() + 1.0, z * candidate, h);
        (self.linear_out.forward(states), last)
    }
}
