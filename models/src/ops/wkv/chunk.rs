//! A chunk of time steps in the backward pass of the CPU kernel: its matrices in one piece of memory, and their products.

use crate::ops::cpu::simd::V;
use pulp::Simd;

/// Time steps between two matrices that are kept for the backward pass.
pub(super) const CHUNK: usize = 16;

/// Some time steps of one head in the backward pass. Rows have `n` numbers: the size, filled up with zeros to a
/// multiple of [`CHUNK`], and with it of the lanes of any vector.
pub(super) struct Chunk<'a> {
    pub(super) n: usize,
    /// The matrix before the chunk, `[key, value]`.
    pub(super) state: &'a mut [f32],
    /// The gradient of the matrix after the chunk, and then of that before it, `[key, value]`.
    pub(super) dstate: &'a mut [f32],
    /// `[step, key]`.
    pub(super) r: &'a mut [f32],
    /// `[step, key]`.
    pub(super) k: &'a mut [f32],
    /// `[step, value]`.
    pub(super) v: &'a mut [f32],
    /// `[step, key]`.
    pub(super) decay: &'a mut [f32],
    /// `[step, value]`.
    pub(super) dys: &'a mut [f32],
    /// `[value, step]`.
    pub(super) v_columns: &'a mut [f32],
    /// `[value, step]`.
    pub(super) dy_columns: &'a mut [f32],
    /// r times the decays since the chunk's start, `[key, step]`.
    pub(super) r_since: &'a mut [f32],
    /// k times the decays until the chunk's end, `[step, key]`.
    pub(super) k_until: &'a mut [f32],
    /// Intermediate results.
    pub(super) products: &'a mut [f32],
    /// S·dy of every step, `[step, key]`.
    pub(super) read: &'a mut [f32],
    /// D·v of every step, `[step, key]`.
    pub(super) written: &'a mut [f32],
    /// Gradients, `[step, key]`.
    pub(super) dr: &'a mut [f32],
    /// `[step, key]`.
    pub(super) dk: &'a mut [f32],
    /// `[step, value]`.
    pub(super) dv: &'a mut [f32],
    /// v_j·dy_i at `[i, j]`.
    pub(super) pairs: &'a mut [f32],
    /// The factor of v_j in the output of step i, at `[j, i]`.
    pub(super) reads: &'a mut [f32],
    /// All decays of the chunk, `[key]`.
    pub(super) total: &'a mut [f32],
    /// S times D, summed over the values, `[key]`.
    pub(super) overlap: &'a mut [f32],
    /// `[n]`.
    pub(super) ones: &'a mut [f32],
}

impl<'a> Chunk<'a> {
    /// Vectors are aligned to so many numbers.
    const ALIGNMENT: usize = 16;

    /// How much memory it needs.
    pub(super) fn numbers(n: usize) -> usize {
        2 * n * n + 15 * CHUNK * n + 2 * CHUNK * CHUNK + 3 * n + Self::ALIGNMENT
    }

    /// In this memory, which is zero.
    #[inline(always)]
    pub(super) fn new(memory: &'a mut [f32], n: usize) -> Self {
        let aligned = memory.as_ptr().align_offset(4 * Self::ALIGNMENT).min(Self::ALIGNMENT);
        let mut rest = &mut memory[aligned..];
        let mut take = |length: usize| rest.split_off_mut(..length).unwrap_or_default();
        let [state, dstate] = [(); 2].map(|()| take(n * n));
        let [r, k, v, decay, dys, v_columns, dy_columns, r_since] = [(); 8].map(|()| take(CHUNK * n));
        let [k_until, products, read, written, dv, dr, dk] = [(); 7].map(|()| take(CHUNK * n));
        let [pairs, reads] = [(); 2].map(|()| take(CHUNK * CHUNK));
        let [total, overlap, ones] = [(); 3].map(|()| take(n));
        ones.fill(1.0);
        Self {
            n,
            state,
            dstate,
            r,
            k,
            v,
            decay,
            dys,
            v_columns,
            dy_columns,
            r_since,
            k_until,
            products,
            read,
            written,
            dr,
            dk,
            dv,
            pairs,
            reads,
            total,
            overlap,
            ones,
        }
    }

