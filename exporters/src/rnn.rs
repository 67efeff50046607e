//! Elman RNN: embedding → stacked tanh layers → decoder. The counterpart of `models::rnn`.

use crate::ExportError;
use crate::graph::Attribute::Ints;
use crate::graph::GraphBuilder;
use crate::layers::{Cell, embedding, input_ids, linear, logits, recurrent_layer};
use models::rnn::RnnConfig;

/// ONNX calls an RNN's only gate i.
const CELL: Cell = Cell { op: "RNN", module: "lstm", gates: &[('i', 0)], states: &["h"], attributes: &[] };

pub(crate) fn lower(config: &RnnConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    // ONNX's RNN has time on the first axis. Ids and logits are the narrowest tensors, so it is those that are turned.
    let ids = input_ids(g); // [batch, seq]
    let turned = g.node("Transpose", &[&ids], &[("perm", Ints(&[1, 0]))]); // [seq, batch]
    let mut x = embedding(g, "encoder", &turned, [vocab, hidden])?; // [seq, batch, hidden]
    for layer in 0..config.num_layers {
        x = recurrent_layer(g, &CELL, layer, &ids, &x, hidden)?;
    }
    let scores = linear(g, "decoder", &x, [hidden, vocab])?; // [seq, batch, vocab]
    let scores = g.node("Transpose", &[&scores], &[("perm", Ints(&[1, 0, 2]))]); // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}
