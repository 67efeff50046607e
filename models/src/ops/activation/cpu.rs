//! Functions of single numbers and their gradients, on all cores.

use crate::ops::activation::Activation;
use crate::ops::cpu::pointwise::{Pointwise, map};
use crate::ops::cpu::simd::V;
use crate::ops::cpu::{like, values};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::Simd;

/// The function.
#[derive(Debug, Clone, Copy)]
pub struct Function(pub Activation);

/// (eˣ − e⁻ˣ)/(eˣ + e⁻ˣ), as 2/(1 + e⁻²ˣ) − 1 where that does not cancel, or else x − x³/3 + 2x⁵/15 − 17x⁷/315.
#[inline(always)]
fn tanh<S: Simd>(x: V<S>) -> V<S> {
    let simd = x.0;
    let one = V::splat(simd, 1.0);
    let far = (x * 2.0).sigmoid() * 2.0 - one;
    let square = x * x;
    let series = square.mul_add(V::splat(simd, -17.0 / 315.0), V::splat(simd, 2.0 / 15.0));
    let series = series.mul_add(square, V::splat(simd, -1.0 / 3.0));
    let near = (series * square).mul_add(x, x);
    let is_near = simd.less_than_f32s(x.abs().1, simd.splat_f32s(0.2));
    V(simd, simd.select_f32s(is_near, near.1, far.1))
}

impl Pointwise<1, 1> for Function {
    #[inline(always)]
    fn apply<S: Simd>(self, [x]: [V<S>; 1]) -> [V<S>; 1] {
        [match self.0 {
            Activation::Exp => x.exp(),
            Activation::LogSigmoid => -(-x).softplus(),
            Activation::Sigmoid => x.sigmoid(),
            Activation::Silu => x * x.sigmoid(),
            Activation::Tanh => tanh(x),
        }]
    }
}

/// The gradient of x from (x, that of the function).
#[derive(Debug, Clone, Copy)]
pub struct FunctionGradient(pub Activation);

impl Pointwise<2, 1> for FunctionGradient {
    #[inline(always)]
    fn apply<S: Simd>(self, [x, g]: [V<S>; 2]) -> [V<S>; 1] {
        let one = V::splat(x.0, 1.0);
        [g * match self.0 {
            Activation::Exp => x.exp(),
            Activation::LogSigmoid => (-x).sigmoid(),
            Activation::Sigmoid => x.sigmoid() * (-x).sigmoid(),
            Activation::Silu => {
                let sigmoid = x.sigmoid();
                sigmoid * x.mul_add(one - sigmoid, one)
            }
            Activation::Tanh => {
                let y = tanh(x);
                one - y * y
            }
        }]
    }
}

impl Kernel<1, 1> for Function {
    type Saved = FlexTensor;

    fn forward(&self, [x]: [FlexTensor; 1], save: bool) -> ([FlexTensor; 1], Option<FlexTensor>) {
        (map(*self, [values(&x)]).map(|y| like(&x, y)), save.then_some(x))
    }

    fn backward(&self, x: FlexTensor, [dy]: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let Some(dy) = dy else { return [None] };
        map(FunctionGradient(self.0), [values(&x), values(&dy)]).map(|dx| Some(like(&x, dx)))
    }
}

/// The operation, where kernels can run.
pub fn activation<B: RunKernels>(x: &Tensor<B, 3>, activation: Activation) -> Option<Tensor<B, 3>> {
    B::run(Function(activation), [float(x)]).map(|[y]| kernel::tensor(y))
}
