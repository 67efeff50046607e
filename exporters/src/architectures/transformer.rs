//! Transformer: pre-norm or post-norm blocks with a ReLU MLP. The counterpart of `models::transformer`.

use crate::ExportError;
use crate::attention::{Attention, Visible};
use crate::graph::Attribute::Int;
use crate::graph::{BATCH, GraphBuilder, SEQ, Value};
use crate::layers::{
    conv1d, decoder, input_ids, is_tabular, layer_norm, logits, lookup, normalized_rows, row_products, token_embedding,
    token_table,
};
use crate::onnx::tensor_proto::DataType;
use crate::positions::{self, Places, Score};
use models::transformer::TransformerConfig;

/// The input of looped models.
const ITERATIONS: &str = "iterations";

pub(crate) fn lower(config: &TransformerConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let ids = input_ids(g); // [batch, seq]
    let attention_mask =
        g.input("attention_mask", "0 at tokens that attention must not see", DataType::Int64, &[BATCH, SEQ]);
    let iterations =
        (config.iterations > 0).then(|| g.input(ITERATIONS, "how often the blocks are applied", DataType::Int64, &[]));
    let places = Places { ids: ids.clone(), positions: positions::input(g, config) };
    let is_shared = !config.positional_embedding.per_layer();
    let score = if is_shared { positions::score(g, config, &places)? } else { Score::Nothing };
    let visible = Visible {
        identity: config.must_attend_to_identity,
        causal: config.causal,
        windows: config.attention_windows.clone(),
    };
    let attend = Attention::new(g, &ids, &attention_mask, visible, score);
    let width = config.embedding_size();
    let x = token_embedding(g, "wte", &ids, [vocab, width], config.freeze_null_embedding)?; // [batch, seq, width]
    let x = match config.embedding_scale() {
        Some(scale) => {
            let scale = g.scalar("embedding_scale", scale as f32);
            g.mul(&x, &scale)
        }
        None => x,
    };
    let placed = positions::embed(g, config, &x, &places.positions)?; // [batch, seq, hidden]
    // Without positions in it, the first block's input has as many values as there are tokens.
    let is_plain = config.norm_first && !config.scale_embeddings && config.iterations == 0;
    let rows = if placed.is_none() && is_plain && is_tabular(vocab, hidden) {
        let rows = g.scope("wte", |g| token_table(g, [vocab, width], config.freeze_null_embedding))?;
        Some(rows.into_iter().map(f64::from).collect::<Vec<_>>())
    } else {
        None
    };
    let x = placed.unwrap_or(x);
    let blocks = |g: &mut GraphBuilder<'_>, mut x: Value| -> Result<Value, ExportError> {
        for i in 0..config.num_layers {
            let rows = rows.as_deref().filter(|_| i == 0);
            let input = rows.map(|rows| (&ids, rows));
            x = g.scope(format!("h.{i}"), |g| block(g, config, i, x, input, (&attend, &places)))?;
        }
        Ok(x)
    };
    let x = match iterations {
        None => blocks(g, x)?,
        Some(iterations) if config.input_injection => {
            let nothing = g.sub(&x, &x);
            g.repeat(&iterations, &nothing, |g, state| {
                let x = g.add(&state, &x);
                blocks(g, x)
            })?
        }
        Some(iterations) => g.repeat(&iterations, &x, blocks)?,
    };
    let x = if config.norm_first { layer_norm(g, "ln_f", &x, hidden, config.layer_norm_epsilon)? } else { x };
    let tied = config.tie_word_embeddings.then_some("wte");
    let scores = decoder(g, "lm_head", &x, [hidden, vocab], tied)?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// `input`: ids and, one row per token of the vocabulary, the vectors that `x` consists of, if there are no others.
