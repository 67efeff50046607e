//! The sLSTM's recurrence, forward and backward in one time loop each: a head of one example at a time, with its matrix in
//! the cache.

use super::{GATES, SlstmState};
use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, sum_blocks, tiles};
use crate::ops::cpu::{dims, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

#[cfg(feature = "cube")]
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

/// Numbers that the forward pass keeps for each channel and time step: i, f, z, o, c, n, and the derivative of f's
/// logarithm.
pub(super) const KEPT: usize = 7;

/// States of a channel: y, c, n, m.
pub(super) const STATES: usize = 4;

inputs! {
    /// The tensors that the recurrence reads, row-major; see [`reference`](crate::ops::slstm::reference).
    pub struct Inputs {
        /// `[batch, seq, 4·hidden]`.
        gates,
        /// `[heads, 4·size, size]`.
        recurrent,
        /// The states y, c, n and m before, `[batch, 4, hidden]`.
        state,
    }
}

/// Tensors that [`SlstmKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// The recurrence on numbers.
#[derive(Debug, Clone, Copy)]
pub struct Slstm<'a> {
    /// Examples, time steps, heads, channels of a head.
    pub shape: [usize; 4],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
    /// Whether the first time step is the first token's, before which there is no state.
    pub first: bool,
}

/// The results of [`Slstm::forward`].
#[derive(Debug)]
pub struct Outputs {
    /// `[batch, seq, hidden]`.
    pub y: Vec<f32>,
    /// The states after, `[batch, 4, hidden]`.
    pub last: Vec<f32>,
    /// Kept for [`Slstm::backward`]: `[batch, heads, seq, KEPT, size]`; empty if not requested.
    pub kept: Vec<f32>,
}

impl Slstm<'_> {
    fn units(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    /// Runs over time; `keep`: saves what the backward pass needs.
    pub fn forward(&self, keep: bool) -> Outputs {
        let [batch, seq, heads, size] = self.shape;
        let mut y = unwritten(batch * seq * heads * size);
        let mut last = unwritten(batch * STATES * heads * size);
        let length = if keep { seq * KEPT * size } else { 0 };
        let mut kept = unwritten(self.units() * length);
        let pieces: Vec<&mut [f32]> = match length {
            0 => (0..self.units()).map(|_| Default::default()).collect(),
            _ => kept.chunks_mut(length).collect(),
        };
        let units = (tiles(&mut y, seq, heads * size, size), tiles(&mut last, STATES, heads * size, size), pieces);
        units.into_par_iter().enumerate().for_each(|(unit, (y, last, kept))| {
            with_simd(Forward { slstm: self, unit, y, last, kept });
        });
        Outputs { y, last, kept }
    }

    /// From the gradient of the outputs to those of the gates and of the recurrent matrices.
    pub fn backward(&self, y: &[f32], kept: &[f32], dy: &[f32]) -> [Vec<f32>; 2] {
        let [batch, seq, heads, size] = self.shape;
        let mut dgates = unwritten(batch * seq * GATES * heads * size);
        let matrix = GATES * size * size;
        let mut drecurrent = vec![0.0; self.units() * matrix];
        // The rows of a time step, gate by gate, of each head.
        let tiles = tiles(&mut dgates, seq * GATES, heads * size, size);
        let units = (tiles, drecurrent.par_chunks_mut(matrix));
        units.into_par_iter().enumerate().for_each(|(unit, (dgates, drecurrent))| {
            with_simd(Backward { slstm: self, unit, y, kept, dy, dgates, drecurrent });
        });
        [dgates, sum_blocks(&drecurrent, heads * matrix)]
    }

    /// The matrix of a unit's head, `[4·size, size]`.
    fn matrix(&self, unit: usize) -> &[f32] {
        let [_, _, heads, size] = self.shape;
        let matrix = GATES * size * size;
        &self.inputs.recurrent[unit % heads * matrix..][..matrix]
    }

    /// Row `row` of a unit's example in a tensor of `rows` rows of all channels, the unit's channels of it.
    #[inline(always)]
    fn row<'a>(&self, x: &'a [f32], rows: usize, unit: usize, row: usize) -> &'a [f32] {
        let [_, _, heads, size] = self.shape;
        &x[((unit / heads * rows + row) * heads + unit % heads) * size..][..size]
    }
}

