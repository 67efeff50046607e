//! The parts shared by the lowerings of RWKV-5, RWKV-6 and RWKV-7. The counterpart of `models::rwkv` and `models::ops::wkv`.

use crate::graph::Attribute::{Float, Int, Text};
use crate::graph::{GraphBuilder, Value};
use crate::layers::{lookup, narrowed, normalized_rows};
use crate::linear_attention::{Memory, chunks};
use crate::{ExportError, Target};
use models::rwkv::{HEAD_NORM_EPSILON, LAYER_NORM_EPSILON};

/// The sizes of a block.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) hidden: usize,
    pub(crate) head_size: usize,
}

impl Sizes {
    pub(crate) fn heads(self) -> usize {
        self.hidden / self.head_size
    }

    fn state(self) -> Memory {
        Memory { heads: self.heads(), key: self.head_size, value: self.head_size }
    }
}

/// The embedding of `[batch, seq]` after `ln0`, `[batch, seq, hidden]`, and the table that it comes from,
/// `[vocab, hidden]`: a token's embedding does not depend on its place, so that the rows are normalised here and not in
/// every call.
pub(crate) fn normalized_embedding(
    g: &mut GraphBuilder<'_>,
    ids: &Value,
    [vocab, hidden]: [usize; 2],
) -> Result<(Value, Vec<f64>), ExportError> {
    let table = g.scope("emb", |g| g.weight("weight", &[vocab, hidden]))?;
    let table: Vec<f64> = table.values.iter().map(|&x| x.into()).collect();
    g.scope("blocks.0", |g| {
        g.scope("ln0", |g| {
            let rows = normalized_rows(g, &table, hidden, LAYER_NORM_EPSILON)?;
            let table = g.factor("emb.weight", &[vocab, hidden], &narrowed(&rows));
            Ok((lookup(g, &table, ids), rows))
        })
    })
}

/// Every token's predecessor, `[batch, seq, hidden]`. The last token of the piece before is the state `<name>_in`
/// `[batch, 1, hidden]`, that of this piece `<name>_out`. `ids` tells the size of the batch.
pub(crate) fn shift(g: &mut GraphBuilder<'_>, name: &str, ids: &Value, x: &Value, hidden: usize) -> Value {
    let dims = [1, hidden];
    let before = g.state_input(name, "the last token's input to the mix", ids, &dims);
    g.scope("shift", |g| {
        let (zero, last, time) = (g.list("zero", &[0]), g.list("last", &[-1]), g.list("time_axis", &[1]));
        let end = g.list("end", &[i64::MAX]);
        let earlier = g.slice(x, [&zero, &last], &time); // [batch, seq − 1, hidden]
        let after = g.slice(x, [&last, &end], &time); // [batch, 1, hidden]
        g.state_output(name, "the last token's input to the mix", after, &dims);
        g.concat(&[&before, &earlier], 1)
    })
}

/// base + step·(the weight `name`), `[batch, seq, hidden]`.
pub(crate) fn mixture(
    g: &mut GraphBuilder<'_>,
    name: &str,
    base: &Value,
    step: &Value,
    hidden: usize,
) -> Result<Value, ExportError> {
    let part = g.parameter(name, &[1, 1, hidden])?;
    let step = g.mul(step, &part);
    Ok(g.add(base, &step))
}

/// x·W, where the weight W is stored `[in, out]`.
pub(crate) fn product(
    g: &mut GraphBuilder<'_>,
    name: &str,
    x: &Value,
    shape: &[usize; 2],
) -> Result<Value, ExportError> {
    let weight = g.weight(name, shape)?;
    let weight = g.factor(name, shape, &weight.values);
    let x = g.narrow(x);
    let y = g.matmul(&x, &weight);
    Ok(g.widen(&y))
}

