//! xLSTM: blocks of sLSTM and mLSTM cells. The counterpart of `models::xlstm` and `models::ops::slstm`.

use crate::ExportError;
use crate::graph::Attribute::{Float, Int};
use crate::graph::{GraphBuilder, Value};
use crate::layers::{ShortConvolution, affine, embedding, input_ids, linear, logits, silu, softplus};
use models::ops::slstm::GATES;
use models::xlstm::{DIVISOR_EPSILON, NORM_EPSILON, XlstmConfig};

pub(crate) fn lower(config: &XlstmConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let ids = input_ids(g); // [batch, seq]
    let mut x = embedding(g, "token_embedding", &ids, [vocab, hidden])?; // [batch, seq, hidden]
    x = g.scope("xlstm_block_stack", |g| {
        for i in 0..config.num_layers {
            x = g.scope(format!("blocks.{i}"), |g| block(g, config, i, &ids, &x))?;
        }
        scale_norm(g, "post_blocks_norm", &x, [1, hidden])
    })?;
    let module = if config.tie_word_embeddings { "token_embedding" } else { "lm_head" };
    let scores = linear(g, module, &x, [hidden, vocab])?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

fn block(
    g: &mut GraphBuilder<'_>,
    config: &XlstmConfig,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let hidden = config.hidden_size;
    let normal = scale_norm(g, "xlstm_norm", x, [1, hidden])?;
    let y = g.scope("xlstm", |g| match config.is_slstm(layer) {
        true => slstm(g, config, layer, ids, &normal),
        false => mlstm(g, config, layer, ids, &normal),
    })?;
    let x = g.add(x, &y);
    if !(config.is_slstm(layer) && config.feed_forward) {
        return Ok(x);
    }
    let normal = scale_norm(g, "ffn_norm", &x, [1, hidden])?;
    let channels = config.feed_forward_channels();
    let y = g.scope("ffn", |g| {
        let up = linear(g, "proj_up", &normal, [hidden, 2 * channels])?;
        let [gate, up] = halves(g, &up);
        let gate = g.node("Gelu", &[&gate], &[]);
        let y = g.mul(&gate, &up);
        linear(g, "proj_down", &y, [channels, hidden])
    })?;
    Ok(g.add(&x, &y))
}

/// The halves of the last axis.
fn halves(g: &mut GraphBuilder<'_>, x: &Value) -> [Value; 2] {
    g.nodes("Split", &[x], &[("axis", Int(-1)), ("num_outputs", Int(2))])
}

/// (x − mean)/√(variance + ε)·(1 + weight) in groups of so many channels.
fn scale_norm(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [groups, width]: [usize; 2],
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let weight: Vec<f32> = g.weight("weight", &[groups * width])?.values.iter().map(|w| 1.0 + w).collect();
        let weight = g.constant("weight.plus_1", &[groups * width], &weight);
        let attributes = [("axis", Int(-1)), ("epsilon", Float(NORM_EPSILON))];
        if groups == 1 {
            return Ok(g.node("LayerNormalization", &[x, &weight], &attributes));
        }
        let ones = g.constant("ones", &[width], &vec![1f32; width]);
        let apart = g.list("groups", &[0, 0, groups as i64, width as i64]);
        let joined = g.list("groups_joined", &[0, 0, (groups * width) as i64]);
        let x = g.reshape(x, &apart);
        let normal = g.node("LayerNormalization", &[&x, &ones], &attributes);
        let normal = g.reshape(&normal, &joined);
        Ok(g.mul(&normal, &weight))
    })
}

/// A matrix for each group of channels: `[batch, seq, groups·size]` → the same shape.
fn headwise(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [groups, size]: [usize; 2],
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let weight = g.weight("weight", &[groups, size, size])?;
        let entry = |i: usize| {
            let (group, row, column) = (i / (size * size), i / size % size, i % size);
            weight.values[(group * size + column) * size + row]
        };
        let transposed: Vec<f32> = (0..groups * size * size).map(entry).collect();
        let weight = g.factor("weight.T", &[groups, size, size], &transposed);
        let apart = g.list("apart", &[0, 0, groups as i64, 1, size as i64]);
        let joined = g.list("joined", &[0, 0, (groups * size) as i64]);
        let x = g.reshape(x, &apart);
        let x = g.narrow(&x);
        let y = g.matmul(&x, &weight); // [batch, seq, groups, 1, size]
        let y = g.widen(&y);
        Ok(g.reshape(&y, &joined))
    })
}

/// The convolution of so many taps, and SiLU; `None` without taps.
fn convolved(
    g: &mut GraphBuilder<'_>,
    [layer, taps, channels]: [usize; 3],
    ids: &Value,
    x: &Value,
) -> Result<Option<Value>, ExportError> {
    if taps == 0 {
        return Ok(None);
    }
    let conv = ShortConvolution { channels, taps, biased: true };
    let y = g.scope("conv1d", |g| conv.lower(g, "conv", &format!("conv_l{layer}"), ids, x))?;
    Ok(Some(silu(g, &y)))
}

