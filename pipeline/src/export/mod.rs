//! Exports of a run: `model.onnx`, and `model.stateful.onnx` of recurrent models, after comparing them with burn in ONNX Runtime.
//! See [`export_run`].

mod check;
mod metadata;

use self::check::{Check, Worst};
use crate::Workspace;
use crate::config::Config;
use crate::run::{MODEL_FILE, PARTIAL_EXPORT, RunDir};
use crate::train::checkpoint::{Checkpoint, weights_checksum};
use anyhow::{Context as _, Result};
use data::Task;
use exporters::{
    ExportInfo, ExportOptions, OnnxFile, OnnxFiles, Precision, STATEFUL_FILE, STATEFUL_WEIGHTS_FILE, WEIGHTS_FILE,
    export,
};
use std::fs;
use std::path::{Path, PathBuf};

/// The result of an export.
pub struct Exported {
    /// `model.onnx`.
    pub path: PathBuf,
    /// `model.stateful.onnx`, of a model with recurrent states.
    pub stateful: Option<PathBuf>,
    /// The result of the check, unless it was not asked for.
    pub check: Option<Worst>,
    /// The lengths that were compared, in tokens.
    pub lengths: Vec<usize>,
}

/// The checkpoint of a run to export, and how.
#[derive(Debug, Clone, Default)]
pub struct ExportPlan {
    /// How the file is written.
    pub options: ExportOptions,
    /// The checkpoint: `last`, `best`, `epoch-N`, or the name of its folder.
    pub checkpoint: Option<String>,
    /// Writes into the checkpoint's folder, not into the run's.
    pub beside_weights: bool,
    /// Leaves out the comparison with burn.
    pub unchecked: bool,
}

/// Exports every whole checkpoint of the run into the checkpoint's folder; models that were made of its weights are kept,
/// and not among those returned.
pub fn export_checkpoints(workspace: &Workspace, run: &RunDir, plan: &ExportPlan) -> Result<Vec<Exported>> {
    let _lock = run.write_models(|note| workspace.progress.note(note))?;
    let mut exported = Vec::new();
    for (_, path) in run.checkpoints() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_made_of(&path.join(MODEL_FILE), &path) {
            continue;
        }
        if let Err(error) = Checkpoint::open(&path) {
            workspace.progress.note(format!("passing over checkpoint {name}: {error:#}"));
            continue;
        }
        let named = ExportPlan { checkpoint: Some(name.clone()), beside_weights: true, ..plan.clone() };
        match export_locked(workspace, run, &named) {
            Ok(one) => exported.push(one),
            // The run may be training, and keep some of its checkpoints only.
            Err(_) if !path.exists() => {
                workspace.progress.note(format!("checkpoint {name} is gone: training has replaced it"))
            }
            Err(error) => return Err(error),
        }
    }
    Ok(exported)
}

/// Whether the run's model was made of the checkpoint that it would be made of.
pub(crate) fn is_current(run: &RunDir, plan: &ExportPlan) -> Result<bool> {
    let checkpoint = run.choose_checkpoint(plan.checkpoint.as_deref(), |_| ())?;
    Ok(is_made_of(&run.onnx(), checkpoint.path()))
}

/// Whether a model was made of the weights that a checkpoint has now, as it says itself. Files of earlier versions do not
/// say, and have to be newer than the weights.
///
/// A model whose file with states is missing is not complete.
pub(crate) fn is_made_of(model: &Path, checkpoint: &Path) -> bool {
    let is_stateful = metadata::read(model, "stateful_fingerprint").is_ok_and(|found| found.is_some());
    if is_stateful && !model.with_file_name(STATEFUL_FILE).is_file() {
        return false;
    }
    match metadata::read(model, "checkpoint_checksum") {
        Ok(Some(weights)) => weights_checksum(checkpoint).is_ok_and(|found| found == weights),
        Ok(None) => {
            let modified = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
            let written = modified(model).zip(modified(&checkpoint.join("model.safetensors")));
            written.is_some_and(|(model, weights)| model > weights)
        }
        Err(_) => false,
    }
}

/// Exports a checkpoint of the run. The file is checked under a temporary name and appears only if it agrees. Exports of a
/// run are made one after the other, and wait for those who evaluate it.
pub fn export_run(workspace: &Workspace, run: &RunDir, plan: &ExportPlan) -> Result<Exported> {
    let _lock = run.write_models(|note| workspace.progress.note(note))?;
    export_locked(workspace, run, plan)
}

