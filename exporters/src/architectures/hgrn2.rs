//! HGRN2: blocks of a matrix memory that writes as much as it forgets, and a gated MLP. The counterpart of `models::hgrn2`.

use crate::ExportError;
use crate::fla::{self, projection};
use crate::graph::{GraphBuilder, Value};
use crate::layers::{linear, rms_norm, silu};
use crate::linear_attention::Memory;
use models::hgrn2::{Hgrn2Config, OUTPUT_EPSILON};

pub(crate) fn lower(config: &Hgrn2Config, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let bounds = match config.lower_bound {
        true => {
            let shape = [config.num_layers, config.hidden_size];
            lower_bounds(&g.scope("model", |g| g.weight("lower_bounds", &shape))?.values, config.hidden_size)
        }
        false => vec![],
    };
    fla::lower(config.sizes(), vocab, g, |g, layer, ids, x| {
        attention(g, config, layer, bounds.get(layer).filter(|_| layer > 0), ids, x)
    })
}

/// The bounds of every layer from the parameters `[layers, hidden]`.
fn lower_bounds(values: &[f32], hidden: usize) -> Vec<Vec<f64>> {
    let shares = |channel: usize| {
        let column = values.iter().skip(channel).step_by(hidden).map(|&value| f64::from(value));
        let largest = column.clone().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = column.clone().map(|value| (value - largest).exp()).sum();
        column.map(move |value| (value - largest).exp() / total)
    };
    let layer = |layer: usize| (0..hidden).map(|channel| shares(channel).skip(1).take(layer).sum()).collect();
    (0..values.len() / hidden).map(layer).collect()
}

/// `[batch, seq, hidden]` → the same shape, with the states of block `layer`.
pub(super) fn attention(
    g: &mut GraphBuilder<'_>,
    config: &Hgrn2Config,
    layer: usize,
    bound: Option<&Vec<f64>>,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, size) = (config.hidden_size, config.expand_ratio);
    let (conv, sizes) = ([layer, config.conv_kernel], [hidden, hidden]);
    let q = projection(g, "q", conv, ids, x, sizes, false)?; // [batch, seq, hidden]
    let f = projection(g, "f", conv, ids, x, sizes, false)?;
    let i = projection(g, "i", conv, ids, x, sizes, false)?;
    let kept = g.sigmoid(&f);
    let minus = g.neg(&f);
    let written = g.sigmoid(&minus);
    let (decay, k) = match bound {
        Some(bound) => {
            let vector = |g: &mut GraphBuilder<'_>, name: &str, of: fn(f64) -> f64| {
                g.constant(name, &[hidden], &bound.iter().map(|&b| of(b) as f32).collect::<Vec<f32>>())
            };
            let (bound, rest) = (vector(g, "bound", |b| b), vector(g, "rest", |b| 1.0 - b));
            let kept = g.mul(&kept, &rest);
            (g.add(&kept, &bound), g.mul(&written, &rest))
        }
        None => (kept, written),
    };
    // A gate that is shut for good has no logarithm.
    let tiny = g.scalar("tiny", f32::MIN_POSITIVE);
    let decay = g.node("Max", &[&decay, &tiny], &[]);
    let log_decay = g.node("Log", &[&decay], &[]);
    let q = silu(g, &q);
    let scale = g.scalar("scale", (1.0 / (size as f64).sqrt()) as f32);
    let q = g.mul(&q, &scale);
    let memory = Memory { heads: hidden / size, key: size, value: size };
    let y = memory.lower(g, &format!("memory_l{layer}"), ids, [&q, &k, &i, &log_decay])?;
    let y = rms_norm(g, "g_norm", &y, hidden, OUTPUT_EPSILON)?;
    linear(g, "o_proj", &y, [hidden, hidden])
}
