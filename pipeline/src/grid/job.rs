//! One job of a grid: what its run's folder says is left to do, and doing it in child processes.

use super::file::{EvalSettings, Job};
use crate::config::Config;
use crate::export::is_made_of;
use crate::report::read;
use crate::run::checksum::crc32c;
use crate::run::lock::{self, Attempt, FileLock, Kind};
use crate::run::{RunDir, Status};
use crate::split;
use crate::stop;
use crate::train::checkpoint::Checkpoint;
use anyhow::{Context, Result};
use evaluators::{Lengths, model_fingerprint};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

/// How far a job is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nothing is there yet.
    Waiting,
    /// Its run has this many of its steps.
    Training { handle: String, step: u64 },
    /// The export is missing.
    Trained { handle: String },
    /// The evaluation is missing.
    Exported { handle: String },
    /// Nothing is missing.
    Done { handle: String },
    /// It failed at this, and is left alone until it is to be tried again.
    Failed(Failure),
    /// Another process is at it.
    Elsewhere,
    /// It was asked to stop, and continues from where it is.
    Interrupted { handle: Option<String>, step: u64 },
}

/// `failed/<job>.json`: what went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// `train`, `export` or `eval`.
    pub stage: String,
    /// The last words of the process.
    pub message: String,
    /// The job's config; a failure of another one says nothing.
    pub config: String,
}

impl State {
    /// One word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Training { .. } => "half-trained",
            Self::Trained { .. } => "trained",
            Self::Exported { .. } => "exported",
            Self::Done { .. } => "done",
            Self::Failed(_) => "failed",
            Self::Elsewhere => "elsewhere",
            Self::Interrupted { .. } => "interrupted",
        }
    }

    /// The next stage, as a command of this program.
    fn stage(&self) -> Option<&'static str> {
        match self {
            Self::Waiting | Self::Training { .. } => Some("train"),
            Self::Trained { .. } => Some("export"),
            Self::Exported { .. } => Some("eval"),
            Self::Done { .. } | Self::Failed(_) | Self::Elsewhere | Self::Interrupted { .. } => None,
        }
    }

    /// The same, left where it is because of a signal.
    fn interrupted(self) -> Self {
        match self {
            Self::Training { handle, step } => Self::Interrupted { handle: Some(handle), step },
            Self::Waiting => Self::Interrupted { handle: None, step: 0 },
            Self::Trained { handle } | Self::Exported { handle } => Self::Interrupted { handle: Some(handle), step: 0 },
            other => other,
        }
    }

    /// The run, where there is one.
    pub fn handle(&self) -> Option<&str> {
        match self {
            Self::Training { handle, .. }
            | Self::Trained { handle }
            | Self::Exported { handle }
            | Self::Done { handle } => Some(handle),
            Self::Interrupted { handle, .. } => handle.as_deref(),
            _ => None,
        }
    }
}

/// Runs the jobs of a grid: everything that they share.
pub struct Runner {
    /// The program.
    pub program: PathBuf,
    /// The runs folder.
    pub runs: PathBuf,
    /// The datasets folder.
    pub data: PathBuf,
    /// `<runs>/sweeps/<grid>`: resolved configs, logs and failures.
    pub folder: PathBuf,
    /// How jobs are evaluated.
    pub eval: EvalSettings,
    /// Its lengths.
    pub lengths: Lengths,
    /// Whether jobs may run the programs of their tasks.
    pub allow_command: bool,
}

/// A worker's share of the machine.
#[derive(Debug, Clone, Default)]
pub struct Share {
    /// Threads; as many as there are cores if not set.
    pub threads: Option<usize>,
    /// The value of `CUDA_VISIBLE_DEVICES`, where it is to be set.
    pub gpu: Option<String>,
    /// Whether child processes get a group of their own, so that Ctrl-C reaches only this process, which passes it on. Not
    /// under Slurm, where jobs may be kept track of by their group.
    pub own_group: bool,
}

/// The configs of a runs folder, each read once.
pub struct KnownRuns {
    runs: PathBuf,
    /// By folder: when the config was written, and what it says in the words of this program.
    configs: Mutex<HashMap<PathBuf, (SystemTime, Option<String>)>>,
}

