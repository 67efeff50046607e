//! Products of matrices in slices.

use gemm::Parallelism;

/// A matrix in a slice: element (row, column) is `values[row·strides[0] + column·strides[1]]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Row after row of this width.
    pub fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, strides: [width, 1] }
    }

    /// Rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { values: self.values, strides: [self.strides[1], self.strides[0]] }
    }

    /// Whether all elements of a matrix of this size are in the slice.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows * columns == 0 || (rows - 1) * self.strides[0] + (columns - 1) * self.strides[1] < self.values.len()
    }
}

/// Who computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The thread that asks for it.
    One,
    /// All of them, each some of the elements: the sums are the same.
    All,
}

/// `out = a·b`, or with `add` `out += a·b`: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`, row-major.
///
/// # Panics
/// A slice is too short for its matrix.
#[allow(unsafe_code)]
pub fn product(out: &mut [f32], [m, k, n]: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, add: bool, threads: Threads) {
    assert!(m * n <= out.len() && a.holds(m, k) && b.holds(k, n), "{m} × {k} × {n}: a slice is too short");
    if m * n == 0 {
        return;
    }
    // Below that, waking other threads costs more than they save.
    let parallel = threads == Threads::All && m * k * n > 1 << 21;
    let parallelism = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    let stride = |stride: usize| stride as isize;
    let [[a_row, a_column], [b_row, b_column]] = [a, b].map(|x| x.strides.map(stride));
    // SAFETY: `gemm` reads `a` at row·a_row + column·a_column for all m × k (row, column), `b` likewise for k × n, and reads
    // and writes `out` at row·n + column for all m × n. The assertion above says that the largest of each lies in its
    // slice. `out` is borrowed exclusively, so it overlaps neither.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(n),
            add,
            a.values.as_ptr(),
            a_column,
            a_row,
            b.values.as_ptr(),
            b_column,
            b_row,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}
