use crate::error::choose;
use crate::{DatasetResult, EvalError, LengthResult, Model, Prediction, Result, Score};
use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int32Builder, Int64Array, ListBuilder, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use data::files::write_atomic;
use data::{DataError, Task};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

/// The version of all tables, which their metadata holds under [`TABLE_VERSION_KEY`]. Since version 2, integers are
/// signed, so that `length - 200` can be negative; tables without a version are of version 1.
pub const TABLE_VERSION: u32 = 2;
/// See [`TABLE_VERSION`].
pub const TABLE_VERSION_KEY: &str = "table_version";

/// A schema that says its [`TABLE_VERSION`].
fn schema(fields: impl Into<Fields>) -> Schema {
    Schema::new_with_metadata(fields, [(TABLE_VERSION_KEY.to_owned(), TABLE_VERSION.to_string())])
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    use DataType::{Boolean, Float64, Int64, Utf8};
    let column = |name, kind| Field::new(name, kind, false);
    let nullable = |name, kind| Field::new(name, kind, true);
    Arc::new(schema(vec![
        nullable("handle", Utf8),
        column("task", Utf8),
        nullable("arch", Utf8),
        nullable("positional_embedding", Utf8),
        nullable("num_layers", Int64),
        nullable("hidden_size", Int64),
        nullable("seed", Int64),
        nullable("checkpoint", Utf8),
        column("provider", Utf8),
        nullable("precision", Utf8),
        column("split", Utf8),
        column("length", Int64),
        column("n_sequences", Int64),
        column("n_tokens", Int64),
        nullable("accuracy", Float64),
        nullable("counting_accuracy", Float64),
        nullable("last_accuracy", Float64),
        nullable("sequence_accuracy", Float64),
        nullable("loss", Float64),
        nullable("last_accuracy_low", Float64),
        nullable("last_accuracy_high", Float64),
        column("in_distribution", Boolean),
        column("status", Utf8),
        column("plan", Utf8),
        nullable("model_fingerprint", Utf8),
        nullable("chance", Float64),
        nullable("parameters", Int64),
        nullable("state_size", Int64),
        nullable("iterations", Int64),
    ]))
});

static TOTAL_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    // the columns that identify a model, up to and including `split`
    let shared = SCHEMA.fields().iter().take(11).cloned();
    let number = |name| Arc::new(Field::new(name, DataType::Int64, false));
    let metric = |name| Arc::new(Field::new(name, DataType::Float64, true));
    let counts = ["loops", "n_sequences", "n_tokens"].map(number);
    let metrics = [
        "accuracy",
        "counting_accuracy",
        "last_accuracy",
        "sequence_accuracy",
        "unseen_accuracy",
        "loss",
        "last_accuracy_low",
        "last_accuracy_high",
    ];
    let status = Arc::new(Field::new("status", DataType::Utf8, false));
    let model = Arc::new(Field::new("model_fingerprint", DataType::Utf8, true));
    let last = [status, model, Arc::new(Field::new("iterations", DataType::Int64, true))];
    Arc::new(schema(shared.chain(counts).chain(metrics.map(metric)).chain(last).collect::<Vec<_>>()))
});

static PREDICTION_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let ids = |name| Field::new_list(name, Field::new_list_field(DataType::Int32, false), false);
    Arc::new(schema(vec![
        Field::new("length", DataType::Int64, false),
        Field::new("index", DataType::Int64, false),
        ids("input_ids"),
        ids("gold"),
        ids("predicted"),
    ]))
});

/// Sequences per Arrow batch of predictions; bounds the memory next to the predictions themselves.
const CHUNK: usize = 4096;

/// The columns that are the same in every row of a result table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SweepFacts {
    /// The run.
    pub handle: Option<String>,
    /// The task evaluated on.
    pub task: String,
    /// The architecture.
    pub arch: Option<String>,
    /// The kind of positional embedding.
    pub positional_embedding: Option<String>,
    /// Layers.
    pub num_layers: Option<u32>,
    /// Width.
    pub hidden_size: Option<u32>,
    /// The training seed. One above 2⁶³ − 1, which no run of this program has, is null in tables.
    pub seed: Option<u64>,
    /// The checkpoint.
    pub checkpoint: Option<String>,
    /// The execution provider.
    pub provider: String,
    /// The arithmetic.
    pub precision: Option<String>,
    /// `sweep`, or the split whose examples were scored.
    pub split: String,
    /// See [`model_fingerprint`](crate::model_fingerprint).
    pub model_fingerprint: Option<String>,
    /// Weights of the model.
    pub parameters: Option<u64>,
    /// How often a looped model applied its blocks.
    pub iterations: Option<u32>,
    /// Numbers that the model keeps of one sequence: regardless of its length, and for every token.
    pub state_size: Option<[u64; 2]>,
}

