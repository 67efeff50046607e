//! Causal attention, head by head and some queries at a time, from the product that holds queries, keys and values to the
//! heads side by side: no tensor of query × key, no copies of the heads, rotary positions on the way.
//!
//! The backward pass computes the probabilities anew from two numbers per query (Dao et al., arXiv 2205.14135).

use super::product::{Matrix, Threads, product};
use super::simd::{V, init, tiles};
use super::{dims, like, tensor, values, with_simd};
use crate::ops::autocast::is_autocast;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use crate::ops::{KeyMask, Rotation};
use burn::prelude::*;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::array::from_fn;
use std::mem::MaybeUninit;

/// Queries that are computed together.
const QUERIES: usize = 64;

/// [`SequenceOps::packed_attention`](crate::ops::SequenceOps::packed_attention), where kernels can run.
pub fn packed_attention<B: RunKernels>(
    qkv: &Tensor<B, 3>,
    heads: usize,
    rotation: Option<&Rotation<B>>,
    mask: Option<&KeyMask<B>>,
    scale: f64,
) -> Option<Tensor<B, 3>> {
    if !B::has_kernel::<AttentionKernel, 4, 1>() || is_autocast() {
        return None;
    }
    let absent = || float(&Tensor::<B, 1>::zeros([1], (&qkv.device(), qkv.dtype())));
    let keys = mask.map_or_else(absent, |mask| float(&mask.keys));
    let [cos, sin] = match rotation {
        Some(rotation) => [float(&rotation.cos), float(&rotation.sin)],
        None => [absent(), absent()],
    };
    let attention = AttentionKernel { heads, scale, mask: mask.map(|mask| mask.identity), rotary: rotation.is_some() };
    let [y] = B::run(attention, [float(qkv), keys, cos, sin])?;
    Some(kernel::tensor(y))
}

