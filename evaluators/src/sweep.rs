use crate::{EvalError, Lengths, Model, Result, Running, Score};
use data::{Batch, Collation, Dataset, Example, ExampleRef, Task, Track};
use std::ops::Range;

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
}

/// A sweep of test lengths.
///
/// A *track* is a test sequence that goes on; its length-L test is its first L main tokens. A model that is causal and
/// whose positions do not depend on L gives at each prefix's end what it would give on the prefix alone, so one pass
/// over the longest answers all lengths ([`Plan::SinglePass`]).
pub struct Sweep<'a> {
    model: &'a mut Model,
    task: &'a Task,
    lengths: Lengths,
    samples: usize,
    seed: u64,
    exhaustive: bool,
    max_tokens: usize,
    keep_predictions: bool,
}

impl<'a> Sweep<'a> {
    /// A sweep over the lengths 1 to 1000 with up to 64 tracks; the other methods change that.
    pub fn new(model: &'a mut Model, task: &'a Task) -> Self {
        Self {
            model,
            task,
            lengths: Lengths::from_values(1..=1000),
            samples: 64,
            seed: 0,
            exhaustive: false,
            max_tokens: 16_384,
            keep_predictions: false,
        }
    }

    /// The lengths to score.
    pub fn lengths(mut self, lengths: Lengths) -> Self {
        self.lengths = lengths;
        self
    }

    /// Tracks per sweep, at least 1. Where the task has fewer different ones, all of them are used once.
    pub fn samples(mut self, samples: usize) -> Self {
        self.samples = samples.max(1);
        self
    }

    /// Track number i is a function of (seed, i).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Run every length on its own even where one pass would do.
    pub fn exhaustive(mut self, exhaustive: bool) -> Self {
        self.exhaustive = exhaustive;
        self
    }

    /// The most tokens (rows × longest row) in one batch; a longer single sequence is a batch by itself. Bounds memory.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// Keep what the model said on every sequence; memory grows with tracks × lengths².
    pub fn keep_predictions(mut self, keep: bool) -> Self {
        self.keep_predictions = keep;
        self
    }

    /// Runs the sweep. `progress` is told (tokens done, tokens in all) after every batch.
    ///
    /// # Errors
    /// The model has another vocabulary than the task, or a pass fails. Lengths that cannot be scored are no error:
    /// their rows say why.
    pub fn run(mut self, progress: impl FnMut(u64, u64)) -> Result<SweepResult> {
        self.check_vocabulary()?;
        let lengths = self.lengths.as_slice().to_vec();
        let tracks = self.task.family.distinct_tracks().map_or(self.samples, |n| n.min(self.samples));
        let plan = self.plan();

        // A first walk over the tracks, which cost little next to the model: how many of the lengths each one reaches.
        let mut reach = Vec::with_capacity(tracks);
        let mut total = 0;
        for index in 0..tracks {
            let track = self.track(index);
            let reached = lengths.partition_point(|&l| track.prefix(l).is_ok_and(|e| self.fits_table(e)));
            let tokens = |i: usize| track.tokens(lengths[i]) as u64;
            total += match plan {
                Plan::SinglePass => reached.checked_sub(1).map_or(0, tokens),
                Plan::Exhaustive => (0..reached).map(tokens).sum(),
            };
            reach.push(reached);
        }
        let reached = |index: usize| reach[index];
        let spans: Box<dyn Iterator<Item = (usize, Range<usize>)>> = match plan {
            Plan::SinglePass => Box::new((0..tracks).map(|t| (t, 0..reached(t))).filter(|(_, r)| !r.is_empty())),
            // longest first, so that the rows of a batch are about equally long
            Plan::Exhaustive => Box::new(
                (0..lengths.len())
                    .rev()
                    .flat_map(|l| (0..tracks).filter(move |&t| reached(t) > l).map(move |t| (t, l..l + 1))),
            ),
        };
        let (task, seed, longest) = (self.task, self.seed, self.lengths.longest().unwrap_or(0));
        let jobs =
            spans.map(|(index, span)| Job::of_track(index, task.family.track(seed, index, longest), &lengths, span));
        let (scores, predictions) = self.execute(jobs, &lengths, total, progress)?;

        // Where even the track that goes furthest does not arrive, it knows why; if it goes on, the model ends.
        let furthest = (0..tracks).max_by_key(|&t| reach[t]).map(|t| self.track(t));
        let results = lengths.iter().zip(&scores).map(|(&length, score)| {
            let limit = furthest.as_ref().and_then(|track| track.prefix(length).err());
            let obstacle = limit.map(|l| l.reason).or_else(|| self.table_end());
            self.result(length, plan, score, obstacle)
        });
        Ok(SweepResult { lengths: results.collect(), predictions })
    }

