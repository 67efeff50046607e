//! `runs/<handle>/`: one folder per run. A handle is the start time, `MMDD_HHMMSS`, with `-2`, `-3` … on collision.
//!
//! A run has two locks. `.lock` is held by whoever trains it; `.export.lock` by whoever writes its models, or shared by
//! those who evaluate them, so that a checkpoint can be exported and evaluated while the run is trained. Deleting a run
//! takes both.

#[cfg(feature = "train")]
mod checkpoints;
#[cfg(feature = "train")]
pub(crate) mod checksum;
#[cfg(feature = "train")]
mod delete;
pub(crate) mod lock;
#[cfg(feature = "train")]
mod status;

use self::lock::{Attempt, FileLock, Kind};
use anyhow::{Context, Result, bail};
use chrono::{DateTime, Datelike, Local, NaiveDate, TimeDelta, Utc};
use data::suggest::nearest;
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(feature = "train")]
pub use self::status::{RunProgress, Status};

/// The name of an exported model.
pub(crate) const MODEL_FILE: &str = "model.onnx";
/// Held by whoever trains the run.
#[cfg(feature = "train")]
const TRAINING_LOCK: &str = ".lock";
/// Held by whoever writes models of the run, shared by whoever reads them; there for as long as somebody does.
const MODEL_LOCK: &str = ".export.lock";
/// Temporary names of files that are being written.
const PARTIAL: &str = ".partial-";
/// The beginning of temporary names of exports.
pub(crate) const PARTIAL_EXPORT: &str = ".partial-export-";
/// Temporary names that exports used to have.
const OLD_PARTIAL_EXPORTS: [&str; 2] = [".partial-model.onnx", "bf16-check.onnx"];

/// One run's folder.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    handle: String,
}

