//! `runs/<handle>/`: one folder per run. A handle is the start time, `MMDD_HHMMSS`, with `-2`, `-3` … on collision.

use anyhow::{Context, Result, bail};
use data::suggest::nearest;
use std::fs;
use std::path::{Path, PathBuf};

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

    /// The exported model.
    pub fn onnx(&self) -> PathBuf {
        self.path.join("model.onnx")
    }

    /// Where sweeps are written.
    pub fn eval(&self) -> PathBuf {
        self.path.join("eval")
    }
}

#[cfg(feature = "train")]
impl RunDir {
    /// The handle.
    pub fn handle(&self) -> &str {
        &self.handle
    }

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

    /// Where a checkpoint goes.
    pub fn checkpoint(&self, epoch: u64, step: u64) -> PathBuf {
        self.path.join("checkpoints").join(format!("epoch-{epoch:04}-step-{step}"))
    }

    /// The checkpoint that `choice` names: `last` (the default), `epoch-N`, or the name of a folder.
    pub fn choose_checkpoint(&self, choice: Option<&str>, _note: impl FnMut(String)) -> Result<PathBuf> {
        let _ = choice;
        self.last_checkpoint()
    }

    /// The checkpoint with the most steps.
    pub fn last_checkpoint(&self) -> Result<PathBuf> {
        let folder = self.path.join("checkpoints");
        let entries = fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
        let steps = |name: &str| name.strip_prefix("epoch-")?.split_once("-step-")?.1.parse::<u64>().ok();
        let last = entries.filter_map(|e| Some((steps(e.file_name().to_str()?)?, e.path()))).max();
        last.map(|(_, path)| path).with_context(|| {
            format!(
                "run `{}` has no checkpoint in {}\n  hint: it ended before its first one; train again, or set train.checkpoint_every",
                self.handle,
                folder.display()
            )
        })
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

    #[test]
    fn the_last_checkpoint_is_the_one_with_the_most_steps() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        assert!(run.last_checkpoint().unwrap_err().to_string().contains("has no checkpoint"));
        for (epoch, step) in [(1, 900), (2, 1800), (2, 1000)] {
            fs::create_dir_all(run.checkpoint(epoch, step)).unwrap();
        }
        fs::create_dir_all(run.path().join("checkpoints/.partial-5000")).unwrap();
        assert_eq!(run.last_checkpoint().unwrap(), run.checkpoint(2, 1800));
    }
}
