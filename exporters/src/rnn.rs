//! Elman RNN: embedding → stacked tanh layers → decoder. The counterpart of `models::rnn`.

use crate::ExportError;
use crate::graph::Attribute::Ints;
use crate::graph::GraphBuilder;
use crate::layers::{Gates, decoder, input_ids, logits, recurrent_layer, token_embedding};
use models::rnn::RnnConfig;

/// ONNX calls an RNN's only gate i.
const GATES: &Gates = &[('i', 0)];

pub(crate) fn lower(config: &RnnConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    // ONNX's RNN has time on the first axis. Ids and logits are the narrowest tensors, so it is those that are turned.
    let ids = input_ids(g); // [batch, seq]
    let ids = g.node("Transpose", &[&ids], &[("perm", Ints(&[1, 0]))]); // [seq, batch]
    let mut x = token_embedding(g, "encoder", &ids, [vocab, hidden], config.freeze_null_embedding)?; // [seq, batch, hidden]
    for layer in 0..config.num_layers {
        x = recurrent_layer(g, "RNN", GATES, layer, &x, hidden)?;
    }
    let scores = decoder(g, "decoder", &x, [hidden, vocab], config.tie_word_embeddings)?; // [seq, batch, vocab]
    let scores = g.node("Transpose", &[&scores], &[("perm", Ints(&[1, 0, 2]))]); // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}
