//! Mamba's short convolution: a few taps per channel, then SiLU.

use crate::ops::cpu::memory::unwritten;
use crate::ops::cpu::simd::{V, sum_blocks, tiles, transpose, unpack};
use crate::ops::cpu::{dims, gradients_of, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Channels that one unit of work takes.
const GROUP: usize = 64;

inputs! {
    /// The tensors that the convolution reads, row-major: y_t = silu(Σ_j weight_j⊙x_{t+j} + bias) over the taps j.
    pub struct Inputs {
        /// `[batch, seq, channels]`.
        x,
        /// `[channels, 1, taps]`; the last tap is the present.
        weight,
        /// `[channels]`.
        bias,
    }
}

/// Tensors that [`ShortConvolutionKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// The convolution on numbers.
#[derive(Debug, Clone, Copy)]
pub struct ShortConvolution<'a> {
    /// `[batch, seq, channels]` of the inputs.
    pub shape: [usize; 3],
    /// The inputs, in the shapes stated by the fields.
    pub inputs: Inputs<&'a [f32]>,
    /// Whether the inputs follow zeros, so that there are as many outputs. Otherwise there are taps − 1 fewer.
    pub padded: bool,
}

impl ShortConvolution<'_> {
    fn taps(&self) -> usize {
        self.inputs.weight.len() / self.inputs.bias.len()
    }

    /// Zeros before the inputs.
    fn padding(&self) -> usize {
        if self.padded { self.taps() - 1 } else { 0 }
    }

    /// Time steps of the outputs.
    pub fn output_seq(&self) -> usize {
        self.shape[1] + self.padding() + 1 - self.taps()
    }

    /// `[batch, output_seq, channels]`.
    pub fn forward(&self) -> Vec<f32> {
        let [batch, _, channels] = self.shape;
        let weight = transpose(self.inputs.weight, channels, self.taps());
        let mut y = unwritten(batch * self.output_seq() * channels);
        tiles(&mut y, self.output_seq(), channels, GROUP).into_par_iter().enumerate().for_each(|(unit, y)| {
            with_simd(Forward { group: self.group(&weight, unit), y });
        });
        y
    }

    /// From the gradient of the outputs to those of all inputs.
    pub fn backward(&self, dy: &[f32]) -> Inputs<Vec<f32>> {
        let [batch, seq, channels] = self.shape;
        let taps = self.taps();
        let weight = transpose(self.inputs.weight, channels, taps);
        let mut dx = unwritten(self.inputs.x.len());
        let mut parameters = unwritten(batch * (taps + 1) * channels);
        let units = (tiles(&mut dx, seq, channels, GROUP), tiles(&mut parameters, taps + 1, channels, GROUP));
        units.into_par_iter().enumerate().for_each(|(unit, (dx, parameters))| {
            with_simd(Backward { group: self.group(&weight, unit), dy, dx, parameters });
        });
        let mut weight = sum_blocks(&parameters, (taps + 1) * channels);
        let bias = weight.split_off(taps * channels);
        Inputs { x: dx, weight: transpose(&weight, taps, channels), bias }
    }

    fn group<'a>(&'a self, weight: &'a [f32], unit: usize) -> Group<'a> {
        let groups = self.shape[2].div_ceil(GROUP);
        Group { convolution: self, weight, example: unit / groups, start: unit % groups * GROUP }
    }
}

/// The operation on tensors: [`Inputs`] → y.
#[derive(Debug, Clone, Copy)]
pub struct ShortConvolutionKernel {
    /// See [`ShortConvolution`].
    pub padded: bool,
}

impl ShortConvolutionKernel {
    fn of<'a>(&self, inputs: &'a [FlexTensor; COUNT]) -> ShortConvolution<'a> {
        let shape = dims(&inputs[0]);
        ShortConvolution { shape, inputs: inputs.each_ref().map(values).into(), padded: self.padded }
    }
}

impl Kernel<COUNT, 1> for ShortConvolutionKernel {
    type Saved = [FlexTensor; COUNT];

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let convolution = self.of(&inputs);
        let [batch, _, channels] = convolution.shape;
        let y = tensor(convolution.forward(), [batch, convolution.output_seq(), channels]);
        ([y], save.then_some(inputs))
    }

    fn backward(
        &self,
        inputs: Self::Saved,
        [dy]: [Option<FlexTensor>; 1],
        _: [bool; COUNT],
    ) -> [Option<FlexTensor>; COUNT] {
        let Some(dy) = dy else { return Default::default() };
        gradients_of(&inputs, self.of(&inputs).backward(values(&dy)))
    }
}

/// Some channels of one example.
struct Group<'a> {
    convolution: &'a ShortConvolution<'a>,
    /// `[taps, channels]`.
    weight: &'a [f32],
    example: usize,
    start: usize,
}

