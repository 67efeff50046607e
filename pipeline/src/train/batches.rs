//! The batches of a step, folded where that changes neither loss nor gradient.

use crate::config::Config;
use anyhow::Result;
use data::{Batch, Collation, Dataset, Folded, Task};

/// How the examples of a step become batches. Random positions are drawn by seed, step and example.
pub fn collation(config: &Config, step: u64) -> Collation {
    let positions = config.model.positions(config.train.seed, step);
    Collation { positions, pad_to: config.train.pad_to }
}

/// The examples with these indices, which are those of one step, in `train.accumulate` batches; folded where that changes
/// neither loss nor gradient.
///
/// # Errors
/// The model cannot take them, see [`models::Architecture::check`].
pub fn pieces(config: &Config, task: &Task, examples: &Dataset, rows: &[u32], step: u64) -> Result<Vec<Folded>> {
    let size = config.train.batch_size / config.train.accumulate;
    let collation = collation(config, step);
    let folds = config.train.fold && config.model.is_causal() && !config.model.has_dropout();
    let piece = |rows: &[u32]| {
        let batch = batch_of(config, task, examples, rows, &collation)?;
        Ok(if folds { Folded::fold(batch, config.model.pulls_logits()) } else { Folded::unfolded(batch) })
    };
    rows.chunks(size).map(piece).collect()
}

/// The examples with these indices as a batch that the model can take.
pub fn batch_of(
    config: &Config,
    task: &Task,
    examples: &Dataset,
    indices: &[u32],
    collation: &Collation,
) -> Result<Batch> {
    let rows = indices.iter().map(|&i| (u64::from(i), examples.get(i as usize)));
    let batch = Batch::collate_rows(rows, &task.vocabulary, collation)?;
    config.model.check(&batch)?;
    Ok(batch)
}
/// How many rows the examples of the steps became.
#[derive(Debug, Clone, Copy, Default)]
pub struct Folding {
    steps: u64,
    examples: u64,
    rows: u64,
}

impl Folding {
    /// Counts a step.
    pub fn add(&mut self, pieces: &[Folded]) {
        self.steps += 1;
        self.examples += pieces.iter().map(Folded::total_examples).sum::<u64>();
        self.rows += pieces.iter().map(|piece| piece.batch.batch as u64).sum::<u64>();
    }

    /// Mean number of rows in a step.
    pub fn rows_per_step(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.rows as f64 / self.steps as f64)
    }
}

/// ` · folded 32 → 1.3`, the means of examples and rows in a step; nothing where every example had a row of its own.
impl std::fmt::Display for Folding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mean = |n: u64| (10.0 * n as f64 / self.steps as f64).round() / 10.0;
        if self.rows < self.examples {
            write!(f, " · folded {} → {}", mean(self.examples), mean(self.rows))?;
        }
        Ok(())
    }
}
