//! What the CUDA driver says, asked without linking to it.
#![allow(unsafe_code)] // C functions of a library loaded at run time

use libloading::Library;
use std::ffi::{CStr, c_char, c_int};

/// The installed driver.
#[derive(Debug, Clone)]
pub struct Driver {
    /// The newest CUDA version it supports, for example `13.0`.
    pub cuda_version: String,
    /// The names of the devices, by index.
    pub devices: Vec<String>,
}

#[cfg(target_os = "windows")]
const LIBRARIES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(target_os = "windows"))]
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

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
        let mut names = Vec::new();
        for device in 0..devices {
            let mut buffer = [0 as c_char; 256];
            call("cuDeviceGetName", name(buffer.as_mut_ptr(), buffer.len() as c_int - 1, device))?;
            names.push(CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned());
        }
        if names.is_empty() {
            return Err("the NVIDIA driver sees no device".to_owned());
        }
        Ok(Driver { cuda_version: format!("{}.{}", number / 1000, number % 1000 / 10), devices: names })
    }
}
