use crate::execute::{Outcome, Work, execute};
use crate::journal::Journal;
use crate::model::{Interface, Shapes, fingerprint};
use crate::plan::{Budget, Item, Job, pack};
use crate::{EvalError, Lengths, Model, Provider, Result, Score, SweepFacts, memory, to_record_batch};
use arrow::record_batch::RecordBatch;
use data::{Augmentation, Batch, Collation, Dataset, ExampleRef, PositionScheme, Task};
use ort::value::TensorElementType;
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// How the scores of a length came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Every track ran once, and its prefixes were scored from that pass.
    SinglePass,
    /// Every length ran on its own.
    Exhaustive,
}

impl Plan {
    /// The name in result tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::SinglePass => "single_pass",
            Self::Exhaustive => "exhaustive",
        }
    }
}

/// The outcome of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct LengthResult {
    /// Main tokens.
    pub length: u32,
    /// Whether training reached this length.
    pub in_distribution: bool,
    /// How it was evaluated.
    pub plan: Plan,
    /// The score, or why there is none.
    pub outcome: std::result::Result<Score, String>,
}

impl LengthResult {
    /// The score, where there is one.
    pub fn score(&self) -> Option<&Score> {
        self.outcome.as_ref().ok()
    }

    /// `ok`, or why the length could not be scored.
    pub fn status(&self) -> &str {
        self.outcome.as_ref().err().map_or("ok", String::as_str)
    }
}

/// What the model said on one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// Main tokens.
    pub length: u32,
    /// Which track, or which example of a dataset.
    pub index: u64,
    /// All input token ids.
    pub input_ids: Vec<u16>,
    /// The labels at the labelled positions, in order; the last is the final count.
    pub gold: Vec<u16>,
    /// The predicted token ids at the same positions.
    pub predicted: Vec<u16>,
}

/// Everything a sweep found.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepResult {
    /// One per requested length, ascending.
    pub lengths: Vec<LengthResult>,
    /// One per sequence, ordered by (length, index); empty unless they were asked for.
    pub predictions: Vec<Prediction>,
    /// What is the same for all lengths.
    pub facts: SweepFacts,
}

impl SweepResult {
    /// The result table, one row per length.
    ///
    /// # Errors
    /// None that input can cause.
    pub fn to_record_batch(&self) -> Result<RecordBatch> {
        to_record_batch(&self.lengths, &self.facts)
    }
}

/// What [`Sweep::run_dataset`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetResult {
    /// By length, pooled over the passes; and the predictions of the first pass, if asked for.
    pub by_length: SweepResult,
    /// Over all examples of the lengths that could be scored, and all passes. [`Score::unseen_accuracy`] is over the labelled positions whose rank is larger than
    /// any sequence of the task's validation split is long.
    pub total: Score,
    /// Cross entropy as the original reports it: the mean within each batch of 32 examples in file order, and the
    /// unweighted mean of those (a small last batch weighs as much as a full one).
    pub batch_mean_loss: Option<f64>,
    /// How often the whole dataset ran.
    pub loops: u32,
}

impl DatasetResult {
    /// `ok`, or why the first length that could not be scored was not; the total is then over the others.
    pub fn status(&self) -> &str {
        self.by_length.lengths.iter().map(LengthResult::status).find(|status| *status != "ok").unwrap_or("ok")
    }
}

/// How far a sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Tokens that ran.
    pub tokens: u64,
    /// Tokens to run; grows where [`Sweep::until_width`] asks for more sequences.
    pub total_tokens: u64,
    /// Time that the sessions spent in ONNX Runtime, averaged over those side by side; the rest is overhead.
    pub busy: Duration,
    /// Lengths whose last sequence is scored.
    pub lengths: u64,
    /// Lengths to score.
    pub total_lengths: u64,
}

/// The original's tester averages losses over batches of this many examples.
const LOSS_BATCH: usize = 32;
/// Passes over a dataset where positions are drawn at random.
const RANDOM_LOOPS: u32 = 10;
/// [`Sweep::until_width`] never takes more tracks than this.
const MOST_TRACKS: usize = 100_000;
/// Sessions side by side each hold the weights; together they may take this many bytes.
const SESSION_BYTES: usize = 1 << 29;
/// Rows × tokens² of one batch of a model with attention; 67 MB per matrix of 8 heads.
const ATTENTION_PAIRS: usize = 1 << 21;
/// What attention holds for each pair of tokens: scores, mask and weights of 8 heads in float32.
const ATTENTION_BYTES: u64 = 3 * 8 * 4;

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
    /// By default 16 384 on a CPU and 65 536 on a GPU.
    pub fn max_tokens(mut self, max_tokens: Option<usize>) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// Sessions side by side, each with its share of the threads and its own copy of the weights. By default one per
    /// CPU thread (fewer for models of more than a few megabytes) and one on a GPU.
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
        let setting = self.setting(task)?;
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
        let mut setting = self.setting(task)?;
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