/// The run of every config at one moment: the finished one, or the newest.
pub struct Snapshot(HashMap<String, RunDir>);

impl KnownRuns {
    /// Nothing is read yet.
    pub fn new(runs: &Path) -> Self {
        Self { runs: runs.to_owned(), configs: Mutex::default() }
    }

    /// The runs at this moment. Unreadable configs match no job.
    ///
    /// # Errors
    /// The runs folder cannot be read.
    pub fn now(&self) -> Result<Snapshot> {
        let mut known: HashMap<String, RunDir> = HashMap::new();
        let finished = |run: &RunDir| run.progress().is_some_and(|p| p.status == Status::Finished);
        for run in RunDir::all(&self.runs)? {
            let Some(config) = self.config_of(&run) else { continue };
            if known.get(&config).is_none_or(|other| finished(&run) || !finished(other)) {
                known.insert(config, run);
            }
        }
        Ok(Snapshot(known))
    }

    fn config_of(&self, run: &RunDir) -> Option<String> {
        let written = modified(&run.config())?;
        let mut configs = self.configs.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, config)) = configs.get(run.path()).filter(|(read, _)| *read == written) {
            return config.clone();
        }
        let config = Config::load(&run.config(), &[]).and_then(|config| config.to_toml()).ok();
        configs.insert(run.path().to_owned(), (written, config.clone()));
        config
    }
}

impl Runner {
    /// How far a job is.
    ///
    /// # Errors
    /// None but those of writing its config as TOML.
    pub fn state(&self, job: &Job, known: &Snapshot) -> Result<State> {
        let config = job.config.to_toml()?;
        let state = known.0.get(&config).map_or(State::Waiting, |run| self.state_of(run));
        // A failure is about a stage that is still to be done: a stage that was done since has not failed.
        let failure = self.failure(job).filter(|f| f.config == config && state.stage() == Some(f.stage.as_str()));
        Ok(failure.map_or(state, State::Failed))
    }

    fn state_of(&self, run: &RunDir) -> State {
        let handle = run.handle().to_owned();
        let progress = run.progress();
        if progress.as_ref().is_none_or(|p| p.status != Status::Finished) {
            return State::Training { handle, step: progress.map_or(0, |p| p.step) };
        }
        let checkpoints = run.checkpoints();
        let model = run.onnx();
        if let Some((step, last)) = checkpoints.last()
            && !(model.is_file() && is_made_of(&model, last))
        {
            // A damaged checkpoint is made again: an export would pass over it, and be of another step than it seems.
            return match Checkpoint::open(last) {
                Ok(_) => State::Trained { handle },
                Err(_) => State::Training { handle, step: *step },
            };
        }
        if !model.is_file() {
            return State::Trained { handle };
        }
        if self.is_evaluated(run) { State::Done { handle } } else { State::Exported { handle } }
    }

    /// Whether all tables of the run are there, whole and of its model, and the picture with them.
    fn is_evaluated(&self, run: &RunDir) -> bool {
        let (model, eval) = (run.onnx(), run.eval());
        let fingerprint = model_fingerprint(&model).ok();
        let current = |path: &Path| match read::model_fingerprints(path) {
            Ok(Some(found)) => found.iter().all(|found| Some(found) == fingerprint.as_ref()),
            // Tables of earlier versions do not say of which model they are.
            Ok(None) => modified(path).is_some_and(|written| Some(written) >= modified(&model)),
            Err(_) => false,
        };
        let swept = eval.join("sweep.parquet");
        let lengths = || read::lengths(&swept).is_ok_and(|lengths| lengths == self.lengths.as_slice());
        // The picture comes last, where there are two points to draw a line through.
        let drawn = || {
            let points = read::scored_lengths(&swept).map_or(0, |lengths| lengths.len());
            points < 2 || ["sweep.svg", "sweep.png"].iter().all(|name| eval.join(name).is_file())
        };
        // Files are called after the splits as `pipeline eval` calls them.
        let splits = split::named(&self.eval.splits);
        let mut totals = splits.iter().map(|split| eval.join(format!("{}-total.parquet", split.name)));
        current(&swept) && totals.all(|path| current(&path)) && lengths() && drawn()
    }

