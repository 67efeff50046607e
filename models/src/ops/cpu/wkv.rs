//! The WKV operation of RWKV-5 and RWKV-6, forward and backward in one sweep over time each.
//!
//! A head's matrix stays in the first cache for all its time steps, key by key, with vectors along the values: the recurrence
//! as it is defined. The way back takes a few time steps at once, between two matrices that were kept, and never computes
//! those in between. Both only multiply decays: nothing is divided by a product of them, which may be close to zero.

use super::simd::{V, pack, sum_blocks, tiles, unpack};
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
    /// What [`Wkv::backward`] needs: matrices `[batch, heads, seq/CHUNK, key, value]`; empty if not asked for.
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
        let (lanes, size) = (V::<S>::LANES, wkv.shape[3]);
        let width = size.div_ceil(lanes);
        let mut state = vec![V::splat(simd, 0.0); size * width];
        pack(simd, matrix, &mut state, size);
        let bonus = wkv.bonus_row(wkv.bonus, unit);
        for (t, y) in y.into_iter().enumerate() {
            if t % CHUNK == 0 && !checkpoints.is_empty() {
                let checkpoint = &mut checkpoints[t / CHUNK * size * size..][..size * size];
                for (row, state) in checkpoint.chunks_exact_mut(size).zip(state.chunks_exact(width)) {
                    for (x, state) in row.chunks_mut(lanes).zip(state) {
                        state.init(x);
                    }
                }
            }
            let step = Step::of(simd, wkv, unit, t, bonus);
            for first in (0..width / 4 * 4).step_by(4) {
                step.advance::<4>(&mut state, width, first, y);
            }
            for first in width / 4 * 4..width {
                step.advance::<1>(&mut state, width, first, y);
            }
        }
        unpack(&state, matrix, size);
    }
}

/// What one time step of a head reads.
struct Step<'a, S: Simd> {
    r: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    decay: &'a [f32],
    /// What it reads of its own value, Σ r·bonus·k.
    own: V<S>,
}

impl<'a, S: Simd> Step<'a, S> {
    #[inline(always)]
    fn of(simd: S, wkv: &Wkv<'a>, unit: usize, t: usize, bonus: &[f32]) -> Self {
        let [r, k, v] = [wkv.row(wkv.r, unit, t), wkv.row(wkv.k, unit, t), wkv.row(wkv.v, unit, t)];
        let mut own = V::splat(simd, 0.0);
        for start in (0..bonus.len()).step_by(V::<S>::LANES) {
            let (r, k) = (V::load(simd, &r[start..]), V::load(simd, &k[start..]));
            own = (r * k).mul_add(V::load(simd, &bonus[start..]), own);
        }
        Self { r, k, v, decay: wkv.decay(unit, t), own: V::splat(simd, own.sum()) }
    }

    /// The outputs of W vectors of values from the `first`, and their part of the next matrix `[key, width vectors]`.
    #[inline(always)]
    fn advance<const W: usize>(&self, state: &mut [V<S>], width: usize, first: usize, y: &mut [MaybeUninit<f32>]) {
        let (lanes, simd) = (V::<S>::LANES, self.own.0);
        let mut v = [self.own; W];
        let mut sums = v;
        for (w, (v, sum)) in v.iter_mut().zip(&mut sums).enumerate() {
            *v = V::load(simd, &self.v[(first + w) * lanes..]);
            *sum = *v * self.own;
        }
        let keys = self.r.iter().zip(self.k).zip(self.decay);
        for (row, ((&r, &k), &decay)) in state.chunks_exact_mut(width).zip(keys) {
            let [r, k, decay] = [V::splat(simd, r), V::splat(simd, k), V::splat(simd, decay)];
            for ((state, sum), v) in row[first..][..W].iter_mut().zip(&mut sums).zip(&v) {
                *sum = r.mul_add(*state, *sum);
                *state = decay.mul_add(*state, k * *v);
            }
        }
        for (w, sum) in sums.iter().enumerate() {
            sum.init(&mut y[(first + w) * lanes..]);
        }
    }
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

