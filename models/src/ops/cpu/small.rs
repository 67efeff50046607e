//! Products of matrices that are small enough for a core's first cache, on the calling thread: nothing is packed, and terms
//! that are zero because one time step is before another are left out.

use pulp::{Simd, WithSimd};

/// Numbers to which rows are filled up: whole vectors on every processor.
const PADDING: usize = 16;

/// Rows of the left side whose sums are in registers at the same time.
const ROWS: usize = 6;

/// A matrix whose rows are filled up with zeros to whole vectors.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Row after row.
    pub values: Vec<f32>,
    /// Numbers of a row, the filling included.
    pub width: usize,
}

impl Rows {
    /// Numbers of a row of so many columns, the filling included.
    pub fn width(columns: usize) -> usize {
        columns.next_multiple_of(PADDING)
    }

    /// Zeros.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        let width = Self::width(columns);
        Self { values: vec![0.0; rows * width], width }
    }

    /// One row, with its filling.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    /// The same, to write to.
    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }

    /// The first numbers of a row.
    #[inline(always)]
    pub fn set(&mut self, row: usize, numbers: &[f32]) {
        self.row_mut(row)[..numbers.len()].copy_from_slice(numbers);
    }

    /// The first `rows` rows of `from`, which has rows of whole vectors, as columns, of which the others are zero. `from` is
    /// as wide as this matrix has rows.
    ///
    /// # Panics
    /// It is not, or its rows are more than this one's columns.
    #[inline(always)]
    pub fn transpose(&mut self, from: &[f32], from_width: usize, rows: usize) {
        let width = self.width;
        assert!(from_width * width == self.values.len() && rows <= width, "a transposed matrix has another size");
        let whole = rows / SIDE * SIDE;
        for (i, four) in from[..whole * from_width].chunks_exact(SIDE * from_width).enumerate() {
            let (ab, cd) = four.split_at(2 * from_width);
            let ((a, b), (c, d)) = (ab.split_at(from_width), cd.split_at(from_width));
            let [a, b, c, d] = [a, b, c, d].map(|row| row.as_chunks::<SIDE>().0);
            let blocks = self.values.chunks_exact_mut(SIDE * width);
            for ((((a, b), c), d), block) in a.iter().zip(b).zip(c).zip(d).zip(blocks) {
                // Four rows by name instead of a loop: the compiler then makes shuffles of it.
                let transposed = [
                    [a[0], b[0], c[0], d[0]],
                    [a[1], b[1], c[1], d[1]],
                    [a[2], b[2], c[2], d[2]],
                    [a[3], b[3], c[3], d[3]],
                ];
                for (row, numbers) in block.chunks_exact_mut(width).zip(transposed) {
                    if let Some(to) = row.as_chunks_mut::<SIDE>().0.get_mut(i) {
                        *to = numbers;
                    }
                }
            }
        }
        for (column, row) in self.values.chunks_exact_mut(width).enumerate() {
            for (to, i) in row[whole..].iter_mut().zip(whole..) {
                *to = if i < rows { from[i * from_width + column] } else { 0.0 };
            }
        }
    }
}

/// Rows and columns that are transposed at a time.
const SIDE: usize = 4;

/// Which terms the sums of a row have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terms {
    /// All.
    All,
    /// Those up to the number of the row; others are zero on the left side.
    UpToRow,
    /// Those from the number of the row on; others are zero on the left side.
    FromRow,
}

/// The left side of a product.
#[derive(Debug, Clone, Copy)]
pub enum Left<'a> {
    /// As it is.
    Rows(&'a Rows),
    /// Its rows are the columns of this.
    Columns(&'a Rows),
}

/// How much of what is in the result is kept.
#[derive(Debug, Clone, Copy)]
pub enum Keep<'a> {
    /// It is not read.
    Nothing,
    /// All of it, times this.
    All(f32),
    /// Each row, times a number for it.
    Rows(&'a [f32]),
}

/// `out ← keep·out + left·right`.
#[derive(Debug)]
pub struct Product<'a> {
    /// As wide as `right`.
    pub out: &'a mut Rows,
    /// What is kept of `out`.
    pub keep: Keep<'a>,
    /// The left side, of at least as many rows and columns as the product has rows and terms.
    pub left: Left<'a>,
    /// The right side, of at least as many rows as there are terms.
    pub right: &'a Rows,
    /// Rows that are computed, and terms of their sums.
    pub size: [usize; 2],
    /// Which of the terms there are.
    pub terms: Terms,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.blocks::<S, 4, 1>(simd),
            8 => self.blocks::<S, 2, 2>(simd),
            4 => self.blocks::<S, 4, 4>(simd),
            2 => self.blocks::<S, 8, 8>(simd),
            _ => self.blocks::<S, 16, 16>(simd),
        }
    }
}

