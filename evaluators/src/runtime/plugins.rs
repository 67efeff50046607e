//! Provider plugins: libraries of their own, which ONNX Runtime from 1.24 on loads at run time.

use super::environment;
use super::fetch::{Package, Wheel};
use super::library::{cut_off, cut_off_alone};
use super::places::Places;
use crate::{EvalError, Provider, Result};
use ort::device::Device;
use ort::environment::Environment;
use ort::memory::DeviceType;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A plugin that is known by name.
pub(crate) struct Plugin {
    /// The name of its execution provider.
    pub engine: &'static str,
    /// The Python package that has the library.
    module: &'static str,
    package: Package,
    /// The kind of device that it is used on.
    device: DeviceType,
    /// What the machine must have.
    needs: &'static str,
}

/// Intel's OpenVINO.
pub(crate) const OPENVINO: Plugin = Plugin {
    engine: "OpenVINOExecutionProvider",
    module: "onnxruntime_ep_openvino",
    package: Package {
        name: "onnxruntime-ep-openvino",
        title: "OpenVINO's provider",
        version: "1.8.1",
        megabytes: 53,
        wheels: &[
            Wheel {
                machine: ("linux", "x86_64"),
                platform: "manylinux_2_28_x86_64",
                sha256: "3832643158c8c187fcab6db661cde2a8c06a2b3559d95d0f2411ac0e51c5e924",
            },
            Wheel {
                machine: ("windows", "x86_64"),
                platform: "win_amd64",
                sha256: "1acd878be173b02bb8b953460f2f59b121e5f6e47ebc6aad490c0590cf6718fb",
            },
        ],
        library: |folder| library_of(folder, "onnxruntime_ep_openvino", "onnxruntime_providers_openvino_plugin"),
    },
    device: DeviceType::CPU,
    needs: "a processor of Intel",
};

/// NVIDIA's TensorRT for RTX.
pub(crate) const TENSORRT_RTX: Plugin = Plugin {
    engine: "NvTensorRTRTXExecutionProvider",
    module: "onnxruntime_ep_nv_tensorrt_rtx",
    package: Package {
        name: "onnxruntime-ep-nv-tensorrt-rtx-cu13",
        title: "TensorRT for RTX",
        version: "0.5.0",
        megabytes: 146,
        wheels: &[
            Wheel {
                machine: ("linux", "x86_64"),
                platform: "manylinux_2_28_x86_64",
                sha256: "32f575c633d171b4edf4b53d3bb22b72a6c9c0a850d2982ce9a788a5d40d3298",
            },
            Wheel {
                machine: ("linux", "aarch64"),
                platform: "manylinux_2_35_aarch64",
                sha256: "1f0bb2b89bb3dfd43096fccb8ec1f581c266c5852c4e6ba672b7bf790c8c96c2",
            },
            Wheel {
                machine: ("windows", "x86_64"),
                platform: "win_amd64",
                sha256: "609b19f7236c8522ef005a9f763003a78f492e5d871afad39fe1b247760eb3c7",
            },
        ],
        library: |folder| library_of(folder, "onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime_providers_nv_tensorrt_rtx"),
    },
    device: DeviceType::GPU,
    needs: "an NVIDIA GPU of compute capability 8.6, 8.9, 12.0 or later, and its driver",
};

/// The library called `stem` in a package of `folder`.
fn library_of(folder: &Path, module: &str, stem: &str) -> Option<PathBuf> {
    let file = match std::env::consts::OS {
        "windows" => format!("{stem}.dll"),
        "macos" => format!("lib{stem}.dylib"),
        _ => format!("lib{stem}.so"),
    };
    Some(folder.join(module).join(file)).filter(|path| path.is_file())
}

/// The plugins that are known by name, each with its library where one is there; nothing is fetched.
///
/// # Errors
/// None that a machine without plugins causes.
pub fn provider_plugins() -> Vec<(Provider, Option<PathBuf>)> {
    let places = Places::of_this_process();
    let found = |plugin: &Plugin| places.find_plugin(&plugin.package, plugin.module, &mut vec![]);
    [(Provider::OpenVino, &OPENVINO), (Provider::TensorRtRtx, &TENSORRT_RTX)]
        .map(|(p, plugin)| (p, found(plugin)))
        .into()
}

/// The files of the plugins that this process has loaded.
static LOADED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The devices that a plugin is used on; the plugin is found or fetched, and loaded, the first time.
///
/// # Errors
/// There is no such plugin, ONNX Runtime refuses it, or it finds no device here.
pub(crate) fn devices<'e>(environment: &'e Environment, provider: Provider) -> Result<Vec<Device<'e>>> {
    if let Some(plugin) = provider.plugin()
        && of(environment, plugin.engine).next().is_none()
    {
        let hint =
            || format!("`pip install {}=={}`, or choose --provider cpu", plugin.package.name, plugin.package.version);
        let missing = |reason| EvalError::Provider { provider: provider.name(), reason, hint: hint() };
        let places = Places::of_this_process();
        let library = places.plugin(&plugin.package, plugin.module)?.map_err(|tried| {
            missing(format!("its library was not found; these places were tried:\n  - {}", tried.join("\n  - ")))
        })?;
        load(environment, provider, &library)?;
    }
    let kind = provider.plugin().map(|plugin| plugin.device);
    let is_wanted = |device: &Device<'_>| kind.is_none_or(|kind| device.hardware_device().ty() == kind);
    let found: Vec<Device<'e>> = of(environment, provider.engine()).filter(is_wanted).take(1).collect();
    if found.is_empty() {
        let needs = provider.plugin().map_or("its device", |plugin| plugin.needs);
        let reason = "it finds no device on this machine".to_owned();
        let hint = format!("it needs {needs}; or choose --provider cpu");
        return Err(EvalError::Provider { provider: provider.name(), reason, hint });
    }
    Ok(found)
}

