//! LSTM: embedding → stacked LSTM layers → decoder. The counterpart of `models::lstm`.

use crate::ExportError;
use crate::graph::Attribute::Ints;
use crate::graph::GraphBuilder;
use crate::layers::{Cell, embedding, input_ids, linear, logits, recurrent_layer};
use models::lstm::LstmConfig;

/// PyTorch stacks i, f, g, o; ONNX stacks i, o, f, c, and its c is PyTorch's g.
const CELL: Cell = Cell {
    op: "LSTM",
    module: "lstm",
    gates: &[('i', 0), ('o', 3), ('f', 1), ('c', 2)],
    states: &["h", "c"],
    attributes: &[],
};

pub(crate) fn lower(config: &LstmConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    // ONNX's LSTM has time on the first axis. Ids and logits are the narrowest tensors, so it is those that are turned.
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
