//! A chunk of time steps at a time by products of matrices (Dao and Gu, arXiv 2405.21060, section 6).
//!
//! Inside a chunk, D_sr is the product of the decays after step s up to step r, zero where r < s; g_r that from the start of
//! the chunk up to r. With the state S before it, Y = (KQᵀ⊙wD)ᵀ·V + g⊙(Q·S), and the state after it is
//! g_end·S + Kᵀ·(w_s·D_s,end⊙V). A skip is on the diagonal of KQᵀ⊙wD. The normaliser is a further column of S, where all values
//! are 1: sums of the rows of K, and of KQᵀ⊙wD.
//!
//! Decays may be zero: nothing divides by them. The gradient of decay t is that of the state after step t times the state
//! before it, Σ_{r≥t} D_tr·Σ_{s<t} D_s,t−1·w_s·(k_s·q_r)(v_s·dy_r), where the state before the chunk counts as a step before
//! all others, and the gradient of the state after it as one behind them. The inner sum for all r follows from that of t − 1.
//!
//! Heads that share queries and keys are one unit of work: KQᵀ is computed once, and the gradients of Q and K are sums over
//! the heads before they are multiplied with K and Q.

mod backward;
mod forward;
mod group;

use super::{Divisor, Normalised, Ssd};
use crate::ops::cpu::memory::by_unit;
use crate::ops::cpu::simd::{sum_blocks, sum_neighbours, tiles};
use crate::ops::cpu::{dims, gradients_of, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use crate::ops::zeros;
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use group::{CHUNK, Group};
use rayon::prelude::*;

inputs! {
    /// The tensors that the operation reads, row-major; see [`Ssd`].
    pub struct Inputs {
        /// `[batch, seq, heads or a divisor, key]`.
        q,
        /// As q.
        k,
        /// `[batch, seq, heads]`.
        decay,
        /// `[batch, seq, heads]`.
        write,
        /// `[batch, seq, heads, value]`.
        v,
        /// The matrices before, `[batch, heads, key, value]`.
        state,
    }
}

/// Tensors of [`Inputs`].
const COUNT: usize = Inputs::COUNT;

/// The operation on numbers.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a> {
    /// `[batch, seq, heads, key, value]`: the tensors' axes, and the sizes of a key and of a value.
    pub shape: [usize; 5],
    /// Heads of q and k.
    pub sharing: usize,
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
    /// What becomes an output.
    pub mode: Mode<'a>,
}

/// What becomes an output.
#[derive(Debug, Clone, Copy)]
pub enum Mode<'a> {
    /// What is read of the matrix, and the value times this, `[heads]`.
    Skip(&'a [f32]),
    /// What is read of the matrix, divided by what is read of the normaliser.
    Normalised {
        /// The normalisers before, `[batch, heads, key]`.
        counts: &'a [f32],
        /// The least that the divisor is before ε is added, `[batch, seq, heads]`.
        least: &'a [f32],
        /// ε.
        epsilon: f32,
    },
}

/// The results of [`Numbers::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, value]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// The normalisers after, `[batch, heads, key]`; empty without.
    pub counts: Vec<f32>,
    /// What was read of the normalisers, `[batch, seq, heads]`; empty without.
    pub read: Vec<f32>,
    /// The states before each chunk; empty if not requested.
    pub checkpoints: Vec<f32>,
}

/// What [`Numbers::backward`] reads.
#[derive(Debug, Clone, Copy)]
pub struct OutputGradients<'a> {
    /// The gradients of the outputs.
    pub y: &'a [f32],
    /// Of the matrices after; zero where there are none.
    pub last: Option<&'a [f32]>,
    /// Of the normalisers after; likewise.
    pub counts: Option<&'a [f32]>,
    /// From [`Outputs`]: the outputs, and what was read of the normalisers. Read only where there are normalisers.
    pub outputs: [&'a [f32]; 2],
    /// From [`Outputs`].
    pub checkpoints: &'a [f32],
}