/// Every head normalised over its channels: `[batch, seq, heads, head_size]` → `[batch, seq, hidden]`.
pub(crate) fn group_norm(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    Sizes { hidden, head_size }: Sizes,
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let ones = g.constant("ones", &[head_size], &vec![1.0f32; head_size]);
        let weight = g.parameter("weight", &[hidden])?;
        let bias = g.parameter("bias", &[hidden])?;
        let attributes = [("axis", Int(-1)), ("epsilon", Float(HEAD_NORM_EPSILON))];
        let normal = g.node("LayerNormalization", &[x, &ones], &attributes);
        let merged = g.list("merged", &[0, 0, hidden as i64]); // in the shape of a Reshape, 0 keeps an axis as it is
        let normal = g.reshape(&normal, &merged);
        let scaled = g.mul(&normal, &weight);
        Ok(g.add(&scaled, &bias))
    })
}

/// How much of a state is left after a time step, as logarithms (at most 0).
#[derive(Clone, Copy)]
pub(crate) enum Decay<'a> {
    /// The same at every step, `[hidden]`.
    Steady(&'a [f32]),
    /// Its own at every step, `[batch, seq, hidden]`.
    PerStep(&'a Value),
}

/// The WKV operation of `models::ops::wkv` from and to the state `<name>` `[batch, heads, key, value]`: `r`, `k` and
/// `v` `[batch, seq, hidden]`, `bonus` `[heads, head_size]` → `[batch, seq, heads, head_size]`.
pub(crate) fn wkv(
    g: &mut GraphBuilder<'_>,
    name: &str,
    ids: &Value,
    [r, k, v]: [&Value; 3],
    decay: Decay<'_>,
    bonus: &Value,
    sizes: Sizes,
) -> Result<Value, ExportError> {
    let dims = [sizes.heads(), sizes.head_size, sizes.head_size];
    let before = g.state_input(name, "the matrix of every head, by key and value", ids, &dims);
    let (y, after) = g.scope("wkv", |g| -> Result<_, ExportError> {
        let split = g.list("heads", &[0, 0, sizes.heads() as i64, sizes.head_size as i64]);
        let [own_r, own_k, own_v] = [r, k, v].map(|x| g.reshape(x, &split)); // [batch, seq, heads, size]
        let product = g.mul(&own_r, &own_k);
        let product = g.mul(&product, bonus);
        let channel_axis = g.list("channel_axis", &[3]);
        let own = g.node("ReduceSum", &[&product, &channel_axis], &[("keepdims", Int(1))]);
        let own = g.mul(&own, &own_v);

        let (earlier, after) = match decay {
            Decay::Steady(logs) if logs.iter().all(|&log| log >= FASTEST_STEADY) => {
                steady_chunks(g, ids, [r, k, v], logs, &before, sizes)?
            }
            Decay::Steady(logs) => {
                let logs = g.constant("log_decay", &[1, 1, sizes.hidden], logs);
                let shape = g.node("Shape", &[k], &[]);
                let logs = g.node("Expand", &[&logs, &shape], &[]);
                per_step(g, ids, [r, k, v, &logs], &before, sizes)?
            }
            Decay::PerStep(logs) => per_step(g, ids, [r, k, v, logs], &before, sizes)?,
        };
        Ok((g.add(&own, &earlier), after))
    })?;
    g.state_output(name, "the matrix of every head, by key and value", after, &dims);
    Ok(y)
}

/// The contributions of earlier steps to every step's output, `[batch, seq, heads, head_size]`, and the state at the
/// end, for decays that differ from step to step.
fn per_step(
    g: &mut GraphBuilder<'_>,
    ids: &Value,
    [r, k, v, log_decay]: [&Value; 4],
    before: &Value,
    sizes: Sizes,
) -> Result<(Value, Value), ExportError> {
    match g.target() {
        Target::Portable => {
            let decay = g.exp(log_decay);
            chunks(g, ids, [r, k, v, &decay], before, sizes.state())
        }
        Target::Ort => Ok(linear_attention(g, [r, k, v, log_decay], before, sizes)),
    }
}

/// Time steps that [`steady_chunks`] works on at once.
const STEADY_CHUNK: usize = 32;
/// The fastest decay that [`steady_chunks`] takes, as a logarithm: over half a chunk, it and its inverse are far from a
/// float's limits.
const FASTEST_STEADY: f32 = -4.0;

/// The same for decays w that are constants, with standard operators.
///
/// The sequence is cut into chunks, the last one filled up with steps that do nothing. In a chunk of C steps, step t
/// reads (r_t·w^(t−C/2))·(k_s·w^(C/2−1−s))ᵀ·v_s of every earlier step s: two products of matrices, whose decays count
/// from the middle of the chunk. A loop over the chunks carries the state A = w^(−C/2)·S; with B = Σ_s
/// (k_s·w^(C/2−1−s))·v_sᵀ, a chunk reads (r_t·w^(t−C/2))·w^C·A, and then A ← w^C·A + B.
fn steady_chunks(
    g: &mut GraphBuilder<'_>,
    ids: &Value,
    inputs: [&Value; 3],
    log_decay: &[f32],
    before: &Value,
    sizes: Sizes,
) -> Result<(Value, Value), ExportError> {
    let (heads, size) = (sizes.heads(), sizes.head_size);
    let (chunk, middle) = (STEADY_CHUNK as i64, STEADY_CHUNK as i64 / 2);
    let time_axis = g.list("time_axis", &[1]);
    let seq = g.sizes(ids, 1..2);
    let (zero, one, length) = (g.list("zero", &[0]), g.list("one", &[1]), g.list("chunk", &[chunk]));
    let missing = g.neg(&seq);
    let missing = g.modulo(&missing, &length);
    let pads = g.concat(&[&zero, &missing], 0);
    let by_chunk = g.list("by_chunk", &[0, -1, chunk, heads as i64, size as i64]);
    let steps = g.list("steps", &[0, -1, chunk, sizes.hidden as i64]);
    let by_head = g.list("by_head", &[0, 0, heads as i64, size as i64, chunk]);
    let [r, k, v] = inputs.map(|x| g.node("Pad", &[x, &pads, &Value::none(), &time_axis], &[]));
    let mut cut = |x: &Value| {
        let x = g.reshape(x, &by_chunk);
        g.transpose(&x, &[1, 0, 3, 2, 4]) // [chunks, batch, heads, chunk, size]
    };
    let (r, v) = (cut(&r), cut(&v));
    // In two steps: ONNX Runtime takes several times as long for a Transpose that does both.
    let k = g.reshape(&k, &steps);
    let k = g.transpose(&k, &[0, 1, 3, 2]); // [batch, chunks, hidden, chunk]
    let k = g.reshape(&k, &by_head);
    let k = g.transpose(&k, &[1, 0, 2, 3, 4]); // [chunks, batch, heads, size, chunk]

    let power = |channel: usize, exponent: i64| (f64::from(log_decay[channel]) * exponent as f64).exp() as f32;
    let powers = |g: &mut GraphBuilder<'_>, name: &str, exponent: i64| {
        let values: Vec<f32> = (0..sizes.hidden).map(|channel| power(channel, exponent)).collect();
        g.constant(name, &[heads, size, 1], &values)
    };
    let since: Vec<f32> = (0..heads)
        .flat_map(|head| (0..chunk).flat_map(move |t| (0..size).map(move |i| (head * size + i, t - middle))))
        .map(|(channel, exponent)| power(channel, exponent))
        .collect();
    let since = g.constant("since_middle", &[heads, STEADY_CHUNK, size], &since);
    let until: Vec<f32> = (0..sizes.hidden)
        .flat_map(|channel| (0..chunk).map(move |s| (channel, middle - 1 - s)))
        .map(|(channel, exponent)| power(channel, exponent))
        .collect();
    let until = g.constant("until_middle", &[heads, size, STEADY_CHUNK], &until);
    let reads = g.mul(&r, &since);
    let writes = g.mul(&k, &until);
    let scores = g.matmul(&reads, &writes); // [chunks, batch, heads, chunk, chunk]
    let before_diagonal = g.scalar("before_diagonal", -1i64);
    let scores = g.node("Trilu", &[&scores, &before_diagonal], &[("upper", Int(0))]);
    let within = g.matmul(&scores, &v);
    let written = g.matmul(&writes, &v); // [chunks, batch, heads, key, value]

    let over_chunk = powers(g, "over_chunk", chunk);
    let before_middle = powers(g, "before_middle", -middle);
    let state = g.mul(before, &before_middle);
    let ([state], [carried]) = g.scan([&state], [&reads, &written], |g, [state], [reads, written]| {
        let kept = g.mul(&state, &over_chunk);
        let read = g.matmul(&reads, &kept);
        Ok(([g.add(&kept, &written)], [read]))
    })?;
    // The last chunk ends early: S = w^(steps−C/2)·A.
    let ends: Vec<f32> = (1..=chunk)
        .flat_map(|steps| (0..sizes.hidden).map(move |channel| (channel, steps - middle)))
        .map(|(channel, exponent)| power(channel, exponent))
        .collect();
    let ends = g.constant("since_end", &[STEADY_CHUNK, heads, size, 1], &ends);
    let last = g.sub(&seq, &one);
    let last = g.modulo(&last, &length);
    let end = g.gather(&ends, &last, 0);
    let after = g.mul(&state, &end);

    let y = g.add(&within, &carried);
    let y = g.transpose(&y, &[1, 0, 3, 2, 4]); // [batch, chunks, chunk, heads, size]
    let joined = g.list("joined", &[0, -1, heads as i64, size as i64]);
    let y = g.reshape(&y, &joined);
    Ok((g.slice(&y, [&zero, &seq], &time_axis), after))
}

