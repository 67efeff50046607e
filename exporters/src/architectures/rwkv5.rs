//! RWKV-5 "Eagle": blocks of a time mix and a channel mix. The counterpart of `models::rwkv5`.

use super::rwkv::{Decay, Sizes, group_norm, mixture, normalized_embedding, shift, wkv};
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{
    input_ids, is_tabular, layer_norm, linear, logits, lookup, narrowed, normalized_rows, row_products, silu,
};
use models::rwkv::{LAYER_NORM_EPSILON, ffn_size};
use models::rwkv5::Rwkv5Config;

pub(crate) fn lower(config: &Rwkv5Config, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let sizes = Sizes { hidden, head_size: config.head_size };
    let ids = input_ids(g); // [batch, seq]
    let (mut x, rows) = normalized_embedding(g, &ids, [vocab, hidden])?; // [batch, seq, hidden]
    for i in 0..config.num_layers {
        let rows = Some(&rows[..]).filter(|_| i == 0 && is_tabular(vocab, hidden));
        x = g.scope(format!("blocks.{i}"), |g| block(g, sizes, i, &ids, x, rows))?;
    }
    let x = layer_norm(g, "ln_out", &x, hidden, LAYER_NORM_EPSILON)?;
    let scores = linear(g, "head", &x, [hidden, vocab])?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// `rows` are the possible inputs of the block, one row per token of the vocabulary, where there are that few.
fn block(
    g: &mut GraphBuilder<'_>,
    sizes: Sizes,
    layer: usize,
    ids: &Value,
    x: Value,
    rows: Option<&[f64]>,
) -> Result<Value, ExportError> {
    let hidden = sizes.hidden;
    let projections = match rows {
        Some(rows) => {
            let normal = g.scope("ln1", |g| normalized_rows(g, rows, hidden, LAYER_NORM_EPSILON))?;
            g.scope("att", |g| looked_up(g, ids, &normal, hidden))?
        }
        None => {
            let normal = layer_norm(g, "ln1", &x, hidden, LAYER_NORM_EPSILON)?;
            g.scope("att", |g| projected(g, layer, ids, &normal, hidden))?
        }
    };
    let y = g.scope("att", |g| time_mix(g, sizes, layer, ids, projections))?;
    let x = g.add(&x, &y);
    let normal = layer_norm(g, "ln2", &x, hidden, LAYER_NORM_EPSILON)?;
    let y = g.scope("ffn", |g| channel_mix(g, hidden, layer, ids, &normal))?;
    Ok(g.add(&x, &y))
}

/// The matrices of the time mix and what their inputs are mixed by.
const PROJECTIONS: [(&str, &str); 4] =
    [("receptance", "time_mix_r"), ("key", "time_mix_k"), ("value", "time_mix_v"), ("gate", "time_mix_g")];

/// The four projections of mixtures of every token with the one before, `[batch, seq, hidden]` each.
fn projected(
    g: &mut GraphBuilder<'_>,
    layer: usize,
    ids: &Value,
    x: &Value,
    hidden: usize,
) -> Result<[Value; 4], ExportError> {
    let predecessor = shift(g, &att_shift(layer), ids, x, hidden);
    let d = g.sub(x, &predecessor);
    let mut all = [const { Value::none() }; 4];
    for (value, (matrix, mix)) in all.iter_mut().zip(PROJECTIONS) {
        let mixed = mixture(g, mix, &predecessor, &d, hidden)?;
        *value = linear(g, matrix, &mixed, [hidden, hidden])?;
    }
    Ok(all)
}

fn att_shift(layer: usize) -> String {
    format!("att_shift_l{layer}")
}

/// The same in the first layer, where x has only as many values as the vocabulary has tokens, its `rows`:
/// W·(μ⊙x_t + (1−μ)⊙x_{t−1}) is a row of a table of all W·(μ⊙x) and one of a table of all W·((1−μ)⊙x). For the first
/// token's predecessor, the state, every sequence has a row of its own at the end of the second table.
fn looked_up(g: &mut GraphBuilder<'_>, ids: &Value, rows: &[f64], hidden: usize) -> Result<[Value; 4], ExportError> {
    let (name, vocab) = (att_shift(0), rows.len() / hidden);
    let doc = "the last token's input to the mix";
    let before = g.state_input(&name, doc, ids, &[1, hidden]);
    let previous = g.scope("shift", |g| {
        let (zero, last, time) = (g.list("zero", &[0]), g.list("last", &[-1]), g.list("time_axis", &[1]));
        let end = g.list("end", &[i64::MAX]);
        let final_id = g.slice(ids, [&last, &end], &time); // [batch, 1]
        let table = g.constant("rows", &[vocab, hidden], &narrowed(rows));
        let after = g.gather(&table, &final_id, 0);
        g.state_output(&name, doc, after, &[1, hidden]);

        let shape = g.node("Shape", &[ids], &[]);
        let (first, one) = (g.scalar("batch_axis", 0i64), g.scalar("step", 1i64));
        let own = g.scalar("own_rows", vocab as i64);
        let batch = g.node("Gather", &[&shape, &first], &[]);
        let behind = g.add(&batch, &own);
        let own = g.node("Range", &[&own, &behind, &one], &[]);
        let own = g.unsqueeze(&own, &time); // [batch, 1]
        let earlier = g.slice(ids, [&zero, &last], &time); // [batch, seq − 1]
        g.concat(&[&own, &earlier], 1)
    });
    let mut all = [const { Value::none() }; 4];
    for (value, (matrix, mix)) in all.iter_mut().zip(PROJECTIONS) {
        let mix = g.weight(mix, &[1, 1, hidden])?;
        *value = g.scope(matrix, |g| -> Result<_, ExportError> {
            let weight = g.weight("weight", &[hidden, hidden])?;
            let scaled = |by: fn(f64) -> f64| -> Vec<f64> {
                let column = |i| weight.values.iter().skip(i).step_by(hidden);
                let scaled = |(i, &m)| column(i).map(move |&w| f64::from(w) * by(f64::from(m)));
                mix.values.iter().enumerate().flat_map(scaled).collect() // [in, out]
            };
            let (of_now, of_before) = (scaled(|m| m), scaled(|m| 1.0 - m));
            let table = |matrix: &[f64]| narrowed(&row_products(rows, matrix, [hidden, hidden]));
            let now = g.factor("table_now", &[vocab, hidden], &table(&of_now));
            let earlier = g.factor("table_before", &[vocab, hidden], &table(&of_before));
            let of_before = g.factor("weight_before.T", &[hidden, hidden], &narrowed(&of_before));

            let state = g.narrow(&before);
            let own = g.matmul(&state, &of_before); // [batch, 1, hidden]
            let time = g.list("time_axis", &[1]);
            let own = g.squeeze(&own, &time);
            let earlier = g.concat(&[&earlier, &own], 0); // [vocab + batch, hidden]
            let (now, earlier) = (lookup(g, &now, ids), lookup(g, &earlier, &previous));
            Ok(g.add(&now, &earlier))
        })?;
    }
    Ok(all)
}

fn time_mix(
    g: &mut GraphBuilder<'_>,
    sizes: Sizes,
    layer: usize,
    ids: &Value,
    [r, k, v, gate]: [Value; 4],
) -> Result<Value, ExportError> {
    let hidden = sizes.hidden;
    let heads = [sizes.heads(), sizes.head_size];
    let w = g.weight("time_decay", &heads)?;
    let log_decay: Vec<f32> = w.values.iter().map(|w| -w.exp()).collect();
    let bonus = g.parameter("time_faaaa", &heads)?;
    let y = wkv(g, &format!("wkv_l{layer}"), ids, [&r, &k, &v], Decay::Steady(&log_decay), &bonus, sizes)?;
    let y = group_norm(g, "ln_x", &y, sizes)?;
    let gate = silu(g, &gate);
    let y = g.mul(&y, &gate);
    linear(g, "output", &y, [hidden, hidden])
}

fn channel_mix(
    g: &mut GraphBuilder<'_>,
    hidden: usize,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let predecessor = shift(g, &format!("ffn_shift_l{layer}"), ids, x, hidden);
    let d = g.sub(x, &predecessor);
    let k = mixture(g, "time_mix_k", &predecessor, &d, hidden)?;
    let r = mixture(g, "time_mix_r", &predecessor, &d, hidden)?;
    let k = linear(g, "key", &k, [hidden, ffn_size(hidden)])?;
    let k = g.relu(&k);
    let k = g.mul(&k, &k);
    let value = linear(g, "value", &k, [ffn_size(hidden), hidden])?;
    let r = linear(g, "receptance", &r, [hidden, hidden])?;
    let r = g.sigmoid(&r);
    Ok(g.mul(&r, &value))
}
