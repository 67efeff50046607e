//! The passes of [`Kernel`](super::kernel::Kernel)s for GPUs, in CubeCL: the same source for CUDA and every other of its
//! runtimes.
//!
//! All compute in `f32` and are deterministic: what many units contribute to is summed by one, in a fixed order.

pub mod linear;
pub mod recurrent;
pub mod scan;
pub mod wkv;

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::slice;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros};
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// Units of a cube, where no other number suggests itself.
const UNITS: usize = 64;

/// A tensor to be written, on the device of another.
fn empty<R: CubeRuntime, const D: usize>(like: &CubeTensor<R>, shape: [usize; D]) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), DType::F32)
}

/// A gradient, or zeros in the shape of `like` where there is none.
fn or_zeros<R: CubeRuntime>(gradient: Option<CubeTensor<R>>, like: &CubeTensor<R>) -> CubeTensor<R> {
    gradient.unwrap_or_else(|| zeros(like.device.clone(), like.shape(), DType::F32))
}

/// The tensor as a kernel's argument.
fn argument<R: CubeRuntime>(tensor: &CubeTensor<R>) -> TensorArg<R> {
    tensor.clone().into_tensor_arg()
}

/// Whether kernels, which count in 32 bits, reach all elements of such a tensor.
fn is_addressable<const D: usize>(shape: [usize; D]) -> bool {
    u32::try_from(shape.iter().product::<usize>()).is_ok()
}

/// Cubes of `units` for so many numbers.
fn cubes(numbers: usize, units: usize) -> u32 {
    numbers.div_ceil(units) as u32
}

/// Entries `range` of axis `axis`.
fn part<R: CubeRuntime>(tensor: &CubeTensor<R>, axis: usize, range: std::ops::Range<usize>) -> CubeTensor<R> {
    let mut ranges: Vec<_> = tensor.shape().iter().map(|&length| 0..length).collect();
    ranges[axis] = range;
    slice(tensor.clone(), &ranges)
}

/// The sums over the middle axis: `[outer, rows, inner]` → `[outer, inner]`.
fn sum_rows<R: CubeRuntime>(x: &CubeTensor<R>, [outer, rows, inner]: [usize; 3]) -> CubeTensor<R> {
    let sums = empty(x, [outer, inner]);
    let dim = CubeDim::new_1d(UNITS as u32);
    sum_rows_kernel::launch(
        &x.client,
        calculate_cube_count_elemwise(&x.client, outer * inner, dim),
        dim,
        argument(x),
        argument(&sums),
        rows as u32,
        inner as u32,
    );
    sums
}

#[cube(launch)]
fn sum_rows_kernel(x: &Tensor<f32>, sums: &mut Tensor<f32>, rows: u32, inner: u32) {
    let rows = rows as usize;
    let inner = inner as usize;
    let at = ABSOLUTE_POS;
    if at < sums.len() {
        let first = at / inner * rows * inner + at % inner;
        let mut sum = 0.0f32;
        for row in 0..rows {
            sum += x[first + row * inner];
        }
        sums[at] = sum;
    }
}

/// 1/(1 + e⁻ˣ).
#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + f32::exp(-x))
}

/// (1 − e⁻²ˣ)/(1 + e⁻²ˣ), from the side where nothing overflows or cancels but for small x; there by the series.
#[cube]
fn tanh(x: f32) -> f32 {
    let size = f32::abs(x);
    let e = f32::exp(-2.0f32 * size);
    let far = (1.0f32 - e) / (1.0f32 + e);
    let square = x * x;
    // x − x³/3 + 2x⁵/15 − 17x⁷/315
    let near =
        size * (1.0f32 + square * (-1.0f32 / 3.0f32 + square * (2.0f32 / 15.0f32 - square * (17.0f32 / 315.0f32))));
    let value = select(size < 0.125f32, near, far);
    select(x < 0.0f32, -value, value)
}

/// log(1 + eˣ) = max(x, 0) + log(1 + e⁻|ˣ|). Not every runtime has an exact log(1 + y) for small y, so that is
/// 2·artanh(y/(2 + y)) by its series here: the argument is at most 1/3.
#[cube]
fn softplus(x: f32) -> f32 {
    let y = f32::exp(-f32::abs(x));
    let s = y / (2.0f32 + y);
    let q = s * s;
    let tail = 1.0f32 / 9.0f32 + q * (1.0f32 / 11.0f32 + q * (1.0f32 / 13.0f32 + q * (1.0f32 / 15.0f32)));
    let series = 1.0f32 + q * (1.0f32 / 3.0f32 + q * (1.0f32 / 5.0f32 + q * (1.0f32 / 7.0f32 + q * tail)));
    f32::max(x, 0.0f32) + 2.0f32 * s * series
}
