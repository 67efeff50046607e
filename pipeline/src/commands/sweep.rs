//! `pipeline sweep`: trains, exports and evaluates the cells of a grid, here or through Slurm.

use super::{Context, data::generate_all, data::split_path};
use crate::cli::{Launcher, SweepArgs};
use crate::config::parse_override;
use crate::stop;
use crate::summary::percent;
use crate::sweep::cell::{KnownRuns, Share, State, Sweep, check_datasets};
use crate::sweep::grid::{Grid, GridCell};
use crate::sweep::predict::{Pace, Prediction, total_steps};
use crate::sweep::slurm::{self, Resources};
use anyhow::{Context as _, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A line of the table of progress.
struct Row<'a> {
    cell: &'a GridCell,
    state: State,
    steps: u64,
    prediction: Option<Prediction>,
    /// Seconds that this call spent on it.
    spent: Option<f64>,
}

pub fn run(context: &Context, args: SweepArgs) -> Result<()> {
    let for_slurm = [("--partition", &args.partition), ("--gres", &args.gres), ("--time", &args.time)];
    if let (Launcher::Local, Some((option, _))) = (args.launcher, for_slurm.iter().find(|(_, value)| value.is_some())) {
        bail!("{option} is an option of Slurm's\n  hint: add --launcher slurm");
    }
    let overrides = args.set.iter().map(|set| parse_override(set)).collect::<Result<Vec<_>>>()?;
    let grid = Grid::read(&args.grid, &overrides)?;
    let runs = absolute(&context.global.runs_dir)?;
    let sweep = Sweep {
        program: std::env::current_exe().context("cannot find this program's own file")?,
        data: absolute(&context.global.data_dir)?,
        folder: runs.join("sweeps").join(&grid.name),
        eval: grid.eval.clone(),
        lengths: grid.eval.parsed_lengths()?,
        runs,
    };
    if let Some(index) = args.cell {
        return one_cell(context, &sweep, &grid, index);
    }
    let known = KnownRuns::read(&sweep.runs)?;
    if args.retry {
        grid.cells.iter().for_each(|cell| sweep.forget_failure(cell));
    }
    let pace = Pace::read(&sweep.runs)?;
    let mut rows = Vec::new();
    for cell in &grid.cells {
        let (state, steps) = (sweep.state(cell, &known)?, total_steps(&cell.config)?);
        let left = match state {
            State::Waiting => steps,
            State::Training { step, .. } => steps.saturating_sub(step),
            _ => 0,
        };
        let prediction = if left > 0 { pace.predict(cell, left) } else { None };
        rows.push(Row { cell, state, steps, prediction, spent: None });
    }
    if args.dry_run {
        let plan = plan(&rows, workers(&args).0);
        return context.print(|| document(&grid, &sweep, &rows), || format!("{}\n{plan}", table(&sweep, &rows)));
    }
    let datasets = check_datasets(&grid.cells)?;
    for cell in datasets {
        let task = cell.config.task.task()?;
        let missing = |split: &data::Split| !split_path(&sweep.data, &task.name, *split).exists();
        if task.splits().iter().all(missing) {
            context.progress.note(format!("generating the dataset of {}", task.name));
            generate_all(context, &task, cell.config.task.train_examples, cell.config.task.data_seed)?;
        }
    }
    match args.launcher {
        Launcher::Local => local(context, &args, &grid, &sweep, &known, rows),
        Launcher::Slurm => through_slurm(context, &args, &grid, &sweep, &rows),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}

/// What a task of a job array runs.
fn one_cell(context: &Context, sweep: &Sweep, grid: &Grid, index: usize) -> Result<()> {
    let cell = grid.cells.get(index).with_context(|| {
        format!(
            "--cell {index}: the grid {} has {} cells\n  hint: they are counted from 0",
            grid.name,
            grid.cells.len()
        )
    })?;
    stop::listen()?;
    let start = Instant::now();
    let state = sweep.run(cell, &KnownRuns::read(&sweep.runs)?, &Share::default())?;
    let seconds = start.elapsed().as_secs_f64();
    context.print(
        || json!({ "cell": cell.name, "status": state.name(), "handle": state.handle(), "seconds": seconds }),
        || format!("{} · {} · {seconds:.0} s", cell.name, state.name()),
    )?;
    match state {
        State::Done { .. } | State::Elsewhere => Ok(()),
        State::Failed(failure) => bail!("{} failed in `pipeline {}`:\n{}", cell.name, failure.stage, failure.message),
        _ => bail!("interrupted: {} is {}\n  hint: the same command goes on", cell.name, state.name()),
    }
}

/// How many cells run at the same time, and the GPUs that they share.
fn workers(args: &SweepArgs) -> (usize, Vec<String>) {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let gpus: Vec<String> = match visible {
        _ if !cfg!(feature = "cuda") => vec![],
        Some(list) => list.split(',').map(|gpu| gpu.trim().to_owned()).filter(|gpu| !gpu.is_empty()).collect(),
        None => {
            crate::cuda::driver().map_or(vec![], |driver| (0..driver.devices.len()).map(|i| i.to_string()).collect())
        }
    };
    (args.workers.map_or(gpus.len().max(1), usize::from), gpus)
}

fn local<'a>(
    context: &Context,
    args: &SweepArgs,
    grid: &'a Grid,
    sweep: &Sweep,
    known: &KnownRuns,
    mut rows: Vec<Row<'a>>,
) -> Result<()> {
    stop::listen()?;
    let (workers, gpus) = workers(args);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (workers > 1).then(|| (cores / workers).max(1));
    let open = |row: &Row| !matches!(row.state, State::Done { .. } | State::Failed(_));
    let todo: Vec<usize> = (0..rows.len()).filter(|i| open(&rows[*i])).collect();
    context.progress.note(format!(
        "{} of {} cells to do, {workers} at a time · logs in {}",
        todo.len(),
        rows.len(),
        sweep.folder.join("logs").display()
    ));
    let bar = context.progress.bar(grid.name.clone(), todo.len() as u64, "cells");
    let (next, finished) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = |worker: usize| -> Result<()> {
        let gpu = (!gpus.is_empty()).then(|| gpus[worker % gpus.len()].clone());
        let share = Share { threads, gpu, forwards_signals: true };
        while let Some(index) = todo.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !stop::requested()) {
            let (cell, start) = (&grid.cells[*index], Instant::now());
            let state = sweep.run(cell, known, &share)?;
            let seconds = start.elapsed().as_secs_f64();
            bar.inc(1);
            context.progress.note(format!("{} · {} · {seconds:.0} s", cell.name, state.name()));
            finished.lock().unwrap_or_else(|e| e.into_inner()).push((*index, state, seconds));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..workers.min(todo.len())).map(|worker| scope.spawn(move || work(worker))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("a worker of the sweep broke off")?)
    })?;
    bar.finish_and_clear();
    for (index, state, seconds) in finished.into_inner().unwrap_or_else(|e| e.into_inner()) {
        (rows[index].state, rows[index].spent) = (state, Some(seconds));
    }
    context.print(|| document(grid, sweep, &rows), || table(sweep, &rows).to_string())?;
    let failed: Vec<String> = rows.iter().filter_map(failure).collect();
    let done = rows.iter().filter(|row| matches!(row.state, State::Done { .. })).count();
    if stop::requested() {
        bail!("interrupted: {done} of {} cells are done\n  hint: the same command goes on", rows.len());
    }
    if !failed.is_empty() {
        bail!(
            "{} of {} cells failed:\n{}\n  hint: their output is in {}; --retry tries them again",
            failed.len(),
            rows.len(),
            failed.join("\n"),
            sweep.folder.join("logs").display()
        );
    }
    Ok(())
}

