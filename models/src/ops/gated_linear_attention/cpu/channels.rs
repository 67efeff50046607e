//! One decay for every channel of a key: forward and backward in one time loop each; memory as in [`wkv`](crate::ops::wkv::cpu).

use super::{Attention, Inputs, OutputGradients, Outputs};
use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, pack, tiles, transpose, unpack};
use crate::ops::cpu::with_simd;
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

/// Tensors with a number for every channel of a key: q, k and the decays.
const KEYS: usize = 3;

/// See [`Attention::forward`]; checkpoints are `[batch, heads, seq/CHUNK, value, key]`.
pub fn forward(attention: &Attention<'_>, keep: bool) -> Outputs {
    let [_, seq, heads, key, value] = attention.shape;
    let units = attention.units();
    let mut y = unwritten(units * seq * value);
    let mut last = unwritten(attention.inputs.state.len());
    let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
    let mut checkpoints = unwritten(units * chunks * key * value);
    let kept: Vec<&mut [f32]> = match chunks {
        0 => (0..units).map(|_| Default::default()).collect(),
        _ => checkpoints.chunks_mut(chunks * key * value).collect(),
    };
    let before = attention.inputs.state.par_chunks(key * value);
    let units = (tiles(&mut y, seq, heads * value, value), before, last.par_chunks_mut(key * value), kept);
    units.into_par_iter().enumerate().for_each(|(unit, (y, before, last, checkpoints))| {
        let mut matrix = transpose(before, key, value);
        with_simd(Forward { attention, unit, y, matrix: &mut matrix, checkpoints });
        last.copy_from_slice(&transpose(&matrix, value, key));
    });
    Outputs { y, last, checkpoints }
}

/// See [`Attention::backward`]; heads that are shared are still apart.
pub fn backward(attention: &Attention<'_>, checkpoints: &[f32], gradients: OutputGradients<'_>) -> Inputs<Vec<f32>> {
    let [_, seq, heads, key, value] = attention.shape;
    let units = attention.units();
    let [mut q, mut k, mut decay, mut v] = [key, key, key, value].map(|width| unwritten(units * seq * width));
    let mut state = unwritten(attention.inputs.state.len());
    let mut keys: Vec<[Vec<&mut [f32]>; KEYS]> = (0..units).map(|_| Default::default()).collect();
    for (i, gradient) in [&mut q, &mut k, &mut decay].into_iter().enumerate() {
        for (unit, tile) in keys.iter_mut().zip(tiles(gradient, seq, heads * key, key)) {
            unit[i] = tile;
        }
    }
    let units = (keys, tiles(&mut v, seq, heads * value, value), state.par_chunks_mut(key * value));
    units.into_par_iter().enumerate().for_each(|(unit, (dkeys, dv, dstate))| {
        let mut dmatrix = match gradients.last {
            Some(last) => transpose(&last[unit * key * value..][..key * value], key, value),
            None => vec![0.0; key * value],
        };
        with_simd(Backward { attention, unit, checkpoints, dy: gradients.y, dkeys, dv, dmatrix: &mut dmatrix });
        dstate.copy_from_slice(&transpose(&dmatrix, value, key));
    });
    Inputs { q, k, decay, v, state }
}

/// One time step of a unit in q, k and the decays, in vectors, one after another.
#[inline(always)]
fn load<S: Simd>(attention: &Attention<'_>, simd: S, unit: usize, t: usize, vectors: &mut [V<S>]) {
    let key = attention.shape[3];
    let Inputs { q, k, decay, .. } = attention.inputs;
    let width = vectors.len() / KEYS;
    for (tensor, (x, vectors)) in [q, k, decay].into_iter().zip(vectors.chunks_exact_mut(width)).enumerate() {
        pack(simd, attention.row(x, tensor, key, unit, t), vectors, key);
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
            load(attention, simd, unit, t, &mut keys);
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
            load(attention, simd, unit, t, keys);
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
        load(attention, simd, unit, t, keys);
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
        unpack(ddecay, decay[t], key);
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
