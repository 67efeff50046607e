//! Contextual positions (Golovneva et al., arXiv 2405.18719, section 4): keys have as positions how many keys between them
//! and the query are counted, and positions between whole numbers are interpolated.

pub mod cpu;

use super::KeyMask;
use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::activation::sigmoid;

/// Contextual positions.
pub trait ContextualPositionsOp: RunKernels {
    /// A bias of attention scores, `[batch, heads, query, key]`, from `logits` of the same shape, whose sigmoid says how
    /// much a query counts a key, and `by_position` `[batch, heads, query, positions]`, the bias at whole positions. See
    /// [`reference()`] for the formula.
    fn contextual_positions(
        logits: Tensor<Self, 4>,
        by_position: Tensor<Self, 4>,
        mask: Option<&KeyMask<Self>>,
    ) -> Tensor<Self, 4> {
        cpu::contextual_positions(&logits, &by_position, mask).unwrap_or_else(|| reference(logits, by_position, mask))
    }
}

impl<B: RunKernels> ContextualPositionsOp for B {}

/// With γ_ij = σ(logits_ij) for the keys j ≤ i that query i may see and 0 for others, key j is at p = Σ γ_ir over
/// j ≤ r ≤ i, at most the last position, and its bias is (1 − f)·e_i⌊p⌋ + f·e_i⌈p⌉ with f = p − ⌊p⌋ and
/// e = `by_position`; 0 where j > i. Gradients go through f and e.
pub fn reference<B: Backend>(
    logits: Tensor<B, 4>,
    by_position: Tensor<B, 4>,
    mask: Option<&KeyMask<B>>,
) -> Tensor<B, 4> {
    let [_, _, _, seq] = logits.dims();
    let last = by_position.dims()[3] as f64 - 1.0;
    let (device, dtype) = (logits.device(), logits.dtype());
    let past = Tensor::<B, 2>::ones([seq, seq], (&device, dtype)).tril(0).unsqueeze::<4>();
    let visible = match mask {
        Some(KeyMask { keys, identity }) => {
            let keys = keys.clone().cast(dtype).reshape([-1, 1, 1, seq as i64]);
            let own = Tensor::<B, 2>::eye(seq, &device).cast(dtype).unsqueeze::<4>();
            let keys = if *identity { keys.clone() + (keys.neg() + 1.0) * own } else { keys };
            keys * past.clone()
        }
        None => past.clone(),
    };
    let gates = sigmoid(logits) * visible;
    let position = gates.flip([3]).cumsum(3).flip([3]).clamp_max(last);
    let [low, high] = [position.clone().detach().floor(), position.clone().detach().ceil()];
    let part = position - low.clone();
    let [at_low, at_high] = [low, high].map(|whole| by_position.clone().gather(3, whole.int()));
    (at_low * (part.clone().neg() + 1.0) + at_high * part) * past
}
