//! Gated DeltaNet and Gated DeltaProduct of flash-linear-attention: blocks of a memory that is decayed once and corrected
//! once or several times, and of a gated MLP. The counterpart of `models::gated_deltanet`.

use super::deltanet::{DeltaRule, Inputs, log_decay, unit};
use crate::ExportError;
use crate::fla::{self, head_norm, projection};
use crate::graph::{GraphBuilder, Value};
use crate::layers::{linear, silu};
use models::gated_deltanet::GatedDeltanetConfig;

pub(crate) fn lower(config: &GatedDeltanetConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    fla::lower(config.sizes(), vocab, g, |g, layer, ids, x| attention(g, config, layer, ids, x))
}

/// `[batch, seq, hidden]` → the same shape, with the states of block `layer`.
pub(super) fn attention(
    g: &mut GraphBuilder<'_>,
    config: &GatedDeltanetConfig,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, corrections) = (config.hidden_size, config.num_householder);
    let (heads, value_heads) = (config.num_heads, config.value_heads());
    let (key, value) = (config.head_size, config.value_size());
    let conv = [layer, config.conv_kernel];
    let branch = |g: &mut GraphBuilder<'_>, name, channels| -> Result<Value, ExportError> {
        let y = projection(g, name, conv, ids, x, [hidden, channels], true)?;
        Ok(if config.conv_kernel > 0 { y } else { silu(g, &y) })
    };
    let q = branch(g, "q", heads * key)?; // [batch, seq, heads·key]
    let k = branch(g, "k", corrections * heads * key)?;
    let v = branch(g, "v", corrections * value_heads * value)?;
    let step = linear(g, "b_proj", x, [hidden, corrections * value_heads])?;
    let step = g.sigmoid(&step);
    let largest_step = g.scalar("largest_step", config.largest_step() as f32);
    let step = g.mul(&step, &largest_step);
    let log_decay = if config.forget_gate { Some(log_decay(g, x, hidden, value_heads)?) } else { None };

    // A row per correction.
    let rows = if corrections == 1 { 0 } else { -1 };
    let joined = g.list("keys_joined", &[0, 0, (value_heads * key) as i64]);
    let [q, k] = [("unit_q", q, 0), ("unit_k", k, rows)].map(|(scope, x, rows)| {
        g.scope(scope, |g| {
            let apart = g.list("heads", &[0, rows, heads as i64, key as i64]);
            let x = g.reshape(&x, &apart);
            let x = unit(g, &x);
            let x = match value_heads / heads {
                1 => x,
                copies => {
                    let shared: Vec<i64> = (0..value_heads).map(|head| (head / copies) as i64).collect();
                    let shared = g.list("shared", &shared);
                    g.gather(&x, &shared, 2)
                }
            };
            g.reshape(&x, &joined) // [batch, seq or rows, value heads·key]
        })
    });
    let mut by_row = |x: Value, name: &str, channels: usize| {
        let shape = g.list(name, &[0, -1, channels as i64]);
        if corrections == 1 { x } else { g.reshape(&x, &shape) }
    };
    let v = by_row(v, "value_rows", value_heads * value);
    let step = by_row(step, "step_rows", value_heads);

    let (name, doc) = (format!("memory_l{layer}"), "the memory of every head, by key and value");
    let dims = [value_heads, key, value];
    let before = g.state_input(&name, doc, ids, &dims);
    let rule = DeltaRule { heads: value_heads, key, value, corrections, scale: 1.0 / (key as f64).sqrt() };
    let inputs = Inputs { q, k, v, step, log_decay };
    let (y, after) = g.scope("delta_rule", |g| rule.lower(g, &inputs, &before))?;
    g.state_output(&name, doc, after, &dims);

    let y = head_norm(g, "o_norm", &y, [value_heads, value], config.norm_epsilon)?;
    let y = if config.output_gate {
        let gate = linear(g, "g_proj", x, [hidden, value_heads * value])?;
        let gate = silu(g, &gate);
        g.mul(&y, &gate)
    } else {
        y
    };
    linear(g, "o_proj", &y, [value_heads * value, hidden])
}
