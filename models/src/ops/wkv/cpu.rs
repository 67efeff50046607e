//! The WKV operation of RWKV-5 and RWKV-6, forward and backward in one time loop each.
//!
//! A head's matrix stays in the first cache for all its time steps, key by key, with vectors along the values: the
//! recurrence as defined. The backward pass takes a few time steps at once, between two matrices that were kept, and
//! never computes those in between. Both only multiply decays: nothing is divided by a product of them, which may be
//! close to zero.

use super::chunk::{CHUNK, Chunk, copy, copy_rows, turn};
use crate::ops::cpu::memory::uninit;
use crate::ops::cpu::simd::{V, pack, sum_blocks, tiles, unpack};
use crate::ops::cpu::{dims, gradients_of, tensor, values, with_simd};
#[cfg(feature = "cube")]
use crate::ops::cube::gpu_gradients;
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use crate::ops::zeros;
use burn::prelude::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

inputs! {
    /// The tensors that the operation reads, row-major; see [`recurrent`](crate::ops::wkv::recurrent).
    pub struct Inputs {
        /// `[batch, seq, heads, size]`.
        r,
        /// `[batch, seq, heads, size]`.
        k,
        /// `[batch, seq, heads, size]`.
        v,
        /// `[batch, seq, heads, size]`, or `[1, 1, heads, size]` where it is the same at all times.
        decay,
        /// `[heads, size]`.
        bonus,
        /// The matrices before, `[batch, heads, key, value]`.
        state,
    }
}

/// Tensors that [`WkvKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// The operation on numbers.
#[derive(Debug, Clone, Copy)]
pub struct Wkv<'a> {
    /// `[batch, seq, heads, size]`.
    pub shape: [usize; 4],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
}

/// The results of [`Wkv::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, heads, size]`.
    pub y: Vec<f32>,
    /// The matrices after, `[batch, heads, key, value]`.
    pub last: Vec<f32>,
    /// Kept for [`Wkv::backward`]: matrices `[batch, heads, seq/CHUNK, key, value]`; empty if not requested.
    pub checkpoints: Vec<f32>,
}

