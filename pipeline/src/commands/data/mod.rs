//! `pipeline data list | generate | import | show`.

mod list;
mod show;

use super::Context;
use crate::Workspace;
use crate::cli::shell::quoted;
use crate::cli::{DataCommand, DataImportArgs, GenerateArgs};
use anyhow::{Context as _, Result, anyhow, bail};
use data::{
    DataError, DatasetFolders, DatasetInfo, ExampleRef, GENERATOR_VERSION, Origin, Split, Task, Vocabulary,
    dataset_dict, generate_split, import, split_name,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

pub fn run(context: &Context, command: DataCommand) -> Result<()> {
    match command {
        DataCommand::List => list::run(context),
        DataCommand::Generate(args) => generate(context, &args),
        DataCommand::Import(args) => import_files(context, &args),
        DataCommand::Show(args) => show::run(context, &args),
    }
}

/// A file of a dataset.
pub struct SplitFile {
    /// Which split it is.
    pub split: Split,
    /// Where it is.
    pub path: PathBuf,
    /// How many examples it has.
    pub rows: usize,
    /// Whether it is there.
    exists: bool,
}

/// Makes sure that splits of a generated dataset are there: what is missing of them is written, and what is there is what
/// it should be.
pub fn complete(workspace: &Workspace, task: &Task, origin: Origin, splits: &[Split]) -> Result<Vec<SplitFile>> {
    let files = survey(workspace, task, origin, splits)?;
    if files.iter().any(|file| !file.exists) {
        workspace.progress.note(format!(
            "generating the dataset of {} in {}",
            task.name,
            DatasetFolders::new(&workspace.datasets).generated(task, origin).display()
        ));
        files.iter().filter(|file| !file.exists).try_for_each(|file| write(workspace, task, origin, file))?;
    }
    Ok(files)
}

/// The files of a generated dataset. Those that are there are what they should be.
fn survey(workspace: &Workspace, task: &Task, origin: Origin, splits: &[Split]) -> Result<Vec<SplitFile>> {
    let file = |split: &Split| -> Result<SplitFile> {
        let file = planned(workspace, task, origin, *split)?;
        if file.exists {
            check(&file.path, task, origin, *split)?;
        }
        Ok(file)
    };
    splits.iter().map(file).collect()
}

fn planned(workspace: &Workspace, task: &Task, origin: Origin, split: Split) -> Result<SplitFile> {
    let folder = DatasetFolders::new(&workspace.datasets).generated(task, origin);
    let path = folder.join(format!("{}.parquet", split.name()));
    Ok(SplitFile { split, rows: task.rows(split, origin.train)?, exists: path.exists(), path })
}

fn write(workspace: &Workspace, task: &Task, origin: Origin, file: &SplitFile) -> Result<()> {
    let bar = workspace.progress.bar(file.split.name(), file.rows as u64, "examples");
    let done = |done: usize| bar.set_position(done as u64);
    generate_split(task, file.split, origin.seed, file.rows, &file.path, done)?;
    bar.finish_and_clear();
    Ok(())
}

/// Whether a file says that it is a split that is generated from `origin`.
///
/// # Errors
/// It cannot be read, or is something else; the error says what.
pub fn check(path: &Path, task: &Task, origin: Origin, split: Split) -> Result<()> {
    let rows = task.rows(split, origin.train)?;
    let (info, found) = DatasetInfo::read(path).map_err(|error| damaged(error, task, origin))?;
    if info.is_of(task, origin.seed) && found == rows {
        return Ok(());
    }
    let changed = info.changed_files(task);
    if info.task == task.name && !changed.is_empty() {
        bail!(
            "{} was made from other examples: the files of {} have changed since ({})\n  \
             hint: `pipeline data generate {} --force` makes it again",
            path.display(),
            task.name,
            changed.join(", "),
            options(task, origin),
        )
    }
    let settings =
        if info.task == task.name && !info.has_settings(&DatasetInfo::of(task, 0)) { ", other settings" } else { "" };
    bail!(
        "{} holds {found} examples of {} (seed {}, generator {}{settings}), but {rows} of {} (seed {}, generator {GENERATOR_VERSION}) should be there\n  \
         hint: move it away, or `pipeline data generate {} --force` writes them in its place",
        path.display(),
        info.task,
        info.seed,
        info.generator_version,
        task.name,
        origin.seed,
        options(task, origin),
    )
}

/// A generated file that is damaged can be made again; the error says how.
pub fn damaged(error: DataError, task: &Task, origin: Origin) -> anyhow::Error {
    match error {
        DataError::Damaged { path, reason } => anyhow!(
            "cannot read {}: {reason}\n  hint: the file is damaged or was not written to its end; if it was generated, \
             `pipeline data generate {} --force` makes it again",
            path.display(),
            options(task, origin),
        ),
        other => other.into(),
    }
}

fn options(task: &Task, origin: Origin) -> String {
    format!("--task {} --train {} --seed {}", quoted(&task.name), origin.train, origin.seed)
}

fn generate(context: &Context, args: &GenerateArgs) -> Result<()> {
    let task = Task::by_name(&args.task)?;
    let origin = Origin { train: args.train.unwrap_or(task.train_examples), seed: args.seed };
    let start = Instant::now();
    let files = if args.force {
        let files = task.splits().into_iter().map(|split| planned(context, &task, origin, split));
        let files = files.collect::<Result<Vec<_>>>()?;
        files.iter().try_for_each(|file| write(context, &task, origin, file))?;
        files
    } else {
        let files = survey(context, &task, origin, &task.splits())?;
        if files.iter().all(|file| file.exists) {
            let folder = files.first().and_then(|file| file.path.parent()).context("a task without splits")?;
            bail!("{} is there already\n  hint: --force replaces the dataset", folder.display());
        }
        complete(context, &task, origin, &task.splits())?
    };
    let seconds = start.elapsed().as_secs_f64();
    let as_json = || {
        let files: Vec<Value> = files.iter().map(|file| json!({ "path": file.path, "examples": file.rows })).collect();
        json!({ "task": task.name, "seed": args.seed, "generator_version": GENERATOR_VERSION, "files": files, "seconds": seconds })
    };
    let as_text = || files.iter().map(|file| format!("{}  {} examples\n", file.path.display(), file.rows)).collect();
    context.print(as_json, as_text)
}

fn import_files(context: &Context, args: &DataImportArgs) -> Result<()> {
    let task = Task::by_name(&args.task)?;
    if args.split.is_some() && args.files.len() > 1 {
        bail!("--split names one split, but there are {} files\n  hint: import them one at a time", args.files.len());
    }
    if args.check_labels && task.family.outside().is_some() {
        bail!(
            "--check-labels: {} has no rule to check labels with: its labels come from outside\n  hint: leave out --check-labels",
            task.name
        );
    }
    let folder = DatasetFolders::new(&context.datasets).imported(&task);
    let mut sources: Vec<(PathBuf, String)> = vec![];
    for file in &args.files {
        match (&args.split, dataset_dict(file)?) {
            (None, Some(splits)) => sources.extend(splits.into_iter().map(|(name, folder)| (folder, name))),
            (None, None) => sources.push((file.clone(), split_name(file)?.to_owned())),
            (Some(name), _) => sources.push((file.clone(), name.clone())),
        }
    }
    let mut jobs: Vec<(PathBuf, String, PathBuf)> = vec![];
    for (file, split) in sources {
        let plain = !split.is_empty() && split.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !plain {
            bail!("--split {split} is not that of a split\n  hint: letters, digits, `_` and `-`");
        }
        let target = folder.join(format!("{split}.parquet"));
        if jobs.iter().any(|(_, other, _)| *other == split) {
            bail!("two files are the split {split}\n  hint: import them one at a time with --split");
        }
        if target.exists() && !args.force {
            bail!("{} is there already\n  hint: --force replaces it", target.display());
        }
        jobs.push((file, split, target));
    }
    jobs.iter().try_for_each(|(_, _, target)| data::files::probe(target))?;
    // Of several files, all are right before any appears.
    let together = (jobs.len() > 1).then(|| staging(&folder)).transpose()?;
    let mut written = Vec::new();
    for (source, split, target) in jobs {
        let place =
            together.as_ref().map_or_else(|| target.clone(), |folder| folder.path().join(format!("{split}.parquet")));
        let imported = import(&task, &source, &split, args.check_labels, &place)?;
        imported.note().into_iter().for_each(|note| context.progress.note(format!("{}: {note}", source.display())));
        written.push((imported, split, target));
    }
    if let Some(together) = &together {
        for (_, split, target) in &written {
            let place = together.path().join(format!("{split}.parquet"));
            std::fs::rename(&place, target).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    let as_json = || {
        let file = |(imported, split, path): &(data::Imported, String, PathBuf)| json!({ "path": path, "split": split, "examples": imported.rows, "tokens": imported.tokens });
        json!({ "task": task.name, "labels_checked": args.check_labels, "files": written.iter().map(file).collect::<Vec<_>>() })
    };
    let as_text = || {
        let line = |(imported, _, path): &(data::Imported, String, PathBuf)| {
            format!("{}  {} examples, {} tokens\n", path.display(), imported.rows, imported.tokens)
        };
        written.iter().map(line).collect()
    };
    context.print(as_json, as_text)
}

/// A temporary folder among datasets, for files that are to appear together.
fn staging(folder: &Path) -> Result<tempfile::TempDir> {
    let doing = || format!("cannot write into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(doing)?;
    tempfile::Builder::new().prefix(".partial-").tempdir_in(folder).with_context(doing)
}

/// An example in words: its tokens and its labels.
fn decode(example: ExampleRef<'_>, vocabulary: &Vocabulary) -> (Vec<String>, Vec<String>) {
    let token = |id: u16| vocabulary.token(id).unwrap_or("?").to_owned();
    let label = |label: &i16| vocabulary.label(*label);
    (example.input_ids.iter().map(|id| token(*id)).collect(), example.labels.iter().map(label).collect())
}
