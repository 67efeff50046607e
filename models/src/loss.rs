use burn::prelude::*;
use burn::tensor::activation::log_softmax;

/// Mean cross entropy over the positions with a label ≥ 0: `logits` `[batch, seq, vocab]`, `labels` `[batch, seq]`.
pub fn masked_cross_entropy<B: Backend>(logits: Tensor<B, 3>, labels: Tensor<B, 2, Int>) -> Tensor<B, 1> {
    let [batch, seq, vocab] = logits.dims();
    let labels = labels.reshape([batch * seq]);
    let scored = labels.clone().greater_equal_elem(0).float(); // [batch·seq]
    let log_probabilities = log_softmax(logits.reshape([batch * seq, vocab]), 1);
    let at_label = log_probabilities.gather(1, labels.clamp_min(0).unsqueeze_dim(1)).reshape([batch * seq]);
    (at_label * scored.clone()).sum().neg() / scored.sum()
}

/// RWKV's pull of the largest logits towards zero, to be added to the loss in training: a term whose value is 0 and whose
/// gradient is `max_logit`·1e-4/(batch·seq) at the largest logit of every position, scored or not.
///
/// Source: `L2Wrap` in the training code published with Peng et al., arXiv 2404.05892.
pub fn l2_wrap<B: Backend>(logits: Tensor<B, 3>) -> Tensor<B, 1> {
    let [batch, seq, _] = logits.dims();
    let largest = logits.max_dim(2); // [batch, seq, 1]
    let term = largest.square().sum() * (0.5e-4 / (batch * seq) as f64);
    term.clone() - term.detach()
}

/// The arg-max over the vocabulary, `[batch, seq]`.
pub fn predictions<B: Backend>(logits: Tensor<B, 3>) -> Tensor<B, 2, Int> {
    logits.argmax(2).squeeze_dim(2)
}
