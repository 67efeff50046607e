//! From runs to figures: every result of every run, averaged over seeds, beside the values of the paper.
//!
//! [`read`] opens every `runs/*/eval/*.parquet`, [`entries`] puts runs together that differ in nothing but their
//! seed, and the other modules show the outcome: [`html`] as one page that needs no network, [`markdown`] as tables,
//! [`figures`] as SVG and PNG.

pub mod columns;
pub mod entries;
pub mod figures;
pub mod html;
pub mod markdown;
pub mod metrics;
pub mod order;
pub mod read;
pub mod reference;
pub mod repeat;
pub mod statistics;
pub mod write;

use anyhow::Result;
use entries::Entry;
use order::natural;
use reference::Reference;
use statistics::Estimate;
use std::collections::HashSet;
use std::path::Path;

/// Everything that a report says.
#[derive(Debug)]
pub struct Report {
    /// One per task and model, ordered by task, then by model.
    pub entries: Vec<Entry>,
    /// The tasks, ordered.
    pub tasks: Vec<TaskFacts>,
    /// The names of the models, ordered; each says what tells it from the others.
    pub models: Vec<String>,
    /// The facts that all models share.
    pub common: Vec<String>,
    /// Published values to compare with.
    pub reference: Option<Reference>,
    /// Result files that were read.
    pub files: usize,
    /// Files and values that were left out, and why.
    pub notices: Vec<String>,
}

/// The facts about a task that a report needs.
#[derive(Debug, Clone)]
pub struct TaskFacts {
    /// Its name.
    pub name: String,
    /// The longest length that was trained on.
    pub train_max: Option<u32>,
    /// The score of guessing among its labels.
    pub chance: Option<f64>,
    /// Neighbouring lengths are averaged in multiples of this many.
    pub period: Option<u32>,
}

impl TaskFacts {
    /// The name without the prefix that nearly all tasks share.
    pub fn short_name(&self) -> &str {
        self.name.strip_prefix("counting_").unwrap_or(&self.name)
    }
}

/// A table in the paper's layout: models by tasks.
#[derive(Debug, Clone)]
pub struct ResultTable {
    /// Names the table in links and file names.
    pub id: String,
    /// Its title, which names its numbers.
    pub title: String,
    /// The names of its rows.
    pub models: Vec<String>,
    /// The indices of its columns in [`Report::tasks`].
    pub tasks: Vec<usize>,
    /// `[model][task]`; `None` where there is no such result.
    pub values: Vec<Vec<Option<Comparison>>>,
}

/// A value of ours and, where there is one, the paper's.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Mean and interval over runs.
    pub ours: Estimate,
    /// The published value, and in what its model differs from ours ("width 1024").
    pub theirs: Option<(Estimate, Vec<String>)>,
}

impl Report {
    /// Reads all runs under `runs` and, if it is named, the CSV file of published values.
    ///
    /// # Errors
    /// The runs folder or the CSV file cannot be read. Single damaged files become notices.
    pub fn read(runs: &Path, reference: Option<&Path>) -> Result<Self> {
        let reference = reference.map(Reference::read).transpose()?;
        let read::Runs { runs, files, mut notices } = read::Runs::read(runs)?;
        let entries = entries::group(runs, &mut notices);
        // First, so that it is seen however much else there is to say.
        notices.splice(..0, reference.iter().flat_map(|reference| reference.account(&entries)));
        let distinct = |name: fn(&Entry) -> &String| {
            let mut names: Vec<String> = entries.iter().map(name).cloned().collect();
            names.sort_by(|a, b| natural(a, b));
            names.dedup();
            names
        };
        let facts = |name: String| {
            let of_task = entries.iter().filter(|c| c.task == name);
            let train_max = of_task.filter_map(Entry::train_max).max();
            let task = data::Task::by_name(&name).ok();
            let family = task.as_ref().map(|t| t.family.as_ref());
            let train_max = train_max.or(family.map(|f| f.train_max_length()));
            // Of a task that is not known here, a round number hides the period of most.
            let period = family.map_or(Some(10), crate::plot::period);
            TaskFacts { chance: family.and_then(crate::plot::chance), train_max, period, name }
        };
        let tasks = distinct(|c| &c.task).into_iter().map(facts).collect();
        let (models, common) = (distinct(|c| &c.model), entries::common(&entries));
        Ok(Self { tasks, models, common, entries, reference, files, notices })
    }

