//! `pipeline grid`: trains, exports and evaluates the jobs of a grid, here or through Slurm.
//!
//! Documents of `--json` call jobs `cells` and `cell`, as all versions did; programs read them.

use super::Context;
use crate::cli::summary::percent;
use crate::cli::table::{Table, column};
use crate::cli::{GridArgs, Launcher};
use crate::config::parse_override;
use crate::grid::file::{Grid, Job};
use crate::grid::job::{KnownRuns, Runner, Share, State, check_datasets};
use crate::grid::local::{Workers, run_all};
use crate::grid::predict::{Pace, Prediction};
use crate::grid::slurm::{self, Resources, Task};
use crate::run::checksum::crc32c;
use crate::stop::{self, Second};
use crate::train::prepare_dataset;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A line of the table of progress.
struct Row<'a> {
    job: &'a Job,
    state: State,
    steps: u64,
    prediction: Option<Prediction>,
    /// Seconds that this call spent on it.
    spent: Option<f64>,
}

pub fn run(context: &Context, args: GridArgs) -> Result<()> {
    let for_slurm = [("--partition", &args.partition), ("--gres", &args.gres), ("--time", &args.time)];
    if let (Launcher::Local, Some((option, _))) = (args.launcher, for_slurm.iter().find(|(_, value)| value.is_some())) {
        bail!("{option} is an option of Slurm's\n  hint: add --launcher slurm");
    }
    let overrides = args.set.iter().map(|set| parse_override(set)).collect::<Result<Vec<_>>>()?;
    let grid = Grid::read(&args.grid, &overrides)?;
    let runs = absolute(&context.runs)?;
    let runner = Runner {
        program: std::env::current_exe().context("cannot find this program's own file")?,
        data: absolute(&context.datasets)?,
        folder: runs.join("sweeps").join(&grid.name),
        eval: grid.eval.clone(),
        lengths: grid.eval.parsed_lengths()?,
        runs,
        allow_command: context.allow_command,
    };
    if let Some(index) = args.job {
        return one_job(context, &runner, &grid, index);
    }
    let known = KnownRuns::new(&runner.runs);
    let now = known.now()?;
    if args.retry {
        grid.jobs.iter().for_each(|job| runner.forget_failure(job));
    }
    let pace = Pace::read(&runner.runs)?;
    let mut rows = Vec::new();
    for job in &grid.jobs {
        let (state, steps) = (runner.state(job, &now)?, job.config.total_steps()?);
        let left = match state {
            State::Waiting => steps,
            State::Training { step, .. } => steps.saturating_sub(step),
            _ => 0,
        };
        let prediction = if left > 0 { pace.predict(job, left) } else { None };
        rows.push(Row { job, state, steps, prediction, spent: None });
    }
    if args.dry_run {
        let plan = plan(&rows, Workers::of(args.workers).number);
        return context.print(|| document(&grid, &runner, &rows), || format!("{}\n{plan}", table(&runner, &rows)));
    }
    data::files::probe_folder(&runner.folder)?;
    for job in check_datasets(&grid.jobs) {
        prepare_dataset(context, &job.config)?;
    }
    match args.launcher {
        Launcher::Local => local(context, &args, &grid, &runner, &known, rows),
        Launcher::Slurm => through_slurm(context, &args, &grid, &runner, &rows),
    }
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}

/// Runs one job: a task of an array.
fn one_job(context: &Context, runner: &Runner, grid: &Grid, index: usize) -> Result<()> {
    let job = grid.jobs.get(index).with_context(|| {
        format!("--job {index}: the grid {} has {} jobs\n  hint: they are counted from 0", grid.name, grid.jobs.len())
    })?;
    stop::listen(Second::IsTold)?;
    let start = Instant::now();
    let state = runner.run(job, &KnownRuns::new(&runner.runs), &Share::default())?;
    let seconds = start.elapsed().as_secs_f64();
    context.print(
        || json!({ "cell": job.name, "status": state.name(), "handle": state.handle(), "seconds": seconds }),
        || format!("{} · {} · {seconds:.0} s", job.name, state.name()),
    )?;
    match state {
        State::Done { .. } | State::Elsewhere => Ok(()),
        State::Failed(failure) => bail!("{} failed in `pipeline {}`:\n{}", job.name, failure.stage, failure.message),
        State::Interrupted { handle: Some(handle), .. } => {
            bail!("interrupted: {}, run {handle}, is not done\n  hint: the same command continues", job.name)
        }
        _ => bail!("interrupted: {} is not done\n  hint: the same command continues", job.name),
    }
}

