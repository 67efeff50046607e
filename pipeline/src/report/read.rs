//! Reads `runs/*/eval/*.parquet`, `runs/*/metrics.parquet` and `runs/*/config.toml`, whatever state they are in.

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, StringArray, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The settings of a run: `table.key` and its value as TOML.
pub type Settings = BTreeMap<String, String>;

/// All runs that have results.
#[derive(Debug, Default)]
pub struct Runs {
    /// One per folder, ordered by name.
    pub runs: Vec<Run>,
    /// Result files that were read.
    pub files: usize,
    /// What could not be read, and why.
    pub notices: Vec<String>,
}

/// One folder of the runs folder.
#[derive(Debug, Default)]
pub struct Run {
    /// Its name.
    pub handle: String,
    /// Its config; empty where there is none.
    pub settings: Settings,
    /// Its result tables, the newest file first.
    pub tables: Vec<Table>,
    /// Its training curve; empty where there is none.
    pub curve: Vec<CurveRow>,
}

/// The rows of a result file that are about one model on one split.
#[derive(Debug, Clone)]
pub struct Table {
    /// What is the same in all rows.
    pub facts: Facts,
    /// What differs.
    pub rows: Rows,
}

/// What was evaluated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The task.
    pub task: String,
    /// The split, or `sweep`.
    pub split: String,
    /// The architecture.
    pub arch: String,
    /// The kind of positional embedding.
    pub positional_embedding: String,
    /// Layers.
    pub num_layers: Option<u64>,
    /// Width.
    pub hidden_size: Option<u64>,
    /// The training seed.
    pub seed: Option<u64>,
    /// The arithmetic of the file.
    pub precision: String,
}

/// The two kinds of result table.
#[derive(Debug, Clone)]
pub enum Rows {
    /// One row per length, ascending.
    Lengths(Vec<Length>),
    /// A whole split: the metrics that it has, by name.
    Total(BTreeMap<String, f64>),
}

/// A row of a training curve.
#[derive(Debug, Clone, PartialEq)]
pub struct CurveRow {
    /// Optimisation steps done.
    pub step: u64,
    /// `train`, or the split that was evaluated.
    pub split: String,
    /// Mean cross entropy.
    pub loss: Option<f64>,
    /// Correct among all labelled tokens.
    pub accuracy: Option<f64>,
}

/// The score of one length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Length {
    /// The length.
    pub length: u32,
    /// Test sequences.
    pub sequences: u64,
    /// How many of them ended right.
    pub last_accuracy: f64,
    /// Whether it was trained on.
    pub in_distribution: bool,
}

impl Runs {
    /// Reads every run under `folder`, on all cores.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let doing = || format!("cannot read the runs folder {}\n  hint: --runs-dir names another", folder.display());
        let entries = fs::read_dir(folder).with_context(doing)?.filter_map(Result::ok);
        let mut folders: Vec<PathBuf> = entries.map(|e| e.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            while let (index, Some(folder)) = take(&next, &folders) {
                let run = read_run(folder);
                found.lock().unwrap_or_else(|e| e.into_inner()).push((index, run));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(work);
            }
        });
        let mut found = found.into_inner().unwrap_or_else(|e| e.into_inner());
        found.sort_by_key(|(index, _)| *index);
        let mut all = Self::default();
        for (_, (run, files, notices)) in found {
            all.files += files;
            all.notices.extend(notices);
            if !run.tables.is_empty() || !run.curve.is_empty() {
                all.runs.push(run);
            }
        }
        Ok(all)
    }
}

fn take<'a>(next: &AtomicUsize, folders: &'a [PathBuf]) -> (usize, Option<&'a PathBuf>) {
    let index = next.fetch_add(1, Ordering::Relaxed);
    (index, folders.get(index))
}