    /// Reads and keys times the decays since the chunk's start and until its end.
    #[inline(always)]
    pub(super) fn multiply_decays<S: Simd>(&mut self, simd: S) {
        let Self { n, r, k, decay, r_since, k_until, products, total, .. } = self;
        let n = *n;
        let [r, k, decay] = [&**r, &**k, &**decay];
        let [r_since, k_until, products, total] = [&mut **r_since, &mut **k_until, &mut **products, &mut **total];
        for at in (0..n).step_by(V::<S>::LANES) {
            let mut product = V::splat(simd, 1.0);
            for t in 0..CHUNK {
                (V::load(simd, &r[t * n + at..]) * product).store(&mut products[t * n + at..]);
                product = product * V::load(simd, &decay[t * n + at..]);
            }
            product.store(&mut total[at..]);
            product = V::splat(simd, 1.0);
            for t in (0..CHUNK).rev() {
                (V::load(simd, &k[t * n + at..]) * product).store(&mut k_until[t * n + at..]);
                product = product * V::load(simd, &decay[t * n + at..]);
            }
        }
        turn(products, r_since, n);
    }

    /// The factors of the values of earlier steps, and of its own, in every step's output; and the products of values
    /// with gradients of outputs.
    #[inline(always)]
    pub(super) fn read_within<S: Simd>(&mut self, simd: S, bonus: &[f32]) {
        let Self { n, r, k, decay, dys, v_columns, pairs, reads, .. } = self;
        let n = *n;
        let [r, k, decay, dys, v_columns] = [&**r, &**k, &**decay, &**dys, &**v_columns];
        let [pairs, reads] = [&mut **pairs, &mut **reads];
        for j in 0..CHUNK {
            reads[j * CHUNK..][..j].fill(0.0);
            let mut sums = [V::splat(simd, 0.0); CHUNK];
            for at in (0..bonus.len()).step_by(V::<S>::LANES) {
                let mut key = V::load(simd, &k[j * n + at..]);
                let own = key * V::load(simd, &r[j * n + at..]);
                sums[j] = own.mul_add(V::load(simd, &bonus[at..]), sums[j]);
                for i in j + 1..CHUNK {
                    sums[i] = key.mul_add(V::load(simd, &r[i * n + at..]), sums[i]);
                    key = key * V::load(simd, &decay[i * n + at..]);
                }
            }
            for i in j..CHUNK {
                reads[j * CHUNK + i] = sums[i].sum();
            }
        }
        product(simd, pairs, None, dys, n, v_columns, CHUNK);
    }

    /// With S the matrix before the chunk and D the gradient of the matrix after it, the four products that reach over
    /// the chunk's ends: S·dyᵀ, D·vᵀ, (k·decays after it)·D, which with the terms inside the chunk gives the gradient
    /// of v, and the next D.
    #[inline(always)]
    pub(super) fn cross<S: Simd>(&mut self, simd: S) {
        let Self { n, state, dstate, dys, v_columns, dy_columns, r_since, k_until, products, .. } = self;
        let Self { read, written, dv, reads, total, overlap, ones, .. } = self;
        let n = *n;
        let [state, dys, v_columns, dy_columns, r_since, k_until, reads, total, ones] =
            [&**state, &**dys, &**v_columns, &**dy_columns, &**r_since, &**k_until, &**reads, &**total, &**ones];
        let [dstate, products, read, written, dv, overlap] =
            [&mut **dstate, &mut **products, &mut **read, &mut **written, &mut **dv, &mut **overlap];
        for (key, overlap) in overlap.iter_mut().enumerate() {
            let mut sum = V::splat(simd, 0.0);
            for at in (key * n..(key + 1) * n).step_by(V::<S>::LANES) {
                sum = V::load(simd, &state[at..]).mul_add(V::load(simd, &dstate[at..]), sum);
            }
            *overlap = sum.sum();
        }
        product(simd, products, None, state, n, dy_columns, CHUNK);
        turn_back(products, read, n);
        product(simd, products, None, dstate, n, v_columns, CHUNK);
        turn_back(products, written, n);
        product(simd, dv, None, k_until, n, dstate, n);
        product(simd, dv, Some(ones), reads, CHUNK, dys, n);
        product(simd, dstate, Some(total), r_since, CHUNK, dys, n);
    }
}

