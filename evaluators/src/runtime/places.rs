//! The places where a library may be, in order, and its version.

use super::fetch::{PINNED, Wheel, check_pip, fetch, last_line, pinned_folder, run};
use super::library::{cut_off, library_in, version_in_name};
use super::{RuntimeLibrary, Source};
use crate::{EvalError, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The package of the Python process that this runs in, where that was told; inside, `None` for one that has none.
static PACKAGE: Mutex<Option<Option<PathBuf>>> = Mutex::new(None);

/// The oldest version whose interface `ort` is built for here.
const OLDEST: (u32, u32) = (1, 22);

/// Prints the folder of the Python package without importing it (importing takes a second and can fail).
const FIND_PACKAGE: &str = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                            print(*(s.submodule_search_locations or []) if s else '', sep='\\n')";

/// Where to look; a value of its own, so that tests can look elsewhere.
pub(super) struct Places {
    dylib_path: Option<OsString>,
    /// See [`PACKAGE`].
    package: Option<Option<PathBuf>>,
    /// The Python of the environment that this program is installed in.
    own_python: Option<String>,
    cache: Option<PathBuf>,
    pythons: Vec<String>,
}

impl Places {
    pub(super) fn of_this_process() -> Self {
        Self {
            dylib_path: std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()),
            package: PACKAGE.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            own_python: std::env::current_exe().ok().and_then(|program| python_beside(&program)),
            cache: cache_folder(),
            pythons: vec!["python3".into(), "python".into()],
        }
    }

    /// Looks everywhere in order; writes what was found in each place to `tried`.
    pub(super) fn search(&self, tried: &mut Vec<String>) -> Result<Option<RuntimeLibrary>> {
        match &self.dylib_path {
            Some(path) => return from_variable(Path::new(path)).map(Some),
            None => tried.push("ORT_DYLIB_PATH: not set".to_owned()),
        }
        if let Some(package) = &self.package {
            return match installed(package.as_deref(), Source::PythonPackage) {
                Ok(found) => Ok(Some(found)),
                Err(reason) => {
                    tried.push(format!("the Python package onnxruntime of this Python: {reason}"));
                    Ok(None)
                }
            };
        }
        if let Some(python) = &self.own_python {
            match package_library(python, Source::OwnEnvironment) {
                Ok(found) => return Ok(Some(found)),
                Err(reason) => tried.push(format!("the Python package onnxruntime beside this program: {reason}")),
            }
        }
        match &self.cache {
            Some(cache) => match library_in(&cache.join(pinned_folder()).join("onnxruntime"), Source::Cache) {
                Some(found) => match cut_off(&found.path) {
                    None => return Ok(Some(found)),
                    Some(reason) => tried.push(format!("{}: {reason}", found.path.display())),
                },
                None => tried.push(format!("{}: no library", cache.join(pinned_folder()).display())),
            },
            None => tried.push("the cache: neither XDG_CACHE_HOME nor a home folder is set".to_owned()),
        }
        for python in &self.pythons {
            match package_library(python, Source::PythonPackage) {
                Ok(found) => return Ok(Some(found)),
                Err(reason) => tried.push(format!("the Python package onnxruntime of `{python}`: {reason}")),
            }
        }
        Ok(None)
    }

    pub(super) fn search_or_fetch(&self) -> Result<RuntimeLibrary> {
        let mut tried = Vec::new();
        if let Some(found) = self.search(&mut tried)? {
            return Ok(found);
        }
        if self.package.is_some() {
            return Err(EvalError::RuntimeNotFound { tried }); // Python's packages are its user's affair
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

/// Tells this process which Python package its library is in: for libraries that run inside Python, which know their
/// packages without asking. From now on nothing else is searched, but for `ORT_DYLIB_PATH`, which comes first, and
/// nothing is fetched. `folder` is that of the package `onnxruntime`, `None` where it is not installed. A library that is
/// loaded already stays.
pub fn use_python_package(folder: Option<&Path>) {
    *PACKAGE.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.map(Path::to_owned));
}

/// The Python in the folder of a program, or above it: where a wheel with the program was installed.
fn python_beside(program: &Path) -> Option<String> {
    let folder = program.parent()?;
    let places = match cfg!(windows) {
        true => [folder.join("python.exe"), folder.join("../python.exe")], // of an environment, and of an installation
        false => [folder.join("python3"), folder.join("python")],
    };
    places.into_iter().find(|python| python.is_file())?.into_os_string().into_string().ok()
}

/// `$XDG_CACHE_HOME` (where absolute, as its specification wants), Windows' local application data, or `~/.cache`.
pub fn cache_folder() -> Option<PathBuf> {
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
        Some(path) => match cut_off(&path) {
            None => Ok(RuntimeLibrary { version: version_in_name(&path), path, source }),
            Some(reason) => Err(EvalError::RuntimeLoad {
                path,
                origin: source.to_string(),
                reason,
                hint: "copy or install it again, or unset ORT_DYLIB_PATH to have one found or fetched".into(),
            }),
        },
        None => Err(EvalError::RuntimeLoad {
            path: path.into(),
            origin: source.to_string(),
            reason: "there is no such file".into(),
            hint: "point ORT_DYLIB_PATH at the library file itself (libonnxruntime.so…), or unset it".into(),
        }),
    }
}

/// Whether a version is new enough; one that cannot be read is left to the loader, which checks for itself.
fn new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
        _ => true,
    }
}

