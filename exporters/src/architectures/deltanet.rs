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
    let inputs = Inputs { q, k, v, step, log_decay: Some(log_decay) };
    let rule = DeltaRule { heads, key: size, value: size, corrections: 1, scale: 1.0 };
    let (y, after) = g.scope("delta_rule", |g| rule.lower(g, &inputs, &before))?;
    g.state_output(&name, doc, after, &dims);

    let y = g.reshape(&y, &split);
    let y = head_norm(g, &y, size, NORM_EPSILON)?;
    let y = g.reshape(&y, &joined);
    let gate = linear(g, "g_proj", x, [hidden, hidden])?;
    let gate = silu(g, &gate);
    let y = g.mul(&y, &gate);
    linear(g, "o_proj", &y, [hidden, hidden])
}

/// −exp(A_log)·softplus(a + dt_bias), `[batch, seq, heads]`.
pub(crate) fn log_decay(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    hidden: usize,
    heads: usize,
) -> Result<Value, ExportError> {
    let a = linear(g, "a_proj", x, [hidden, heads])?;
    let bias = g.parameter("dt_bias", &[heads])?;
    let a = g.add(&a, &bias);
    let rate: Vec<f32> = g.weight("A_log", &[heads])?.values.iter().map(|a| -a.exp()).collect();
    let rate = g.constant("A_log.rate", &[heads], &rate);
    let dt = softplus(g, &a);
    Ok(g.mul(&dt, &rate))
}

/// The delta rule, with one or more corrections of the memory per token.
pub(crate) struct DeltaRule {
    pub(crate) heads: usize,
    /// Channels of a query and of a key.
    pub(crate) key: usize,
    /// Channels of a value.
    pub(crate) value: usize,
    /// Corrections per token: the memory decays before the first, and is read after the last.
    pub(crate) corrections: usize,
    /// A factor of what is read.
    pub(crate) scale: f64,
}

/// What the rule reads. There is a row per token, or one per correction of a token.
pub(crate) struct Inputs {
    /// `[batch, seq, heads·key]`.
    pub(crate) q: Value,
    /// `[batch, seq·corrections, heads·key]`.
    pub(crate) k: Value,
    /// `[batch, seq·corrections, heads·value]`.
    pub(crate) v: Value,
    /// `[batch, seq·corrections, heads]`.
    pub(crate) step: Value,
    /// `[batch, seq, heads]`; without it, nothing decays.
    pub(crate) log_decay: Option<Value>,
}

impl DeltaRule {
    /// What is read, `[batch, seq, heads·value]`, and the memory after, `[batch, heads, key, value]`, from that before.
    pub(crate) fn lower(
        &self,
        g: &mut GraphBuilder<'_>,
        inputs: &Inputs,
        before: &Value,
    ) -> Result<(Value, Value), ExportError> {
        match g.target() {
            Target::Portable => self.scan(g, inputs, before),
            Target::Ort => Ok(self.linear_attention(g, inputs, before)),
        }
    }

