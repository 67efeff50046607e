//! One decay per head: a chunk of time steps at a time by products of matrices (Dao and Gu, arXiv 2405.21060, section 6).
//!
//! Inside a chunk, D_sr is the product of the decays after step s up to step r, zero where r < s; g_r that from the start of
//! the chunk up to r. With the state S before it, Y = (KQᵀ⊙D)ᵀ·V + g⊙(Q·S), and the state after it is g_end·S + (D_s,end⊙K)ᵀ·V.
//!
//! Decays may be zero: nothing divides by them. The gradient of decay t is that of the state after step t times the state
//! before it, Σ_{r≥t} D_tr·Σ_{s<t} D_s,t−1·(k_s·q_r)(v_s·dy_r), where the state before the chunk counts as a step before all
//! others, and the gradient of the state after it as one behind them. The inner sum for all r follows from that of t − 1.

use super::{Attention, Inputs, OutputGradients, Outputs};
use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, tiles};
use crate::ops::cpu::small::{Left, Product, Rows, Terms};
use crate::ops::cpu::with_simd;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Time steps of a chunk.
const CHUNK: usize = 64;

/// The tiles of a tensor that has an entry or none per time step: `[unit][time step]`.
fn tiles_or_none(x: &mut [f32], units: usize, [seq, heads, width]: [usize; 3]) -> Vec<Vec<&mut [f32]>> {
    match x.is_empty() {
        true => (0..units).map(|_| Vec::new()).collect(),
        false => tiles(x, seq, heads * width, width),
    }
}

/// A piece for each unit, empty if there is nothing.
fn pieces(x: &mut [f32], units: usize) -> Vec<&mut [f32]> {
    match x.len() / units {
        0 => (0..units).map(|_| Default::default()).collect(),
        size => x.chunks_mut(size).collect(),
    }
}

/// See [`Attention::forward`]; checkpoints are the matrices before each chunk, with the normaliser as a further column.
pub fn forward(attention: &Attention<'_>, keep: bool) -> Outputs {
    let ([_, seq, heads, key, value], units) = (attention.shape, attention.units());
    let counted = usize::from(attention.counts.is_some());
    let mut y = unwritten(units * seq * value);
    let mut last = unwritten(units * key * value);
    let mut read = unwritten(units * seq * counted);
    let mut counts = unwritten(units * key * counted);
    let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
    let mut checkpoints = unwritten(units * chunks * key * Rows::width(value + counted));
    let outputs = tiles(&mut y, seq, heads * value, value);
    let reads = tiles_or_none(&mut read, units, [seq, heads, 1]);
    let states = (pieces(&mut last, units), pieces(&mut counts, units), pieces(&mut checkpoints, units));
    let units = (outputs, reads, states.0, states.1, states.2);
    units.into_par_iter().enumerate().for_each(|(unit, (y, read, last, counts, checkpoints))| {
        with_simd(Forward { attention, unit, y, read, last, counts, checkpoints });
    });
    Outputs { y, last, counted: [read, counts], checkpoints }
}

/// See [`Attention::backward`]; heads that are shared are still apart.
pub fn backward(
    attention: &Attention<'_>,
    checkpoints: &[f32],
    gradients: OutputGradients<'_>,
) -> (Inputs<Vec<f32>>, Vec<f32>) {
    let ([_, seq, heads, key, value], units) = (attention.shape, attention.units());
    let [mut q, mut k, mut decay, mut v] = [key, key, 1, value].map(|width| unwritten(units * seq * width));
    let mut state = unwritten(units * key * value);
    let mut counts = unwritten(attention.counts.map_or(0, <[f32]>::len));
    let [dq, dk, ddecay, dv] = [(&mut q, key), (&mut k, key), (&mut decay, 1), (&mut v, value)]
        .map(|(gradient, width)| tiles(gradient, seq, heads * width, width));
    let states = (pieces(&mut state, units), pieces(&mut counts, units));
    let steps = (dq, dk, ddecay, dv, states.0, states.1);
    steps.into_par_iter().enumerate().for_each(|(unit, (dq, dk, ddecay, dv, dstate, dcounts))| {
        let size = checkpoints.len() / units;
        let checkpoints = &checkpoints[unit * size..][..size];
        with_simd(Backward { attention, unit, checkpoints, gradients, dq, dk, ddecay, dv, dstate, dcounts });
    });
    (Inputs { q, k, decay, v, state }, counts)
}

