//! `pipeline eval`: sweeps test lengths through ONNX Runtime.

use super::Context;
use crate::cli::EvalArgs;
use crate::plot::{self, Figure, Series};
use crate::run_dir::RunDir;
use crate::summary;
use anyhow::{Context as _, Result, bail};
use data::Task;
use data::families::Family;
use evaluators::{LengthResult, LoadOptions, Model, RuntimeLibrary, Sweep, SweepFacts, write, write_predictions};
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub fn run(context: &Context, args: EvalArgs) -> Result<()> {
    let (path, stem) = locate(context, &args)?;
    let mut model = Model::load(&path, LoadOptions { provider: args.provider, threads: args.threads })?;
    if let Ok(Some(library)) = RuntimeLibrary::find() {
        let version = library.version.as_deref().unwrap_or("of unknown version");
        context.progress.detail(format!("ONNX Runtime {version}, {}: {}", library.source, library.path.display()));
    }
    if let Some(reason) = model.fallback() {
        context.progress.note(format!("running on the CPU: {reason}"));
    }
    let task = task_of(&model, args.task.as_deref())?;
    let start = Instant::now();
    let bar = context.progress.bar("sweep", 0, "tokens");
    let result = Sweep::new(&mut model)
        .task(&task)
        .lengths(args.lengths.clone())
        .samples(args.samples as usize)
        .seed(args.seed)
        .exhaustive(args.exhaustive)
        .max_tokens(Some(args.max_tokens as usize))
        .keep_predictions(args.predictions)
        .progress(|p| {
            bar.set_length(p.total_tokens);
            bar.set_position(p.tokens);
        })
        .results()?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();

    let facts = result.facts.clone();
    let table = stem.with_extension(args.format.name());
    let table = args.output.clone().unwrap_or(table);
    write(&result.to_record_batch()?, args.format, &table)?;
    let mut files = vec![table.clone()];
    if args.predictions {
        let path = beside(&table, "-predictions", args.format.name());
        write_predictions(&result.predictions, args.format, &path)?;
        files.push(path);
    }
    let train_max = model.info().train_max_length;
    if let Some(figure) = figure(&result.lengths, &facts, &task, train_max) {
        files.extend(plot::write(&figure, &stem)?);
    }

    let as_json = || {
        let rows: Vec<_> = result.lengths.iter().map(row).collect();
        json!({
            "handle": facts.handle, "model": path, "task": facts.task, "provider": facts.provider,
            "seconds": seconds, "files": files, "lengths": rows,
        })
    };
    let as_text = || {
        let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
        format!(
            "{} on {} · {} · {} lengths in {seconds:.2} s\n{}\n{}",
            facts.arch.as_deref().unwrap_or("model"),
            facts.task,
            facts.provider,
            result.lengths.len(),
            summary::table(&result.lengths, train_max),
            files.join("\n")
        )
    };
    context.print(as_json, as_text)
}

/// The model file, and the path that result files are named after.
fn locate(context: &Context, args: &EvalArgs) -> Result<(PathBuf, PathBuf)> {
    let runs = &context.global.runs_dir;
    let (model, default) = if let Some(file) = &args.model {
        let name = file.file_stem().context("--model does not name a file")?.to_string_lossy();
        (file.clone(), PathBuf::from(format!("{name}-sweep")))
    } else {
        let run = match &args.handle {
            Some(handle) => {
                let run = RunDir::open(runs, handle)?;
                if !run.onnx().is_file() {
                    bail!("run `{handle}` has not been exported\n  hint: `pipeline export --handle {handle}` first");
                }
                run
            }
            None => RunDir::newest(
                runs,
                "exported run",
                "`pipeline export` writes the newest run's model, or name one with --model FILE.onnx",
                |run| run.onnx().is_file(),
            )?,
        };
        (run.onnx(), run.eval().join("sweep"))
    };
    Ok((model, args.output.as_ref().map_or(default, |output| output.with_extension(""))))
}

fn task_of(model: &Model, named: Option<&str>) -> Result<Task> {
    match named.or(model.info().task.as_deref()) {
        Some(name) => Ok(Task::by_name(name)?),
        None => bail!(
            "{} does not say which task it is for\n  hint: name it with --task; `pipeline data list` shows them",
            model.path().display()
        ),
    }
}

fn beside(path: &Path, suffix: &str, extension: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}{suffix}.{extension}"))
}

fn row(result: &LengthResult) -> serde_json::Value {
    let score = result.score();
    json!({
        "length": result.length,
        "n_sequences": score.map_or(0, |s| s.n_sequences),
        "accuracy": score.and_then(|s| s.accuracy()),
        "counting_accuracy": score.and_then(|s| s.counting_accuracy()),
        "last_accuracy": score.and_then(|s| s.last_accuracy()),
        "in_distribution": result.in_distribution,
        "status": result.status(),
        "plan": result.plan.name(),
    })
}

/// The points of a sweep that have a score.
pub fn points(results: &[LengthResult]) -> Vec<(u32, f64)> {
    results.iter().filter_map(|r| Some((r.length, r.score()?.last_accuracy()?))).collect()
}

/// What guessing among the labels that occur would score.
pub fn chance(family: &dyn Family) -> Option<f64> {
    let track = family.track(0, 0, 200);
    let labels: HashSet<i16> = track.labels.into_iter().filter(|l| *l >= 0).collect();
    (!labels.is_empty()).then(|| 1.0 / labels.len() as f64)
}

/// "averaged over N neighbouring lengths", where the picture does that.
pub fn smoothing_note(points: usize) -> String {
    match plot::smoothing_window(points) {
        1 => String::new(),
        n => format!(", averaged over {n} neighbouring lengths"),
    }
}

fn figure(results: &[LengthResult], facts: &SweepFacts, task: &Task, train_max: Option<u32>) -> Option<Figure> {
    let points = points(results);
    if points.len() < 2 {
        return None;
    }
    let positions = facts.positional_embedding.as_deref().unwrap_or_default();
    let name = plot::display_name(facts.arch.as_deref().unwrap_or("model"), positions);
    Some(Figure {
        title: format!("How far does the {name} count?"),
        subtitle: format!("{} · last-token accuracy{}", task.name, smoothing_note(points.len())),
        train_max,
        chance: chance(task.family.as_ref()),
        series: vec![Series { label: name, points }],
    })
}