/// The operation on tensors: [`Inputs`] → outputs and last states.
#[derive(Debug, Clone, Copy)]
pub struct SlstmKernel {
    /// See [`Slstm::first`].
    pub first: bool,
}

impl SlstmKernel {
    fn of<'a>(&self, inputs: &'a [FlexTensor; COUNT]) -> Slstm<'a> {
        let ([batch, seq, _], [heads, _, size]) = (dims::<3>(&inputs[0]), dims::<3>(&inputs[1]));
        Slstm { shape: [batch, seq, heads, size], inputs: inputs.each_ref().map(values).into(), first: self.first }
    }
}

impl Kernel<COUNT, 2> for SlstmKernel {
    type Saved = ([FlexTensor; COUNT], [FlexTensor; 2]);

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let slstm = self.of(&inputs);
        let [batch, seq, heads, size] = slstm.shape;
        let Outputs { y, last, kept } = slstm.forward(save);
        let (y, last) = (tensor(y, [batch, seq, heads * size]), tensor(last, [batch, STATES, heads * size]));
        let saved = save.then(|| {
            let length = kept.len();
            (inputs, [y.clone(), tensor(kept, [length])])
        });
        ([y, last], saved)
    }

    fn backward(
        &self,
        (inputs, [y, kept]): Self::Saved,
        [dy, _]: [Option<FlexTensor>; 2],
        _: [bool; COUNT],
    ) -> [Option<FlexTensor>; COUNT] {
        let Some(dy) = dy else { return Default::default() };
        let [gates, recurrent] = self.of(&inputs).backward(values(&y), values(&kept), values(&dy));
        [Some(tensor(gates, dims::<3>(&inputs[0]))), Some(tensor(recurrent, dims::<3>(&inputs[1]))), None]
    }

    const ON_GPU: bool = true;

    #[cfg(feature = "cube")]
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; COUNT],
        _: bool,
    ) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
        super::cube::forward(self.first, inputs.into())
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        [dy, _]: [Option<CubeTensor<R>>; 2],
        _: [bool; COUNT],
    ) -> [Option<CubeTensor<R>>; COUNT] {
        match super::cube::backward(self.first, saved, dy) {
            Some([gates, recurrent]) => [Some(gates), Some(recurrent), None],
            None => [const { None }; COUNT],
        }
    }
}

