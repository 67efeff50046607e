//! What a sweep has scored so far, kept in a file while it runs: a killed sweep takes up where it stopped.
//!
//! The first line says which sweep it is; every further line is what one batch scored, in the order of the plan. Losses
//! are kept as the bits of their float64, so that the resumed sweep ends with the same table to the last digit. A line
//! that was being written when the process ended is cut off.

use crate::execute::Outcome;
use crate::{Result, Score};
use data::DataError;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An open journal.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// What was found in it, in order.
    recorded: VecDeque<Outcome>,
}

impl Journal {
    /// Opens the journal at `path`, or starts it anew where there is none or it is another sweep's.
    pub fn open(path: &Path, sweep: &Value) -> Result<Self> {
        let io = |source| DataError::Io { action: "keep the progress of the sweep in", path: path.into(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let found = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(e) => return Err(io(e).into()),
        };
        let title = format!("{sweep}\n");
        let mut recorded = VecDeque::new();
        let mut end = 0;
        if found.starts_with(title.as_bytes()) {
            end = title.len();
            for line in found[end..].split_inclusive(|byte| *byte == b'\n') {
                let Some(outcome) = line.strip_suffix(b"\n").and_then(read) else { break };
                recorded.push_back(outcome);
                end += line.len();
            }
        }
        let mut file = File::options().create(true).write(true).truncate(false).open(path).map_err(io)?;
        file.set_len(end as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        if end == 0 {
            file.write_all(title.as_bytes()).map_err(io)?;
        }
        Ok(Self { path: path.into(), file, recorded })
    }

    /// The next batch's outcome, where it was recorded before.
    pub fn next_recorded(&mut self) -> Option<Outcome> {
        self.recorded.pop_front()
    }

    /// Appends the outcome of the next batch.
    pub fn record(&mut self, outcome: &Outcome) -> Result<()> {
        let io =
            |source| DataError::Io { action: "keep the progress of the sweep in", path: self.path.clone(), source };
        Ok(self.file.write_all(format!("{}\n", write(outcome)).as_bytes()).map_err(io)?)
    }
}

fn write(outcome: &Outcome) -> Value {
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
    json!([outcome.tokens, scores.collect::<Vec<_>>(), outcome.failures])
}

fn read(line: &[u8]) -> Option<Outcome> {
    let (tokens, scores, failures): (u64, Vec<[u64; 9]>, Vec<(usize, String)>) = serde_json::from_slice(line).ok()?;
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
    Some(Outcome { tokens, scores: scores.collect(), failures, ..Outcome::default() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outcome(slot: usize, loss_sum: f64) -> Outcome {
        let score =
            Score { n_sequences: 3, n_tokens: 9, counting_correct: 4, last_correct: 2, loss_sum, ..Score::default() };
        Outcome {
            tokens: 12,
            scores: vec![(slot, score)],
            failures: vec![(9, "too \"long\"".into())],
            ..Outcome::default()
        }
    }

    #[test]
    fn what_was_written_is_read_back_and_a_torn_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (path, title) = (dir.path().join("new/sweep.progress"), json!({"model": 1}));
        let mut journal = Journal::open(&path, &title).unwrap();
        assert!(journal.next_recorded().is_none());
        journal.record(&outcome(1, 0.1 + 0.2)).unwrap();
        journal.record(&outcome(2, f64::INFINITY)).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();

        let mut journal = Journal::open(&path, &title).unwrap();
        assert_eq!(journal.next_recorded(), Some(outcome(1, 0.1 + 0.2)));
        assert_eq!(journal.next_recorded(), None);
        journal.record(&outcome(2, f64::INFINITY)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);

        let mut other = Journal::open(&path, &json!({"model": 2})).unwrap();
        assert!(other.next_recorded().is_none(), "another sweep's progress is not taken over");
    }
}
