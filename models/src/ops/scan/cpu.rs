//! Mamba's selective scan with its skip connection and gate, forward and backward in one time loop each.
//!
//! Vectors run along the channels, so that every channel's state is updated by multiply-adds, and nothing of size
//! `[batch, seq, channels, state]` is ever in memory: the backward pass recomputes the states from those at every
//! `CHUNK`th time step, as section 3.3.2 of the paper does for a whole sequence (Gu & Dao, arXiv 2312.00752).

use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{FROM_EXP2, TO_EXP2, V, sum_blocks, tiles, transpose};
use crate::ops::cpu::{dims, gradients_of, tensor, values, with_simd};
#[cfg(feature = "cube")]
use crate::ops::cube::gpu_gradients;
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use crate::ops::scan;
use crate::ops::zeros;
use burn::prelude::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Time steps between two states that are kept for the backward pass.
const CHUNK: usize = 8;

/// Channels that one unit of work takes; fixed, so that sums do not depend on the number of threads.
const GROUP: usize = 64;

inputs! {
    /// The tensors that the scan reads, row-major: those of [`SelectiveScan`](crate::ops::scan::SelectiveScan), and the
    /// state.
    pub struct Inputs {
        /// `[batch, seq, channels]`.
        u,
        /// `[batch, seq, channels]`.
        delta,
        /// `[channels]`.
        delta_bias,
        /// `[channels, state]`.
        a,
        /// `[batch, seq, state]`.
        b,
        /// `[batch, seq, state]`.
        c,
        /// `[channels]`.
        d,
        /// `[batch, seq, channels]`.
        z,
        /// The state before, `[batch, channels, state]`.
        h,
    }
}

/// Tensors that [`SelectiveScan`] reads.
const COUNT: usize = Inputs::COUNT;

/// The scan on numbers. Where eigenvalues may be `NEGATIVE`, the factor of a state is 2·exp(Δ·A) − 1, not exp(Δ·A).
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a, const NEGATIVE: bool> {
    /// `[batch, seq, channels, state]`.
    pub shape: [usize; 4],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
}

/// The results of [`Scan::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, channels]`.
    pub y: Vec<f32>,
    /// The state after, `[batch, channels, state]`.
    pub last: Vec<f32>,
    /// Kept for [`Scan::backward`]: states `[batch, seq/CHUNK, state, channels]`; empty if not requested.
    pub checkpoints: Vec<f32>,
}

