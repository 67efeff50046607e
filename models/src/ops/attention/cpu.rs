//! Attention, head by head and some queries at a time, from the product that holds queries, keys and values to
//! the heads side by side: no tensor of query × key, no copies of the heads, rotary positions applied as they are read.
//!
//! The backward pass computes the probabilities again from two numbers per query (Dao et al., arXiv 2205.14135).

use crate::ops::AttentionOptions;
use crate::ops::autocast::is_autocast;
use crate::ops::cpu::gemm::{Matrix, Threads, product};
use crate::ops::cpu::memory::uninit;
use crate::ops::cpu::simd::{V, init, tiles};
use crate::ops::cpu::{dims, like, tensor, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};

use burn::prelude::*;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::array::from_fn;
use std::mem::MaybeUninit;

/// Queries that are computed together.
const QUERIES: usize = 64;

/// The operation, where kernels can run.
pub fn packed_attention<B: RunKernels>(qkv: &Tensor<B, 3>, options: &AttentionOptions<B>) -> Option<Tensor<B, 3>> {
    if !B::has_kernel::<AttentionKernel, 1, 1>() || is_autocast() {
        return None;
    }
    let mask = match &options.mask {
        Some(mask) => Some((B::constant(float(&mask.keys))?, mask.identity)),
        None => None,
    };
    let rotation = match &options.rotation {
        Some(rotation) => Some([B::constant(float(&rotation.cos))?, B::constant(float(&rotation.sin))?]),
        None => None,
    };
    let attention =
        AttentionKernel { heads: options.heads, scale: options.scale, mask, rotation, causal: options.causal };
    let [y] = match &options.bias {
        Some(bias) => B::run::<_, 2, 1>(attention, [float(qkv), float(bias)]),
        None => B::run::<_, 1, 1>(attention, [float(qkv)]),
    }?;
    Some(kernel::tensor(y))
}

/// The operation on tensors: queries, keys and values `[batch, seq, 3·heads·size]`, and a bias of the scores
/// `[1 or batch, 1 or heads, seq, seq]` as a second input where there is one → `[batch, seq, heads·size]`.
#[derive(Debug, Clone)]
pub struct AttentionKernel {
    /// Heads.
    pub heads: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// The padding mask `[batch, seq]`, 0 at hidden keys, and whether every query may see itself anyway.
    pub mask: Option<(FlexTensor, bool)>,
    /// The cosines and sines by which queries and keys are rotated, each `[batch, 1, seq, size]`.
    pub rotation: Option<[FlexTensor; 2]>,
    /// Whether queries see no key after their own.
    pub causal: bool,
}

