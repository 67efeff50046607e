//! Gated linear attention: blocks of a matrix memory and a gated MLP. The counterpart of `models::gla`.

use crate::ExportError;
use crate::fla::{self, head_norm, projection, repeat_heads};
use crate::graph::{GraphBuilder, Value};
use crate::layers::{affine, linear, silu, softplus};
use crate::linear_attention::Memory;
use models::gla::GlaConfig;

pub(crate) fn lower(config: &GlaConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    fla::lower(config.sizes(), vocab, g, |g, layer, ids, x| attention(g, config, layer, ids, x))
}

/// `[batch, seq, hidden]` → the same shape, with the states of block `layer`.
pub(super) fn attention(
    g: &mut GraphBuilder<'_>,
    config: &GlaConfig,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, heads, kv_heads) = (config.hidden_size, config.num_heads, config.kv_heads());
    let memory = Memory { heads, key: config.key_size(), value: config.value_size() };
    let (keys, values) = (kv_heads * memory.key, kv_heads * memory.value);
    let conv = [layer, config.conv_kernel];
    let q = projection(g, "q", conv, ids, x, [hidden, heads * memory.key], true)?; // [batch, seq, heads·key]
    let k = projection(g, "k", conv, ids, x, [hidden, keys], true)?;
    let v = projection(g, "v", conv, ids, x, [hidden, values], true)?;
    let log_decay = g.scope("gk_proj", |g| {
        let low = linear(g, "0", x, [hidden, config.gate_low_rank])?;
        affine(g, "1", &low, [config.gate_low_rank, keys])
    })?;
    let log_decay = g.neg(&log_decay);
    let log_decay = softplus(g, &log_decay); // −log σ
    let normalizer = g.scalar("normalizer", -(1.0 / config.gate_logit_normalizer) as f32);
    let log_decay = g.mul(&log_decay, &normalizer);
    let scale = g.scalar("scale", (1.0 / (memory.key as f64).sqrt()) as f32);
    let q = g.mul(&q, &scale);

    let times = heads / kv_heads;
    let k = repeat_heads(g, "k_heads", &k, [kv_heads, times, memory.key]);
    let v = repeat_heads(g, "v_heads", &v, [kv_heads, times, memory.value]);
    let log_decay = repeat_heads(g, "decay_heads", &log_decay, [kv_heads, times, memory.key]);
    let y = memory.lower(g, &format!("memory_l{layer}"), ids, [&q, &k, &v, &log_decay])?;

    let sizes = [heads, memory.value];
    let y = if config.output_gate {
        let y = head_norm(g, "g_norm_swish_gate", &y, sizes, config.norm_epsilon)?;
        let gate = linear(g, "g_proj", x, [hidden, heads * memory.value])?;
        let gate = silu(g, &gate);
        g.mul(&y, &gate)
    } else {
        head_norm(g, "g_norm", &y, sizes, config.norm_epsilon)?
    };
    linear(g, "o_proj", &y, [heads * memory.value, hidden])
}
