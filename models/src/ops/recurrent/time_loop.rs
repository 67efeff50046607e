//! Time loops: each step is a product with the recurrent weight, by each thread for its own examples or, where that
//! weight is large, by all threads for all examples.

use crate::ops::cpu::panels::Panels;
use crate::ops::cpu::with_simd;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Some examples on their way through time, in either direction. Every step multiplies one vector of each example with
/// the recurrent weight.
pub trait TimeLoop: Send + Sync {
    /// The work before the product at step t.
    fn before_product(&mut self, t: usize);

    /// The left side of the product at step t, `[rows, depth]`.
    fn left(&self, t: usize) -> &[f32];

    /// The work after it: `product` is a [`Panels::product`] of so many rows, this loop's from `first` on.
    fn after_product(&mut self, t: usize, product: &[f32], rows: usize, first: usize);
}

/// Takes all examples, `rows` at most in each loop, through these time steps.
pub fn run<W: TimeLoop>(
    mut loops: Vec<W>,
    rows: usize,
    recurrent: &Panels,
    times: impl Iterator<Item = usize> + Clone + Send + Sync,
) {
    if loops.len() < 2 || !recurrent.is_large() {
        let times = &times;
        loops.into_par_iter().for_each(|time_loop| with_simd(Alone { time_loop, recurrent, times: times.clone() }));
        return;
    }
    let Some(first) = times.clone().next() else { return };
    let depth = recurrent.depth();
    let mut left = vec![0.0; loops.iter().map(|time_loop| time_loop.left(first).len()).sum()];
    let all = left.len() / depth;
    let mut product = vec![0.0; all * recurrent.padded_columns()];
    // On one of the pool's threads, which need not be woken for its own part of every step.
    rayon::scope(|_| {
        for t in times {
            let lefts = left.par_chunks_mut(rows * depth);
            loops
                .par_iter_mut()
                .zip(lefts)
                .for_each(|(time_loop, left)| with_simd(BeforeProduct { time_loop, t, left }));
            recurrent.product_by_all(&left, &mut product);
            let product = &product;
            loops.par_iter_mut().enumerate().for_each(|(index, time_loop)| {
                with_simd(AfterProduct { time_loop, t, product, rows: all, first: index * rows });
            });
        }
    });
}

/// A loop that waits for no other.
struct Alone<'a, W, I> {
    time_loop: W,
    recurrent: &'a Panels,
    times: I,
}

impl<W: TimeLoop, I: Iterator<Item = usize>> WithSimd for Alone<'_, W, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut product = Vec::new();
        for t in self.times {
            self.time_loop.before_product(t);
            let left = self.time_loop.left(t);
            let rows = left.len() / self.recurrent.depth();
            product.resize(rows * self.recurrent.padded_columns(), 0.0);
            self.recurrent.product(simd, left, &mut product);
            self.time_loop.after_product(t, &product, rows, 0);
        }
    }
}

struct BeforeProduct<'a, W> {
    time_loop: &'a mut W,
    t: usize,
    /// Where [`TimeLoop::left`] goes.
    left: &'a mut [f32],
}

impl<W: TimeLoop> WithSimd for BeforeProduct<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.time_loop.before_product(self.t);
        self.left.copy_from_slice(self.time_loop.left(self.t));
    }
}

struct AfterProduct<'a, W> {
    time_loop: &'a mut W,
    t: usize,
    product: &'a [f32],
    rows: usize,
    first: usize,
}

impl<W: TimeLoop> WithSimd for AfterProduct<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.time_loop.after_product(self.t, self.product, self.rows, self.first);
    }
}
