//! minGRU: blocks of a GRU that is linear in its state and of an MLP. The counterpart of `models::mingru`.

use crate::graph::GraphBuilder;
use crate::layers::affine;
use crate::{ExportError, min_rnn};
use models::layers::min_rnn::EXPANSION;
use models::mingru::MinGruConfig;

/// z = σ(W_z·x), h_t = (1 − z_t)·h_{t−1} + z_t·(W_h·x_t), from and to the state `h_l<layer>` `[batch, 2·hidden]`.
pub(crate) fn lower(config: &MinGruConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let sizes = [config.hidden_size, EXPANSION * config.hidden_size];
    min_rnn::lower([config.hidden_size, config.num_layers], vocab, g, |g, x| {
        let z = affine(g, "linear_z", x, sizes)?;
        let z = g.sigmoid(&z); // [batch, seq, 2·hidden]
        let candidate = affine(g, "linear_h", x, sizes)?;
        let one = g.scalar("one", 1f32);
        Ok([g.sub(&one, &z), g.mul(&z, &candidate)])
    })
}