impl Attention<'_> {
    /// Columns of a state: those of a value, and the normaliser.
    fn columns(&self) -> usize {
        self.shape[4] + usize::from(self.counts.is_some())
    }

    /// The state before all steps of a unit, or the gradient of that after them.
    fn matrix(&self, unit: usize, matrices: Option<&[f32]>, counts: Option<&[f32]>) -> Rows {
        let [.., key, value] = self.shape;
        let mut state = Rows::zeros(key, self.columns());
        for row in 0..key {
            if let Some(matrices) = matrices {
                state.set(row, &matrices[(unit * key + row) * value..][..value]);
            }
            if let Some(counts) = counts {
                state.row_mut(row)[value] = counts[unit * key + row];
            }
        }
        state
    }

    /// The first columns of a state, and its last one.
    fn store(&self, state: &Rows, matrix: &mut [f32], counts: &mut [f32]) {
        let value = self.shape[4];
        for (row, to) in matrix.chunks_exact_mut(value).enumerate() {
            to.copy_from_slice(&state.row(row)[..value]);
        }
        for (row, to) in counts.iter_mut().enumerate() {
            *to = state.row(row)[value];
        }
    }

    /// Keys or queries of the steps of a chunk: tensor number `tensor`.
    fn gather(&self, x: &[f32], tensor: usize, unit: usize, times: Range<usize>, rows: &mut Rows) {
        for (i, t) in times.enumerate() {
            rows.set(i, self.row(x, tensor, self.shape[3], unit, t));
        }
    }

    /// Values of the steps of a chunk, with ones behind them where keys are counted.
    fn gather_values(&self, unit: usize, times: Range<usize>, rows: &mut Rows) {
        let value = self.shape[4];
        for (i, t) in times.enumerate() {
            rows.set(i, self.values(unit, t));
            if self.counts.is_some() {
                rows.row_mut(i)[value] = 1.0;
            }
        }
    }
}

/// The decays of a chunk, and their products.
struct Decays {
    each: [f32; CHUNK],
    /// g: from the start of the chunk up to each step.
    since_start: [f32; CHUNK],
    /// D: after step s (row) up to step r (column).
    between: Rows,
}

impl Decays {
    fn new() -> Self {
        Self { each: [0.0; CHUNK], since_start: [0.0; CHUNK], between: Rows::zeros(CHUNK, CHUNK) }
    }

    #[inline(always)]
    fn set<S: Simd>(&mut self, simd: S, attention: &Attention<'_>, unit: usize, times: Range<usize>) {
        let mut gain = 1.0;
        let steps = times.len();
        for (i, t) in times.enumerate() {
            self.each[i] = attention.row(attention.inputs.decay, 2, 1, unit, t)[0];
            gain *= self.each[i];
            self.since_start[i] = gain;
        }
        let width = self.between.width;
        for s in (0..steps).rev() {
            let (row, next) = self.between.values[s * width..].split_at_mut(width);
            match s + 1 == steps {
                true => row.fill(0.0),
                false => scaled(simd, row, next, self.each[s + 1]),
            }
            row[s] = 1.0;
        }
    }

    /// The product of the decays after a step, up to the last of `steps` steps.
    #[inline(always)]
    fn until_end(&self, step: usize, steps: usize) -> f32 {
        self.between.row(step)[steps - 1]
    }
}

/// `to` ← x·factor. All rows are whole vectors.
#[inline(always)]
fn scaled<S: Simd>(simd: S, to: &mut [f32], x: &[f32], factor: f32) {
    for (to, x) in S::as_mut_simd_f32s(to).0.iter_mut().zip(S::as_simd_f32s(x).0) {
        *to = simd.mul_f32s(*x, simd.splat_f32s(factor));
    }
}

/// `x` ← x·factor.
#[inline(always)]
fn scale<S: Simd>(simd: S, x: &mut [f32], factor: f32) {
    for x in S::as_mut_simd_f32s(x).0 {
        *x = simd.mul_f32s(*x, simd.splat_f32s(factor));
    }
}

