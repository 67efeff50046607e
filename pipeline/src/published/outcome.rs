//! Everything that a reproduction found, and its Parquet file: a row for every run and slice, and one for every cell and
//! slice.

use super::results::RunResult;
use super::selection::{Ended, best};
use super::table::{Cell, Table};
use super::values::{Claim, Published};
use super::verdict::{Range, Ranked, Rule, Verdict, order, summarise};
use anyhow::Result;
use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use evaluators::{Format, TABLE_VERSION, TABLE_VERSION_KEY};
use std::path::Path;
use std::sync::Arc;

/// The runs of a cell with one learning rate, in the order of seeds.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    /// The rate; `None` is that of the settings.
    pub learning_rate: Option<f64>,
    /// `None` for a run that failed.
    pub runs: Vec<Option<RunResult>>,
}

impl Tried {
    /// How the runs ended.
    pub fn ended(&self) -> Vec<Ended> {
        self.runs.iter().map(|run| run.as_ref().map_or(Ended::Failed, |run| run.ended)).collect()
    }
}

/// A line of the printed table: a published value, and ours.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    /// What was published.
    pub published: &'a Published,
    /// Our value with its interval.
    pub ours: Option<(f64, Range)>,
    /// Our values, run by run, of those that count.
    pub values: Vec<f64>,
    /// The runs that were made, with all learning rates that count.
    pub tried: usize,
    /// The learning rate that was chosen; `None` where there is no choice, or all of them count.
    pub learning_rate: Option<f64>,
    /// Test sequences in the slice, of one run.
    pub sequences: u64,
    /// What the comparison says.
    pub verdict: Verdict,
}

/// The places, learning rate and run, of the runs of a cell that count.
fn counted(table: &Table, tried: &[Tried]) -> Vec<(usize, usize)> {
    let kept: Vec<Vec<usize>> = tried.iter().map(|t| table.selection.kept(&t.ended())).collect();
    let all = |rate: usize| kept[rate].iter().map(move |run| (rate, *run)).collect::<Vec<_>>();
    if table.selection.rule == Rule::Max || tried.len() == 1 {
        return (0..tried.len()).flat_map(all).collect();
    }
    let chooses = |s: &super::table::Slice| Some(&s.name) == table.selection.choose.as_ref();
    let slice = table.slices.iter().position(chooses).unwrap_or(0);
    let value = |rate: usize, run: usize| tried[rate].runs[run].as_ref().and_then(|r| r.slices[slice]).map(|v| v.0);
    let values: Vec<Vec<f64>> =
        kept.iter().enumerate().map(|(rate, runs)| runs.iter().filter_map(|run| value(rate, *run)).collect()).collect();
    best(&values).map(all).unwrap_or_default()
}

/// The lines of a cell.
pub fn lines<'a>(table: &Table, cell: &'a Cell, tried: &[Tried]) -> Vec<Line<'a>> {
    let counted = counted(table, tried);
    let rates: Vec<usize> = counted.iter().map(|(rate, _)| *rate).collect();
    let chosen = rates.first().copied().filter(|first| tried.len() > 1 && rates.iter().all(|rate| rate == first));
    let made = |rate: usize| chosen.is_none_or(|chosen| chosen == rate);
    let number: usize = (0..tried.len()).filter(|rate| made(*rate)).map(|rate| tried[rate].runs.len()).sum();
    let line = |published: &'a Published| {
        let index = table.slices.iter().position(|s| s.name == published.slice);
        let of_run = |(rate, run): &(usize, usize)| tried[*rate].runs[*run].as_ref()?.slices[index?];
        let found: Vec<(f64, u64)> = counted.iter().filter_map(of_run).collect();
        let values: Vec<f64> = found.iter().map(|(value, _)| *value).collect();
        let sequences = found.iter().map(|(_, n)| *n).min().unwrap_or(0);
        let ours = summarise(&values, sequences, table.selection.rule);
        let verdict = match ours {
            Some((value, interval)) => Verdict::of(&published.claim, value, interval),
            None if number == 0 => Verdict::NotRun,
            None => Verdict::NoneFits,
        };
        let learning_rate = chosen.and_then(|rate| tried[rate].learning_rate);
        Line { published, ours, values, tried: number, learning_rate, sequences, verdict }
    };
    cell.values.iter().map(line).collect()
}

