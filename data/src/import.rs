use crate::dataset::{CHUNK, CHUNK_TOKENS, Reader, Writer, check_row, to_record_batch, without_panics, write_parquet};
use crate::text::{for_each_line, parse_line};
use crate::{DataError, DatasetInfo, Example, ExampleRef, Task};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How many problems are described; the others are only counted.
const DESCRIBED: usize = 20;

/// What was imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Examples written.
    pub rows: usize,
    /// The tokens of all of them.
    pub tokens: usize,
}

/// Writes the examples of `source` to `target`, a split of `task` called `split`. The source is a text file (see
/// [`crate::text`]) or a Parquet file with the columns of a dataset, whose ids are then the task's.
///
/// Every example is looked at before anything appears at `target`: it has as many labels as tokens, all of the vocabulary,
/// and in `train` and `val` no more of them than the task's sequences may have. With `check_labels` it must be a sequence
/// of the task, labelled by the task's rule. The lengths (main tokens) are counted anew.
///
/// # Errors
/// The source cannot be read, or has wrong examples, all of which are counted and the first 20 described, or none at all.
pub fn import(
    task: &Task,
    source: &Path,
    split: &str,
    check_labels: bool,
    target: &Path,
) -> Result<Imported, DataError> {
    without_panics(source, || {
        let mut imported = Imported { rows: 0, tokens: 0 };
        write_parquet(target, &DatasetInfo::imported(task), |writer| {
            let longest = matches!(split, "train" | "val").then_some(task.max_seq_len);
            let checks = Checks { task, longest, check_labels };
            let mut import =
                Import { writer, task, chunk: vec![], chunk_tokens: 0, rows: 0, tokens: 0, problems: 0, first: vec![] };
            if is_parquet(source)? {
                let reader = Reader::open(source)?;
                if let Ok(info) = &reader.info {
                    check_vocabulary(task, info, source)?;
                }
                reader.for_each_row(|row, example| {
                    import.push(|| format!("row {row}"), checks.of_row(example).map(|()| example.to_example()))
                })?;
            } else {
                for_each_line(source, |number, line| {
                    import.push(|| format!("line {number}"), line.and_then(|line| checks.of_line(line)))
                })?;
            }
            imported = import.finish(source)?;
            Ok(())
        })?;
        Ok(imported)
    })
}

/// The split that a file is by its name: `val` of `folder/val.txt`.
///
/// # Errors
/// The name has other characters than letters, digits, `_` and `-`.
pub fn split_name(source: &Path) -> Result<&str, DataError> {
    let name = source.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(plain) {
        return Ok(name);
    }
    Err(DataError::Invalid {
        path: source.into(),
        reason: "its name is not that of a split".into(),
        hint: "name the split with --split: letters, digits, `_` and `-`".into(),
    })
}

fn is_parquet(path: &Path) -> Result<bool, DataError> {
    let mut magic = Vec::new();
    let file = File::open(path).map_err(DataError::io("read", path))?;
    file.take(4).read_to_end(&mut magic).map_err(DataError::io("read", path))?;
    Ok(magic == b"PAR1")
}

fn check_vocabulary(task: &Task, info: &DatasetInfo, path: &Path) -> Result<(), DataError> {
    let (wanted, found) = (task.vocabulary.tokens(), &info.vocab);
    if wanted == found {
        return Ok(());
    }
    let reason = match wanted.iter().zip(found).position(|(w, f)| w != f) {
        Some(id) => format!("token {id} of its vocabulary is `{}`, but `{}` in {}", found[id], wanted[id], task.name),
        None => format!("its vocabulary has {} tokens, that of {} has {}", found.len(), task.name, wanted.len()),
    };
    let hint = format!("it was written for the task {}", info.task);
    Err(DataError::Invalid { path: path.into(), reason, hint })
}

/// What an example must be.
struct Checks<'a> {
    task: &'a Task,
    longest: Option<usize>,
    check_labels: bool,
}

impl Checks<'_> {
    fn of_line(&self, line: &str) -> Result<Example, String> {
        let (input_ids, labels) = parse_line(line, &self.task.vocabulary)?;
        let example = Example { input_ids, labels, length: 0 };
        self.of_row(example.as_ref()).map(|()| example)
    }

    fn of_row(&self, example: ExampleRef<'_>) -> Result<(), String> {
        check_row(example, self.task.vocabulary.len())?;
        let tokens = example.input_ids.len();
        if tokens == 0 {
            return Err("there are no tokens".into());
        }
        if let Some(longest) = self.longest.filter(|longest| tokens > *longest) {
            return Err(format!("there are {tokens} tokens, but max_seq_len = {longest}"));
        }
        if self.check_labels { self.task.check_labels(example.input_ids, example.labels) } else { Ok(()) }
    }
}

/// An import under way: it stops writing at the first problem and goes on checking.
struct Import<'a, 'w> {
    writer: &'a mut Writer<'w>,
    task: &'a Task,
    chunk: Vec<Example>,
    chunk_tokens: usize,
    rows: usize,
    tokens: usize,
    problems: usize,
    first: Vec<String>,
}

impl Import<'_, '_> {
    fn push(&mut self, place: impl Fn() -> String, example: Result<Example, String>) -> Result<(), DataError> {
        self.rows += 1;
        match example {
            Ok(_) if self.problems > 0 => {}
            Ok(mut example) => {
                example.length = self.task.length(&example.input_ids, &example.labels);
                self.tokens += example.input_ids.len();
                self.chunk_tokens += example.input_ids.len();
                self.chunk.push(example);
            }
            Err(problem) => {
                self.problems += 1;
                if self.first.len() < DESCRIBED {
                    self.first.push(format!("{}: {problem}", place()));
                }
                self.chunk.clear();
            }
        }
        if self.chunk.len() < CHUNK && self.chunk_tokens < CHUNK_TOKENS { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), DataError> {
        self.chunk_tokens = 0;
        self.writer.write(to_record_batch(self.chunk.drain(..)))
    }

    fn finish(mut self, source: &Path) -> Result<Imported, DataError> {
        if self.problems > 0 {
            return Err(DataError::Rejected {
                path: source.into(),
                rows: self.rows,
                problems: self.problems,
                first: self.first,
                hint: format!("`pipeline data show --task {}` shows examples of the task", self.task.name),
            });
        }
        if self.rows == 0 {
            return Err(DataError::Invalid {
                path: source.into(),
                reason: "it has no examples".into(),
                hint: "a text file has a pair [[tokens], [labels]] on each line".into(),
            });
        }
        self.flush()?;
        Ok(Imported { rows: self.rows, tokens: self.tokens })
    }
}
