use crate::files::write_atomic;
use crate::{DataError, Example, ExampleRef, PAD, Split, Task};
use arrow::array::{Array, ArrayRef, AsArray, Int16Builder, ListArray, ListBuilder, UInt16Builder, UInt32Array};
use arrow::datatypes::{DataType, Field, Int16Type, Schema, SchemaRef, UInt16Type, UInt32Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock};

/// Raised whenever the same (task, seed) would give other examples than before.
pub const GENERATOR_VERSION: u32 = 1;

/// Rows per Arrow batch while writing and reading; bounds the memory next to the dataset itself.
pub(crate) const CHUNK: usize = 16_384;

/// The same bound for tokens: long examples come fewer at a time.
pub(crate) const CHUNK_TOKENS: usize = 4 << 20;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let list = |name, item| Field::new_list(name, Field::new_list_field(item, false), false);
    Arc::new(Schema::new(vec![
        list("input_ids", DataType::UInt16),
        list("labels", DataType::Int16),
        Field::new("length", DataType::UInt32, false),
    ]))
});

/// What a dataset file says of itself, in the Parquet key-value metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetInfo {
    /// The task the examples belong to.
    pub task: String,
    /// The tokens in id order.
    pub vocab: Vec<String>,
    /// The seed they were generated with.
    pub seed: u64,
    /// [`GENERATOR_VERSION`] of the writer; 0 for imported examples, whose seed is 0 as well.
    pub generator_version: u32,
}

impl DatasetInfo {
    /// The description of what `task` generates from `seed`.
    pub fn of(task: &Task, seed: u64) -> Self {
        Self {
            task: task.name.clone(),
            vocab: task.vocabulary.tokens().to_vec(),
            seed,
            generator_version: GENERATOR_VERSION,
        }
    }

    /// The description of examples of `task` that have come from elsewhere.
    pub fn imported(task: &Task) -> Self {
        Self { generator_version: 0, ..Self::of(task, 0) }
    }

    /// Whether the examples have come from elsewhere.
    pub fn is_imported(&self) -> bool {
        self.generator_version == 0
    }

    fn to_metadata(&self) -> Vec<KeyValue> {
        let vocab = serde_json::Value::from(self.vocab.clone()).to_string();
        vec![
            KeyValue::new("task".into(), self.task.clone()),
            KeyValue::new("vocab".into(), vocab),
            KeyValue::new("seed".into(), self.seed.to_string()),
            KeyValue::new("generator_version".into(), self.generator_version.to_string()),
        ]
    }

    fn from_metadata(metadata: Option<&Vec<KeyValue>>) -> Result<Self, String> {
        let get = |key: &str| {
            let entry = metadata.into_iter().flatten().find(|kv| kv.key == key);
            entry.and_then(|kv| kv.value.clone()).ok_or_else(|| format!("its metadata has no `{key}`"))
        };
        let number = |key: &str| get(key)?.parse::<u64>().map_err(|_| format!("its `{key}` is not a number"));
        Ok(Self {
            task: get("task")?,
            vocab: serde_json::from_str(&get("vocab")?).map_err(|_| "its `vocab` is not a JSON list".to_owned())?,
            seed: number("seed")?,
            generator_version: number("generator_version")? as u32,
        })
    }
}

/// Examples in memory, one allocation per column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    info: DatasetInfo,
    tokens: Vec<u16>,
    labels: Vec<i16>,
    ends: Vec<usize>,
    lengths: Vec<u32>,
}

impl Dataset {
    /// An empty dataset.
    pub fn new(info: DatasetInfo) -> Self {
        Self { info, tokens: vec![], labels: vec![], ends: vec![], lengths: vec![] }
    }

    /// A whole split of `task`, without going through a file.
    pub fn generated(task: &Task, split: Split, seed: u64, rows: usize) -> Self {
        let mut out = Self::new(DatasetInfo::of(task, seed));
        let examples = task.examples(split, seed);
        (0..rows).for_each(|i| out.push(examples(i).as_ref()));
        out
    }

    /// Appends an example.
    pub fn push(&mut self, example: ExampleRef<'_>) {
        self.tokens.extend_from_slice(example.input_ids);
        self.labels.extend_from_slice(example.labels);
        self.ends.push(self.tokens.len());
        self.lengths.push(example.length);
    }

