//! The layers that architectures share; the counterparts of `models::layers`.

use crate::ExportError;
use crate::graph::Attribute::{Float, Int};
use crate::graph::{Attribute, BATCH, Dim, GraphBuilder, SEQ, Value};
use crate::onnx::tensor_proto::DataType;

/// The input `input_ids` `[batch, seq]`.
pub(crate) fn input_ids(g: &mut GraphBuilder<'_>) -> Value {
    g.input("input_ids", "token ids", DataType::Int64, &[BATCH, SEQ])
}

/// The output `logits` `[batch, seq, vocab]`.
pub(crate) fn logits(g: &mut GraphBuilder<'_>, value: Value, vocab: usize) {
    g.output(
        "logits",
        "one score per token of the vocabulary",
        value,
        DataType::Float,
        &[BATCH, SEQ, Dim::Fixed(vocab)],
    );
}

/// `[a, b]` → `[a, b, hidden]`; `weight` is `[vocab, hidden]`.
pub(crate) fn embedding(
    g: &mut GraphBuilder<'_>,
    module: &str,
    ids: &Value,
    [vocab, hidden]: [usize; 2],
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let weight = g.weight("weight", &[vocab, hidden])?;
        let table = g.factor("weight", &[vocab, hidden], &weight.values);
        Ok(lookup(g, &table, ids))
    })
}

/// The rows `ids` `[a, b]` of a table `[vocab, hidden]`, `[a, b, hidden]`.
pub(crate) fn lookup(g: &mut GraphBuilder<'_>, table: &Value, ids: &Value) -> Value {
    let rows = g.gather(table, ids, 0);
    g.widen(&rows)
}

/// `[a, b]` → `[a, b, hidden]`, the counterpart of `TokenEmbedding`.
pub(crate) fn token_embedding(
    g: &mut GraphBuilder<'_>,
    module: &str,
    ids: &Value,
    [vocab, hidden]: [usize; 2],
    freeze_null: bool,
) -> Result<Value, ExportError> {
    if !freeze_null {
        return embedding(g, module, ids, [vocab, hidden]);
    }
    g.scope(module, |g| {
        let table = token_table(g, [vocab, hidden], freeze_null)?;
        let table = g.constant("weight", &[vocab, hidden], &table);
        Ok(g.gather(&table, ids, 0))
    })
}

/// The current module's embeddings `[vocab, hidden]`: where the null embedding is frozen, the checkpoint has the table
/// in two parts.
pub(crate) fn token_table(
    g: &mut GraphBuilder<'_>,
    [vocab, hidden]: [usize; 2],
    freeze_null: bool,
) -> Result<Vec<f32>, ExportError> {
    if !freeze_null {
        return Ok(g.weight("weight", &[vocab, hidden])?.values.clone());
    }
    let null = g.weight("weight_freeze", &[1, hidden])?;
    let others = g.weight("weight_train", &[vocab.saturating_sub(1), hidden])?;
    Ok([null.values.as_slice(), &others.values].concat())
}

/// The logits of `[a, b, hidden]`. A model with tied embeddings decodes x/√hidden with the table of the module `tied`.
pub(crate) fn decoder(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [hidden, vocab]: [usize; 2],
    tied: Option<&str>,
) -> Result<Value, ExportError> {
    let Some(embedding) = tied else { return linear(g, module, x, [hidden, vocab]) };
    let x = g.scope(module, |g| {
        let scale = g.scalar("scale", (1.0 / (hidden as f64).sqrt()) as f32);
        g.mul(x, &scale)
    });
    linear(g, embedding, &x, [hidden, vocab])
}

