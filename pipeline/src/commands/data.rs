//! `pipeline data list | generate | show`.

use super::Context;
use crate::cli::{DataCommand, GenerateArgs, ShowArgs};
use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use data::{Dataset, Example, ExampleRef, GENERATOR_VERSION, Split, Task, Vocabulary, generate_split};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

pub fn run(context: &Context, command: DataCommand) -> Result<()> {
    match command {
        DataCommand::List => list(context),
        DataCommand::Generate(args) => generate(context, &args),
        DataCommand::Show(args) => show(context, &args),
    }
}

/// The file of a task's split.
pub fn split_path(data_dir: &Path, task: &str, split: Split) -> PathBuf {
    data_dir.join(task).join(format!("{}.parquet", split.name()))
}

/// Writes all splits of `task`, replacing what is there.
pub fn generate_all(context: &Context, task: &Task, train: usize, seed: u64) -> Result<Vec<(PathBuf, usize)>> {
    let mut written = Vec::new();
    for split in Split::ALL {
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
    let parameters = |task: &Task| task.family.parameters();
    let example = |task: &Task| task.family.example(Split::Val, 0, 2);
    let as_json = || {
        let entry = |task: &Task| {
            let (inputs, labels) = decode(example(task).as_ref(), &task.vocabulary);
            let parameters: serde_json::Map<String, Value> =
                parameters(task).into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            json!({
                "name": task.name,
                "family": task.family.name(),
                "parameters": parameters,
                "vocab_size": task.vocabulary.len(),
                "train_max_length": task.family.train_max_length(),
                "max_seq_len": task.max_seq_len,
                "max_position_embeddings": task.max_position_embeddings,
                "example": [inputs, labels],
            })
        };
        tasks.iter().map(entry).collect()
    };
    let as_text = || {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header([
            "task",
            "family",
            "parameters",
            "vocab",
            "example",
        ]);
        for task in &tasks {
            let parameters: Vec<String> = parameters(task).iter().map(|(n, v)| format!("{n}={v}")).collect();
            let example: Example = shorten(example(task), 4);
            let (inputs, labels) = decode(example.as_ref(), &task.vocabulary);
            table.add_row([
                task.name.clone(),
                task.family.name().into(),
                parameters.join(" "),
                task.vocabulary.len().to_string(),
                format!("{} → {}", inputs.join(" "), labels.join(" ")),
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
    let written = generate_all(context, &task, args.train, args.seed)?;
    let seconds = start.elapsed().as_secs_f64();
    let as_json = || {
        let files: Vec<Value> = written.iter().map(|(path, rows)| json!({ "path": path, "examples": rows })).collect();
        json!({ "task": task.name, "seed": args.seed, "generator_version": GENERATOR_VERSION, "files": files, "seconds": seconds })
    };
    let as_text = || written.iter().map(|(path, rows)| format!("{}  {rows} examples\n", path.display())).collect();
    context.print(as_json, as_text)
}

fn show(context: &Context, args: &ShowArgs) -> Result<()> {
    let path = match (&args.file, &args.task) {
        (Some(file), _) => file.clone(),
        (None, Some(task)) => split_path(&context.global.data_dir, &Task::by_name(task)?.name, args.split),
        (None, None) => bail!("neither a file nor --task was given"),
    };
    let dataset = Dataset::read(&path)?;
    let info = dataset.info();
    let vocabulary = Vocabulary::new(info.vocab.clone());
    let shown: Vec<_> = dataset.iter().take(args.examples).collect();
    let tokens: usize = dataset.iter().map(|e| e.input_ids.len()).sum();
    let lengths = histogram(&dataset);
    let as_json = || {
        let examples: Vec<Value> = shown.iter().map(|e| json!(decode(*e, &vocabulary))).collect();
        json!({
            "path": path, "task": info.task, "seed": info.seed, "generator_version": info.generator_version,
            "examples": dataset.len(), "tokens": tokens, "lengths": lengths, "first": examples,
        })
    };
    let as_text = || {
        let mut text = format!(
            "{}: {} examples, {tokens} tokens of {} · task {} · seed {}\n\n",
            path.display(),
            dataset.len(),
            vocabulary.len(),
            info.task,
            info.seed
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
        text += "\nlengths\n";
        let most = lengths.iter().map(|(_, n)| *n).max().unwrap_or(1);
        for (range, count) in &lengths {
            text += &format!("{range:>11}  {count:>8}  {}\n", "█".repeat((40 * count).div_ceil(most)));
        }
        text
    };
    context.print(as_json, as_text)
}

fn decode(example: ExampleRef<'_>, vocabulary: &Vocabulary) -> (Vec<String>, Vec<String>) {
    let token = |id: u16| vocabulary.token(id).unwrap_or("?").to_owned();
    let label = |l: &i16| u16::try_from(*l).map_or_else(|_| "-1".into(), token);
    (example.input_ids.iter().map(|id| token(*id)).collect(), example.labels.iter().map(label).collect())
}

fn shorten(mut example: Example, tokens: usize) -> Example {
    example.input_ids.truncate(tokens);
    example.labels.truncate(tokens);
    example
}

/// Counts in at most twenty ranges of equal width.
fn histogram(dataset: &Dataset) -> Vec<(String, usize)> {
    let (low, high) = dataset.iter().fold((u32::MAX, 0), |(low, high), e| (low.min(e.length), high.max(e.length)));
    if dataset.is_empty() {
        return vec![];
    }
    let width = (high - low + 1).div_ceil(20);
    let mut counts = vec![0; ((high - low) / width + 1) as usize];
    dataset.iter().for_each(|e| counts[((e.length - low) / width) as usize] += 1);
    let range = |i: u32| {
        let (from, to) = (low + i * width, (low + (i + 1) * width - 1).min(high));
        if from == to { from.to_string() } else { format!("{from}–{to}") }
    };
    counts.into_iter().enumerate().map(|(i, n)| (range(i as u32), n)).collect()
}