/// [`export_run`] for whoever holds the lock.
pub(crate) fn export_locked(workspace: &Workspace, run: &RunDir, plan: &ExportPlan) -> Result<Exported> {
    let doing = || format!("cannot export run {}", run.handle());
    let config = Config::load(&run.config(), &[])?;
    let task = Task::by_name(&config.task.name)?;
    let (checkpoint, weights, checkpoint_checksum) =
        run.read_checkpoint(plan.checkpoint.as_deref(), |note| workspace.progress.note(note))?;
    let path = if plan.beside_weights { checkpoint.path().join(MODEL_FILE) } else { run.onnx() };
    data::files::probe(&path).with_context(doing)?;
    let info = ExportInfo {
        handle: run.handle().to_owned(),
        task: task.name.clone(),
        vocab: task.vocabulary.tokens().to_vec(),
        units: task.vocabulary.unit_tokens(),
        train_max_length: task.family.train_max_length() as usize,
        max_position_embeddings: config.model.max_position_embeddings().unwrap_or(task.max_position_embeddings),
        augmentation: config.model.augmentation().name().into(),
        seed: config.train.seed,
        checkpoint: checkpoint.name(),
        checkpoint_checksum,
    };
    let file = export(&config.model, &weights, &info, &plan.options).with_context(doing)?;
    let stateful = file.stateful.as_ref().map(|_| path.with_file_name(STATEFUL_FILE));
    if plan.unchecked {
        write(&path, &file, |_| Ok(())).with_context(doing)?;
        workspace.progress.note(format!("exported {} · NOT checked against burn (--no-verify)", info.checkpoint));
        return Ok(Exported { path, stateful, check: None, lengths: vec![] });
    }
    let check = Check { config: &config.model, task: &task, weights: &weights, precision: plan.options.precision };
    let lengths = check.lengths();
    let worst = if plan.options.precision == Precision::Bf16 {
        // ONNX Runtime's CPU provider has no bfloat16 products: what is run is the same file with float32 products.
        let options = ExportOptions { float32_products: true, ..plan.options.clone() };
        let twin = export(&config.model, &weights, &info, &options).with_context(doing)?;
        let found = draft(&path, &twin, |twin| check.run(twin, &lengths)).with_context(doing)?;
        write(&path, &file, |_| Ok(())).with_context(doing)?;
        found
    } else {
        write(&path, &file, |path| check.run(path, &lengths)).with_context(doing)?
    };
    workspace.progress.note(format!("exported {} · ONNX Runtime agrees with burn: {worst}", info.checkpoint));
    Ok(Exported { path, stateful, check: Some(worst), lengths })
}

/// Puts the files of a model in place if `check` accepts them under temporary names; nothing is left behind if not.
fn write<T>(path: &Path, files: &OnnxFiles, check: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let doing = || format!("cannot write {}", path.display());
    draft(path, files, |candidate| {
        let found = check(candidate)?;
        // The file with states comes first: the model of before does not take one that is not its own.
        match &files.stateful {
            Some(file) => replace(candidate, path, file, [STATEFUL_FILE, STATEFUL_WEIGHTS_FILE]).with_context(doing)?,
            None => [STATEFUL_FILE, STATEFUL_WEIGHTS_FILE]
                .iter()
                .try_for_each(|name| remove_if_there(&path.with_file_name(name)))
                .with_context(doing)?,
        }
        replace(candidate, path, &files.model, [MODEL_FILE, WEIGHTS_FILE]).with_context(doing)?;
        path.parent().into_iter().for_each(data::files::sync_folder);
        Ok(found)
    })
}

/// Moves a file and its weights, called `name` and `weights`, from beside `candidate` to beside `path`.
fn replace(candidate: &Path, path: &Path, file: &OnnxFile, [name, weights]: [&str; 2]) -> std::io::Result<()> {
    let (target, target_weights) = (path.with_file_name(name), path.with_file_name(weights));
    if file.weights.is_some() {
        // The model of before must never be read with the weights of this one.
        remove_if_there(&target)?;
        fs::rename(candidate.with_file_name(weights), &target_weights)?;
    }
    fs::rename(candidate.with_file_name(name), &target)?;
    if file.weights.is_none() { remove_if_there(&target_weights) } else { Ok(()) }
}

/// Writes the files of a model into a folder of its own beside `path`, which is there for as long as `then` takes.
fn draft<T>(path: &Path, files: &OnnxFiles, then: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let doing = || format!("cannot write {}", path.display());
    let beside = path.parent().with_context(doing)?;
    let folder = tempfile::Builder::new().prefix(PARTIAL_EXPORT).tempdir_in(beside).with_context(doing)?;
    let model = (&files.model, MODEL_FILE, WEIGHTS_FILE);
    let stateful = files.stateful.as_ref().map(|file| (file, STATEFUL_FILE, STATEFUL_WEIGHTS_FILE));
    for (file, name, weights) in [Some(model), stateful].into_iter().flatten() {
        if let Some(values) = &file.weights {
            data::files::write_bytes(&folder.path().join(weights), values)?;
        }
        data::files::write_bytes(&folder.path().join(name), &file.model)?;
    }
    then(&folder.path().join(MODEL_FILE))
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
