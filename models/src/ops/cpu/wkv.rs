//! The WKV operation of RWKV-5 and RWKV-6, forward and backward in one sweep over time each.
//!
//! A head's matrix stays in the first cache for all its time steps, value by value, with vectors along the keys. The way
//! back recomputes the matrices of a few time steps at once from the one before them. All this is the recurrence itself:
//! no product of decays is divided by, as the quadratic forms of it would have to.

use super::simd::{V, pack, sum_blocks, tiles, transpose, unpack};
use super::{dims, like, tensor, values, with_simd};
#[cfg(feature = "cube")]
use crate::ops::cube;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use crate::ops::zeros;
use burn::prelude::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Time steps between two matrices that are kept for the way back.
const CHUNK: usize = 16;

/// What the operation reads, row-major; see [`recurrent`](crate::ops::wkv::recurrent).
#[derive(Debug, Clone, Copy)]
pub struct Wkv<'a> {
    /// `[batch, seq, heads, size]`.
    pub shape: [usize; 4],
    /// `[batch, seq, heads, size]`.
    pub r: &'a [f32],
    /// `[batch, seq, heads, size]`.
    pub k: &'a [f32],
    /// `[batch, seq, heads, size]`.
    pub v: &'a [f32],
    /// `[batch, seq, heads, size]`, or `[heads, size]` where it is the same at all times.
    pub decay: &'a [f32],
    /// `[heads, size]`.
    pub bonus: &'a [f32],
    /// The matrices before, `[batch, heads, key, value]`; zero if `None`.
    pub state: Option<&'a [f32]>,
}

/// What [`Wkv::forward`] gives.
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, size]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// What [`Wkv::backward`] needs: matrices `[batch, heads, seq/CHUNK, value, key]`; empty if not asked for.
    pub checkpoints: Vec<f32>,
}

/// The gradient of each field of [`Wkv`], of its shape.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Gradients {
    pub r: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub decay: Vec<f32>,
    pub bonus: Vec<f32>,
    pub state: Vec<f32>,
}

