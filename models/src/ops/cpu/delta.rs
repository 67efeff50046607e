//! The gated delta rule, forward and backward in one sweep over time each; memory as in [`wkv`](super::wkv).

use super::simd::{V, pack, tiles, transpose, unpack};
use super::{dims, like, tensor, values, with_simd};
use crate::ops::delta::DeltaRule;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use crate::ops::zeros;
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Time steps between two matrices that are kept for the way back.
const CHUNK: usize = 16;

/// What the rule reads, row-major; see [`recurrent`](crate::ops::delta::recurrent).
#[derive(Debug, Clone, Copy)]
pub struct Delta<'a> {
    /// `[batch, seq, heads, size]`.
    pub shape: [usize; 4],
    /// `[batch, seq, heads, size]`.
    pub q: &'a [f32],
    /// `[batch, seq, heads, size]`.
    pub k: &'a [f32],
    /// `[batch, seq, heads, size]`.
    pub v: &'a [f32],
    /// `[batch, seq, heads]`.
    pub step: &'a [f32],
    /// `[batch, seq, heads]`.
    pub decay: &'a [f32],
    /// The matrices before, `[batch, heads, key, value]`; zero if `None`.
    pub state: Option<&'a [f32]>,
}

/// What [`Delta::forward`] gives.
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, size]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// What [`Delta::backward`] needs: matrices `[batch, heads, seq/CHUNK, value, key]`; empty if not asked for.
    pub checkpoints: Vec<f32>,
}

/// The gradient of each field of [`Delta`], of its shape.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Gradients {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub step: Vec<f32>,
    pub decay: Vec<f32>,
    pub state: Vec<f32>,
}

