//! The generalised delta rule, forward and backward in one time loop each; memory as in [`wkv`](crate::ops::wkv::cpu).

use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, dot, pack, tiles, transpose, unpack};
use crate::ops::cpu::{dims, gradients_of, tensor, values, with_simd};
use crate::ops::generalized_delta::GeneralizedDelta;
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use crate::ops::zeros;
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

#[cfg(feature = "cube")]
use crate::ops::cube::gpu_gradients;
#[cfg(feature = "cube")]
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

/// Time steps between two matrices that are kept for the backward pass.
const CHUNK: usize = 16;

inputs! {
    /// The tensors that the rule reads, row-major; see [`recurrent`](crate::ops::generalized_delta::recurrent).
    pub struct Inputs {
        /// `[batch, seq, heads, key]`.
        q,
        /// `[batch, seq, heads, key]`.
        k,
        /// `[batch, seq, heads, key]`.
        decay,
        /// `[batch, seq, heads, key]`.
        removed,
        /// `[batch, seq, heads, key]`.
        under,
        /// `[batch, seq, heads, value]`.
        v,
        /// The matrices before, `[batch, heads, key, value]`.
        state,
    }
}

/// Tensors that [`GeneralizedDeltaKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// Tensors with a number for every channel of a key: those before `v`, in their order.
const KEYS: usize = 5;

/// The rule on numbers.
#[derive(Debug, Clone, Copy)]
pub struct Rule<'a> {
    /// `[batch, seq, heads, key, value]`: the tensors' axes, and the sizes of a key and of a value.
    pub shape: [usize; 5],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
}

/// The results of [`Rule::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, value]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// Kept for [`Rule::backward`]: matrices `[batch, heads, seq/CHUNK, value, key]`; empty if not requested.
    pub checkpoints: Vec<f32>,
}

impl<'a> Rule<'a> {
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
            with_simd(Forward { rule: self, unit, y, matrix, checkpoints });
        });
        Outputs { y, last: transpose(&last, value, key), checkpoints }
    }

    /// From the gradients of the outputs and of the last matrices (zero if `None`) to those of all inputs.
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Inputs<Vec<f32>> {
        let [_, seq, heads, key, value] = self.shape;
        let [mut q, mut k, mut decay, mut removed, mut under] = [(); KEYS].map(|()| unwritten(self.inputs.q.len()));
        let mut v = unwritten(self.inputs.v.len());
        let mut state = match last {
            Some(last) => transpose(last, key, value),
            None => vec![0.0; self.units() * key * value],
        };
        let mut keys: Vec<[Vec<&mut [f32]>; KEYS]> = (0..self.units()).map(|_| Default::default()).collect();
        for (i, gradient) in [&mut q, &mut k, &mut decay, &mut removed, &mut under].into_iter().enumerate() {
            for (unit, tile) in keys.iter_mut().zip(tiles(gradient, seq, heads * key, key)) {
                unit[i] = tile;
            }
        }
        let units = (keys, tiles(&mut v, seq, heads * value, value), state.par_chunks_mut(key * value));
        units.into_par_iter().enumerate().for_each(|(unit, (dkeys, dv, dmatrix))| {
            with_simd(Backward { rule: self, unit, checkpoints, dy, dkeys, dv, dmatrix });
        });
        Inputs { q, k, decay, removed, under, v, state: transpose(&state, value, key) }
    }

    /// One time step of a unit in a tensor like `v`.
    #[inline(always)]
    fn values(&self, x: &'a [f32], unit: usize, t: usize) -> &'a [f32] {
        let value = self.shape[4];
        &x[self.place(unit, t) * value..][..value]
    }

    /// Which time step of a head one of a unit is, counted over all.
    #[inline(always)]
    fn place(&self, unit: usize, t: usize) -> usize {
        let [_, seq, heads, ..] = self.shape;
        (unit / heads * seq + t) * heads + unit % heads
    }

    /// One time step of a unit in the tensors like `k`, in vectors, one tensor after another.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, unit: usize, t: usize, vectors: &mut [V<S>]) {
        let key = self.shape[3];
        let Inputs { q, k, decay, removed, under, .. } = self.inputs;
        let place = self.place(unit, t) * key;
        let width = vectors.len() / KEYS;
        for (x, vectors) in [q, k, decay, removed, under].into_iter().zip(vectors.chunks_exact_mut(width)) {
            pack(simd, &x[place..][..key], vectors, key);
        }
    }
}

