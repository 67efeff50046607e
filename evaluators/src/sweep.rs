use crate::execute::{Outcome, Work, execute};
use crate::journal::Journal;
use crate::model::{Shapes, fingerprint};
use crate::plan::{Item, Job, pack};
use crate::setting::Setting;
use crate::tally::{Mean, Tally};
use crate::{
    DatasetResult, EvalError, LengthResult, Lengths, Model, Plan, Progress, Provider, Result, Score, SweepFacts,
    SweepResult,
};
use arrow::record_batch::RecordBatch;
use data::{Augmentation, Dataset, Task};
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The original's tester averages losses over batches of this many examples.
const LOSS_BATCH: usize = 32;
/// Passes over a dataset where positions are drawn at random.
const RANDOM_LOOPS: u32 = 10;
/// [`Sweep::until_width`] never takes more tracks than this.
const MOST_TRACKS: usize = 100_000;
/// Sessions side by side each hold the weights; together they may take this many bytes.
const SESSION_BYTES: usize = 1 << 29;

/// A sweep of test lengths.
///
/// A *track* is a test sequence that goes on; its length-L test is its first L main tokens. A model that is causal and
/// whose positions do not depend on L gives at each prefix's end what it would give on the prefix alone, so one pass
/// over the longest answers all lengths ([`Plan::SinglePass`]). Results do not depend on the number of threads.
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
    augmentation: Option<Augmentation>,
    loops: Option<u32>,
    max_tokens: Option<usize>,
    workers: Option<usize>,
    keep_predictions: bool,
    journal: Option<PathBuf>,
    progress: Box<dyn FnMut(Progress) + 'a>,
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
            augmentation: None,
            loops: None,
            max_tokens: None,
            workers: None,
            keep_predictions: false,
            journal: None,
            progress: Box::new(|_| {}),
        }
    }

    /// The task, instead of the one that the model's metadata names.
    pub fn task(mut self, task: &'a Task) -> Self {
        self.task = Some(task);
        self
    }

    /// The lengths to score: a range, or parsed [`Lengths`].
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

    /// Takes further tracks for every length whose 95 % interval of the last accuracy is wider than this, doubling their
    /// number until it is narrow enough, the task has no more, or 100 000 were taken.
    pub fn until_width(mut self, width: Option<f64>) -> Self {
        self.until_width = width;
        self
    }

    /// Track number i and random positions are functions of (seed, i).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Run every length on its own even where one pass would do.
    pub fn exhaustive(mut self, exhaustive: bool) -> Self {
        self.exhaustive = exhaustive;
        self
    }

    /// How positions are made, instead of what the model's metadata says.
    pub fn augmentation(mut self, augmentation: Option<Augmentation>) -> Self {
        self.augmentation = augmentation;
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

    /// Keep what the model said on every sequence; memory grows with tracks × lengths².
    pub fn keep_predictions(mut self, keep: bool) -> Self {
        self.keep_predictions = keep;
        self
    }

    /// Keeps what is scored in this file while the sweep runs, and takes up what a killed sweep with the same model,
    /// task and options left there; the result is the same. Whoever has stored the result removes the file. Sweeps that
    /// keep predictions start anew.
    pub fn journal(mut self, path: Option<&Path>) -> Self {
        self.journal = path.map(Path::to_owned);
        self
    }

    /// Is told after every batch how far the sweep is.
    pub fn progress(mut self, progress: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Box::new(progress);
        self
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
    /// The model names no task or has another vocabulary than it; nothing says how its scalar positions are made; a pass
    /// fails. Lengths that cannot be scored are no error: their rows say why.
    pub fn results(mut self) -> Result<SweepResult> {
        let named = self.named_task()?;
        let task = self.task.or(named.as_ref()).ok_or_else(|| self.no_task())?;
        let setting = Setting::new(self.model, task, self.augmentation, self.seed)?;
        let lengths = self.lengths.as_slice().to_vec();
        let longest = self.lengths.longest().unwrap_or(0);
        let family = task.family.as_ref();
        let plan = setting.plan(self.exhaustive || !family.prefix_closed());
        let seed = self.seed;
        // Where positions are drawn, a track repeats with other positions.
        let distinct = family.distinct_tracks();
        let supply = if setting.positions.augmentation.is_random() { None } else { distinct };
        let number = |index: usize| distinct.map_or(index, |n| index % n.max(1));
        let track = |index: usize| family.track(seed, number(index), longest);
        let test = |index: usize, length: u32| family.test(seed, number(index), length);
        let mut journal = self.open_journal(task, &setting, plan)?;
        let mut tally = Tally::new(lengths.len());
        let mut progress = Progress { total_lengths: lengths.len() as u64, ..Progress::default() };

        let most = supply.unwrap_or(usize::MAX);
        let mut tracks = 0..self.samples.min(most);
        let mut open: Vec<usize> = (0..lengths.len()).collect(); // slots that want more tracks, ascending
        let mut furthest = (0, 0); // how many of the lengths, and which track reaches them
        loop {
            // A first walk over the tracks, which cost little next to the model: which of the lengths each has a test of.
            let asked: Vec<u32> = open.iter().map(|&slot| lengths[slot]).collect();
            let mut reach = Vec::with_capacity(tracks.len());
            for index in tracks.clone() {
                let track = track(index);
                let slots = if family.prefix_closed() {
                    let fits = |&l: &u32| track.prefix(l).is_ok_and(|example| setting.obstacle(example).is_none());
                    0..asked.partition_point(fits)
                } else {
                    let fits = |&l: &u32| test(index, l).is_ok_and(|e| setting.obstacle(e.as_ref()).is_none());
                    let first = asked.iter().position(fits).unwrap_or(0);
                    first..first + asked[first..].iter().take_while(|l| fits(l)).count()
                };
                if slots.end > furthest.0 {
                    furthest = (slots.end, index);
                }
                reach.push(Reach { index, slots, header: track.header, stride: track.stride });
            }
            let items = items(plan, &asked, &reach);
            progress.total_tokens += items.clone().map(|item| item.tokens as u64).sum::<u64>();
            for (asked, &slot) in open.iter().enumerate() {
                tally.expect(slot, reach.iter().filter(|reach| reach.slots.contains(&asked)).count());
            }
            let build = |Item { index, span, .. }: Item| {
                let own = if family.prefix_closed() { None } else { test(index, asked[span.start]).ok() };
                let mut job = match own {
                    Some(example) => Job::of_test(index, example, span.start),
                    None => Job::of_track(index, track(index), &asked, span),
                };
                job.cuts.iter_mut().for_each(|cut| cut.slot = open[cut.slot]);
                job
            };
            let report = &mut self.progress;
            let mut sink = |outcome: Outcome| {
                progress.tokens += outcome.tokens;
                progress.busy += outcome.busy;
                tally.add(outcome);
                progress.lengths = tally.finished();
                report(progress);
                Ok(())
            };
            let total = items.clone().map(|item| item.tokens).sum();
            let budget = setting.budget(self.max_tokens, total, longest as usize);
            let mut batches = pack(items, budget).peekable();
            if let Some(journal) = &mut journal {
                while batches.peek().is_some()
                    && let Some(outcome) = journal.next_recorded()
                {
                    batches.next();
                    sink(outcome)?;
                }
            }
            let work = setting.work(budget, &lengths, None, self.keep_predictions);
            let sink = |outcome: Outcome| {
                if let Some(journal) = &mut journal {
                    journal.record(&outcome)?;
                }
                sink(outcome)
            };
            run_batches(self.model, &work, self.workers, batches, build, sink)?;

            let Some(width) = self.until_width else { break };
            open.retain(|&slot| tally.is_wide(slot, width));
            let next = tracks.end..(2 * tracks.end).min(most).min(MOST_TRACKS);
            if open.is_empty() || next.is_empty() {
                break;
            }
            tracks = next;
        }

        // Where even the track that goes furthest does not arrive, it knows why; if it goes on, the model ends.
        let results = lengths.iter().enumerate().map(|(slot, &length)| {
            let obstacle = || {
                let test = test(furthest.1, length);
                test.map_or_else(|limit| Some(limit.reason), |example| setting.obstacle(example.as_ref()))
            };
            setting.result(length, plan, &tally.scores[slot], tally.failures[slot].take(), obstacle)
        });
        let lengths = results.collect();
        tally.predictions.sort_by_key(|p| (p.length, p.index));
        let facts = SweepFacts::new(self.model, task, "sweep");
        Ok(SweepResult { lengths, predictions: tally.predictions, facts })
    }

    /// Scores the examples of `dataset` as they are; `split` names it in the table. The lengths and samples of the sweep
    /// do not matter. Each example runs on its own, at its full length; the metrics are the original's.
    ///
    /// # Errors
    /// As [`Self::results`].
    pub fn run_dataset(mut self, dataset: &Dataset, split: &str) -> Result<DatasetResult> {
        let named = self.named_task()?;
        let task = self.task.or(named.as_ref()).ok_or_else(|| self.no_task())?;
        let mut setting = Setting::new(self.model, task, self.augmentation, self.seed)?;
        if dataset.info().vocab != task.vocabulary.tokens() {
            let reason = format!("the split is of the task `{}`, which has another vocabulary", dataset.info().task);
            return Err(EvalError::TaskMismatch { path: self.model.path().into(), task: task.name.clone(), reason });
        }
        let lengths = Lengths::from_values(dataset.iter().map(|e| e.length));
        let lengths = lengths.as_slice().to_vec();
        let slot = |length: u32| lengths.binary_search(&length).ok();
        let mut obstacles = vec![None; lengths.len()];
        let mut chosen = Vec::new();
        for (index, example) in dataset.iter().enumerate() {
            let Some(slot) = slot(example.length).filter(|_| !example.input_ids.is_empty()) else { continue };
            match setting.obstacle(example) {
                None => chosen.push(Item { index, span: slot..slot + 1, tokens: example.input_ids.len() }),
                why => obstacles[slot] = why,
            }
        }
        chosen.sort_by_key(|item| (std::cmp::Reverse(item.tokens), item.index)); // longest first
        let total: usize = chosen.iter().map(|item| item.tokens).sum();
        let longest = chosen.first().map_or(0, |item| item.tokens);
        let loops = self.loops.unwrap_or(if setting.positions.augmentation.is_random() { RANDOM_LOOPS } else { 1 });

        let seen = task.max_seen_len(0)? as u64;
        let mut tally = Tally::new(lengths.len());
        chosen.iter().for_each(|item| tally.expect(item.span.start, loops as usize));
        let total_tokens = u64::from(loops) * total as u64;
        let mut progress = Progress { total_tokens, total_lengths: lengths.len() as u64, ..Progress::default() };
        let mut means = Mean::default();
        let build = |Item { index, span, .. }: Item| Job::of_example(index, dataset.get(index), span.start);
        for pass in 0..loops {
            setting.positions.draw = u64::from(pass);
            let mut losses = vec![(0, 0.0); dataset.len()];
            let report = &mut self.progress;
            let sink = |mut outcome: Outcome| {
                for (index, labelled, loss) in outcome.losses.drain(..).filter(|(_, _, loss)| !loss.is_nan()) {
                    losses[index] = (labelled, loss);
                }
                if pass > 0 {
                    outcome.predictions.clear();
                }
                progress.tokens += outcome.tokens;
                progress.busy += outcome.busy;
                tally.add(outcome);
                progress.lengths = tally.finished();
                report(progress);
                Ok(())
            };
            let budget = setting.budget(self.max_tokens, total, longest);
            let work = setting.work(budget, &lengths, Some(seen), self.keep_predictions);
            run_batches(self.model, &work, self.workers, pack(chosen.iter().cloned(), budget), build, sink)?;
            for batch in losses.chunks(LOSS_BATCH) {
                let (labelled, sum) = batch.iter().fold((0, 0.0), |(n, s), (labelled, loss)| (n + labelled, s + loss));
                means.add((labelled > 0).then(|| sum / labelled as f64));
            }
        }
        let results = lengths.iter().enumerate().map(|(slot, &length)| {
            let obstacle = || obstacles[slot].clone();
            setting.result(length, Plan::Exhaustive, &tally.scores[slot], tally.failures[slot].take(), obstacle)
        });
        let lengths: Vec<LengthResult> = results.collect();
        let mut total = Score::default();
        lengths.iter().filter_map(LengthResult::score).for_each(|score| total.merge(score));
        tally.predictions.sort_by_key(|p| (p.length, p.index));
        let facts = SweepFacts::new(self.model, task, split);
        let by_length = SweepResult { lengths, predictions: tally.predictions, facts };
        Ok(DatasetResult { by_length, total, batch_mean_loss: means.value(), loops })
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

    fn open_journal(&self, task: &Task, setting: &Setting, plan: Plan) -> Result<Option<Journal>> {
        let Some(path) = self.journal.as_deref().filter(|_| !self.keep_predictions) else { return Ok(None) };
        let title = json!({
            "model": self.model.fingerprint(),
            "task": task.name,
            "lengths": fingerprint(self.lengths.as_slice().iter().flat_map(|l| l.to_le_bytes())),
            "samples": self.samples,
            "until_width": self.until_width,
            "seed": self.seed,
            "plan": plan.name(),
            "positions": format!("{:?}", setting.positions),
            "max_tokens": self.max_tokens,
            "provider": setting.provider.name(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        Journal::open(path, &title).map(Some)
    }
}

/// What a track is good for.
struct Reach {
    index: usize,
    /// The lengths that it has a test of, as a range of the list.
    slots: Range<usize>,
    header: usize,
    stride: usize,
}

/// The sequences of a sweep, longest first.
fn items<'i>(plan: Plan, lengths: &'i [u32], reach: &'i [Reach]) -> impl Iterator<Item = Item> + Clone + Send + 'i {
    let levels = match plan {
        Plan::SinglePass => 0..1,
        Plan::Exhaustive => 0..lengths.len(),
    };
    levels.rev().flat_map(move |slot| {
        reach.iter().filter_map(move |Reach { index, slots, header, stride }| {
            let span = match plan {
                Plan::SinglePass => slots.clone(),
                Plan::Exhaustive if slots.contains(&slot) => slot..slot + 1,
                Plan::Exhaustive => 0..0,
            };
            let last = span.clone().next_back()?;
            Some(Item { index: *index, span, tokens: header + lengths[last] as usize * stride })
        })
    })
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
    sink: impl FnMut(Outcome) -> Result<()>,
) -> Result<()> {
    let (most, each) = match (workers, work.provider) {
        (Some(workers), _) => (workers, 1),
        (None, Provider::Auto | Provider::Cpu) => {
            (model.threads().min(SESSION_BYTES / model.bytes().max(1)), BATCHES_PER_SESSION)
        }
        (None, Provider::Cuda | Provider::TensorRt) => (1, 1),
    };
    let first: Vec<_> = batches.by_ref().take(most.max(1) * each).collect();
    if first.is_empty() {
        return Ok(());
    }
    let longest = first.iter().flatten().map(|item| item.tokens).max().unwrap_or(1); // the longest run first
    let tokens = work.budget.piece.map_or(longest, |piece| longest.min(piece));
    let shapes = Shapes { rows: work.budget.rows, tokens, interface: work.interface.clone() };
    let sessions = model.sessions((first.len() / each).max(1), &shapes)?;
    execute(work, sessions, first.into_iter().chain(batches), build, sink)
}
