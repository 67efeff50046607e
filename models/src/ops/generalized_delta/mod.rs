//! The generalised delta rule of RWKV-7 (Peng et al., arXiv 2503.14456, section 3): a matrix per head, every channel of
//! whose keys decays by itself, and from which what one key reads is removed under another key.

pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;

use super::kernel::RunKernels;
use super::zeros;
use burn::prelude::*;

/// The tensors that the rule reads. Keys and values may differ in size.
#[derive(Debug, Clone)]
pub struct GeneralizedDelta<B: Backend> {
    /// `[batch, heads, seq, key]`.
    pub q: Tensor<B, 4>,
    /// `[batch, heads, seq, key]`.
    pub k: Tensor<B, 4>,
    /// `[batch, heads, seq, value]`.
    pub v: Tensor<B, 4>,
    /// What is left of every channel of the keys, in 0..=1: `[batch, heads, seq, key]`.
    pub decay: Tensor<B, 4>,
    /// The key that reads what is removed, κ: `[batch, heads, seq, key]`.
    pub removed: Tensor<B, 4>,
    /// The key under which it is removed, b: `[batch, heads, seq, key]`.
    pub under: Tensor<B, 4>,
}

impl<B: Backend> GeneralizedDelta<B> {
    fn map(&self, f: impl Fn(&Tensor<B, 4>) -> Tensor<B, 4>) -> Self {
        Self {
            q: f(&self.q),
            k: f(&self.k),
            v: f(&self.v),
            decay: f(&self.decay),
            removed: f(&self.removed),
            under: f(&self.under),
        }
    }

    fn steps(&self, start: usize, length: usize) -> Self {
        self.map(|x| x.clone().narrow(2, start, length))
    }
}

/// The generalised delta rule.
pub trait GeneralizedDeltaOp: RunKernels {
    /// The generalised delta rule from `state` `[batch, heads, key, value]` (zero if `None`) → outputs
    /// `[batch, heads, seq, value]`, and the last state. See [`recurrent`] for the formula.
    fn generalized_delta(
        inputs: GeneralizedDelta<Self>,
        state: Option<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        cpu::generalized_delta(&inputs, state.as_ref()).unwrap_or_else(|| chunked(inputs, state))
    }
}

impl<B: RunKernels> GeneralizedDeltaOp for B {}

/// The reference, one time step after another. Per head, with the state S `[key, value]`:
///
/// S_t = diag(α_t)·S_{t−1} − b_t·(κ_tᵀ·S_{t−1}) + k_t·v_tᵀ, y_t = q_tᵀ·S_t.
///
/// The paper's matrices are the transposes of these. Shapes as in [`chunked`], which computes the same in fewer
/// operations.
pub fn recurrent<B: Backend>(inputs: GeneralizedDelta<B>, state: Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let ([batch, heads, seq, key], [.., value]) = (inputs.k.dims(), inputs.v.dims());
    let mut state = state.unwrap_or_else(|| zeros(&inputs.q, [batch, heads, key, value]));
    let mut outputs = Vec::with_capacity(seq);
    for t in 0..seq {
        let GeneralizedDelta { q, k, v, decay, removed, under } = inputs.steps(t, 1);
        let known = removed.matmul(state.clone()); // [batch, heads, 1, value]
        state = decay.transpose() * state - under.transpose().matmul(known) + k.transpose().matmul(v);
        outputs.push(q.matmul(state.clone()));
    }
    (Tensor::cat(outputs, 2), state)
}

/// Time steps that [`chunked`] takes at once.
const CHUNK: usize = 64;

/// [`recurrent`], in O(log seq) tensor operations per chunk of time steps.
///
/// Gives the outputs `[batch, heads, seq, value]` and the last state from `state` `[batch, heads, key, value]` (zero if
/// `None`).
pub fn chunked<B: Backend>(inputs: GeneralizedDelta<B>, state: Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let ([batch, heads, seq, key], [.., value]) = (inputs.k.dims(), inputs.v.dims());
    let mut state = state.unwrap_or_else(|| zeros(&inputs.q, [batch, heads, key, value]));
    let mut outputs = Vec::with_capacity(seq.div_ceil(CHUNK));
    for start in (0..seq).step_by(CHUNK) {
        let (y, next) = chunk(&inputs.steps(start, CHUNK.min(seq - start)), state);
        outputs.push(y);
        state = next;
    }
    (Tensor::cat(outputs, 2), state)
}

