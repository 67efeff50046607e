//! `pipeline report`: all results of all runs on one page.

use super::Context;
use crate::cli::ReportArgs;
use crate::report::write::{ReportPlan, write_report};
use anyhow::Result;
use serde_json::json;
use std::time::Instant;

pub fn run(context: &Context, args: ReportArgs) -> Result<()> {
    let start = Instant::now();
    let plan = ReportPlan { output: args.output, reference: args.reference, figures: args.figures };
    let written = write_report(context, &plan)?;
    let seconds = start.elapsed().as_secs_f64();
    let as_json = || {
        json!({
            "report": plan.output, "files": written.files, "runs": written.runs, "results": written.results,
            "cells": written.entries, "notices": written.notices, "seconds": seconds,
        })
    };
    let as_text = || format!("{} · {} in {seconds:.1} s", plan.output.display(), written.summary);
    context.print(as_json, as_text)
}