    /// What the examples are.
    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Example number `index`; panics past the end, as slices do.
    pub fn get(&self, index: usize) -> ExampleRef<'_> {
        let range = index.checked_sub(1).map_or(0, |i| self.ends[i])..self.ends[index];
        ExampleRef { input_ids: &self.tokens[range.clone()], labels: &self.labels[range], length: self.lengths[index] }
    }

    /// All examples in order.
    pub fn iter(&self) -> impl Iterator<Item = ExampleRef<'_>> + Clone {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The longest input in tokens other than `<pad>`. Of the validation split, this is what the paper's code takes for the
    /// longest sequence seen in training.
    pub fn max_seen_len(&self) -> usize {
        let pad = self.info.vocab.iter().rposition(|token| token == PAD);
        let real = |e: ExampleRef| e.input_ids.iter().filter(|id| Some(usize::from(**id)) != pad).count();
        self.iter().map(real).max().unwrap_or(0)
    }

    /// Reads a file written by [`generate_split`] or [`crate::import()`], checking every row: column types, equal list
    /// lengths, ids and labels inside the vocabulary.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is no dataset.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        without_panics(path, || {
            let reader = Reader::open(path)?;
            let mut out = Self::new(reader.info.clone().map_err(|reason| invalid(path, reason))?);
            let vocab = out.info.vocab.len();
            reader.for_each_row(|row, example| {
                check_row(example, vocab).map_err(|reason| invalid(path, format!("row {row} {reason}")))?;
                out.push(example);
                Ok(())
            })?;
            Ok(out)
        })
    }
}

/// What is wrong with a row, for a vocabulary of `vocab` tokens.
pub(crate) fn check_row(example: ExampleRef<'_>, vocab: usize) -> Result<(), String> {
    let ExampleRef { input_ids, labels, .. } = example;
    if input_ids.len() != labels.len() {
        return Err(format!("has {} tokens but {} labels", input_ids.len(), labels.len()));
    }
    if let Some(id) = input_ids.iter().find(|id| usize::from(**id) >= vocab) {
        return Err(format!("has the token id {id}, but the vocabulary has {vocab} tokens"));
    }
    match labels.iter().find(|l| **l < -1 || (**l >= 0 && **l as usize >= vocab)) {
        Some(l) => Err(format!("has the label {l}, but the vocabulary has {vocab} tokens")),
        None => Ok(()),
    }
}

/// An open Parquet file whose columns are those of a dataset.
pub(crate) struct Reader<'a> {
    path: &'a Path,
    /// Its description, or what is missing in it.
    pub info: Result<DatasetInfo, String>,
    batches: ParquetRecordBatchReader,
}

impl<'a> Reader<'a> {
    pub fn open(path: &'a Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io("read", path))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, &e))?;
        check_columns(builder.schema()).map_err(|reason| invalid(path, reason))?;
        let info = DatasetInfo::from_metadata(builder.metadata().file_metadata().key_value_metadata());
        let batches = builder.with_batch_size(CHUNK).build().map_err(|e| damaged(path, &e))?;
        Ok(Self { path, info, batches })
    }

    /// Hands over every row with its number, unchecked but for nulls.
    pub fn for_each_row(
        self,
        mut visit: impl FnMut(usize, ExampleRef<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut at = 0;
        for batch in self.batches {
            let batch = batch.map_err(|e| damaged(self.path, &e))?;
            let (inputs, labels) = (batch.column(0).as_list::<i32>(), batch.column(1).as_list::<i32>());
            let lengths = batch.column(2).as_primitive::<UInt32Type>();
            let nulls = batch.columns()[..3].iter().map(|c| c.null_count()).sum::<usize>()
                + inputs.values().null_count()
                + labels.values().null_count();
            if nulls > 0 {
                return Err(invalid(self.path, format!("there are nulls after row {at}")));
            }
            for row in 0..batch.num_rows() {
                let (input_ids, labels) = (inputs.value(row), labels.value(row));
                let example = ExampleRef {
                    input_ids: input_ids.as_primitive::<UInt16Type>().values(),
                    labels: labels.as_primitive::<Int16Type>().values(),
                    length: lengths.value(row),
                };
                visit(at, example)?;
                at += 1;
            }
        }
        Ok(())
    }
}

fn damaged(path: &Path, reason: &dyn std::fmt::Display) -> DataError {
    DataError::Damaged { path: path.into(), reason: reason.to_string() }
}

fn invalid(path: &Path, reason: String) -> DataError {
    DataError::Invalid {
        path: path.into(),
        reason,
        hint: "datasets have the columns input_ids list<uint16>, labels list<int16>, length uint32; \
               `pipeline data generate --task <T> --force` writes one"
            .into(),
    }
}

/// The decoder of Parquet files is not written against all malicious or damaged bytes: a panic in it is the file's fault.
pub(crate) fn without_panics<T>(path: &Path, read: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(damaged(path, &"the decoder failed on its contents")))
}

