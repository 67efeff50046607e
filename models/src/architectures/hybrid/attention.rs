//! Causal softmax attention as a mixer.

use super::HybridConfig;
use crate::layers::Linear;
use crate::layers::fla::STD;
use crate::ops::{AttentionOptions, KeyMask, SequenceOps, attention};
use crate::positions::{Places, PositionModule, Score};
use crate::transformer::{TransformerConfig, windows};
use crate::{Init, Positions};
use burn::module::Module;
use burn::prelude::*;

/// Multi-head attention without biases; projections are named as in flash-linear-attention.
#[derive(Module, Debug)]
pub struct HybridAttention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    o_proj: Linear<B>,
    /// Has no parameters: [`HybridConfig`] allows no scheme that has any.
    positions: PositionModule<B>,
    pub(super) config: TransformerConfig,
}

impl<B: Backend> HybridAttention<B> {
    /// Weights N(0, 0.02²).
    pub(super) fn new(config: &HybridConfig, init: &mut Init<'_, B>) -> Self {
        let hidden = config.hidden_size;
        let linear = |init: &mut Init<'_, B>| Linear::new(init, hidden, hidden, STD);
        let config = config.attention();
        Self {
            q_proj: linear(init),
            k_proj: linear(init),
            v_proj: linear(init),
            o_proj: linear(init),
            positions: config.positional_embedding.init(&config, init),
            config,
        }
    }
}

impl<B: SequenceOps> HybridAttention<B> {
    /// `[batch, seq, hidden]` → the same shape; `mask` `[batch, seq]` is 0 at keys that are hidden.
    pub(super) fn forward(&self, x: Tensor<B, 3>, positions: Positions<B>, mask: Option<Tensor<B, 2>>) -> Tensor<B, 3> {
        let places = Places { positions, dtype: x.dtype() };
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj].map(|linear| linear.forward(x.clone()));
        let mut qkv = Tensor::cat(projections.to_vec(), 2); // [batch, seq, 3·hidden]
        let mut options = AttentionOptions::new(self.config.num_heads, self.config.attention_scale(0));
        options.mask = mask.map(|keys| KeyMask { keys, identity: false });
        options.bias = windows(&self.config, &places);
        match self.positions.score(0, &places) {
            Score::Rotation(by) => options.rotation = Some(by),
            Score::Factor(by) => qkv = attention::scaled_queries(qkv, by, options.heads),
            Score::Bias(by) => {
                options.bias = Some(match options.bias.take() {
                    Some(windows) => by + windows,
                    None => by,
                });
            }
            Score::Nothing | Score::Content(_) => {} // content has parameters
        }
        self.o_proj.forward(B::packed_attention(qkv, options))
    }
}
