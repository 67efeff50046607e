//! LSTM: embedding → stacked LSTM layers → decoder. No residual, no norm, no positions.
//!
//! Source: S. Hochreiter and J. Schmidhuber, "Long Short-Term Memory", 1997; sizes and initialisation of
//! arXiv 2405.20131.

use crate::architecture::{Architecture, check_dropout, check_embeddings};
use crate::layers::{Linear, RecurrentLayer, TokenEmbedding, dropout, tied_decoder};
use crate::ops::SequenceOps;
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::Module;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// The decoder is the token embedding.
    pub tie_word_embeddings: bool,
    /// The embedding of token 0, which must be `<null>`, is zero and not trained.
    pub freeze_null_embedding: bool,
}

impl Default for LstmConfig {
    fn default() -> Self {
        Self { hidden_size: 128, num_layers: 1, dropout: 0.1, tie_word_embeddings: false, freeze_null_embedding: false }
    }
}

impl Architecture for LstmConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["decoder.weight", "encoder.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        check_dropout(self.dropout)?;
        check_embeddings(self.tie_word_embeddings, self.freeze_null_embedding)
    }

    fn has_dropout(&self) -> bool {
        // Between layers.
        self.dropout > 0.0 && self.num_layers > 1
    }

    fn freezes_null(&self) -> bool {
        self.freeze_null_embedding
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, ..Self::default() };
        vec![
            small.clone(),
            Self { tie_word_embeddings: true, ..small.clone() },
            Self { freeze_null_embedding: true, ..small },
        ]
    }

    fn benchmark(_seq: usize) -> Vec<(&'static str, Value)> {
        vec![("dropout", 0.0.into())]
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("decoder.weight", "encoder.weight"))
    }
}

impl LstmConfig {
    /// A model over `vocab` tokens: layers U(±1/√hidden), embedding and decoder N(0, 0.02²).
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Lstm<B> {
        let hidden = self.hidden_size;
        Lstm {
            encoder: TokenEmbedding::new(init, vocab, hidden, 0.02, self.freeze_null_embedding),
            lstm: (0..self.num_layers).map(|_| RecurrentLayer::new(init, 4, hidden)).collect(),
            decoder: (!self.tie_word_embeddings).then(|| Linear::new(init, hidden, vocab, 0.02)),
            dropout: self.dropout,
        }
    }
}

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Lstm<B: Backend> {
    encoder: TokenEmbedding<B>,
    lstm: Vec<RecurrentLayer<B>>,
    /// `None` where the decoder is `encoder`.
    decoder: Option<Linear<B>>,
    dropout: f64,
}

/// The last h and c of each layer, both `[batch, hidden]`.
pub type LstmState<B> = Vec<(Tensor<B, 2>, Tensor<B, 2>)>;

impl<B: Backend> Network<B> for Lstm<B> {}

impl<B: SequenceOps> Lstm<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of a sequence that continues from `state` (the zero state if `None`), and the state
    /// after it.
    pub fn forward_from(&self, input: ModelInput<B>, state: Option<LstmState<B>>) -> (Tensor<B, 3>, LstmState<B>) {
        let mut x = self.encoder.lookup(input.input_ids);
        let mut last = Vec::with_capacity(self.lstm.len());
        for (i, layer) in self.lstm.iter().enumerate() {
            if i > 0 {
                x = dropout(x.rows(), self.dropout, input.dropout, i as u64).into();
            }
            let before = state.as_ref().and_then(|layers| layers.get(i)).cloned();
            let (y, after) = B::lstm_layer(x, layer.weights(), before);
            x = y.into();
            last.push(after);
        }
        let x = x.rows(); // [batch, seq, hidden]
        let logits = match &self.decoder {
            Some(decoder) => decoder.forward(x),
            None => tied_decoder(x, self.encoder.table()),
        };
        (logits, last)
    }
}
