//! The files that a command will write: known, distinct, writable and no inputs before its work begins, listed as they
//! are written.

use super::contents::{external_data, holds_something_else, is_dataset};
use super::endings::{MODELS, is_one_of};
use anyhow::{Error, Result, bail};
use data::files::{self, DestinationKind};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

/// The files of a command.
#[derive(Debug, Default)]
pub struct Outputs {
    inputs: Vec<(String, PathBuf)>,
    runs: Option<PathBuf>,
    datasets: Option<PathBuf>,
    files: Vec<(String, PathBuf)>,
    folders: Vec<PathBuf>,
    written: Mutex<Vec<PathBuf>>,
}

impl Outputs {
    /// `what` is read from `path`, which must not be written. Of a model, this is about its weights in other files, too.
    pub fn reads(&mut self, what: impl Into<String>, path: &Path) {
        self.inputs.push((what.into(), path.to_owned()));
    }

    /// Files of runs under this folder are not replaced, but for results.
    pub fn spares_runs(&mut self, runs: &Path) {
        self.runs = Some(runs.to_owned());
    }

    /// No folder of files is put among the datasets under this one.
    #[cfg(feature = "train")]
    pub fn spares_datasets(&mut self, datasets: &Path) {
        self.datasets = Some(datasets.to_owned());
    }

    /// `what` will be written to `path`.
    pub fn writes(&mut self, what: impl Into<String>, path: &Path) {
        self.files.push((what.into(), path.to_owned()));
    }

    /// Files whose names show later will be written into `folder`.
    #[cfg(feature = "train")]
    pub fn writes_into(&mut self, folder: &Path) {
        self.folders.push(folder.to_owned());
    }

    /// Sees whether all files can be written and should be.
    ///
    /// # Errors
    /// Two results would go into one file; one would replace an input, a dataset, a part of a run or what is no earlier
    /// result; a folder cannot be written, or holds something else.
    pub fn check(&self) -> Result<()> {
        let mut places: HashMap<String, &(String, PathBuf)> = HashMap::new();
        for file in &self.files {
            let (what, path) = file;
            let kind = files::destination(path)?.kind;
            if kind.is_stream() {
                continue;
            }
            // Some file systems do not tell capitals apart.
            let place = files::place(path).to_string_lossy().to_lowercase();
            if let Some((other, _)) = places.insert(place, file) {
                bail!(
                    "two results would be written to {}: {other}, and {what}\n  hint: rename a model or a split, or evaluate them one at a time",
                    path.display()
                );
            }
            self.check_results_of(path)?;
            if kind == DestinationKind::File {
                self.check_replaced(path)?;
            }
        }
        let mut probed = HashSet::new();
        for (_, path) in &self.files {
            let found = files::destination(path)?;
            if probed.insert(files::folder_of(&found.path).to_owned()) || found.kind == DestinationKind::File {
                files::probe(path)?;
            }
        }
        for folder in &self.folders {
            self.check_folder(folder)?;
            files::probe_folder(folder)?;
        }
        Ok(())
    }

