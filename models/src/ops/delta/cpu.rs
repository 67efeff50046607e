//! The gated delta rule, forward and backward in one time loop each; memory as in [`wkv`](crate::ops::wkv::cpu).

use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, pack, tiles, transpose, unpack};
use crate::ops::cpu::{dims, gradients_of, tensor, values, with_simd};
use crate::ops::delta::DeltaRule;
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use crate::ops::zeros;
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Time steps between two matrices that are kept for the backward pass.
const CHUNK: usize = 16;

inputs! {
    /// The tensors that the rule reads, row-major; see [`recurrent`](crate::ops::delta::recurrent).
    pub struct Inputs {
        /// `[batch, seq, heads, size]`.
        q,
        /// `[batch, seq, heads, size]`.
        k,
        /// `[batch, seq, heads, size]`.
        v,
        /// `[batch, seq, heads]`.
        step,
        /// `[batch, seq, heads]`.
        decay,
        /// The matrices before, `[batch, heads, key, value]`.
        state,
    }
}

/// Tensors that [`DeltaKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// The rule on numbers.
#[derive(Debug, Clone, Copy)]
pub struct Delta<'a> {
    /// `[batch, seq, heads, size]`.
    pub shape: [usize; 4],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
}

/// The results of [`Delta::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, size]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// Kept for [`Delta::backward`]: matrices `[batch, heads, seq/CHUNK, value, key]`; empty if not requested.
    pub checkpoints: Vec<f32>,
}

impl<'a> Delta<'a> {
    fn units(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    /// Runs over time; `keep`: saves what the backward pass needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        let [_, seq, heads, size] = self.shape;
        let mut y = unwritten(self.inputs.q.len());
        let mut last = transpose(self.inputs.state, size, size);
        let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
        let mut checkpoints = unwritten(self.units() * chunks * size * size);
        let kept: Vec<&mut [f32]> = match chunks {
            0 => (0..self.units()).map(|_| Default::default()).collect(),
            _ => checkpoints.chunks_mut(chunks * size * size).collect(),
        };
        let units = (tiles(&mut y, seq, heads * size, size), last.par_chunks_mut(size * size), kept);
        units.into_par_iter().enumerate().for_each(|(unit, (y, matrix, checkpoints))| {
            with_simd(Forward { delta: self, unit, y, matrix, checkpoints });
        });
        Outputs { y, last: transpose(&last, size, size), checkpoints }
    }

    /// From the gradients of the outputs and of the last matrices (zero if `None`) to those of all inputs.
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Inputs<Vec<f32>> {
        let [_, seq, heads, size] = self.shape;
        let whole = || unwritten(self.inputs.q.len());
        let (mut dq, mut dk, mut dv) = (whole(), whole(), whole());
        let (mut dstep, mut ddecay) = (unwritten(self.inputs.step.len()), unwritten(self.inputs.step.len()));
        let mut dstate = match last {
            Some(last) => transpose(last, size, size),
            None => vec![0.0; self.units() * size * size],
        };
        let tile = |x| tiles(x, seq, heads * size, size);
        let outputs = (tile(&mut dq), tile(&mut dk), tile(&mut dv));
        let gates = (tiles(&mut dstep, seq, heads, 1), tiles(&mut ddecay, seq, heads, 1));
        let units = (outputs.into_par_iter(), gates.into_par_iter(), dstate.par_chunks_mut(size * size));
        units.into_par_iter().enumerate().for_each(|(unit, ((dq, dk, dv), (dstep, ddecay), dmatrix))| {
            with_simd(Backward { delta: self, unit, checkpoints, dy, dq, dk, dv, dstep, ddecay, dmatrix });
        });
        Inputs { q: dq, k: dk, v: dv, step: dstep, decay: ddecay, state: transpose(&dstate, size, size) }
    }

    /// One time step of a unit in a tensor like `q`.
    #[inline(always)]
    fn row(&self, x: &'a [f32], unit: usize, t: usize) -> &'a [f32] {
        let size = self.shape[3];
        &x[self.gate(unit, t) * size..][..size]
    }

    /// Where one time step of a unit is in a tensor like `step`.
    #[inline(always)]
    fn gate(&self, unit: usize, t: usize) -> usize {
        let [_, seq, heads, _] = self.shape;
        (unit / heads * seq + t) * heads + unit % heads
    }

    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, x: &'a [f32], unit: usize, t: usize, vectors: &mut [V<S>]) {
        pack(simd, self.row(x, unit, t), vectors, self.shape[3]);
    }
}

/// The operation on tensors: [`Inputs`] → outputs and last matrices.
#[derive(Debug, Clone, Copy)]
pub struct DeltaKernel;

impl DeltaKernel {
    fn of(inputs: &[FlexTensor; COUNT]) -> Delta<'_> {
        Delta { shape: dims(&inputs[0]), inputs: inputs.each_ref().map(values).into() }
    }
}