/// The results of [`Numbers::backward`].
#[derive(Debug)]
pub struct Gradients {
    /// Of the inputs.
    pub inputs: Inputs<Vec<f32>>,
    /// Of the skip; empty if there is none.
    pub skip: Vec<f32>,
    /// Of the normalisers before, and of the least that the divisors are; empty if there are none.
    pub divisor: [Vec<f32>; 2],
}

impl<'a> Numbers<'a> {
    /// The normalisers before, if there are any.
    fn counts(&self) -> Option<&'a [f32]> {
        match self.mode {
            Mode::Skip(_) => None,
            Mode::Normalised { counts, .. } => Some(counts),
        }
    }

    /// Runs over the chunks; `keep`: saves what the backward pass needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        let [batch, seq, heads, key, value] = self.shape;
        let (members, counted) = (self.members(), usize::from(self.counts().is_some()));
        let groups = heads / members;
        let kept = if keep { seq.div_ceil(CHUNK) * self.checkpoint() } else { 0 };
        let sizes = [seq * value, key * value, key * counted, seq * counted, kept].map(|size| heads * size);
        let [y, last, counts, read, checkpoints] = by_unit(batch, sizes, |example, [y, last, counts, read, kept]| {
            let outputs = (by_step(y, groups, seq), by_step(read, groups, seq));
            let states = (pieces(last, groups), pieces(counts, groups), pieces(kept, groups));
            let units = (outputs.0, outputs.1, states.0, states.1, states.2).into_par_iter().enumerate();
            let scratch = || forward::Scratch::new(self);
            units.for_each_init(scratch, |scratch, (group, (y, read, last, counts, checkpoints))| {
                let group = Group { numbers: self, example, first: group * members, members };
                with_simd(forward::Forward { group, scratch, y, read, last, counts, checkpoints });
            });
        });
        Outputs { y, last, counts, read, checkpoints }
    }

    /// From the gradients of the outputs to those of all inputs.
    pub fn backward(&self, given: OutputGradients<'_>) -> Gradients {
        let [batch, seq, heads, key, value] = self.shape;
        let (members, counted) = (self.members(), usize::from(self.counts().is_some()));
        let groups = heads / members;
        let keys = groups * seq * key;
        let per_head = [seq, seq, seq * value, key * value, 1 - counted, key * counted, seq * counted];
        let [decay, write, v, state, skip, counts, least] = per_head.map(|size| heads * size);
        let sizes = [keys, keys, decay, write, v, state, skip, counts, least];
        let gradients = by_unit(batch, sizes, |example, gradients| {
            let [q, k, decay, write, v, state, skip, counts, least] = gradients;
            let [q, k, decay, write, v, least] = [q, k, decay, write, v, least].map(|x| by_step(x, groups, seq));
            let [state, skip, counts] = [state, skip, counts].map(|x| pieces(x, groups));
            let units = (q, k, decay, write, v, least, state, (skip, counts)).into_par_iter().enumerate();
            let scratch = || backward::Scratch::new(self);
            units.for_each_init(scratch, |scratch, (group, (dq, dk, ddecay, dwrite, dv, dleast, dstate, rest))| {
                let group = Group { numbers: self, example, first: group * members, members };
                let (dskip, dcounts) = rest;
                let out = backward::Outputs { dq, dk, ddecay, dwrite, dv, dleast, dstate, dskip, dcounts };
                with_simd(backward::Backward { group, scratch, given, out });
            });
        });
        let [q, k, decay, write, v, state, skip, counts, least] = gradients;
        let apart = groups / self.sharing; // groups whose heads share queries and keys
        let [q, k] = [q, k].map(|gradient| if apart > 1 { sum_neighbours(&gradient, key, apart) } else { gradient });
        let skip = if skip.is_empty() { skip } else { sum_blocks(&skip, heads) };
        Gradients { inputs: Inputs { q, k, decay, write, v, state }, skip, divisor: [counts, least] }
    }
}

