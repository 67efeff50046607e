//! Gated linear attention; the counterpart of `models::ops::gated_linear_attention`, and with chunks of what RWKV shares
//! with it.

use crate::graph::Attribute::{Float, Int, Text};
use crate::graph::{GraphBuilder, Value};
use crate::{ExportError, Target};

/// The matrix memory of every head.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) heads: usize,
    /// Channels of a key.
    pub(crate) key: usize,
    /// Channels of a value.
    pub(crate) value: usize,
}

impl Memory {
    fn sizes(self) -> [i64; 3] {
        [self.heads, self.key, self.value].map(|size| size as i64)
    }

    /// The operation from and to the state called `state`, `[batch, heads, key, value]`: `q`, `k` and `log_decay`
    /// `[batch, seq, heads·key]`, `v` `[batch, seq, heads·value]` → `[batch, seq, heads·value]`.
    pub(crate) fn lower(
        self,
        g: &mut GraphBuilder<'_>,
        state: &str,
        ids: &Value,
        inputs: [&Value; 4],
    ) -> Result<Value, ExportError> {
        let (doc, dims) = ("the memory of every head, by key and value", [self.heads, self.key, self.value]);
        let before = g.state_input(state, doc, ids, &dims);
        let (y, after) = g.scope("linear_attention", |g| match g.target() {
            Target::Portable => self.standard(g, ids, inputs, &before),
            Target::Ort => Ok(self.fused(g, inputs, &before)),
        })?;
        g.state_output(state, doc, after, &dims);
        Ok(y)
    }

    /// One decay per head, `[batch, seq, heads]`, as one for every channel of its keys, `[batch, seq, heads·key]`.
    pub(crate) fn spread(self, g: &mut GraphBuilder<'_>, log_decay: &Value) -> Value {
        let [heads, key, _] = self.sizes();
        g.scope("decay", |g| {
            let apart = g.list("apart", &[0, 0, heads, 1]);
            let repeats = g.list("repeats", &[1, 1, 1, key]);
            let joined = g.list("joined", &[0, 0, heads * key]);
            let x = g.reshape(log_decay, &apart);
            let x = g.node("Tile", &[&x, &repeats], &[]);
            g.reshape(&x, &joined)
        })
    }

    /// With standard operators: what a step reads of earlier ones, of which it forgets some, and of its own key.
    fn standard(
        self,
        g: &mut GraphBuilder<'_>,
        ids: &Value,
        [q, k, v, log_decay]: [&Value; 4],
        before: &Value,
    ) -> Result<(Value, Value), ExportError> {
        let [heads, key, value] = self.sizes();
        let decay = g.exp(log_decay);
        let reads = g.mul(q, &decay);
        let (earlier, after) = chunks(g, ids, [&reads, k, v, &decay], before, self)?;
        let keys = g.list("keys", &[0, 0, heads, key]);
        let values = g.list("values", &[0, 0, heads, value]);
        let product = g.mul(q, k);
        let product = g.reshape(&product, &keys);
        let channel_axis = g.list("channel_axis", &[3]);
        let own = g.node("ReduceSum", &[&product, &channel_axis], &[("keepdims", Int(1))]);
        let v = g.reshape(v, &values);
        let own = g.mul(&own, &v);
        let y = g.add(&earlier, &own);
        let joined = g.list("values_joined", &[0, 0, heads * value]);
        Ok((g.reshape(&y, &joined), after))
    }

    /// By ONNX Runtime's operator.
    fn fused(self, g: &mut GraphBuilder<'_>, [q, k, v, log_decay]: [&Value; 4], before: &Value) -> (Value, Value) {
        let heads = self.heads as i64;
        let attributes = [
            ("q_num_heads", Int(heads)),
            ("kv_num_heads", Int(heads)),
            ("scale", Float(1.0)),
            ("update_rule", Text("gated")),
        ];
        let [y, after] = g.nodes("com.microsoft.LinearAttention", &[q, k, v, before, log_decay], &attributes);
        (y, after)
    }
}

