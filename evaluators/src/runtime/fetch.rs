//! Pinned wheels of ONNX Runtime and of provider plugins, fetched with pip and checked against their hashes.

use super::Source;
use super::library::{cut_off, library_in};
use crate::{EvalError, Result};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A package of PyPI in one version.
pub(super) struct Package {
    /// Its name there.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// The version that pip fetches.
    pub version: &'static str,
    /// The size of a wheel.
    pub megabytes: u32,
    /// The wheels of that version.
    pub wheels: &'static [Wheel],
    /// The library in the folder that a wheel was unpacked into.
    pub library: fn(&Path) -> Option<PathBuf>,
}

/// A wheel: the machine that it is for, pip's platform tag, and the SHA-256 that PyPI states for it.
pub(super) struct Wheel {
    pub machine: (&'static str, &'static str),
    pub platform: &'static str,
    pub sha256: &'static str,
}

/// What pip fetches when there is no library.
pub(super) const RUNTIME: Package = Package {
    name: "onnxruntime",
    title: "ONNX Runtime",
    version: "1.31.1",
    megabytes: 24,
    wheels: &[
        Wheel {
            machine: ("linux", "x86_64"),
            platform: "manylinux_2_28_x86_64",
            sha256: "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536",
        },
        Wheel {
            machine: ("linux", "aarch64"),
            platform: "manylinux_2_28_aarch64",
            sha256: "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc",
        },
        Wheel {
            machine: ("macos", "aarch64"),
            platform: "macosx_14_0_arm64",
            sha256: "96dd2564b10ea7153ad9c207e7cd8e5917cb3ba521e0e0a62ac03486fdc8d56c",
        },
        Wheel {
            machine: ("windows", "x86_64"),
            platform: "win_amd64",
            sha256: "ae8a9a351efda685cc59a66226cdefaa37a126c1d66872ca23a2de9425326130",
        },
    ],
    library: |folder| library_in(&folder.join("onnxruntime"), Source::Fetched).map(|library| library.path),
};

impl Package {
    /// The wheel for this machine.
    pub fn wheel(&self) -> Option<&Wheel> {
        self.wheels.iter().find(|wheel| wheel.machine == (std::env::consts::OS, std::env::consts::ARCH))
    }

    /// The folder in the cache.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }
}

/// Has pip unpack the wheel into a temporary folder of the cache, which is renamed once it is complete: an interrupted
/// download is never taken for a library. The outer error is a cache that cannot be written, the inner one pip's.
pub(super) fn fetch(
    python: &str,
    package: &Package,
    wheel: &Wheel,
    cache: &Path,
) -> Result<std::result::Result<PathBuf, String>> {
    let io = |source| EvalError::Cache { path: cache.into(), source };
    std::fs::create_dir_all(cache).map_err(io)?;
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(cache).map_err(io)?;
    let requirements = partial.path().join("requirements.txt");
    let requirement = format!("{}=={} --hash=sha256:{}\n", package.name, package.version, wheel.sha256);
    std::fs::write(&requirements, requirement).map_err(io)?;
    let (unpacked, kept) = (partial.path().join("package"), cache.join(package.folder()));

    let _ = writeln!(
        std::io::stderr(), // not worth a message
        "fetching {} {} with pip ({} MB, once) into {}",
        package.title,
        package.version,
        package.megabytes,
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
    let Some(library) = (package.library)(&unpacked) else {
        return Ok(Err("the wheel holds no library".to_owned()));
    };
    if let Some(reason) = cut_off(&library) {
        return Ok(Err(format!("the library of the wheel: {reason}")));
    }
    std::fs::File::open(&library).and_then(|f| data::files::flush(&f)).map_err(io)?; // loading half a library crashes
    // Another process may have been quicker; then its folder is complete, too. One without a library is damaged.
    if (package.library)(&kept).is_none_or(|found| cut_off(&found).is_some()) {
        if kept.exists() {
            std::fs::remove_dir_all(&kept).map_err(io)?;
        }
        std::fs::rename(&unpacked, &kept).map_err(io)?;
    }
    Ok((package.library)(&kept).ok_or_else(|| "it is gone again".to_owned()))
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