/// y = x·Wᵀ, `[a, b, in]` → `[a, b, out]`. The checkpoint's `weight` `[out, in]` is stored transposed, as `weight.T`,
/// so that no program has to transpose it while loading.
pub(crate) fn linear(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [input, output]: [usize; 2],
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let weight = g.weight("weight", &[output, input])?;
        let transposed: Vec<f32> =
            (0..input).flat_map(|i| weight.values.iter().skip(i).step_by(input).copied()).collect();
        let weight = g.factor("weight.T", &[input, output], &transposed);
        let x = g.narrow(x);
        let product = g.matmul(&x, &weight);
        Ok(g.widen(&product))
    })
}

/// y = x·Wᵀ + b, `[a, b, in]` → `[a, b, out]`; the weight as in [`linear`].
pub(crate) fn affine(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [input, output]: [usize; 2],
) -> Result<Value, ExportError> {
    let product = linear(g, module, x, [input, output])?;
    g.scope(module, |g| {
        let bias = g.parameter("bias", &[output])?;
        Ok(g.add(&product, &bias))
    })
}

/// y·σ(y), which ONNX has no operator for.
pub(crate) fn silu(g: &mut GraphBuilder<'_>, y: &Value) -> Value {
    let gate = g.sigmoid(y);
    g.mul(y, &gate)
}

/// log(1 + eˣ). Step sizes are small, and ONNX's `Softplus` may lose significant digits: where z = e^{−|x|} is small,
/// so is the part of 1 + z that is not rounded away. The quotient log(w)/(w − 1) at the rounded w = 1 + z makes up for
/// it (Kahan; see Higham, Accuracy and Stability of Numerical Algorithms, section 1.14.1).
pub(crate) fn softplus(g: &mut GraphBuilder<'_>, x: &Value) -> Value {
    g.scope("softplus", |g| {
        let (one, tiny) = (g.scalar("one", 1f32), g.scalar("tiny", f32::MIN_POSITIVE));
        let size = g.node("Abs", &[x], &[]);
        let size = g.neg(&size);
        let z = g.exp(&size);
        let w = g.add(&z, &one);
        let log = g.node("Log", &[&w], &[]);
        let rest = g.sub(&w, &one);
        let rest = g.node("Max", &[&rest, &tiny], &[]); // log(1) is 0, and 0/0 must not be
        let quotient = g.div(&log, &rest);
        let log = g.mul(&quotient, &z);
        let positive = g.relu(x);
        g.add(&positive, &log)
    })
}

/// x / √(mean x² + ε) · weight over the last axis, which has `hidden` channels.
pub(crate) fn rms_norm(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    hidden: usize,
    epsilon: f64,
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let weight = g.parameter("weight", &[hidden])?;
        let normal = unit_mean_square(g, x, epsilon);
        Ok(g.mul(&normal, &weight))
    })
}

/// The same for every group of channels by itself, with a weight for each channel, `[batch, seq, groups·width]`.
pub(crate) fn grouped_rms_norm(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [groups, width]: [usize; 2],
    epsilon: f64,
) -> Result<Value, ExportError> {
    if groups == 1 {
        return rms_norm(g, module, x, width, epsilon);
    }
    g.scope(module, |g| {
        let weight = g.parameter("weight", &[groups * width])?;
        let apart = g.list("groups", &[0, 0, groups as i64, width as i64]);
        let joined = g.list("groups_joined", &[0, 0, (groups * width) as i64]);
        let x = g.reshape(x, &apart);
        let normal = unit_mean_square(g, &x, epsilon);
        let normal = g.reshape(&normal, &joined);
        Ok(g.mul(&normal, &weight))
    })
}

/// x / √(mean x² + ε) over the last axis.
fn unit_mean_square(g: &mut GraphBuilder<'_>, x: &Value, epsilon: f64) -> Value {
    let (two, epsilon) = (g.scalar("two", 2f32), g.scalar("epsilon", epsilon as f32));
    let channels = g.list("channel_axis", &[-1]);
    let square = g.node("Pow", &[x, &two], &[]);
    let mean = g.node("ReduceMean", &[&square, &channels], &[("keepdims", Int(1))]);
    let mean = g.add(&mean, &epsilon);
    let root = g.node("Sqrt", &[&mean], &[]);
    g.div(x, &root)
}

