//! Training from a [`Config`]: the dataset is generated where it is not there yet, a run's folder made, the model
//! trained on the device that the config names. See [`train`] and [`resume`].

pub(crate) mod batches;
pub(crate) mod checkpoint;
mod curve;
pub(crate) mod device;
mod divergence;
mod evaluation;
pub(crate) mod gpu_faults;
mod loss_scale;
pub(crate) mod metrics;
pub(crate) mod optimizer;
mod setup;
mod source;
pub(crate) mod step;
mod tensorboard;
mod trainer;

use self::device::Device;
use self::setup::{Setup, Splits};
use self::source::{Training, check_fresh};
use crate::commands::data as datasets;
use crate::config::Config;
use crate::run::{RunDir, RunProgress, Status};
use crate::{Workspace, stop};
use anyhow::{Context as _, Result, bail};
use burn::backend::Autodiff;
use data::{Dataset, DatasetFolders, DatasetInfo, Split, Task};
use models::ops::cpu::memory::keep_freed_memory;
use models::{StateDict, Weights};
use std::path::{Path, PathBuf};
use toml::Value;

pub use self::batches::Folding;
pub use self::evaluation::{Evaluation, Sample};
pub use self::trainer::Outcome;

/// Trains a new run and returns it with its scores. The same config gives the same weights, on a CPU to the last bit.
///
/// From the first call on, SIGINT, SIGTERM and the signals of batch systems no longer end the process: they ask training to
/// save a checkpoint and stop, and a second one ends it. A [`Watcher`](crate::Watcher) has that decision instead of signals,
/// which are then left alone. To train several runs in one process, call this once for each, one
/// after the other, or from a thread for each on a CPU.
///
/// # Errors
/// The config fits neither the task nor this machine; a file cannot be read or written; the loss is no longer finite; or a
/// signal asked to stop, after which [`resume`] continues.
pub fn train(workspace: &Workspace, config: Config) -> Result<(RunDir, Outcome)> {
    models::pool::start();
    train_and_tell(workspace, config, |_| Ok(()))
}

/// Continues a run from its last whole checkpoint, or from the start where it has none; the result is that of a run that
/// was never interrupted. `overrides` are keys of its config, as in [`Config::load`], for example a larger `train.epochs`.
///
/// # Errors
/// Those of [`train`]; the run is finished, or another process trains it; or an override is of a key that cannot change
/// within a run.
pub fn resume(workspace: &Workspace, run: &RunDir, overrides: &[(String, Value)]) -> Result<Outcome> {
    models::pool::start();
    resume_as(workspace, run, None, overrides, |_| Ok(()))
}

/// A whole run: dataset, folder, training. Nothing is created before the config is known to be sound; `started` is told
/// of the run before its first step.
pub(crate) fn train_and_tell(
    workspace: &Workspace,
    config: Config,
    started: impl FnOnce(&RunDir) -> Result<()>,
) -> Result<(RunDir, Outcome)> {
    let task = Task::by_name(&config.task.name)?;
    config.model.check_vocabulary(&task.vocabulary)?;
    check_fresh(&config, &task)?;
    let device = Device::of(&config.train)?;
    let initial = initial_weights(&config, &task)?;
    data::files::probe_folder(&workspace.runs)?; // before datasets are generated
    let splits = splits(workspace, &config, &task)?;
    let run = RunDir::create(&workspace.runs)?;
    let _lock = run.lock()?;
    // The status first: what makes the folder a run comes last.
    let total_steps = config.train.total_steps(splits.train.per_epoch());
    run.set_progress(&RunProgress { status: Status::Running, step: 0, total_steps })?;
    data::files::write_bytes(&run.config(), config.to_toml()?.as_bytes())?;
    started(&run)?;
    workspace.progress.watcher().into_iter().for_each(|watcher| watcher.started(&run));
    workspace.progress.note(format!("run {} · task {} · {device}", run.handle(), task.name));
    let progress = &workspace.progress;
    let setup = Setup { run: &run, config: &config, task: &task, splits: &splits, initial, resume: None, progress };
    let outcome = on_device(&setup, device)?;
    Ok((run, outcome))
}

