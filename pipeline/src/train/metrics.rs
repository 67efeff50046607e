//! `metrics.parquet`: the training curve, one row per logged step and per evaluated split.

use anyhow::{Context, Result};
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use evaluators::{TABLE_VERSION, TABLE_VERSION_KEY};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// One row of the curve. Missing values are null.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricsRow {
    /// Optimisation steps done.
    pub step: u64,
    /// Epochs begun, from 1; 0 is before training.
    pub epoch: u64,
    /// `train`, or the split that was evaluated.
    pub split: String,
    /// Mean cross entropy per labelled token; of an evaluation, the mean over batches of that.
    pub loss: Option<f64>,
    /// Correct among all labelled tokens.
    pub accuracy: Option<f64>,
    /// Correct among all but the last labelled token of each sequence.
    pub counting_accuracy: Option<f64>,
    /// Correct last labelled tokens.
    pub last_accuracy: Option<f64>,
    /// Sequences without a mistake.
    pub sequence_accuracy: Option<f64>,
    /// Correct among the labelled tokens whose rank in their sequence exceeds the longest sequence of `val`.
    pub unseen_accuracy: Option<f64>,
    /// Learning rate of the step.
    pub lr: Option<f64>,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Input tokens per second since the last row of the split.
    pub tokens_per_s: Option<f64>,
    /// Seconds since the run began, without those between an interruption and the resumption.
    pub seconds: f64,
}

/// Writes the whole curve; the file appears whole or not at all. As in all tables, counts are signed.
pub fn write(rows: &[MetricsRow], path: &Path) -> Result<()> {
    let numbers =
        |f: fn(&MetricsRow) -> Option<f64>| Arc::new(rows.iter().map(f).collect::<Float64Array>()) as ArrayRef;
    let counts = |f: fn(&MetricsRow) -> u64| {
        let signed = rows.iter().map(|row| i64::try_from(f(row)).unwrap_or(i64::MAX));
        Arc::new(Int64Array::from_iter_values(signed)) as ArrayRef
    };
    let splits: StringArray = rows.iter().map(|r| Some(r.split.as_str())).collect();
    let batch = RecordBatch::try_from_iter([
        ("step", counts(|r| r.step)),
        ("epoch", counts(|r| r.epoch)),
        ("split", Arc::new(splits)),
        ("loss", numbers(|r| r.loss)),
        ("accuracy", numbers(|r| r.accuracy)),
        ("counting_accuracy", numbers(|r| r.counting_accuracy)),
        ("last_accuracy", numbers(|r| r.last_accuracy)),
        ("sequence_accuracy", numbers(|r| r.sequence_accuracy)),
        ("unseen_accuracy", numbers(|r| r.unseen_accuracy)),
        ("lr", numbers(|r| r.lr)),
        ("grad_norm", numbers(|r| r.grad_norm)),
        ("tokens_per_s", numbers(|r| r.tokens_per_s)),
        ("seconds", numbers(|r| Some(r.seconds))),
    ])?;
    let (key, version) = (TABLE_VERSION_KEY.to_owned(), TABLE_VERSION.to_string());
    let footer = vec![KeyValue::new(key.clone(), version.clone())];
    let properties = WriterProperties::builder().set_key_value_metadata(Some(footer)).build();
    let schema = Schema::new_with_metadata(batch.schema().fields().clone(), [(key, version)]);
    let batch = batch.with_schema(Arc::new(schema))?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    data::files::write_bytes(path, &bytes).context("cannot keep the training curve")
}

/// Reads a curve back.
pub fn read(path: &Path) -> Result<Vec<MetricsRow>> {
    let doing = || format!("cannot read the training curve {}", path.display());
    let file = File::open(path).with_context(doing)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|b| b.build()).with_context(doing)?;
    let mut rows = Vec::new();
    for batch in reader {
        append(&batch.with_context(doing)?, &mut rows).with_context(doing)?;
    }
    Ok(rows)
}

fn append(batch: &RecordBatch, rows: &mut Vec<MetricsRow>) -> Result<()> {
    let column = |name: &str| batch.column_by_name(name).with_context(|| format!("it has no column `{name}`"));
    // Curves of version 1, to which a resumed run appends, are unsigned.
    let counts = |name: &str| -> Result<Vec<u64>> {
        let found = column(name)?;
        let found = if found.data_type().is_integer() { cast(found, &DataType::Int64).ok() } else { None };
        let count = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
        let counts = found.and_then(|column| column.as_primitive_opt::<Int64Type>()?.iter().map(count).collect());
        counts.with_context(|| format!("its column `{name}` does not hold counts"))
    };
    let numbers = |name: &str| -> Result<Vec<Option<f64>>> {
        let found = column(name)?.as_primitive_opt::<Float64Type>();
        Ok(found.with_context(|| format!("its column `{name}` does not hold numbers"))?.iter().collect())
    };
    let (steps, epochs) = (counts("step")?, counts("epoch")?);
    let splits = column("split")?.as_string_opt::<i32>().context("its column `split` does not hold text")?;
    let names = ["loss", "accuracy", "counting_accuracy", "last_accuracy", "sequence_accuracy", "unseen_accuracy"];
    let [loss, accuracy, counting, last, sequence, unseen] = names.map(numbers);
    let (loss, accuracy, counting, last, sequence, unseen) = (loss?, accuracy?, counting?, last?, sequence?, unseen?);
    let [lr, grad_norm, tokens_per_s, seconds] = ["lr", "grad_norm", "tokens_per_s", "seconds"].map(numbers);
    let (lr, grad_norm, tokens_per_s, seconds) = (lr?, grad_norm?, tokens_per_s?, seconds?);
    rows.extend((0..batch.num_rows()).map(|i| MetricsRow {
        step: steps[i],
        epoch: epochs[i],
        split: if splits.is_valid(i) { splits.value(i).to_owned() } else { String::new() },
        loss: loss[i],
        accuracy: accuracy[i],
        counting_accuracy: counting[i],
        last_accuracy: last[i],
        sequence_accuracy: sequence[i],
        unseen_accuracy: unseen[i],
        lr: lr[i],
        grad_norm: grad_norm[i],
        tokens_per_s: tokens_per_s[i],
        seconds: seconds[i].unwrap_or_default(),
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_curve_reads_back_with_its_nulls() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.parquet");
        let trained = MetricsRow { step: 5, epoch: 1, split: "train".into(), loss: Some(0.5), ..Default::default() };
        let evaluated = MetricsRow { split: "val".into(), loss: None, unseen_accuracy: Some(0.25), ..trained.clone() };
        let rows = [trained, evaluated];
        write(&rows, &path).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
        std::fs::write(&path, "PAR1").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("metrics.parquet"));
    }
}
