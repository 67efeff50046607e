//! What the runs of a cell say: read from their result tables and training curves.

use super::selection::{Ended, Fit};
use super::table::{Place, Table};
use crate::report::columns::{metric_by_length, metric_of_total};
use crate::run::RunDir;
use crate::train::metrics;
use anyhow::{Context, Result};

/// A run that is trained and evaluated.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// The run.
    pub handle: String,
    /// Optimisation steps, and seconds of training.
    pub steps: u64,
    /// See `steps`.
    pub seconds: f64,
    /// For every slice of the table, in its order: the value, and the test sequences in it. `None` where nothing could be
    /// scored.
    pub slices: Vec<Option<(f64, u64)>>,
    /// Whether it counts.
    pub ended: Ended,
}

/// Reads a run.
///
/// # Errors
/// Its tables or its curve cannot be read.
pub fn read(run: &RunDir, table: &Table) -> Result<RunResult> {
    let curve = metrics::read(&run.metrics())?;
    let swept = metric_by_length(&run.eval().join("sweep.parquet"), &table.metric)?;
    let slice = |place: &Place| -> Result<Option<(f64, u64)>> {
        let wanted = match place {
            Place::Split(split) => {
                let path = run.eval().join(format!("{split}-total.parquet"));
                return metric_of_total(&path, &table.metric);
            }
            Place::Lengths(lengths) => lengths.as_slice(),
        };
        let rows: Vec<_> = swept.iter().filter(|row| wanted.binary_search(&row.length).is_ok()).collect();
        let mean = rows.iter().map(|row| row.value).sum::<f64>() / rows.len() as f64;
        Ok((!rows.is_empty()).then(|| (mean, rows.iter().map(|row| row.sequences).sum())))
    };
    let slices = table.slices.iter().map(|s| slice(&s.place)).collect::<Result<Vec<_>>>()?;
    let named = |name: &str| table.slices.iter().position(|s| s.name == name);
    let fits = table.selection.fit.as_ref().is_none_or(|Fit { on, at_least }| {
        let value = match named(on) {
            Some(index) => slices[index].map(|(value, _)| value),
            None => curve.iter().rev().find(|row| row.split == *on).and_then(|row| match table.metric.as_str() {
                "last_accuracy" => row.last_accuracy,
                "accuracy" => row.accuracy,
                _ => row.sequence_accuracy,
            }),
        };
        value.is_some_and(|value| value >= *at_least)
    });
    let last = curve.iter().max_by_key(|row| row.step).context("its training curve is empty")?;
    Ok(RunResult {
        handle: run.handle().to_owned(),
        steps: last.step,
        seconds: last.seconds,
        slices,
        ended: if fits { Ended::Fits } else { Ended::DoesNotFit },
    })
}
