//! S4: embedding → residual blocks of LayerNorm and a structured state space per channel → decoder. The counterpart of
//! `models::s4`.

use crate::ExportError;
use crate::graph::Attribute::Int;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{affine, decoder, input_ids, layer_norm, logits, token_embedding};
use crate::onnx::tensor_proto::DataType;
use models::s4::{LAYER_NORM_EPSILON, MODES, S4Config};
use models::state_space::{S4Parameters, StateSpace, product};

/// The size of each channel's state: real parts, then imaginary parts.
const STATE: usize = 2 * MODES;
/// Time steps that are one product of matrices; a power of two.
const CHUNK: usize = 64;

pub(crate) fn lower(config: &S4Config, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let ids = input_ids(g); // [batch, seq]
    let mut x = token_embedding(g, "encoder", &ids, [vocab, hidden], config.freeze_null_embedding)?; // [batch, seq, hidden]
    for i in 0..config.num_layers {
        let u = g.scope("norms", |g| layer_norm(g, &i.to_string(), &x, hidden, LAYER_NORM_EPSILON))?;
        let y = g.scope(format!("s4_layers.{i}"), |g| -> Result<_, ExportError> {
            let y = g.scope("layer", |g| state_spaces(g, hidden, i, &ids, &u))?;
            let y = g.node("Gelu", &[&y], &[]);
            let z = g.scope("output_linear", |g| affine(g, "0", &y, [hidden, 2 * hidden]))?;
            let [z, gate] = g.nodes("Split", &[&z], &[("axis", Int(-1)), ("num_outputs", Int(2))]);
            let gate = g.sigmoid(&gate);
            Ok(g.mul(&z, &gate))
        })?;
        x = g.add(&x, &y);
    }
    let tied = config.tie_word_embeddings.then_some("encoder");
    let scores = decoder(g, "decoder", &x, [hidden, vocab], tied)?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// x_t = Ā·x_{t−1} + B̄·u_t, y_t = C·x_t + D·u_t in every channel: `u` `[batch, seq, hidden]` → the same shape, from
/// and to the state `x_l<layer>` `[batch, hidden, STATE]`.
fn state_spaces(
    g: &mut GraphBuilder<'_>,
    hidden: usize,
    layer: usize,
    ids: &Value,
    u: &Value,
) -> Result<Value, ExportError> {
    let (name, doc, dims) = (format!("x_l{layer}"), "the state of every channel", [hidden, STATE]);
    let before = g.state_input(&name, doc, ids, &dims);
    let (y, after) = g.scope("kernel", |g| -> Result<_, ExportError> {
        let matrices = Matrices::new(g, hidden)?;
        chunks(g, hidden, ids, u, &before, &matrices)
    })?;
    g.state_output(&name, doc, after, &dims);
    let d = g.parameter("D", &[1, hidden])?;
    let skip = g.mul(u, &d);
    Ok(g.add(&y, &skip))
}

/// The recurrence in chunks of c = [`CHUNK`] steps: matrices that row vectors are multiplied by, one per channel.
struct Matrices {
    /// Āᵀ, `[hidden, STATE, STATE]`.
    step: Value,
    /// (Āᶜ)ᵀ, `[hidden, STATE, STATE]`.
    chunk: Value,
    /// The inputs of a chunk → the state after it, `[hidden, CHUNK, STATE]`: row s is Ā^{c−1−s}·B̄.
    write: Value,
    /// The state before a chunk → its outputs, `[hidden, STATE, CHUNK]`: column t is C·Ā^{t+1}.
    read: Value,
    /// The inputs of a chunk → its outputs, `[hidden, CHUNK, CHUNK]`: entry (s, t) is C·Ā^{t−s}·B̄, 0 where s > t.
    toeplitz: Value,
}

impl Matrices {
    /// From the current module's weights. All powers are computed in float64: errors of a single step would add up over
    /// the thousands of steps that a channel remembers.
    fn new(g: &mut GraphBuilder<'_>, hidden: usize) -> Result<Self, ExportError> {
        let l_kernel = g.integer("l_kernel")?;
        let modes = [hidden, MODES];
        let pairs = [1, hidden, MODES, 2];
        let parameters = S4Parameters {
            inv_dt: &g.weight("inv_dt", &[hidden, 1])?.values,
            a_real: &g.weight("A_real", &modes)?.values,
            a_imag: &g.weight("A_imag", &modes)?.values,
            b: &g.weight("B", &pairs)?.values,
            c: &g.weight("C", &pairs)?.values,
            p: &g.weight("P", &pairs)?.values,
        };
        let [mut step, mut chunk, mut write, mut read, mut toeplitz] = [(); 5].map(|()| Vec::<f32>::new());
        let narrow = |values: Vec<f64>| values.into_iter().map(|v| v as f32);
        for mut space in parameters.channels() {
            space.untruncate(l_kernel);
            step.extend(narrow(transposed(&space.a, STATE)));
            chunk.extend(narrow(transposed(&space.power(CHUNK), STATE)));
            let (writes, reads, taps) = unrolled(&space);
            write.extend(narrow(writes.into_iter().rev().flatten().collect()));
            read.extend(narrow(transposed(&reads.concat(), STATE)));
            let entry = |s: usize, t: usize| if s > t { 0.0 } else { taps[t - s] as f32 };
            toeplitz.extend((0..CHUNK).flat_map(|s| (0..CHUNK).map(move |t| (s, t))).map(|(s, t)| entry(s, t)));
        }
        Ok(Self {
            step: g.constant("step", &[hidden, STATE, STATE], &step),
            chunk: g.constant("chunk", &[hidden, STATE, STATE], &chunk),
            write: g.constant("write", &[hidden, CHUNK, STATE], &write),
            read: g.constant("read", &[hidden, STATE, CHUNK], &read),
            toeplitz: g.constant("toeplitz", &[hidden, CHUNK, CHUNK], &toeplitz),
        })
    }
}

/// Āᵗ·B̄, C·Ā^{t+1} and C·Āᵗ·B̄ for t < [`CHUNK`].
#[allow(clippy::type_complexity)] // three lists over time
fn unrolled(space: &StateSpace) -> (Vec<Vec<f64>>, Vec<Vec<f64>>, Vec<f64>) {
    let columns = transposed(&space.a, space.n);
    let (mut b, mut c) = (space.b.clone(), space.c.clone());
    let (mut writes, mut reads, mut taps) = (vec![], vec![], vec![]);
    for _ in 0..CHUNK {
        taps.push(b.iter().zip(&space.c).map(|(b, c)| b * c).sum());
        c = product(&c, &space.a, space.n);
        reads.push(c.clone());
        let next = product(&b, &columns, space.n);
        writes.push(std::mem::replace(&mut b, next));
    }
    (writes, reads, taps)
}

/// `[m, n]` → `[n, m]`.
fn transposed(matrix: &[f64], n: usize) -> Vec<f64> {
    (0..n).flat_map(|column| matrix.iter().skip(column).step_by(n).copied()).collect()
}

/// The outputs `[batch, seq, hidden]` without D, and the state after the last step.
///
/// The sequence is cut into chunks, the last one filled up with zeros. One product for all chunks gives their outputs
/// and states from their own inputs; a loop carries the state from chunk to chunk; a product with the states before all
/// chunks adds their part of the outputs.
fn chunks(
    g: &mut GraphBuilder<'_>,
    hidden: usize,
    ids: &Value,
    u: &Value,
    before: &Value,
    m: &Matrices,
) -> Result<(Value, Value), ExportError> {
    let (channels, state, chunk) = (hidden as i64, STATE as i64, CHUNK as i64);
    let (zero, time_axis) = (g.list("zero", &[0]), g.list("time_axis", &[1]));
    let length = g.list("length", &[chunk]);
    let seq = g.sizes(ids, 1..2);
    let batch = g.sizes(ids, 0..1);

    let missing = g.neg(&seq);
    let missing = g.modulo(&missing, &length);
    let pads = g.concat(&[&zero, &missing], 0);
    let whole = g.node("Pad", &[u, &pads, &Value::none(), &time_axis], &[]);
    let whole = g.transpose(&whole, &[2, 0, 1]); // [hidden, batch, chunks·CHUNK]
    let rows = g.list("input_rows", &[channels, -1, chunk]);
    let inputs = g.reshape(&whole, &rows); // [hidden, batch·chunks, CHUNK]

    let written = g.matmul(&inputs, &m.write); // [hidden, batch·chunks, STATE]
    let (hidden_axis, any, size) = (g.list("hidden", &[channels]), g.list("any", &[-1]), g.list("state", &[state]));
    let by_chunk = g.concat(&[&hidden_axis, &batch, &any, &size], 0);
    let written = g.reshape(&written, &by_chunk);
    let written = g.transpose(&written, &[2, 0, 1, 3]); // [chunks, hidden, batch, STATE]
    let start = g.transpose(before, &[1, 0, 2]); // [hidden, batch, STATE]
    let (_, [states]) = g.scan([&start], [&written], |g, [x], [written]| {
        let kept = g.matmul(&x, &m.chunk);
        Ok(([g.add(&kept, &written)], [g.node("Identity", &[&x], &[])]))
    })?; // the states before the chunks, [chunks, hidden, batch, STATE]
    let after = last_state(g, ids, u, &states, m);

    let states = g.transpose(&states, &[1, 2, 0, 3]);
    let rows = g.list("state_rows", &[channels, -1, state]);
    let states = g.reshape(&states, &rows); // [hidden, batch·chunks, STATE]
    let own = g.matmul(&inputs, &m.toeplitz); // [hidden, batch·chunks, CHUNK]
    let earlier = g.matmul(&states, &m.read);
    let y = g.add(&own, &earlier);
    let shape = g.node("Shape", &[&whole], &[]);
    let y = g.reshape(&y, &shape);
    let y = g.transpose(&y, &[1, 2, 0]); // [batch, chunks·CHUNK, hidden]
    Ok((g.slice(&y, [&zero, &seq], &time_axis), after))
}

/// The state after the last step, `[batch, hidden, STATE]`. The last chunk has r = 1 … CHUNK steps of the sequence:
/// x ← Āʳ·x + Σ Ā^{r−1−s}·B̄·u_s, where Āʳ is put together from Ā, Ā², Ā⁴ … by the binary digits of r.
fn last_state(g: &mut GraphBuilder<'_>, ids: &Value, u: &Value, states: &Value, m: &Matrices) -> Value {
    g.scope("last", |g| {
        let (zero, one, time_axis) = (g.list("zero", &[0]), g.list("one", &[1]), g.list("time_axis", &[1]));
        let (length, end) = (g.list("length", &[CHUNK as i64]), g.list("end", &[i64::MAX]));
        let seq = g.sizes(ids, 1..2);
        let steps = g.sub(&seq, &one);
        let steps = g.modulo(&steps, &length);
        let steps = g.add(&steps, &one); // r, [1]

        let start = g.sub(&seq, &steps);
        let inputs = g.slice(u, [&start, &end], &time_axis); // [batch, r, hidden]
        let missing = g.sub(&length, &steps);
        let pads = g.concat(&[&missing, &zero], 0);
        let inputs = g.node("Pad", &[&inputs, &pads, &Value::none(), &time_axis], &[]);
        let inputs = g.transpose(&inputs, &[2, 0, 1]); // [hidden, batch, CHUNK]
        let written = g.matmul(&inputs, &m.write);

        let last = g.scalar("last", -1i64);
        let mut x = g.gather(states, &last, 0); // [hidden, batch, STATE]
        let two = g.list("two", &[2]);
        let (mut power, mut digits) = (m.step.clone(), steps);
        for digit in 0..=CHUNK.ilog2() {
            let odd = g.modulo(&digits, &two);
            let odd = g.cast(&odd, DataType::Bool);
            let moved = g.matmul(&x, &power);
            x = g.choose(&odd, &moved, &x);
            digits = g.div(&digits, &two);
            // The last digit stands for a whole chunk.
            power = if digit + 1 < CHUNK.ilog2() { g.matmul(&power, &power) } else { m.chunk.clone() };
        }
        let x = g.add(&x, &written);
        g.transpose(&x, &[1, 0, 2])
    })
}
