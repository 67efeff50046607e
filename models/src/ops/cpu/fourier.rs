//! Fourier transforms of many signals at once, a signal in every lane of the vectors: every step of a transform is then
//! elementwise arithmetic. Frequencies are in bit-reversed order (decimation in frequency), and the inverse takes them
//! in that order (decimation in time): products of spectra do not depend on the order. (There are no closures in the
//! loops: they would be compiled without the vector instructions of the enclosing function.)

use super::simd::V;
use pulp::Simd;
use std::f64::consts::TAU;

/// Complex numbers, a vector of them.
pub type Complex<S> = [V<S>; 2];

/// Samples of which a core's first cache holds all lanes.
const CACHED: usize = 128;

/// a·b.
#[inline(always)]
pub fn mul<S: Simd>([a, b]: Complex<S>, [c, d]: Complex<S>) -> Complex<S> {
    [a.mul_add(c, -(b * d)), a.mul_add(d, b * c)]
}

/// The complex conjugate.
#[inline(always)]
pub fn conj<S: Simd>([a, b]: Complex<S>) -> Complex<S> {
    [a, -b]
}

#[inline(always)]
fn add<S: Simd>(a: Complex<S>, b: Complex<S>) -> Complex<S> {
    [a[0] + b[0], a[1] + b[1]]
}

#[inline(always)]
fn sub<S: Simd>(a: Complex<S>, b: Complex<S>) -> Complex<S> {
    [a[0] - b[0], a[1] - b[1]]
}

/// −i·a.
#[inline(always)]
fn turn<S: Simd>([a, b]: Complex<S>) -> Complex<S> {
    [b, -a]
}

/// The same number in all lanes.
#[inline(always)]
pub fn splat<S: Simd>(simd: S, [re, im]: [f32; 2]) -> Complex<S> {
    [V::splat(simd, re), V::splat(simd, im)]
}

/// The complex roots of unity for signals of `n` samples, a power of two: e^(−2πi·j/n), j < n.
pub fn roots(n: usize) -> Vec<[f32; 2]> {
    let root = |j: usize| -TAU * j as f64 / n as f64;
    (0..n).map(|j| [root(j).cos() as f32, root(j).sin() as f32]).collect()
}

/// Frequencies of `x` in bit-reversed order, in place; `roots` are those of its length.
#[inline(always)]
pub fn transform<S: Simd>(simd: S, x: &mut [Complex<S>], roots: &[[f32; 2]]) {
    let mut size = x.len();
    while size > CACHED {
        for block in x.chunks_exact_mut(size) {
            split(simd, block, roots);
        }
        size /= 4;
    }
    for part in x.chunks_exact_mut(size) {
        let mut size = size;
        while size >= 4 {
            for block in part.chunks_exact_mut(size) {
                split(simd, block, roots);
            }
            size /= 4;
        }
        if size == 2 {
            for x in part.as_chunks_mut().0 {
                pair(x);
            }
        }
    }
}

/// The inverse of [`transform`], times the number of samples.
#[inline(always)]
pub fn inverse<S: Simd>(simd: S, x: &mut [Complex<S>], roots: &[[f32; 2]]) {
    let mut cached = x.len();
    while cached > CACHED {
        cached /= 4;
    }
    for part in x.chunks_exact_mut(cached) {
        let mut size = 4;
        if cached.ilog2() % 2 == 1 {
            for x in part.as_chunks_mut().0 {
                pair(x);
            }
            size = 8;
        }
        while size <= cached {
            for block in part.chunks_exact_mut(size) {
                join(simd, block, roots);
            }
            size *= 4;
        }
    }
    let mut size = 4 * cached;
    while size <= x.len() {
        for block in x.chunks_exact_mut(size) {
            join(simd, block, roots);
        }
        size *= 4;
    }
}

/// The transform of two samples.
#[inline(always)]
fn pair<S: Simd>(x: &mut [Complex<S>; 2]) {
    *x = [add(x[0], x[1]), sub(x[0], x[1])];
}

