//! Attention between the projections of a Transformer, and its masks.

use crate::graph::Attribute::Int;
use crate::graph::{GraphBuilder, Value};
use crate::onnx::tensor_proto::DataType;
use crate::positions::Score;
use crate::{ExportError, Target};
use models::transformer::OUTSIDE_WINDOW;

/// Queries that [`Form::Blocks`] takes at once: their scores against 1000 keys stay in a core's cache.
const BLOCK: i64 = 64;

/// Into how many parts [`Form::Parts`] cuts the queries: 9/16 of all pairs of tokens are left.
const PARTS: usize = 8;

/// Attention as every layer computes it, with the same masks.
pub(crate) struct Attention {
    terms: Terms,
    form: Form,
}

/// The terms of the scores beside the scaled product of queries and keys: stated here for every form.
struct Terms {
    /// The effect of positions on the scores of all layers.
    score: Score,
    visible: Visible,
}

/// Which keys a query sees, besides what the padding mask says.
pub(crate) struct Visible {
    /// Whether no query is hidden from itself.
    pub(crate) identity: bool,
    /// Whether no query sees keys after itself.
    pub(crate) causal: bool,
    /// How many keys, up to the query's own, each head sees; 0 is all of them. Empty where that is true of all heads.
    pub(crate) windows: Vec<usize>,
}

/// How attention is computed.
enum Form {
    /// The queries in [`PARTS`] parts, without the keys after each part.
    Parts(Vec<Part>),
    /// A loop over blocks of queries, which leaves out the keys after each block. Half the products, and no
    /// `[batch, heads, seq, seq]` in memory: best on a CPU. On a GPU a loop costs more than it saves.
    Blocks(Blocks),
}

/// Values of [`Form::Parts`] shared between layers.
struct Part {
    /// The first query, `[1]`.
    start: Value,
    /// One past the last query, `[1]`.
    end: Value,
    /// The index of every query, `[query]`.
    query: Value,
    /// The index of every key up to the last query, `[key]`.
    key: Value,
    /// Added to the scores, `[batch, 1 or heads, query, key]`.
    added: Value,
}

/// Values of [`Form::Blocks`] shared between layers.
struct Blocks {
    /// The length of the sequence, `[1]`.
    seq: Value,
    /// The index of every key, `[key]`.
    key: Value,
    /// 1 at keys that the padding mask hides, `[batch, 1, 1, key]`.
    hidden: Value,
    /// The first query of every block, `[blocks]`.
    starts: Value,
    /// How many queries are missing in the last block, and 0 before the first: a `Pad` of time.
    pads: Value,
}

impl Attention {
    /// Adds the nodes that all layers share. Keys where `attention_mask` is 0 are hidden, and those that are not
    /// `visible`.
    pub(crate) fn new(
        g: &mut GraphBuilder<'_>,
        ids: &Value,
        attention_mask: &Value,
        visible: Visible,
        score: Score,
    ) -> Self {
        let terms = Terms { score, visible };
        let form = g.scope("mask", |g| {
            let (zero, one) = (g.scalar("zero", 0i64), g.scalar("one", 1i64));
            let seq = g.sizes(ids, 1..2);
            let length = g.node("Squeeze", &[&seq], &[]);
            let key = g.node("Range", &[&zero, &length, &one], &[]); // [key]
            let hidden = g.sub(&one, attention_mask); // [batch, key]
            let hidden = g.cast(&hidden, DataType::Float);
            let middle_axes = g.list("middle_axes", &[1, 2]);
            let hidden = g.unsqueeze(&hidden, &middle_axes); // [batch, 1, 1, key]
            match g.target() {
                Target::Portable => Form::Parts(parts(g, &seq, &key, &hidden, &terms)),
                // Without a mask of later keys there is nothing to leave out.
                Target::Ort if !terms.visible.causal => Form::Parts(parts(g, &seq, &key, &hidden, &terms)),
                Target::Ort => {
                    let block = g.scalar("block", BLOCK);
                    let starts = g.node("Range", &[&zero, &length, &block], &[]);
                    let missing = g.neg(&seq);
                    let missing = g.modulo(&missing, &block);
                    let none = g.list("none", &[0]);
                    let pads = g.concat(&[&none, &missing], 0);
                    Form::Blocks(Blocks { seq, key, hidden, starts, pads })
                }
            }
        });
        Self { terms, form }
    }