impl<const NEGATIVE: bool> Scan<'_, NEGATIVE> {
    fn groups(&self) -> usize {
        self.shape[2].div_ceil(GROUP)
    }

    /// Runs over time; `keep`: saves what the backward pass needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        let [batch, seq, channels, state] = self.shape;
        let (a, mut last) = self.transposed();
        let mut y = unwritten(batch * seq * channels);
        let chunks = if keep { seq.div_ceil(CHUNK) } else { 0 };
        let mut checkpoints = unwritten(batch * chunks * state * channels);
        let mut checkpoint_tiles = tiles(&mut checkpoints, chunks * state, channels, GROUP);
        checkpoint_tiles.resize_with(batch * self.groups(), Vec::new);
        let tiles = (tiles(&mut y, seq, channels, GROUP), tiles(&mut last, state, channels, GROUP), checkpoint_tiles);
        tiles.into_par_iter().enumerate().for_each(|(unit, (y, h, checkpoints))| {
            let (example, group) = (unit / self.groups(), unit % self.groups());
            with_simd(Forward { scan: self, a: &a, example, group, y, h, checkpoints });
        });
        Outputs { y, last: transpose(&last, state, channels), checkpoints }
    }

    /// From the gradients of the outputs and of the last state (zero if `None`) to those of all inputs.
    pub fn backward(&self, checkpoints: &[f32], dy: &[f32], last: Option<&[f32]>) -> Inputs<Vec<f32>> {
        let [batch, seq, channels, state] = self.shape;
        let groups = self.groups();
        let (a, _) = self.transposed();
        let [mut du, mut ddelta, mut dz] = [(); 3].map(|()| unwritten(batch * seq * channels));
        let mut dh = match last {
            Some(last) => transpose(last, channels, state),
            None => vec![0.0; batch * state * channels],
        };
        let mut da = unwritten(batch * state * channels);
        let mut channel = unwritten(batch * 2 * channels); // delta_bias, d
        let mut gates = unwritten(batch * groups * 2 * seq * state); // b, c
        let units = (
            tiles(&mut du, seq, channels, GROUP),
            tiles(&mut ddelta, seq, channels, GROUP),
            tiles(&mut dz, seq, channels, GROUP),
            tiles(&mut dh, state, channels, GROUP),
            tiles(&mut da, state, channels, GROUP),
            tiles(&mut channel, 2, channels, GROUP),
            gates.par_chunks_mut(2 * seq * state),
        );
        units.into_par_iter().enumerate().for_each(|(unit, (du, ddelta, dz, dh, da, channel, gates))| {
            let (db, dc) = gates.split_at_mut(seq * state);
            let (example, group) = (unit / groups, unit % groups);
            with_simd(Backward {
                scan: self,
                a: &a,
                example,
                group,
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
        let mut delta_bias = sum_blocks(&channel, 2 * channels);
        let d = delta_bias.split_off(channels);
        let mut b = Vec::with_capacity(batch * seq * state);
        let mut c = Vec::with_capacity(batch * seq * state);
        for example in gates.chunks(groups * 2 * seq * state) {
            let sum = sum_blocks(example, 2 * seq * state);
            b.extend_from_slice(&sum[..seq * state]);
            c.extend_from_slice(&sum[seq * state..]);
        }
        let a = transpose(&sum_blocks(&da, state * channels), state, channels);
        let h = transpose(&dh, state, channels);
        Inputs { u: du, delta: ddelta, delta_bias, a, b, c, d, z: dz, h }
    }

    /// A in powers of two and the state before, with channels last: `[state, channels]`, `[batch, state, channels]`.
    fn transposed(&self) -> (Vec<f32>, Vec<f32>) {
        let [_, _, channels, state] = self.shape;
        let a = transpose(self.inputs.a, channels, state).into_iter().map(|a| a * TO_EXP2).collect();
        (a, transpose(self.inputs.h, channels, state))
    }

    /// B and C of a token, each `[state]`. (The compiler must see that the length is the caller's, to check no bounds.)
    #[inline(always)]
    fn gates(&self, token: usize, state: usize) -> (&[f32], &[f32]) {
        (&self.inputs.b[token * state..][..state], &self.inputs.c[token * state..][..state])
    }

    /// The factor of a state, from Δ·A in powers of two.
    #[inline(always)]
    fn factor<S: Simd>(exponent: V<S>) -> V<S> {
        let decay = exponent.exp2();
        if NEGATIVE { decay.mul_add(V::splat(exponent.0, 2.0), V::splat(exponent.0, -1.0)) } else { decay }
    }

    /// Some channels of a token in a tensor like `u`.
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, x: &[f32], token: usize, channels: &Range<usize>) -> V<S> {
        V::load(simd, &x[token * self.shape[2]..][channels.clone()])
    }

    /// The channels of a block of lanes.
    #[inline(always)]
    fn block<S: Simd>(&self, group: usize, block: usize) -> Range<usize> {
        let start = group * GROUP + block * V::<S>::LANES;
        start..(start + V::<S>::LANES).min(self.shape[2])
    }

    /// Blocks of lanes in a group.
    #[inline(always)]
    fn blocks<S: Simd>(&self, group: usize) -> usize {
        GROUP.min(self.shape[2] - group * GROUP).div_ceil(V::<S>::LANES)
    }
}

/// The operation on tensors: [`Inputs`] → outputs and last state.
#[derive(Debug, Clone, Copy)]
pub struct SelectiveScan {
    /// Whether the factors of the state are 2·exp(Δ·A) − 1 instead of exp(Δ·A).
    pub negative_eigenvalues: bool,
}

fn of<const NEGATIVE: bool>(inputs: &[FlexTensor; COUNT]) -> Scan<'_, NEGATIVE> {
    let tensors = Inputs::from(inputs.each_ref());
    let ([batch, seq, channels], [_, state]) = (dims(tensors.u), dims(tensors.a));
    Scan { shape: [batch, seq, channels, state], inputs: inputs.each_ref().map(values).into() }
}

impl Kernel<COUNT, 2> for SelectiveScan {
    type Saved = ([FlexTensor; COUNT], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let Outputs { y, last, checkpoints } = match self.negative_eigenvalues {
            false => of::<false>(&inputs).forward(save),
            true => of::<true>(&inputs).forward(save),
        };
        let tensors = Inputs::from(inputs.each_ref());
        let outputs = [tensor(y, dims::<3>(tensors.u)), tensor(last, dims::<3>(tensors.h))];
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
        let (checkpoints, dy, last) = (values(&checkpoints), values(&dy), last.as_ref().map(values));
        let gradients = match self.negative_eigenvalues {
            false => of::<false>(&inputs).backward(checkpoints, dy, last),
            true => of::<true>(&inputs).backward(checkpoints, dy, last),
        };
        gradients_of(&inputs, gradients)
    }

    const ON_GPU: bool = true;

    #[cfg(feature = "cube")]
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; COUNT],
        save: bool,
    ) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
        super::cube::forward(inputs.into(), save, self.negative_eigenvalues)
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; 2],
        _: [bool; COUNT],
    ) -> [Option<CubeTensor<R>>; COUNT] {
        gpu_gradients(super::cube::backward(saved, gradients, self.negative_eigenvalues))
    }
}

