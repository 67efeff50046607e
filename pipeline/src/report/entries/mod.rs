//! Runs that differ in nothing but their seed are one entry: a model on a task.

mod names;

use super::order::natural;
use super::read::{CurveRow, Facts, Length, Rows, Run, Settings};
use super::statistics::{Estimate, bins};
use crate::plot::gcd;
use crate::run::{RunDir, Status};
use std::collections::{BTreeMap, BTreeSet};

pub use self::names::common;

/// Settings that do not change what is learned, and the seed, over which entries average.
const FREE: [&str; 9] = [
    "train.seed",
    "train.device",
    "train.accumulate",
    "train.checkpoint_every",
    "train.eval_every",
    "train.keep",
    "train.log_every",
    "train.tensorboard",
    "eval.batch_size",
];

/// A model on a task, over seeds.
#[derive(Debug, Default)]
pub struct Entry {
    /// The task.
    pub task: String,
    /// The model's name, which tells it from every other model of the report.
    pub model: String,
    /// The architecture.
    pub arch: String,
    /// The settings that its runs have in common: their config without seed and device.
    pub settings: Settings,
    /// Its runs: handle and seed.
    pub runs: Vec<(String, Option<u64>)>,
    /// The sweep of every run that has one.
    pub sweeps: Vec<Vec<Length>>,
    /// Last-token accuracy on trained lengths: the mean over lengths, then over runs.
    pub trained: Option<Estimate>,
    /// The same on longer ones.
    pub longer: Option<Estimate>,
    /// The metrics of whole splits, by split and name.
    pub totals: BTreeMap<String, BTreeMap<String, Estimate>>,
    /// The training curve of every run that has one.
    pub curves: Vec<Vec<CurveRow>>,
    /// Runs that were left out because another one has their config and seed.
    pub repeats: usize,
}

/// A point of an accuracy curve: neighbouring lengths together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurvePoint {
    /// The shortest of the lengths.
    pub first: u32,
    /// The longest.
    pub last: u32,
    /// Mean last-token accuracy.
    pub mean: f64,
    /// 95 % interval: Student's t over three runs or more; Wilson's over the test sequences of fewer, for which the other
    /// says next to nothing.
    pub interval: (f64, f64),
}

impl Entry {
    /// The longest length that was trained on, as the sweeps say.
    pub fn train_max(&self) -> Option<u32> {
        self.sweeps.iter().flatten().filter(|row| row.in_distribution).map(|row| row.length).max()
    }

    /// The longest length that was scored.
    pub fn longest(&self) -> Option<u32> {
        self.sweeps.iter().filter_map(|rows| rows.last()).map(|row| row.length).max()
    }

    /// Accuracy against length with about `most` points; none of them mixes trained and longer lengths. Where lengths are
    /// averaged, that is over whole multiples of `period` of them: averages over parts of a period would make waves of what
    /// is constant.
    pub fn curve(&self, most: usize, period: Option<u32>) -> Vec<CurvePoint> {
        let mut all: Vec<Length> = self.sweeps.first().cloned().unwrap_or_default();
        for more in self.sweeps.iter().skip(1) {
            if !same_lengths(more, &all) {
                all.extend(more);
                all.sort_by_key(|row| row.length);
                all.dedup_by_key(|row| row.length);
            }
        }
        let lengths_of =
            |trained: bool| all.iter().filter(|r| r.in_distribution == trained).map(|r| r.length).collect();
        let (trained, longer): (Vec<u32>, Vec<u32>) = (lengths_of(true), lengths_of(false));
        // A break just behind the trained lengths is what such pictures are about, so these get a larger share.
        let share = if longer.is_empty() { most } else { (most / 3).max(1) };
        let pieces = [(&trained, share), (&longer, most.saturating_sub(share.min(trained.len())))];
        let windows = pieces.iter().flat_map(|(lengths, most)| windows(lengths, *most, period));
        windows.filter_map(|(first, last)| self.point(first, last)).collect()
    }

    fn point(&self, first: u32, last: u32) -> Option<CurvePoint> {
        let within =
            |rows: &Vec<Length>| rows.partition_point(|r| r.length < first)..rows.partition_point(|r| r.length <= last);
        let of_runs: Vec<&[Length]> = self.sweeps.iter().map(|rows| &rows[within(rows)]).collect();
        let means: Vec<f64> = of_runs.iter().filter_map(|rows| mean(rows.iter().map(|r| r.last_accuracy))).collect();
        let estimate = Estimate::of_accuracies(&means)?;
        let interval = estimate.interval.filter(|_| estimate.n > 2).unwrap_or_else(|| {
            let (mut right, mut all) = (0.0, 0);
            for row in of_runs.concat() {
                right += row.last_accuracy * row.sequences as f64;
                all += row.sequences;
            }
            evaluators::wilson(right.round() as u64, all, 1.959_964)
        });
        Some(CurvePoint { first, last, mean: estimate.mean, interval })
    }

