//! Runs that differ in nothing but their seed are one cell: a model on a task.

use super::read::{CurveRow, Facts, Length, Rows, Run, Settings};
use super::statistics::{Estimate, bins};
use crate::plot::display_name;
use std::collections::{BTreeMap, BTreeSet};

/// A metric of whole splits.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its column in result tables.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
}

/// The metrics that the paper reports.
pub const METRICS: [Metric; 3] = [
    Metric { name: "last_accuracy", title: "Last-token accuracy" },
    Metric { name: "accuracy", title: "Accuracy over all tokens" },
    Metric { name: "unseen_accuracy", title: "Accuracy over tokens beyond the trained lengths" },
];

/// Settings that do not change what is learned, and the seed, over which cells average.
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
pub struct Cell {
    /// The task.
    pub task: String,
    /// The model's name, which tells it from every other model of the report.
    pub model: String,
    /// The architecture.
    pub arch: String,
    /// What its runs have in common: their config without seed and device.
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

impl Cell {
    /// The longest length that was trained on, as the sweeps say.
    pub fn train_max(&self) -> Option<u32> {
        self.sweeps.iter().flatten().filter(|row| row.in_distribution).map(|row| row.length).max()
    }

    /// The longest length that was scored.
    pub fn longest(&self) -> Option<u32> {
        self.sweeps.iter().filter_map(|rows| rows.last()).map(|row| row.length).max()
    }