/// Copies a row, vector by vector; the last may write zeros after it.
#[inline(always)]
pub(super) fn copy<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    for (from, to) in from.chunks(V::<S>::LANES).zip(to.chunks_mut(V::<S>::LANES)) {
        V::load(simd, from).store(to);
    }
}

/// Rows of `size` numbers to the start of rows of `n`.
#[inline(always)]
pub(super) fn copy_rows<S: Simd>(simd: S, from: &[f32], size: usize, to: &mut [f32], n: usize) {
    for (from, to) in from.chunks_exact(size).zip(to.chunks_exact_mut(n)) {
        copy(simd, from, to);
    }
}

/// `[CHUNK, n]` → `[n, CHUNK]`.
#[inline(always)]
pub(super) fn turn(from: &[f32], to: &mut [f32], n: usize) {
    for (t, row) in from.chunks_exact(n).enumerate() {
        for (to, &x) in to.as_chunks_mut::<CHUNK>().0.iter_mut().zip(row) {
            to[t] = x;
        }
    }
}

/// The inverse of [`turn`].
#[inline(always)]
fn turn_back(from: &[f32], to: &mut [f32], n: usize) {
    for (t, row) in to.chunks_exact_mut(n).enumerate() {
        for (to, x) in row.iter_mut().zip(from.as_chunks::<CHUNK>().0) {
            *to = x[t];
        }
    }
}

/// `out = left·right`, or with `keep` this plus the old `out`, each row times a number of `keep`: `left`
/// `[rows, depth]`, `right` `[depth, columns]`. Rows, depth and columns are multiples of [`CHUNK`], and that of the
/// lanes of any vector.
#[inline(always)]
fn product<S: Simd>(
    simd: S,
    out: &mut [f32],
    keep: Option<&[f32]>,
    left: &[f32],
    depth: usize,
    right: &[f32],
    columns: usize,
) {
    match columns / V::<S>::LANES {
        vectors if vectors.is_multiple_of(4) && V::<S>::LANES == 16 => {
            tiles_of::<S, 4, 4>(simd, out, keep, left, depth, right, vectors);
        }
        vectors if vectors.is_multiple_of(2) => tiles_of::<S, 4, 2>(simd, out, keep, left, depth, right, vectors),
        vectors => tiles_of::<S, 8, 1>(simd, out, keep, left, depth, right, vectors),
    }
}

/// [`product`] in tiles of R rows and W vectors, whose sums are in registers.
#[inline(always)]
fn tiles_of<S: Simd, const R: usize, const W: usize>(
    simd: S,
    out: &mut [f32],
    keep: Option<&[f32]>,
    left: &[f32],
    depth: usize,
    right: &[f32],
    vectors: usize,
) {
    let (out, right) = (S::as_mut_simd_f32s(out).0, S::as_simd_f32s(right).0);
    for (block, (out, left)) in out.chunks_exact_mut(R * vectors).zip(left.chunks_exact(R * depth)).enumerate() {
        for first in (0..vectors).step_by(W) {
            let mut sums = [[simd.splat_f32s(0.0); W]; R];
            for (part, right) in right.chunks_exact(CHUNK * vectors).enumerate() {
                let mut rows = [&[0.0; CHUNK]; R];
                for (row, left) in rows.iter_mut().zip(left.chunks_exact(depth)) {
                    *row = &left.as_chunks().0[part];
                }
                for k in 0..CHUNK {
                    let columns = &right[k * vectors + first..][..W];
                    for r in 0..R {
                        let x = simd.splat_f32s(rows[r][k]);
                        for w in 0..W {
                            sums[r][w] = simd.mul_add_f32s(x, columns[w], sums[r][w]);
                        }
                    }
                }
            }
            for (r, (out, sums)) in out.chunks_exact_mut(vectors).zip(sums).enumerate() {
                let out = &mut out[first..][..W];
                if let Some(keep) = keep {
                    let keep = simd.splat_f32s(keep[block * R + r]);
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = simd.mul_add_f32s(keep, *out, sum);
                    }
                } else {
                    out.copy_from_slice(&sums);
                }
            }
        }
    }
}
