//! The scores of a sweep so far, kept in a file while it runs, so that a killed sweep can resume.
//!
//! The first line says which sweep it is; every further line has the scores of one batch, in the order of the plan,
//! with a number that says which sequences and lengths the batch had. A plan that differs (because less memory is free,
//! say) continues from the last batch that both have. Losses are kept as the bits of their float64, so that the resumed
//! sweep ends with the same table to the last digit. A line that was being written when the process ended is cut off.
//! The file is locked while a sweep uses it.

use crate::sweep::work::BatchScore;
use crate::{EvalError, Result, Score};
use data::DataError;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An open journal.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// The lines found in it and not yet used, in order.
    recorded: VecDeque<Line>,
    /// Where they begin in the file.
    taken: u64,
    /// Whether it could not be written: nothing is added any more.
    is_broken: bool,
}

struct Line {
    batch: u64,
    outcome: BatchScore,
    /// In bytes.
    size: usize,
}

impl Drop for Journal {
    /// A process that is being started by another thread has the file open for a moment, too, and the lock with it.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

impl Journal {
    /// Opens the journal at `path`, or starts over where there is none or it is another sweep's. `None` where nothing
    /// can be written: a sweep runs without it, and says so where that is unexpected.
    ///
    /// # Errors
    /// Another process uses it, or the system refuses to read it.
    pub fn open(path: &Path, sweep: &Value) -> Result<Option<Self>> {
        let io = |source| DataError::Io { action: "keep the progress of the sweep in", path: path.into(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let made = folder.map_or(Ok(()), std::fs::create_dir_all);
        let opened = made.and_then(|()| File::options().create(true).read(true).write(true).truncate(false).open(path));
        let mut file = match opened {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                return Ok(None);
            }
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                warn(path, &e);
                return Ok(None);
            }
            Err(e) => return Err(io(e).into()),
        };
        // Where files cannot be locked, two sweeps can spoil each other's lines, but a line that can be read is right.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(EvalError::Busy { path: path.into() });
        }
        let mut found = Vec::new();
        file.read_to_end(&mut found).map_err(io)?;
        let title = format!("{sweep}\n");
        let mut recorded = VecDeque::new();
        let mut end = 0;
        if found.starts_with(title.as_bytes()) {
            end = title.len();
            for line in found[end..].split_inclusive(|byte| *byte == b'\n') {
                let Some((batch, outcome)) = line.strip_suffix(b"\n").and_then(read) else { break };
                recorded.push_back(Line { batch, outcome, size: line.len() });
                end += line.len();
            }
        }
        let mut journal = Self { path: path.into(), file, recorded, taken: title.len() as u64, is_broken: false };
        let begun = journal.cut(end as u64).and_then(|()| match end {
            0 => journal.file.write_all(title.as_bytes()),
            _ => Ok(()),
        });
        if let Err(error) = begun {
            warn(path, &error); // earlier records can be used, but nothing is added
            journal.is_broken = true;
        }
        Ok(Some(journal))
    }

    fn cut(&mut self, end: u64) -> std::io::Result<()> {
        self.file.set_len(end)?;
        self.file.seek(SeekFrom::Start(end)).map(|_| ())
    }

    /// The outcome of this batch, where it is the next one recorded.
    pub fn take_over(&mut self, batch: u64) -> Option<BatchScore> {
        let line = self
            .recorded
            .front()
            .is_some_and(|line| line.batch == batch)
            .then(|| self.recorded.pop_front())
            .flatten()?;
        self.taken += line.size as u64;
        Some(line.outcome)
    }

    /// Appends the outcome of a batch, in place of all lines not used. Where that fails (a full disk), the sweep
    /// continues without a journal, and says so once.
    pub fn record(&mut self, batch: u64, outcome: &BatchScore) {
        if self.is_broken {
            return;
        }
        let line = format!("{}\n", write(batch, outcome));
        let is_over = self.recorded.is_empty();
        self.recorded.clear();
        let cut = if is_over { Ok(()) } else { self.cut(self.taken) };
        if let Err(error) = cut.and_then(|()| self.file.write_all(line.as_bytes())) {
            warn(&self.path, &error);
            self.is_broken = true;
        }
    }
}

/// Reports that a sweep continues without its journal.
fn warn(path: &Path, error: &std::io::Error) {
    data::files::warn(&format!(
        "the progress of the sweep cannot be kept in {} ({error}); it goes on, but if it is killed, what it does from here on \
         is lost",
        path.display()
    ));
}

fn write(batch: u64, outcome: &BatchScore) -> Value {
    let scores = outcome.scores.iter().map(|(slot, s)| {
        json!([
            slot,
            s.n_sequences,
            s.n_tokens,
            s.counting_correct,
            s.counting_total,
            s.last_correct,
            s.sequences_correct,
            s.loss_sum.to_bits(),
            s.nan
        ])
    });
    json!([batch, outcome.tokens, scores.collect::<Vec<_>>(), outcome.failures])
}

