//! Kernels for the CPU.

pub mod adam;
pub mod affine;
pub mod attention;
pub mod convolution;
pub mod delta;
pub mod linear;
pub mod loss;
pub mod mix;
pub mod norm;
pub mod pointwise;
pub mod product;
pub mod scan;
pub mod short_convolution;
pub mod simd;
pub mod wkv;

use burn::tensor::TensorData;
use burn_flex::FlexTensor;

/// The numbers of a kernel's input.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.storage()
}

/// A kernel's output.
fn output<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// A kernel's output, of another tensor's shape.
fn like(tensor: &FlexTensor, values: Vec<f32>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, tensor.layout().shape().clone()))
}

fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.layout().shape().dims()
}

/// Lets this process keep the memory that it frees: a training step needs as much as the one before it, and getting it anew
/// from the system costs a page fault for every 4 KiB. Does nothing where the C library is not glibc.
#[allow(unsafe_code)]
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` sets two numbers inside the allocator, under its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
