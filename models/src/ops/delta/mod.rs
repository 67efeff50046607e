//! The gated delta rule (Yang et al., arXiv 2412.06464, section 3): a matrix per head that decays, and is then
//! corrected towards giving the value for the key.

pub mod cpu;

use super::generalized_delta::{self, GeneralizedDelta};
use super::kernel::RunKernels;
use super::zeros;
use burn::prelude::*;
use burn::tensor::DType;

/// The tensors that the rule reads. Keys and values may differ in size.
#[derive(Debug, Clone)]
pub struct DeltaRule<B: Backend> {
    /// `[batch, heads, seq, key]`.
    pub q: Tensor<B, 4>,
    /// Of length 1: `[batch, heads, seq, key]`.
    pub k: Tensor<B, 4>,
    /// `[batch, heads, seq, value]`.
    pub v: Tensor<B, 4>,
    /// How much of the error is corrected, in 0..=2: `[batch, heads, seq]`.
    pub step: Tensor<B, 3>,
    /// In 0..=1: `[batch, heads, seq]`.
    pub decay: Tensor<B, 3>,
}

impl<B: Backend> DeltaRule<B> {
    fn steps(&self, start: usize, length: usize) -> Self {
        Self {
            q: self.q.clone().narrow(2, start, length),
            k: self.k.clone().narrow(2, start, length),
            v: self.v.clone().narrow(2, start, length),
            step: self.step.clone().narrow(2, start, length),
            decay: self.decay.clone().narrow(2, start, length),
        }
    }
}

/// The gated delta rule.
pub trait DeltaRuleOp: RunKernels {
    /// The gated delta rule from `state` `[batch, heads, key, value]` (zero if `None`) → outputs
    /// `[batch, heads, seq, value]`, and the last state. See [`recurrent`] for the formula.
    fn delta_rule(inputs: DeltaRule<Self>, state: Option<Tensor<Self, 4>>) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        let kernel = || generalized(&inputs, state.as_ref());
        cpu::delta_rule(&inputs, state.as_ref()).or_else(kernel).unwrap_or_else(|| chunked(inputs, state))
    }
}

impl<B: RunKernels> DeltaRuleOp for B {}

/// The reference, one time step after another. Per head, with the state S `[key, value]`:
///
/// S_t = α_t·S_{t−1} + β_t·k_t·(v_tᵀ − k_tᵀ·α_t·S_{t−1}), y_t = q_tᵀ·S_t.
///
/// Shapes as in [`chunked`], which computes the same in fewer operations.
pub fn recurrent<B: Backend>(inputs: DeltaRule<B>, state: Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let ([batch, heads, seq, key], [.., value]) = (inputs.k.dims(), inputs.v.dims());
    let mut state = state.unwrap_or_else(|| zeros(&inputs.q, [batch, heads, key, value]));
    let mut outputs = Vec::with_capacity(seq);
    for t in 0..seq {
        let DeltaRule { q, k, v, step, decay } = inputs.steps(t, 1);
        let decayed = decay.unsqueeze_dim::<4>(3) * state;
        let error = v - k.clone().matmul(decayed.clone()); // [batch, heads, 1, value]
        state = decayed + k.transpose().matmul(error * step.unsqueeze_dim::<4>(3));
        outputs.push(q.matmul(state.clone()));
    }
    (Tensor::cat(outputs, 2), state)
}

/// [`recurrent`] as a case of the [generalised rule](super::generalized_delta): what a key reads is removed under the same key,
/// times α·β. `None` where that has no kernel. GPUs have one kernel for both.
pub fn generalized<B: RunKernels>(
    inputs: &DeltaRule<B>,
    state: Option<&Tensor<B, 4>>,
) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    let DeltaRule { q, k, v, step, decay } = inputs;
    let is_possible =
        B::has_kernel::<generalized_delta::cpu::GeneralizedDeltaKernel, _, _>() && q.dtype() == DType::F32;
    if !is_possible {
        return None;
    }
    let by_step = step.clone().unsqueeze_dim::<4>(3) * k.clone();
    let decay = decay.clone().unsqueeze_dim::<4>(3);
    let inputs = GeneralizedDelta {
        q: q.clone(),
        v: v.clone(),
        removed: k.clone(),
        under: by_step.clone() * decay.clone(),
        k: by_step,
        decay: decay.expand(k.dims()),
    };
    generalized_delta::cpu::generalized_delta(&inputs, state)
}

/// Time steps that [`chunked`] takes at once.
const CHUNK: usize = 64;

