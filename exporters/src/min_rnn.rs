//! The model around the recurrences of minimal RNNs; the counterpart of `models::layers::min_rnn`.

use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{affine, embedding, input_ids, layer_norm, linear, logits, mlp};
use models::layers::min_rnn::{EXPANSION, LAYER_NORM_EPSILON};

/// The whole graph. `gates` makes two values of `[batch, seq, hidden]`: what is kept of the state, and what is added,
/// `[batch, seq, 2·hidden]`.
pub(crate) fn lower(
    [hidden, layers]: [usize; 2],
    vocab: usize,
    g: &mut GraphBuilder<'_>,
    mut gates: impl FnMut(&mut GraphBuilder<'_>, &Value) -> Result<[Value; 2], ExportError>,
) -> Result<(), ExportError> {
    let ids = input_ids(g); // [batch, seq]
    let mut x = embedding(g, "encoder", &ids, [vocab, hidden])?; // [batch, seq, hidden]
    for i in 0..layers {
        x = g.scope(format!("blocks.{i}"), |g| -> Result<_, ExportError> {
            let normal = layer_norm(g, "norm_1", &x, hidden, LAYER_NORM_EPSILON)?;
            let y = g.scope("mixer", |g| {
                let (name, channels) = (format!("h_l{i}"), EXPANSION * hidden);
                let states = recurrence(g, &name, channels, &ids, |g| gates(g, &normal))?;
                affine(g, "linear_out", &states, [channels, hidden])
            })?;
            let x = g.add(&x, &y);
            let normal = layer_norm(g, "norm_2", &x, hidden, LAYER_NORM_EPSILON)?;
            let y = mlp(g, "mlp", &normal, hidden)?;
            Ok(g.add(&x, &y))
        })?;
    }
    let x = layer_norm(g, "norm_f", &x, hidden, LAYER_NORM_EPSILON)?;
    let scores = linear(g, "decoder", &x, [hidden, vocab])?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// All states of h_t = kept_t⊙h_{t−1} + added_t, `[batch, seq, channels]`, from and to the state called `name`
/// `[batch, channels]`. `gates` makes both.
pub(crate) fn recurrence(
    g: &mut GraphBuilder<'_>,
    name: &str,
    channels: usize,
    ids: &Value,
    gates: impl FnOnce(&mut GraphBuilder<'_>) -> Result<[Value; 2], ExportError>,
) -> Result<Value, ExportError> {
    let (doc, dims) = ("the state of every channel", [channels]);
    let before = g.state_input(name, doc, ids, &dims);
    let gates = gates(g)?;
    let (states, after) = g.scope("scan", |g| -> Result<_, ExportError> {
        let [kept, added] = gates.map(|x| g.transpose(&x, &[1, 0, 2]));
        let ([after], [states]) = g.scan([&before], [&kept, &added], |g, [h], [kept, added]| {
            let h = g.mul(&kept, &h);
            let h = g.add(&h, &added);
            // the body of a loop must not give the same tensor twice
            let slice = g.node("Identity", &[&h], &[]);
            Ok(([h], [slice]))
        })?;
        Ok((g.transpose(&states, &[1, 0, 2]), after))
    })?;
    g.state_output(name, doc, after, &dims);
    Ok(states)
}
