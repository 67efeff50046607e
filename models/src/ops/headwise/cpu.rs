//! Products with blocks on the diagonal and their gradients: the blocks are too small for the products of whole matrices.

use crate::ops::autocast::is_autocast;
use crate::ops::cpu::memory::{all_in_pieces, in_pieces};
use crate::ops::cpu::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows of a unit of work; the gradients of the weights are sums over its rows, and then over the units in their order.
const ROWS: usize = 256;

/// The operation on tensors: `[batch, seq, groups·in]` and `[groups, out, in]` → `[batch, seq, groups·out]`.
#[derive(Debug, Clone, Copy)]
pub struct HeadwiseKernel;

/// Rows of numbers times blocks.
struct Products<'a> {
    /// `[rows, groups·in]`.
    x: &'a [f32],
    /// `[groups, in, out]`.
    blocks: &'a [f32],
    /// Groups, in, out.
    size: [usize; 3],
    /// `[rows, groups·out]`.
    y: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, blocks, size: [groups, input, output], y } = self;
        for (x, y) in x.chunks_exact(groups * input).zip(y.chunks_exact_mut(groups * output)) {
            let groups = x.chunks_exact(input).zip(y.chunks_exact_mut(output));
            for ((x, y), block) in groups.zip(blocks.chunks_exact(input * output)) {
                y.fill(0.0);
                for (x, row) in x.iter().zip(block.chunks_exact(output)) {
                    y.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
                }
            }
        }
    }
}

/// Sums over rows of the products of all pairs of a group's numbers.
struct Squares<'a> {
    /// `[rows, groups·in]`.
    x: &'a [f32],
    /// `[rows, groups·out]`.
    dy: &'a [f32],
    /// Groups, in, out.
    size: [usize; 3],
    /// `[groups, out, in]`, which is added to.
    sum: &'a mut [f32],
}

impl WithSimd for Squares<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, dy, size: [groups, input, output], sum } = self;
        for (x, dy) in x.chunks_exact(groups * input).zip(dy.chunks_exact(groups * output)) {
            let groups = x.chunks_exact(input).zip(dy.chunks_exact(output));
            for ((x, dy), sum) in groups.zip(sum.chunks_exact_mut(input * output)) {
                for (dy, row) in dy.iter().zip(sum.chunks_exact_mut(input)) {
                    row.iter_mut().zip(x).for_each(|(sum, x)| *sum += dy * x);
                }
            }
        }
    }
}

/// [`Products`] of blocks of 4 × 4, the usual size, four of them at a time. Every vector of `x` is spread four times: number i
/// of each of its blocks in all four places of it.
struct Quads<'a> {
    /// `[rows, channels]`.
    x: &'a [f32],
    /// `[4, channels]`: of every block, row i as the numbers that x_i is multiplied with.
    weights: &'a [f32],
    /// `[rows, channels]`.
    y: &'a mut [f32],
    /// Whether the products are added to what is in `y`.
    keep: bool,
}

/// [`Squares`] of blocks of 4 × 4; sums of some channels are in registers.
struct QuadSquares<'a> {
    /// `[rows, channels]`.
    x: &'a [f32],
    /// `[rows, channels]`.
    dy: &'a [f32],
    /// `[4, channels]`, which is added to.
    sum: &'a mut [f32],
}

/// Numbers of a block, and of four blocks.
const QUAD: usize = 4;
const LANES: usize = 16;

/// Number `I` of every four in all places of the four.
#[inline(always)]
fn spread<const I: usize>(x: &[f32; LANES]) -> [f32; LANES] {
    [
        x[I],
        x[I],
        x[I],
        x[I],
        x[4 + I],
        x[4 + I],
        x[4 + I],
        x[4 + I],
        x[8 + I],
        x[8 + I],
        x[8 + I],
        x[8 + I],
        x[12 + I],
        x[12 + I],
        x[12 + I],
        x[12 + I],
    ]
}

/// `sum` + a⊙b.
#[inline(always)]
fn add(mut sum: [f32; LANES], a: [f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    for lane in 0..LANES {
        sum[lane] += a[lane] * b[lane];
    }
    sum
}

impl WithSimd for Quads<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, weights, y, keep } = self;
        let channels = weights.len() / QUAD;
        let rows: [&[f32]; QUAD] = std::array::from_fn(|i| &weights[i * channels..][..channels]);
        let [a, b, c, d] = rows.map(|row| row.as_chunks::<LANES>().0);
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            for (i, (x, y)) in x.as_chunks::<LANES>().0.iter().zip(y.as_chunks_mut::<LANES>().0).enumerate() {
                let sum = add(if keep { *y } else { [0.0; LANES] }, spread::<0>(x), &a[i]);
                let sum = add(sum, spread::<1>(x), &b[i]);
                let sum = add(sum, spread::<2>(x), &c[i]);
                *y = add(sum, spread::<3>(x), &d[i]);
            }
        }
    }
}

