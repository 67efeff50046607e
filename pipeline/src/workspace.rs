//! The folders that everything happens in.

use crate::cli::progress::Progress;
use crate::run::RunDir;
use crate::watch::{Watched, Watcher};
use anyhow::Result;
use std::path::PathBuf;
use std::sync::Arc;

/// Folders of runs and datasets, and whether to tell a person what is being done.
#[derive(Debug, Clone)]
pub struct Workspace {
    pub(crate) runs: PathBuf,
    pub(crate) datasets: PathBuf,
    pub(crate) progress: Progress,
}

impl Workspace {
    /// A workspace that writes nothing to standard error. Both folders are created when they are needed.
    pub fn new(runs: impl Into<PathBuf>, datasets: impl Into<PathBuf>) -> Self {
        Self { runs: runs.into(), datasets: datasets.into(), progress: Progress::new(true, false) }
    }

    /// The same with progress bars and notes on standard error, as the command has them.
    #[must_use]
    pub fn with_progress(self) -> Self {
        Self { progress: Progress::new(false, false), ..self }
    }

    /// The same for a program that is told how far training is, and stops it: signals are left to it.
    #[must_use]
    pub fn watched_by(self, watcher: Arc<dyn Watcher>) -> Self {
        Self { progress: self.progress.watched(Watched(Some(watcher))), ..self }
    }

    /// The run with this handle.
    ///
    /// # Errors
    /// There is none; the error names the nearest one.
    pub fn run(&self, handle: &str) -> Result<RunDir> {
        RunDir::open(&self.runs, handle)
    }

    /// All runs, oldest first.
    ///
    /// # Errors
    /// The folder is there, but cannot be read.
    pub fn runs(&self) -> Result<Vec<RunDir>> {
        RunDir::all(&self.runs)
    }
}