/// The library of the package that `python` would import, or the reason why there is none.
fn package_library(python: &str, source: Source) -> std::result::Result<RuntimeLibrary, String> {
    let output = run(Command::new(python).args(["-c", FIND_PACKAGE]))?;
    if !output.status.success() {
        return Err(last_line(&output.stderr));
    }
    let folders = String::from_utf8_lossy(&output.stdout).into_owned();
    // A namespace package, as of a folder that has this name by chance, has several.
    let mut folders = folders.lines().filter(|line| !line.is_empty()).map(Path::new);
    installed(folders.find(|folder| library_in(folder, source).is_some()), source)
}

/// The library of an installed package, or the reason why it cannot be used.
fn installed(package: Option<&Path>, source: Source) -> std::result::Result<RuntimeLibrary, String> {
    let found = package.and_then(|folder| library_in(folder, source)).ok_or("not installed")?;
    if let Some(reason) = cut_off(&found.path) {
        return Err(format!("{}: {reason}", found.path.display()));
    }
    match &found.version {
        Some(version) if !new_enough(version) => Err(format!("version {version} is older than 1.22")),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::library::{is_library, version_in_metadata};
    use super::*;

    fn nowhere() -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Some(dir.path().join("cache"));
        let pythons = vec!["no-such-python".into()];
        (dir, Places { dylib_path: None, package: None, own_python: None, cache, pythons })
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
        std::fs::write(capi.join("libonnxruntime.so.1.31.1"), "a library").unwrap();
        let found = places.search(&mut Vec::new()).unwrap().unwrap();
        assert_eq!((found.version.as_deref(), found.source), (Some("1.31.1"), Source::Cache));
    }

    /// A package with something that passes for a library.
    fn package(site_packages: &Path, version: &str) -> PathBuf {
        let package = site_packages.join("onnxruntime");
        std::fs::create_dir_all(package.join("capi")).unwrap();
        std::fs::write(package.join("capi").join(format!("libonnxruntime.so.{version}")), "a library").unwrap();
        package
    }

    #[test]
    fn inside_python_only_its_own_package_counts_and_nothing_is_fetched() {
        let (dir, mut places) = nowhere();
        package(&places.cache.as_ref().unwrap().join("onnxruntime-1.31.1"), "1.31.1"); // not to be taken
        places.package = Some(Some(package(dir.path(), "1.30.0")));
        let found = places.search_or_fetch().unwrap();
        assert_eq!((found.version.as_deref(), found.source), (Some("1.30.0"), Source::PythonPackage));
        for (told, reason) in
            [(None, "not installed"), (Some(package(&dir.path().join("old"), "1.20.1")), "older than")]
        {
            places.package = Some(told);
            let message = places.search_or_fetch().unwrap_err().to_string();
            assert!(message.contains("onnxruntime of this Python: ") && message.contains(reason), "{message}");
            assert!(!message.contains("fetching") && !message.contains("cache"), "{message}");
        }
    }

    /// A stand-in for the Python of an environment, which finds its package.
    #[cfg(unix)]
    #[test]
    fn a_program_in_a_python_environment_prefers_the_library_of_that() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, mut places) = nowhere();
        let bin = dir.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        assert_eq!(python_beside(&bin.join("pipeline")), None);
        let python = bin.join("python3");
        std::fs::write(&python, format!("#!/bin/sh\necho {}\n", package(dir.path(), "1.30.0").display())).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        places.own_python = python_beside(&bin.join("pipeline"));
        assert_eq!(places.own_python.as_deref(), python.to_str());
        package(&places.cache.as_ref().unwrap().join("onnxruntime-1.31.1"), "1.31.1");
        let found = places.search(&mut Vec::new()).unwrap().unwrap();
        assert_eq!((found.version.as_deref(), found.source), (Some("1.30.0"), Source::OwnEnvironment));
        places.own_python = Some("no-such-python".into()); // one that does not start is passed over
        assert_eq!(places.search(&mut Vec::new()).unwrap().unwrap().source, Source::Cache);
    }

    /// A file that begins as a library of 4096 bytes does, with a segment and a table of sections at the end.
    fn elf() -> Vec<u8> {
        let mut bytes = vec![0u8; 4096];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut put = |at: usize, value: u64, width: usize| {
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        };
        let segment = [(32, 64, 8), (54, 56, 2), (56, 1, 2), (64 + 8, 1000, 8), (64 + 32, 2000, 8)]; // bytes 1000 to 3000
        let sections = [(40, 3968, 8), (58, 64, 2), (60, 2, 2)]; // described at the end
        for (at, value, width) in segment.into_iter().chain(sections) {
            put(at, value, width);
        }
        bytes
    }

    #[test]
    fn a_library_that_is_cut_off_anywhere_is_never_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libonnxruntime.so.1.31.1");
        let judged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            from_variable(&path).map_err(|e| e.to_string())
        };
        assert!(judged(&elf()).is_ok());
        for size in [0, 3, 40, 64, 100, 1500, 3000, 4095] {
            let message = judged(&elf()[..size]).unwrap_err();
            assert!(message.contains(&format!("the file is cut off, it has {size} of ")), "{message}");
        }
        let mut bare = elf(); // without sections, as some tools leave libraries
        bare[40..48].fill(0);
        bare[60..62].fill(0);
        assert!(judged(&bare[..3000]).is_ok());
        assert!(judged(&bare[..2999]).is_err());
        std::fs::write(dir.path().join("libonnxruntime_providers_cuda.so"), &elf()[..2000]).unwrap();
        let message = judged(&elf()).unwrap_err();
        assert!(message.contains("its libonnxruntime_providers_cuda.so: the file is cut off"), "{message}");
    }

    /// With a `pip` that puts a file there.
    #[cfg(unix)]
    #[test]
    fn a_library_that_is_cut_off_in_the_cache_is_fetched_again() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, mut places) = nowhere();
        let (good, python) = (dir.path().join("good"), dir.path().join("python"));
        std::fs::write(&good, elf()).unwrap();
        let script = format!(
            "#!/bin/sh\nwhile [ $# -gt 0 ]; do case \"$1\" in --target) to=$2/onnxruntime/capi;; esac; shift; done\n\
             [ -z \"$to\" ] || {{ mkdir -p \"$to\" && cp {} \"$to/libonnxruntime.so.1.31.1\"; }}\n",
            good.display()
        );
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        places.pythons = vec![python.display().to_string()];
        let capi = places.cache.as_ref().unwrap().join("onnxruntime-1.31.1/onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        let library = capi.join("libonnxruntime.so.1.31.1");
        std::fs::write(&library, &elf()[..2048]).unwrap();
        assert_eq!(places.search(&mut Vec::new()).unwrap(), None, "it is not offered");
        let mut tried = Vec::new();
        places.search(&mut tried).unwrap();
        assert!(tried[1].contains("the file is cut off, it has 2048 of 4096 bytes"), "{tried:?}");
        let found = places.search_or_fetch().unwrap();
        assert_eq!((found.path, found.source), (library.clone(), Source::Fetched));
        assert_eq!(std::fs::read(library).unwrap(), elf());
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