    /// Scores the examples of `dataset` as they are, grouped by length; the lengths, samples and seed of the sweep do
    /// not matter. Each example runs on its own, at its full length.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_dataset(mut self, dataset: &Dataset, progress: impl FnMut(u64, u64)) -> Result<SweepResult> {
        self.check_vocabulary()?;
        let lengths = Lengths::from_values(dataset.iter().map(|e| e.length));
        let lengths = lengths.as_slice().to_vec();
        let mut examples: Vec<_> = dataset.iter().enumerate().filter(|(_, e)| self.fits_table(*e)).collect();
        examples.sort_by_key(|(index, e)| (std::cmp::Reverse(e.length), *index)); // longest first
        let total = examples.iter().map(|(_, e)| e.input_ids.len() as u64).sum();
        let jobs = examples.into_iter().filter_map(|(index, example)| {
            lengths.binary_search(&example.length).ok().map(|slot| Job::of_example(index, example, slot))
        });
        let (scores, predictions) = self.execute(jobs, &lengths, total, progress)?;
        let results = lengths.iter().zip(&scores);
        let results = results.map(|(&length, score)| self.result(length, Plan::Exhaustive, score, self.table_end()));
        Ok(SweepResult { lengths: results.collect(), predictions })
    }

    /// Augmented positions are drawn anew for every length, so prefixes of one pass would not stand for them.
    fn plan(&self) -> Plan {
        let plain_positions = self.model.info().augmentation.as_deref().is_none_or(|a| a == "none");
        if plain_positions && !self.exhaustive { Plan::SinglePass } else { Plan::Exhaustive }
    }

    /// Always built for the longest length asked for: what is drawn for a track may depend on it.
    fn track(&self, index: usize) -> Track {
        self.task.family.track(self.seed, index, self.lengths.longest().unwrap_or(0))
    }

    /// Whether the model's learned position table, if it has one, covers the example.
    fn fits_table(&self, example: ExampleRef<'_>) -> bool {
        let Some(limit) = self.model.info().position_limit else { return true };
        let Ok(batch) = Batch::collate(&[example], &self.task.vocabulary, &Collation::plain()) else { return false };
        batch.position_ids.as_integers().is_none_or(|ids| ids.iter().all(|p| *p < i64::from(limit)))
    }

    fn table_end(&self) -> Option<String> {
        let limit = self.model.info().position_limit?;
        Some(format!("past the model's learned position table ({limit} positions)"))
    }

    fn result(&self, length: u32, plan: Plan, score: &Score, obstacle: Option<String>) -> LengthResult {
        let trained = self.model.info().train_max_length.unwrap_or_else(|| self.task.family.train_max_length());
        let outcome = match score {
            Score { n_sequences: 0, .. } => Err(obstacle.unwrap_or_else(|| "no labelled position".into())),
            Score { nan: 0, .. } => Ok(*score),
            Score { nan, n_sequences, .. } => Err(format!("NaN logits in {nan} of {n_sequences} sequences")),
        };
        LengthResult { length, in_distribution: length <= trained, plan, outcome }
    }

    fn check_vocabulary(&self) -> Result<()> {
        let (wanted, found) = (self.task.vocabulary.tokens(), self.model.info().vocab.as_deref());
        let differs = |found: &[String]| match wanted.iter().zip(found).position(|(w, f)| w != f) {
            Some(id) => format!("token {id} is `{}` for the model and `{}` in the task", found[id], wanted[id]),
            None => format!("the model's vocabulary has {} tokens, the task's {}", found.len(), wanted.len()),
        };
        match found {
            Some(found) if found != wanted => Err(self.mismatch(differs(found))),
            _ => Ok(()),
        }
    }

    fn mismatch(&self, reason: String) -> EvalError {
        EvalError::TaskMismatch { path: self.model.path().into(), task: self.task.name.clone(), reason }
    }

    /// Runs `jobs` in batches under the token budget and pools what they score, per length.
    fn execute(
        &mut self,
        jobs: impl Iterator<Item = Job>,
        lengths: &[u32],
        total: u64,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(Vec<Score>, Vec<Prediction>)> {
        let mut found = (vec![Score::default(); lengths.len()], Vec::new());
        let (mut jobs, mut done) = (jobs.peekable(), 0);
        while let Some(first) = jobs.next() {
            let mut longest = first.tokens();
            let mut batch = vec![first];
            while let Some(job) = jobs.next_if(|j| (batch.len() + 1) * longest.max(j.tokens()) <= self.max_tokens) {
                longest = longest.max(job.tokens());
                batch.push(job);
            }
            self.score(&batch, lengths, &mut found)?;
            done += batch.iter().map(|j| j.tokens() as u64).sum::<u64>();
            progress(done, total);
        }
        found.1.sort_by_key(|p| (p.length, p.index));
        Ok(found)
    }

    /// One pass through the model; one walk along every row scores all its cuts.
    fn score(&mut self, jobs: &[Job], lengths: &[u32], found: &mut (Vec<Score>, Vec<Prediction>)) -> Result<()> {
        let examples: Vec<_> = jobs.iter().map(|j| j.example.as_ref()).collect();
        let logits = self.model.run(&Batch::collate(&examples, &self.task.vocabulary, &Collation::plain())?)?;
        if logits.vocab() != self.task.vocabulary.len() {
            let (model, task) = (logits.vocab(), self.task.vocabulary.len());
            return Err(self.mismatch(format!("the model's logits are {model} wide, but the task has {task} tokens")));
        }
        let (scores, predictions) = found;
        for (row, job) in jobs.iter().enumerate() {
            let mut rows = logits.sequence(row).chunks_exact(logits.vocab()).zip(&job.example.labels);
            let (mut running, mut gold, mut predicted, mut walked) = (Running::default(), vec![], vec![], 0);
            for &Cut { slot, tokens } in &job.cuts {
                for (logits, &label) in rows.by_ref().take(tokens - walked) {
                    if let Ok(label) = u16::try_from(label) {
                        predicted.push(running.push(logits, usize::from(label)) as u16);
                        gold.push(label);
                    }
                }
                walked = tokens;
                scores[slot].add(&running);
                if self.keep_predictions {
                    predictions.push(Prediction {
                        length: lengths[slot],
                        index: job.index as u64,
                        input_ids: job.example.input_ids[..tokens].to_vec(),
                        gold: gold.clone(),
                        predicted: predicted.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// A sequence to run, and the places where its score is read.
struct Job {
    index: usize,
    example: Example,
    cuts: Vec<Cut>, // ascending
}

/// The first `tokens` tokens are the test of the length in this slot of the list of lengths.
struct Cut {
    slot: usize,
    tokens: usize,
}

impl Job {
    /// Runs the longest of `lengths[span]` and scores all of them; `span` is not empty, and the track reaches them.
    fn of_track(index: usize, mut track: Track, lengths: &[u32], span: Range<usize>) -> Self {
        let longest = lengths[span.end - 1];
        let cuts: Vec<_> = span.map(|slot| Cut { slot, tokens: track.tokens(lengths[slot]) }).collect();
        let tokens = track.tokens(longest);
        track.input_ids.truncate(tokens);
        track.labels.truncate(tokens);
        Self { index, example: Example { input_ids: track.input_ids, labels: track.labels, length: longest }, cuts }
    }

    fn of_example(index: usize, example: ExampleRef<'_>, slot: usize) -> Self {
        let cuts = vec![Cut { slot, tokens: example.input_ids.len() }];
        let ExampleRef { input_ids, labels, length } = example;
        Self { index, example: Example { input_ids: input_ids.to_vec(), labels: labels.to_vec(), length }, cuts }
    }

    fn tokens(&self) -> usize {
        self.example.input_ids.len()
    }
}