    /// Accuracy against length with at most `most` points; none of them mixes trained and longer lengths.
    pub fn curve(&self, most: usize) -> Vec<CurvePoint> {
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
        let groups = pieces.iter().flat_map(|(lengths, most)| bins(lengths.len(), *most).map(|(a, b)| &lengths[a..b]));
        groups.filter_map(|lengths| self.point(*lengths.first()?, *lengths.last()?)).collect()
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

        let mut seeds: Vec<u64> = self.runs.iter().filter_map(|(_, seed)| *seed).collect();
        let runs = seeds.len();
        seeds.sort();
        seeds.dedup();
        if seeds.len() < runs {
            notices.push(format!(
                "{} on {} has {runs} runs, but {} seeds: runs with the same config and seed are all counted",
                self.model,
                self.task,
                seeds.len()
            ));
        }
    }
}

fn same_lengths(a: &[Length], b: &[Length]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.length == b.length)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// What makes two runs the same but for their seed.
type Key = (String, String, Settings);

/// Puts runs together; ordered by task, then by model.
pub fn group(runs: Vec<Run>, notices: &mut Vec<String>) -> Vec<Cell> {
    let mut cells: BTreeMap<Key, Cell> = BTreeMap::new();
    let mut totals: BTreeMap<Key, BTreeMap<(String, String), Vec<f64>>> = BTreeMap::new();
    for run in runs {
        let mut seen: BTreeSet<(Key, String)> = BTreeSet::new();
        let trained_on = facts_of(&run.settings);
        let mut curve = Some(run.curve).filter(|curve| !curve.is_empty());
        // The tables first, so that a training curve comes to the model as it was exported.
        let tables = run.tables.into_iter().map(|t| (t.facts, Some(t.rows)));
        for (facts, rows) in tables.chain([(trained_on.clone(), None)]) {
            if rows.is_none() && curve.is_none() {
                continue;
            }
            let seed = trained_on.seed.or(facts.seed);
            let key = key(&facts, &run.settings);
            if rows.is_some()
                && !seen.insert((key.clone(), facts.split.clone() + if is_total(&rows) { "+" } else { "" }))
            {
                notices.push(format!(
                    "run {} has several results on {} ({}): the newest counts",
                    run.handle, facts.task, facts.split
                ));
                continue;
            }
            let cell = cells.entry(key.clone()).or_default();
            if cell.runs.last().is_none_or(|(handle, _)| *handle != run.handle) {
                cell.runs.push((run.handle.clone(), seed));
            }
            if facts.task == trained_on.task {
                cell.curves.extend(curve.take());
            }
            cell.arch = facts.arch;
            cell.task = facts.task;
            cell.settings = key.2.clone();
            match rows {
                Some(Rows::Lengths(rows)) if facts.split == "sweep" && !rows.is_empty() => cell.sweeps.push(rows),
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
        let Some(cell) = cells.get_mut(&key) else { continue };
        for ((split, metric), values) in found {
            if let Some(estimate) = Estimate::of_accuracies(&values) {
                cell.totals.entry(split).or_default().insert(metric, estimate);
            }
        }
    }
    let mut cells: Vec<Cell> = cells.into_values().collect();
    name(&mut cells);
    cells.sort_by(|a, b| (&a.task, &a.model).cmp(&(&b.task, &b.model)));
    cells.iter_mut().for_each(|cell| cell.summarise(notices));
    notices.extend(unequal_sweeps(&cells));
    cells
}

fn is_total(rows: &Option<Rows>) -> bool {
    matches!(rows, Some(Rows::Total(_)))
}

/// What a config says where there is no result table to say it.
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
    (facts.task.clone(), facts.arch.clone(), settings)
}

/// Names every cell after its architecture and positions, and after whatever else tells it from its namesakes: sizes
/// wherever they differ, other settings where they differ on the same task.
fn name(cells: &mut [Cell]) {
    const SIZES: [&str; 3] = ["model.num_layers", "model.hidden_size", "precision"];
    let base = |cell: &Cell| {
        let text = |key: &str| cell.settings.get(key).map_or("", String::as_str);
        let positions = match (text("model.positional_embedding"), text("model.augmentation")) {
            (positions, "" | "none") => positions.to_owned(),
            (positions, augmentation) => format!("{positions}+{augmentation}"),
        };
        display_name(if cell.arch.is_empty() { "model" } else { &cell.arch }, &positions)
    };
    let mut namesakes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, cell) in cells.iter().enumerate() {
        namesakes.entry(base(cell)).or_default().push(index);
    }
    for (base, members) in namesakes {
        let keys: BTreeSet<&String> = members.iter().flat_map(|i| cells[*i].settings.keys()).collect();
        let mut telling: Vec<String> = Vec::new();
        for key in keys {
            // The values of the key by task, or over all tasks.
            let mut values: BTreeMap<&str, BTreeSet<Option<&String>>> = BTreeMap::new();
            for cell in members.iter().map(|i| &cells[*i]) {
                let scope = if SIZES.contains(&key.as_str()) { "" } else { cell.task.as_str() };
                values.entry(scope).or_default().insert(cell.settings.get(key));
            }
            if values.values().any(|values| values.len() > 1) {
                telling.push(key.clone());
            }
        }
        telling.sort_by_key(|key| (SIZES.iter().position(|size| size == key).unwrap_or(SIZES.len()), key.clone()));
        for index in members {
            let cell = &mut cells[index];
            let mut parts = vec![base.clone()];
            parts.extend(telling.iter().filter_map(|key| {
                let value = cell.settings.get(key)?;
                Some(match key.as_str() {
                    "model.num_layers" if value == "1" => "1 layer".to_owned(),
                    "model.num_layers" => format!("{value} layers"),
                    "model.hidden_size" => format!("width {value}"),
                    "precision" => value.clone(),
                    other => format!("{}={value}", other.split_once('.').map_or(other, |(_, name)| name)),
                })
            }));
            cell.model = parts.join(" · ");
        }
    }
}

/// Columns of a table should average over the same lengths; says so where they do not.
fn unequal_sweeps(cells: &[Cell]) -> Vec<String> {
    let mut longest: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    for cell in cells {
        longest.entry(&cell.task).or_default().extend(cell.longest());
    }
    let unequal = longest.into_iter().filter(|(_, longest)| longest.len() > 1);
    let note = |(task, longest): (&str, BTreeSet<u32>)| {
        let longest: Vec<String> = longest.iter().map(u32::to_string).collect();
        format!("the models on {task} were swept up to different lengths ({}): compare with care", longest.join(", "))
    };
    unequal.map(note).collect()
}
