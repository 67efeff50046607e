//! The Parquet files of examples that this program writes.

use super::{CHUNK, CHUNK_TOKENS, DatasetInfo, GENERATOR_VERSION};
use crate::files::write_atomic;
use crate::{DataError, Example, Split, Task};
use arrow::array::{ArrayRef, Int32Array, ListArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

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
    let size = chunk_size(task);
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
    let (mut inputs, mut labels, mut ends, mut lengths) = (Vec::new(), Vec::new(), vec![0], Vec::new());
    for example in examples {
        inputs.extend(example.input_ids.iter().map(|id| i32::from(*id)));
        labels.extend(example.labels.iter().map(|label| i32::from(*label)));
        let too_many = |_| ArrowError::OffsetOverflowError(inputs.len());
        ends.push(i32::try_from(inputs.len()).map_err(too_many)?);
        lengths.push(i32::try_from(example.length).unwrap_or(i32::MAX)); // as many tokens as fit into no memory
    }
    let ends = OffsetBuffer::new(ScalarBuffer::from(ends));
    let list = |values: Vec<i32>| {
        let item = Arc::new(Field::new_list_field(DataType::Int32, false));
        ListArray::try_new(item, ends.clone(), Arc::new(Int32Array::from(values)), None)
    };
    let columns: Vec<ArrayRef> =
        vec![Arc::new(list(inputs)?), Arc::new(list(labels)?), Arc::new(Int32Array::from(lengths))];
    RecordBatch::try_new(SCHEMA.clone(), columns)
}

/// Examples of a split as Arrow batches in memory, in the columns and with the metadata of the files of
/// [`generate_split`]: those whose index is in `rows`, in this order. They are made on all cores.
///
/// Of a split that ends, only the examples that [`Task::rows`] counts are meant to be used; `total` is the number of
/// examples that the metadata states.
///
/// # Errors
/// The examples come from outside, and cannot be had or are wrong.
pub fn record_batches(
    task: &Task,
    split: Split,
    seed: u64,
    rows: Range<usize>,
    total: usize,
) -> Result<Vec<RecordBatch>, DataError> {
    let sizes = [("split", split.name().to_owned()), ("examples", total.to_string())];
    let metadata = DatasetInfo::of(task, seed).to_metadata(&sizes);
    let schema = Arc::new(SCHEMA.as_ref().clone().with_metadata(metadata));
    let outside = task.family.outside();
    let size = chunk_size(task);
    let examples = &task.examples(split, seed);
    let make = |index: usize| -> Result<RecordBatch, DataError> {
        let chunk = rows.start + index * size..(rows.start + (index + 1) * size).min(rows.end);
        let made = match outside {
            None => to_record_batch(chunk.map(examples)),
            Some(outside) => to_record_batch(outside.examples(split.name(), seed, chunk)?.into_iter()),
        };
        let named = made.and_then(|batch| batch.with_schema(schema.clone()));
        named.map_err(|error| DataError::io("hold", Path::new("the examples"))(std::io::Error::other(error)))
    };
    let chunks = rows.len().div_ceil(size).max(1); // no examples are a batch, too: it has the columns
    let (next, made) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let made_so_far = || made.lock().unwrap_or_else(PoisonError::into_inner);
    crate::threads::share(crate::threads::available().min(chunks), || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= chunks {
                break;
            }
            let batch = make(index);
            let failed = batch.is_err();
            made_so_far().insert(index, batch);
            if failed {
                next.store(chunks, Ordering::Relaxed);
            }
        }
    });
    made.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// Examples that are made at a time, of which each may be as long as the task's longest.
fn chunk_size(task: &Task) -> usize {
    let most = if task.family.outside().is_some() { OUTSIDE } else { CHUNK };
    (CHUNK_TOKENS / task.max_seq_len.max(1)).clamp(1, most)
}