    /// A quantity of the training curves by step, the mean over runs, thinned to at most `most` points.
    pub fn training(&self, split: &str, value: fn(&CurveRow) -> Option<f64>, most: usize) -> Vec<(f64, f64)> {
        let mut steps: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for row in self.curves.iter().flatten().filter(|row| row.split == split) {
            if let Some(value) = value(row) {
                steps.entry(row.step).or_default().push(value);
            }
        }
        let means = steps.into_iter().filter_map(|(step, values)| Some((step as f64, mean(values.into_iter())?)));
        let means: Vec<(f64, f64)> = means.collect();
        let group = |(from, to): (usize, usize)| {
            let group = &means[from..to];
            Some((mean(group.iter().map(|p| p.0))?, mean(group.iter().map(|p| p.1))?))
        };
        bins(means.len(), most).filter_map(group).collect()
    }

    fn summarise(&mut self, notices: &mut Vec<String>) {
        let differ = self.sweeps.windows(2).any(|pair| !same_lengths(&pair[0], &pair[1]));
        if differ {
            notices.push(format!(
                "the runs of {} on {} were swept over different lengths: tables average over those that all have",
                self.model, self.task
            ));
        }
        let in_all = |length| self.sweeps.iter().all(|rows| rows.binary_search_by_key(&length, |r| r.length).is_ok());
        let over = |trained: bool| {
            let wanted = |r: &&Length| r.in_distribution == trained && (!differ || in_all(r.length));
            let of_run = |rows: &Vec<Length>| mean(rows.iter().filter(wanted).map(|r| r.last_accuracy));
            Estimate::of_accuracies(&self.sweeps.iter().filter_map(of_run).collect::<Vec<_>>())
        };
        (self.trained, self.longer) = (over(true), over(false));

        if self.repeats > 0 {
            notices.push(format!(
                "{} on {} has {} run(s) with the config and seed of another: of such runs one counts, the newest that is finished",
                self.model, self.task, self.repeats
            ));
        }
    }
}

/// The shortest and the longest length of every point of a curve over `lengths`, which ascend.
fn windows(lengths: &[u32], most: usize, period: Option<u32>) -> Vec<(u32, u32)> {
    let (Some(first), Some(last)) = (lengths.first(), lengths.last()) else { return vec![] };
    let step = lengths.windows(2).map(|pair| pair[1] - pair[0]).fold(0, gcd).max(1);
    let slots = ((last - first) / step + 1) as usize;
    // The lengths between two that have the same label, and how many of those that were swept.
    let cycle = period.map_or(step, |period| period / gcd(period, step) * step);
    let in_cycle = (cycle / step) as usize;
    if in_cycle == 1 || 2 * lengths.len() < slots {
        // Single lengths where they fit: they all have the same label, none has, or they are too few to average.
        return bins(lengths.len(), most).map(|(from, to)| (lengths[from], lengths[to - 1])).collect();
    }
    let width = cycle * slots.div_ceil(in_cycle * most.max(1)).max(1) as u32;
    let count = (last + step - first).div_ceil(width);
    let window = |index: u32| {
        // The last one overlaps the one before it, so that it is whole as well.
        let from = (first + index * width).min((last + step).saturating_sub(width).max(*first));
        let within = &lengths[lengths.partition_point(|l| *l < from)..lengths.partition_point(|l| *l < from + width)];
        Some((*within.first()?, *within.last()?))
    };
    (0..count).filter_map(window).collect()
}

fn same_lengths(a: &[Length], b: &[Length]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.length == b.length)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// Two runs with the same key are the same but for their seed.
type Key = (String, String, Settings);

/// Whose results count of the runs with the same config and seed, which say the same twice: those of the newest finished
/// one. By entry and seed.
fn counted(runs: &[Run]) -> BTreeMap<(Key, u64), BTreeMap<String, bool>> {
    let mut found: BTreeMap<(Key, u64), BTreeMap<&str, &Run>> = BTreeMap::new();
    for run in runs.iter().filter(|run| !run.settings.is_empty()) {
        let trained_on = facts_of(&run.settings);
        let of_curve = (!run.curve.is_empty() && run.tables.is_empty()).then(|| trained_on.clone());
        for facts in run.tables.iter().map(|table| &table.facts).chain(&of_curve) {
            if let Some(seed) = trained_on.seed.or(facts.seed) {
                found.entry((key(facts, &run.settings), seed)).or_default().insert(&run.handle, run);
            }
        }
    }
    let rank = |run: &Run| {
        let dir = RunDir::at(&run.folder);
        let finished = dir.as_ref().and_then(RunDir::progress).is_none_or(|p| p.status == Status::Finished);
        (!run.tables.is_empty(), finished, dir.map(|dir| dir.started()), run.handle.clone())
    };
    let choose = |runs: BTreeMap<&str, &Run>| {
        let best = if runs.len() > 1 { runs.values().max_by_key(|run| rank(run)).map(|run| &run.handle) } else { None };
        runs.into_keys().map(|handle| (handle.to_owned(), best.is_none_or(|best| best == handle))).collect()
    };
    found.into_iter().map(|(key, runs)| (key, choose(runs))).collect()
}

