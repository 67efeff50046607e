//! The WKV operation of RWKV-5 and RWKV-6 (Peng et al., "Eagle and Finch", arXiv 2404.05892, section 4): a matrix state
//! per head that decays by its own factor in every key channel.

mod chunk;
pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;

use super::kernel::RunKernels;
use burn::prelude::*;

/// RWKV's matrix state.
pub trait WkvOp: RunKernels {
    /// RWKV's matrix state with decays, from `state` `[batch, heads, size, size]` (zero if `None`): `r`, `k`, `v` and
    /// `decay` (in 0..=1) `[batch, heads, seq, size]`, `bonus` `[heads, size]` → outputs `[batch, heads, seq, size]`,
    /// and the last state. A decay that is constant in time may be `[1, heads, 1, size]`. See [`recurrent`] for
    /// the formula.
    fn wkv(
        r: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        decay: Tensor<Self, 4>,
        bonus: Tensor<Self, 2>,
        state: Option<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        let fast = cpu::wkv([&r, &k, &v, &decay], &bonus, state.as_ref());
        fast.unwrap_or_else(|| chunked(r, k, v, decay, bonus, state))
    }
}

impl<B: RunKernels> WkvOp for B {}

/// The reference, one time step after another. Per head, with the state S `[key, value]`:
///
/// y_t = r_tᵀ·(S_{t−1} + diag(u)·k_t·v_tᵀ), S_t = diag(a_t)·S_{t−1} + k_t·v_tᵀ.
///
/// Shapes as in [`chunked`], which computes the same in fewer operations.
pub fn recurrent<B: Backend>(
    r: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    decay: Tensor<B, 4>,
    bonus: Tensor<B, 2>,
    state: Option<Tensor<B, 4>>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let [batch, heads, seq, size] = r.dims();
    let decay = decay.expand(r.dims());
    let bonus = bonus.reshape([1, heads, size, 1]);
    let mut state = state.unwrap_or_else(|| Tensor::zeros([batch, heads, size, size], (&r.device(), r.dtype())));
    let mut outputs = Vec::with_capacity(seq);
    for t in 0..seq {
        let row = |x: &Tensor<B, 4>| x.clone().narrow(2, t, 1); // [batch, heads, 1, size]
        let column = |x: &Tensor<B, 4>| row(x).transpose(); // [batch, heads, size, 1]
        let write = column(&k) * row(&v); // [batch, heads, key, value]
        outputs.push(row(&r).matmul(state.clone() + bonus.clone() * write.clone()));
        state = column(&decay) * state + write;
    }
    (Tensor::cat(outputs, 2), state)
}

/// Time steps that [`chunked`] takes at once: below it the work is linear in time, within it the products of whole
/// blocks are quadratic, but few.
const CHUNK: usize = 128;

/// [`recurrent`], in O(log seq) tensor operations per chunk of time steps.
///
/// `r`, `k`, `v` and `decay` (in 0..=1; with size 1 on axes along which it is constant) are
/// `[batch, heads, seq, size]`, `bonus` is `[heads, size]`, and `state` `[batch, heads, size, size]` (zero if `None`).
/// Gives the outputs `[batch, heads, seq, size]` and the last state.
pub fn chunked<B: Backend>(
    r: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    decay: Tensor<B, 4>,
    bonus: Tensor<B, 2>,
    state: Option<Tensor<B, 4>>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let [_, heads, seq, size] = r.dims();
    let decay = decay.expand(r.dims());
    // The contribution of a step to its own output needs no state.
    let own = (r.clone() * k.clone() * bonus.reshape([1, heads, 1, size])).sum_dim(3) * v.clone();
    let part = |x: &Tensor<B, 4>, start: usize| x.clone().narrow(2, start, CHUNK.min(seq - start));
    let steps = |start| [&r, &k, &v, &decay].map(|x| part(x, start));
    let (y, mut state) = chunk(steps(0), state);
    let mut outputs = vec![y];
    for start in (CHUNK..seq).step_by(CHUNK) {
        let (y, next) = chunk(steps(start), Some(state));
        outputs.push(y);
        state = next;
    }
    (own + Tensor::cat(outputs, 2), state)
}

/// The contributions of earlier steps to each step's output in one chunk, and the state after the chunk.
///
/// Divide and conquer: in a block of two halves, the second half reads the writes of the first through two matrix
/// products, (r·(decays since the middle))·(k·(decays until the middle))ᵀ·v. Blocks double from two steps to the whole
/// chunk. Every factor is a product of decays, at most 1: nothing overflows, and nothing is divided by.
fn chunk<B: Backend>([r, k, v, decay]: [Tensor<B, 4>; 4], state: Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let [batch, heads, seq, size] = r.dims();
    let options = (&r.device(), r.dtype());
    // Steps that neither read, write nor decay fill up to a power of two.
    let length = seq.next_power_of_two();
    let fill = |x: Tensor<B, 4>, value: f32| match length - seq {
        0 => x,
        missing => Tensor::cat(vec![x, Tensor::full([batch, heads, missing, size], value, options)], 2),
    };
    let (r, k, v, decay) = (fill(r, 0.0), fill(k, 0.0), fill(v, 0.0), fill(decay, 1.0));

    let rows = batch * heads;
    let mut y = Tensor::zeros([rows, length, size], options);
    let mut since = Tensor::ones([rows, length, size], options); // the decays of the block's steps before this one
    let mut until = since.clone(); // of the block's steps after this one
    let mut total = decay.reshape([rows, length, size]); // of the whole block, [rows, blocks, size]
    let mut half = 1;
    while half < length {
        let blocks = rows * length / (2 * half);
        let pairs = |x: Tensor<B, 3>| x.reshape([blocks, 2, half, size]);
        let side = |x: Tensor<B, 4>, which| x.narrow(1, which, 1).reshape([blocks, half, size]);
        let halves = |x: &Tensor<B, 4>, which| side(x.clone().reshape([blocks, 2, half, size]), which);
        let queries = halves(&r, 1) * side(pairs(since.clone()), 1);
        let keys = halves(&k, 0) * side(pairs(until.clone()), 0);
        let read = queries.matmul(keys.transpose()).matmul(halves(&v, 0)); // [blocks, half, size]
        let nothing = Tensor::zeros([blocks, half, size], options);
        y = y + Tensor::cat(vec![nothing, read], 1).reshape([rows, length, size]);

        let totals = total.reshape([blocks, 2, 1, size]);
        let (first, second) = (totals.clone().narrow(1, 0, 1), totals.narrow(1, 1, 1)); // [blocks, 1, 1, size]
        let one = Tensor::ones_like(&first);
        since = (pairs(since) * Tensor::cat(vec![one.clone(), first.clone()], 1)).reshape([rows, length, size]);
        until = (pairs(until) * Tensor::cat(vec![second.clone(), one], 1)).reshape([rows, length, size]);
        total = (first * second).reshape([rows, length / (2 * half), size]);
        half *= 2;
    }

    let whole = [batch, heads, length, size];
    let written = (k * until.reshape(whole)).transpose().matmul(v); // [batch, heads, key, value]
    let y = y.reshape(whole);
    let (y, state) = match state {
        None => (y, written),
        Some(state) => {
            let total = total.reshape([batch, heads, size, 1]);
            (y + (r * since.reshape(whole)).matmul(state.clone()), total * state + written)
        }
    };
    (y.narrow(2, 0, seq), state)
}
