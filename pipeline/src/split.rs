//! Splits as commands name them: a file, a folder of parts, or a split of the task's dataset.

use crate::cli::endings::{told_apart, without_ending};
use anyhow::{Result, bail};
use data::files;
use data::{Dataset, DatasetFolders, Origin, Split, Task, TaskConfig};
use std::path::{Path, PathBuf};

/// Splits by the names that they have in tables and in the names of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSplit {
    /// As it was named on the command line or in a grid.
    pub given: String,
    /// Its name in tables and in the names of files.
    pub name: String,
    /// Whether that is another one than its own, which others have or which means something else.
    pub is_renamed: bool,
}

/// The splits that are given, each once, with names that tell them apart.
pub fn named(given: &[String]) -> Vec<NamedSplit> {
    /// Endings of files with examples.
    const ENDINGS: [&str; 10] = ["parquet", "pq", "txt", "csv", "json", "jsonl", "ndjson", "arrow", "ipc", "feather"];
    let mut distinct: Vec<&String> = Vec::new();
    for split in given {
        let is_file = |split: &str| Path::new(split).exists();
        let is_same =
            |other: &&String| *other == split || is_file(split) && files::is_same_file(split.as_ref(), other.as_ref());
        if !distinct.iter().any(is_same) {
            distinct.push(split);
        }
    }
    let own = distinct.iter().map(|split| {
        let stem = without_ending(Path::new(split), &ENDINGS);
        (stem.file_name().unwrap_or(stem.as_os_str()).to_string_lossy().into_owned(), PathBuf::from(split))
    });
    let own: Vec<(String, PathBuf)> = own.collect();
    let names = told_apart(&own).into_iter().map(free_name);
    let splits = own.iter().zip(names).map(|((own, path), name)| NamedSplit {
        given: path.to_string_lossy().into_owned(),
        is_renamed: name != *own,
        name,
    });
    splits.collect()
}

/// Another name for a split whose own means something else among results.
fn free_name(name: String) -> String {
    let small = name.to_lowercase();
    let means_other = ["sweep", "total", "predictions"].contains(&small.as_str())
        || small.starts_with("checkpoints")
        || small.starts_with('.');
    let name = if means_other { format!("split-{name}") } else { name };
    if small.ends_with("-total") || small.contains("-predictions") { name + "-split" } else { name }
}

/// The examples that `split` names, and its name in result tables: a file or folder that `data import` takes, a file of
/// the task's dataset, or, where that was not generated, the split itself. Of datasets of several seeds and sizes, it
/// is that of `origin`.
pub fn read(data_dir: &Path, task: &Task, split: &str, origin: Option<Origin>) -> Result<(Dataset, String)> {
    let path = Path::new(split);
    if let Some(dataset) = Dataset::from_outside(task, split)? {
        return Ok((dataset, path.file_stem().unwrap_or_default().to_string_lossy().into_owned()));
    }
    if path.extension().is_some() || path.components().count() > 1 || split.ends_with(std::path::is_separator) {
        return read_file(path, task);
    }
    let folders = DatasetFolders::new(data_dir);
    if let Some(file) = folders.find(task, split, origin)? {
        return Ok((Dataset::read_as(&file, Some(task))?, split.to_owned()));
    }
    let generate = |known: Split, origin: Origin| -> Result<_> {
        let rows = task.rows(known, origin.train)?;
        Ok((Dataset::generated(task, known, origin.seed, rows)?, split.to_owned()))
    };
    match (split.parse::<Split>(), origin) {
        (Ok(Split::Train), Some(origin)) => generate(Split::Train, origin),
        (Ok(known), origin) if known != Split::Train => generate(known, origin.unwrap_or(Origin { train: 0, seed: 0 })),
        _ if path.exists() => read_file(path, task),
        _ => bail!(
            "there is no split `{split}`: {} does not exist\n  hint: val and ood_test always work; others must be generated or imported first, or name a file (Parquet, Arrow, JSON, CSV or text)",
            folders.imported(task).join(format!("{split}.parquet")).display()
        ),
    }
}

/// The examples that `split` names for a task, and its name in result tables: a file or folder that `pipeline data import`
/// takes, a file of the task's dataset under `datasets`, or, where that was not generated, the split itself.
///
/// # Errors
/// There is no such split, or a file cannot be used.
pub fn read_split(datasets: &Path, task: &Task, split: &str) -> Result<(Dataset, String)> {
    read(datasets, task, split, None)
}

fn read_file(path: &Path, task: &Task) -> Result<(Dataset, String)> {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    Ok((Dataset::read_as(path, Some(task))?, name.unwrap_or_default().to_string_lossy().into_owned()))
}

/// The origin of the dataset that a model was trained on, from the config of the run that the model lies in, where there is
/// one and it is of this task.
pub fn origin(model: &Path, task: &Task) -> Option<Origin> {
    let model = std::path::absolute(model).ok()?;
    // runs/<handle>/model.onnx, runs/<handle>/checkpoints/<name>/model.onnx
    let configs = model.ancestors().skip(1).take(3).map(|folder| folder.join("config.toml"));
    let text = configs.filter_map(|config| std::fs::read_to_string(config).ok()).next()?;
    TaskConfig::of_config(&text).filter(|config| config.name == task.name).map(|config| config.origin())
}
