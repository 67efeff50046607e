//! Opening sessions.

use crate::model::contract::Shapes;
use crate::runtime::plugins;
use crate::{EvalError, Provider, Result, environment};
use ort::session::Session;
use std::path::Path;

/// CUDA where it works, otherwise the CPU and, where the library has CUDA, the reason.
pub(super) fn open_best(file: File<'_>, threads: usize) -> Result<(Session, Provider, Option<String>)> {
    let mut fallback = None;
    if Provider::Cuda.offered() {
        match open(file, Provider::Cuda, threads, None) {
            Ok(session) => return Ok((session, Provider::Cuda, None)),
            Err(EvalError::Provider { reason, .. } | EvalError::Load { reason, .. }) => fallback = Some(reason),
            Err(other) => return Err(other),
        }
    }
    Ok((open(file, Provider::Cpu, threads, None)?, Provider::Cpu, fallback))
}

/// A model as it is handed to ONNX Runtime.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    /// Its path, for messages.
    pub(super) path: &'a Path,
    /// A serialized `ModelProto`.
    pub(super) bytes: &'a [u8],
    /// Where its weights are, as far as they are not in the bytes.
    pub(super) folder: &'a Path,
}

/// Opens a model with this many threads, or on the calling thread alone where the system does not have them: ONNX
/// Runtime waits forever for threads that it could not start.
pub(super) fn open(file: File<'_>, provider: Provider, threads: usize, shapes: Option<&Shapes>) -> Result<Session> {
    let threads = if data::threads::are_allowed(threads.saturating_sub(1)) { threads } else { 1 };
    open_with(file, provider, threads, shapes)
}

fn open_with(file: File<'_>, provider: Provider, threads: usize, shapes: Option<&Shapes>) -> Result<Session> {
    let (File { path, bytes, folder }, environment) = (file, environment()?);
    if !provider.offered() {
        return Err(provider.missing("the ONNX Runtime library was built without it".into()));
    }
    let load = |e: ort::Error| EvalError::Load { path: path.into(), reason: e.to_string() };
    let mut builder = Session::builder(&environment)
        .and_then(|b| Ok(b.with_intra_threads(threads)?))
        // Memory plans are kept per input shape, of which a sweep has a thousand.
        .and_then(|b| Ok(b.with_memory_pattern(false)?))
        .and_then(|b| Ok(b.with_config_entry(EXTERNAL_DATA, folder.to_string_lossy())?))
        .map_err(load)?;
    builder = match provider.is_plugin() {
        true => {
            let devices = plugins::devices(&environment, provider)?;
            builder.with_devices(devices, Some(&provider.plugin_options(threads)))
        }
        false => builder.with_execution_providers(provider.execution_providers(path, shapes)),
    }
    .map_err(|e| provider.missing(e.to_string()))?;
    builder.commit_from_memory(bytes).map_err(load)
}

/// Where weights in files of their own are looked for, given that ONNX Runtime does not see the model's file.
const EXTERNAL_DATA: &str = "session.model_external_initializers_file_folder_path";
