//! Sweeps over test lengths.

mod dataset;
pub(crate) mod execute;
mod journal;
pub(crate) mod lengths;
pub(crate) mod memory;
mod pass;
pub(crate) mod plan;
pub(crate) mod probe;
mod rounds;
mod setting;
mod tally;
mod work;

use crate::model::contract::Shapes;
use crate::model::fingerprint::fingerprint;
use crate::sweep::execute::execute;
use crate::sweep::journal::Journal;
use crate::sweep::plan::{Item, Job, pack};
use crate::sweep::probe::{Asked, probe};
use crate::sweep::rounds::{Furthest, Round, Tests, items, total_tokens};
use crate::sweep::setting::{Course, Setting};
use crate::sweep::tally::Tally;
use crate::sweep::work::{BatchScore, Work};
use crate::{EvalError, LengthResult, Lengths, Model, Probe, Progress, Result, SweepFacts, SweepResult};
use arrow::record_batch::RecordBatch;
use data::{Augmentation, Task};
use serde_json::json;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The most tracks that [`Sweep::until_width`] takes.
const MOST_TRACKS: usize = 100_000;
/// Sessions side by side each hold the weights; together they may take this many bytes.
const SESSION_BYTES: usize = 1 << 29;

/// A sweep of test lengths.
///
/// A *track* is a test sequence that goes on; its length-L test is its first L main tokens. A model that is causal and
/// whose positions do not depend on L gives the same output at each prefix's end as on the prefix alone, so one pass
/// over the longest answers all lengths ([`Plan::SinglePass`](crate::Plan::SinglePass)). Results do not depend on the
/// number of threads.
///
/// The exports of this project are known to be such models. Any other is probed before it runs ([`Self::probe`]), and
/// the properties it lacks decide the plan: it may have every length run on its own, in batches without padding, or
/// every sequence alone. A length at which the model does not run gets a status; the others get their scores.
///
/// ```no_run
/// use evaluators::{LoadOptions, Model, Sweep};
/// let mut model = Model::load("model.onnx".as_ref(), LoadOptions::default())?;
/// let table = Sweep::new(&mut model).lengths(1..=1000).run()?; // an Arrow record batch
/// # Ok::<(), evaluators::EvalError>(())
/// ```
pub struct Sweep<'a> {
    model: &'a mut Model,
    task: Option<&'a Task>,
    lengths: Lengths,
    samples: usize,
    until_width: Option<f64>,
    seed: u64,
    exhaustive: bool,
    probed: Option<Probe>,
    probe_tokens: usize,
    augmentation: Option<Augmentation>,
    loops: Option<u32>,
    train_max_length: Option<u32>,
    max_tokens: Option<usize>,
    workers: Option<usize>,
    keep_predictions: bool,
    journal: Option<PathBuf>,
    progress: Box<dyn FnMut(Progress) + 'a>,
    stop: Box<dyn FnMut() -> bool + 'a>,
}

impl<'a> Sweep<'a> {
    /// A sweep over the lengths 1 to 1000 of the task that the model names, with up to 64 tracks; the other methods
    /// change that.
    pub fn new(model: &'a mut Model) -> Self {
        Self {
            model,
            task: None,
            lengths: Lengths::from_values(1..=1000),
            samples: 64,
            until_width: None,
            seed: 0,
            exhaustive: false,
            probed: None,
            probe_tokens: 0,
            augmentation: None,
            loops: None,
            train_max_length: None,
            max_tokens: None,
            workers: None,
            keep_predictions: false,
            journal: None,
            progress: Box::new(|_| {}),
            stop: Box::new(|| false),
        }
    }

    /// The task, instead of the one that the model's metadata names.
    pub fn task(mut self, task: &'a Task) -> Self {
        self.task = Some(task);
        self
    }

    /// The lengths to score: a range, or parsed [`Lengths`]; up to [`Lengths::LONGEST`].
    pub fn lengths(mut self, lengths: impl Into<Lengths>) -> Self {
        self.lengths = lengths.into();
        self
    }

    /// Tracks per sweep, at least 1. Where the task has fewer different ones, all of them are used once; but where
    /// positions are drawn at random, the same track with other positions is another test.
    pub fn samples(mut self, samples: usize) -> Self {
        self.samples = samples.max(1);
        self
    }

    /// Takes further tracks for every length whose 95 % interval of the last accuracy is wider than this, doubling
    /// their number until it is narrow enough, the task has no more, or 100 000 were taken.
    pub fn until_width(mut self, width: Option<f64>) -> Self {
        self.until_width = width;
        self
    }

    /// Track number i and random positions are functions of (seed, i).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Run every length on its own even where one pass would do, and pad nothing.
    pub fn exhaustive(mut self, exhaustive: bool) -> Self {
        self.exhaustive = exhaustive;
        self
    }

