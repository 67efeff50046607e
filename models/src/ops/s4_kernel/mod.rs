//! S4's convolution kernel (Gu et al., arXiv 2111.00396).

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use std::f64::consts::PI;

/// The parameters of S4's kernel, one row per channel; pairs are `[re, im]` on the last axis.
///
/// With Δ = exp(inv_dt), Λ = −exp(a_real) − i·a_imag and A = diag(Λ) − P·P*, each mode followed by its conjugate, the
/// kernel is K_t = Re(Cᵀ·Āᵗ·B̄), where Ā and B̄ are A and B discretised by the bilinear rule.
#[derive(Debug, Clone)]
pub struct S4Kernel<B: Backend> {
    /// `[hidden, 1]`.
    pub inv_dt: Tensor<B, 2>,
    /// `[hidden, modes]`.
    pub a_real: Tensor<B, 2>,
    /// `[hidden, modes]`.
    pub a_imag: Tensor<B, 2>,
    /// `[1, hidden, modes, 2]`.
    pub b: Tensor<B, 4>,
    /// (I − Āˡ)ᵀ·C for l = `l_kernel`, `[1, hidden, modes, 2]`: the form from which a kernel of this length is
    /// computed.
    pub c: Tensor<B, 4>,
    /// `[1, hidden, modes, 2]`.
    pub p: Tensor<B, 4>,
    /// The length that `c` stands for; at least 1.
    pub l_kernel: usize,
}

/// S4's convolution kernel.
pub trait S4KernelOp: RunKernels {
    /// The first `length` taps of S4's kernel, `[hidden, length]`. See [`reference()`] for the formula.
    fn s4_kernel(parameters: S4Kernel<Self>, length: usize) -> Tensor<Self, 2> {
        let modes = parameters.modes(length);
        cpu::taps(&modes, length).unwrap_or_else(|| taps(modes, length))
    }
}

impl<B: RunKernels> S4KernelOp for B {}

/// A tensor of complex numbers: burn has none of its own.
#[derive(Debug, Clone)]
struct Complex<B: Backend, const D: usize> {
    re: Tensor<B, D>,
    im: Tensor<B, D>,
}

impl<B: Backend, const D: usize> Complex<B, D> {
    fn conj(self) -> Self {
        Self { re: self.re, im: -self.im }
    }

    fn mul(self, other: Self) -> Self {
        Self {
            re: self.re.clone() * other.re.clone() - self.im.clone() * other.im.clone(),
            im: self.re * other.im + self.im * other.re,
        }
    }

    fn recip(self) -> Self {
        let square = self.re.clone() * self.re.clone() + self.im.clone() * self.im.clone();
        Self { re: self.re / square.clone(), im: -self.im / square }
    }
}

impl<B: Backend> Complex<B, 2> {
    /// From `[1, hidden, modes, 2]`.
    fn from_pairs(pairs: Tensor<B, 4>) -> Self {
        let [_, hidden, modes, _] = pairs.dims();
        let part = |i: usize| pairs.clone().narrow(3, i, 1).reshape([hidden, modes]);
        Self { re: part(0), im: part(1) }
    }
}

/// The first `length` taps of the kernel, `[hidden, length]`.
///
/// The kernel is the inverse Fourier transform of K̂_k = e^{iθ/2}·(g(BC) − c·g(BQ)·g(PC) / (1 + c·g(PQ))), θ = 2πk/l,
/// Q = conj P, where g(v) = Σ Δ·v / (2i·s − ΔΛ·c) over all modes with s = sin θ/2 and c = cos θ/2. That is the paper's
/// Cauchy product (section 3.2) with 1 + ω = 2c·e^{−iθ/2} taken out, so that nothing is infinite at ω = −1.
pub fn reference<B: Backend>(parameters: S4Kernel<B>, length: usize) -> Tensor<B, 2> {
    taps(parameters.modes(length), length)
}

/// The terms of the sums over modes. A mode and its conjugate together are
/// (4i·s·Re Δv − 2c·Re(Δv·conj ΔΛ)) / (|ΔΛ|²c² − 4s² − 4i·s·c·Re ΔΛ).
#[derive(Debug, Clone)]
pub struct Modes<B: Backend> {
    /// Re ΔΛ and |ΔΛ|², `[hidden, 2, modes]`.
    pub poles: Tensor<B, 3>,
    /// 4·Re Δv for v = BC, BQ, PC and PQ, then −2·Re(Δv·conj ΔΛ) for the same, `[hidden, 8, modes]`.
    pub numerators: Tensor<B, 3>,
    /// The length that the spectrum stands for.
    pub l_kernel: usize,
}

