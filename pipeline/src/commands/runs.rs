//! `pipeline runs`: what was trained, how far, and how well.

use super::Context;
use crate::checkpoint::read_state;
use crate::cli::{RunsArgs, RunsCommand};
use crate::config::Config;
use crate::metrics_log::{self, MetricsRow};
use crate::plot::display_name;
use crate::run_dir::{RunDir, RunProgress};
use crate::summary::percent;
use anyhow::{Context as _, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use std::fs;
use std::io::{IsTerminal, Write};

pub fn run(context: &Context, args: RunsArgs) -> Result<()> {
    match args.command.unwrap_or(RunsCommand::List) {
        RunsCommand::List => list(context),
        RunsCommand::Show { handle } => show(context, handle.as_deref()),
        RunsCommand::Rm { handles, yes } => remove(context, &handles, yes),
    }
}

/// What the files of a run say.
struct Summary {
    run: RunDir,
    config: Config,
    /// `None` for runs that were not trained here.
    progress: Option<RunProgress>,
    /// The whole curve; empty where there is none.
    curve: Vec<MetricsRow>,
}

impl Summary {
    fn read(run: RunDir) -> Result<Self> {
        let config = Config::load(&run.config(), &[])?;
        let curve = if run.metrics().exists() { metrics_log::read(&run.metrics())? } else { vec![] };
        Ok(Self { config, progress: run.progress(), curve, run })
    }

    fn status(&self) -> &'static str {
        self.progress.as_ref().map_or("imported", |p| p.status.name())
    }

    /// Steps done and asked for.
    fn steps(&self) -> (Option<u64>, Option<u64>) {
        let saved = self.run.checkpoints().last().map(|(step, _)| *step);
        (self.progress.as_ref().map(|p| p.step).or(saved), self.progress.as_ref().map(|p| p.total_steps))
    }

    /// The highest accuracy that any evaluation of `split` found.
    fn best(&self, split: &str) -> Option<f64> {
        let rows = self.curve.iter().filter(|r| r.split == split);
        rows.filter_map(|r| r.accuracy).max_by(f64::total_cmp)
    }

    /// The last row of every split, in the order in which they were first evaluated.
    fn last_rows(&self) -> Vec<&MetricsRow> {
        let mut last: Vec<&MetricsRow> = Vec::new();
        for row in &self.curve {
            match last.iter_mut().find(|seen| seen.split == row.split) {
                Some(seen) => *seen = row,
                None => last.push(row),
            }
        }
        last
    }

    fn to_json(&self) -> Value {
        let (steps, total_steps) = self.steps();
        json!({
            "handle": self.run.handle(),
            "run": self.run.path(),
            "task": self.config.task.name,
            "arch": self.config.model.arch(),
            "positional_embedding": self.config.model.positional_embedding(),
            "seed": self.config.train.seed,
            "status": self.status(),
            "steps": steps,
            "total_steps": total_steps,
            "best_val_accuracy": self.best("val"),
            "best_ood_test_accuracy": self.best("ood_test"),
            "exported": self.run.onnx().exists(),
        })
    }
}

fn list(context: &Context) -> Result<()> {
    let mut summaries = Vec::new();
    for run in RunDir::all(&context.global.runs_dir)? {
        let handle = run.handle().to_owned();
        match Summary::read(run) {
            Ok(summary) => summaries.push(summary),
            Err(error) => context.progress.note(format!("run {handle} cannot be read: {error:#}")),
        }
    }
    let as_text = || {
        if summaries.is_empty() {
            return format!("there are no runs under {}", context.global.runs_dir.display());
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["run", "task", "model", "seed", "status", "steps", "best val", "best ood", "exported"]);
        for s in &summaries {
            let (done, total) = s.steps();
            let number = |n: Option<u64>| n.map_or("–".into(), |n| n.to_string());
            table.add_row([
                s.run.handle().to_owned(),
                s.config.task.name.clone(),
                display_name(s.config.model.arch(), s.config.model.positional_embedding()),
                s.config.train.seed.to_string(),
                s.status().to_owned(),
                format!("{} / {}", number(done), number(total)),
                percent(s.best("val")),
                percent(s.best("ood_test")),
                if s.run.onnx().exists() { "yes" } else { "–" }.to_owned(),
            ]);
        }
        for column in [3, 5, 6, 7] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string()
    };
    context.print(|| summaries.iter().map(Summary::to_json).collect(), as_text)
}

