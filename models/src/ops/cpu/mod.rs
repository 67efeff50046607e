//! Kernels for the CPU.
#![allow(missing_docs, dead_code)]
pub mod convolution;
pub mod delta;
pub mod linear;
pub mod scan;
pub mod simd;
pub mod wkv;
