//! The parts that the passes of [`Kernel`](super::kernel::Kernel)s for GPUs share, in CubeCL: the same source for CUDA
//! and every other of its runtimes.
//!
//! All compute in `f32` and are deterministic: what many units contribute to is summed by one, in a fixed order.

use crate::ops::cpu::memory::is_filled_with_nan;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::slice;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros};
pub(crate) use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// The default number of units of a cube.
pub(crate) const UNITS: usize = 64;

/// A tensor to be written, on the device of another.
pub(crate) fn empty<R: CubeRuntime, const D: usize>(like: &CubeTensor<R>, shape: [usize; D]) -> CubeTensor<R> {
    let tensor = empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), DType::F32);
    if is_filled_with_nan() {
        let dim = CubeDim::new_1d(UNITS as u32);
        let count = calculate_cube_count_elemwise(&tensor.client, shape.iter().product(), dim);
        fill_kernel::launch(&tensor.client, count, dim, argument(&tensor), f32::NAN);
    }
    tensor
}

#[cube(launch)]
fn fill_kernel(x: &mut Tensor<f32>, value: f32) {
    if ABSOLUTE_POS < x.len() {
        x[ABSOLUTE_POS] = value;
    }
}

/// A gradient, or zeros in the shape of `like` where there is none.
pub(crate) fn or_zeros<R: CubeRuntime>(gradient: Option<CubeTensor<R>>, like: &CubeTensor<R>) -> CubeTensor<R> {
    gradient.unwrap_or_else(|| zeros(like.device.clone(), like.shape(), DType::F32))
}

/// The tensor as a kernel's argument.
pub(crate) fn argument<R: CubeRuntime>(tensor: &CubeTensor<R>) -> TensorArg<R> {
    tensor.clone().into_tensor_arg()
}

/// The gradients of all inputs, or no gradient at all.
pub(crate) fn gpu_gradients<R: CubeRuntime, const N: usize>(
    gradients: Option<impl Into<[CubeTensor<R>; N]>>,
) -> [Option<CubeTensor<R>>; N] {
    match gradients {
        Some(gradients) => gradients.into().map(Some),
        None => [const { None }; N],
    }
}

/// Whether kernels, which count in 32 bits, reach all elements of such a tensor.
pub(crate) fn is_addressable<const D: usize>(shape: [usize; D]) -> bool {
    u32::try_from(shape.iter().product::<usize>()).is_ok()
}

/// The cubes that run a kernel, and their units.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    cubes: [usize; 2],
    units: usize,
}

impl Grid {
    /// A unit for each of so many numbers of each example: `ABSOLUTE_POS_X` is the number, `CUBE_POS_Y` the example.
    pub(crate) fn over(numbers: usize, batch: usize) -> Self {
        Self { cubes: [numbers.div_ceil(UNITS), batch], units: UNITS }
    }

    /// A cube of so many units for each head of each example: `CUBE_POS_X` is the head, `CUBE_POS_Y` the example.
    pub(crate) fn of_heads(heads: usize, batch: usize, units: usize) -> Self {
        Self { cubes: [heads, batch], units }
    }

    /// Cubes along the first axis.
    pub(crate) fn width(self) -> usize {
        self.cubes[0]
    }

    pub(crate) fn count(self) -> CubeCount {
        let [x, y] = self.cubes.map(|n| n as u32);
        CubeCount::Static(x, y, 1)
    }

    pub(crate) fn dim(self) -> CubeDim {
        CubeDim::new_1d(self.units as u32)
    }
}

/// Launches a kernel on the device of the first tensor: `launch!(kernel, grid, [tensors], constants…)`.
macro_rules! launch {
    ($kernel:ident, $grid:expr, [$first:expr $(, $tensor:expr)* $(,)?] $(, $constant:expr)* $(,)?) => {
        $kernel::launch(
            &$first.client,
            $grid.count(),
            $grid.dim(),
            $crate::ops::cube::argument(&$first),
            $($crate::ops::cube::argument(&$tensor),)*
            $($constant,)*
        )
    };
}
pub(crate) use launch;

/// Entries `range` of axis `axis`.
pub(crate) fn part<R: CubeRuntime>(
    tensor: &CubeTensor<R>,
    axis: usize,
    range: std::ops::Range<usize>,
) -> CubeTensor<R> {
    let mut ranges: Vec<_> = tensor.shape().iter().map(|&length| 0..length).collect();
    ranges[axis] = range;
    slice(tensor.clone(), &ranges)
}

/// The sums over the middle axis: `[outer, rows, inner]` → `[outer, inner]`.
pub(crate) fn sum_rows<R: CubeRuntime>(x: &CubeTensor<R>, [outer, rows, inner]: [usize; 3]) -> CubeTensor<R> {
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
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + f32::exp(-x))
}

/// (1 − e⁻²ˣ)/(1 + e⁻²ˣ), from the side where nothing overflows, or cancels except for small x; those by the series.
#[cube]
pub(crate) fn tanh(x: f32) -> f32 {
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
pub(crate) fn softplus(x: f32) -> f32 {
    let y = f32::exp(-f32::abs(x));
    let s = y / (2.0f32 + y);
    let q = s * s;
    let tail = 1.0f32 / 9.0f32 + q * (1.0f32 / 11.0f32 + q * (1.0f32 / 13.0f32 + q * (1.0f32 / 15.0f32)));
    let series = 1.0f32 + q * (1.0f32 / 3.0f32 + q * (1.0f32 / 5.0f32 + q * (1.0f32 / 7.0f32 + q * tail)));
    f32::max(x, 0.0f32) + 2.0f32 * s * series
}