/// A causal convolution of each channel with a few taps of its own; the counterpart of `models::layers::ShortConv`, without
/// its SiLU.
#[derive(Clone, Copy)]
pub(crate) struct ShortConvolution {
    pub(crate) channels: usize,
    pub(crate) taps: usize,
    pub(crate) biased: bool,
}

impl ShortConvolution {
    /// `[batch, seq, channels]` → the same shape, from and to the state called `state`: the last inputs
    /// `[batch, channels, taps − 1]`.
    pub(crate) fn lower(
        self,
        g: &mut GraphBuilder<'_>,
        module: &str,
        state: &str,
        ids: &Value,
        x: &Value,
    ) -> Result<Value, ExportError> {
        let Self { channels, taps, biased } = self;
        let (doc, dims) = ("the last inputs of the convolution", [channels, taps - 1]);
        let before = g.state_input(state, doc, ids, &dims);
        let (y, after) = g.scope(module, |g| -> Result<_, ExportError> {
            let weight = g.parameter("weight", &[channels, 1, taps])?;
            let bias = if biased { g.parameter("bias", &[channels])? } else { Value::none() };
            let x = g.transpose(x, &[0, 2, 1]);
            let x = g.concat(&[&before, &x], 2); // [batch, channels, taps − 1 + seq]
            let inputs = [&x, &weight, &bias];
            let y = g.node("Conv", &inputs[..if biased { 3 } else { 2 }], &[("group", Int(channels as i64))]);
            let (start, end, axis) =
                (g.list("start", &[1 - taps as i64]), g.list("end", &[i64::MAX]), g.list("axis", &[2]));
            let after = g.slice(&x, [&start, &end], &axis);
            Ok((g.transpose(&y, &[0, 2, 1]), after))
        })?;
        g.state_output(state, doc, after, &dims);
        Ok(y)
    }
}

/// down(GELU(up(x))), four times as wide in between.
pub(crate) fn mlp(g: &mut GraphBuilder<'_>, module: &str, x: &Value, hidden: usize) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let x = affine(g, "up", x, [hidden, 4 * hidden])?;
        let x = g.node("Gelu", &[&x], &[]);
        affine(g, "down", &x, [4 * hidden, hidden])
    })
}

/// y = x·W + b, `[a, b, in]` → `[a, b, out]`; `weight` is `[in, out]`, as in GPT-2's `Conv1D`.
pub(crate) fn conv1d(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [input, output]: [usize; 2],
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let weight = g.weight("weight", &[input, output])?;
        let weight = g.factor("weight", &[input, output], &weight.values);
        let bias = g.parameter("bias", &[output])?;
        let x = g.narrow(x);
        let product = g.matmul(&x, &weight);
        let product = g.widen(&product);
        Ok(g.add(&product, &bias))
    })
}

/// Normalisation over the last axis of `[a, b, hidden]`.
pub(crate) fn layer_norm(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    hidden: usize,
    epsilon: f64,
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let weight = g.parameter("weight", &[hidden])?;
        let bias = g.parameter("bias", &[hidden])?;
        let attributes = [("axis", Int(-1)), ("epsilon", Float(epsilon))];
        Ok(g.node("LayerNormalization", &[x, &weight, &bias], &attributes))
    })
}

/// Whether a first layer's products with the embeddings are looked up: where the vocabulary has at most twice as many
/// tokens as the model has channels. The tables are then not much larger than the matrices.
pub(crate) fn is_tabular(vocab: usize, hidden: usize) -> bool {
    vocab <= 2 * hidden
}