/// Rows whose products are summed in registers before the sums go back to memory: few enough that their numbers stay in a
/// core's first cache while the channels go by.
const TOGETHER: usize = 8;

impl WithSimd for QuadSquares<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, dy, sum } = self;
        let channels = sum.len() / QUAD;
        let (ab, cd) = sum.split_at_mut(2 * channels);
        let ((a, b), (c, d)) = (ab.split_at_mut(channels), cd.split_at_mut(channels));
        let [a, b, c, d] = [a, b, c, d].map(|row| row.as_chunks_mut::<LANES>().0);
        for (x, dy) in x.chunks(TOGETHER * channels).zip(dy.chunks(TOGETHER * channels)) {
            for i in 0..a.len() {
                let [mut first, mut second, mut third, mut fourth] = [a[i], b[i], c[i], d[i]];
                for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact(channels)) {
                    let (x, dy) = (&x.as_chunks::<LANES>().0[i], &dy.as_chunks::<LANES>().0[i]);
                    first = add(first, spread::<0>(x), dy);
                    second = add(second, spread::<1>(x), dy);
                    third = add(third, spread::<2>(x), dy);
                    fourth = add(fourth, spread::<3>(x), dy);
                }
                (a[i], b[i], c[i], d[i]) = (first, second, third, fourth);
            }
        }
    }
}

/// Every block `[rows, columns]` transposed.
fn transposed(blocks: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(blocks.len());
    for block in blocks.chunks_exact(rows * columns) {
        out.extend((0..columns).flat_map(|column| (0..rows).map(move |row| block[row * columns + column])));
    }
    out
}

/// Whether there are vectors of 4 × 4 blocks only.
fn is_quads([groups, input, output]: [usize; 3]) -> bool {
    input == QUAD && output == QUAD && (groups * QUAD).is_multiple_of(LANES)
}

/// `[groups, 4, 4]` as `[4, groups·4]`.
fn by_row(blocks: &[f32]) -> Vec<f32> {
    (0..QUAD).flat_map(|i| blocks.as_chunks::<QUAD>().0.iter().skip(i).step_by(QUAD)).flatten().copied().collect()
}

/// The blocks of a product as its vectors need them.
struct Weights {
    /// Groups, in, out.
    size: [usize; 3],
    numbers: Vec<f32>,
}

impl Weights {
    /// `blocks`: `[groups, in, out]`.
    fn new(blocks: Vec<f32>, size: [usize; 3]) -> Self {
        Self { size, numbers: if is_quads(size) { by_row(&blocks) } else { blocks } }
    }

    /// Of a product with the weights themselves.
    fn of(weight: &FlexTensor) -> Self {
        let [groups, output, input] = dims(weight);
        Self::new(transposed(values(weight), output, input), [groups, input, output])
    }

    /// Of a product with the gradient of their product.
    fn back(weight: &FlexTensor) -> Self {
        let [groups, output, input] = dims(weight);
        Self::new(values(weight).to_vec(), [groups, output, input])
    }

    /// The product of the rows of unit of work number `unit` of `x`, with `keep` added to `y`.
    fn multiply(&self, x: &[f32], unit: usize, y: &mut [f32], keep: bool) {
        let [groups, input, output] = self.size;
        let rows = y.len() / (groups * output);
        let x = &x[unit * ROWS * groups * input..][..rows * groups * input];
        let Self { size, numbers, .. } = self;
        match (is_quads(*size), keep) {
            (true, keep) => with_simd(Quads { x, weights: numbers, y, keep }),
            (false, false) => with_simd(Products { x, blocks: numbers, size: *size, y }),
            (false, true) => {
                let mut product = vec![0.0; y.len()];
                with_simd(Products { x, blocks: numbers, size: *size, y: &mut product });
                y.iter_mut().zip(product).for_each(|(y, product)| *y += product);
            }
        }
    }
}

/// The sum of the first product and another, if there is one, `[rows, groups·out]`.
fn products((x, weights): (&[f32], Weights), other: Option<(&[f32], Weights)>) -> Vec<f32> {
    let [groups, input, output] = weights.size;
    in_pieces(x.len() / input * output, ROWS * groups * output, |unit, y| {
        weights.multiply(x, unit, y, false);
        if let Some((x, weights)) = &other {
            weights.multiply(x, unit, y, true);
        }
    })
}