/// `x` ← x⊙y.
#[inline(always)]
fn multiply<S: Simd>(simd: S, x: &mut [f32], y: &[f32]) {
    for (x, y) in S::as_mut_simd_f32s(x).0.iter_mut().zip(S::as_simd_f32s(y).0) {
        *x = simd.mul_f32s(*x, *y);
    }
}

/// Σ x⊙y.
#[inline(always)]
fn dot<S: Simd>(simd: S, x: &[f32], y: &[f32]) -> f32 {
    let mut sum = V::splat(simd, 0.0);
    for (x, y) in S::as_simd_f32s(x).0.iter().zip(S::as_simd_f32s(y).0) {
        sum = V(simd, *x).mul_add(V(simd, *y), sum);
    }
    sum.sum()
}

/// One head of one example.
struct Forward<'a> {
    attention: &'a Attention<'a>,
    unit: usize,
    y: Vec<&'a mut [f32]>,
    /// Empty if nothing is counted.
    read: Vec<&'a mut [f32]>,
    last: &'a mut [f32],
    counts: &'a mut [f32],
    checkpoints: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { attention, unit, mut y, mut read, last, counts, checkpoints } = self;
        let ([_, seq, _, key, value], columns) = (attention.shape, attention.columns());
        let Inputs { q: queries, k: keys, state, .. } = attention.inputs;
        let mut state = attention.matrix(unit, Some(state), attention.counts);
        let mut decays = Decays::new();
        let [mut q, mut k] = [(); 2].map(|()| Rows::zeros(CHUNK, key));
        let [mut v, mut out] = [(); 2].map(|()| Rows::zeros(CHUNK, columns));
        let mut q_columns = Rows::zeros(q.width, CHUNK);
        let mut weights = Rows::zeros(CHUNK, CHUNK);
        for (chunk, first) in (0..seq).step_by(CHUNK).enumerate() {
            let times = first..seq.min(first + CHUNK);
            let steps = times.len();
            if !checkpoints.is_empty() {
                checkpoints[chunk * state.values.len()..][..state.values.len()].copy_from_slice(&state.values);
            }
            attention.gather(queries, 0, unit, times.clone(), &mut q);
            attention.gather(keys, 1, unit, times.clone(), &mut k);
            attention.gather_values(unit, times.clone(), &mut v);
            decays.set(simd, attention, unit, times.clone());

            q_columns.transpose(&q, steps);
            simd.vectorize(Product {
                out: &mut weights,
                keep: None,
                left: Left::Rows(&k),
                right: &q_columns,
                size: [steps, key],
                terms: Terms::All,
            });
            for s in 0..steps {
                multiply(simd, weights.row_mut(s), decays.between.row(s));
                scale(simd, q.row_mut(s), decays.since_start[s]);
                scale(simd, k.row_mut(s), decays.until_end(s, steps));
            }
            simd.vectorize(Product {
                out: &mut out,
                keep: None,
                left: Left::Rows(&q),
                right: &state,
                size: [steps, key],
                terms: Terms::All,
            });
            simd.vectorize(Product {
                out: &mut out,
                keep: Some(1.0),
                left: Left::Columns(&weights),
                right: &v,
                size: [steps, steps],
                terms: Terms::UpToRow,
            });
            simd.vectorize(Product {
                out: &mut state,
                keep: Some(decays.since_start[steps - 1]),
                left: Left::Columns(&k),
                right: &v,
                size: [key, steps],
                terms: Terms::All,
            });
            for (i, t) in times.enumerate() {
                y[t].copy_from_slice(&out.row(i)[..value]);
                if let Some(read) = read.get_mut(t) {
                    read[0] = out.row(i)[value];
                }
            }
        }
        attention.store(&state, last, counts);
    }
}

/// One head of one example.
struct Backward<'a> {
    attention: &'a Attention<'a>,
    unit: usize,
    checkpoints: &'a [f32],
    gradients: OutputGradients<'a>,
    dq: Vec<&'a mut [f32]>,
    dk: Vec<&'a mut [f32]>,
    ddecay: Vec<&'a mut [f32]>,
    dv: Vec<&'a mut [f32]>,
    dstate: &'a mut [f32],
    /// Empty if nothing is counted.
    dcounts: &'a mut [f32],
}