impl<'a> Wkv<'a> {
    fn units(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    /// Numbers of a tensor of this shape, which `r` is.
    fn numbers(&self) -> usize {
        let numbers = self.shape.iter().product();
        assert!(self.inputs.r.len() == numbers, "{} numbers are not {:?}", self.inputs.r.len(), self.shape);
        numbers
    }

    /// Runs over time; `keep`: saves what the backward pass needs. The larger results are in uninitialised memory.
    ///
    /// # Panics
    /// An input has the wrong shape.
    #[allow(unsafe_code)]
    pub fn forward(&self, keep: bool) -> Outputs {
        let [_, seq, heads, size] = self.shape;
        let mut y = uninit(self.numbers());
        let mut last = self.inputs.state.to_vec();
        assert!(last.len() == self.units() * size * size, "{} numbers are no matrices of {:?}", last.len(), self.shape);
        let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
        let mut checkpoints = uninit(self.units() * chunks * size * size);
        let kept: Vec<&mut [MaybeUninit<f32>]> = match chunks {
            0 => (0..self.units()).map(|_| Default::default()).collect(),
            _ => checkpoints.chunks_mut(chunks * size * size).collect(),
        };
        let units = (tiles(&mut y, seq, heads * size, size), last.par_chunks_mut(size * size), kept);
        units.into_par_iter().enumerate().for_each(|(unit, (y, matrix, checkpoints))| {
            with_simd(Forward { wkv: self, unit, y, matrix, checkpoints });
        });
        // SAFETY: the assertions leave a unit for every head of every example, and `Forward` writes all its time steps,
        // and a matrix at the start of each of its chunks.
        let (y, checkpoints) = unsafe { (y.assume_init().into_vec(), checkpoints.assume_init().into_vec()) };
        Outputs { y, last, checkpoints }
    }

    /// From the gradients of the outputs and of the last matrices (zero if `None`) to those of all inputs, the larger
    /// in uninitialised memory.
    ///
    /// # Panics
    /// A slice has the wrong shape.
    #[allow(unsafe_code)]
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Inputs<Vec<f32>> {
        let [_, seq, heads, size] = self.shape;
        let whole = || uninit(self.numbers());
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
        // SAFETY: the assertions leave a unit for every head of every example, and `Backward` writes all its time
        // steps.
        let [dr, dk, dv, ddecay] = [dr, dk, dv, ddecay].map(|x| unsafe { x.assume_init() }.into_vec());
        Inputs {
            r: dr,
            k: dk,
            v: dv,
            decay: if steady { sum_blocks(&ddecay, heads * size) } else { ddecay },
            bonus: sum_blocks(&dbonus, heads * size),
            state: dstate,
        }
    }

    fn is_steady(&self) -> bool {
        self.inputs.decay.len() == self.inputs.bonus.len()
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
        if self.is_steady() { self.bonus_row(self.inputs.decay, unit) } else { self.row(self.inputs.decay, unit, t) }
    }

    /// A unit's part of a tensor like `bonus`.
    #[inline(always)]
    fn bonus_row(&self, x: &'a [f32], unit: usize) -> &'a [f32] {
        let [_, _, heads, size] = self.shape;
        &x[unit % heads * size..][..size]
    }
}

/// The operation on tensors: [`Inputs`] → outputs and last matrices.
#[derive(Debug, Clone, Copy)]
pub struct WkvKernel;

impl WkvKernel {
    fn of(inputs: &[FlexTensor; COUNT]) -> Wkv<'_> {
        Wkv { shape: dims(&inputs[0]), inputs: inputs.each_ref().map(values).into() }
    }
}

impl Kernel<COUNT, 2> for WkvKernel {
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
        let bonus = wkv.bonus_row(wkv.inputs.bonus, unit);
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

/// The numbers that one time step of a head reads.
struct Step<'a, S: Simd> {
    r: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    decay: &'a [f32],
    /// The factor of its own value, Σ r·bonus·k.
    own: V<S>,
}

impl<'a, S: Simd> Step<'a, S> {
    #[inline(always)]
    fn of(simd: S, wkv: &Wkv<'a>, unit: usize, t: usize, bonus: &[f32]) -> Self {
        let [r, k, v] = [wkv.inputs.r, wkv.inputs.k, wkv.inputs.v].map(|x| wkv.row(x, unit, t));
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

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let [_, seq, _, size] = self.wkv.shape;
        let (lanes, zero) = (V::<S>::LANES, V::splat(simd, 0.0));
        let n = size.next_multiple_of(CHUNK);
        let mut memory = vec![0.0; Chunk::numbers(n)];
        let mut chunk = Chunk::new(&mut memory, n);
        copy_rows(simd, self.dmatrix, size, chunk.dstate, n);
        let bonus = self.wkv.bonus_row(self.wkv.inputs.bonus, self.unit);
        let width = size.div_ceil(lanes);
        let mut sums = vec![[zero; 2]; width];
        for index in (0..seq.div_ceil(CHUNK)).rev() {
            let steps = index * CHUNK..seq.min((index + 1) * CHUNK);
            self.load(simd, &mut chunk, index, steps.clone());
            chunk.multiply_decays(simd);
            chunk.read_within(simd, bonus);
            chunk.cross(simd);
            for (w, sums) in sums.iter_mut().enumerate() {
                self.keys(simd, &mut chunk, steps.clone(), w * lanes, bonus, sums);
            }
            self.store(simd, &chunk, steps);
        }
        for (to, from) in self.dmatrix.chunks_exact_mut(size).zip(chunk.dstate.chunks_exact(n)) {
            copy(simd, &from[..size], to);
        }
        for (x, [dbonus, _]) in self.dbonus.chunks_mut(lanes).zip(&sums) {
            dbonus.store(x);
        }
        if self.wkv.is_steady() {
            for (x, [_, ddecay]) in self.ddecay[0].chunks_mut(lanes).zip(&sums) {
                ddecay.init(x);
            }
        }
    }
}

impl Backward<'_> {
    /// The time steps of a chunk, and the matrix before it.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, chunk: &mut Chunk<'_>, index: usize, steps: Range<usize>) {
        let (wkv, unit) = (self.wkv, self.unit);
        let [_, seq, _, size] = wkv.shape;
        let Chunk { n, state, r, k, v, decay, dys, v_columns, dy_columns, .. } = chunk;
        let n = *n;
        let matrix = (unit * seq.div_ceil(CHUNK) + index) * size * size;
        copy_rows(simd, &self.checkpoints[matrix..][..size * size], size, state, n);
        // Steps that neither read nor write nor decay fill up the last chunk.
        for (x, fill) in [(&mut **r, 0.0), (k, 0.0), (v, 0.0), (dys, 0.0), (decay, 1.0)] {
            x[steps.len() * n..].fill(fill);
        }
        for (t, step) in steps.enumerate() {
            copy(simd, wkv.row(wkv.inputs.r, unit, step), &mut r[t * n..]);
            copy(simd, wkv.row(wkv.inputs.k, unit, step), &mut k[t * n..]);
            copy(simd, wkv.row(wkv.inputs.v, unit, step), &mut v[t * n..]);
            copy(simd, wkv.decay(unit, step), &mut decay[t * n..]);
            copy(simd, wkv.row(self.dy, unit, step), &mut dys[t * n..]);
        }
        turn(v, v_columns, n);
        turn(dys, dy_columns, n);
    }

    /// The gradients of r, k and the decay at the chunk's steps, for a vector of keys from `at` on, and the terms added
    /// to those of the bonus and of a steady decay.
    ///
    /// Only vectors of keys are needed: from S·dy_i, the matrix before any step t ≤ i times dy_i follows by the
    /// recurrence of the matrix itself, with the numbers v_t·dy_i in the place of v_t; likewise backwards from D·v_j.
    #[inline(always)]
    fn keys<S: Simd>(
        &mut self,
        simd: S,
        chunk: &mut Chunk<'_>,
        steps: Range<usize>,
        at: usize,
        bonus: &[f32],
        [dbonus, ddecay]: &mut [V<S>; 2],
    ) {
        let Chunk { n, r, k, decay, read, written, pairs, overlap, dr, dk, .. } = chunk;
        let n = *n;
        let [r, k, decay, read, written, pairs, overlap] =
            [&**r, &**k, &**decay, &**read, &**written, &**pairs, &**overlap];
        let [dr, dk] = [&mut **dr, &mut **dk];
        let (zero, one) = (V::splat(simd, 0.0), V::splat(simd, 1.0));
        let (mut a, mut q, mut read_t, mut write_t) = ([one; CHUNK], [zero; CHUNK], [zero; CHUNK], [zero; CHUNK]);
        for t in 0..CHUNK {
            a[t] = V::load(simd, &decay[t * n + at..]);
            q[t] = V::load(simd, &r[t * n + at..]);
            read_t[t] = V::load(simd, &read[t * n + at..]);
            write_t[t] = V::load(simd, &written[t * n + at..]);
        }
        let bonus = V::load(simd, &bonus[at..]);
        let mut overlap = V::load(simd, &overlap[at..]); // of the matrix before t with D
        for t in 0..steps.len() {
            let (key, own) = (V::load(simd, &k[t * n + at..]), V::splat(simd, pairs[t * CHUNK + t]));
            (own * bonus).mul_add(key, read_t[t]).store(&mut dr[t * n + at..]);
            *dbonus = (own * key).mul_add(q[t], *dbonus);
            let mut gradient = overlap;
            for i in (t + 1..CHUNK).rev() {
                gradient = a[i].mul_add(gradient, q[i] * read_t[i]);
                read_t[i] = a[t].mul_add(read_t[i], key * V::splat(simd, pairs[i * CHUNK + t]));
            }
            overlap = a[t].mul_add(overlap, key * write_t[t]);
            match self.wkv.is_steady() {
                true => *ddecay += gradient,
                false => gradient.init(&mut self.ddecay[steps.start + t][at..]),
            }
        }
        for t in (0..CHUNK).rev() {
            let own = V::splat(simd, pairs[t * CHUNK + t]);
            (own * bonus).mul_add(q[t], write_t[t]).store(&mut dk[t * n + at..]);
            for j in 0..t {
                write_t[j] = a[t].mul_add(write_t[j], q[t] * V::splat(simd, pairs[t * CHUNK + j]));
            }
        }
    }

    /// Writes the gradients of r, k and v at the chunk's steps.
    #[inline(always)]
    fn store<S: Simd>(&mut self, simd: S, chunk: &Chunk<'_>, steps: Range<usize>) {
        let (lanes, size, n) = (V::<S>::LANES, self.wkv.shape[3], chunk.n);
        for (t, step) in steps.enumerate() {
            let rows =
                [(&mut self.dr[step], &*chunk.dr), (&mut self.dk[step], chunk.dk), (&mut self.dv[step], chunk.dv)];
            for (to, from) in rows {
                let from = &from[t * n..][..size];
                for (to, from) in to.chunks_mut(lanes).zip(from.chunks(lanes)) {
                    V::load(simd, from).init(to);
                }
            }
        }
    }
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // outputs and state
pub fn wkv<B: RunKernels>(
    inputs: [&Tensor<B, 4>; 4],
    bonus: &Tensor<B, 2>,
    state: Option<&Tensor<B, 4>>,
) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    let [batch, heads, _, size] = inputs[0].dims();
    let state = state.cloned().unwrap_or_else(|| zeros(inputs[0], [batch, heads, size, size]));
    let [r, k, v, decay] = inputs.map(|x| float(&x.clone().swap_dims(1, 2)));
    let inputs = Inputs { r, k, v, decay, bonus: float(bonus), state: float(&state) };
    B::run(WkvKernel, inputs.into()).map(|[y, last]| (kernel::tensor::<B, 4>(y).swap_dims(1, 2), kernel::tensor(last)))
}
