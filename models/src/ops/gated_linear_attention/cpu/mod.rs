//! Gated linear attention, forward and backward, for each head of each example, where every channel of a key has a decay of
//! its own. (Where a head has one decay, [`ssd`](crate::ops::ssd) has products of matrices.)

pub mod channels;

use crate::ops::cpu::simd::sum_neighbours;
use crate::ops::cpu::{dims, gradients_of, tensor, values};
use crate::ops::gated_linear_attention::GatedLinearAttention;
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use crate::ops::zeros;
use burn::prelude::Tensor;
use burn_flex::FlexTensor;

inputs! {
    /// The tensors that the operation reads, row-major; see
    /// [`recurrent`](crate::ops::gated_linear_attention::recurrent). All but the matrices may have fewer heads.
    pub struct Inputs {
        /// `[batch, seq, heads, key]`.
        q,
        /// `[batch, seq, heads, key]`.
        k,
        /// `[batch, seq, heads, key]`.
        decay,
        /// `[batch, seq, heads, value]`.
        v,
        /// The matrices before, `[batch, heads, key, value]`.
        state,
    }
}

/// Tensors that [`GatedLinearAttentionKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// Tensors with heads: all but the state.
const HEADED: usize = 4;

/// The operation on numbers.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[batch, seq, heads, key, value]`: the tensors' axes, and the sizes of a key and of a value.
    pub shape: [usize; 5],
    /// Heads of q, k, the decays and v: `heads` or a divisor of it.
    pub heads: [usize; HEADED],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
}

/// The results of [`Attention::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, value]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// Matrices that are kept for [`Attention::backward`]; empty if not requested.
    pub checkpoints: Vec<f32>,
}

/// The gradients of [`Outputs`], zero where there is none.
#[derive(Debug, Clone, Copy)]
pub struct OutputGradients<'a> {
    /// Of the outputs.
    pub y: &'a [f32],
    /// Of the matrices after.
    pub last: Option<&'a [f32]>,
}

impl<'a> Attention<'a> {
    /// Heads of all examples.
    fn units(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    /// Runs over time; `keep`: saves what the backward pass needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        channels::forward(self, keep)
    }

    /// From the gradients of the outputs to those of all inputs.
    pub fn backward(&self, checkpoints: &[f32], gradients: OutputGradients<'_>) -> Inputs<Vec<f32>> {
        let [_, _, heads, key, value] = self.shape;
        // Of every head, those that share one apart.
        let Inputs { q, k, decay, v, state } = channels::backward(self, checkpoints, gradients);
        let mut gradients = [q, k, decay, v];
        for ((gradient, width), shared) in gradients.iter_mut().zip([key, key, key, value]).zip(self.heads) {
            if shared < heads {
                *gradient = sum_neighbours(gradient, width, heads / shared);
            }
        }
        let [q, k, decay, v] = gradients;
        Inputs { q, k, decay, v, state }
    }

    /// One time step of a unit in tensor number `tensor` of those with heads, of which it has `width` numbers.
    #[inline(always)]
    fn row<'x>(&self, x: &'x [f32], tensor: usize, width: usize, unit: usize, t: usize) -> &'x [f32] {
        let ([_, seq, heads, ..], present) = (self.shape, self.heads[tensor]);
        let head = unit % heads * present / heads;
        &x[((unit / heads * seq + t) * present + head) * width..][..width]
    }

    /// The values of a time step of a unit.
    #[inline(always)]
    fn values(&self, unit: usize, t: usize) -> &'a [f32] {
        self.row(self.inputs.v, 3, self.shape[4], unit, t)
    }
}

/// The operation on tensors: [`Inputs`] → outputs and last matrices.
#[derive(Debug, Clone, Copy)]
pub struct GatedLinearAttentionKernel;

/// The operation of these tensors.
fn attention(inputs: [&FlexTensor; COUNT]) -> Attention<'_> {
    let tensors = Inputs::from(inputs);
    let [_, heads, key, value] = dims(tensors.state);
    let headed = [tensors.q, tensors.k, tensors.decay, tensors.v].map(dims::<4>);
    let [batch, seq, ..] = headed[0];
    Attention {
        shape: [batch, seq, heads, key, value],
        heads: headed.map(|[_, _, heads, _]| heads),
        inputs: inputs.map(values).into(),
    }
}

impl Kernel<COUNT, 2> for GatedLinearAttentionKernel {
    type Saved = ([FlexTensor; COUNT], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let attention = attention(inputs.each_ref());
        let [batch, seq, heads, key, value] = attention.shape;
        let Outputs { y, last, checkpoints, .. } = attention.forward(save);
        let outputs = [tensor(y, [batch, seq, heads, value]), tensor(last, [batch, heads, key, value])];
        let length = checkpoints.len();
        (outputs, save.then(|| (inputs, tensor(checkpoints, [length]))))
    }

    fn backward(
        &self,
        (inputs, checkpoints): Self::Saved,
        [y, last]: [Option<FlexTensor>; 2],
        _: [bool; COUNT],
    ) -> [Option<FlexTensor>; COUNT] {
        let Some(y) = y else { return Default::default() };
        let given = OutputGradients { y: values(&y), last: last.as_ref().map(values) };
        let gradients = attention(inputs.each_ref()).backward(values(&checkpoints), given);
        gradients_of(&inputs, gradients)
    }
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // outputs and state
pub fn gated_linear_attention<B: RunKernels>(
    inputs: &GatedLinearAttention<B>,
    state: Option<&Tensor<B, 4>>,
) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    if !B::has_kernel::<GatedLinearAttentionKernel, COUNT, 2>() || inputs.decay.dims()[3] != inputs.k.dims()[3] {
        return None;
    }
    let GatedLinearAttention { q, k, v, decay } = inputs;
    let ([batch, .., key], [.., value]) = (k.dims(), v.dims());
    let state = state.cloned().unwrap_or_else(|| zeros(q, [batch, inputs.heads(), key, value]));
    let [q, k, v, decay] = [q, k, v, decay].map(float);
    B::run(GatedLinearAttentionKernel, Inputs { q, k, decay, v, state: float(&state) }.into())
        .map(|[y, last]| (kernel::tensor(y), kernel::tensor(last)))
}
