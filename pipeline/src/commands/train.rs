//! `pipeline train`.

use super::Context;
use crate::cli::TrainArgs;
use crate::cli::summary::percent;
use crate::cli::table::{Table, column};
use crate::config::{Config, not_a_seed, parse_override};
use crate::run::RunDir;
use crate::train::{Outcome, resume_as, train_and_tell};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value as Json, json};
use toml::Value;

pub fn run(context: &Context, args: TrainArgs) -> Result<()> {
    let overrides = overrides(context, &args)?;
    let (results, text) = if let Some(handle) = &args.resume {
        let run = RunDir::open(&context.runs, handle)?;
        let outcome = resume(context, &run, &args, overrides)?;
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
            let (run, outcome) = train_and_tell(context, config, |run| announce(context, run))?;
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
    if context.json { Ok(()) } else { context.print(|| json!(null), || run.handle().into()) }
}

fn result(run: &RunDir, outcome: &Outcome) -> Json {
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
        "splits": outcome.scores(),
    })
}

/// The scores as a table, what to do next, and the handle again.
fn describe(run: &RunDir, outcome: &Outcome) -> String {
    let titles = ["accuracy", "counting", "last", "whole sequence", "unseen lengths", "loss"];
    let mut table = Table::new([column("split").wrap(8)].into_iter().chain(titles.map(|title| column(title).right())));
    for (name, evaluation) in &outcome.evaluations {
        let score = &evaluation.score;
        table.row([
            name.clone(),
            percent(score.accuracy()),
            percent(score.counting_accuracy()),
            percent(score.last_accuracy()),
            percent(score.sequence_accuracy()),
            percent(evaluation.unseen_accuracy),
            evaluation.loss.map_or("–".into(), |loss| format!("{loss:.4}")),
        ]);
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
        Err(_) => Err(not_a_seed("--seed", seed)),
    }
}

/// The file that `--init-from` means: a file of that name, or the weights of the last checkpoint of that run.
fn init_from(context: &Context, source: &str) -> Result<String> {
    let runs = &context.runs;
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

/// Resumes a run, with the changes to its config from the command line.
fn resume(context: &Context, run: &RunDir, args: &TrainArgs, mut overrides: Vec<(String, Value)>) -> Result<Outcome> {
    match args.seed.as_slice() {
        [] => {}
        [seed] => overrides.insert(0, ("train.seed".into(), seed_value(*seed)?)),
        _ => bail!("--resume continues one run, which has one seed\n  hint: leave out --seed"),
    }
    resume_as(context, run, args.config.as_deref(), &overrides, |run| announce(context, run))
}