fn show(context: &Context, handle: Option<&str>) -> Result<()> {
    let runs = &context.global.runs_dir;
    let run = match handle {
        Some(handle) => RunDir::open(runs, handle)?,
        None => RunDir::newest(runs, "run", "`pipeline train --config <C>` makes one", |_| true)?,
    };
    let summary = Summary::read(run)?;
    let best = summary.run.best_checkpoint();
    let checkpoints: Vec<(u64, String, String)> = summary
        .run
        .checkpoints()
        .into_iter()
        .map(|(step, path)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let note = match read_state(&path) {
                Err(_) => "damaged".to_owned(),
                Ok(_) if best.as_ref() == Some(&path) => "best on val".to_owned(),
                Ok(_) => String::new(),
            };
            (step, name, note)
        })
        .collect();
    let config = summary.config.to_toml()?;
    let as_json = || {
        let mut json = summary.to_json();
        json["config"] = json!(summary.config);
        let entry = |(step, name, note): &(u64, String, String)| json!({ "step": step, "name": name, "note": note });
        json["checkpoints"] = checkpoints.iter().map(entry).collect();
        let row = |r: &&MetricsRow| {
            json!({
                "split": r.split, "step": r.step, "epoch": r.epoch, "loss": r.loss, "accuracy": r.accuracy,
                "counting_accuracy": r.counting_accuracy, "last_accuracy": r.last_accuracy,
                "sequence_accuracy": r.sequence_accuracy, "unseen_accuracy": r.unseen_accuracy,
            })
        };
        json["last"] = summary.last_rows().iter().map(row).collect();
        json
    };
    let as_text = || {
        let (done, total) = summary.steps();
        let number = |n: Option<u64>| n.map_or("–".into(), |n| n.to_string());
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["split", "step", "loss", "accuracy", "counting", "last", "whole sequence", "unseen lengths"]);
        for row in summary.last_rows() {
            table.add_row([
                row.split.clone(),
                row.step.to_string(),
                row.loss.map_or("–".into(), |loss| format!("{loss:.4}")),
                percent(row.accuracy),
                percent(row.counting_accuracy),
                percent(row.last_accuracy),
                percent(row.sequence_accuracy),
                percent(row.unseen_accuracy),
            ]);
        }
        for column in 1..8 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let checkpoints: String = checkpoints.iter().map(|(_, name, note)| format!("  {name}  {note}\n")).collect();
        format!(
            "{} · {} · {} of {} steps\n\n{config}\n{table}\n\ncheckpoints\n{checkpoints}",
            summary.run.path().display(),
            summary.status(),
            number(done),
            number(total)
        )
    };
    context.print(as_json, as_text)
}

fn remove(context: &Context, handles: &[String], yes: bool) -> Result<()> {
    let open = |handle: &String| RunDir::open(&context.global.runs_dir, handle);
    let runs: Vec<RunDir> = handles.iter().map(open).collect::<Result<_>>()?;
    // All of them are looked at before any is touched.
    if let Some(run) = runs.iter().find(|run| run.is_locked()) {
        bail!("run `{}` is being trained; nothing was deleted\n  hint: stop it first", run.handle());
    }
    if !yes && !confirmed(handles)? {
        bail!("nothing was deleted");
    }
    for run in &runs {
        let _lock = run.lock()?;
        fs::remove_dir_all(run.path()).with_context(|| format!("cannot delete {}", run.path().display()))?;
    }
    context.print(|| json!({ "deleted": handles }), || format!("deleted {}", handles.join(", ")))
}

/// Asks a person; where there is none, says which option answers.
fn confirmed(handles: &[String]) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("deleting {} needs a confirmation\n  hint: --yes gives it", handles.join(", "));
    }
    eprint!("delete {} with everything in it? [y/N] ", handles.join(", "));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