/// Of every group, its numbers of each time step: of `[seq, groups, …]`. No steps if there is nothing.
fn by_step(x: &mut [f32], groups: usize, seq: usize) -> Vec<Vec<&mut [f32]>> {
    match x.len() / (groups * seq).max(1) {
        0 => (0..groups).map(|_| Vec::new()).collect(),
        width => tiles(x, seq, groups * width, width),
    }
}

/// A piece for each group, empty if there is nothing.
fn pieces(x: &mut [f32], groups: usize) -> Vec<&mut [f32]> {
    match x.len() / groups {
        0 => (0..groups).map(|_| Default::default()).collect(),
        size => x.chunks_mut(size).collect(),
    }
}

/// The operation of these tensors.
fn numbers<'a>(inputs: &'a [FlexTensor; COUNT], mode: Mode<'a>) -> Numbers<'a> {
    let tensors = Inputs::from(inputs.each_ref());
    let ([batch, heads, key, value], [_, seq, sharing, _]) = (dims(tensors.state), dims(tensors.q));
    Numbers { shape: [batch, seq, heads, key, value], sharing, inputs: inputs.each_ref().map(values).into(), mode }
}

/// [`SsdOp::ssd`](super::SsdOp::ssd) on tensors: [`Inputs`] and the skip → outputs and last matrices.
#[derive(Debug, Clone, Copy)]
pub struct SsdKernel;

/// [`SsdOp::normalised_ssd`](super::SsdOp::normalised_ssd) on tensors: [`Inputs`], normalisers before and least divisors →
/// outputs, last matrices and last normalisers.
#[derive(Debug, Clone, Copy)]
pub struct NormalisedSsdKernel {
    /// Added to every divisor.
    pub epsilon: f32,
}

/// A vector as a tensor.
fn vector(numbers: Vec<f32>) -> FlexTensor {
    let length = numbers.len();
    tensor(numbers, [length])
}

impl Kernel<{ COUNT + 1 }, 2> for SsdKernel {
    type Saved = ([FlexTensor; COUNT + 1], FlexTensor);

    fn forward(
        &self,
        [q, k, decay, write, v, state, skip]: [FlexTensor; COUNT + 1],
        save: bool,
    ) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let inputs = [q, k, decay, write, v, state];
        let Outputs { y, last, checkpoints, .. } = numbers(&inputs, Mode::Skip(values(&skip))).forward(save);
        let [q, k, decay, write, v, state] = inputs;
        let outputs = [like(&v, y), like(&state, last)];
        (outputs, save.then(|| ([q, k, decay, write, v, state, skip], vector(checkpoints))))
    }

    fn backward(
        &self,
        ([q, k, decay, write, v, state, skip], checkpoints): Self::Saved,
        [y, last]: [Option<FlexTensor>; 2],
        _: [bool; COUNT + 1],
    ) -> [Option<FlexTensor>; COUNT + 1] {
        let Some(y) = y else { return Default::default() };
        let given = OutputGradients {
            y: values(&y),
            last: last.as_ref().map(values),
            counts: None,
            outputs: [&[]; 2],
            checkpoints: values(&checkpoints),
        };
        let inputs = [q, k, decay, write, v, state];
        let gradients = numbers(&inputs, Mode::Skip(values(&skip))).backward(given);
        let [q, k, decay, write, v, state] = gradients_of(&inputs, gradients.inputs);
        [q, k, decay, write, v, state, Some(like(&skip, gradients.skip))]
    }
}

impl Kernel<{ COUNT + 2 }, 3> for NormalisedSsdKernel {
    /// Inputs; outputs, what was read of the normalisers, and checkpoints.
    type Saved = ([FlexTensor; COUNT + 2], [FlexTensor; 3]);