impl SweepFacts {
    /// The facts of `model` on `task`.
    pub fn new(model: &Model, task: &Task, split: &str) -> Self {
        let info = model.info().clone();
        Self {
            handle: info.handle,
            task: task.name.clone(),
            arch: info.arch,
            positional_embedding: info.positional_embedding,
            num_layers: info.num_layers,
            hidden_size: info.hidden_size,
            seed: info.seed,
            checkpoint: info.checkpoint,
            provider: model.place(),
            precision: info.precision,
            split: split.to_owned(),
            model_fingerprint: model.fingerprint().map(str::to_owned),
            parameters: info.parameters,
            iterations: model.iterations(),
            // every iteration has keys and values of its own
            state_size: info.state_size.zip(info.state_per_token).map(|(fixed, growing)| {
                let times = model.iterations().zip(info.iterations.filter(|trained| *trained > 0));
                [fixed, times.map_or(growing, |(now, trained)| growing / u64::from(trained) * u64::from(now))]
            }),
        }
    }
}

/// A file format for tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Parquet, zstd.
    #[default]
    Parquet,
    /// An Arrow IPC file (Feather version 2).
    Arrow,
    /// Comma-separated values with a header; nulls are empty.
    Csv,
    /// One JSON array of objects; nulls are written as `null`.
    Json,
}

impl Format {
    const NAMES: [(&str, Self); 4] =
        [("parquet", Self::Parquet), ("arrow", Self::Arrow), ("csv", Self::Csv), ("json", Self::Json)];

    /// The format that a file name's ending stands for, in capitals or not: `parquet` or `pq`, `arrow`, `feather` or
    /// `ipc`, `csv`, `json`.
    pub fn of_ending(ending: &str) -> Option<Self> {
        Some(match ending.to_ascii_lowercase().as_str() {
            "parquet" | "pq" => Self::Parquet,
            "arrow" | "feather" | "ipc" => Self::Arrow,
            "csv" => Self::Csv,
            "json" => Self::Json,
            _ => return None,
        })
    }

    /// The name in options, which is also the file extension.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
            Self::Csv => "csv",
            Self::Json => "json",
        }
    }
}

impl FromStr for Format {
    type Err = EvalError;

    fn from_str(name: &str) -> Result<Self> {
        choose("format", name, &Self::NAMES)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Numbers that are never negative as the signed integers of a table. None comes near the end of the range; one beyond
/// it is stored as the largest integer, never as a negative one.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl SweepFacts {
    /// The first columns of every table.
    fn columns(&self, rows: usize) -> Vec<ArrayRef> {
        let text = |value: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![value; rows])) };
        let number = |value: Option<i64>| -> ArrayRef { Arc::new(Int64Array::from(vec![value; rows])) };
        vec![
            text(self.handle.as_deref()),
            text(Some(&self.task)),
            text(self.arch.as_deref()),
            text(self.positional_embedding.as_deref()),
            number(self.num_layers.map(i64::from)),
            number(self.hidden_size.map(i64::from)),
            number(self.seed.and_then(|seed| i64::try_from(seed).ok())),
            text(self.checkpoint.as_deref()),
            text(Some(&self.provider)),
            text(self.precision.as_deref()),
            text(Some(&self.split)),
        ]
    }

    fn state_size_at(&self, length: u32) -> Option<u64> {
        let [fixed, per_token] = self.state_size?;
        Some(fixed.saturating_add(per_token.saturating_mul(length.into())))
    }

    fn iterations_column(&self, rows: usize) -> ArrayRef {
        Arc::new(Int64Array::from(vec![self.iterations.map(i64::from); rows]))
    }

    fn fingerprint_column(&self, rows: usize) -> ArrayRef {
        Arc::new(StringArray::from(vec![self.model_fingerprint.as_deref(); rows]))
    }
}

