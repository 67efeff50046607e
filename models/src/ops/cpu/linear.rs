//! The recurrence h_t = a_t·h_{t−1} + b_t in every channel, forward and backward.

use super::simd::{V, tiles};
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

/// Channels that one unit of work takes.
const GROUP: usize = 64;

/// What the recurrence reads, row-major.
#[derive(Debug, Clone, Copy)]
pub struct LinearRecurrence<'a> {
    /// `[batch, seq, channels]`.
    pub shape: [usize; 3],
    /// `[batch, seq, channels]`.
    pub a: &'a [f32],
    /// `[batch, seq, channels]`.
    pub b: &'a [f32],
    /// The state before, `[batch, channels]`; zero if `None`.
    pub h: Option<&'a [f32]>,
}

/// The gradient of each field of [`LinearRecurrence`], of its shape.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Gradients {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub h: Vec<f32>,
}

impl LinearRecurrence<'_> {
    /// All states, `[batch, seq, channels]`.
    pub fn forward(&self) -> Vec<f32> {
        let [_, seq, channels] = self.shape;
        let mut states = vec![0.0; self.a.len()];
        tiles(&mut states, seq, channels, GROUP).into_par_iter().enumerate().for_each(|(unit, states)| {
            with_simd(Forward { recurrence: self, unit, states });
        });
        states
    }

    /// From the gradients of all states (that of the last state included) to those of everything read.
    pub fn backward(&self, states: &[f32], dstates: &[f32]) -> Gradients {
        let [batch, seq, channels] = self.shape;
        let (mut da, mut db) = (vec![0.0; self.a.len()], vec![0.0; self.a.len()]);
        let mut dh = vec![0.0; batch * channels];
        let tile = |x| tiles(x, seq, channels, GROUP);
        let units = (tile(&mut da), tile(&mut db), tiles(&mut dh, 1, channels, GROUP));
        units.into_par_iter().enumerate().for_each(|(unit, (da, db, dh))| {
            with_simd(Backward { recurrence: self, unit, states, dstates, da, db, dh });
        });
        Gradients { a: da, b: db, h: dh }
    }

    /// Where a unit's first time step is, and the state before it.
    #[inline(always)]
    fn unit(&self, unit: usize) -> (usize, Option<&[f32]>) {
        let [_, seq, channels] = self.shape;
        let groups = channels.div_ceil(GROUP);
        let (example, channel) = (unit / groups, unit % groups * GROUP);
        (example * seq * channels + channel, self.h.map(|h| &h[example * channels + channel..(example + 1) * channels]))
    }
}

/// The operation on tensors: the fields of [`LinearRecurrence`] in their order → all states.
#[derive(Debug, Clone, Copy)]
pub struct LinearKernel;

impl LinearKernel {
    fn of(inputs: &[FlexTensor; 3]) -> LinearRecurrence<'_> {
        let [a, b, h] = inputs.each_ref().map(values);
        LinearRecurrence { shape: dims(&inputs[0]), a, b, h: Some(h) }
    }
}

impl Kernel<3, 1> for LinearKernel {
    type Saved = ([FlexTensor; 3], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; 3], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let states = tensor(Self::of(&inputs).forward(), dims::<3>(&inputs[0]));
        ([states.clone()], save.then_some((inputs, states)))
    }

    fn backward(
        &self,
        (inputs, states): Self::Saved,
        [dstates]: [Option<FlexTensor>; 1],
        _: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let Some(dstates) = dstates else { return Default::default() };
        let Gradients { a, b, h } = Self::of(&inputs).backward(values(&states), values(&dstates));
        let mut gradients = [a, b, h].into_iter();
        inputs.each_ref().map(|input| Some(like(input, gradients.next()?)))
    }

    const ON_GPU: bool = true;

    #[cfg(feature = "cube")]
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 3],
        _: bool,
    ) -> Option<([CubeTensor<R>; 1], Vec<CubeTensor<R>>)> {
        Some(cube::linear::forward(inputs))
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; 1],
        _: [bool; 3],
    ) -> [Option<CubeTensor<R>>; 3] {
        cube::linear::backward(saved, gradients)
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
        if let Some(before) = before {
            for (h, x) in h.iter_mut().zip(before[..before.len().min(GROUP)].chunks(lanes)) {
                *h = V::load(simd, x);
            }
        }
        for (t, states) in self.states.into_iter().enumerate() {
            let row = start + t * channels..start + t * channels + states.len();
            let (a, b) = (&self.recurrence.a[row.clone()], &self.recurrence.b[row]);
            for (((state, a), b), h) in states.chunks_mut(lanes).zip(a.chunks(lanes)).zip(b.chunks(lanes)).zip(&mut h) {
                *h = V::load(simd, a).mul_add(*h, V::load(simd, b));
                h.store(state);
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
            let (a, dstates) = (&self.recurrence.a[row.clone()], &self.dstates[row]);
            let before = if t == 0 { first } else { Some(&self.states[at - channels..][..da.len()]) };
            let blocks = da.chunks_mut(lanes).zip(db.chunks_mut(lanes)).zip(a.chunks(lanes)).zip(dstates.chunks(lanes));
            for ((i, (((da, db), a), dstate)), g) in blocks.enumerate().zip(&mut g) {
                let dstate = V::load(simd, dstate) + *g;
                dstate.store(db);
                let before = match before {
                    Some(before) => V::load(simd, &before[i * lanes..]),
                    None => V::splat(simd, 0.0),
                };
                (dstate * before).store(da);
                *g = dstate * V::load(simd, a);
            }
        }
        for dh in self.dh {
            for (x, g) in dh.chunks_mut(lanes).zip(&g) {
                g.store(x);
            }
        }
    }
}

/// The kernel's version of [`linear_recurrence`](crate::ops::plain::linear_recurrence).
#[allow(clippy::type_complexity)] // outputs and state
pub fn linear_recurrence<B: RunKernels>(
    a: &Tensor<B, 3>,
    b: &Tensor<B, 3>,
    h: Option<&Tensor<B, 2>>,
) -> Option<(Tensor<B, 3>, Tensor<B, 2>)> {
    let [batch, seq, channels] = a.dims();
    let h = h.cloned().unwrap_or_else(|| zeros(a, [batch, channels]));
    let [states] = B::run(LinearKernel, [float(a), float(b), float(&h)])?;
    let states: Tensor<B, 3> = kernel::tensor(states);
    Some((states.clone(), states.narrow(1, seq - 1, 1).squeeze_dim(1)))
}
