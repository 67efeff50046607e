//! Single columns of result tables, for those who want one metric and nothing else.

use super::read::{Columns, batches};
use anyhow::{Context, Result};
use arrow::array::Array;
use std::path::Path;

/// A metric at a length.
pub struct MetricAtLength {
    /// The length.
    pub length: u32,
    /// Test sequences.
    pub sequences: u64,
    /// The metric.
    pub value: f64,
}

/// A column of a sweep, at the lengths that could be scored; `scaled_accuracy` is accuracy scaled so that chance is 0.
///
/// # Errors
/// The file cannot be read, or has no such column.
pub fn metric_by_length(path: &Path, metric: &str) -> Result<Vec<MetricAtLength>> {
    let doing = || format!("cannot read {}", path.display());
    let name = if metric == "scaled_accuracy" { "accuracy" } else { metric };
    let mut rows = Vec::new();
    for batch in batches(path, &["length", "n_sequences", name, "chance"]).with_context(doing)? {
        let columns = Columns(&batch);
        let missing = || format!("{} has no column `length`, `n_sequences` or `{name}`", path.display());
        let (lengths, sequences) = (columns.counts("length")?, columns.counts("n_sequences")?);
        let (lengths, sequences) = (lengths.with_context(missing)?, sequences.with_context(missing)?);
        let (values, chance) = (columns.numbers(name)?.with_context(missing)?, columns.numbers("chance")?);
        for row in (0..values.len()).filter(|row| values.is_valid(*row) && sequences.is_valid(*row)) {
            let chance = chance.as_ref().and_then(|c| c.is_valid(row).then(|| c.value(row)));
            let value = match (metric, chance) {
                ("scaled_accuracy", Some(chance)) => evaluators::means::scaled(values.value(row), chance),
                ("scaled_accuracy", None) => continue,
                _ => values.value(row),
            };
            let length = u32::try_from(lengths.value(row)).unwrap_or(u32::MAX);
            rows.push(MetricAtLength { length, sequences: sequences.value(row), value });
        }
    }
    Ok(rows)
}

/// A column of the total of a split, and its sequences; `None` where nothing could be scored.
///
/// # Errors
/// The file cannot be read, or has no such column.
pub fn metric_of_total(path: &Path, metric: &str) -> Result<Option<(f64, u64)>> {
    let doing = || format!("cannot read {}", path.display());
    for batch in batches(path, &["n_sequences", metric]).with_context(doing)? {
        let columns = Columns(&batch);
        let missing = || format!("{} has no column `n_sequences` or `{metric}`", path.display());
        let values = columns.numbers(metric)?.with_context(missing)?;
        let sequences = columns.counts("n_sequences")?.with_context(missing)?;
        if let Some(row) = (0..values.len()).find(|row| values.is_valid(*row)) {
            return Ok(Some((values.value(row), sequences.value(row))));
        }
    }
    Ok(None)
}
