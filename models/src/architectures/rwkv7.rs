//! RWKV-7 "Goose": blocks of a time mix (a matrix state per head, by the [generalised delta
//! rule](crate::ops::generalized_delta)) and a channel mix, both of which also see the token before. Values of later
//! blocks are mixed with those of the first.
//!
//! Source: Peng et al., "RWKV-7 'Goose' with Expressive Dynamic State Evolution", arXiv 2503.14456, block type `x070` of
//! the code published with it (BlinkDL/RWKV-LM).

use crate::architecture::{Architecture, Heads, check_dropout};
use crate::checkpoint::original::{Fields, OriginalError};
use crate::layers::{Embedding, LayerNorm, Linear, dropout, split_heads, unit};
use crate::ops::autocast::matmul_rows;
use crate::ops::generalized_delta::GeneralizedDelta;
use crate::ops::{Activation, SequenceOps};
use crate::rwkv::{self, Depth, GroupNorm, LAYER_NORM_EPSILON, RwkvState, last_token};
use crate::{ConfigError, Init, ModelInput, Network, ParameterGroup};
use burn::module::{Module, Param};
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Sizes of an [`Rwkv7`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rwkv7Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Channels of a head; divides `hidden_size`.
    pub head_size: usize,
    /// Rank of the input-dependent part of decays; 0, as for the other ranks: what the published code suggests,
    /// 2.5·√hidden_size to the nearest multiple of 32.
    pub decay_rank: usize,
    /// Rank of that of the rate at which a head learns in context; 0: as for decays.
    pub a_rank: usize,
    /// Rank of that of the mixture of values with those of the first block; 0: 1.7·√hidden_size.
    pub v_rank: usize,
    /// Rank of the gates; 0: 5·√hidden_size.
    pub gate_rank: usize,
    /// Dropout of the embedding, and of the whole residual stream after each addition to it.
    pub dropout: f64,
}

impl Default for Rwkv7Config {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_layers: 4,
            head_size: 64,
            decay_rank: 0,
            a_rank: 0,
            v_rank: 0,
            gate_rank: 0,
            dropout: 0.0,
        }
    }
}

/// The mixtures of a token with its predecessor: r, w, k, v, a, g.
pub const MIXES: usize = 6;

/// Keys are divided by their length, or by this if it is larger.
pub const LEAST_LENGTH: f64 = 1e-12;

/// Decays are exp(this·σ(…)): −e^(−½), so that at least 0.545 of a channel is left.
pub const FASTEST_DECAY: f64 = -0.606_530_659_712_633_4;

impl Architecture for Rwkv7Config {
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
        rwkv::check_heads(self.hidden_size, self.head_size)
    }

    fn has_dropout(&self) -> bool {
        self.dropout > 0.0
    }

    fn pulls_logits(&self) -> bool {
        true
    }

    /// Only matrices of linear layers, the embedding and the decoder decay; `w0` learns twice as fast.
    fn parameter_group(&self, name: &str) -> ParameterGroup {
        let matrix = name.ends_with(".weight") && !name.contains("ln");
        let lr_scale = if name.ends_with(".att.w0") { 2.0 } else { 1.0 };
        ParameterGroup { lr_scale, weight_decay: matrix, ..ParameterGroup::DEFAULT }
    }

    fn examples() -> Vec<Self> {
        let small = Self {
            hidden_size: 16,
            num_layers: 2,
            head_size: 8,
            decay_rank: 4,
            a_rank: 3,
            v_rank: 2,
            gate_rank: 5,
            ..Self::default()
        };
        vec![small.clone(), Self { num_layers: 3, head_size: 4, dropout: 0.1, decay_rank: 0, ..small }]
    }

    fn benchmark(_seq: usize) -> Vec<(&'static str, Value)> {
        vec![("dropout", 0.0.into())]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Size("head_size"))
    }

    fn original(f: &Fields<'_>) -> Option<Result<Self, OriginalError>> {
        Some(Self::of(f))
    }

    /// The training code saves them in the first block, whose values have nothing to be mixed with.
    fn unused() -> &'static [&'static str] {
        &["blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"]
    }
}

