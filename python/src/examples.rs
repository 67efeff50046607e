//! Examples: whole splits as tables, and batches as NumPy arrays.

use crate::calls::{Raised, Watch, released};
use crate::errors::{Failure, Kind};
use crate::table::Table;
use crate::task::Task;
use arrow::record_batch::RecordBatch;
use data::{Batch, Collation, EpochOrder, Example, PositionIds, PositionSampling, Split};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};

/// Examples that are made between two looks at Ctrl-C.
const GROUP: usize = 1 << 18;

/// How many examples a split has: `rows` of the caller, or all of the task's own.
fn rows_of(task: &data::Task, split: Split, rows: Option<usize>) -> Result<usize, Failure> {
    let own = task.rows(split, task.train_examples)?;
    match rows {
        None => Ok(own),
        Some(rows) if split == Split::Train || rows <= own => Ok(rows),
        Some(rows) => {
            let (task, split) = (&task.name, split.name());
            let text = format!(
                "task `{task}` has {own} examples in {split}, and {rows} were asked for\n  hint: train has no end"
            );
            Err(Failure::new(Kind::Argument, text))
        }
    }
}

/// The number of examples of a split.
#[pyfunction]
#[pyo3(signature = (task, split, rows=None))]
pub fn split_rows(py: Python<'_>, task: &Task, split: &str, rows: Option<usize>) -> PyResult<usize> {
    released(py, || rows_of(&task.task, split.parse()?, rows))
}

/// The first `rows` examples of a split, as a table.
#[pyfunction]
#[pyo3(signature = (task, split, rows=None, seed=0))]
pub fn examples(py: Python<'_>, task: &Task, split: &str, rows: Option<usize>, seed: u64) -> PyResult<Table> {
    let raised = Raised::default();
    let mut watch = Watch::new(None, raised.clone());
    let made = released(py, || -> Result<Vec<RecordBatch>, Failure> {
        let (task, split): (_, Split) = (&*task.task, split.parse()?);
        let rows = rows_of(task, split, rows)?;
        let outside = task.family.outside();
        outside.map_or(Ok(()), |outside| outside.check(split.name(), seed, rows))?;
        let mut batches = data::record_batches(task, split, seed, 0..rows.min(GROUP), rows)?;
        for start in (GROUP..rows).step_by(GROUP) {
            if !watch.goes_on(|| ()) {
                break;
            }
            batches.extend(data::record_batches(task, split, seed, start..rows.min(start + GROUP), rows)?);
        }
        Ok(batches)
    });
    Table::of(raised.or(made)?)
}

/// Memory that NumPy takes as it is, and may write to.
pub fn memory<'py, const N: usize, T: Copy>(
    py: Python<'py>,
    values: &[T],
    bytes: fn(T) -> [u8; N],
) -> PyResult<Bound<'py, PyByteArray>> {
    PyByteArray::new_with(py, values.len() * N, |out| {
        out.chunks_exact_mut(N).zip(values).for_each(|(out, value)| out.copy_from_slice(&bytes(*value)));
        Ok(())
    })
}

/// The examples of a split with these indices, padded into arrays `[batch, seq]`: that shape, and the memory of each
/// array, int64 but for positions that are float32.
#[pyfunction]
#[pyo3(signature = (task, split, indices, seed=0, pad_to=None, augmentation="none", position_seed=0, draw=0))]
#[allow(clippy::too_many_arguments)] // they are keywords on the other side
pub fn batch<'py>(
    py: Python<'py>,
    task: &Task,
    split: &str,
    indices: Vec<usize>,
    seed: u64,
    pad_to: Option<usize>,
    augmentation: &str,
    position_seed: u64,
    draw: u64,
) -> PyResult<(usize, usize, Bound<'py, PyDict>)> {
    let batch = released(py, || -> Result<Batch, Failure> {
        let (task, split): (_, Split) = (&*task.task, split.parse()?);
        let augmentation = augmentation.parse()?;
        let most = rows_of(task, split, None)?;
        if let Some(index) = indices.iter().find(|index| split != Split::Train && **index >= most) {
            rows_of(task, split, Some(index + 1))?;
        }
        let made: Vec<Example> = match task.family.outside() {
            None => {
                let make = task.examples(split, seed);
                indices.iter().map(|index| make(*index)).collect()
            }
            Some(outside) => {
                let mut found = Vec::with_capacity(indices.len());
                for index in &indices {
                    found.extend(outside.examples(split.name(), seed, *index..index + 1)?);
                }
                found
            }
        };
        let max_position_embeddings = task.max_position_embeddings;
        let positions = PositionSampling { augmentation, max_position_embeddings, seed: position_seed, draw };
        let collation = Collation { positions, pad_to };
        let rows =
            indices.iter().zip(&made).map(|(index, example)| (*index as u64 & u64::from(u32::MAX), example.as_ref()));
        Ok(Batch::collate_rows(rows, &task.vocabulary, &collation)?)
    })?;
    let arrays = PyDict::new(py);
    let integers = |values: &[i64]| memory(py, values, i64::to_ne_bytes);
    arrays.set_item("input_ids", integers(&batch.input_ids)?)?;
    arrays.set_item("labels", integers(&batch.labels)?)?;
    let positions = match &batch.position_ids {
        PositionIds::Integers(ids) => integers(ids)?,
        PositionIds::Scalars(ids) => memory(py, ids, f32::to_ne_bytes)?,
    };
    arrays.set_item("position_ids", positions)?;
    arrays.set_item("attention_mask", integers(&batch.attention_mask)?)?;
    Ok((batch.batch, batch.seq, arrays))
}

/// The order in which training visits the examples of an epoch: a permutation.
#[pyfunction]
pub fn epoch_order(py: Python<'_>, seed: u64, epoch: u64, examples: usize) -> PyResult<Vec<u32>> {
    if u32::try_from(examples).is_err() {
        let text = format!("an epoch of {examples} examples cannot be shuffled\n  hint: at most {} can be", u32::MAX);
        return Err(Failure::new(Kind::Argument, text).into());
    }
    released(py, || Ok::<_, Failure>(EpochOrder::new(seed, epoch, examples).batch(0, examples.max(1)).to_vec()))
}