    fn failure_path(&self, job: &Job) -> PathBuf {
        self.folder.join("failed").join(format!("{}.json", job.name))
    }

    fn failure(&self, job: &Job) -> Option<Failure> {
        serde_json::from_str(&fs::read_to_string(self.failure_path(job)).ok()?).ok()
    }

    /// Forgets that a job failed.
    pub fn forget_failure(&self, job: &Job) {
        let _ = fs::remove_file(self.failure_path(job)); // where there is none, nothing is to be forgotten
    }

    /// Runs the remaining stages of a job and returns how far it came. An error in one is a [`State::Failed`]; a stop
    /// that was asked for leaves the job where it is.
    ///
    /// # Errors
    /// The grid's own files cannot be written or locked.
    pub fn run(&self, job: &Job, known: &KnownRuns, share: &Share) -> Result<State> {
        let text = job.config.to_toml()?;
        // The folder keeps the name that grids of earlier versions gave it.
        let config = self.folder.join("cells").join(format!("{}.toml", job.name));
        // The job's name, which its files have, and its config, which other grids may have as well.
        let of_name = self.folder.join("cells").join(format!("{}.lock", job.name));
        let of_config = self.lock_path(&text, "lock");
        let (Some(_name), Some(_config)) = (lock(&of_name)?, lock(&of_config)?) else { return Ok(State::Elsewhere) };
        if fs::read_to_string(&config).ok().as_ref() != Some(&text) {
            data::files::write_bytes(&config, text.as_bytes())?;
        }
        loop {
            if stop::requested() {
                return Ok(self.state(job, &known.now()?)?.interrupted());
            }
            // Held by the child for as long as it lives: one that outlived its parent is waited for.
            let Some(lifeline) = lock(&self.lock_path(&text, "child"))? else {
                std::thread::sleep(Duration::from_millis(300));
                continue;
            };
            // Another process may have done more by now.
            let state = self.state(job, &known.now()?)?;
            let (stage, arguments): (_, Vec<String>) = match &state {
                State::Waiting => ("train", vec!["--config".into(), config.to_string_lossy().into_owned()]),
                State::Training { handle, .. } => {
                    if RunDir::open(&self.runs, handle)?.is_locked() {
                        std::thread::sleep(Duration::from_millis(300));
                        continue;
                    }
                    ("train", vec!["--resume".into(), handle.clone()])
                }
                State::Trained { handle } => ("export", vec!["--handle".into(), handle.clone()]),
                State::Exported { handle } => ("eval", self.eval_arguments(handle, share)),
                State::Done { .. } | State::Failed(_) | State::Elsewhere | State::Interrupted { .. } => {
                    return Ok(state);
                }
            };
            let ended = self.child(job, stage, &arguments, share, lifeline)?;
            let after = self.state(job, &known.now()?)?;
            if after.stage() != Some(stage) {
                // The stage is done, even if the process ended with an error.
                self.forget_failure(job);
                continue;
            }
            if stop::requested() {
                return Ok(after.interrupted());
            }
            let message = match ended {
                Err(message) => message,
                Ok(()) => format!("`pipeline {stage}` ended well, but did not leave what it should"),
            };
            if let State::Training { handle, .. } = &after
                && RunDir::open(&self.runs, handle)?.progress().is_some_and(|p| p.status == Status::Interrupted)
            {
                return Ok(after.interrupted()); // somebody stopped it, and not this process
            }
            let failure = Failure { stage: stage.into(), message, config: text };
            data::files::write_bytes(&self.failure_path(job), serde_json::to_string_pretty(&failure)?.as_bytes())?;
            return Ok(State::Failed(failure));
        }
    }

    /// A lock on a config, which all grids share.
    fn lock_path(&self, config: &str, what: &str) -> PathBuf {
        let name = format!("{:08x}-{}.{what}", crc32c(config.as_bytes()), config.len());
        self.runs.join("sweeps").join(".locks").join(name)
    }

