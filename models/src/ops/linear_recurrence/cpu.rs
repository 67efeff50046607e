//! The recurrence h_t = a_t·h_{t−1} + b_t in every channel, forward and backward.

use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, tiles};
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

/// Channels that one unit of work takes.
const GROUP: usize = 64;

inputs! {
    /// The tensors that the recurrence reads, row-major.
    pub struct Inputs {
        /// `[batch, seq, channels]`.
        a,
        /// `[batch, seq, channels]`.
        b,
        /// The state before, `[batch, channels]`.
        h,
    }
}

/// Tensors that [`LinearKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// The recurrence on numbers.
#[derive(Debug, Clone, Copy)]
pub struct LinearRecurrence<'a> {
    /// `[batch, seq, channels]`.
    pub shape: [usize; 3],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
}

impl LinearRecurrence<'_> {
    /// All states, `[batch, seq, channels]`.
    pub fn forward(&self) -> Vec<f32> {
        let [_, seq, channels] = self.shape;
        let mut states = unwritten(self.inputs.a.len());
        tiles(&mut states, seq, channels, GROUP).into_par_iter().enumerate().for_each(|(unit, states)| {
            with_simd(Forward { recurrence: self, unit, states });
        });
        states
    }

    /// From the gradients of all states (that of the last state included) to those of all inputs.
    pub fn backward(&self, states: &[f32], dstates: &[f32]) -> Inputs<Vec<f32>> {
        let [batch, seq, channels] = self.shape;
        let [mut da, mut db] = [(); 2].map(|()| unwritten(self.inputs.a.len()));
        let mut dh = unwritten(batch * channels);
        let tile = |x| tiles(x, seq, channels, GROUP);
        let units = (tile(&mut da), tile(&mut db), tiles(&mut dh, 1, channels, GROUP));
        units.into_par_iter().enumerate().for_each(|(unit, (da, db, dh))| {
            with_simd(Backward { recurrence: self, unit, states, dstates, da, db, dh });
        });
        Inputs { a: da, b: db, h: dh }
    }

    /// Where a unit's first time step is, and the state before it.
    #[inline(always)]
    fn unit(&self, unit: usize) -> (usize, &[f32]) {
        let [_, seq, channels] = self.shape;
        let groups = channels.div_ceil(GROUP);
        let (example, channel) = (unit / groups, unit % groups * GROUP);
        let state = example * channels..(example + 1) * channels;
        (example * seq * channels + channel, &self.inputs.h[state][channel..])
    }
}

/// The operation on tensors: [`Inputs`] → all states.
#[derive(Debug, Clone, Copy)]
pub struct LinearKernel;

impl LinearKernel {
    fn of(inputs: &[FlexTensor; COUNT]) -> LinearRecurrence<'_> {
        LinearRecurrence { shape: dims(&inputs[0]), inputs: inputs.each_ref().map(values).into() }
    }
}

impl Kernel<COUNT, 1> for LinearKernel {
    type Saved = ([FlexTensor; COUNT], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let states = tensor(Self::of(&inputs).forward(), dims::<3>(&inputs[0]));
        ([states.clone()], save.then_some((inputs, states)))
    }

    fn backward(
        &self,
        (inputs, states): Self::Saved,
        [dstates]: [Option<FlexTensor>; 1],
        _: [bool; COUNT],
    ) -> [Option<FlexTensor>; COUNT] {
        let Some(dstates) = dstates else { return Default::default() };
        gradients_of(&inputs, Self::of(&inputs).backward(values(&states), values(&dstates)))
    }

    const ON_GPU: bool = true;

    #[cfg(feature = "cube")]
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; COUNT],
        _: bool,
    ) -> Option<([CubeTensor<R>; 1], Vec<CubeTensor<R>>)> {
        Some(super::cube::forward(inputs.into()))
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        [dstates]: [Option<CubeTensor<R>>; 1],
        _: [bool; COUNT],
    ) -> [Option<CubeTensor<R>>; COUNT] {
        gpu_gradients(super::cube::backward(saved, dstates))
    }
}

/// Some channels of one example.
struct Forward<'a> {
    recurrence: &'a LinearRecurrence<'a>,
    unit: usize,
    states: Vec<&'a mut [f32]>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (start, before) = self.recurrence.unit(self.unit);
        let channels = self.recurrence.shape[2];
        let lanes = V::<S>::LANES;
        let mut h = [V::splat(simd, 0.0); GROUP];
        for (h, x) in h.iter_mut().zip(before[..before.len().min(GROUP)].chunks(lanes)) {
            *h = V::load(simd, x);
        }
        for (t, states) in self.states.into_iter().enumerate() {
            let row = start + t * channels..start + t * channels + states.len();
            let (a, b) = (&self.recurrence.inputs.a[row.clone()], &self.recurrence.inputs.b[row]);
            for (h, at) in h.iter_mut().zip((0..states.len()).step_by(lanes)) {
                *h = V::load(simd, &a[at..]).mul_add(*h, V::load(simd, &b[at..]));
                h.store(&mut states[at..]);
            }
        }
    }
}

/// Some channels of one example.
struct Backward<'a> {
    recurrence: &'a LinearRecurrence<'a>,
    unit: usize,
    states: &'a [f32],
    dstates: &'a [f32],
    da: Vec<&'a mut [f32]>,
    db: Vec<&'a mut [f32]>,
    dh: Vec<&'a mut [f32]>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (start, first) = self.recurrence.unit(self.unit);
        let channels = self.recurrence.shape[2];
        let lanes = V::<S>::LANES;
        let mut g = [V::splat(simd, 0.0); GROUP]; // of the state after, through the later ones
        for (t, (da, db)) in self.da.into_iter().zip(self.db).enumerate().rev() {
            let at = start + t * channels;
            let row = at..at + da.len();
            let (a, dstates) = (&self.recurrence.inputs.a[row.clone()], &self.dstates[row]);
            let before = if t == 0 { &first[..da.len()] } else { &self.states[at - channels..][..da.len()] };
            for (g, at) in g.iter_mut().zip((0..da.len()).step_by(lanes)) {
                let dstate = V::load(simd, &dstates[at..]) + *g;
                dstate.store(&mut db[at..]);
                (dstate * V::load(simd, &before[at..])).store(&mut da[at..]);
                *g = dstate * V::load(simd, &a[at..]);
            }
        }
        for dh in self.dh {
            for (x, g) in dh.chunks_mut(lanes).zip(&g) {
                g.store(x);
            }
        }
    }
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // outputs and state
pub fn linear_recurrence<B: RunKernels>(
    a: &Tensor<B, 3>,
    b: &Tensor<B, 3>,
    h: Option<&Tensor<B, 2>>,
) -> Option<(Tensor<B, 3>, Tensor<B, 2>)> {
    let [batch, seq, channels] = a.dims();
    let h = h.cloned().unwrap_or_else(|| zeros(a, [batch, channels]));
    let [states] = B::run(LinearKernel, Inputs { a: float(a), b: float(b), h: float(&h) }.into())?;
    let states: Tensor<B, 3> = kernel::tensor(states);
    Some((states.clone(), states.narrow(1, seq - 1, 1).squeeze_dim(1)))
}
