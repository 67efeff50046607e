//! `pipeline train`.

use super::{Context, data::generate_all, data::split_path};
use crate::cli::TrainArgs;
use crate::config::{Config, parse_override};
use crate::device::Device;
use crate::run_dir::RunDir;
use crate::trainer::{Outcome, Splits, train};
use anyhow::{Result, bail};
use burn::backend::Autodiff;
use data::{Dataset, DatasetInfo, GENERATOR_VERSION, Split, Task};
use serde_json::json;
use toml::Value;

pub fn run(context: &Context, args: TrainArgs) -> Result<()> {
    let config = Config::load(&args.config, &overrides(&args)?)?;
    let announce =
        |run: &RunDir| if context.global.json { Ok(()) } else { context.print(|| json!(null), || run.handle().into()) };
    let (run, outcome) = train_config(context, config, announce)?;
    let percent = |a: Option<f64>| a.map_or("–".into(), |a| format!("{:.2} %", 100.0 * a));
    let as_json = || {
        json!({
            "handle": run.handle(),
            "run": run.path(),
            "steps": outcome.steps,
            "seconds": outcome.seconds,
            "loss": outcome.loss,
            "val_accuracy": outcome.val.accuracy(),
            "ood_test_accuracy": outcome.ood_test.accuracy(),
            "ood_test_last_accuracy": outcome.ood_test.last_accuracy(),
        })
    };
    let as_text = || {
        format!(
            "{} steps in {:.0} s · loss {:.4} · accuracy: val {}, ood {} · next: pipeline export --handle {}\n{}",
            outcome.steps,
            outcome.seconds,
            outcome.loss,
            percent(outcome.val.accuracy()),
            percent(outcome.ood_test.accuracy()),
            run.handle(),
            run.handle()
        )
    };
    context.print(as_json, as_text)
}

/// Options with a name of their own come before `--set`, so that the more explicit one wins.
fn overrides(args: &TrainArgs) -> Result<Vec<(String, Value)>> {
    let mut overrides = Vec::new();
    let mut push = |key: &str, value: Value| overrides.push((key.to_owned(), value));
    if let Some(task) = &args.task {
        push("task.name", task.clone().into());
    }
    if let Some(seed) = args.seed {
        let Ok(seed) = i64::try_from(seed) else { bail!("--seed {seed}: seeds go up to {}", i64::MAX) };
        push("train.seed", seed.into());
    }
    if let Some(device) = &args.device {
        push("train.device", device.clone().into());
    }
    for argument in &args.set {
        overrides.push(parse_override(argument)?);
    }
    Ok(overrides)
}

/// A whole run: dataset, folder, training. Nothing is created before the config is known to be sound; `started` is told
/// of the run before its first step.
pub fn train_config(
    context: &Context,
    config: Config,
    started: impl FnOnce(&RunDir) -> Result<()>,
) -> Result<(RunDir, Outcome)> {
    let task = Task::by_name(&config.task.name)?;
    let device = Device::parse(&config.train.device)?;
    let splits = splits(context, &config, &task)?;
    let run = RunDir::create(&context.global.runs_dir)?;
    data::files::write_bytes(&run.config(), config.to_toml()?.as_bytes())?;
    started(&run)?;
    context.progress.note(format!("run {} · task {} · {device}", run.handle(), task.name));
    let progress = &context.progress;
    let outcome = match device {
        Device::Cpu => train::<Autodiff<models::Cpu>>(&run, &config, &task, &splits, &Default::default(), progress),
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let device = models::CudaDevice::new(index);
            train::<Autodiff<models::Cuda>>(&run, &config, &task, &splits, &device, progress)
        }
    }?;
    Ok((run, outcome))
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
    Ok(Splits { train: read(Split::Train)?, val: read(Split::Val)?, ood_test: read(Split::OodTest)? })
}
