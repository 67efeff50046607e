//! `pipeline eval`: sweeps test lengths and scores splits through ONNX Runtime.

use super::Context;
use crate::cli::EvalArgs;
use crate::plot::{self, Figure, Series};
use crate::run_dir::{MODEL_FILE, RunDir};
use crate::summary;
use anyhow::{Context as _, Result, bail};
use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use data::families::Family;
use data::{Dataset, Split, Task, text};
use evaluators::{
    DatasetResult, LengthResult, Lengths, LoadOptions, Model, Progress, RuntimeLibrary, Sweep, SweepFacts, SweepResult,
    totals_to_record_batch, write, write_predictions,
};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A model to evaluate.
struct Target {
    /// Tells it apart from the others: a handle, or the name of a file or a checkpoint.
    name: String,
    /// The ONNX file.
    model: PathBuf,
    /// What its result files are named after, without a suffix for what they hold.
    folder: PathBuf,
    /// Put before the names of result files, where several models share a folder.
    prefix: String,
}

/// What was found about one model.
struct Evaluated {
    name: String,
    model: PathBuf,
    facts: SweepFacts,
    task: Task,
    train_max: Option<u32>,
    sweep: Option<SweepResult>,
    splits: Vec<DatasetResult>,
    seconds: f64,
    session_seconds: f64,
    files: Vec<PathBuf>,
    journal: PathBuf,
}

pub fn run(context: &Context, args: EvalArgs) -> Result<()> {
    if let Some(width) = args.until_width.filter(|width| !(*width > 0.0 && *width < 1.0)) {
        bail!("--until-width {width} is no width of an interval of accuracies\n  hint: 0.01 to 0.5 make sense");
    }
    if let Ok(Some(library)) = RuntimeLibrary::find() {
        let version = library.version.as_deref().unwrap_or("of unknown version");
        context.progress.detail(format!("ONNX Runtime {version}, {}: {}", library.source, library.path.display()));
    }
    let lengths = match (&args.lengths, args.split.is_empty()) {
        (None, true) => Some(Lengths::from(1..=1000)),
        (lengths, _) => lengths.clone(),
    };
    let mut all = Vec::new();
    let targets = targets(context, &args)?;
    // Where results go together into one table, and its name.
    let output = match (&args.output, args.checkpoints.is_some(), targets.first()) {
        (None, true, Some(first)) => Some(first.folder.join("checkpoints")),
        (output, ..) => output.clone(),
    };
    for target in targets {
        let mut evaluated = evaluate(context, &args, &target, lengths.clone())?;
        if output.is_none() {
            let stem = |what: &str| target.folder.join(format!("{}{what}", target.prefix));
            evaluated.files = write_tables(&args, std::slice::from_ref(&evaluated), stem)?;
        }
        all.push(evaluated);
    }
    if let Some(output) = output {
        let stem = |what: &str| if what == "sweep" { output.with_extension("") } else { beside(&output, what) };
        let files = write_tables(&args, &all, stem)?;
        if let Some(first) = all.first_mut() {
            first.files = files;
        }
    }
    for evaluated in &all {
        let _ = std::fs::remove_file(&evaluated.journal); // the results are written
    }
    let as_json = || match &all[..] {
        [one] => document(one),
        several => json!({ "results": several.iter().map(document).collect::<Vec<_>>() }),
    };
    context.print(as_json, || all.iter().map(summary_text).collect::<Vec<_>>().join("\n\n"))
}

/// The models that the command line names.
fn targets(context: &Context, args: &EvalArgs) -> Result<Vec<Target>> {
    let runs = &context.global.runs_dir;
    if !args.model.is_empty() {
        let target = |file: &PathBuf| {
            let name = file.file_stem().context("--model does not name a file")?.to_string_lossy();
            let (name, prefix) = (name.to_string(), format!("{name}-"));
            Ok(Target { name, model: file.clone(), folder: PathBuf::new(), prefix })
        };
        return args.model.iter().map(target).collect();
    }
    let newest = || {
        let hint = "`pipeline export` writes the newest run's model, or name one with --model FILE.onnx";
        RunDir::newest(runs, "exported run", hint, |run| args.checkpoints.is_some() || run.onnx().is_file())
    };
    let named = |handle: &String| {
        let run = RunDir::open(runs, handle)?;
        if args.checkpoints.is_none() && !run.onnx().is_file() {
            bail!("run `{handle}` has not been exported\n  hint: `pipeline export --handle {handle}` first");
        }
        Ok(run)
    };
    let found = match &args.handle[..] {
        [] => vec![newest()?],
        handles => handles.iter().map(named).collect::<Result<_>>()?,
    };
    if args.checkpoints.is_some() {
        return match &found[..] {
            [run] => checkpoints(context, run),
            _ => bail!("--checkpoints is about one run\n  hint: name one --handle"),
        };
    }
    let target = |run: RunDir| {
        let name = run.handle().to_owned();
        Target { name, model: run.onnx(), folder: run.eval(), prefix: String::new() }
    };
    Ok(found.into_iter().map(target).collect())
}