    fn forward(
        &self,
        [q, k, decay, write, v, state, counts, least]: [FlexTensor; COUNT + 2],
        save: bool,
    ) -> ([FlexTensor; 3], Option<Self::Saved>) {
        let inputs = [q, k, decay, write, v, state];
        let mode = Mode::Normalised { counts: values(&counts), least: values(&least), epsilon: self.epsilon };
        let outputs = numbers(&inputs, mode).forward(save);
        let [q, k, decay, write, v, state] = inputs;
        let y = like(&v, outputs.y);
        let kept = save.then(|| [y.clone(), vector(outputs.read), vector(outputs.checkpoints)]);
        let outputs = [y, like(&state, outputs.last), like(&counts, outputs.counts)];
        (outputs, kept.map(|kept| ([q, k, decay, write, v, state, counts, least], kept)))
    }

    fn backward(
        &self,
        ([q, k, decay, write, v, state, counts, least], [outputs, read, checkpoints]): Self::Saved,
        [y, last, last_counts]: [Option<FlexTensor>; 3],
        _: [bool; COUNT + 2],
    ) -> [Option<FlexTensor>; COUNT + 2] {
        let Some(y) = y else { return Default::default() };
        let given = OutputGradients {
            y: values(&y),
            last: last.as_ref().map(values),
            counts: last_counts.as_ref().map(values),
            outputs: [values(&outputs), values(&read)],
            checkpoints: values(&checkpoints),
        };
        let inputs = [q, k, decay, write, v, state];
        let mode = Mode::Normalised { counts: values(&counts), least: values(&least), epsilon: self.epsilon };
        let gradients = numbers(&inputs, mode).backward(given);
        let [q, k, decay, write, v, state] = gradients_of(&inputs, gradients.inputs);
        let [dcounts, dleast] = gradients.divisor;
        [q, k, decay, write, v, state, Some(like(&counts, dcounts)), Some(like(&least, dleast))]
    }
}

/// The tensors and a state of zeros if there is none.
fn primitives<B: RunKernels>(
    inputs: &Ssd<B>,
    state: Option<&Tensor<B, 4>>,
) -> Inputs<burn::tensor::ops::FloatTensor<B>> {
    let Ssd { q, k, v, decay, write } = inputs;
    let ([batch, .., key], [_, _, heads, value]) = (k.dims(), v.dims());
    let state = state.cloned().unwrap_or_else(|| zeros(q, [batch, heads, key, value]));
    let [q, k, v] = [q, k, v].map(float);
    Inputs { q, k, decay: float(decay), write: float(write), v, state: float(&state) }
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // outputs and state
pub fn ssd<B: RunKernels>(
    inputs: &Ssd<B>,
    skip: &Tensor<B, 1>,
    state: Option<&Tensor<B, 4>>,
) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    if !B::has_kernel::<SsdKernel, { COUNT + 1 }, 2>() {
        return None;
    }
    let Inputs { q, k, decay, write, v, state } = primitives(inputs, state);
    B::run(SsdKernel, [q, k, decay, write, v, state, float(skip)])
        .map(|[y, last]| (kernel::tensor(y), kernel::tensor(last)))
}

/// The operation with a normaliser, where kernels can run.
pub fn normalised_ssd<B: RunKernels>(
    inputs: &Ssd<B>,
    divisor: &Divisor<B>,
    state: Option<&(Tensor<B, 4>, Tensor<B, 3>)>,
) -> Option<Normalised<B>> {
    if !B::has_kernel::<NormalisedSsdKernel, { COUNT + 2 }, 3>() {
        return None;
    }
    let ([batch, .., key], heads) = (inputs.k.dims(), inputs.v.dims()[2]);
    let counts = state.map_or_else(|| zeros(&inputs.q, [batch, heads, key]), |(_, counts)| counts.clone());
    let Inputs { q, k, decay, write, v, state } = primitives(inputs, state.map(|(state, _)| state));
    let kernel = NormalisedSsdKernel { epsilon: divisor.epsilon };
    let tensors = [q, k, decay, write, v, state, float(&counts), float(&divisor.least)];
    B::run(kernel, tensors).map(|[y, state, normaliser]| Normalised {
        y: kernel::tensor(y),
        state: kernel::tensor(state),
        normaliser: kernel::tensor(normaliser),
    })
}