/// The ranks of a model's low-rank parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranks {
    /// Of decays.
    pub decay: usize,
    /// Of the rate of learning in context.
    pub a: usize,
    /// Of the mixture of values.
    pub v: usize,
    /// Of gates.
    pub gate: usize,
}

impl Rwkv7Config {
    /// The ranks, those that are 0 as suggested.
    pub fn ranks(&self) -> Ranks {
        let rank = |given: usize, factor: f64| match given {
            0 => ((factor * (self.hidden_size as f64).sqrt() / 32.0).round() as usize * 32).max(32),
            rank => rank,
        };
        Ranks {
            decay: rank(self.decay_rank, 2.5),
            a: rank(self.a_rank, 2.5),
            v: rank(self.v_rank, 1.7),
            gate: rank(self.gate_rank, 5.0),
        }
    }

    /// Channels of the channel mix.
    pub fn ffn_size(&self) -> usize {
        4 * self.hidden_size
    }

    /// The settings of published code: `lora` are the ranks of decay, a, v and gate.
    pub(crate) fn of(f: &Fields<'_>) -> Result<Self, OriginalError> {
        let hidden_size = f.required("hidden_size")?;
        let head_size = f.get("head_size")?.or(f.get("head_size_a")?).unwrap_or(64);
        f.only("head_size_a", &head_size)?;
        f.only("dim_att", &hidden_size)?;
        f.only("dim_ffn", &(4 * hidden_size))?;
        f.only("my_testing", &String::from("x070"))?;
        let [decay_rank, a_rank, v_rank, gate_rank] = f.get("lora")?.unwrap_or_default();
        Ok(Self {
            hidden_size,
            num_layers: f.required("num_hidden_layers")?,
            head_size,
            decay_rank,
            a_rank,
            v_rank,
            gate_rank,
            dropout: f.get("dropout")?.unwrap_or(0.0),
        })
    }

    /// A model over `vocab` tokens. Block outputs and low-rank parts start at zero; mixtures, decays and rates depend on
    /// channel and depth.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Rwkv7<B> {
        let hidden = self.hidden_size;
        Rwkv7 {
            emb: rwkv::embedding(init, vocab, hidden),
            blocks: (0..self.num_layers).map(|i| self.block(init, i)).collect(),
            ln_out: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            head: rwkv::head(init, vocab, hidden),
            dropout: self.dropout,
        }
    }

    fn block<B: Backend>(&self, init: &mut Init<'_, B>, i: usize) -> Block<B> {
        let (hidden, size, ranks) = (self.hidden_size, self.head_size, self.ranks());
        let depth = Depth::new(i, self.num_layers, hidden);
        let vector = |init: &mut Init<'_, B>, values: Vec<f32>| init.values(values, [1, 1, hidden]);
        let mix = |init: &mut Init<'_, B>, exponent| {
            init.values(depth.mix_with(exponent).into_iter().map(|part| 1.0 - part).collect(), [1, 1, hidden])
        };
        let down = |init: &mut Init<'_, B>, rank| init.constant([hidden, rank], 0.0);
        let up = |init: &mut Init<'_, B>, rank: usize| {
            init.orthogonal([rank, hidden], 0.1 * (rank as f64 / hidden as f64).sqrt().max(1.0))
        };
        // Of the channel's place in the model, −½ … ½, and in its head, −1 … 1.
        let places = |value: &dyn Fn(f64, f64) -> f64| -> Vec<f32> {
            let half = (size as f64 - 1.0) / 2.0;
            let of = |n: usize| {
                let place = if size == 1 { 0.0 } else { ((n % size) as f64 - half) / half };
                value(depth.along(n) - 0.5, place * place.abs()) as f32
            };
            (0..hidden).map(of).collect()
        };
        let bend = 1.0 + depth.rise().powf(0.3);
        let w0 = places(&|along, zigzag| -5.5 + 6.0 * (along + 0.5).powf(bend) + 2.5 * zigzag);
        let a0 = places(&|along, zigzag| -0.19 + 0.3 * zigzag + 0.4 * along);
        let v0 = places(&|along, _| 0.73 - 0.4 * along);
        let k_k = places(&|along, _| 0.71 - 0.1 * along);
        Block {
            ln0: (i == 0).then(|| LayerNorm::new(init, hidden, LAYER_NORM_EPSILON)),
            ln1: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            ln2: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            att: TimeMix {
                x_r: mix(init, 0.2),
                x_w: mix(init, 0.9),
                x_k: mix(init, 0.7),
                x_v: mix(init, 0.7),
                x_a: mix(init, 0.9),
                x_g: mix(init, 0.2),
                w0: vector(init, w0),
                w1: down(init, ranks.decay),
                w2: up(init, ranks.decay),
                a0: vector(init, a0),
                a1: down(init, ranks.a),
                a2: up(init, ranks.a),
                v0: (i > 0).then(|| vector(init, v0)),
                v1: (i > 0).then(|| down(init, ranks.v)),
                v2: (i > 0).then(|| up(init, ranks.v)),
                g1: down(init, ranks.gate),
                g2: up(init, ranks.gate),
                k_k: vector(init, k_k),
                k_a: init.constant([1, 1, hidden], 1.02),
                r_k: init.constant([hidden / size, size], -0.04),
                receptance: rwkv::orthogonal(init, hidden, hidden, 1.0),
                key: rwkv::orthogonal(init, hidden, hidden, 0.1),
                value: rwkv::orthogonal(init, hidden, hidden, 1.0),
                output: rwkv::zero(init, hidden, hidden),
                ln_x: GroupNorm::new(init, hidden, depth.head_scale()),
            },
            ffn: ChannelMix {
                x_k: mix(init, depth.fall().powi(3)),
                key: rwkv::orthogonal(init, hidden, self.ffn_size(), 1.0),
                value: rwkv::zero(init, self.ffn_size(), hidden),
            },
        }
    }
}