/// The result table: one row per length, in the order given. Rows without a score have 0 sequences and null metrics.
///
/// # Errors
/// None that input can cause.
pub fn to_record_batch(results: &[LengthResult], facts: &SweepFacts) -> Result<RecordBatch> {
    let count = |of: fn(&Score) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(results.iter().map(|r| signed(r.score().map_or(0, of)))))
    };
    let metric = |of: fn(&Score) -> Option<f64>| -> ArrayRef {
        Arc::new(results.iter().map(|r| r.score().and_then(of)).collect::<Float64Array>())
    };
    let own: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(results.iter().map(|r| r.length.into()))),
        count(|s| s.n_sequences),
        count(|s| s.n_tokens),
        metric(Score::accuracy),
        metric(Score::counting_accuracy),
        metric(Score::last_accuracy),
        metric(Score::sequence_accuracy),
        metric(Score::loss),
        metric(|s| s.last_accuracy_interval().map(|(low, _)| low)),
        metric(|s| s.last_accuracy_interval().map(|(_, high)| high)),
        Arc::new(BooleanArray::from_iter(results.iter().map(|r| Some(r.in_distribution)))),
        Arc::new(StringArray::from_iter_values(results.iter().map(LengthResult::status))),
        Arc::new(StringArray::from_iter_values(results.iter().map(|r| r.plan.name()))),
        facts.fingerprint_column(results.len()),
        Arc::new(results.iter().map(|r| r.chance).collect::<Float64Array>()),
        Arc::new(Int64Array::from(vec![facts.parameters.map(signed); results.len()])),
        Arc::new(results.iter().map(|r| facts.state_size_at(r.length).map(signed)).collect::<Int64Array>()),
        facts.iterations_column(results.len()),
    ];
    let columns = facts.columns(results.len()).into_iter().chain(own).collect();
    RecordBatch::try_new(SCHEMA.clone(), columns).map_err(|e| EvalError::Table { reason: e.to_string() })
}

/// The table of whole splits: one row per result, with the original's metrics: the columns of [`to_record_batch`],
/// `loops`, `unseen_accuracy`, and in `loss` the mean over batches ([`DatasetResult::batch_mean_loss`]). `status`
/// is the first length's that could not be scored.
///
/// # Errors
/// None that input can cause.
pub fn totals_to_record_batch(results: &[DatasetResult]) -> Result<RecordBatch> {
    let failed = |e: ArrowError| EvalError::Table { reason: e.to_string() };
    let rows = results.iter().map(|result| {
        let metric = |value: Option<f64>| -> ArrayRef { Arc::new(Float64Array::from(vec![value])) };
        let count = |value: u64| -> ArrayRef { Arc::new(Int64Array::from(vec![signed(value)])) };
        let (total, interval) = (&result.total, result.total.last_accuracy_interval());
        let own = [
            count(result.loops.into()),
            count(total.n_sequences),
            count(total.n_tokens),
            metric(total.accuracy()),
            metric(total.counting_accuracy()),
            metric(total.last_accuracy()),
            metric(total.sequence_accuracy()),
            metric(total.unseen_accuracy()),
            metric(result.batch_mean_loss),
            metric(interval.map(|(low, _)| low)),
            metric(interval.map(|(_, high)| high)),
            Arc::new(StringArray::from(vec![result.status()])),
            result.by_length.facts.fingerprint_column(1),
            result.by_length.facts.iterations_column(1),
        ];
        let columns = result.by_length.facts.columns(1).into_iter().chain(own).collect();
        RecordBatch::try_new(TOTAL_SCHEMA.clone(), columns)
    });
    let rows = rows.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    concat_batches(&TOTAL_SCHEMA, &rows).map_err(failed)
}

/// Writes a table; the file appears whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write(batch: &RecordBatch, format: Format, path: &Path) -> Result<()> {
    write_all(batch.schema(), std::iter::once(Ok(batch.clone())), format, path)
}

/// Writes one row per sequence: `length, index` (of the track or example), `input_ids, gold, predicted` (lists; the
/// latter two at the labelled positions only). CSV, which has no lists, gets them as text `[1, 2, 3]`.
///
/// # Errors
/// The file cannot be written.
pub fn write_predictions(predictions: &[Prediction], format: Format, path: &Path) -> Result<()> {
    let batches = predictions.chunks(CHUNK).map(|chunk| prediction_batch(chunk, format));
    let schema = match format {
        Format::Csv => Arc::new(flattened(&PREDICTION_SCHEMA)),
        _ => PREDICTION_SCHEMA.clone(),
    };
    write_all(schema, batches, format, path)
}

/// Predictions as a table: the columns of [`write_predictions`]' files.
///
/// # Errors
/// There are more tokens than fit into one batch.
pub fn predictions_to_record_batch(predictions: &[Prediction]) -> Result<RecordBatch> {
    prediction_batch(predictions, Format::Parquet).map_err(|e| EvalError::Table { reason: e.to_string() })
}

