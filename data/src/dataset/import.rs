use super::columns::hint_of;
use super::damage::without_panics;
use super::padding;
use super::parquet::{Writer, to_record_batch, write_parquet};
use super::reading::{Bounds, Found, Source};
use super::text::parse_line;
use super::{CHUNK, CHUNK_TOKENS, NO_EXAMPLES, ROWS, check_vocabulary, padding_note};
use crate::{DataError, DatasetInfo, Example, Task};
use std::path::Path;

/// How many problems are described; the others are only counted.
const DESCRIBED: usize = 20;

/// Counts of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Examples written.
    pub rows: usize,
    /// The tokens of all of them.
    pub tokens: usize,
    /// Examples whose `<pad>` labelled `<pad>` was treated as padding and removed.
    pub padded: usize,
}

impl Imported {
    /// The assumptions that the file does not state, if any.
    pub fn note(&self) -> Option<String> {
        padding_note(self.padded, self.rows)
    }
}

/// Writes the examples of `source` to `target`, a split of `task` called `split`. The source is a text file (see
/// [`super::text`]), or anything with lists of integers called `input_ids` and `labels`, which are the task's ids:
/// Parquet, Arrow, JSON, CSV, or a folder with the parts of such a dataset.
///
/// Every example is checked before anything appears at `target`: it has as many labels as tokens, all of the
/// vocabulary, and in `train` and `val` no more of them than the task's sequences may have. With `check_labels` it must
/// be a sequence of the task, labelled by the task's rule. The lengths (main tokens) are counted again.
///
/// # Errors
/// The source cannot be read, or has wrong examples, all of which are counted and the first 20 described, or none at
/// all.
pub fn import(
    task: &Task,
    source: &Path,
    split: &str,
    check_labels: bool,
    target: &Path,
) -> Result<Imported, DataError> {
    without_panics(source, || {
        let mut imported = Imported { rows: 0, tokens: 0, padded: 0 };
        let files = Source::open(source)?;
        check_vocabulary(task, &files)?;
        let split_of = [("split", split.to_owned())];
        write_parquet(target, &DatasetInfo::imported(task), &split_of, |writer| {
            let longest = matches!(split, "train" | "val").then_some(task.max_seq_len);
            let checks = Checks { task, longest, check_labels };
            let mut import =
                Import { writer, task, chunk: vec![], chunk_tokens: 0, rows: 0, tokens: 0, problems: 0, first: vec![] };
            let mut parse = |line: &str| parse_line(line, &task.vocabulary);
            let mut padded = 0;
            files.for_each(Bounds::of(&task.vocabulary), &mut parse, &mut |place, found| {
                let example = found.and_then(|found| checks.of(found)).map(|(example, is_assumed)| {
                    padded += usize::from(is_assumed);
                    example
                });
                import.push(|| place.to_string(), example)
            })?;
            imported = Imported { padded, ..import.finish(source)? };
            Ok(())
        })?;
        Ok(imported)
    })
}

/// The split that a file name stands for: `val` of `folder/val.txt`.
///
/// # Errors
/// The name has other characters than letters, digits, `_` and `-`.
pub fn split_name(source: &Path) -> Result<&str, DataError> {
    let name = if source.is_dir() { source.file_name() } else { source.file_stem() };
    let name = name.and_then(|name| name.to_str()).unwrap_or_default();
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

/// The checks of an example.
struct Checks<'a> {
    task: &'a Task,
    longest: Option<usize>,
    check_labels: bool,
}

impl Checks<'_> {
    /// The example, and whether padding was recognised by its label alone.
    fn of(&self, found: Found<'_>) -> Result<(Example, bool), String> {
        let padding::Own { range, is_assumed } = padding::own(self.task, &found)?;
        let (tokens, input_ids, labels) = (range.len(), &found.input_ids[range.clone()], &found.labels[range]);
        if let Some(longest) = self.longest.filter(|longest| tokens > *longest) {
            return Err(format!("there are {tokens} tokens, but max_seq_len = {longest}"));
        }
        if self.check_labels {
            self.task.check_labels(input_ids, labels)?;
        }
        Ok((Example { input_ids: input_ids.to_vec(), labels: labels.to_vec(), length: 0 }, is_assumed))
    }
}

/// An import in progress: it stops writing at the first problem but continues checking.
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
            let hint = self.first.first().and_then(|problem| hint_of(problem));
            return Err(DataError::Rejected {
                path: source.into(),
                rows: self.rows,
                problems: self.problems,
                first: self.first,
                hint: match hint {
                    Some(hint) => hint.into(),
                    None => format!("`pipeline data show --task {}` shows examples of the task", self.task.name),
                },
            });
        }
        if self.rows == 0 {
            return Err(DataError::Invalid { path: source.into(), reason: NO_EXAMPLES.into(), hint: ROWS.into() });
        }
        self.flush()?;
        Ok(Imported { rows: self.rows, tokens: self.tokens, padded: 0 })
    }
}