/// The models of all checkpoints of a run, fewest steps first; those that are missing are made.
fn checkpoints(context: &Context, run: &RunDir) -> Result<Vec<Target>> {
    #[cfg(feature = "train")]
    super::export::export_checkpoints(context, run, &Default::default())?;
    #[cfg(not(feature = "train"))]
    let _ = context;
    let target = |(_, path): (u64, PathBuf)| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let model = path.join(MODEL_FILE);
        let prefix = format!("{name}-");
        model.is_file().then(|| Target { name, model, folder: run.eval(), prefix })
    };
    let found: Vec<Target> = run.checkpoints().into_iter().filter_map(target).collect();
    if found.is_empty() {
        let handle = run.handle();
        bail!(
            "no checkpoint of run `{handle}` has been exported\n  hint: `pipeline export --handle {handle} --checkpoint all` first"
        );
    }
    Ok(found)
}

fn evaluate(context: &Context, args: &EvalArgs, target: &Target, lengths: Option<Lengths>) -> Result<Evaluated> {
    let mut model = Model::load(&target.model, LoadOptions { provider: args.provider, threads: args.threads })?;
    if let Some(reason) = model.fallback() {
        context.progress.note(format!("running on the CPU: {reason}"));
    }
    let task = task_of(&model, args.task.as_deref())?;
    let journal = target.folder.join(format!(".{}sweep.progress", target.prefix));
    if args.restart {
        let _ = std::fs::remove_file(&journal); // where there is none, nothing is to be taken up
    }
    let start = Instant::now();
    let name = model.info().arch.clone().unwrap_or_else(|| "model".into());
    let bar = context.progress.bar(name, 0, "tokens");
    let last = Cell::new(Progress::default());
    let mut busy = Duration::ZERO;
    let mut sweep = None;
    if let Some(lengths) = lengths {
        let configured = configure(&mut model, &task, args, &bar, &last);
        let configured = configured.lengths(lengths).exhaustive(args.exhaustive).journal(Some(&journal));
        sweep = Some(configured.results()?);
        busy += last.take().busy;
    }
    let mut splits = Vec::new();
    for split in &args.split {
        let (dataset, name) = read_split(context, &task, split)?;
        bar.set_prefix(name.clone());
        let configured = configure(&mut model, &task, args, &bar, &last).loops(args.loops);
        splits.push(configured.run_dataset(&dataset, &name)?);
        busy += last.take().busy;
    }
    bar.finish_and_clear();
    Ok(Evaluated {
        name: target.name.clone(),
        model: target.model.clone(),
        facts: SweepFacts::new(&model, &task, "sweep"),
        train_max: model.info().train_max_length,
        task,
        sweep,
        splits,
        seconds: start.elapsed().as_secs_f64(),
        session_seconds: busy.as_secs_f64(),
        files: vec![],
        journal,
    })
}

/// What sweeps and splits share; `last` is kept up to date with the progress.
fn configure<'a>(
    model: &'a mut Model,
    task: &'a Task,
    args: &EvalArgs,
    bar: &'a ProgressBar,
    last: &'a Cell<Progress>,
) -> Sweep<'a> {
    let start = Instant::now();
    let show = move |p: Progress| {
        last.set(p);
        bar.set_length(p.total_tokens);
        bar.set_position(p.tokens);
        let rate = p.lengths as f64 / start.elapsed().as_secs_f64();
        bar.set_message(format!("{} of {} lengths · {rate:.0}/s", p.lengths, p.total_lengths));
    };
    Sweep::new(model)
        .task(task)
        .samples(args.samples as usize)
        .until_width(args.until_width)
        .seed(args.seed)
        .augmentation(args.augmentation)
        .max_tokens(args.max_tokens.map(|n| n as usize))
        .workers(args.workers.map(usize::from))
        .keep_predictions(args.predictions)
        .progress(show)
}

/// The examples that `split` names, and its name in result tables: a Parquet file, a text file of the original, a file of
/// the task's dataset, or, where that was not generated, the split itself.
fn read_split(context: &Context, task: &Task, split: &str) -> Result<(Dataset, String)> {
    let path = Path::new(split);
    if path.extension().is_some() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = path.extension().is_some_and(|extension| extension == "txt");
        return Ok((if text { text::read(path, Some(task))? } else { Dataset::read(path)? }, name));
    }
    let file = context.global.data_dir.join(&task.name).join(format!("{split}.parquet"));
    if file.is_file() {
        return Ok((Dataset::read(&file)?, split.to_owned()));
    }
    match split.parse::<Split>() {
        Ok(known) if known != Split::Train => {
            let rows = task.rows(known, 0)?;
            Ok((Dataset::generated(task, known, 0, rows), split.to_owned()))
        }
        _ => bail!(
            "there is no split `{split}`: {} does not exist\n  hint: val and ood_test always work; others must be generated or imported first, or name a .parquet or .txt file",
            file.display()
        ),
    }
}