/// What model, task and options come to.
struct Setting<'a> {
    path: PathBuf,
    task: &'a Task,
    interface: Arc<Interface>,
    provider: Provider,
    positions: PositionScheme,
    /// Rows of a position table.
    table: Option<u32>,
    /// Longer sequences do not fit into memory, because attention compares all pairs of tokens.
    attention_limit: Option<usize>,
    quadratic: bool,
    train_max_length: u32,
}

impl Sweep<'_> {
    /// Checks that model and task belong together.
    fn setting<'t>(&mut self, task: &'t Task) -> Result<Setting<'t>> {
        let mismatch = |model: &Model, reason| {
            Err(EvalError::TaskMismatch { path: model.path().into(), task: task.name.clone(), reason })
        };
        let wanted = task.vocabulary.tokens();
        if let Some(found) = self.model.info().vocab.as_deref().filter(|found| *found != wanted) {
            let reason = match wanted.iter().zip(found).position(|(w, f)| w != f) {
                Some(id) => format!("token {id} is `{}` for the model and `{}` in the task", found[id], wanted[id]),
                None => format!("the model's vocabulary has {} tokens, the task's {}", found.len(), wanted.len()),
            };
            return mismatch(self.model, reason);
        }
        let width = match self.model.interface().vocab {
            Some(width) => width,
            None => self.model.run_ids(&[0], 1, 1)?.vocab(),
        };
        if width != wanted.len() {
            let reason = format!("the model's logits are {width} wide, but the task has {} tokens", wanted.len());
            return mismatch(self.model, reason);
        }

        let info = self.model.info();
        let named = info.augmentation.as_deref().map(str::parse::<Augmentation>).transpose()?;
        let augmentation = self.augmentation.or(named).unwrap_or_default();
        let interface = self.model.interface().clone();
        match interface.position_ids {
            Some(TensorElementType::Float32) if !augmentation.is_scalar() => {
                return Err(EvalError::Positions { path: self.model.path().into(), kind: "float", augmentation });
            }
            Some(TensorElementType::Int64) if augmentation.is_scalar() => {
                return Err(EvalError::Positions { path: self.model.path().into(), kind: "int64", augmentation });
            }
            _ => {}
        }
        let drawn_below = info.max_position_embeddings.map_or(task.max_position_embeddings, |p| p as usize);
        let positions = PositionScheme {
            augmentation,
            max_position_embeddings: info.position_limit.map_or(drawn_below, |table| drawn_below.min(table as usize)),
            seed: self.seed,
            draw: 0,
        };
        let quadratic = interface.attention_mask || info.arch.as_deref() == Some("transformer");
        let free = match self.model.provider() {
            Provider::Auto | Provider::Cpu if quadratic => memory::available(),
            _ => None,
        };
        Ok(Setting {
            path: self.model.path().into(),
            task,
            interface,
            provider: self.model.provider(),
            positions,
            table: info.position_limit.filter(|_| !augmentation.is_scalar()),
            attention_limit: free.map(|bytes| (bytes / ATTENTION_BYTES).isqrt() as usize),
            quadratic,
            train_max_length: info.train_max_length.unwrap_or_else(|| task.family.train_max_length()),
        })
    }
}