/// See the [module documentation](self). Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct Rwkv7<B: Backend> {
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

/// The paper's μ are `x_…`, its λ, α and ν `w0`, `a0` and `v0` with their low-rank parts, its ξ `k_k`, its ρ `r_k`.
#[derive(Module, Debug)]
struct TimeMix<B: Backend> {
    x_r: Param<Tensor<B, 3>>,
    x_w: Param<Tensor<B, 3>>,
    x_k: Param<Tensor<B, 3>>,
    x_v: Param<Tensor<B, 3>>,
    x_a: Param<Tensor<B, 3>>,
    x_g: Param<Tensor<B, 3>>,
    w0: Param<Tensor<B, 3>>,
    w1: Param<Tensor<B, 2>>,
    w2: Param<Tensor<B, 2>>,
    a0: Param<Tensor<B, 3>>,
    a1: Param<Tensor<B, 2>>,
    a2: Param<Tensor<B, 2>>,
    /// `None`, as `v1` and `v2`, in the first block.
    v0: Option<Param<Tensor<B, 3>>>,
    v1: Option<Param<Tensor<B, 2>>>,
    v2: Option<Param<Tensor<B, 2>>>,
    g1: Param<Tensor<B, 2>>,
    g2: Param<Tensor<B, 2>>,
    k_k: Param<Tensor<B, 3>>,
    k_a: Param<Tensor<B, 3>>,
    r_k: Param<Tensor<B, 2>>,
    receptance: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    output: Linear<B>,
    ln_x: GroupNorm<B>,
}

#[derive(Module, Debug)]
struct ChannelMix<B: Backend> {
    x_k: Param<Tensor<B, 3>>,
    key: Linear<B>,
    value: Linear<B>,
}

impl<B: Backend> Network<B> for Rwkv7<B> {}

impl<B: SequenceOps> Rwkv7<B> {
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
        let mut first_values = None;
        for (i, block) in self.blocks.iter().enumerate() {
            let next;
            (x, next) = block.forward(x, before.next(), &mut first_values, |x, place| drop(x, 2 * i as u64 + place));
            after.push(next);
        }
        (self.head.forward(self.ln_out.forward(x)), after)
    }
}