    /// The entry of a model and a task.
    pub fn entry(&self, model: &str, task: &str) -> Option<&Entry> {
        self.entries.iter().find(|c| c.model == model && c.task == task)
    }

    /// All runs that are counted.
    pub fn runs(&self) -> usize {
        let handles: HashSet<&String> = self.entries.iter().flat_map(|c| &c.runs).map(|(handle, _)| handle).collect();
        handles.len()
    }

    /// One line: how much there is.
    pub fn summary(&self) -> String {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let parts = [
            count(self.runs(), "run"),
            count(self.files, "result file"),
            count(self.models.len(), "model"),
            count(self.tasks.len(), "task"),
        ];
        parts.join(" · ")
    }

    /// One line: what the names of models leave out because all of them share it. Nothing where there is no such thing.
    pub fn shared(&self) -> Option<String> {
        let who = if self.models.len() == 1 { "The model" } else { "All models" };
        (!self.common.is_empty()).then(|| format!("{who}: {}.", self.common.join(" · ")))
    }

    /// The notices, or as many as a person reads.
    pub fn shown_notices(&self) -> Vec<String> {
        const SHOWN: usize = 30;
        let mut shown: Vec<String> = self.notices.iter().take(SHOWN).cloned().collect();
        if self.notices.len() > SHOWN {
            shown.push(format!("and {} more", self.notices.len() - SHOWN));
        }
        shown
    }

    /// Every table that there are results for: first over the sweeps, then over the splits.
    pub fn tables(&self) -> Vec<ResultTable> {
        let sweeps = [
            ("longer", "Last-token accuracy on lengths beyond training, mean over lengths"),
            ("trained", "Last-token accuracy on trained lengths, mean over lengths"),
        ];
        let over_lengths = |entry: &Entry, id: &str| if id == "longer" { entry.longer } else { entry.trained };
        let mut tables: Vec<ResultTable> = Vec::new();
        for (id, title) in sweeps {
            tables.extend(self.table(id, title, |entry| over_lengths(entry, id).map(|ours| (ours, None))));
        }
        let mut splits: Vec<&String> = self.entries.iter().flat_map(|c| c.totals.keys()).collect();
        // The test that the paper is about comes first, validation last.
        splits.sort_by(|a, b| {
            let rank = |split: &str| (split != "ood_test", split == "val");
            rank(a).cmp(&rank(b)).then_with(|| natural(a, b))
        });
        splits.dedup();
        for split in splits {
            for metric in metrics::METRICS {
                let id = format!("{split}-{}", metric.name);
                let value = |entry: &Entry| {
                    let ours = entry.totals.get(split)?.get(metric.name).copied()?;
                    let theirs = self.reference.as_ref().and_then(|r| r.find(entry, split, metric.name));
                    Some((ours, theirs))
                };
                tables.extend(self.table(&id, &format!("{} on {split}", metric.title), value));
            }
        }
        tables
    }

    fn table(
        &self,
        id: &str,
        title: &str,
        value: impl Fn(&Entry) -> Option<(Estimate, Option<(Estimate, Vec<String>)>)>,
    ) -> Option<ResultTable> {
        let values = |model: &String| -> Vec<Option<Comparison>> {
            let of_task = |task: &TaskFacts| {
                let (ours, theirs) = value(self.entry(model, &task.name)?)?;
                Some(Comparison { ours, theirs })
            };
            self.tasks.iter().map(of_task).collect()
        };
        let all: Vec<Vec<Option<Comparison>>> = self.models.iter().map(values).collect();
        let tasks: Vec<usize> = (0..self.tasks.len()).filter(|t| all.iter().any(|row| row[*t].is_some())).collect();
        let rows = self.models.iter().zip(all).filter(|(_, row)| row.iter().any(Option::is_some));
        let pick = |mut row: Vec<Option<Comparison>>| tasks.iter().map(|t| row[*t].take()).collect();
        let (models, values): (Vec<String>, Vec<_>) = rows.map(|(model, row)| (model.clone(), pick(row))).unzip();
        (!models.is_empty()).then(|| ResultTable { id: id.into(), title: title.into(), models, tasks, values })
    }
}
