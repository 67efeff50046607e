//! The recurrence h_t = a_t·h_{t−1} + b_t in every channel, of minGRU (Feng et al., arXiv 2410.01201).

pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;

use super::kernel::RunKernels;
use super::unbind_time;
use burn::prelude::*;

/// The linear recurrence.
pub trait LinearRecurrenceOp: RunKernels {
    /// h_t = a_t·h_{t−1} + b_t in every channel, from state `h` `[batch, channels]` (zero if `None`): `a` and `b`
    /// `[batch, seq, channels]` → all states `[batch, seq, channels]`, and the last one.
    fn linear_recurrence(
        a: Tensor<Self, 3>,
        b: Tensor<Self, 3>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        cpu::linear_recurrence(&a, &b, h.as_ref()).unwrap_or_else(|| reference(a, b, h))
    }
}

impl<B: RunKernels> LinearRecurrenceOp for B {}

/// One time step after another.
pub fn reference<B: Backend>(
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
