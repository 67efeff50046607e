//! One cell of a sweep: what its run's folder says is left to do, and doing it in child processes.

use super::grid::{Evaluation, GridCell};
use crate::config::Config;
use crate::report::read;
use crate::run_dir::{RunDir, Status};
use crate::stop;
use anyhow::{Context, Result, bail};
use evaluators::Lengths;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// How far a cell is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nothing is there yet.
    Waiting,
    /// Its run has this many of its steps.
    Training { handle: String, step: u64 },
    /// What is missing is the export.
    Trained { handle: String },
    /// What is missing is the evaluation.
    Exported { handle: String },
    /// Nothing is missing.
    Done { handle: String },
    /// It failed at this, and is left alone until it is to be tried again.
    Failed(Failure),
    /// Another sweep is at it.
    Elsewhere,
}

/// `failed/<cell>.json`: what went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// `train`, `export` or `eval`.
    pub stage: String,
    /// What the process said at its end.
    pub message: String,
    /// The cell's config; a failure of another one says nothing.
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
        }
    }

    /// The run, where there is one.
    pub fn handle(&self) -> Option<&str> {
        match self {
            Self::Training { handle, .. }
            | Self::Trained { handle }
            | Self::Exported { handle }
            | Self::Done { handle } => Some(handle),
            _ => None,
        }
    }
}

/// What the cells of a sweep share.
pub struct Sweep {
    /// The program.
    pub program: PathBuf,
    /// The runs folder.
    pub runs: PathBuf,
    /// The datasets folder.
    pub data: PathBuf,
    /// `<runs>/sweeps/<grid>`: resolved configs, logs and failures.
    pub folder: PathBuf,
    /// How cells are evaluated.
    pub eval: Evaluation,
    /// Its lengths.
    pub lengths: Lengths,
}

/// What a worker may use.
#[derive(Debug, Clone, Default)]
pub struct Share {
    /// Threads; as many as there are cores if not set.
    pub threads: Option<usize>,
    /// The value of `CUDA_VISIBLE_DEVICES`, where it is to be set.
    pub gpu: Option<String>,
    /// Whether stopping is passed on to child processes. Not under Slurm, which signals all of them itself.
    pub forwards_signals: bool,
}

/// The run of every config in a runs folder: the finished one, or the newest.
pub struct KnownRuns(HashMap<String, RunDir>);

impl KnownRuns {
    /// Reads the configs of all runs; a config that cannot be read is nobody's.
    ///
    /// # Errors
    /// The runs folder cannot be read.
    pub fn read(runs: &Path) -> Result<Self> {
        let mut known: HashMap<String, RunDir> = HashMap::new();
        let finished = |run: &RunDir| run.progress().is_some_and(|p| p.status == Status::Finished);
        for run in RunDir::all(runs)? {
            let Ok(config) = Config::load(&run.config(), &[]).and_then(|config| config.to_toml()) else { continue };
            if known.get(&config).is_none_or(|other| finished(&run) || !finished(other)) {
                known.insert(config, run);
            }
        }
        Ok(Self(known))
    }
}

impl Sweep {
    /// How far a cell is.
    ///
    /// # Errors
    /// None but those of writing its config as TOML.
    pub fn state(&self, cell: &GridCell, known: &KnownRuns) -> Result<State> {
        let config = cell.config.to_toml()?;
        if let Some(failure) = self.failure(cell).filter(|failure| failure.config == config) {
            return Ok(State::Failed(failure));
        }
        Ok(known.0.get(&config).map_or(State::Waiting, |run| self.state_of(run)))
    }

    fn state_of(&self, run: &RunDir) -> State {
        let handle = run.handle().to_owned();
        let progress = run.progress();
        if progress.as_ref().is_none_or(|p| p.status != Status::Finished) {
            return State::Training { handle, step: progress.map_or(0, |p| p.step) };
        }
        let (trained, exported) = (modified(&run.path().join("status.json")), modified(&run.onnx()));
        if exported.is_none() || exported < trained {
            return State::Trained { handle };
        }
        let swept = run.eval().join("sweep.parquet");
        let totals = self.eval.splits.iter().map(|split| run.eval().join(format!("{split}-total.parquet")));
        let current = |path: &Path| modified(path).is_some_and(|written| Some(written) >= exported);
        let lengths = || read::lengths(&swept).is_ok_and(|lengths| lengths == self.lengths.as_slice());
        if current(&swept) && totals.into_iter().all(|path| current(&path)) && lengths() {
            State::Done { handle }
        } else {
            State::Exported { handle }
        }
    }

    fn failure_path(&self, cell: &GridCell) -> PathBuf {
        self.folder.join("failed").join(format!("{}.json", cell.name))
    }

    fn failure(&self, cell: &GridCell) -> Option<Failure> {
        serde_json::from_str(&fs::read_to_string(self.failure_path(cell)).ok()?).ok()
    }

    /// Forgets that a cell failed.
    pub fn forget_failure(&self, cell: &GridCell) {
        let _ = fs::remove_file(self.failure_path(cell)); // where there is none, nothing is to be forgotten
    }