/// Writes a split as Parquet (zstd), its first `rows` examples; the file appears whole or not at all. Examples are made on
/// all cores, a few thousand at a time. `progress` is told how many rows are done.
///
/// # Errors
/// The file cannot be written.
pub fn generate_split(
    task: &Task,
    split: Split,
    seed: u64,
    rows: usize,
    path: &Path,
    mut progress: impl FnMut(usize),
) -> Result<(), DataError> {
    let examples = &task.examples(split, seed);
    let size = (CHUNK_TOKENS / task.max_seq_len.max(1)).clamp(1, CHUNK);
    let chunk = |index: usize| index * size..((index + 1) * size).min(rows);
    let chunks = rows.div_ceil(size);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(chunks);
    write_parquet(path, &DatasetInfo::of(task, seed), |writer| {
        std::thread::scope(|scope| {
            // Thread t makes the chunks t, t + threads, …; taking from each in turn keeps their order.
            let start = |thread: usize| {
                let (sender, receiver) = sync_channel(1);
                scope.spawn(move || {
                    let mut batches =
                        (thread..chunks).step_by(threads).map(|c| to_record_batch(chunk(c).map(examples)));
                    batches.try_for_each(|batch| sender.send(batch)) // fails once nobody listens any more
                });
                receiver
            };
            let receivers: Vec<_> = (0..threads).map(start).collect();
            for index in 0..chunks {
                let gone = |_| ArrowError::ComputeError("a generating thread is gone".into());
                let batch = receivers[index % threads].recv().map_err(gone);
                writer.write(batch.flatten())?;
                progress(chunk(index).end);
            }
            Ok(())
        })
    })
}

/// Writes a Parquet file of examples through `fill`; it appears whole or not at all.
pub(crate) fn write_parquet(
    path: &Path,
    info: &DatasetInfo,
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(info.to_metadata()))
        .set_created_by(format!("inductive-counting pipeline, generator {GENERATOR_VERSION}"))
        .build();
    let io = |e| DataError::io("write", path)(into_io(e));
    write_atomic(path, |file| {
        let writer = ArrowWriter::try_new(file, SCHEMA.clone(), Some(properties)).map_err(io)?;
        let mut writer = Writer { writer, path };
        fill(&mut writer)?;
        writer.writer.close().map(|_| ()).map_err(io)
    })
}

/// An open Parquet file of examples.
pub(crate) struct Writer<'a> {
    writer: ArrowWriter<&'a mut File>,
    path: &'a Path,
}

impl Writer<'_> {
    /// Appends what [`to_record_batch`] gave.
    pub fn write(&mut self, batch: Result<RecordBatch, ArrowError>) -> Result<(), DataError> {
        let written = batch.map_err(ParquetError::from).and_then(|batch| self.writer.write(&batch));
        written.map_err(|e| DataError::io("write", self.path)(into_io(e)))
    }
}

/// The operating system's error inside a Parquet error, so that "no space left" is reported as that.
fn into_io(error: ParquetError) -> std::io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => *io,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other),
    }
}

pub(crate) fn to_record_batch(examples: impl Iterator<Item = Example>) -> Result<RecordBatch, ArrowError> {
    let item = |t| Arc::new(Field::new_list_field(t, false));
    let mut inputs = ListBuilder::new(UInt16Builder::new()).with_field(item(DataType::UInt16));
    let mut labels = ListBuilder::new(Int16Builder::new()).with_field(item(DataType::Int16));
    let mut lengths = Vec::new();
    for example in examples {
        inputs.values().append_slice(&example.input_ids);
        inputs.append(true);
        labels.values().append_slice(&example.labels);
        labels.append(true);
        lengths.push(example.length);
    }
    let (inputs, labels): (ListArray, ListArray) = (inputs.finish(), labels.finish());
    let columns: Vec<ArrayRef> = vec![Arc::new(inputs), Arc::new(labels), Arc::new(UInt32Array::from(lengths))];
    RecordBatch::try_new(SCHEMA.clone(), columns)
}

/// The columns must have our names, order and types; nullability may differ (other writers mark everything nullable).
fn check_columns(schema: &Schema) -> Result<(), String> {
    let describe = |f: &Field| match f.data_type() {
        DataType::List(item) => format!("{} list<{}>", f.name(), item.data_type()),
        other => format!("{} {other}", f.name()),
    };
    let found: Vec<String> = schema.fields().iter().map(|f| describe(f)).collect();
    let wanted: Vec<String> = SCHEMA.fields().iter().map(|f| describe(f)).collect();
    if found.len() < wanted.len() || found[..wanted.len()] != wanted[..] {
        return Err(format!("its columns are [{}]", found.join(", ")));
    }
    Ok(())
}
