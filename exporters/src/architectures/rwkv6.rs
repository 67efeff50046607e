//! RWKV-6 "Finch": blocks of a time mix and a channel mix. The counterpart of `models::rwkv6`.

use super::rwkv::{Decay, Sizes, group_norm, mixture, normalized_embedding, product, shift, wkv};
use crate::ExportError;
use crate::graph::Attribute::Int;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{input_ids, layer_norm, linear, logits, silu};
use models::rwkv::{LAYER_NORM_EPSILON, ffn_size};
use models::rwkv6::{DECAY_RANK, MIX_RANK, MIXES, Rwkv6Config};

pub(crate) fn lower(config: &Rwkv6Config, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let sizes = Sizes { hidden, head_size: config.head_size };
    let ids = input_ids(g); // [batch, seq]
    let (mut x, _) = normalized_embedding(g, &ids, [vocab, hidden])?; // [batch, seq, hidden]
    for i in 0..config.num_layers {
        x = g.scope(format!("blocks.{i}"), |g| block(g, sizes, i, &ids, x))?;
    }
    let x = layer_norm(g, "ln_out", &x, hidden, LAYER_NORM_EPSILON)?;
    let scores = linear(g, "head", &x, [hidden, vocab])?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

fn block(g: &mut GraphBuilder<'_>, sizes: Sizes, layer: usize, ids: &Value, x: Value) -> Result<Value, ExportError> {
    let hidden = sizes.hidden;
    let normal = layer_norm(g, "ln1", &x, hidden, LAYER_NORM_EPSILON)?;
    let y = g.scope("att", |g| time_mix(g, sizes, layer, ids, &normal))?;
    let x = g.add(&x, &y);
    let normal = layer_norm(g, "ln2", &x, hidden, LAYER_NORM_EPSILON)?;
    let y = g.scope("ffn", |g| channel_mix(g, hidden, layer, ids, &normal))?;
    Ok(g.add(&x, &y))
}

fn time_mix(
    g: &mut GraphBuilder<'_>,
    sizes: Sizes,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let hidden = sizes.hidden;
    let predecessor = shift(g, &format!("att_shift_l{layer}"), ids, x, hidden);
    let d = g.sub(&predecessor, x);
    let [w, k, v, r, gate] = mixtures(g, x, &d, hidden)?;

    let w = product(g, "time_decay_w1", &w, &[hidden, DECAY_RANK])?;
    let w = g.node("Tanh", &[&w], &[]);
    let w = product(g, "time_decay_w2", &w, &[DECAY_RANK, hidden])?;
    let w0 = g.parameter("time_decay", &[1, 1, hidden])?;
    let w = g.add(&w, &w0);
    let w = g.exp(&w);
    let log_decay = g.neg(&w);

    let r = linear(g, "receptance", &r, [hidden, hidden])?;
    let k = linear(g, "key", &k, [hidden, hidden])?;
    let v = linear(g, "value", &v, [hidden, hidden])?;
    let bonus = g.parameter("time_faaaa", &[sizes.heads(), sizes.head_size])?;
    let y = wkv(g, &format!("wkv_l{layer}"), ids, [&r, &k, &v], Decay::PerStep(&log_decay), &bonus, sizes)?;
    let y = group_norm(g, "ln_x", &y, sizes)?;
    let gate = linear(g, "gate", &gate, [hidden, hidden])?;
    let gate = silu(g, &gate);
    let y = g.mul(&y, &gate);
    linear(g, "output", &y, [hidden, hidden])
}

/// x + d·(μ_j + m_j) for j = w, k, v, r, g, where m_j is of low rank in x + d·μ_x; all five at once,
/// `[5, batch, seq, …]`.
fn mixtures(g: &mut GraphBuilder<'_>, x: &Value, d: &Value, hidden: usize) -> Result<[Value; MIXES], ExportError> {
    let base = mixture(g, "time_maa_x", x, d, hidden)?;
    let m = product(g, "time_maa_w1", &base, &[hidden, MIXES * MIX_RANK])?;
    let m = g.node("Tanh", &[&m], &[]);
    let apart = g.list("apart", &[0, 0, MIXES as i64, MIX_RANK as i64]);
    let m = g.reshape(&m, &apart);
    let m = g.transpose(&m, &[2, 0, 1, 3]); // [5, batch, seq, 32]
    let w2 = g.weight("time_maa_w2", &[MIXES, MIX_RANK, hidden])?;
    let w2 = g.factor("time_maa_w2", &[MIXES, 1, MIX_RANK, hidden], &w2.values);
    let m = g.narrow(&m);
    let m = g.matmul(&m, &w2); // [5, batch, seq, hidden]
    let m = g.widen(&m);
    let mut parts: Vec<f32> = Vec::new();
    for name in ["time_maa_w", "time_maa_k", "time_maa_v", "time_maa_r", "time_maa_g"] {
        parts.extend(&g.weight(name, &[1, 1, hidden])?.values);
    }
    let parts = g.constant("time_maa.wkvrg", &[MIXES, 1, 1, hidden], &parts);
    let m = g.add(&m, &parts);
    let m = g.mul(&m, d);
    let m = g.add(&m, x);
    let first_axis = g.list("mixture_axis", &[0]);
    let mixed: [Value; MIXES] = g.nodes("Split", &[&m], &[("axis", Int(0)), ("num_outputs", Int(MIXES as i64))]);
    Ok(mixed.map(|m| g.squeeze(&m, &first_axis)))
}

fn channel_mix(
    g: &mut GraphBuilder<'_>,
    hidden: usize,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let predecessor = shift(g, &format!("ffn_shift_l{layer}"), ids, x, hidden);
    let d = g.sub(&predecessor, x);
    let k = mixture(g, "time_maa_k", x, &d, hidden)?;
    let r = mixture(g, "time_maa_r", x, &d, hidden)?;
    let k = linear(g, "key", &k, [hidden, ffn_size(hidden)])?;
    let k = g.relu(&k);
    let k = g.mul(&k, &k);
    let value = linear(g, "value", &k, [ffn_size(hidden), hidden])?;
    let r = linear(g, "receptance", &r, [hidden, hidden])?;
    let r = g.sigmoid(&r);
    Ok(g.mul(&r, &value))
}
