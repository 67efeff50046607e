//! LSTM: embedding → stacked LSTM layers → decoder. The counterpart of `models::lstm`.

use crate::ExportError;
use crate::graph::Attribute::Ints;
use crate::graph::GraphBuilder;
use crate::layers::{Gates, decoder, input_ids, logits, recurrent_layer, token_embedding};
use models::lstm::LstmConfig;

/// PyTorch stacks i, f, g, o; ONNX stacks i, o, f, c, and its c is PyTorch's g.
const GATES: &Gates = &[('i', 0), ('o', 3), ('f', 1), ('c', 2)];

pub(crate) fn lower(config: &LstmConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    // ONNX's LSTM has time on the first axis. Ids and logits are the narrowest tensors, so it is those that are turned.
    let ids = input_ids(g); // [batch, seq]
    let ids = g.node("Transpose", &[&ids], &[("perm", Ints(&[1, 0]))]); // [seq, batch]
    let mut x = token_embedding(g, "encoder", &ids, [vocab, hidden], config.freeze_null_embedding)?; // [seq, batch, hidden]
    for layer in 0..config.num_layers {
        x = recurrent_layer(g, "LSTM", GATES, layer, &x, hidden)?;
    }
    let scores = decoder(g, "decoder", &x, [hidden, vocab], config.tie_word_embeddings)?; // [seq, batch, vocab]
    let scores = g.node("Transpose", &[&scores], &[("perm", Ints(&[1, 0, 2]))]); // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}
