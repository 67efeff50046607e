//! The optimiser's step, in one pass over each parameter.

use crate::ops::cpu::memory::{uninit, write};
use crate::ops::cpu::simd::V;
use crate::ops::cpu::{like, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use burn::prelude::*;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Numbers that one unit of work takes.
const BLOCK: usize = 1 << 14;

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // the same as that of the definition
pub fn adam_step<B: RunKernels, const D: usize>(
    rule: AdamKernel,
    parameter: &Tensor<B, D>,
    gradient: &Tensor<B, D>,
    [first, second]: &[Tensor<B, D>; 2],
    factor: &Tensor<B, 1>,
) -> Option<(Tensor<B, D>, [Tensor<B, D>; 2])> {
    let inputs = Inputs {
        parameter: float(parameter),
        gradient: float(gradient),
        first: float(first),
        second: float(second),
        factor: float(factor),
    };
    let [parameter, first, second] = B::run(rule, inputs.into())?;
    Some((kernel::tensor(parameter), [first, second].map(kernel::tensor)))
}

/// A step of Adam with decoupled weight decay (Kingma & Ba, arXiv 1412.6980; Loshchilov & Hutter, arXiv 1711.05101) on
/// tensors of one shape, θ, its gradient, the moments m and v, and a factor on the gradient, `[1]`, to the next θ, m
/// and v:
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

inputs! {
    /// The tensors of a step.
    pub struct Inputs {
        /// θ.
        parameter,
        /// The gradient, in the shape of θ.
        gradient,
        /// m, in the shape of θ.
        first,
        /// v, in the shape of θ.
        second,
        /// `[1]`.
        factor,
    }
}

/// Tensors that [`AdamKernel`] reads.
const COUNT: usize = Inputs::COUNT;

impl Kernel<COUNT, 3> for AdamKernel {
    type Saved = ();

    #[allow(unsafe_code)]
    fn forward(&self, inputs: [FlexTensor; COUNT], _: bool) -> ([FlexTensor; 3], Option<()>) {
        let Inputs { parameter, gradient, first, second, factor } = inputs.each_ref().map(values).into();
        let length = parameter.len();
        assert!([gradient, first, second].iter().all(|x| x.len() == length), "tensors of different shapes");
        let [mut p, mut m, mut v] = [(); 3].map(|()| uninit(length));
        let next = (p.par_chunks_mut(BLOCK), m.par_chunks_mut(BLOCK), v.par_chunks_mut(BLOCK));
        next.into_par_iter().enumerate().for_each(|(block, (p, m, v))| {
            let at = block * BLOCK..block * BLOCK + p.len();
            let (p, m, v) =
                (write(p, &parameter[at.clone()]), write(m, &first[at.clone()]), write(v, &second[at.clone()]));
            with_simd(Block { rule: self, factor: factor[0], gradient: &gradient[at], p, m, v });
        });
        // SAFETY: the blocks are all of the outputs, and `write` has written each from end to end.
        let [p, m, v] = [p, m, v].map(|x| unsafe { x.assume_init() }.into_vec());
        let Inputs { parameter, first, second, .. } = inputs.each_ref().into();
        ([like(parameter, p), like(first, m), like(second, v)], None)
    }

    /// No loss depends on a step.
    fn backward(&self, (): (), _: [Option<FlexTensor>; 3], _: [bool; COUNT]) -> [Option<FlexTensor>; COUNT] {
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
        let length = gradient.len();
        let (p, m, v) = (&mut p[..length], &mut m[..length], &mut v[..length]);
        for at in (0..length).step_by(lanes) {
            let (p, m, v) = (&mut p[at..], &mut m[at..], &mut v[at..]);
            let g = V::load(simd, &gradient[at..]) * factor;
            let first = V::load(simd, m).mul_add(number(beta1), g * new1);
            let second = V::load(simd, v).mul_add(number(beta2), g * g * new2);
            let change = first * rule.rate / (second.sqrt() / number(rule.root) + number(rule.epsilon));
            first.store(m);
            second.store(v);
            (V::load(simd, p) * rule.keep - change).store(p);
        }
    }
}