/// Continues a run from its last whole checkpoint, or from the start where it has none. A run whose last checkpoint is
/// there, but whose process was ended before it said so, is finished by saying it. The config is the one in the file
/// `config`, or the run's own, with `overrides`; `started` is told of the run before its first step.
pub(crate) fn resume_as(
    workspace: &Workspace,
    run: &RunDir,
    config: Option<&Path>,
    overrides: &[(String, Value)],
    started: impl FnOnce(&RunDir) -> Result<()>,
) -> Result<Outcome> {
    let _lock = run.lock()?;
    let before = Config::load(&run.config(), &[])?;
    let own = run.config();
    let config = Config::load(config.unwrap_or(&own), overrides)?;
    if let Some(key) = config.first_fixed_difference(&before)? {
        bail!(
            "{key} cannot change within run {}: its config would not describe all of it\n  \
             hint: leave it as it is in {}, or start a new run with --init-from {}",
            run.handle(),
            run.config().display(),
            run.handle()
        );
    }

    let task = Task::by_name(&config.task.name)?;
    let device = Device::of(&config.train)?;
    run.remove_partial_files();
    let resume = match run.last_checkpoint(|note| workspace.progress.note(note)) {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            workspace.progress.note(format!("starting over: {reason}"));
            None
        }
    };
    let initial = if resume.is_none() { initial_weights(&config, &task)? } else { None };
    let splits = splits(workspace, &config, &task)?;
    let total = config.train.total_steps(splits.train.per_epoch());
    let done = resume.as_ref().map_or(0, |c| c.state().step);
    let is_told = run.told_progress().is_some_and(|told| told.status == Status::Finished);
    let has_stopped = done > 0 && has_reached_enough(&config, run, done);
    if resume.is_some() && (done > total || ((done == total || has_stopped) && is_told)) {
        let (why, hint) = match has_stopped && done < total {
            true => (", where train.stop_at was reached", "another train.stop_at"),
            false => ("", "--set train.epochs=<MORE> (and train.max_steps, where it is set)"),
        };
        bail!(
            "run {} is finished: {done} of {total} steps are done{why}\n  hint: {hint} trains for longer",
            run.handle()
        );
    }
    let total = if has_stopped { done } else { total };
    // The status first, so that a run that is to go on for longer is at no time a finished one with another config.
    let status = if resume.is_some() && done == total { Status::Finished } else { Status::Running };
    run.set_progress(&RunProgress { status, step: done, total_steps: total })?;
    data::files::write_bytes(&run.config(), config.to_toml()?.as_bytes())?;
    started(run)?;
    workspace.progress.watcher().into_iter().for_each(|watcher| watcher.started(run));
    workspace.progress.note(format!("run {} · task {} · {device}", run.handle(), task.name));
    let progress = &workspace.progress;
    on_device(&Setup { run, config: &config, task: &task, splits: &splits, initial, resume, progress }, device)
}

/// Whether training ended at step `done` because of `train.stop_at`, by the run's curve. One that cannot be read says no:
/// training goes on then, and says so.
fn has_reached_enough(config: &Config, run: &RunDir, done: u64) -> bool {
    let Some(stop_at) = &config.train.stop_at else { return false };
    metrics::read(&run.metrics()).is_ok_and(|curve| stop_at.is_reached(&curve, done))
}

/// Reads `train.init_from` and sees whether it fits the model, before anything is created.
fn initial_weights(config: &Config, task: &Task) -> Result<Option<Weights>> {
    let Some(path) = &config.train.init_from else { return Ok(None) };
    let model = config.model.init::<models::Cpu>(task.vocabulary.len(), config.train.seed, &Default::default());
    let fitted = StateDict::read(path)?.fit(&model);
    Ok(Some(fitted.with_context(|| format!("in train.init_from = {}", path.display()))?.weights))
}

fn on_device(setup: &Setup<'_>, device: Device) -> Result<Outcome> {
    if setup.progress.watcher().is_none() {
        stop::listen(stop::Second::Ends)?;
    }
    let trained = match device {
        Device::Cpu => {
            keep_freed_memory();
            trainer::train::<Autodiff<models::Cpu>>(setup, &Default::default())
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            crate::train::device::on_cuda(index, |cuda| trainer::train::<Autodiff<models::Cuda>>(setup, cuda))
                .map_err(|error| if gpu_faults::check().is_err() { error.context(how_to_go_on(setup)) } else { error })
        }
    };
    let handle = setup.run.handle();
    let outcome = trained.inspect_err(|_| {
        if let Some(progress) = setup.run.told_progress().filter(|p| p.status == Status::Running) {
            // The error that ended training is the one to report, even where this fails as well.
            let _ = setup.run.set_progress(&RunProgress { status: Status::Failed, ..progress });
        }
    })?;
    if !outcome.finished {
        bail!(
            "interrupted: run {handle} is saved at step {} of {}\n  hint: `pipeline train --resume {handle}` continues from there",
            outcome.steps,
            outcome.total_steps
        );
    }
    Ok(outcome)
}

/// How to continue a run whose device failed.
#[cfg(feature = "cuda")]
fn how_to_go_on(setup: &Setup<'_>) -> String {
    let handle = setup.run.handle();
    match setup.run.last_checkpoint(|_| ()) {
        Ok(checkpoint) => format!(
            "run {handle} broke off and is saved at step {}; `pipeline train --resume {handle}` continues with the same \
             settings, `--init-from {handle}` starts a run with others",
            checkpoint.state().step
        ),
        Err(_) => format!("run {handle} broke off before its first checkpoint"),
    }
}

