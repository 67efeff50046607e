//! The parts that the training of a run is made of.

use crate::cli::progress::Progress;
use crate::config::Config;
use crate::run::RunDir;
use crate::train::checkpoint::Checkpoint;
use crate::train::source::Training;
use data::{Dataset, Task};
use models::Weights;

/// The examples of a run.
pub struct Splits {
    /// For training.
    pub train: Training,
    /// For evaluation, by name: `val` (the same distribution) first, then `ood_test` (longer sequences) and others.
    pub evaluated: Vec<(String, Dataset)>,
}

/// One run's training, up to the device that it is on.
pub struct Setup<'a> {
    /// Where everything is written.
    pub run: &'a RunDir,
    /// Architecture, optimiser and schedule.
    pub config: &'a Config,
    /// The task that the config names.
    pub task: &'a Task,
    /// Its examples.
    pub splits: &'a Splits,
    /// Weights to start from, instead of random ones.
    pub initial: Option<Weights>,
    /// The checkpoint to resume from, instead of the start.
    pub resume: Option<Checkpoint>,
    /// Bars and notes.
    pub progress: &'a Progress,
}
