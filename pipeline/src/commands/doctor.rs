//! `pipeline doctor`: what this machine offers.

use super::Context;
use crate::cli::table;
use crate::cuda::{self, Driver, Gpu};
use anyhow::Result;
use evaluators::RuntimeLibrary;
use serde_json::{Value, json};
use std::path::PathBuf;

pub fn run(context: &Context) -> Result<()> {
    let library = RuntimeLibrary::find();
    let providers = match &library {
        Ok(Some(_)) => evaluators::available_providers().map_err(|e| e.to_string()),
        Ok(None) => Err("ONNX Runtime is not there yet".to_owned()),
        Err(e) => Err(e.to_string()),
    };
    let plugins = evaluators::provider_plugins();
    let gpu = cuda::driver();
    let compiler = cuda::compiler();
    let trials: Vec<Result<(), String>> = match (&gpu, &compiler) {
        (Ok(driver), Ok(_)) => (0..driver.devices.len()).map(try_gpu).collect(),
        _ => vec![],
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let features = cpu_features();
    let training = match (cfg!(feature = "train"), cfg!(feature = "cuda")) {
        (true, true) => "burn 0.21 on CPU (flex) and CUDA",
        (true, false) => "burn 0.21 on CPU (flex)",
        (false, _) => "not built in (evaluation only)",
    };
    let version = env!("CARGO_PKG_VERSION");

    let as_json = || {
        let runtime = match &library {
            Ok(Some(l)) => json!({ "path": l.path, "version": l.version, "source": l.source.to_string() }),
            Ok(None) => json!(null),
            Err(e) => json!({ "error": e.to_string() }),
        };
        json!({
            "version": version,
            "training": training,
            "onnx_runtime": runtime,
            "providers": providers.as_ref().ok(),
            "provider_plugins": plugins.iter().map(|(name, library)| (name.to_string(), json!(library))).collect::<serde_json::Map<_, _>>(),
            "cuda": cuda_document(&gpu, &compiler, &trials),
            "cpu": { "arch": std::env::consts::ARCH, "cores": cores, "features": features },
        })
    };
    let as_text = || {
        let runtime = match &library {
            Ok(Some(l)) => {
                let version = l.version.as_deref().unwrap_or("of unknown version");
                format!("{version}, {}\n{}", l.source, l.path.display())
            }
            Ok(None) => "none yet; the first export or eval fetches it with pip".into(),
            Err(e) => e.to_string(),
        };
        let providers = match &providers {
            Ok(list) => list.join(", "),
            Err(reason) => format!("unknown: {reason}"),
        };
        let lines = [
            ("pipeline", format!("{version} ({} {})", std::env::consts::OS, std::env::consts::ARCH)),
            ("training", training.to_owned()),
            ("ONNX Runtime", runtime),
            ("providers", providers),
            ("plugins", plugins.iter().map(plugin_text).collect::<Vec<_>>().join("\n")),
            ("CUDA", cuda_text(&gpu, &compiler, &trials)),
            ("CPU", format!("{cores} core(s); {}", features.join(" "))),
        ];
        lines.map(|(label, value)| table::labelled(label, &value, 14)).join("\n")
    };
    context.print(as_json, as_text)
}

/// A provider that is a library of its own, and where that is.
fn plugin_text((provider, library): &(evaluators::Provider, Option<PathBuf>)) -> String {
    match library {
        Some(library) => format!("{provider} in {}", library.parent().unwrap_or(library).display()),
        None => format!("{provider}: not there; pip fetches it when it is asked for"),
    }
}

/// `cuda` in the document.
fn cuda_document(
    gpu: &Result<Driver, String>,
    compiler: &Result<PathBuf, String>,
    trials: &[Result<(), String>],
) -> Value {
    match gpu {
        Ok(d) => json!({
            "cuda_version": d.cuda_version,
            "devices": d.devices.iter().map(|gpu| &gpu.name).collect::<Vec<_>>(),
            "compute_capabilities": d.devices.iter().map(capability).collect::<Vec<_>>(),
            "headers": compiler.as_ref().ok(),
            "compiler_error": compiler.as_ref().err(),
            "device_errors": trials.iter().map(|trial| trial.as_ref().err()).collect::<Vec<_>>(),
        }),
        Err(reason) => json!({ "error": reason }),
    }
}

/// The lines about CUDA.
fn cuda_text(
    gpu: &Result<Driver, String>,
    compiler: &Result<PathBuf, String>,
    trials: &[Result<(), String>],
) -> String {
    match gpu {
        Ok(d) => {
            let name = |gpu: &Gpu| format!("{} (compute capability {})", gpu.name, capability(gpu));
            let devices: Vec<String> = d.devices.iter().map(name).collect();
            let compiler = match compiler {
                Ok(headers) => format!("NVRTC, headers in {}", headers.display()),
                Err(reason) => format!("no training: {reason}"),
            };
            let trial = |(index, trial): (usize, &Result<(), String>)| match trial {
                Ok(()) => format!("\ncuda:{index} compiles and runs kernels"),
                Err(reason) => format!("\nno training: {reason}"),
            };
            let trials: String = trials.iter().enumerate().map(trial).collect();
            format!("driver for CUDA {}; {}\n{compiler}{trials}", d.cuda_version, devices.join(", "))
        }
        Err(reason) => format!("none: {reason}"),
    }
}

/// Has the device compile and run a kernel.
#[cfg(feature = "cuda")]
fn try_gpu(index: usize) -> Result<(), String> {
    crate::train::device::on_cuda(index, |_| Ok(())).map_err(|error| crate::describe(&error))
}

#[cfg(not(feature = "cuda"))]
fn try_gpu(_: usize) -> Result<(), String> {
    Err("this program was built without CUDA".into())
}

/// `9.0`
fn capability(gpu: &Gpu) -> String {
    let (major, minor) = gpu.compute_capability;
    format!("{major}.{minor}")
}

/// The features that matrix products and ONNX Runtime make use of.
#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let found = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ];
    found.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    if cfg!(target_arch = "aarch64") { vec!["neon"] } else { vec![] }
}