/// Puts runs together; ordered by task, then by model.
pub fn group(runs: Vec<Run>, notices: &mut Vec<String>) -> Vec<Entry> {
    let mut entries: BTreeMap<Key, Entry> = BTreeMap::new();
    let mut totals: BTreeMap<Key, BTreeMap<(String, String), Vec<f64>>> = BTreeMap::new();
    let counted = counted(&runs);
    for run in runs {
        let mut repeats: BTreeSet<Key> = BTreeSet::new();
        let mut seen: BTreeSet<(Key, String)> = BTreeSet::new();
        let trained_on = facts_of(&run.settings);
        let mut curve = Some(run.curve).filter(|curve| !curve.is_empty());
        // The tables first, so that a training curve comes to the model as it was exported.
        let tables = run.tables.into_iter().map(|t| (t.facts, Some(t.rows)));
        for (facts, rows) in tables.chain([(trained_on.clone(), None)]) {
            // Where a run's tables do not count, its curve does not either.
            if rows.is_none() && (curve.is_none() || !repeats.is_empty()) {
                continue;
            }
            let seed = trained_on.seed.or(facts.seed);
            let key = key(&facts, &run.settings);
            let counts = |seed| counted.get(&(key.clone(), seed)).and_then(|runs| runs.get(&run.handle));
            if seed.and_then(counts) == Some(&false) {
                if repeats.insert(key.clone()) {
                    entries.entry(key).or_default().repeats += 1;
                }
                continue;
            }
            if rows.is_some()
                && !seen.insert((key.clone(), facts.split.clone() + if is_total(&rows) { "+" } else { "" }))
            {
                notices.push(format!(
                    "run {} has several results on {} ({}): the newest counts",
                    run.handle, facts.task, facts.split
                ));
                continue;
            }
            let entry = entries.entry(key.clone()).or_default();
            if entry.runs.last().is_none_or(|(handle, _)| *handle != run.handle) {
                entry.runs.push((run.handle.clone(), seed));
            }
            if facts.task == trained_on.task {
                entry.curves.extend(curve.take());
            }
            entry.arch = facts.arch;
            entry.task = facts.task;
            entry.settings = key.2.clone();
            match rows {
                Some(Rows::Lengths(rows)) if facts.split == "sweep" && !rows.is_empty() => entry.sweeps.push(rows),
                Some(Rows::Total(values)) => {
                    let of_key = totals.entry(key).or_default();
                    for (metric, value) in values {
                        of_key.entry((facts.split.clone(), metric)).or_default().push(value);
                    }
                }
                _ => {}
            }
        }
    }
    for (key, found) in totals {
        let Some(entry) = entries.get_mut(&key) else { continue };
        for ((split, metric), values) in found {
            if let Some(estimate) = Estimate::of_accuracies(&values) {
                entry.totals.entry(split).or_default().insert(metric, estimate);
            }
        }
    }
    let mut entries: Vec<Entry> = entries.into_values().collect();
    names::name(&mut entries);
    entries.sort_by(|a, b| natural(&a.task, &b.task).then_with(|| natural(&a.model, &b.model)));
    entries.iter_mut().for_each(|entry| entry.summarise(notices));
    notices.extend(unequal_sweeps(&entries));
    entries
}

fn is_total(rows: &Option<Rows>) -> bool {
    matches!(rows, Some(Rows::Total(_)))
}

/// The facts that a config says, where no result table says them.
fn facts_of(settings: &Settings) -> Facts {
    let text = |key: &str| settings.get(key).cloned().unwrap_or_default();
    let number = |key: &str| settings.get(key).and_then(|v| v.parse().ok());
    Facts {
        task: text("task.name"),
        arch: text("model.arch"),
        positional_embedding: text("model.positional_embedding"),
        seed: number("train.seed"),
        ..Facts::default()
    }
}

