//! CUDA on this machine, found without linking to it: the driver, and the compiler of burn's kernels, which are
//! compiled when they are first used.
#![allow(unsafe_code)] // C functions of a library loaded at run time

use libloading::Library;
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};

/// The installed driver.
#[derive(Debug, Clone)]
pub struct Driver {
    /// The newest CUDA version it supports, for example `13.0`.
    pub cuda_version: String,
    /// The devices, by index.
    pub devices: Vec<Gpu>,
}

/// A device of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// As NVIDIA calls it.
    pub name: String,
    /// Major and minor number of what its hardware can do; 8.0 and later have bfloat16 and TF32.
    pub compute_capability: (i32, i32),
}

impl Gpu {
    /// A name for a folder of what holds for GPUs of this kind: `nvidia-h200-9.0`.
    #[cfg(feature = "cuda")]
    pub fn folder_name(&self) -> String {
        let words = self.name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let name = words.collect::<Vec<_>>().join("-").to_lowercase();
        format!("{name}-{}.{}", self.compute_capability.0, self.compute_capability.1)
    }
}

#[cfg(target_os = "windows")]
const LIBRARIES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(target_os = "windows"))]
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// The compiler's names, those that cudarc (which cubecl-cuda loads it with) tries.
#[cfg(target_os = "windows")]
const COMPILERS: [&str; 4] = ["nvrtc.dll", "nvrtc64_130_0.dll", "nvrtc64_13.dll", "nvrtc64_12.dll"];
#[cfg(not(target_os = "windows"))]
const COMPILERS: [&str; 5] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11", "libnvrtc.so.1"];

/// Headers that burn's kernels include, from CUDA's parts cudart, crt and nvcc.
const HEADERS: [&str; 5] = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_config.h", "mma.h"];

/// The folder of CUDA's headers, where NVRTC can be loaded as well; the error says what is missing, and how to get it.
pub fn compiler() -> Result<PathBuf, String> {
    // SAFETY: loading NVRTC runs its initialisers, which have no preconditions.
    if !COMPILERS.iter().any(|name| unsafe { Library::new(*name) }.is_ok()) {
        return Err(format!(
            "CUDA's run-time compiler NVRTC cannot be loaded ({})\n  \
             hint: install the CUDA toolkit, or its parts nvrtc, cudart-dev, crt and cccl, and put the folder of {} on {}",
            COMPILERS.join(", "),
            COMPILERS[0],
            if cfg!(windows) { "PATH" } else { "LD_LIBRARY_PATH" },
        ));
    }
    headers(toolkit().as_deref())
}

/// `include` of a CUDA installation, where kernels' headers are in it.
fn headers(toolkit: Option<&Path>) -> Result<PathBuf, String> {
    let Some(toolkit) = toolkit else {
        return Err("there is no CUDA toolkit, whose headers burn's kernels are compiled with\n  \
                    hint: set CUDA_PATH to the folder that has include/cuda_runtime.h"
            .into());
    };
    let include = toolkit.join("include");
    match HEADERS.iter().find(|header| !include.join(header).exists()) {
        None => Ok(include),
        Some(missing) => Err(format!(
            "{} has no {missing}, which burn's kernels include\n  \
             hint: install the CUDA toolkit, or its parts cudart-dev, crt and cccl, and set CUDA_PATH to its folder",
            include.display()
        )),
    }
}

/// Where cubecl-cuda looks for the CUDA installation.
fn toolkit() -> Option<PathBuf> {
    let usual = || match () {
        () if cfg!(windows) => Some("C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA/"),
        () if Path::new("/usr/bin/nvcc").exists() => Some("/usr"),
        () => None,
    };
    let folders = ["/usr/local/cuda", "/opt/cuda"].into_iter().filter(|_| cfg!(unix));
    let found = || folders.map(Path::new).find(|folder| folder.exists()).or_else(|| usual().map(Path::new));
    std::env::var("CUDA_PATH").ok().map(PathBuf::from).or_else(|| found().map(Path::to_owned))
}

/// Loads and asks the driver; the error says in a few words why there is none to ask.
pub fn driver() -> Result<Driver, String> {
    // SAFETY: loading the driver library runs its initialisers, which have no preconditions.
    let library = LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let library = library.ok_or("no NVIDIA driver is installed")?;
    let call = |name: &str, status: c_int| match status {
        0 => Ok(()),
        100 => Err("the NVIDIA driver sees no device".to_owned()),
        code => Err(format!("the NVIDIA driver failed in {name} with code {code}")),
    };
    // SAFETY: the signatures are those of the CUDA driver API (cuda.h), stable since CUDA 2; every pointer is to a live
    // local of the right type, and the name buffer's length is passed along with it.
    unsafe {
        let missing = |e: libloading::Error| format!("the NVIDIA driver is incomplete: {e}");
        let init = library.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit").map_err(missing)?;
        call("cuInit", init(0))?;
        let version =
            library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion").map_err(missing)?;
        let mut number = 0;
        call("cuDriverGetVersion", version(&mut number))?;
        let count = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount").map_err(missing)?;
        let mut devices = 0;
        call("cuDeviceGetCount", count(&mut devices))?;
        let name = library
            .get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName")
            .map_err(missing)?;
        let attribute = library
            .get::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int>(b"cuDeviceGetAttribute")
            .map_err(missing)?;
        let mut gpus = Vec::new();
        for device in 0..devices {
            let mut buffer = [0 as c_char; 256];
            call("cuDeviceGetName", name(buffer.as_mut_ptr(), buffer.len() as c_int - 1, device))?;
            let name = CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned();
            let (mut major, mut minor) = (0, 0);
            call("cuDeviceGetAttribute", attribute(&mut major, 75, device))?; // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
            call("cuDeviceGetAttribute", attribute(&mut minor, 76, device))?; // …_MINOR
            gpus.push(Gpu { name, compute_capability: (major, minor) });
        }
        if gpus.is_empty() {
            return Err("the NVIDIA driver sees no device".to_owned());
        }
        Ok(Driver { cuda_version: format!("{}.{}", number / 1000, number % 1000 / 10), devices: gpus })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    #[cfg(feature = "cuda")]
    fn kinds_of_gpus_have_folders_of_their_own() {
        let gpu = |name: &str, compute_capability| Gpu { name: name.into(), compute_capability }.folder_name();
        assert_eq!(gpu("NVIDIA H200", (9, 0)), "nvidia-h200-9.0");
        assert_eq!(gpu("Tesla V100-SXM2 (32GB)/x", (7, 0)), "tesla-v100-sxm2-32gb-x-7.0");
    }

    #[test]
    fn missing_headers_are_named() {
        assert!(headers(None).unwrap_err().contains("set CUDA_PATH"));
        let toolkit = tempfile::tempdir().unwrap();
        let include = toolkit.path().join("include");
        std::fs::create_dir_all(include.join("crt")).unwrap();
        for (header, next) in HEADERS.iter().zip(&HEADERS[1..]) {
            std::fs::write(include.join(header), "").unwrap();
            let message = headers(Some(toolkit.path())).unwrap_err();
            assert!(message.contains(&format!("has no {next}")) && message.contains("hint:"), "{message}");
        }
        std::fs::write(include.join(HEADERS[HEADERS.len() - 1]), "").unwrap();
        assert_eq!(headers(Some(toolkit.path())).unwrap(), include);
    }
}
