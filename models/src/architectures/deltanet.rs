//! Gated DeltaNet: blocks of a fast-weight memory that is decayed and corrected at every token, and of an MLP; both are
//! added to the residual stream. With eigenvalues down to −1, the memory can flip as well as forget, which is what
//! tracking a state (parity, counting modulo a number) needs.
//!
//! Sources: S. Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv 2412.06464; R. Grazzi et
//! al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", arXiv 2411.12537. The short
//! convolutions of the former are left out, and the MLP is the one of the other models here;
//! [`gated_deltanet`](super::gated_deltanet) has all of it as published.
#![allow(non_snake_case)] // A, as in the papers and in checkpoints

use crate::architecture::{Architecture, Heads, check_dropout};
use crate::layers::{Embedding, LayerNorm, Linear, Mlp, dropout, split_heads, unit};
use crate::ops::delta::DeltaRule;
use crate::ops::scan::softplus;
use crate::ops::{Activation, Gate, SequenceOps};
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Sizes of a [`Deltanet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaNetConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Channels of a head; divides `hidden_size`.
    pub head_size: usize,
    /// Whether the correction's step goes up to 2, and the eigenvalues of the recurrence down to −1, instead of 1 and
    /// 0.
    pub negative_eigenvalues: bool,
    /// Dropout of what a block adds.
    pub dropout: f64,
}

impl Default for DeltaNetConfig {
    fn default() -> Self {
        Self { hidden_size: 128, num_layers: 2, head_size: 64, negative_eigenvalues: true, dropout: 0.1 }
    }
}

/// ε of every norm over channels.
pub const NORM_EPSILON: f64 = 1e-5;

/// Added to the squared lengths of queries and keys before the division.
pub const LENGTH_EPSILON: f64 = 1e-6;

impl Architecture for DeltaNetConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["decoder.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        check_dropout(self.dropout)?;
        let (hidden, size) = (self.hidden_size, self.head_size);
        if size == 0 || !hidden.is_multiple_of(size) {
            let reason = format!(
                "hidden_size {hidden} cannot be split into heads of {size}\n  hint: choose a divisor of {hidden}"
            );
            return Err(ConfigError::new("head_size", reason));
        }
        Ok(())
    }

    fn has_dropout(&self) -> bool {
        self.dropout > 0.0
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, head_size: 8, ..Self::default() };
        vec![small.clone(), Self { negative_eigenvalues: false, ..small }]
    }

    fn benchmark(_seq: usize) -> Vec<(&'static str, Value)> {
        vec![("dropout", 0.0.into())]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Size("head_size"))
    }
}

impl DeltaNetConfig {
    /// The largest step of the correction, β.
    pub fn largest_step(&self) -> f64 {
        if self.negative_eigenvalues { 2.0 } else { 1.0 }
    }

    /// A model over `vocab` tokens: weights N(0, 0.02²), the last one of a block's mixer over √(2·layers), the MLP
    /// U(±1/√in). As in Mamba-2, the rates of decay begin with A = 1 … 16 and step sizes log-uniform on 0.001 … 0.1.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Deltanet<B> {
        let (hidden, heads) = (self.hidden_size, self.hidden_size / self.head_size.max(1));
        let std = 0.02;
        let norm = |init: &mut Init<'_, B>| LayerNorm::new(init, hidden, NORM_EPSILON);
        let blocks = (0..self.num_layers).map(|_| Block {
            norm_1: norm(init),
            mixer: Mixer {
                q_proj: Linear::new(init, hidden, hidden, std),
                k_proj: Linear::new(init, hidden, hidden, std),
                v_proj: Linear::new(init, hidden, hidden, std),
                b_proj: Linear::new(init, hidden, heads, std),
                a_proj: Linear::new(init, hidden, heads, std),
                A_log: {
                    let a = init.draw_uniform(heads, 1.0, 16.0);
                    init.values(a.into_iter().map(f32::ln).collect(), [heads])
                },
                dt_bias: {
                    let log_dt = init.draw_uniform(heads, 0.001f64.ln(), 0.1f64.ln());
                    // softplus⁻¹(x) = log(eˣ − 1)
                    init.values(log_dt.into_iter().map(|log_dt| log_dt.exp().exp_m1().ln()).collect(), [heads])
                },
                g_proj: Linear::new(init, hidden, hidden, std),
                o_norm: HeadNorm { weight: init.constant([self.head_size], 1.0) },
                o_proj: Linear::new(init, hidden, hidden, std / (2.0 * self.num_layers as f64).sqrt()),
                largest_step: self.largest_step(),
            },
            norm_2: norm(init),
            mlp: Mlp::new(init, hidden),
        });
        let blocks = blocks.collect();
        Deltanet {
            encoder: Embedding::new(init, vocab, hidden, std),
            blocks,
            norm_f: norm(init),
            decoder: Linear::new(init, hidden, vocab, std),
            dropout: self.dropout,
        }
    }
}

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Deltanet<B: Backend> {
    encoder: Embedding<B>,
    blocks: Vec<Block<B>>,
    norm_f: LayerNorm<B>,
    decoder: Linear<B>,
    dropout: f64,
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    norm_1: LayerNorm<B>,
    mixer: Mixer<B>,
    norm_2: LayerNorm<B>,
    mlp: Mlp<B>,
}

/// Parameters are named as in the code published with the first paper.
#[derive(Module, Debug)]
struct Mixer<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    /// The steps of the correction, one per head.
    b_proj: Linear<B>,
    /// The step sizes of the decay, one per head.
    a_proj: Linear<B>,
    A_log: Param<Tensor<B, 1>>,
    dt_bias: Param<Tensor<B, 1>>,
    /// The gate of the output.
    g_proj: Linear<B>,
    o_norm: HeadNorm<B>,
    o_proj: Linear<B>,
    largest_step: f64,
}

/// RMSNorm (Zhang and Sennrich, arXiv 1910.07467) of every head, with one scale per channel of a head.
#[derive(Module, Debug)]
struct HeadNorm<B: Backend> {
    weight: Param<Tensor<B, 1>>,
}

impl<B: Backend> Network<B> for Deltanet<B> {}

impl<B: SequenceOps> Deltanet<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of a piece of a sequence, from the state after the piece before it (one
    /// `[batch, heads, key, value]` per block), and the state after this one.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<Tensor<B, 4>>>,
    ) -> (Tensor<B, 3>, Vec<Tensor<B, 4>>) {
        let mut x = self.encoder.forward(input.input_ids); // [batch, seq, hidden]
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let drop = |y, place| dropout(y, self.dropout, input.dropout, 2 * i as u64 + place);
            let (y, last) = block.mixer.forward(block.norm_1.forward(x.clone()), before.next());
            x = x + drop(y, 0);
            x = x.clone() + drop(block.mlp.forward(block.norm_2.forward(x)), 1);
            after.push(last);
        }
        (self.decoder.forward(self.norm_f.forward(x)), after)
    }
}

impl<B: SequenceOps> Mixer<B> {
    /// `[batch, seq, hidden]` → the same shape, from and to the memory.
    fn forward(&self, x: Tensor<B, 3>, memory: Option<Tensor<B, 4>>) -> (Tensor<B, 3>, Tensor<B, 4>) {
        let [batch, seq, hidden] = x.dims();
        let head_size = self.o_norm.weight.dims()[0];
        let heads = |x: Tensor<B, 3>| split_heads(x, head_size); // [batch, heads, seq, head_size]
        let a = self.a_proj.forward(x.clone()) + self.dt_bias.val().unsqueeze();
        let decay = (softplus(a) * self.A_log.val().exp().unsqueeze()).neg().exp(); // [batch, seq, heads]
        let silu = |linear: &Linear<B>| B::activation(linear.forward(x.clone()), Activation::Silu);
        let inputs = DeltaRule {
            q: heads(unit(silu(&self.q_proj), head_size, LENGTH_EPSILON)),
            k: heads(unit(silu(&self.k_proj), head_size, LENGTH_EPSILON)),
            v: heads(silu(&self.v_proj)),
            step: (sigmoid(self.b_proj.forward(x.clone())) * self.largest_step).swap_dims(1, 2),
            decay: decay.swap_dims(1, 2),
        };
        let (y, memory) = B::delta_rule(inputs, memory);
        let y = self.o_norm.forward(y.swap_dims(1, 2).reshape([batch, seq, hidden]));
        (self.o_proj.forward(B::gated(y, self.g_proj.forward(x), Gate::Silu)), memory)
    }
}

impl<B: SequenceOps> HeadNorm<B> {
    /// `[batch, seq, hidden]` → the same shape.
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        B::norm(x, self.weight.val(), None, self.weight.dims()[0], NORM_EPSILON)
    }
}
