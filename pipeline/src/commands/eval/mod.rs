//! `pipeline eval`: sweeps test lengths and scores splits through ONNX Runtime.

mod files;
mod summary;

use self::files::{Group, Target, groups, journal, planned, stream, targets};
use self::summary::{document, figure, summary_text};
use super::Context;
use crate::cli::EvalArgs;
use crate::cli::endings::table_format;
use crate::cli::outputs::Outputs;
use crate::plot;
use crate::run::RunDir;
use crate::split::{self, NamedSplit};
use anyhow::{Result, bail};
use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use data::files::DestinationKind;
use data::{Augmentation, Dataset, Task};
use evaluators::{
    DatasetResult, Format, Lengths, LoadOptions, Model, Progress, Provider, RuntimeLibrary, Sweep, SweepFacts,
    SweepResult, totals_to_record_batch, write, write_predictions,
};
use indicatif::ProgressBar;
use serde_json::json;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A part of what is found about a model, as soon as it is there.
enum Scored<'a> {
    Sweep(&'a mut SweepResult),
    /// With the number of the split.
    Split(usize, &'a mut DatasetResult),
}

/// The results of one model.
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
    journal: Option<PathBuf>,
}

pub fn run(context: &Context, args: EvalArgs) -> Result<()> {
    if let Some(width) = args.until_width.filter(|width| !(*width > 0.0 && *width < 1.0)) {
        bail!("--until-width {width} must be between 0 and 1\n  hint: 0.01 to 0.5 make sense");
    }
    let format = table_format(args.output.as_deref(), args.format)?;
    if let Ok(Some(library)) = RuntimeLibrary::find() {
        let version = library.version.as_deref().unwrap_or("of unknown version");
        context.progress.detail(format!("ONNX Runtime {version}, {}: {}", library.source, library.path.display()));
    }
    let lengths = match (&args.lengths, args.split.is_empty()) {
        (None, true) => Some(Lengths::from(1..=1000)),
        (lengths, _) => lengths.clone(),
    };
    check_effects(&args, lengths.is_some())?;
    let splits = named_splits(context, &args.split);
    let stream = stream(context, &args, lengths.is_some())?;
    if let Some(output) = &args.output {
        data::files::probe(output)?; // before checkpoints are exported, which is work already
    }
    let targets = targets(context, &args)?;
    check_iterations(&args, &targets)?;
    // No export and no `runs rm` changes a model while it is evaluated.
    let mut runs: Vec<RunDir> = targets.iter().filter_map(|target| RunDir::containing(&target.model)).collect();
    runs.dedup_by(|a, b| a.handle() == b.handle());
    let _locks: Vec<_> = runs.iter().map(|run| run.read_models(|note| context.progress.note(note))).collect();
    let groups = groups(&args, format, targets, lengths.is_some(), &splits, stream.is_some());
    let outputs = planned(context, &args, &groups, &splits)?;
    let mut all = Vec::new();
    for group in groups {
        all.extend(evaluate_group(context, &args, format, &group, lengths.as_ref(), &splits, &outputs)?);
    }
    let as_json = || match &all[..] {
        [one] => document(one, &args.mean),
        several => json!({ "results": several.iter().map(|one| document(one, &args.mean)).collect::<Vec<_>>() }),
    };
    let as_text = || all.iter().map(|one| summary_text(one, &args.mean)).collect::<Vec<_>>().join("\n\n");
    if stream == Some(DestinationKind::Stdout) {
        context.progress.note(as_text()); // standard output is the table
        return Ok(());
    }
    context.print(as_json, as_text)
}

/// The splits that the command line names, each once, with names that tell them apart.
fn named_splits(context: &Context, given: &[String]) -> Vec<NamedSplit> {
    let splits = split::named(given);
    for NamedSplit { given, name, .. } in splits.iter().filter(|split| split.is_renamed) {
        context.progress.note(format!("the split {given} is called `{name}` in tables and files"));
    }
    splits
}

/// Refuses options that change nothing in this combination: whoever gives one expects that it does.
fn check_effects(args: &EvalArgs, sweeps: bool) -> Result<()> {
    let of_sweeps = [
        ("--samples", args.samples.is_some()),
        ("--until-width", args.until_width.is_some()),
        ("--restart", args.restart),
        ("--mean", !args.mean.is_empty()),
    ];
    if let (false, Some((option, _))) = (sweeps, of_sweeps.iter().find(|(_, given)| *given)) {
        bail!(
            "{option} is about a sweep of lengths, and only splits are to be scored\n  hint: add --lengths 1..1000, or leave out {option}"
        );
    }
    if args.loops.is_some() && args.split.is_empty() {
        bail!("--loops is about splits, and none is named\n  hint: add --split val, or leave out --loops");
    }
    Ok(())
}