impl<'a> Delta<'a> {
    fn units(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    /// Runs over time; `keep` what the way back needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        let [_, seq, heads, size] = self.shape;
        let mut y = vec![0.0; self.q.len()];
        let mut last = match self.state {
            Some(state) => transpose(state, size, size),
            None => vec![0.0; self.units() * size * size],
        };
        let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
        let mut checkpoints = vec![0.0; self.units() * chunks * size * size];
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

    /// From the gradients of the outputs and of the last matrices (zero if `None`) to those of everything read.
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Gradients {
        let [_, seq, heads, size] = self.shape;
        let whole = || vec![0.0; self.q.len()];
        let (mut dq, mut dk, mut dv) = (whole(), whole(), whole());
        let (mut dstep, mut ddecay) = (vec![0.0; self.step.len()], vec![0.0; self.step.len()]);
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
        Gradients { q: dq, k: dk, v: dv, step: dstep, decay: ddecay, state: transpose(&dstate, size, size) }
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

/// The operation on tensors: the fields of [`Delta`] in their order → outputs and last matrices.
#[derive(Debug, Clone, Copy)]
pub struct DeltaKernel;

impl DeltaKernel {
    fn of(inputs: &[FlexTensor; 6]) -> Delta<'_> {
        let shape = dims(&inputs[0]);
        let [q, k, v, step, decay, state] = inputs.each_ref().map(values);
        Delta { shape, q, k, v, step, decay, state: Some(state) }
    }
}

impl Kernel<6, 2> for DeltaKernel {
    type Saved = ([FlexTensor; 6], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; 6], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let Outputs { y, last, checkpoints } = Self::of(&inputs).forward(save);
        let outputs = [tensor(y, dims::<4>(&inputs[0])), tensor(last, dims::<4>(&inputs[5]))];
        let length = checkpoints.len();
        (outputs, save.then(|| (inputs, tensor(checkpoints, [length]))))
    }

    fn backward(
        &self,
        (inputs, checkpoints): Self::Saved,
        [dy, last]: [Option<FlexTensor>; 2],
        _: [bool; 6],
    ) -> [Option<FlexTensor>; 6] {
        let Some(dy) = dy else { return Default::default() };
        let delta = Self::of(&inputs);
        let Gradients { q, k, v, step, decay, state } =
            delta.backward(values(&checkpoints), values(&dy), last.as_ref().map(values));
        let mut gradients = [q, k, v, step, decay, state].into_iter();
        inputs.each_ref().map(|input| Some(like(input, gradients.next()?)))
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
            delta.load(simd, delta.q, unit, t, &mut q);
            delta.load(simd, delta.k, unit, t, &mut k);
            let (v, gate) = (delta.row(delta.v, unit, t), delta.gate(unit, t));
            let (step, decay) = (delta.step[gate], delta.decay[gate]);
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

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { delta, unit, checkpoints, dy, mut dq, mut dk, mut dv, mut dstep, mut ddecay, dmatrix } = self;
        let [_, seq, _, size] = delta.shape;
        let chunks = seq.div_ceil(CHUNK);
        let width = size.div_ceil(V::<S>::LANES);
        let zero = V::splat(simd, 0.0);
        let mut dstate = vec![zero; size * width];
        pack(simd, dmatrix, &mut dstate, size);
        // Before each time step of a chunk: the matrix, and what the step's key reads of it.
        let (mut states, mut reads) = (vec![zero; (CHUNK + 1) * size * width], vec![0.0; CHUNK * size]);
        let (mut q, mut k) = (vec![zero; width], vec![zero; width]);
        let (mut dq_sum, mut dk_sum) = (vec![zero; width], vec![zero; width]);
        for chunk in (0..chunks).rev() {
            let start = chunk * CHUNK;
            let length = CHUNK.min(seq - start);
            let checkpoint = &checkpoints[(unit * chunks + chunk) * size * size..][..size * size];
            pack(simd, checkpoint, &mut states[..size * width], size);
            for i in 0..length {
                delta.load(simd, delta.k, unit, start + i, &mut k);
                let (v, gate) = (delta.row(delta.v, unit, start + i), delta.gate(unit, start + i));
                let (before, after) = states[i * size * width..][..2 * size * width].split_at_mut(size * width);
                after.copy_from_slice(before);
                for ((row, &v), read) in after.chunks_exact_mut(width).zip(v).zip(&mut reads[i * size..]) {
                    *read = write(row, &k, v, delta.step[gate], delta.decay[gate]);
                }
            }
            for i in (0..length).rev() {
                let t = start + i;
                delta.load(simd, delta.q, unit, t, &mut q);
                delta.load(simd, delta.k, unit, t, &mut k);
                let (v, dy, gate) = (delta.row(delta.v, unit, t), delta.row(dy, unit, t), delta.gate(unit, t));
                let (step, decay) = (delta.step[gate], delta.decay[gate]);
                dq_sum.fill(zero);
                dk_sum.fill(zero);
                let (mut dstep_t, mut ddecay_t, mut ddecay_sum) = (0.0, 0.0, zero);
                let before = states[i * size * width..].chunks_exact(width);
                let after = states[(i + 1) * size * width..].chunks_exact(width);
                let values = v.iter().zip(dy).zip(&reads[i * size..]).zip(dv[t].iter_mut());
                let rows = before.zip(after).zip(dstate.chunks_exact_mut(width));
                for (((before, after), dstate), (((&v, &dy), &read), dv)) in rows.zip(values) {
                    // y = qᵀ·S
                    let dy = V::splat(simd, dy);
                    for (((dstate, q), dq), after) in dstate.iter_mut().zip(&q).zip(&mut dq_sum).zip(after) {
                        *dstate = dy.mul_add(*q, *dstate);
                        *dq = dy.mul_add(*after, *dq);
                    }
                    // S = α·S' + k·w, w = β·(v − α·kᵀ·S')
                    let dwrite = dot(dstate, &k);
                    let error = v - decay * read;
                    *dv = step * dwrite;
                    dstep_t += dwrite * error;
                    ddecay_t -= step * dwrite * read;
                    let (write, dread) = (V::splat(simd, step * error), V::splat(simd, -step * decay * dwrite));
                    for (((dstate, k), dk), before) in dstate.iter_mut().zip(&k).zip(&mut dk_sum).zip(before) {
                        *dk = dstate.mul_add(write, before.mul_add(dread, *dk));
                        ddecay_sum = dstate.mul_add(*before, ddecay_sum);
                        *dstate = dread.mul_add(*k, *dstate * decay);
                    }
                }
                unpack(&dq_sum, dq[t], size);
                unpack(&dk_sum, dk[t], size);
                dstep[t][0] = dstep_t;
                ddecay[t][0] = ddecay_t + ddecay_sum.sum();
            }
        }
        unpack(&dstate, dmatrix, size);
    }
}

/// The kernel's version of [`recurrent`](crate::ops::delta::recurrent).
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
    let outputs = B::run(DeltaKernel, [q, k, v, step, decay, float(&state)]);
    outputs.map(|[y, last]| (kernel::tensor::<B, 4>(y).swap_dims(1, 2), kernel::tensor(last)))
}
