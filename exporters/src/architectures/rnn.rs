//! Elman RNN: embedding → stacked tanh layers → decoder. The counterpart of `models::rnn`.

use crate::ExportError;
use crate::graph::GraphBuilder;
use crate::layers::{Cell, decoder, input_ids, logits, recurrent_layers};
use models::rnn::RnnConfig;

/// ONNX calls an RNN's only gate i.
const CELL: Cell = Cell { op: "RNN", module: "lstm", gates: &[('i', 0)], states: &["h"], attributes: &[] };

pub(crate) fn lower(config: &RnnConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    // ONNX's RNN has time on the first axis. Ids and logits are the narrowest tensors, so those are transposed.
    let ids = input_ids(g); // [batch, seq]
    let turned = g.transpose(&ids, &[1, 0]); // [seq, batch]
    let sizes = [vocab, hidden, config.num_layers];
    let x = recurrent_layers(g, &CELL, [&ids, &turned], sizes, config.freeze_null_embedding)?; // [seq, batch, hidden]
    let tied = config.tie_word_embeddings.then_some("encoder");
    let scores = decoder(g, "decoder", &x, [hidden, vocab], tied)?; // [seq, batch, vocab]
    let scores = g.transpose(&scores, &[1, 0, 2]); // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}