    /// Queries and keys `[batch, heads, seq, head_dim]` as positions turn and scale them; `own` is the effect on this
    /// layer alone.
    pub(crate) fn turned(&self, g: &mut GraphBuilder<'_>, [q, k]: [Value; 2], own: &Score) -> [Value; 2] {
        let mut turned = [q, k];
        for score in [&self.terms.score, own] {
            let [q, k] = turned;
            turned = match score {
                Score::Rotation(rotation) => [rotation.apply(g, q), rotation.apply(g, k)],
                Score::Factor(factor) => [g.mul(&q, factor), k],
                Score::Nothing | Score::Bias(_) | Score::Content(_) => [q, k],
            };
        }
        turned
    }

    /// softmax(q·kᵀ + terms)·v per head: `q` (scaled) and `v` `[batch, heads, seq, head_dim]`, `k`
    /// `[batch, heads, head_dim, seq]` → `[batch, seq, hidden]`. `own` is the effect of positions on this layer alone.
    pub(crate) fn attend(
        &self,
        g: &mut GraphBuilder<'_>,
        [q, k, v]: [&Value; 3],
        [heads, head_dim]: [usize; 2],
        own: &Score,
    ) -> Result<Value, ExportError> {
        let merged = g.list("merged", &[0, -1, (heads * head_dim) as i64]); // 0 keeps an axis as it is
        match &self.form {
            Form::Parts(parts) => {
                let zero = g.list("zero", &[0]);
                let attended = parts.iter().map(|Part { start, end, query, key, added }| {
                    let [q, k, v] = [(q, start, 2), (k, &zero, 3), (v, &zero, 2)]
                        .map(|(x, start, axis)| slice(g, x, start, end, axis));
                    weighted_sum(g, [&q, &k, &v], added, (&self.terms, own), [query, key]) // [batch, heads, query, head_dim]
                });
                let attended: Vec<Value> = attended.collect();
                let y = g.concat(&attended.iter().collect::<Vec<_>>(), 2);
                let y = g.transpose(&y, &[0, 2, 1, 3]);
                Ok(g.reshape(&y, &merged))
            }
            Form::Blocks(blocks) => {
                let y = blocks.attend(g, &self.terms, [q, k, v], [heads, head_dim], own)?; // [blocks, batch, heads, query, head_dim]
                let y = g.transpose(&y, &[1, 0, 3, 2, 4]);
                let y = g.reshape(&y, &merged);
                let (zero, time_axis) = (g.list("zero", &[0]), g.list("time_axis", &[1]));
                Ok(g.slice(&y, [&zero, &blocks.seq], &time_axis))
            }
        }
    }
}

impl Blocks {
    fn attend(
        &self,
        g: &mut GraphBuilder<'_>,
        terms: &Terms,
        [q, k, v]: [&Value; 3],
        [heads, head_dim]: [usize; 2],
        own: &Score,
    ) -> Result<Value, ExportError> {
        let time_axis = g.list("query_axis", &[2]);
        let q = g.node("Pad", &[q, &self.pads, &Value::none(), &time_axis], &[]);
        let by_block = g.list("by_block", &[0, heads as i64, -1, BLOCK, head_dim as i64]);
        let q = g.reshape(&q, &by_block);
        let q = g.transpose(&q, &[2, 0, 1, 3, 4]); // [blocks, batch, heads, query, head_dim]
        let ([], [y]) = g.scan([], [&q, &self.starts], |g, [], [q, start]| {
            let (zero, block) = (g.list("zero", &[0]), g.list("block", &[BLOCK]));
            let end = g.add(&start, &block); // [1]
            let end = g.node("Min", &[&end, &self.seq], &[]);
            let mut before_end = |x: &Value, axis: i64| slice(g, x, &zero, &end, axis);
            let (k, v) = (before_end(k, 3), before_end(v, 2));
            let (key, hidden) = (before_end(&self.key, 0), before_end(&self.hidden, 3));
            let step = g.constant("steps", &[BLOCK as usize], &(0..BLOCK).collect::<Vec<_>>());
            let query = g.add(&start, &step); // [query]
            let added = terms.added(g, &query, &key, &hidden);
            Ok(([], [weighted_sum(g, [&q, &k, &v], &added, (terms, own), [&query, &key])]))
        })?;
        Ok(y)
    }
}