fn prediction_batch(predictions: &[Prediction], format: Format) -> std::result::Result<RecordBatch, ArrowError> {
    let ids = |of: fn(&Prediction) -> &[u16]| -> ArrayRef {
        let item = Arc::new(Field::new_list_field(DataType::Int32, false));
        let mut lists = ListBuilder::new(Int32Builder::new()).with_field(item);
        for prediction in predictions {
            of(prediction).iter().for_each(|id| lists.values().append_value((*id).into()));
            lists.append(true);
        }
        Arc::new(lists.finish())
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(predictions.iter().map(|p| p.length.into()))),
        Arc::new(Int64Array::from_iter_values(predictions.iter().map(|p| signed(p.index)))),
        ids(|p| &p.input_ids),
        ids(|p| &p.gold),
        ids(|p| &p.predicted),
    ];
    if format != Format::Csv {
        return RecordBatch::try_new(PREDICTION_SCHEMA.clone(), columns);
    }
    let schema = Arc::new(flattened(&PREDICTION_SCHEMA));
    let texts = columns.iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()));
    let texts = texts.collect::<std::result::Result<_, _>>()?;
    RecordBatch::try_new(schema, texts)
}

/// Lists become text.
fn flattened(lists: &Schema) -> Schema {
    let flat = lists.fields().iter().map(|f| match f.data_type() {
        DataType::List(_) => Field::new(f.name(), DataType::Utf8, false),
        other => Field::new(f.name(), other.clone(), false),
    });
    schema(flat.collect::<Vec<_>>())
}

fn write_all(
    schema: SchemaRef,
    batches: impl Iterator<Item = std::result::Result<RecordBatch, ArrowError>>,
    format: Format,
    path: &Path,
) -> Result<()> {
    write_atomic(path, |file| {
        let mut sink = Sink { file: BufWriter::new(file), failure: None };
        fill(&mut sink, schema, batches, format).map_err(|other| {
            let source = sink.failure.take().unwrap_or_else(|| std::io::Error::other(other));
            DataError::Io { action: "write", path: path.into(), source }.into()
        })
    })
}

fn fill(
    sink: &mut Sink<'_>,
    schema: SchemaRef,
    batches: impl Iterator<Item = std::result::Result<RecordBatch, ArrowError>>,
    format: Format,
) -> std::result::Result<(), Box<dyn Error + Send + Sync>> {
    match format {
        Format::Parquet => {
            let zstd = Compression::ZSTD(ZstdLevel::default());
            // In the file's footer as well as in the Arrow schema: readers look in one or the other.
            let metadata = schema.metadata().iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
            let metadata = Some(metadata.collect()).filter(|pairs: &Vec<_>| !pairs.is_empty());
            let properties = WriterProperties::builder().set_compression(zstd).set_key_value_metadata(metadata).build();
            let mut writer = ArrowWriter::try_new(&mut *sink, schema, Some(properties))?;
            for batch in batches {
                writer.write(&batch?)?;
            }
            writer.close()?;
        }
        Format::Arrow => {
            let mut writer = arrow::ipc::writer::FileWriter::try_new(&mut *sink, &schema)?;
            for batch in batches {
                writer.write(&batch?)?;
            }
            writer.finish()?;
        }
        Format::Csv => {
            let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(&mut *sink);
            writer.write(&RecordBatch::new_empty(schema))?; // the header, also without rows
            for batch in batches {
                writer.write(&batch?)?;
            }
        }
        Format::Json => {
            let builder = arrow::json::WriterBuilder::new().with_explicit_nulls(true);
            let mut writer = builder.build::<_, arrow::json::writer::JsonArray>(&mut *sink);
            for batch in batches {
                writer.write(&batch?)?;
            }
            writer.finish()?;
        }
    }
    Ok(sink.flush()?)
}

/// A buffered file that remembers why the operating system refused a write. The writers wrap or merely quote that
/// reason, each in its own way, and "no space left" deserves its own hint.
struct Sink<'a> {
    file: BufWriter<&'a mut File>,
    failure: Option<std::io::Error>,
}

impl Sink<'_> {
    fn remember<T>(&mut self, outcome: std::io::Result<T>) -> std::io::Result<T> {
        outcome.map_err(|e| {
            let kind = e.kind();
            self.failure = Some(e);
            kind.into()
        })
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let outcome = self.file.write(bytes);
        self.remember(outcome)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let outcome = self.file.flush();
        self.remember(outcome)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_disk_is_reported_as_that_in_every_format() {
        let batch = to_record_batch(&[], &SweepFacts::default()).unwrap();
        for (name, format) in Format::NAMES {
            let mut full = File::options().write(true).open("/dev/full").unwrap();
            let mut sink = Sink { file: BufWriter::new(&mut full), failure: None };
            assert!(fill(&mut sink, batch.schema(), std::iter::once(Ok(batch.clone())), format).is_err());
            assert_eq!(sink.failure.unwrap().kind(), std::io::ErrorKind::StorageFull, "{name}");
        }
    }
}
