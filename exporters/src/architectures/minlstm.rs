//! minLSTM: blocks of an LSTM that is linear in its state and of an MLP. The counterpart of `models::minlstm`.

use crate::graph::GraphBuilder;
use crate::layers::{affine, softplus};
use crate::{ExportError, min_rnn};
use models::layers::min_rnn::EXPANSION;
use models::minlstm::MinLstmConfig;

/// f = σ(W_f·x), i = σ(W_i·x), h_t = (f_t·h_{t−1} + i_t·(W_h·x_t))/(f_t + i_t), from and to the state `h_l<layer>`
/// `[batch, 2·hidden]`.
pub(crate) fn lower(config: &MinLstmConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let sizes = [config.hidden_size, EXPANSION * config.hidden_size];
    min_rnn::lower([config.hidden_size, config.num_layers], vocab, g, |g, x| {
        // −log σ(…) of both gates
        let [f, i] = [affine(g, "linear_f", x, sizes)?, affine(g, "linear_i", x, sizes)?].map(|gate| {
            let gate = g.neg(&gate);
            softplus(g, &gate) // [batch, seq, 2·hidden]
        });
        let difference = g.sub(&i, &f);
        let kept = g.sigmoid(&difference);
        let difference = g.neg(&difference);
        let written = g.sigmoid(&difference);
        let candidate = affine(g, "linear_h", x, sizes)?;
        Ok([kept, g.mul(&written, &candidate)])
    })
}