/// The operation on tensors: [`Inputs`] → outputs and last matrices.
#[derive(Debug, Clone, Copy)]
pub struct GeneralizedDeltaKernel;

impl GeneralizedDeltaKernel {
    fn of(inputs: &[FlexTensor; COUNT]) -> Rule<'_> {
        let tensors = Inputs::from(inputs.each_ref());
        let ([batch, seq, heads, key], [.., value]) = (dims(tensors.k), dims::<4>(tensors.v));
        Rule { shape: [batch, seq, heads, key, value], inputs: inputs.each_ref().map(values).into() }
    }
}

impl Kernel<COUNT, 2> for GeneralizedDeltaKernel {
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

    const ON_GPU: bool = true;

    #[cfg(feature = "cube")]
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; COUNT],
        save: bool,
    ) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
        super::cube::forward(inputs.into(), save)
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; 2],
        _: [bool; COUNT],
    ) -> [Option<CubeTensor<R>>; COUNT] {
        gpu_gradients(super::cube::backward(saved, gradients))
    }
}

/// One head of one example.
struct Forward<'a> {
    rule: &'a Rule<'a>,
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
        let Self { rule, unit, y, matrix, checkpoints } = self;
        let [.., key, value] = rule.shape;
        let zero = V::splat(simd, 0.0);
        let width = key.div_ceil(V::<S>::LANES);
        let mut state = vec![zero; value * width];
        pack(simd, matrix, &mut state, key);
        let mut keys = vec![zero; KEYS * width];
        for (t, y) in y.into_iter().enumerate() {
            if t % CHUNK == 0 && !checkpoints.is_empty() {
                unpack(&state, &mut checkpoints[t / CHUNK * key * value..][..key * value], key);
            }
            rule.load(simd, unit, t, &mut keys);
            let v = rule.values(rule.inputs.v, unit, t);
            for ((y, &v), row) in y.iter_mut().zip(v).zip(state.chunks_exact_mut(width)) {
                write(row, &keys, v);
                *y = dot(row, &keys[..width]);
            }
        }
        unpack(&state, matrix, key);
    }
}

/// One row (of one value) of S ← diag(α)·S − b·(κᵀ·S) + k·vᵀ; gives κᵀ·S.
#[inline(always)]
fn write<S: Simd>(row: &mut [V<S>], keys: &[V<S>], v: f32) -> f32 {
    let (simd, width) = (row[0].0, row.len());
    let [_, k, decay, removed, under] = apart(keys, width);
    let read = dot(row, removed);
    let (remove, v) = (V::splat(simd, -read), V::splat(simd, v));
    for w in 0..width {
        row[w] = remove.mul_add(under[w], v.mul_add(k[w], decay[w] * row[w]));
    }
    read
}

/// The vectors of each of the tensors like `k`.
#[inline(always)]
fn apart<S: Simd>(keys: &[V<S>], width: usize) -> [&[V<S>]; KEYS] {
    std::array::from_fn(|i| &keys[i * width..][..width])
}

/// One head of one example.
struct Backward<'a> {
    rule: &'a Rule<'a>,
    unit: usize,
    checkpoints: &'a [f32],
    dy: &'a [f32],
    dkeys: [Vec<&'a mut [f32]>; KEYS],
    dv: Vec<&'a mut [f32]>,
    /// In: of the matrix after. Out: of the matrix before. `[value, key]`.
    dmatrix: &'a mut [f32],
}

