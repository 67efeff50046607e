//! Cross entropy: the loss of a position and its gradient in one pass over its logits.

use crate::ops::cpu::simd::V;
use crate::ops::cpu::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::*;
use burn::tensor::DType;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows that one unit of work takes.
const ROWS: usize = 64;

/// The operation, where kernels can run.
pub fn cross_entropy<B: RunKernels>(
    logits: &Tensor<B, 3>,
    labels: &Tensor<B, 2, Int>,
    weights: &Tensor<B, 2>,
) -> Option<Tensor<B, 1>> {
    let labels = integers::<B>(labels)?;
    let [loss] = B::run(CrossEntropyKernel { labels }, [float(logits), float(weights)])?;
    Some(kernel::tensor(loss))
}

/// The labels `[batch, seq]` where the CPU has them, row-major.
fn integers<B: RunKernels>(labels: &Tensor<B, 2, Int>) -> Option<Vec<i64>> {
    let labels = B::int_input(labels.clone().into_primitive())?;
    match labels.dtype() {
        DType::I64 => Some(labels.storage::<i64>().to_vec()),
        DType::I32 => Some(labels.storage::<i32>().iter().map(|&label| i64::from(label)).collect()),
        _ => None,
    }
}

/// The operation on tensors: logits `[batch, seq, vocab]` and weights `[batch, seq]` → −Σ weight·ln p(label), `[1]`.
/// Weights are constants: they get no gradient.
#[derive(Debug, Clone)]
pub struct CrossEntropyKernel {
    /// One per position; any where the weight is 0.
    pub labels: Vec<i64>,
}

impl Kernel<2, 1> for CrossEntropyKernel {
    /// The gradient of the logits.
    type Saved = FlexTensor;

    fn forward(&self, [logits, weights]: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [batch, seq, vocab] = dims(&logits);
        let mut gradient = if save { vec![0.0; batch * seq * vocab] } else { vec![] };
        let mut gradients: Vec<Option<&mut [f32]>> = gradient.chunks_mut(ROWS * vocab).map(Some).collect();
        gradients.resize_with((batch * seq).div_ceil(ROWS), || None);
        let (logit_rows, weight_rows) = (values(&logits), values(&weights));
        let units = (
            gradients,
            logit_rows.par_chunks(ROWS * vocab),
            weight_rows.par_chunks(ROWS),
            self.labels.par_chunks(ROWS),
        );
        let losses: Vec<f64> = units
            .into_par_iter()
            .map(|(gradient, logits, weights, labels)| with_simd(Rows { vocab, logits, weights, labels, gradient }))
            .collect();
        let loss = losses.iter().sum::<f64>() as f32;
        ([tensor(vec![loss], [1])], save.then(|| like(&logits, gradient)))
    }

    fn backward(
        &self,
        mut gradient: FlexTensor,
        [outer]: [Option<FlexTensor>; 1],
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let Some(outer) = outer else { return [None, None] };
        let factor = values(&outer)[0];
        if factor != 1.0 {
            let gradient: &mut [f32] = gradient.storage_mut();
            gradient.iter_mut().for_each(|x| *x *= factor);
        }
        [Some(gradient), None]
    }
}

/// Some positions; the result is their part of the loss.
struct Rows<'a> {
    vocab: usize,
    logits: &'a [f32],
    weights: &'a [f32],
    labels: &'a [i64],
    gradient: Option<&'a mut [f32]>,
}

impl WithSimd for Rows<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { vocab, logits, weights, labels, mut gradient } = self;
        let lanes = V::<S>::LANES;
        let mut loss = 0.0;
        let mut exponentials = vec![0.0; vocab];
        for (row, logits) in logits.chunks_exact(vocab).enumerate() {
            let weight = weights[row];
            let Ok(label) = usize::try_from(labels[row]) else { continue };
            if weight == 0.0 {
                continue;
            }
            let (vectors, rest) = S::as_simd_f32s(logits);
            let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
            for &x in vectors {
                largest = simd.max_f32s(x, largest);
            }
            let largest = rest.iter().copied().fold(simd.reduce_max_f32s(largest), f32::max);
            let mut sum = V::splat(simd, 0.0);
            for (e, x) in exponentials.chunks_mut(lanes).zip(logits.chunks(lanes)) {
                (V::load(simd, x) - V::splat(simd, largest)).exp().store(e);
                sum += V::load(simd, e); // zeros beyond the vocabulary
            }
            let sum = sum.sum();
            loss += f64::from(weight) * f64::from(largest - logits[label] + sum.ln());
            if let Some(gradient) = &mut gradient {
                let gradient = &mut gradient[row * vocab..(row + 1) * vocab];
                for (gradient, e) in gradient.chunks_mut(lanes).zip(exponentials.chunks(lanes)) {
                    (V::load(simd, e) * (weight / sum)).store(gradient);
                }
                gradient[label] -= weight;
            }
        }
        loss
    }
}