    /// The properties of the model, instead of probing it: the result of [`Self::probe`] for another sweep on the same
    /// task, or [`Probe::trusted`].
    pub fn probed(mut self, probe: Option<Probe>) -> Self {
        self.probed = probe;
        self
    }

    /// Probes the model on sequences of at least this many tokens, besides those of the lengths: give the longest row
    /// of the datasets that the probe will be used for.
    pub fn probe_tokens(mut self, tokens: usize) -> Self {
        self.probe_tokens = tokens;
        self
    }

    /// How positions are made, overriding the model's metadata.
    pub fn augmentation(mut self, augmentation: Option<Augmentation>) -> Self {
        self.augmentation = augmentation;
        self
    }

    /// The longest length in training, which the column `in_distribution` follows, instead of what the model's metadata
    /// says, or else the task's settings.
    pub fn train_max_length(mut self, length: Option<u32>) -> Self {
        self.train_max_length = length;
        self
    }

    /// Passes of [`Self::run_dataset`]; by default 10 where positions are drawn at random, otherwise 1.
    pub fn loops(mut self, loops: Option<u32>) -> Self {
        self.loops = loops;
        self
    }

    /// The most tokens (rows × longest row) in one batch; a longer single sequence is a batch by itself. Bounds memory.
    /// By default 65 536 on a GPU, and on a CPU 2048, or 16 384 for models without states or attention.
    pub fn max_tokens(mut self, max_tokens: Option<usize>) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// Sessions side by side, each with its share of the threads and its own copy of the weights. By default one per
    /// CPU thread (fewer for models of more than a few megabytes and for sweeps of few batches) and one on a GPU.
    pub fn workers(mut self, workers: Option<usize>) -> Self {
        self.workers = workers;
        self
    }

    /// Keep the predictions on every sequence; memory grows with tracks × lengths².
    pub fn keep_predictions(mut self, keep: bool) -> Self {
        self.keep_predictions = keep;
        self
    }

    /// Keeps scores in this file while the sweep runs, and resumes a killed sweep with the same model, task and
    /// options; the result is the same. The caller removes the file once the result is stored. Sweeps that keep
    /// predictions start over.
    pub fn journal(mut self, path: Option<&Path>) -> Self {
        self.journal = path.map(Path::to_owned);
        self
    }