/// How well the order of the columns of a row agrees with the published one.
#[derive(Debug, Clone)]
pub struct RowOrder {
    /// The row.
    pub row: String,
    /// The slice.
    pub slice: String,
    /// Columns with both values.
    pub columns: usize,
    /// Spearman's rank correlation and its interval.
    pub correlation: Option<(f64, Range)>,
}

/// [`order`] for every row and slice, in the order of `lines`.
pub fn row_orders(lines: &[Line]) -> Vec<RowOrder> {
    let mut groups: Vec<(String, String, Vec<Ranked>)> = Vec::new();
    for line in lines {
        let Claim::Number { value, spread, .. } = line.published.claim else { continue };
        let (row, slice) = (&line.published.row, &line.published.slice);
        if !groups.iter().any(|g| (&g.0, &g.1) == (row, slice)) {
            groups.push((row.clone(), slice.clone(), vec![]));
        }
        let group = groups.iter_mut().find(|g| (&g.0, &g.1) == (row, slice));
        if let Some((_, _, models)) = group.filter(|_| !line.values.is_empty()) {
            models.push(Ranked { theirs: value, spread, ours: line.values.clone() });
        }
    }
    let made = |(row, slice, models): (String, String, Vec<Ranked>)| RowOrder {
        row,
        slice,
        columns: models.len(),
        correlation: order(&models),
    };
    groups.into_iter().map(made).collect()
}

/// A row of the file.
#[derive(Debug, Clone, Default)]
struct FileRow<'a> {
    kind: &'static str,
    row: &'a str,
    column: &'a str,
    slice: &'a str,
    seed: Option<u64>,
    learning_rate: Option<f64>,
    handle: Option<&'a str>,
    steps: Option<u64>,
    seconds: Option<f64>,
    counts: Option<bool>,
    sequences: Option<u64>,
    value: Option<f64>,
    interval: Option<Range>,
    runs: Option<u64>,
    tried: Option<u64>,
    published: Option<f64>,
    published_range: Option<Range>,
    claim: Option<String>,
    verdict: Option<&'static str>,
    source: Option<&'a str>,
}

/// Writes the file, whole. Rows of runs come first, in the order of cells, learning rates, seeds and slices.
///
/// # Errors
/// It cannot be written.
pub fn write(table: &Table, tried: &[Vec<Tried>], format: Format, path: &Path) -> Result<()> {
    let mut rows: Vec<FileRow> = Vec::new();
    for (cell, tried) in table.cells.iter().zip(tried) {
        let counted = counted(table, tried);
        for (rate, of_rate) in tried.iter().enumerate() {
            for (index, run) in of_rate.runs.iter().enumerate() {
                let failed = run.is_none();
                for (place, slice) in table.slices.iter().enumerate() {
                    let found = run.as_ref().and_then(|run| run.slices[place]);
                    rows.push(FileRow {
                        kind: if failed { "failed run" } else { "run" },
                        row: &cell.row,
                        column: &cell.column,
                        slice: &slice.name,
                        seed: Some(table.selection.first_seed + index as u64),
                        learning_rate: of_rate.learning_rate,
                        handle: run.as_ref().map(|run| run.handle.as_str()),
                        steps: run.as_ref().map(|run| run.steps),
                        seconds: run.as_ref().map(|run| run.seconds),
                        counts: Some(counted.contains(&(rate, index))),
                        sequences: found.map(|f| f.1),
                        value: found.map(|f| f.0),
                        ..Default::default()
                    });
                }
            }
        }
    }
    let lines: Vec<Line> = table.cells.iter().zip(tried).flat_map(|(cell, tried)| lines(table, cell, tried)).collect();
    rows.extend(lines.iter().map(|line| FileRow {
        kind: "cell",
        row: &line.published.row,
        column: &line.published.column,
        slice: &line.published.slice,
        learning_rate: line.learning_rate,
        sequences: (line.sequences > 0).then_some(line.sequences),
        value: line.ours.map(|ours| ours.0),
        interval: line.ours.map(|ours| ours.1),
        runs: Some(line.values.len() as u64),
        tried: Some(line.tried as u64),
        published: line.published.claim.number(),
        published_range: match line.published.claim {
            Claim::Number { range, .. } => Some(range),
            _ => None,
        },
        claim: Some(describe(&line.published.claim)),
        verdict: Some(line.verdict.name()),
        source: Some(&line.published.source),
        ..Default::default()
    }));
    Ok(evaluators::write(&batch(table, &rows)?, format, path)?)
}