/// The contributions of earlier steps to every step's output, `[batch, seq, heads, head_size]`, and the state at the
/// end, by ONNX Runtime's operator. There a step reads the state after itself, so r is shifted by one step.
fn linear_attention(
    g: &mut GraphBuilder<'_>,
    [r, k, v, log_decay]: [&Value; 4],
    before: &Value,
    sizes: Sizes,
) -> (Value, Value) {
    let heads = sizes.heads() as i64;
    let time_axis = g.list("time_axis", &[1]);
    let (zero, one, minus_one) = (g.list("zero", &[0]), g.list("one", &[1]), g.list("minus_one", &[-1]));
    let end = g.list("end", &[i64::MAX]);
    let later = g.slice(r, [&one, &end], &time_axis);
    let pad_end = g.list("pad_end", &[0, 1]);
    let later = g.node("Pad", &[&later, &pad_end, &Value::none(), &time_axis], &[]);
    let attributes = [
        ("q_num_heads", Int(heads)),
        ("kv_num_heads", Int(heads)),
        ("scale", Float(1.0)),
        ("update_rule", Text("gated")),
    ];
    let inputs = [&later, k, v, before, log_decay];
    let [next, after] = g.nodes("com.microsoft.LinearAttention", &inputs, &attributes);

    let split = g.list("split", &[0, 0, heads, sizes.head_size as i64]);
    let first = g.slice(r, [&zero, &one], &time_axis);
    let first = g.reshape(&first, &split);
    let first = g.transpose(&first, &[0, 2, 1, 3]); // [batch, heads, 1, size]
    let first = g.matmul(&first, before);
    let first = g.transpose(&first, &[0, 2, 1, 3]); // [batch, 1, heads, size]
    let next = g.slice(&next, [&zero, &minus_one], &time_axis);
    let next = g.reshape(&next, &split);
    (g.concat(&[&first, &next], 1), after)
}
