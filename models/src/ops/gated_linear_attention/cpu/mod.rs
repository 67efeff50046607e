//! Gated linear attention, forward and backward, for each head of each example: a time loop where every channel of a key has
//! a decay of its own ([`channels`]), products of matrices in chunks where a head has one ([`chunks`]).

pub mod channels;
pub mod chunks;

use crate::ops::cpu::memory::in_pieces;
use crate::ops::cpu::{dims, gradients_of, tensor, values};
use crate::ops::gated_linear_attention::{Counted, GatedLinearAttention};
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
        /// `[batch, seq, heads, key or 1]`.
        decay,
        /// `[batch, seq, heads, value]`.
        v,
        /// The matrices before, `[batch, heads, key, value]`.
        state,
    }
}

/// Tensors that [`GatedLinearAttentionKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// The same and the normalisers before, `[batch, heads, key]`: what [`CountedKernel`] reads.
const COUNTED: usize = COUNT + 1;

/// Tensors with heads: all but the state.
const HEADED: usize = 4;

/// The operation on numbers.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[batch, seq, heads, key, value]`: the tensors' axes, and the sizes of a key and of a value.
    pub shape: [usize; 5],
    /// Decays of a head: `key`, or 1 for all channels of a key.
    pub decays: usize,
    /// Heads of q, k, the decays and v: `heads` or a divisor of it.
    pub heads: [usize; HEADED],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
    /// The normalisers before, `[batch, heads, key]`, where what keys add up to is counted: only with one decay per head.
    pub counts: Option<&'a [f32]>,
}

/// The results of [`Attention::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, value]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// q·n, `[batch, seq, heads]`, and the normalisers n after, `[batch, heads, key]`; empty if nothing is counted.
    pub counted: [Vec<f32>; 2],
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
    /// Of what is counted.
    pub counted: [Option<&'a [f32]>; 2],
}

impl<'a> Attention<'a> {
    /// Heads of all examples.
    fn units(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    /// Runs over time; `keep`: saves what the backward pass needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        match self.decays {
            1 => chunks::forward(self, keep),
            _ => channels::forward(self, keep),
        }
    }

    /// From the gradients of the outputs to those of all inputs, and of the normalisers before.
    pub fn backward(&self, checkpoints: &[f32], gradients: OutputGradients<'_>) -> (Inputs<Vec<f32>>, Vec<f32>) {
        let [_, _, heads, key, value] = self.shape;
        // Of every head, those that share one apart.
        let (inputs, counts) = match self.decays {
            1 => chunks::backward(self, checkpoints, gradients),
            _ => (channels::backward(self, checkpoints, gradients), Vec::new()),
        };
        let Inputs { q, k, decay, v, state } = inputs;
        let mut gradients = [q, k, decay, v];
        let widths = [key, key, self.decays, value];
        for ((gradient, width), shared) in gradients.iter_mut().zip(widths).zip(self.heads) {
            if shared < heads {
                *gradient = sums(gradient, width, heads / shared);
            }
        }
        let [q, k, decay, v] = gradients;
        (Inputs { q, k, decay, v, state }, counts)
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

/// The same, and of the normalisers before: outputs, last matrices, q·n, last normalisers.
#[derive(Debug, Clone, Copy)]
pub struct CountedKernel;

/// The operation of these tensors.
fn attention(inputs: [&FlexTensor; COUNT]) -> Attention<'_> {
    let tensors = Inputs::from(inputs);
    let [_, heads, key, value] = dims(tensors.state);
    let headed = [tensors.q, tensors.k, tensors.decay, tensors.v].map(dims::<4>);
    let [batch, seq, ..] = headed[0];
    Attention {
        shape: [batch, seq, heads, key, value],
        decays: headed[2][3],
        heads: headed.map(|[_, _, heads, _]| heads),
        inputs: inputs.map(values).into(),
        counts: None,
    }
}

/// The same where keys are counted.
fn counted(inputs: &[FlexTensor; COUNTED]) -> Attention<'_> {
    let [q, k, decay, v, state, counts] = inputs.each_ref();
    Attention { counts: Some(values(counts)), ..attention([q, k, decay, v, state]) }
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
        let given = OutputGradients { y: values(&y), last: last.as_ref().map(values), counted: [None; 2] };
        let (gradients, _) = attention(inputs.each_ref()).backward(values(&checkpoints), given);
        gradients_of(&inputs, gradients)
    }
}

