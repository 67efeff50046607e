//! `pipeline report`: all results of all runs on one page.

use super::Context;
use crate::cli::ReportArgs;
use crate::report::{Report, figures, html, markdown};
use anyhow::{Result, bail};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

pub fn run(context: &Context, args: ReportArgs) -> Result<()> {
    let start = Instant::now();
    let folder = &context.global.runs_dir;
    let extension = args.output.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if !matches!(extension.as_str(), "html" | "md") {
        bail!("-o {}: a report is HTML or Markdown\n  hint: let the name end in .html or .md", args.output.display());
    }
    let report = Report::read(folder, args.reference.as_deref())?;
    if report.cells.is_empty() {
        bail!(
            "there are no results under {}\n  hint: `pipeline train --config <C>`, `pipeline export` and `pipeline eval` make some",
            folder.display()
        );
    }
    report.notices.iter().for_each(|notice| context.progress.detail(notice));
    let runs = folder.to_string_lossy();
    // Markdown shows its figures from files beside it.
    let beside = || args.output.with_extension("").to_string_lossy().into_owned() + "-figures";
    let into = args.figures.clone().or_else(|| (extension == "md").then(|| PathBuf::from(beside())));
    let mut written = vec![args.output.clone()];
    let drawn = if into.is_some() { figures::all(&report) } else { vec![] };
    if let Some(folder) = &into {
        written.extend(figures::write(&drawn, folder)?);
    }
    let text = match &into {
        Some(figures) if extension == "md" => {
            let near = args.output.parent().and_then(|parent| figures.strip_prefix(parent).ok());
            markdown::document(&report, &runs, &drawn, &near.unwrap_or(figures).to_string_lossy())
        }
        _ => html::page(&report, &runs),
    };
    data::files::write_bytes(&args.output, text.as_bytes())?;
    let seconds = start.elapsed().as_secs_f64();
    let as_json = || {
        json!({
            "report": args.output, "files": written, "runs": report.runs(), "results": report.files,
            "cells": report.cells.len(), "notices": report.notices, "seconds": seconds,
        })
    };
    let as_text = || {
        let notices: String = report.shown_notices().iter().map(|n| format!("note: {n}\n")).collect();
        format!("{notices}{} · {} in {seconds:.1} s", args.output.display(), report.summary())
    };
    context.print(as_json, as_text)
}
