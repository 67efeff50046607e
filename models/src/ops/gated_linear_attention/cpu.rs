//! Gated linear attention, forward and backward in one time loop each; memory as in [`wkv`](crate::ops::wkv::cpu).

use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, pack, tiles, transpose, unpack};
use crate::ops::cpu::{dims, gradients_of, tensor, values, with_simd};
use crate::ops::gated_linear_attention::GatedLinearAttention;
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use crate::ops::zeros;
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Time steps between two matrices that are kept for the backward pass.
const CHUNK: usize = 16;

/// The vectors of a row in blocks that registers hold: evaluates an expression for the first vector of each block and the
/// constant number of vectors in it, four or one. (A macro, since closures are not compiled for the processor at hand.)
macro_rules! in_blocks {
    ($width:expr, $first:ident, $W:ident => $run:expr) => {{
        let whole = $width / 4 * 4;
        for $first in (0..whole).step_by(4) {
            const $W: usize = 4;
            $run;
        }
        for $first in whole..$width {
            const $W: usize = 1;
            $run;
        }
    }};
}

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

/// Tensors with a number for every channel of a key: q, k and the decays.
const KEYS: usize = 3;

/// Tensors with heads: those and v.
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
}

/// The results of [`Attention::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, value]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// Kept for [`Attention::backward`]: matrices `[batch, heads, seq/CHUNK, value, key]`; empty if not requested.
    pub checkpoints: Vec<f32>,
}

impl<'a> Attention<'a> {
    fn units(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    /// Runs over time; `keep`: saves what the backward pass needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        let [_, seq, heads, key, value] = self.shape;
        let mut y = unwritten(self.units() * seq * value);
        let mut last = unwritten(self.inputs.state.len());
        let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
        let mut checkpoints = unwritten(self.units() * chunks * key * value);
        let kept: Vec<&mut [f32]> = match chunks {
            0 => (0..self.units()).map(|_| Default::default()).collect(),
            _ => checkpoints.chunks_mut(chunks * key * value).collect(),
        };
        let before = self.inputs.state.par_chunks(key * value);
        let units = (tiles(&mut y, seq, heads * value, value), before, last.par_chunks_mut(key * value), kept);
        units.into_par_iter().enumerate().for_each(|(unit, (y, before, last, checkpoints))| {
            let mut matrix = transpose(before, key, value);
            with_simd(Forward { attention: self, unit, y, matrix: &mut matrix, checkpoints });
            last.copy_from_slice(&transpose(&matrix, value, key));
        });
        Outputs { y, last, checkpoints }
    }