/// The task's dataset: the imported one where there is one, or what the config asks for, generated where it is not
/// there yet.
fn splits(workspace: &Workspace, config: &Config, task: &Task) -> Result<Splits> {
    let origin = config.task.origin();
    let shared = shared_files(workspace, task, config)?;
    let generated = shared.is_none();
    let files: Vec<(Split, PathBuf)> = match shared {
        Some(files) => files,
        None => {
            let files = datasets::complete(workspace, task, origin, &wanted(config, task))?;
            files.into_iter().map(|file| (file.split, file.path)).collect()
        }
    };
    let read = |split: Split| -> Result<Dataset> {
        let (_, path) = files.iter().find(|(found, _)| *found == split).context("a split of the task has no file")?;
        let read = Dataset::read_as(path, Some(task));
        let read = if generated { read.map_err(|error| datasets::damaged(error, task, origin)) } else { Ok(read?) }?;
        read.note().into_iter().for_each(|note| workspace.progress.note(format!("{}: {note}", path.display())));
        Ok(read)
    };
    let train = match config.train.fresh {
        true => Training::Fresh { per_epoch: config.task.train_examples },
        false => Training::Fixed(Box::new(read(Split::Train)?)),
    };
    let longest = match &train {
        Training::Fixed(examples) => examples.iter().map(|e| e.input_ids.len()).max().unwrap_or(0),
        Training::Fresh { .. } => task.max_seq_len,
    };
    if let Some(pad_to) = config.train.pad_to.filter(|pad_to| *pad_to < longest) {
        bail!(
            "train.pad_to is {pad_to}, but the longest training example of {} has {longest} tokens\n  \
             hint: set train.pad_to to at least that, or leave it out",
            task.name
        );
    }
    let evaluated = task.splits().into_iter().filter(|split| *split != Split::Train);
    let evaluated = evaluated.map(|split| Ok((split.name().to_owned(), read(split)?)));
    let splits = Splits { train, evaluated: evaluated.collect::<Result<_>>()? };
    if !config.model.is_causal() && splits.evaluated.first().is_some_and(|(_, examples)| gives_itself_away(examples)) {
        bail!(
            "model.causal is false, but the answers of {} are the next tokens, which such a model sees\n  \
             hint: choose a task with slots for its answers, as chomsky/ has them, or leave model.causal out",
            task.name
        );
    }
    Ok(splits)
}

/// Whether every answer of the first examples, but those at their ends, is the token after it.
fn gives_itself_away(examples: &Dataset) -> bool {
    let next = examples.iter().take(200).flat_map(|example| {
        let answers = example.labels.iter().zip(example.input_ids.iter().skip(1));
        answers.filter(|(label, _)| **label >= 0).map(|(label, next)| i64::from(*label) == i64::from(*next))
    });
    let (right, all) = next.fold((0, 0), |(right, all), is| (right + usize::from(is), all + 1));
    all > 0 && right == all
}

/// The splits that a run reads: all but those that it draws itself.
fn wanted(config: &Config, task: &Task) -> Vec<Split> {
    task.splits().into_iter().filter(|split| !(config.train.fresh && *split == Split::Train)).collect()
}

/// Generates the dataset of a config where it is not there yet.
pub(crate) fn prepare_dataset(workspace: &Workspace, config: &Config) -> Result<()> {
    let task = config.task.task()?;
    if shared_files(workspace, &task, config)?.is_none() {
        datasets::complete(workspace, &task, config.task.origin(), &wanted(config, &task))?;
    }
    Ok(())
}

/// The files of a dataset in a folder that the task's imported splits share with datasets of earlier versions: imported
/// splits, all of them, or those that the config asks for. `None` where there are none.
fn shared_files(workspace: &Workspace, task: &Task, config: &Config) -> Result<Option<Vec<(Split, PathBuf)>>> {
    let origin = config.task.origin();
    for folder in DatasetFolders::new(&workspace.datasets).shared(task) {
        let files: Vec<(Split, PathBuf)> =
            task.splits().into_iter().map(|split| (split, folder.join(format!("{}.parquet", split.name())))).collect();
        let (existing, missing): (Vec<_>, Vec<_>) = files.iter().partition(|(_, path)| path.exists());
        let mut imported = None;
        let mut other = None; // one that is not what the config asks for
        for (split, path) in existing {
            let (info, _) = DatasetInfo::read(path)?;
            if info.is_imported() && info.task == task.name {
                imported = imported.or(Some(path));
            } else if datasets::check(path, task, origin, *split).is_err() {
                other = other.or(Some(path));
            }
        }
        match (imported, missing.first(), other) {
            (Some(path), Some((_, gone)), _) => bail!(
                "{} was imported, but there is no {}\n  hint: `pipeline data import --task {}` imports the other splits as well",
                path.display(),
                gone.display(),
                task.name
            ),
            (Some(path), None, Some(other)) => bail!(
                "{} was imported, but {} is neither imported nor what the config asks for\n  hint: `pipeline data import --task {}` imports the other splits as well; or move them away",
                path.display(),
                other.display(),
                task.name
            ),
            (_, None, None) => return Ok(Some(files)),
            (None, ..) => {}
        }
    }
    Ok(None)
}
