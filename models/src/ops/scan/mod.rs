//! The selective scan of Mamba (Gu & Dao, arXiv 2312.00752, section 3).

pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;

use super::kernel::RunKernels;
use super::unbind_time;
use burn::prelude::*;
use burn::tensor::activation::{relu, silu};

/// The tensors that the scan reads.
#[derive(Debug, Clone)]
pub struct SelectiveScan<B: Backend> {
    /// The input, `[batch, seq, channels]`.
    pub u: Tensor<B, 3>,
    /// The step sizes, before bias and softplus: `[batch, seq, channels]`.
    pub delta: Tensor<B, 3>,
    /// `[channels]`.
    pub delta_bias: Tensor<B, 1>,
    /// The diagonal of A, `[channels, state]`.
    pub a: Tensor<B, 2>,
    /// `[batch, seq, state]`.
    pub b: Tensor<B, 3>,
    /// `[batch, seq, state]`.
    pub c: Tensor<B, 3>,
    /// The skip connection, `[channels]`.
    pub d: Tensor<B, 1>,
    /// The gate of the output, before SiLU: `[batch, seq, channels]`.
    pub z: Tensor<B, 3>,
    /// Whether the factor of the state is 2·exp(Δ·A) − 1, in −1..=1, instead of exp(Δ·A), in 0..=1.
    pub negative_eigenvalues: bool,
}

/// Mamba's selective scan.
pub trait SelectiveScanOp: RunKernels {
    /// The selective scan from state `h` `[batch, channels, state]` (zero if `None`): outputs `[batch, seq, channels]`,
    /// and the last state. See [`reference()`] for the formula.
    fn selective_scan(inputs: SelectiveScan<Self>, h: Option<Tensor<Self, 3>>) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
        cpu::selective_scan(&inputs, h.as_ref()).unwrap_or_else(|| reference(inputs, h))
    }
}

impl<B: RunKernels> SelectiveScanOp for B {}

/// With Δ = softplus(delta + delta_bias): h_t = exp(Δ_t·A)⊙h_{t−1} + Δ_t·u_t·B_t, y_t = (h_t·C_t + D·u_t)·silu(z_t),
/// with h `[channels, state]`. Gives the outputs `[batch, seq, channels]` and the last state
/// `[batch, channels, state]`, from the state `h` (zero if `None`). With negative eigenvalues, 2·exp(Δ_t·A) − 1 takes
/// the place of exp(Δ_t·A) (Grazzi et al., arXiv 2411.12537, section 4.4).
pub fn reference<B: Backend>(
    SelectiveScan { u, delta, delta_bias, a, b, c, d, z, negative_eigenvalues }: SelectiveScan<B>,
    h: Option<Tensor<B, 3>>,
) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let [batch, _, channels] = u.dims();
    let state = a.dims()[1];
    let mut h = h.unwrap_or_else(|| super::zeros(&u, [batch, channels, state]));
    let a = a.unsqueeze::<3>();
    let delta = softplus(delta + delta_bias.unsqueeze());
    let inputs = unbind_time(delta.clone() * u.clone()).into_iter().zip(unbind_time(delta));
    let gates = unbind_time(b).into_iter().zip(unbind_time(c));
    let mut outputs = Vec::new();
    for ((input, delta), (b, c)) in inputs.zip(gates) {
        let decay = (delta.unsqueeze_dim::<3>(2) * a.clone()).exp(); // [batch, channels, state]
        let decay = if negative_eigenvalues { decay * 2.0 - 1.0 } else { decay };
        h = decay * h + input.unsqueeze_dim::<3>(2) * b.unsqueeze_dim::<3>(1);
        outputs.push(h.clone().matmul(c.unsqueeze_dim::<3>(2))); // [batch, channels, 1]
    }
    let y = Tensor::cat(outputs, 2).swap_dims(1, 2);
    ((y + u * d.unsqueeze()) * silu(z), h)
}

/// log(1 + eˣ). Step sizes are small: rounding 1 + eˣ would lose their significant digits.
pub(crate) fn softplus<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    relu(x.clone()) + (-x.abs()).exp().log1p()
}
