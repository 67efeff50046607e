//! `pipeline export`: writes `model.onnx` into a run, after checking it against burn in ONNX Runtime.

use super::Context;
use crate::checkpoint::Checkpoint;
use crate::cli::ExportArgs;
use crate::config::Config;
use crate::onnx_check::{Check, Worst};
use crate::run_dir::{MODEL_FILE, RunDir};
use anyhow::{Context as _, Result, bail};
use data::Task;
use exporters::{ExportInfo, ExportOptions, OnnxFile, Precision, WEIGHTS_FILE, export};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What an export left behind.
pub struct Exported {
    /// The file.
    pub path: PathBuf,
    /// What the check found, unless it was not asked for.
    pub check: Option<Worst>,
    /// The lengths that were compared, in tokens.
    pub lengths: Vec<usize>,
}

/// What to export of a run, and how.
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

pub fn run(context: &Context, args: ExportArgs) -> Result<()> {
    let runs = &context.global.runs_dir;
    let precision: Precision = args.precision.parse()?;
    let opset = args.opset.unwrap_or(ExportOptions::default().opset);
    let options = ExportOptions { precision, opset, target: args.target.parse()?, ..Default::default() };
    let every_checkpoint = args.checkpoint.as_deref() == Some("all");
    let plan = ExportPlan {
        options,
        checkpoint: args.checkpoint,
        beside_weights: every_checkpoint,
        unchecked: args.no_verify,
    };
    if args.all && every_checkpoint {
        bail!(
            "--all exports one checkpoint of every run\n  hint: name a run with --handle to export all of its checkpoints"
        );
    }
    if args.all {
        return export_all(context, &plan);
    }
    let run = match &args.handle {
        Some(handle) => RunDir::open(runs, handle)?,
        None => RunDir::newest(runs, "run", "`pipeline train --config <C>` makes one", |_| true)?,
    };
    if every_checkpoint {
        let all = export_checkpoints(context, &run, &plan)?;
        let as_json = || Value::from(all.iter().map(|exported| report(&run, exported)).collect::<Vec<_>>());
        let next = format!("next: pipeline eval --handle {} --checkpoints all", run.handle());
        return context.print(as_json, || format!("{} models · {next}", all.len()));
    }
    let exported = export_run(context, &run, &plan)?;
    let as_text = || format!("{} · next: pipeline eval --handle {}", exported.path.display(), run.handle());
    context.print(|| report(&run, &exported), as_text)
}

fn report(run: &RunDir, exported: &Exported) -> Value {
    json!({
        "handle": run.handle(),
        "model": exported.path,
        "largest_difference": exported.check.as_ref().map(|worst| worst.difference),
        "lengths_checked": exported.lengths,
    })
}

/// Exports every whole checkpoint of the run into the checkpoint's folder; models newer than their weights are kept, and
/// not among those returned.
pub fn export_checkpoints(context: &Context, run: &RunDir, plan: &ExportPlan) -> Result<Vec<Exported>> {
    let mut exported = Vec::new();
    for (_, path) in run.checkpoints() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_newer(&path.join(MODEL_FILE), &path.join("model.safetensors")) {
            continue;
        }
        if let Err(error) = Checkpoint::open(&path) {
            context.progress.note(format!("passing over checkpoint {name}: {error:#}"));
            continue;
        }
        let plan = ExportPlan { checkpoint: Some(name), beside_weights: true, ..plan.clone() };
        exported.push(export_run(context, run, &plan)?);
    }
    Ok(exported)
}

