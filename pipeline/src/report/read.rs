//! Reads `runs/*/eval/*.parquet`, `runs/*/metrics.parquet` and `runs/*/config.toml`, in any state.

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, StringArray, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Files that could not be read, and why.
    pub notices: Vec<String>,
}

/// One folder of the runs folder.
#[derive(Debug, Default)]
pub struct Run {
    /// Its name.
    pub handle: String,
    /// The folder itself.
    pub folder: PathBuf,
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
    /// The values that are the same in all rows.
    pub facts: Facts,
    /// The values that differ.
    pub rows: Rows,
}

/// The model and the task that were evaluated.
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
    /// How often a looped model applied its blocks.
    pub iterations: Option<u64>,
}

/// The two kinds of result table.
#[derive(Debug, Clone)]
pub enum Rows {
    /// One row per length, ascending; read of sweeps only.
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
        let mut folders: Vec<PathBuf> =
            entries.filter(|e| !is_hidden(e)).map(|e| e.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            while let (index, Some(folder)) = take(&next, &folders) {
                let run = read_run(folder);
                found.lock().unwrap_or_else(|e| e.into_inner()).push((index, run));
            }
        };
        data::threads::share(data::threads::available(), work);
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

/// Folders of runs that are being deleted.
fn is_hidden(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with('.')
}

fn take<'a>(next: &AtomicUsize, folders: &'a [PathBuf]) -> (usize, Option<&'a PathBuf>) {
    let index = next.fetch_add(1, Ordering::Relaxed);
    (index, folders.get(index))
}

/// A run, the number of result files that were read, and notices.
fn read_run(folder: &Path) -> (Run, usize, Vec<String>) {
    let handle = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut notices = Vec::new();
    let mut run = Run { handle, folder: folder.to_owned(), ..Run::default() };
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
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Results of single checkpoints are no results of the run.
        let passed_over = name.starts_with('.') || name.starts_with("checkpoints");
        !passed_over && path.extension().is_some_and(|e| e == "parquet")
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
    let batches = batches(path, &LENGTHS[..1])?;
    let mut lengths = Vec::new();
    for batch in batches {
        let column = Columns(&batch).counts("length")?.context("it has no column `length`")?;
        lengths.extend(column.iter().flatten().filter_map(|length| u32::try_from(length).ok()));
    }
    Ok(lengths)
}

/// The models that the rows of a result table are of; `None` where it does not say.
///
/// # Errors
/// The file cannot be read.
pub fn model_fingerprints(path: &Path) -> Result<Option<BTreeSet<String>>> {
    let mut found = BTreeSet::new();
    for batch in batches(path, &["model_fingerprint"])? {
        let Some(column) = Columns(&batch).texts("model_fingerprint")? else { return Ok(None) };
        if column.null_count() > 0 {
            return Ok(None);
        }
        found.extend(column.iter().flatten().map(str::to_owned));
    }
    Ok((!found.is_empty()).then_some(found))
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

/// The columns that say what a table is about: nearly always the same in every row.
const FACTS: [&str; 9] =
    ["task", "split", "arch", "positional_embedding", "num_layers", "hidden_size", "seed", "precision", "iterations"];
/// The columns of a table of lengths that a report shows.
const LENGTHS: [&str; 4] = ["length", "n_sequences", "last_accuracy", "in_distribution"];
/// Those of a training curve.
const CURVE: [&str; 4] = ["step", "split", "loss", "accuracy"];

/// Reads the columns with these names, those that there are.
pub(super) fn batches(path: &Path, columns: &[&str]) -> Result<Vec<RecordBatch>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let wanted = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    Ok(builder.with_projection(wanted).build()?.collect::<Result<_, _>>()?)
}