    /// With S the matrix before a chunk and D the gradient of the matrix after it, what reaches over the chunk's ends are four
    /// products: S·dyᵀ, D·vᵀ, (k·decays after it)·D, and D's own next value. What stays inside needs only vectors of keys:
    /// from S·dy_i, the matrix before any step t ≤ i times dy_i follows by the recurrence of the matrix itself, with the
    /// numbers v_t·dy_i in the place of v_t; likewise backwards from D·v_j.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { wkv, unit, checkpoints, dy, mut dr, mut dk, mut dv, mut ddecay, dbonus, dmatrix } = self;
        let [_, seq, _, size] = wkv.shape;
        let (lanes, zero, one) = (V::<S>::LANES, V::splat(simd, 0.0), V::splat(simd, 1.0));
        let chunks = seq.div_ceil(CHUNK);
        let n = size.next_multiple_of(CHUNK); // filled up with zeros
        let (square, rows) = (n * n, CHUNK * n);
        let mut memory = vec![0.0; 2 * square + 15 * rows + 2 * CHUNK * CHUNK + 3 * n + 16];
        let aligned = memory.as_ptr().align_offset(64).min(16);
        let mut rest = &mut memory[aligned..];
        let mut take = |length: usize| rest.split_off_mut(..length).unwrap_or_default();
        let (state, dstate) = (take(square), take(square)); // [key, value]
        let [r, k, v, decay, dys] = [(); 5].map(|()| take(rows)); // [step, key or value]
        let [v_columns, dy_columns, r_since] = [(); 3].map(|()| take(rows)); // [key or value, step]
        let [k_until, products, read, written, dvalues] = [(); 5].map(|()| take(rows)); // [step, key or value]
        let [dr_rows, dk_rows] = [(); 2].map(|()| take(rows)); // [step, key]
        let (pairs, reads) = (take(CHUNK * CHUNK), take(CHUNK * CHUNK)); // v_j·dy_i at [i, j], what i reads of v_j at [j, i]
        let (total, overlap, ones) = (take(n), take(n), take(n));
        ones.fill(1.0);
        copy_rows(simd, dmatrix, size, dstate, n);
        let bonus = wkv.bonus_row(wkv.bonus, unit);
        let width = size.div_ceil(lanes);
        let (mut dbonus_sum, mut ddecay_sum) = (vec![zero; width], vec![zero; width]);
        for chunk in (0..chunks).rev() {
            let start = chunk * CHUNK;
            let length = CHUNK.min(seq - start);
            copy_rows(simd, &checkpoints[(unit * chunks + chunk) * size * size..][..size * size], size, state, n);
            // Steps that neither read nor write nor decay fill up the last chunk.
            for (x, fill) in [(&mut *r, 0.0), (k, 0.0), (v, 0.0), (dys, 0.0), (decay, 1.0)] {
                x[length * n..].fill(fill);
            }
            for t in 0..length {
                copy(simd, wkv.row(wkv.r, unit, start + t), &mut r[t * n..]);
                copy(simd, wkv.row(wkv.k, unit, start + t), &mut k[t * n..]);
                copy(simd, wkv.row(wkv.v, unit, start + t), &mut v[t * n..]);
                copy(simd, wkv.decay(unit, start + t), &mut decay[t * n..]);
                copy(simd, wkv.row(dy, unit, start + t), &mut dys[t * n..]);
            }
            turn(v, v_columns, n);
            turn(dys, dy_columns, n);

            // Decays since the chunk's start, and until its end.
            for at in (0..n).step_by(lanes) {
                let mut product = one;
                for t in 0..CHUNK {
                    (V::load(simd, &r[t * n + at..]) * product).store(&mut products[t * n + at..]);
                    product = product * V::load(simd, &decay[t * n + at..]);
                }
                product.store(&mut total[at..]);
                product = one;
                for t in (0..CHUNK).rev() {
                    (V::load(simd, &k[t * n + at..]) * product).store(&mut k_until[t * n + at..]);
                    product = product * V::load(simd, &decay[t * n + at..]);
                }
            }
            turn(products, r_since, n);

            // What every step reads of the values of those before it, and of its own.
            for j in 0..CHUNK {
                reads[j * CHUNK..][..j].fill(0.0);
                let mut sums = [zero; CHUNK];
                for at in (0..size).step_by(lanes) {
                    let mut key = V::load(simd, &k[j * n + at..]);
                    let own = key * V::load(simd, &r[j * n + at..]);
                    sums[j] = own.mul_add(V::load(simd, &bonus[at..]), sums[j]);
                    for i in j + 1..CHUNK {
                        sums[i] = key.mul_add(V::load(simd, &r[i * n + at..]), sums[i]);
                        key = key * V::load(simd, &decay[i * n + at..]);
                    }
                }
                for i in j..CHUNK {
                    reads[j * CHUNK + i] = sums[i].sum();
                }
            }
            product(simd, pairs, None, dys, n, v_columns, CHUNK);

            for (key, overlap) in overlap.iter_mut().enumerate() {
                let mut sum = zero;
                for at in (key * n..(key + 1) * n).step_by(lanes) {
                    sum = V::load(simd, &state[at..]).mul_add(V::load(simd, &dstate[at..]), sum);
                }
                *overlap = sum.sum();
            }
            product(simd, products, None, state, n, dy_columns, CHUNK);
            turn_back(products, read, n);
            product(simd, products, None, dstate, n, v_columns, CHUNK);
            turn_back(products, written, n);
            product(simd, dvalues, None, k_until, n, dstate, n);
            product(simd, dvalues, Some(ones), reads, CHUNK, dys, n);
            product(simd, dstate, Some(total), r_since, CHUNK, dys, n);

            for (w, (dbonus, ddecay_sum)) in dbonus_sum.iter_mut().zip(&mut ddecay_sum).enumerate() {
                let at = w * lanes;
                let (mut a, mut q, mut read_t, mut write_t) =
                    ([one; CHUNK], [zero; CHUNK], [zero; CHUNK], [zero; CHUNK]);
                for t in 0..CHUNK {
                    a[t] = V::load(simd, &decay[t * n + at..]);
                    q[t] = V::load(simd, &r[t * n + at..]);
                    read_t[t] = V::load(simd, &read[t * n + at..]);
                    write_t[t] = V::load(simd, &written[t * n + at..]);
                }
                let bonus = V::load(simd, &bonus[at..]);
                let mut overlap = V::load(simd, &overlap[at..]); // of the matrix before t with D
                for t in 0..length {
                    let (key, own) = (V::load(simd, &k[t * n + at..]), V::splat(simd, pairs[t * CHUNK + t]));
                    (own * bonus).mul_add(key, read_t[t]).store(&mut dr_rows[t * n + at..]);
                    *dbonus = (own * key).mul_add(q[t], *dbonus);
                    let mut gradient = overlap;
                    for i in (t + 1..CHUNK).rev() {
                        gradient = a[i].mul_add(gradient, q[i] * read_t[i]);
                        read_t[i] = a[t].mul_add(read_t[i], key * V::splat(simd, pairs[i * CHUNK + t]));
                    }
                    overlap = a[t].mul_add(overlap, key * write_t[t]);
                    match wkv.is_steady() {
                        true => *ddecay_sum += gradient,
                        false => gradient.init(&mut ddecay[start + t][at..]),
                    }
                }
                for t in (0..CHUNK).rev() {
                    let own = V::splat(simd, pairs[t * CHUNK + t]);
                    (own * bonus).mul_add(q[t], write_t[t]).store(&mut dk_rows[t * n + at..]);
                    for j in 0..t {
                        write_t[j] = a[t].mul_add(write_t[j], q[t] * V::splat(simd, pairs[t * CHUNK + j]));
                    }
                }
            }
            for t in 0..length {
                let rows =
                    [(&mut dr[start + t], &*dr_rows), (&mut dk[start + t], dk_rows), (&mut dv[start + t], dvalues)];
                for (to, from) in rows {
                    let from = &from[t * n..][..size];
                    for (to, from) in to.chunks_mut(lanes).zip(from.chunks(lanes)) {
                        V::load(simd, from).init(to);
                    }
                }
            }
        }
        for (to, from) in dmatrix.chunks_exact_mut(size).zip(dstate.chunks_exact(n)) {
            copy(simd, &from[..size], to);
        }
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

/// Copies a row, vector by vector; the last may write zeros after it.
#[inline(always)]
fn copy<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    for (from, to) in from.chunks(V::<S>::LANES).zip(to.chunks_mut(V::<S>::LANES)) {
        V::load(simd, from).store(to);
    }
}