    fn eval_arguments(&self, handle: &str, share: &Share) -> Vec<String> {
        let mut arguments: Vec<String> = ["--handle", handle, "--lengths", &self.eval.lengths].map(String::from).into();
        for split in &self.eval.splits {
            arguments.extend(["--split".into(), split.clone()]);
        }
        if let Some(samples) = self.eval.samples {
            arguments.extend(["--samples".into(), samples.to_string()]);
        }
        if let Some(threads) = share.threads {
            arguments.extend(["--threads".into(), threads.to_string()]);
        }
        arguments
    }

    /// Runs one command to its end, which holds `lifeline` until then; what it says goes into the job's log at once. An
    /// error inside is what it said when it failed.
    fn child(
        &self,
        job: &Job,
        stage: &str,
        arguments: &[String],
        share: &Share,
        lifeline: FileLock,
    ) -> Result<Result<(), String>> {
        let path = self.folder.join("logs").join(format!("{}-{stage}.log", job.name));
        let writing = || format!("cannot write {}", path.display());
        create_parent(&path)?;
        let mut log = File::create(&path).with_context(writing)?;
        writeln!(log, "pipeline {stage} {}", arguments.join(" ")).with_context(writing)?;
        let start = Instant::now();
        let status = {
            let mut command = Command::new(&self.program);
            command.arg("--runs-dir").arg(&self.runs).arg("--data-dir").arg(&self.data).arg(stage).args(arguments);
            command.args(self.allow_command.then_some("--allow-command"));
            // An input that is empty, and locked for as long as somebody has it open.
            command.stdin(lifeline.to_file().context("cannot pass on the lock of a job")?);
            drop(lifeline);
            command.stdout(log.try_clone().with_context(writing)?).stderr(log.try_clone().with_context(writing)?);
            if let Some(threads) = share.threads {
                command.env("RAYON_NUM_THREADS", threads.to_string());
            }
            if let Some(gpu) = &share.gpu {
                command.env("CUDA_VISIBLE_DEVICES", gpu);
            }
            #[cfg(unix)]
            if share.own_group {
                std::os::unix::process::CommandExt::process_group(&mut command, 0);
            }
            let child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
            drop(command); // and the lifeline in it
            wait(child)?
        };
        writeln!(log, "{status} after {:.1} s", start.elapsed().as_secs_f64()).with_context(writing)?;
        if status.success() {
            return Ok(Ok(()));
        }
        let said = String::from_utf8_lossy(&fs::read(&path).with_context(writing)?).into_owned();
        let lines: Vec<&str> = said.trim_end().lines().collect();
        let lines = lines.get(1..lines.len() - 1).unwrap_or_default();
        let from = lines.iter().rposition(|line| line.starts_with("error: ")).unwrap_or(lines.len().saturating_sub(8));
        let message = lines[from..].join("\n");
        Ok(Err(if message.trim().is_empty() { status.to_string() } else { message }))
    }
}

/// The lock on `path` unless another process has it.
///
/// # Errors
/// There are no locks to be had, so that two processes would do the same work.
fn lock(path: &Path) -> Result<Option<FileLock>> {
    create_parent(path)?;
    match lock::attempt(path, Kind::Exclusive) {
        Attempt::Held(lock) => Ok(Some(lock)),
        Attempt::Taken => Ok(None),
        Attempt::Impossible(error) => Err(error).with_context(|| {
            format!(
                "cannot lock {}, which keeps two processes from doing the same job\n  \
                 hint: --runs-dir names a folder that can be written, on a file system with locks",
                path.display()
            )
        }),
    }
}

fn create_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))
}

/// Waits for a child; asks it to stop, once, when this process was asked to, and ends it when it was asked again.
fn wait(mut child: Child) -> Result<ExitStatus> {
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        // Training resumes from its last checkpoint.
        if stop::is_urgent() || (stop::requested() && !asked && !stop::ask(&child)) {
            let _ = child.kill();
        }
        asked |= stop::requested();
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|m| m.modified()).ok()
}

/// One job for each dataset that the jobs need, so that it can be made before they would make it at the same time.
pub fn check_datasets(jobs: &[Job]) -> Vec<&Job> {
    let mut first: Vec<&Job> = Vec::new();
    for job in jobs {
        if first.iter().all(|other| other.config.task != job.config.task) {
            first.push(job);
        }
    }
    first
}
