//! Gated linear attention (Yang et al., arXiv 2312.06635, section 3): a matrix state per head that decays by its own
//! factor in every key channel, or by one factor for all of them, before a key and its value are written; a query reads
//! it after that. HGRN2 (arXiv 2404.07904), Mamba-2 (arXiv 2405.21060) and the mLSTM (arXiv 2405.04517) are made of it.
//!
//! It has kernels for the CPU; for GPUs it is taken apart into [`wkv`](super::wkv) operations, which have kernels there.

pub mod cpu;

use super::wkv::WkvOp;
use super::zeros;
use crate::layers::repeat_heads;
use burn::prelude::*;

/// The tensors that the operation reads. Those with fewer heads than others have a divisor of their number: each of their
/// heads then serves as many heads in a row.
#[derive(Debug, Clone)]
pub struct GatedLinearAttention<B: Backend> {
    /// `[batch, seq, heads, key]`.
    pub q: Tensor<B, 4>,
    /// `[batch, seq, heads, key]`.
    pub k: Tensor<B, 4>,
    /// `[batch, seq, heads, value]`.
    pub v: Tensor<B, 4>,
    /// In 0..=1, of every key channel or of all: `[batch, seq, heads, key or 1]`.
    pub decay: Tensor<B, 4>,
}

impl<B: Backend> GatedLinearAttention<B> {
    /// Heads, of which each has a state of its own.
    pub fn heads(&self) -> usize {
        let Self { q, k, v, decay } = self;
        [q, k, v, decay].map(|x| x.dims()[2]).into_iter().max().unwrap_or(0)
    }

    /// Every tensor with all heads, `[batch, heads, seq, …]`.
    fn by_head(self) -> Self {
        let heads = self.heads();
        let Self { q, k, v, decay } = self;
        let [q, k, v, decay] = [q, k, v, decay].map(|x| repeat_heads(x.swap_dims(1, 2), heads));
        Self { q, k, v, decay }
    }
}

/// Gated linear attention.
pub trait GatedLinearAttentionOp: WkvOp {
    /// Gated linear attention from `state` `[batch, heads, key, value]` (zero if `None`): outputs
    /// `[batch, seq, heads, value]`, and the last state. See [`recurrent`] for the formula.
    fn gated_linear_attention(
        inputs: GatedLinearAttention<Self>,
        state: Option<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        cpu::gated_linear_attention(&inputs, state.as_ref()).unwrap_or_else(|| blocks(inputs, state))
    }
}

impl<B: WkvOp> GatedLinearAttentionOp for B {}

/// The reference, one time step after another. Per head, with the state S `[key, value]`:
///
/// S_t = diag(a_t)·S_{t−1} + k_t·v_tᵀ, y_t = S_tᵀ·q_t.
pub fn recurrent<B: Backend>(
    inputs: GatedLinearAttention<B>,
    state: Option<Tensor<B, 4>>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let GatedLinearAttention { q, k, v, decay } = inputs.by_head();
    let ([batch, heads, seq, key], [.., value]) = (q.dims(), v.dims());
    let mut state = state.unwrap_or_else(|| zeros(&q, [batch, heads, key, value]));
    let mut outputs = Vec::with_capacity(seq);
    for t in 0..seq {
        let row = |x: &Tensor<B, 4>| x.clone().narrow(2, t, 1); // [batch, heads, 1, …]
        state = row(&decay).transpose() * state + row(&k).transpose() * row(&v);
        outputs.push(row(&q).matmul(state.clone()));
    }
    (Tensor::cat(outputs, 2).swap_dims(1, 2), state)
}

/// How many square blocks a head's state is cut into.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    heads: usize,
    keys: usize,
    values: usize,
    /// Key channels and value channels of a block.
    size: usize,
}

impl Blocks {
    /// Channels filled up with zeros to whole blocks.
    fn fill<B: Backend>(x: Tensor<B, 4>, channels: usize) -> Tensor<B, 4> {
        let [batch, heads, seq, present] = x.dims();
        match channels - present {
            0 => x,
            missing => Tensor::cat(vec![x.clone(), zeros(&x, [batch, heads, seq, missing])], 3),
        }
    }