fn block(
    g: &mut GraphBuilder<'_>,
    config: &TransformerConfig,
    layer: usize,
    x: Value,
    input: Option<(&Value, &[f64])>,
    (attend, places): (&Attention, &Places),
) -> Result<Value, ExportError> {
    let (hidden, epsilon) = (config.hidden_size, config.layer_norm_epsilon);
    let scale = config.attention_scale(layer);
    let qkv = match input {
        Some((ids, rows)) => {
            let rows = g.scope("ln_1", |g| normalized_rows(g, rows, hidden, epsilon))?;
            g.scope("attn", |g| looked_up(g, ids, &rows, hidden, scale))?
        }
        None => {
            let input = if config.norm_first { layer_norm(g, "ln_1", &x, hidden, epsilon)? } else { x.clone() };
            g.scope("attn", |g| projected(g, &input, hidden, scale))?
        }
    };
    let y = g.scope("attn", |g| {
        let is_own = config.positional_embedding.per_layer();
        let own = if is_own { positions::score(g, config, places)? } else { Score::Nothing };
        attention(g, config, qkv, attend, &own)
    })?;
    let x = g.add(&x, &y);
    let inner = config.mlp_ratio * hidden;
    if config.norm_first {
        let normal = layer_norm(g, "ln_2", &x, hidden, epsilon)?;
        let y = g.scope("mlp", |g| mlp(g, &normal, [hidden, inner]))?;
        Ok(g.add(&x, &y))
    } else {
        let x = layer_norm(g, "ln_1", &x, hidden, epsilon)?;
        let y = g.scope("mlp", |g| mlp(g, &x, [hidden, inner]))?;
        let x = g.add(&x, &y);
        layer_norm(g, "ln_2", &x, hidden, epsilon)
    }
}

/// q (scaled, since it is smaller than the scores), k and v, `[batch, seq, hidden]` each.
fn projected(g: &mut GraphBuilder<'_>, x: &Value, hidden: usize, scale: f64) -> Result<[Value; 3], ExportError> {
    let qkv = conv1d(g, "c_attn", x, [hidden, 3 * hidden])?; // [batch, seq, 3·hidden]
    let [q, k, v] = g.nodes("Split", &[&qkv], &[("axis", Int(-1)), ("num_outputs", Int(3))]);
    let scale = g.scalar("scale", scale as f32);
    Ok([g.mul(&q, &scale), k, v])
}

/// The same of inputs that are one of `rows` each: tables of `[vocab, hidden]`.
fn looked_up(
    g: &mut GraphBuilder<'_>,
    ids: &Value,
    rows: &[f64],
    hidden: usize,
    scale: f64,
) -> Result<[Value; 3], ExportError> {
    g.scope("c_attn", |g| {
        let weight = g.weight("weight", &[hidden, 3 * hidden])?;
        let bias = g.weight("bias", &[3 * hidden])?;
        let weight: Vec<f64> = weight.values.iter().map(|&w| w.into()).collect();
        let products = row_products(rows, &weight, [hidden, 3 * hidden]);
        let parts = [("table_q", 0, scale), ("table_k", 1, 1.0), ("table_v", 2, 1.0)];
        Ok(parts.map(|(name, part, scale)| {
            let columns = part * hidden..(part + 1) * hidden;
            let bias = &bias.values[columns.clone()];
            let row = |row: &[f64]| -> Vec<f32> {
                row[columns.clone()].iter().zip(bias).map(|(x, &b)| ((x + f64::from(b)) * scale) as f32).collect()
            };
            let table: Vec<f32> = products.chunks_exact(3 * hidden).flat_map(row).collect();
            let table = g.factor(name, &[rows.len() / hidden, hidden], &table);
            lookup(g, &table, ids)
        }))
    })
}

/// softmax(q·kᵀ + bias + mask)·v and the projection behind it; `own` is the effect of positions on this layer alone.
fn attention(
    g: &mut GraphBuilder<'_>,
    config: &TransformerConfig,
    qkv: [Value; 3],
    attend: &Attention,
    own: &Score,
) -> Result<Value, ExportError> {
    let hidden = config.hidden_size;
    // in the shape of a Reshape, 0 keeps an axis as it is
    let heads = g.list("heads", &[0, 0, config.num_heads as i64, config.head_dim() as i64]);
    let [q, k, v] = qkv.map(|part| {
        let part = g.reshape(&part, &heads);
        g.transpose(&part, &[0, 2, 1, 3]) // [batch, heads, seq, head_dim]
    });
    let [q, k] = attend.turned(g, [q, k], own);
    let k = g.transpose(&k, &[0, 1, 3, 2]); // [batch, heads, head_dim, seq]
    let y = attend.attend(g, [&q, &k, &v], [config.num_heads, config.head_dim()], own)?; // [batch, seq, hidden]
    conv1d(g, "c_proj", &y, [hidden, hidden])
}

fn mlp(g: &mut GraphBuilder<'_>, x: &Value, [hidden, inner]: [usize; 2]) -> Result<Value, ExportError> {
    let x = conv1d(g, "c_fc", x, [hidden, inner])?;
    let x = g.relu(&x);
    conv1d(g, "c_proj", &x, [inner, hidden])
}