impl Setting<'_> {
    /// Positions that depend on the length, or are drawn anew for every test, make prefixes of one pass no stand-ins.
    fn plan(&self, exhaustive: bool) -> Plan {
        match self.positions.augmentation.is_prefix_stable() && !exhaustive {
            true => Plan::SinglePass,
            false => Plan::Exhaustive,
        }
    }

    /// `total` tokens are to run, in sequences of at most `longest` main tokens.
    fn budget(&self, max_tokens: Option<usize>, total: usize, longest: usize) -> Budget {
        let cpu = matches!(self.provider, Provider::Auto | Provider::Cpu);
        let tokens = max_tokens.unwrap_or(if cpu { 16_384 } else { 65_536 });
        let piece = self.interface.is_stateful().then(|| (tokens / 16).max(256));
        let widest = piece.map_or(longest, |piece| longest.min(piece)).max(1);
        Budget {
            tokens,
            work: if cpu { (total / 8).max(4096) } else { usize::MAX },
            piece,
            square: self.quadratic.then_some(ATTENTION_PAIRS),
            // TensorRT reserves memory for the most rows times the most tokens.
            rows: if self.provider == Provider::TensorRt { (tokens / widest).max(1) } else { usize::MAX },
        }
    }

    fn work<'w>(&'w self, budget: Budget, lengths: &'w [u32], seen: Option<u64>, keep_predictions: bool) -> Work<'w> {
        Work {
            path: &self.path,
            interface: &self.interface,
            provider: self.provider,
            vocabulary: &self.task.vocabulary,
            positions: self.positions,
            budget,
            lengths,
            seen,
            keep_predictions,
            room: AtomicUsize::new(usize::MAX),
        }
    }

    /// Why the model cannot run this example, if it cannot.
    fn obstacle(&self, example: ExampleRef<'_>) -> Option<String> {
        let tokens = example.input_ids.len();
        if self.attention_limit.is_some_and(|limit| tokens > limit) {
            let gib = ((tokens as u64).pow(2) * ATTENTION_BYTES) >> 30;
            return Some(format!("attention over {tokens} tokens takes about {gib} GiB of memory, more than is free"));
        }
        let PositionScheme { augmentation, max_position_embeddings, .. } = self.positions;
        if !augmentation.is_random() && self.table.is_none() {
            return None;
        }
        let collation = Collation { positions: self.positions, pad_to: None };
        let Ok(batch) = Batch::collate(&[example], &self.task.vocabulary, &collation) else {
            let reason =
                format!("past the {max_position_embeddings} positions that `{}` draws from", augmentation.name());
            return Some(reason);
        };
        let last = batch.position_ids.as_integers().into_iter().flatten().max().copied();
        let table = self.table.filter(|table| last.is_some_and(|last| last >= i64::from(*table)))?;
        Some(format!("past the model's position table ({table} positions)"))
    }

    fn result(
        &self,
        length: u32,
        plan: Plan,
        score: &Score,
        failure: Option<String>,
        obstacle: impl FnOnce() -> Option<String>,
    ) -> LengthResult {
        let outcome = match (score, failure) {
            (_, Some(failure)) => Err(failure),
            (Score { n_sequences: 0, .. }, _) => Err(obstacle().unwrap_or_else(|| "no labelled position".into())),
            (Score { nan: 0, .. }, _) => Ok(*score),
            (Score { nan, n_sequences, .. }, _) => Err(format!("NaN logits in {nan} of {n_sequences} sequences")),
        };
        LengthResult { length, in_distribution: length <= self.train_max_length, plan, outcome }
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

/// Runs batches on as many sessions as there are threads and batches.
fn run_batches(
    model: &mut Model,
    work: &Work<'_>,
    workers: Option<usize>,
    mut batches: impl Iterator<Item = Vec<Item>> + Send,
    build: impl Fn(Item) -> Job + Sync,
    sink: impl FnMut(Outcome) -> Result<()>,
) -> Result<()> {
    let most = workers.unwrap_or_else(|| match work.provider {
        Provider::Auto | Provider::Cpu => model.threads().min(SESSION_BYTES / model.bytes().max(1)),
        Provider::Cuda | Provider::TensorRt => 1,
    });
    let first: Vec<_> = batches.by_ref().take(most.max(1)).collect();
    if first.is_empty() {
        return Ok(());
    }
    let longest = first.iter().flatten().map(|item| item.tokens).max().unwrap_or(1); // the longest run first
    let tokens = work.budget.piece.map_or(longest, |piece| longest.min(piece));
    let shapes = Shapes { rows: work.budget.rows, tokens, interface: work.interface.clone() };
    let sessions = model.sessions(first.len(), &shapes)?;
    execute(work, sessions, first.into_iter().chain(batches), build, sink)
}

/// Scores per slot of the list of lengths.
struct Tally {
    scores: Vec<Score>,
    failures: Vec<Option<String>>,
    /// Sequences that are still to be scored.
    missing: Vec<u64>,
    predictions: Vec<Prediction>,
}

impl Tally {
    fn new(slots: usize) -> Self {
        let scores = vec![Score::default(); slots];
        Self { scores, failures: vec![None; slots], missing: vec![0; slots], predictions: vec![] }
    }

    fn expect(&mut self, slot: usize, sequences: usize) {
        self.missing[slot] += sequences as u64;
    }

    fn add(&mut self, mut outcome: Outcome) {
        for (slot, score) in outcome.scores {
            self.scores[slot].merge(&score);
            self.missing[slot] = self.missing[slot].saturating_sub(score.n_sequences);
        }
        for (slot, why) in outcome.failures {
            self.failures[slot] = Some(why);
        }
        self.predictions.append(&mut outcome.predictions);
    }

    fn finished(&self) -> u64 {
        self.missing.iter().filter(|missing| **missing == 0).count() as u64
    }

    /// Whether further sequences would narrow this slot's interval down to `width`.
    fn is_wide(&self, slot: usize, width: f64) -> bool {
        let score = &self.scores[slot];
        let interval = score.last_accuracy_interval().filter(|_| score.nan == 0 && self.failures[slot].is_none());
        interval.is_some_and(|(low, high)| high - low > width)
    }
}

/// A mean over what there is.
#[derive(Default)]
struct Mean {
    sum: f64,
    n: u32,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        self.sum += value.unwrap_or(0.0);
        self.n += u32::from(value.is_some());
    }

    fn value(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / f64::from(self.n))
    }
}