impl<'a> Wkv<'a> {
    fn units(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    /// Numbers of a tensor of this shape, which `r` is.
    fn numbers(&self) -> usize {
        let numbers = self.shape.iter().product();
        assert!(self.r.len() == numbers, "{} numbers are not {:?}", self.r.len(), self.shape);
        numbers
    }

    /// Runs over time; `keep` what the way back needs. The larger results are in memory that nobody has to clear before.
    ///
    /// # Panics
    /// An input is not of its shape.
    #[allow(unsafe_code)]
    pub fn forward(&self, keep: bool) -> Outputs {
        let [_, seq, heads, size] = self.shape;
        let mut y = Box::new_uninit_slice(self.numbers());
        let mut last = match self.state {
            Some(state) => state.to_vec(),
            None => vec![0.0; self.units() * size * size],
        };
        assert!(last.len() == self.units() * size * size, "{} numbers are no matrices of {:?}", last.len(), self.shape);
        let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
        let mut checkpoints = Box::new_uninit_slice(self.units() * chunks * size * size);
        let kept: Vec<&mut [MaybeUninit<f32>]> = match chunks {
            0 => (0..self.units()).map(|_| Default::default()).collect(),
            _ => checkpoints.chunks_mut(chunks * size * size).collect(),
        };
        let units = (tiles(&mut y, seq, heads * size, size), last.par_chunks_mut(size * size), kept);
        units.into_par_iter().enumerate().for_each(|(unit, (y, matrix, checkpoints))| {
            with_simd(Forward { wkv: self, unit, y, matrix, checkpoints });
        });
        // SAFETY: the assertions leave a unit for every head of every example, and `Forward` writes all its time steps, and a
        // matrix at the start of each of its chunks.
        let (y, checkpoints) = unsafe { (y.assume_init().into_vec(), checkpoints.assume_init().into_vec()) };
        Outputs { y, last, checkpoints }
    }

    /// From the gradients of the outputs and of the last matrices (zero if `None`) to those of everything read, the larger in
    /// memory that nobody has to clear before.
    ///
    /// # Panics
    /// A slice is not of its shape.
    #[allow(unsafe_code)]
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Gradients {
        let [_, seq, heads, size] = self.shape;
        let whole = || Box::new_uninit_slice(self.numbers());
        let (mut dr, mut dk, mut dv) = (whole(), whole(), whole());
        let mut dstate = match last {
            Some(last) => last.to_vec(),
            None => vec![0.0; self.units() * size * size],
        };
        assert!(
            dstate.len() == self.units() * size * size,
            "{} numbers are no matrices of {:?}",
            dstate.len(),
            self.shape
        );
        let mut dbonus = vec![0.0; self.units() * size];
        let steady = self.is_steady();
        let mut ddecay = match steady {
            true => vec![MaybeUninit::new(0.0); self.units() * size].into_boxed_slice(),
            false => whole(),
        };
        let tile = |x| tiles(x, seq, heads * size, size);
        let decay_tiles = tiles(&mut ddecay, if steady { 1 } else { seq }, heads * size, size);
        let outputs = (tile(&mut dr), tile(&mut dk), tile(&mut dv), decay_tiles);
        let units = (outputs.into_par_iter(), dbonus.par_chunks_mut(size), dstate.par_chunks_mut(size * size));
        units.into_par_iter().enumerate().for_each(|(unit, ((dr, dk, dv, ddecay), dbonus, dmatrix))| {
            with_simd(Backward { wkv: self, unit, checkpoints, dy, dr, dk, dv, ddecay, dbonus, dmatrix });
        });
        // SAFETY: the assertions leave a unit for every head of every example, and `Backward` writes all its time steps.
        let [dr, dk, dv, ddecay] = [dr, dk, dv, ddecay].map(|x| unsafe { x.assume_init() }.into_vec());
        Gradients {
            r: dr,
            k: dk,
            v: dv,
            decay: if steady { sum_blocks(&ddecay, heads * size) } else { ddecay },
            bonus: sum_blocks(&dbonus, heads * size),
            state: dstate,
        }
    }

    fn is_steady(&self) -> bool {
        self.decay.len() == self.bonus.len()
    }

    /// One time step of a unit in a tensor like `r`.
    #[inline(always)]
    fn row(&self, x: &'a [f32], unit: usize, t: usize) -> &'a [f32] {
        let [_, seq, heads, size] = self.shape;
        let (example, head) = (unit / heads, unit % heads);
        &x[((example * seq + t) * heads + head) * size..][..size]
    }

    #[inline(always)]
    fn decay(&self, unit: usize, t: usize) -> &'a [f32] {
        if self.is_steady() { self.bonus_row(self.decay, unit) } else { self.row(self.decay, unit, t) }
    }

    /// A unit's part of a tensor like `bonus`.
    #[inline(always)]
    fn bonus_row(&self, x: &'a [f32], unit: usize) -> &'a [f32] {
        let [_, _, heads, size] = self.shape;
        &x[unit % heads * size..][..size]
    }
}

/// The operation on tensors: the fields of [`Wkv`] in their order → outputs and last matrices. A decay that is the same at
/// all times is `[1, 1, heads, size]`.
#[derive(Debug, Clone, Copy)]
pub struct WkvKernel;

impl WkvKernel {
    fn of(inputs: &[FlexTensor; 6]) -> Wkv<'_> {
        let shape = dims(&inputs[0]);
        let [r, k, v, decay, bonus, state] = inputs.each_ref().map(values);
        Wkv { shape, r, k, v, decay, bonus, state: Some(state) }
    }
}

impl Kernel<6, 2> for WkvKernel {
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
        let wkv = Self::of(&inputs);
        let Gradients { r, k, v, decay, bonus, state } =
            wkv.backward(values(&checkpoints), values(&dy), last.as_ref().map(values));
        let mut gradients = [r, k, v, decay, bonus, state].into_iter();
        inputs.each_ref().map(|input| Some(like(input, gradients.next()?)))
    }

    const ON_GPU: bool = true;

    #[cfg(feature = "cube")]
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 6],
        save: bool,
    ) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
        cube::wkv::forward(inputs, save)
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; 2],
        _: [bool; 6],
    ) -> [Option<CubeTensor<R>>; 6] {
        cube::wkv::backward(saved, gradients)
    }
}

