//! Random bytes, through all readers. Coverage guidance would need a nightly or C++ toolchain; instead, mutations start
//! from valid files and include whole tokens of the formats.
//!
//! `FUZZ_SECONDS=60 cargo test --release -p data --test fuzz -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use data::{Dataset, Split, Task, generate_split, import, stream_rng, text};
use rand::{Rng, RngExt};
use std::time::{Duration, Instant};

/// Pieces of text files, of Parquet's Thrift and of Arrow's messages.
const PIECES: [&[u8]; 22] = [
    b"[[",
    b"]]",
    b"\", \"",
    b"\n",
    b"\r\n",
    b"\\u0000",
    b"\\ud800",
    b"\xEF\xBB\xBF",
    b"\xff\xfe",
    b"\"-1\"",
    b"\"<pad>\"",
    b"PAR1",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x15\x00\x15\x00",
    b"ARROW1\0\0",
    b"\xff\xff\xff\xff\x00\x00\x00\x00",
    b"{\"input_ids\": [",
    b"\"labels\": ",
    b"-100, 1e300",
    b"\"[0 1 2]\",",
];

/// Files of other programs: every compression, every form.
const FOREIGN: [&str; 14] = [
    "snappy.parquet",
    "gzip.parquet",
    "brotli.parquet",
    "lz4.parquet",
    "fixed_size_list.parquet",
    "other_order.parquet",
    "lz4.feather",
    "list_view.arrow",
    "plain.feather",
    "stream.arrow",
    "lines.json",
    "list.json",
    "pandas.csv",
    "arrays.csv",
];

fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=8) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(1..=40)).min(bytes.len());
        match rng.random_range(0..8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 if at < bytes.len() => bytes[at] = rng.random(),
            3 => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, PIECES[rng.random_range(0..PIECES.len())].iter().copied())),
            5 => {
                let piece = bytes[at..end].to_vec();
                let to = rng.random_range(0..=bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            6 => {
                let from = rng.random_range(0..other.len());
                let piece = &other[from..(from + 40).min(other.len())];
                drop(bytes.splice(at..end, piece.iter().copied()));
            }
            7 if rng.random_bool(0.05) => bytes.truncate(at),
            _ => {
                // near the end: the footer of Parquet files
                let at = bytes.len().saturating_sub(rng.random_range(1..600));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = byte.wrapping_add(rng.random());
                }
            }
        }
    }
}

fn fuzz(budget: Duration) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input");
    let target = dir.path().join("out.parquet");
    let tasks = [
        "debug",
        "counting_samesymbol_shiftedstart3_padhelper",
        "counting_selective_10items2bos",
        "counting_raspL",
        "counting_samesymbol_mod10bos",
    ];
    let tasks = tasks.map(|name| Task::by_name(name).unwrap());
    let mut seeds = vec![];
    for task in &tasks {
        let rows = task.rows(Split::Val, 0).unwrap().min(40);
        generate_split(task, Split::Val, 0, rows, &path, |_| ()).unwrap();
        seeds.push((task, std::fs::read(&path).unwrap()));
        let lines = Dataset::generated(task, Split::Val, 0, rows.min(5)).unwrap();
        let lines: String = lines.iter().map(|e| text::to_line(e, &task.vocabulary) + "\n").collect();
        seeds.push((task, lines.into_bytes()));
    }
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    seeds.extend(FOREIGN.iter().map(|name| (&tasks[4], std::fs::read(fixtures.join(name)).unwrap())));
    let (start, mut runs) = (Instant::now(), 0);
    while start.elapsed() < budget {
        let rng = &mut stream_rng(0, "fuzz", runs);
        let (task, seed) = &seeds[rng.random_range(0..seeds.len())];
        let (_, other) = &seeds[rng.random_range(0..seeds.len())];
        let mut bytes = seed.clone();
        mutate(&mut bytes, other, rng);
        std::fs::write(&path, &bytes).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // accepted examples are consistent
            let read = [
                Dataset::read(&path),
                Dataset::read_pairs(&path, None),
                Dataset::read_as(&path, None),
                Dataset::read_as(&path, Some(task)),
            ];
            for dataset in read.into_iter().flatten() {
                for e in dataset.iter() {
                    assert_eq!(e.input_ids.len(), e.labels.len());
                    assert!(e.input_ids.iter().all(|id| usize::from(*id) < dataset.info().vocab.len()));
                }
            }
            if import(task, &path, "val", runs % 2 == 0, &target).is_ok() {
                Dataset::read(&target).unwrap();
            }
        }));
        if outcome.is_err() {
            let keep = std::env::temp_dir().join(format!("fuzz-{runs}"));
            std::fs::write(&keep, &bytes).unwrap();
            panic!("run {runs} panicked; its input is {}", keep.display());
        }
        runs += 1;
    }
    runs
}

#[test]
fn a_moment_of_fuzzing() {
    assert!(fuzz(Duration::from_secs(2)) > 0);
}

#[test]
#[ignore = "runs for FUZZ_SECONDS"]
fn fuzz_for_a_while() {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(60, |s| s.parse().unwrap());
    println!("{} inputs in {seconds} s", fuzz(Duration::from_secs(seconds)));
}
