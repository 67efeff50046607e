//! `pipeline data show`: a task in one picture, or the examples of a dataset.

use super::{Context, decode};
use crate::cli::ShowArgs;
use crate::cli::table::screen_width;
use anyhow::{Context as _, Result, bail};
use data::{Dataset, DatasetFolders, Example, Split, Task, Vocabulary};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use unicode_width::UnicodeWidthStr;

pub fn run(context: &Context, args: &ShowArgs) -> Result<()> {
    let task = args.task.as_deref().map(Task::by_name).transpose()?;
    match (&args.file, &task, &args.split) {
        (Some(file), task, _) => dataset(context, args, file, &Dataset::read_as(file, task.as_ref())?),
        (None, Some(task), Some(split)) => {
            let (path, found) = show_split(context, task, split)?;
            dataset(context, args, &path, &found)
        }
        (None, Some(task), None) if task.family.outside().is_some() => {
            let (path, found) = show_split(context, task, Split::Val.name())?;
            dataset(context, args, &path, &found)
        }
        (None, Some(task), None) => picture(context, args, task),
        (None, None, _) => bail!("neither a file nor --task was given"),
    }
}

/// How many lengths are tried for examples of a task.
const TRIED: u32 = 400;

/// A task with one test for each of its first lengths, whose labels stand under its tokens.
fn picture(context: &Context, args: &ShowArgs, task: &Task) -> Result<()> {
    let family = task.family.as_ref();
    let tests = (1..=TRIED).filter_map(|length| family.test(0, 0, length).ok());
    let tests: Vec<Example> = tests.take(args.examples).collect();
    let lengths = family.train_lengths();
    let (from, to) = (*lengths.start(), *lengths.end());
    let chance = tests.last().and_then(|test| family.chance(test.length));
    let as_json = || {
        let examples: Vec<Value> = tests.iter().map(|test| json!(decode(test.as_ref(), &task.vocabulary))).collect();
        json!({
            "task": task.name, "family": family.name(), "paper": task.paper(), "vocab": task.vocabulary.tokens(),
            "units": task.vocabulary.unit_tokens(), "train_lengths": [from, to], "chance": chance, "examples": examples,
        })
    };
    let as_text = || {
        let origin = task.paper().map_or(String::new(), |paper| format!(" · {paper}"));
        let chance = chance.map_or(String::new(), |chance| format!(" · guessing: {:.1} %", 100.0 * chance));
        let mut text = format!("{} · family {}{origin}\n", task.name, family.name());
        text += &format!("trained on lengths {from} to {to}{chance}\n{}", tokens(&task.vocabulary));
        let width = screen_width();
        tests.iter().for_each(|test| text += &format!("\nlength {}\n{}", test.length, aligned(test, task, width)));
        text
    };
    context.print(as_json, as_text)
}

/// The vocabulary, and the tokens that labels are sets of.
fn tokens(vocabulary: &Vocabulary) -> String {
    const SHOWN: usize = 30;
    let list = |tokens: &[String]| {
        let more = if tokens.len() > SHOWN { format!(" … ({})", tokens.len()) } else { String::new() };
        tokens.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(" ") + &more
    };
    let units = vocabulary.unit_tokens();
    let sets = if units.is_empty() { String::new() } else { format!("labels are sets of {}\n", list(&units)) };
    format!("tokens {}\n{sets}", list(vocabulary.tokens()))
}

/// An example with its labels under its tokens, in as many lines as it takes; `·` where there is no label.
fn aligned(example: &Example, task: &Task, width: Option<usize>) -> String {
    let (inputs, labels) = decode(example.as_ref(), &task.vocabulary);
    let labels = labels.into_iter().map(|label| if label == "-1" { "·".to_owned() } else { label });
    let (mut lines, mut above, mut below) = (String::new(), String::new(), String::new());
    let mut end_line = |above: &mut String, below: &mut String| {
        lines += &format!("  input {}\n  label {}\n", above.trim_end(), below.trim_end());
        (*above, *below) = (String::new(), String::new());
    };
    for (input, label) in inputs.iter().zip(labels) {
        let column = input.width().max(label.width());
        if width.is_some_and(|width| 8 + above.width() + column > width && !above.is_empty()) {
            end_line(&mut above, &mut below);
        }
        let pad = |text: &str| format!("{text}{} ", " ".repeat(column - text.width()));
        above += &pad(input);
        below += &pad(&label);
    }
    end_line(&mut above, &mut below);
    lines
}