impl Group<'_> {
    /// The input of SiLU at one time step, for some channels of the group.
    #[inline(always)]
    fn sum<S: Simd>(&self, simd: S, t: usize, lanes: std::ops::Range<usize>) -> V<S> {
        let mut sum = V::load(simd, &self.convolution.inputs.bias[self.start..][lanes.clone()]);
        for tap in self.convolution.padding().saturating_sub(t)..self.convolution.taps() {
            let x = self.input(simd, t + tap - self.convolution.padding(), lanes.clone());
            sum = x.mul_add(self.tap(simd, tap, lanes.clone()), sum);
        }
        sum
    }

    #[inline(always)]
    fn input<S: Simd>(&self, simd: S, t: usize, lanes: std::ops::Range<usize>) -> V<S> {
        let [_, seq, channels] = self.convolution.shape;
        V::load(simd, &self.convolution.inputs.x[(self.example * seq + t) * channels + self.start..][lanes])
    }

    #[inline(always)]
    fn tap<S: Simd>(&self, simd: S, tap: usize, lanes: std::ops::Range<usize>) -> V<S> {
        V::load(simd, &self.weight[tap * self.convolution.shape[2] + self.start..][lanes])
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
        match self.group.convolution.taps() {
            2 => return self.windows::<S, 2>(simd),
            3 => return self.windows::<S, 3>(simd),
            4 => return self.windows::<S, 4>(simd),
            _ => (),
        }
        for (t, y) in self.y.into_iter().enumerate() {
            for (i, y) in y.chunks_mut(V::<S>::LANES).enumerate() {
                let start = i * V::<S>::LANES;
                let sum = self.group.sum(simd, t, start..start + y.len());
                (sum * sum.sigmoid()).store(y);
            }
        }
    }
}

impl Forward<'_> {
    /// The same with so many taps, of which taps and the last inputs of some channels are in registers.
    #[inline(always)]
    fn windows<S: Simd, const TAPS: usize>(mut self, simd: S) {
        let width = self.y.first().map_or(0, |y| y.len());
        for start in (0..width).step_by(V::<S>::LANES) {
            let lanes = start..(start + V::<S>::LANES).min(width);
            let mut window = Window::<S, TAPS>::new(simd, &self.group, lanes.clone());
            for (t, y) in self.y.iter_mut().enumerate() {
                let sum = window.next(simd, &self.group, t, lanes.clone());
                (sum * sum.sigmoid()).store(&mut y[lanes.clone()]);
            }
        }
    }
}

/// Some channels: taps, bias, and the inputs of an output.
struct Window<S: Simd, const TAPS: usize> {
    taps: [V<S>; TAPS],
    bias: V<S>,
    inputs: [V<S>; TAPS],
}

impl<S: Simd, const TAPS: usize> Window<S, TAPS> {
    /// Before the first output.
    #[inline(always)]
    fn new(simd: S, group: &Group<'_>, lanes: std::ops::Range<usize>) -> Self {
        let zero = [V::splat(simd, 0.0); TAPS];
        let bias = V::load(simd, &group.convolution.inputs.bias[group.start..][lanes.clone()]);
        let mut window = Self { taps: zero, bias, inputs: zero };
        for tap in 0..TAPS {
            window.taps[tap] = group.tap(simd, tap, lanes.clone());
        }
        if group.convolution.padding() == 0 {
            for tap in 1..TAPS {
                window.inputs[tap] = group.input(simd, tap - 1, lanes.clone());
            }
        }
        window
    }

    /// The input of SiLU at output `t`, the one after the last.
    #[inline(always)]
    fn next(&mut self, simd: S, group: &Group<'_>, t: usize, lanes: std::ops::Range<usize>) -> V<S> {
        for tap in 1..TAPS {
            self.inputs[tap - 1] = self.inputs[tap];
        }
        self.inputs[TAPS - 1] = group.input(simd, t + TAPS - 1 - group.convolution.padding(), lanes);
        let mut sum = self.bias;
        for tap in 0..TAPS {
            sum = self.inputs[tap].mul_add(self.taps[tap], sum);
        }
        sum
    }
}

