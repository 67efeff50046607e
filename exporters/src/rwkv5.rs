//! RWKV-5 "Eagle": blocks of a time mix and a channel mix. The counterpart of `models::rwkv5`.

use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{embedding, input_ids, layer_norm, linear, logits, silu};
use crate::rwkv::{Decay, Sizes, group_norm, mixture, shift, wkv};
use models::rwkv::{LAYER_NORM_EPSILON, ffn_size};
use models::rwkv5::Rwkv5Config;

pub(crate) fn lower(config: &Rwkv5Config, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let sizes = Sizes { hidden, head_size: config.head_size };
    let ids = input_ids(g); // [batch, seq]
    let mut x = embedding(g, "emb", &ids, [vocab, hidden])?; // [batch, seq, hidden]
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
    let x = if layer == 0 { layer_norm(g, "ln0", &x, hidden, LAYER_NORM_EPSILON)? } else { x };
    let normal = layer_norm(g, "ln1", &x, hidden, LAYER_NORM_EPSILON)?;
    let y = g.scope("att", |g| time_mix(g, sizes, layer, ids, &normal))?;
    let x = g.node("Add", &[&x, &y], &[]);
    let normal = layer_norm(g, "ln2", &x, hidden, LAYER_NORM_EPSILON)?;
    let y = g.scope("ffn", |g| channel_mix(g, hidden, layer, ids, &normal))?;
    Ok(g.node("Add", &[&x, &y], &[]))
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
    let d = g.node("Sub", &[x, &predecessor], &[]);
    let mixed = |g: &mut GraphBuilder<'_>, name| mixture(g, name, &predecessor, &d, hidden);
    let (k, v) = (mixed(g, "time_mix_k")?, mixed(g, "time_mix_v")?);
    let (r, gate) = (mixed(g, "time_mix_r")?, mixed(g, "time_mix_g")?);

    let r = linear(g, "receptance", &r, [hidden, hidden])?;
    let k = linear(g, "key", &k, [hidden, hidden])?;
    let v = linear(g, "value", &v, [hidden, hidden])?;
    let heads = [sizes.heads(), sizes.head_size];
    let w = g.weight("time_decay", &heads)?;
    let log_decay: Vec<f32> = w.values.iter().map(|w| -w.exp()).collect();
    let bonus = g.parameter("time_faaaa", &heads)?;
    let y = wkv(g, &format!("wkv_l{layer}"), ids, [&r, &k, &v], Decay::Steady(&log_decay), &bonus, sizes)?;
    let y = group_norm(g, "ln_x", &y, sizes)?;
    let gate = linear(g, "gate", &gate, [hidden, hidden])?;
    let gate = silu(g, &gate);
    let y = g.node("Mul", &[&y, &gate], &[]);
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
    let d = g.node("Sub", &[x, &predecessor], &[]);
    let k = mixture(g, "time_mix_k", &predecessor, &d, hidden)?;
    let r = mixture(g, "time_mix_r", &predecessor, &d, hidden)?;
    let k = linear(g, "key", &k, [hidden, ffn_size(hidden)])?;
    let k = g.node("Relu", &[&k], &[]);
    let k = g.node("Mul", &[&k, &k], &[]);
    let value = linear(g, "value", &k, [ffn_size(hidden), hidden])?;
    let r = linear(g, "receptance", &r, [hidden, hidden])?;
    let r = g.node("Sigmoid", &[&r], &[]);
    Ok(g.node("Mul", &[&r, &value], &[]))
}