/// Four signals of a quarter of the length, whose frequencies are those of the block that leave 0, 2, 1 and 3 when
/// divided by 4.
#[inline(always)]
fn split<S: Simd>(simd: S, block: &mut [Complex<S>], roots: &[[f32; 2]]) {
    let step = roots.len() / block.len();
    let [x0, x1, x2, x3] = quarters(block);
    let count = x0.len();
    let (x1, x2, x3) = (&mut x1[..count], &mut x2[..count], &mut x3[..count]);
    for i in 0..count {
        let (w1, w2) = (splat(simd, roots[i * step]), splat(simd, roots[2 * i * step]));
        let w3 = splat(simd, roots[3 * i * step]);
        let (even, odd) = (add(x0[i], x2[i]), add(x1[i], x3[i]));
        let (difference, turned) = (sub(x0[i], x2[i]), turn(sub(x1[i], x3[i])));
        x0[i] = add(even, odd);
        x1[i] = mul(sub(even, odd), w2);
        x2[i] = mul(add(difference, turned), w1);
        x3[i] = mul(sub(difference, turned), w3);
    }
}

/// The inverse of [`split`], times 4.
#[inline(always)]
fn join<S: Simd>(simd: S, block: &mut [Complex<S>], roots: &[[f32; 2]]) {
    let step = roots.len() / block.len();
    let [x0, x1, x2, x3] = quarters(block);
    let count = x0.len();
    let (x1, x2, x3) = (&mut x1[..count], &mut x2[..count], &mut x3[..count]);
    for i in 0..count {
        let (w1, w2) = (splat(simd, roots[i * step]), splat(simd, roots[2 * i * step]));
        let w3 = splat(simd, roots[3 * i * step]);
        let (y1, y2, y3) = (mul(x1[i], conj(w2)), mul(x2[i], conj(w1)), mul(x3[i], conj(w3)));
        let (even, odd) = (add(x0[i], y1), sub(x0[i], y1));
        let (difference, turned) = (add(y2, y3), turn(sub(y2, y3)));
        x0[i] = add(even, difference);
        x1[i] = sub(odd, turned);
        x2[i] = sub(even, difference);
        x3[i] = add(odd, turned);
    }
}

#[inline(always)]
fn quarters<T>(block: &mut [T]) -> [&mut [T]; 4] {
    let (low, high) = block.split_at_mut(block.len() / 2);
    let (x0, x1) = low.split_at_mut(low.len() / 2);
    let (x2, x3) = high.split_at_mut(high.len() / 2);
    [x0, x1, x2, x3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::with_simd;
    use pulp::WithSimd;

    /// The spectrum of a signal, and its inverse transform.
    struct Both<'a>(&'a [[f32; 2]]);

    impl WithSimd for Both<'_> {
        type Output = [Vec<[f32; 2]>; 2];

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let roots = roots(self.0.len());
            let lane = |x: &Complex<S>| {
                x.map(|x| {
                    let mut lane = [0.0];
                    x.store(&mut lane);
                    lane[0]
                })
            };
            let mut x: Vec<Complex<S>> = self.0.iter().map(|&x| splat(simd, x)).collect();
            transform(simd, &mut x, &roots);
            let spectrum = x.iter().map(lane).collect();
            inverse(simd, &mut x, &roots);
            [spectrum, x.iter().map(lane).collect()]
        }
    }

    #[test]
    fn spectra_of_powers_of_two() {
        for bits in 1..11 {
            let n = 1 << bits;
            let signal: Vec<[f32; 2]> = (0..n).map(|i| [(i * 7 % 5) as f32 - 2.0, (i * 3 % 7) as f32 - 3.0]).collect();
            let [spectrum, back] = with_simd(Both(&signal));
            let close = |found: [f32; 2], expected: [f64; 2], scale: f64| {
                let error = (f64::from(found[0]) - expected[0]).hypot(f64::from(found[1]) - expected[1]);
                assert!(error < 1e-6 * scale, "{found:?}, not {expected:?}, of {n} samples");
            };
            for (place, &found) in spectrum.iter().enumerate() {
                let frequency = place.reverse_bits() >> (usize::BITS - bits);
                let mut expected = [0.0; 2];
                for (t, x) in signal.iter().enumerate() {
                    let (sin, cos) = (-TAU * (frequency * t % n) as f64 / n as f64).sin_cos();
                    let [re, im] = x.map(f64::from);
                    expected = [expected[0] + re * cos - im * sin, expected[1] + re * sin + im * cos];
                }
                close(found, expected, 4.0 * n as f64);
            }
            for (found, x) in back.into_iter().zip(signal) {
                close(found, x.map(|x| f64::from(x) * n as f64), 4.0 * n as f64);
            }
        }
    }
}
