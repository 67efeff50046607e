//! Which files of a folder are which splits.

use super::{StringLabels, flare, mlregtest};
use crate::DataError;
use crate::dataset::source::dataset_dict;
use std::path::{Path, PathBuf};

/// Endings of files of examples.
const ENDINGS: [&str; 11] =
    ["parquet", "pq", "arrow", "feather", "ipc", "jsonl", "ndjson", "json", "csv", "tsv", "txt"];

/// The splits of a folder by name, train first where there is one; a file is the split `train`. Of a folder with files of
/// several languages of MLRegTest, `language` is the one that is meant.
///
/// # Errors
/// There is no such file or folder, or it is not clear what in it is which split.
pub(crate) fn splits(
    path: &Path,
    labels: StringLabels,
    language: Option<&str>,
) -> Result<Vec<(String, PathBuf)>, DataError> {
    let metadata = path.metadata().map_err(DataError::io("read", path))?;
    if !metadata.is_dir() {
        return Ok(vec![("train".into(), path.into())]);
    }
    if flare::is_folder(path) {
        return of_flare(path, labels);
    }
    if let Some(splits) = dataset_dict(path)? {
        return named(path, splits);
    }
    let entries = entries(path)?;
    let languages = of_mlregtest(&entries);
    if !languages.is_empty() {
        return one_language(path, languages, language);
    }
    let splits: Vec<(String, PathBuf)> = entries.into_iter().filter_map(|entry| Some((stem(&entry)?, entry))).collect();
    if splits.iter().any(|(name, _)| usual(name) == Some("train")) {
        return named(path, splits);
    }
    Ok(vec![("train".into(), path.into())]) // the parts of one dataset
}

/// What is in a folder, by name, but for hidden files.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = std::fs::read_dir(folder).map_err(DataError::io("read", folder))?;
    let entries = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(DataError::io("read", folder))?;
    let is_hidden = |path: &PathBuf| path.file_name().is_none_or(|name| name.to_string_lossy().starts_with(['.', '_']));
    entries.retain(|path| !is_hidden(path));
    entries.sort();
    Ok(entries)
}

/// The split that a file or folder is by its name: `train-00000-of-00001.parquet` is `train`.
fn stem(path: &Path) -> Option<String> {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() }?.to_str()?;
    let name = match name.split_once("-of-") {
        Some((start, _)) => start.rsplit_once('-').map_or(start, |(name, _)| name),
        None => name,
    };
    let known = |ending: &str| ENDINGS.contains(&ending.to_ascii_lowercase().as_str());
    let is_read = match path.is_dir() {
        true => usual(name).is_some(),
        false => path.extension().and_then(|ending| ending.to_str()).is_some_and(known),
    };
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    (is_read && plain && name != "dataset_info").then(|| name.to_owned())
}

/// The name here of a split that others call differently.
fn usual(name: &str) -> Option<&'static str> {
    match name.to_ascii_lowercase().as_str() {
        "train" | "training" => Some("train"),
        "val" | "valid" | "validation" | "dev" => Some("val"),
        "ood_test" | "test" => Some("ood_test"),
        _ => None,
    }
}

/// Splits with the names that they have here; one that is called so already comes before one that is only meant.
fn named(folder: &Path, found: Vec<(String, PathBuf)>) -> Result<Vec<(String, PathBuf)>, DataError> {
    let taken = |name: &str| found.iter().any(|(own, _)| own == name);
    let name = |own: &str| usual(own).filter(|usual| *usual == own || !taken(usual)).unwrap_or(own).to_owned();
    let mut splits: Vec<(String, PathBuf)> = found.iter().map(|(own, path)| (name(own), path.clone())).collect();
    splits.sort_by_key(|(name, _)| ["train", "val", "ood_test"].iter().position(|own| own == name).unwrap_or(3));
    match splits.iter().enumerate().find(|(i, (name, _))| splits[..*i].iter().any(|(other, _)| other == name)) {
        None => Ok(splits),
        Some((_, (name, path))) => Err(DataError::Invalid {
            path: folder.into(),
            reason: format!("there are several files of the split {name}: {} is one of them", path.display()),
            hint: "name the file of each split: train = …, val = …, test = …".into(),
        }),
    }
}

/// `validation-short` has the lengths of training, and `test` longer ones too.
fn of_flare(folder: &Path, labels: StringLabels) -> Result<Vec<(String, PathBuf)>, DataError> {
    let mut splits = vec![("train".to_owned(), folder.to_owned())];
    let others = folder.join(flare::OTHERS);
    let others = if others.is_dir() { entries(&others)? } else { vec![] };
    for path in others.into_iter().filter(|path| flare::is_folder(path) && flare::has(path, labels)) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        splits.push((if name == "validation-short" { "val".to_owned() } else { name.to_owned() }, path));
    }
    named(folder, splits)
}

/// A language and its splits.
type Language = (String, Vec<(String, PathBuf)>);

fn of_mlregtest(entries: &[PathBuf]) -> Vec<Language> {
    let mut languages: Vec<Language> = Vec::new();
    for path in entries {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some((end, split)) = mlregtest::SPLITS.iter().find(|(end, _)| name.ends_with(end)) else { continue };
        let (language, file) = (name[..name.len() - end.len()].to_owned(), ((*split).to_owned(), path.clone()));
        match languages.iter_mut().find(|(known, _)| *known == language) {
            Some((_, splits)) => splits.push(file),
            None => languages.push((language, vec![file])),
        }
    }
    languages
}

fn one_language(
    folder: &Path,
    languages: Vec<Language>,
    wanted: Option<&str>,
) -> Result<Vec<(String, PathBuf)>, DataError> {
    let names: Vec<String> = languages.iter().take(8).map(|(name, _)| name.clone()).collect();
    let several = languages.len() > 1;
    match languages.into_iter().find(|(name, _)| wanted.map_or(!several, |wanted| wanted == name)) {
        Some((_, splits)) => named(folder, splits),
        None => Err(DataError::Invalid {
            path: folder.into(),
            reason: match wanted {
                Some(wanted) => format!("it has no files of the language {wanted}, but of {}", names.join(", ")),
                None => format!("it has files of several languages: {}", names.join(", ")),
            },
            hint: "language = NAME says which one is meant: what comes before _Train.txt".into(),
        }),
    }
}