/// A failure in a line: what the child said first.
fn failure(row: &Row) -> Option<String> {
    let State::Failed(failure) = &row.state else { return None };
    let said = failure.message.lines().next().unwrap_or_default();
    Some(format!("  {}: {}: {}", row.cell.name, failure.stage, said.trim_start_matches("error: ")))
}

fn through_slurm(context: &Context, args: &SweepArgs, grid: &Grid, sweep: &Sweep, rows: &[Row]) -> Result<()> {
    let open = |row: &Row| !matches!(row.state, State::Done { .. } | State::Failed(_));
    let indices: Vec<usize> = (0..rows.len()).filter(|i| open(&rows[*i])).collect();
    if indices.is_empty() {
        return context
            .print(|| document(grid, sweep, rows), || format!("{}\nnothing is left to do", table(sweep, rows)));
    }
    let path = |path: &Path| Ok::<_, anyhow::Error>(absolute(path)?.to_string_lossy().into_owned());
    let program =
        [path(&sweep.program)?, "--runs-dir".into(), path(&sweep.runs)?, "--data-dir".into(), path(&sweep.data)?];
    let mut cell = [program.to_vec(), vec!["sweep".into(), path(&args.grid)?]].concat();
    for set in &args.set {
        cell.extend(["--set".into(), set.clone()]);
    }
    let page = sweep.folder.join("report.html");
    let report = [program.to_vec(), vec!["report".into(), "-o".into(), path(&page)?]].concat();
    let (partition, gres, time) = (args.partition.clone(), args.gres.clone(), args.time.clone());
    let resources = Resources { partition, gres, time, at_once: args.workers };
    let jobs = slurm::submit(&grid.name, &indices, &cell, &report, &sweep.folder.join("slurm"), &resources)?;
    let as_json = || {
        let mut document = document(grid, sweep, rows);
        document["jobs"] = json!({ "arrays": jobs.arrays, "report": jobs.report });
        document
    };
    let as_text = || {
        format!(
            "{} cells submitted as {} · report as {}: {}\nprogress: squeue, or this command with --dry-run",
            indices.len(),
            jobs.arrays.join(", "),
            jobs.report,
            page.display()
        )
    };
    context.print(as_json, as_text)
}