/// [`reference()`] from the modes, of which `length` is at most `l_kernel`.
pub fn taps<B: Backend>(modes: Modes<B>, length: usize) -> Tensor<B, 2> {
    let Modes { poles, numerators, l_kernel } = modes;
    let hidden = poles.dims()[0];
    let frequencies = l_kernel / 2 + 1;
    let options = (&poles.device(), poles.dtype());
    let half_angles = |f: fn(f64) -> f64| {
        let values: Vec<f64> = (0..frequencies).map(|k| f(PI * k as f64 / l_kernel as f64)).collect();
        Tensor::<B, 3>::from_data(TensorData::new(values, [1, 1, frequencies]), options)
    };
    let (sin, cos) = (half_angles(f64::sin), half_angles(f64::cos));
    let [re, square] = [0, 1].map(|i| poles.clone().narrow(1, i, 1).swap_dims(1, 2)); // [hidden, modes, 1]
    let denominator = Complex {
        re: square * cos.clone().square() - sin.clone().square() * 4.0,
        im: re * (sin.clone() * cos.clone()) * -4.0,
    };
    let inverse = denominator.recip(); // [hidden, modes, frequencies]
    let [v, product] = [0, 4].map(|i| numerators.clone().narrow(1, i, 4));
    let g = Complex {
        re: product.clone().matmul(inverse.re.clone()) * cos.clone()
            - v.clone().matmul(inverse.im.clone()) * sin.clone(),
        im: product.matmul(inverse.im) * cos.clone() + v.matmul(inverse.re) * sin,
    }; // [hidden, 4, frequencies]
    let [bc, bq, pc, pq] =
        [0, 1, 2, 3].map(|i| Complex { re: g.re.clone().narrow(1, i, 1), im: g.im.clone().narrow(1, i, 1) });
    let feedback = Complex { re: pq.re * cos.clone() + 1.0, im: pq.im * cos.clone() }.recip();
    let correction = bq.mul(pc).mul(feedback);
    let spectrum = [bc.re - correction.re * cos.clone(), bc.im - correction.im * cos];
    let spectrum = Tensor::cat(spectrum.to_vec(), 2).reshape([hidden, 2 * frequencies]);
    spectrum.matmul(inverse_transform(l_kernel, length, options))
}

/// The inverse Fourier transform of the half spectrum of a real signal of `l` samples, times e^{iθ/2}, as a matrix:
/// real and imaginary parts `[2·frequencies]` → the first `length` samples.
fn inverse_transform<B: Backend>(l: usize, length: usize, options: (&B::Device, DType)) -> Tensor<B, 2> {
    let frequencies = l / 2 + 1;
    // Angles are π/l times k·(2t + 1), of which only the remainder modulo 2·l counts.
    let table =
        |f: fn(f64) -> f64| -> Vec<f64> { (0..2 * l).map(|m| f(PI * m as f64 / l as f64) / l as f64).collect() };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let mut values = Vec::with_capacity(2 * frequencies * length);
    for (table, sign) in [(cos, 1.0), (sin, -1.0)] {
        for k in 0..frequencies {
            // Every other frequency stands for its conjugate as well.
            let weight = if k == 0 || 2 * k == l { sign } else { 2.0 * sign };
            values.extend((0..length).map(|t| weight * table[k * (2 * t + 1) % (2 * l)]));
        }
    }
    Tensor::from_data(TensorData::new(values, [2 * frequencies, length]), options)
}