/// Inputs and gradients of a chunk. `x_columns` is x transposed.
struct Chunk {
    decays: Decays,
    q: Rows,
    k: Rows,
    v: Rows,
    dy: Rows,
    q_columns: Rows,
    dy_columns: Rows,
    /// The state before the chunk, and the gradient of the one after it.
    state: Rows,
    state_columns: Rows,
    dstate: Rows,
    dstate_columns: Rows,
    /// KQᵀ and V·dYᵀ, then both times D; their product.
    weights: Rows,
    dweights: Rows,
    both: Rows,
    /// dY·Sᵀ, then dQ; V·dSᵀ, then dK; and dV.
    dq: Rows,
    dk: Rows,
    dv: Rows,
}

impl Chunk {
    fn new(attention: &Attention<'_>, dstate: Rows) -> Self {
        let ([.., key, _], columns) = (attention.shape, attention.columns());
        let keys = || Rows::zeros(CHUNK, key);
        let values = || Rows::zeros(CHUNK, columns);
        let square = || Rows::zeros(CHUNK, CHUNK);
        let [key_width, value_width] = [key, columns].map(Rows::width);
        Self {
            decays: Decays::new(),
            q: keys(),
            k: keys(),
            v: values(),
            dy: values(),
            q_columns: Rows::zeros(key_width, CHUNK),
            dy_columns: Rows::zeros(value_width, CHUNK),
            state: Rows::zeros(key, columns),
            state_columns: Rows::zeros(value_width, key),
            dstate,
            dstate_columns: Rows::zeros(value_width, key),
            weights: square(),
            dweights: square(),
            both: square(),
            dq: keys(),
            dk: keys(),
            dv: values(),
        }
    }
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (attention, unit) = (self.attention, self.unit);
        let [_, seq, ..] = attention.shape;
        let OutputGradients { last, counted: [_, counts], .. } = self.gradients;
        let mut chunk = Chunk::new(attention, attention.matrix(unit, last, counts));
        let size = chunk.state.values.len();
        for index in (0..seq.div_ceil(CHUNK)).rev() {
            let times = index * CHUNK..seq.min((index + 1) * CHUNK);
            chunk.state.values.copy_from_slice(&self.checkpoints[index * size..][..size]);
            self.load(simd, &mut chunk, times.clone());
            chunk.steps(simd, attention, times.len());
            self.decays(simd, &chunk, times.clone());
            chunk.back(simd, attention, times.len());
            let ([.., key, value], Chunk { dq, dk, dv, .. }) = (attention.shape, &chunk);
            for (i, t) in times.enumerate() {
                self.dq[t].copy_from_slice(&dq.row(i)[..key]);
                self.dk[t].copy_from_slice(&dk.row(i)[..key]);
                self.dv[t].copy_from_slice(&dv.row(i)[..value]);
            }
        }
        attention.store(&chunk.dstate, self.dstate, self.dcounts);
    }
}

