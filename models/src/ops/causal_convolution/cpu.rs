//! Causal convolution of every channel with a kernel as long as the sequence, by Fourier transforms.
//!
//! Vectors run along the channels. Kernels are real, so two examples are one complex signal, the second its imaginary
//! part.

use crate::ops::cpu::fourier::{self, Complex, conj, inverse, mul, transform};
use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, tiles, transpose};
use crate::ops::cpu::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Channels that one unit of work takes: as many as the widest vectors have lanes.
const GROUP: usize = 16;

/// The numbers that the convolution reads, row-major; see [`reference()`](crate::ops::causal_convolution::reference).
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// `[batch, seq, channels]`.
    pub shape: [usize; 3],
    /// `[batch, seq, channels]`.
    pub u: &'a [f32],
    /// `[channels, seq]`.
    pub k: &'a [f32],
}

/// The gradient of each field of [`Convolution`], of its shape.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Gradients {
    pub u: Vec<f32>,
    pub k: Vec<f32>,
}

impl Convolution<'_> {
    /// y_t = Σ_{s ≤ t} k_{t−s}·u_s, `[batch, seq, channels]`.
    pub fn forward(&self) -> Vec<f32> {
        let [_, seq, channels] = self.shape;
        let (roots, k) = (roots(seq), transpose(self.k, channels, seq));
        let mut y = unwritten(self.u.len());
        self.columns(&mut y).into_par_iter().enumerate().for_each(|(group, y)| {
            with_simd(Forward { group: Group { convolution: self, k: &k, roots: &roots, start: group * GROUP }, y });
        });
        y
    }

    /// From the gradient of the outputs to those of all inputs.
    pub fn backward(&self, dy: &[f32]) -> Gradients {
        let [_, seq, channels] = self.shape;
        let (roots, k) = (roots(seq), transpose(self.k, channels, seq));
        let (mut du, mut dk) = (unwritten(self.u.len()), unwritten(self.k.len()));
        let units = (self.columns(&mut du), tiles(&mut dk, seq, channels, GROUP));
        units.into_par_iter().enumerate().for_each(|(group, (du, dk))| {
            let group = Group { convolution: self, k: &k, roots: &roots, start: group * GROUP };
            with_simd(Backward { group, dy, du, dk });
        });
        Gradients { u: du, k: transpose(&dk, seq, channels) }
    }

    /// The rows of every group of channels.
    fn columns<'a>(&self, x: &'a mut [f32]) -> Vec<Vec<&'a mut [f32]>> {
        let [batch, seq, channels] = self.shape;
        tiles(x, batch * seq, channels, GROUP)
    }
}

/// The operation on tensors: the fields of [`Convolution`] in their order → outputs.
#[derive(Debug, Clone, Copy)]
pub struct CausalConvolution;

impl CausalConvolution {
    fn of(inputs: &[FlexTensor; 2]) -> Convolution<'_> {
        let [u, k] = inputs.each_ref().map(values);
        Convolution { shape: dims(&inputs[0]), u, k }
    }
}

impl Kernel<2, 1> for CausalConvolution {
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let y = tensor(Self::of(&inputs).forward(), dims::<3>(&inputs[0]));
        ([y], save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let Some(dy) = dy else { return Default::default() };
        let Gradients { u, k } = Self::of(&inputs).backward(values(&dy));
        [Some(like(&inputs[0], u)), Some(like(&inputs[1], k))]
    }
}

/// The complex roots of unity for signals of `seq` samples and as many zeros.
fn roots(seq: usize) -> Vec<[f32; 2]> {
    fourier::roots((2 * seq).next_power_of_two())
}

/// Some channels of all examples.
#[derive(Clone, Copy)]
struct Group<'a> {
    convolution: &'a Convolution<'a>,
    /// `[seq, channels]`.
    k: &'a [f32],
    roots: &'a [[f32; 2]],
    start: usize,
}

