//! Vectors of `f32`, as wide as the processor's, with the functions that the kernels need.

use super::memory::in_pieces;
use pulp::Simd;
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LN_2, LOG2_E};
use std::mem::MaybeUninit;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// One vector register of numbers.
#[derive(Debug, Clone, Copy)]
pub struct V<S: Simd>(pub S, pub S::f32s);

impl<S: Simd> V<S> {
    /// Numbers in a vector.
    pub const LANES: usize = S::F32_LANES;

    /// The same number in all lanes.
    #[inline(always)]
    pub fn splat(simd: S, x: f32) -> Self {
        Self(simd, simd.splat_f32s(x))
    }

    /// The first numbers of a slice; zeros where it is shorter than a vector.
    #[inline(always)]
    pub fn load(simd: S, x: &[f32]) -> Self {
        match S::as_simd_f32s(x).0.first() {
            Some(&full) => Self(simd, full),
            None => Self(simd, simd.partial_load_f32s(x)),
        }
    }

    /// Writes as many numbers as the slice has room for.
    #[inline(always)]
    pub fn store(self, x: &mut [f32]) {
        match S::as_mut_simd_f32s(x).0.first_mut() {
            Some(full) => *full = self.1,
            None => self.0.partial_store_f32s(x, self.1),
        }
    }

    /// The same in uninitialised memory.
    #[inline(always)]
    pub fn init(self, x: &mut [MaybeUninit<f32>]) {
        match S::as_uninit_mut_simd_f32s(x).0.first_mut() {
            Some(full) => {
                full.write(self.1);
            }
            None => {
                let mut lanes = [0.0; 16]; // as many as the widest vectors have
                self.store(&mut lanes);
                init(x, &lanes[..x.len()]);
            }
        }
    }

    /// The sum over the lanes.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        self.0.reduce_sum_f32s(self.1)
    }

    /// self·b + c.
    #[inline(always)]
    pub fn mul_add(self, b: Self, c: Self) -> Self {
        Self(self.0, self.0.mul_add_e_f32s(self.1, b.1, c.1))
    }

    /// |self|.
    #[inline(always)]
    pub fn abs(self) -> Self {
        Self(self.0, self.0.abs_f32s(self.1))
    }

    /// The square root.
    #[inline(always)]
    pub fn sqrt(self) -> Self {
        Self(self.0, self.0.sqrt_f32s(self.1))
    }

    /// The larger of both; NaN where `self` is.
    #[inline(always)]
    pub fn max(self, bound: f32) -> Self {
        Self(self.0, self.0.max_f32s(self.0.splat_f32s(bound), self.1))
    }

    /// The smaller of both; NaN where `self` is.
    #[inline(always)]
    pub fn min(self, bound: f32) -> Self {
        Self(self.0, self.0.min_f32s(self.0.splat_f32s(bound), self.1))
    }

    /// Σ coefficients\[i\]·selfⁱ.
    #[inline(always)]
    fn polynomial<const N: usize>(self, coefficients: [f32; N]) -> Self {
        let mut sum = Self::splat(self.0, coefficients[N - 1]);
        for &c in coefficients[..N - 1].iter().rev() {
            sum = sum.mul_add(self, Self::splat(self.0, c));
        }
        sum
    }

    /// 2ˣ to 1e-7, and 2^±126 beyond ±126: 2 to the nearest integer n times a polynomial of the rest, a minimax fit
    /// that is 1 at 0, so that a state that hardly decays does not grow instead.
    #[inline(always)]
    pub fn exp2(self) -> Self {
        let simd = self.0;
        // 1.5·2²³: a number added to it is rounded to an integer, which is then in its low bits.
        let magic = Self::splat(simd, 12_582_912.0);
        let x = self.max(-126.0).min(126.0);
        let shifted = x + magic;
        let rest = x - (shifted - magic);
        let power =
            rest.polynomial([1.0, LN_2, 0.240_226_47, 0.055_503_288, 0.009_618_489, 0.001_339_993_1, 0.000_153_458_11]);
        // n, added to the exponent's bits
        let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted.1), simd.splat_u32s(23));
        let bits = simd.add_u32s(simd.transmute_u32s_f32s(power.1), n);
        Self(simd, simd.transmute_f32s_u32s(bits))
    }

    /// eˣ.
    #[inline(always)]
    pub fn exp(self) -> Self {
        (self * LOG2_E).exp2()
    }

    /// 1/(1 + e⁻ˣ).
    #[inline(always)]
    pub fn sigmoid(self) -> Self {
        let one = Self::splat(self.0, 1.0);
        one / (one + (-self).exp())
    }

    /// log(1 + eˣ) to 3e-7 relative: max(x, 0) + log(1 + e), e = e^−|x|, where log(1 + e) = 2·artanh(e/(2 + e)).
    #[inline(always)]
    pub fn softplus(self) -> Self {
        let e = (-self.abs()).exp();
        let s = e / (e + Self::splat(self.0, 2.0));
        let series = (s * s).polynomial([2.0, 2.0 / 3.0, 2.0 / 5.0, 2.0 / 7.0, 2.0 / 9.0, 2.0 / 11.0, 2.0 / 13.0]);
        s.mul_add(series, self.max(0.0))
    }

    /// The normal distribution function and its density. The former through the complementary error function of
    /// |x|/√2, by formula 7.1.26 of Abramowitz and Stegun (absolute error 1e-7).
    #[inline(always)]
    pub fn normal(self) -> (Self, Self) {
        let one = Self::splat(self.0, 1.0);
        let bell = (self * self * -0.5).exp();
        let t = one / (self.abs() * (0.327_591_1 * FRAC_1_SQRT_2) + one);
        let series = t.polynomial([0.0, 0.254_829_6, -0.284_496_72, 1.421_413_8, -1.453_152_1, 1.061_405_4]);
        let tail = series * bell * 0.5; // of the side that x is on
        let distribution =
            self.0.select_f32s(self.0.less_than_f32s(self.1, self.0.splat_f32s(0.0)), tail.1, (one - tail).1);
        (Self(self.0, distribution), bell * (FRAC_1_SQRT_2 * FRAC_2_SQRT_PI * 0.5))
    }
}