/// Rows of `size` numbers to the start of rows of `n`.
#[inline(always)]
fn copy_rows<S: Simd>(simd: S, from: &[f32], size: usize, to: &mut [f32], n: usize) {
    for (from, to) in from.chunks_exact(size).zip(to.chunks_exact_mut(n)) {
        copy(simd, from, to);
    }
}

/// `[CHUNK, n]` → `[n, CHUNK]`.
#[inline(always)]
fn turn(from: &[f32], to: &mut [f32], n: usize) {
    for (t, row) in from.chunks_exact(n).enumerate() {
        for (to, &x) in to.as_chunks_mut::<CHUNK>().0.iter_mut().zip(row) {
            to[t] = x;
        }
    }
}

/// The way back from [`turn`].
#[inline(always)]
fn turn_back(from: &[f32], to: &mut [f32], n: usize) {
    for (t, row) in to.chunks_exact_mut(n).enumerate() {
        for (to, x) in row.iter_mut().zip(from.as_chunks::<CHUNK>().0) {
            *to = x[t];
        }
    }
}

/// `out = left·right`, or with `keep` this plus what `out` was, each row times a number of `keep`: `left` `[rows, depth]`,
/// `right` `[depth, columns]`. Rows, depth and columns are multiples of [`CHUNK`], and that of the lanes of any vector.
#[inline(always)]
fn product<S: Simd>(
    simd: S,
    out: &mut [f32],
    keep: Option<&[f32]>,
    left: &[f32],
    depth: usize,
    right: &[f32],
    columns: usize,
) {
    match columns / V::<S>::LANES {
        vectors if vectors.is_multiple_of(4) && V::<S>::LANES == 16 => {
            tiles_of::<S, 4, 4>(simd, out, keep, left, depth, right, vectors);
        }
        vectors if vectors.is_multiple_of(2) => tiles_of::<S, 4, 2>(simd, out, keep, left, depth, right, vectors),
        vectors => tiles_of::<S, 8, 1>(simd, out, keep, left, depth, right, vectors),
    }
}

