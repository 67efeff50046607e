//! `runs/<handle>/`: one folder per run. A handle is the start time, `MMDD_HHMMSS`, with `-2`, `-3` … on collision.

use anyhow::{Context, Result, bail};
use data::suggest::nearest;
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(feature = "train")]
use {
    crate::checkpoint::{self, Checkpoint, read_state},
    serde::{Deserialize, Serialize},
    std::fs::{File, TryLockError},
};

/// The name of an exported model.
pub const MODEL_FILE: &str = "model.onnx";

/// One run's folder.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    handle: String,
}

impl RunDir {
    /// Makes the folder of a run that starts now.
    #[cfg(feature = "train")]
    pub fn create(runs: &Path) -> Result<Self> {
        fs::create_dir_all(runs).with_context(|| format!("cannot create the runs folder {}", runs.display()))?;
        let start = chrono::Local::now().format("%m%d_%H%M%S").to_string();
        for attempt in 1.. {
            let handle = if attempt == 1 { start.clone() } else { format!("{start}-{attempt}") };
            let path = runs.join(&handle);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, handle }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e).with_context(|| format!("cannot create the run folder {}", path.display())),
            }
        }
        bail!("no free handle under {}", runs.display())
    }

    /// The run with this handle.
    pub fn open(runs: &Path, handle: &str) -> Result<Self> {
        let path = runs.join(handle);
        if !handle.contains(['/', '\\']) && path.join("config.toml").is_file() {
            return Ok(Self { path, handle: handle.to_owned() });
        }
        let all = Self::all(runs)?;
        let names = all.iter().map(|run| run.handle.as_str());
        let hint = match (nearest(handle, names), all.last()) {
            (Some(close), _) => format!("did you mean `{close}`?"),
            (None, Some(newest)) => format!("the newest run is `{}`", newest.handle),
            (None, None) => "there are no runs yet; `pipeline train --config <C>` makes one".to_owned(),
        };
        bail!("there is no run `{handle}` under {}\n  hint: {hint}", runs.display())
    }

    /// All runs, oldest first.
    pub fn all(runs: &Path) -> Result<Vec<Self>> {
        let entries = match fs::read_dir(runs) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(e).with_context(|| format!("cannot read the runs folder {}", runs.display())),
        };
        let mut found = Vec::new();
        for entry in entries.filter_map(Result::ok) {
            let config = entry.path().join("config.toml");
            if let (Ok(written), Ok(handle)) =
                (config.metadata().and_then(|m| m.modified()), entry.file_name().into_string())
            {
                found.push((written, Self { path: entry.path(), handle }));
            }
        }
        found.sort_by(|a, b| (a.0, &a.1.handle).cmp(&(b.0, &b.1.handle)));
        Ok(found.into_iter().map(|(_, run)| run).collect())
    }

    /// The newest run that passes `wanted`; `what` names such runs in the error.
    pub fn newest(runs: &Path, what: &str, hint: &str, wanted: impl Fn(&Self) -> bool) -> Result<Self> {
        let found = Self::all(runs)?.into_iter().rev().find(wanted);
        found.with_context(|| format!("there is no {what} under {}\n  hint: {hint}", runs.display()))
    }

    /// The handle.
    pub fn handle(&self) -> &str {
        &self.handle
    }

    /// The exported model.
    pub fn onnx(&self) -> PathBuf {
        self.path.join(MODEL_FILE)
    }

    /// Where sweeps are written.
    pub fn eval(&self) -> PathBuf {
        self.path.join("eval")
    }

    /// The folders of all checkpoints with their steps, fewest first; whole or not.
    pub fn checkpoints(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(self.path.join("checkpoints")).into_iter().flatten().filter_map(Result::ok);
        let steps = |name: &str| name.strip_prefix("epoch-")?.split_once("-step-")?.1.parse().ok();
        let mut found: Vec<_> = entries.filter_map(|e| Some((steps(e.file_name().to_str()?)?, e.path()))).collect();
        found.sort();
        found
    }
}

