use crate::ops::SequenceOps;
use burn::prelude::*;
use burn::tensor::activation::{log_sigmoid, sigmoid};
use data::{SetLoss, Vocabulary};

/// Mean cross entropy (teacher forcing) over the positions with a label ≥ 0: `logits` `[batch, seq, vocab]`, `labels`
/// `[batch, seq]`.
pub fn masked_cross_entropy<B: SequenceOps>(logits: Tensor<B, 3>, labels: Tensor<B, 2, Int>) -> Tensor<B, 1> {
    let scored = labels.clone().greater_equal_elem(0).float(); // [batch, seq]
    let weights = scored.clone() / scored.sum().unsqueeze();
    weighted_cross_entropy(logits, labels, weights)
}

/// −Σ weight·ln p(label) over all positions: `logits` `[batch, seq, vocab]`, `labels` and `weights` `[batch, seq]`.
/// Where there is no label (−1), the weight is 0.
pub fn weighted_cross_entropy<B: SequenceOps>(
    logits: Tensor<B, 3>,
    labels: Tensor<B, 2, Int>,
    weights: Tensor<B, 2>,
) -> Tensor<B, 1> {
    B::cross_entropy(logits, labels, weights)
}

/// Σ weight·loss over all positions whose labels are sets of the vocabulary's units, where a position's loss is the mean
/// over the units of [`SetLoss`]: `logits` `[batch, seq, vocab]`, `labels` `[batch·seq]` as a [`data::Batch`] has them,
/// `weights` `[batch, seq]`. Where there is no label (−1), the weight is 0. Logits of tokens that are no units have no
/// part in it.
pub fn weighted_set_loss<B: Backend>(
    logits: Tensor<B, 3>,
    labels: &[i64],
    weights: Tensor<B, 2>,
    vocabulary: &Vocabulary,
) -> Tensor<B, 1> {
    let ([batch, seq, _], units, device) = (logits.dims(), vocabulary.units().len(), logits.device());
    let ids: Vec<i32> = vocabulary.units().iter().map(|id| i32::from(*id)).collect();
    let members = labels.iter().flat_map(|label| (0..units).map(move |unit| (label.max(&0) >> unit & 1) as f32));
    let members = TensorData::new(members.collect::<Vec<f32>>(), [batch, seq, units]);
    let members = Tensor::<B, 3>::from_data(members, &device);
    let logits = logits.select(2, Tensor::from_ints(ids.as_slice(), &device)); // [batch, seq, units]
    let losses = match vocabulary.set_loss() {
        // ln(1 + eˣ) − x·member
        SetLoss::Bce => -log_sigmoid(-logits.clone()) - logits * members,
        SetLoss::Mse => (sigmoid(logits) - members).square(),
    };
    (losses.mean_dim(2).squeeze_dim(2) * weights).sum()
}

/// RWKV's pull of the largest logits towards zero, a term of the training loss whose value is 0 and whose
/// gradient is `max_logit`·1e-4/(batch·seq) at the largest logit of every position, scored or not.
///
/// Source: `L2Wrap` in the training code published with Peng et al., arXiv 2404.05892.
pub fn l2_wrap<B: Backend>(logits: Tensor<B, 3>) -> Tensor<B, 1> {
    let [batch, seq, _] = logits.dims();
    let weights = Tensor::full([batch], 1.0 / (batch * seq) as f64, (&logits.device(), logits.dtype()));
    weighted_l2_wrap(logits, weights)
}

/// [`l2_wrap`] with a weight for each row, `weights` `[batch]`, in the place of 1/(batch·seq).
pub fn weighted_l2_wrap<B: Backend>(logits: Tensor<B, 3>, weights: Tensor<B, 1>) -> Tensor<B, 1> {
    let [batch, _, _] = logits.dims();
    let largest = logits.max_dim(2); // [batch, seq, 1]
    let term = (largest.square() * weights.reshape([batch, 1, 1])).sum() * 0.5e-4;
    term.clone() - term.detach()
}

/// The argmax over the vocabulary, `[batch, seq]`.
pub fn predictions<B: Backend>(logits: Tensor<B, 3>) -> Tensor<B, 2, Int> {
    logits.argmax(2).squeeze_dim(2)
}
