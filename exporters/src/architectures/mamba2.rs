//! Mamba-2: embedding → residual blocks of RMSNorm and a state space with one rate of decay per head → RMSNorm → decoder.
//! The counterpart of `models::mamba2`.

use crate::ExportError;
use crate::fla::repeat_heads;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{
    ShortConvolution, embedding, grouped_rms_norm, input_ids, linear, logits, rms_norm, silu, softplus,
};
use crate::linear_attention::Memory;
use models::mamba2::{Mamba2Config, RMS_NORM_EPSILON};

pub(crate) fn lower(config: &Mamba2Config, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
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
    let scores = match config.tie_word_embeddings {
        true => g.scope("backbone", |g| linear(g, "embedding", &x, [hidden, vocab]))?,
        false => linear(g, "lm_head", &x, [hidden, vocab])?,
    }; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// `[batch, seq, hidden]` → the same shape, with the states of block `layer`.
pub(super) fn mixer(
    g: &mut GraphBuilder<'_>,
    config: &Mamba2Config,
    layer: usize,
    ids: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (hidden, channels, heads) = (config.hidden_size, config.channels(), config.num_heads());
    let (groups, state, size) = (config.num_groups, config.state_size, config.head_size);
    let conv_channels = config.conv_channels();
    let x = linear(g, "in_proj", x, [hidden, channels + conv_channels + heads])?;
    let widths = g.list("widths", &[channels as i64, conv_channels as i64, heads as i64]);
    let [z, u, dt] = g.split(&x, &widths);
    let conv = ShortConvolution { channels: conv_channels, taps: config.conv_kernel, biased: true };
    let u = conv.lower(g, "conv1d", &format!("conv_l{layer}"), ids, &u)?;
    let u = silu(g, &u);
    let widths = g.list("conv_widths", &[channels, groups * state, groups * state].map(|width| width as i64));
    let [u, b, c] = g.split(&u, &widths);
    let [b, c] =
        [("b_heads", b), ("c_heads", c)].map(|(name, x)| repeat_heads(g, name, &x, [groups, heads / groups, state])); // [batch, seq, heads·state]

    let bias = g.parameter("dt_bias", &[heads])?;
    let dt = g.add(&dt, &bias);
    let delta = softplus(g, &dt); // [batch, seq, heads]
    let rate: Vec<f32> = g.weight("A_log", &[heads])?.values.iter().map(|a| -a.exp()).collect();
    let rate = g.constant("A_log.rate", &[heads], &rate);
    let log_decay = g.mul(&delta, &rate);
    let by_head = g.list("by_head", &[0, 0, heads as i64, size as i64]);
    let single = g.list("single", &[0, 0, heads as i64, 1]);
    let joined = g.list("joined", &[0, 0, channels as i64]);
    let v = g.reshape(&u, &by_head);
    let delta = g.reshape(&delta, &single);
    let input = g.mul(&v, &delta);
    let input = g.reshape(&input, &joined);
    let memory = Memory { heads, key: state, value: size };
    let log_decay = memory.spread(g, &log_decay);
    let y = memory.lower(g, &format!("ssm_l{layer}"), ids, [&c, &b, &input, &log_decay])?;

    let d = g.weight("D", &[heads])?;
    let d = g.constant("D.column", &[heads, 1], &d.values);
    let skip = g.mul(&v, &d);
    let skip = g.reshape(&skip, &joined);
    let y = g.add(&y, &skip);
    let gate = silu(g, &z);
    let y = g.mul(&y, &gate);
    let y = grouped_rms_norm(g, "norm", &y, [groups, channels / groups], RMS_NORM_EPSILON)?;
    linear(g, "out_proj", &y, [channels, hidden])
}