fn key(facts: &Facts, settings: &Settings) -> Key {
    let mut settings = settings.clone();
    FREE.iter().for_each(|key| drop(settings.remove(*key)));
    if settings.is_empty() {
        let texts = [("model.arch", &facts.arch), ("model.positional_embedding", &facts.positional_embedding)];
        let numbers = [("model.num_layers", facts.num_layers), ("model.hidden_size", facts.hidden_size)];
        settings.extend(texts.map(|(key, value)| (key.to_owned(), value.clone())));
        settings.extend(numbers.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_string()))));
    }
    // Files from before there was a choice, and runs that are not evaluated yet, are float32.
    let precision = if facts.precision.is_empty() { "fp32" } else { &facts.precision };
    settings.insert("precision".into(), precision.to_owned());
    // With another number of iterations than in training, a looped model is another model.
    let trained = settings.get("model.iterations").and_then(|number| number.parse().ok());
    let other = facts.iterations.filter(|number| Some(*number) != trained);
    settings.extend(other.map(|number| ("iterations".to_owned(), number.to_string())));
    (facts.task.clone(), facts.arch.clone(), settings)
}

/// Columns of a table should average over the same lengths; says so where they do not.
fn unequal_sweeps(entries: &[Entry]) -> Vec<String> {
    let mut longest: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    for entry in entries {
        longest.entry(&entry.task).or_default().extend(entry.longest());
    }
    let unequal = longest.into_iter().filter(|(_, longest)| longest.len() > 1);
    let note = |(task, longest): (&str, BTreeSet<u32>)| {
        let longest: Vec<String> = longest.iter().map(u32::to_string).collect();
        format!("the models on {task} were swept up to different lengths ({}): compare with care", longest.join(", "))
    };
    unequal.map(note).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_looped_model_with_another_number_of_iterations_is_another_model() {
        let settings = Settings::from([("model.iterations".to_owned(), "3".to_owned())]);
        let of = |iterations| key(&Facts { iterations, ..Facts::default() }, &settings);
        assert_eq!(of(Some(3)), of(None));
        assert_ne!(of(Some(3)), of(Some(1)));
        assert_eq!(of(Some(1)).2.get("iterations").map(String::as_str), Some("1"));
    }

    fn swept(lengths: impl Iterator<Item = u32>, trained: u32, right: impl Fn(u32) -> bool) -> Entry {
        let row = |length| {
            let last_accuracy = f64::from(u8::from(right(length)));
            Length { length, sequences: 1, last_accuracy, in_distribution: length <= trained }
        };
        Entry { sweeps: vec![lengths.map(row).collect()], ..Entry::default() }
    }

    /// The lowest and the highest point of a curve.
    fn extent(curve: &[CurvePoint]) -> (f64, f64) {
        curve.iter().fold((1.0, 0.0), |(low, high), point| (point.mean.min(low), point.mean.max(high)))
    }

    #[test]
    fn guessing_is_a_level_line_over_whole_periods() {
        for (period, longest, trained) in [
            (10, 1000, 50),
            (10, 100, 50),
            (10, 237, 35),
            (7, 1000, 35),
            (20, 1000, 100),
            (10, 20_000, 50),
            (2, 300, 50),
        ] {
            for guess in [0, 1, period - 1] {
                let entry = swept(1..=longest, trained, |length| length % period == guess);
                let curve = entry.curve(75, Some(period));
                let (low, high) = extent(&curve);
                assert!(high - low < 1e-9, "{period} {longest} {guess}: {low} to {high}");
                assert!((low - 1.0 / f64::from(period)).abs() < 1e-9 && curve.len() <= 80, "{low} {}", curve.len());
                assert!(curve.iter().all(|p| p.last <= trained || p.first > trained), "trained and longer lengths mix");
                assert_eq!((curve.first().unwrap().first, curve.last().unwrap().last), (1, longest));
            }
        }
        let saw_tooth = extent(&swept(1..=237, 50, |length| length % 10 == 1).curve(75, None));
        assert!(saw_tooth.1 - saw_tooth.0 > 0.3, "what averages over parts of a period look like: {saw_tooth:?}");
    }

    #[test]
    fn lengths_with_gaps_are_averaged_over_whole_periods_or_not_at_all() {
        let guess = |length: u32| length.is_multiple_of(10);
        let level = |lengths: Vec<u32>| extent(&swept(lengths.into_iter(), 50, guess).curve(75, Some(10)));
        assert_eq!(level((10..=1000).step_by(10).collect()), (1.0, 1.0));
        assert_eq!(level((5..=1000).step_by(5).collect()), (0.5, 0.5));
        assert_eq!(level((3..=900).step_by(3).collect()), (0.1, 0.1));
        // A few single lengths are themselves.
        let few = swept([1, 2, 5, 10, 20, 50, 100, 200, 500].into_iter(), 50, guess).curve(75, Some(10));
        assert_eq!(few.iter().map(|p| (p.first, p.last)).filter(|(first, last)| first == last).count(), 9);
    }
}