/// Writes what was found about `all`, which share their tables, to files called `stem(what)`; returns their paths.
fn write_tables(args: &EvalArgs, all: &[Evaluated], stem: impl Fn(&str) -> PathBuf) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut put = |what: &str, tables: Vec<RecordBatch>| -> Result<()> {
        let Some(first) = tables.first() else { return Ok(()) };
        let path = match &args.output {
            Some(output) if what == "sweep" => output.clone(), // exactly the name that was asked for
            _ => stem(what).with_extension(args.format.name()),
        };
        write(&concat_batches(&first.schema(), &tables)?, args.format, &path)?;
        files.push(path);
        Ok(())
    };
    let tables = all.iter().filter_map(|e| e.sweep.as_ref()).map(SweepResult::to_record_batch);
    put("sweep", tables.collect::<Result<_, _>>()?)?;
    for index in 0..args.split.len() {
        let results: Vec<DatasetResult> = all.iter().map(|e| e.splits[index].clone()).collect();
        let Some(name) = results.first().map(|r| r.by_length.facts.split.clone()) else { continue };
        let tables = results.iter().map(|r| r.by_length.to_record_batch()).collect::<Result<_, _>>()?;
        put(&name, tables)?;
        put(&format!("{name}-total"), vec![totals_to_record_batch(&results)?])?;
    }
    if args.predictions {
        for evaluated in all {
            let found = evaluated.sweep.iter().chain(evaluated.splits.iter().map(|split| &split.by_length));
            for result in found {
                // a table of predictions does not say whose they are
                let whose = if all.len() > 1 { format!("-{}", evaluated.name) } else { String::new() };
                let path = beside(&stem(&result.facts.split), &format!("predictions{whose}"));
                let path = path.with_extension(args.format.name());
                write_predictions(&result.predictions, args.format, &path)?;
                files.push(path);
            }
        }
    }
    if let Some(figure) = figure(all) {
        files.extend(plot::write(&figure, &stem("sweep"))?);
    }
    Ok(files)
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

/// `folder/name-what` for `folder/name.extension`.
fn beside(path: &Path, what: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{what}"))
}

fn document(evaluated: &Evaluated) -> Value {
    let lengths = evaluated.sweep.iter().flat_map(|sweep| &sweep.lengths).map(row).collect::<Vec<_>>();
    let splits = evaluated.splits.iter().map(|split| {
        let total = &split.total;
        json!({
            "split": split.by_length.facts.split,
            "loops": split.loops,
            "n_sequences": total.n_sequences,
            "counting_accuracy": total.counting_accuracy(),
            "last_accuracy": total.last_accuracy(),
            "accuracy": total.accuracy(),
            "unseen_accuracy": total.unseen_accuracy(),
            "sequence_accuracy": total.sequence_accuracy(),
            "loss": split.batch_mean_loss,
            "status": split.status(),
        })
    });
    json!({
        "handle": evaluated.facts.handle,
        "model": evaluated.model,
        "task": evaluated.facts.task,
        "provider": evaluated.facts.provider,
        "seconds": evaluated.seconds,
        "session_seconds": evaluated.session_seconds,
        "files": evaluated.files,
        "lengths": lengths,
        "splits": splits.collect::<Vec<_>>(),
    })
}

fn row(result: &LengthResult) -> Value {
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

fn summary_text(evaluated: &Evaluated) -> String {
    let Evaluated { facts, sweep, splits, seconds, .. } = evaluated;
    let what = sweep.iter().map(|sweep| format!("{} lengths", sweep.lengths.len()));
    let what: Vec<String> = what.chain(splits.iter().map(|split| split.by_length.facts.split.clone())).collect();
    let (arch, what) = (facts.arch.as_deref().unwrap_or("model"), what.join(", "));
    let mut lines = vec![format!("{arch} on {} · {} · {what} in {seconds:.2} s", facts.task, facts.provider)];
    lines.extend(sweep.iter().map(|sweep| summary::table(&sweep.lengths, evaluated.train_max).to_string()));
    if !splits.is_empty() {
        lines.push(summary::splits(splits).to_string());
    }
    lines.extend(evaluated.files.iter().map(|file| file.display().to_string()));
    lines.join("\n")
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

/// One line per model; nothing where no sweep has two lengths.
fn figure(all: &[Evaluated]) -> Option<Figure> {
    let first = all.first()?;
    let series: Vec<Series> = all
        .iter()
        .filter_map(|evaluated| {
            let points = points(&evaluated.sweep.as_ref()?.lengths);
            let facts = &evaluated.facts;
            let positions = facts.positional_embedding.as_deref().unwrap_or_default();
            let name = plot::display_name(facts.arch.as_deref().unwrap_or("model"), positions);
            let label = if all.len() > 1 { format!("{name} {}", evaluated.name) } else { name };
            (points.len() > 1).then_some(Series { label, points })
        })
        .collect();
    let longest = series.iter().map(|s| s.points.len()).max()?;
    let title = match &series[..] {
        [one] => format!("How far does the {} count?", one.label),
        _ => "How far do they count?".to_owned(),
    };
    Some(Figure {
        title,
        subtitle: format!("{} · last-token accuracy{}", first.task.name, smoothing_note(longest)),
        train_max: first.train_max,
        chance: chance(first.task.family.as_ref()),
        series,
    })
}
