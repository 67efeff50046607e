//! One pinned wheel of ONNX Runtime, fetched with pip and checked against its hash.

use super::library::{cut_off, library_in};
use super::{RuntimeLibrary, Source};
use crate::{EvalError, Result};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The version that pip fetches when there is no library.
pub(super) const PINNED: &str = "1.31.1";

/// A wheel of the pinned version: pip's platform tag, and the SHA-256 that PyPI states for it.
pub(super) struct Wheel {
    platform: &'static str,
    sha256: &'static str,
}

impl Wheel {
    pub(super) fn of_this_machine() -> Option<Self> {
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
pub(super) fn fetch(python: &str, wheel: &Wheel, cache: &Path) -> Result<std::result::Result<RuntimeLibrary, String>> {
    let io = |source| EvalError::Cache { path: cache.into(), source };
    std::fs::create_dir_all(cache).map_err(io)?;
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(cache).map_err(io)?;
    let requirements = partial.path().join("requirements.txt");
    std::fs::write(&requirements, format!("onnxruntime=={PINNED} --hash=sha256:{}\n", wheel.sha256)).map_err(io)?;
    let (unpacked, kept) = (partial.path().join("package"), cache.join(pinned_folder()));

    let _ = writeln!(
        std::io::stderr(), // not worth a message
        "fetching ONNX Runtime {PINNED} with pip (24 MB, once) into {}",
        kept.display()
    );
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
    if let Some(reason) = cut_off(&library.path) {
        return Ok(Err(format!("the library of the wheel: {reason}")));
    }
    std::fs::File::open(&library.path).and_then(|f| data::files::flush(&f)).map_err(io)?; // loading half a library crashes
    // Another process may have been quicker; then its folder is complete, too. One without a library is damaged.
    if library_in(&kept.join("onnxruntime"), Source::Cache).is_none_or(|found| cut_off(&found.path).is_some()) {
        if kept.exists() {
            std::fs::remove_dir_all(&kept).map_err(io)?;
        }
        std::fs::rename(&unpacked, &kept).map_err(io)?;
    }
    Ok(library_in(&kept.join("onnxruntime"), Source::Fetched).ok_or_else(|| "it is gone again".to_owned()))
}

/// Whether `python` exists and has pip.
pub(super) fn check_pip(python: &str) -> std::result::Result<(), String> {
    let output = run(Command::new(python).args(["-m", "pip", "--version"]))?;
    if output.status.success() { Ok(()) } else { Err(last_line(&output.stderr)) }
}

pub(super) fn run(command: &mut Command) -> std::result::Result<Output, String> {
    command.stdin(Stdio::null()).output().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => "there is no such command".to_owned(),
        _ => e.to_string(),
    })
}

/// The last line that a command wrote, where Python says what went wrong; pip's errors come before its warnings.
pub(super) fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = || text.lines().map(str::trim).filter(|l| !l.is_empty());
    let line = lines().rfind(|l| l.starts_with("ERROR:")).or_else(|| lines().next_back());
    line.unwrap_or("it failed without a message").to_owned()
}

pub(super) fn pinned_folder() -> String {
    format!("onnxruntime-{PINNED}")
}