    /// From the gradients of the outputs and of the last matrices (zero if `None`) to those of all inputs.
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Inputs<Vec<f32>> {
        let [_, seq, heads, key, value] = self.shape;
        // Of every head, those that share one apart.
        let widths = [key, key, self.decays, value];
        let [mut q, mut k, mut decay, mut v] = widths.map(|width| unwritten(self.units() * seq * width));
        let mut state = unwritten(self.inputs.state.len());
        let mut keys: Vec<[Vec<&mut [f32]>; KEYS]> = (0..self.units()).map(|_| Default::default()).collect();
        for (i, (gradient, width)) in [(&mut q, key), (&mut k, key), (&mut decay, self.decays)].into_iter().enumerate()
        {
            for (unit, tile) in keys.iter_mut().zip(tiles(gradient, seq, heads * width, width)) {
                unit[i] = tile;
            }
        }
        let units = (keys, tiles(&mut v, seq, heads * value, value), state.par_chunks_mut(key * value));
        units.into_par_iter().enumerate().for_each(|(unit, (dkeys, dv, dstate))| {
            let mut dmatrix = match last {
                Some(last) => transpose(&last[unit * key * value..][..key * value], key, value),
                None => vec![0.0; key * value],
            };
            with_simd(Backward { attention: self, unit, checkpoints, dy, dkeys, dv, dmatrix: &mut dmatrix });
            dstate.copy_from_slice(&transpose(&dmatrix, value, key));
        });
        let mut gradients = [q, k, decay, v];
        for ((gradient, width), shared) in gradients.iter_mut().zip(widths).zip(self.heads) {
            if shared < heads {
                *gradient = sums(gradient, width, heads / shared);
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

    /// One time step of a unit in q, k and the decays, in vectors, one after another.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, unit: usize, t: usize, vectors: &mut [V<S>]) {
        let key = self.shape[3];
        let Inputs { q, k, decay, .. } = self.inputs;
        let width = vectors.len() / KEYS;
        let (keys, decays) = vectors.split_at_mut(2 * width);
        for (tensor, (x, vectors)) in [q, k].into_iter().zip(keys.chunks_exact_mut(width)).enumerate() {
            pack(simd, self.row(x, tensor, key, unit, t), vectors, key);
        }
        let decay = self.row(decay, 2, self.decays, unit, t);
        match self.decays == key {
            true => pack(simd, decay, decays, key),
            false => decays.fill(V::splat(simd, decay[0])),
        }
    }
}

/// The operation on tensors: [`Inputs`] → outputs and last matrices.
#[derive(Debug, Clone, Copy)]
pub struct GatedLinearAttentionKernel;

impl GatedLinearAttentionKernel {
    fn of(inputs: &[FlexTensor; COUNT]) -> Attention<'_> {
        let tensors = Inputs::from(inputs.each_ref());
        let [_, heads, key, value] = dims(tensors.state);
        let headed = [tensors.q, tensors.k, tensors.decay, tensors.v].map(dims::<4>);
        let [batch, seq, ..] = headed[0];
        let inputs = inputs.each_ref().map(values).into();
        Attention {
            shape: [batch, seq, heads, key, value],
            decays: headed[2][3],
            heads: headed.map(|[_, _, heads, _]| heads),
            inputs,
        }
    }
}

impl Kernel<COUNT, 2> for GatedLinearAttentionKernel {
    type Saved = ([FlexTensor; COUNT], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let Outputs { y, last, checkpoints } = Self::of(&inputs).forward(save);
        let tensors = Inputs::from(inputs.each_ref());
        let ([batch, seq, ..], [_, heads, _, value]) = (dims::<4>(tensors.v), dims::<4>(tensors.state));
        let outputs = [tensor(y, [batch, seq, heads, value]), tensor(last, dims::<4>(tensors.state))];
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
    attention: &'a Attention<'a>,
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
        let Self { attention, unit, y, matrix, checkpoints } = self;
        let [.., key, value] = attention.shape;
        let zero = V::splat(simd, 0.0);
        let width = key.div_ceil(V::<S>::LANES);
        let mut state = vec![zero; value * width];
        pack(simd, matrix, &mut state, key);
        let mut keys = vec![zero; KEYS * width];
        for (t, y) in y.into_iter().enumerate() {
            if t % CHUNK == 0 && !checkpoints.is_empty() {
                unpack(&state, &mut checkpoints[t / CHUNK * key * value..][..key * value], key);
            }
            attention.load(simd, unit, t, &mut keys);
            let v = attention.values(unit, t);
            y.fill(0.0);
            in_blocks!(width, first, W => read::<S, W>(simd, &mut state, &keys, [width, first], v, y));
        }
        unpack(&state, matrix, key);
    }
}

/// The block of `W` vectors from vector `first` on of q, k and the decays, which are `width` vectors each.
#[inline(always)]
fn block<S: Simd, const W: usize>(keys: &[V<S>], [width, first]: [usize; 2]) -> [[V<S>; W]; KEYS] {
    let mut block = [[keys[first]; W]; KEYS];
    for (tensor, block) in block.iter_mut().enumerate() {
        block.copy_from_slice(&keys[tensor * width + first..][..W]);
    }
    block
}

/// S ← a·S + k·vᵀ and y ← y + Sᵀ·q in a block of key channels. `state`: rows of `width` vectors, one of each value.
#[inline(always)]
fn read<S: Simd, const W: usize>(
    simd: S,
    state: &mut [V<S>],
    keys: &[V<S>],
    [width, first]: [usize; 2],
    v: &[f32],
    y: &mut [f32],
) {
    let [q, k, decay] = block::<S, W>(keys, [width, first]);
    for ((row, &v), y) in state.chunks_exact_mut(width).zip(v).zip(y) {
        let Some(row) = row[first..].first_chunk_mut::<W>() else { return };
        let v = V::splat(simd, v);
        let mut sum = V::splat(simd, 0.0);
        for w in 0..W {
            row[w] = v.mul_add(k[w], decay[w] * row[w]);
            sum = row[w].mul_add(q[w], sum);
        }
        *y += sum.sum();
    }
}

/// `after` ← a·`before` + k·vᵀ in a block of key channels.
#[inline(always)]
fn write<S: Simd, const W: usize>(
    simd: S,
    [before, after]: [&mut [V<S>]; 2],
    keys: &[V<S>],
    [width, first]: [usize; 2],
    v: &[f32],
) {
    let [_, k, decay] = block::<S, W>(keys, [width, first]);
    for ((before, after), &v) in before.chunks_exact(width).zip(after.chunks_exact_mut(width)).zip(v) {
        let rows = (before[first..].first_chunk::<W>(), after[first..].first_chunk_mut::<W>());
        let (Some(before), Some(after)) = rows else { return };
        let v = V::splat(simd, v);
        for w in 0..W {
            after[w] = v.mul_add(k[w], decay[w] * before[w]);
        }
    }
}

/// One head of one example.
struct Backward<'a> {
    attention: &'a Attention<'a>,
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
    /// The gradient of the matrix after the step, `[value, width vectors]`.
    dstate: Vec<V<S>>,
    /// q, k and the decays, one after another, and their gradients.
    keys: Vec<V<S>>,
    dkeys: Vec<V<S>>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let [_, seq, _, key, value] = self.attention.shape;
        let width = key.div_ceil(V::<S>::LANES);
        let vectors = |count: usize| vec![V::splat(simd, 0.0); count];
        let mut chunk = Chunk {
            width,
            states: vectors((CHUNK + 1) * value * width),
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
        let (attention, unit) = (self.attention, self.unit);
        let [_, seq, _, key, value] = attention.shape;
        let Chunk { width, states, keys, .. } = chunk;
        let width = *width;
        let size = value * width;
        let checkpoint = (unit * seq.div_ceil(CHUNK) + index) * key * value;
        pack(simd, &self.checkpoints[checkpoint..][..key * value], &mut states[..size], key);
        for (i, t) in times.enumerate() {
            attention.load(simd, unit, t, keys);
            let v = attention.values(unit, t);
            let (before, after) = states[i * size..][..2 * size].split_at_mut(size);
            in_blocks!(width, first, W => write::<S, W>(simd, [before, after], keys, [width, first], v));
        }
    }

