//! S4's taps from its modes: the sums over modes at every frequency, and the Fourier transform of the spectrum. Nothing
//! of size `[channels, modes, frequencies]` is ever in memory: the backward pass computes what it needs again.
//!
//! Vectors run along the channels. Kernels may have any length, so the transform is Bluestein's: with 2kt = k² + t² −
//! (t − k)² it is a convolution with e^{−iπm²/l} between two products with e^{iπk²/l} and e^{iπt²/l} (Bluestein, "A
//! linear filtering approach to the computation of discrete Fourier transform", 1970), by transforms whose length is a
//! power of two.

use crate::ops::cpu::fourier::{Complex, conj, inverse, mul, roots, splat, transform};
use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, tiles, transpose};
use crate::ops::cpu::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use crate::ops::s4_kernel as s4;
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::f64::consts::PI;

/// Channels that one unit of work takes: as many as the widest vectors have lanes.
const GROUP: usize = 16;

/// Numbers of every mode: two of its pole, eight of the numerators.
const FIELDS: usize = 10;

/// The numbers that the taps are computed from, row-major; see [`taps`](crate::ops::s4_kernel::taps) for the
/// definition.
#[derive(Debug, Clone, Copy)]
pub struct Modes<'a> {
    /// Channels and modes.
    pub shape: [usize; 2],
    /// Re ΔΛ and |ΔΛ|², `[channels, 2, modes]`.
    pub poles: &'a [f32],
    /// `[channels, 8, modes]`.
    pub numerators: &'a [f32],
    /// Samples that the spectrum stands for.
    pub l_kernel: usize,
    /// Of which these are wanted.
    pub length: usize,
}

/// The gradient of each field of [`Modes`], of its shape.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Gradients {
    pub poles: Vec<f32>,
    pub numerators: Vec<f32>,
}

impl Modes<'_> {
    /// `[channels, length]`.
    pub fn forward(&self) -> Vec<f32> {
        let [channels, _] = self.shape;
        let (fields, transform) = (self.fields(), Bluestein::new(self.l_kernel, self.length));
        let mut taps = unwritten(self.length * channels);
        tiles(&mut taps, self.length, channels, GROUP).into_par_iter().enumerate().for_each(|(group, taps)| {
            let group = Group { modes: self, fields: &fields, transform: &transform, start: group * GROUP };
            with_simd(Forward { group, taps });
        });
        transpose(&taps, self.length, channels)
    }

    /// From the gradient of the taps to those of all inputs.
    pub fn backward(&self, dtaps: &[f32]) -> Gradients {
        let [channels, modes] = self.shape;
        let (fields, transform) = (self.fields(), Bluestein::new(self.l_kernel, self.length));
        let dtaps = transpose(dtaps, channels, self.length);
        let mut gradient = unwritten(fields.len());
        let units = tiles(&mut gradient, FIELDS * modes, channels, GROUP);
        units.into_par_iter().enumerate().for_each(|(group, gradient)| {
            let group = Group { modes: self, fields: &fields, transform: &transform, start: group * GROUP };
            with_simd(Backward { group, dtaps: &dtaps, gradient });
        });
        let (poles, numerators) = gradient.split_at(2 * modes * channels);
        Gradients {
            poles: transpose(poles, 2 * modes, channels),
            numerators: transpose(numerators, 8 * modes, channels),
        }
    }

    /// Poles and numerators, `[FIELDS, modes, channels]`.
    fn fields(&self) -> Vec<f32> {
        let [channels, modes] = self.shape;
        let mut fields = transpose(self.poles, channels, 2 * modes);
        fields.extend(transpose(self.numerators, channels, 8 * modes));
        fields
    }
}

/// The operation on tensors: poles and numerators → taps.
#[derive(Debug, Clone, Copy)]
pub struct CauchyKernel {
    /// See [`Modes`].
    pub l_kernel: usize,
    /// See [`Modes`].
    pub length: usize,
}

impl CauchyKernel {
    fn of<'a>(&self, inputs: &'a [FlexTensor; 2]) -> Modes<'a> {
        let ([poles, numerators], [channels, _, modes]) = (inputs.each_ref().map(values), dims(&inputs[0]));
        Modes { shape: [channels, modes], poles, numerators, l_kernel: self.l_kernel, length: self.length }
    }
}

