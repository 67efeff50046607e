//! Channels cut into parts that are tensors of their own, not views.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;

/// Channels cut into parts.
pub trait SplitOp: RunKernels {
    /// `[batch, seq, channels]` → `[batch, seq, width]` for each of `widths`, whose sum are the channels.
    fn split<const PARTS: usize>(x: Tensor<Self, 3>, widths: [usize; PARTS]) -> [Tensor<Self, 3>; PARTS] {
        cpu::split(&x, widths).unwrap_or_else(|| reference(x, widths))
    }
}

impl<B: RunKernels> SplitOp for B {}

/// Views of the parts.
pub fn reference<B: Backend, const PARTS: usize>(x: Tensor<B, 3>, widths: [usize; PARTS]) -> [Tensor<B, 3>; PARTS] {
    let mut start = 0;
    widths.map(|width| {
        let part = x.clone().narrow(2, start, width);
        start += width;
        part
    })
}