/// A chunk of time steps, and the vectors of the step at hand.
struct Chunk<S: Simd> {
    /// Vectors of a row of a matrix.
    width: usize,
    /// The matrix before each step and after the last, `[CHUNK + 1, value, width vectors]`.
    states: Vec<V<S>>,
    /// The values that a step's κ reads of the matrix before it, `[CHUNK, value]`.
    reads: Vec<f32>,
    /// The gradient of the matrix after the step, `[value, width vectors]`.
    dstate: Vec<V<S>>,
    /// The tensors like `k`, one after another, and their gradients.
    keys: Vec<V<S>>,
    dkeys: Vec<V<S>>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let [_, seq, _, key, value] = self.rule.shape;
        let width = key.div_ceil(V::<S>::LANES);
        let vectors = |count: usize| vec![V::splat(simd, 0.0); count];
        let mut chunk = Chunk {
            width,
            states: vectors((CHUNK + 1) * value * width),
            reads: vec![0.0; CHUNK * value],
            dstate: vectors(value * width),
            keys: vectors(KEYS * width),
            dkeys: vectors(KEYS * width),
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
        let (rule, unit) = (self.rule, self.unit);
        let [_, seq, _, key, value] = rule.shape;
        let Chunk { width, states, reads, keys, .. } = chunk;
        let size = value * *width;
        let checkpoint = (unit * seq.div_ceil(CHUNK) + index) * key * value;
        pack(simd, &self.checkpoints[checkpoint..][..key * value], &mut states[..size], key);
        for (i, t) in times.enumerate() {
            rule.load(simd, unit, t, keys);
            let v = rule.values(rule.inputs.v, unit, t);
            let (before, after) = states[i * size..][..2 * size].split_at_mut(size);
            after.copy_from_slice(before);
            for ((row, &v), read) in after.chunks_exact_mut(*width).zip(v).zip(&mut reads[i * value..]) {
                *read = write(row, keys, v);
            }
        }
    }

    /// Back through step `i` of the chunk, at time `t`.
    #[inline(always)]
    fn step<S: Simd>(&mut self, simd: S, chunk: &mut Chunk<S>, i: usize, t: usize) {
        let (rule, unit) = (self.rule, self.unit);
        let [.., key, values] = rule.shape;
        let Chunk { width, states, reads, dstate, keys, dkeys } = chunk;
        let width = *width;
        rule.load(simd, unit, t, keys);
        dkeys.fill(V::splat(simd, 0.0));
        let (v, dy) = (rule.values(rule.inputs.v, unit, t), rule.values(self.dy, unit, t));
        let (reads, dv) = (&reads[i * values..][..values], &mut self.dv[t][..values]);
        let [q, k, decay, removed, under] = apart(keys, width);
        let (dq, others) = dkeys.split_at_mut(width);
        let (dk, others) = others.split_at_mut(width);
        let (ddecay, others) = others.split_at_mut(width);
        let (dremoved, dunder) = others.split_at_mut(width);
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
            // S = α·S' + b·e + k·v, e = −κᵀ·S'
            dv[value] = dot(dstate, k);
            let dread = V::splat(simd, -dot(dstate, under));
            let (error, v) = (V::splat(simd, -reads[value]), V::splat(simd, v[value]));
            for w in 0..width {
                dk[w] = dstate[w].mul_add(v, dk[w]);
                dunder[w] = dstate[w].mul_add(error, dunder[w]);
                ddecay[w] = dstate[w].mul_add(before[w], ddecay[w]);
                dremoved[w] = dread.mul_add(before[w], dremoved[w]);
                dstate[w] = dread.mul_add(removed[w], dstate[w] * decay[w]);
            }
        }
        for (vectors, gradient) in dkeys.chunks_exact(width).zip(&mut self.dkeys) {
            unpack(vectors, gradient[t], key);
        }
    }
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // outputs and state
pub fn generalized_delta<B: RunKernels>(
    inputs: &GeneralizedDelta<B>,
    state: Option<&Tensor<B, 4>>,
) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    let GeneralizedDelta { q, k, v, decay, removed, under } = inputs;
    let ([batch, heads, _, key], [.., value]) = (k.dims(), v.dims());
    let state = state.cloned().unwrap_or_else(|| zeros(q, [batch, heads, key, value]));
    let by_time = |x: &Tensor<B, 4>| float(&x.clone().swap_dims(1, 2));
    let [q, k, v] = [q, k, v].map(by_time);
    let [decay, removed, under] = [decay, removed, under].map(by_time);
    let inputs = Inputs { q, k, decay, removed, under, v, state: float(&state) };
    B::run(GeneralizedDeltaKernel, inputs.into())
        .map(|[y, last]| (kernel::tensor::<B, 4>(y).swap_dims(1, 2), kernel::tensor(last)))
}
