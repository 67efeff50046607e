//! Models to evaluate, and the files that a call of `pipeline eval` writes for them, planned before its work begins.

use crate::cli::EvalArgs;
use crate::cli::endings::{self, appended, told_apart, without_ending};
use crate::cli::outputs::Outputs;
use crate::commands::Context;
use crate::plot;
use crate::run::{MODEL_FILE, RunDir};
use crate::split::NamedSplit;
use anyhow::{Context as _, Result, bail};
use data::files::{self, DestinationKind};
use evaluators::{Format, Lengths};
use std::path::{Path, PathBuf};

/// A model to evaluate.
pub struct Target {
    /// Tells it apart from the others: a handle, or the name of a file or a checkpoint.
    pub name: String,
    /// The ONNX file.
    pub model: PathBuf,
    /// The beginning of the names of its result files, without a suffix for their contents.
    pub folder: PathBuf,
    /// Put before the names of result files, where several models share a folder.
    pub prefix: String,
    /// Where the progress of its sweep is kept.
    pub journal: PathBuf,
    /// How often a looped model is to apply its blocks, where that is not as often as in training.
    pub iterations: Option<u32>,
}

/// Models whose results go into the same tables, and the files of these.
pub struct Group {
    pub targets: Vec<Target>,
    pub sweep: Option<PathBuf>,
    /// By length, and as a whole.
    pub splits: Vec<[PathBuf; 2]>,
    /// Of every model: those of its sweep, where there is one, then those of every split.
    pub predictions: Vec<Vec<PathBuf>>,
    /// The name of the picture, without its endings.
    pub figure: Option<PathBuf>,
}

/// The kind of `-o`, where that is no file: a device or a pipe takes the table of a sweep, and nothing else.
pub fn stream(context: &Context, args: &EvalArgs, sweeps: bool) -> Result<Option<DestinationKind>> {
    let Some(output) = &args.output else { return Ok(None) };
    let kind = files::destination(output)?.kind;
    if !kind.is_stream() {
        return Ok(None);
    }
    if !sweeps || !args.split.is_empty() || args.predictions {
        bail!(
            "-o {} is no file, so that only the table of a sweep can go there\n  hint: leave out --split and --predictions, or name a file",
            output.display()
        );
    }
    if kind == DestinationKind::Stdout && context.json {
        bail!("-o {} and --json both print on standard output\n  hint: leave out one of them", output.display());
    }
    Ok(Some(kind))
}

/// All files of a call, by the models that share them.
pub fn groups(
    args: &EvalArgs,
    format: Format,
    mut targets: Vec<Target>,
    sweeps: bool,
    splits: &[NamedSplit],
    streams: bool,
) -> Vec<Group> {
    let ending = format!(".{}", format.name());
    let group = |targets: Vec<Target>, exact: Option<&PathBuf>, stem: &dyn Fn(&str) -> PathBuf| {
        let table = |what: &str| appended(&stem(what), &ending);
        let sweep = exact.cloned().unwrap_or_else(|| table("sweep")); // exactly the name that was asked for
        let predictions = |target: &Target| {
            // a table of predictions does not say whose they are
            let whose = if targets.len() > 1 { format!("-{}", target.name) } else { String::new() };
            let of = |what: &str| appended(&stem(what), &format!("-predictions{whose}{ending}"));
            let swept = sweeps.then(|| of("sweep"));
            swept.into_iter().chain(splits.iter().map(|split| of(&split.name))).collect()
        };
        Group {
            sweep: sweeps.then_some(sweep),
            splits: splits.iter().map(|s| [table(&s.name), table(&format!("{}-total", s.name))]).collect(),
            predictions: if args.predictions { targets.iter().map(predictions).collect() } else { vec![] },
            figure: (sweeps && !streams).then(|| stem("sweep")),
            targets,
        }
    };
    let shared = |stem: PathBuf| {
        move |what: &str| if what == "sweep" { stem.clone() } else { appended(&stem, &format!("-{what}")) }
    };
    match (&args.output, targets.first()) {
        (Some(output), _) => {
            let stem = without_ending(output, &endings::TABLES);
            let name = stem.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let several = targets.len() > 1;
            for target in targets.iter_mut().filter(|_| !streams) {
                let whose = if several { format!("-{}", target.name) } else { String::new() };
                target.journal = output.with_file_name(format!(".{name}{whose}.progress"));
            }
            vec![group(targets, Some(output), &shared(stem))]
        }
        (None, Some(first)) if args.checkpoints.is_some() => {
            let stem = first.folder.join("checkpoints");
            vec![group(targets, None, &shared(stem))]
        }
        (None, Some(_)) if args.iterations.is_some() => {
            let mut groups = Vec::new();
            while let Some(first) = targets.first() {
                let (folder, prefix, model) = (first.folder.clone(), first.prefix.clone(), first.model.clone());
                let (same, others) = targets.into_iter().partition(|target| target.model == model);
                groups.push(group(same, None, &shared(folder.join(format!("{prefix}iterations")))));
                targets = others;
            }
            groups
        }
        (None, _) => {
            let own = |target: Target| {
                let (folder, prefix) = (target.folder.clone(), target.prefix.clone());
                group(vec![target], None, &|what| folder.join(format!("{prefix}{what}")))
            };
            targets.into_iter().map(own).collect()
        }
    }
}

