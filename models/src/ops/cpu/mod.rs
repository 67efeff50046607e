//! Kernels for the CPU.

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