/// The queries cut into [`PARTS`] parts, the later ones empty if there are fewer queries; in one part where every query sees
/// all keys.
fn parts(g: &mut GraphBuilder<'_>, seq: &Value, key: &Value, hidden: &Value, terms: &Terms) -> Vec<Part> {
    if !terms.visible.causal {
        let added = terms.added(g, key, key, hidden);
        let start = g.list("first", &[0]);
        return vec![Part { start, end: seq.clone(), query: key.clone(), key: key.clone(), added }];
    }
    let (zero, count) = (g.list("first", &[0]), g.list("parts", &[PARTS as i64]));
    let round_up = g.list("round_up", &[PARTS as i64 - 1]);
    let mut start = zero.clone();
    let parts = (1..=PARTS).map(|i| {
        let i = g.list(&format!("part_{i}"), &[i as i64]);
        let end = g.mul(seq, &i);
        let end = g.add(&end, &round_up);
        let end = g.div(&end, &count);
        let query = slice(g, key, &start, &end, 0);
        let (key, hidden) = (slice(g, key, &zero, &end, 0), slice(g, hidden, &zero, &end, 3));
        let added = terms.added(g, &query, &key, &hidden);
        Part { start: std::mem::replace(&mut start, end.clone()), end, query, key, added }
    });
    parts.collect()
}

/// The part of `x` from `start` to before `end` of an axis.
fn slice(g: &mut GraphBuilder<'_>, x: &Value, start: &Value, end: &Value, axis: i64) -> Value {
    let axis = g.list(&format!("axis_{axis}"), &[axis]);
    g.slice(x, [start, end], &axis)
}

/// The values as some queries see them. `added` is that of [`Terms::added`]; `query` and `key` are indices.
fn weighted_sum(
    g: &mut GraphBuilder<'_>,
    [q, k, v]: [&Value; 3],
    added: &Value,
    (terms, own): (&Terms, &Score),
    [query, key]: [&Value; 2],
) -> Value {
    let scores = g.matmul(q, k); // [batch, heads, query, key]
    let mut sum = scores.clone();
    for (score, is_own) in [(own, true), (&terms.score, false)] {
        let bias = match score {
            Score::Bias(bias) if is_own => {
                let query = column(g, query);
                bias.between(g, &query, key)
            }
            Score::Content(content) => content.bias(g, q, &scores, added),
            _ => continue, // in the queries and keys, or among what is added
        };
        sum = g.add(&sum, &bias);
    }
    let scores = g.add(&sum, added);
    let attended = g.node("Softmax", &[&scores], &[("axis", Int(-1))]);
    g.matmul(&attended, v)
}

/// `[n]` → `[n, 1]`.
fn column(g: &mut GraphBuilder<'_>, x: &Value) -> Value {
    let last_axis = g.list("last_axis", &[1]);
    g.unsqueeze(x, &last_axis)
}

impl Terms {
    /// The mask and bias, `[batch, 1 or heads, query, key]`, that are added to the scores: the lowest float where the
    /// key comes after the query of a causal model, and once more where `hidden` `[batch, 1, 1, key]` is 1, and a bias, if positions have
    /// one. `query` and `key` are indices.
    ///
    /// The model *sets* the scores of later keys to the lowest float and only adds it for hidden ones. Adding both is
    /// the same to the last bit: a score is far too small to change the lowest float, and it costs one operation per
    /// layer.
    fn added(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value, hidden: &Value) -> Value {
        let query = column(g, query); // [query, 1]
        let (lowest, nothing) = (g.scalar("lowest", f32::MIN), g.scalar("nothing", 0f32));
        let hides = if self.visible.identity {
            let itself = g.node("Equal", &[key, &query], &[]);
            g.choose(&itself, &nothing, &lowest) // [query, key]
        } else {
            lowest.clone()
        };
        let hidden = g.mul(hidden, &hides); // [batch, 1, 1 or query, key]
        let mask = if self.visible.causal {
            let future = g.node("Greater", &[key, &query], &[]); // [query, key]
            let future = g.choose(&future, &lowest, &nothing);
            g.add(&future, &hidden) // [batch, 1, query, key]
        } else {
            hidden
        };
        let mask = if self.visible.windows.iter().any(|window| *window > 0) {
            let past = self.past(g, &query, key); // [heads, query, key]
            g.add(&mask, &past)
        } else {
            mask
        };
        match &self.score {
            Score::Bias(bias) => {
                let bias = bias.between(g, &query, key); // [heads, query, key]
                g.add(&mask, &bias)
            }
            Score::Nothing | Score::Rotation(_) | Score::Factor(_) | Score::Content(_) => mask,
        }
    }

    /// A very low number where a key lies before the window of a head, `[heads, query, key]`.
    fn past(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value {
        let all = i64::MAX;
        let windows: Vec<i64> = self.visible.windows.iter().map(|w| if *w == 0 { all } else { *w as i64 }).collect();
        let windows = g.constant("windows", &[windows.len(), 1, 1], &windows);
        let (outside, inside) = (g.scalar("outside", OUTSIDE_WINDOW), g.scalar("inside", 0f32));
        let distance = g.sub(query, key); // [query, key]
        let past = g.node("GreaterOrEqual", &[&distance, &windows], &[]);
        g.choose(&past, &outside, &inside)
    }
}