/// A dataset's first examples, and how often lengths and labels occur.
fn dataset(context: &Context, args: &ShowArgs, path: &Path, dataset: &Dataset) -> Result<()> {
    dataset.note().into_iter().for_each(|note| context.progress.note(format!("{}: {note}", path.display())));
    let info = dataset.info();
    let vocabulary = info.vocabulary();
    let shown: Vec<_> = dataset.iter().take(args.examples).collect();
    let tokens: usize = dataset.iter().map(|e| e.input_ids.len()).sum();
    let lengths = histogram(&dataset.iter().map(|e| e.length).collect::<Vec<_>>());
    let labels = labels(dataset, &vocabulary);
    let as_json = || {
        let examples: Vec<Value> = shown.iter().map(|e| json!(decode(*e, &vocabulary))).collect();
        json!({
            "path": path, "task": info.task, "seed": info.seed, "generator_version": info.generator_version,
            "imported": info.is_imported(), "examples": dataset.len(), "tokens": tokens, "max_seen_len": dataset.max_seen_len(),
            "lengths": lengths, "labels": labels, "first": examples,
        })
    };
    let as_text = || {
        let origin = if info.is_imported() { "imported".into() } else { format!("seed {}", info.seed) };
        let mut text = format!(
            "{}: {} examples, {tokens} tokens of {} · task {} · {origin}\n\n",
            path.display(),
            dataset.len(),
            vocabulary.len(),
            info.task,
        );
        for example in &shown {
            let (inputs, labels) = decode(*example, &vocabulary);
            text += &format!(
                "length {:>4}  input  {}\n             labels {}\n",
                example.length,
                inputs.join(" "),
                labels.join(" ")
            );
        }
        text + "\nlengths\n" + &bars(&lengths) + "\nlabels\n" + &bars(&group(&labels))
    };
    context.print(as_json, as_text)
}

/// A split of a task: what there is of its dataset, or what comes from outside.
fn show_split(context: &Context, task: &Task, split: &str) -> Result<(PathBuf, Dataset)> {
    let found = DatasetFolders::new(&context.datasets).find(task, split, None)?;
    if let (None, Some(outside)) = (&found, task.family.outside()) {
        let most = if outside.is_endless() { SHOWN } else { usize::MAX };
        let dataset = match split.parse::<Split>() {
            Ok(known) => {
                let rows = task.rows(known, task.train_examples)?.min(most);
                Some(Dataset::generated(task, known, 0, rows)?)
            }
            Err(_) => Dataset::from_outside(task, split)?,
        };
        if let Some(dataset) = dataset {
            return Ok((PathBuf::from(&task.name), dataset));
        }
    }
    let path = found.map_or_else(|| find(context, task, split), Ok)?;
    let dataset = Dataset::read_as(&path, Some(task))?;
    Ok((path, dataset))
}

/// Examples from outside that are made to be shown, at most.
const SHOWN: usize = 1000;

/// The file of a split that is there.
fn find(context: &Context, task: &Task, split: &str) -> Result<PathBuf> {
    let folders = DatasetFolders::new(&context.datasets);
    folders.find(task, split, None)?.with_context(|| {
        let splits: Vec<&str> = task.splits().into_iter().map(Split::name).collect();
        format!(
            "cannot read {}: No such file or directory\n  hint: `pipeline data generate --task {}` writes {}; \
             `pipeline data import` writes others",
            folders.imported(task).join(format!("{split}.parquet")).display(),
            task.name,
            splits.join(", ")
        )
    })
}

/// Counts in at most twenty ranges of equal width.
fn histogram(values: &[u32]) -> Vec<(String, usize)> {
    let values = || values.iter().map(|value| u64::from(*value));
    let (Some(low), Some(high)) = (values().min(), values().max()) else { return vec![] };
    let width = (high - low + 1).div_ceil(20);
    let mut counts = vec![0; ((high - low) / width + 1) as usize];
    values().for_each(|value| counts[((value - low) / width) as usize] += 1);
    let range = |i: usize| {
        let from = low + i as u64 * width;
        let to = (from + width - 1).min(high);
        if from == to { from.to_string() } else { format!("{from}–{to}") }
    };
    counts.into_iter().enumerate().map(|(i, n)| (range(i), n)).collect()
}

/// How often each label occurs, in the order of the vocabulary or of the sets.
fn labels(dataset: &Dataset, vocabulary: &Vocabulary) -> Vec<(String, usize)> {
    let mut counts = vec![0; vocabulary.label_count()];
    let labels = dataset.iter().flat_map(|e| e.labels.iter());
    labels.filter_map(|l| usize::try_from(*l).ok()).for_each(|l| counts[l] += 1);
    let counted = (0..).zip(counts).filter(|(_, n)| *n > 0);
    counted.map(|(label, n)| (vocabulary.label(label), n)).collect()
}

/// Neighbours taken together until at most twenty rows are left.
fn group(counts: &[(String, usize)]) -> Vec<(String, usize)> {
    let range = |group: &[(String, usize)]| {
        let name = match group {
            [(first, _), .., (last, _)] => format!("{first}–{last}"),
            _ => group[0].0.clone(),
        };
        (name, group.iter().map(|(_, n)| n).sum())
    };
    counts.chunks(counts.len().div_ceil(20).max(1)).map(range).collect()
}

fn bars(counts: &[(String, usize)]) -> String {
    let most = counts.iter().map(|(_, n)| *n).max().unwrap_or(1).max(1);
    let bar = |(name, n): &(String, usize)| format!("{name:>11}  {n:>9}  {}\n", "█".repeat((40 * n).div_ceil(most)));
    counts.iter().map(bar).collect()
}
