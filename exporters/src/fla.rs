//! The model around the mixers of flash-linear-attention; the counterpart of `models::layers::fla`.

use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::layers::{ShortConvolution, embedding, input_ids, linear, logits, rms_norm, silu};
use models::layers::fla::Sizes;

/// The whole graph. `mixer` is the mixer of the block with this number, `[batch, seq, hidden]` → the same shape; it also gets
/// `input_ids`.
pub(crate) fn lower(
    sizes: Sizes,
    vocab: usize,
    g: &mut GraphBuilder<'_>,
    mut mixer: impl FnMut(&mut GraphBuilder<'_>, usize, &Value, &Value) -> Result<Value, ExportError>,
) -> Result<(), ExportError> {
    let Sizes { hidden, layers, intermediate, norm_epsilon, tied } = sizes;
    let ids = input_ids(g); // [batch, seq]
    let x = g.scope("model", |g| {
        let mut x = embedding(g, "embeddings", &ids, [vocab, hidden])?; // [batch, seq, hidden]
        for i in 0..layers {
            x = g.scope(format!("layers.{i}"), |g| -> Result<_, ExportError> {
                let normal = rms_norm(g, "attn_norm", &x, hidden, norm_epsilon)?;
                let y = g.scope("attn", |g| mixer(g, i, &ids, &normal))?;
                let x = g.add(&x, &y);
                let normal = rms_norm(g, "mlp_norm", &x, hidden, norm_epsilon)?;
                let y = gated_mlp(g, "mlp", &normal, [hidden, intermediate])?;
                Ok(g.add(&x, &y))
            })?;
        }
        rms_norm(g, "norm", &x, hidden, norm_epsilon)
    })?;
    let scores = match tied {
        true => g.scope("model", |g| linear(g, "embeddings", &x, [hidden, vocab]))?,
        false => linear(g, "lm_head", &x, [hidden, vocab])?,
    }; // [batch, seq, vocab]
    logits(g, scores, vocab);
    Ok(())
}

/// down(silu(gate(x))⊙up(x)).
fn gated_mlp(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [hidden, intermediate]: [usize; 2],
) -> Result<Value, ExportError> {
    g.scope(module, |g| {
        let gate = linear(g, "gate_proj", x, [hidden, intermediate])?;
        let gate = silu(g, &gate);
        let up = linear(g, "up_proj", x, [hidden, intermediate])?;
        let product = g.mul(&gate, &up);
        linear(g, "down_proj", &product, [intermediate, hidden])
    })
}

/// A projection and its convolution, if `taps` is not 0, with SiLU if `activated`: `[batch, seq, in]` →
/// `[batch, seq, out]`. `name` is `q`, `k`, … of the modules and of the state of layer `layer`.
pub(crate) fn projection(
    g: &mut GraphBuilder<'_>,
    name: &str,
    [layer, taps]: [usize; 2],
    ids: &Value,
    x: &Value,
    [input, output]: [usize; 2],
    activated: bool,
) -> Result<Value, ExportError> {
    let x = linear(g, &format!("{name}_proj"), x, [input, output])?;
    if taps == 0 {
        return Ok(x);
    }
    let conv = ShortConvolution { channels: output, taps, biased: false };
    let x = conv.lower(g, &format!("{name}_conv1d"), &format!("{name}_conv_l{layer}"), ids, &x)?;
    Ok(if activated { silu(g, &x) } else { x })
}

/// Every head of `[batch, seq, heads·size]` in turn so many times in a row: `[batch, seq, heads·times·size]`.
pub(crate) fn repeat_heads(g: &mut GraphBuilder<'_>, name: &str, x: &Value, sizes: [usize; 3]) -> Value {
    let [heads, times, size] = sizes.map(|size| size as i64);
    if times == 1 {
        return x.clone();
    }
    g.scope(name, |g| {
        let apart = g.list("apart", &[0, 0, heads, 1, size]);
        let repeats = g.list("repeats", &[1, 1, 1, times, 1]);
        let joined = g.list("joined", &[0, 0, heads * times * size]);
        let x = g.reshape(x, &apart);
        let x = g.node("Tile", &[&x, &repeats], &[]);
        g.reshape(&x, &joined)
    })
}

/// `[batch, seq, heads·size]` normalised head by head.
pub(crate) fn head_norm(
    g: &mut GraphBuilder<'_>,
    module: &str,
    x: &Value,
    [heads, size]: [usize; 2],
    epsilon: f64,
) -> Result<Value, ExportError> {
    let apart = g.list("heads", &[0, 0, heads as i64, size as i64]);
    let joined = g.list("heads_joined", &[0, 0, (heads * size) as i64]);
    let x = g.reshape(x, &apart);
    let x = rms_norm(g, module, &x, size, epsilon)?;
    Ok(g.reshape(&x, &joined))
}
