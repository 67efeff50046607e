//! Sweeps over test lengths, and scores of splits.

use crate::calls::{Raised, Watch, released};
use crate::errors::{Failure, Kind};
use crate::model::Model;
use crate::table::Table;
use crate::task::Task;
use arrow::record_batch::RecordBatch;
use data::{Augmentation, Dataset};
use evaluators::{
    DatasetResult, Lengths, Progress, Sweep, SweepResult, predictions_to_record_batch, totals_to_record_batch,
};
use pyo3::prelude::*;
use std::cell::Cell;
use std::path::PathBuf;

/// Options that sweeps and scores share: those of `pipeline eval`, by the same names.
#[derive(FromPyObject, Clone)]
#[pyo3(from_item_all)]
pub struct Options {
    samples: usize,
    until_width: Option<f64>,
    seed: u64,
    exhaustive: bool,
    predictions: bool,
    augmentation: Option<String>,
    loops: Option<u32>,
    max_tokens: Option<usize>,
    workers: Option<usize>,
    train_max_length: Option<u32>,
}

impl Options {
    fn check(&self) -> Result<Option<Augmentation>, Failure> {
        let wrong = |text: String| Err(Failure::new(Kind::Argument, text));
        if let Some(width) = self.until_width.filter(|width| !(*width > 0.0 && *width < 1.0)) {
            return wrong(format!("until_width {width} must be between 0 and 1\n  hint: 0.01 to 0.5 make sense"));
        }
        let counts = [("max_tokens", self.max_tokens), ("workers", self.workers), ("samples", Some(self.samples))];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == Some(0)) {
            return wrong(format!("{name} is 0\n  hint: it is at least 1"));
        }
        Ok(self.augmentation.as_deref().map(str::parse).transpose()?)
    }
}

/// What runs: a model on a task, and whom to tell.
struct Call<'a> {
    model: &'a Model,
    task: &'a data::Task,
    options: Options,
    raised: Raised,
    callback: Option<Py<PyAny>>,
}

impl Call<'_> {
    /// Runs `then` on the sweep as the options say; its progress is told, and Ctrl-C and exceptions end it.
    fn run<T>(self, then: impl FnOnce(Sweep<'_>) -> evaluators::Result<T>) -> Result<T, Failure> {
        let options = &self.options;
        let augmentation = options.check()?;
        let last = Cell::new(Progress::default());
        let now = |p: Progress| (p.tokens, p.total_tokens, p.lengths, p.total_lengths);
        let mut watch = Watch::new(self.callback, self.raised);
        let mut model = self.model.lock();
        let sweep = Sweep::new(&mut model)
            .task(self.task)
            .samples(options.samples)
            .until_width(options.until_width)
            .seed(options.seed)
            .exhaustive(options.exhaustive)
            .augmentation(augmentation)
            .loops(options.loops)
            .max_tokens(options.max_tokens)
            .workers(options.workers)
            .keep_predictions(options.predictions)
            .train_max_length(options.train_max_length)
            .progress(|progress| last.set(progress))
            .stop_when(|| !watch.goes_on(|| now(last.get())));
        Ok(then(sweep)?)
    }
}

/// Sweeps lengths: the result table, and the predictions where they are asked for.
#[pyfunction]
#[pyo3(signature = (model, task, lengths, options, callback=None))]
pub fn sweep(
    py: Python<'_>,
    model: &Model,
    task: &Task,
    lengths: LengthList,
    options: Options,
    callback: Option<Py<PyAny>>,
) -> PyResult<(Table, Option<Table>)> {
    let (keep, raised) = (options.predictions, model.raised.clone());
    let call = Call { model, task: &task.task, options, raised: raised.clone(), callback };
    let swept = released(py, || -> Result<_, Failure> {
        let lengths = lengths.read()?;
        let found: SweepResult = call.run(|sweep| sweep.lengths(lengths).results())?;
        let predictions = keep.then(|| predictions_to_record_batch(&found.predictions)).transpose()?;
        Ok((found.to_record_batch()?, predictions))
    });
    let (table, predictions) = raised.or(swept)?;
    Ok((Table::of(vec![table])?, predictions.map(|predictions| Table::of(vec![predictions])).transpose()?))
}

/// Scores a split: by length, and as a whole.
#[pyfunction]
#[pyo3(signature = (model, task, split, options, datasets, callback=None))]
pub fn score(
    py: Python<'_>,
    model: &Model,
    task: &Task,
    split: &str,
    options: Options,
    datasets: PathBuf,
    callback: Option<Py<PyAny>>,
) -> PyResult<(Table, Table, Option<Table>)> {
    let (keep, raised) = (options.predictions, model.raised.clone());
    let call = Call { model, task: &task.task, options, raised: raised.clone(), callback };
    let scored = released(py, || -> Result<_, Failure> {
        let (examples, name): (Dataset, String) = pipeline::read_split(&datasets, call.task, split)?;
        let found: DatasetResult = call.run(|sweep| sweep.run_dataset(&examples, &name))?;
        let predictions = keep.then(|| predictions_to_record_batch(&found.by_length.predictions)).transpose()?;
        let total: RecordBatch = totals_to_record_batch(std::slice::from_ref(&found))?;
        Ok((total, found.by_length.to_record_batch()?, predictions))
    });
    let (total, by_length, predictions) = raised.or(scored)?;
    let table = |batch| Table::of(vec![batch]);
    Ok((table(total)?, table(by_length)?, predictions.map(table).transpose()?))
}

/// Lengths: `1..1000` in text, or numbers.
#[derive(FromPyObject)]
pub enum LengthList {
    /// As on the command line.
    Text(String),
    /// Numbers.
    Numbers(Vec<i64>),
}

impl LengthList {
    fn read(&self) -> Result<Lengths, Failure> {
        match self {
            Self::Text(text) => Ok(text.parse()?),
            Self::Numbers(numbers) => {
                let wrong = |reason: String| {
                    let hint = "range(1, 1001) is 1 to 1000, [10, 50, 100] these three, \"1..1000\" both ends included";
                    Failure::new(Kind::Argument, format!("cannot read the lengths: {reason}\n  hint: {hint}"))
                };
                if numbers.is_empty() {
                    return Err(wrong("there are none".into()));
                }
                let length = |number: &i64| {
                    u32::try_from(*number)
                        .ok()
                        .filter(|n| *n > 0)
                        .ok_or_else(|| wrong(format!("{number} is no length")))
                };
                Ok(Lengths::from_values(numbers.iter().map(length).collect::<Result<Vec<u32>, _>>()?))
            }
        }
    }
}
