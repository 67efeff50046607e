//! The selective scan of Mamba (Gu & Dao, arXiv 2312.00752, section 3).

use super::plain::unbind_time;
use burn::prelude::*;

/// What the scan reads.
#[derive(Debug, Clone)]
pub struct SelectiveScan<B: Backend> {
    /// The input, `[batch, seq, channels]`.
    pub u: Tensor<B, 3>,
    /// The step sizes, `[batch, seq, channels]`.
    pub delta: Tensor<B, 3>,
    /// The diagonal of A, `[channels, state]`.
    pub a: Tensor<B, 2>,
    /// `[batch, seq, state]`.
    pub b: Tensor<B, 3>,
    /// `[batch, seq, state]`.
    pub c: Tensor<B, 3>,
}

/// h_t = exp(Δ_t·A)⊙h_{t−1} + Δ_t·u_t·B_t, y_t = h_t·C_t, with h `[channels, state]`: outputs `[batch, seq, channels]`
/// and the last state `[batch, channels, state]`, from the state `h` (zero if `None`).
pub fn selective_scan<B: Backend>(
    SelectiveScan { u, delta, a, b, c }: SelectiveScan<B>,
    h: Option<Tensor<B, 3>>,
) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let [batch, _, channels] = u.dims();
    let state = a.dims()[1];
    let mut h = h.unwrap_or_else(|| Tensor::zeros([batch, channels, state], &u.device()));
    let a = a.unsqueeze::<3>();
    let inputs = unbind_time(delta.clone() * u).into_iter().zip(unbind_time(delta));
    let gates = unbind_time(b).into_iter().zip(unbind_time(c));
    let mut outputs = Vec::new();
    for ((input, delta), (b, c)) in inputs.zip(gates) {
        let decay = (delta.unsqueeze_dim::<3>(2) * a.clone()).exp(); // [batch, channels, state]
        h = decay * h + input.unsqueeze_dim::<3>(2) * b.unsqueeze_dim::<3>(1);
        outputs.push(h.clone().matmul(c.unsqueeze_dim::<3>(2))); // [batch, channels, 1]
    }
    (Tensor::cat(outputs, 2).swap_dims(1, 2), h)
}