struct Backward<'a> {
    group: Group<'a>,
    dy: &'a [f32],
    dx: Vec<&'a mut [f32]>,
    /// Of the taps, then of the bias.
    parameters: Vec<&'a mut [f32]>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.group.convolution.taps() {
            2 => return self.windows::<S, 2>(simd),
            3 => return self.windows::<S, 3>(simd),
            4 => return self.windows::<S, 4>(simd),
            _ => (),
        }
        let Self { group, dy, mut dx, mut parameters } = self;
        let (taps, padding, outputs) =
            (group.convolution.taps(), group.convolution.padding(), group.convolution.output_seq());
        let channels = group.convolution.shape[2];
        let (zero, one) = (V::splat(simd, 0.0), V::splat(simd, 1.0));
        let width = dx[0].len();
        let blocks = width.div_ceil(V::<S>::LANES);
        let lanes = |block: usize| block * V::<S>::LANES..((block + 1) * V::<S>::LANES).min(width);
        let mut dsums = vec![zero; outputs * blocks];
        let mut sums = vec![zero; (taps + 1) * blocks]; // of the taps' gradients, and of the bias
        for (t, dsums) in dsums.chunks_exact_mut(blocks).enumerate() {
            let dy = &dy[(group.example * outputs + t) * channels + group.start..];
            for (block, dsum) in dsums.iter_mut().enumerate() {
                let sum = group.sum(simd, t, lanes(block));
                let sigmoid = sum.sigmoid();
                *dsum = V::load(simd, &dy[lanes(block)]) * sigmoid * sum.mul_add(one - sigmoid, one);
                sums[taps * blocks + block] += *dsum;
                for tap in padding.saturating_sub(t)..taps {
                    let x = group.input(simd, t + tap - padding, lanes(block));
                    sums[tap * blocks + block] = dsum.mul_add(x, sums[tap * blocks + block]);
                }
            }
        }
        for (t, dx) in dx.iter_mut().enumerate() {
            for block in 0..blocks {
                // Input t is tap j of output t + padding − j.
                let mut sum = zero;
                for tap in (t + padding + 1).saturating_sub(outputs)..taps.min(t + padding + 1) {
                    let dsum = dsums[(t + padding - tap) * blocks + block];
                    sum = dsum.mul_add(group.tap(simd, tap, lanes(block)), sum);
                }
                sum.store(&mut dx[lanes(block)]);
            }
        }
        for (row, sums) in parameters.iter_mut().zip(sums.chunks_exact(blocks)) {
            unpack(sums, row, width);
        }
    }
}

impl Backward<'_> {
    /// The same with so many taps, of which taps, their gradients and the last inputs of some channels are in registers.
    #[inline(always)]
    fn windows<S: Simd, const TAPS: usize>(self, simd: S) {
        let Self { group, dy, mut dx, mut parameters } = self;
        let (padding, outputs) = (group.convolution.padding(), group.convolution.output_seq());
        let (channels, width) = (group.convolution.shape[2], dx[0].len());
        let (zero, one) = (V::splat(simd, 0.0), V::splat(simd, 1.0));
        let mut dsums = vec![zero; outputs];
        for start in (0..width).step_by(V::<S>::LANES) {
            let lanes = start..(start + V::<S>::LANES).min(width);
            let mut window = Window::<S, TAPS>::new(simd, &group, lanes.clone());
            let (mut dtaps, mut dbias) = ([zero; TAPS], zero);
            for (t, dsum) in dsums.iter_mut().enumerate() {
                let dy = V::load(simd, &dy[(group.example * outputs + t) * channels + group.start..][lanes.clone()]);
                let sum = window.next(simd, &group, t, lanes.clone());
                let sigmoid = sum.sigmoid();
                *dsum = dy * sigmoid * sum.mul_add(one - sigmoid, one);
                dbias += *dsum;
                for (dtap, input) in dtaps.iter_mut().zip(window.inputs) {
                    *dtap = dsum.mul_add(input, *dtap);
                }
            }
            // Input t is tap j of output t + padding − j.
            let mut last = [zero; TAPS]; // by tap
            for t in 0..dx.len() + padding {
                last.copy_within(..TAPS - 1, 1);
                last[0] = dsums.get(t).copied().unwrap_or(zero);
                let Some(dx) = t.checked_sub(padding).and_then(|t| dx.get_mut(t)) else { continue };
                let mut sum = zero;
                for (dsum, tap) in last.iter().zip(window.taps) {
                    sum = dsum.mul_add(tap, sum);
                }
                sum.store(&mut dx[lanes.clone()]);
            }
            for (row, sum) in parameters.iter_mut().zip(dtaps.iter().chain([&dbias])) {
                sum.store(&mut row[lanes.clone()]);
            }
        }
    }
}

/// The operation, where kernels can run.
pub fn short_convolution<B: RunKernels>(
    x: &Tensor<B, 3>,
    weight: &Tensor<B, 3>,
    bias: &Tensor<B, 1>,
    padded: bool,
) -> Option<Tensor<B, 3>> {
    let inputs = Inputs { x: float(x), weight: float(weight), bias: float(bias) };
    B::run(ShortConvolutionKernel { padded }, inputs.into()).map(|[y]| kernel::tensor(y))
}
