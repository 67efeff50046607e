//! RWKV-5 "Eagle": blocks of a time mix (a matrix state per head, with one learned decay per channel) and a channel
//! mix, both of which also see the token before.
//!
//! Source: Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", arXiv 2404.05892,
//! block type `x052` of the code published with it; sizes of arXiv 2405.20131.

use crate::architecture::{Architecture, Heads, check_dropout};
use crate::layers::{Embedding, LayerNorm, Linear, dropout, split_heads};
use crate::ops::{Gate, SequenceOps};
use crate::rwkv::{self, Depth, GroupNorm, LAYER_NORM_EPSILON, RwkvState, ffn_size, last_token};
use crate::{ConfigError, Init, ModelInput, Network, ParameterGroup};
use burn::module::{Module, Param};
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Sizes of an [`Rwkv5`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rwkv5Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Channels of a head; divides `hidden_size`.
    pub head_size: usize,
    /// Dropout of the embedding, and of the whole residual stream after each addition to it.
    pub dropout: f64,
}

impl Default for Rwkv5Config {
    fn default() -> Self {
        Self { hidden_size: 128, num_layers: 4, head_size: 64, dropout: 0.1 }
    }
}

impl Architecture for Rwkv5Config {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["head.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        check_dropout(self.dropout)?;
        rwkv::check_sizes(self.hidden_size, self.head_size)
    }

    fn has_dropout(&self) -> bool {
        self.dropout > 0.0
    }

    fn pulls_logits(&self) -> bool {
        true
    }

    fn parameter_group(&self, name: &str) -> ParameterGroup {
        rwkv::parameter_group(name)
    }

    fn examples() -> Vec<Self> {
        vec![Self { hidden_size: 16, num_layers: 2, head_size: 8, ..Self::default() }]
    }

    fn benchmark(_seq: usize) -> Vec<(&'static str, Value)> {
        vec![("dropout", 0.0.into())]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Size("head_size"))
    }
}

impl Rwkv5Config {
    /// A model over `vocab` tokens. Block outputs start at zero; mixtures and decays depend on channel and depth.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Rwkv5<B> {
        let hidden = self.hidden_size;
        Rwkv5 {
            emb: rwkv::embedding(init, vocab, hidden),
            blocks: (0..self.num_layers).map(|i| self.block(init, i)).collect(),
            ln_out: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            head: rwkv::head(init, vocab, hidden),
            dropout: self.dropout,
        }
    }

    fn block<B: Backend>(&self, init: &mut Init<'_, B>, i: usize) -> Block<B> {
        let (hidden, ffn) = (self.hidden_size, ffn_size(self.hidden_size));
        let depth = Depth::new(i, self.num_layers, hidden);
        let heads = [hidden / self.head_size, self.head_size];
        let mix = |init: &mut Init<'_, B>, token| init.values(token, [1, 1, hidden]);
        Block {
            ln0: (i == 0).then(|| LayerNorm::new(init, hidden, LAYER_NORM_EPSILON)),
            ln1: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            ln2: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            att: TimeMix {
                time_mix_k: mix(init, depth.mix()),
                time_mix_v: mix(init, depth.mix_value()),
                time_mix_r: mix(init, depth.mix_gate()),
                time_mix_g: mix(init, depth.mix_gate()),
                time_decay: init.values(depth.decay(), heads),
                time_faaaa: init.values(depth.bonus(), heads),
                receptance: rwkv::orthogonal(init, hidden, hidden, 1.0),
                key: rwkv::orthogonal(init, hidden, hidden, 0.1),
                value: rwkv::orthogonal(init, hidden, hidden, 1.0),
                output: rwkv::zero(init, hidden, hidden),
                gate: rwkv::orthogonal(init, hidden, hidden, 0.1),
                ln_x: GroupNorm::new(init, hidden, depth.head_scale()),
            },
            ffn: ChannelMix {
                time_mix_k: mix(init, depth.mix()),
                time_mix_r: mix(init, depth.mix()),
                key: rwkv::orthogonal(init, hidden, ffn, 1.0),
                receptance: rwkv::zero(init, hidden, hidden),
                value: rwkv::zero(init, ffn, hidden),
            },
        }
    }
}

/// See the [module documentation](self). Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct Rwkv5<B: Backend> {
    emb: Embedding<B>,
    blocks: Vec<Block<B>>,
    ln_out: LayerNorm<B>,
    head: Linear<B>,
    dropout: f64,
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    /// Normalises the embedding, in the first block.
    ln0: Option<LayerNorm<B>>,
    ln1: LayerNorm<B>,
    ln2: LayerNorm<B>,
    att: TimeMix<B>,
    ffn: ChannelMix<B>,
}