/// One head of one example.
struct Forward<'a> {
    wkv: &'a Wkv<'a>,
    unit: usize,
    y: Vec<&'a mut [MaybeUninit<f32>]>,
    /// In: the matrix before. Out: the matrix after. `[key, value]`.
    matrix: &'a mut [f32],
    checkpoints: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { wkv, unit, y, matrix, checkpoints } = self;
        let size = wkv.shape[3];
        let zero = V::splat(simd, 0.0);
        let width = size.div_ceil(V::<S>::LANES);
        let mut state = vec![zero; size * width];
        pack(simd, &transpose(matrix, size, size), &mut state, size);
        let mut token = vec![[zero; 3]; width]; // r, k and decay
        let bonus = wkv.bonus_row(wkv.bonus, unit);
        for (t, y) in y.into_iter().enumerate() {
            if t % CHUNK == 0 && !checkpoints.is_empty() {
                let checkpoint = &mut checkpoints[t / CHUNK * size * size..][..size * size];
                for (row, state) in checkpoint.chunks_exact_mut(size).zip(state.chunks_exact(width)) {
                    row.chunks_mut(V::<S>::LANES).zip(state).for_each(|(x, state)| state.init(x));
                }
            }
            let own = load_token(wkv, unit, t, bonus, &mut token);
            let v = wkv.row(wkv.v, unit, t);
            for ((y, &v), state) in y.iter_mut().zip(v).zip(state.chunks_exact_mut(width)) {
                let value = V::splat(simd, v);
                let mut sum = zero;
                for (state, &[r, k, decay]) in state.iter_mut().zip(&token) {
                    sum = r.mul_add(*state, sum);
                    *state = decay.mul_add(*state, k * value);
                }
                y.write(own * v + sum.sum());
            }
        }
        let mut after = vec![0.0; size * size]; // [value, key]
        unpack(&state, &mut after, size);
        matrix.copy_from_slice(&transpose(&after, size, size));
    }
}

/// Fills in r, k and the decay of one time step; gives what it reads of its own value, Σ r·bonus·k.
#[inline(always)]
fn load_token<S: Simd>(wkv: &Wkv<'_>, unit: usize, t: usize, bonus: &[f32], token: &mut [[V<S>; 3]]) -> f32 {
    let (lanes, simd) = (V::<S>::LANES, token[0][0].0);
    let mut own = V::splat(simd, 0.0);
    let rows = [wkv.row(wkv.r, unit, t), wkv.row(wkv.k, unit, t), wkv.decay(unit, t)];
    for (i, token) in token.iter_mut().enumerate() {
        *token = rows.map(|row| V::load(simd, &row[i * lanes..]));
        own = (token[0] * token[1]).mul_add(V::load(simd, &bonus[i * lanes..]), own);
    }
    own.sum()
}

