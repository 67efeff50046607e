//! GRU: embedding → stacked GRU layers → decoder. No residual, no norm, no positions; the LSTM of [`crate::lstm`] with
//! another cell.
//!
//! Source: K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", arXiv 1406.1078, in the form of
//! cuDNN and PyTorch, whose reset gate acts after the recurrent product.

use crate::architecture::{Architecture, check_dropout};
use crate::layers::{Embedding, Linear, RecurrentLayer, dropout};
use crate::ops::SequenceOps;
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::Module;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Sizes of a [`Gru`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GruConfig {
    /// Width of embedding and state.
    pub hidden_size: usize,
    /// Stacked layers.
    pub num_layers: usize,
    /// Dropout between layers (none after the last).
    pub dropout: f64,
}

impl Default for GruConfig {
    fn default() -> Self {
        Self { hidden_size: 128, num_layers: 1, dropout: 0.1 }
    }
}

impl Architecture for GruConfig {
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
        // Between layers.
        self.dropout > 0.0 && self.num_layers > 1
    }

    fn examples() -> Vec<Self> {
        vec![Self { hidden_size: 16, num_layers: 2, ..Self::default() }]
    }

    fn benchmark(_seq: usize) -> Vec<(&'static str, Value)> {
        vec![("dropout", 0.0.into())]
    }
}

impl GruConfig {
    /// A model over `vocab` tokens: layers U(±1/√hidden), embedding and decoder N(0, 0.02²).
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Gru<B> {
        let hidden = self.hidden_size;
        Gru {
            encoder: Embedding::new(init, vocab, hidden, 0.02),
            gru: (0..self.num_layers).map(|_| RecurrentLayer::new(init, 3, hidden)).collect(),
            decoder: Linear::new(init, hidden, vocab, 0.02),
            dropout: self.dropout,
        }
    }
}

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Gru<B: Backend> {
    encoder: Embedding<B>,
    gru: Vec<RecurrentLayer<B>>,
    decoder: Linear<B>,
    dropout: f64,
}

impl<B: Backend> Network<B> for Gru<B> {}

impl<B: SequenceOps> Gru<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of a piece of a sequence, from the state after the piece before it (one
    /// `[batch, hidden]` per layer), and the state after this one.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<Tensor<B, 2>>>,
    ) -> (Tensor<B, 3>, Vec<Tensor<B, 2>>) {
        let mut x = self.encoder.lookup(input.input_ids);
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(self.gru.len());
        for (i, layer) in self.gru.iter().enumerate() {
            if i > 0 {
                x = dropout(x.rows(), self.dropout, input.dropout, i as u64).into();
            }
            let (y, last) = B::gru_layer(x, layer.weights(), before.next());
            x = y.into();
            after.push(last);
        }
        (self.decoder.forward(x.rows()), after)
    }
}