/// `[batch, seq, hidden]` → the same shape, with the states of block `layer`, each `[batch, heads, 1, size]`.
fn slstm(
    g: &mut GraphBuilder<'_>,
    config: &XlstmConfig,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, heads) = (config.hidden_size, config.num_heads);
    let size = hidden / heads;
    let u = convolved(g, [layer, config.slstm_conv, hidden], ids, x)?;
    let u = u.as_ref().unwrap_or(x);
    let mut gates = Vec::with_capacity(GATES);
    for (name, x) in [("fgate", u), ("igate", u), ("zgate", x), ("ogate", x)] {
        gates.push(headwise(g, name, x, [heads, size])?);
    }
    let y = g.scope("slstm_cell", |g| -> Result<_, ExportError> {
        let bias = g.parameter("_bias_", &[GATES * hidden])?;
        let gates: Vec<&Value> = gates.iter().collect();
        let gates = g.concat(&gates, -1);
        let gates = g.add(&gates, &bias); // [batch, seq, 4·hidden]
        let apart = g.list("apart", &[0, 0, GATES as i64, heads as i64, size as i64]);
        let gates = g.reshape(&gates, &apart);
        let gates = g.transpose(&gates, &[1, 0, 3, 2, 4]); // [seq, batch, heads, 4, size]
        let row = g.list("row", &[0, 0, 0, 1, (GATES * size) as i64]);
        let gates = g.reshape(&gates, &row);
        let recurrent = g.weight("_recurrent_kernel_", &[heads, GATES * size, size])?;
        let width = GATES * size;
        let entry = |i: usize| {
            let (head, input, output) = (i / (size * width), i / width % size, i % width);
            recurrent.values[(head * width + output) * size + input]
        };
        let transposed: Vec<f32> = (0..heads * size * width).map(entry).collect();
        let recurrent = g.constant("_recurrent_kernel_.T", &[heads, size, width], &transposed);
        let dims = [heads, 1, size];
        let names = [
            ("output", "the cell's last output"),
            ("cell", "the cell, times e^-stabiliser"),
            ("normaliser", "the normaliser, times e^-stabiliser; 0 before the first token"),
            ("stabiliser", "the stabiliser"),
        ];
        let before = names.map(|(name, doc)| g.state_input(&format!("{name}_l{layer}"), doc, ids, &dims));
        let zero = g.scalar("zero", 0f32);
        let states = before.each_ref();
        let (after, [y]) = g.scan(states, [&gates], |g, [y, c, n, m], [gates]| {
            let own = g.matmul(&y, &recurrent); // [batch, heads, 1, 4·size]
            let gates = g.add(&gates, &own);
            let [input, forget, z, output] =
                g.nodes("Split", &[&gates], &[("axis", Int(-1)), ("num_outputs", Int(GATES as i64))]);
            let forget = g.neg(&forget);
            let minus_log = softplus(g, &forget);
            let kept = g.sub(&m, &minus_log);
            let larger = g.node("Max", &[&input, &kept], &[]);
            let first = g.node("Equal", &[&n, &zero], &[]);
            let m = g.choose(&first, &input, &larger);
            let i = g.sub(&input, &m);
            let i = g.exp(&i);
            let f = g.sub(&kept, &m);
            let f = g.node("Min", &[&f, &zero], &[]); // before the first token there is nothing to be kept, and no overflow
            let f = g.exp(&f);
            let z = g.node("Tanh", &[&z], &[]);
            let (kept, written) = (g.mul(&f, &c), g.mul(&i, &z));
            let c = g.add(&kept, &written);
            let n = g.mul(&f, &n);
            let n = g.add(&n, &i);
            let output = g.sigmoid(&output);
            let y = g.div(&c, &n);
            let y = g.mul(&output, &y);
            let output = g.node("Identity", &[&y], &[]); // an output of the body has a name of its own
            Ok(([y, c, n, m], [output]))
        })?;
        for ((name, doc), after) in names.into_iter().zip(after) {
            g.state_output(&format!("{name}_l{layer}"), doc, after, &dims);
        }
        let y = g.transpose(&y, &[1, 0, 3, 2, 4]); // [batch, seq, 1, heads, size]
        let joined = g.list("joined", &[0, 0, hidden as i64]);
        Ok(g.reshape(&y, &joined))
    })?;
    scale_norm(g, "group_norm", &y, [heads, size])
}