fn read_curve(path: &Path) -> Result<Vec<CurveRow>> {
    let mut rows = Vec::new();
    for batch in batches(path, &CURVE)? {
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

/// Nothing for a table of predictions; an error for anything that is no result at all. Of tables by length only sweeps are
/// read, of others only what they are about.
fn read_tables(path: &Path) -> Result<Vec<Table>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let has = |name: &str| builder.schema().column_with_name(name).is_some();
    if has("gold") {
        return Ok(vec![]);
    }
    let needed = if has("loops") { &["task", "split"][..] } else { &["task", "split", "length", "last_accuracy"] };
    if let Some(missing) = needed.iter().find(|name| !has(name)) {
        bail!("it is no result table: it has no column `{missing}`");
    }
    let mut facts = Vec::new();
    let mut wanted = if has("loops") { super::metrics::METRICS.map(|m| m.name).to_vec() } else { LENGTHS.to_vec() };
    for name in FACTS {
        let same = if has(name) { constant(builder.metadata(), name) } else { Some(None) };
        if same.is_none() {
            wanted.push(name);
        }
        facts.push((name, same));
    }
    let is_total = has("loops");
    let mut tables: Vec<Table> = Vec::new();
    if let Some((_, Some(Some(split)))) = facts.iter().find(|(name, _)| *name == "split")
        && !is_total
        && split != "sweep"
    {
        wanted.retain(|name| !LENGTHS[1..].contains(name));
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), wanted);
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let columns = Columns(&batch);
        let fact = |(name, same): &(&'static str, Option<Option<String>>)| match same {
            Some(value) => Ok(Fact::Same(value.clone())),
            None => Ok(columns.texts(name)?.map_or(Fact::Same(None), Fact::Rows)),
        };
        let facts: Vec<Fact> = facts.iter().map(fact).collect::<Result<_>>()?;
        if is_total { append_totals(&columns, &facts, &mut tables)? } else { append(&columns, &facts, &mut tables)? }
    }
    for table in &mut tables {
        if let Rows::Lengths(rows) = &mut table.rows {
            rows.sort_by_key(|row| row.length);
        }
    }
    Ok(tables)
}

/// A column of [`FACTS`] as text.
enum Fact {
    /// One value for all rows.
    Same(Option<String>),
    /// A value for each.
    Rows(StringArray),
}

impl Fact {
    fn at(&self, row: usize) -> Option<&str> {
        match self {
            Self::Same(value) => value.as_deref(),
            Self::Rows(values) => values.is_valid(row).then(|| values.value(row)),
        }
    }
}

/// The value that all rows have in a column, if the statistics in the file's footer say so: opening columns is what
/// takes time. (Where a minimum or maximum was cut short, the maximum was rounded up, so that the two differ.)
fn constant(metadata: &ParquetMetaData, name: &str) -> Option<Option<String>> {
    let mut found: Option<Option<String>> = None;
    for group in metadata.row_groups() {
        let column = group.columns().iter().find(|column| column.column_path().string() == name)?;
        let statistics = column.statistics()?;
        let nulls = statistics.null_count_opt()?;
        let number = |min: i64, max: i64| (min == max && min >= 0).then(|| min.to_string());
        let value = match statistics {
            _ if nulls == column.num_values() as u64 => None,
            _ if nulls > 0 => return None,
            Statistics::ByteArray(v) if v.min_opt()? == v.max_opt()? => Some(v.min_opt()?.as_utf8().ok()?.to_owned()),
            Statistics::Int32(v) => Some(number((*v.min_opt()?).into(), (*v.max_opt()?).into())?),
            Statistics::Int64(v) => Some(number(*v.min_opt()?, *v.max_opt()?)?),
            _ => return None,
        };
        if found.as_ref().is_some_and(|other| *other != value) {
            return None;
        }
        found = Some(value);
    }
    found
}

fn facts_at(facts: &[Fact], row: usize) -> Facts {
    let text = |index: usize| facts.get(index).and_then(|fact| fact.at(row)).unwrap_or_default().to_owned();
    let count = |index: usize| text(index).parse().ok();
    Facts {
        task: text(0),
        split: text(1),
        arch: text(2),
        positional_embedding: text(3),
        num_layers: count(4),
        hidden_size: count(5),
        seed: count(6),
        precision: text(7),
        iterations: count(8),
    }
}