    /// Called after every batch with the progress of the sweep.
    pub fn progress(mut self, progress: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Ends the sweep with [`EvalError::Interrupted`] once `stop` says true. It is asked, in the thread that runs the
    /// sweep, before every pass of a probe, between the tests that are made to plan the batches, after every batch, and
    /// every 50 ms in between: often, so that it should be quick. With a journal, the next sweep goes on from there.
    pub fn stop_when(mut self, stop: impl FnMut() -> bool + 'a) -> Self {
        self.stop = Box::new(stop);
        self
    }

    /// Finds out which inputs the model's outputs depend on, by passes over sequences up to those of the longest
    /// length; `None` for an unchanged export of this project ([`Model::is_own_export`]), for which it is known.
    /// The same model always gets the same answer.
    ///
    /// Whether one pass can answer all lengths is tried at each number of tokens up to 64; from there to 1024 at all of
    /// them where the weights take at most 64 KiB, at every second up to 256 KiB, every fourth up to 1 MiB, every
    /// eighth up to 4 MiB, every 16th up to 16 MiB and every 32nd beyond; and at two dozen longer ones. Behaviour only
    /// between those stays unknown; [`Self::exhaustive`] needs no such trust.
    pub fn probe(mut self) -> Result<Option<Probe>> {
        let named = self.named_task()?;
        let task = self.task.or(named.as_ref()).ok_or_else(|| self.no_task())?;
        let longest = self.longest_tokens(task)?;
        Ok(Setting::new(self.model, task, self.augmentation, self.seed).and_then(|s| self.prepared(s, longest))?.probe)
    }

    /// Runs the sweep and returns the result table, one row per length.
    ///
    /// # Errors
    /// As [`Self::results`].
    pub fn run(self) -> Result<RecordBatch> {
        self.results()?.to_record_batch()
    }

    /// Runs the sweep.
    ///
    /// # Errors
    /// The model names no task, or its vocabulary differs from the task's; the task runs a program, which nobody has
    /// allowed ([`data::allow_commands`]); nothing says how its scalar positions are made; it runs at none of the
    /// lengths, or one is beyond [`Lengths::LONGEST`]. Otherwise, lengths that cannot be scored are not an error: their
    /// rows say why.
    pub fn results(mut self) -> Result<SweepResult> {
        let named = self.named_task()?;
        let task = self.task.or(named.as_ref()).ok_or_else(|| self.no_task())?;
        task.family.outside().map_or(Ok(()), |outside| outside.ready())?;
        let tokens = self.longest_tokens(task)?;
        let setting =
            Setting::new(self.model, task, self.augmentation, self.seed).and_then(|s| self.prepared(s, tokens))?;
        let lengths = self.lengths.clone();
        let course = setting.course(!task.family.prefix_closed(), self.exhaustive);
        let tests = Tests::new(&setting, lengths.as_slice(), self.seed);
        let mut ledger = Ledger {
            tally: Tally::new(tests.lengths.len()),
            journal: self.open_journal(task, &setting, course)?,
            progress: Progress { total_lengths: tests.lengths.len() as u64, ..Progress::default() },
        };

        let most = tests.supply();
        let mut tracks = 0..self.samples.min(most);
        let mut open: Vec<usize> = (0..tests.lengths.len()).collect(); // slots that want more tracks, ascending
        let mut furthest = Furthest::default();
        loop {
            let round = tests.round(tracks.clone(), open, &mut self.stop)?;
            furthest = furthest.max(round.furthest());
            self.run_round(&tests, course, &round, &mut ledger)?;

            let Some(width) = self.until_width else { break };
            open = round.open;
            open.retain(|&slot| ledger.tally.is_wide(slot, width));
            let next = tracks.end..(2 * tracks.end).min(most).min(MOST_TRACKS);
            if open.is_empty() || next.is_empty() {
                break;
            }
            tracks = next;
        }

        let mut tally = ledger.tally;
        let lengths = tests.results(course.plan, &tally, furthest, &mut self.stop)?;
        check_that_something_ran(&setting, &tally, &lengths)?;
        tally.predictions.sort_by_key(|p| (p.length, p.index));
        let facts = SweepFacts::new(self.model, task, "sweep");
        Ok(SweepResult { lengths, predictions: tally.predictions, facts })
    }

    /// Runs the batches of a round that the journal does not have, and books their scores.
    fn run_round(&mut self, tests: &Tests<'_>, course: Course, round: &Round, ledger: &mut Ledger) -> Result<()> {
        let Ledger { tally, journal, progress } = ledger;
        let items = items(course.plan, &round.asked, &round.reach);
        let total = total_tokens(course.plan, &round.asked, &round.reach);
        progress.total_tokens += total as u64;
        round.expected().for_each(|(slot, sequences)| tally.expect(slot, sequences));

        let report = &mut self.progress;
        let mut book = |outcome: BatchScore| {
            progress.tokens += outcome.tokens;
            progress.busy += outcome.busy;
            tally.add(outcome);
            progress.lengths = tally.finished();
            report(*progress);
            Ok(())
        };
        let longest = tests.lengths.last().map_or(0, |longest| *longest as usize);
        let budget = tests.setting.budget(course, self.max_tokens, total, longest);
        let mut batches = pack(items, budget).peekable();
        if let Some(journal) = journal {
            while let Some(outcome) = batches.peek().and_then(|batch| journal.take_over(mark(batch, &round.asked))) {
                batches.next();
                book(outcome)?;
            }
        }
        let work = tests.setting.work(budget, tests.lengths, round.sizes(tests.lengths), None, self.keep_predictions);
        let marks = Mutex::new(VecDeque::new()); // of the batches on their way
        let marks = || marks.lock().unwrap_or_else(PoisonError::into_inner);
        let batches = batches.inspect(|batch| marks().push_back(mark(batch, &round.asked)));
        let sink = |outcome: BatchScore| {
            if let (Some(mark), Some(journal)) = (marks().pop_front(), &mut *journal) {
                journal.record(mark, &outcome);
            }
            book(outcome)
        };
        let build = |item| tests.job(item, round);
        run_batches(self.model, &work, self.workers, batches, build, sink, &mut self.stop)
    }

    fn named_task(&self) -> Result<Option<Task>> {
        match (self.task, &self.model.info().task) {
            (None, Some(name)) => Ok(Some(Task::by_name(name)?)),
            _ => Ok(None),
        }
    }

    fn no_task(&self) -> EvalError {
        EvalError::NoTask { path: self.model.path().into() }
    }

    /// With the properties of the model on sequences of so many tokens, as given or probed now.
    fn prepared<'s>(&mut self, mut setting: Setting<'s>, longest: usize) -> Result<Setting<'s>> {
        setting.train_max_length = self.train_max_length.unwrap_or(setting.train_max_length);
        let tokens = longest.max(self.probe_tokens);
        let asked = Asked { tokens, rows: self.samples, max_tokens: self.max_tokens };
        let known = self.probed.take().filter(|known| known.tokens >= longest);
        setting.probe = match known {
            None if !self.model.is_own_export() => Some(probe(self.model, &setting, asked, &mut self.stop)?),
            None if self.model.info().causal == Some(false) => Some(Probe::in_both_directions()),
            known => known,
        };
        Ok(setting)
    }

    /// The tokens of the longest length.
    ///
    /// # Errors
    /// It is beyond [`Lengths::LONGEST`].
    fn longest_tokens(&self, task: &Task) -> Result<usize> {
        let longest = self.lengths.longest().unwrap_or(0);
        if longest > Lengths::LONGEST {
            let reason = format!("{longest} is longer than {}", Lengths::LONGEST);
            return Err(EvalError::Lengths { text: self.lengths.to_string(), reason });
        }
        let track = task.family.track(self.seed, 0, longest);
        Ok(track.header + longest as usize * track.stride)
    }

    fn open_journal(&self, task: &Task, setting: &Setting, course: Course) -> Result<Option<Journal>> {
        let model = self.model.fingerprint(); // a function may be another one the next time
        let Some((path, model)) = self.journal.as_deref().filter(|_| !self.keep_predictions).zip(model) else {
            return Ok(None);
        };
        // How much memory is free changes all the time; it is part of the sweep only where it leaves out lengths.
        let tokens = self.longest_tokens(task)?;
        let title = json!({
            "model": model,
            "logits": setting.interface.output.name,
            "runtime": ort::info(),
            "memory": setting.attention_limit.filter(|limit| *limit < tokens),
            "task": task.name,
            "lengths": fingerprint(self.lengths.as_slice().iter().flat_map(|l| l.to_le_bytes())),
            "samples": self.samples,
            "until_width": self.until_width,
            "seed": self.seed,
            "plan": format!("{course:?}"),
            "positions": format!("{:?}", setting.positions),
            "max_tokens": self.max_tokens,
            "iterations": self.model.iterations(),
            "provider": setting.provider.name(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        Journal::open(path, &title)
    }
}

/// A number that identifies the tests of a batch: its tracks, and which of the requested `lengths`.
fn mark(batch: &[Item], lengths: &[u32]) -> u64 {
    fingerprint(batch.iter().flat_map(|Item { index, span, tokens }| {
        let item = [*index as u64, *tokens as u64, span.len() as u64].into_iter();
        item.chain(lengths[span.clone()].iter().map(|length| u64::from(*length))).flat_map(u64::to_le_bytes)
    }))
}

/// A sweep without a single score is an error if the model failed to run.
fn check_that_something_ran(setting: &Setting<'_>, tally: &Tally, lengths: &[LengthResult]) -> Result<()> {
    let failed = |(slot, length): &(usize, &LengthResult)| {
        tally.failures[*slot].is_some() || setting.is_refusal(length.status())
    };
    if lengths.iter().any(|length| length.outcome.is_ok()) {
        return Ok(());
    }
    match lengths.iter().enumerate().find(failed) {
        None => Ok(()), // the task ends there, or the model says NaN
        Some((_, first)) => Err(EvalError::NothingRan {
            path: setting.path.clone(),
            lengths: lengths.len(),
            length: first.length,
            reason: first.status().to_owned(),
        }),
    }
}

/// Where the scores of a sweep are booked.
struct Ledger {
    tally: Tally,
    journal: Option<Journal>,
    progress: Progress,
}

/// Batches that there must be for each session: with fewer, opening it takes longer than it saves.
const BATCHES_PER_SESSION: usize = 8;

/// Runs batches on as many sessions as there are threads, or on fewer where there are few batches.
fn run_batches(
    model: &mut Model,
    work: &Work<'_>,
    workers: Option<usize>,
    mut batches: impl Iterator<Item = Vec<Item>> + Send,
    build: impl Fn(Item) -> Job + Sync,
    sink: impl FnMut(BatchScore) -> Result<()>,
    stop: &mut dyn FnMut() -> bool,
) -> Result<()> {
    let (most, each) = match (workers, work.provider) {
        (Some(workers), _) => (workers, 1),
        (None, provider) if provider.is_cpu() => {
            (model.threads().min(SESSION_BYTES / model.bytes().max(1)), BATCHES_PER_SESSION)
        }
        (None, _) => (1, 1),
    };
    let first: Vec<_> = batches.by_ref().take(most.max(1) * each).collect();
    if first.is_empty() {
        return Ok(());
    }
    let longest = first.iter().flatten().map(|item| item.tokens).max().unwrap_or(1); // the longest run first
    let tokens = work.budget.piece.map_or(longest, |piece| longest.min(piece));
    let shapes = Shapes { rows: work.budget.rows, tokens, interface: work.interface.clone() };
    let engines = model.engines((first.len() / each).max(1), &shapes)?;
    execute(work, engines, first.into_iter().chain(batches), build, sink, stop)
}