/// `[batch, seq, hidden]` → the same shape, with the states of block `layer`.
fn mlstm(
    g: &mut GraphBuilder<'_>,
    config: &XlstmConfig,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, channels, heads) = (config.hidden_size, config.channels(), config.num_heads);
    let size = channels / heads;
    let up = linear(g, "proj_up", x, [hidden, 2 * channels])?;
    let [x, z] = halves(g, &up);
    let u = match convolved(g, [layer, config.mlstm_conv, channels], ids, &x)? {
        Some(u) => u,
        None => silu(g, &x),
    };
    let blocks = [channels / config.qkv_block, config.qkv_block];
    let q = headwise(g, "q_proj", &u, blocks)?;
    let k = headwise(g, "k_proj", &u, blocks)?;
    let v = headwise(g, "v_proj", &x, blocks)?;
    let y = g.scope("mlstm_cell", |g| -> Result<_, ExportError> {
        let all = g.concat(&[&q, &k, &v], -1);
        let input = affine(g, "igate", &all, [3 * channels, heads])?;
        let forget = affine(g, "fgate", &all, [3 * channels, heads])?;
        let forget = g.neg(&forget);
        let minus_log = softplus(g, &forget);
        let scale = g.scalar("key_scale", (1.0 / (size as f64).sqrt()) as f32);
        let k = g.mul(&k, &scale);
        let row = g.list("row", &[0, 0, heads as i64, 1, size as i64]);
        let single = g.list("single", &[0, 0, heads as i64, 1, 1]);
        let by_time = |g: &mut GraphBuilder<'_>, x: &Value, shape: &Value| {
            let x = g.reshape(x, shape);
            g.transpose(&x, &[1, 0, 2, 3, 4]) // [seq, batch, heads, 1, size or 1]
        };
        let [q, k, v] = [&q, &k, &v].map(|x| by_time(g, x, &row));
        let [input, minus_log] = [&input, &minus_log].map(|x| by_time(g, x, &single));

        let states: [(&str, &str, &[usize]); 4] = [
            ("memory", "the memory of every head, by key and value, times e^-stabiliser", &[heads, size, size]),
            ("normaliser", "the normaliser, times e^-stabiliser", &[heads, 1, size]),
            ("stabiliser", "the stabiliser", &[heads, 1, 1]),
            ("begun", "1 after the first token", &[1, 1, 1]),
        ];
        let [memory, normaliser, stabiliser, begun] =
            states.map(|(name, doc, dims)| g.state_input(&format!("{name}_l{layer}"), doc, ids, dims));
        // Before the first token, the stabiliser is as good as −∞.
        let (one, most) = (g.scalar("one", 1f32), g.scalar("most", 1e30f32));
        let missing = g.sub(&begun, &one);
        let missing = g.mul(&missing, &most);
        let stabiliser = g.add(&stabiliser, &missing);
        let nothing = g.sub(&begun, &begun);
        let begun = g.add(&nothing, &one);
        let epsilon = g.scalar("epsilon", DIVISOR_EPSILON);
        let channel_axis = g.list("channel_axis", &[-1]);
        let before = [&memory, &normaliser, &stabiliser];
        let inputs = [&q, &k, &v, &input, &minus_log];
        let (after, [y]) = g.scan(before, inputs, |g, [memory, n, m], [q, k, v, input, minus_log]| {
            let kept = g.sub(&m, &minus_log);
            let m = g.node("Max", &[&kept, &input], &[]);
            let f = g.sub(&kept, &m);
            let f = g.exp(&f);
            let i = g.sub(&input, &m);
            let i = g.exp(&i);
            let k = g.mul(&k, &i);
            let n = g.mul(&n, &f);
            let n = g.add(&n, &k);
            let column = g.transpose(&k, &[0, 1, 3, 2]);
            let written = g.mul(&column, &v);
            let memory = g.mul(&memory, &f);
            let memory = g.add(&memory, &written);
            let read = g.matmul(&q, &memory); // [batch, heads, 1, size]
            let norm = g.mul(&q, &n);
            let norm = g.node("ReduceSum", &[&norm, &channel_axis], &[("keepdims", Int(1))]);
            let norm = g.node("Abs", &[&norm], &[]);
            let least = g.neg(&m);
            let least = g.exp(&least);
            let norm = g.node("Max", &[&norm, &least], &[]);
            let norm = g.add(&norm, &epsilon);
            Ok(([memory, n, m], [g.div(&read, &norm)]))
        })?;
        let after = after.into_iter().chain([begun]);
        for ((name, doc, dims), after) in states.into_iter().zip(after) {
            g.state_output(&format!("{name}_l{layer}"), doc, after, dims);
        }
        let y = g.transpose(&y, &[1, 0, 3, 2, 4]); // [batch, seq, 1, heads, size]
        let joined = g.list("joined", &[0, 0, channels as i64]);
        let y = g.reshape(&y, &joined);
        scale_norm(g, "outnorm", &y, [heads, size])
    })?;
    let skip = g.parameter("learnable_skip", &[channels])?;
    let skip = g.mul(&u, &skip);
    let y = g.add(&y, &skip);
    let gate = silu(g, &z);
    let y = g.mul(&y, &gate);
    linear(g, "proj_down", &y, [channels, hidden])
}
