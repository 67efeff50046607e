//! Where the ONNX Runtime library comes from.
//!
//! Nothing is downloaded while building. At run time the library is looked for in this order: `ORT_DYLIB_PATH`, the
//! project's cache folder, an installed Python package. Where there is none, `pip` fetches one pinned wheel, checked
//! against its hash, into the cache, once.

use crate::{EvalError, Result};
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider};
use ort::logging::LogLevel;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// What pip fetches when there is no library.
const PINNED: &str = "1.31.1";

/// The oldest version whose interface `ort` is built for here.
const OLDEST: (u32, u32) = (1, 22);

/// Prints the folder of the Python package without importing it (importing takes a second and can fail).
const FIND_PACKAGE: &str = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                            print(*(s.submodule_search_locations or []) if s else '', sep='\\n')";

/// How a library was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The environment variable `ORT_DYLIB_PATH`.
    EnvironmentVariable,
    /// The project's cache folder.
    Cache,
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

    /// The library that evaluations use; fetched with pip where there is none, which is said on standard error.
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
                Source::PythonPackage => {
                    "`pip install --upgrade onnxruntime`, or set ORT_DYLIB_PATH to another copy".to_owned()
                }
                Source::Cache | Source::Fetched => {
                    "delete that folder to have it fetched anew, or set ORT_DYLIB_PATH to another copy".to_owned()
                }
            },
        };
        preload_python_packages(&self.path);
        let builder = ort::init_from(&self.path).map_err(|e| failed(e.to_string()))?;
        let environment =
            builder.with_name("evaluators").with_telemetry(false).build().map_err(|e| failed(e.to_string()))?;
        // Failures come back as values; what ONNX Runtime also logs about them would only be said twice.
        if std::env::var_os("ORT_LOG").is_none() {
            environment.set_log_level(LogLevel::Fatal);
        }
        Ok(environment)
    }
}

/// The process's ONNX Runtime environment: found or fetched, and loaded, on the first call, and kept alive from then on.
///
/// Telemetry is turned off. From version 1.29 on, though, Microsoft's builds report the process once while the
/// environment is created, before that takes effect, and leave an identifier in the cache folder, unless the
/// environment variable `ORT_DISABLE_TELEMETRY` is `1`. A program sets it best as the first thing in `main`: a library
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

/// The execution providers that the loaded library was built with, by ONNX Runtime's names, best first; of those that
/// this crate can use (TensorRT, CUDA, CPU). That one is listed does not say that a GPU and its driver are there.
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

/// NVIDIA's libraries by the start of their names, each after those that it needs itself.
#[cfg(not(windows))]
const NVIDIA_LIBRARIES: [&str; 10] = [
    "libcudart.so",
    "libnvJitLink.so",
    "libcublasLt.so",
    "libcublas.so",
    "libnvrtc.so",
    "libcurand.so",
    "libcufft.so",
    "libcudnn", // libcudnn.so itself, which sorts first, loads the others by name
    "libnvinfer.so",
    "libnvonnxparser.so",
];

/// The GPU build of ONNX Runtime needs CUDA, cuDNN and TensorRT. Where it is installed as a Python package, pip has put
/// them beside it (`nvidia/*/lib`, `tensorrt_libs`), where no loader looks; libraries that are already in the process are
/// found. What cannot be loaded here is missed, and then named, when a session asks for the provider.
#[cfg(not(windows))]
fn preload_python_packages(library: &Path) {
    let Some(capi) = library.parent().filter(|capi| capi.join("libonnxruntime_providers_cuda.so").is_file()) else {
        return;
    };
    for path in python_libraries(capi.ancestors().nth(2).unwrap_or(capi)) {
        let _ = ort::util::preload_dylib(&path); // see above
    }
}

#[cfg(windows)]
fn preload_python_packages(_: &Path) {}

/// The libraries of [`NVIDIA_LIBRARIES`] in the Python packages under `site_packages`, in the order of that list.
#[cfg(not(windows))]
fn python_libraries(site_packages: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let nvidia = entries(&site_packages.join("nvidia")).map(|package| package.join("lib"));
    let mut files: Vec<PathBuf> =
        nvidia.chain([site_packages.join("tensorrt_libs")]).flat_map(|folder| entries(&folder)).collect();
    files.sort();
    let named = |file: &&PathBuf, start: &str| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(start) && name.contains(".so")
    };
    NVIDIA_LIBRARIES.iter().flat_map(|start| files.iter().filter(|file| named(file, start)).cloned()).collect()
}

