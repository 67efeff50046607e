//! `metrics.parquet`: the training curve, one row per logged step and per evaluated split.

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Float64Array, StringArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use data::DataError;
use parquet::arrow::ArrowWriter;
use std::path::Path;
use std::sync::Arc;

/// One row of the curve. What a row has no value for is null.
#[derive(Debug, Clone, Default)]
pub struct MetricsRow {
    /// Optimisation steps done.
    pub step: u64,
    /// Epochs begun, from 1; 0 is before training.
    pub epoch: u64,
    /// `train`, `val` or `ood_test`.
    pub split: &'static str,
    /// Mean cross entropy per labelled token.
    pub loss: Option<f64>,
    /// Correct among all labelled tokens.
    pub accuracy: Option<f64>,
    /// Correct among all but the last labelled token of each sequence.
    pub counting_accuracy: Option<f64>,
    /// Correct last labelled tokens.
    pub last_accuracy: Option<f64>,
    /// Sequences without a mistake.
    pub sequence_accuracy: Option<f64>,
    /// Learning rate of the step.
    pub lr: Option<f64>,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Input tokens per second since the last row of the split.
    pub tokens_per_s: Option<f64>,
    /// Seconds since the run began.
    pub seconds: f64,
}

/// Writes the whole curve; the file appears whole or not at all.
pub fn write(rows: &[MetricsRow], path: &Path) -> Result<()> {
    let numbers =
        |f: fn(&MetricsRow) -> Option<f64>| Arc::new(rows.iter().map(f).collect::<Float64Array>()) as ArrayRef;
    let counts = |f: fn(&MetricsRow) -> u64| {
        Arc::new(rows.iter().map(f).collect::<Vec<_>>().into_iter().collect::<UInt64Array>()) as ArrayRef
    };
    let splits: StringArray = rows.iter().map(|r| Some(r.split)).collect();
    let batch = RecordBatch::try_from_iter([
        ("step", counts(|r| r.step)),
        ("epoch", counts(|r| r.epoch)),
        ("split", Arc::new(splits)),
        ("loss", numbers(|r| r.loss)),
        ("accuracy", numbers(|r| r.accuracy)),
        ("counting_accuracy", numbers(|r| r.counting_accuracy)),
        ("last_accuracy", numbers(|r| r.last_accuracy)),
        ("sequence_accuracy", numbers(|r| r.sequence_accuracy)),
        ("lr", numbers(|r| r.lr)),
        ("grad_norm", numbers(|r| r.grad_norm)),
        ("tokens_per_s", numbers(|r| r.tokens_per_s)),
        ("seconds", numbers(|r| Some(r.seconds))),
    ])?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    data::files::write_bytes(path, &bytes)
        .map_err(|e: DataError| anyhow::Error::new(e))
        .context("cannot keep the training curve")
}