/// One head of one example.
struct Head<'a> {
    seq: usize,
    size: usize,
    scale: f32,
    /// 0 at keys that are hidden, and whether queries may see themselves.
    mask: Option<(&'a [f32], bool)>,
    /// Cosines and sines, each `[seq, size]`.
    rotation: Option<[&'a [f32]; 2]>,
    /// Whether queries see no key after their own.
    causal: bool,
    /// Added to the scores, `[query, key]`.
    bias: Option<&'a [f32]>,
    /// Queries (times the scale), keys and values, each `[seq, size]`.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl AttentionKernel {
    /// Which square of a bias of this shape unit number `unit` of batch × heads takes.
    fn square(&self, bias: [usize; 4], unit: usize) -> usize {
        let [examples, heads, ..] = bias;
        let index = |i, n| if n == 1 { 0 } else { i };
        index(unit / self.heads, examples) * heads + index(unit % self.heads, heads)
    }

    /// Unit number `unit` of batch × heads.
    fn head<'a>(&'a self, qkv: &FlexTensor, bias: Option<&'a FlexTensor>, unit: usize) -> Head<'a> {
        /// The numbers of one example.
        fn rows(x: &FlexTensor, example: usize, numbers: usize) -> &[f32] {
            &values(x)[example * numbers..(example + 1) * numbers]
        }
        let [_, seq, width] = dims(qkv);
        let size = width / 3 / self.heads;
        let (example, head) = (unit / self.heads, unit % self.heads);
        let qkv = rows(qkv, example, seq * width);
        let [q, k, v] = from_fn(|part| {
            let start = (part * self.heads + head) * size;
            columns(qkv, width, start, size)
        });
        let mut head = Head {
            seq,
            size,
            scale: self.scale as f32,
            mask: self.mask.as_ref().map(|(keys, identity)| (rows(keys, example, seq), *identity)),
            rotation: self.rotation.as_ref().map(|parts| parts.each_ref().map(|x| rows(x, example, seq * size))),
            causal: self.causal,
            bias: bias.map(|bias| rows(bias, self.square(dims(bias), unit), seq * seq)),
            q,
            k,
            v,
        };
        let scale = head.scale;
        head.q.iter_mut().for_each(|q| *q *= scale);
        if let Some(rotation) = head.rotation {
            rotate(&mut head.q, rotation, size, 1.0);
            rotate(&mut head.k, rotation, size, 1.0);
        }
        head
    }
}

/// The inputs, the output, and the largest score and 1/Σ exp of the others relative to it, `[batch·heads, seq, 2]`.
type Saved = (FlexTensor, Option<FlexTensor>, FlexTensor, Vec<f32>);

impl AttentionKernel {
    #[allow(unsafe_code)]
    fn outputs(&self, qkv: FlexTensor, bias: Option<FlexTensor>, save: bool) -> ([FlexTensor; 1], Option<Saved>) {
        let [batch, seq, width] = dims(&qkv);
        assert!(width.is_multiple_of(3 * self.heads), "{width} channels are not 3 × {} heads", self.heads);
        let hidden = width / 3;
        let mut y = uninit(batch * seq * hidden);
        let mut moments = vec![0.0; batch * self.heads * seq * 2];
        let units = tiles(&mut y, seq, hidden, hidden / self.heads).into_par_iter();
        units.zip(moments.par_chunks_mut(2 * seq)).enumerate().for_each(|(unit, (mut y, moments))| {
            self.head(&qkv, bias.as_ref(), unit).forward(&mut y, moments);
        });
        // SAFETY: every head of every example writes all its queries, and there is nothing beside the heads.
        let y = tensor(unsafe { y.assume_init() }.into_vec(), [batch, seq, hidden]);
        ([y.clone()], save.then_some((qkv, bias, y, moments)))
    }

    /// The gradients of queries, keys and values, and of the bias where it is wanted.
    #[allow(unsafe_code)]
    fn gradients(
        &self,
        (qkv, bias, y, moments): Saved,
        dy: &FlexTensor,
        wants_bias: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        let [batch, seq, width] = dims(&qkv);
        let (heads, hidden) = (self.heads, width / 3);
        assert!(
            width.is_multiple_of(3 * heads) && moments.len() == batch * heads * seq * 2,
            "not of this forward pass"
        );
        let size = hidden / heads;
        let mut gradient = uninit(batch * seq * width);
        let mut parts = tiles(&mut gradient, seq, width, size);
        let units: Vec<[Vec<&mut [MaybeUninit<f32>]>; 3]> = (0..parts.len() / 3)
            .map(|unit| from_fn(|part| std::mem::take(&mut parts[(unit / heads * 3 + part) * heads + unit % heads])))
            .collect();
        let mut squares = vec![vec![]; if wants_bias { units.len() } else { 0 }];
        let mut square = squares.iter_mut().map(Some).collect::<Vec<_>>();
        square.resize_with(units.len(), || None);
        let units = units.into_par_iter().zip(square).zip(moments.par_chunks(2 * seq));
        units.enumerate().for_each(|(unit, ((gradient, square), moments))| {
            let rows = unit / heads * seq * hidden..(unit / heads + 1) * seq * hidden;
            let [y, dy] = [&y, dy].map(|x| columns(&values(x)[rows.clone()], hidden, unit % heads * size, size));
            self.head(&qkv, bias.as_ref(), unit).backward(moments, &y, &dy, gradient, square);
        });
        // SAFETY: every head of every example writes its queries, keys and values, and there is nothing beside them.
        let gradient = unsafe { gradient.assume_init() }.into_vec();
        let bias = bias.filter(|_| wants_bias).map(|bias| {
            // Summed in the order of the batch, so that the number of threads does not matter.
            let mut sum = vec![0.0; values(&bias).len()];
            sum.par_chunks_mut(seq * seq).enumerate().for_each(|(target, sum)| {
                for square in (0..).zip(&squares).filter(|(unit, _)| self.square(dims(&bias), *unit) == target) {
                    sum.iter_mut().zip(square.1).for_each(|(sum, d)| *sum += d);
                }
            });
            like(&bias, sum)
        });
        (like(&qkv, gradient), bias)
    }
}

impl Kernel<1, 1> for AttentionKernel {
    type Saved = Saved;

    fn forward(&self, [qkv]: [FlexTensor; 1], save: bool) -> ([FlexTensor; 1], Option<Saved>) {
        self.outputs(qkv, None, save)
    }

    fn backward(&self, saved: Saved, [dy]: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [dy.map(|dy| self.gradients(saved, &dy, false).0)]
    }
}

/// With a bias.
impl Kernel<2, 1> for AttentionKernel {
    type Saved = Saved;

    fn forward(&self, [qkv, bias]: [FlexTensor; 2], save: bool) -> ([FlexTensor; 1], Option<Saved>) {
        self.outputs(qkv, Some(bias), save)
    }

    fn backward(
        &self,
        saved: Saved,
        [dy]: [Option<FlexTensor>; 1],
        [_, wants_bias]: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let Some(dy) = dy else { return [None, None] };
        let (qkv, bias) = self.gradients(saved, &dy, wants_bias);
        [Some(qkv), bias]
    }
}

impl Head<'_> {
    /// Whether keys after the query are left out. With a mask they have a score, since a query without any visible key
    /// attends to them.
    fn leaves_out(&self) -> bool {
        self.causal && self.mask.is_none()
    }

    /// The scores of some queries `[queries, keys]`, and how many keys there are: none after the last query, where they are
    /// left out.
    fn scores(&self, queries: std::ops::Range<usize>, scores: &mut Vec<f32>) -> usize {
        let keys = if self.leaves_out() { queries.end } else { self.seq };
        scores.resize(queries.len() * keys, 0.0);
        let q = Matrix::rows(&self.q[queries.start * self.size..], self.size);
        let k = Matrix::rows(&self.k, self.size).transposed();
        product(scores, [queries.len(), self.size, keys], q, k, false, Threads::One);
        if let Some(bias) = self.bias {
            let bias = bias[queries.start * self.seq..].chunks_exact(self.seq);
            for (scores, bias) in scores.chunks_exact_mut(keys).zip(bias) {
                scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
            }
        }
        if let Some((mask, identity)) = self.mask {
            for (query, scores) in queries.zip(scores.chunks_exact_mut(keys)) {
                if self.causal {
                    scores[query + 1..].fill(f32::MIN);
                }
                for (key, (score, visible)) in scores.iter_mut().zip(mask).enumerate() {
                    if !(identity && key == query) {
                        *score += (1.0 - visible) * f32::MIN;
                    }
                }
            }
        }
        keys
    }

    fn forward(&self, y: &mut [&mut [MaybeUninit<f32>]], moments: &mut [f32]) {
        let size = self.size;
        let (mut scores, mut out) = (Vec::new(), Vec::new());
        for (start, y) in (0..self.seq).step_by(QUERIES).zip(y.chunks_mut(QUERIES)) {
            let queries = start..start + y.len();
            let keys = self.scores(queries.clone(), &mut scores);
            let moments = &mut moments[2 * start..2 * queries.end];
            let first = self.leaves_out().then_some(start);
            with_simd(Softmax { first, keys, scores: &mut scores, moments });
            out.resize(y.len() * size, 0.0);
            let (p, v) = (Matrix::rows(&scores, keys), Matrix::rows(&self.v, size));
            product(&mut out, [y.len(), keys, size], p, v, false, Threads::One);
            y.iter_mut().zip(out.chunks_exact(size)).for_each(|(y, out)| init(y, out));
        }
    }

    /// `y` and its gradient `dy` `[seq, size]`; `gradient`: the rows of the gradients of queries, keys and values;
    /// `square`: the gradient of the scores `[query, key]`, where it is wanted.
    fn backward(
        &self,
        moments: &[f32],
        y: &[f32],
        dy: &[f32],
        gradient: [Vec<&mut [MaybeUninit<f32>]>; 3],
        mut square: Option<&mut Vec<f32>>,
    ) {
        let (seq, size) = (self.seq, self.size);
        let (mut dq, mut dk, mut dv) = (vec![0.0; seq * size], vec![0.0; seq * size], vec![0.0; seq * size]);
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        for start in (0..seq).step_by(QUERIES) {
            let queries = start..seq.min(start + QUERIES);
            let rows = queries.len();
            let keys = self.scores(queries.clone(), &mut p);
            let block = start * size..queries.end * size;
            let (y, dy) = (&y[block.clone()], &dy[block.clone()]);
            ds.resize(rows * keys, 0.0);
            let (value, gradient) = (Matrix::rows(&self.v, size), Matrix::rows(dy, size));
            product(&mut ds, [rows, size, keys], gradient, value.transposed(), false, Threads::One);
            let moments = &moments[2 * start..2 * queries.end];
            with_simd(Gradient {
                first: self.causal.then_some(start),
                size,
                keys,
                leaves_out: self.leaves_out(),
                moments,
                y,
                dy,
                p: &mut p,
                ds: &mut ds,
            });
            if let Some(square) = square.as_deref_mut() {
                square.resize(seq * seq, 0.0);
                let rows = square[start * seq..].chunks_exact_mut(seq);
                rows.zip(ds.chunks_exact(keys)).for_each(|(square, ds)| square[..keys].copy_from_slice(ds));
            }
            let (p, ds) = (Matrix::rows(&p, keys), Matrix::rows(&ds, keys));
            product(&mut dv, [keys, rows, size], p.transposed(), gradient, true, Threads::One);
            product(&mut dq[block], [rows, keys, size], ds, Matrix::rows(&self.k, size), false, Threads::One);
            let q = Matrix::rows(&self.q[start * size..], size);
            product(&mut dk, [keys, rows, size], ds.transposed(), q, true, Threads::One);
        }
        dq.iter_mut().for_each(|dq| *dq *= self.scale);
        if let Some(rotation) = self.rotation {
            rotate(&mut dq, rotation, size, -1.0);
            rotate(&mut dk, rotation, size, -1.0);
        }
        for (rows, values) in gradient.into_iter().zip([dq, dk, dv]) {
            rows.into_iter().zip(values.chunks_exact(size)).for_each(|(row, values)| init(row, values));
        }
    }
}

