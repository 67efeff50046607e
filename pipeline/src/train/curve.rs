//! The run's training curve, in memory and on disk.

use crate::run::RunDir;
use crate::train::evaluation::Evaluation;
use crate::train::metrics::{self, MetricsRow};
use crate::train::setup::Setup;
use crate::train::tensorboard::EventFile;
use anyhow::Result;
use std::time::Instant;

/// The run's training curve, in memory and on disk.
pub struct Curve<'a> {
    run: &'a RunDir,
    rows: Vec<MetricsRow>,
    events: Option<EventFile>,
    /// Seconds of the run before this process.
    earlier: f64,
    start: Instant,
}

impl<'a> Curve<'a> {
    /// An empty curve, or the rows up to the checkpoint that training resumes from: later ones will be made again.
    pub fn begin(setup: &Setup<'a>) -> Result<Self> {
        let mut rows = Vec::new();
        let mut earlier = 0.0;
        if let Some(checkpoint) = &setup.resume {
            earlier = checkpoint.state().seconds;
            match metrics::read(&setup.run.metrics()) {
                Ok(read) => rows = read,
                Err(error) => setup.progress.note(format!("the training curve starts again: {error:#}")),
            }
            rows.retain(|row| row.step <= checkpoint.state().step);
        }
        let tensorboard = setup.config.train.tensorboard;
        let events = tensorboard.then(|| EventFile::create(&setup.run.tensorboard(), &rows, earlier)).transpose()?;
        Ok(Self { run: setup.run, rows, events, earlier, start: Instant::now() })
    }

    /// Seconds of all parts of the run.
    pub fn seconds(&self) -> f64 {
        self.earlier + self.start.elapsed().as_secs_f64()
    }

    /// Appends a row, timed now.
    pub fn push(&mut self, row: MetricsRow) -> Result<()> {
        let row = MetricsRow { seconds: self.seconds(), ..row };
        if let Some(events) = &mut self.events {
            events.append(std::slice::from_ref(&row))?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// The loss of the last step that was logged.
    pub fn last_loss(&self) -> Option<f64> {
        self.rows.iter().rev().find(|row| row.split == "train").and_then(|row| row.loss)
    }

    /// All rows so far.
    pub fn rows(&self) -> &[MetricsRow] {
        &self.rows
    }

    /// Writes the file, whole.
    pub fn save(&self) -> Result<()> {
        metrics::write(&self.rows, &self.run.metrics())
    }
}

/// The row of an evaluation.
pub fn evaluation_row(step: u64, epoch: u64, split: &str, evaluation: &Evaluation) -> MetricsRow {
    let score = &evaluation.score;
    MetricsRow {
        step,
        epoch,
        split: split.to_owned(),
        loss: evaluation.loss,
        accuracy: score.accuracy(),
        counting_accuracy: score.counting_accuracy(),
        last_accuracy: score.last_accuracy(),
        sequence_accuracy: score.sequence_accuracy(),
        unseen_accuracy: evaluation.unseen_accuracy,
        ..Default::default()
    }
}
