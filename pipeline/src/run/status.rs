//! How far a run is: `status.json`, and the checkpoints that are there.

use super::RunDir;
use crate::config::Config;
use crate::train::checkpoint;
use anyhow::Result;
use chrono::Utc;
use serde::{Deserialize, Serialize};
use std::fs;

/// `status.json`: how far a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunProgress {
    /// Running, or how it ended.
    pub status: Status,
    /// Optimisation steps done.
    pub step: u64,
    /// Optimisation steps that the config asks for.
    pub total_steps: u64,
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A process trains it.
    Running,
    /// All steps are done.
    Finished,
    /// It was stopped by a signal and saved.
    Interrupted,
    /// Its process ended without saying why.
    Killed,
    /// Its loss became infinite or NaN.
    Diverged,
    /// An error ended it.
    Failed,
}

impl Status {
    /// One word for listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
            Self::Killed => "killed",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
        }
    }
}

impl RunDir {
    /// How far training is, by what is there: a whole checkpoint of the last step is a finished run, even if its
    /// process had no time to say so; the status file counts only where the checkpoints leave it open. `None` for
    /// models that were imported without a status.
    pub fn progress(&self) -> Option<RunProgress> {
        let told = self.told_progress();
        let all = self.checkpoints();
        let last = all.iter().rev().find(|(_, path)| checkpoint::looks_whole(path));
        if told.is_none() && last.is_some_and(|(_, path)| !checkpoint::has_optimizer(path)) {
            return None;
        }
        let asked = || Config::load(&self.config(), &[]).ok()?.total_steps().ok();
        let total_steps = told.as_ref().map(|told| told.total_steps).or_else(asked)?;
        let saved = last.map(|(step, _)| *step);
        let ended = |status, step| Some(RunProgress { status, step, total_steps });
        let told_step = told.as_ref().map(|told| told.step);
        let status = told.map(|told| told.status);
        if status != Some(Status::Finished) && self.is_locked() {
            return ended(Status::Running, told_step.or(saved).unwrap_or(0));
        }
        match (saved, status) {
            (Some(step), _) if step >= total_steps => ended(Status::Finished, step),
            // Weights may be cleared away once there is a model.
            (None, Some(Status::Finished)) if all.is_empty() && self.onnx().is_file() => {
                ended(Status::Finished, told_step.unwrap_or(total_steps))
            }
            (_, Some(status @ (Status::Interrupted | Status::Diverged | Status::Failed))) => {
                ended(status, told_step.or(saved).unwrap_or(0))
            }
            // A killed process had no chance to say so.
            (_, None | Some(Status::Running | Status::Killed | Status::Finished)) => {
                ended(Status::Killed, saved.unwrap_or(0))
            }
        }
    }

    /// The last status that the process that trains wrote; nothing where there is none, or it is damaged.
    pub(crate) fn told_progress(&self) -> Option<RunProgress> {
        serde_json::from_slice(&fs::read(self.path.join("status.json")).ok()?).ok()
    }

    /// Says how far training is. The first time is the start of the run.
    pub(crate) fn set_progress(&self, progress: &RunProgress) -> Result<()> {
        #[derive(Serialize)]
        struct StatusFile<'a> {
            #[serde(flatten)]
            progress: &'a RunProgress,
            started: String,
        }
        let begun = if self.config().exists() { self.started() } else { Utc::now() };
        let started = self.recorded_start().unwrap_or(begun);
        let started = started.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let text = serde_json::to_string(&StatusFile { progress, started })?;
        Ok(data::files::write_bytes(&self.path.join("status.json"), format!("{text}\n").as_bytes())?)
    }
}
