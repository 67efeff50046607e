//! Scoring the examples of a dataset.

use crate::sweep::plan::{Item, Job, pack};
use crate::sweep::setting::Setting;
use crate::sweep::tally::{Mean, Tally};
use crate::sweep::work::BatchScore;
use crate::sweep::{check_that_something_ran, run_batches};
use crate::{DatasetResult, EvalError, LengthResult, Progress, Result, Score, Sweep, SweepFacts, SweepResult};
use data::Dataset;

/// The original's tester averages losses over batches of this many examples.
const LOSS_BATCH: usize = 32;
/// Passes over a dataset where positions are drawn at random.
const RANDOM_LOOPS: u32 = 10;

impl Sweep<'_> {
    /// Scores the examples of `dataset` as they are; `split` names it in the table. The lengths and samples of the
    /// sweep do not matter. Each example runs on its own, at its full length; the metrics are the original's.
    ///
    /// # Errors
    /// As [`Self::results`].
    pub fn run_dataset(mut self, dataset: &Dataset, split: &str) -> Result<DatasetResult> {
        let named = self.named_task()?;
        let task = self.task.or(named.as_ref()).ok_or_else(|| self.no_task())?;
        let longest = dataset.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
        let mut setting =
            Setting::new(self.model, task, self.augmentation, self.seed).and_then(|s| self.prepared(s, longest))?;
        let course = setting.course(true, self.exhaustive);
        let (info, vocabulary) = (dataset.info(), &task.vocabulary);
        if info.vocab != vocabulary.tokens() || info.units != vocabulary.unit_tokens() {
            let reason = format!("the split is of the task `{}`, which has another vocabulary", dataset.info().task);
            return Err(EvalError::TaskMismatch { path: self.model.path().into(), task: task.name.clone(), reason });
        }
        let mut lengths: Vec<u32> = dataset.iter().map(|e| e.length).collect(); // 0, the empty string, is one
        lengths.sort_unstable();
        lengths.dedup();
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
            let sink = |mut outcome: BatchScore| {
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
            let budget = setting.budget(course, self.max_tokens, total, longest);
            let mut sizes: Vec<usize> = chosen.iter().rev().map(|item| item.tokens).collect();
            sizes.dedup();
            let work = setting.work(budget, &lengths, sizes, Some(seen), self.keep_predictions);
            let batches = pack(chosen.iter().cloned(), budget);
            run_batches(self.model, &work, self.workers, batches, build, sink, &mut self.stop)?;
            for batch in losses.chunks(LOSS_BATCH) {
                let (labelled, sum) = batch.iter().fold((0, 0.0), |(n, s), (labelled, loss)| (n + labelled, s + loss));
                means.add((labelled > 0).then(|| sum / labelled as f64));
            }
        }
        let results = lengths.iter().enumerate().map(|(slot, &length)| {
            let obstacle = || obstacles[slot].clone();
            setting.result(length, course.plan, &tally.scores[slot], tally.failures[slot].clone(), obstacle)
        });
        let lengths: Vec<LengthResult> = results.collect();
        check_that_something_ran(&setting, &tally, &lengths)?;
        let mut total = Score::default();
        lengths.iter().filter_map(LengthResult::score).for_each(|score| total.merge(score));
        tally.predictions.sort_by_key(|p| (p.length, p.index));
        let facts = SweepFacts::new(self.model, task, split);
        let by_length = SweepResult { lengths, predictions: tally.predictions, facts };
        Ok(DatasetResult { by_length, total, batch_mean_loss: means.value(), loops })
    }
}