impl Kernel<COUNTED, 4> for CountedKernel {
    type Saved = ([FlexTensor; COUNTED], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; COUNTED], save: bool) -> ([FlexTensor; 4], Option<Self::Saved>) {
        let attention = counted(&inputs);
        let [batch, seq, heads, key, value] = attention.shape;
        let Outputs { y, last, counted: [read, counts], checkpoints } = attention.forward(save);
        let outputs = [
            tensor(y, [batch, seq, heads, value]),
            tensor(last, [batch, heads, key, value]),
            tensor(read, [batch, seq, heads]),
            tensor(counts, [batch, heads, key]),
        ];
        let length = checkpoints.len();
        (outputs, save.then(|| (inputs, tensor(checkpoints, [length]))))
    }

    fn backward(
        &self,
        (inputs, checkpoints): Self::Saved,
        [y, last, read, counts]: [Option<FlexTensor>; 4],
        _: [bool; COUNTED],
    ) -> [Option<FlexTensor>; COUNTED] {
        let Some(y) = y else { return Default::default() };
        let given = OutputGradients {
            y: values(&y),
            last: last.as_ref().map(values),
            counted: [read.as_ref().map(values), counts.as_ref().map(values)],
        };
        let (Inputs { q, k, decay, v, state }, counts) = counted(&inputs).backward(values(&checkpoints), given);
        gradients_of(&inputs, [q, k, decay, v, state, counts])
    }
}

/// Sums of rows of `width` numbers, `count` in a row.
fn sums(x: &[f32], width: usize, count: usize) -> Vec<f32> {
    const ROWS: usize = 256;
    in_pieces(x.len() / count, ROWS * width, |unit, sums| {
        let rows = x[unit * ROWS * width * count..].chunks_exact(width * count);
        for (sum, rows) in sums.chunks_exact_mut(width).zip(rows) {
            sum.copy_from_slice(&rows[..width]);
            for row in rows[width..].chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
    })
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // outputs and state
pub fn gated_linear_attention<B: RunKernels>(
    inputs: &GatedLinearAttention<B>,
    state: Option<&Tensor<B, 4>>,
) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    if !B::has_kernel::<GatedLinearAttentionKernel, COUNT, 2>() {
        return None;
    }
    let GatedLinearAttention { q, k, v, decay } = inputs;
    let ([batch, .., key], [.., value]) = (k.dims(), v.dims());
    let state = state.cloned().unwrap_or_else(|| zeros(q, [batch, inputs.heads(), key, value]));
    let [q, k, v, decay] = [q, k, v, decay].map(float);
    B::run(GatedLinearAttentionKernel, Inputs { q, k, decay, v, state: float(&state) }.into())
        .map(|[y, last]| (kernel::tensor(y), kernel::tensor(last)))
}

/// The operation with normalisers, where kernels can run.
pub fn counted_linear_attention<B: RunKernels>(
    inputs: &GatedLinearAttention<B>,
    state: Option<&(Tensor<B, 4>, Tensor<B, 3>)>,
) -> Option<Counted<B>> {
    if !B::has_kernel::<CountedKernel, COUNTED, 4>() || inputs.decay.dims()[3] != 1 {
        return None;
    }
    let GatedLinearAttention { q, k, v, decay } = inputs;
    let ([batch, .., key], [.., value], heads) = (k.dims(), v.dims(), inputs.heads());
    let (state, normaliser) =
        state.cloned().unwrap_or_else(|| (zeros(q, [batch, heads, key, value]), zeros(q, [batch, heads, key])));
    let [q, k, v, decay] = [q, k, v, decay].map(float);
    B::run(CountedKernel, [q, k, decay, v, float(&state), float(&normaliser)]).map(|[y, state, read, normaliser]| {
        Counted {
            y: kernel::tensor(y),
            read: kernel::tensor(read),
            state: kernel::tensor(state),
            normaliser: kernel::tensor(normaliser),
        }
    })
}