impl<B: SequenceOps> Block<B> {
    /// The first block sets the values of the first block.
    fn forward(
        &self,
        x: Tensor<B, 3>,
        state: Option<RwkvState<B>>,
        first_values: &mut Option<Tensor<B, 3>>,
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
        let (y, (att_shift, wkv)) = self.att.forward(self.ln1.forward(x.clone()), att_state, first_values);
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
        first_values: &mut Option<Tensor<B, 3>>,
    ) -> (Tensor<B, 3>, (Tensor<B, 3>, Tensor<B, 4>)) {
        let (before, matrices) = state.unzip();
        let last = last_token(&x);
        let [r, w, k, v, a, g] = self.mixtures(x, before);

        let sigmoid = |x| B::activation(x, Activation::Sigmoid);
        let w = matmul_rows(B::activation(matmul_rows(w, self.w1.val()), Activation::Tanh), self.w2.val());
        let decay = B::activation(sigmoid(w + self.w0.val()) * FASTEST_DECAY, Activation::Exp);
        let (r, k) = (self.receptance.forward(r), self.key.forward(k));
        let v = self.values(v, first_values);
        let a = sigmoid(matmul_rows(matmul_rows(a, self.a1.val()), self.a2.val()) + self.a0.val());
        let g = matmul_rows(sigmoid(matmul_rows(g, self.g1.val())), self.g2.val());

        let head_size = self.r_k.dims()[1];
        let removed = unit(k.clone() * self.k_k.val(), head_size, LEAST_LENGTH.powi(2));
        let k = k * ((a.clone() - 1.0) * self.k_a.val() + 1.0);
        let heads = |x: &Tensor<B, 3>| split_heads(x.clone(), head_size); // [batch, heads, seq, head_size]
        let rule = GeneralizedDelta {
            q: heads(&r),
            k: heads(&k),
            v: heads(&v),
            decay: heads(&decay),
            under: heads(&(removed.clone() * a)),
            removed: heads(&removed),
        };
        let (y, matrices) = B::generalized_delta(rule, matrices);
        let y = self.ln_x.forward(y) + self.own(r * k, v);
        (self.output.forward(y * g), (last, matrices))
    }

    /// The token mixed with its predecessor in six ways.
    fn mixtures(&self, x: Tensor<B, 3>, before: Option<Tensor<B, 3>>) -> [Tensor<B, 3>; MIXES] {
        let parts = [&self.x_r, &self.x_w, &self.x_k, &self.x_v, &self.x_a, &self.x_g];
        let parts = Tensor::cat(parts.map(Param::val).to_vec(), 1).squeeze_dim::<2>(0); // [6, hidden]
        B::token_mixes(x, before, parts)
    }

    /// Values, in later blocks moved towards those of the first.
    fn values(&self, x: Tensor<B, 3>, first: &mut Option<Tensor<B, 3>>) -> Tensor<B, 3> {
        let v = self.value.forward(x.clone());
        match (&self.v0, &self.v1, &self.v2) {
            (Some(v0), Some(v1), Some(v2)) => {
                let part = matmul_rows(matmul_rows(x, v1.val()), v2.val()) + v0.val();
                let part = B::activation(part, Activation::Sigmoid);
                match first {
                    Some(first) => v.clone() + (first.clone() - v) * part,
                    None => v,
                }
            }
            _ => first.insert(v).clone(),
        }
    }

    /// What a token adds to its own output: (Σ r·k·ρ)·v, head by head.
    fn own(&self, product: Tensor<B, 3>, v: Tensor<B, 3>) -> Tensor<B, 3> {
        let [heads, size] = self.r_k.dims();
        let [batch, seq, hidden] = v.dims();
        let weight = product * self.r_k.val().reshape([1, 1, hidden]);
        let weight = weight.reshape([batch, seq, heads, size]).sum_dim(3).squeeze_dim::<3>(3); // [batch, seq, heads]
        B::head_scale(v.reshape([batch, seq, heads, size]), weight).reshape([batch, seq, hidden])
    }
}

impl<B: SequenceOps> ChannelMix<B> {
    /// relu(k)²·W, `[batch, seq, hidden]` → the same shape, from and to the last token.
    fn forward(&self, x: Tensor<B, 3>, before: Option<Tensor<B, 3>>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let last = last_token(&x);
        let k = B::token_mix(x, before, self.x_k.val().reshape([-1]), None);
        (self.value.forward(B::squared_relu(self.key.forward(k))), last)
    }
}
