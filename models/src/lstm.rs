//! LSTM: embedding → stacked LSTM layers → decoder. No residual, no norm, no positions.
//!
//! Source: S. Hochreiter and J. Schmidhuber, "Long Short-Term Memory", 1997; sizes and initialisation of
//! arXiv 2405.20131.

use crate::layers::{Embedding, Linear, RecurrentLayer, dropout};
use crate::ops::SequenceOps;
use crate::{Init, ModelInput};
use burn::module::Module;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

/// Sizes of an [`Lstm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LstmConfig {
    /// Width of embedding and state.
    pub hidden_size: usize,
    /// Stacked layers.
    pub num_layers: usize,
    /// Dropout between layers (none after the last).
    pub dropout: f64,
}

impl Default for LstmConfig {
    fn default() -> Self {
        Self { hidden_size: 128, num_layers: 1, dropout: 0.1 }
    }
}

impl LstmConfig {
    /// A model over `vocab` tokens: layers U(±1/√hidden), embedding and decoder N(0, 0.02²).
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Lstm<B> {
        let hidden = self.hidden_size;
        Lstm {
            encoder: Embedding::new(init, vocab, hidden, 0.02),
            lstm: (0..self.num_layers).map(|_| RecurrentLayer::new(init, 4, hidden)).collect(),
            decoder: Linear::new(init, hidden, vocab, 0.02),
            dropout: self.dropout,
        }
    }
}

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Lstm<B: Backend> {
    encoder: Embedding<B>,
    lstm: Vec<RecurrentLayer<B>>,
    decoder: Linear<B>,
    dropout: f64,
}

impl<B: SequenceOps> Lstm<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        let mut x = self.encoder.forward(input.input_ids); // [batch, seq, hidden]
        for (i, layer) in self.lstm.iter().enumerate() {
            if i > 0 {
                x = dropout(x, self.dropout, input.dropout, i as u64);
            }
            (x, _) = B::lstm_layer(x, layer.weights(), None);
        }
        self.decoder.forward(x)
    }
}
