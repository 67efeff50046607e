//! The training examples of a step: those of a dataset in a seeded order, or examples that are drawn for it.

use crate::config::{Config, TrainConfig};
use crate::train::setup::Setup;
use anyhow::{Result, bail};
use data::{Dataset, DatasetInfo, EpochOrder, Example, Task, stream_rng};
use rand::RngExt;
use std::borrow::Cow;

/// How many lengths are drawn before a task counts as one without examples of a length.
const ATTEMPTS: u32 = 10_000;

/// What training learns from.
pub enum Training {
    /// The examples of a file, again in every epoch.
    Fixed(Box<Dataset>),
    /// New examples in every step (`train.fresh`), `per_epoch` of them in what is called an epoch.
    Fresh {
        /// The config's `task.train_examples`.
        per_epoch: usize,
    },
}

impl Training {
    /// Examples in an epoch.
    pub fn per_epoch(&self) -> usize {
        match self {
            Self::Fixed(examples) => examples.len(),
            Self::Fresh { per_epoch } => *per_epoch,
        }
    }
}

/// The examples of a step: some of `examples`.
pub struct StepExamples<'a> {
    /// The dataset that they are in.
    pub examples: Cow<'a, Dataset>,
    /// Their places in it.
    pub rows: Vec<u32>,
}

/// Gives every step its examples, a function of the run's config and the step.
pub struct Source<'a> {
    training: &'a Training,
    settings: &'a TrainConfig,
    task: &'a Task,
    data_seed: u64,
    per_epoch: u64,
    /// The order of examples in an epoch, by number.
    order: Option<(u64, EpochOrder)>,
    drawn: data::families::Examples<'a>,
}

impl<'a> Source<'a> {
    /// The source of a run.
    pub fn new(setup: &'a Setup<'a>) -> Self {
        let Setup { config, task, splits, .. } = setup;
        let (training, settings, data_seed) = (&splits.train, &config.train, config.task.data_seed);
        let per_epoch = settings.steps_per_epoch(training.per_epoch());
        let drawn = task.examples(data::Split::Train, data_seed);
        Self { training, settings, task, data_seed, per_epoch, order: None, drawn }
    }

    /// The examples of the step after `step` steps.
    ///
    /// # Errors
    /// None can be drawn, see [`check_fresh`].
    pub fn of_step(&mut self, step: u64) -> Result<StepExamples<'a>> {
        let size = self.settings.batch_size;
        match self.training {
            Training::Fixed(examples) => {
                let (epoch, index) = (step / self.per_epoch + 1, step % self.per_epoch);
                if self.order.as_ref().is_none_or(|(known, _)| *known != epoch) {
                    self.order = Some((epoch, EpochOrder::new(self.settings.seed, epoch, examples.len())));
                }
                let order = self.order.as_ref().map(|(_, order)| order.batch(index as usize, size));
                Ok(StepExamples { examples: Cow::Borrowed(&**examples), rows: order.unwrap_or_default().to_vec() })
            }
            Training::Fresh { .. } => {
                let mut examples = Dataset::new(DatasetInfo::of(self.task, self.data_seed));
                let first = step * size as u64;
                if self.settings.equal_lengths {
                    let equal = of_one_length(self.task, self.data_seed, step, first, size)?;
                    equal.iter().for_each(|example| examples.push(example.as_ref()));
                } else if let Some(outside) = self.task.family.outside() {
                    let (first, name) = (first as usize, data::Split::Train.name());
                    let drawn = outside.examples(name, self.data_seed, first..first + size)?;
                    drawn.iter().for_each(|example| examples.push(example.as_ref()));
                } else {
                    (first..first + size as u64).for_each(|i| examples.push((self.drawn)(i as usize).as_ref()));
                }
                Ok(StepExamples { examples: Cow::Owned(examples), rows: (0..size as u32).collect() })
            }
        }
    }

    /// The examples of a step in words.
    pub fn describe(&mut self, step: u64) -> String {
        match (self.training, self.of_step(step)) {
            (Training::Fixed(_), Ok(StepExamples { rows, .. })) => {
                let rows: Vec<String> = rows.iter().map(u32::to_string).collect();
                format!("the training examples {}", rows.join(", "))
            }
            (_, Ok(StepExamples { examples, .. })) => {
                let lengths: Vec<String> = examples.iter().map(|example| example.length.to_string()).collect();
                format!("examples of the lengths {}, drawn for it", lengths.join(", "))
            }
            (_, Err(error)) => format!("not drawn: {error:#}"),
        }
    }
}

/// The examples of a step that all have the same length, which is drawn uniformly among those of training that have
/// examples, as Delétang et al. (arXiv 2207.02098) draw theirs.
fn of_one_length(task: &Task, seed: u64, step: u64, first: u64, size: usize) -> Result<Vec<Example>> {
    let mut rng = stream_rng(seed, "length of a step", step);
    for _ in 0..ATTEMPTS {
        let length = rng.random_range(task.family.train_lengths());
        let draw = |index: u64| task.family.of_length(seed, index as usize, length);
        if let Some(examples) = (first..first + size as u64).map(draw).collect() {
            return Ok(examples);
        }
    }
    bail!(
        "train.equal_lengths is set, but {} draws no examples by length\n  \
         hint: leave it out; `pipeline data list` shows the tasks",
        task.name
    )
}

/// Whether the task can be trained on as the config says.
///
/// # Errors
/// `train.fresh` or `train.equal_lengths` are set for a task that draws no examples, or none by length.
pub fn check_fresh(config: &Config, task: &Task) -> Result<()> {
    if let Some(outside) = task.family.outside().filter(|_| config.train.fresh) {
        if !outside.is_endless() {
            bail!(
                "train.fresh is set, but the examples of {} are those of files\n  hint: leave it out, and train for several epochs",
                task.name
            );
        }
        outside.check(data::Split::Train.name(), config.task.data_seed, config.train.batch_size)?;
    }
    if config.train.equal_lengths {
        if task.auxiliary.is_some() {
            bail!("train.equal_lengths is set, but {} has auxiliary data, which has lengths of its own", task.name);
        }
        of_one_length(task, 0, 0, 0, 1)?;
    }
    Ok(())
}