impl Kernel<2, 1> for CauchyKernel {
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let modes = self.of(&inputs);
        let taps = tensor(modes.forward(), [modes.shape[0], self.length]);
        ([taps], save.then_some(inputs))
    }

    fn backward(&self, inputs: Self::Saved, [dtaps]: [Option<FlexTensor>; 1], _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let Some(dtaps) = dtaps else { return [None, None] };
        let Gradients { poles, numerators } = self.of(&inputs).backward(values(&dtaps));
        [Some(like(&inputs[0], poles)), Some(like(&inputs[1], numerators))]
    }
}

/// The numbers of the transform x_t = Re Σ_k weight_k·e^{iπk(2t + 1)/l}·X_k / l of half a spectrum.
struct Bluestein {
    /// sin and cos of half the angle of every frequency.
    half_angles: Vec<[f32; 2]>,
    /// weight_k·e^{iπk(k + 1)/l} / l.
    before: Vec<[f32; 2]>,
    /// e^{iπt²/l}.
    after: Vec<[f32; 2]>,
    /// The spectrum of e^{−iπm²/l}, over its length.
    chirp: Vec<[f32; 2]>,
    roots: Vec<[f32; 2]>,
}

impl Bluestein {
    fn new(l: usize, length: usize) -> Self {
        let frequencies = l / 2 + 1;
        // Angles are π/l times an integer, of which only the remainder modulo 2·l counts.
        let root = |m: usize| (PI * (m % (2 * l)) as f64 / l as f64).sin_cos();
        let half_angles = (0..frequencies).map(|k| {
            let (sin, cos) = root(k);
            [sin as f32, cos as f32]
        });
        let before = (0..frequencies).map(|k| {
            // Every other frequency stands for its conjugate as well.
            let weight = if k == 0 || 2 * k == l { 1.0 } else { 2.0 } / l as f64;
            let (sin, cos) = root(k * (k + 1));
            [(weight * cos) as f32, (weight * sin) as f32]
        });
        let after = (0..length).map(|t| {
            let (sin, cos) = root(t * t);
            [cos as f32, sin as f32]
        });
        let reach = frequencies.max(length);
        let size = (2 * reach - 1).next_power_of_two();
        let mut chirp = vec![[0.0; 2]; size];
        for m in 0..reach {
            let (sin, cos) = root(m * m);
            let value = [(cos / size as f64) as f32, (-sin / size as f64) as f32];
            chirp[m] = value;
            chirp[(size - m) % size] = value;
        }
        let roots = roots(size);
        let chirp = with_simd(Spectrum { signal: &chirp, roots: &roots });
        Self { half_angles: half_angles.collect(), before: before.collect(), after: after.collect(), chirp, roots }
    }

    /// The convolution with the chirp, in place.
    #[inline(always)]
    fn convolve<S: Simd>(&self, simd: S, x: &mut [Complex<S>]) {
        transform(simd, x, &self.roots);
        for (x, &chirp) in x.iter_mut().zip(&self.chirp) {
            *x = mul(*x, splat(simd, chirp));
        }
        inverse(simd, x, &self.roots);
    }
}

/// The transform of one signal.
struct Spectrum<'a> {
    signal: &'a [[f32; 2]],
    roots: &'a [[f32; 2]],
}

impl WithSimd for Spectrum<'_> {
    type Output = Vec<[f32; 2]>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let mut x: Vec<Complex<S>> = self.signal.iter().map(|&x| splat(simd, x)).collect();
        transform(simd, &mut x, self.roots);
        let first = |x: V<S>| {
            let mut lane = [0.0];
            x.store(&mut lane);
            lane[0]
        };
        x.into_iter().map(|x| x.map(first)).collect()
    }
}

/// Some channels.
#[derive(Clone, Copy)]
struct Group<'a> {
    modes: &'a Modes<'a>,
    /// `[FIELDS, modes, channels]`.
    fields: &'a [f32],
    transform: &'a Bluestein,
    start: usize,
}

/// One mode's pole: Re ΔΛ and |ΔΛ|²; and in the numerators of BC, BQ, PC and PQ the factors of i·sin and of cos.
#[derive(Clone, Copy)]
struct Mode<S: Simd> {
    pole: [V<S>; 2],
    sin: [V<S>; 4],
    cos: [V<S>; 4],
}

impl<S: Simd> Mode<S> {
    /// From the fields in their order.
    #[inline(always)]
    fn new(mut field: impl FnMut(usize) -> V<S>) -> Self {
        Self {
            pole: [field(0), field(1)],
            sin: [field(2), field(3), field(4), field(5)],
            cos: [field(6), field(7), field(8), field(9)],
        }
    }

    /// The fields in their order.
    #[inline(always)]
    fn fields(self) -> impl Iterator<Item = V<S>> {
        self.pole.into_iter().chain(self.sin).chain(self.cos)
    }

