//! Products of a few rows with a matrix that stays the same: the recurrent product of every time step.

use super::with_simd;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Columns of a panel.
pub const WIDTH: usize = 16;
/// Rows of the matrix that are used for all rows of the left side before the next ones, so that they stay in the cache.
const DEPTH: usize = 512;

/// A matrix `[depth, columns]` in panels of 16 columns, each of them row after row, filled up with zeros.
#[derive(Debug, Clone)]
pub struct Panels {
    depth: usize,
    values: Vec<f32>,
}

impl Panels {
    /// The matrix whose element (k, c) is `matrix[k·strides[0] + c·strides[1]]`.
    pub fn pack(matrix: &[f32], [depth, columns]: [usize; 2], strides: [usize; 2]) -> Self {
        let mut values = vec![0.0; columns.div_ceil(WIDTH) * depth * WIDTH];
        values.par_chunks_exact_mut(depth * WIDTH).zip((0..columns).into_par_iter().step_by(WIDTH)).for_each(
            |(panel, first)| {
                for (k, row) in panel.chunks_exact_mut(WIDTH).enumerate() {
                    for (value, c) in row.iter_mut().zip(first..columns) {
                        *value = matrix[k * strides[0] + c * strides[1]];
                    }
                }
            },
        );
        Self { depth, values }
    }

    /// Whether the matrix is larger than a core's cache (2 MB), so that reading it once for all rows pays off:
    /// [`Self::product_by_all`].
    pub fn is_large(&self) -> bool {
        self.values.len() > 1 << 19
    }

    /// Rows of the matrix.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Columns, padding included.
    pub fn padded_columns(&self) -> usize {
        self.values.len() / self.depth
    }

    /// `out = left · matrix`: `left` `[rows, depth]` → `out` `[panels, rows, 16]`, of which [`row`] makes rows. Every
    /// element is one chain of fused multiply-adds in the order of the depth, however rows and panels are split over
    /// threads.
    #[inline(always)]
    pub fn product<S: Simd>(&self, simd: S, left: &[f32], out: &mut [f32]) {
        let rows = left.len() / self.depth;
        for (panel, out) in self.values.chunks_exact(self.depth * WIDTH).zip(out.chunks_exact_mut(rows * WIDTH)) {
            Panel { depth: self.depth, panel, left, out }.with_simd(simd);
        }
    }

    /// [`Self::product`] by all threads, each of them some of the panels.
    pub fn product_by_all(&self, left: &[f32], out: &mut [f32]) {
        let (depth, rows) = (self.depth, left.len() / self.depth);
        let panels = self.values.par_chunks_exact(depth * WIDTH).zip(out.par_chunks_exact_mut(rows * WIDTH));
        panels.for_each(|(panel, out)| with_simd(Panel { depth, panel, left, out }));
    }
}

/// Row r of a [`Panels::product`] of so many rows, in pieces of 16.
#[inline(always)]
pub fn row(product: &[f32], rows: usize, r: usize) -> impl Iterator<Item = &[f32; WIDTH]> {
    product.chunks_exact(rows * WIDTH).map(move |panel| &panel.as_chunks().0[r])
}

/// The product of all rows with one panel.
struct Panel<'a> {
    depth: usize,
    panel: &'a [f32],
    left: &'a [f32],
    /// `[rows, 16]`.
    out: &'a mut [f32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.product::<S, 1>(simd),
            8 => self.product::<S, 2>(simd),
            4 => self.product::<S, 4>(simd),
            2 => self.product::<S, 8>(simd),
            _ => self.product::<S, 16>(simd),
        }
    }
}

impl Panel<'_> {
    /// The product where a panel is V vectors wide.
    #[inline(always)]
    fn product<S: Simd, const V: usize>(self, simd: S) {
        let depth = self.depth;
        for (first, block) in (0..depth).step_by(DEPTH).zip(self.panel.chunks(DEPTH * WIDTH)) {
            let (block, _) = S::as_simd_f32s(block).0.as_chunks::<V>();
            let mut left = &self.left[first..];
            let mut out = &mut *self.out;
            while !out.is_empty() {
                let add = first > 0;
                let taken = match out.len() / WIDTH {
                    1 => tile::<S, 1, V>(simd, add, depth, left, block, out),
                    2 => tile::<S, 2, V>(simd, add, depth, left, block, out),
                    3 => tile::<S, 3, V>(simd, add, depth, left, block, out),
                    4 | 8 => tile::<S, 4, V>(simd, add, depth, left, block, out),
                    5 | 9 | 10 => tile::<S, 5, V>(simd, add, depth, left, block, out),
                    _ => tile::<S, 6, V>(simd, add, depth, left, block, out),
                };
                out = &mut out[taken * WIDTH..];
                if !out.is_empty() {
                    left = &left[taken * depth..];
                }
            }
        }
    }
}

/// The product of R rows with part of a panel, `[depth, V vectors]`, added to `out` where requested; returns R. All
/// sums are in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    add: bool,
    left_stride: usize,
    left: &[f32],
    panel: &[[S::f32s; V]],
    out: &mut [f32],
) -> usize {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &left[r * left_stride..][..panel.len()]);
    let (out, _) = S::as_mut_simd_f32s(&mut out[..R * WIDTH]).0.as_chunks_mut::<V>();
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    if add {
        sums.copy_from_slice(out);
    }
    for (k, columns) in panel.iter().enumerate() {
        for r in 0..R {
            let x = simd.splat_f32s(rows[r][k]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_f32s(x, columns[v], sums[r][v]);
            }
        }
    }
    out.copy_from_slice(&sums);
    R
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Product<'a>(&'a Panels, &'a [f32], &'a mut [f32]);

    impl WithSimd for Product<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            self.0.product(simd, self.1, self.2);
        }
    }

    #[test]
    fn product_of_awkward_sizes() {
        for rows in 1..20 {
            for [depth, columns] in [[1, 1], [3, 16], [17, 5], [513, 33]] {
                let value = |i: usize, m: usize| (i * 7 % m) as f32 - (m / 2) as f32; // small integers: sums are exact
                let left: Vec<f32> = (0..rows * depth).map(|i| value(i, 5)).collect();
                let matrix: Vec<f32> = (0..depth * columns).map(|i| value(i, 11)).collect();
                let panels = Panels::pack(&matrix, [depth, columns], [columns, 1]);
                let padded = panels.padded_columns();
                let mut out = vec![f32::NAN; rows * padded];
                with_simd(Product(&panels, &left, &mut out));
                let mut by_all = vec![f32::NAN; rows * padded];
                panels.product_by_all(&left, &mut by_all);
                assert_eq!(out, by_all);
                for r in 0..rows {
                    let out: Vec<f32> = row(&out, rows, r).flatten().copied().collect();
                    for c in 0..columns {
                        let want: f32 = (0..depth).map(|k| left[r * depth + k] * matrix[k * columns + c]).sum();
                        assert_eq!(out[c], want, "{rows}×{depth}×{columns} at {r}, {c}");
                    }
                }
            }
        }
    }
}
