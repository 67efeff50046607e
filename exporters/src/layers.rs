//! The layers that architectures share; the counterparts of `models::layers`.

use crate::ExportError;
use crate::graph::Attribute::{Float, Int};
use crate::graph::{BATCH, Dim, GraphBuilder, SEQ, Value};
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
        let weight = g.parameter("weight", &[vocab, hidden])?;
        Ok(g.node("Gather", &[&weight, ids], &[("axis", Int(0))]))
    })
}

/// `[a, b]` → `[a, b, hidden]`, the counterpart of `TokenEmbedding`: where the null embedding is frozen, the checkpoint has
/// the table in two parts.
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
        let null = g.weight("weight_freeze", &[1, hidden])?;
        let others = g.weight("weight_train", &[vocab.saturating_sub(1), hidden])?;
        let table = [null.values.as_slice(), &others.values].concat();
        let table = g.constant("weight", &[vocab, hidden], &table);
        Ok(g.node("Gather", &[&table, ids], &[("axis", Int(0))]))
    })
}

/// The logits of `[a, b, hidden]`; the decoder of a model with tied embeddings takes x/√hidden.
pub(crate) fn decoder(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [hidden, vocab]: [usize; 2],
    tied: bool,
) -> Result<Value, ExportError> {
    if !tied {
        return linear(g, module, x, [hidden, vocab]);
    }
    let x = g.scope(module, |g| {
        let scale = g.scalar("scale", (1.0 / (hidden as f64).sqrt()) as f32);
        g.node("Mul", &[x, &scale], &[])
    });
    linear(g, module, &x, [hidden, vocab])
}

/// y = x·Wᵀ, `[a, b, in]` → `[a, b, out]`. The checkpoint's `weight` `[out, in]` is stored transposed, as `weight.T`, so
/// that no program has to turn it while loading.
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
        let weight = g.constant("weight.T", &[input, output], &transposed);
        Ok(g.node("MatMul", &[x, &weight], &[]))
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
        let weight = g.parameter("weight", &[input, output])?;
        let bias = g.parameter("bias", &[output])?;
        let product = g.node("MatMul", &[x, &weight], &[]);
        Ok(g.node("Add", &[&product, &bias], &[]))
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

/// The gates of a recurrent cell in ONNX's order: the letter ONNX gives each, and its place among PyTorch's.
pub(crate) type Gates = [(char, usize)];

/// One recurrent layer as one node, `RNN` or `LSTM`, from a zero state: `[seq, batch, hidden]` → the same shape.
///
/// ONNX stacks the gates of PyTorch's matrices in another order and wants an axis of directions in front. Both happen
/// here, and the initializers tell: `weight_ih_l0.iofc` is PyTorch's `weight_ih_l0` with the gates in that order.
pub(crate) fn recurrent_layer(
    g: &mut GraphBuilder<'_>,
    op: &str,
    gates: &Gates,
    layer: usize,
    x: &Value,
    hidden: usize,
) -> Result<Value, ExportError> {
    let rows = gates.len() * hidden;
    let order: String = gates.iter().map(|(letter, _)| letter).collect();
    g.scope("lstm", |g| {
        // the rows of a matrix or a bias, each `width` numbers, in ONNX's order
        let reorder = |values: &[f32], width: usize| -> Vec<f32> {
            let gate = hidden * width;
            gates.iter().flat_map(|&(_, place)| values[place * gate..(place + 1) * gate].iter().copied()).collect()
        };
        let mut matrix = |name: String| -> Result<Value, ExportError> {
            let weight = g.weight(&name, &[rows, hidden])?;
            Ok(g.constant(&format!("{name}.{order}"), &[1, rows, hidden], &reorder(&weight.values, hidden)))
        };
        let weight_ih = matrix(format!("weight_ih_l{layer}"))?;
        let weight_hh = matrix(format!("weight_hh_l{layer}"))?;
        let bias_ih = g.weight(&format!("bias_ih_l{layer}"), &[rows])?;
        let bias_hh = g.weight(&format!("bias_hh_l{layer}"), &[rows])?;
        let bias = [reorder(&bias_ih.values, 1), reorder(&bias_hh.values, 1)].concat();
        let bias = g.constant(&format!("bias_l{layer}.{order}"), &[1, 2 * rows], &bias);
        let states = g.node(op, &[x, &weight_ih, &weight_hh, &bias], &[("hidden_size", Int(hidden as i64))]);
        let direction = g.list(&format!("direction_axis_l{layer}"), &[1]);
        Ok(g.node("Squeeze", &[&states, &direction], &[])) // [seq, 1, batch, hidden] → [seq, batch, hidden]
    })
}