/// A run, the number of result files that were read, and notices.
fn read_run(folder: &Path) -> (Run, usize, Vec<String>) {
    let handle = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut notices = Vec::new();
    let mut run = Run { handle, ..Run::default() };
    match read_settings(&folder.join("config.toml")) {
        Ok(settings) => run.settings = settings,
        Err(error) => notices.push(one_line(&error)),
    }
    let metrics = folder.join("metrics.parquet");
    if metrics.is_file() {
        match read_curve(&metrics).with_context(|| format!("left out {}", metrics.display())) {
            Ok(curve) => run.curve = curve,
            Err(error) => notices.push(one_line(&error)),
        }
    }
    let entries = fs::read_dir(folder.join("eval")).into_iter().flatten().filter_map(Result::ok);
    let is_table = |path: &PathBuf| {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        !hidden && path.extension().is_some_and(|e| e == "parquet")
    };
    let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).filter(is_table).collect();
    // The newest first, so that the first table of a kind is the one that counts.
    paths.sort_by_cached_key(|path| (path.metadata().and_then(|m| m.modified()).ok(), path.clone()));
    let mut files = 0;
    for path in paths.iter().rev() {
        let tables = read_tables(path).with_context(|| format!("left out {}", path.display()));
        match tables {
            Ok(tables) => {
                files += usize::from(!tables.is_empty());
                run.tables.extend(tables);
            }
            Err(error) => notices.push(one_line(&error)),
        }
    }
    (run, files, notices)
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The config as flat keys; nothing where there is no file.
fn read_settings(path: &Path) -> Result<Settings> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Settings::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let tables: toml::Table = text.parse().with_context(|| format!("{} is not TOML", path.display()))?;
    let mut settings = Settings::new();
    for (table, keys) in tables {
        for (key, value) in keys.as_table().into_iter().flatten() {
            settings.insert(format!("{table}.{key}"), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    Ok(settings)
}

/// The lengths that a result table has a row for.
///
/// # Errors
/// The file cannot be read, or is no table of lengths.
pub fn lengths(path: &Path) -> Result<Vec<u32>> {
    let batches = batches(path)?;
    let mut lengths = Vec::new();
    for batch in batches {
        let column = Columns(&batch).counts("length")?.context("it has no column `length`")?;
        lengths.extend(column.iter().flatten().filter_map(|length| u32::try_from(length).ok()));
    }
    Ok(lengths)
}

/// The lengths that a result table has scores of.
///
/// # Errors
/// The file cannot be read, or is no result table.
pub fn scored_lengths(path: &Path) -> Result<Vec<Length>> {
    let tables = read_tables(path)?.into_iter().map(|table| table.rows);
    let lengths = |rows| if let Rows::Lengths(rows) = rows { rows } else { vec![] };
    Ok(tables.flat_map(lengths).collect())
}

/// The columns that a report shows.
const COLUMNS: [&str; 18] = [
    "task",
    "split",
    "arch",
    "positional_embedding",
    "num_layers",
    "hidden_size",
    "seed",
    "precision",
    "length",
    "n_sequences",
    "accuracy",
    "last_accuracy",
    "unseen_accuracy",
    "in_distribution",
    "loops",
    "gold",
    "step",
    "loss",
];

fn batches(path: &Path) -> Result<Vec<RecordBatch>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let wanted = ProjectionMask::columns(builder.parquet_schema(), COLUMNS);
    Ok(builder.with_projection(wanted).build()?.collect::<Result<_, _>>()?)
}

fn read_curve(path: &Path) -> Result<Vec<CurveRow>> {
    let mut rows = Vec::new();
    for batch in batches(path)? {
        let columns = Columns(&batch);
        let (Some(steps), Some(splits)) = (columns.counts("step")?, columns.texts("split")?) else {
            bail!("it is no training curve: no column `step` or `split`");
        };
        let (loss, accuracy) = (columns.numbers("loss")?, columns.numbers("accuracy")?);
        let value = |column: &Option<Float64Array>, row: usize| {
            column.as_ref().and_then(|c| c.is_valid(row).then(|| c.value(row))).filter(|v| v.is_finite())
        };
        rows.extend((0..batch.num_rows()).map(|row| CurveRow {
            step: steps.value(row),
            split: splits.value(row).to_owned(),
            loss: value(&loss, row),
            accuracy: value(&accuracy, row),
        }));
    }
    Ok(rows)
}

/// Nothing for a table of predictions; an error for anything that is no result at all.
fn read_tables(path: &Path) -> Result<Vec<Table>> {
    let mut tables: Vec<Table> = Vec::new();
    for batch in batches(path)? {
        if batch.column_by_name("gold").is_some() {
            return Ok(vec![]);
        }
        append(&batch, &mut tables)?;
    }
    for table in &mut tables {
        if let Rows::Lengths(rows) = &mut table.rows {
            rows.sort_by_key(|row| row.length);
        }
    }
    Ok(tables)
}

fn append(batch: &RecordBatch, tables: &mut Vec<Table>) -> Result<()> {
    let columns = Columns(batch);
    let (task, split) = (columns.texts("task")?, columns.texts("split")?);
    let (Some(task), Some(split)) = (task, split) else { bail!("it is no result table: no column `task` or `split`") };
    let optional = ["arch", "positional_embedding", "precision"].map(|name| columns.texts(name));
    let [arch, positional_embedding, precision] = optional;
    let (arch, positional_embedding, precision) = (arch?, positional_embedding?, precision?);
    let [layers, width, seed] = ["num_layers", "hidden_size", "seed"].map(|name| columns.counts(name));
    let (layers, width, seed) = (layers?, width?, seed?);
    let text = |column: &Option<StringArray>, row: usize| match column {
        Some(column) if column.is_valid(row) => column.value(row).to_owned(),
        _ => String::new(),
    };
    let count = |column: &Option<UInt64Array>, row: usize| {
        column.as_ref().and_then(|column| column.is_valid(row).then(|| column.value(row)))
    };
    let facts = |row: usize| Facts {
        task: task.value(row).to_owned(),
        split: split.value(row).to_owned(),
        arch: text(&arch, row),
        positional_embedding: text(&positional_embedding, row),
        num_layers: count(&layers, row),
        hidden_size: count(&width, row),
        seed: count(&seed, row),
        precision: text(&precision, row),
    };

    if columns.0.column_by_name("loops").is_some() {
        let metrics: Vec<(&str, Option<Float64Array>)> =
            super::cells::METRICS.iter().map(|m| Ok((m.name, columns.numbers(m.name)?))).collect::<Result<_>>()?;
        for row in 0..batch.num_rows() {
            let value = |(name, column): &(&str, Option<Float64Array>)| {
                let column = column.as_ref().filter(|c| c.is_valid(row) && c.value(row).is_finite())?;
                Some((name.to_string(), column.value(row)))
            };
            let values = metrics.iter().filter_map(value).collect();
            tables.push(Table { facts: facts(row), rows: Rows::Total(values) });
        }
        return Ok(());
    }

    let lengths = columns.counts("length")?.context("it is no result table: no column `length`")?;
    let accuracies = columns.numbers("last_accuracy")?.context("it is no result table: no column `last_accuracy`")?;
    let sequences = columns.counts("n_sequences")?;
    let trained = columns.flags("in_distribution")?;
    // All rows are nearly always about one model, so that only rows that differ from the one before are looked at.
    let same = |row: usize| {
        let text = |c: &StringArray| c.is_null(row) == c.is_null(row - 1) && c.value(row) == c.value(row - 1);
        let optional = |c: &Option<StringArray>| c.as_ref().is_none_or(text);
        let number = |c: &Option<UInt64Array>| count(c, row) == count(c, row - 1);
        text(&task)
            && text(&split)
            && [&arch, &positional_embedding, &precision].into_iter().all(optional)
            && [&layers, &width, &seed].into_iter().all(number)
    };
    let mut current = None;
    for row in 0..batch.num_rows() {
        if row == 0 || !same(row) {
            let facts = facts(row);
            let of_lengths = |t: &Table| t.facts == facts && matches!(t.rows, Rows::Lengths(_));
            current = Some(tables.iter().position(of_lengths).unwrap_or_else(|| {
                tables.push(Table { facts, rows: Rows::Lengths(Vec::with_capacity(batch.num_rows())) });
                tables.len() - 1
            }));
        }
        let Some(Rows::Lengths(rows)) = current.and_then(|i| tables.get_mut(i)).map(|t| &mut t.rows) else { continue };
        let accuracy = accuracies.is_valid(row).then(|| accuracies.value(row)).filter(|a| (0.0..=1.0).contains(a));
        let length = lengths.is_valid(row).then(|| u32::try_from(lengths.value(row)).ok()).flatten();
        if let (Some(last_accuracy), Some(length)) = (accuracy, length) {
            let sequences = count(&sequences, row).unwrap_or(1);
            let in_distribution = trained.as_ref().is_some_and(|t| t.is_valid(row) && t.value(row));
            rows.push(Length { length, sequences, last_accuracy, in_distribution });
        }
    }
    Ok(())
}

/// Columns by name in the type that is wanted, whatever width another tool wrote them in; `None` where there is none.
struct Columns<'a>(&'a RecordBatch);

impl Columns<'_> {
    fn column(&self, name: &str, kind: &DataType) -> Result<Option<ArrayRef>> {
        let Some(column) = self.0.column_by_name(name) else { return Ok(None) };
        if column.data_type() == kind {
            return Ok(Some(column.clone()));
        }
        Ok(Some(cast(column, kind).with_context(|| format!("its column `{name}` is not {kind}"))?))
    }

    fn texts(&self, name: &str) -> Result<Option<StringArray>> {
        Ok(self.column(name, &DataType::Utf8)?.map(|c| c.as_string::<i32>().clone()))
    }

    fn counts(&self, name: &str) -> Result<Option<UInt64Array>> {
        Ok(self.column(name, &DataType::UInt64)?.map(|c| c.as_primitive::<UInt64Type>().clone()))
    }

    fn numbers(&self, name: &str) -> Result<Option<Float64Array>> {
        Ok(self.column(name, &DataType::Float64)?.map(|c| c.as_primitive::<Float64Type>().clone()))
    }

    fn flags(&self, name: &str) -> Result<Option<BooleanArray>> {
        Ok(self.column(name, &DataType::Boolean)?.map(|c| c.as_boolean().clone()))
    }
}