fn of<'e>(environment: &'e Environment, engine: &str) -> impl Iterator<Item = Device<'e>> {
    environment.devices().filter(move |device| device.ep().is_ok_and(|name| name == engine))
}

/// Loads the provider plugin in the file at `path` into this process, and returns the provider that it offers, to be
/// given to [`crate::LoadOptions`].
///
/// # Errors
/// There is no such file or ONNX Runtime refuses it, or it finds no device on this machine.
pub fn load_provider_library(path: &Path) -> Result<Provider> {
    let environment = environment()?;
    let shown: &'static str = Box::leak(path.display().to_string().into_boxed_str()); // a process loads a few
    let missing =
        |reason: &str, hint: &str| EvalError::Provider { provider: shown, reason: reason.into(), hint: hint.into() };
    let hint = "--provider-library takes the library of a provider plugin, for example `libonnxruntime_providers_webgpu.so` of \
                the Python package onnxruntime-ep-webgpu";
    let path = std::path::absolute(path).ok().filter(|path| path.is_file());
    let path = path.ok_or_else(|| missing("there is no such file", hint))?;
    let before: BTreeSet<String> = engines(&environment);
    load(&environment, Provider::Library(shown), &path)?;
    let new = engines(&environment).into_iter().find(|engine| !before.contains(engine));
    // One that was loaded before has no new device.
    let engine = match (new, engines_of(&path)) {
        (Some(engine), _) => engine,
        (None, Some(engine)) if before.contains(engine) => engine.to_owned(),
        (None, _) => return Err(missing("it finds no device on this machine", "choose --provider cpu")),
    };
    let known = [Provider::OpenVino, Provider::TensorRtRtx].into_iter().find(|known| known.engine() == engine);
    Ok(known.unwrap_or_else(|| Provider::Library(Box::leak(engine.into_boxed_str()))))
}

/// The providers that have devices here.
fn engines(environment: &Environment) -> BTreeSet<String> {
    environment.devices().filter_map(|device| Some(device.ep().ok()?.to_owned())).collect()
}

/// The provider in a file of a plugin that is known by name.
fn engines_of(path: &Path) -> Option<&'static str> {
    let folder = path.ancestors().nth(2)?;
    [&OPENVINO, &TENSORRT_RTX]
        .into_iter()
        .find(|plugin| (plugin.package.library)(folder).as_deref() == Some(path))
        .map(|plugin| plugin.engine)
}

/// Loads a library once.
fn load(environment: &Environment, provider: Provider, library: &Path) -> Result<()> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if loaded.contains(library) {
        return Ok(());
    }
    let missing = |reason: String| {
        let needs = provider.plugin().map_or_else(String::new, |plugin| format!("it needs {}; ", plugin.needs));
        let hint = format!(
            "{needs}plugins need ONNX Runtime 1.24 or later (`pipeline doctor` shows which is used); or choose --provider cpu"
        );
        EvalError::Provider { provider: provider.name(), reason, hint }
    };
    if let Some(reason) = cut_off(library) {
        return Err(missing(format!("{}: {reason}", library.display())));
    }
    preload_neighbours(library);
    let name = library.display().to_string();
    environment.register_ep_library(name, library).map_err(|error| missing(error.to_string()))?;
    loaded.insert(library.to_owned());
    Ok(())
}

/// Libraries that lie beside a plugin and that it may need: wheels cannot hold the links by whose names they are looked for,
/// but a library that is in the process already is found. One that cannot be loaded is reported by the plugin.
#[cfg(not(windows))]
fn preload_neighbours(plugin: &Path) {
    let folder = plugin.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let mut files: Vec<PathBuf> = folder.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let versioned = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so."));
    let needed = |path: &&PathBuf| !path.to_string_lossy().contains("onnxruntime_providers_");
    for path in files.iter().filter(versioned).filter(needed).filter(|path| cut_off_alone(path).is_none()) {
        let _ = ort::util::preload_dylib(path); // see above
    }
}

#[cfg(windows)]
fn preload_neighbours(_: &Path) {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_plugin_has_wheels_with_hashes_and_a_provider() {
        for (provider, plugin) in [(Provider::OpenVino, &OPENVINO), (Provider::TensorRtRtx, &TENSORRT_RTX)] {
            assert_eq!((provider.engine(), provider.is_plugin()), (plugin.engine, true));
            assert_eq!(provider.name().parse::<Provider>().unwrap(), provider);
            for wheel in plugin.package.wheels {
                assert!(wheel.sha256.len() == 64 && wheel.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_lies_in_the_module_of_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so");
        assert_eq!((OPENVINO.package.library)(dir.path()), None);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        assert_eq!((OPENVINO.package.library)(dir.path()), Some(file.clone()));
        assert_eq!(engines_of(&file), Some(OPENVINO.engine));
    }

    #[test]
    fn a_plugin_that_is_no_file_is_named() {
        let message = load_provider_library(Path::new("no/such/plugin.so")).unwrap_err().to_string();
        let start =
            "cannot use the provider `no/such/plugin.so`: there is no such file\n  hint: --provider-library takes";
        assert!(message.starts_with(start), "{message}");
    }
}