fn local<'a>(
    context: &Context,
    args: &GridArgs,
    grid: &'a Grid,
    runner: &Runner,
    known: &KnownRuns,
    mut rows: Vec<Row<'a>>,
) -> Result<()> {
    stop::listen(Second::IsTold)?;
    let Workers { number: workers, gpus } = Workers::of(args.workers);
    let open = |row: &Row| !matches!(row.state, State::Done { .. } | State::Failed(_));
    let todo: Vec<usize> = (0..rows.len()).filter(|i| open(&rows[*i])).collect();
    context.progress.note(format!(
        "{} of {} jobs to do, {workers} at a time · logs in {}",
        todo.len(),
        rows.len(),
        runner.folder.join("logs").display()
    ));
    let jobs: Vec<&Job> = todo.iter().map(|index| &grid.jobs[*index]).collect();
    let finished = run_all(&context.progress, &grid.name, &jobs, runner, known, &Workers { number: workers, gpus })?;
    for (index, state, seconds) in finished {
        let row = &mut rows[todo[index]];
        (row.state, row.spent) = (state, Some(seconds));
    }
    context.print(|| document(grid, runner, &rows), || table(runner, &rows).to_string())?;
    let failed: Vec<String> = rows.iter().filter_map(failure).collect();
    let done = rows.iter().filter(|row| matches!(row.state, State::Done { .. })).count();
    if stop::requested() {
        bail!("interrupted: {done} of {} jobs are done\n  hint: the same command continues", rows.len());
    }
    let interrupted = rows.iter().filter(|row| matches!(row.state, State::Interrupted { .. })).count();
    if failed.is_empty() && interrupted > 0 {
        bail!("{interrupted} of {} jobs were interrupted\n  hint: the same command continues", rows.len());
    }
    if !failed.is_empty() {
        bail!(
            "{} of {} jobs failed:\n{}\n  hint: their output is in {}; --retry tries them again",
            failed.len(),
            rows.len(),
            failed.join("\n"),
            runner.folder.join("logs").display()
        );
    }
    Ok(())
}

/// A failure in a line: what the child said first.
fn failure(row: &Row) -> Option<String> {
    let State::Failed(failure) = &row.state else { return None };
    let said = failure.message.lines().next().unwrap_or_default();
    Some(format!("  {}: {}: {}", row.job.name, failure.stage, said.trim_start_matches("error: ")))
}

fn through_slurm(context: &Context, args: &GridArgs, grid: &Grid, runner: &Runner, rows: &[Row]) -> Result<()> {
    let open = |row: &Row| !matches!(row.state, State::Done { .. } | State::Failed(_));
    let indices: Vec<usize> = (0..rows.len()).filter(|i| open(&rows[*i])).collect();
    if indices.is_empty() {
        return context
            .print(|| document(grid, runner, rows), || format!("{}\nnothing is left to do", table(runner, rows)));
    }
    let path = |path: &Path| Ok::<_, anyhow::Error>(absolute(path)?.to_string_lossy().into_owned());
    let program =
        [path(&runner.program)?, "--runs-dir".into(), path(&runner.runs)?, "--data-dir".into(), path(&runner.data)?];
    let mut command = [program.to_vec(), vec!["grid".into(), path(&args.grid)?]].concat();
    for set in &args.set {
        command.extend(["--set".into(), set.clone()]);
    }
    command.extend(context.allow_command.then(|| "--allow-command".into()));
    let page = runner.folder.join("report.html");
    let report = [program.to_vec(), vec!["report".into(), "-o".into(), path(&page)?]].concat();
    let (partition, gres, time) = (args.partition.clone(), args.gres.clone(), args.time.clone());
    let resources = Resources { partition, gres, time, at_once: args.workers };
    let task = |index: usize| {
        let job = &rows[index].job;
        Ok(Task { index, key: format!("{} {:08x}", job.name, crc32c(job.config.to_toml()?.as_bytes())) })
    };
    let tasks: Vec<Task> = indices.into_iter().map(task).collect::<Result<_>>()?;
    let folder = runner.folder.join("slurm");
    let submitted = slurm::submit(&grid.name, &tasks, &command, &report, &folder, &resources)?;
    if let Some(reason) = &submitted.unknown {
        context.progress.note(format!(
            "whether earlier arrays have ended is not known ({reason}): their jobs are left to them; if they have ended, remove {}",
            folder.join("jobs.jsonl").display()
        ));
    }
    let as_json = || {
        let mut document = document(grid, runner, rows);
        document["jobs"] =
            json!({ "arrays": submitted.arrays, "report": submitted.report, "earlier": submitted.earlier });
        document
    };
    let as_text = || {
        let mut parts = Vec::new();
        if !submitted.arrays.is_empty() {
            parts.push(format!("{} jobs submitted as {}", tasks.len() - submitted.queued, submitted.arrays.join(", ")));
        }
        if submitted.queued > 0 {
            parts.push(format!("{} jobs are queued already, as {}", submitted.queued, submitted.earlier.join(", ")));
        }
        if let Some(report) = &submitted.report {
            parts.push(format!("report as {report}: {}", page.display()));
        }
        format!("{}\nprogress: squeue, or this command with --dry-run", parts.join(" · "))
    };
    context.print(as_json, as_text)
}

