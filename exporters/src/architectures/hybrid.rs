//! Hybrids: blocks of any mixers, each followed by a gated MLP. The counterpart of `models::hybrid`.

use super::{gated_deltanet, gla, hgrn2, mamba, mamba2};
use crate::ExportError;
use crate::attention::{Attention, Visible};
use crate::fla;
use crate::graph::{BATCH, GraphBuilder, SEQ, Value};
use crate::layers::{ShortConvolution, affine, linear};
use crate::min_rnn::recurrence;
use crate::onnx::tensor_proto::DataType;
use crate::positions::{self, Places, Score};
use models::hybrid::rglru::{LEAST, POWER, TAPS};
use models::hybrid::{HybridConfig, Kind};
use models::transformer::TransformerConfig;

pub(crate) fn lower(config: &HybridConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
    let kinds: Vec<Kind> = config.kinds().collect();
    let mut softmax = None;
    fla::lower(config.sizes(), vocab, g, |g, layer, ids, x| match kinds[layer] {
        Kind::Attention => {
            let config = config.attention();
            let shared = match softmax.take() {
                Some(shared) => shared,
                None => Softmax::new(g, &config, ids)?,
            };
            softmax.insert(shared).lower(g, &config, x)
        }
        Kind::Mamba => mamba::mixer(g, &config.mamba(), layer, ids, x),
        Kind::Mamba2 => mamba2::mixer(g, &config.mamba2(), layer, ids, x),
        Kind::GatedDeltanet => gated_deltanet::attention(g, &config.gated_deltanet(), layer, ids, x),
        Kind::Gla => gla::attention(g, &config.gla(), layer, ids, x),
        Kind::Hgrn2 => hgrn2::attention(g, &config.hgrn2(), layer, None, ids, x),
        Kind::Rglru => rglru(g, config.hidden_size, layer, ids, x),
    })
}

/// What all blocks of attention share.
struct Softmax {
    attention: Attention,
}

impl Softmax {
    fn new(g: &mut GraphBuilder<'_>, config: &TransformerConfig, ids: &Value) -> Result<Self, ExportError> {
        g.at_root(|g| {
            let doc = "0 at tokens that attention must not see";
            let mask = g.input("attention_mask", doc, DataType::Int64, &[BATCH, SEQ]);
            let places = Places { ids: ids.clone(), positions: positions::input(g, config) };
            let score = positions::score(g, config, &places)?;
            let visible = Visible { identity: false, causal: true, windows: config.attention_windows.clone() };
            Ok(Self { attention: Attention::new(g, ids, &mask, visible, score) })
        })
    }

    /// `[batch, seq, hidden]` → the same shape.
    fn lower(&self, g: &mut GraphBuilder<'_>, config: &TransformerConfig, x: &Value) -> Result<Value, ExportError> {
        let (hidden, heads, size) = (config.hidden_size, config.num_heads, config.head_dim());
        let apart = g.list("heads", &[0, 0, heads as i64, size as i64]);
        let part = |g: &mut GraphBuilder<'_>, name: &str, scale: f64| -> Result<Value, ExportError> {
            let mut part = linear(g, name, x, [hidden, hidden])?;
            if scale != 1.0 {
                let scale = g.scalar("scale", scale as f32);
                part = g.mul(&part, &scale);
            }
            let part = g.reshape(&part, &apart);
            Ok(g.transpose(&part, &[0, 2, 1, 3])) // [batch, heads, seq, size]
        };
        let q = part(g, "q_proj", config.attention_scale(0))?;
        let (k, v) = (part(g, "k_proj", 1.0)?, part(g, "v_proj", 1.0)?);
        let [q, k] = self.attention.turned(g, [q, k], &Score::Nothing);
        let k = g.transpose(&k, &[0, 1, 3, 2]); // [batch, heads, size, seq]
        let y = self.attention.attend(g, [&q, &k, &v], [heads, size], &Score::Nothing)?; // [batch, seq, hidden]
        linear(g, "o_proj", &y, [hidden, hidden])
    }
}

/// RG-LRU behind a convolution, beside a gate: `[batch, seq, hidden]` → the same shape, with the states of block `layer`.
fn rglru(g: &mut GraphBuilder<'_>, hidden: usize, layer: usize, ids: &Value, x: &Value) -> Result<Value, ExportError> {
    let sizes = [hidden, hidden];
    let gate = linear(g, "linear_y", x, sizes)?;
    let gate = g.node("Gelu", &[&gate], &[]);
    let u = linear(g, "linear_x", x, sizes)?;
    let conv = ShortConvolution { channels: hidden, taps: TAPS, biased: true };
    let u = conv.lower(g, "conv1d", &format!("conv_l{layer}"), ids, &u)?;
    let states = recurrence(g, &format!("h_l{layer}"), hidden, ids, |g| {
        let r = affine(g, "recurrence_gate", &u, sizes)?;
        let r = g.sigmoid(&r);
        let i = affine(g, "input_gate", &u, sizes)?;
        let i = g.sigmoid(&i);
        // softplus(−Λ)·c
        let lambda = &g.weight("lambda", &[hidden])?.values;
        let rates: Vec<f32> = lambda.iter().map(|l| ((-f64::from(*l)).exp().ln_1p() * POWER) as f32).collect();
        let rates = g.constant("lambda.rate", &[hidden], &rates);
        let rate = g.mul(&r, &rates); // −log a
        let (one, two, least) = (g.scalar("one", 1f32), g.scalar("two", 2f32), g.scalar("least", LEAST));
        let t = g.node("Tanh", &[&rate], &[]);
        let above = g.mul(&t, &two);
        let below = g.add(&t, &one);
        let written = g.div(&above, &below); // 1 − a²
        let written = g.node("Max", &[&written, &least], &[]);
        let written = g.node("Sqrt", &[&written], &[]);
        let written = g.mul(&written, &i);
        let rate = g.neg(&rate);
        Ok([g.exp(&rate), g.mul(&written, &u)])
    })?;
    let y = g.mul(&states, &gate);
    linear(g, "linear_out", &y, sizes)
}