/// Refuses models that are not looped, before others are evaluated.
fn check_iterations(args: &EvalArgs, targets: &[Target]) -> Result<()> {
    let mut known: Vec<&Path> = Vec::new();
    for target in targets {
        let Some(iterations) = target.iterations.filter(|_| !known.contains(&&*target.model)) else { continue };
        let options = LoadOptions { provider: Provider::Cpu, threads: Some(1) };
        Model::load_with_logits(&target.model, options, args.logits.as_deref())?.set_iterations(iterations)?;
        known.push(&target.model);
    }
    Ok(())
}

/// Says which options change nothing for a model whose positions are not drawn at random.
fn note_effects(context: &Context, args: &EvalArgs, model: &Model, sweeps: bool) {
    let named = model.info().augmentation.as_deref().and_then(|name| name.parse::<Augmentation>().ok());
    if args.augmentation.or(named).unwrap_or_default().is_random() {
        return;
    }
    let note = |option: &str| {
        context
            .progress
            .note(format!("{option} changes nothing in the scores of a split: no positions are drawn at random"));
    };
    if args.loops.is_some_and(|loops| loops > 1) {
        note("--loops");
    }
    if args.seed.is_some() && !sweeps {
        note("--seed");
    }
}

/// Evaluates models that share their tables, and writes every table as soon as all of it is scored.
fn evaluate_group(
    context: &Context,
    args: &EvalArgs,
    format: Format,
    group: &Group,
    lengths: Option<&Lengths>,
    splits: &[NamedSplit],
    outputs: &Outputs,
) -> Result<Vec<Evaluated>> {
    let mut all: Vec<Evaluated> = Vec::new();
    let put = |path: &Path, tables: Vec<RecordBatch>| -> Result<()> {
        let Some(first) = tables.first() else { return Ok(()) };
        let table = concat_batches(&first.schema(), &tables)?;
        outputs.write(path, |path| Ok(write(&table, format, path)?))
    };
    for (index, target) in group.targets.iter().enumerate() {
        let is_last = index + 1 == group.targets.len();
        let journal = journal(context, args, target, lengths.is_some());
        let predictions = |slot: usize, result: &mut SweepResult| -> Result<()> {
            let Some(path) = group.predictions.get(index).and_then(|paths| paths.get(slot)) else { return Ok(()) };
            outputs.write(path, |path| Ok(write_predictions(&result.predictions, format, path)?))?;
            result.predictions = vec![]; // they take more memory than anything else
            Ok(())
        };
        let scored = |scored: Scored<'_>| match scored {
            Scored::Sweep(own) => {
                if let Some(path) = group.sweep.as_ref().filter(|_| is_last) {
                    let others = all.iter().filter_map(|e| e.sweep.as_ref());
                    let tables = others.chain([&*own]).map(SweepResult::to_record_batch);
                    put(path, tables.collect::<Result<_, _>>()?)?;
                }
                predictions(0, own)
            }
            Scored::Split(number, own) => {
                if let Some([by_length, total]) = group.splits.get(number).filter(|_| is_last) {
                    let mut results: Vec<&DatasetResult> = all.iter().filter_map(|e| e.splits.get(number)).collect();
                    results.push(own);
                    let tables = results.iter().map(|r| r.by_length.to_record_batch()).collect::<Result<_, _>>()?;
                    put(by_length, tables)?;
                    put(total, results.into_iter().map(totals).collect::<Result<_, _>>()?)?;
                }
                predictions(number + usize::from(lengths.is_some()), &mut own.by_length)
            }
        };
        let kept = journal.clone().filter(|_| !args.predictions);
        let goes_on = |error: anyhow::Error| match kept.filter(|path| path.is_file()) {
            Some(path) => {
                let text = format!("{error}\n  the same command continues: its sweep is kept in {}", path.display());
                error.context(text)
            }
            None => error,
        };
        let evaluated = evaluate(context, args, target, lengths.cloned(), splits, journal, scored);
        all.push(evaluated.map_err(goes_on)?);
    }
    if let (Some(stem), Some(figure)) = (&group.figure, figure(&all)) {
        let pictures = plot::write(&figure, stem).map_err(|error| outputs.explained(error))?;
        pictures.iter().for_each(|path| outputs.note_written(path));
    }
    let written = outputs.written();
    let files = group.files(splits).into_iter().map(|(_, path)| path).filter(|path| written.contains(path));
    if let Some(first) = all.first_mut() {
        first.files = files.collect();
    }
    for journal in all.iter().filter_map(|evaluated| evaluated.journal.as_ref()) {
        let _ = std::fs::remove_file(journal); // the results are written
    }
    Ok(all)
}