/// Mean last-token accuracy of a job's sweep on trained and on longer lengths.
fn scores(runner: &Runner, state: &State) -> [Option<f64>; 2] {
    let State::Done { handle } = state else { return [None; 2] };
    let path = runner.runs.join(handle).join("eval/sweep.parquet");
    let rows = crate::report::read::scored_lengths(&path).unwrap_or_default();
    [true, false].map(|trained| {
        let values: Vec<f64> = rows.iter().filter(|r| r.in_distribution == trained).map(|r| r.last_accuracy).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    })
}

fn table(runner: &Runner, rows: &[Row]) -> Table {
    let mut table = Table::new([
        column("job").wrap(20),
        column("status").wrap(10),
        column("run"),
        column("steps").right().optional(),
        column("trained lengths").right(),
        column("longer").right(),
        column("time").right(),
        column("from").shorten(20, 60).optional(),
    ]);
    for row in rows {
        let [trained, longer] = scores(runner, &row.state);
        let (time, from) = match (&row.spent, &row.prediction) {
            (Some(seconds), _) => (duration(*seconds), String::new()),
            (None, Some(p)) => {
                (format!("≈ {}", duration(p.seconds)), p.from.clone() + if p.scaled { ", scaled" } else { "" })
            }
            (None, None) if matches!(row.state, State::Waiting) => {
                ("?".into(), "no run of this architecture yet".into())
            }
            (None, None) => ("–".into(), String::new()),
        };
        let steps = match &row.state {
            State::Training { step, .. } => format!("{step} / {}", row.steps),
            _ => row.steps.to_string(),
        };
        let run = row.state.handle().unwrap_or("–").to_owned();
        let state = row.state.name().to_owned();
        table.row([row.job.name.clone(), state, run, steps, percent(trained), percent(longer), time, from]);
    }
    table
}

/// The lines of a dry run below its table.
fn plan(rows: &[Row], workers: usize) -> String {
    let count = |name: &str| rows.iter().filter(|row| row.state.name() == name).count();
    let states = ["waiting", "half-trained", "trained", "exported", "done", "failed"];
    let counts: Vec<String> =
        states.iter().filter(|name| count(name) > 0).map(|name| format!("{} {name}", count(name))).collect();
    let predicted: f64 = 0.0f64.max(rows.iter().filter_map(|row| Some(row.prediction.as_ref()?.seconds)).sum());
    let unknown = rows.iter().filter(|row| row.prediction.is_none() && matches!(row.state, State::Waiting)).count();
    let unknown = if unknown > 0 { format!(", and {unknown} jobs without a prediction") } else { String::new() };
    format!(
        "{} jobs: {} · training: ≈ {} of one worker, {workers} at a time{unknown}\n\
         Times are the seconds per step of the run named, times the steps that are left; \"scaled\" by tokens × layers × width².",
        rows.len(),
        counts.join(", "),
        duration(predicted)
    )
}

pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn document(grid: &Grid, runner: &Runner, rows: &[Row]) -> Value {
    let entry = |row: &Row| {
        let [trained, longer] = scores(runner, &row.state);
        let failure = match &row.state {
            State::Failed(failure) => json!({ "stage": failure.stage, "message": failure.message }),
            _ => Value::Null,
        };
        json!({
            "cell": row.job.name,
            "task": row.job.config.task.name,
            "arch": row.job.config.model.arch(),
            "positional_embedding": row.job.config.model.positional_embedding(),
            "augmentation": row.job.config.model.augmentation().name(),
            "num_layers": row.job.config.model.num_layers(),
            "seed": row.job.config.train.seed,
            "status": row.state.name(),
            "handle": row.state.handle(),
            "steps": row.steps,
            "trained_lengths": trained,
            "longer_lengths": longer,
            "seconds": row.spent,
            "predicted_seconds": row.prediction.as_ref().map(|p| p.seconds),
            "predicted_from": row.prediction.as_ref().map(|p| &p.from),
            "failure": failure,
        })
    };
    json!({
        "grid": grid.name,
        "folder": runner.folder,
        "cells": rows.iter().map(entry).collect::<Vec<_>>(),
    })
}