    /// 1 over the denominator of the mode and its conjugate.
    #[inline(always)]
    fn inverse(&self, simd: S, [sin, cos]: [f32; 2]) -> Complex<S> {
        let [re, square] = self.pole;
        let denominator =
            [square.mul_add(V::splat(simd, cos * cos), V::splat(simd, -4.0 * sin * sin)), re * (-4.0 * sin * cos)];
        recip(simd, denominator)
    }
}

#[inline(always)]
fn recip<S: Simd>(simd: S, [re, im]: Complex<S>) -> Complex<S> {
    let scale = V::splat(simd, 1.0) / re.mul_add(re, im * im);
    [re * scale, -(im * scale)]
}

impl Group<'_> {
    /// The blocks of lanes in the group: their channels.
    #[inline(always)]
    fn blocks<S: Simd>(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let end = (self.start + GROUP).min(self.modes.shape[0]);
        (self.start..end).step_by(V::<S>::LANES).map(move |start| start..(start + V::<S>::LANES).min(end))
    }

    #[inline(always)]
    fn modes<S: Simd>(self, simd: S, channels: std::ops::Range<usize>) -> Vec<Mode<S>> {
        let [width, modes] = self.modes.shape;
        let field = |mode: usize, i: usize| V::load(simd, &self.fields[(i * modes + mode) * width..][channels.clone()]);
        (0..modes).map(|mode| Mode::new(|i| field(mode, i))).collect()
    }
}

/// The sums over the modes at one frequency, of BC, BQ, PC and PQ, and `inverses` of the denominators.
#[inline(always)]
fn sums<S: Simd>(simd: S, angle: [f32; 2], modes: &[Mode<S>], inverses: &mut [Complex<S>]) -> [Complex<S>; 4] {
    let zero = [[V::splat(simd, 0.0); 2]; 4];
    let (mut sin, mut cos) = (zero, zero);
    for (mode, inverse) in modes.iter().zip(inverses) {
        *inverse = mode.inverse(simd, angle);
        for j in 0..4 {
            sin[j] = add(mode.sin[j], *inverse, sin[j]);
            cos[j] = add(mode.cos[j], *inverse, cos[j]);
        }
    }
    let [s, c] = angle;
    let mut sums = zero;
    for j in 0..4 {
        sums[j] = [cos[j][0] * c - sin[j][1] * s, cos[j][1] * c + sin[j][0] * s];
    }
    sums
}

/// sum + a·x for real a.
#[inline(always)]
fn add<S: Simd>(a: V<S>, x: Complex<S>, sum: Complex<S>) -> Complex<S> {
    [a.mul_add(x[0], sum[0]), a.mul_add(x[1], sum[1])]
}

/// 1/(1 + cos·PQ).
#[inline(always)]
fn feedback<S: Simd>(simd: S, [_, cos]: [f32; 2], pq: Complex<S>) -> Complex<S> {
    recip(simd, [pq[0] * cos + V::splat(simd, 1.0), pq[1] * cos])
}

#[inline(always)]
fn scale<S: Simd>(x: Complex<S>, factor: f32) -> Complex<S> {
    [x[0] * factor, x[1] * factor]
}

struct Forward<'a> {
    group: Group<'a>,
    /// `[length, channels]`.
    taps: Vec<&'a mut [f32]>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { group, mut taps } = self;
        let Bluestein { half_angles, before, after, roots, .. } = group.transform;
        let zero = [V::splat(simd, 0.0); 2];
        let (mut signal, mut inverses) = (vec![zero; roots.len()], vec![zero; group.modes.shape[1]]);
        for channels in group.blocks::<S>() {
            let modes = group.modes(simd, channels.clone());
            signal.fill(zero);
            for ((x, &angle), &before) in signal.iter_mut().zip(half_angles).zip(before) {
                let [bc, bq, pc, pq] = sums(simd, angle, &modes, &mut inverses);
                let correction = scale(mul(mul(bq, pc), feedback(simd, angle, pq)), angle[1]);
                *x = mul([bc[0] - correction[0], bc[1] - correction[1]], splat(simd, before));
            }
            group.transform.convolve(simd, &mut signal);
            let columns = channels.start - group.start..channels.end - group.start;
            for ((x, &after), row) in signal.iter().zip(after).zip(&mut taps) {
                mul(*x, splat(simd, after))[0].store(&mut row[columns.clone()]);
            }
        }
    }
}

