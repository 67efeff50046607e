//! RWKV-7 "Goose": blocks of a time mix and a channel mix. The counterpart of `models::rwkv7` and
//! `models::ops::generalized_delta`.

use super::rwkv::{Sizes, group_norm, mixture, normalized_embedding, product, shift};
use crate::ExportError;
use crate::graph::Attribute::Int;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{input_ids, layer_norm, linear, logits};
use models::rwkv::LAYER_NORM_EPSILON;
use models::rwkv7::{FASTEST_DECAY, LEAST_LENGTH, Ranks, Rwkv7Config};

pub(crate) fn lower(config: &Rwkv7Config, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let ids = input_ids(g); // [batch, seq]
    let (mut x, _) = normalized_embedding(g, &ids, [vocab, hidden])?; // [batch, seq, hidden]
    let mut first_values = None;
    for i in 0..config.num_layers {
        let block = Block { config, ranks: config.ranks(), layer: i, ids: &ids };
        x = g.scope(format!("blocks.{i}"), |g| block.lower(g, x, &mut first_values))?;
    }
    let x = layer_norm(g, "ln_out", &x, hidden, LAYER_NORM_EPSILON)?;
    let scores = linear(g, "head", &x, [hidden, vocab])?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// A block of the model.
struct Block<'a> {
    config: &'a Rwkv7Config,
    ranks: Ranks,
    layer: usize,
    ids: &'a Value,
}

