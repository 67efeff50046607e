//! The Gaussian error linear unit, exact.

pub mod cpu;

use super::kernel::RunKernels;
use burn::prelude::*;

/// The Gaussian error linear unit.
pub trait GeluOp: RunKernels {
    /// x·Φ(x), entry by entry, `[batch, seq, channels]`, with the normal distribution function Φ (Hendrycks and Gimpel,
    /// arXiv 1606.08415, exact).
    fn exact_gelu(x: Tensor<Self, 3>) -> Tensor<Self, 3> {
        cpu::gelu(&x).unwrap_or_else(|| reference(x))
    }
}

impl<B: RunKernels> GeluOp for B {}

/// x·(1 + erf(x/√2))/2. Not burn's `gelu`: on GPUs, the gradient that comes with it is that of the approximation by
/// tanh.
pub fn reference<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let twice_phi = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0;
    x * twice_phi * 0.5
}