/// One chunk of [`chunked`].
///
/// A step writes e_t = −κ_tᵀ·S_{t−1} under b_t and v_t under k_t. What it removes and its output are affine in the state
/// S before the block it is in: rows c + wᵀ·S. For a block of one step both are known. In a block of two halves, the rows
/// of the first stay as they are; those of the second take the S that the first half leaves, diag(γ₁)·S + B₁ᵀ·E₁ +
/// K₁ᵀ·V₁, for S. Blocks double until they are the chunk. Nothing is inverted or divided by a decay.
fn chunk<B: Backend>(inputs: &GeneralizedDelta<B>, state: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let ([batch, heads, seq, key], [.., value]) = (inputs.k.dims(), inputs.v.dims());
    // Steps that neither read, write nor decay fill up to a power of two.
    let length = seq.next_power_of_two();
    let steps = batch * heads * length;
    let fill = |x: &Tensor<B, 4>, value: f32| {
        let channels = x.dims()[3];
        let x = match length - seq {
            0 => x.clone(),
            missing => {
                let filling = Tensor::full([batch, heads, missing, channels], value, (&x.device(), x.dtype()));
                Tensor::cat(vec![x.clone(), filling], 2)
            }
        };
        x.reshape([steps, 1, channels])
    };
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| fill(x, 0.0));
    let [removed, under] = [&inputs.removed, &inputs.under].map(|x| fill(x, 0.0));
    let mut total = fill(&inputs.decay, 1.0); // decays over a block, [blocks, 1, key]

    // Rows (c ‖ w) of e and of y, [blocks, 2·steps of a block, value + key].
    let e = Tensor::cat(vec![v.zeros_like(), removed.clone().neg()], 2);
    let y = Tensor::cat(
        vec![
            (q.clone() * k.clone()).sum_dim(2) * v.clone(),
            total.clone() * q.clone() - (q * under.clone()).sum_dim(2) * removed,
        ],
        2,
    );
    let mut affine = Tensor::cat(vec![e, y], 1);
    // Values as such rows, and the keys of what is written, e first, times the decays of the block's later steps.
    let mut values = Tensor::cat(vec![v, k.zeros_like()], 2); // [blocks, steps of a block, value + key]
    let mut keys = Tensor::cat(vec![under, k], 1); // [blocks, 2·steps of a block, key]
    let mut half = 1;
    while half < length {
        let blocks = steps / (2 * half);
        // `[blocks of a half, rows, …]` → those of first and of second halves
        let halves = |x: Tensor<B, 3>| {
            let [_, rows, channels] = x.dims();
            let pairs = x.reshape([blocks, 2, rows, channels]);
            [0, 1].map(|which| pairs.clone().narrow(1, which, 1).reshape([blocks, rows, channels]))
        };
        let [first, second] = halves(affine);
        let [first_values, second_values] = halves(values);
        let [first_keys, second_keys] = halves(keys);
        let [first_total, second_total] = halves(total);

        // e of the first half, then its values: what the first half writes under `first_keys`.
        let written = Tensor::cat(vec![first.clone().narrow(1, 0, half), first_values.clone()], 1);
        let weights = second.clone().narrow(2, value, key); // w of the second half, [blocks, 2·half, key]
        let seen = weights.clone().matmul(first_keys.clone().transpose());
        let second =
            Tensor::cat(vec![second.narrow(2, 0, value), weights * first_total.clone()], 2) + seen.matmul(written);
        let later = first_keys * second_total.clone();

        // Both have two rows per step, e before y and e before v: the halves' first parts, then their second.
        let joined = |first: Tensor<B, 3>, second: Tensor<B, 3>| {
            let channels = first.dims()[2];
            let four = |x: Tensor<B, 3>| x.reshape([blocks, 2, half, channels]);
            Tensor::cat(vec![four(first), four(second)], 2).reshape([blocks, 4 * half, channels])
        };
        affine = joined(first, second);
        keys = joined(later, second_keys);
        values = Tensor::cat(vec![first_values, second_values], 1);
        total = first_total * second_total;
        half *= 2;
    }

    let rows = |x: Tensor<B, 3>, start: usize| {
        let x = x.narrow(1, start, length);
        let channels = x.dims()[2];
        x.reshape([batch, heads, length, channels])
    };
    let apply = |x: Tensor<B, 4>| x.clone().narrow(3, 0, value) + x.narrow(3, value, key).matmul(state.clone());
    let (e, y) = (apply(rows(affine.clone(), 0)), apply(rows(affine, length)));
    let written = Tensor::cat(vec![e, rows(values, 0).narrow(3, 0, value)], 2); // [batch, heads, 2·length, value]
    let keys = keys.reshape([batch, heads, 2 * length, key]).transpose();
    let state = total.reshape([batch, heads, key, 1]) * state + keys.matmul(written);
    (y.narrow(2, 0, seq), state)
}