/// Time steps that are worked on at once; then the state moves on by one step of a loop.
const CHUNK: usize = 16;

/// What steps read of earlier ones, `[batch, seq, heads, value]`, and the memory at the end, with standard operators: `q`,
/// `k` and `decay` `[batch, seq, heads·key]`, `v` `[batch, seq, heads·value]`.
///
/// The sequence is cut into chunks, the last one filled up with steps that do nothing. Within all chunks at once, what
/// steps read of earlier ones is found by doubling blocks, as in `models::ops::wkv::chunked`; a loop over the chunks
/// carries the state.
pub(crate) fn chunks(
    g: &mut GraphBuilder<'_>,
    ids: &Value,
    inputs: [&Value; 4],
    before: &Value,
    memory: Memory,
) -> Result<(Value, Value), ExportError> {
    let [heads, key, value] = memory.sizes();
    let chunk = CHUNK as i64;
    let time_axis = g.list("time_axis", &[1]);
    let seq = g.sizes(ids, 1..2);
    let (zero, length) = (g.list("zero", &[0]), g.list("chunk", &[chunk]));
    let missing = g.neg(&seq);
    let missing = g.modulo(&missing, &length);
    let pads = g.concat(&[&zero, &missing], 0);
    let (nothing, keep) = (g.scalar("nothing", 0f32), g.scalar("keep", 1f32));
    let by_chunk = [key, key, value, key].map(|size| g.list("by_chunk", &[0, -1, chunk, heads, size]));
    let fills = [&nothing, &nothing, &nothing, &keep];
    let whole: [Value; 4] = std::array::from_fn(|i| {
        let x = g.node("Pad", &[inputs[i], &pads, fills[i], &time_axis], &[]);
        let x = g.reshape(&x, &by_chunk[i]);
        g.transpose(&x, &[1, 0, 3, 2, 4]) // [chunks, batch, heads, chunk, key or value]
    });

    let mut blocks = Blocks::new(g, &whole, [key, value]);
    while blocks.length < chunk {
        blocks = blocks.double(g);
    }
    let flat = g.list("flat", &[-1, chunk, key]);
    let shape = g.node("Shape", &[&whole[0]], &[]);
    let decayed = |g: &mut GraphBuilder<'_>, x: &Value, by: &Value| {
        let x = g.reshape(x, &flat);
        let by = g.reshape(by, &flat);
        let x = g.mul(&x, &by);
        g.reshape(&x, &shape) // [chunks, batch, heads, chunk, key]
    };
    let reads = decayed(g, &whole[0], &blocks.since);
    let writes = decayed(g, &whole[1], &blocks.until);
    let writes = g.transpose(&writes, &[0, 1, 2, 4, 3]);
    let written = g.matmul(&writes, &whole[2]); // [chunks, batch, heads, key, value]
    let outer = g.node("Shape", &[&whole[0]], &[("end", Int(3))]);
    let column = g.list("column", &[key, 1]);
    let column = g.concat(&[&outer, &column], 0);
    let total = g.reshape(&blocks.total, &column); // [chunks, batch, heads, key, 1]
    let ([after], [carried]) =
        g.scan([before], [&reads, &written, &total], |g, [state], [reads, written, total]| {
            let read = g.matmul(&reads, &state);
            let kept = g.mul(&total, &state);
            Ok(([g.add(&kept, &written)], [read]))
        })?;

    let outputs = g.node("Shape", &[&whole[2]], &[]);
    let within = g.reshape(&blocks.y, &outputs);
    let y = g.add(&within, &carried);
    let y = g.transpose(&y, &[1, 0, 3, 2, 4]); // [batch, chunks, chunk, heads, value]
    let joined = g.list("joined", &[0, -1, heads, value]);
    let y = g.reshape(&y, &joined);
    Ok((g.slice(&y, [&zero, &seq], &time_axis), after))
}