impl Kernel<COUNT, 2> for DeltaKernel {
    type Saved = ([FlexTensor; COUNT], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let Outputs { y, last, checkpoints } = Self::of(&inputs).forward(save);
        let outputs =
            [tensor(y, dims::<4>(&inputs[0])), tensor(last, dims::<4>(Inputs::from(inputs.each_ref()).state))];
        let length = checkpoints.len();
        (outputs, save.then(|| (inputs, tensor(checkpoints, [length]))))
    }

    fn backward(
        &self,
        (inputs, checkpoints): Self::Saved,
        [dy, last]: [Option<FlexTensor>; 2],
        _: [bool; COUNT],
    ) -> [Option<FlexTensor>; COUNT] {
        let Some(dy) = dy else { return Default::default() };
        let gradients = Self::of(&inputs).backward(values(&checkpoints), values(&dy), last.as_ref().map(values));
        gradients_of(&inputs, gradients)
    }
}

/// One head of one example.
struct Forward<'a> {
    delta: &'a Delta<'a>,
    unit: usize,
    y: Vec<&'a mut [f32]>,
    /// In: the matrix before. Out: the matrix after. `[value, key]`.
    matrix: &'a mut [f32],
    checkpoints: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { delta, unit, y, matrix, checkpoints } = self;
        let size = delta.shape[3];
        let zero = V::splat(simd, 0.0);
        let width = size.div_ceil(V::<S>::LANES);
        let mut state = vec![zero; size * width];
        pack(simd, matrix, &mut state, size);
        let (mut q, mut k) = (vec![zero; width], vec![zero; width]);
        for (t, y) in y.into_iter().enumerate() {
            if t % CHUNK == 0 && !checkpoints.is_empty() {
                unpack(&state, &mut checkpoints[t / CHUNK * size * size..][..size * size], size);
            }
            delta.load(simd, delta.inputs.q, unit, t, &mut q);
            delta.load(simd, delta.inputs.k, unit, t, &mut k);
            let (v, gate) = (delta.row(delta.inputs.v, unit, t), delta.gate(unit, t));
            let (step, decay) = (delta.inputs.step[gate], delta.inputs.decay[gate]);
            for ((y, &v), state) in y.iter_mut().zip(v).zip(state.chunks_exact_mut(width)) {
                write(state, &k, v, step, decay);
                *y = dot(state, &q);
            }
        }
        unpack(&state, matrix, size);
    }
}

#[inline(always)]
fn dot<S: Simd>(a: &[V<S>], b: &[V<S>]) -> f32 {
    let mut sum = V::splat(a[0].0, 0.0);
    for (a, b) in a.iter().zip(b) {
        sum = a.mul_add(*b, sum);
    }
    sum.sum()
}

/// One row (of one value) of S ← α·S + β·k·(v − kᵀ·α·S); gives kᵀ·S.
#[inline(always)]
fn write<S: Simd>(row: &mut [V<S>], k: &[V<S>], v: f32, step: f32, decay: f32) -> f32 {
    let simd = row[0].0;
    let read = dot(row, k);
    let write = V::splat(simd, step * (v - decay * read));
    let decay = V::splat(simd, decay);
    for (state, k) in row.iter_mut().zip(k) {
        *state = write.mul_add(*k, decay * *state);
    }
    read
}

/// One head of one example.
struct Backward<'a> {
    delta: &'a Delta<'a>,
    unit: usize,
    checkpoints: &'a [f32],
    dy: &'a [f32],
    dq: Vec<&'a mut [f32]>,
    dk: Vec<&'a mut [f32]>,
    dv: Vec<&'a mut [f32]>,
    dstep: Vec<&'a mut [f32]>,
    ddecay: Vec<&'a mut [f32]>,
    /// In: of the matrix after. Out: of the matrix before. `[value, key]`.
    dmatrix: &'a mut [f32],
}

/// A chunk of time steps, and the vectors of the step at hand.
struct Chunk<S: Simd> {
    /// Vectors of a row of a matrix.
    width: usize,
    /// The matrix before each step and after the last, `[CHUNK + 1, value, width vectors]`.
    states: Vec<V<S>>,
    /// The values that a step's key reads of the matrix before it, `[CHUNK, value]`.
    reads: Vec<f32>,
    /// The gradient of the matrix after the step, `[value, width vectors]`.
    dstate: Vec<V<S>>,
    q: Vec<V<S>>,
    k: Vec<V<S>>,
    dq: Vec<V<S>>,
    dk: Vec<V<S>>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let [_, seq, _, size] = self.delta.shape;
        let width = size.div_ceil(V::<S>::LANES);
        let vectors = |count: usize| vec![V::splat(simd, 0.0); count];
        let mut chunk = Chunk {
            width,
            states: vectors((CHUNK + 1) * size * width),
            reads: vec![0.0; CHUNK * size],
            dstate: vectors(size * width),
            q: vectors(width),
            k: vectors(width),
            dq: vectors(width),
            dk: vectors(width),
        };
        pack(simd, self.dmatrix, &mut chunk.dstate, size);
        for index in (0..seq.div_ceil(CHUNK)).rev() {
            let times = index * CHUNK..seq.min((index + 1) * CHUNK);
            self.recompute(simd, &mut chunk, index, times.clone());
            for (i, t) in times.enumerate().rev() {
                self.step(simd, &mut chunk, i, t);
            }
        }
        unpack(&chunk.dstate, self.dmatrix, size);
    }
}

