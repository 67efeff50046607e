//! Products of matrices in slices.

use super::memory::uninit;
use gemm::Parallelism;
use rayon::prelude::*;

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

    /// The submatrix from this row and column on.
    fn from(self, row: usize, column: usize) -> Self {
        Self { values: &self.values[row * self.strides[0] + column * self.strides[1]..], strides: self.strides }
    }

    /// Whether all elements of a matrix of this size are in the slice.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows * columns == 0 || (rows - 1) * self.strides[0] + (columns - 1) * self.strides[1] < self.values.len()
    }
}

/// The threads that compute a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread.
    One,
    /// All threads, each some of the elements: the sums are the same.
    All,
}

/// Terms that are summed at a time where a product is small for the number of its terms, as gradients of weights are:
/// the elements are too few to be shared between threads, so the sums are.
const TERMS: usize = 1024;

/// Numbers that such a product has at most.
const SMALL: usize = 1 << 17;

/// `out = a·b`, or with `add` `out += a·b`: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`, row-major.
///
/// # Panics
/// A slice is too short for its matrix.
#[allow(unsafe_code)]
pub fn product(out: &mut [f32], size: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, add: bool, threads: Threads) {
    let [m, k, n] = size;
    assert!(m * n <= out.len() && a.holds(m, k) && b.holds(k, n), "{m} × {k} × {n}: a slice is too short");
    // SAFETY: the assertion is what `multiply` requires. `out` is borrowed exclusively, so it overlaps neither.
    unsafe { multiply(out.as_mut_ptr(), size, a, b, add, threads) }
}

/// a·b, `[m, n]`, by all threads, in uninitialised memory.
///
/// # Panics
/// A slice is too short for its matrix.
#[allow(unsafe_code)]
pub fn new_product(size: [usize; 3], a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let [m, k, n] = size;
    if k == 0 {
        return vec![0.0; m * n];
    }
    if k > 2 * TERMS && m * n <= SMALL {
        let parts = (0..k.div_ceil(TERMS)).into_par_iter().map(|part| {
            let first = part * TERMS;
            let mut out = vec![0.0; m * n];
            let size = [m, TERMS.min(k - first), n];
            product(&mut out, size, a.from(0, first), b.from(first, 0), false, Threads::One);
            out
        });
        let parts: Vec<_> = parts.collect();
        let mut parts = parts.into_iter();
        let mut sum = parts.next().unwrap_or_default();
        parts.for_each(|part| sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x));
        return sum;
    }
    assert!(a.holds(m, k) && b.holds(k, n), "{m} × {k} × {n}: a slice is too short");
    let mut out = uninit(m * n);
    // SAFETY: the assertion and the length are what `multiply` requires; the memory is new, so it overlaps nothing. It
    // has written all m × n numbers when it returns.
    unsafe {
        multiply(out.as_mut_ptr().cast(), size, a, b, false, Threads::All);
        out.assume_init().into_vec()
    }
}

/// See [`product`].
///
/// # Safety
/// `a` holds m × k numbers and `b` k × n. `out` has room for m × n, overlaps neither, and with `add` is initialised.
#[allow(unsafe_code)]
unsafe fn multiply(out: *mut f32, [m, k, n]: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, add: bool, threads: Threads) {
    if m * n == 0 {
        return;
    }
    // Below that, waking other threads costs more than they save.
    let parallel = threads == Threads::All && m * k * n > 1 << 21;
    let parallelism = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    let stride = |stride: usize| stride as isize;
    let [[a_row, a_column], [b_row, b_column]] = [a, b].map(|x| x.strides.map(stride));
    // SAFETY: `gemm` reads `a` at row·a_row + column·a_column for all m × k (row, column), `b` likewise for k × n, and
    // writes `out`, with `add` after reading it, at row·n + column for all m × n: that is what the caller promises to
    // be there.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
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