/// Exports every run with a checkpoint, as many at once as there are cores. A model that is newer than its checkpoint is
/// kept; a run that fails does not keep the others from being exported.
fn export_all(context: &Context, plan: &ExportPlan) -> Result<()> {
    let runs = RunDir::all(&context.global.runs_dir)?;
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = match is_current(run, plan) {
                Ok(true) => Ok(None),
                Ok(false) => export_run(context, run, plan).map(Some),
                Err(error) => Err(error),
            };
            done.lock().unwrap_or_else(|e| e.into_inner()).push((run, outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(runs.len()) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by(|a, b| a.0.handle().cmp(b.0.handle()));
    let failed: Vec<String> = done
        .iter()
        .filter_map(|(run, outcome)| Some(format!("{}: {:#}", run.handle(), outcome.as_ref().err()?)))
        .collect();
    let as_json = || {
        let entry = |(run, outcome): &(&RunDir, Result<Option<Exported>>)| match outcome {
            Ok(Some(exported)) => report(run, exported),
            Ok(None) => json!({"handle": run.handle(), "model": run.onnx(), "kept": true}),
            Err(error) => json!({"handle": run.handle(), "error": format!("{error:#}")}),
        };
        Value::from(done.iter().map(entry).collect::<Vec<_>>())
    };
    let as_text = || {
        let kept = done.iter().filter(|(_, outcome)| matches!(outcome, Ok(None))).count();
        format!("{} exported, {kept} kept, {} failed", done.len() - kept - failed.len(), failed.len())
    };
    context.print(as_json, as_text)?;
    if !failed.is_empty() {
        bail!("{} of {} runs could not be exported:\n{}", failed.len(), done.len(), failed.join("\n"));
    }
    Ok(())
}

/// Whether the run's model is newer than the checkpoint that it would be made of.
fn is_current(run: &RunDir, plan: &ExportPlan) -> Result<bool> {
    let checkpoint = run.choose_checkpoint(plan.checkpoint.as_deref(), |_| ())?;
    Ok(is_newer(&run.onnx(), &checkpoint.path().join("model.safetensors")))
}

fn is_newer(model: &Path, weights: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    modified(model).zip(modified(weights)).is_some_and(|(model, weights)| model > weights)
}

/// Exports a checkpoint of the run. The file is checked under a temporary name and appears only if it agrees.
pub fn export_run(context: &Context, run: &RunDir, plan: &ExportPlan) -> Result<Exported> {
    let doing = || format!("cannot export run {}", run.handle());
    let config = Config::load(&run.config(), &[])?;
    let task = Task::by_name(&config.task.name)?;
    let checkpoint = run.choose_checkpoint(plan.checkpoint.as_deref(), |note| context.progress.note(note))?;
    let weights = checkpoint.weights()?;
    let info = ExportInfo {
        handle: run.handle().to_owned(),
        task: task.name.clone(),
        vocab: task.vocabulary.tokens().to_vec(),
        train_max_length: task.family.train_max_length() as usize,
        max_position_embeddings: config.model.max_position_embeddings().unwrap_or(task.max_position_embeddings),
        augmentation: config.model.augmentation().name().into(),
        seed: config.train.seed,
        checkpoint: checkpoint.name(),
    };
    let path = if plan.beside_weights { checkpoint.path().join(MODEL_FILE) } else { run.onnx() };
    let file = export(&config.model, &weights, &info, &plan.options).with_context(doing)?;
    if plan.unchecked {
        write(&path, &file, |_| Ok(())).with_context(doing)?;
        context.progress.note(format!("exported {} · NOT checked against burn (--no-verify)", info.checkpoint));
        return Ok(Exported { path, check: None, lengths: vec![] });
    }
    let check = Check { config: &config.model, task: &task, weights: &weights, precision: plan.options.precision };
    let lengths = check.lengths();
    let worst = if plan.options.precision == Precision::Bf16 {
        // ONNX Runtime's CPU provider has no bfloat16 products: what is run is the same file with float32 products.
        let options = ExportOptions { float32_products: true, ..plan.options.clone() };
        let twin = export(&config.model, &weights, &info, &options).with_context(doing)?;
        let twin_path = path.with_file_name("bf16-check.onnx");
        let found = write(&twin_path, &twin, |path| check.run(path, &lengths)).with_context(doing);
        let _ = std::fs::remove_file(&twin_path);
        let found = found?;
        write(&path, &file, |_| Ok(())).with_context(doing)?;
        found
    } else {
        write(&path, &file, |path| check.run(path, &lengths)).with_context(doing)?
    };
    context.progress.note(format!("exported {} · ONNX Runtime agrees with burn: {worst}", info.checkpoint));
    Ok(Exported { path, check: Some(worst), lengths })
}

/// Puts an ONNX file in place if `check` accepts it under a temporary name; nothing is left behind if not.
fn write<T>(path: &Path, file: &OnnxFile, check: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let candidate = path.with_file_name(format!(".partial-{}", path.file_name().unwrap_or_default().to_string_lossy()));
    let weights = path.with_file_name(WEIGHTS_FILE);
    let place = || {
        if let Some(values) = &file.weights {
            data::files::write_bytes(&weights, values)?;
        }
        data::files::write_bytes(&candidate, &file.model)?;
        let found = check(&candidate)?;
        std::fs::rename(&candidate, path).with_context(|| format!("cannot write {}", path.display()))?;
        if file.weights.is_none() {
            let _ = std::fs::remove_file(&weights);
        }
        Ok(found)
    };
    place().inspect_err(|_| {
        let _ = std::fs::remove_file(&candidate);
        if file.weights.is_some() {
            let _ = std::fs::remove_file(&weights);
        }
    })
}
