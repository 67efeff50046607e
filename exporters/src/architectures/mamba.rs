//! Mamba: embedding → residual blocks of RMSNorm and a selective state space → RMSNorm → the embedding as decoder. The
//! counterpart of `models::mamba`.

use crate::ExportError;
use crate::graph::Attribute::Int;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{affine, embedding, input_ids, linear, logits, silu};
use models::mamba::{MambaConfig, RMS_NORM_EPSILON};

pub(crate) fn lower(config: &MambaConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let ids = input_ids(g); // [batch, seq]
    let x = g.scope("backbone", |g| {
        let mut x = embedding(g, "embedding", &ids, [vocab, hidden])?; // [batch, seq, hidden]
        for i in 0..config.num_layers {
            x = g.scope(format!("layers.{i}"), |g| -> Result<_, ExportError> {
                let normal = rms_norm(g, "norm", &x, hidden)?;
                let y = g.scope("mixer", |g| mixer(g, config, i, &ids, &normal))?;
                Ok(g.add(&x, &y))
            })?;
        }
        rms_norm(g, "norm_f", &x, hidden)
    })?;
    let scores = g.scope("backbone", |g| linear(g, "embedding", &x, [hidden, vocab]))?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// `[batch, seq, hidden]` → the same shape, with the states of block `layer`.
fn mixer(
    g: &mut GraphBuilder<'_>,
    config: &MambaConfig,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, channels, state, rank) = (config.hidden_size, config.channels(), config.state_size, config.dt_rank());
    let x = linear(g, "in_proj", x, [hidden, 2 * channels])?;
    let [u, gate] = g.nodes("Split", &[&x], &[("axis", Int(-1)), ("num_outputs", Int(2))]); // [batch, seq, channels]
    let u = short_convolution(g, config, layer, ids, &u)?;
    let u = silu(g, &u);
    let x = linear(g, "x_proj", &u, [channels, rank + 2 * state])?;
    let widths = g.list("widths", &[rank as i64, state as i64, state as i64]);
    let [dt, b, c] = g.nodes("Split", &[&x, &widths], &[("axis", Int(-1))]);
    let dt = affine(g, "dt_proj", &dt, [rank, channels])?;
    let delta = softplus(g, &dt); // [batch, seq, channels]
    let y = selective_scan(g, config, layer, ids, [&u, &delta, &b, &c])?;
    let d = g.parameter("D", &[channels])?;
    let skip = g.mul(&u, &d);
    let y = g.add(&y, &skip);
    let gate = silu(g, &gate);
    let y = g.mul(&y, &gate);
    linear(g, "out_proj", &y, [channels, hidden])
}

/// The causal convolution of each channel with its own few taps, `[batch, seq, channels]` → the same shape, from and to
/// the state `conv_l<layer>`: the last inputs `[batch, channels, taps − 1]`.
fn short_convolution(
    g: &mut GraphBuilder<'_>,
    config: &MambaConfig,
    layer: usize,
    ids: &Value,
    u: &Value,
) -> Result<Value, ExportError> {
    let (channels, taps) = (config.channels(), config.conv_kernel);
    let (name, doc, dims) = (format!("conv_l{layer}"), "the last inputs of the convolution", [channels, taps - 1]);
    let before = g.state_input(&name, doc, ids, &dims);
    let (y, after) = g.scope("conv1d", |g| -> Result<_, ExportError> {
        let weight = g.parameter("weight", &[channels, 1, taps])?;
        let bias = g.parameter("bias", &[channels])?;
        let u = g.transpose(u, &[0, 2, 1]);
        let u = g.concat(&[&before, &u], 2); // [batch, channels, taps − 1 + seq]
        let y = g.node("Conv", &[&u, &weight, &bias], &[("group", Int(channels as i64))]);
        let (start, end, axis) =
            (g.list("start", &[1 - taps as i64]), g.list("end", &[i64::MAX]), g.list("axis", &[2]));
        let after = g.slice(&u, [&start, &end], &axis);
        Ok((g.transpose(&y, &[0, 2, 1]), after))
    })?;
    g.state_output(&name, doc, after, &dims);
    Ok(y)
}

/// h_t = exp(Δ_t·A)⊙h_{t−1} + Δ_t·u_t·B_t, y_t = h_t·C_t, one time step after another: `u` and Δ
/// `[batch, seq, channels]`, `b` and `c` `[batch, seq, state]` → `[batch, seq, channels]`, from and to the state
/// `ssm_l<layer>` `[batch, channels, state]`.
///
/// Inside the loop channels are on the last axis: a step then works on long rows, in half the time.
fn selective_scan(
    g: &mut GraphBuilder<'_>,
    config: &MambaConfig,
    layer: usize,
    ids: &Value,
    [u, delta, b, c]: [&Value; 4],
) -> Result<Value, ExportError> {
    let (channels, state) = (config.channels(), config.state_size);
    let (name, doc, dims) = (format!("ssm_l{layer}"), "the state of every channel", [channels, state]);
    let before = g.state_input(&name, doc, ids, &dims);
    let a_log = g.weight("A_log", &[channels, state])?;
    let (y, after) = g.scope("scan", |g| -> Result<_, ExportError> {
        let a: Vec<f32> = (0..state)
            .flat_map(|n| a_log.values.iter().skip(n).step_by(state).map(|v| -f64::from(*v).exp() as f32))
            .collect();
        let a = g.constant("A.T", &[state, channels], &a);
        let (row_axis, column_axis) = (g.list("row_axis", &[2]), g.list("column_axis", &[3]));
        let input = g.mul(delta, u);
        let mut steps = |x: &Value, axis: &Value| {
            let x = g.transpose(x, &[1, 0, 2]);
            g.unsqueeze(&x, axis) // [seq, batch, 1, channels] or [seq, batch, state, 1]
        };
        let (delta, input) = (steps(delta, &row_axis), steps(&input, &row_axis));
        let (b, c) = (steps(b, &column_axis), steps(c, &row_axis));
        let before = g.transpose(&before, &[0, 2, 1]); // [batch, state, channels]
        let ([after], [y]) = g.scan([&before], [&delta, &input, &b, &c], |g, [h], [delta, input, b, c]| {
            let rate = g.mul(&delta, &a);
            let decay = g.exp(&rate);
            let kept = g.mul(&decay, &h);
            let added = g.mul(&b, &input);
            let h = g.add(&kept, &added);
            let y = g.matmul(&c, &h); // [batch, 1, channels]
            Ok(([h], [y]))
        })?;
        let y = g.squeeze(&y, &row_axis);
        let y = g.transpose(&y, &[1, 0, 2]);
        Ok((y, g.transpose(&after, &[0, 2, 1])))
    })?;
    g.state_output(&name, doc, after, &dims);
    Ok(y)
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

/// x / √(mean x² + ε) · weight over the last axis.
fn rms_norm(g: &mut GraphBuilder<'_>, module: &str, x: &Value, hidden: usize) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let weight = g.parameter("weight", &[hidden])?;
        let (two, epsilon) = (g.scalar("two", 2f32), g.scalar("epsilon", RMS_NORM_EPSILON as f32));
        let channels = g.list("channel_axis", &[-1]);
        let square = g.node("Pow", &[x, &two], &[]);
        let mean = g.node("ReduceMean", &[&square, &channels], &[("keepdims", Int(1))]);
        let mean = g.add(&mean, &epsilon);
        let root = g.node("Sqrt", &[&mean], &[]);
        let normal = g.div(x, &root);
        Ok(g.mul(&normal, &weight))
    })
}
