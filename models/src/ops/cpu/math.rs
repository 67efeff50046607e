//! Elementary functions that the compiler can vectorise: no branches, no calls.

use std::f32::consts::{LN_2, LOG2_E};

/// Adding it rounds a small float to an integer, which is then in the lowest bits.
const ROUND: f32 = 12_582_912.0; // 1.5·2²³

/// eˣ − 1 = 2ⁿ·(eʳ − 1) + 2ⁿ − 1 with |r| ≤ ln(2)/2: r − 1 by Taylor's series to r⁷, and 2ⁿ; for |x| ≤ 87.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, f32) {
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln(2) in two parts, so that n·(the first) is exact.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(-(LN_2 - 0.693_359_4), r);
    let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (p, scale)
}

/// eˣ to 1e-6 relative; of |x| > 87, that of ±87.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (p, scale) = exp_parts(x.clamp(-87.0, 87.0));
    p.mul_add(scale, scale)
}

/// 1/(1 + e⁻ˣ) to 1e-6.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh(x) = (e²ˣ − 1)/(e²ˣ + 1) to 1e-6 relative.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let (p, scale) = exp_parts((2.0 * x).clamp(-20.0, 20.0));
    let e = p.mul_add(scale, scale - 1.0);
    e / (e + 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_standard_library_everywhere() {
        for i in -200_000..200_000 {
            let x = i as f32 * 5e-4;
            let wide = f64::from(x);
            let relative = |got: f32, want: f64| (f64::from(got) - want).abs() / want.abs().max(1e-37);
            if x.abs() < 87.0 {
                assert!(relative(exp(x), wide.exp()) < 1e-6, "exp({x})");
            }
            assert!((f64::from(sigmoid(x)) - 1.0 / (1.0 + (-wide).exp())).abs() < 1e-6, "sigmoid({x})");
            assert!(relative(tanh(x), wide.tanh()) < 1e-6 || x == 0.0, "tanh({x})");
        }
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan() && exp(f32::NAN).is_nan());
    }
}
