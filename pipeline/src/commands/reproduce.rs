//! `pipeline reproduce`: a published table, theirs beside ours.

use super::Context;
use super::grid::{absolute, duration};
use crate::cli::ReproduceArgs;
use crate::cli::table::{Table as Printed, column};
use crate::config::parse_override;
use crate::grid::file::Job;
use crate::grid::job::{KnownRuns, Runner, State, check_datasets};
use crate::grid::local::{Workers, run_all};
use crate::grid::predict::{Pace, Prediction};
use crate::published::outcome::{self, Line, RowOrder, Tried, describe, lines, row_orders};
use crate::published::results;
use crate::published::shipped::SHIPPED;
use crate::published::table::{Changes, Table};
use crate::published::values::Claim;
use crate::published::verdict::{Range, Verdict};
use crate::run::RunDir;
use crate::stop::{self, Second};
use crate::train::prepare_dataset;
use anyhow::{Context as _, Result, bail};
use evaluators::Format;
use serde_json::{Value, json};
use std::path::PathBuf;

pub fn run(context: &Context, args: ReproduceArgs) -> Result<()> {
    let Some(name) = &args.table else { return list(context) };
    let set = args.set.iter().map(|set| parse_override(set)).collect::<Result<Vec<_>>>()?;
    let changes = Changes { quick: args.quick, runs: args.seeds, only: args.only.clone(), set };
    let table = Table::find(name, &changes)?;
    let runs = absolute(&context.runs)?;
    let version = format!("{}{}", table.name, if table.quick { "-quick" } else { "" });
    let output = args.output.clone().unwrap_or_else(|| runs.join("published").join(format!("{version}.parquet")));
    let ending = output.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let format = Format::of_ending(ending).with_context(|| {
        format!("-o {}: no such format\n  hint: the name ends in .parquet, .arrow, .csv or .json", output.display())
    })?;
    let runner = Runner {
        program: std::env::current_exe().context("cannot find this program's own file")?,
        data: absolute(&context.datasets)?,
        folder: runs.join("sweeps").join(format!("published-{version}")),
        eval: table.eval.clone(),
        lengths: table.eval.parsed_lengths()?,
        runs,
        allow_command: context.allow_command,
    };
    let work = Work { context, table: &table, known: KnownRuns::new(&runner.runs), runner: &runner };
    if args.retry {
        work.forget_failures()?;
    }
    if args.dry_run {
        return work.plan(&Workers::of(args.workers));
    }
    stop::listen(Second::IsTold)?;
    data::files::probe_folder(&runner.folder)?;
    let complete = work.run_missing(&Workers::of(args.workers))?;
    let found = work.collect()?;
    outcome::write(&table, &found.tried, format, &output)?;
    work.print(&found, Some(&output))?;
    work.end(&found, complete)
}

fn list(context: &Context) -> Result<()> {
    let read = |shipped: &crate::published::shipped::Shipped| {
        Table::find(shipped.name, &Changes::default()).map(|table| (shipped.name, table))
    };
    let tables = SHIPPED.iter().map(read).collect::<Result<Vec<_>>>()?;
    let documents = || {
        tables
            .iter()
            .map(|(name, t)| json!({ "name": name, "title": t.title, "source": t.source, "cells": t.cells.len() }))
    };
    let text = || {
        let mut printed = Printed::new([
            column("table"),
            column("cells").right(),
            column("title").wrap(30),
            column("source").wrap(30),
        ]);
        for (name, table) in &tables {
            printed.row([(*name).into(), table.cells.len().to_string(), table.title.clone(), table.source.clone()]);
        }
        printed.to_string()
    };
    context.print(|| Value::Array(documents().collect()), text)
}

/// A reproduction on its way.
struct Work<'a> {
    context: &'a Context,
    table: &'a Table,
    runner: &'a Runner,
    known: KnownRuns,
}