/// A batch and its scores.
fn read(line: &[u8]) -> Option<(u64, BatchScore)> {
    type Line = (u64, u64, Vec<[u64; 9]>, Vec<(usize, String)>);
    let (batch, tokens, scores, failures): Line = serde_json::from_slice(line).ok()?;
    let scores = scores.into_iter().map(|[slot, n_sequences, n_tokens, cc, ct, last, all, loss, nan]| {
        let score = Score {
            n_sequences,
            n_tokens,
            counting_correct: cc,
            counting_total: ct,
            last_correct: last,
            sequences_correct: all,
            loss_sum: f64::from_bits(loss),
            nan,
            ..Score::default()
        };
        (slot as usize, score)
    });
    Some((batch, BatchScore { tokens, scores: scores.collect(), failures, ..BatchScore::default() }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outcome(slot: usize, loss_sum: f64) -> BatchScore {
        let score =
            Score { n_sequences: 3, n_tokens: 9, counting_correct: 4, last_correct: 2, loss_sum, ..Score::default() };
        BatchScore {
            tokens: 12,
            scores: vec![(slot, score)],
            failures: vec![(9, "too \"long\"".into())],
            ..BatchScore::default()
        }
    }

    fn opened(path: &Path, title: &Value) -> Journal {
        Journal::open(path, title).unwrap().unwrap()
    }

    #[test]
    fn what_was_written_is_read_back_and_a_torn_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (path, title) = (dir.path().join("new/sweep.progress"), json!({"model": 1}));
        let mut journal = opened(&path, &title);
        assert!(journal.take_over(7).is_none());
        journal.record(7, &outcome(1, 0.1 + 0.2));
        journal.record(u64::MAX, &outcome(2, f64::INFINITY));
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();

        let mut journal = opened(&path, &title);
        assert_eq!(journal.take_over(7), Some(outcome(1, 0.1 + 0.2)));
        assert_eq!(journal.take_over(u64::MAX), None);
        journal.record(u64::MAX, &outcome(2, f64::INFINITY));
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        drop(journal);

        let mut other = opened(&path, &json!({"model": 2}));
        assert!(other.take_over(7).is_none(), "another sweep's progress is not taken over");
    }

    #[test]
    fn another_plan_goes_on_from_the_last_batch_that_both_have() {
        let dir = tempfile::tempdir().unwrap();
        let (path, title) = (dir.path().join("sweep.progress"), json!({}));
        let mut journal = opened(&path, &title);
        (1..=3).for_each(|batch| journal.record(batch, &outcome(batch as usize, 0.5)));
        drop(journal);
        let mut journal = opened(&path, &title);
        assert_eq!(journal.take_over(1), Some(outcome(1, 0.5)));
        assert_eq!(journal.take_over(9), None);
        journal.record(9, &outcome(9, 0.5));
        drop(journal);
        let mut journal = opened(&path, &title);
        let found = [1, 9, 2].map(|batch| journal.take_over(batch).is_some());
        assert_eq!(found, [true, true, false], "batches 2 and 3 of the first plan are gone");
    }

    /// A full disk does not end a sweep: earlier records stay, and one message says that recording has stopped.
    #[test]
    fn a_sweep_goes_on_without_a_journal_that_cannot_be_written() {
        static SAID: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        data::files::on_warning(|line| SAID.lock().unwrap().push(line.to_owned()));
        let dir = tempfile::tempdir().unwrap();
        let (path, title) = (dir.path().join("sweep.progress"), json!({}));
        let mut journal = opened(&path, &title);
        journal.record(1, &outcome(1, 0.5));
        let before = std::fs::read(&path).unwrap();
        journal.file = File::open(&path).unwrap(); // writing fails from here on
        (2..=4).for_each(|batch| journal.record(batch, &outcome(batch as usize, 0.5)));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let said = SAID.lock().unwrap().clone();
        assert!(said.len() == 1 && said[0].contains("sweep.progress") && said[0].contains("it goes on"), "{said:?}");
        drop(journal);
        assert_eq!(opened(&path, &title).take_over(1), Some(outcome(1, 0.5)));
    }

    #[test]
    fn a_journal_belongs_to_one_sweep_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sweep.progress");
        let mut first = opened(&path, &json!({}));
        first.record(1, &outcome(1, 0.5));
        let message = Journal::open(&path, &json!({})).err().unwrap().to_string();
        assert!(message.starts_with("another evaluation keeps its progress in "), "{message}");
        assert!(Journal::open(&path, &json!({"model": 2})).is_err(), "nor does it start over");
        drop(first);
        assert!(opened(&path, &json!({})).take_over(1).is_some());
    }
}
