//! `pipeline train`.

use super::{Context, data::generate_all, data::split_path};
use crate::cli::TrainArgs;
use crate::config::{Config, parse_override};
use crate::device::Device;
use crate::evaluation::Evaluation;
use crate::run_dir::{RunDir, Status};
use crate::stop;
use crate::summary::percent;
use crate::trainer::{Job, Outcome, Splits, train};
use anyhow::{Context as _, Result, bail};
use burn::backend::Autodiff;
use comfy_table::{CellAlignment, Table, presets};
use data::{Dataset, DatasetInfo, GENERATOR_VERSION, Split, Task};
use models::Weights;
use models::ops::cpu::memory::keep_freed_memory;
use serde_json::{Value as Json, json};
use toml::Value;

pub fn run(context: &Context, args: TrainArgs) -> Result<()> {
    let overrides = overrides(context, &args)?;
    let (results, text) = if let Some(handle) = &args.resume {
        let run = RunDir::open(&context.global.runs_dir, handle)?;
        let outcome = resume(context, &run, &args, &overrides)?;
        (vec![result(&run, &outcome)], describe(&run, &outcome))
    } else {
        let path = args.config.as_ref().context("neither --config nor --resume was given")?;
        let with_seed = |seed: Option<Value>| {
            let seed = seed.map(|seed| ("train.seed".to_owned(), seed));
            Config::load(path, &[seed.into_iter().collect(), overrides.clone()].concat())
        };
        let configs: Vec<Config> = match args.seed.as_slice() {
            [] => vec![with_seed(None)?],
            seeds => seeds.iter().map(|seed| with_seed(Some(seed_value(*seed)?))).collect::<Result<_>>()?,
        };
        let (mut results, mut texts) = (Vec::new(), Vec::new());
        for config in configs {
            let (run, outcome) = train_config(context, config, |run| announce(context, run))?;
            results.push(result(&run, &outcome));
            texts.push(describe(&run, &outcome));
        }
        (results, texts.join("\n"))
    };
    // One run is one object, so that scripts need not know that there can be more.
    let as_json = || match results.as_slice() {
        [one] => one.clone(),
        several => json!({ "runs": several }),
    };
    context.print(as_json, || text)
}

/// The handle is the first line of the output, before the first step.
fn announce(context: &Context, run: &RunDir) -> Result<()> {
    if context.global.json { Ok(()) } else { context.print(|| json!(null), || run.handle().into()) }
}

fn result(run: &RunDir, outcome: &Outcome) -> Json {
    let scores = |e: &Evaluation| {
        json!({
            "loss": e.loss,
            "accuracy": e.score.accuracy(),
            "counting_accuracy": e.score.counting_accuracy(),
            "last_accuracy": e.score.last_accuracy(),
            "sequence_accuracy": e.score.sequence_accuracy(),
            "unseen_accuracy": e.unseen_accuracy,
        })
    };
    let splits: serde_json::Map<_, _> = outcome.evaluations.iter().map(|(name, e)| (name.clone(), scores(e))).collect();
    let accuracy = |split: &str| outcome.evaluation(split).and_then(|e| e.score.accuracy());
    json!({
        "handle": run.handle(),
        "run": run.path(),
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "evaluation_seconds": outcome.evaluation_seconds,
        "loss": outcome.loss,
        "rows_per_step": outcome.folding.rows_per_step(),
        "val_accuracy": accuracy("val"),
        "ood_test_accuracy": accuracy("ood_test"),
        "ood_test_last_accuracy": outcome.evaluation("ood_test").and_then(|e| e.score.last_accuracy()),
        "splits": splits,
    })
}

/// The scores as a table, what to do next, and the handle again.
fn describe(run: &RunDir, outcome: &Outcome) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["split", "accuracy", "counting", "last", "whole sequence", "unseen lengths", "loss"]);
    for (name, evaluation) in &outcome.evaluations {
        let score = &evaluation.score;
        table.add_row([
            name.clone(),
            percent(score.accuracy()),
            percent(score.counting_accuracy()),
            percent(score.last_accuracy()),
            percent(score.sequence_accuracy()),
            percent(evaluation.unseen_accuracy),
            evaluation.loss.map_or("–".into(), |loss| format!("{loss:.4}")),
        ]);
    }
    for column in 1..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let handle = run.handle();
    format!(
        "{table}\n{} steps in {:.0} s{} · loss {:.4} · next: pipeline export --handle {handle}\n{handle}",
        outcome.steps, outcome.seconds, outcome.folding, outcome.loss
    )
}

