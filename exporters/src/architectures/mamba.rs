//! Mamba: embedding → residual blocks of RMSNorm and a selective state space → RMSNorm → the embedding as decoder. The
//! counterpart of `models::mamba`.

use crate::ExportError;
use crate::graph::Attribute::Int;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{ShortConvolution, affine, embedding, input_ids, linear, logits, rms_norm, silu, softplus};
use models::mamba::{MambaConfig, RMS_NORM_EPSILON};

pub(crate) fn lower(config: &MambaConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let hidden = config.hidden_size;
    let ids = input_ids(g); // [batch, seq]
    let x = g.scope("backbone", |g| {
        let mut x = embedding(g, "embedding", &ids, [vocab, hidden])?; // [batch, seq, hidden]
        for i in 0..config.num_layers {
            x = g.scope(format!("layers.{i}"), |g| -> Result<_, ExportError> {
                let normal = rms_norm(g, "norm", &x, hidden, RMS_NORM_EPSILON)?;
                let y = g.scope("mixer", |g| mixer(g, config, i, &ids, &normal))?;
                Ok(g.add(&x, &y))
            })?;
        }
        rms_norm(g, "norm_f", &x, hidden, RMS_NORM_EPSILON)
    })?;
    let scores = g.scope("backbone", |g| linear(g, "embedding", &x, [hidden, vocab]))?; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// `[batch, seq, hidden]` → the same shape, with the states of block `layer`.
pub(super) fn mixer(
    g: &mut GraphBuilder<'_>,
    config: &MambaConfig,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, channels, state, rank) = (config.hidden_size, config.channels(), config.state_size, config.dt_rank());
    let x = linear(g, "in_proj", x, [hidden, 2 * channels])?;
    let [u, gate] = g.nodes("Split", &[&x], &[("axis", Int(-1)), ("num_outputs", Int(2))]); // [batch, seq, channels]
    let conv = ShortConvolution { channels, taps: config.conv_kernel, biased: true };
    let u = conv.lower(g, "conv1d", &format!("conv_l{layer}"), ids, &u)?;
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

/// h_t = exp(Δ_t·A)⊙h_{t−1} + Δ_t·u_t·B_t, y_t = h_t·C_t, one time step after another: `u` and Δ
/// `[batch, seq, channels]`, `b` and `c` `[batch, seq, state]` → `[batch, seq, channels]`, from and to the state
/// `ssm_l<layer>` `[batch, channels, state]`. With negative eigenvalues, the factor of h is 2·exp(Δ_t·A) − 1.
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
            let mut factor = g.exp(&rate);
            if config.negative_eigenvalues {
                let (two, one) = (g.scalar("two", 2f32), g.scalar("one", 1f32));
                let doubled = g.mul(&factor, &two);
                factor = g.sub(&doubled, &one);
            }
            let kept = g.mul(&factor, &h);
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
