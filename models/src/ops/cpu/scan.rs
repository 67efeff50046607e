//! Mamba's selective scan with its skip connection and gate, forward and backward in one sweep over time each.
//!
//! Vectors run along the channels, so that every channel's state is updated by plain multiply-adds, and no number that
//! is `[batch, seq, channels, state]` big is ever in memory: the way back recomputes the states from those at every
//! `CHUNK`th time step, as section 3.3.2 of the paper does for a whole sequence (Gu & Dao, arXiv 2312.00752).

use super::simd::{FROM_EXP2, TO_EXP2, V, sum_blocks, tiles, transpose};
use super::{dims, like, tensor, values, with_simd};
#[cfg(feature = "cube")]
use crate::ops::cube;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use crate::ops::scan;
use crate::ops::zeros;
use burn::prelude::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Time steps between two states that are kept for the way back.
const CHUNK: usize = 8;

/// Channels that one unit of work takes; fixed, so that sums do not depend on the number of threads.
const GROUP: usize = 64;

/// What the scan reads; the parameters of [`SelectiveScan`](crate::ops::scan::SelectiveScan), row-major.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    /// `[batch, seq, channels, state]`.
    pub shape: [usize; 4],
    /// `[batch, seq, channels]`.
    pub u: &'a [f32],
    /// `[batch, seq, channels]`.
    pub delta: &'a [f32],
    /// `[channels]`.
    pub delta_bias: &'a [f32],
    /// `[channels, state]`.
    pub a: &'a [f32],
    /// `[batch, seq, state]`.
    pub b: &'a [f32],
    /// `[batch, seq, state]`.
    pub c: &'a [f32],
    /// `[channels]`.
    pub d: &'a [f32],
    /// `[batch, seq, channels]`.
    pub z: &'a [f32],
    /// The state before, `[batch, channels, state]`; zero if `None`.
    pub h: Option<&'a [f32]>,
}

