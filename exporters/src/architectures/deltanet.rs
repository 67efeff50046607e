//! Gated DeltaNet: blocks of a memory that is decayed and corrected, and of an MLP. The counterpart of
//! `models::deltanet` and `models::ops::delta`.

use crate::graph::Attribute::{Float, Int, Text};
use crate::graph::{GraphBuilder, Value};
use crate::layers::{embedding, input_ids, layer_norm, linear, logits, mlp, silu, softplus};
use crate::{ExportError, Target};
use models::deltanet::{DeltaNetConfig, LENGTH_EPSILON, NORM_EPSILON};

pub(crate) fn lower(config: &DeltaNetConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let ids = input_ids(g); // [batch, seq]
    let mut x = embedding(g, "encoder", &ids, [vocab, hidden])?; // [batch, seq, hidden]
    for i in 0..config.num_layers {
        x = g.scope(format!("blocks.{i}"), |g| -> Result<_, ExportError> {
            let normal = layer_norm(g, "norm_1", &x, hidden, NORM_EPSILON)?;
            let y = g.scope("mixer", |g| mixer(g, config, i, &ids, &normal))?;
            let x = g.add(&x, &y);
            let normal = layer_norm(g, "norm_2", &x, hidden, NORM_EPSILON)?;
            let y = mlp(g, "mlp", &normal, hidden)?;
            Ok(g.add(&x, &y))
        })?;
    }
    let x = layer_norm(g, "norm_f", &x, hidden, NORM_EPSILON)?;
    let scores = linear(g, "decoder", &x, [hidden, vocab])?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// `[batch, seq, hidden]` → the same shape, from and to the state `memory_l<layer>` `[batch, heads, key, value]`.
fn mixer(
    g: &mut GraphBuilder<'_>,
    config: &DeltaNetConfig,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, size) = (config.hidden_size, config.head_size);
    let heads = hidden / size;
    let [mut q, mut k, mut v] = [0; 3].map(|_| Value::none());
    for (name, value) in [("q_proj", &mut q), ("k_proj", &mut k), ("v_proj", &mut v)] {
        let projected = linear(g, name, x, [hidden, hidden])?;
        *value = silu(g, &projected);
    }
    let split = g.list("split", &[0, 0, heads as i64, size as i64]);
    let joined = g.list("joined", &[0, 0, hidden as i64]);
    let [q, k] = [("unit_q", q), ("unit_k", k)].map(|(scope, x)| {
        let x = g.reshape(&x, &split);
        let x = g.scope(scope, |g| unit(g, &x));
        g.reshape(&x, &joined) // [batch, seq, hidden]
    });
    let step = linear(g, "b_proj", x, [hidden, heads])?;
    let step = g.sigmoid(&step);
    let largest_step = g.scalar("largest_step", config.largest_step() as f32);
    let step = g.mul(&step, &largest_step); // [batch, seq, heads]
    let log_decay = log_decay(g, x, hidden, heads)?;

    let (name, doc, dims) =
        (format!("memory_l{layer}"), "the memory of every head, by key and value", [heads, size, size]);
    let before = g.state_input(&name, doc, ids, &dims);
    let (y, after) = g.scope("delta_rule", |g| match g.target() {
        Target::Portable => delta_rule(g, [&q, &k, &v, &step, &log_decay], &before, [heads, size]),
        Target::Ort => Ok(linear_attention(g, [&q, &k, &v, &step, &log_decay], &before, heads)),
    })?;
    g.state_output(&name, doc, after, &dims);

    let y = g.reshape(&y, &split);
    let y = head_norm(g, &y, size)?;
    let y = g.reshape(&y, &joined);
    let gate = linear(g, "g_proj", x, [hidden, hidden])?;
    let gate = silu(g, &gate);
    let y = g.mul(&y, &gate);
    linear(g, "o_proj", &y, [hidden, hidden])
}

/// −exp(A_log)·softplus(a + dt_bias), `[batch, seq, heads]`.
fn log_decay(g: &mut GraphBuilder<'_>, x: &Value, hidden: usize, heads: usize) -> Result<Value, ExportError> {
    let a = linear(g, "a_proj", x, [hidden, heads])?;
    let bias = g.parameter("dt_bias", &[heads])?;
    let a = g.add(&a, &bias);
    let rate: Vec<f32> = g.weight("A_log", &[heads])?.values.iter().map(|a| -a.exp()).collect();
    let rate = g.constant("A_log.rate", &[heads], &rate);
    let dt = softplus(g, &a);
    Ok(g.mul(&dt, &rate))
}