impl Product<'_> {
    /// The product in blocks of `W` vectors of columns, or `N` where there are no more.
    #[inline(always)]
    fn blocks<S: Simd, const W: usize, const N: usize>(mut self, simd: S) {
        let [rows, terms] = self.size;
        let width = self.out.width;
        assert_eq!(width, self.right.width, "the sides of a product are of other widths");
        if let Keep::Rows(keep) = self.keep {
            assert!(keep.len() >= rows, "{} numbers for {rows} rows", keep.len());
        }
        let mut first = 0;
        while first < rows {
            let taken = match rows - first {
                1 => 1,
                2 | 3 => 2,
                4 | 5 => 4,
                _ => ROWS,
            };
            let terms = match self.terms {
                Terms::All => [0, terms],
                Terms::UpToRow => [0, terms.min(first + taken)],
                Terms::FromRow => [first.min(terms), terms],
            };
            let mut column = 0;
            while column < width {
                let place = [first, column];
                let wide = column + W * S::F32_LANES <= width;
                match (taken, wide) {
                    (1, true) => self.block::<S, 1, W>(simd, place, terms),
                    (2, true) => self.block::<S, 2, W>(simd, place, terms),
                    (4, true) => self.block::<S, 4, W>(simd, place, terms),
                    (_, true) => self.block::<S, ROWS, W>(simd, place, terms),
                    (1, false) => self.block::<S, 1, N>(simd, place, terms),
                    (2, false) => self.block::<S, 2, N>(simd, place, terms),
                    (4, false) => self.block::<S, 4, N>(simd, place, terms),
                    (_, false) => self.block::<S, ROWS, N>(simd, place, terms),
                }
                column += S::F32_LANES * if wide { W } else { N };
            }
            first += taken;
        }
    }

    /// `R` rows of `W` vectors, whose sums are in registers.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const W: usize>(
        &mut self,
        simd: S,
        [first, column]: [usize; 2],
        [from, to]: [usize; 2],
    ) {
        let mut sums = [[simd.splat_f32s(0.0); W]; R];
        let keep: Option<[f32; R]> = match self.keep {
            Keep::Nothing => None,
            Keep::All(keep) => Some([keep; R]),
            Keep::Rows(keep) => keep[first..].first_chunk().copied(),
        };
        if let Some(keep) = keep {
            for (r, sums) in sums.iter_mut().enumerate() {
                let (row, keep) = (vectors::<S, W>(&self.out.row(first + r)[column..]), simd.splat_f32s(keep[r]));
                for w in 0..W {
                    sums[w] = simd.mul_f32s(row[w], keep);
                }
            }
        }
        let right = self.right.values[from * self.right.width..to * self.right.width].chunks_exact(self.right.width);
        match self.left {
            Left::Rows(left) => {
                let rows: [&[f32]; R] = std::array::from_fn(|r| &left.row(first + r)[from..to]);
                for (k, right) in right.enumerate() {
                    add(simd, &mut sums, &rows.map(|row| row[k]), vectors::<S, W>(&right[column..]));
                }
            }
            Left::Columns(left) => {
                let left = left.values[from * left.width..to * left.width].chunks_exact(left.width);
                for (left, right) in left.zip(right) {
                    let Some(left) = left[first..].first_chunk::<R>() else { return };
                    add(simd, &mut sums, left, vectors::<S, W>(&right[column..]));
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let row = S::as_mut_simd_f32s(&mut self.out.row_mut(first + r)[column..]).0;
            row[..W].copy_from_slice(sums);
        }
    }
}

/// `to` ← x·factor. Rows are whole vectors, here and below.
#[inline(always)]
pub fn scaled<S: Simd>(simd: S, to: &mut [f32], x: &[f32], factor: f32) {
    let factor = simd.splat_f32s(factor);
    for (to, x) in S::as_mut_simd_f32s(to).0.iter_mut().zip(S::as_simd_f32s(x).0) {
        *to = simd.mul_f32s(*x, factor);
    }
}

/// `x` ← x·factor.
#[inline(always)]
pub fn scale<S: Simd>(simd: S, x: &mut [f32], factor: f32) {
    let factor = simd.splat_f32s(factor);
    for x in S::as_mut_simd_f32s(x).0 {
        *x = simd.mul_f32s(*x, factor);
    }
}

/// `to` ← x⊙y·factor.
#[inline(always)]
pub fn multiplied<S: Simd>(simd: S, to: &mut [f32], x: &[f32], y: &[f32], factor: f32) {
    let factor = simd.splat_f32s(factor);
    let vectors = S::as_simd_f32s(x).0.iter().zip(S::as_simd_f32s(y).0);
    for (to, (x, y)) in S::as_mut_simd_f32s(to).0.iter_mut().zip(vectors) {
        *to = simd.mul_f32s(simd.mul_f32s(*x, *y), factor);
    }
}

/// `to` ← to + x·factor.
#[inline(always)]
pub fn add_scaled<S: Simd>(simd: S, to: &mut [f32], x: &[f32], factor: f32) {
    let factor = simd.splat_f32s(factor);
    for (to, x) in S::as_mut_simd_f32s(to).0.iter_mut().zip(S::as_simd_f32s(x).0) {
        *to = simd.mul_add_e_f32s(*x, factor, *to);
    }
}

/// Σ x⊙y, in four sums so that none waits for another.
#[inline(always)]
pub fn dot<S: Simd>(simd: S, x: &[f32], y: &[f32]) -> f32 {
    let (x, y) = (S::as_simd_f32s(x).0, S::as_simd_f32s(y).0);
    let mut sums = [simd.splat_f32s(0.0); 4];
    let (fours, last) = x.as_chunks::<4>();
    let (other_fours, other_last) = y.as_chunks::<4>();
    for (x, y) in fours.iter().zip(other_fours) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum = simd.mul_add_e_f32s(*x, *y, *sum);
        }
    }
    for (x, y) in last.iter().zip(other_last) {
        sums[0] = simd.mul_add_e_f32s(*x, *y, sums[0]);
    }
    let [a, b, c, d] = sums;
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
}