/// [`recurrent`], in O(log seq) tensor operations per chunk of time steps.
///
/// Gives the outputs `[batch, heads, seq, value]` and the last state from `state` `[batch, heads, key, value]` (zero if
/// `None`).
pub fn chunked<B: Backend>(inputs: DeltaRule<B>, state: Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let seq = inputs.q.dims()[2];
    let (y, mut state) = chunk(inputs.steps(0, CHUNK.min(seq)), state);
    let mut outputs = vec![y];
    for start in (CHUNK..seq).step_by(CHUNK) {
        let (y, next) = chunk(inputs.steps(start, CHUNK.min(seq - start)), Some(state));
        outputs.push(y);
        state = next;
    }
    (Tensor::cat(outputs, 2), state)
}

/// One chunk of [`chunked`].
///
/// The write of a step, d_t = β_t·(v_t − α_t·S_{t−1}ᵀ·k_t), and its read, y_t, are affine in the state S before
/// the block it is in: rows c + wᵀ·S. For a block of one step both are known. In a block of two halves, the rows of the
/// first stay as they are; those of the second take the S that the first half leaves, γ₁·S + K₁ᵀ·D₁, for S. Blocks
/// double until they are the chunk. Nothing is inverted, and no intermediate value is larger than those of the
/// definition.
fn chunk<B: Backend>(inputs: DeltaRule<B>, state: Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let ([batch, heads, seq, key], [.., value]) = (inputs.k.dims(), inputs.v.dims());
    let rows = batch * heads;
    // Steps that neither read, write nor decay fill up to a power of two.
    let length = seq.next_power_of_two();
    let fill = |x: Tensor<B, 4>, value: f32| match length - seq {
        0 => x,
        missing => {
            let channels = x.dims()[3];
            let filling = Tensor::full([batch, heads, missing, channels], value, (&x.device(), x.dtype()));
            Tensor::cat(vec![x, filling], 2)
        }
    };
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| fill(x.clone(), 0.0));
    let step = fill(inputs.step.clone().unsqueeze_dim(3), 0.0); // [batch, heads, length, 1]
    let decay = fill(inputs.decay.clone().unsqueeze_dim(3), 1.0);

    // rows (c ‖ w) of d and of y, [blocks, 2, steps of a block, value + key]
    let channels = value + key;
    let d = Tensor::cat(vec![step.clone() * v.clone(), step.neg() * decay.clone() * k.clone()], 3);
    let read = (q.clone() * k.clone()).sum_dim(3); // the factor of the step's own write
    let y = read * d.clone() + Tensor::cat(vec![v.zeros_like(), decay.clone() * q], 3);
    let single = [rows * length, 1, 1, channels];
    let mut affine = Tensor::cat(vec![d.reshape(single), y.reshape(single)], 1);
    // keys times the decays of the block's steps after them
    let mut keys = k.reshape([rows * length, 1, key]);
    let mut total = decay.reshape([rows * length, 1, 1, 1]);
    let mut half = 1;
    while half < length {
        let blocks = rows * length / (2 * half);
        let affine_half = |which| {
            let pairs = affine.clone().reshape([blocks, 2, 2, half, channels]);
            pairs.narrow(1, which, 1).reshape([blocks, 2, half, channels])
        };
        let keys_half =
            |which| keys.clone().reshape([blocks, 2, half, key]).narrow(1, which, 1).reshape([blocks, half, key]);
        let total_half =
            |which| total.clone().reshape([blocks, 2, 1, 1]).narrow(1, which, 1).reshape([blocks, 1, 1, 1]);
        let (first, second) = (affine_half(0), affine_half(1));

        let written = first.clone().narrow(1, 0, 1).reshape([blocks, half, channels]);
        let weights = second.clone().narrow(3, value, key); // w of the second half, [blocks, 2, half, key]
        let seen = weights.clone().reshape([blocks, 2 * half, key]).matmul(keys_half(0).transpose());
        let second = Tensor::cat(vec![second.narrow(3, 0, value), weights * total_half(0)], 3)
            + seen.matmul(written).reshape([blocks, 2, half, channels]);
        let later = keys_half(0) * total_half(1).reshape([blocks, 1, 1]);

        affine = Tensor::cat(vec![first, second], 2);
        keys = Tensor::cat(vec![later, keys_half(1)], 1);
        total = total_half(0) * total_half(1);
        half *= 2;
    }

    let part = |which: usize| affine.clone().narrow(1, which, 1).reshape([batch, heads, length, channels]);
    let apply = |x: Tensor<B, 4>| {
        let constant = x.clone().narrow(3, 0, value);
        match &state {
            None => constant,
            Some(state) => constant + x.narrow(3, value, key).matmul(state.clone()),
        }
    };
    let (d, y) = (apply(part(0)), apply(part(1)));
    let written = keys.reshape([batch, heads, length, key]).transpose().matmul(d); // [batch, heads, key, value]
    let state = match state {
        None => written,
        Some(state) => total.reshape([batch, heads, 1, 1]) * state + written,
    };
    (y.narrow(2, 0, seq), state)
}