/// The operation on tensors: queries, keys and values `[batch, seq, 3·heads·size]`; the key mask `[batch, seq]`; the cosines
/// and sines of the rotary positions `[batch, 1, seq, size]` → `[batch, seq, heads·size]`. Only the first gets a gradient; the
/// others are read where the fields say so.
#[derive(Debug, Clone, Copy)]
pub struct AttentionKernel {
    /// Heads.
    pub heads: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// Whether there is a key mask, and with it, whether every query may see itself all the same.
    pub mask: Option<bool>,
    /// Whether queries and keys are rotated.
    pub rotary: bool,
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
    /// Queries (times the scale), keys and values, each `[seq, size]`.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl AttentionKernel {
    /// Unit number `unit` of batch × heads.
    fn head<'a>(&self, inputs: &'a [FlexTensor; 4], unit: usize) -> Head<'a> {
        let [_, seq, width] = dims(&inputs[0]);
        let size = width / 3 / self.heads;
        let (example, head) = (unit / self.heads, unit % self.heads);
        let [qkv, mask, cos, sin] = inputs.each_ref().map(values);
        let of_example = |x: &'a [f32], width: usize| &x[example * seq * width..(example + 1) * seq * width];
        let [q, k, v] = from_fn(|part| {
            let start = (part * self.heads + head) * size;
            columns(of_example(qkv, width), width, start, size)
        });
        let mut head = Head {
            seq,
            size,
            scale: self.scale as f32,
            mask: self.mask.map(|identity| (of_example(mask, 1), identity)),
            rotation: self.rotary.then(|| [cos, sin].map(|x| of_example(x, size))),
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

impl Kernel<4, 1> for AttentionKernel {
    /// The inputs, the output, and the largest score and 1/Σ exp of the others relative to it, `[batch·heads, seq, 2]`.
    type Saved = ([FlexTensor; 4], FlexTensor, Vec<f32>);

    #[allow(unsafe_code)]
    fn forward(&self, inputs: [FlexTensor; 4], save: bool) -> ([FlexTensor; 1], Option<Self::Saved>) {
        let [batch, seq, width] = dims(&inputs[0]);
        assert!(width.is_multiple_of(3 * self.heads), "{width} channels are not 3 × {} heads", self.heads);
        let hidden = width / 3;
        let mut y = Box::new_uninit_slice(batch * seq * hidden);
        let mut moments = vec![0.0; batch * self.heads * seq * 2];
        let units = tiles(&mut y, seq, hidden, hidden / self.heads).into_par_iter();
        units.zip(moments.par_chunks_mut(2 * seq)).enumerate().for_each(|(unit, (mut y, moments))| {
            self.head(&inputs, unit).forward(&mut y, moments);
        });
        // SAFETY: every head of every example writes all its queries, and there is nothing beside the heads.
        let y = tensor(unsafe { y.assume_init() }.into_vec(), [batch, seq, hidden]);
        ([y.clone()], save.then_some((inputs, y, moments)))
    }

    #[allow(unsafe_code)]
    fn backward(
        &self,
        (inputs, y, moments): Self::Saved,
        [dy]: [Option<FlexTensor>; 1],
        _: [bool; 4],
    ) -> [Option<FlexTensor>; 4] {
        let Some(dy) = dy else { return Default::default() };
        let [batch, seq, width] = dims(&inputs[0]);
        let (heads, hidden) = (self.heads, width / 3);
        assert!(
            width.is_multiple_of(3 * heads) && moments.len() == batch * heads * seq * 2,
            "not of this forward pass"
        );
        let size = hidden / heads;
        let mut gradient = Box::new_uninit_slice(batch * seq * width);
        let mut parts = tiles(&mut gradient, seq, width, size);
        let units: Vec<[Vec<&mut [MaybeUninit<f32>]>; 3]> = (0..parts.len() / 3)
            .map(|unit| from_fn(|part| std::mem::take(&mut parts[(unit / heads * 3 + part) * heads + unit % heads])))
            .collect();
        units.into_par_iter().zip(moments.par_chunks(2 * seq)).enumerate().for_each(|(unit, (gradient, moments))| {
            let rows = unit / heads * seq * hidden..(unit / heads + 1) * seq * hidden;
            let [y, dy] = [&y, &dy].map(|x| columns(&values(x)[rows.clone()], hidden, unit % heads * size, size));
            self.head(&inputs, unit).backward(moments, &y, &dy, gradient);
        });
        // SAFETY: every head of every example writes its queries, keys and values, and there is nothing beside them.
        let gradient = unsafe { gradient.assume_init() }.into_vec();
        [Some(like(&inputs[0], gradient)), None, None, None]
    }
}

impl Head<'_> {
    /// The scores of some queries `[queries, keys]`, and how many keys there are: without a mask, none after the last query.
    fn scores(&self, queries: std::ops::Range<usize>, scores: &mut Vec<f32>) -> usize {
        let keys = if self.mask.is_some() { self.seq } else { queries.end };
        scores.resize(queries.len() * keys, 0.0);
        let q = Matrix::rows(&self.q[queries.start * self.size..], self.size);
        let k = Matrix::rows(&self.k, self.size).transposed();
        product(scores, [queries.len(), self.size, keys], q, k, false, Threads::One);
        if let Some((mask, identity)) = self.mask {
            for (query, scores) in queries.zip(scores.chunks_exact_mut(keys)) {
                scores[query + 1..].fill(f32::MIN);
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
            with_simd(Softmax { first: start, causal: self.mask.is_none(), keys, scores: &mut scores, moments });
            out.resize(y.len() * size, 0.0);
            let (p, v) = (Matrix::rows(&scores, keys), Matrix::rows(&self.v, size));
            product(&mut out, [y.len(), keys, size], p, v, false, Threads::One);
            y.iter_mut().zip(out.chunks_exact(size)).for_each(|(y, out)| init(y, out));
        }
    }

    /// `y` and its gradient `dy` `[seq, size]`; `gradient`: the rows of the gradients of queries, keys and values.
    fn backward(&self, moments: &[f32], y: &[f32], dy: &[f32], gradient: [Vec<&mut [MaybeUninit<f32>]>; 3]) {
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
                first: start,
                size,
                keys,
                causal: self.mask.is_none(),
                moments,
                y,
                dy,
                p: &mut p,
                ds: &mut ds,
            });
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

/// x·cos + (−x₂ ‖ x₁)·sin·`direction` in every row, where x₁ and x₂ are its halves (Su et al., arXiv 2104.09864); direction
/// −1 is the way back.
fn rotate(x: &mut [f32], [cos, sin]: [&[f32]; 2], size: usize, direction: f32) {
    for ((x, cos), sin) in x.chunks_exact_mut(size).zip(cos.chunks_exact(size)).zip(sin.chunks_exact(size)) {
        let (first, second) = x.split_at_mut(size / 2);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let sin = sin * direction;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Rows of scores to probabilities.
struct Softmax<'a> {
    /// The first row's query.
    first: usize,
    /// Whether keys after the query have no score yet.
    causal: bool,
    keys: usize,
    scores: &'a mut [f32],
    moments: &'a mut [f32],
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { first, causal, keys, scores, moments } = self;
        let lanes = V::<S>::LANES;
        for (row, (scores, moments)) in scores.chunks_exact_mut(keys).zip(moments.as_chunks_mut::<2>().0).enumerate() {
            let (scores, hidden) = scores.split_at_mut(if causal { first + row + 1 } else { keys });
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

/// Rows of scores to probabilities p, and rows of their gradients g to those of the scores, p·(g − Σ p·g), where Σ p·g is
/// y·dy.
struct Gradient<'a> {
    first: usize,
    size: usize,
    keys: usize,
    causal: bool,
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
        let Self { first, size, keys, causal, moments, y, dy, p, ds } = self;
        let lanes = V::<S>::LANES;
        let outputs = y.chunks_exact(size).zip(dy.chunks_exact(size));
        let rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).zip(outputs);
        for (row, (((p, ds), (y, dy)), [largest, factor])) in rows.zip(moments.as_chunks::<2>().0).enumerate() {
            let mean: f32 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
            let visible = first + row + 1;
            for (p, ds) in p[..visible].chunks_mut(lanes).zip(ds.chunks_mut(lanes)) {
                let probability = (V::load(simd, p) - V::splat(simd, *largest)).exp() * *factor;
                probability.store(p);
                let ds = &mut ds[..p.len()];
                (probability * (V::load(simd, ds) - V::splat(simd, mean))).store(ds);
            }
            // Behind the query: only a query without any visible key sees something there, and passes nothing back to it.
            ds[visible..].fill(0.0);
            for p in p[visible..].chunks_mut(lanes) {
                let hidden = (V::load(simd, p) - V::splat(simd, *largest)).exp() * *factor;
                if causal { V::splat(simd, 0.0) } else { hidden }.store(p);
            }
        }
    }
}