fn totals(result: &DatasetResult) -> evaluators::Result<RecordBatch> {
    totals_to_record_batch(std::slice::from_ref(result))
}

fn evaluate(
    context: &Context,
    args: &EvalArgs,
    target: &Target,
    lengths: Option<Lengths>,
    splits: &[NamedSplit],
    journal: Option<PathBuf>,
    mut scored: impl FnMut(Scored<'_>) -> Result<()>,
) -> Result<Evaluated> {
    let provider = match &args.provider_library {
        Some(library) => evaluators::load_provider_library(library)?,
        None => args.provider,
    };
    let options = LoadOptions { provider, threads: args.threads.map(usize::from) };
    let mut model = Model::load_with_logits(&target.model, options, args.logits.as_deref())?;
    model.notes().iter().for_each(|note| context.progress.note(format!("{}: {note}", target.model.display())));
    if let Some(iterations) = target.iterations {
        model.set_iterations(iterations)?;
    }
    if let Some(reason) = model.fallback() {
        context.progress.note(format!("running on the CPU: {reason}"));
    }
    let task = task_of(&model, args.task.as_deref())?;
    // Tests that cannot be had, or a split that cannot be read, are to be noticed before the sweep.
    task.family.outside().filter(|_| lengths.is_some()).map_or(Ok(()), |outside| outside.ready())?;
    let origin = split::origin(&target.model, &task);
    let read =
        |split: &NamedSplit| split::read(&context.datasets, &task, &split.given, origin).map(|(dataset, _)| dataset);
    let datasets = splits.iter().map(read).collect::<Result<Vec<Dataset>>>()?;
    for (split, dataset) in splits.iter().zip(&datasets) {
        dataset.note().into_iter().for_each(|note| context.progress.note(format!("{}: {note}", split.given)));
    }
    note_effects(context, args, &model, lengths.is_some());
    let start = Instant::now();
    let name = model.info().arch.clone().unwrap_or_else(|| "model".into());
    let bar = context.progress.bar(name, 0, "tokens");
    let last = Cell::new(Progress::default());
    let mut busy = Duration::ZERO;
    let rows = datasets.iter().flat_map(|dataset| dataset.iter()).map(|example| example.input_ids.len());
    let mut asks = configure(&mut model, &task, args, &bar, &last).probe_tokens(rows.max().unwrap_or(0));
    if let Some(lengths) = &lengths {
        asks = asks.lengths(lengths.clone());
    }
    let probe = asks.probe()?;
    // An unchanged export is not probed; what its metadata says is known as well.
    if let Some(probe) = probe.as_ref().filter(|_| !model.is_own_export()) {
        let is = match model.is_earlier_export() {
            true => {
                "is an export of an earlier version of this program, which is probed like any model (exporting it again makes that unnecessary)"
            }
            false => "is no plain export of this program, so it was probed",
        };
        context.progress.note(format!("{} {is}: {probe}", target.model.display()));
    }
    let mut sweep = None;
    if let Some(lengths) = lengths {
        let configured = configure(&mut model, &task, args, &bar, &last).probed(probe.clone());
        let configured = configured.lengths(lengths).journal(journal.as_deref());
        scored(Scored::Sweep(sweep.insert(configured.results()?)))?;
        busy += last.take().busy;
    }
    let mut results = Vec::new();
    for (number, (split, dataset)) in splits.iter().zip(datasets).enumerate() {
        bar.set_prefix(split.name.clone());
        let configured = configure(&mut model, &task, args, &bar, &last).probed(probe.clone()).loops(args.loops);
        let mut result = configured.run_dataset(&dataset, &split.name)?;
        scored(Scored::Split(number, &mut result))?;
        results.push(result);
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
        splits: results,
        seconds: start.elapsed().as_secs_f64(),
        session_seconds: busy.as_secs_f64(),
        files: vec![],
        journal,
    })
}

/// The settings that sweeps and splits share; `last` is kept up to date with the progress.
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
        .samples(args.samples.unwrap_or(100) as usize)
        .until_width(args.until_width)
        .seed(args.seed.unwrap_or(0))
        .exhaustive(args.exhaustive)
        .augmentation(args.augmentation)
        .max_tokens(args.max_tokens.map(|n| n as usize))
        .workers(args.workers.map(usize::from))
        .keep_predictions(args.predictions)
        .progress(show)
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