/// `size` columns from `first` on of `[rows, width]`.
fn columns(x: &[f32], width: usize, first: usize, size: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len() / width * size);
    x.chunks_exact(width).for_each(|row| out.extend_from_slice(&row[first..first + size]));
    out
}

/// x·cos + (−x₂ ‖ x₁)·sin·`direction` in every row, where x₁ and x₂ are its halves (Su et al., arXiv 2104.09864);
/// direction −1 is the backward pass.
fn rotate(x: &mut [f32], [cos, sin]: [&[f32]; 2], size: usize, direction: f32) {
    let half = size / 2;
    for (row, x) in x.chunks_exact_mut(size).enumerate() {
        let (first, second) = x.split_at_mut(half);
        let (second, cos, sin) = (&mut second[..half], &cos[row * size..][..half], &sin[row * size..][..half]);
        for i in 0..half {
            let (a, b, sin) = (first[i], second[i], sin[i] * direction);
            (first[i], second[i]) = (a * cos[i] - b * sin, b * cos[i] + a * sin);
        }
    }
}

/// Rows of scores to probabilities.
struct Softmax<'a> {
    /// The first row's query, where keys after the query have no score yet.
    first: Option<usize>,
    keys: usize,
    scores: &'a mut [f32],
    moments: &'a mut [f32],
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { first, keys, scores, moments } = self;
        let lanes = V::<S>::LANES;
        for (row, (scores, moments)) in scores.chunks_exact_mut(keys).zip(moments.as_chunks_mut::<2>().0).enumerate() {
            let (scores, hidden) = scores.split_at_mut(first.map_or(keys, |first| first + row + 1));
            hidden.fill(0.0);
            let largest = largest(simd, scores);
            for x in scores.chunks_mut(lanes) {
                (V::load(simd, x) - V::splat(simd, largest)).exp().store(x);
            }
            let (whole, rest) = scores.split_at(scores.len() / lanes * lanes);
            let mut sum = V::splat(simd, 0.0);
            whole.chunks_exact(lanes).for_each(|x| sum += V::load(simd, x));
            let factor = 1.0 / (sum.sum() + rest.iter().sum::<f32>());
            for x in scores.chunks_mut(lanes) {
                (V::load(simd, x) * factor).store(x);
            }
            *moments = [largest, factor];
        }
    }
}