/// log₂ e: eˣ is 2 to the x·log₂ e.
pub const TO_EXP2: f32 = LOG2_E;

/// The derivative of 2ˣ is ln 2·2ˣ.
pub const FROM_EXP2: f32 = LN_2;

macro_rules! operator {
    ($trait:ident $function:ident $simd:ident) => {
        impl<S: Simd> $trait for V<S> {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                Self(self.0, self.0.$simd(self.1, other.1))
            }
        }
    };
}

operator!(Add add add_f32s);
operator!(Sub sub sub_f32s);
operator!(Mul mul mul_f32s);
operator!(Div div div_f32s);

impl<S: Simd> Mul<f32> for V<S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: f32) -> Self {
        self * Self::splat(self.0, other)
    }
}

impl<S: Simd> AddAssign for V<S> {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl<S: Simd> Neg for V<S> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        // `neg_f32s` is not always inlined, and then costs a call.
        Self(self.0, self.0.xor_f32s(self.0.splat_f32s(-0.0), self.1))
    }
}

/// Copies numbers to uninitialised memory.
///
/// # Panics
/// The lengths differ.
pub fn init(x: &mut [MaybeUninit<f32>], numbers: &[f32]) {
    assert!(x.len() == numbers.len(), "{} numbers for {} places", numbers.len(), x.len());
    for (x, &number) in x.iter_mut().zip(numbers) {
        x.write(number);
    }
}

/// `[rows, width]` as mutable pieces of at most `columns` columns: for every block of `rows_per_block` rows and every
/// piece, the rows of it. This is how threads share an array: each unit of work owns some columns of some rows.
pub fn tiles<T>(x: &mut [T], rows_per_block: usize, width: usize, columns: usize) -> Vec<Vec<&mut [T]>> {
    let pieces = width.div_ceil(columns);
    let mut tiles: Vec<Vec<&mut [T]>> = Vec::new();
    for (row, values) in x.chunks_mut(width).enumerate() {
        if row % rows_per_block == 0 {
            tiles.extend((0..pieces).map(|_| Vec::with_capacity(rows_per_block)));
        }
        let first = tiles.len() - pieces;
        for (piece, values) in values.chunks_mut(columns).enumerate() {
            tiles[first + piece].push(values);
        }
    }
    tiles
}

/// `[…, rows, columns]` → `[…, columns, rows]`, tile by tile, so that source and destination stay in the cache.
pub fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const SIDE: usize = 16;
    let mut out = vec![0.0; x.len()];
    let size = (rows * columns).max(1);
    for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
        for first_column in (0..columns).step_by(SIDE) {
            for first_row in (0..rows).step_by(SIDE) {
                for column in first_column..columns.min(first_column + SIDE) {
                    for row in first_row..rows.min(first_row + SIDE) {
                        out[column * rows + row] = x[row * columns + column];
                    }
                }
            }
        }
    }
    out
}

/// The sum of `[blocks, size]` over the blocks, one after another.
pub fn sum_blocks(x: &[f32], size: usize) -> Vec<f32> {
    let (first, others) = x.split_at(size);
    let mut sum = first.to_vec();
    for block in others.chunks_exact(size) {
        sum.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
    }
    sum
}

