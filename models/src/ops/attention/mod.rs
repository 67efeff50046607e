//! Attention, causal or in both directions (Vaswani et al., arXiv 1706.03762).

pub mod cpu;

use super::autocast::product;
use super::kernel::RunKernels;
use crate::layers::split_heads;
use burn::prelude::*;
use burn::tensor::activation::softmax;

/// The settings of attention, besides queries, keys and values.
#[derive(Debug, Clone)]
pub struct AttentionOptions<B: Backend> {
    /// Heads.
    pub heads: usize,
    /// Factor on the products of queries and keys.
    pub scale: f64,
    /// The rotation of queries and keys, which gets no gradient.
    pub rotation: Option<Rotation<B>>,
    /// Added to the scores, `[batch, heads, query, key]`, where batch and heads may be 1. Gradients go through it.
    pub bias: Option<Tensor<B, 4>>,
    /// The padding mask.
    pub mask: Option<KeyMask<B>>,
    /// Whether queries see no key after their own.
    pub causal: bool,
}

impl<B: Backend> AttentionOptions<B> {
    /// Causal, without rotation, bias and key mask.
    pub fn new(heads: usize, scale: f64) -> Self {
        Self { heads, scale, rotation: None, bias: None, mask: None, causal: true }
    }
}

/// The keys that attention may see, of which a causal mask may hide more.
#[derive(Debug, Clone)]
pub struct KeyMask<B: Backend> {
    /// `[batch, seq]`, 0 at keys that no query may see, 1 at the others.
    pub keys: Tensor<B, 2>,
    /// Every query may see itself, regardless of `keys`.
    pub identity: bool,
}

/// cos and sin of every position's angles, `[batch, 1, seq, head_dim]`; the second half of the channels repeats the
/// first (Su et al., arXiv 2104.09864).
#[derive(Debug, Clone)]
pub struct Rotation<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B, 4>,
    /// Sines.
    pub sin: Tensor<B, 4>,
}

/// Attention.
pub trait AttentionOp: RunKernels {
    /// Attention from `qkv` `[batch, seq, 3·hidden]`, in which the heads of the queries lie side by side, then
    /// those of the keys and of the values, to the heads side by side, `[batch, seq, hidden]`. See [`probabilities`]
    /// for the formula.
    fn packed_attention(qkv: Tensor<Self, 3>, options: AttentionOptions<Self>) -> Tensor<Self, 3> {
        cpu::packed_attention(&qkv, &options).unwrap_or_else(|| reference(qkv, options))
    }
}

impl<B: RunKernels> AttentionOp for B {}

/// Head by head softmax(scale·q·kᵀ + bias + masks)·v, see [`probabilities`]; shapes as in
/// [`AttentionOp::packed_attention`].
pub fn reference<B: Backend>(qkv: Tensor<B, 3>, options: AttentionOptions<B>) -> Tensor<B, 3> {
    let [q, k, v] = heads(qkv, options.heads, options.rotation.as_ref());
    side_by_side(product(probabilities(q, k, &options), v))
}

/// softmax(scale·q·kᵀ + bias + masks), `[batch, heads, query, key]`, of `q` and `k` `[batch, heads, seq, head_dim]`,
/// which are rotated already.
///
/// The masks are finite, as in the models this reproduces: where attention is causal, keys after the query are *set* to the
/// lowest 32-bit float; masked keys have it *added*. A query without any allowed key therefore attends evenly to the keys that are masked
/// once.
pub fn probabilities<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>, options: &AttentionOptions<B>) -> Tensor<B, 4> {
    let [_, _, seq, _] = q.dims();
    let device = q.device();
    let lowest = f32::MIN;
    let mut scores = product(q, k.transpose()) * options.scale; // [batch, heads, query, key]
    if let Some(bias) = &options.bias {
        scores = scores + bias.clone();
    }
    if options.causal {
        let future = Tensor::<B, 2, Bool>::tril_mask([seq, seq], 0, &device).unsqueeze(); // true where key > query
        scores = scores.mask_fill(future, lowest);
    }
    if let Some(KeyMask { keys, identity }) = options.mask.clone() {
        let [batch, _] = keys.dims();
        let mut hidden = keys.neg().add_scalar(1.0).reshape([batch, 1, 1, seq]);
        if identity {
            let others = Tensor::<B, 2>::eye(seq, &device).cast(hidden.dtype()).neg().add_scalar(1.0);
            hidden = hidden * others.unsqueeze(); // [batch, 1, query, key]
        }
        scores = scores + hidden * lowest;
    }
    softmax(scores, 3)
}

/// Queries, keys and values `[batch, heads, seq, head_dim]` from `[batch, seq, 3·hidden]`, the first two rotated.
pub fn heads<B: Backend>(qkv: Tensor<B, 3>, heads: usize, rotation: Option<&Rotation<B>>) -> [Tensor<B, 4>; 3] {
    let hidden = qkv.dims()[2] / 3;
    let part = |k: usize| split_heads(qkv.clone().narrow(2, k * hidden, hidden), hidden / heads);
    let rotated = |t| match rotation {
        Some(rotation) => rotate(t, rotation),
        None => t,
    };
    [rotated(part(0)), rotated(part(1)), part(2)]
}

/// t·cos + (−t₂ ‖ t₁)·sin, where t₁ and t₂ are the halves of the channels.
pub fn rotate<B: Backend>(t: Tensor<B, 4>, rotation: &Rotation<B>) -> Tensor<B, 4> {
    let half = t.dims()[3] / 2;
    let first = t.clone().narrow(3, 0, half);
    let second = t.clone().narrow(3, half, half);
    let turned = Tensor::cat(vec![second.neg(), first], 3);
    t * rotation.cos.clone() + turned * rotation.sin.clone()
}

/// `qkv` as in [`AttentionOp::packed_attention`] with its queries times `factor` `[1 or batch, 1 or heads, seq, 1]`, which
/// is smaller than scores times it.
pub fn scaled_queries<B: Backend>(qkv: Tensor<B, 3>, factor: Tensor<B, 4>, heads: usize) -> Tensor<B, 3> {
    let [_, seq, width] = qkv.dims();
    let (hidden, examples) = (width / 3, factor.dims()[0]);
    let factor = factor.expand([examples, heads, seq, hidden / heads]);
    let factor = factor.swap_dims(1, 2).reshape([examples, seq, hidden]);
    let others = Tensor::ones([examples, seq, 2 * hidden], (&qkv.device(), qkv.dtype()));
    qkv * Tensor::cat(vec![factor, others], 2)
}

/// `[batch, heads, seq, head_dim]` → `[batch, seq, hidden]`.
pub fn side_by_side<B: Backend>(y: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, heads, seq, head_dim] = y.dims();
    y.swap_dims(1, 2).reshape([batch, seq, heads * head_dim])
}
