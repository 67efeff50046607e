//! Plain-tensor definitions of the sequence operations.

use super::autocast::product;
use super::cpu::adam::AdamKernel;
use super::cpu::dropout::Mask;
use super::{Gate, KeyMask, RecurrentWeights, Rotation};
use crate::layers::split_heads;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::{log_softmax, relu, sigmoid, silu, softmax, tanh};

/// h_t = tanh(W_ih·x_t + b_ih + W_hh·h_{t−1} + b_hh) (Elman, 1990).
pub fn rnn_layer<B: Backend>(
    x: Tensor<B, 3>,
    weights: RecurrentWeights<B>,
    h: Option<Tensor<B, 2>>,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    let [batch, _, _] = x.dims();
    let hidden = weights.weight_hh.dims()[1];
    let recurrent = weights.weight_hh.clone().transpose(); // [hidden, hidden]
    let mut h = h.unwrap_or_else(|| Tensor::zeros([batch, hidden], (&x.device(), x.dtype())));
    let mut states = Vec::new();
    for input in unbind_time(input_product(x, weights)) {
        h = tanh(input + product(h, recurrent.clone())); // [batch, hidden]
        states.push(h.clone());
    }
    (Tensor::stack(states, 1), h)
}

/// i, f, g, o = gates(W_ih·x_t + b_ih + W_hh·h_{t−1} + b_hh); c = σ(f)·c + σ(i)·tanh(g); h = σ(o)·tanh(c)
/// (Hochreiter & Schmidhuber, 1997, with the forget gate of Gers et al., 2000).
#[allow(clippy::type_complexity)] // the pair (h, c) is what the field calls the state
pub fn lstm_layer<B: Backend>(
    x: Tensor<B, 3>,
    weights: RecurrentWeights<B>,
    state: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
) -> (Tensor<B, 3>, (Tensor<B, 2>, Tensor<B, 2>)) {
    let [batch, _, _] = x.dims();
    let hidden = weights.weight_hh.dims()[1];
    let recurrent = weights.weight_hh.clone().transpose(); // [hidden, 4·hidden]
    let zero = || Tensor::zeros([batch, hidden], (&x.device(), x.dtype()));
    let (mut h, mut c) = state.unwrap_or_else(|| (zero(), zero()));
    let mut states = Vec::new();
    for input in unbind_time(input_product(x, weights)) {
        let gates = input + product(h, recurrent.clone()); // [batch, 4·hidden]
        let gate = |k: usize| gates.clone().slice([0..batch, k * hidden..(k + 1) * hidden]);
        c = sigmoid(gate(1)) * c + sigmoid(gate(0)) * tanh(gate(2));
        h = sigmoid(gate(3)) * tanh(c.clone());
        states.push(h.clone());
    }
    (Tensor::stack(states, 1), (h, c))
}

/// r, z = σ(W·x_t + b + V·h_{t−1} + c); n = tanh(W_n·x_t + b_n + r·(V_n·h_{t−1} + c_n)); h_t = (1 − z)·n + z·h_{t−1}
/// (Cho et al., arXiv 1406.1078, with the reset gate after the product, as PyTorch and cuDNN have it).
pub fn gru_layer<B: Backend>(
    x: Tensor<B, 3>,
    weights: RecurrentWeights<B>,
    h: Option<Tensor<B, 2>>,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    let [batch, _, _] = x.dims();
    let hidden = weights.weight_hh.dims()[1];
    let recurrent = weights.weight_hh.transpose(); // [hidden, 3·hidden]
    let bias = weights.bias_hh.unsqueeze::<2>(); // the candidate's part is inside the reset gate
    let inputs = matmul_rows(x.clone(), weights.weight_ih.transpose()) + weights.bias_ih.unsqueeze();
    let mut h = h.unwrap_or_else(|| Tensor::zeros([batch, hidden], (&x.device(), x.dtype())));
    let mut states = Vec::new();
    for input in unbind_time(inputs) {
        let recalled = product(h.clone(), recurrent.clone()) + bias.clone(); // [batch, 3·hidden]
        let gate = |x: &Tensor<B, 2>, k: usize| x.clone().narrow(1, k * hidden, hidden);
        let r = sigmoid(gate(&input, 0) + gate(&recalled, 0));
        let z = sigmoid(gate(&input, 1) + gate(&recalled, 1));
        let n = tanh(gate(&input, 2) + r * gate(&recalled, 2));
        h = n.clone() + z * (h - n);
        states.push(h.clone());
    }
    (Tensor::stack(states, 1), h)
}