impl Block<'_> {
    fn sizes(&self) -> Sizes {
        Sizes { hidden: self.config.hidden_size, head_size: self.config.head_size }
    }

    /// `[batch, seq, hidden]` → the same shape. The first block sets the values of the first block.
    fn lower(
        &self,
        g: &mut GraphBuilder<'_>,
        x: Value,
        first_values: &mut Option<Value>,
    ) -> Result<Value, ExportError> {
        let hidden = self.config.hidden_size;
        let normal = layer_norm(g, "ln1", &x, hidden, LAYER_NORM_EPSILON)?;
        let y = g.scope("att", |g| self.time_mix(g, &normal, first_values))?;
        let x = g.add(&x, &y);
        let normal = layer_norm(g, "ln2", &x, hidden, LAYER_NORM_EPSILON)?;
        let y = g.scope("ffn", |g| self.channel_mix(g, &normal))?;
        Ok(g.add(&x, &y))
    }

    fn time_mix(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        first_values: &mut Option<Value>,
    ) -> Result<Value, ExportError> {
        let (hidden, ranks) = (self.config.hidden_size, self.ranks);
        let predecessor = shift(g, &format!("att_shift_l{}", self.layer), self.ids, x, hidden);
        let d = g.sub(&predecessor, x);
        let mut mixed = |name| mixture(g, name, x, &d, hidden);
        let [r, w, k] = [mixed("x_r")?, mixed("x_w")?, mixed("x_k")?];
        let [v, a, gate] = [mixed("x_v")?, mixed("x_a")?, mixed("x_g")?];

        let w = product(g, "w1", &w, &[hidden, ranks.decay])?;
        let w = g.node("Tanh", &[&w], &[]);
        let w = product(g, "w2", &w, &[ranks.decay, hidden])?;
        let w = self.sigmoid_of(g, &w, "w0")?;
        let fastest = g.scalar("fastest_decay", FASTEST_DECAY as f32);
        let w = g.mul(&w, &fastest);
        let decay = g.exp(&w);

        let r = linear(g, "receptance", &r, [hidden, hidden])?;
        let k = linear(g, "key", &k, [hidden, hidden])?;
        let v = self.values(g, &v, first_values)?;
        let a = product(g, "a1", &a, &[hidden, ranks.a])?;
        let a = product(g, "a2", &a, &[ranks.a, hidden])?;
        let a = self.sigmoid_of(g, &a, "a0")?;
        let gate = product(g, "g1", &gate, &[hidden, ranks.gate])?;
        let gate = g.sigmoid(&gate);
        let gate = product(g, "g2", &gate, &[ranks.gate, hidden])?;

        let k_k = g.parameter("k_k", &[1, 1, hidden])?;
        let removed = g.mul(&k, &k_k);
        let removed = self.unit(g, &removed);
        let under = g.mul(&removed, &a);
        // k·(1 + (a − 1)·k_a)
        let (one, k_a) = (g.scalar("one", 1f32), g.parameter("k_a", &[1, 1, hidden])?);
        let change = g.sub(&a, &one);
        let change = g.mul(&change, &k_a);
        let change = g.add(&change, &one);
        let k = g.mul(&k, &change);

        let y = self.rule(g, [&r, &k, &v, &decay, &removed, &under])?;
        let y = group_norm(g, "ln_x", &y, self.sizes())?;
        let own = self.own(g, [&r, &k, &v])?;
        let y = g.add(&y, &own);
        let y = g.mul(&y, &gate);
        linear(g, "output", &y, [hidden, hidden])
    }

    /// σ(x + the weight `name`).
    fn sigmoid_of(&self, g: &mut GraphBuilder<'_>, x: &Value, name: &str) -> Result<Value, ExportError> {
        let base = g.parameter(name, &[1, 1, self.config.hidden_size])?;
        let x = g.add(x, &base);
        Ok(g.sigmoid(&x))
    }

    /// Values, in later blocks moved towards those of the first.
    fn values(&self, g: &mut GraphBuilder<'_>, x: &Value, first: &mut Option<Value>) -> Result<Value, ExportError> {
        let (hidden, rank) = (self.config.hidden_size, self.ranks.v);
        let v = linear(g, "value", x, [hidden, hidden])?;
        let Some(first) = first else { return Ok(first.insert(v).clone()) };
        let part = product(g, "v1", x, &[hidden, rank])?;
        let part = product(g, "v2", &part, &[rank, hidden])?;
        let part = self.sigmoid_of(g, &part, "v0")?;
        let change = g.sub(first, &v);
        let change = g.mul(&change, &part);
        Ok(g.add(&v, &change))
    }

    /// Every head divided by its length, `[batch, seq, hidden]` → the same shape.
    fn unit(&self, g: &mut GraphBuilder<'_>, x: &Value) -> Value {
        let (hidden, size) = (self.config.hidden_size as i64, self.config.head_size as i64);
        g.scope("unit_k", |g| {
            let (apart, joined) = (g.list("heads", &[0, 0, hidden / size, size]), g.list("joined", &[0, 0, hidden]));
            let (least, channels) = (g.scalar("least_length", LEAST_LENGTH as f32), g.list("channel_axis", &[-1]));
            let x = g.reshape(x, &apart);
            let length = g.node("ReduceL2", &[&x, &channels], &[("keepdims", Int(1))]);
            let length = g.node("Max", &[&length, &least], &[]);
            let x = g.div(&x, &length);
            g.reshape(&x, &joined)
        })
    }

    /// The rule from and to the state `wkv_l<layer>` `[batch, heads, key, value]`: `[batch, seq, hidden]` each →
    /// `[batch, seq, heads, value]`.
    fn rule(&self, g: &mut GraphBuilder<'_>, inputs: [&Value; 6]) -> Result<Value, ExportError> {
        let (size, heads) = (self.config.head_size, self.sizes().heads());
        let (name, doc) = (format!("wkv_l{}", self.layer), "the matrix of every head, by key and value");
        let dims = [heads, size, size];
        let before = g.state_input(&name, doc, self.ids, &dims);
        let (y, after) = g.scope("generalized_delta", |g| -> Result<_, ExportError> {
            let row = g.list("row", &[0, 0, heads as i64, 1, size as i64]);
            let column = g.list("column", &[0, 0, heads as i64, size as i64, 1]);
            let mut by_time = |x: &Value, shape| {
                let x = g.reshape(x, shape);
                g.transpose(&x, &[1, 0, 2, 3, 4]) // [seq, batch, heads, 1, size] or [seq, batch, heads, size, 1]
            };
            let [r, k, v, decay, removed, under] = inputs;
            let [r, v, removed] = [r, v, removed].map(|x| by_time(x, &row));
            let [k, decay, under] = [k, decay, under].map(|x| by_time(x, &column));
            let inputs = [&r, &k, &v, &decay, &removed, &under];
            let ([after], [y]) = g.scan([&before], inputs, |g, [memory], [r, k, v, decay, removed, under]| {
                let known = g.matmul(&removed, &memory); // [batch, heads, 1, value]
                let removed = g.mul(&under, &known);
                let kept = g.mul(&decay, &memory);
                let kept = g.sub(&kept, &removed);
                let written = g.mul(&k, &v);
                let memory = g.add(&kept, &written);
                let y = g.matmul(&r, &memory);
                Ok(([memory], [y]))
            })?;
            let y = g.transpose(&y, &[1, 0, 2, 3, 4]); // [batch, seq, heads, 1, value]
            let apart = g.list("apart", &[0, 0, heads as i64, size as i64]);
            Ok((g.reshape(&y, &apart), after))
        })?;
        g.state_output(&name, doc, after, &dims);
        Ok(y)
    }

    /// What a token adds to its own output: (Σ r·k·ρ)·v, head by head, `[batch, seq, hidden]` each → the same shape.
    fn own(&self, g: &mut GraphBuilder<'_>, inputs: [&Value; 3]) -> Result<Value, ExportError> {
        let (size, heads) = (self.config.head_size, self.sizes().heads());
        let bonus = g.parameter("r_k", &[heads, size])?;
        Ok(g.scope("own", |g| {
            let apart = g.list("heads", &[0, 0, heads as i64, size as i64]);
            let joined = g.list("joined", &[0, 0, self.config.hidden_size as i64]);
            let channels = g.list("channel_axis", &[3]);
            let [r, k, v] = inputs.map(|x| g.reshape(x, &apart));
            let product = g.mul(&r, &k);
            let product = g.mul(&product, &bonus);
            let weight = g.node("ReduceSum", &[&product, &channels], &[("keepdims", Int(1))]);
            let own = g.mul(&weight, &v);
            g.reshape(&own, &joined)
        }))
    }

    fn channel_mix(&self, g: &mut GraphBuilder<'_>, x: &Value) -> Result<Value, ExportError> {
        let (hidden, ffn) = (self.config.hidden_size, self.config.ffn_size());
        let predecessor = shift(g, &format!("ffn_shift_l{}", self.layer), self.ids, x, hidden);
        let d = g.sub(&predecessor, x);
        let k = mixture(g, "x_k", x, &d, hidden)?;
        let k = linear(g, "key", &k, [hidden, ffn])?;
        let k = g.relu(&k);
        let k = g.mul(&k, &k);
        linear(g, "value", &k, [ffn, hidden])
    }
}
