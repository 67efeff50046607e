//! The gated delta rule, forward and backward in one time loop each; memory as in [`wkv`](crate::ops::wkv::cpu).

use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, dot, pack, tiles, transpose, unpack};
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
        /// `[batch, seq, heads, key]`.
        q,
        /// `[batch, seq, heads, key]`.
        k,
        /// `[batch, seq, heads, value]`.
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
    /// `[batch, seq, heads, key, value]`: the tensors' axes, and the sizes of a key and of a value.
    pub shape: [usize; 5],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
}

/// The results of [`Delta::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, value]`.
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
        let [_, seq, heads, key, value] = self.shape;
        let mut y = unwritten(self.inputs.v.len());
        let mut last = transpose(self.inputs.state, key, value);
        let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
        let mut checkpoints = unwritten(self.units() * chunks * key * value);
        let kept: Vec<&mut [f32]> = match chunks {
            0 => (0..self.units()).map(|_| Default::default()).collect(),
            _ => checkpoints.chunks_mut(chunks * key * value).collect(),
        };
        let units = (tiles(&mut y, seq, heads * value, value), last.par_chunks_mut(key * value), kept);
        units.into_par_iter().enumerate().for_each(|(unit, (y, matrix, checkpoints))| {
            with_simd(Forward { delta: self, unit, y, matrix, checkpoints });
        });
        Outputs { y, last: transpose(&last, value, key), checkpoints }
    }

    /// From the gradients of the outputs and of the last matrices (zero if `None`) to those of all inputs.
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Inputs<Vec<f32>> {
        let [_, seq, heads, key, value] = self.shape;
        let (mut dq, mut dk) = (unwritten(self.inputs.q.len()), unwritten(self.inputs.k.len()));
        let mut dv = unwritten(self.inputs.v.len());
        let (mut dstep, mut ddecay) = (unwritten(self.inputs.step.len()), unwritten(self.inputs.step.len()));
        let mut dstate = match last {
            Some(last) => transpose(last, key, value),
            None => vec![0.0; self.units() * key * value],
        };
        let tile = |x, size| tiles(x, seq, heads * size, size);
        let outputs = (tile(&mut dq, key), tile(&mut dk, key), tile(&mut dv, value));
        let gates = (tiles(&mut dstep, seq, heads, 1), tiles(&mut ddecay, seq, heads, 1));
        let units = (outputs.into_par_iter(), gates.into_par_iter(), dstate.par_chunks_mut(key * value));
        units.into_par_iter().enumerate().for_each(|(unit, ((dq, dk, dv), (dstep, ddecay), dmatrix))| {
            with_simd(Backward { delta: self, unit, checkpoints, dy, dq, dk, dv, dstep, ddecay, dmatrix });
        });
        Inputs { q: dq, k: dk, v: dv, step: dstep, decay: ddecay, state: transpose(&dstate, value, key) }
    }

    /// One time step of a unit in a tensor like `v`.
    #[inline(always)]
    fn values(&self, x: &'a [f32], unit: usize, t: usize) -> &'a [f32] {
        let value = self.shape[4];
        &x[self.gate(unit, t) * value..][..value]
    }

    /// Where one time step of a unit is in a tensor like `step`.
    #[inline(always)]
    fn gate(&self, unit: usize, t: usize) -> usize {
        let [_, seq, heads, ..] = self.shape;
        (unit / heads * seq + t) * heads + unit % heads
    }

    /// One time step of a unit in a tensor like `k`, in vectors.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, x: &'a [f32], unit: usize, t: usize, vectors: &mut [V<S>]) {
        let key = self.shape[3];
        pack(simd, &x[self.gate(unit, t) * key..][..key], vectors, key);
    }
}

/// The operation on tensors: [`Inputs`] → outputs and last matrices.
#[derive(Debug, Clone, Copy)]
pub struct DeltaKernel;

impl DeltaKernel {
    fn of(inputs: &[FlexTensor; COUNT]) -> Delta<'_> {
        let tensors = Inputs::from(inputs.each_ref());
        let ([batch, seq, heads, key], [.., value]) = (dims(tensors.k), dims::<4>(tensors.v));
        Delta { shape: [batch, seq, heads, key, value], inputs: inputs.each_ref().map(values).into() }
    }
}

