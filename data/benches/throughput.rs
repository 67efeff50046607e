//! `cargo bench -p data`: making examples, writing a million of them, and reading them back into batches. Each line is
//! the median of five runs; all but the second block use one core.
#![allow(clippy::unwrap_used)]

use data::{Batch, Collation, Dataset, EpochOrder, ExampleRef, Split, Task, generate_split};
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 100_000;

/// The tokens of as many examples, where they are long.
const TOKENS: usize = 5_000_000;

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
    for name in Task::names().filter(|name| only.as_ref().is_none_or(|only| name.contains(only.as_str()))) {
        let task = task(name);
        let examples = task.examples(Split::Train, 0);
        let rows = ROWS.min(TOKENS / examples(0).input_ids.len());
        let tokens: usize = (0..rows).map(|i| examples(i).input_ids.len()).sum();
        measure(name, tokens, "tokens", || (0..rows).for_each(|i| drop(black_box(examples(i)))));
        // families that draw examples by length
        let possible = |length: &u32| task.family.of_length(0, 0, *length).is_some();
        for length in [100, 300, 500].into_iter().filter_map(|length| (length..length + 4).find(possible)) {
            let rows = TOKENS / 4 / length as usize;
            let draw = |i: usize| drop(black_box(task.family.of_length(0, i, length)));
            measure(&format!("{name}, {length} each"), rows * length as usize, "tokens", || (0..rows).for_each(draw));
        }
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
