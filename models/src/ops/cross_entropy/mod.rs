//! The loss: weighted cross entropy.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::activation::log_softmax;

/// The weighted cross entropy.
pub trait CrossEntropyOp: RunKernels {
    /// −Σ weight·ln p(label): `logits` `[batch, seq, vocab]`, `labels` and `weights` `[batch, seq]` → `[1]`. Where
    /// there is no label (−1), the weight is 0.
    fn cross_entropy(
        logits: Tensor<Self, 3>,
        labels: Tensor<Self, 2, Int>,
        weights: Tensor<Self, 2>,
    ) -> Tensor<Self, 1> {
        let fast = cpu::cross_entropy(&logits, &labels, &weights);
        fast.unwrap_or_else(|| reference(logits, labels, weights))
    }
}

impl<B: RunKernels> CrossEntropyOp for B {}

/// −Σ weight·ln softmax(logits) at the labels.
pub fn reference<B: Backend>(logits: Tensor<B, 3>, labels: Tensor<B, 2, Int>, weights: Tensor<B, 2>) -> Tensor<B, 1> {
    let [batch, seq, vocab] = logits.dims();
    let rows = batch * seq;
    let log_probabilities = log_softmax(logits.reshape([rows, vocab]), 1);
    let at_label = log_probabilities.gather(1, labels.clamp_min(0).reshape([rows, 1])); // [rows, 1]
    (at_label * weights.reshape([rows, 1])).sum().neg()
}