/// A claim in few characters: percent, with its standard deviation and runs.
pub fn describe(claim: &Claim) -> String {
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    match claim {
        Claim::Number { value, spread: Some((sd, runs)), .. } => {
            format!("{} (sd {}, {runs} runs)", percent(*value), percent(*sd))
        }
        Claim::Number { value, .. } => percent(*value),
        Claim::AtLeast(bound) => format!("≥ {}", percent(*bound)),
        Claim::Below(bound) => format!("< {}", percent(*bound)),
    }
}

fn batch(table: &Table, rows: &[FileRow]) -> Result<RecordBatch> {
    let texts =
        |f: &dyn Fn(&FileRow) -> Option<String>| Arc::new(rows.iter().map(f).collect::<StringArray>()) as ArrayRef;
    let numbers =
        |f: &dyn Fn(&FileRow) -> Option<f64>| Arc::new(rows.iter().map(f).collect::<Float64Array>()) as ArrayRef;
    let counts = |f: &dyn Fn(&FileRow) -> Option<u64>| {
        let signed = rows.iter().map(|row| f(row).map(|n| i64::try_from(n).unwrap_or(i64::MAX)));
        Arc::new(signed.collect::<Int64Array>()) as ArrayRef
    };
    let name = format!("{}{}", table.name, if table.quick { " --quick" } else { "" });
    let batch = RecordBatch::try_from_iter([
        ("table", texts(&|_| Some(name.clone()))),
        ("kind", texts(&|r| Some(r.kind.into()))),
        ("row", texts(&|r| Some(r.row.into()))),
        ("column", texts(&|r| Some(r.column.into()))),
        ("slice", texts(&|r| Some(r.slice.into()))),
        ("metric", texts(&|_| Some(table.metric.clone()))),
        ("seed", counts(&|r| r.seed)),
        ("learning_rate", numbers(&|r| r.learning_rate)),
        ("handle", texts(&|r| r.handle.map(str::to_owned))),
        ("steps", counts(&|r| r.steps)),
        ("seconds", numbers(&|r| r.seconds)),
        ("counts", Arc::new(rows.iter().map(|r| r.counts).collect::<BooleanArray>())),
        ("n_sequences", counts(&|r| r.sequences)),
        ("value", numbers(&|r| r.value)),
        ("low", numbers(&|r| r.interval.map(|i| i.low))),
        ("high", numbers(&|r| r.interval.map(|i| i.high))),
        ("runs", counts(&|r| r.runs)),
        ("tried", counts(&|r| r.tried)),
        ("published", numbers(&|r| r.published)),
        ("published_low", numbers(&|r| r.published_range.map(|i| i.low))),
        ("published_high", numbers(&|r| r.published_range.map(|i| i.high))),
        ("claim", texts(&|r| r.claim.clone())),
        ("verdict", texts(&|r| r.verdict.map(str::to_owned))),
        ("source", texts(&|r| r.source.map(str::to_owned))),
    ])?;
    let metadata = [(TABLE_VERSION_KEY.to_owned(), TABLE_VERSION.to_string())];
    let schema = Schema::new_with_metadata(batch.schema().fields().clone(), metadata);
    Ok(batch.with_schema(Arc::new(schema))?)
}