/// One head of one example.
struct Forward<'a> {
    slstm: &'a Slstm<'a>,
    unit: usize,
    y: Vec<&'a mut [f32]>,
    last: Vec<&'a mut [f32]>,
    kept: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { slstm, unit, y: outputs, last, kept } = self;
        let [_, _, _, size] = slstm.shape;
        let lanes = V::<S>::LANES;
        let width = size.div_ceil(lanes);
        let zero = V::splat(simd, 0.0);
        // The matrix by the outputs that it reads: [size, gate, width vectors].
        let matrix = slstm.matrix(unit);
        let mut columns = vec![0.0; size * GATES * width * lanes];
        for (row, values) in matrix.chunks_exact(size).enumerate() {
            let (gate, channel) = (row / size, row % size);
            for (j, &value) in values.iter().enumerate() {
                columns[(j * GATES + gate) * width * lanes + channel] = value;
            }
        }
        let mut state = [(); STATES].map(|()| vec![zero; width]);
        for (i, state) in state.iter_mut().enumerate() {
            let row = slstm.row(slstm.inputs.state, STATES, unit, i);
            for (state, x) in state.iter_mut().zip(row.chunks(lanes)) {
                *state = V::load(simd, x);
            }
        }
        let mut before = vec![0.0; size]; // y of the last step
        before.copy_from_slice(slstm.row(slstm.inputs.state, STATES, unit, 0));
        let mut gates = vec![zero; GATES * width];
        let [y_state, c_state, n_state, m_state] = &mut state;
        for (t, output) in outputs.into_iter().enumerate() {
            for (gate, gates) in gates.chunks_exact_mut(width).enumerate() {
                let row = slstm.row(slstm.inputs.gates, slstm.shape[1] * GATES, unit, t * GATES + gate);
                for (gate, x) in gates.iter_mut().zip(row.chunks(lanes)) {
                    *gate = V::load(simd, x);
                }
            }
            let start = slstm.first && t == 0;
            if !start {
                for (&y, column) in before.iter().zip(columns.chunks_exact(GATES * width * lanes)) {
                    let y = V::splat(simd, y);
                    for (gate, x) in gates.iter_mut().zip(column.chunks_exact(lanes)) {
                        *gate = y.mul_add(V::load(simd, x), *gate);
                    }
                }
            }
            for w in 0..width {
                let [input, forget, z, o] = [0, 1, 2, 3].map(|gate| gates[gate * width + w]);
                // log σ(f̃) = −softplus(−f̃)
                let kept_log = m_state[w] - (zero - forget).softplus();
                let m = if start { input } else { larger(input, kept_log) };
                let i = (input - m).exp();
                let f = if start { zero } else { (kept_log - m).exp() };
                let z = tanh(simd, z);
                let o = o.sigmoid();
                let c = f.mul_add(c_state[w], i * z);
                let n = f.mul_add(n_state[w], i);
                let y = o * c / n;
                (y_state[w], c_state[w], n_state[w], m_state[w]) = (y, c, n, m);
                let at = w * lanes..size.min((w + 1) * lanes);
                y.store(&mut output[at.clone()]);
                y.store(&mut before[at.clone()]);
                if !kept.is_empty() {
                    let rest = (zero - forget).sigmoid();
                    for (k, x) in [i, f, z, o, c, n, rest].into_iter().enumerate() {
                        x.store(&mut kept[(t * KEPT + k) * size..][at.clone()]);
                    }
                }
            }
        }
        for (row, state) in last.into_iter().zip(&state) {
            for (x, state) in row.chunks_mut(lanes).zip(state) {
                state.store(x);
            }
        }
    }
}

/// The larger of both, lane by lane.
#[inline(always)]
fn larger<S: Simd>(a: V<S>, b: V<S>) -> V<S> {
    // a + max(b − a, 0) would round; lanes are few.
    V(a.0, a.0.max_f32s(a.1, b.1))
}

/// (e²ˣ − 1)/(e²ˣ + 1) = 2·σ(2x) − 1, and near 0 by its series.
#[inline(always)]
fn tanh<S: Simd>(simd: S, x: V<S>) -> V<S> {
    let one = V::splat(simd, 1.0);
    let e = (x + x).min(30.0).max(-30.0).exp();
    (e - one) / (e + one)
}