fn append_totals(columns: &Columns, facts: &[Fact], tables: &mut Vec<Table>) -> Result<()> {
    let metrics: Vec<(&str, Option<Float64Array>)> =
        super::metrics::METRICS.iter().map(|m| Ok((m.name, columns.numbers(m.name)?))).collect::<Result<_>>()?;
    for row in 0..columns.0.num_rows() {
        let value = |(name, column): &(&str, Option<Float64Array>)| {
            let column = column.as_ref().filter(|c| c.is_valid(row) && c.value(row).is_finite())?;
            Some((name.to_string(), column.value(row)))
        };
        let values = metrics.iter().filter_map(value).collect();
        tables.push(Table { facts: facts_at(facts, row), rows: Rows::Total(values) });
    }
    Ok(())
}

fn append(columns: &Columns, facts: &[Fact], tables: &mut Vec<Table>) -> Result<()> {
    let lengths = columns.counts("length")?.context("it has no column `length`")?;
    let accuracies = columns.numbers("last_accuracy")?;
    let sequences = columns.counts("n_sequences")?;
    let trained = columns.flags("in_distribution")?;
    // All rows are nearly always about one model, so that only rows that differ from the one before are looked at.
    let same = |row: usize| facts.iter().all(|fact| matches!(fact, Fact::Same(_)) || fact.at(row) == fact.at(row - 1));
    let mut current = None;
    for row in 0..lengths.len() {
        if row == 0 || !same(row) {
            let facts = facts_at(facts, row);
            let of_lengths = |t: &Table| t.facts == facts && matches!(t.rows, Rows::Lengths(_));
            current = Some(tables.iter().position(of_lengths).unwrap_or_else(|| {
                tables.push(Table { facts, rows: Rows::Lengths(vec![]) });
                tables.len() - 1
            }));
        }
        let Some(Rows::Lengths(rows)) = current.and_then(|i| tables.get_mut(i)).map(|t| &mut t.rows) else { continue };
        let accuracy = accuracies.as_ref().and_then(|a| a.is_valid(row).then(|| a.value(row)));
        let length = lengths.is_valid(row).then(|| u32::try_from(lengths.value(row)).ok()).flatten();
        if let (Some(last_accuracy), Some(length)) = (accuracy.filter(|a| (0.0..=1.0).contains(a)), length) {
            let sequences = sequences.as_ref().and_then(|c| c.is_valid(row).then(|| c.value(row))).unwrap_or(1);
            let in_distribution = trained.as_ref().is_some_and(|t| t.is_valid(row) && t.value(row));
            rows.push(Length { length, sequences, last_accuracy, in_distribution });
        }
    }
    Ok(())
}

/// Columns by name in the type that is wanted, in any width that another tool wrote them in; `None` where there is none.
pub(super) struct Columns<'a>(pub(super) &'a RecordBatch);

impl Columns<'_> {
    fn column(&self, name: &str, kind: &DataType) -> Result<Option<ArrayRef>> {
        let Some(column) = self.0.column_by_name(name) else { return Ok(None) };
        if column.data_type() == kind {
            return Ok(Some(column.clone()));
        }
        Ok(Some(cast(column, kind).with_context(|| format!("its column `{name}` is not {kind}"))?))
    }

    pub(super) fn texts(&self, name: &str) -> Result<Option<StringArray>> {
        Ok(self.column(name, &DataType::Utf8)?.map(|c| c.as_string::<i32>().clone()))
    }

    pub(super) fn counts(&self, name: &str) -> Result<Option<UInt64Array>> {
        Ok(self.column(name, &DataType::UInt64)?.map(|c| c.as_primitive::<UInt64Type>().clone()))
    }

    pub(super) fn numbers(&self, name: &str) -> Result<Option<Float64Array>> {
        Ok(self.column(name, &DataType::Float64)?.map(|c| c.as_primitive::<Float64Type>().clone()))
    }

    pub(super) fn flags(&self, name: &str) -> Result<Option<BooleanArray>> {
        Ok(self.column(name, &DataType::Boolean)?.map(|c| c.as_boolean().clone()))
    }
}
