//! Causal Transformer: GPT-2's pre-norm blocks with a ReLU MLP, layer i's attention scores divided by √d·(i + 1).
//!
//! Sources: Vaswani et al., arXiv 1706.03762; Radford et al., "Language Models are Unsupervised Multitask Learners",
//! 2019; rotary positions from Su et al., arXiv 2104.09864; sizes and initialisation of arXiv 2405.20131.

use crate::error::ConfigError;
use crate::layers::{Conv1d, Embedding, LayerNorm, Linear};
use crate::ops::SequenceOps;
use crate::{Init, ModelInput};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::relu;
use serde::{Deserialize, Serialize};

/// How positions enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PositionalEmbedding {
    /// Not at all; only the causal mask tells positions apart (NoPE).
    None,
    /// Queries and keys are rotated by their position.
    Rope,
}

/// Sizes of a [`Transformer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransformerConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// How positions enter.
    pub positional_embedding: PositionalEmbedding,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self { hidden_size: 1024, num_layers: 2, num_heads: 8, positional_embedding: PositionalEmbedding::None }
    }
}

/// LayerNorm's ε.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;

/// The base of the rotary frequencies.
pub const ROPE_BASE: f64 = 10_000.0;

impl TransformerConfig {
    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let (hidden, heads) = (self.hidden_size, self.num_heads);
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(ConfigError::new(
                "num_heads",
                format!("hidden_size {hidden} cannot be split into {heads} heads; choose a divisor of {hidden}"),
            ));
        }
        if self.positional_embedding == PositionalEmbedding::Rope && !self.head_dim().is_multiple_of(2) {
            return Err(ConfigError::new(
                "num_heads",
                format!("rope rotates pairs of channels, but a head has {} (hidden_size / num_heads)", self.head_dim()),
            ));
        }
        Ok(())
    }

    /// The rotary frequencies base^(−2j/d) for j < d/2.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let d = self.head_dim();
        (0..d / 2).map(|j| ROPE_BASE.powf(-2.0 * j as f64 / d as f64) as f32).collect()
    }

    /// What layer `i`'s scores are multiplied by: 1/(√d·(i + 1)).
    pub fn attention_scale(&self, layer: usize) -> f64 {
        1.0 / ((self.head_dim() as f64).sqrt() * (layer + 1) as f64)
    }

    /// A model over `vocab` tokens: weights N(0, 0.02²), the residual projections N(0, (0.02/√(2·layers))²), biases 0.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Transformer<B> {
        let (hidden, std) = (self.hidden_size, 0.02);
        let residual = std / (2.0 * self.num_layers as f64).sqrt();
        let wte = Embedding::new(init, vocab, hidden, std);
        let h = (0..self.num_layers).map(|i| Block {
            ln_1: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            attn: Attention {
                c_attn: Conv1d::new(init, hidden, 3 * hidden, std),
                c_proj: Conv1d::new(init, hidden, hidden, residual),
                heads: self.num_heads,
                scale: self.attention_scale(i),
            },
            ln_2: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            mlp: Mlp {
                c_fc: Conv1d::new(init, hidden, 4 * hidden, std),
                c_proj: Conv1d::new(init, 4 * hidden, hidden, residual),
            },
        });
        let rotary = self.positional_embedding == PositionalEmbedding::Rope;
        Transformer {
            wte,
            h: h.collect(),
            ln_f: LayerNorm::new(init, hidden, LAYER_NORM_EPSILON),
            lm_head: Linear::new(init, hidden, vocab, std),
            inverse_frequencies: rotary.then(|| self.inverse_frequencies()),
        }
    }
}

/// See the [module documentation](self). Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct Transformer<B: Backend> {
    wte: Embedding<B>,
    h: Vec<Block<B>>,
    ln_f: LayerNorm<B>,
    lm_head: Linear<B>,
    inverse_frequencies: Option<Vec<f32>>,
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    ln_1: LayerNorm<B>,
    attn: Attention<B>,
    ln_2: LayerNorm<B>,
    mlp: Mlp<B>,
}

#[derive(Module, Debug)]
struct Attention<B: Backend> {
    c_attn: Conv1d<B>,
    c_proj: Conv1d<B>,
    heads: usize,
    scale: f64,
}

#[derive(Module, Debug)]
struct Mlp<B: Backend> {
    c_fc: Conv1d<B>,
    c_proj: Conv1d<B>,
}

impl<B: SequenceOps> Transformer<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        let rotation = self.inverse_frequencies.as_ref().map(|f| Rotation::new(&input, f));
        let mut x = self.wte.forward(input.input_ids); // [batch, seq, hidden]
        for block in &self.h {
            x = block.forward(x, rotation.as_ref(), input.attention_mask.clone());
        }
        self.lm_head.forward(self.ln_f.forward(x))
    }
}

impl<B: SequenceOps> Block<B> {
    fn forward(&self, x: Tensor<B, 3>, rotation: Option<&Rotation<B>>, mask: Option<Tensor<B, 2>>) -> Tensor<B, 3> {
        let x = x.clone() + self.attn.forward(self.ln_1.forward(x), rotation, mask);
        x.clone() + self.mlp.forward(self.ln_2.forward(x))
    }
}

impl<B: SequenceOps> Attention<B> {
    fn forward(&self, x: Tensor<B, 3>, rotation: Option<&Rotation<B>>, mask: Option<Tensor<B, 2>>) -> Tensor<B, 3> {
        let [batch, seq, hidden] = x.dims();
        let qkv = self.c_attn.forward(x); // [batch, seq, 3·hidden]
        let head = |k: usize| {
            let part = qkv.clone().slice([0..batch, 0..seq, k * hidden..(k + 1) * hidden]);
            part.reshape([batch, seq, self.heads, hidden / self.heads]).swap_dims(1, 2)
        };
        let (mut q, mut k, v) = (head(0), head(1), head(2)); // [batch, heads, seq, head_dim]
        if let Some(rotation) = rotation {
            (q, k) = (rotation.apply(q), rotation.apply(k));
        }
        let y = B::causal_attention(q, k, v, mask, self.scale);
        self.c_proj.forward(y.swap_dims(1, 2).reshape([batch, seq, hidden]))
    }
}

impl<B: Backend> Mlp<B> {
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.c_proj.forward(relu(self.c_fc.forward(x)))
    }
}

/// cos and sin of every position's angles, `[batch, 1, seq, head_dim]`; the second half of the channels repeats the first.
struct Rotation<B: Backend> {
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rotation<B> {
    fn new(input: &ModelInput<B>, frequencies: &[f32]) -> Self {
        let [batch, seq] = input.position_ids.dims();
        let half = frequencies.len();
        let frequencies = TensorData::new(frequencies.to_vec(), [1, 1, 1, half]);
        let frequencies = Tensor::<B, 4>::from_data(frequencies, &input.position_ids.device());
        let positions = input.position_ids.clone().float().reshape([batch, 1, seq, 1]);
        let angles = positions * frequencies; // [batch, 1, seq, half]
        let angles = Tensor::cat(vec![angles.clone(), angles], 3);
        Self { cos: angles.clone().cos(), sin: angles.sin() }
    }

    /// t·cos + (−t₂ ‖ t₁)·sin, where t₁ and t₂ are the halves of the channels.
    fn apply(&self, t: Tensor<B, 4>) -> Tensor<B, 4> {
        let half = t.dims()[3] / 2;
        let first = t.clone().narrow(3, 0, half);
        let second = t.clone().narrow(3, half, half);
        let turned = Tensor::cat(vec![second.neg(), first], 3);
        t * self.cos.clone() + turned * self.sin.clone()
    }
}
