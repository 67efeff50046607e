//! The checkpoints of a run: which one is meant, which ones stay.

use super::RunDir;
use crate::train::checkpoint::{self, Checkpoint, read_state, weights_checksum};
use anyhow::{Context, Result, bail};
use models::Weights;
use std::path::{Path, PathBuf};

/// How often a checkpoint is chosen that then goes while it is read.
const ATTEMPTS: usize = 20;

/// Whether a checkpoint that was there is no more; those that are damaged still have their folder.
fn is_gone(checkpoint: &Path) -> bool {
    checkpoint.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

impl RunDir {
    /// The checkpoint that `choice` names: `last` (the default), `best`, `epoch-N` for the last one of epoch N, or the name
    /// of its folder. `note` is told of damaged ones that were passed over.
    pub(crate) fn choose_checkpoint(&self, choice: Option<&str>, note: impl FnMut(String)) -> Result<Checkpoint> {
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

    /// A checkpoint as [`Self::choose_checkpoint`] chooses it, its weights and their checksum, all of one moment. While
    /// the run is trained, old checkpoints go: one that was about to be read and is gone is chosen again.
    pub(crate) fn read_checkpoint(
        &self,
        choice: Option<&str>,
        mut note: impl FnMut(String),
    ) -> Result<(Checkpoint, Weights, String)> {
        for again in (0..ATTEMPTS).rev() {
            let checkpoint = match self.choose_checkpoint(choice, &mut note) {
                Ok(checkpoint) => checkpoint,
                // One that was the best may no longer be, and then goes.
                Err(_) if again > 0 && choice == Some("best") && self.best_checkpoint().is_some() => continue,
                Err(error) => return Err(error),
            };
            let read = checkpoint.weights().and_then(|weights| Ok((weights, weights_checksum(checkpoint.path())?)));
            match read {
                Ok((weights, checksum)) => return Ok((checkpoint, weights, checksum)),
                Err(_) if again > 0 && is_gone(checkpoint.path()) => continue,
                Err(error) => return Err(error),
            }
        }
        bail!(
            "the checkpoints of run `{}` go faster than they can be read\n  hint: keep more of them, with --keep",
            self.handle
        )
    }

    /// The whole checkpoint with the most steps. `note` is told of damaged ones that were passed over.
    pub(crate) fn last_checkpoint(&self, mut note: impl FnMut(String)) -> Result<Checkpoint> {
        for _ in 1..ATTEMPTS {
            let all = self.checkpoints();
            let found = self.last_of(&all, &mut note);
            // The process that trains may have replaced the one that was about to be read.
            if found.is_err() && (all.is_empty() || all.iter().any(|(_, path)| is_gone(path))) {
                continue;
            }
            return found;
        }
        self.last_of(&self.checkpoints(), &mut note)
    }

    fn last_of(&self, all: &[(u64, PathBuf)], mut note: impl FnMut(String)) -> Result<Checkpoint> {
        let mut damage = Vec::new();
        for (_, path) in all.iter().rev() {
            match Checkpoint::open(path) {
                Ok(checkpoint) => {
                    for error in damage {
                        note(format!("passed over a damaged checkpoint ({error:#}); using {}", checkpoint.name()));
                    }
                    return Ok(checkpoint);
                }
                Err(_) if is_gone(path) => {} // that is no damage
                Err(error) => damage.push(error),
            }
        }
        match damage.into_iter().next() {
            Some(error) => Err(error.context(format!(
                "run `{}` has no checkpoint that is whole\n  hint: train again; `pipeline train --resume {}` starts over",
                self.handle, self.handle
            ))),
            None => bail!(
                "run `{}` has no checkpoint in {}\n  hint: it ended before its first one; `pipeline train --resume {}` starts again, and train.checkpoint_every saves more often",
                self.handle,
                self.path.join("checkpoints").display(),
                self.handle
            ),
        }
    }

    /// The checkpoint with the highest accuracy on validation, then the lowest loss, among those evaluated when saved.
    pub(crate) fn best_checkpoint(&self) -> Option<PathBuf> {
        let scored = self.checkpoints().into_iter().filter_map(|(_, path)| {
            let state = read_state(&path).ok()?;
            Some((state.val_accuracy?, state.val_loss?, path))
        });
        scored.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1))).map(|(_, _, path)| path)
    }

    /// Removes all checkpoints but the `keep` newest and the best.
    pub(crate) fn prune_checkpoints(&self, keep: usize) -> Result<()> {
        let (best, all) = (self.best_checkpoint(), self.checkpoints());
        let old = &all[..all.len().saturating_sub(keep)];
        old.iter().filter(|(_, path)| Some(path) != best.as_ref()).try_for_each(|(_, path)| checkpoint::remove(path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashSet;
    use std::fs;
    use std::time::{Duration, Instant};

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

    /// While one thread trains under `keep = 1`, another exports: it always gets a whole checkpoint.
    #[test]
    fn a_checkpoint_that_goes_while_it_is_read_is_chosen_again() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        save(&run, 1, 1, None);
        // Without the flushes of a real checkpoint, so that many come and go.
        let names = fs::read_dir(run.checkpoint(1, 1)).unwrap().map(|entry| entry.unwrap().file_name());
        let saved: Vec<_> =
            names.map(|name| (name.clone(), fs::read(run.checkpoint(1, 1).join(name)).unwrap())).collect();
        let (done, start) = (std::sync::atomic::AtomicBool::new(false), Instant::now());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let new = run.path().join("checkpoints/.partial-new");
                for step in 2.. {
                    fs::create_dir(&new).unwrap();
                    saved.iter().for_each(|(name, bytes)| fs::write(new.join(name), bytes).unwrap());
                    fs::rename(&new, run.checkpoint(1, step)).unwrap();
                    run.prune_checkpoints(1).unwrap();
                    if done.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
            let (mut notes, mut found) = (Vec::new(), HashSet::new());
            let mut read = Ok(());
            while read.is_ok() && found.len() < 300 && start.elapsed() < Duration::from_secs(20) {
                read = run.read_checkpoint(None, |note| notes.push(note)).map(|(c, ..)| {
                    found.insert(c.name());
                });
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            read.unwrap();
            assert!(found.len() > 20 && notes.is_empty(), "{} {notes:?}", found.len());
        });
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
}