/// The first `W` vectors.
#[inline(always)]
fn vectors<S: Simd, const W: usize>(x: &[f32]) -> &[S::f32s] {
    &S::as_simd_f32s(x).0[..W]
}

/// One term of every sum.
#[inline(always)]
fn add<S: Simd, const R: usize, const W: usize>(
    simd: S,
    sums: &mut [[S::f32s; W]; R],
    left: &[f32; R],
    right: &[S::f32s],
) {
    for r in 0..R {
        let x = simd.splat_f32s(left[r]);
        for w in 0..W {
            sums[r][w] = simd.mul_add_e_f32s(x, right[w], sums[r][w]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::with_simd;

    /// Small integers, so that sums are exact.
    fn numbers(rows: usize, columns: usize, seed: usize) -> Rows {
        let mut matrix = Rows::zeros(rows, columns);
        for row in 0..rows {
            let numbers: Vec<f32> = (0..columns).map(|c| ((row * 31 + c * 7 + seed) % 11) as f32 - 5.0).collect();
            matrix.set(row, &numbers);
        }
        matrix
    }

    #[test]
    fn products_of_awkward_sizes() {
        for [rows, terms, columns] in [[1, 1, 1], [2, 3, 16], [7, 5, 17], [13, 64, 65], [64, 13, 80], [11, 1, 130]] {
            for terms_of_row in [Terms::All, Terms::UpToRow, Terms::FromRow] {
                let gains: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
                let kept = [Keep::Nothing, Keep::All(0.5), Keep::Rows(&gains)];
                for (columns_of_left, keep) in kept.into_iter().flat_map(|keep| [(false, keep), (true, keep)]) {
                    let zero = |row: usize, term: usize| match terms_of_row {
                        Terms::All => false,
                        Terms::UpToRow => term > row,
                        Terms::FromRow => term < row,
                    };
                    let mut left = numbers(rows, terms, 1);
                    for row in 0..rows {
                        for term in (0..terms).filter(|&term| zero(row, term)) {
                            left.row_mut(row)[term] = 0.0;
                        }
                    }
                    let mut turned = Rows::zeros(left.width, rows);
                    turned.transpose(&left.values, left.width, rows);
                    let right = numbers(terms, columns, 2);
                    let before = numbers(rows, columns, 3);
                    let mut out = before.clone();
                    let left_side = if columns_of_left { Left::Columns(&turned) } else { Left::Rows(&left) };
                    let size = [rows, terms];
                    with_simd(Product {
                        out: &mut out,
                        keep,
                        left: left_side,
                        right: &right,
                        size,
                        terms: terms_of_row,
                    });
                    for row in 0..rows {
                        for column in 0..columns {
                            let sum: f32 = (0..terms).map(|k| left.row(row)[k] * right.row(k)[column]).sum();
                            let keep = match keep {
                                Keep::Nothing => 0.0,
                                Keep::All(keep) => keep,
                                Keep::Rows(keep) => keep[row],
                            };
                            let expected = keep.mul_add(before.row(row)[column], sum);
                            assert_eq!(out.row(row)[column], expected, "{size:?} {terms_of_row:?} at {row}, {column}");
                        }
                    }
                }
            }
        }
    }
}
