//! minGRU: blocks of a GRU that is linear in its state and of an MLP. The counterpart of `models::mingru`.

use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{affine, embedding, input_ids, layer_norm, linear, logits, mlp};
use models::mingru::{EXPANSION, LAYER_NORM_EPSILON, MinGruConfig};

pub(crate) fn lower(config: &MinGruConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let ids = input_ids(g); // [batch, seq]
    let mut x = embedding(g, "encoder", &ids, [vocab, hidden])?; // [batch, seq, hidden]
    for i in 0..config.num_layers {
        x = g.scope(format!("blocks.{i}"), |g| -> Result<_, ExportError> {
            let normal = layer_norm(g, "norm_1", &x, hidden, LAYER_NORM_EPSILON)?;
            let y = g.scope("mixer", |g| mixer(g, hidden, i, &ids, &normal))?;
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

/// z = σ(W_z·x), h_t = (1 − z_t)·h_{t−1} + z_t·(W_h·x_t), from and to the state `h_l<layer>` `[batch, 2·hidden]`.
fn mixer(g: &mut GraphBuilder<'_>, hidden: usize, layer: usize, ids: &Value, x: &Value) -> Result<Value, ExportError> {
    let channels = EXPANSION * hidden;
    let (name, doc, dims) = (format!("h_l{layer}"), "the state of every channel", [channels]);
    let before = g.state_input(&name, doc, ids, &dims);
    let z = affine(g, "linear_z", x, [hidden, channels])?;
    let z = g.sigmoid(&z); // [batch, seq, channels]
    let candidate = affine(g, "linear_h", x, [hidden, channels])?;
    let (states, after) = g.scope("scan", |g| -> Result<_, ExportError> {
        let one = g.scalar("one", 1f32);
        let kept = g.sub(&one, &z);
        let added = g.mul(&z, &candidate);
        let [kept, added] = [kept, added].map(|x| g.transpose(&x, &[1, 0, 2]));
        let ([after], [states]) = g.scan([&before], [&kept, &added], |g, [h], [kept, added]| {
            let h = g.mul(&kept, &h);
            let h = g.add(&h, &added);
            // the body of a loop must not give the same tensor twice
            let slice = g.node("Identity", &[&h], &[]);
            Ok(([h], [slice]))
        })?;
        Ok((g.transpose(&states, &[1, 0, 2]), after))
    })?;
    g.state_output(&name, doc, after, &dims);
    affine(g, "linear_out", &states, [channels, hidden])
}