/// The channels of one group, of one example.
struct Forward<'a, const NEGATIVE: bool> {
    scan: &'a Scan<'a, NEGATIVE>,
    a: &'a [f32],
    example: usize,
    group: usize,
    y: Vec<&'a mut [f32]>,
    /// In: the state before. Out: the state after.
    h: Vec<&'a mut [f32]>,
    checkpoints: Vec<&'a mut [f32]>,
}

impl<const NEGATIVE: bool> WithSimd for Forward<'_, NEGATIVE> {
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
            let (b, c) = scan.gates(token, state);
            let keep = t % CHUNK == 0 && !checkpoints.is_empty();
            for block in 0..blocks {
                let range = scan.block::<S>(group, block);
                let h = &mut h[block * state..][..state];
                if keep {
                    for (n, h) in h.iter().enumerate() {
                        h.store(&mut checkpoints[t / CHUNK * state + n][block * lanes..]);
                    }
                }
                let bias = V::load(simd, &scan.inputs.delta_bias[range.clone()]);
                let (u, z) =
                    (scan.row(simd, scan.inputs.u, token, &range), scan.row(simd, scan.inputs.z, token, &range));
                let delta = (scan.row(simd, scan.inputs.delta, token, &range) + bias).softplus();
                let input = delta * u;
                let mut sum = u * V::load(simd, &scan.inputs.d[range]);
                let rates = &rates[block * state..][..state];
                for n in 0..state {
                    h[n] = Scan::<NEGATIVE>::factor(delta * rates[n]).mul_add(h[n], input * b[n]);
                    sum = h[n].mul_add(V::splat(simd, c[n]), sum);
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
struct Backward<'a, const NEGATIVE: bool> {
    scan: &'a Scan<'a, NEGATIVE>,
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

/// The numbers that one block of lanes carries from chunk to chunk, backwards.
struct Carried<S: Simd> {
    /// The gradient of the bias.
    dbias: V<S>,
    /// The gradient of D.
    dd: V<S>,
    /// `[state]`.
    states: Vec<Channel<S>>,
}

/// A number of the state in one block of lanes.
#[derive(Clone, Copy)]
struct Channel<S: Simd> {
    /// A, in powers of two.
    rate: V<S>,
    /// The gradient of the state.
    dh: V<S>,
    /// The gradient of A.
    da: V<S>,
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

/// The time steps of a chunk, in one block of lanes.
struct Chunk<S: Simd> {
    /// States before each step and after the last, `[CHUNK + 1, state]`.
    states: Vec<V<S>>,
    /// `[CHUNK, state]`.
    factors: Vec<V<S>>,
    steps: [Step<S>; CHUNK],
}

impl<const NEGATIVE: bool> WithSimd for Backward<'_, NEGATIVE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let [_, seq, _, state] = self.scan.shape;
        let zero = V::splat(simd, 0.0);
        let blocks = self.scan.blocks::<S>(self.group);
        let mut carried: Vec<Carried<S>> = (0..blocks).map(|block| self.carried(simd, block)).collect();
        let mut chunk = Chunk {
            states: vec![zero; (CHUNK + 1) * state],
            factors: vec![zero; CHUNK * state],
            steps: [Step { u: zero, z: zero, raw: zero, delta: zero, y: zero }; CHUNK],
        };
        let mut dgates = vec![[zero; 2]; CHUNK * state]; // of b and c, over all blocks
        for index in (0..seq.div_ceil(CHUNK)).rev() {
            let times = index * CHUNK..seq.min((index + 1) * CHUNK);
            dgates.fill([zero; 2]);
            for (block, carried) in carried.iter_mut().enumerate() {
                let channels = self.scan.block::<S>(self.group, block);
                self.recompute(simd, &mut chunk, index, times.clone(), &channels, carried);
                for i in (0..times.len()).rev() {
                    self.step(simd, &chunk, times.start, i, block, carried, &mut dgates[i * state..][..state]);
                }
            }
            for (i, [db, dc]) in dgates[..times.len() * state].iter().enumerate() {
                self.db[times.start * state + i] = db.sum();
                self.dc[times.start * state + i] = dc.sum();
            }
        }
        for (block, carried) in carried.iter().enumerate() {
            let at = block * V::<S>::LANES;
            carried.dbias.store(&mut self.channel[0][at..]);
            carried.dd.store(&mut self.channel[1][at..]);
            for (n, channel) in carried.states.iter().enumerate() {
                channel.dh.store(&mut self.dh[n][at..]);
                channel.da.store(&mut self.da[n][at..]);
            }
        }
    }
}

impl<const NEGATIVE: bool> Backward<'_, NEGATIVE> {
    /// A block's numbers at the end of the sequence.
    #[inline(always)]
    fn carried<S: Simd>(&self, simd: S, block: usize) -> Carried<S> {
        let [_, _, width, state] = self.scan.shape;
        let (zero, channels) = (V::splat(simd, 0.0), self.scan.block::<S>(self.group, block));
        let mut states = Vec::with_capacity(state);
        for n in 0..state {
            let rate = V::load(simd, &self.a[n * width..][channels.clone()]);
            let dh = V::load(simd, &self.dh[n][block * V::<S>::LANES..][..channels.len()]);
            states.push(Channel { rate, dh, da: zero });
        }
        Carried { dbias: zero, dd: zero, states }
    }

    /// The states of a chunk from the one before it, and the other inputs of its steps.
    #[inline(always)]
    fn recompute<S: Simd>(
        &self,
        simd: S,
        chunk: &mut Chunk<S>,
        index: usize,
        times: Range<usize>,
        channels: &Range<usize>,
        carried: &Carried<S>,
    ) {
        let (scan, inputs) = (self.scan, &self.scan.inputs);
        let [_, seq, width, state] = scan.shape;
        let bias = V::load(simd, &inputs.delta_bias[channels.clone()]);
        let d = V::load(simd, &inputs.d[channels.clone()]);
        let first = (self.example * seq.div_ceil(CHUNK) + index) * state;
        for (n, h) in chunk.states[..state].iter_mut().enumerate() {
            *h = V::load(simd, &self.checkpoints[(first + n) * width..][channels.clone()]);
        }
        for (i, t) in times.enumerate() {
            let token = self.example * seq + t;
            let (u, z) = (scan.row(simd, inputs.u, token, channels), scan.row(simd, inputs.z, token, channels));
            let raw = scan.row(simd, inputs.delta, token, channels) + bias;
            let delta = raw.softplus();
            let (b, c) = scan.gates(token, state);
            let (before, after) = chunk.states[i * state..][..2 * state].split_at_mut(state);
            let factors = &mut chunk.factors[i * state..][..state];
            let channel = &carried.states[..state];
            let (input, mut y) = (delta * u, u * d);
            for n in 0..state {
                factors[n] = Scan::<NEGATIVE>::factor(delta * channel[n].rate);
                after[n] = factors[n].mul_add(before[n], input * b[n]);
                y = after[n].mul_add(V::splat(simd, c[n]), y);
            }
            chunk.steps[i] = Step { u, z, raw, delta, y };
        }
    }

    /// Back through step `i` of the chunk that begins at time `start`; `dgates` are the gradients of b and c at it.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the step's place and its outputs
    fn step<S: Simd>(
        &mut self,
        simd: S,
        chunk: &Chunk<S>,
        start: usize,
        i: usize,
        block: usize,
        carried: &mut Carried<S>,
        dgates: &mut [[V<S>; 2]],
    ) {
        let scan = self.scan;
        let [_, seq, _, state] = scan.shape;
        let channels = scan.block::<S>(self.group, block);
        let (t, token, at) = (start + i, self.example * seq + start + i, block * V::<S>::LANES);
        let Step { u, z, raw, delta, y } = chunk.steps[i];
        let (zero, one) = (V::splat(simd, 0.0), V::splat(simd, 1.0));
        let dout = scan.row(simd, self.dy, token, &channels);
        let sigmoid = z.sigmoid();
        let dy = dout * z * sigmoid;
        let slope = sigmoid * z.mul_add(one - sigmoid, one); // of silu
        (dout * y * slope).store(&mut self.dz[t][at..]);
        carried.dd = dy.mul_add(u, carried.dd);
        let input = delta * u;
        let (mut dinput, mut drate) = (zero, zero);
        let (b, c) = scan.gates(token, state);
        let (before, after) = chunk.states[i * state..][..2 * state].split_at(state);
        let factors = &chunk.factors[i * state..][..state];
        let channel = &mut carried.states[..state];
        let dgates = &mut dgates[..state];
        for n in 0..state {
            let Channel { rate, dh, da } = &mut channel[n];
            let [db, dc] = &mut dgates[n];
            let g = dy.mul_add(V::splat(simd, c[n]), *dh);
            *dc = dy.mul_add(after[n], *dc);
            *db = g.mul_add(input, *db);
            dinput = g.mul_add(V::splat(simd, b[n]), dinput);
            *dh = g * factors[n];
            // The derivative of 2·eˣ − 1 is one more than itself.
            let dexponent = if NEGATIVE { g * (factors[n] + one) * before[n] } else { *dh * before[n] };
            *da = dexponent.mul_add(delta, *da);
            drate = dexponent.mul_add(*rate, drate);
        }
        // Rates are those of powers of two.
        let ddelta = dinput.mul_add(u, drate * FROM_EXP2) * raw.sigmoid();
        carried.dbias += ddelta;
        ddelta.store(&mut self.ddelta[t][at..]);
        let d = V::load(simd, &scan.inputs.d[channels]);
        dinput.mul_add(delta, dy * d).store(&mut self.du[t][at..]);
    }
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // outputs and state
pub fn selective_scan<B: RunKernels>(
    inputs: &scan::SelectiveScan<B>,
    h: Option<&Tensor<B, 3>>,
) -> Option<(Tensor<B, 3>, Tensor<B, 3>)> {
    let scan::SelectiveScan { u, delta, delta_bias, a, b, c, d, z, negative_eigenvalues } = inputs;
    let ([batch, _, channels], [_, state]) = (u.dims(), a.dims());
    let h = h.cloned().unwrap_or_else(|| zeros(u, [batch, channels, state]));
    let tensors = Inputs {
        u: float(u),
        delta: float(delta),
        delta_bias: float(delta_bias),
        a: float(a),
        b: float(b),
        c: float(c),
        d: float(d),
        z: float(z),
        h: float(&h),
    };
    let kernel = SelectiveScan { negative_eigenvalues: *negative_eigenvalues };
    B::run(kernel, tensors.into()).map(|[y, last]| (kernel::tensor(y), kernel::tensor(last)))
}
