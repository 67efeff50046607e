//! The Parquet files of examples that this program writes.

use super::{CHUNK, CHUNK_TOKENS, DatasetInfo, GENERATOR_VERSION};
use crate::files::write_atomic;
use crate::{DataError, Example, Split, Task};
use arrow::array::{ArrayRef, Int32Array, Int32Builder, ListArray, ListBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let list = |name, item| Field::new_list(name, Field::new_list_field(item, false), false);
    Arc::new(Schema::new(vec![
        list("input_ids", DataType::Int32),
        list("labels", DataType::Int32),
        Field::new("length", DataType::Int32, false),
    ]))
});

/// Writes a split as Parquet (zstd), its first `rows` examples; the file appears whole or not at all. Examples are made
/// on all cores, a few thousand at a time. `progress` is called with the number of rows done.
///
/// # Errors
/// The file cannot be written; or the examples come from outside, and cannot be had or are wrong.
pub fn generate_split(
    task: &Task,
    split: Split,
    seed: u64,
    rows: usize,
    path: &Path,
    mut progress: impl FnMut(usize),
) -> Result<(), DataError> {
    let outside = task.family.outside();
    outside.map_or(Ok(()), |outside| outside.check(split.name(), seed, rows))?;
    let examples = &task.examples(split, seed);
    let size = (CHUNK_TOKENS / task.max_seq_len.max(1)).clamp(1, if outside.is_some() { OUTSIDE } else { CHUNK });
    let chunk = |index: usize| index * size..((index + 1) * size).min(rows);
    let chunks = rows.div_ceil(size);
    let threads = crate::threads::available().min(chunks);
    let make = &|index: usize| match outside {
        None => Ok(to_record_batch(chunk(index).map(examples))),
        Some(outside) => Ok(to_record_batch(outside.examples(split.name(), seed, chunk(index))?.into_iter())),
    };
    let sizes = [("split", split.name().to_owned()), ("examples", rows.to_string())];
    write_parquet(path, &DatasetInfo::of(task, seed), &sizes, |writer| {
        std::thread::scope(|scope| {
            // Thread t makes the chunks t, t + threads, …; taking from each in turn keeps their order. The chunks of a
            // thread that could not be started are made here, in their turn.
            let start = |thread: usize| {
                let (sender, receiver) = sync_channel(1);
                let work = move || {
                    let mut batches = (thread..chunks).step_by(threads).map(make);
                    batches.try_for_each(|batch| sender.send(batch)) // fails once nobody listens any more
                };
                crate::threads::spawn(scope, work).ok().map(|_| receiver)
            };
            let receivers: Vec<_> = (0..threads).map(start).collect();
            for index in 0..chunks {
                let gone = |_| Ok(Err(ArrowError::ComputeError("a generating thread is gone".into())));
                let batch = match &receivers[index % threads] {
                    Some(receiver) => receiver.recv().unwrap_or_else(gone),
                    None => make(index),
                };
                writer.write(batch?)?;
                progress(chunk(index).end);
            }
            Ok(())
        })
    })
}

/// Examples that are asked for at a time where they come from outside.
const OUTSIDE: usize = 1000;

/// Writes a Parquet file of examples through `fill`, with `more` in its metadata; it appears whole or not at all.
pub(crate) fn write_parquet(
    path: &Path,
    info: &DatasetInfo,
    more: &[(&str, String)],
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let metadata = info.to_metadata(more);
    let schema = SCHEMA.as_ref().clone().with_metadata(metadata.clone());
    let entries = metadata.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(entries))
        .set_created_by(format!("inductive-counting pipeline, generator {GENERATOR_VERSION}"))
        .build();
    let io = |e| DataError::io("write", path)(into_io(e));
    write_atomic(path, |file| {
        let writer = ArrowWriter::try_new(file, Arc::new(schema), Some(properties)).map_err(io)?;
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
    /// Appends a batch of [`to_record_batch`].
    pub fn write(&mut self, batch: Result<RecordBatch, ArrowError>) -> Result<(), DataError> {
        let written = batch.map_err(ParquetError::from).and_then(|batch| self.writer.write(&batch));
        written.map_err(|e| DataError::io("write", self.path)(into_io(e)))
    }
}

/// The operating system's error inside a Parquet error, so that "no space left" is reported as such.
fn into_io(error: ParquetError) -> std::io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => *io,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other),
    }
}

/// Examples as the columns of such a file.
pub(crate) fn to_record_batch(examples: impl Iterator<Item = Example>) -> Result<RecordBatch, ArrowError> {
    let list = || {
        let item = Arc::new(Field::new_list_field(DataType::Int32, false));
        ListBuilder::new(Int32Builder::new()).with_field(item)
    };
    let (mut inputs, mut labels, mut lengths) = (list(), list(), Vec::new());
    for example in examples {
        inputs.values().extend(example.input_ids.iter().map(|id| Some(i32::from(*id))));
        inputs.append(true);
        labels.values().extend(example.labels.iter().map(|label| Some(i32::from(*label))));
        labels.append(true);
        lengths.push(i32::try_from(example.length).unwrap_or(i32::MAX)); // as many tokens as fit into no memory
    }
    let (inputs, labels): (ListArray, ListArray) = (inputs.finish(), labels.finish());
    let columns: Vec<ArrayRef> = vec![Arc::new(inputs), Arc::new(labels), Arc::new(Int32Array::from(lengths))];
    RecordBatch::try_new(SCHEMA.clone(), columns)
}