#[cfg(feature = "train")]
impl RunDir {
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved config.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// The training curve.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.parquet")
    }

    /// TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// Where a checkpoint goes.
    pub fn checkpoint(&self, epoch: u64, step: u64) -> PathBuf {
        self.path.join("checkpoints").join(format!("epoch-{epoch:04}-step-{step}"))
    }

    /// The checkpoint that `choice` names: `last` (the default), `best`, `epoch-N` for the last one of epoch N, or the name
    /// of its folder. `note` is told of damaged ones that were passed over.
    pub fn choose_checkpoint(&self, choice: Option<&str>, note: impl FnMut(String)) -> Result<Checkpoint> {
        let wanted = match choice {
            None | Some("last") => return self.last_checkpoint(note),
            Some("best") => self.best_checkpoint().with_context(|| {
                format!(
                    "no checkpoint of run `{}` was evaluated, so that none is the best\n  hint: export its last one, or train with train.eval_every",
                    self.handle
                )
            })?,
            Some(name) => {
                let called = |path: &Path| path.file_name().is_some_and(|f| f.to_string_lossy() == name);
                let epoch: Option<u64> = name.strip_prefix("epoch-").and_then(|n| n.parse().ok());
                let of_epoch = |path: &Path| {
                    let folder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    epoch.is_some_and(|n| folder.starts_with(&format!("epoch-{n:04}-")))
                };
                let all = self.checkpoints();
                let found = all.iter().rev().find(|(_, path)| called(path) || of_epoch(path));
                let (_, path) = found.with_context(|| {
                    let names = all.iter().filter_map(|(_, path)| Some(path.file_name()?.to_string_lossy().into_owned()));
                    let names: Vec<_> = ["last".to_owned(), "best".to_owned()].into_iter().chain(names).collect();
                    format!("run `{}` has no checkpoint `{name}`\n  hint: there are {}", self.handle, names.join(", "))
                })?;
                path.clone()
            }
        };
        Checkpoint::open(&wanted)
    }

    /// The whole checkpoint with the most steps. `note` is told of damaged ones that were passed over.
    pub fn last_checkpoint(&self, mut note: impl FnMut(String)) -> Result<Checkpoint> {
        let mut damage = Vec::new();
        for (_, path) in self.checkpoints().into_iter().rev() {
            match Checkpoint::open(&path) {
                Ok(checkpoint) => {
                    for error in damage {
                        note(format!("passed over a damaged checkpoint ({error:#}); using {}", checkpoint.name()));
                    }
                    return Ok(checkpoint);
                }
                Err(error) => damage.push(error),
            }
        }
        match damage.into_iter().next() {
            Some(error) => Err(error.context(format!(
                "run `{}` has no checkpoint that is whole\n  hint: train again; `pipeline train --resume {}` starts over",
                self.handle, self.handle
            ))),
            None => bail!(
                "run `{}` has no checkpoint in {}\n  hint: it ended before its first one; `pipeline train --resume {}` goes on, and train.checkpoint_every saves more often",
                self.handle,
                self.path.join("checkpoints").display(),
                self.handle
            ),
        }
    }

    /// The checkpoint with the highest accuracy on validation, then the lowest loss, among those evaluated when saved.
    pub fn best_checkpoint(&self) -> Option<PathBuf> {
        let scored = self.checkpoints().into_iter().filter_map(|(_, path)| {
            let state = read_state(&path).ok()?;
            Some((state.val_accuracy?, state.val_loss?, path))
        });
        scored.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1))).map(|(_, _, path)| path)
    }

    /// Removes all checkpoints but the `keep` newest and the best.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<()> {
        let (best, all) = (self.best_checkpoint(), self.checkpoints());
        let old = &all[..all.len().saturating_sub(keep)];
        old.iter().filter(|(_, path)| Some(path) != best.as_ref()).try_for_each(|(_, path)| checkpoint::remove(path))
    }

    /// Removes what a killed process was writing.
    pub fn remove_partial_files(&self) {
        for folder in [self.path.clone(), self.path.join("checkpoints")] {
            for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
                if entry.file_name().to_string_lossy().starts_with(".partial-") {
                    let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
                }
            }
        }
    }

    /// How far training is, as the process that trains last said.
    pub fn progress(&self) -> Option<RunProgress> {
        let text = fs::read_to_string(self.path.join("status.json")).ok()?;
        let mut progress: RunProgress = serde_json::from_str(&text).ok()?;
        // Whoever was killed had no chance to say so.
        if progress.status == Status::Running && !self.is_locked() {
            progress.status = Status::Killed;
        }
        Some(progress)
    }

    /// Says how far training is.
    pub fn set_progress(&self, progress: &RunProgress) -> Result<()> {
        let text = serde_json::to_string(progress)?;
        Ok(data::files::write_bytes(&self.path.join("status.json"), format!("{text}\n").as_bytes())?)
    }

    /// Makes this process the one that trains the run, until the value is dropped or the process ends in whatever way.
    pub fn lock(&self) -> Result<RunLock> {
        let path = self.path.join(".lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => bail!(
                "run `{}` is being trained by another process\n  hint: wait for it, or stop it first",
                self.handle
            ),
            // Some network file systems have no locks; better to train without than not at all.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(RunLock { _file: file }),
        }
    }

    /// Whether a process is training the run now.
    pub fn is_locked(&self) -> bool {
        let file = File::open(self.path.join(".lock"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// See [`RunDir::lock`].
#[cfg(feature = "train")]
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// `status.json`: how far a run is.
#[cfg(feature = "train")]
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
#[cfg(feature = "train")]
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

#[cfg(feature = "train")]
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

#[cfg(all(test, feature = "train"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn handles_collide_into_numbers_and_the_newest_is_found() {
        let runs = tempfile::tempdir().unwrap();
        let made: Vec<RunDir> = (0..3).map(|_| RunDir::create(runs.path()).unwrap()).collect();
        let mut handles: Vec<&str> = made.iter().map(RunDir::handle).collect();
        assert!(handles[0].len() == 11 && handles[0].as_bytes()[4] == b'_', "{handles:?}");
        handles.dedup();
        assert_eq!(handles.len(), 3);

        // A folder without a config is not a run yet.
        assert!(RunDir::all(runs.path()).unwrap().is_empty());
        made.iter().for_each(|run| fs::write(run.config(), "").unwrap());
        assert_eq!(RunDir::all(runs.path()).unwrap().len(), 3);
        assert!(RunDir::newest(runs.path(), "exported run", "export one", |r| r.onnx().exists()).is_err());
        assert_eq!(RunDir::open(runs.path(), made[1].handle()).unwrap().path(), made[1].path());
        assert!(RunDir::open(runs.path(), "../elsewhere").is_err());
    }

    fn save(run: &RunDir, epoch: u64, step: u64, val: Option<(f64, f64)>) {
        let (val_accuracy, val_loss) = val.unzip();
        let state = checkpoint::State { epoch, step, val_accuracy, val_loss, ..Default::default() };
        Checkpoint::write(&run.checkpoint(epoch, step), state, &Default::default(), None).unwrap();
    }

    #[test]
    fn the_last_checkpoint_is_the_whole_one_with_the_most_steps() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        let last = || run.last_checkpoint(|_| ()).map(|c| c.path().to_owned());
        assert!(last().unwrap_err().to_string().contains("has no checkpoint"));
        for (epoch, step) in [(1, 900), (2, 1800), (2, 1000)] {
            save(&run, epoch, step, None);
        }
        fs::create_dir_all(run.path().join("checkpoints/.partial-5000")).unwrap();
        assert_eq!(last().unwrap(), run.checkpoint(2, 1800));

        fs::write(run.checkpoint(2, 1800).join("model.safetensors"), "torn").unwrap();
        let mut notes = Vec::new();
        assert_eq!(run.last_checkpoint(|n| notes.push(n)).unwrap().path(), run.checkpoint(2, 1000));
        assert!(notes[0].contains("epoch-0002-step-1800") && notes[0].contains("damaged"), "{notes:?}");
        run.remove_partial_files();
        assert_eq!(fs::read_dir(run.path().join("checkpoints")).unwrap().count(), 3);
    }

    #[test]
    fn pruning_spares_the_newest_and_the_best() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        let scores = [(0.5, 1.0), (0.9, 0.5), (0.9, 0.4), (0.8, 0.3)];
        for (step, score) in (1..).zip(scores) {
            save(&run, 1, step, Some(score));
        }
        save(&run, 1, 5, None);
        run.prune_checkpoints(1).unwrap();
        let left: Vec<u64> = run.checkpoints().into_iter().map(|(step, _)| step).collect();
        assert_eq!((left, run.best_checkpoint()), (vec![3, 5], Some(run.checkpoint(1, 3))));
    }

    #[test]
    fn one_process_trains_a_run() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        run.set_progress(&RunProgress { status: Status::Running, step: 3, total_steps: 9 }).unwrap();
        let lock = run.lock().unwrap();
        assert!(run.is_locked() && run.lock().unwrap_err().to_string().contains("another process"));
        assert_eq!(run.progress().unwrap().status, Status::Running);
        drop(lock);
        assert_eq!(run.progress().unwrap().status, Status::Killed);
    }
}
