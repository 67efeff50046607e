//! Causal convolution of every channel with a kernel as long as the sequence, as S4 is trained (Gu et al., arXiv
//! 2111.00396).

pub mod cpu;

use super::kernel::RunKernels;
use super::zero_pad;
use burn::prelude::*;

/// The causal convolution.
pub trait CausalConvolutionOp: RunKernels {
    /// Causal convolution of every channel with a kernel of its own: `u` `[batch, seq, hidden]`, `k` `[hidden, seq]` →
    /// `[batch, seq, hidden]`. See [`reference()`] for the formula.
    fn causal_convolution(u: Tensor<Self, 3>, k: Tensor<Self, 2>) -> Tensor<Self, 3> {
        cpu::causal_convolution(&u, &k).unwrap_or_else(|| reference(u, k))
    }
}

impl<B: RunKernels> CausalConvolutionOp for B {}

/// Time steps that [`reference()`] takes as one product of matrices.
const BLOCK: usize = 64;

/// y_t = Σ_{s ≤ t} k_{t−s}·u_s per channel: `u` `[batch, seq, hidden]`, `k` `[hidden, seq]` → `[batch, seq, hidden]`.
///
/// Both are cut into blocks; the block of outputs i is the sum over earlier blocks j of a Toeplitz matrix of k's taps
/// around (i − j)·BLOCK times block j of the inputs.
pub fn reference<B: Backend>(u: Tensor<B, 3>, k: Tensor<B, 2>) -> Tensor<B, 3> {
    let [batch, seq, hidden] = u.dims();
    let size = BLOCK.min(seq);
    let blocks = seq.div_ceil(size);
    let rest = blocks * size - seq;
    let u = zero_pad(u, 1, [0, rest]).permute([2, 0, 1]).reshape([hidden, batch, blocks, size]);
    let taps = zero_pad(k, 1, [size, rest]); // [hidden, (blocks + 1)·size]; before tap 0 is the future

    let product = |apart: usize| {
        let pairs = blocks - apart; // of blocks that lie this far apart
        let inputs = u.clone().narrow(2, 0, pairs).reshape([hidden, batch * pairs, size]);
        // Entry (s, t) is tap apart·size + t − s, which is column size + t − s of these:
        let around = taps.clone().narrow(1, apart * size, 2 * size);
        let y = inputs.matmul(toeplitz(around)).reshape([hidden, batch, pairs, size]);
        zero_pad(y, 2, [apart, 0])
    };
    let y = (1..blocks).fold(product(0), |sum, apart| sum + product(apart));
    y.reshape([hidden, batch, blocks * size]).narrow(2, 0, seq).permute([1, 2, 0])
}

/// `[hidden, 2·n]` → `[hidden, n, n]` whose entry (s, t) is column n + t − s.
///
/// Rows of 2·n entries, read as rows of 2·n − 1, shift by one from each to the next.
fn toeplitz<B: Backend>(taps: Tensor<B, 2>) -> Tensor<B, 3> {
    let [hidden, width] = taps.dims();
    let n = width / 2;
    let turned = Tensor::cat(vec![taps.clone().narrow(1, n, n), taps.narrow(1, 0, n)], 1);
    let rows = turned.reshape([hidden, 1, width]).expand([hidden, n, width]).reshape([hidden, n * width]);
    rows.narrow(1, 0, n * (width - 1)).reshape([hidden, n, width - 1]).narrow(2, 0, n)
}