    /// Does what is left of a cell and returns how far it came. What goes wrong in it is a [`State::Failed`]; a stop that
    /// was asked for leaves it where it is.
    ///
    /// # Errors
    /// The sweep's own files cannot be written.
    pub fn run(&self, cell: &GridCell, known: &KnownRuns, share: &Share) -> Result<State> {
        let config = self.folder.join("cells").join(format!("{}.toml", cell.name));
        let text = cell.config.to_toml()?;
        if fs::read_to_string(&config).ok().as_ref() != Some(&text) {
            data::files::write_bytes(&config, text.as_bytes())?;
        }
        let lock = File::create(config.with_extension("lock")).context("cannot lock a cell of the sweep")?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Ok(State::Elsewhere);
        }
        let mut state = self.state(cell, known)?;
        loop {
            let (stage, arguments): (&str, Vec<String>) = match &state {
                State::Done { .. } | State::Failed(_) | State::Elsewhere => return Ok(state),
                State::Waiting => ("train", vec!["--config".into(), config.to_string_lossy().into_owned()]),
                State::Training { handle, .. } => {
                    // A process that outlived the sweep that started it may still be training.
                    let run = RunDir::open(&self.runs, handle)?;
                    if run.is_locked() {
                        while run.is_locked() && !stop::requested() {
                            std::thread::sleep(Duration::from_millis(300));
                        }
                        if stop::requested() {
                            return Ok(state);
                        }
                        state = self.state_of(&run);
                        continue;
                    }
                    ("train", vec!["--resume".into(), handle.clone()])
                }
                State::Trained { handle } => ("export", vec!["--handle".into(), handle.clone()]),
                State::Exported { handle } => ("eval", self.eval_arguments(handle, share)),
            };
            let before = state.clone();
            let outcome = self.child(cell, stage, &arguments, share)?;
            if let Ok(Some(handle)) = &outcome {
                state = self.state_of(&RunDir::open(&self.runs, handle)?);
            } else if let Some(handle) = before.handle() {
                state = self.state_of(&RunDir::open(&self.runs, handle)?);
            }
            if stop::requested() {
                return Ok(state);
            }
            let message = match outcome {
                Err(message) => message,
                Ok(_) if state != before => continue,
                Ok(_) => format!("`pipeline {stage}` ended well, but did not leave what it should"),
            };
            let failure = Failure { stage: stage.into(), message, config: text };
            data::files::write_bytes(&self.failure_path(cell), serde_json::to_string_pretty(&failure)?.as_bytes())?;
            return Ok(State::Failed(failure));
        }
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

    /// Runs one command to its end. What it prints first, the handle if it trains, or what it said when it failed.
    fn child(
        &self,
        cell: &GridCell,
        stage: &str,
        arguments: &[String],
        share: &Share,
    ) -> Result<Result<Option<String>, String>> {
        let mut command = Command::new(&self.program);
        command.arg("--runs-dir").arg(&self.runs).arg("--data-dir").arg(&self.data).arg("--quiet");
        command.arg(stage).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(threads) = share.threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        if let Some(gpu) = &share.gpu {
            command.env("CUDA_VISIBLE_DEVICES", gpu);
        }
        #[cfg(unix)]
        if share.forwards_signals {
            // A group of its own: Ctrl-C reaches only the sweep, which passes it on once. A second one would end the child
            // before it has saved.
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
        }
        let start = Instant::now();
        let doing = || format!("cannot start {}", self.program.display());
        let mut child = command.spawn().with_context(doing)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (mut printed, mut said) = (String::new(), String::new());
        let status = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut lines = stdout.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok);
                printed = lines.next().unwrap_or_default();
                lines.for_each(drop);
            });
            scope.spawn(|| {
                let mut bytes = Vec::new();
                let _ = stderr.map(|mut err| err.read_to_end(&mut bytes)); // what could be read is what there is
                said = String::from_utf8_lossy(&bytes).into_owned();
            });
            wait(&mut child, share.forwards_signals)
        })?;
        let log = self.folder.join("logs").join(format!("{}-{stage}.log", cell.name));
        let line = arguments.join(" ");
        let text = format!("pipeline {stage} {line}\n{status} after {:.1} s\n{said}", start.elapsed().as_secs_f64());
        data::files::write_bytes(&log, text.as_bytes())?;
        if !status.success() {
            let end: Vec<&str> = said.trim_end().lines().rev().take(8).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            return Ok(Err(if end.is_empty() { status.to_string() } else { end.join("\n") }));
        }
        let handle = Some(printed.trim().to_owned()).filter(|handle| stage == "train" && !handle.is_empty());
        Ok(Ok(handle))
    }
}

/// Waits for a child; asks it to stop, once, when this process was asked to.
fn wait(child: &mut Child, forward: bool) -> Result<ExitStatus> {
    let mut asked = !forward;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop::requested() && !asked {
            asked = true;
            let told = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
            if !told.is_ok_and(|status| status.success()) {
                let _ = child.kill(); // training resumes from its last checkpoint
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|m| m.modified()).ok()
}

/// Makes the datasets that the cells need, so that they need not make them at the same time.
///
/// # Errors
/// Two cells need the same dataset with different settings.
pub fn check_datasets(cells: &[GridCell]) -> Result<Vec<&GridCell>> {
    let mut first: Vec<&GridCell> = Vec::new();
    for cell in cells {
        match first.iter().find(|other| other.config.task.name == cell.config.task.name) {
            None => first.push(cell),
            Some(other) if other.config.task == cell.config.task => {}
            Some(other) => bail!(
                "{} and {} need different datasets of {}, but there is one folder for it\n  \
                 hint: task.train_examples and task.data_seed must be the same for all cells of a task",
                other.name,
                cell.name,
                cell.config.task.name
            ),
        }
    }
    Ok(first)
}
