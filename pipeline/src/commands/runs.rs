//! `pipeline runs`: what was trained, how far, and how well.

use super::Context;
use crate::cli::summary::percent;
use crate::cli::table::{Table, column};
use crate::cli::{RunsArgs, RunsCommand};
use crate::config::Config;
use crate::plot::display_name;
use crate::run::{RunDir, RunProgress};
use crate::train::checkpoint::read_state;
use crate::train::metrics::{self, MetricsRow};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

pub fn run(context: &Context, args: RunsArgs) -> Result<()> {
    match args.command.unwrap_or(RunsCommand::List) {
        RunsCommand::List => list(context),
        RunsCommand::Show { handle } => show(context, handle.as_deref()),
        RunsCommand::Rm { handles, yes } => remove(context, &handles, yes),
    }
}

/// A run as its files describe it.
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
        let curve = if run.metrics().exists() { metrics::read(&run.metrics())? } else { vec![] };
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
    for run in RunDir::all(&context.runs)? {
        let handle = run.handle().to_owned();
        match Summary::read(run) {
            Ok(summary) => summaries.push(summary),
            Err(error) => context.progress.note(format!("run {handle} cannot be read: {error:#}")),
        }
    }
    for run in RunDir::unbegun(&context.runs) {
        context.progress.note(format!(
            "{} is what a run left that was killed before it began; `pipeline runs rm {}` removes it",
            run.path().display(),
            run.handle()
        ));
    }
    let as_text = || {
        if summaries.is_empty() {
            return format!("there are no runs under {}", context.runs.display());
        }
        let mut table = Table::new([
            column("run"),
            column("task").wrap(16),
            column("model").wrap(12),
            column("seed").right().optional(),
            column("status"),
            column("steps").right().wrap(6),
            column("best val").right(),
            column("best ood").right(),
            column("exported").optional(),
        ]);
        for s in &summaries {
            let (done, total) = s.steps();
            let number = |n: Option<u64>| n.map_or("–".into(), |n| n.to_string());
            table.row([
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
        table.to_string()
    };
    context.print(|| summaries.iter().map(Summary::to_json).collect(), as_text)
}

fn show(context: &Context, handle: Option<&str>) -> Result<()> {
    let runs = &context.runs;
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
        let titles = ["step", "loss", "accuracy", "counting", "last", "whole sequence", "unseen lengths"];
        let scores = titles.map(|title| column(title).right());
        let mut table = Table::new([column("split").wrap(8)].into_iter().chain(scores));
        for row in summary.last_rows() {
            table.row([
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
        let mut saved = Table::new([column("checkpoint"), column("note")]);
        checkpoints.iter().for_each(|(_, name, note)| saved.row([name.clone(), note.clone()]));
        format!(
            "{} · {} · {} of {} steps\n\n{config}\n{table}\n\n{saved}",
            summary.run.path().display(),
            summary.status(),
            number(done),
            number(total)
        )
    };
    context.print(as_json, as_text)
}

fn remove(context: &Context, handles: &[String], yes: bool) -> Result<()> {
    let folder = &context.runs;
    let (links, runs): (Vec<&String>, Vec<&String>) = handles.iter().partition(|handle| is_link(folder, handle));
    let runs: Vec<RunDir> = runs.into_iter().map(|handle| RunDir::open_any(folder, handle)).collect::<Result<_>>()?;
    // All of them are looked at before any is touched; also what links lead to, which may be in use under their name.
    let linked: Vec<RunDir> = links.iter().filter_map(|handle| RunDir::open(folder, handle).ok()).collect();
    linked.iter().chain(&runs).try_for_each(|run| run.lock_all().map(drop))?;
    if !yes && !confirmed(handles)? {
        bail!("nothing was deleted");
    }
    RunDir::remove_deleted(folder);
    let mut left: Vec<PathBuf> = Vec::new();
    for handle in links {
        let link = folder.join(handle);
        left.push(fs::canonicalize(&link).or_else(|_| fs::read_link(&link))?);
        fs::remove_file(&link).with_context(|| format!("cannot delete the link {}", link.display()))?;
    }
    for run in &runs {
        let locks = run.lock_all()?;
        links_below(run.path(), &mut left);
        run.delete(locks)?;
    }
    let as_text = || {
        let kept: Vec<String> =
            left.iter().map(|path| format!("\nleft, as only a link led there: {}", path.display())).collect();
        format!("deleted {}{}", handles.join(", "), kept.concat())
    };
    context.print(|| json!({ "deleted": handles, "left_behind_links": left }), as_text)
}

/// Whether a run's folder is a link to one somewhere else; also where nothing is there any more.
fn is_link(runs: &Path, handle: &str) -> bool {
    !handle.contains(['/', '\\']) && runs.join(handle).symlink_metadata().is_ok_and(|m| m.file_type().is_symlink())
}

/// Where links in a folder, and below it, lead.
fn links_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => found.extend(fs::canonicalize(entry.path())),
            Ok(kind) if kind.is_dir() => links_below(&entry.path(), found),
            _ => {}
        }
    }
}

/// Asks a person; where there is none, says which option answers.
fn confirmed(handles: &[String]) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("deleting {} needs a confirmation\n  hint: --yes gives it", handles.join(", "));
    }
    write!(std::io::stderr(), "delete {} with everything in it? [y/N] ", handles.join(", "))?;
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
