//! Choosing where to train.

use crate::config::{Precision, TrainConfig};
use anyhow::{Result, bail};

/// A device that training can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// All cores of this machine.
    Cpu,
    /// The CUDA GPU with this index.
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

impl Device {
    /// The device that the config names, if it has the precision that the config asks for.
    pub fn of(config: &TrainConfig) -> Result<Self> {
        let device = Self::parse(&config.device)?;
        device.check(config.precision)?;
        Ok(device)
    }

    fn check(self, precision: Precision) -> Result<()> {
        match self {
            Self::Cpu if precision == Precision::Tf32 => bail!(
                "train.precision=tf32 is for CUDA: processors have no TF32\n  \
                 hint: set train.precision=fp32, or choose a GPU with --device cuda"
            ),
            Self::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => {
                let driver = crate::cuda::driver().map_err(anyhow::Error::msg)?;
                match driver.devices.get(index) {
                    Some(gpu)
                        if gpu.compute_capability < (8, 0)
                            && matches!(precision, Precision::Tf32 | Precision::Bf16) =>
                    {
                        let (major, minor) = gpu.compute_capability;
                        bail!(
                            "train.precision={} needs compute capability 8.0, but {self} ({}) has {major}.{minor}\n  \
                             hint: set train.precision to fp32 or fp16",
                            precision.name(),
                            gpu.name
                        )
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// `auto` takes CUDA where a driver, a device and NVRTC are found; an explicit `cuda` without them is an error.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::first_gpu().unwrap_or(Self::Cpu)),
            _ => match name.strip_prefix("cuda") {
                Some("") => Self::gpu(0),
                Some(index) => match index.strip_prefix(':').and_then(|i| i.parse().ok()) {
                    Some(index) => Self::gpu(index),
                    None => Self::unknown(name),
                },
                None => Self::unknown(name),
            },
        }
    }

    fn unknown(name: &str) -> Result<Self> {
        bail!("unknown device `{name}`\n  hint: one of auto, cpu, cuda, cuda:N")
    }

    #[cfg(feature = "cuda")]
    fn first_gpu() -> Option<Self> {
        Self::gpu(0).ok()
    }

    #[cfg(feature = "cuda")]
    fn gpu(index: usize) -> Result<Self> {
        let devices = crate::cuda::driver().map(|d| d.devices).map_err(|reason| {
            anyhow::anyhow!("cannot train on cuda: {reason}\n  hint: install the NVIDIA driver, or use --device cpu")
        })?;
        if index >= devices.len() {
            bail!(
                "there is no device cuda:{index}; the driver lists {}\n  hint: use --device cuda:0 or cpu",
                devices.len()
            );
        }
        crate::cuda::compiler().map_err(|reason| anyhow::anyhow!("cannot train on cuda:{index}: {reason}"))?;
        Ok(Self::Cuda(index))
    }

    #[cfg(not(feature = "cuda"))]
    fn first_gpu() -> Option<Self> {
        None
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(_: usize) -> Result<Self> {
        bail!("this program was built without CUDA\n  hint: build with the default features, or use --device cpu")
    }
}

/// Runs `work` on a CUDA device that has proved to work; a failure of the device in it is an error.
///
/// # Errors
/// Those of `work`; the device does not work, or fails in the middle.
#[cfg(feature = "cuda")]
pub fn on_cuda<T>(index: usize, work: impl FnOnce(&models::CudaDevice) -> Result<T>) -> Result<T> {
    let gpu = crate::cuda::driver().ok().and_then(|driver| driver.devices.into_iter().nth(index));
    // The fastest kernel of one GPU may not even run on another, and CubeCL tells devices apart by their index alone.
    let tuned = evaluators::cache_folder().zip(gpu).map(|(cache, gpu)| cache.join("autotune").join(gpu.folder_name()));
    let device = models::CudaDevice::new(index);
    let tried_work = || {
        models::cuda::keep_tuning_in(tuned);
        models::cuda::try_kernel(&device).map_err(anyhow::Error::msg)?;
        crate::train::gpu_faults::check()?;
        work(&device)
    };
    crate::train::gpu_faults::guard(&format!("cuda:{index}"), tried_work, || models::cuda::wait(&device))
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_processor_has_all_precisions_but_tf32() {
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp16] {
            Device::Cpu.check(precision).unwrap();
        }
        assert!(Device::Cpu.check(Precision::Tf32).unwrap_err().to_string().contains("hint:"));
    }

    #[test]
    fn names() {
        assert_eq!(Device::parse("cpu").unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda0", "cuda:x", ""] {
            assert!(Device::parse(bad).unwrap_err().to_string().contains("auto, cpu, cuda, cuda:N"), "{bad}");
        }
    }
}