struct Backward<'a> {
    group: Group<'a>,
    /// `[length, channels]`.
    dtaps: &'a [f32],
    /// `[FIELDS, modes, channels]`.
    gradient: Vec<&'a mut [f32]>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    /// The gradient of a complex number z is here that of its real part plus i times that of its imaginary part:
    /// through f(z) it is multiplied by conj(f′(z)). That of the spectrum is the conjugate of the taps' transform.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { group, dtaps, mut gradient } = self;
        let Bluestein { half_angles, before, after, roots, .. } = group.transform;
        let [width, count] = group.modes.shape;
        let zero = [V::splat(simd, 0.0); 2];
        let (mut signal, mut inverses) = (vec![zero; roots.len()], vec![zero; count]);
        for channels in group.blocks::<S>() {
            signal.fill(zero);
            for (t, (x, &after)) in signal.iter_mut().zip(after).enumerate() {
                let dtap = V::load(simd, &dtaps[t * width..][channels.clone()]);
                *x = [dtap * after[0], dtap * after[1]];
            }
            group.transform.convolve(simd, &mut signal);

            let modes = group.modes(simd, channels.clone());
            let mut dmodes = vec![Mode::new(|_| zero[0]); count];
            for ((&x, &angle), &before) in signal.iter().zip(half_angles).zip(before) {
                let sums = sums(simd, angle, &modes, &mut inverses);
                let dsums = through_feedback(simd, angle, sums, conj(mul(x, splat(simd, before))));
                through_modes(simd, angle, dsums, &modes, &inverses, &mut dmodes);
            }
            let columns = channels.start - group.start..channels.end - group.start;
            for (mode, dmode) in dmodes.into_iter().enumerate() {
                for (field, value) in dmode.fields().enumerate() {
                    value.store(&mut gradient[field * count + mode][columns.clone()]);
                }
            }
        }
    }
}

/// From the gradient of BC − cos·BQ·PC/(1 + cos·PQ) to those of the four.
#[inline(always)]
fn through_feedback<S: Simd>(simd: S, angle: [f32; 2], sums: [Complex<S>; 4], g: Complex<S>) -> [Complex<S>; 4] {
    let ([_, bq, pc, pq], [_, cos]) = (sums, angle);
    let feedback = feedback(simd, angle, pq);
    let (left, right) = (scale(mul(bq, feedback), -cos), scale(mul(pc, feedback), -cos));
    [g, mul(conj(right), g), mul(conj(left), g), mul(conj(mul(left, right)), g)]
}

/// Adds the contribution of the gradients of the sums at one frequency to those of the modes.
#[inline(always)]
fn through_modes<S: Simd>(
    simd: S,
    [s, c]: [f32; 2],
    dsums: [Complex<S>; 4],
    modes: &[Mode<S>],
    inverses: &[Complex<S>],
    dmodes: &mut [Mode<S>],
) {
    let (mut sin, mut cos) = (dsums, dsums);
    for j in 0..4 {
        (sin[j], cos[j]) = (scale(dsums[j], s), scale(dsums[j], c));
    }
    for ((mode, &inverse), dmode) in modes.iter().zip(inverses).zip(dmodes) {
        let [re, im] = inverse;
        let mut dinverse = [V::splat(simd, 0.0); 2];
        for j in 0..4 {
            dmode.sin[j] = sin[j][1].mul_add(re, dmode.sin[j] - sin[j][0] * im);
            dmode.cos[j] = cos[j][0].mul_add(re, cos[j][1].mul_add(im, dmode.cos[j]));
            dinverse[0] = mode.cos[j].mul_add(cos[j][0], mode.sin[j].mul_add(sin[j][1], dinverse[0]));
            dinverse[1] = mode.cos[j].mul_add(cos[j][1], dinverse[1] - mode.sin[j] * sin[j][0]);
        }
        let negative = mul(conj(mul(inverse, inverse)), dinverse); // of the denominator's gradient
        dmode.pole[0] = negative[1].mul_add(V::splat(simd, 4.0 * s * c), dmode.pole[0]);
        dmode.pole[1] = negative[0].mul_add(V::splat(simd, -c * c), dmode.pole[1]);
    }
}

/// The operation, where kernels can run.
pub fn taps<B: RunKernels>(modes: &s4::Modes<B>, length: usize) -> Option<Tensor<B, 2>> {
    let s4::Modes { poles, numerators, l_kernel } = modes;
    let kernel = CauchyKernel { l_kernel: *l_kernel, length };
    B::run(kernel, [float(poles), float(numerators)]).map(|[taps]| kernel::tensor(taps))
}