/// One head of one example.
struct Backward<'a> {
    wkv: &'a Wkv<'a>,
    unit: usize,
    checkpoints: &'a [f32],
    dy: &'a [f32],
    dr: Vec<&'a mut [MaybeUninit<f32>]>,
    dk: Vec<&'a mut [MaybeUninit<f32>]>,
    dv: Vec<&'a mut [MaybeUninit<f32>]>,
    /// One row per time step, or a single one.
    ddecay: Vec<&'a mut [MaybeUninit<f32>]>,
    dbonus: &'a mut [f32],
    /// In: of the matrix after. Out: of the matrix before. `[key, value]`.
    dmatrix: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { wkv, unit, checkpoints, dy, mut dr, mut dk, mut dv, mut ddecay, dbonus, dmatrix } = self;
        let [_, seq, _, size] = wkv.shape;
        let chunks = seq.div_ceil(CHUNK);
        let lanes = V::<S>::LANES;
        let width = size.div_ceil(lanes);
        let zero = V::splat(simd, 0.0);
        let mut dstate = vec![zero; size * width];
        pack_columns(simd, &transpose(dmatrix, size, size), &mut dstate, size);
        let mut states = vec![zero; CHUNK * size * width]; // before each time step of a chunk
        let mut token = vec![[zero; 3]; width];
        let mut dvalues = vec![zero; size];
        let bonus = wkv.bonus_row(wkv.bonus, unit);
        let (mut dbonus_sum, mut ddecay_sum) = (vec![zero; width], vec![zero; width]);
        for chunk in (0..chunks).rev() {
            let start = chunk * CHUNK;
            let length = CHUNK.min(seq - start);
            let checkpoint = &checkpoints[(unit * chunks + chunk) * size * size..][..size * size];
            pack_columns(simd, checkpoint, &mut states[..size * width], size);
            for i in 1..length {
                load_token(wkv, unit, start + i - 1, bonus, &mut token);
                let v = wkv.row(wkv.v, unit, start + i - 1);
                let (before, after) = states[(i - 1) * size * width..][..2 * size * width].split_at_mut(size * width);
                let columns = before.chunks_exact(size).zip(after.chunks_exact_mut(size));
                for ((before, after), &[_, k, decay]) in columns.zip(&token) {
                    for ((before, after), &v) in before.iter().zip(after).zip(v) {
                        *after = decay.mul_add(*before, k * V::splat(simd, v));
                    }
                }
            }
            for i in (0..length).rev() {
                let t = start + i;
                let own = load_token(wkv, unit, t, bonus, &mut token);
                let (v, dy) = (wkv.row(wkv.v, unit, t), wkv.row(dy, unit, t));
                let down: f32 = v.iter().zip(dy).map(|(v, dy)| v * dy).sum();
                let down = V::splat(simd, down);
                dvalues.fill(zero);
                let before = &states[i * size * width..][..size * width];
                let columns = before.chunks_exact(size).zip(dstate.chunks_exact_mut(size)).zip(&token);
                for (j, ((before, dstate), &[r, k, decay])) in columns.enumerate() {
                    let (mut dr_j, mut dk_j, mut ddecay_j) = (zero, zero, zero);
                    let rows = before.iter().zip(dstate).zip(&mut dvalues).zip(v.iter().zip(dy));
                    for (((state, dstate), dvalue), (&v, &dy)) in rows {
                        let dy = V::splat(simd, dy);
                        dr_j = state.mul_add(dy, dr_j);
                        dk_j = dstate.mul_add(V::splat(simd, v), dk_j);
                        ddecay_j = dstate.mul_add(*state, ddecay_j);
                        *dvalue = dstate.mul_add(k, *dvalue);
                        *dstate = dstate.mul_add(decay, r * dy);
                    }
                    let keys = j * lanes..((j + 1) * lanes).min(size);
                    let bonus = V::load(simd, &bonus[keys.clone()]);
                    dr_j = (down * bonus).mul_add(k, dr_j);
                    dk_j = (down * bonus).mul_add(r, dk_j);
                    dbonus_sum[j] = (down * r).mul_add(k, dbonus_sum[j]);
                    dr_j.init(&mut dr[t][keys.clone()]);
                    dk_j.init(&mut dk[t][keys.clone()]);
                    match wkv.is_steady() {
                        true => ddecay_sum[j] += ddecay_j,
                        false => ddecay_j.init(&mut ddecay[t][keys]),
                    }
                }
                for ((dv, dvalue), &dy) in dv[t].iter_mut().zip(&dvalues).zip(dy) {
                    dv.write(own * dy + dvalue.sum());
                }
            }
        }
        let mut before = vec![0.0; size * size]; // [value, key]
        unpack_columns(&dstate, &mut before, size);
        dmatrix.copy_from_slice(&transpose(&before, size, size));
        for (x, sum) in dbonus.chunks_mut(lanes).zip(&dbonus_sum) {
            sum.store(x);
        }
        if wkv.is_steady() {
            for (x, sum) in ddecay[0].chunks_mut(lanes).zip(&ddecay_sum) {
                sum.init(x);
            }
        }
    }
}

/// `[value, key]` → vectors of keys, `[key vector, value]`: what is summed over the values is then one after another.
#[inline(always)]
fn pack_columns<S: Simd>(simd: S, matrix: &[f32], vectors: &mut [V<S>], size: usize) {
    for (value, row) in matrix.chunks_exact(size).enumerate() {
        for (x, column) in row.chunks(V::<S>::LANES).zip(vectors.chunks_exact_mut(size)) {
            column[value] = V::load(simd, x);
        }
    }
}

/// The way back from [`pack_columns`].
#[inline(always)]
fn unpack_columns<S: Simd>(vectors: &[V<S>], matrix: &mut [f32], size: usize) {
    for (value, row) in matrix.chunks_exact_mut(size).enumerate() {
        for (x, column) in row.chunks_mut(V::<S>::LANES).zip(vectors.chunks_exact(size)) {
            column[value].store(x);
        }
    }
}

/// The kernel's version of [`recurrent`](crate::ops::wkv::recurrent).
#[allow(clippy::type_complexity)] // outputs and state
pub fn wkv<B: RunKernels>(
    inputs: [&Tensor<B, 4>; 4],
    bonus: &Tensor<B, 2>,
    state: Option<&Tensor<B, 4>>,
) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    let [batch, heads, _, size] = inputs[0].dims();
    let state = state.cloned().unwrap_or_else(|| zeros(inputs[0], [batch, heads, size, size]));
    let [r, k, v, decay] = inputs.map(|x| float(&x.clone().swap_dims(1, 2)));
    let outputs = B::run(WkvKernel, [r, k, v, decay, float(bonus), float(&state)]);
    outputs.map(|[y, last]| (kernel::tensor::<B, 4>(y).swap_dims(1, 2), kernel::tensor(last)))
}