/// The rule with standard operators, one time step after another: `q`, `k`, `v` `[batch, seq, hidden]`, `step` and
/// `log_decay` `[batch, seq, heads]` → `[batch, seq, heads, size]`, and the memory at the end.
fn delta_rule(
    g: &mut GraphBuilder<'_>,
    [q, k, v, step, log_decay]: [&Value; 5],
    before: &Value,
    [heads, size]: [usize; 2],
) -> Result<(Value, Value), ExportError> {
    let decay = g.exp(log_decay);
    let row = g.list("row", &[0, 0, heads as i64, 1, size as i64]);
    let single = g.list("single", &[0, 0, heads as i64, 1, 1]);
    let by_time = |g: &mut GraphBuilder<'_>, x: &Value, shape: &Value| {
        let x = g.reshape(x, shape);
        g.transpose(&x, &[1, 0, 2, 3, 4]) // [seq, batch, heads, 1, size or 1]
    };
    let [q, k, v] = [q, k, v].map(|x| by_time(g, x, &row));
    let [step, decay] = [step, &decay].map(|x| by_time(g, x, &single));
    let ([after], [y]) = g.scan([before], [&q, &k, &v, &step, &decay], |g, [memory], [q, k, v, step, decay]| {
        let decayed = g.mul(&memory, &decay);
        let known = g.matmul(&k, &decayed); // [batch, heads, 1, size]
        let error = g.sub(&v, &known);
        let error = g.mul(&error, &step);
        let key = g.transpose(&k, &[0, 1, 3, 2]);
        let correction = g.mul(&key, &error);
        let memory = g.add(&decayed, &correction);
        let y = g.matmul(&q, &memory);
        Ok(([memory], [y]))
    })?;
    let channel_row = g.list("row_axis", &[3]);
    let y = g.squeeze(&y, &channel_row);
    Ok((g.transpose(&y, &[1, 0, 2, 3]), after))
}

/// The rule by ONNX Runtime's operator; shapes as in [`delta_rule`], outputs `[batch, seq, hidden]`.
fn linear_attention(
    g: &mut GraphBuilder<'_>,
    [q, k, v, step, log_decay]: [&Value; 5],
    before: &Value,
    heads: usize,
) -> (Value, Value) {
    let attributes = [
        ("q_num_heads", Int(heads as i64)),
        ("kv_num_heads", Int(heads as i64)),
        ("scale", Float(1.0)),
        ("update_rule", Text("gated_delta")),
    ];
    let inputs = [q, k, v, before, log_decay, step];
    let [y, after] = g.nodes("com.microsoft.LinearAttention", &inputs, &attributes);
    (y, after)
}

/// x/√(Σ x² + ε) over the last axis: vectors of length 1.
fn unit(g: &mut GraphBuilder<'_>, x: &Value) -> Value {
    let (epsilon, channels) = (g.scalar("epsilon", LENGTH_EPSILON as f32), g.list("channel_axis", &[-1]));
    let square = g.mul(x, x);
    let square = g.node("ReduceSum", &[&square, &channels], &[("keepdims", Int(1))]);
    let square = g.add(&square, &epsilon);
    let length = g.node("Sqrt", &[&square], &[]);
    g.div(x, &length)
}

/// x/√(mean x² + ε)·weight over the channels of each head, `[batch, seq, heads, size]` → the same shape.
fn head_norm(g: &mut GraphBuilder<'_>, x: &Value, size: usize) -> Result<Value, ExportError> {
    g.scope("o_norm", |g| {
        let weight = g.parameter("weight", &[size])?;
        let (epsilon, channels) = (g.scalar("epsilon", NORM_EPSILON as f32), g.list("channel_axis", &[-1]));
        let square = g.mul(x, x);
        let mean = g.node("ReduceMean", &[&square, &channels], &[("keepdims", Int(1))]);
        let mean = g.add(&mean, &epsilon);
        let root = g.node("Sqrt", &[&mean], &[]);
        let normal = g.div(x, &root);
        Ok(g.mul(&normal, &weight))
    })
}