impl Backward<'_> {
    /// The matrices of a chunk from the one before it.
    #[inline(always)]
    fn recompute<S: Simd>(&self, simd: S, chunk: &mut Chunk<S>, index: usize, times: Range<usize>) {
        let (delta, unit) = (self.delta, self.unit);
        let [_, seq, _, size] = delta.shape;
        let Chunk { width, states, reads, k, .. } = chunk;
        let width = *width;
        let checkpoint = (unit * seq.div_ceil(CHUNK) + index) * size * size;
        pack(simd, &self.checkpoints[checkpoint..][..size * size], &mut states[..size * width], size);
        for (i, t) in times.enumerate() {
            delta.load(simd, delta.inputs.k, unit, t, k);
            let (v, gate) = (delta.row(delta.inputs.v, unit, t), delta.gate(unit, t));
            let (before, after) = states[i * size * width..][..2 * size * width].split_at_mut(size * width);
            after.copy_from_slice(before);
            for ((row, &v), read) in after.chunks_exact_mut(width).zip(v).zip(&mut reads[i * size..]) {
                *read = write(row, k, v, delta.inputs.step[gate], delta.inputs.decay[gate]);
            }
        }
    }

    /// Back through step `i` of the chunk, at time `t`.
    #[inline(always)]
    fn step<S: Simd>(&mut self, simd: S, chunk: &mut Chunk<S>, i: usize, t: usize) {
        let (delta, unit, zero) = (self.delta, self.unit, V::splat(simd, 0.0));
        let size = delta.shape[3];
        let Chunk { width, states, reads, dstate, q, k, dq, dk } = chunk;
        let width = *width;
        delta.load(simd, delta.inputs.q, unit, t, q);
        delta.load(simd, delta.inputs.k, unit, t, k);
        let (v, dy, gate) = (delta.row(delta.inputs.v, unit, t), delta.row(self.dy, unit, t), delta.gate(unit, t));
        let (step, decay) = (delta.inputs.step[gate], delta.inputs.decay[gate]);
        dq.fill(zero);
        dk.fill(zero);
        let (mut dstep, mut ddecay, mut ddecay_sum) = (0.0, 0.0, zero);
        let (reads, dv) = (&reads[i * size..][..size], &mut self.dv[t][..size]);
        let (q, k, dq, dk) = (&q[..width], &k[..width], &mut dq[..width], &mut dk[..width]);
        for value in 0..size {
            let before = &states[(i * size + value) * width..][..width];
            let after = &states[((i + 1) * size + value) * width..][..width];
            let dstate = &mut dstate[value * width..][..width];
            // y = qᵀ·S
            let dy = V::splat(simd, dy[value]);
            for w in 0..width {
                dstate[w] = dy.mul_add(q[w], dstate[w]);
                dq[w] = dy.mul_add(after[w], dq[w]);
            }
            // S = α·S' + k·w, w = β·(v − α·kᵀ·S')
            let dwrite = dot(dstate, k);
            let error = v[value] - decay * reads[value];
            dv[value] = step * dwrite;
            dstep += dwrite * error;
            ddecay -= step * dwrite * reads[value];
            let (write, dread) = (V::splat(simd, step * error), V::splat(simd, -step * decay * dwrite));
            for w in 0..width {
                dk[w] = dstate[w].mul_add(write, before[w].mul_add(dread, dk[w]));
                ddecay_sum = dstate[w].mul_add(before[w], ddecay_sum);
                dstate[w] = dread.mul_add(k[w], dstate[w] * decay);
            }
        }
        unpack(dq, self.dq[t], size);
        unpack(dk, self.dk[t], size);
        self.dstep[t][0] = dstep;
        self.ddecay[t][0] = ddecay + ddecay_sum.sum();
    }
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // outputs and state
pub fn delta_rule<B: RunKernels>(
    inputs: &DeltaRule<B>,
    state: Option<&Tensor<B, 4>>,
) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    let DeltaRule { q, k, v, step, decay } = inputs;
    let [batch, heads, _, size] = q.dims();
    let state = state.cloned().unwrap_or_else(|| zeros(q, [batch, heads, size, size]));
    let [q, k, v] = [q, k, v].map(|x| float(&x.clone().swap_dims(1, 2)));
    let [step, decay] = [step, decay].map(|x| float(&x.clone().swap_dims(1, 2)));
    let inputs = Inputs { q, k, v, step, decay, state: float(&state) };
    B::run(DeltaKernel, inputs.into())
        .map(|[y, last]| (kernel::tensor::<B, 4>(y).swap_dims(1, 2), kernel::tensor(last)))
}
