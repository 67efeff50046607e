//! The optimiser's step, in one pass over each parameter.

use super::memory::write;
use super::simd::V;
use super::{like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::*;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Numbers that one unit of work takes.
const BLOCK: usize = 1 << 14;

/// [`SequenceOps::adam_step`](crate::ops::SequenceOps::adam_step), where kernels can run.
#[allow(clippy::type_complexity)] // the same as that of the definition
pub fn adam_step<B: RunKernels, const D: usize>(
    rule: AdamKernel,
    parameter: &Tensor<B, D>,
    gradient: &Tensor<B, D>,
    [first, second]: &[Tensor<B, D>; 2],
    factor: &Tensor<B, 1>,
) -> Option<(Tensor<B, D>, [Tensor<B, D>; 2])> {
    let inputs = [float(parameter), float(gradient), float(first), float(second), float(factor)];
    let [parameter, first, second] = B::run(rule, inputs)?;
    Some((kernel::tensor(parameter), [first, second].map(kernel::tensor)))
}

/// A step of Adam with decoupled weight decay (Kingma & Ba, arXiv 1412.6980; Loshchilov & Hutter, arXiv 1711.05101) on tensors
/// of one shape, θ, its gradient, the moments m and v, and a factor on the gradient, `[1]`, to the next θ, m and v:
///
/// ```text
/// g = factor·gradient;  m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  θ ← keep·θ − rate·m/(√v/root + ε)
/// ```
#[derive(Debug, Clone, Copy)]
pub struct AdamKernel {
    /// β₁ and β₂; in float32, 1 − 0.999 would be off by 1e-5.
    pub betas: [f64; 2],
    /// ε.
    pub epsilon: f32,
    /// Learning rate/(1 − β₁ᵗ).
    pub rate: f32,
    /// √(1 − β₂ᵗ).
    pub root: f32,
    /// 1 − learning rate·weight decay.
    pub keep: f32,
}

impl Kernel<5, 3> for AdamKernel {
    type Saved = ();

    #[allow(unsafe_code)]
    fn forward(&self, inputs: [FlexTensor; 5], _: bool) -> ([FlexTensor; 3], Option<()>) {
        let [parameter, gradient, first, second, factor] = inputs.each_ref().map(values);
        let length = parameter.len();
        assert!([gradient, first, second].iter().all(|x| x.len() == length), "tensors of different shapes");
        let [mut p, mut m, mut v] = [(); 3].map(|()| Box::new_uninit_slice(length));
        let next = p.par_chunks_mut(BLOCK).zip(m.par_chunks_mut(BLOCK)).zip(v.par_chunks_mut(BLOCK));
        let before = parameter.par_chunks(BLOCK).zip(first.par_chunks(BLOCK)).zip(second.par_chunks(BLOCK));
        next.zip(before).zip(gradient.par_chunks(BLOCK)).for_each(|((((p, m), v), before), gradient)| {
            let ((parameter, first), second) = before;
            let (p, m, v) = (write(p, parameter), write(m, first), write(v, second));
            with_simd(Block { rule: self, factor: factor[0], gradient, p, m, v });
        });
        // SAFETY: the blocks, which are as many on both sides since the lengths are the same, have written all numbers.
        let [p, m, v] = [p, m, v].map(|x| unsafe { x.assume_init() }.into_vec());
        ([like(&inputs[0], p), like(&inputs[2], m), like(&inputs[3], v)], None)
    }

    /// No loss depends on a step.
    fn backward(&self, (): (), _: [Option<FlexTensor>; 3], _: [bool; 5]) -> [Option<FlexTensor>; 5] {
        Default::default()
    }
}

struct Block<'a> {
    rule: &'a AdamKernel,
    factor: f32,
    gradient: &'a [f32],
    p: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rule, factor, gradient, p, m, v } = self;
        let lanes = V::<S>::LANES;
        let number = |x| V::splat(simd, x);
        let [beta1, beta2] = rule.betas.map(|beta| beta as f32);
        let [new1, new2] = rule.betas.map(|beta| (1.0 - beta) as f32);
        let numbers = p.chunks_mut(lanes).zip(m.chunks_mut(lanes)).zip(v.chunks_mut(lanes)).zip(gradient.chunks(lanes));
        for (((p, m), v), gradient) in numbers {
            let g = V::load(simd, gradient) * factor;
            let first = V::load(simd, m).mul_add(number(beta1), g * new1);
            let second = V::load(simd, v).mul_add(number(beta2), g * g * new2);
            let change = first * rule.rate / (second.sqrt() / number(rule.root) + number(rule.epsilon));
            first.store(m);
            second.store(v);
            (V::load(simd, p) * rule.keep - change).store(p);
        }
    }
}

/// [`SequenceOps::sum_of_squares`](crate::ops::SequenceOps::sum_of_squares), where kernels can run.
pub fn sum_of_squares<B: RunKernels, const D: usize>(x: &Tensor<B, D>) -> Option<Tensor<B, 1>> {
    let [sum] = B::run(SquaresKernel, [float(x)])?;
    Some(kernel::tensor(sum))
}

/// The sum of the squares of a tensor, `[1]`.
#[derive(Debug, Clone, Copy)]
pub struct SquaresKernel;

impl Kernel<1, 1> for SquaresKernel {
    type Saved = ();

    fn forward(&self, [x]: [FlexTensor; 1], _: bool) -> ([FlexTensor; 1], Option<()>) {
        let blocks: Vec<f64> = values(&x).par_chunks(BLOCK).map(|x| f64::from(with_simd(Squares(x)))).collect();
        ([tensor(vec![blocks.iter().sum::<f64>() as f32], [1])], None)
    }

    /// For the norm of a gradient, which is not differentiated again.
    fn backward(&self, (): (), _: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [None]
    }
}

struct Squares<'a>(&'a [f32]);

impl WithSimd for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let mut sum = V::splat(simd, 0.0);
        for x in self.0.chunks(V::<S>::LANES) {
            let x = V::load(simd, x);
            sum = x.mul_add(x, sum);
        }
        sum.sum()
    }
}