impl Group<'_> {
    /// The blocks of lanes in the group: their channels.
    #[inline(always)]
    fn blocks<S: Simd>(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let end = (self.start + GROUP).min(self.convolution.shape[2]);
        (self.start..end).step_by(V::<S>::LANES).map(move |start| start..(start + V::<S>::LANES).min(end))
    }

    /// The spectrum of the kernels, over the number of samples.
    #[inline(always)]
    fn kernel<S: Simd>(self, simd: S, channels: std::ops::Range<usize>, out: &mut [Complex<S>]) {
        let [_, seq, width] = self.convolution.shape;
        let (zero, scale) = (V::splat(simd, 0.0), 1.0 / out.len() as f32);
        for (t, out) in out[..seq].iter_mut().enumerate() {
            *out = [V::load(simd, &self.k[t * width..][channels.clone()]) * scale, zero];
        }
        out[seq..].fill([zero; 2]);
        transform(simd, out, self.roots);
    }

    /// The spectrum of two examples of `x` `[batch, seq, channels]`, or of the last one alone, as one signal.
    #[inline(always)]
    fn pair<S: Simd>(self, simd: S, x: &[f32], first: usize, channels: std::ops::Range<usize>, out: &mut [Complex<S>]) {
        let [batch, seq, width] = self.convolution.shape;
        let zero = V::splat(simd, 0.0);
        out.fill([zero; 2]);
        for example in first..batch.min(first + 2) {
            for (t, out) in out[..seq].iter_mut().enumerate() {
                out[example - first] = V::load(simd, &x[(example * seq + t) * width..][channels.clone()]);
            }
        }
        transform(simd, out, self.roots);
    }

    /// Writes the real and imaginary parts of a signal as two examples of `rows`.
    #[inline(always)]
    fn store<S: Simd>(
        self,
        signal: &[Complex<S>],
        rows: &mut [&mut [f32]],
        first: usize,
        channels: std::ops::Range<usize>,
    ) {
        let [_, seq, _] = self.convolution.shape;
        let columns = channels.start - self.start..channels.end - self.start;
        for (part, rows) in rows[first * seq..].chunks_mut(seq).take(2).enumerate() {
            for (row, sample) in rows.iter_mut().zip(signal) {
                sample[part].store(&mut row[columns.clone()]);
            }
        }
    }
}

struct Forward<'a> {
    group: Group<'a>,
    y: Vec<&'a mut [f32]>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { group, mut y } = self;
        let zeros = vec![[V::splat(simd, 0.0); 2]; group.roots.len()];
        let (mut kernel, mut signal) = (zeros.clone(), zeros);
        for channels in group.blocks::<S>() {
            group.kernel(simd, channels.clone(), &mut kernel);
            for first in (0..group.convolution.shape[0]).step_by(2) {
                group.pair(simd, group.convolution.u, first, channels.clone(), &mut signal);
                for (x, k) in signal.iter_mut().zip(&kernel) {
                    *x = mul(*x, *k);
                }
                inverse(simd, &mut signal, group.roots);
                group.store(&signal, &mut y, first, channels.clone());
            }
        }
    }
}

struct Backward<'a> {
    group: Group<'a>,
    dy: &'a [f32],
    du: Vec<&'a mut [f32]>,
    /// `[seq, channels]`.
    dk: Vec<&'a mut [f32]>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    /// With spectra: dU = conj(K)·dY, and dK is the sum of conj(U)·dY over the examples. Of a pair u₁ + i·u₂, the real
    /// part of the latter's signal is the sum for both.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { group, dy, mut du, mut dk } = self;
        let zeros = vec![[V::splat(simd, 0.0); 2]; group.roots.len()];
        let [mut kernel, mut dkernel, mut signal, mut output] = [(); 4].map(|()| zeros.clone());
        for channels in group.blocks::<S>() {
            group.kernel(simd, channels.clone(), &mut kernel);
            dkernel.fill(zeros[0]);
            for first in (0..group.convolution.shape[0]).step_by(2) {
                group.pair(simd, group.convolution.u, first, channels.clone(), &mut signal);
                group.pair(simd, dy, first, channels.clone(), &mut output);
                let (u, k, dk) = (&signal[..output.len()], &kernel[..output.len()], &mut dkernel[..output.len()]);
                for (i, dy) in output.iter_mut().enumerate() {
                    let product = mul(conj(u[i]), *dy);
                    dk[i] = [dk[i][0] + product[0], dk[i][1] + product[1]];
                    *dy = mul(conj(k[i]), *dy);
                }
                inverse(simd, &mut output, group.roots);
                group.store(&output, &mut du, first, channels.clone());
            }
            inverse(simd, &mut dkernel, group.roots);
            let columns = channels.start - group.start..channels.end - group.start;
            for (row, [tap, _]) in dk.iter_mut().zip(&dkernel) {
                (*tap * (1.0 / zeros.len() as f32)).store(&mut row[columns.clone()]);
            }
        }
    }
}

/// The operation, where kernels can run.
pub fn causal_convolution<B: RunKernels>(u: &Tensor<B, 3>, k: &Tensor<B, 2>) -> Option<Tensor<B, 3>> {
    B::run(CausalConvolution, [float(u), float(k)]).map(|[y]| kernel::tensor(y))
}
