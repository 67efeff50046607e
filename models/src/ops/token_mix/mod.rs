//! RWKV's mixtures of every token with the one before it (Peng et al., arXiv 2305.13048, section 3.1).

pub mod cpu;

use super::kernel::RunKernels;
use super::zeros;
use burn::prelude::*;

/// Mixtures of every token with the one before it.
pub trait TokenMixOps: RunKernels {
    /// Every token of `x` `[batch, seq, channels]` moved towards the one before it: x_t + (x_{t−1} − x_t)⊙(weight +
    /// weights_t), after the token `last` `[batch, 1, channels]` (zero if `None`). `weight` is `[channels]`; weights_t
    /// is `[batch, seq, channels]` (zero if `None`).
    fn token_mix(
        x: Tensor<Self, 3>,
        last: Option<Tensor<Self, 3>>,
        weight: Tensor<Self, 1>,
        weights: Option<Tensor<Self, 3>>,
    ) -> Tensor<Self, 3> {
        let [batch, _, channels] = x.dims();
        let last = last.unwrap_or_else(|| zeros(&x, [batch, 1, channels]));
        let fast = cpu::token_mix(&x, &last, &weight, weights.as_ref());
        fast.unwrap_or_else(|| reference(x, last, weight, weights))
    }

    /// [`Self::token_mix`] of the same tokens with each of `M` weights, `[M, channels]`.
    fn token_mixes<const M: usize>(
        x: Tensor<Self, 3>,
        last: Option<Tensor<Self, 3>>,
        weights: Tensor<Self, 2>,
    ) -> [Tensor<Self, 3>; M] {
        let [batch, _, channels] = x.dims();
        let last = last.unwrap_or_else(|| zeros(&x, [batch, 1, channels]));
        let fast = cpu::token_mixes(&x, &last, &weights);
        fast.unwrap_or_else(|| {
            let weight = |m| weights.clone().narrow(0, m, 1).reshape([channels]);
            std::array::from_fn(|m| reference(x.clone(), last.clone(), weight(m), None))
        })
    }
}

impl<B: RunKernels> TokenMixOps for B {}

/// x_t + (x_{t−1} − x_t)⊙(weight + weights_t), where `last` `[batch, 1, channels]` comes before the first token.
pub fn reference<B: Backend>(
    x: Tensor<B, 3>,
    last: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    weights: Option<Tensor<B, 3>>,
) -> Tensor<B, 3> {
    let [_, seq, _] = x.dims();
    let before = Tensor::cat(vec![last, x.clone()], 1).narrow(1, 0, seq);
    let weight = weight.unsqueeze::<3>();
    let weight = weights.into_iter().fold(weight, |weight, weights| weight + weights);
    x.clone() + (before - x) * weight
}