/// h_t = a_t·h_{t−1} + b_t, channel by channel.
pub fn linear_recurrence<B: Backend>(
    a: Tensor<B, 3>,
    b: Tensor<B, 3>,
    h: Option<Tensor<B, 2>>,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    let [batch, _, channels] = a.dims();
    let mut h = h.unwrap_or_else(|| Tensor::zeros([batch, channels], (&a.device(), a.dtype())));
    let mut states = Vec::new();
    for (a, b) in unbind_time(a).into_iter().zip(unbind_time(b)) {
        h = a * h + b; // [batch, channels]
        states.push(h.clone());
    }
    (Tensor::stack(states, 1), h)
}

/// Everything that does not depend on the state, for all time steps in one product: `[batch, seq, G·hidden]`.
fn input_product<B: Backend>(x: Tensor<B, 3>, weights: RecurrentWeights<B>) -> Tensor<B, 3> {
    let bias = weights.bias_ih + weights.bias_hh;
    matmul_rows(x, weights.weight_ih.transpose()) + bias.unsqueeze()
}

/// One product over all rows of all examples, `[batch, seq, in] · [in, out]`.
pub fn matmul_rows<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 2>) -> Tensor<B, 3> {
    let [batch, seq, input] = x.dims();
    let output = weight.dims()[1];
    product(x.reshape([batch * seq, input]), weight).reshape([batch, seq, output])
}

/// The time steps of `[batch, seq, channels]`, each `[batch, channels]`.
///
/// By halving: the gradient of a slice is a zero tensor of the parent's size with the slice written in, so slicing
/// `seq` times from the whole would cost seq² on the way back; halves cost seq·log(seq).
pub(super) fn unbind_time<B: Backend>(x: Tensor<B, 3>) -> Vec<Tensor<B, 2>> {
    let [batch, seq, channels] = x.dims();
    if seq == 1 {
        return vec![x.reshape([batch, channels])];
    }
    let half = seq / 2;
    let mut steps = unbind_time(x.clone().slice([0..batch, 0..half]));
    steps.extend(unbind_time(x.slice([0..batch, half..seq])));
    steps
}

/// softmax(scale·q·kᵀ + masks)·v with the causal mask, and a key mask where given (Vaswani et al., arXiv 1706.03762).
pub fn causal_attention<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    mask: Option<KeyMask<B>>,
    scale: f64,
) -> Tensor<B, 4> {
    product(attention_probabilities(q, k, mask, scale), v)
}

/// softmax(scale·q·kᵀ + masks), `[batch, heads, query, key]`.
///
/// The masks are finite, as in the models this reproduces: keys after the query are *set* to the lowest 32-bit float,
/// masked keys have it *added*. A query without any allowed key therefore attends evenly to what is masked once.
pub fn attention_probabilities<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    mask: Option<KeyMask<B>>,
    scale: f64,
) -> Tensor<B, 4> {
    let [_, _, seq, _] = q.dims();
    let device = q.device();
    let lowest = f32::MIN;
    let future = Tensor::<B, 2, Bool>::tril_mask([seq, seq], 0, &device).unsqueeze(); // true where key > query
    let mut scores = (product(q, k.transpose()) * scale).mask_fill(future, lowest); // [batch, heads, query, key]
    if let Some(KeyMask { keys, identity }) = mask {
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

/// (x − mean)/√(variance + ε)·weight + bias in every group of `width` channels (Ba et al., arXiv 1607.06450, and per group
/// Wu and He, arXiv 1803.08494); without a bias, x/√(mean of x² + ε)·weight (Zhang and Sennrich, arXiv 1910.07467).
pub fn norm<B: Backend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    bias: Option<Tensor<B, 1>>,
    width: usize,
    epsilon: f64,
) -> Tensor<B, 3> {
    let [batch, seq, channels] = x.dims();
    let x = x.reshape([batch, seq, channels / width, width]);
    let centred = if bias.is_some() { x.clone() - x.mean_dim(3) } else { x };
    let variance = centred.clone().square().mean_dim(3); // [batch, seq, groups, 1]
    let normal = centred / (variance + epsilon).sqrt();
    let parameter = |p: Tensor<B, 1>| {
        let groups = p.dims()[0] / width;
        p.reshape([1, 1, groups, width])
    };
    let y = normal * parameter(weight);
    let y = bias.into_iter().fold(y, |y, bias| y + parameter(bias));
    y.reshape([batch, seq, channels])
}

/// x·gate(z).
pub fn gated<B: Backend>(x: Tensor<B, 3>, z: Tensor<B, 3>, gate: Gate) -> Tensor<B, 3> {
    match gate {
        Gate::Sigmoid => x * sigmoid(z),
        Gate::Silu => x * silu(z),
    }
}

/// max(x, 0)².
pub fn squared_relu<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    relu(x).square()
}