impl RunDir {
    /// Makes the folder of a run that starts now.
    #[cfg(feature = "train")]
    pub(crate) fn create(runs: &Path) -> Result<Self> {
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
        if !handle.contains(['/', '\\']) && !handle.starts_with('.') && path.join("config.toml").is_file() {
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

    /// The run in a folder, which need not be a sound one.
    #[cfg(feature = "train")]
    pub(crate) fn at(folder: &Path) -> Option<Self> {
        Some(Self { path: folder.to_owned(), handle: folder.file_name()?.to_str()?.to_owned() })
    }

    /// The run that a model file is in: beside its config, or in one of its checkpoints.
    pub fn containing(model: &Path) -> Option<Self> {
        let model = model.canonicalize().ok()?;
        // run/model.onnx, or run/checkpoints/epoch-0001-step-7/model.onnx
        let path = [1, 3].into_iter().filter_map(|up| model.ancestors().nth(up));
        let path = path.into_iter().find(|folder| folder.join("config.toml").is_file())?;
        Some(Self { path: path.to_owned(), handle: path.file_name()?.to_str()?.to_owned() })
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
            let Ok(handle) = entry.file_name().into_string() else { continue };
            if !handle.starts_with('.') && entry.path().join("config.toml").metadata().is_ok() {
                let run = Self { path: entry.path(), handle };
                found.push((run.started(), run));
            }
        }
        found.sort_by_cached_key(|(started, run)| (*started, collision(&run.handle), run.handle.clone()));
        Ok(found.into_iter().map(|(_, run)| run).collect())
    }

    /// The folders of runs that were killed before they had begun: of such a name, without a config, and nobody is at them.
    #[cfg(feature = "train")]
    pub(crate) fn unbegun(runs: &Path) -> Vec<Self> {
        let entries = fs::read_dir(runs).into_iter().flatten().filter_map(Result::ok);
        let mut found: Vec<Self> = entries.filter_map(|entry| Self::at_unbegun(&entry.path())).collect();
        found.sort_by(|a, b| a.handle.cmp(&b.handle));
        found
    }

    #[cfg(feature = "train")]
    fn at_unbegun(folder: &Path) -> Option<Self> {
        let run = Self::at(folder).filter(|_| folder.symlink_metadata().is_ok_and(|found| found.is_dir()))?;
        start_of(&run.handle, Utc::now())?;
        // Files that a run has before its config; a folder with anything else is no run's.
        let is_early =
            |name: &str| [TRAINING_LOCK, MODEL_LOCK, "status.json"].contains(&name) || name.starts_with(PARTIAL);
        let mut entries = fs::read_dir(folder).ok()?;
        let only_early = entries.all(|entry| entry.is_ok_and(|entry| is_early(&entry.file_name().to_string_lossy())));
        (only_early && !run.is_locked()).then_some(run)
    }

    /// [`Self::open`] for whoever deletes runs, which may also be some of [`Self::unbegun`].
    #[cfg(feature = "train")]
    pub(crate) fn open_any(runs: &Path, handle: &str) -> Result<Self> {
        let is_name = !handle.contains(['/', '\\']);
        let unbegun = || if is_name { Self::at_unbegun(&runs.join(handle)) } else { None };
        Self::open(runs, handle).or_else(|error| unbegun().ok_or(error))
    }

    /// When the run was begun, as it says itself: files' times are those of the last copy. Runs of earlier versions
    /// have the handle, to which the time of the config gives the year.
    pub fn started(&self) -> DateTime<Utc> {
        self.recorded_start().unwrap_or_else(|| {
            let written = self.path.join("config.toml").metadata().and_then(|m| m.modified());
            let written = written.map_or(DateTime::UNIX_EPOCH, DateTime::from);
            start_of(&self.handle, written).unwrap_or(written)
        })
    }

    fn recorded_start(&self) -> Option<DateTime<Utc>> {
        #[derive(Deserialize)]
        struct Started {
            started: String,
        }
        let status: Started = serde_json::from_slice(&fs::read(self.path.join("status.json")).ok()?).ok()?;
        Some(DateTime::parse_from_rfc3339(&status.started).ok()?.to_utc())
    }

    /// The newest run that passes `wanted`; `what` names such runs in the error.
    pub(crate) fn newest(runs: &Path, what: &str, hint: &str, wanted: impl Fn(&Self) -> bool) -> Result<Self> {
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

    /// Keeps the run's models as they are while this process reads them, until the value is dropped. `note` is told where
    /// that has to wait for an export. A folder that cannot be written, or has no locks, is read without.
    pub(crate) fn read_models(&self, note: impl FnOnce(String)) -> Option<FileLock> {
        let path = self.path.join(MODEL_LOCK);
        // Whoever comes first removes what was left behind by those who were killed.
        if let Attempt::Held(lock) = lock::attempt(&path, Kind::Exclusive) {
            self.remove_partial_results();
            return lock.share().ok().map(|()| lock.and_its_file(&path));
        }
        let mut note = Some(note);
        let waiting = |waited| self.say_waiting(waited, &mut note, "is being exported");
        match lock::attempt_until(&path, Kind::Shared, waiting) {
            Attempt::Held(lock) => Some(lock.and_its_file(&path)),
            Attempt::Taken | Attempt::Impossible(_) => None,
        }
    }

    /// For [`lock::attempt_until`]: waits without end, and says so when it takes longer than a moment.
    fn say_waiting(&self, waited: Duration, note: &mut Option<impl FnOnce(String)>, why: &str) -> bool {
        if waited > Duration::from_millis(500)
            && let Some(note) = note.take()
        {
            note(format!("run {} {why} by another process: waiting for it", self.handle));
        }
        false
    }

    /// Removes what killed exports and evaluations were writing; for whoever has the lock of the models to itself.
    fn remove_partial_results(&self) {
        let is_partial_export = |name: &str| {
            name.starts_with(PARTIAL_EXPORT) || OLD_PARTIAL_EXPORTS.iter().any(|old| name.starts_with(old))
        };
        remove_files(&self.path, is_partial_export);
        self.checkpoints().iter().for_each(|(_, path)| remove_files(path, is_partial_export));
        remove_files(&self.eval(), |name| name.starts_with(PARTIAL));
    }
}

/// Removes what in `folder` has such a name, as far as possible.
fn remove_files(folder: &Path, is_doomed: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        if is_doomed(&entry.file_name().to_string_lossy()) {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
}

/// The number behind a handle that others had before.
fn collision(handle: &str) -> u64 {
    handle.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or(1)
}

/// The local time that a handle says, in the last year in which that was not after `written` (but for the clocks of two
/// machines, which may differ).
fn start_of(handle: &str, written: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let number = |range: std::ops::Range<usize>| handle.get(range)?.parse::<u32>().ok();
    let rest = handle.get(11..)?;
    if handle.as_bytes().get(4) != Some(&b'_') || !(rest.is_empty() || rest.starts_with('-')) {
        return None;
    }
    let (month, day) = (number(0..2)?, number(2..4)?);
    let (hour, minute, second) = (number(5..7)?, number(7..9)?, number(9..11)?);
    let latest = written + TimeDelta::days(1);
    // Leap days may be eight years apart.
    (latest.year() - 8..=latest.year()).rev().find_map(|year| {
        let time = NaiveDate::from_ymd_opt(year, month, day)?.and_hms_opt(hour, minute, second)?;
        let time = time.and_local_timezone(Local).earliest()?.to_utc();
        (time <= latest).then_some(time)
    })
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
    pub(crate) fn checkpoint(&self, epoch: u64, step: u64) -> PathBuf {
        self.path.join("checkpoints").join(format!("epoch-{epoch:04}-step-{step}"))
    }

    /// Makes this process the one that trains the run, until the value is dropped or the process ends.
    /// `None` where the file system has no locks: better to train without than not at all.
    pub(crate) fn lock(&self) -> Result<Option<FileLock>> {
        let path = self.path.join(TRAINING_LOCK);
        match lock::attempt_patiently(&path, Kind::Exclusive) {
            Attempt::Held(lock) => Ok(Some(lock)),
            Attempt::Taken => bail!(
                "run `{}` is being trained by another process\n  hint: wait for it, or stop it first",
                self.handle
            ),
            Attempt::Impossible(_) if path.exists() => Ok(None),
            Attempt::Impossible(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
        }
    }

    /// Makes this process the only one that writes or reads the run's models, until the value is dropped; waits for others,
    /// of which `note` is told. `None` where the file system has no locks.
    pub(crate) fn write_models(&self, note: impl FnOnce(String)) -> Result<Option<FileLock>> {
        let path = self.path.join(MODEL_LOCK);
        let mut note = Some(note);
        let waiting = |waited| self.say_waiting(waited, &mut note, "is being exported or evaluated");
        match lock::attempt_until(&path, Kind::Exclusive, waiting) {
            Attempt::Held(lock) => {
                self.remove_partial_results();
                if let Attempt::Held(_training) = lock::attempt(&self.path.join(TRAINING_LOCK), Kind::Exclusive) {
                    self.remove_partial_files();
                }
                Ok(Some(lock.and_its_file(&path)))
            }
            Attempt::Taken => Ok(None), // it waits until that is over
            Attempt::Impossible(_) if path.exists() => Ok(None),
            Attempt::Impossible(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
        }
    }

    /// Whether a process is training the run now.
    pub(crate) fn is_locked(&self) -> bool {
        lock::is_taken(&self.path.join(TRAINING_LOCK))
    }

    /// Takes the run away from everyone, to delete it.
    ///
    /// # Errors
    /// It is being trained, exported or evaluated.
    pub(crate) fn lock_all(&self) -> Result<Vec<FileLock>> {
        let mut locks = Vec::new();
        for (name, doing) in [(TRAINING_LOCK, "trained"), (MODEL_LOCK, "exported or evaluated")] {
            match lock::attempt_patiently(&self.path.join(name), Kind::Exclusive) {
                Attempt::Held(lock) if name == MODEL_LOCK => locks.push(lock.and_its_file(&self.path.join(name))),
                Attempt::Held(lock) => locks.push(lock),
                Attempt::Taken => {
                    bail!("run `{}` is being {doing}; nothing was deleted\n  hint: stop that first", self.handle)
                }
                // Where nothing can be written, nothing can be deleted either, and that says why.
                Attempt::Impossible(_) => {}
            }
        }
        Ok(locks)
    }

    /// Removes what killed processes were writing; for whoever holds the lock of the training. Exports and
    /// evaluations, which others may be writing now, stay.
    pub(crate) fn remove_partial_files(&self) {
        remove_files(&self.path, |name| {
            let is_export = name.starts_with(PARTIAL_EXPORT) || OLD_PARTIAL_EXPORTS.contains(&name);
            name.starts_with(PARTIAL) && !is_export
        });
        remove_files(&self.path.join("checkpoints"), |name| name.starts_with(PARTIAL));
        let models = self.path.join(MODEL_LOCK);
        if let Attempt::Held(lock) = lock::attempt(&models, Kind::Exclusive) {
            self.remove_partial_results();
            drop(lock.and_its_file(&models));
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

    #[test]
    fn folders_of_runs_that_never_began_are_known_as_such() {
        let runs = tempfile::tempdir().unwrap();
        let dead = RunDir::create(runs.path()).unwrap();
        drop(dead.lock().unwrap());
        dead.set_progress(&RunProgress { status: Status::Running, step: 0, total_steps: 9 }).unwrap();
        let live = RunDir::create(runs.path()).unwrap();
        let lock = live.lock().unwrap();
        let begun = RunDir::create(runs.path()).unwrap();
        fs::write(begun.config(), "").unwrap();
        fs::create_dir_all(runs.path().join("0102_030405")).unwrap();
        fs::write(runs.path().join("0102_030405/notes.txt"), "mine").unwrap();
        fs::create_dir_all(runs.path().join("sweeps")).unwrap();
        let found: Vec<String> = RunDir::unbegun(runs.path()).into_iter().map(|run| run.handle).collect();
        assert_eq!(found, [dead.handle()]);
        drop(lock);
        let any = |handle: &str| RunDir::open_any(runs.path(), handle).map(|run| run.handle);
        assert!([dead.handle(), live.handle(), begun.handle()].iter().all(|handle| any(handle).is_ok()));
        assert!(any("0102_030405").is_err() && any("sweeps").is_err() && any("../x").is_err());
    }

    #[test]
    fn runs_of_earlier_versions_are_ordered_by_their_handles() {
        let time = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().to_utc();
        let local = |text: &str| {
            let naive = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap();
            naive.and_local_timezone(Local).earliest().map(|time| time.to_utc())
        };
        let copied = time("2026-03-05T12:00:00Z");
        assert_eq!(start_of("0304_101112", copied), local("2026-03-04 10:11:12"));
        assert_eq!(start_of("0304_101112-2", copied), local("2026-03-04 10:11:12"));
        assert_eq!(start_of("1231_235959", copied), local("2025-12-31 23:59:59"), "that is not to come");
        assert_eq!(start_of("0229_120000", copied), local("2024-02-29 12:00:00"));
        for other in ["my-run", "0304_1011", "1304_101112", "0304_101112x", "03\u{e4}4_10111"] {
            assert_eq!(start_of(other, copied), None, "{other}");
        }

        let runs = tempfile::tempdir().unwrap();
        let names = ["0304_101112", "0304_101112-2", "0304_101112-10", "1231_235959"];
        for (age, name) in names.iter().enumerate() {
            let config = runs.path().join(name).join("config.toml");
            data::files::write_bytes(&config, b"").unwrap();
            let written = std::time::SystemTime::from(copied) - Duration::from_secs(age as u64);
            fs::File::options().write(true).open(config).unwrap().set_modified(written).unwrap();
        }
        let found = RunDir::all(runs.path()).unwrap();
        let found: Vec<&str> = found.iter().map(RunDir::handle).collect();
        assert_eq!(found, [names[3], names[0], names[1], names[2]]);
    }

    #[test]
    fn a_model_in_a_run_is_known_as_such() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        let models = [run.onnx(), run.checkpoint(1, 7).join(MODEL_FILE), runs.path().join(MODEL_FILE)];
        models.iter().for_each(|path| data::files::write_bytes(path, b"").unwrap());
        assert!(RunDir::containing(&models[0]).is_none(), "it has no config yet");
        fs::write(run.config(), "").unwrap();
        let found = models.map(|path| RunDir::containing(&path).map(|run| run.handle));
        assert_eq!(found, [Some(run.handle.clone()), Some(run.handle), None]);
    }

    #[test]
    fn one_process_trains_a_run() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        run.set_progress(&RunProgress { status: Status::Running, step: 3, total_steps: 9 }).unwrap();
        let lock = run.lock().unwrap().unwrap();
        assert!(run.is_locked() && run.lock().unwrap_err().to_string().contains("another process"));
        assert_eq!(run.progress().unwrap().status, Status::Running);
        drop(lock);
        assert_eq!(run.progress().unwrap().status, Status::Killed);
    }
}
