//! Products of a few rows with a matrix that stays the same: the recurrent product of every time step.

use pulp::Simd;

/// Columns of a panel.
const WIDTH: usize = 16;
/// Rows of the matrix that are used for all rows of the left side before going on, so that they stay in the cache.
const DEPTH: usize = 256;

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
        for (panel, first) in values.chunks_exact_mut(depth * WIDTH).zip((0..columns).step_by(WIDTH)) {
            for (k, row) in panel.chunks_exact_mut(WIDTH).enumerate() {
                for (value, c) in row.iter_mut().zip(first..columns) {
                    *value = matrix[k * strides[0] + c * strides[1]];
                }
            }
        }
        Self { depth, values }
    }

    /// Columns with those filled up.
    pub fn padded_columns(&self) -> usize {
        self.values.len() / self.depth
    }

    /// `out = left · matrix`: `left` `[rows, depth]` → `out` `[rows, padded_columns]`. Every element is one chain of fused
    /// multiply-adds in the order of the depth, however the rows are split.
    #[inline(always)]
    pub fn product<S: Simd>(&self, simd: S, left: &[f32], out: &mut [f32]) {
        match S::F32_LANES {
            16 => self.product_in::<S, 1>(simd, left, out),
            8 => self.product_in::<S, 2>(simd, left, out),
            4 => self.product_in::<S, 4>(simd, left, out),
            2 => self.product_in::<S, 8>(simd, left, out),
            _ => self.product_in::<S, 16>(simd, left, out),
        }
    }

    /// [`Self::product`] where a panel is V vectors wide.
    #[inline(always)]
    fn product_in<S: Simd, const V: usize>(&self, simd: S, left: &[f32], out: &mut [f32]) {
        let columns = self.padded_columns();
        out.fill(0.0);
        for (p, panel) in self.values.chunks_exact(self.depth * WIDTH).enumerate() {
            for (first, block) in (0..self.depth).step_by(DEPTH).zip(panel.chunks(DEPTH * WIDTH)) {
                let (block, _) = S::as_simd_f32s(block).0.as_chunks::<V>();
                let mut left = &left[first..];
                let mut out = &mut out[p * WIDTH..];
                let mut rows = out.len().div_ceil(columns);
                while rows > 0 {
                    let taken = match rows {
                        1 => tile::<S, 1, V>(simd, self.depth, left, block, columns, out),
                        2 => tile::<S, 2, V>(simd, self.depth, left, block, columns, out),
                        3 => tile::<S, 3, V>(simd, self.depth, left, block, columns, out),
                        4 | 8 => tile::<S, 4, V>(simd, self.depth, left, block, columns, out),
                        5 | 9 | 10 => tile::<S, 5, V>(simd, self.depth, left, block, columns, out),
                        _ => tile::<S, 6, V>(simd, self.depth, left, block, columns, out),
                    };
                    rows -= taken;
                    if rows > 0 {
                        left = &left[taken * self.depth..];
                        out = &mut out[taken * columns..];
                    }
                }
            }
        }
    }
}

/// Adds the product of R rows with part of a panel, `[depth, V vectors]`, and says R. All sums are in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    left_stride: usize,
    left: &[f32],
    panel: &[[S::f32s; V]],
    out_stride: usize,
    out: &mut [f32],
) -> usize {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &left[r * left_stride..][..panel.len()]);
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for r in 0..R {
        let row = S::as_simd_f32s(&out[r * out_stride..][..V * S::F32_LANES]).0;
        sums[r].copy_from_slice(row);
    }
    for (k, columns) in panel.iter().enumerate() {
        for r in 0..R {
            let x = simd.splat_f32s(rows[r][k]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_f32s(x, columns[v], sums[r][v]);
            }
        }
    }
    for r in 0..R {
        let row = S::as_mut_simd_f32s(&mut out[r * out_stride..][..V * S::F32_LANES]).0;
        row.copy_from_slice(&sums[r]);
    }
    R
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::with_simd;
    use pulp::WithSimd;

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
            for [depth, columns] in [[1, 1], [3, 16], [17, 5], [257, 33]] {
                let value = |i: usize, m: usize| (i * 7 % m) as f32 - (m / 2) as f32; // small integers: sums are exact
                let left: Vec<f32> = (0..rows * depth).map(|i| value(i, 5)).collect();
                let matrix: Vec<f32> = (0..depth * columns).map(|i| value(i, 11)).collect();
                let panels = Panels::pack(&matrix, [depth, columns], [columns, 1]);
                let padded = panels.padded_columns();
                let mut out = vec![f32::NAN; rows * padded];
                with_simd(Product(&panels, &left, &mut out));
                for r in 0..rows {
                    for c in 0..columns {
                        let want: f32 = (0..depth).map(|k| left[r * depth + k] * matrix[k * columns + c]).sum();
                        assert_eq!(out[r * padded + c], want, "{rows}×{depth}×{columns} at {r}, {c}");
                    }
                }
            }
        }
    }
}