/// Where to look; a value of its own, so that tests can look elsewhere.
struct Places {
    dylib_path: Option<OsString>,
    cache: Option<PathBuf>,
    pythons: Vec<String>,
}

impl Places {
    fn of_this_process() -> Self {
        Self {
            dylib_path: std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()),
            cache: cache_folder(),
            pythons: vec!["python3".into(), "python".into()],
        }
    }

    /// Looks everywhere in order; writes what was found in each place to `tried`.
    fn search(&self, tried: &mut Vec<String>) -> Result<Option<RuntimeLibrary>> {
        match &self.dylib_path {
            Some(path) => return from_variable(Path::new(path)).map(Some),
            None => tried.push("ORT_DYLIB_PATH: not set".to_owned()),
        }
        match &self.cache {
            Some(cache) => match library_in(&cache.join(pinned_folder()).join("onnxruntime"), Source::Cache) {
                Some(found) => return Ok(Some(found)),
                None => tried.push(format!("{}: no library", cache.join(pinned_folder()).display())),
            },
            None => tried.push("the cache: neither XDG_CACHE_HOME nor a home folder is set".to_owned()),
        }
        for python in &self.pythons {
            match package_library(python) {
                Ok(found) => return Ok(Some(found)),
                Err(reason) => tried.push(format!("the Python package onnxruntime of `{python}`: {reason}")),
            }
        }
        Ok(None)
    }

    fn search_or_fetch(&self) -> Result<RuntimeLibrary> {
        let mut tried = Vec::new();
        if let Some(found) = self.search(&mut tried)? {
            return Ok(found);
        }
        let with_pip = self.pythons.iter().find(|python| match check_pip(python) {
            Ok(()) => true,
            Err(reason) => {
                tried.push(format!("fetching with `{python} -m pip`: {reason}"));
                false
            }
        });
        match (&self.cache, Wheel::of_this_machine(), with_pip) {
            (Some(cache), Some(wheel), Some(python)) => match fetch(python, &wheel, cache)? {
                Ok(found) => return Ok(found),
                Err(reason) => tried.push(format!("fetching with `{python} -m pip`: {reason}")),
            },
            (Some(_), None, _) => {
                let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
                tried.push(format!("fetching with pip: ONNX Runtime {PINNED} has no wheel for {os} on {arch}"));
            }
            _ => {}
        }
        Err(EvalError::RuntimeNotFound { tried })
    }
}

fn pinned_folder() -> String {
    format!("onnxruntime-{PINNED}")
}

/// `$XDG_CACHE_HOME` (where absolute, as its specification wants), Windows' local application data, or `~/.cache`.
fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = variable("XDG_CACHE_HOME")
        .or_else(|| variable("LOCALAPPDATA"))
        .or_else(|| Some(std::env::home_dir()?.join(".cache")).filter(|p| p.is_absolute()));
    Some(base?.join("inductive-counting"))
}

fn from_variable(path: &Path) -> Result<RuntimeLibrary> {
    let source = Source::EnvironmentVariable;
    // Relative paths are relative to where the command runs; ort would look beside the executable.
    match std::path::absolute(path).ok().filter(|p| p.is_file()) {
        Some(path) => Ok(RuntimeLibrary { version: version_in_name(&path), path, source }),
        None => Err(EvalError::RuntimeLoad {
            path: path.into(),
            origin: source.to_string(),
            reason: "there is no such file".into(),
            hint: "point ORT_DYLIB_PATH at the library file itself (libonnxruntime.so…), or unset it".into(),
        }),
    }
}

/// The library in `capi/` of an unpacked Python package, with the version of its name or of the package's metadata.
fn library_in(package: &Path, source: Source) -> Option<RuntimeLibrary> {
    let files = std::fs::read_dir(package.join("capi")).ok()?.flatten();
    let path = files.map(|f| f.path()).find(|p| is_library(p))?;
    let version = version_in_name(&path).or_else(|| version_in_metadata(package));
    Some(RuntimeLibrary { path, version, source })
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "onnxruntime.dll"
        || name.starts_with("libonnxruntime.so")
        || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
}

/// `libonnxruntime.so.1.31.1` and `libonnxruntime.1.31.1.dylib` tell their version.
fn version_in_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_prefix("libonnxruntime.")?;
    let version = name.strip_prefix("so.").or_else(|| name.strip_suffix(".dylib"))?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// The version in the name of the folder `onnxruntime…-<version>.dist-info` beside the package.
