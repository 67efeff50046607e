//! Where the ONNX Runtime library comes from.
//!
//! Nothing is downloaded while building. At run time the library is looked for in this order: `ORT_DYLIB_PATH`, the
//! package of the Python environment that the program is installed in, the project's cache folder, the package of the
//! `python3` on the path. Where there is none, `pip` fetches one pinned wheel, checked against its hash, into the cache,
//! once. Inside a Python process only the first and that process's own package count: see [`use_python_package`].

mod fetch;
mod library;
mod nvidia;
mod places;
pub(crate) mod plugins;

pub use places::{cache_folder, use_python_package};

use self::nvidia::preload_python_packages;
use self::places::Places;
use crate::{EvalError, Result};
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider};
use ort::logging::LogLevel;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// How a library was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The environment variable `ORT_DYLIB_PATH`.
    EnvironmentVariable,
    /// The project's cache folder.
    Cache,
    /// The Python package of the environment that this program is installed in.
    OwnEnvironment,
    /// An installed Python package.
    PythonPackage,
    /// Fetched with pip just now; from now on it is in the cache.
    Fetched,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::EnvironmentVariable => "named by ORT_DYLIB_PATH",
            Self::Cache => "in the cache",
            Self::OwnEnvironment => "of the Python environment that this program is installed in",
            Self::PythonPackage => "of an installed Python package",
            Self::Fetched => "fetched with pip",
        })
    }
}

/// An ONNX Runtime library on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeLibrary {
    /// The library file.
    pub path: PathBuf,
    /// Its version, where the file name or the package tells.
    pub version: Option<String>,
    /// How it was found.
    pub source: Source,
}

impl RuntimeLibrary {
    /// The library that evaluations would use, without fetching anything; `None` where there is none yet.
    ///
    /// # Errors
    /// `ORT_DYLIB_PATH` names something that is not a file.
    pub fn find() -> Result<Option<Self>> {
        Places::of_this_process().search(&mut Vec::new())
    }

    /// The library that evaluations use; fetched with pip where there is none, with a message on standard error.
    ///
    /// # Errors
    /// `ORT_DYLIB_PATH` names something that is not a file, or every place failed.
    pub fn find_or_fetch() -> Result<Self> {
        Places::of_this_process().search_or_fetch()
    }

    /// Loads the library into this process. ort checks the version before it calls anything else in it.
    fn load(&self) -> Result<Environment> {
        let failed = |reason: String| EvalError::RuntimeLoad {
            path: self.path.clone(),
            origin: self.source.to_string(),
            reason,
            hint: match self.source {
                Source::EnvironmentVariable => {
                    "point ORT_DYLIB_PATH at the file of an ONNX Runtime 1.22 or newer, or unset it".to_owned()
                }
                Source::PythonPackage | Source::OwnEnvironment => {
                    "`pip install --upgrade onnxruntime`, or set ORT_DYLIB_PATH to another copy".to_owned()
                }
                Source::Cache | Source::Fetched => {
                    "delete that folder to have it fetched again, or set ORT_DYLIB_PATH to another copy".to_owned()
                }
            },
        };
        preload_python_packages(&self.path);
        let builder = ort::init_from(&self.path).map_err(|e| failed(e.to_string()))?;
        let environment =
            builder.with_name("evaluators").with_telemetry(false).build().map_err(|e| failed(e.to_string()))?;
        // Failures come back as values; ONNX Runtime's log would only repeat them.
        if std::env::var_os("ORT_LOG").is_none() {
            environment.set_log_level(LogLevel::Fatal);
        }
        Ok(environment)
    }
}

/// The process's ONNX Runtime environment: found or fetched, and loaded, on the first call, and kept alive from then
/// on.
///
/// Telemetry is turned off. From version 1.29 on, though, Microsoft's builds report the process once while the
/// environment is created, before that takes effect, and leave an identifier in the cache folder, unless the
/// environment variable `ORT_DISABLE_TELEMETRY` is `1`. A program best sets it first thing in `main`: a library
/// cannot, because other threads may be reading the environment.
///
/// # Errors
/// There is no library and none could be fetched, or the one found cannot be loaded or is too old.
pub fn environment() -> Result<Environment> {
    static LOADED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*loaded {
        return Ok(environment.clone());
    }
    let environment = RuntimeLibrary::find_or_fetch()?.load()?;
    *loaded = Some(environment.clone());
    Ok(environment)
}

/// The execution providers that the loaded library was built with, by ONNX Runtime's names, best first; among those
/// that this crate can use (TensorRT, CUDA, CPU). Being listed does not mean that a GPU and its driver are present.
///
/// # Errors
/// As [`environment`].
pub fn available_providers() -> Result<Vec<String>> {
    environment()?;
    let offered = |name: &str, available: ort::Result<bool>| available.unwrap_or(false).then(|| name.to_owned());
    Ok([
        offered(ep::TensorRT::NAME, ep::TensorRT::is_available()),
        offered(ep::CUDA::NAME, ep::CUDA::is_available()),
        offered(ep::CPU::NAME, ep::CPU::is_available()),
    ]
    .into_iter()
    .flatten()
    .collect())
}