/// The current module's LayerNorm of rows of `hidden` numbers.
pub(crate) fn normalized_rows(
    g: &mut GraphBuilder<'_>,
    rows: &[f64],
    hidden: usize,
    epsilon: f64,
) -> Result<Vec<f64>, ExportError> {
    let weight = g.weight("weight", &[hidden])?;
    let bias = g.weight("bias", &[hidden])?;
    let normalized = rows.chunks_exact(hidden).flat_map(|row| {
        let mean = row.iter().sum::<f64>() / hidden as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / hidden as f64;
        let scale = (variance + epsilon).sqrt().recip();
        let affine = weight.values.iter().zip(&bias.values);
        row.iter().zip(affine).map(move |(x, (&w, &b))| (x - mean) * scale * f64::from(w) + f64::from(b))
    });
    Ok(normalized.collect())
}

/// The product of matrices `[a, hidden]` and `[hidden, out]`, row-major.
pub(crate) fn row_products(rows: &[f64], matrix: &[f64], [hidden, out]: [usize; 2]) -> Vec<f64> {
    let row = |x: &[f64]| {
        let mut sums = vec![0.0; out];
        for (x, weights) in x.iter().zip(matrix.chunks_exact(out)) {
            sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += x * w);
        }
        sums
    };
    rows.chunks_exact(hidden).flat_map(row).collect()
}

/// The numbers as a graph holds them.
pub(crate) fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// A recurrent layer that ONNX has an operator for.
pub(crate) struct Cell {
    /// The operator.
    pub(crate) op: &'static str,
    /// The module that the layer's weights are in.
    pub(crate) module: &'static str,
    /// The gates in ONNX's order: the letter ONNX gives each, and its place among PyTorch's.
    pub(crate) gates: &'static [(char, usize)],
    /// The states that go from one token to the next, in ONNX's order.
    pub(crate) states: &'static [&'static str],
    /// The operator's attributes besides its width.
    pub(crate) attributes: &'static [(&'static str, Attribute<'static>)],
}

/// Recurrent layers on the embeddings of `turned` `[seq, batch]`, the turned `ids`; → `[seq, batch, hidden]`.
///
/// Where there are fewer tokens than channels, the embedding E is part of the first layer's weights W, as W·Eᵀ, and
/// that layer's input says which token it is: its product is then that much smaller.
pub(crate) fn recurrent_layers(
    g: &mut GraphBuilder<'_>,
    cell: &Cell,
    [ids, turned]: [&Value; 2],
    [vocab, hidden, layers]: [usize; 3],
    freeze_null: bool,
) -> Result<Value, ExportError> {
    let (mut x, mut encoder) = if vocab < hidden {
        let (x, table) = g.scope("encoder", |g| -> Result<_, ExportError> {
            let unit = |i: usize| f32::from(u8::from(i.is_multiple_of(vocab + 1)));
            let units: Vec<f32> = (0..vocab * vocab).map(unit).collect();
            let units = g.factor("one_hot", &[vocab, vocab], &units);
            Ok((lookup(g, &units, turned), token_table(g, [vocab, hidden], freeze_null)?))
        })?;
        (x, Some(table)) // [seq, batch, vocab]
    } else {
        (token_embedding(g, "encoder", turned, [vocab, hidden], freeze_null)?, None) // [seq, batch, hidden]
    };
    for layer in 0..layers {
        x = recurrent_layer(g, cell, layer, ids, &x, hidden, encoder.take().as_deref())?;
    }
    Ok(x)
}