    /// Back through step `i` of the chunk, at time `t`.
    #[inline(always)]
    fn step<S: Simd>(&mut self, simd: S, chunk: &mut Chunk<S>, i: usize, t: usize) {
        let (attention, unit) = (self.attention, self.unit);
        let [.., key, values] = attention.shape;
        let Chunk { width, states, dstate, keys, dkeys } = chunk;
        let width = *width;
        attention.load(simd, unit, t, keys);
        let [_, seq, heads, ..] = attention.shape;
        let dy = &self.dy[((unit / heads * seq + t) * heads + unit % heads) * values..][..values];
        let v = attention.values(unit, t);
        let dv = &mut self.dv[t][..values];
        let size = values * width;
        let (before, after) = states[i * size..][..2 * size].split_at(size);
        dv.fill(0.0);
        in_blocks!(width, first, W => {
            let states = [before, after];
            Step { states, dstate, keys, dkeys, dy, v, dv, place: [width, first] }.back::<W>(simd);
        });
        let (dq, others) = dkeys.split_at(width);
        let (dk, ddecay) = others.split_at(width);
        let [q, k, decay] = &mut self.dkeys;
        unpack(dq, q[t], key);
        unpack(dk, k[t], key);
        match attention.decays == key {
            true => unpack(ddecay, decay[t], key),
            false => decay[t][0] = ddecay.iter().fold(V::splat(simd, 0.0), |sum, d| sum + *d).sum(),
        }
    }
}

/// A block of key channels of a time step, backward.
struct Step<'a, S: Simd> {
    /// The matrices before and after the step, and the gradient of the latter: rows of vectors, one of each value.
    states: [&'a [V<S>]; 2],
    dstate: &'a mut [V<S>],
    /// q, k and the decays, and their gradients.
    keys: &'a [V<S>],
    dkeys: &'a mut [V<S>],
    dy: &'a [f32],
    v: &'a [f32],
    dv: &'a mut [f32],
    /// The vectors of a row, and the first of this block.
    place: [usize; 2],
}

impl<S: Simd> Step<'_, S> {
    #[inline(always)]
    fn back<const W: usize>(self, simd: S) {
        let Self { states: [before, after], dstate, keys, dkeys, dy, v, dv, place: [width, first] } = self;
        let [q, k, decay] = block::<S, W>(keys, [width, first]);
        let [mut dq, mut dk, mut ddecay] = [[V::splat(simd, 0.0); W]; KEYS];
        let rows = before.chunks_exact(width).zip(after.chunks_exact(width)).zip(dstate.chunks_exact_mut(width));
        let numbers = dy.iter().zip(v).zip(dv);
        for (((before, after), dstate), ((&dy, &v), dv)) in rows.zip(numbers) {
            let rows = (
                before[first..].first_chunk::<W>(),
                after[first..].first_chunk::<W>(),
                dstate[first..].first_chunk_mut::<W>(),
            );
            let (Some(before), Some(after), Some(dstate)) = rows else { return };
            let (dy, v) = (V::splat(simd, dy), V::splat(simd, v));
            let mut read = V::splat(simd, 0.0);
            for w in 0..W {
                // y = qᵀ·S
                let d = dy.mul_add(q[w], dstate[w]);
                dq[w] = dy.mul_add(after[w], dq[w]);
                // S = a·S' + k·v
                read = d.mul_add(k[w], read);
                dk[w] = d.mul_add(v, dk[w]);
                ddecay[w] = d.mul_add(before[w], ddecay[w]);
                dstate[w] = d * decay[w];
            }
            *dv += read.sum();
        }
        for (tensor, gradient) in [dq, dk, ddecay].into_iter().enumerate() {
            dkeys[tensor * width + first..][..W].copy_from_slice(&gradient);
        }
    }
}

/// Sums of rows of `width` numbers, `count` in a row.
fn sums(x: &[f32], width: usize, count: usize) -> Vec<f32> {
    let mut sums = unwritten(x.len() / count);
    sums.par_chunks_mut(width).zip(x.par_chunks(width * count)).for_each(|(sum, rows)| {
        sum.copy_from_slice(&rows[..width]);
        for row in rows[width..].chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    });
    sums
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