impl Group {
    /// Every file with what it holds, in the order in which they are listed.
    pub fn files(&self, splits: &[NamedSplit]) -> Vec<(String, PathBuf)> {
        let names: Vec<&str> = self.targets.iter().map(|target| target.name.as_str()).collect();
        let names = names.join(", ");
        let mut files: Vec<(String, PathBuf)> =
            self.sweep.iter().map(|path| (format!("the sweep of {names}"), path.clone())).collect();
        for (split, [by_length, total]) in splits.iter().zip(&self.splits) {
            files.push((format!("the scores of {names} on {}", split.name), by_length.clone()));
            files.push((format!("the totals of {names} on {}", split.name), total.clone()));
        }
        for (target, paths) in self.targets.iter().zip(&self.predictions) {
            files.extend(paths.iter().map(|path| (format!("predictions of {}", target.name), path.clone())));
        }
        let pictures = self.figure.iter().flat_map(|stem| plot::files(stem));
        files.extend(pictures.map(|path| (format!("the picture of {names}"), path)));
        files
    }
}

/// All files of the call, checked before its work begins.
pub fn planned(context: &Context, args: &EvalArgs, groups: &[Group], splits: &[NamedSplit]) -> Result<Outputs> {
    let mut outputs = Outputs::default();
    outputs.spares_runs(&context.runs);
    for target in groups.iter().flat_map(|group| &group.targets) {
        outputs.reads(format!("the model of {}", target.name), &target.model);
    }
    for split in splits {
        outputs.reads(format!("the split {}", split.given), Path::new(&split.given));
    }
    // Also where it only names others: what is asked for is never to be taken for an input.
    let unwritten = args.output.iter().filter(|_| groups.iter().all(|group| group.sweep.is_none()));
    unwritten.for_each(|output| outputs.writes("the results", output));
    for (what, path) in groups.iter().flat_map(|group| group.files(splits)) {
        outputs.writes(what, &path);
    }
    outputs.check()?;
    Ok(outputs)
}

/// Where the progress of the sweep is kept; nowhere, with a note, where it cannot be.
pub fn journal(context: &Context, args: &EvalArgs, target: &Target, sweeps: bool) -> Option<PathBuf> {
    let journal = &target.journal;
    if args.restart {
        let _ = std::fs::remove_file(journal); // where there is none, nothing is to be taken up
    }
    if !sweeps || args.predictions {
        return None;
    }
    match files::probe(journal) {
        Ok(()) => Some(journal.clone()),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            context.progress.note(format!("if this sweep is killed, it has to start again: {reason}"));
            None
        }
    }
}

/// The models that the command line names, each as often as there are numbers of iterations.
pub fn targets(context: &Context, args: &EvalArgs) -> Result<Vec<Target>> {
    let named = named_targets(context, args)?;
    Ok(match &args.iterations {
        Some(numbers) => named.iter().flat_map(|target| target.looped(numbers)).collect(),
        None => named,
    })
}

fn named_targets(context: &Context, args: &EvalArgs) -> Result<Vec<Target>> {
    let runs = &context.runs;
    if !args.model.is_empty() {
        return models(&args.model);
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
        handles => {
            let is_first = |(index, handle): &(usize, &String)| !handles[..*index].contains(handle);
            handles.iter().enumerate().filter(is_first).map(|(_, handle)| named(handle)).collect::<Result<_>>()?
        }
    };
    if args.checkpoints.is_some() {
        return match &found[..] {
            [run] => checkpoints(context, run),
            _ => bail!("--checkpoints is about one run\n  hint: name one --handle"),
        };
    }
    let target = |run: RunDir| Target::new(run.handle().to_owned(), run.onnx(), run.eval(), String::new());
    Ok(found.into_iter().map(target).collect())
}

impl Target {
    fn new(name: String, model: PathBuf, folder: PathBuf, prefix: String) -> Self {
        let journal = folder.join(format!(".{prefix}sweep.progress"));
        Self { name, model, folder, prefix, journal, iterations: None }
    }

    /// The same model with each of these numbers of iterations.
    fn looped(&self, numbers: &Lengths) -> impl Iterator<Item = Self> {
        numbers.as_slice().iter().map(|&iterations| Self {
            name: format!("{}-{iterations}-iterations", self.name),
            model: self.model.clone(),
            folder: self.folder.clone(),
            prefix: self.prefix.clone(),
            journal: self.folder.join(format!(".{}{iterations}-iterations-sweep.progress", self.prefix)),
            iterations: Some(iterations),
        })
    }
}

/// Models outside of runs, each once, under names that tell them apart.
fn models(files: &[PathBuf]) -> Result<Vec<Target>> {
    let mut named: Vec<(String, PathBuf)> = Vec::new();
    for file in files {
        let stem = without_ending(file, &endings::MODELS);
        let name = stem.file_name().context("--model does not name a file")?.to_string_lossy().into_owned();
        if !named.iter().any(|(other, path)| *other == name && files::is_same_file(path, file)) {
            named.push((name, file.clone()));
        }
    }
    let names = told_apart(&named);
    let target = |(name, (_, model)): (String, (String, PathBuf))| {
        let prefix = format!("{name}-");
        Target::new(name, model, PathBuf::new(), prefix)
    };
    Ok(names.into_iter().zip(named).map(target).collect())
}

/// The models of all checkpoints of a run, fewest steps first; those that are missing are made.
fn checkpoints(context: &Context, run: &RunDir) -> Result<Vec<Target>> {
    #[cfg(feature = "train")]
    crate::export::export_checkpoints(context, run, &Default::default())?;
    #[cfg(not(feature = "train"))]
    let _ = context;
    let target = |(_, path): (u64, PathBuf)| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let model = path.join(MODEL_FILE);
        let prefix = format!("{name}-");
        model.is_file().then(|| Target::new(name, model, run.eval(), prefix))
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