/// The largest number.
#[inline(always)]
fn largest<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (whole, rest) = S::as_simd_f32s(x);
    let most = whole.iter().fold(simd.splat_f32s(f32::NEG_INFINITY), |most, &x| simd.max_f32s(most, x));
    rest.iter().fold(simd.reduce_max_f32s(most), |most, &x| most.max(x))
}

/// Rows of scores to probabilities p, and rows of their gradients g to those of the scores, p·(g − Σ p·g), where Σ p·g
/// is y·dy.
struct Gradient<'a> {
    /// The first row's query, where attention is causal.
    first: Option<usize>,
    size: usize,
    keys: usize,
    /// Whether keys after the query have no score.
    leaves_out: bool,
    moments: &'a [f32],
    y: &'a [f32],
    dy: &'a [f32],
    p: &'a mut [f32],
    ds: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { first, size, keys, leaves_out, moments, y, dy, p, ds } = self;
        let lanes = V::<S>::LANES;
        for (row, &[largest, factor]) in moments.as_chunks().0.iter().enumerate() {
            let (y, dy) = (&y[row * size..][..size], &dy[row * size..][..size]);
            let (p, ds) = (&mut p[row * keys..][..keys], &mut ds[row * keys..][..keys]);
            let mean: f32 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
            let visible = first.map_or(keys, |first| first + row + 1);
            for (p, ds) in p[..visible].chunks_mut(lanes).zip(ds.chunks_mut(lanes)) {
                let probability = (V::load(simd, p) - V::splat(simd, largest)).exp() * factor;
                probability.store(p);
                let ds = &mut ds[..p.len()];
                (probability * (V::load(simd, ds) - V::splat(simd, mean))).store(ds);
            }
            // After the query: only a query without any visible key attends there, and it passes no gradient back.
            ds[visible..].fill(0.0);
            for p in p[visible..].chunks_mut(lanes) {
                let hidden = (V::load(simd, p) - V::splat(simd, largest)).exp() * factor;
                if leaves_out { V::splat(simd, 0.0) } else { hidden }.store(p);
            }
        }
    }
}
