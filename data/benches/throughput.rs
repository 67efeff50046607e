//! `cargo bench -p data`: drawing examples into batches, writing a million of them, and reading them back into batches. Each line is
//! the median of five runs; all but the second block use one core, the first one fresh examples.
#![allow(clippy::unwrap_used)]

use data::{Batch, Collation, Dataset, EpochOrder, Example, ExampleRef, Split, Task, generate_split};
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 100_000;
/// Tokens of a task that are drawn into batches, at least.
const TOKENS: usize = 1_000_000;
const BATCH: usize = 32;

/// Prints how many `things` per second `run` gets through.
fn measure(name: &str, things: usize, unit: &str, mut run: impl FnMut()) {
    let mut seconds: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!("{name:<58} {:>9.3} s  {:>8.2} M {unit}/s", seconds[2], things as f64 / seconds[2] / 1e6);
}

fn main() {
    let task = |name| Task::by_name(name).unwrap();
    let only = std::env::args().nth(1).filter(|only| !only.starts_with('-')); // `cargo bench -p data -- word/`
    // As `train.fresh` makes its batches; a task's longest examples decide the width of each.
    for name in Task::names().filter(|name| only.as_ref().is_none_or(|only| name.contains(only.as_str()))) {
        let task = task(name);
        let examples = task.examples(Split::Train, 0);
        let mut rows = 0;
        let mut tokens = 0;
        while tokens < TOKENS {
            tokens += (rows..rows + BATCH).map(|i| examples(i).input_ids.len()).sum::<usize>();
            rows += BATCH;
        }
        measure(name, tokens, "tokens", || {
            for first in (0..rows).step_by(BATCH) {
                let drawn: Vec<Example> = (first..first + BATCH).map(&examples).collect();
                let drawn: Vec<ExampleRef> = drawn.iter().map(Example::as_ref).collect();
                black_box(Batch::collate(&drawn, &task.vocabulary, &Collation::sequential()).unwrap());
            }
        });
    }

    if only.is_some() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    for name in ["counting_samesymbol_shiftedstart3", "counting_diffsymbol", "counting_selective_10items"] {
        let task = task(name);
        measure(&format!("1 M examples to Parquet, {name}"), 1_000_000, "examples", || {
            generate_split(&task, Split::Train, 0, 1_000_000, &path, |_| ()).unwrap();
        });
        println!("{:>58} {:>9.1} MB", "", path.metadata().unwrap().len() as f64 / 1e6);
    }

    let task = task("counting_samesymbol_shiftedstart3");
    generate_split(&task, Split::Train, 0, ROWS, &path, |_| ()).unwrap();
    let tokens = ROWS * 51;
    measure("reading Parquet", tokens, "tokens", || drop(Dataset::read(&path).unwrap()));
    let dataset = Dataset::read(&path).unwrap();
    let order = EpochOrder::new(0, 0, dataset.len());
    measure("shuffled batches of 32", tokens, "tokens", || {
        for step in 0..order.steps(32) {
            let rows: Vec<ExampleRef> = order.batch(step, 32).iter().map(|&i| dataset.get(i as usize)).collect();
            black_box(Batch::collate(&rows, &task.vocabulary, &Collation::sequential()).unwrap());
        }
    });
}