/// Options with a name of their own come before `--set`, so that the more explicit one wins. Seeds are left to the caller.
fn overrides(context: &Context, args: &TrainArgs) -> Result<Vec<(String, Value)>> {
    let mut overrides = Vec::new();
    let mut push = |key: &str, value: Value| overrides.push((key.to_owned(), value));
    if let Some(task) = &args.task {
        push("task.name", task.clone().into());
    }
    if let Some(device) = &args.device {
        push("train.device", device.clone().into());
    }
    if let Some(source) = &args.init_from {
        push("train.init_from", init_from(context, source)?.into());
    }
    if let Some(keep) = args.keep {
        push("train.keep", i64::from(keep).into());
    }
    if args.tensorboard {
        push("train.tensorboard", true.into());
    }
    for argument in &args.set {
        overrides.push(parse_override(argument)?);
    }
    Ok(overrides)
}

fn seed_value(seed: u64) -> Result<Value> {
    match i64::try_from(seed) {
        Ok(seed) => Ok(seed.into()),
        Err(_) => bail!("--seed {seed}: seeds go up to {}", i64::MAX),
    }
}

/// The file that `--init-from` means: a file of that name, or the weights of the last checkpoint of that run.
fn init_from(context: &Context, source: &str) -> Result<String> {
    let runs = &context.global.runs_dir;
    let path = match std::path::Path::new(source) {
        file if file.is_file() => file.to_owned(),
        file if file.extension().is_some() || file.components().count() > 1 => {
            bail!("--init-from {source}: there is no such file\n  hint: name a safetensors file or a run")
        }
        _ => {
            let run = RunDir::open(runs, source).with_context(|| format!("--init-from {source} is not a file"))?;
            run.last_checkpoint(|note| context.progress.note(note))?.weights_file()
        }
    };
    Ok(path.to_string_lossy().into_owned())
}

/// A whole run: dataset, folder, training. Nothing is created before the config is known to be sound; `started` is told
/// of the run before its first step.
pub fn train_config(
    context: &Context,
    config: Config,
    started: impl FnOnce(&RunDir) -> Result<()>,
) -> Result<(RunDir, Outcome)> {
    let task = Task::by_name(&config.task.name)?;
    config.model.check_vocabulary(&task.vocabulary)?;
    let device = Device::of(&config.train)?;
    let initial = initial_weights(&config, &task)?;
    let splits = splits(context, &config, &task)?;
    let run = RunDir::create(&context.global.runs_dir)?;
    let _lock = run.lock()?;
    data::files::write_bytes(&run.config(), config.to_toml()?.as_bytes())?;
    started(&run)?;
    context.progress.note(format!("run {} · task {} · {device}", run.handle(), task.name));
    let progress = &context.progress;
    let job = Job { run: &run, config: &config, task: &task, splits: &splits, initial, resume: None, progress };
    let outcome = on_device(&job, device)?;
    Ok((run, outcome))
}

/// Goes on with a run from its last whole checkpoint, or from the start where it has none.
fn resume(context: &Context, run: &RunDir, args: &TrainArgs, overrides: &[(String, Value)]) -> Result<Outcome> {
    let before = Config::load(&run.config(), &[])?;
    let mut overrides = overrides.to_vec();
    match args.seed.as_slice() {
        [] => {}
        [seed] => overrides.insert(0, ("train.seed".into(), seed_value(*seed)?)),
        _ => bail!("--resume goes on with one run, which has one seed\n  hint: leave out --seed"),
    }
    let path = args.config.clone().unwrap_or_else(|| run.config());
    let config = Config::load(&path, &overrides)?;
    if let Some(key) = config.first_fixed_difference(&before)? {
        bail!(
            "{key} cannot change while run {} goes on: the run would not be what its config says\n  \
             hint: leave it as it is in {}, or start a new run with --init-from {}",
            run.handle(),
            run.config().display(),
            run.handle()
        );
    }

    let task = Task::by_name(&config.task.name)?;
    let device = Device::of(&config.train)?;
    let _lock = run.lock()?;
    run.remove_partial_files();
    let resume = match run.last_checkpoint(|note| context.progress.note(note)) {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            context.progress.note(format!("starting over: {reason}"));
            None
        }
    };
    let initial = if resume.is_none() { initial_weights(&config, &task)? } else { None };
    let splits = splits(context, &config, &task)?;
    let total = config.train.total_steps(splits.train.len());
    if let Some(done) = resume.as_ref().map(|c| c.state().step).filter(|done| *done >= total) {
        bail!(
            "run {} is finished: {done} of {total} steps are done\n  \
             hint: --set train.epochs=<MORE> (and train.max_steps, where it is set) goes on for longer",
            run.handle()
        );
    }
    data::files::write_bytes(&run.config(), config.to_toml()?.as_bytes())?;
    announce(context, run)?;
    context.progress.note(format!("run {} · task {} · {device}", run.handle(), task.name));
    let progress = &context.progress;
    on_device(&Job { run, config: &config, task: &task, splits: &splits, initial, resume, progress }, device)
}