impl<B: Backend> S4Kernel<B> {
    /// The modes from which the first `length` taps are computed.
    pub fn modes(self, length: usize) -> Modes<B> {
        let S4Kernel { inv_dt, a_real, a_imag, b, c, p, l_kernel } = self.at_least(length);
        let dt = inv_dt.exp(); // [hidden, 1]
        let lambda = Complex { re: -a_real.exp() * dt.clone(), im: -a_imag * dt.clone() }; // Δ·Λ, [hidden, modes]
        let square = lambda.re.clone() * lambda.re.clone() + lambda.im.clone() * lambda.im.clone();
        let (b, c, p) = (Complex::from_pairs(b), Complex::from_pairs(c), Complex::from_pairs(p));
        let q = p.clone().conj();
        let products = [b.clone().mul(c.clone()), b.mul(q.clone()), p.clone().mul(c), p.mul(q)];
        let sin = products.clone().map(|v| v.re * dt.clone() * 4.0);
        let cos = products.map(|v| (v.re * lambda.re.clone() + v.im * lambda.im.clone()) * dt.clone() * -2.0);
        let numerators = Tensor::stack(sin.into_iter().chain(cos).collect(), 1);
        Modes { poles: Tensor::stack(vec![lambda.re, square], 1), numerators, l_kernel }
    }

    /// The same kernel with `l_kernel` doubled until it is `length` or more: (I − Ā²ˡ)ᵀC = (I + Āˡ)ᵀ·(I − Āˡ)ᵀC.
    fn at_least(self, length: usize) -> Self {
        let mut l_kernel = self.l_kernel;
        if length <= l_kernel {
            return self;
        }
        let Complex { re, im } = Complex::from_pairs(self.c.clone());
        let [hidden, modes] = re.dims();
        // Cᵀ·x sums over a mode and its conjugate: on the real and the imaginary parts of x it is the row (re, −im),
        // twice.
        let mut row = Tensor::cat(vec![re, -im], 1).reshape([hidden, 1, 2 * modes]);
        let mut squares = vec![self.transition()]; // Ā, Ā², Ā⁴, …
        while l_kernel < length {
            let mut moved = row.clone();
            for bit in (0..usize::BITS as usize).take_while(|bit| l_kernel >> bit > 0) {
                if bit == squares.len() {
                    let last = squares[bit - 1].clone();
                    squares.push(last.clone().matmul(last));
                }
                if l_kernel >> bit & 1 == 1 {
                    moved = moved.matmul(squares[bit].clone());
                }
            }
            row = row + moved;
            l_kernel *= 2;
        }
        let part = |start: usize, sign: f64| (row.clone().narrow(2, start, modes) * sign).reshape([1, hidden, modes]);
        let c = Tensor::stack(vec![part(0, 1.0), part(modes, -1.0)], 3); // [1, hidden, modes, 2]
        Self { c, l_kernel, ..self }
    }

    /// Ā as a real matrix `[hidden, 2·modes, 2·modes]` on the real parts of the state, then the imaginary parts.
    ///
    /// With D = 1 − ΔΛ/2 the inverse of a diagonal and a rank-one matrix (Woodbury) makes it
    /// Ā = diag(2/D − 1) − γ·(P/D)·(P*/D), γ = Δ / (1 + Δ/2·P*·(P/D)).
    fn transition(&self) -> Tensor<B, 3> {
        let dt = self.inv_dt.clone().exp();
        let d = Complex {
            re: self.a_real.clone().exp() * dt.clone() * 0.5 + 1.0,
            im: self.a_imag.clone() * dt.clone() * 0.5,
        }
        .recip(); // 1/D, [hidden, modes]
        let [hidden, modes] = d.re.dims();
        let p = Complex::from_pairs(self.p.clone());
        let norm = (p.re.clone().square() + p.im.clone().square()) * d.re.clone();
        let gamma = dt.clone() / (dt * norm.sum_dim(1) + 1.0); // a mode and its conjugate: the half goes away
        let column = p.clone().mul(d.clone());
        let row = p.conj().mul(d.clone());
        let column = Tensor::cat(vec![column.re, column.im], 1) * gamma;
        let row = Tensor::cat(vec![row.re, -row.im], 1) * 2.0; // again a mode and its conjugate
        let column = column.reshape([hidden, 2 * modes, 1]);
        let rank_one = column.matmul(row.reshape([hidden, 1, 2 * modes]));

        let eye = Tensor::<B, 2>::eye(modes, &rank_one.device()).unsqueeze::<3>();
        let diagonal = |x: Tensor<B, 2>| x.reshape([hidden, modes, 1]) * eye.clone(); // [hidden, modes, modes]
        let (re, im) = (diagonal(d.re * 2.0 - 1.0), diagonal(d.im * 2.0));
        let upper = Tensor::cat(vec![re.clone(), -im.clone()], 2);
        let lower = Tensor::cat(vec![im, re], 2);
        Tensor::cat(vec![upper, lower], 1) - rank_one
    }
}