/// What [`Scan::forward`] gives.
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, channels]`.
    pub y: Vec<f32>,
    /// The state after, `[batch, channels, state]`.
    pub last: Vec<f32>,
    /// What [`Scan::backward`] needs: states `[batch, seq/CHUNK, state, channels]`; empty if not asked for.
    pub checkpoints: Vec<f32>,
}

/// The gradient of each field of [`Scan`], of its shape.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Gradients {
    pub u: Vec<f32>,
    pub delta: Vec<f32>,
    pub delta_bias: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub c: Vec<f32>,
    pub d: Vec<f32>,
    pub z: Vec<f32>,
    pub h: Vec<f32>,
}

impl Scan<'_> {
    fn groups(&self) -> usize {
        self.shape[2].div_ceil(GROUP)
    }

    /// Runs over time; `keep` what the way back needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        let [batch, seq, channels, state] = self.shape;
        let (a, start) = self.transposed();
        let mut last = start;
        let mut y = vec![0.0; batch * seq * channels];
        let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
        let mut checkpoints = vec![0.0; batch * chunks * state * channels];
        let mut checkpoint_tiles = tiles(&mut checkpoints, chunks * state, channels, GROUP);
        checkpoint_tiles.resize_with(batch * self.groups(), Vec::new);
        let tiles = (tiles(&mut y, seq, channels, GROUP), tiles(&mut last, state, channels, GROUP), checkpoint_tiles);
        tiles.into_par_iter().enumerate().for_each(|(unit, (y, h, checkpoints))| {
            let (example, group) = (unit / self.groups(), unit % self.groups());
            with_simd(Forward { scan: self, a: &a, example, group, y, h, checkpoints });
        });
        Outputs { y, last: transpose(&last, state, channels), checkpoints }
    }

    /// From the gradients of the outputs and of the last state (zero if `None`) to those of everything read.
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Gradients {
        let [batch, seq, channels, state] = self.shape;
        let groups = self.groups();
        let (a, _) = self.transposed();
        let wide = || vec![0.0; batch * seq * channels];
        let (mut du, mut ddelta, mut dz) = (wide(), wide(), wide());
        let mut dh = match last {
            Some(last) => transpose(last, channels, state),
            None => vec![0.0; batch * state * channels],
        };
        let mut da = vec![0.0; batch * state * channels];
        let mut channel = vec![0.0; batch * 2 * channels]; // delta_bias, d
        let mut gates = vec![0.0; batch * groups * 2 * seq * state]; // b, c
        let wide_tiles =
            [&mut du, &mut ddelta, &mut dz].map(|x| tiles(x, seq, channels, GROUP)).map(Vec::into_par_iter);
        let [du_tiles, ddelta_tiles, dz_tiles] = wide_tiles;
        let per_channel = (
            tiles(&mut dh, state, channels, GROUP),
            tiles(&mut da, state, channels, GROUP),
            tiles(&mut channel, 2, channels, GROUP),
        );
        let units =
            (du_tiles, ddelta_tiles, dz_tiles, per_channel.into_par_iter(), gates.par_chunks_mut(2 * seq * state));
        units.into_par_iter().enumerate().for_each(|(unit, (du, ddelta, dz, (dh, da, channel), gates))| {
            let (db, dc) = gates.split_at_mut(seq * state);
            with_simd(Backward {
                scan: self,
                a: &a,
                example: unit / groups,
                group: unit % groups,
                checkpoints,
                dy,
                du,
                ddelta,
                dz,
                dh,
                da,
                channel,
                db,
                dc,
            });
        });
        let channel = sum_blocks(&channel, 2 * channels);
        let (delta_bias, d) = channel.split_at(channels);
        let mut b = Vec::with_capacity(batch * seq * state);
        let mut c = Vec::with_capacity(batch * seq * state);
        for example in gates.chunks(groups * 2 * seq * state) {
            let sum = sum_blocks(example, 2 * seq * state);
            b.extend_from_slice(&sum[..seq * state]);
            c.extend_from_slice(&sum[seq * state..]);
        }
        Gradients {
            u: du,
            delta: ddelta,
            delta_bias: delta_bias.to_vec(),
            a: transpose(&sum_blocks(&da, state * channels), state, channels),
            b,
            c,
            d: d.to_vec(),
            z: dz,
            h: transpose(&dh, state, channels),
        }
    }

    /// A in powers of two and the state before, with channels last: `[state, channels]`, `[batch, state, channels]`.
    fn transposed(&self) -> (Vec<f32>, Vec<f32>) {
        let [batch, _, channels, state] = self.shape;
        let a = transpose(self.a, channels, state).into_iter().map(|a| a * TO_EXP2).collect();
        let start = match self.h {
            Some(h) => transpose(h, channels, state),
            None => vec![0.0; batch * state * channels],
        };
        (a, start)
    }

    /// The channels of a block of lanes.
    #[inline(always)]
    fn block<S: Simd>(&self, group: usize, block: usize) -> std::ops::Range<usize> {
        let start = group * GROUP + block * V::<S>::LANES;
        start..(start + V::<S>::LANES).min(self.shape[2])
    }

    /// Blocks of lanes in a group.
    #[inline(always)]
    fn blocks<S: Simd>(&self, group: usize) -> usize {
        GROUP.min(self.shape[2] - group * GROUP).div_ceil(V::<S>::LANES)
    }
}

/// The operation on tensors: the fields of [`Scan`] in their order → outputs and last state.
#[derive(Debug, Clone, Copy)]
pub struct SelectiveScan;

impl SelectiveScan {
    fn of(inputs: &[FlexTensor; 9]) -> Scan<'_> {
        let ([batch, seq, channels], [_, state]) = (dims(&inputs[0]), dims(&inputs[3]));
        let [u, delta, delta_bias, a, b, c, d, z, h] = inputs.each_ref().map(values);
        Scan { shape: [batch, seq, channels, state], u, delta, delta_bias, a, b, c, d, z, h: Some(h) }
    }
}

impl Kernel<9, 2> for SelectiveScan {
    type Saved = ([FlexTensor; 9], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; 9], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let Outputs { y, last, checkpoints } = Self::of(&inputs).forward(save);
        let outputs = [tensor(y, dims::<3>(&inputs[0])), tensor(last, dims::<3>(&inputs[8]))];
        let length = checkpoints.len();
        (outputs, save.then(|| (inputs, tensor(checkpoints, [length]))))
    }

    fn backward(
        &self,
        (inputs, checkpoints): Self::Saved,
        [dy, last]: [Option<FlexTensor>; 2],
        _: [bool; 9],
    ) -> [Option<FlexTensor>; 9] {
        let Some(dy) = dy else { return Default::default() };
        let scan = Self::of(&inputs);
        let Gradients { u, delta, delta_bias, a, b, c, d, z, h } =
            scan.backward(values(&checkpoints), values(&dy), last.as_ref().map(values));
        let mut gradients = [u, delta, delta_bias, a, b, c, d, z, h].into_iter();
        inputs.each_ref().map(|input| Some(like(input, gradients.next()?)))
    }

    const ON_GPU: bool = true;

    #[cfg(feature = "cube")]
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 9],
        save: bool,
    ) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
        cube::scan::forward(inputs, save)
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; 2],
        _: [bool; 9],
    ) -> [Option<CubeTensor<R>>; 9] {
        cube::scan::backward(saved, gradients)
    }
}

/// The channels of one group, of one example.
struct Forward<'a> {
    scan: &'a Scan<'a>,
    a: &'a [f32],
    example: usize,
    group: usize,
    y: Vec<&'a mut [f32]>,
    /// In: the state before. Out: the state after.
    h: Vec<&'a mut [f32]>,
    checkpoints: Vec<&'a mut [f32]>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { scan, a, example, group, mut y, h: mut state_rows, mut checkpoints } = self;
        let [_, seq, channels, state] = scan.shape;
        let blocks = scan.blocks::<S>(group);
        let lanes = V::<S>::LANES;
        let zero = V::splat(simd, 0.0);
        let (mut rates, mut h) = (vec![zero; blocks * state], vec![zero; blocks * state]);
        for block in 0..blocks {
            let range = scan.block::<S>(group, block);
            for n in 0..state {
                rates[block * state + n] = V::load(simd, &a[n * channels..][range.clone()]);
                let width = state_rows[n].len();
                h[block * state + n] = V::load(simd, &state_rows[n][block * lanes..((block + 1) * lanes).min(width)]);
            }
        }
        for (t, y) in y.iter_mut().enumerate() {
            let token = example * seq + t;
            let (b, c) = (&scan.b[token * state..][..state], &scan.c[token * state..][..state]);
            let keep = t % CHUNK == 0 && !checkpoints.is_empty();
            for block in 0..blocks {
                let range = scan.block::<S>(group, block);
                let row = |x: &[f32]| V::load(simd, &x[token * channels..][range.clone()]);
                let h = &mut h[block * state..][..state];
                if keep {
                    for (n, h) in h.iter().enumerate() {
                        h.store(&mut checkpoints[t / CHUNK * state + n][block * lanes..]);
                    }
                }
                let bias = V::load(simd, &scan.delta_bias[range.clone()]);
                let (u, z, delta) = (row(scan.u), row(scan.z), (row(scan.delta) + bias).softplus());
                let input = delta * u;
                let mut sum = u * V::load(simd, &scan.d[range.clone()]);
                for (((h, &rate), &b), &c) in h.iter_mut().zip(&rates[block * state..][..state]).zip(b).zip(c) {
                    *h = (delta * rate).exp2().mul_add(*h, input * b);
                    sum = h.mul_add(V::splat(simd, c), sum);
                }
                (sum * z * z.sigmoid()).store(&mut y[block * lanes..]);
            }
        }
        for block in 0..blocks {
            for n in 0..state {
                h[block * state + n].store(&mut state_rows[n][block * lanes..]);
            }
        }
    }
}

/// The channels of one group, of one example.
struct Backward<'a> {
    scan: &'a Scan<'a>,
    a: &'a [f32],
    example: usize,
    group: usize,
    checkpoints: &'a [f32],
    dy: &'a [f32],
    du: Vec<&'a mut [f32]>,
    ddelta: Vec<&'a mut [f32]>,
    dz: Vec<&'a mut [f32]>,
    /// In: of the state after. Out: of the state before.
    dh: Vec<&'a mut [f32]>,
    da: Vec<&'a mut [f32]>,
    /// Of `delta_bias` and of `d`.
    channel: Vec<&'a mut [f32]>,
    /// This group's share, `[seq, state]`.
    db: &'a mut [f32],
    dc: &'a mut [f32],
}

/// What one block of lanes carries from chunk to chunk, backwards.
struct Carried<S: Simd> {
    dbias: V<S>,
    dd: V<S>,
    /// `[state]`: the rates, the gradients of the state and of A.
    states: Vec<[V<S>; 3]>,
}

/// One time step of one block of lanes.
#[derive(Clone, Copy)]
struct Step<S: Simd> {
    u: V<S>,
    z: V<S>,
    /// Before and after softplus.
    raw: V<S>,
    delta: V<S>,
    y: V<S>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { scan, a, example, group, checkpoints, dy, mut du, mut ddelta, mut dz, .. } = self;
        let (mut dh, mut da, mut channel, db, dc) = (self.dh, self.da, self.channel, self.db, self.dc);
        let [_, seq, channels, state] = scan.shape;
        let chunks = seq.div_ceil(CHUNK);
        let lanes = V::<S>::LANES;
        let zero = V::splat(simd, 0.0);
        let mut carried: Vec<Carried<S>> = (0..scan.blocks::<S>(group))
            .map(|block| {
                let range = scan.block::<S>(group, block);
                let part = |n: usize| {
                    let rate = V::load(simd, &a[n * channels..][range.clone()]);
                    let dh = V::load(simd, &dh[n][block * lanes..][..range.len()]);
                    [rate, dh, zero]
                };
                Carried { dbias: zero, dd: zero, states: (0..state).map(part).collect() }
            })
            .collect();
        // Of one block and chunk: states `[time + 1, state]`, decays `[time, state]`, and the time steps' own numbers.
        let (mut states, mut decays) = (vec![zero; (CHUNK + 1) * state], vec![zero; CHUNK * state]);
        let mut steps = [Step { u: zero, z: zero, raw: zero, delta: zero, y: zero }; CHUNK];
        let mut dgates = vec![[zero; 2]; CHUNK * state]; // of b and c, over all blocks
        for chunk in (0..chunks).rev() {
            let start = chunk * CHUNK;
            let length = CHUNK.min(seq - start);
            dgates.fill([zero; 2]);
            for (block, carried) in carried.iter_mut().enumerate() {
                let range = scan.block::<S>(group, block);
                let bias = V::load(simd, &scan.delta_bias[range.clone()]);
                let d = V::load(simd, &scan.d[range.clone()]);
                for (n, h) in states[..state].iter_mut().enumerate() {
                    *h = V::load(
                        simd,
                        &checkpoints[((example * chunks + chunk) * state + n) * channels..][range.clone()],
                    );
                }
                for (i, step) in steps[..length].iter_mut().enumerate() {
                    let token = example * seq + start + i;
                    let row = |x: &[f32]| V::load(simd, &x[token * channels..][range.clone()]);
                    let (u, z, raw) = (row(scan.u), row(scan.z), row(scan.delta) + bias);
                    let delta = raw.softplus();
                    let (b, c) = (&scan.b[token * state..][..state], &scan.c[token * state..][..state]);
                    let (before, after) = states[i * state..][..2 * state].split_at_mut(state);
                    let (input, mut y) = (delta * u, u * d);
                    let decays = decays[i * state..][..state].iter_mut();
                    let moved = before.iter().zip(after).zip(decays).zip(&carried.states).zip(b).zip(c);
                    for (((((before, after), decay), [rate, ..]), &b), &c) in moved {
                        *decay = (delta * *rate).exp2();
                        *after = decay.mul_add(*before, input * b);
                        y = after.mul_add(V::splat(simd, c), y);
                    }
                    *step = Step { u, z, raw, delta, y };
                }
                for (i, &Step { u, z, raw, delta, y }) in steps[..length].iter().enumerate().rev() {
                    let (t, token) = (start + i, example * seq + start + i);
                    let dout = V::load(simd, &dy[token * channels..][range.clone()]);
                    let sigmoid = z.sigmoid();
                    let one = V::splat(simd, 1.0);
                    let dy = dout * z * sigmoid;
                    let slope = sigmoid * z.mul_add(one - sigmoid, one); // of silu
                    (dout * y * slope).store(&mut dz[t][block * lanes..]);
                    carried.dd = dy.mul_add(u, carried.dd);
                    let input = delta * u;
                    let (mut dinput, mut drate) = (zero, zero);
                    let (b, c) = (&scan.b[token * state..][..state], &scan.c[token * state..][..state]);
                    let (before, after) = states[i * state..][..2 * state].split_at(state);
                    let decays = &decays[i * state..][..state];
                    let dgates = dgates[i * state..][..state].iter_mut();
                    let moved = before.iter().zip(after).zip(decays).zip(&mut carried.states).zip(dgates).zip(b).zip(c);
                    for ((((((before, after), &decay), [rate, dh, da]), [db, dc]), &b), &c) in moved {
                        let g = dy.mul_add(V::splat(simd, c), *dh);
                        *dc = dy.mul_add(*after, *dc);
                        *db = g.mul_add(input, *db);
                        dinput = g.mul_add(V::splat(simd, b), dinput);
                        *dh = g * decay;
                        let dexponent = *dh * *before;
                        *da = dexponent.mul_add(delta, *da);
                        drate = dexponent.mul_add(*rate, drate);
                    }
                    // Rates are those of powers of two.
                    let ddelta_t = dinput.mul_add(u, drate * FROM_EXP2) * raw.sigmoid();
                    carried.dbias += ddelta_t;
                    ddelta_t.store(&mut ddelta[t][block * lanes..]);
                    let d = V::load(simd, &scan.d[range.clone()]);
                    dinput.mul_add(delta, dy * d).store(&mut du[t][block * lanes..]);
                }
            }
            let rows = start * state..(start + length) * state;
            for (([b, c], db), dc) in dgates.iter().zip(&mut db[rows.clone()]).zip(&mut dc[rows]) {
                (*db, *dc) = (b.sum(), c.sum());
            }
        }
        for (block, carried) in carried.iter().enumerate() {
            carried.dbias.store(&mut channel[0][block * lanes..]);
            carried.dd.store(&mut channel[1][block * lanes..]);
            for (n, [_, dh_n, da_n]) in carried.states.iter().enumerate() {
                dh_n.store(&mut dh[n][block * lanes..]);
                da_n.store(&mut da[n][block * lanes..]);
            }
        }
    }
}

/// The kernel's version of [`scan::selective_scan`].
#[allow(clippy::type_complexity)] // outputs and state
pub fn selective_scan<B: RunKernels>(
    inputs: &scan::SelectiveScan<B>,
    h: Option<&Tensor<B, 3>>,
) -> Option<(Tensor<B, 3>, Tensor<B, 3>)> {
    let scan::SelectiveScan { u, delta, delta_bias, a, b, c, d, z } = inputs;
    let ([batch, _, channels], [_, state]) = (u.dims(), a.dims());
    let h = h.cloned().unwrap_or_else(|| zeros(u, [batch, channels, state]));
    let (u, delta, delta_bias, a) = (float(u), float(delta), float(delta_bias), float(a));
    let inputs = [u, delta, delta_bias, a, float(b), float(c), float(d), float(z), float(&h)];
    B::run(SelectiveScan, inputs).map(|[y, last]| (kernel::tensor(y), kernel::tensor(last)))
}
