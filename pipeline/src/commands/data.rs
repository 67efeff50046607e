//! `pipeline data list | generate | import | show`.

use super::Context;
use crate::cli::{DataCommand, DataImportArgs, GenerateArgs, ShowArgs};
use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use data::{Dataset, ExampleRef, GENERATOR_VERSION, Split, Task, Vocabulary, generate_split, import, split_name, text};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

pub fn run(context: &Context, command: DataCommand) -> Result<()> {
    match command {
        DataCommand::List => list(context),
        DataCommand::Generate(args) => generate(context, &args),
        DataCommand::Import(args) => import_files(context, &args),
        DataCommand::Show(args) => show(context, &args),
    }
}

/// The file of a task's split.
pub fn split_path(data_dir: &Path, task: &str, split: Split) -> PathBuf {
    named_split_path(data_dir, task, split.name())
}

fn named_split_path(data_dir: &Path, task: &str, split: &str) -> PathBuf {
    data_dir.join(task).join(format!("{split}.parquet"))
}

/// Writes all splits of `task`, replacing what is there.
pub fn generate_all(context: &Context, task: &Task, train: usize, seed: u64) -> Result<Vec<(PathBuf, usize)>> {
    let mut written = Vec::new();
    for split in task.splits() {
        let rows = task.rows(split, train)?;
        let path = split_path(&context.global.data_dir, &task.name, split);
        let bar = context.progress.bar(split.name(), rows as u64, "examples");
        generate_split(task, split, seed, rows, &path, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        written.push((path, rows));
    }
    Ok(written)
}

fn list(context: &Context) -> Result<()> {
    let tasks = Task::names().map(Task::by_name).collect::<Result<Vec<_>, _>>()?;
    let decoded = |task: &Task| decode(task.family.example(Split::Val, 0, 2).as_ref(), &task.vocabulary);
    let as_json = || {
        let entry = |task: &Task| {
            let parameters: Map<String, Value> =
                task.parameters.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
            json!({
                "name": task.name,
                "family": task.family.name(),
                "parameters": parameters,
                "vocab_size": task.vocabulary.len(),
                "train_examples": task.train_examples,
                "train_max_length": task.family.train_max_length(),
                "max_seq_len": task.max_seq_len,
                "max_position_embeddings": task.max_position_embeddings,
                "splits": task.splits().into_iter().map(Split::name).collect::<Vec<_>>(),
                "example": decoded(task),
            })
        };
        tasks.iter().map(entry).collect()
    };
    let as_text = || {
        let mut table = Table::new();
        let header = ["task", "family", "settings", "vocab", "example"];
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(header);
        for task in &tasks {
            let settings: Vec<String> = task.settings().iter().map(|(name, value)| format!("{name}={value}")).collect();
            let (inputs, labels) = decoded(task);
            table.add_row([
                task.name.clone(),
                task.family.name().into(),
                settings.join(" "),
                task.vocabulary.len().to_string(),
                format!("{} → {}", shorten(&inputs), shorten(&labels)),
            ]);
        }
        table.to_string()
    };
    context.print(as_json, as_text)
}

fn generate(context: &Context, args: &GenerateArgs) -> Result<()> {
    let task = Task::by_name(&args.task)?;
    let existing = split_path(&context.global.data_dir, &task.name, Split::Train);
    if existing.exists() && !args.force {
        bail!("{} is there already\n  hint: --force replaces the dataset", existing.display());
    }
    let start = Instant::now();
    let written = generate_all(context, &task, args.train.unwrap_or(task.train_examples), args.seed)?;
    let seconds = start.elapsed().as_secs_f64();
    let as_json = || {
        let files: Vec<Value> = written.iter().map(|(path, rows)| json!({ "path": path, "examples": rows })).collect();
        json!({ "task": task.name, "seed": args.seed, "generator_version": GENERATOR_VERSION, "files": files, "seconds": seconds })
    };
    let as_text = || written.iter().map(|(path, rows)| format!("{}  {rows} examples\n", path.display())).collect();
    context.print(as_json, as_text)
}

fn import_files(context: &Context, args: &DataImportArgs) -> Result<()> {
    let task = Task::by_name(&args.task)?;
    if args.split.is_some() && args.files.len() > 1 {
        bail!("--split names one split, but there are {} files\n  hint: import them one at a time", args.files.len());
    }
    let mut jobs: Vec<(&Path, &str, PathBuf)> = vec![];
    for file in &args.files {
        let split = match &args.split {
            Some(name) if split_name(Path::new(name)).is_ok_and(|plain| plain == name) => name,
            Some(name) => bail!("--split {name} is not that of a split\n  hint: letters, digits, `_` and `-`"),
            None => split_name(file)?,
        };
        let target = named_split_path(&context.global.data_dir, &task.name, split);
        if jobs.iter().any(|(_, other, _)| *other == split) {
            bail!("two files are the split {split}\n  hint: import them one at a time with --split");
        }
        if target.exists() && !args.force {
            bail!("{} is there already\n  hint: --force replaces it", target.display());
        }
        jobs.push((file, split, target));
    }
    let mut written = Vec::new();
    for (source, split, target) in jobs {
        written.push((import(&task, source, split, args.check_labels, &target)?, split, target));
    }
    let as_json = || {
        let file = |(imported, split, path): &(data::Imported, &str, PathBuf)| json!({ "path": path, "split": split, "examples": imported.rows, "tokens": imported.tokens });
        json!({ "task": task.name, "labels_checked": args.check_labels, "files": written.iter().map(file).collect::<Vec<_>>() })
    };
    let as_text = || {
        let line = |(imported, _, path): &(data::Imported, &str, PathBuf)| {
            format!("{}  {} examples, {} tokens\n", path.display(), imported.rows, imported.tokens)
        };
        written.iter().map(line).collect()
    };
    context.print(as_json, as_text)
}

fn show(context: &Context, args: &ShowArgs) -> Result<()> {
    let task = args.task.as_deref().map(Task::by_name).transpose()?;
    let (path, dataset) = match (&args.file, &task) {
        (Some(file), task) if !is_parquet(file) => (file.clone(), text::read(file, task.as_ref())?),
        (Some(file), _) => (file.clone(), Dataset::read(file)?),
        (None, Some(task)) => {
            let path = named_split_path(&context.global.data_dir, &task.name, &args.split);
            let dataset = Dataset::read(&path)?;
            (path, dataset)
        }
        (None, None) => bail!("neither a file nor --task was given"),
    };
    let info = dataset.info();
    let vocabulary = Vocabulary::new(info.vocab.clone());
    let shown: Vec<_> = dataset.iter().take(args.examples).collect();
    let tokens: usize = dataset.iter().map(|e| e.input_ids.len()).sum();
    let lengths = histogram(&dataset.iter().map(|e| e.length).collect::<Vec<_>>());
    let labels = labels(&dataset, &vocabulary);
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

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "parquet")
}

fn decode(example: ExampleRef<'_>, vocabulary: &Vocabulary) -> (Vec<String>, Vec<String>) {
    let token = |id: u16| vocabulary.token(id).unwrap_or("?").to_owned();
    let label = |l: &i16| u16::try_from(*l).map_or_else(|_| "-1".into(), token);
    (example.input_ids.iter().map(|id| token(*id)).collect(), example.labels.iter().map(label).collect())
}

fn shorten(tokens: &[String]) -> String {
    let shown = tokens.iter().take(6).map(String::as_str).collect::<Vec<_>>().join(" ");
    if tokens.len() > 6 { shown + " …" } else { shown }
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

/// How often each label occurs, in the order of the vocabulary.
fn labels(dataset: &Dataset, vocabulary: &Vocabulary) -> Vec<(String, usize)> {
    let mut counts = vec![0; vocabulary.len()];
    let labels = dataset.iter().flat_map(|e| e.labels.iter());
    labels.filter_map(|l| usize::try_from(*l).ok()).for_each(|l| counts[l] += 1);
    let named = vocabulary.tokens().iter().cloned().zip(counts);
    named.filter(|(_, n)| *n > 0).collect()
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