/// Mean last-token accuracy of a cell's sweep on trained and on longer lengths.
fn scores(sweep: &Sweep, state: &State) -> [Option<f64>; 2] {
    let State::Done { handle } = state else { return [None; 2] };
    let path = sweep.runs.join(handle).join("eval/sweep.parquet");
    let rows = crate::report::read::scored_lengths(&path).unwrap_or_default();
    [true, false].map(|trained| {
        let values: Vec<f64> = rows.iter().filter(|r| r.in_distribution == trained).map(|r| r.last_accuracy).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    })
}

fn table(sweep: &Sweep, rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["cell", "status", "run", "steps", "trained lengths", "longer", "time", "from"]);
    for row in rows {
        let [trained, longer] = scores(sweep, &row.state);
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
        table.add_row([row.cell.name.clone(), state, run, steps, percent(trained), percent(longer), time, from]);
    }
    for column in 3..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// What a dry run says below its table.
fn plan(rows: &[Row], workers: usize) -> String {
    let count = |name: &str| rows.iter().filter(|row| row.state.name() == name).count();
    let states = ["waiting", "half-trained", "trained", "exported", "done", "failed"];
    let counts: Vec<String> =
        states.iter().filter(|name| count(name) > 0).map(|name| format!("{} {name}", count(name))).collect();
    let predicted: f64 = 0.0f64.max(rows.iter().filter_map(|row| Some(row.prediction.as_ref()?.seconds)).sum());
    let unknown = rows.iter().filter(|row| row.prediction.is_none() && matches!(row.state, State::Waiting)).count();
    let unknown = if unknown > 0 { format!(", and {unknown} cells without a prediction") } else { String::new() };
    format!(
        "{} cells: {} · training: ≈ {} of one worker, {workers} at a time{unknown}\n\
         Times are the seconds per step of the run named, times the steps that are left; \"scaled\" by tokens × layers × width².",
        rows.len(),
        counts.join(", "),
        duration(predicted)
    )
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn document(grid: &Grid, sweep: &Sweep, rows: &[Row]) -> Value {
    let entry = |row: &Row| {
        let [trained, longer] = scores(sweep, &row.state);
        let failure = match &row.state {
            State::Failed(failure) => json!({ "stage": failure.stage, "message": failure.message }),
            _ => Value::Null,
        };
        json!({
            "cell": row.cell.name,
            "task": row.cell.config.task.name,
            "arch": row.cell.config.model.arch(),
            "positional_embedding": row.cell.config.model.positional_embedding(),
            "augmentation": row.cell.config.model.augmentation().name(),
            "num_layers": row.cell.config.model.num_layers(),
            "seed": row.cell.config.train.seed,
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
        "folder": sweep.folder,
        "cells": rows.iter().map(entry).collect::<Vec<_>>(),
    })
}
