//! `pipeline export`: writes `model.onnx` and, of a recurrent model, `model.stateful.onnx` into a run, after checking them against
//! burn in ONNX Runtime.

use super::Context;
use crate::cli::ExportArgs;
use crate::export::{ExportPlan, Exported, export_checkpoints, export_locked, export_run, is_current};
use crate::run::RunDir;
use anyhow::{Result, bail};
use exporters::{ExportOptions, Precision};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub fn run(context: &Context, args: ExportArgs) -> Result<()> {
    let runs = &context.runs;
    let precision: Precision = args.precision.parse()?;
    let opset = args.opset.unwrap_or(ExportOptions::default().opset);
    let options = ExportOptions { precision, opset, target: args.target.parse()?, ..Default::default() };
    let every_checkpoint = args.checkpoint.as_deref() == Some("all");
    let plan = ExportPlan {
        options,
        checkpoint: args.checkpoint,
        beside_weights: every_checkpoint,
        unchecked: args.no_verify,
    };
    if args.all && every_checkpoint {
        bail!(
            "--all exports one checkpoint of every run\n  hint: name a run with --handle to export all of its checkpoints"
        );
    }
    if args.all {
        return export_all(context, &plan);
    }
    let run = match &args.handle {
        Some(handle) => RunDir::open(runs, handle)?,
        None => RunDir::newest(runs, "run", "`pipeline train --config <C>` makes one", |_| true)?,
    };
    if every_checkpoint {
        let all = export_checkpoints(context, &run, &plan)?;
        let as_json = || Value::from(all.iter().map(|exported| report(&run, exported)).collect::<Vec<_>>());
        let next = format!("next: pipeline eval --handle {} --checkpoints all", run.handle());
        return context.print(as_json, || format!("{} models · {next}", all.len()));
    }
    let exported = export_run(context, &run, &plan)?;
    let as_text = || format!("{} · next: pipeline eval --handle {}", exported.path.display(), run.handle());
    context.print(|| report(&run, &exported), as_text)
}

fn report(run: &RunDir, exported: &Exported) -> Value {
    json!({
        "handle": run.handle(),
        "model": exported.path,
        "stateful": exported.stateful,
        "largest_difference": exported.check.as_ref().map(|worst| worst.difference),
        "lengths_checked": exported.lengths,
    })
}

/// Exports every run with a checkpoint, as many at once as there are cores. A model that was made of its checkpoint is
/// kept; a run that fails does not keep the others from being exported.
fn export_all(context: &Context, plan: &ExportPlan) -> Result<()> {
    let runs = RunDir::all(&context.runs)?;
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let export = || {
                let _lock = run.write_models(|note| context.progress.note(note))?;
                Ok(if is_current(run, plan)? { None } else { Some(export_locked(context, run, plan)?) })
            };
            let outcome = export();
            done.lock().unwrap_or_else(|e| e.into_inner()).push((run, outcome));
        }
    };
    data::threads::share(data::threads::available().min(runs.len()), work);
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by(|a, b| a.0.handle().cmp(b.0.handle()));
    let failed: Vec<String> = done
        .iter()
        .filter_map(|(run, outcome)| Some(format!("{}: {:#}", run.handle(), outcome.as_ref().err()?)))
        .collect();
    let as_json = || {
        let entry = |(run, outcome): &(&RunDir, Result<Option<Exported>>)| match outcome {
            Ok(Some(exported)) => report(run, exported),
            Ok(None) => json!({"handle": run.handle(), "model": run.onnx(), "kept": true}),
            Err(error) => json!({"handle": run.handle(), "error": format!("{error:#}")}),
        };
        Value::from(done.iter().map(entry).collect::<Vec<_>>())
    };
    let as_text = || {
        let kept = done.iter().filter(|(_, outcome)| matches!(outcome, Ok(None))).count();
        format!("{} exported, {kept} kept, {} failed", done.len() - kept - failed.len(), failed.len())
    };
    context.print(as_json, as_text)?;
    if !failed.is_empty() {
        bail!("{} of {} runs could not be exported:\n{}", failed.len(), done.len(), failed.join("\n"));
    }
    Ok(())
}
