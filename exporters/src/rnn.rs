//! Elman RNN: embedding → stacked tanh layers → decoder. The counterpart of `models::rnn`.

use crate::ExportError;
use crate::graph::Attribute::Ints;
use crate::graph::GraphBuilder;
use crate::layers::{Cell, decoder, input_ids, logits, recurrent_layer, token_embedding};
use models::rnn::RnnConfig;

/// ONNX calls an RNN's only gate i.
const CELL: Cell = Cell { op: "RNN", module: "lstm", gates: &[('i', 0)], states: &["h"], attributes: &[] };

pub(crate) fn lower(config: &RnnConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    // ONNX's RNN has time on the first axis. Ids and logits are the narrowest tensors, so it is those that are turned.
    let ids = input_ids(g); // [batch, seq]
    let turned = g.node("Transpose", &[&ids], &[("perm", Ints(&[1, 0]))]); // [seq, batch]
    let freeze_null = config.freeze_null_embedding;
    let mut x = token_embedding(g, "encoder", &turned, [vocab, hidden], freeze_null)?; // [seq, batch, hidden]
    for layer in 0..config.num_layers {
        x = recurrent_layer(g, &CELL, layer, &ids, &x, hidden)?;
    }
    let tied = config.tie_word_embeddings.then_some("encoder");
    let scores = decoder(g, "decoder", &x, [hidden, vocab], tied)?; // [seq, batch, vocab]
    let scores = g.node("Transpose", &[&scores], &[("perm", Ints(&[1, 0, 2]))]); // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}