impl Backward<'_> {
    /// Inputs and gradients of a chunk.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, chunk: &mut Chunk, times: Range<usize>) {
        let (attention, unit) = (self.attention, self.unit);
        let ([_, seq, heads, _, value], Inputs { q, k, .. }) = (attention.shape, attention.inputs);
        attention.gather(q, 0, unit, times.clone(), &mut chunk.q);
        attention.gather(k, 1, unit, times.clone(), &mut chunk.k);
        attention.gather_values(unit, times.clone(), &mut chunk.v);
        chunk.decays.set(simd, attention, unit, times.clone());
        let OutputGradients { y, counted: [read, _], .. } = self.gradients;
        for (i, t) in times.clone().enumerate() {
            let place = (unit / heads * seq + t) * heads + unit % heads;
            chunk.dy.set(i, &y[place * value..][..value]);
            if let Some(read) = read {
                chunk.dy.row_mut(i)[value] = read[place];
            }
        }
        let steps = times.len();
        chunk.q_columns.transpose(&chunk.q, steps);
        chunk.dy_columns.transpose(&chunk.dy, steps);
        chunk.state_columns.transpose(&chunk.state, attention.shape[3]);
        chunk.dstate_columns.transpose(&chunk.dstate, attention.shape[3]);
    }

    /// The gradients of the decays of a chunk.
    #[inline(always)]
    fn decays<S: Simd>(&mut self, simd: S, chunk: &Chunk, times: Range<usize>) {
        let steps = times.len();
        let Chunk { decays, both, .. } = chunk;
        // For all r: Σ_{s<t} D_s,t−1·(k_s·q_r)(v_s·dy_r), where the state before the chunk is a step s, and that after it an r.
        let mut before = [0.0; CHUNK];
        for (r, before) in before[..steps].iter_mut().enumerate() {
            *before = dot(simd, chunk.q.row(r), chunk.dq.row(r));
        }
        let mut end = dot(simd, &chunk.state.values, &chunk.dstate.values);
        for (t, time) in times.enumerate() {
            self.ddecay[time][0] = decays.until_end(t, steps).mul_add(end, dot(simd, decays.between.row(t), &before));
            let decay = decays.each[t];
            for (before, both) in S::as_mut_simd_f32s(&mut before).0.iter_mut().zip(S::as_simd_f32s(both.row(t)).0) {
                *before = V(simd, *before).mul_add(V::splat(simd, decay), V(simd, *both)).1;
            }
            end = decay.mul_add(end, dot(simd, chunk.k.row(t), chunk.dk.row(t)));
        }
    }
}

impl Chunk {
    /// What the gradients are made of: KQᵀ, V·dYᵀ, dY·Sᵀ and V·dSᵀ.
    #[inline(always)]
    fn steps<S: Simd>(&mut self, simd: S, attention: &Attention<'_>, steps: usize) {
        let ([.., key, _], columns) = (attention.shape, attention.columns());
        let Self { q_columns, dy_columns, state_columns, dstate_columns, k, v, dy, .. } = self;
        let products = [
            (&mut self.weights, &*k, &*q_columns, key),
            (&mut self.dweights, &*v, &*dy_columns, columns),
            (&mut self.dq, &*dy, &*state_columns, columns),
            (&mut self.dk, &*v, &*dstate_columns, columns),
        ];
        for (out, left, right, terms) in products {
            let size = [steps, terms];
            simd.vectorize(Product { out, keep: None, left: Left::Rows(left), right, size, terms: Terms::All });
        }
        for s in 0..steps {
            let (weights, dweights, both) = (self.weights.row_mut(s), self.dweights.row_mut(s), self.both.row_mut(s));
            both.copy_from_slice(weights);
            multiply(simd, both, dweights);
            multiply(simd, weights, self.decays.between.row(s));
            multiply(simd, dweights, self.decays.between.row(s));
        }
    }

    /// The gradients of q, k, v and the state before the chunk.
    #[inline(always)]
    fn back<S: Simd>(&mut self, simd: S, attention: &Attention<'_>, steps: usize) {
        let [.., key, _] = attention.shape;
        let Self { decays, q, k, v: _, dy, dstate, weights, dweights, dq, dk, dv, .. } = self;
        let square = [steps, steps];
        let product = |out, left, right, size, terms| Product { out, keep: Some(1.0), left, right, size, terms };
        simd.vectorize(Product {
            out: &mut *dv,
            keep: None,
            left: Left::Rows(k),
            right: dstate,
            size: [steps, key],
            terms: Terms::All,
        });
        for s in 0..steps {
            let until_end = decays.until_end(s, steps);
            scale(simd, dq.row_mut(s), decays.since_start[s]);
            scale(simd, dk.row_mut(s), until_end);
            scale(simd, dv.row_mut(s), until_end);
        }
        simd.vectorize(product(dq, Left::Columns(dweights), k, square, Terms::UpToRow));
        simd.vectorize(product(dk, Left::Rows(dweights), q, square, Terms::FromRow));
        simd.vectorize(product(dv, Left::Rows(weights), dy, square, Terms::FromRow));
        for s in 0..steps {
            scale(simd, q.row_mut(s), decays.since_start[s]);
        }
        simd.vectorize(Product {
            out: dstate,
            keep: Some(decays.since_start[steps - 1]),
            left: Left::Columns(q),
            right: dy,
            size: [key, steps],
            terms: Terms::All,
        });
    }
}