fn version_in_metadata(package: &Path) -> Option<String> {
    let names = std::fs::read_dir(package.parent()?).ok()?.flatten().map(|f| f.file_name());
    let mut stems = names.filter_map(|n| Some(n.to_str()?.strip_suffix(".dist-info")?.to_owned()));
    let stem = stems.find(|s| s.starts_with("onnxruntime"))?;
    stem.split_once('-').map(|(_, version)| version.to_owned())
}

/// Whether a version is new enough; one that cannot be read is left to the loader, which checks for itself.
fn new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
        _ => true,
    }
}

/// The library of the package that `python` would import, or why there is none.
fn package_library(python: &str) -> std::result::Result<RuntimeLibrary, String> {
    let output = run(Command::new(python).args(["-c", FIND_PACKAGE]))?;
    if !output.status.success() {
        return Err(last_line(&output.stderr));
    }
    let folders = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = folders.lines().filter(|l| !l.is_empty()).find_map(|l| library_in(Path::new(l), Source::PythonPackage));
    let found = found.ok_or("not installed")?;
    match &found.version {
        Some(version) if !new_enough(version) => Err(format!("version {version} is older than 1.22")),
        _ => Ok(found),
    }
}

/// A wheel of the pinned version: pip's platform tag, and the SHA-256 that PyPI states for it.
struct Wheel {
    platform: &'static str,
    sha256: &'static str,
}

impl Wheel {
    fn of_this_machine() -> Option<Self> {
        let (platform, sha256) = match (std::env::consts::OS, std::env::consts::ARCH) {
            ("linux", "x86_64") => {
                ("manylinux_2_28_x86_64", "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536")
            }
            ("linux", "aarch64") => {
                ("manylinux_2_28_aarch64", "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc")
            }
            ("macos", "aarch64") => {
                ("macosx_14_0_arm64", "96dd2564b10ea7153ad9c207e7cd8e5917cb3ba521e0e0a62ac03486fdc8d56c")
            }
            ("windows", "x86_64") => ("win_amd64", "ae8a9a351efda685cc59a66226cdefaa37a126c1d66872ca23a2de9425326130"),
            _ => return None,
        };
        Some(Self { platform, sha256 })
    }
}

/// Has pip unpack the wheel into a temporary folder of the cache, which is renamed once it is complete: an interrupted
/// download is never taken for a library. The outer error is a cache that cannot be written, the inner one pip's.
fn fetch(python: &str, wheel: &Wheel, cache: &Path) -> Result<std::result::Result<RuntimeLibrary, String>> {
    let io = |source| EvalError::Cache { path: cache.into(), source };
    std::fs::create_dir_all(cache).map_err(io)?;
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(cache).map_err(io)?;
    let requirements = partial.path().join("requirements.txt");
    std::fs::write(&requirements, format!("onnxruntime=={PINNED} --hash=sha256:{}\n", wheel.sha256)).map_err(io)?;
    let (unpacked, kept) = (partial.path().join("package"), cache.join(pinned_folder()));

    eprintln!("fetching ONNX Runtime {PINNED} with pip (24 MB, once) into {}", kept.display());
    // The library inside does not depend on Python's version, so one wheel serves all; --target needs no environment.
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"])
        .args(["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp"])
        .args(["--platform", wheel.platform, "--require-hashes"])
        .arg("--target")
        .arg(&unpacked)
        .arg("-r")
        .arg(&requirements)
        .env("PIP_USER", "0"); // `user = true` in a pip configuration forbids --target
    let output = match run(&mut pip) {
        Ok(output) => output,
        Err(reason) => return Ok(Err(reason)),
    };
    if !output.status.success() {
        return Ok(Err(last_line(&output.stderr)));
    }
    let Some(library) = library_in(&unpacked.join("onnxruntime"), Source::Fetched) else {
        return Ok(Err("the wheel holds no library".to_owned()));
    };
    std::fs::File::open(&library.path).and_then(|f| f.sync_all()).map_err(io)?; // loading half a library crashes
    // Another process may have been quicker; then its folder is complete, too. One without a library is damaged.
    if library_in(&kept.join("onnxruntime"), Source::Cache).is_none() {
        if kept.exists() {
            std::fs::remove_dir_all(&kept).map_err(io)?;
        }
        std::fs::rename(&unpacked, &kept).map_err(io)?;
    }
    Ok(library_in(&kept.join("onnxruntime"), Source::Fetched).ok_or_else(|| "it is gone again".to_owned()))
}

/// Whether `python` exists and has pip.
fn check_pip(python: &str) -> std::result::Result<(), String> {
    let output = run(Command::new(python).args(["-m", "pip", "--version"]))?;
    if output.status.success() { Ok(()) } else { Err(last_line(&output.stderr)) }
}