impl Kernel<COUNT, 2> for DeltaKernel {
    type Saved = ([FlexTensor; COUNT], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let Outputs { y, last, checkpoints } = Self::of(&inputs).forward(save);
        let tensors = Inputs::from(inputs.each_ref());
        let outputs = [tensor(y, dims::<4>(tensors.v)), tensor(last, dims::<4>(tensors.state))];
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
        let [.., key, value] = delta.shape;
        let zero = V::splat(simd, 0.0);
        let width = key.div_ceil(V::<S>::LANES);
        let mut state = vec![zero; value * width];
        pack(simd, matrix, &mut state, key);
        let (mut q, mut k) = (vec![zero; width], vec![zero; width]);
        for (t, y) in y.into_iter().enumerate() {
            if t % CHUNK == 0 && !checkpoints.is_empty() {
                unpack(&state, &mut checkpoints[t / CHUNK * key * value..][..key * value], key);
            }
            delta.load(simd, delta.inputs.q, unit, t, &mut q);
            delta.load(simd, delta.inputs.k, unit, t, &mut k);
            let (v, gate) = (delta.values(delta.inputs.v, unit, t), delta.gate(unit, t));
            let (step, decay) = (delta.inputs.step[gate], delta.inputs.decay[gate]);
            for ((y, &v), state) in y.iter_mut().zip(v).zip(state.chunks_exact_mut(width)) {
                write(state, &k, v, step, decay);
                *y = dot(state, &q);
            }
        }
        unpack(&state, matrix, key);
    }
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
        let [_, seq, _, key, value] = self.delta.shape;
        let width = key.div_ceil(V::<S>::LANES);
        let vectors = |count: usize| vec![V::splat(simd, 0.0); count];
        let mut chunk = Chunk {
            width,
            states: vectors((CHUNK + 1) * value * width),
            reads: vec![0.0; CHUNK * value],
            dstate: vectors(value * width),
            q: vectors(width),
            k: vectors(width),
            dq: vectors(width),
            dk: vectors(width),
        };
        pack(simd, self.dmatrix, &mut chunk.dstate, key);
        for index in (0..seq.div_ceil(CHUNK)).rev() {
            let times = index * CHUNK..seq.min((index + 1) * CHUNK);
            self.recompute(simd, &mut chunk, index, times.clone());
            for (i, t) in times.enumerate().rev() {
                self.step(simd, &mut chunk, i, t);
            }
        }
        unpack(&chunk.dstate, self.dmatrix, key);
    }
}

impl Backward<'_> {
    /// The matrices of a chunk from the one before it.
    #[inline(always)]
    fn recompute<S: Simd>(&self, simd: S, chunk: &mut Chunk<S>, index: usize, times: Range<usize>) {
        let (delta, unit) = (self.delta, self.unit);
        let [_, seq, _, key, value] = delta.shape;
        let Chunk { width, states, reads, k, .. } = chunk;
        let width = *width;
        let checkpoint = (unit * seq.div_ceil(CHUNK) + index) * key * value;
        pack(simd, &self.checkpoints[checkpoint..][..key * value], &mut states[..value * width], key);
        for (i, t) in times.enumerate() {
            delta.load(simd, delta.inputs.k, unit, t, k);
            let (v, gate) = (delta.values(delta.inputs.v, unit, t), delta.gate(unit, t));
            let (before, after) = states[i * value * width..][..2 * value * width].split_at_mut(value * width);
            after.copy_from_slice(before);
            for ((row, &v), read) in after.chunks_exact_mut(width).zip(v).zip(&mut reads[i * value..]) {
                *read = write(row, k, v, delta.inputs.step[gate], delta.inputs.decay[gate]);
            }
        }
    }

    /// Back through step `i` of the chunk, at time `t`.
    #[inline(always)]
    fn step<S: Simd>(&mut self, simd: S, chunk: &mut Chunk<S>, i: usize, t: usize) {
        let (delta, unit, zero) = (self.delta, self.unit, V::splat(simd, 0.0));
        let [.., key, values] = delta.shape;
        let Chunk { width, states, reads, dstate, q, k, dq, dk } = chunk;
        let width = *width;
        delta.load(simd, delta.inputs.q, unit, t, q);
        delta.load(simd, delta.inputs.k, unit, t, k);
        let (v, dy) = (delta.values(delta.inputs.v, unit, t), delta.values(self.dy, unit, t));
        let gate = delta.gate(unit, t);
        let (step, decay) = (delta.inputs.step[gate], delta.inputs.decay[gate]);
        dq.fill(zero);
        dk.fill(zero);
        let (mut dstep, mut ddecay, mut ddecay_sum) = (0.0, 0.0, zero);
        let (reads, dv) = (&reads[i * values..][..values], &mut self.dv[t][..values]);
        let (q, k, dq, dk) = (&q[..width], &k[..width], &mut dq[..width], &mut dk[..width]);
        for value in 0..values {
            let before = &states[(i * values + value) * width..][..width];
            let after = &states[((i + 1) * values + value) * width..][..width];
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
        unpack(dq, self.dq[t], key);
        unpack(dk, self.dk[t], key);
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
    let ([batch, heads, _, key], [.., value]) = (k.dims(), v.dims());
    let state = state.cloned().unwrap_or_else(|| zeros(q, [batch, heads, key, value]));
    let [q, k, v] = [q, k, v].map(|x| float(&x.clone().swap_dims(1, 2)));
    let [step, decay] = [step, decay].map(|x| float(&x.clone().swap_dims(1, 2)));
    let inputs = Inputs { q, k, v, step, decay, state: float(&state) };
    B::run(DeltaKernel, inputs.into())
        .map(|[y, last]| (kernel::tensor::<B, 4>(y).swap_dims(1, 2), kernel::tensor(last)))
}