/// Reads `train.init_from` and sees whether it fits the model, before anything is created.
fn initial_weights(config: &Config, task: &Task) -> Result<Option<Weights>> {
    let Some(path) = &config.train.init_from else { return Ok(None) };
    let weights = Weights::read(path)?;
    let mut model = config.model.init::<models::Cpu>(task.vocabulary.len(), config.train.seed, &Default::default());
    weights.load_into(&mut model).with_context(|| format!("in train.init_from = {}", path.display()))?;
    Ok(Some(weights))
}

fn on_device(job: &Job<'_>, device: Device) -> Result<Outcome> {
    stop::listen()?;
    let trained = match device {
        Device::Cpu => {
            keep_freed_memory();
            train::<Autodiff<models::Cpu>>(job, &Default::default())
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => train::<Autodiff<models::Cuda>>(job, &models::CudaDevice::new(index)),
    };
    let handle = job.run.handle();
    let outcome = trained.inspect_err(|_| {
        if let Some(progress) = job.run.progress().filter(|p| p.status == Status::Running) {
            // The error that ended training is the one to report, even where this fails as well.
            let _ = job.run.set_progress(&crate::run_dir::RunProgress { status: Status::Failed, ..progress });
        }
    })?;
    if !outcome.finished {
        bail!(
            "interrupted: run {handle} is saved at step {} of {}\n  hint: `pipeline train --resume {handle}` goes on from there",
            outcome.steps,
            outcome.total_steps
        );
    }
    Ok(outcome)
}

/// The task's dataset, generated where it is not there yet. One that is there must be what the config asks for.
fn splits(context: &Context, config: &Config, task: &Task) -> Result<Splits> {
    let (train, seed) = (config.task.train_examples, config.task.data_seed);
    let path = |split| split_path(&context.global.data_dir, &task.name, split);
    let (existing, missing): (Vec<Split>, _) = task.splits().into_iter().partition(|&split| path(split).exists());
    let imported = |split: &Split| Dataset::read(&path(*split)).is_ok_and(|d| d.info().is_imported());
    if !missing.is_empty() {
        if let Some(split) = existing.iter().find(|split| imported(split)) {
            bail!(
                "{} was imported, but there is no {}\n  hint: `pipeline data import --task {}` imports the other splits as well",
                path(*split).display(),
                path(missing[0]).display(),
                task.name
            );
        }
        context.progress.note(format!(
            "generating the dataset of {} in {}",
            task.name,
            context.global.data_dir.display()
        ));
        generate_all(context, task, train, seed)?;
    }
    let read = |split| -> Result<Dataset> {
        let dataset = Dataset::read(&path(split))?;
        let (found, wanted) = (dataset.info(), DatasetInfo::of(task, seed));
        if *found == DatasetInfo::imported(task) {
            return Ok(dataset);
        }
        let rows = task.rows(split, train)?;
        if *found != wanted || dataset.len() != rows {
            bail!(
                "{} holds {} examples of {} (seed {}, generator {}), but the config asks for {rows} of {} (seed {seed}, generator {GENERATOR_VERSION})\n  \
                 hint: `pipeline data generate --task {} --train {train} --seed {seed} --force` makes it anew, or set task.train_examples and task.data_seed",
                path(split).display(),
                dataset.len(),
                found.task,
                found.seed,
                found.generator_version,
                task.name,
                task.name,
            );
        }
        Ok(dataset)
    };
    let train = read(Split::Train)?;
    let longest = train.iter().map(|e| e.input_ids.len()).max().unwrap_or(0);
    if let Some(pad_to) = config.train.pad_to.filter(|pad_to| *pad_to < longest) {
        bail!(
            "train.pad_to is {pad_to}, but the longest training example of {} has {longest} tokens\n  \
             hint: set train.pad_to to at least that, or leave it out",
            task.name
        );
    }
    let evaluated = task.splits().into_iter().filter(|split| *split != Split::Train);
    let evaluated = evaluated.map(|split| Ok((split.name().to_owned(), read(split)?)));
    Ok(Splits { train, evaluated: evaluated.collect::<Result<_>>()? })
}