fn run(command: &mut Command) -> std::result::Result<Output, String> {
    command.stdin(Stdio::null()).output().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => "there is no such command".to_owned(),
        _ => e.to_string(),
    })
}

/// The last line that a command wrote, where Python says what went wrong; pip's errors come before its warnings.
fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = || text.lines().map(str::trim).filter(|l| !l.is_empty());
    let line = lines().rfind(|l| l.starts_with("ERROR:")).or_else(|| lines().next_back());
    line.unwrap_or("it failed without a message").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn nowhere() -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Some(dir.path().join("cache"));
        (dir, Places { dylib_path: None, cache, pythons: vec!["no-such-python".into()] })
    }

    #[test]
    fn versions_are_read_from_names_and_metadata() {
        let name = |n: &str| version_in_name(Path::new(n));
        assert_eq!(name("a/libonnxruntime.so.1.31.1").as_deref(), Some("1.31.1"));
        assert_eq!(name("libonnxruntime.1.31.1.dylib").as_deref(), Some("1.31.1"));
        assert_eq!((name("libonnxruntime.so"), name("onnxruntime.dll")), (None, None));
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("onnxruntime_gpu-1.30.0.dist-info")).unwrap();
        assert_eq!(version_in_metadata(&dir.path().join("onnxruntime")).as_deref(), Some("1.30.0"));
        assert_eq!(["1.21.9", "1.22.0", "2.0", "unknown"].map(new_enough), [false, true, true, true]);
        let libraries = ["libonnxruntime.so.1.31.1", "libonnxruntime_providers_shared.so", "libonnxruntime.1.2.dylib"];
        assert_eq!(libraries.map(|n| is_library(Path::new(n))), [true, false, true]);
    }

    #[test]
    fn a_wrong_variable_is_an_error_and_is_never_skipped() {
        let (_dir, mut places) = nowhere();
        places.dylib_path = Some("/no/such/libonnxruntime.so".into());
        let message = places.search_or_fetch().unwrap_err().to_string();
        assert_eq!(
            message,
            "cannot load ONNX Runtime from /no/such/libonnxruntime.so (named by ORT_DYLIB_PATH): there is no such file\
             \n  hint: point ORT_DYLIB_PATH at the library file itself (libonnxruntime.so…), or unset it"
        );
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libonnxruntime.so.1.31.1");
        std::fs::write(&path, "not a library").unwrap();
        let library = from_variable(&path).unwrap();
        assert_eq!(library.version.as_deref(), Some("1.31.1"));
        let message = library.load().unwrap_err().to_string();
        assert!(message.starts_with(&format!("cannot load ONNX Runtime from {}", path.display())), "{message}");
        assert!(message.contains("hint: point ORT_DYLIB_PATH"), "{message}");
    }

    #[test]
    fn the_cache_is_used_before_python() {
        let (_dir, places) = nowhere();
        let capi = places.cache.as_ref().unwrap().join("onnxruntime-1.31.1/onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        std::fs::write(capi.join("libonnxruntime.so.1.31.1"), "").unwrap();
        let found = places.search(&mut Vec::new()).unwrap().unwrap();
        assert_eq!((found.version.as_deref(), found.source), (Some("1.31.1"), Source::Cache));
    }

    #[cfg(not(windows))]
    #[test]
    fn libraries_beside_the_python_package_are_found_in_the_order_of_their_needs() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            "nvidia/cudnn/lib/libcudnn_ops.so.9",
            "nvidia/cudnn/lib/libcudnn.so.9",
            "nvidia/cu13/lib/libcublas.so.13",
            "nvidia/cu13/lib/libcublasLt.so.13",
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/lib/libcudart_static.a",
            "tensorrt_libs/libnvinfer.so.10",
        ];
        for file in files {
            std::fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let found = python_libraries(dir.path());
        let found: Vec<_> = found.iter().map(|p| p.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(found, [files[4], files[3], files[2], files[1], files[0], files[6]]);
        assert!(python_libraries(&dir.path().join("absent")).is_empty());
    }

    #[test]
    fn without_anything_every_place_is_listed() {
        let (_dir, places) = nowhere();
        let message = places.search_or_fetch().unwrap_err().to_string();
        for part in [
            "ORT_DYLIB_PATH: not set",
            "onnxruntime-1.31.1: no library",
            "the Python package onnxruntime of `no-such-python`: there is no such command",
            "fetching with `no-such-python -m pip`: there is no such command",
            "hint: `pip install onnxruntime`",
        ] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
        assert!(!places.cache.unwrap().exists(), "nothing is written for nothing");
    }
}