    /// `[batch, heads, seq, key]` → `[batch, heads·keys·values, seq, size]`.
    fn of_keys<B: Backend>(self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let Self { heads, keys, values, size } = self;
        let x = Self::fill(x, keys * size);
        let [batch, _, seq, _] = x.dims();
        let x = x.reshape([batch, heads, seq, keys, 1, size]).permute([0, 1, 3, 4, 2, 5]);
        x.expand([batch, heads, keys, values, seq, size]).reshape([batch, heads * keys * values, seq, size])
    }

    /// `[batch, heads, seq, value]` → `[batch, heads·keys·values, seq, size]`.
    fn of_values<B: Backend>(self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let Self { heads, keys, values, size } = self;
        let x = Self::fill(x, values * size);
        let [batch, _, seq, _] = x.dims();
        let x = x.reshape([batch, heads, seq, 1, values, size]).permute([0, 1, 3, 4, 2, 5]);
        x.expand([batch, heads, keys, values, seq, size]).reshape([batch, heads * keys * values, seq, size])
    }

    /// The outputs `[batch, heads, seq, value]`, sums over the blocks of keys.
    fn outputs<B: Backend>(self, y: Tensor<B, 4>, value: usize) -> Tensor<B, 4> {
        let Self { heads, keys, values, size } = self;
        let [batch, _, seq, _] = y.dims();
        let y = y.reshape([batch, heads, keys, values, seq, size]).sum_dim(2).permute([0, 1, 4, 2, 3, 5]);
        y.reshape([batch, heads, seq, values * size]).narrow(3, 0, value)
    }

    /// `[batch, heads, key, value]` → `[batch, heads·keys·values, size, size]`.
    fn cut<B: Backend>(self, state: Tensor<B, 4>) -> Tensor<B, 4> {
        let Self { heads, keys, values, size } = self;
        let state = Self::fill(state, values * size); // [batch, heads, key, values·size]
        let state = Self::fill(state.transpose(), keys * size).transpose();
        let [batch, ..] = state.dims();
        let state = state.reshape([batch, heads, keys, size, values, size]).permute([0, 1, 2, 4, 3, 5]);
        state.reshape([batch, heads * keys * values, size, size])
    }

    /// The inverse of [`cut`](Self::cut).
    fn join<B: Backend>(self, state: Tensor<B, 4>, [key, value]: [usize; 2]) -> Tensor<B, 4> {
        let Self { heads, keys, values, size } = self;
        let [batch, ..] = state.dims();
        let state = state.reshape([batch, heads, keys, values, size, size]).permute([0, 1, 2, 4, 3, 5]);
        state.reshape([batch, heads, keys * size, values * size]).narrow(2, 0, key).narrow(3, 0, value)
    }
}

/// [`recurrent`] by the [`wkv`](super::wkv) operation, which reads before it writes and has square states.
///
/// The read after the write is y_t = (a_t⊙q_t)ᵀ·S_{t−1} + (q_t·k_t)·v_t. Key channels decay each by itself, and no value
/// channel depends on another: the state is cut into square blocks, each a head of its own, and what blocks of the same
/// values read is added up.
pub fn blocks<B: WkvOp>(inputs: GatedLinearAttention<B>, state: Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let GatedLinearAttention { q, k, v, decay } = inputs.by_head();
    let ([_, heads, _, key], [.., value]) = (q.dims(), v.dims());
    let size = key.min(value);
    let blocks = Blocks { heads, keys: key.div_ceil(size), values: value.div_ceil(size), size };
    let own = (q.clone() * k.clone()).sum_dim(3) * v.clone();
    let r = q.clone() * decay.clone();
    let decay = decay.expand(q.dims());
    let whole = key == value;
    let keys = |x| if whole { x } else { blocks.of_keys(x) };
    let no_bonus = zeros(&q, [heads * blocks.keys * blocks.values, size]);
    let (v, state) = if whole { (v, state) } else { (blocks.of_values(v), state.map(|state| blocks.cut(state))) };
    let (y, state) = B::wkv(keys(r), keys(k), v, keys(decay), no_bonus, state);
    match whole {
        true => ((own + y).swap_dims(1, 2), state),
        false => ((own + blocks.outputs(y, value)).swap_dims(1, 2), blocks.join(state, [key, value])),
    }
}
