//! Contextual positions, forward and backward, query by query: two walks along the keys.

use crate::ops::KeyMask;
use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::pointwise::{Pointwise, map};
use crate::ops::cpu::simd::V;
use crate::ops::cpu::{dims, like, values};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::Simd;
use rayon::prelude::*;

/// The operation on tensors: logits and the bias by position → the bias, see
/// [`ContextualPositionsOp`](super::ContextualPositionsOp).
#[derive(Debug, Clone)]
pub struct ContextualKernel {
    /// The padding mask `[batch, seq]`, 0 at hidden keys, and whether every query may see itself anyway.
    pub mask: Option<(FlexTensor, bool)>,
}

/// 1/(1 + e⁻ˣ).
#[derive(Debug, Clone, Copy)]
struct Sigmoid;

impl Pointwise<1, 1> for Sigmoid {
    #[inline(always)]
    fn apply<S: Simd>(self, [x]: [V<S>; 1]) -> [V<S>; 1] {
        [x.sigmoid()]
    }
}

/// One query of one head: its gates and its bias by position.
struct Query<'a> {
    /// The number of the query, from 0.
    query: usize,
    /// How much each key counts if it can be seen.
    gates: &'a [f32],
    by_position: &'a [f32],
    mask: Option<(&'a [f32], bool)>,
}

/// Between which whole positions a key is, and how far from the lower one.
struct Place {
    low: usize,
    high: usize,
    part: f32,
    /// Whether it is as it was counted, and not past the last position.
    counted: bool,
}

impl Query<'_> {
    /// 1 for keys that can be seen, 0 for others.
    fn sees(&self, key: usize) -> f32 {
        match self.mask {
            Some((_, true)) if key == self.query => 1.0,
            Some((keys, _)) => keys[key],
            None => 1.0,
        }
    }

    /// Calls `at` with the place of every key up to the query, the last key first.
    fn walk(&self, mut at: impl FnMut(usize, Place)) {
        let last = self.by_position.len() - 1;
        let mut sum = 0.0f64; // the rounding of many single steps would be seen
        for key in (0..=self.query).rev() {
            sum += f64::from(self.gates[key] * self.sees(key));
            let position = sum.min(last as f64);
            let low = position as usize;
            let part = (position - low as f64) as f32;
            let high = low + usize::from(position > low as f64);
            at(key, Place { low, high, part, counted: sum <= last as f64 });
        }
    }

    fn forward(&self, bias: &mut [f32]) {
        let e = self.by_position;
        self.walk(|key, Place { low, high, part, .. }| bias[key] = e[low] * (1.0 - part) + e[high] * part);
        bias[self.query + 1..].fill(0.0);
    }

    /// From the gradient of the bias to those of the logits and of the bias by position, which is zero before.
    fn backward(&self, dy: &[f32], dlogits: &mut [f32], de: &mut [f32]) {
        let e = self.by_position;
        self.walk(|key, Place { low, high, part, counted }| {
            de[low] += dy[key] * (1.0 - part);
            de[high] += dy[key] * part;
            // of the position, for now
            dlogits[key] = if counted { dy[key] * (e[high] - e[low]) } else { 0.0 };
        });
        let mut sum = 0.0; // a gate moves the positions of all keys up to its own
        let (visible, future) = dlogits.split_at_mut(self.query + 1);
        for (key, (d, gate)) in visible.iter_mut().zip(self.gates).enumerate() {
            sum += *d;
            *d = sum * gate * (1.0 - gate) * self.sees(key);
        }
        future.fill(0.0);
    }
}

impl ContextualKernel {
    /// Row number `row` of batch × heads × seq.
    fn query<'a>(
        &'a self,
        [_, heads, seq, positions]: [usize; 4],
        gates: &'a [f32],
        by_position: &'a FlexTensor,
        row: usize,
    ) -> Query<'a> {
        let example = row / (heads * seq);
        let mask = self.mask.as_ref();
        Query {
            query: row % seq,
            gates: &gates[row * seq..(row + 1) * seq],
            by_position: &values(by_position)[row * positions..(row + 1) * positions],
            mask: mask.map(|(keys, identity)| (&values(keys)[example * seq..(example + 1) * seq], *identity)),
        }
    }
}

impl Kernel<2, 1> for ContextualKernel {
    /// The gates and the bias by position.
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, [logits, by_position]: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let ([gates], shape) = (map(Sigmoid, [values(&logits)]), dims(&by_position));
        let seq = shape[2];
        let mut bias = unwritten(gates.len());
        bias.par_chunks_exact_mut(seq).enumerate().for_each(|(row, bias)| {
            self.query(shape, &gates, &by_position, row).forward(bias);
        });
        ([like(&logits, bias)], save.then(|| (like(&logits, gates), by_position)))
    }

    fn backward(
        &self,
        (gates, by_position): Self::Saved,
        [dy]: [Option<FlexTensor>; 1],
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let Some(dy) = dy else { return [None, None] };
        let shape @ [_, _, seq, positions] = dims(&by_position);
        let mut dlogits = unwritten(values(&gates).len());
        let mut de = vec![0.0; values(&by_position).len()];
        let rows = dlogits.par_chunks_exact_mut(seq).zip(de.par_chunks_exact_mut(positions));
        rows.zip(values(&dy).par_chunks_exact(seq)).enumerate().for_each(|(row, ((dlogits, de), dy))| {
            self.query(shape, values(&gates), &by_position, row).backward(dy, dlogits, de);
        });
        [Some(like(&gates, dlogits)), Some(like(&by_position, de))]
    }
}

/// The operation, where kernels can run.
pub fn contextual_positions<B: RunKernels>(
    logits: &Tensor<B, 4>,
    by_position: &Tensor<B, 4>,
    mask: Option<&KeyMask<B>>,
) -> Option<Tensor<B, 4>> {
    if !B::has_kernel::<ContextualKernel, 2, 1>() {
        return None;
    }
    let mask = match mask {
        Some(mask) => Some((B::constant(float(&mask.keys))?, mask.identity)),
        None => None,
    };
    let [y] = B::run(ContextualKernel { mask }, [float(logits), float(by_position)])?;
    Some(kernel::tensor(y))
}
