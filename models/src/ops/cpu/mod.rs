//! Kernels for the CPU.
#![allow(missing_docs, dead_code)]
pub mod convolution;
pub mod delta;
pub mod linear;
pub mod mix;
pub mod norm;
pub mod pointwise;
pub mod scan;
pub mod short_convolution;
pub mod simd;
pub mod wkv;