/// One head of one example.
struct Backward<'a> {
    slstm: &'a Slstm<'a>,
    unit: usize,
    y: &'a [f32],
    kept: &'a [f32],
    dy: &'a [f32],
    /// Of each time step and gate.
    dgates: Vec<&'a mut [f32]>,
    /// `[4·size, size]`.
    drecurrent: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let slstm = self.slstm;
        let [_, seq, _, size] = slstm.shape;
        let lanes = V::<S>::LANES;
        let width = size.div_ceil(lanes);
        let (zero, one) = (V::splat(simd, 0.0), V::splat(simd, 1.0));
        let matrix = slstm.matrix(self.unit);
        let kept = &self.kept[self.unit * seq * KEPT * size..][..seq * KEPT * size];
        let [mut dc, mut dn, mut dlast] = [(); 3].map(|()| vec![zero; width]); // from later steps
        for t in (0..seq).rev() {
            let start = slstm.first && t == 0;
            let dy = slstm.row(self.dy, seq, self.unit, t);
            for w in 0..width {
                let at = w * lanes..size.min((w + 1) * lanes);
                let load = |k: usize| V::load(simd, &kept[(t * KEPT + k) * size..][at.clone()]);
                let [i, f, z, o, c, n, rest] = [0, 1, 2, 3, 4, 5, 6].map(load);
                // Lanes without a channel have a normaliser of 0.
                let n = larger(n, V::splat(simd, f32::MIN_POSITIVE));
                let [c_before, n_before] = match (t, start) {
                    (_, true) => [zero; 2],
                    (0, _) => {
                        [1, 2].map(|s| V::load(simd, &slstm.row(slstm.inputs.state, STATES, self.unit, s)[at.clone()]))
                    }
                    _ => [4, 5].map(|k| V::load(simd, &kept[((t - 1) * KEPT + k) * size..][at.clone()])),
                };
                let dy = V::load(simd, &dy[at.clone()]) + dlast[w];
                let ratio = c / n;
                let through = dy * o / n;
                let dct = dc[w] + through;
                let dnt = dn[w] - through * ratio;
                let di = dct.mul_add(z, dnt) * i;
                let df = dct.mul_add(c_before, dnt * n_before) * f * rest;
                let dz = dct * i * (one - z * z);
                let doutput = dy * ratio * o * (one - o);
                (dc[w], dn[w]) = (dct * f, dnt * f);
                for (gate, x) in [di, df, dz, doutput].into_iter().enumerate() {
                    x.store(&mut self.dgates[t * GATES + gate][at.clone()]);
                }
            }
            if start || t == 0 && slstm.first {
                continue;
            }
            let before = match t {
                0 => slstm.row(slstm.inputs.state, STATES, self.unit, 0),
                _ => slstm.row(self.y, seq, self.unit, t - 1),
            };
            dlast.fill(zero);
            let rows = matrix.chunks_exact(size).zip(self.drecurrent.chunks_exact_mut(size)).enumerate();
            for (row, (weights, dweights)) in rows {
                let gradient = V::splat(simd, self.dgates[t * GATES + row / size][row % size]);
                let weights = weights.chunks(lanes).zip(dweights.chunks_mut(lanes)).zip(before.chunks(lanes));
                for (dlast, ((weights, dweights), before)) in dlast.iter_mut().zip(weights) {
                    *dlast = gradient.mul_add(V::load(simd, weights), *dlast);
                    gradient.mul_add(V::load(simd, before), V::load(simd, dweights)).store(dweights);
                }
            }
        }
    }
}

/// The operation, where kernels can run.
pub fn slstm<B: RunKernels>(
    gates: &Tensor<B, 3>,
    recurrent: &Tensor<B, 3>,
    state: Option<&SlstmState<B>>,
) -> Option<(Tensor<B, 3>, SlstmState<B>)> {
    let [batch, _, width] = gates.dims();
    let before = match state {
        Some(SlstmState { y, c, n, m }) => Tensor::stack::<3>(vec![y.clone(), c.clone(), n.clone(), m.clone()], 1),
        None => crate::ops::zeros(gates, [batch, STATES, width / GATES]),
    };
    let kernel = SlstmKernel { first: state.is_none() };
    let inputs = Inputs { gates: float(gates), recurrent: float(recurrent), state: float(&before) };
    B::run(kernel, inputs.into()).map(|[y, last]| {
        let last: Tensor<B, 3> = kernel::tensor(last);
        let part = |i: usize| last.clone().narrow(1, i, 1).squeeze_dim(1);
        (kernel::tensor(y), SlstmState { y: part(0), c: part(1), n: part(2), m: part(3) })
    })
}
