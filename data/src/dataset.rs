use crate::files::write_atomic;
use crate::{DataError, Example, ExampleRef, Split, Task};
use arrow::array::{Array, ArrayRef, AsArray, Int16Builder, ListArray, ListBuilder, UInt16Builder, UInt32Array};
use arrow::datatypes::{DataType, Field, Int16Type, Schema, SchemaRef, UInt16Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Raised whenever the same (task, seed) would give other examples than before.
pub const GENERATOR_VERSION: u32 = 1;

/// Rows per Arrow batch while writing and reading; bounds the memory next to the dataset itself.
const CHUNK: usize = 16_384;

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
    /// [`GENERATOR_VERSION`] of the writer.
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
        (0..rows).for_each(|i| out.push(task.family.example(split, seed, i).as_ref()));
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
    pub fn iter(&self) -> impl Iterator<Item = ExampleRef<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Reads a file written by [`generate_split`], checking every row: column types, equal list lengths, ids and
    /// labels inside the vocabulary.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let damaged = |e: &dyn std::fmt::Display| DataError::Damaged { path: path.into(), reason: e.to_string() };
        let invalid = |reason: String| DataError::Invalid {
            path: path.into(),
            reason,
            hint: "datasets have the columns input_ids list<uint16>, labels list<int16>, length uint32; \
                   `pipeline data generate --task <T> --force` writes one"
                .into(),
        };
        let file = File::open(path).map_err(DataError::io("read", path))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(&e))?;
        check_columns(builder.schema()).map_err(invalid)?;
        let info =
            DatasetInfo::from_metadata(builder.metadata().file_metadata().key_value_metadata()).map_err(invalid)?;
        let mut out = Self::new(info);
        for batch in builder.with_batch_size(CHUNK).build().map_err(|e| damaged(&e))? {
            out.append(&batch.map_err(|e| damaged(&e))?).map_err(invalid)?;
        }
        Ok(out)
    }

    fn append(&mut self, batch: &RecordBatch) -> Result<(), String> {
        if batch.columns().iter().any(|c| c.null_count() > 0) {
            return Err(format!("there are nulls after row {}", self.len()));
        }
        let (inputs, labels) = (batch.column(0).as_list::<i32>(), batch.column(1).as_list::<i32>());
        let lengths = batch.column(2).as_primitive::<UInt32Type>();
        for row in 0..batch.num_rows() {
            let (input, label) = (inputs.value(row), labels.value(row));
            let input = input.as_primitive::<UInt16Type>().values();
            let label = label.as_primitive::<Int16Type>().values();
            let (at, vocab) = (self.len(), self.info.vocab.len());
            if input.len() != label.len() {
                return Err(format!("row {at} has {} tokens but {} labels", input.len(), label.len()));
            }
            if let Some(id) = input.iter().find(|id| usize::from(**id) >= vocab) {
                return Err(format!("row {at} has the token id {id}, but the vocabulary has {vocab} tokens"));
            }
            if let Some(l) = label.iter().find(|l| **l < -1 || (**l >= 0 && **l as usize >= vocab)) {
                return Err(format!("row {at} has the label {l}, but the vocabulary has {vocab} tokens"));
            }
            self.push(ExampleRef { input_ids: input, labels: label, length: lengths.value(row) });
        }
        Ok(())
    }
}

/// Writes a split as Parquet (zstd), `rows` examples streamed in chunks; the file appears whole or not at all.
/// `progress` is told how many rows are done.
pub fn generate_split(
    task: &Task,
    split: Split,
    seed: u64,
    rows: usize,
    path: &Path,
    mut progress: impl FnMut(usize),
) -> Result<(), DataError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(DatasetInfo::of(task, seed).to_metadata()))
        .set_created_by(format!("inductive-counting pipeline, generator {GENERATOR_VERSION}"))
        .build();
    let io = |e: parquet::errors::ParquetError| DataError::io("write", path)(into_io(e));
    write_atomic(path, |file| {
        let mut writer = ArrowWriter::try_new(file, SCHEMA.clone(), Some(properties)).map_err(io)?;
        for start in (0..rows).step_by(CHUNK) {
            let end = (start + CHUNK).min(rows);
            let examples = (start..end).map(|i| task.family.example(split, seed, i));
            writer.write(&to_record_batch(examples).map_err(|e| io(e.into()))?).map_err(io)?;
            progress(end);
        }
        writer.close().map(|_| ()).map_err(io)
    })
}

/// The operating system's error inside a Parquet error, so that "no space left" is reported as that.
fn into_io(error: parquet::errors::ParquetError) -> std::io::Error {
    match error {
        parquet::errors::ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => *io,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other),
    }
}

fn to_record_batch(examples: impl Iterator<Item = Example>) -> Result<RecordBatch, arrow::error::ArrowError> {
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