/// Sums of `count` rows of `width` numbers that follow each other.
pub fn sum_neighbours(x: &[f32], width: usize, count: usize) -> Vec<f32> {
    const ROWS: usize = 256;
    in_pieces(x.len() / count, ROWS * width, |unit, sums| {
        let rows = x[unit * ROWS * width * count..].chunks_exact(width * count);
        for (sum, rows) in sums.chunks_exact_mut(width).zip(rows) {
            sum.copy_from_slice(&rows[..width]);
            for row in rows[width..].chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
    })
}

/// `[rows, size]` → the same in whole vectors, filled up with zeros.
#[inline(always)]
pub fn pack<S: Simd>(simd: S, matrix: &[f32], vectors: &mut [V<S>], size: usize) {
    let width = size.div_ceil(V::<S>::LANES);
    for (row, vectors) in matrix.chunks_exact(size).zip(vectors.chunks_exact_mut(width)) {
        for (x, vector) in row.chunks(V::<S>::LANES).zip(vectors) {
            *vector = V::load(simd, x);
        }
    }
}

/// The inverse of [`pack`].
#[inline(always)]
pub fn unpack<S: Simd>(vectors: &[V<S>], matrix: &mut [f32], size: usize) {
    let width = size.div_ceil(V::<S>::LANES);
    for (row, vectors) in matrix.chunks_exact_mut(size).zip(vectors.chunks_exact(width)) {
        for (x, vector) in row.chunks_mut(V::<S>::LANES).zip(vectors) {
            vector.store(x);
        }
    }
}

/// Σ a·b.
///
/// # Panics
/// There are no vectors.
#[inline(always)]
pub fn dot<S: Simd>(a: &[V<S>], b: &[V<S>]) -> f32 {
    let mut sum = V::splat(a[0].0, 0.0);
    for (a, b) in a.iter().zip(b) {
        sum = a.mul_add(*b, sum);
    }
    sum.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::WithSimd;

    /// exp2, sigmoid, softplus and the normal distribution's function and density of every number.
    struct Functions<'a>(&'a [f32]);

    impl WithSimd for Functions<'_> {
        type Output = Vec<[f32; 5]>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let mut out = Vec::new();
            for &x in self.0 {
                let v = V::load(simd, &[x]);
                let (distribution, density) = v.normal();
                out.push([v.exp2(), v.sigmoid(), v.softplus(), distribution, density].map(|v| {
                    let mut value = [0.0];
                    v.store(&mut value);
                    value[0]
                }));
            }
            out
        }
    }

    /// Φ by Simpson's rule from −12.
    fn normal_distribution(x: f64) -> f64 {
        let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        let step = (x + 12.0) / 2000.0;
        let weight = |i: u32| if i == 0 || i == 2000 { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
        (0..=2000).map(|i| weight(i) * density(f64::from(i).mul_add(step, -12.0))).sum::<f64>() * step / 3.0
    }

    #[test]
    fn functions_are_close_to_those_of_the_standard_library() {
        let x: Vec<f32> = (-600..600).map(|i| i as f32 * 0.01703).collect();
        for (&x, [exp2, sigmoid, softplus, distribution, density]) in
            x.iter().zip(super::super::with_simd(Functions(&x)))
        {
            let wide = f64::from(x);
            let check = |what: &str, found: f32, expected: f64, tolerance: f64| {
                let error = (f64::from(found) - expected).abs();
                assert!(error <= tolerance, "{what} of {x} is {found}, not {expected}");
            };
            check("2ˣ", exp2, wide.exp2(), 2e-7 * wide.exp2());
            check("σ", sigmoid, 1.0 / (1.0 + (-wide).exp()), 5e-7);
            check("softplus", softplus, wide.exp().ln_1p(), 2e-6 * wide.exp().ln_1p());
            check("Φ", distribution, normal_distribution(wide), 5e-7);
            check("φ", density, (-0.5 * wide * wide).exp() / std::f64::consts::TAU.sqrt(), 5e-7);
        }
    }

    #[test]
    fn many_decays_close_to_1_do_not_drift() {
        let x: Vec<f32> = (0..4096).map(|i| i as f32 * -1e-6).collect();
        let found = super::super::with_simd(Functions(&x));
        let product: f64 = found.iter().map(|f| f64::from(f[0])).product();
        let expected = x.iter().map(|&x| f64::from(x)).sum::<f64>().exp2();
        assert!((product / expected - 1.0).abs() < 1e-5, "{product}, not {expected}");
    }

    #[test]
    fn what_is_no_number_stays_none_and_infinities_saturate() {
        let found = super::super::with_simd(Functions(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]));
        assert!(found[0].iter().all(|x| x.is_nan()), "{:?}", found[0]);
        assert!((found[1][0] / 2f32.powi(126) - 1.0).abs() < 1e-6, "{:?}", found[1]);
        assert_eq!(found[1][1..3], [1.0, f32::INFINITY]);
        assert!(found[2][..4].iter().all(|x| x.abs() < 1e-30), "{:?}", found[2]);
    }
}