/// The gradient of the weights, `[groups, out, in]`, over the rows of a unit of work.
fn squares(x: &[f32], dy: &[f32], size: [usize; 3]) -> Vec<f32> {
    let [groups, input, output] = size;
    let mut sum = vec![0.0; groups * output * input];
    if !is_quads(size) {
        with_simd(Squares { x, dy, size, sum: &mut sum });
        return sum;
    }
    with_simd(QuadSquares { x, dy, sum: &mut sum });
    let channels = groups * QUAD;
    // [in, groups, out] to [groups, out, in]
    (0..channels).flat_map(|channel| (0..QUAD).map(move |i| i * channels + channel)).map(|place| sum[place]).collect()
}

/// The gradient of the weights.
fn weight_gradient(x: &FlexTensor, dy: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let [groups, output, input] = dims(weight);
    let units = values(x).par_chunks(ROWS * groups * input).zip(values(dy).par_chunks(ROWS * groups * output));
    let sums: Vec<Vec<f32>> = units.map(|(x, dy)| squares(x, dy, [groups, input, output])).collect();
    let mut sums = sums.into_iter();
    let mut total = sums.next().unwrap_or_else(|| vec![0.0; groups * output * input]);
    sums.for_each(|sum| total.iter_mut().zip(sum).for_each(|(total, sum)| *total += sum));
    like(weight, total)
}

impl Kernel<2, 1> for HeadwiseKernel {
    type Saved = [FlexTensor; 2];

    fn forward(&self, [x, weight]: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let ([batch, seq, _], [groups, output, _]) = (dims(&x), dims(&weight));
        let y = products((values(&x), Weights::of(&weight)), None);
        ([tensor(y, [batch, seq, groups * output])], save.then_some([x, weight]))
    }

    fn backward(
        &self,
        [x, weight]: Self::Saved,
        [dy]: [Option<FlexTensor>; 1],
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let Some(dy) = dy else { return [None, None] };
        let dx = products((values(&dy), Weights::back(&weight)), None);
        [Some(like(&x, dx)), Some(weight_gradient(&x, &dy, &weight))]
    }
}

/// Two operations on the same x: x and two weights → two products.
#[derive(Debug, Clone, Copy)]
pub struct HeadwisePairKernel;

impl Kernel<3, 2> for HeadwisePairKernel {
    type Saved = [FlexTensor; 3];

    fn forward(&self, [x, first, second]: [FlexTensor; 3], save: bool) -> ([FlexTensor; 2], Option<Self::Saved>) {
        let [batch, seq, _] = dims(&x);
        let weights = [&first, &second].map(Weights::of);
        let widths = weights.each_ref().map(|weights| weights.size[0] * weights.size[2]);
        let products =
            all_in_pieces(widths.map(|width| batch * seq * width), widths.map(|width| ROWS * width), |unit, pieces| {
                for (piece, weights) in pieces.into_iter().zip(&weights) {
                    weights.multiply(values(&x), unit, piece, false);
                }
            });
        let [a, b] = products;
        let outputs = [tensor(a, [batch, seq, widths[0]]), tensor(b, [batch, seq, widths[1]])];
        (outputs, save.then_some([x, first, second]))
    }

    fn backward(
        &self,
        [x, first, second]: Self::Saved,
        [dfirst, dsecond]: [Option<FlexTensor>; 2],
        _: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let Some(dfirst) = dfirst else { return Default::default() };
        let of_second = dsecond.as_ref().map(|dsecond| (values(dsecond), Weights::back(&second)));
        let dx = products((values(&dfirst), Weights::back(&first)), of_second);
        // burn visits what the second weights were made of even if the second product had no part in the loss.
        let dsecond = match dsecond {
            Some(dsecond) => weight_gradient(&x, &dsecond, &second),
            None => like(&second, vec![0.0; values(&second).len()]),
        };
        [Some(like(&x, dx)), Some(weight_gradient(&x, &dfirst, &first)), Some(dsecond)]
    }
}

/// The operation, where kernels can run.
pub fn headwise<B: RunKernels>(x: &Tensor<B, 3>, weight: &Tensor<B, 3>) -> Option<Tensor<B, 3>> {
    if is_autocast() {
        return None;
    }
    B::run(HeadwiseKernel, [float(x), float(weight)]).map(|[y]| kernel::tensor(y))
}

/// Two products of the same x, where kernels can run.
pub fn headwise_pair<B: RunKernels>(
    x: &Tensor<B, 3>,
    [first, second]: [&Tensor<B, 3>; 2],
) -> Option<[Tensor<B, 3>; 2]> {
    let [groups, output, input] = first.dims();
    // Larger blocks have more to compute than to read.
    if is_autocast() || !is_quads([groups, input, output]) {
        return None;
    }
    B::run(HeadwisePairKernel, [float(x), float(first), float(second)]).map(|products| products.map(kernel::tensor))
}