    /// With standard operators, one time step after another.
    fn scan(
        &self,
        g: &mut GraphBuilder<'_>,
        Inputs { q, k, v, step, log_decay }: &Inputs,
        before: &Value,
    ) -> Result<(Value, Value), ExportError> {
        let decay = log_decay.as_ref().map(|log| g.exp(log));
        // `[batch, seq·rows, heads·size]` → `[seq, batch, heads, rows, size]`
        let by_time = |g: &mut GraphBuilder<'_>, x: &Value, name: &str, [rows, size]: [usize; 2]| {
            let seq = if rows == 1 { 0 } else { -1 };
            let shape = g.list(name, &[0, seq, rows as i64, self.heads as i64, size as i64]);
            let x = g.reshape(x, &shape);
            g.transpose(&x, &[1, 0, 3, 2, 4])
        };
        let rows = self.corrections;
        let q = by_time(g, q, "query_shape", [1, self.key]);
        let k = by_time(g, k, "key_shape", [rows, self.key]);
        let v = by_time(g, v, "value_shape", [rows, self.value]);
        let step = by_time(g, step, "step_shape", [rows, 1]);
        let ([after], [y]) = match decay {
            Some(decay) => {
                let decay = by_time(g, &decay, "decay_shape", [1, 1]);
                g.scan([before], [&q, &k, &v, &step, &decay], |g, [memory], [q, k, v, step, decay]| {
                    let decayed = g.mul(&memory, &decay);
                    Ok(self.token(g, decayed, [&q, &k, &v, &step]))
                })?
            }
            None => g.scan([before], [&q, &k, &v, &step], |g, [memory], [q, k, v, step]| {
                Ok(self.token(g, memory, [&q, &k, &v, &step]))
            })?,
        };
        let y = g.transpose(&y, &[1, 0, 3, 2, 4]); // [batch, seq, 1, heads, value]
        let joined = g.list("joined", &[0, 0, (self.heads * self.value) as i64]);
        Ok((g.reshape(&y, &joined), after))
    }

    /// The corrections of one token, from its decayed memory: `[batch, heads, rows, size]` each → the memory, and what
    /// is read of it, `[batch, heads, 1, value]`.
    fn token(
        &self,
        g: &mut GraphBuilder<'_>,
        mut memory: Value,
        [q, k, v, step]: [&Value; 4],
    ) -> ([Value; 1], [Value; 1]) {
        let [k, v, step] = [k, v, step].map(|x| match self.corrections {
            1 => vec![x.clone()],
            rows => g.node_with(rows, "Split", &[x], &[("axis", Int(2)), ("num_outputs", Int(rows as i64))]),
        });
        for ((k, v), step) in k.iter().zip(&v).zip(&step) {
            let known = g.matmul(k, &memory); // [batch, heads, 1, value]
            let error = g.sub(v, &known);
            let error = g.mul(&error, step);
            let key = g.transpose(k, &[0, 1, 3, 2]);
            let correction = g.mul(&key, &error);
            memory = g.add(&memory, &correction);
        }
        let y = g.matmul(q, &memory);
        let y = match self.scale {
            1.0 => y,
            scale => {
                let scale = g.scalar("scale", scale as f32);
                g.mul(&y, &scale)
            }
        };
        ([memory], [y])
    }

    /// By ONNX Runtime's operator, which takes one correction per time step.
    fn linear_attention(
        &self,
        g: &mut GraphBuilder<'_>,
        Inputs { q, k, v, step, log_decay }: &Inputs,
        before: &Value,
    ) -> (Value, Value) {
        let attributes = [
            ("q_num_heads", Int(self.heads as i64)),
            ("kv_num_heads", Int(self.heads as i64)),
            ("scale", Float(self.scale)),
            ("update_rule", Text(if log_decay.is_some() { "gated_delta" } else { "delta" })),
        ];
        let (rows, keys, values) = (self.corrections, self.heads * self.key, self.heads * self.value);
        // Queries that read nothing before a token's last correction, and decays of e⁰ after its first.
        let q = self.spread(g, q, "query", keys, [rows - 1, 0]);
        let log_decay = match log_decay {
            Some(log) => self.spread(g, log, "decay", self.heads, [0, rows - 1]),
            None => Value::none(),
        };
        let inputs = [&q, k, v, before, &log_decay, step];
        let [y, after] = g.nodes("com.microsoft.LinearAttention", &inputs, &attributes);
        if rows == 1 {
            return (y, after);
        }
        let by_token = g.list("by_token", &[0, -1, rows as i64, values as i64]);
        let last = g.scalar("last", rows as i64 - 1);
        let y = g.reshape(&y, &by_token);
        (g.gather(&y, &last, 2), after)
    }

    /// A row per correction, `[batch, seq, channels]` → `[batch, seq·corrections, channels]`: zeros before and after.
    fn spread(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        name: &str,
        channels: usize,
        [before, after]: [usize; 2],
    ) -> Value {
        if self.corrections == 1 {
            return x.clone();
        }
        let ends = [0, 0, before * channels, 0, 0, after * channels].map(|n| n as i64);
        let ends = g.list(&format!("{name}_ends"), &ends);
        let x = g.node("Pad", &[x, &ends], &[]);
        let shape = g.list(&format!("{name}_rows"), &[0, -1, channels as i64]);
        g.reshape(&x, &shape)
    }
}

/// x/√(Σ x² + ε) over the last axis: vectors of length 1.
pub(crate) fn unit(g: &mut GraphBuilder<'_>, x: &Value) -> Value {
    let (epsilon, channels) = (g.scalar("epsilon", LENGTH_EPSILON as f32), g.list("channel_axis", &[-1]));
    let square = g.mul(x, x);
    let square = g.node("ReduceSum", &[&square, &channels], &[("keepdims", Int(1))]);
    let square = g.add(&square, &epsilon);
    let length = g.node("Sqrt", &[&square], &[]);
    g.div(x, &length)
}

/// x/√(mean x² + ε)·weight over the channels of each head, `[batch, seq, heads, size]` → the same shape.
pub(crate) fn head_norm(g: &mut GraphBuilder<'_>, x: &Value, size: usize, epsilon: f64) -> Result<Value, ExportError> {
    g.scope("o_norm", |g| {
        let weight = g.parameter("weight", &[size])?;
        let (epsilon, channels) = (g.scalar("epsilon", epsilon as f32), g.list("channel_axis", &[-1]));
        let square = g.mul(x, x);
        let mean = g.node("ReduceMean", &[&square, &channels], &[("keepdims", Int(1))]);
        let mean = g.add(&mean, &epsilon);
        let root = g.node("Sqrt", &[&mean], &[]);
        let normal = g.div(x, &root);
        Ok(g.mul(&normal, &weight))
    })
}
