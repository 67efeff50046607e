//! The parts that the [`Kernel`](super::kernel::Kernel)s of the CPU share.
//!
//! Vector instructions are chosen when the program runs. Examples of a batch are spread over the threads, and sums over
//! the batch are in the batch's order: results do not depend on the number of threads.

pub mod fourier;
pub mod gemm;
pub mod math;
pub mod memory;
pub mod panels;
pub mod pointwise;
pub mod simd;
pub mod small;

use burn::tensor::TensorData;
use burn_flex::FlexTensor;
use pulp::WithSimd;

/// Runs `op` with the widest vectors that this processor has.
#[inline]
pub fn with_simd<Op: WithSimd>(op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = pulp::x86::V4::try_new() {
        return pulp::Simd::vectorize(avx512, op);
    } else if let Some(avx2) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(avx2, op);
    }
    pulp::Arch::new().dispatch(op)
}

/// The elements of a contiguous `f32` tensor.
pub fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().unwrap_or_default()
}

/// A tensor of these elements.
pub fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The lengths of the axes.
pub fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.layout().shape().dims()
}

/// A tensor of these elements, in the shape of another.
pub fn like(tensor: &FlexTensor, values: Vec<f32>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, tensor.layout().shape().clone()))
}

/// Gradients in the shapes of their tensors.
pub fn gradients_of<const N: usize>(
    inputs: &[FlexTensor; N],
    gradients: impl Into<[Vec<f32>; N]>,
) -> [Option<FlexTensor>; N] {
    let mut gradients = gradients.into().into_iter();
    inputs.each_ref().map(|input| Some(like(input, gradients.next()?)))
}