/// What the runs folder says.
struct Found {
    /// By cell, then learning rate.
    tried: Vec<Vec<Tried>>,
    /// Runs that are still to be made, as far as is known: where runs do not fit, more follow.
    missing: Vec<Job>,
    /// Names of runs that failed, and what they said.
    failed: Vec<String>,
}

/// A run that is missing: how far it is, its steps, and the time of those that are left.
type Planned<'a> = (&'a Job, State, u64, Prediction);

impl Work<'_> {
    /// What there is, and what is missing.
    fn collect(&self) -> Result<Found> {
        let (table, selection) = (self.table, &self.table.selection);
        let now = self.known.now()?;
        let mut found = Found { tried: vec![], missing: vec![], failed: vec![] };
        for cell in &table.cells {
            let mut of_cell = Vec::new();
            for &learning_rate in &cell.learning_rates {
                let mut tried = Tried { learning_rate, runs: vec![] };
                let job = |number: usize| table.job(cell, learning_rate, selection.first_seed + number as u64);
                while selection.missing(&tried.ended()) > 0 {
                    let job = job(tried.runs.len())?;
                    match self.runner.state(&job, &now)? {
                        State::Done { handle } => {
                            let run = RunDir::open(&self.runner.runs, &handle)?;
                            tried.runs.push(Some(results::read(&run, table)?));
                        }
                        State::Failed(failure) => {
                            let said = failure.message.lines().next().unwrap_or_default();
                            let said = said.trim_start_matches("error: ");
                            found.failed.push(format!("  {}: {}: {said}", job.name, failure.stage));
                            tried.runs.push(None);
                        }
                        _ => break,
                    }
                }
                let (from, more) = (tried.runs.len(), selection.missing(&tried.ended()));
                found.missing.extend((from..from + more).map(job).collect::<Result<Vec<_>>>()?);
                of_cell.push(tried);
            }
            found.tried.push(of_cell);
        }
        Ok(found)
    }

    fn forget_failures(&self) -> Result<()> {
        let selection = &self.table.selection;
        for cell in &self.table.cells {
            for rate in &cell.learning_rates {
                for number in 0..selection.most() {
                    let job = self.table.job(cell, *rate, selection.first_seed + number as u64)?;
                    self.runner.forget_failure(&job);
                }
            }
        }
        Ok(())
    }

    /// Makes runs until none is missing. Whether that is so at the end: not where a signal asked to stop, or where others
    /// make some of them.
    fn run_missing(&self, workers: &Workers) -> Result<bool> {
        loop {
            let missing = self.collect()?.missing;
            if missing.is_empty() {
                return Ok(true);
            }
            if stop::requested() {
                return Ok(false);
            }
            self.context.progress.note(format!(
                "{}: {} runs to make, {} at a time · logs in {}",
                self.table.name,
                missing.len(),
                workers.number,
                self.runner.folder.join("logs").display()
            ));
            for job in check_datasets(&missing) {
                prepare_dataset(self.context, &job.config)?;
            }
            let jobs: Vec<&Job> = missing.iter().collect();
            let progress = &self.context.progress;
            let ended = run_all(progress, &self.table.name, &jobs, self.runner, &self.known, workers)?;
            let is_news = |state: &State| matches!(state, State::Done { .. } | State::Failed(_));
            if !ended.iter().any(|(_, state, _)| is_news(state)) {
                return Ok(false);
            }
        }
    }

    /// What a dry run prints.
    fn plan(&self, workers: &Workers) -> Result<()> {
        let (found, now, pace) = (self.collect()?, self.known.now()?, Pace::read(&self.runner.runs)?);
        let mut rows = Vec::new();
        for job in &found.missing {
            let (state, steps) = (self.runner.state(job, &now)?, job.config.total_steps()?);
            let left = match state {
                State::Waiting => steps,
                State::Training { step, .. } => steps.saturating_sub(step),
                _ => 0,
            };
            let prediction = pace.predict(job, left).unwrap_or_else(|| Pace::by_arithmetic(job, left));
            rows.push((job, state, steps, prediction));
        }
        let seconds: f64 = rows.iter().map(|(_, _, _, prediction)| prediction.seconds).sum();
        let document = || {
            let entry = |(job, state, steps, prediction): &Planned| {
                json!({
                    "job": job.name,
                    "status": state.name(),
                    "steps": steps,
                    "predicted_seconds": prediction.seconds,
                    "predicted_from": prediction.from,
                })
            };
            let mut document = self.document(&found, None);
            document["missing"] = rows.iter().map(entry).collect();
            document["predicted_seconds"] = seconds.into();
            document
        };
        self.context.print(document, || self.plan_text(&found, &rows, workers))
    }

    /// What is known so far, and what is missing.
    fn plan_text(&self, found: &Found, rows: &[Planned], workers: &Workers) -> String {
        let mut printed = Printed::new([
            column("run").wrap(20),
            column("status").wrap(10),
            column("steps").right(),
            column("time").right(),
            column("from").shorten(20, 60).optional(),
        ]);
        for (job, state, steps, prediction) in rows {
            let from = format!("{}{}", prediction.from, if prediction.scaled { ", scaled" } else { "" });
            let sign = if job.config.train.stop_at.is_some() { "≤" } else { "≈" };
            let time = format!("{sign} {}", duration(prediction.seconds));
            printed.row([job.name.clone(), state.name().into(), steps.to_string(), time, from]);
        }
        let more = match (&self.table.selection.fit, self.table.selection.most()) {
            (Some(_), most) if most > self.table.selection.runs => {
                format!("; runs that do not fit are made up for, up to {most} of a cell")
            }
            _ => String::new(),
        };
        let ends_early = rows.iter().any(|(job, ..)| job.config.train.stop_at.is_some());
        let early = if ends_early { "; runs that stop early take less" } else { "" };
        let has_runs = found.tried.iter().flatten().any(|tried| !tried.runs.is_empty());
        let known = if has_runs { format!("{}\n", self.text(found, None)) } else { String::new() };
        if rows.is_empty() {
            return format!("{known}no run is missing");
        }
        format!(
            "{known}{printed}\n{} runs are missing · training: ≈ {} of one worker, {} at a time{more}{early}",
            rows.len(),
            duration(rows.iter().map(|(_, _, _, prediction)| prediction.seconds).sum()),
            workers.number
        )
    }

    fn lines<'b>(&'b self, found: &Found) -> Vec<Line<'b>> {
        let cells = self.table.cells.iter().zip(&found.tried);
        cells.flat_map(|(cell, tried)| lines(self.table, cell, tried)).collect()
    }

    fn print(&self, found: &Found, output: Option<&PathBuf>) -> Result<()> {
        self.context.print(|| self.document(found, output), || self.text(found, output))
    }

    fn text(&self, found: &Found, output: Option<&PathBuf>) -> String {
        let lines = self.lines(found);
        let mut printed = Printed::new([
            column("row").wrap(12),
            column("column").wrap(10),
            column("slice"),
            column("theirs, %").right(),
            column("ours, % [95 %]").right(),
            column("runs").right(),
            column("lr").right().optional(),
            column("verdict"),
        ]);
        for line in &lines {
            printed.row([
                line.published.row.clone(),
                line.published.column.clone(),
                line.published.slice.clone(),
                describe(&line.published.claim),
                line.ours.map_or("–".into(), ours),
                if line.tried == 0 { "–".into() } else { format!("{} of {}", line.values.len(), line.tried) },
                line.learning_rate.map_or(String::new(), |rate| rate.to_string()),
                line.verdict.name().into(),
            ]);
        }
        let table = self.table;
        let version = if table.quick { ", quick version" } else { "" };
        let mut text = format!("{}{version}\n{}\n\n{printed}\n", table.title, table.source);
        for order in self.orders(&lines).iter().filter(|order| order.columns > 0) {
            text += &format!("order of the columns in {} ({}): {}\n", order.row, order.slice, correlation(order));
        }
        text += &format!("{}\n", counts(&lines));
        table.differs.iter().for_each(|note| text += &format!("differs: {note}\n"));
        output.into_iter().for_each(|path| text += &format!("written to {}\n", path.display()));
        text
    }

    fn orders(&self, lines: &[Line]) -> Vec<RowOrder> {
        if self.table.order { row_orders(lines) } else { vec![] }
    }

    fn document(&self, found: &Found, output: Option<&PathBuf>) -> Value {
        let (table, lines) = (self.table, self.lines(found));
        let range = |range: Range| json!([range.low, range.high]);
        let entry = |line: &Line| {
            let theirs = match &line.published.claim {
                Claim::Number { range: published, .. } => range(*published),
                _ => Value::Null,
            };
            json!({
                "row": line.published.row,
                "column": line.published.column,
                "slice": line.published.slice,
                "claim": describe(&line.published.claim),
                "published": line.published.claim.number(),
                "published_interval": theirs,
                "source": line.published.source,
                "value": line.ours.map(|ours| ours.0),
                "interval": line.ours.map(|ours| range(ours.1)),
                "values": line.values,
                "runs": line.values.len(),
                "tried": line.tried,
                "learning_rate": line.learning_rate,
                "n_sequences": line.sequences,
                "verdict": line.verdict.name(),
            })
        };
        let order = |order: &RowOrder| {
            json!({
                "row": order.row,
                "slice": order.slice,
                "columns": order.columns,
                "rank_correlation": order.correlation.map(|c| c.0),
                "interval": order.correlation.map(|c| range(c.1)),
            })
        };
        json!({
            "table": table.name,
            "title": table.title,
            "source": table.source,
            "quick": table.quick,
            "metric": table.metric,
            "rule": table.selection.rule.name(),
            "differs": table.differs,
            "cells": lines.iter().map(entry).collect::<Vec<_>>(),
            "orders": self.orders(&lines).iter().map(order).collect::<Vec<_>>(),
            "file": output,
        })
    }

    /// The exit status: a verdict is an answer, whatever it says; runs that are missing or failed are an error.
    fn end(&self, found: &Found, complete: bool) -> Result<()> {
        if !complete && stop::requested() {
            bail!("interrupted: {} runs are missing\n  hint: the same command continues", found.missing.len());
        }
        if !complete {
            bail!(
                "{} runs are missing: another process makes them, or was told to stop\n  hint: the same command continues",
                found.missing.len()
            );
        }
        if !found.failed.is_empty() {
            bail!(
                "{} runs failed:\n{}\n  hint: their output is in {}; --retry tries them again",
                found.failed.len(),
                found.failed.join("\n"),
                self.runner.folder.join("logs").display()
            );
        }
        Ok(())
    }
}

/// `99.98 [99.81, 100.00]`
fn ours((value, Range { low, high }): (f64, Range)) -> String {
    format!("{:.2} [{:.2}, {:.2}]", 100.0 * value, 100.0 * low, 100.0 * high)
}

fn correlation(order: &RowOrder) -> String {
    match order.correlation {
        Some((rho, Range { low, high })) => {
            format!("rank correlation {rho:.2} [{low:.2}, {high:.2}] over {} columns", order.columns)
        }
        None => format!("{} columns have both values, and either fewer than three or all equal", order.columns),
    }
}

/// `3 inside, 1 outside (below), 2 not run`
fn counts(lines: &[Line]) -> String {
    let all = [Verdict::Inside, Verdict::Above, Verdict::Below, Verdict::NoneFits, Verdict::NotRun];
    let number = |verdict: Verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    let counts = all.into_iter().filter(|v| number(*v) > 0).map(|v| format!("{} {}", number(v), v.name()));
    counts.collect::<Vec<_>>().join(", ")
}