/// One recurrent layer as one node: `[seq, batch, hidden]` → the same shape. `ids` tells the size of the batch. With an
/// `encoder` `[vocab, hidden]`, `x` is `[seq, batch, vocab]`, and the layer's input is `x`·`encoder`.
///
/// ONNX stacks the gates of PyTorch's matrices in another order and wants an axis of directions in front. Both happen
/// here, and the initializers tell: `weight_ih_l0.iofc` is PyTorch's `weight_ih_l0` with the gates in that order.
fn recurrent_layer(
    g: &mut GraphBuilder<'_>,
    Cell { op, module, gates, states, attributes }: &Cell,
    layer: usize,
    ids: &Value,
    x: &Value,
    hidden: usize,
    encoder: Option<&[f32]>,
) -> Result<Value, ExportError> {
    let rows = gates.len() * hidden;
    let order: String = gates.iter().map(|(letter, _)| letter).collect();
    // ONNX's recurrent operators take bfloat16 from opset 22 on only.
    let build = |g: &mut GraphBuilder<'_>| {
        // the rows of a matrix or a bias, each `width` numbers, in ONNX's order
        let reorder = |values: &[f32], width: usize| -> Vec<f32> {
            let gate = hidden * width;
            gates.iter().flat_map(|&(_, place)| values[place * gate..(place + 1) * gate].iter().copied()).collect()
        };
        let mut matrix = |name: String, encoder: Option<&[f32]>| -> Result<Value, ExportError> {
            let weight = g.weight(&name, &[rows, hidden])?;
            let Some(encoder) = encoder else {
                return Ok(g.factor(&format!("{name}.{order}"), &[1, rows, hidden], &reorder(&weight.values, hidden)));
            };
            let encoded = encoded(&weight.values, encoder, hidden);
            let width = encoder.len() / hidden;
            Ok(g.factor(&format!("{name}.encoder.{order}"), &[1, rows, width], &reorder(&encoded, width)))
        };
        let weight_ih = matrix(format!("weight_ih_l{layer}"), encoder)?;
        let weight_hh = matrix(format!("weight_hh_l{layer}"), None)?;
        let bias_ih = g.weight(&format!("bias_ih_l{layer}"), &[rows])?;
        let bias_hh = g.weight(&format!("bias_hh_l{layer}"), &[rows])?;
        let bias = [reorder(&bias_ih.values, 1), reorder(&bias_hh.values, 1)].concat();
        let bias = g.factor(&format!("bias_l{layer}.{order}"), &[1, 2 * rows], &bias);

        let front = g.list(&format!("state_direction_axis_l{layer}"), &[0]);
        let names: Vec<String> = states.iter().map(|state| format!("{state}_l{layer}")).collect();
        let mut inputs = vec![g.narrow(x), weight_ih, weight_hh, bias, Value::none()];
        let stateful = g.takes_states();
        for name in names.iter().filter(|_| stateful) {
            let state = g.state_input(name, "the state before the first token", ids, &[hidden]);
            let state = g.unsqueeze(&state, &front); // [1, batch, hidden]
            inputs.push(g.narrow(&state));
        }
        if !stateful {
            inputs.truncate(4); // without a state, they begin at zero
        }
        let inputs: Vec<&Value> = inputs.iter().collect();
        let attributes = [&[("hidden_size", Int(hidden as i64))], *attributes].concat();
        let outputs = g.node_with(if stateful { 1 + names.len() } else { 1 }, op, &inputs, &attributes);
        for (name, state) in names.iter().zip(&outputs[1..]) {
            let state = g.squeeze(state, &front); // [batch, hidden]
            let state = g.widen(&state);
            g.state_output(name, "the state after the last token", state, &[hidden]);
        }
        let direction = g.list(&format!("direction_axis_l{layer}"), &[1]);
        let all = g.widen(&outputs[0]);
        Ok(g.squeeze(&all, &direction)) // [seq, 1, batch, hidden] → [seq, batch, hidden]
    };
    g.without_bf16(|g| g.scope(*module, build))
}

/// W·Eᵀ of `[rows, hidden]` and `[vocab, hidden]`: `[rows, vocab]`.
fn encoded(weight: &[f32], encoder: &[f32], hidden: usize) -> Vec<f32> {
    let weight: Vec<f64> = weight.iter().map(|&w| w.into()).collect();
    let columns = (0..hidden).flat_map(|i| encoder.iter().skip(i).step_by(hidden));
    let transposed: Vec<f64> = columns.map(|&e| e.into()).collect();
    narrowed(&row_products(&weight, &transposed, [hidden, encoder.len() / hidden]))
}
