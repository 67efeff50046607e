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

/// The arg-max over the vocabulary, `[batch, seq]`.
pub fn predictions<B: Backend>(logits: Tensor<B, 3>) -> Tensor<B, 2, Int> {
    logits.argmax(2).squeeze_dim(2)
}