/// The paper's μ are `time_mix`, its ω `time_decay`, its u `time_faaaa`.
#[derive(Module, Debug)]
struct TimeMix<B: Backend> {
    time_mix_k: Param<Tensor<B, 3>>,
    time_mix_v: Param<Tensor<B, 3>>,
    time_mix_r: Param<Tensor<B, 3>>,
    time_mix_g: Param<Tensor<B, 3>>,
    time_decay: Param<Tensor<B, 2>>,
    time_faaaa: Param<Tensor<B, 2>>,
    receptance: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    output: Linear<B>,
    gate: Linear<B>,
    ln_x: GroupNorm<B>,
}

#[derive(Module, Debug)]
struct ChannelMix<B: Backend> {
    time_mix_k: Param<Tensor<B, 3>>,
    time_mix_r: Param<Tensor<B, 3>>,
    key: Linear<B>,
    receptance: Linear<B>,
    value: Linear<B>,
}

impl<B: Backend> Network<B> for Rwkv5<B> {}

impl<B: SequenceOps> Rwkv5<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of a piece of a sequence, from the state (one per block) after the piece before it,
    /// and the state after this one.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<RwkvState<B>>>,
    ) -> (Tensor<B, 3>, Vec<RwkvState<B>>) {
        let drop = |x, place| dropout(x, self.dropout, input.dropout, place);
        let mut x = drop(self.emb.forward(input.input_ids), 0); // [batch, seq, hidden]
        let mut before = state.unwrap_or_default().into_iter();
        let mut after = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let next;
            (x, next) = block.forward(x, before.next(), |x, place| drop(x, 2 * i as u64 + place));
            after.push(next);
        }
        (self.head.forward(self.ln_out.forward(x)), after)
    }
}

impl<B: SequenceOps> Block<B> {
    fn forward(
        &self,
        x: Tensor<B, 3>,
        state: Option<RwkvState<B>>,
        drop: impl Fn(Tensor<B, 3>, u64) -> Tensor<B, 3>,
    ) -> (Tensor<B, 3>, RwkvState<B>) {
        let (att_state, ffn_shift) = match state {
            Some(s) => (Some((s.att_shift, s.wkv)), Some(s.ffn_shift)),
            None => (None, None),
        };
        let x = match &self.ln0 {
            Some(ln0) => ln0.forward(x),
            None => x,
        };
        let (y, (att_shift, wkv)) = self.att.forward(self.ln1.forward(x.clone()), att_state);
        let x = drop(x + y, 1);
        let (y, ffn_shift) = self.ffn.forward(self.ln2.forward(x.clone()), ffn_shift);
        let x = drop(x + y, 2);
        (x, RwkvState { att_shift, wkv, ffn_shift })
    }
}

impl<B: SequenceOps> TimeMix<B> {
    /// `[batch, seq, hidden]` → the same shape, from and to the last token and the matrices.
    #[allow(clippy::type_complexity)] // the pair is the time mix's part of the state
    fn forward(
        &self,
        x: Tensor<B, 3>,
        state: Option<(Tensor<B, 3>, Tensor<B, 4>)>,
    ) -> (Tensor<B, 3>, (Tensor<B, 3>, Tensor<B, 4>)) {
        let (before, matrices) = state.unzip();
        let last = last_token(&x);
        let [r, k, v, g] = mix(x, before, [&self.time_mix_r, &self.time_mix_k, &self.time_mix_v, &self.time_mix_g]);
        let [r, k] = [self.receptance.forward(r), self.key.forward(k)];
        let [v, g] = [self.value.forward(v), self.gate.forward(g)];

        let [heads, head_size] = self.time_decay.dims();
        let decay = self.time_decay.val().exp().neg().exp().reshape([1, heads, 1, head_size]);
        let [r, k, v] = [r, k, v].map(|x| split_heads(x, head_size)); // [batch, heads, seq, head_size]
        let (y, matrices) = B::wkv(r, k, v, decay, self.time_faaaa.val(), matrices);
        let gated = B::gated(self.ln_x.forward(y), g, Gate::Silu);
        (self.output.forward(gated), (last, matrices))
    }
}

/// x·μ + predecessor·(1 − μ), for each μ.
fn mix<B: SequenceOps, const M: usize>(
    x: Tensor<B, 3>,
    before: Option<Tensor<B, 3>>,
    with: [&Param<Tensor<B, 3>>; M],
) -> [Tensor<B, 3>; M] {
    let with = Tensor::cat(with.map(Param::val).to_vec(), 1).squeeze_dim::<2>(0); // [M, hidden]
    B::token_mixes(x, before, -with + 1.0)
}

impl<B: SequenceOps> ChannelMix<B> {
    /// σ(r)·(relu(k)²·W), `[batch, seq, hidden]` → the same shape, from and to the last token.
    fn forward(&self, x: Tensor<B, 3>, before: Option<Tensor<B, 3>>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let last = last_token(&x);
        let [k, r] = mix(x, before, [&self.time_mix_k, &self.time_mix_r]);
        let k = B::squared_relu(self.key.forward(k)); // [batch, seq, ffn]
        (B::gated(self.value.forward(k), self.receptance.forward(r), Gate::Sigmoid), last)
    }
}
