//! Endings of file names, and names that tell files apart.
//!
//! File names are only ever appended to. The text behind the last dot of `lr0.01` is no ending, so a stem is the rest
//! of a name without an ending that is known ([`without_ending`]).

use anyhow::{Result, bail};
use evaluators::Format;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Endings of result tables, and of text, which some like to call their CSV files.
pub const TABLES: [&str; 8] = ["parquet", "pq", "arrow", "feather", "ipc", "csv", "json", "txt"];

/// Endings of models.
pub const MODELS: [&str; 2] = ["onnx", "ort"];

/// Endings of files that are no tables of ours: one of these names would only mislead.
const FOREIGN: [&str; 27] = [
    "tsv",
    "xlsx",
    "xls",
    "ods",
    "jsonl",
    "ndjson",
    "orc",
    "avro",
    "h5",
    "npy",
    "npz",
    "pkl",
    "svg",
    "png",
    "pdf",
    "html",
    "md",
    "toml",
    "yaml",
    "onnx",
    "safetensors",
    "pt",
    "pth",
    "gz",
    "zst",
    "zip",
    "db",
];

/// The format of result tables: what `--format` says, or the ending of `-o`, or Parquet.
///
/// # Errors
/// The two contradict each other, or the ending is that of something else.
pub fn table_format(output: Option<&Path>, named: Option<Format>) -> Result<Format> {
    let Some(output) = output else { return Ok(named.unwrap_or_default()) };
    if output.as_os_str().is_empty() {
        bail!("-o names no file\n  hint: results.parquet, for example");
    }
    let ending = output.extension().unwrap_or_default();
    if is_one_of(ending, &FOREIGN) {
        bail!(
            "-o {}: result tables are Parquet, Arrow, CSV or JSON\n  hint: let the name end in .parquet, .arrow, .csv or .json",
            output.display()
        );
    }
    match (ending.to_str().and_then(Format::of_ending), named) {
        (Some(ending), Some(named)) if ending != named => bail!(
            "-o {} and --format {named} contradict each other\n  hint: leave out --format, or let the name end in .{named}",
            output.display()
        ),
        (of_ending, named) => Ok(named.or(of_ending).unwrap_or_default()),
    }
}

pub fn is_one_of(ending: &OsStr, known: &[&str]) -> bool {
    ending.to_str().is_some_and(|ending| known.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

/// The path without its ending, if that is one of `known`.
pub fn without_ending(path: &Path, known: &[&str]) -> PathBuf {
    let is_known = path.extension().is_some_and(|ending| is_one_of(ending, known));
    if is_known { path.with_extension("") } else { path.to_owned() }
}

/// The path with `tail` behind its name.
pub fn appended(path: &Path, tail: &str) -> PathBuf {
    let mut whole = path.as_os_str().to_owned();
    whole.push(tail);
    whole.into()
}

/// Names that tell things apart, given a name of each and the path that it comes from: where names are the same (but for
/// capitals), as many folders as it takes come before them; where folders are the same as well, numbers behind them.
pub fn told_apart(named: &[(String, PathBuf)]) -> Vec<String> {
    let folders = |path: &Path| -> Vec<String> {
        let parts = path.parent().into_iter().flat_map(Path::components);
        let names = parts.filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        });
        names.collect()
    };
    let with_folders = |(name, path): &(String, PathBuf), depth: usize| {
        let folders = folders(path);
        let mut parts = folders[folders.len().saturating_sub(depth)..].to_vec();
        parts.push(name.clone());
        parts.join("-")
    };
    let is_distinct = |names: &[String]| {
        let distinct: HashSet<String> = names.iter().map(|name| name.to_lowercase()).collect();
        distinct.len() == names.len()
    };
    let longer = named.iter().map(|one| {
        let same: Vec<_> = named.iter().filter(|other| other.0.to_lowercase() == one.0.to_lowercase()).collect();
        let deepest = same.iter().map(|(_, path)| folders(path).len()).max().unwrap_or(0);
        let enough = (0..=deepest)
            .find(|&depth| is_distinct(&same.iter().map(|other| with_folders(other, depth)).collect::<Vec<_>>()));
        with_folders(one, enough.unwrap_or(0))
    });
    let mut taken = HashSet::new();
    let numbered = longer.map(|name| {
        let tries = (2..).map(|number| format!("{name}-{number}"));
        let free = std::iter::once(name.clone()).chain(tries).find(|name| taken.insert(name.to_lowercase()));
        free.unwrap_or(name)
    });
    numbered.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_told_apart_by_folders_and_then_by_numbers() {
        let names = |paths: &[&str]| {
            let named = |path: &&str| {
                let stem = without_ending(Path::new(path), &MODELS);
                (stem.file_name().unwrap().to_string_lossy().into_owned(), PathBuf::from(path))
            };
            told_apart(&paths.iter().map(named).collect::<Vec<_>>())
        };
        assert_eq!(names(&["lr0.01.onnx", "lr0.02.onnx"]), ["lr0.01", "lr0.02"]);
        assert_eq!(names(&["lr0.01", "lr0.02.ONNX"]), ["lr0.01", "lr0.02"]);
        assert_eq!(names(&["a/model.onnx", "b/model.onnx", "c/other.onnx"]), ["a-model", "b-model", "other"]);
        assert_eq!(names(&["model.onnx", "../b/Model.onnx"]), ["model", "b-Model"]);
        assert_eq!(names(&["x/a/m.onnx", "y/a/m.onnx", "/x/b/m.onnx"]), ["x-a-m", "y-a-m", "x-b-m"]);
        assert_eq!(names(&["a/m.onnx", "a/m.ort", "a-m.onnx"]), ["m", "m-2", "a-m"]);
        assert_eq!(names(&["m", "m", "m-2"]), ["m", "m-2", "m-2-2"]);
    }

    #[test]
    fn the_ending_says_the_format_unless_it_is_no_ending() {
        let format = |output: &str, named| table_format(Some(Path::new(output)), named);
        for (output, named, expected) in [
            ("x.csv", None, Format::Csv),
            ("x.v1.CSV", None, Format::Csv),
            ("x.feather", None, Format::Arrow),
            ("x.json", Some(Format::Json), Format::Json),
            ("x.v1", None, Format::Parquet),
            ("x.v1", Some(Format::Csv), Format::Csv),
            ("x.txt", Some(Format::Csv), Format::Csv),
            (".csv", None, Format::Parquet),
            ("/dev/stdout", Some(Format::Json), Format::Json),
        ] {
            assert_eq!(format(output, named).unwrap(), expected, "{output}");
        }
        let contradiction = format("x.csv", Some(Format::Parquet)).unwrap_err().to_string();
        assert!(contradiction.contains("x.csv") && contradiction.contains("--format parquet"), "{contradiction}");
        for foreign in ["x.xlsx", "m.onnx", "a/config.toml", "x.csv.gz", ""] {
            assert!(format(foreign, None).is_err(), "{foreign}");
        }
        assert_eq!(table_format(None, None).unwrap(), Format::Parquet);
    }
}