    /// Whether files with names of their own may be put into a folder: not among results, models and datasets.
    fn check_folder(&self, folder: &Path) -> Result<()> {
        let refused = |why: &str| {
            bail!(
                "nothing is written into {}: {why}\n  hint: name a folder of its own, which is made",
                folder.display()
            )
        };
        if !folder.is_dir() {
            return Ok(());
        }
        let place = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let below = |of: Option<&PathBuf>| of.is_some_and(|of| place.starts_with(files::place(of)));
        let runs = self.runs.as_deref().map(files::place);
        let in_runs = runs.and_then(|runs| {
            let mut parts = place.strip_prefix(&runs).ok()?.components().map(|part| part.as_os_str().to_owned());
            Some((parts.next().map(|handle| runs.join(handle)), parts.next()))
        });
        match in_runs {
            Some((None, _)) => return refused("it is the folder of all runs"),
            Some((Some(run), within)) if run.join("config.toml").is_file() => {
                let is_own = |name: &OsStr| ["eval", "checkpoints", "tensorboard"].iter().any(|own| name == *own);
                if within.is_none_or(|name| is_own(&name)) {
                    return refused("it is a part of a run");
                }
            }
            _ => {}
        }
        if below(self.datasets.as_ref()) {
            return refused("it is a folder of datasets");
        }
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_result = ["config.toml", "model.onnx", "sweep.parquet", "checkpoints.parquet"]
                .contains(&name.as_str())
                || name.ends_with("-total.parquet")
                || (name.ends_with(".parquet") && is_dataset(&entry.path()));
            if is_result {
                return refused(&format!("{name} is in it, as in a folder of results or datasets"));
            }
        }
        Ok(())
    }

    /// Refuses results in the folder of a run that they are not of: reports would give them to that run.
    fn check_results_of(&self, path: &Path) -> Result<()> {
        let Some((handle, run)) = self.runs.as_deref().and_then(|runs| run_around(path, runs)) else { return Ok(()) };
        if self.inputs.iter().any(|(_, input)| files::place(input).starts_with(&run)) {
            return Ok(());
        }
        bail!(
            "{} is not written: the results of run `{handle}` are there, which is not evaluated\n  hint: name another file with -o",
            path.display()
        )
    }

    /// Whether the file at `path` may be replaced.
    fn check_replaced(&self, path: &Path) -> Result<()> {
        let hint = "hint: name another file with -o";
        for (what, input) in &self.inputs {
            if files::is_same_file(path, input) {
                bail!("{} is not overwritten: it is {what}, which is read\n  {hint}", path.display());
            }
            let is_model = input.extension().is_some_and(|ending| is_one_of(ending, &MODELS));
            if is_model && external_data(input).iter().any(|weights| files::is_same_file(path, weights)) {
                bail!("{} is not overwritten: it holds weights of {}\n  {hint}", path.display(), input.display());
            }
        }
        if let Some(run) = self.runs.as_deref().and_then(|runs| owner(path, runs)) {
            bail!("{} is not overwritten: it is a part of run `{run}`\n  {hint}", path.display());
        }
        if is_dataset(path) {
            bail!("{} is not overwritten: it holds a dataset, no results\n  {hint}", path.display());
        }
        if let Some(found) = holds_something_else(path) {
            bail!(
                "{} is not overwritten: it is {found}, which no earlier result of this name was\n  {hint}, or remove that one",
                path.display()
            );
        }
        Ok(())
    }

    /// Writes a file through `how`. An error says what was written before.
    ///
    /// # Errors
    /// Those of `how`.
    pub fn write<T>(&self, path: &Path, how: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let done = how(path).map_err(|error| self.explained(error))?;
        self.note_written(path);
        Ok(done)
    }

    /// Says that `path` was written.
    pub fn note_written(&self, path: &Path) {
        self.written.lock().unwrap_or_else(|e| e.into_inner()).push(path.to_owned());
    }

    /// An error with the list of what was written before it.
    pub fn explained(&self, error: Error) -> Error {
        let written = self.written();
        if written.is_empty() {
            return error;
        }
        let list: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
        let text = format!("{error}\n  already written: {}", list.join(", "));
        error.context(text)
    }

    /// The files that were written so far, in that order.
    pub fn written(&self) -> Vec<PathBuf> {
        self.written.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

/// The run among whose results a file is, by handle and folder.
fn run_around(path: &Path, runs: &Path) -> Option<(String, PathBuf)> {
    let runs = files::place(runs);
    let place = files::place(path);
    let mut parts = place.strip_prefix(&runs).ok()?.components();
    let (Component::Normal(handle), Component::Normal(folder)) = (parts.next()?, parts.next()?) else { return None };
    if folder != "eval" {
        return None;
    }
    let run = runs.join(handle);
    run.join("config.toml").is_file().then(|| (handle.to_string_lossy().into_owned(), run))
}

/// The handle of the run that a file belongs to, unless it is one of its results.
fn owner(path: &Path, runs: &Path) -> Option<String> {
    let runs = files::place(runs);
    let place = files::place(path);
    let mut parts = place.strip_prefix(&runs).ok()?.components();
    let (Some(Component::Normal(handle)), Some(Component::Normal(folder))) = (parts.next(), parts.next()) else {
        return None;
    };
    let is_run = runs.join(handle).join("config.toml").is_file();
    (is_run && (folder != "eval" || parts.next().is_none())).then(|| handle.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn what_is_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("input.csv"), "x").unwrap();
        fs::hard_link(at("input.csv"), at("hard.csv")).unwrap();
        let key: [&[u8]; 2] = [b"....\x0a\x08location\x12\x0bweights.csv....", b"\x0a\x08location\x12"];
        fs::write(at("m.onnx"), key.concat()).unwrap();
        fs::write(at("weights.csv"), "x").unwrap();
        fs::write(at("old.txt"), "[[\"a\"], [\"1\"]]\n").unwrap();
        fs::write(at("lines.json"), "{\"input_ids\": [0], \"labels\": [0]}\n").unwrap();
        let kinds: [(&str, &[u8]); 9] = [
            ("parquet.html", b"PAR1...."),
            ("parquet.csv", b"PAR1...."),
            ("parquet.svg", b"PAR1...."),
            ("arrow.md", b"ARROW1\0\0"),
            ("model.parquet", b"\x08\x0a\x12\x07pytorch"),
            ("model", b"\x08\x0a\x12\x07pytorch"),
            ("weights.png", b"PK\x03\x04...."),
            ("values.csv", b"\x48\0\0\0\0\0\0\0{\"a\""),
            ("picture.html", b"\x89PNG\r\n\x1a\n"),
        ];
        for (name, bytes) in kinds {
            fs::write(at(name), bytes).unwrap();
        }
        for (name, bytes) in
            [("t.parquet", &b"PAR1...."[..]), ("t.feather", b"PAR1...."), ("t.v1", b"ARROW1"), ("t.png", b"\x89PNG")]
        {
            fs::write(at(name), bytes).unwrap();
        }
        fs::create_dir_all(at("runs/H/eval")).unwrap();
        for file in ["config.toml", "metrics.csv", "eval/sweep.csv"] {
            fs::write(at("runs/H").join(file), "x").unwrap();
        }
        let check = |path: PathBuf| {
            let mut outputs = Outputs::default();
            outputs.reads("the split", &at("input.csv"));
            outputs.reads("a model", &at("m.onnx"));
            outputs.spares_runs(&at("runs"));
            outputs.writes("a table", &path);
            outputs.check().map_err(|error| error.to_string())
        };
        for (path, part) in [
            ("input.csv", "it is the split"),
            ("sub/../input.csv", "it is the split"),
            ("hard.csv", "it is the split"),
            ("m.onnx", "it is a model"),
            ("weights.csv", "it holds weights of"),
            ("old.txt", "it holds a dataset"),
            ("lines.json", "it holds a dataset"),
            ("parquet.html", "it is a Parquet file"),
            ("parquet.csv", "it is a Parquet file"),
            ("parquet.svg", "it is a Parquet file"),
            ("arrow.md", "it is an Arrow file"),
            ("model.parquet", "it is an ONNX model"),
            ("model", "it is an ONNX model"),
            ("weights.png", "it is a zip archive"),
            ("values.csv", "it is a file of weights"),
            ("picture.html", "it is a PNG picture"),
            ("runs/H/metrics.csv", "a part of run `H`"),
            ("runs/H/eval/sweep.csv", "the results of run `H` are there, which is not evaluated"),
            ("runs/H/eval/new.csv", "the results of run `H` are there, which is not evaluated"),
            ("sub", "directory"),
        ] {
            let message = check(at(path)).unwrap_err();
            assert!(message.contains(part), "{path}: {message}");
        }
        let free = ["t.parquet", "t.feather", "t.v1", "t.png"];
        for path in ["other.csv", "sub/new/x.csv", "runs/H/new.csv"].into_iter().chain(free) {
            check(at(path)).unwrap();
        }
        assert!(!at("sub/new").exists(), "nothing was written yet");
        let mut of_the_run = Outputs::default();
        of_the_run.reads("the model of H", &at("runs/H/model.onnx"));
        of_the_run.spares_runs(&at("runs"));
        of_the_run.writes("a table", &at("runs/H/eval/sweep.csv"));
        of_the_run.check().unwrap();
    }

    #[test]
    fn results_do_not_share_a_file_and_errors_say_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut outputs = Outputs::default();
        outputs.writes("one", &at("x.csv"));
        outputs.writes("another", &at("./X.csv"));
        let message = outputs.check().unwrap_err().to_string();
        assert!(message.contains("one, and another"), "{message}");

        let mut outputs = Outputs::default();
        outputs.writes("one", &at("new/x.csv"));
        outputs.check().unwrap();
        outputs.write(&at("new/x.csv"), |path| Ok(files::write_bytes(path, b"1")?)).unwrap();
        let failed = outputs.write(&at("y.csv"), |_| -> Result<()> { bail!("no space") }).unwrap_err().to_string();
        assert!(failed.starts_with("no space\n  already written: ") && failed.ends_with("x.csv"), "{failed}");
        assert_eq!(outputs.written(), [at("new/x.csv")]);
    }
}