/// [`product`] in tiles of R rows and W vectors, whose sums are in registers.
#[inline(always)]
fn tiles_of<S: Simd, const R: usize, const W: usize>(
    simd: S,
    out: &mut [f32],
    keep: Option<&[f32]>,
    left: &[f32],
    depth: usize,
    right: &[f32],
    vectors: usize,
) {
    let (out, right) = (S::as_mut_simd_f32s(out).0, S::as_simd_f32s(right).0);
    for (block, (out, left)) in out.chunks_exact_mut(R * vectors).zip(left.chunks_exact(R * depth)).enumerate() {
        for first in (0..vectors).step_by(W) {
            let mut sums = [[simd.splat_f32s(0.0); W]; R];
            for (part, right) in right.chunks_exact(CHUNK * vectors).enumerate() {
                let mut rows = [&[0.0; CHUNK]; R];
                for (row, left) in rows.iter_mut().zip(left.chunks_exact(depth)) {
                    *row = &left.as_chunks().0[part];
                }
                for k in 0..CHUNK {
                    let columns = &right[k * vectors + first..][..W];
                    for r in 0..R {
                        let x = simd.splat_f32s(rows[r][k]);
                        for w in 0..W {
                            sums[r][w] = simd.mul_add_f32s(x, columns[w], sums[r][w]);
                        }
                    }
                }
            }
            for (r, (out, sums)) in out.chunks_exact_mut(vectors).zip(sums).enumerate() {
                let out = &mut out[first..][..W];
                if let Some(keep) = keep {
                    let keep = simd.splat_f32s(keep[block * R + r]);
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = simd.mul_add_f32s(keep, *out, sum);
                    }
                } else {
                    out.copy_from_slice(&sums);
                }
            }
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