/// The blocks into which every chunk is cut, `length` steps each; all tensors are `[blocks, length, key]`, those of values
/// `[blocks, length, value]`.
struct Blocks {
    length: i64,
    /// Channels of keys and of values.
    sizes: [i64; 2],
    r: Value,
    k: Value,
    v: Value,
    /// The contributions of the block's earlier steps to each step's output, like `v`.
    y: Value,
    /// The product of the decays of the block's steps before each.
    since: Value,
    /// The product of the decays of the block's steps after each.
    until: Value,
    /// The product of all decays of the block, `[blocks, 1, key]`.
    total: Value,
}

impl Blocks {
    /// Blocks of one step, from r, k, v and decays.
    fn new(g: &mut GraphBuilder<'_>, [r, k, v, decay]: &[Value; 4], sizes: [i64; 2]) -> Self {
        let [single, single_value] = sizes.map(|size| g.list("single", &[-1, 1, size]));
        let total = g.reshape(decay, &single);
        let shape = g.node("Shape", &[&total], &[]);
        let (zero, one) = (g.scalar("no_reads", 0f32), g.scalar("no_decays", 1f32));
        let ones = g.node("Expand", &[&one, &shape], &[]);
        let y = g.reshape(v, &single_value);
        let shape = g.node("Shape", &[&y], &[]);
        let y = g.node("Expand", &[&zero, &shape], &[]);
        let (r, k, v) = (r.clone(), k.clone(), v.clone());
        Self { length: 1, sizes, r, k, v, y, since: ones.clone(), until: ones, total }
    }

    /// Blocks twice as long: the second half of each reads what the first has written,
    /// (r·since)·(k·until)ᵀ·v.
    fn double(self, g: &mut GraphBuilder<'_>) -> Self {
        let Self { length, sizes, r, k, v, y, since, until, total } = self;
        g.scope(format!("blocks_{}", 2 * length), |g| {
            let [keys, values] = sizes.map(|size| g.list("pairs", &[-1, 2, length, size]));
            let halves = |g: &mut GraphBuilder<'_>, x: &Value, pairs: &Value| -> [Value; 2] {
                let x = g.reshape(x, pairs);
                g.nodes("Split", &[&x], &[("axis", Int(1)), ("num_outputs", Int(2))]) // [pairs, 1, length, …] each
            };
            let ([_, r2], [k1, _], [v1, _]) = (halves(g, &r, &keys), halves(g, &k, &keys), halves(g, &v, &values));
            let ([y1, y2], [s1, s2]) = (halves(g, &y, &values), halves(g, &since, &keys));
            let [u1, u2] = halves(g, &until, &keys);
            let pair = g.list("pair", &[-1, 2, 1, sizes[0]]);
            let total = g.reshape(&total, &pair);
            let [t1, t2] = g.nodes("Split", &[&total], &[("axis", Int(1)), ("num_outputs", Int(2))]);

            let queries = g.mul(&r2, &s2);
            let keys = g.mul(&k1, &u1);
            let keys = g.transpose(&keys, &[0, 1, 3, 2]);
            let scores = g.matmul(&queries, &keys); // [pairs, 1, length, length]
            let read = g.matmul(&scores, &v1);
            let y2 = g.add(&y2, &read);
            let s2 = g.mul(&s2, &t1);
            let u1 = g.mul(&u1, &t2);
            let total = g.mul(&t1, &t2);
            let join = |g: &mut GraphBuilder<'_>, halves: [&Value; 2]| g.node("Concat", &halves, &[("axis", Int(1))]);
            let (y, since, until) = (join(g, [&y1, &y2]), join(g, [&s1, &s2]), join(g, [&u1, &u2]));
            Self { length: 2 * length, sizes, r, k, v, y, since, until, total }
        })
    }
}
