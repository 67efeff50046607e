//! CUDA devices: where CubeCL's measurements are kept, and whether a device works.

use crate::{Cuda, CudaDevice};
use burn::prelude::*;
use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use std::path::PathBuf;
use std::sync::Once;

/// Has CubeCL keep which kernels are fastest in `folder`, unless a `cubecl.toml` or `burn.toml` says where. The first
/// call counts, before any tensor is on a device: the settings are those of the process.
pub fn keep_tuning_in(folder: Option<PathBuf>) {
    static FIRST: Once = Once::new();
    FIRST.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        if let (CacheConfig::Target, Some(folder)) = (&config.autotune.cache, folder) {
            config.autotune.cache = CacheConfig::File(folder);
        }
        if CubeClRuntimeConfig::storage().lock().is_none() {
            CubeClRuntimeConfig::set(config);
        }
    });
}

/// Compiles a small kernel, runs it and reads the result.
///
/// # Errors
/// The device returned a wrong result. Failures of driver, compiler and memory are burn's panics.
pub fn try_kernel(device: &CudaDevice) -> Result<(), String> {
    let x = Tensor::<Cuda, 1>::from_floats([1.0, 2.0, 3.0], device);
    let found = (x * 2.0 + 1.0).into_data().to_vec::<f32>().map_err(|e| format!("{e:?}"))?;
    if found == [3.0, 5.0, 7.0] { Ok(()) } else { Err(format!("2·[1, 2, 3] + 1 is {found:?} on the device")) }
}

/// Returns when the device has finished all queued work; failures are not reported.
pub fn wait(device: &CudaDevice) {
    let _ = Cuda::sync(device);
}