/// x_t + (x_{t−1} − x_t)⊙(weight + weights_t), where `last` `[batch, 1, channels]` comes before the first token.
pub fn token_mix<B: Backend>(
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

/// silu(Σ_j weight_j⊙x_{t+j} + bias) over the taps j: `x` `[batch, seq, channels]`, `weight` `[channels, 1, taps]`, `bias`
/// `[channels]` → taps − 1 time steps fewer, unless as many zeros come before them (`padded`).
pub fn short_convolution<B: Backend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 3>,
    bias: Tensor<B, 1>,
    padded: bool,
) -> Tensor<B, 3> {
    let ([batch, _, channels], [_, _, taps]) = (x.dims(), weight.dims());
    let zeros = padded.then(|| super::zeros(&x, [batch, taps - 1, channels]));
    let x = Tensor::cat(zeros.into_iter().chain([x]).collect(), 1);
    let seq = x.dims()[1] + 1 - taps;
    let weight = weight.permute([2, 1, 0]); // [taps, 1, channels]
    let sum = (0..taps).map(|tap| x.clone().narrow(1, tap, seq) * weight.clone().narrow(0, tap, 1));
    silu(sum.fold(bias.unsqueeze(), |sum, tap| tap + sum))
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

/// `[batch, heads, seq, head_dim]` → `[batch, seq, hidden]`.
pub fn side_by_side<B: Backend>(y: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, heads, seq, head_dim] = y.dims();
    y.swap_dims(1, 2).reshape([batch, seq, heads * head_dim])
}

/// `x` times the first factors of `mask`, in this shape.
pub fn dropout<B: Backend, const D: usize>(x: Tensor<B, D>, shape: [usize; D], mask: Mask) -> Tensor<B, D> {
    let factors = TensorData::new(mask.factors(shape.iter().product()), shape);
    let factors = Tensor::from_data(factors, (&x.device(), x.dtype()));
    x * factors
}

/// x·W + b, and max(·, 0) of it with `relu`.
pub fn affine<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 2>, bias: Tensor<B, 1>, rectify: bool) -> Tensor<B, 3> {
    let y = matmul_rows(x, weight) + bias.unsqueeze();
    if rectify { relu(y) } else { y }
}

/// −Σ weight·ln softmax(logits) at the labels.
pub fn cross_entropy<B: Backend>(
    logits: Tensor<B, 3>,
    labels: Tensor<B, 2, Int>,
    weights: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let [batch, seq, vocab] = logits.dims();
    let rows = batch * seq;
    let log_probabilities = log_softmax(logits.reshape([rows, vocab]), 1);
    let at_label = log_probabilities.gather(1, labels.clamp_min(0).reshape([rows, 1])); // [rows, 1]
    (at_label * weights.reshape([rows, 1])).sum().neg()
}

/// The sum of the squares, `[1]`.
pub fn sum_of_squares<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    x.square().sum()
}

/// A step of AdamW, see [`AdamKernel`]: the next parameter and moments, from those before it and the gradient.
pub fn adam_step<B: Backend, const D: usize>(
    rule: AdamKernel,
    parameter: Tensor<B, D>,
    gradient: Tensor<B, D>,
    [first, second]: [Tensor<B, D>; 2],
    factor: Tensor<B, 1>,
) -> (Tensor<B, D>, [Tensor<B, D>; 2]) {
    let AdamKernel { betas: [beta1, beta2], epsilon, rate, root, keep } = rule;
    let gradient = gradient * factor.unsqueeze();
    let first = first * beta1 + gradient.clone() * (1.0 - beta1);
    let second = second * beta2 + gradient.square() * (1.0 - beta2);
    let change = first.clone() * rate / (second.clone().sqrt() / root + epsilon);
    (parameter * keep - change, [first, second])
}
