//! GRU: embedding → stacked GRU layers → decoder. The counterpart of `models::gru`.

use crate::ExportError;
use crate::graph::Attribute::Int;
use crate::graph::GraphBuilder;
use crate::layers::{Cell, input_ids, linear, logits, recurrent_layers};
use models::gru::GruConfig;

/// PyTorch stacks r, z, n; ONNX stacks z, r, h, and its h is PyTorch's n. PyTorch's reset gate acts on the product with
/// the state, which ONNX calls linear before reset.
const CELL: Cell = Cell {
    op: "GRU",
    module: "gru",
    gates: &[('z', 1), ('r', 0), ('h', 2)],
    states: &["h"],
    attributes: &[("linear_before_reset", Int(1))],
};

pub(crate) fn lower(config: &GruConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    // ONNX's GRU has time on the first axis. Ids and logits are the narrowest tensors, so those are transposed.
    let ids = input_ids(g); // [batch, seq]
    let turned = g.transpose(&ids, &[1, 0]); // [seq, batch]
    let sizes = [vocab, hidden, config.num_layers];
    let x = recurrent_layers(g, &CELL, [&ids, &turned], sizes, false)?; // [seq, batch, hidden]
    let scores = linear(g, "decoder", &x, [hidden, vocab])?; // [seq, batch, vocab]
    let scores = g.transpose(&scores, &[1, 0, 2]); // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}
