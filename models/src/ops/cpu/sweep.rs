//! Sweeps through time: every step a product with the recurrent weight, by every thread for its own examples or, where that
//! weight is large, by all threads for all examples.

use super::panels::Panels;
use super::with_simd;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Some examples on their way through time, in either direction. Every step takes the product of something of each example
/// with the recurrent weight.
pub trait Sweep: Send + Sync {
    /// What comes before the product at step t.
    fn before_product(&mut self, t: usize);

    /// The left side of the product at step t, `[rows, depth]`.
    fn left(&self, t: usize) -> &[f32];

    /// What comes after it: `product` is a [`Panels::product`] of so many rows, this sweep's from `first` on.
    fn after_product(&mut self, t: usize, product: &[f32], rows: usize, first: usize);
}

/// Takes all examples, `rows` at most in each sweep, through these time steps.
pub fn run<W: Sweep>(
    mut sweeps: Vec<W>,
    rows: usize,
    recurrent: &Panels,
    times: impl Iterator<Item = usize> + Clone + Send + Sync,
) {
    if sweeps.len() < 2 || !recurrent.is_large() {
        let times = &times;
        sweeps.into_par_iter().for_each(|sweep| with_simd(Alone { sweep, recurrent, times: times.clone() }));
        return;
    }
    let Some(first) = times.clone().next() else { return };
    let depth = recurrent.depth();
    let mut left = vec![0.0; sweeps.iter().map(|sweep| sweep.left(first).len()).sum()];
    let all = left.len() / depth;
    let mut product = vec![0.0; all * recurrent.padded_columns()];
    // On one of the pool's threads, which need not be woken for its own part of every step.
    rayon::scope(|_| {
        for t in times {
            let lefts = left.par_chunks_mut(rows * depth);
            sweeps.par_iter_mut().zip(lefts).for_each(|(sweep, left)| with_simd(BeforeProduct { sweep, t, left }));
            recurrent.product_by_all(&left, &mut product);
            let product = &product;
            sweeps.par_iter_mut().enumerate().for_each(|(index, sweep)| {
                with_simd(AfterProduct { sweep, t, product, rows: all, first: index * rows });
            });
        }
    });
}

/// A sweep that waits for no other.
struct Alone<'a, W, I> {
    sweep: W,
    recurrent: &'a Panels,
    times: I,
}

impl<W: Sweep, I: Iterator<Item = usize>> WithSimd for Alone<'_, W, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut product = Vec::new();
        for t in self.times {
            self.sweep.before_product(t);
            let left = self.sweep.left(t);
            let rows = left.len() / self.recurrent.depth();
            product.resize(rows * self.recurrent.padded_columns(), 0.0);
            self.recurrent.product(simd, left, &mut product);
            self.sweep.after_product(t, &product, rows, 0);
        }
    }
}

struct BeforeProduct<'a, W> {
    sweep: &'a mut W,
    t: usize,
    /// Where [`Sweep::left`] goes.
    left: &'a mut [f32],
}

impl<W: Sweep> WithSimd for BeforeProduct<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.sweep.before_product(self.t);
        self.left.copy_from_slice(self.sweep.left(self.t));
    }
}

struct AfterProduct<'a, W> {
    sweep: &'a mut W,
    t: usize,
    product: &'a [f32],
    rows: usize,
    first: usize,
}

impl<W: Sweep> WithSimd for AfterProduct<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.sweep.after_product(self.t, self.product, self.rows, self.first);
    }
}
