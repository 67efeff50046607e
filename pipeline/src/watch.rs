//! Training inside another program: how it is told, and how it stops a run.

use crate::RunDir;
use std::fmt;
use std::sync::Arc;

/// How far training is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Optimisation steps that are done.
    pub step: u64,
    /// Optimisation steps that the config asks for.
    pub total_steps: u64,
    /// The loss of a step of late, once one was looked at: every `train.log_every` steps.
    pub loss: Option<f64>,
    /// The accuracy on the first evaluated split, `val`, at the last evaluation.
    pub val_accuracy: Option<f64>,
}

/// A program that trains by calling this library: see [`Workspace::watched_by`](crate::Workspace::watched_by).
pub trait Watcher: Send + Sync {
    /// A run has got its folder; its first step comes next.
    fn started(&self, _run: &RunDir) {}

    /// Called after every optimisation step, by the thread that trains. `false` asks to save a checkpoint and stop, as a
    /// signal asks the command.
    fn step(&self, report: &StepReport) -> bool;

    /// A line for a person, which the command would write to standard error.
    fn note(&self, _line: &str) {}
}

/// A watcher, where there is one.
#[derive(Clone, Default)]
pub(crate) struct Watched(pub Option<Arc<dyn Watcher>>);

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Watched" } else { "Unwatched" })
    }
}
