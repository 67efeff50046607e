//! The three tasks against their written rules, and Parquet round trips.
#![allow(clippy::unwrap_used)]

use data::{DataError, Dataset, Split, Task, generate_split};
use std::collections::HashSet;

/// The published validation and out-of-distribution files of the enumerated tasks: their length in bytes and their FNV-1a
/// hash.
const PUBLISHED: [(&str, Split, usize, u64); 6] = [
    ("counting_samesymbol_mod10", Split::Val, 78630, 0x4af19b9a9395b135),
    ("counting_samesymbol_mod10", Split::OodTest, 38355, 0xd403634945efb173),
    ("counting_samesymbol_mod10bos", Split::Val, 81930, 0x50dbfcd6cf0bb325),
    ("counting_samesymbol_mod10bos", Split::OodTest, 38905, 0xb1c1422a4d0b3fd3),
    ("counting_samesymbol_shiftedstart3", Split::Val, 28306, 0x16969486dbf50db7),
    ("counting_samesymbol_shiftedstart3", Split::OodTest, 921614, 0x227375ab26711e07),
];

/// A split as the published text files have it: one JSON pair of token and label lists a line.
fn as_text(task: &Task, split: Split) -> String {
    let rows = task.rows(split, 1_000).unwrap();
    let list = |items: Vec<&str>| format!("[\"{}\"]", items.join("\", \""));
    let line = |e: data::ExampleRef| {
        let inputs = e.input_ids.iter().map(|t| task.vocabulary.token(*t).unwrap());
        let labels = e.labels.iter().map(|l| u16::try_from(*l).map_or("-1", |l| task.vocabulary.token(l).unwrap()));
        format!("[{}, {}]\n", list(inputs.collect()), list(labels.collect()))
    };
    Dataset::generated(task, split, 0, rows).iter().map(line).collect()
}

#[test]
fn enumerated_splits_equal_the_published_files_byte_for_byte() {
    for (name, split, length, hash) in PUBLISHED {
        let text = as_text(&Task::by_name(name).unwrap(), split);
        let fnv1a = text.bytes().fold(0xcbf29ce484222325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100000001b3));
        assert_eq!((text.len(), fnv1a), (length, hash), "{name} {}", split.name());
    }
}

#[test]
fn examples_by_hand() {
    let first = |name: &str, split, i| {
        let task = Task::by_name(name).unwrap();
        let e = task.family.example(split, 0, i);
        (e.input_ids, e.labels, e.length)
    };
    assert_eq!(
        first("counting_samesymbol_mod10", Split::Train, 11),
        (vec![12; 12], vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2], 12)
    );
    assert_eq!(first("counting_samesymbol_mod10bos", Split::Val, 1), (vec![0, 12, 12], vec![-1, 1, 2], 2));
    let (ids, labels, length) = first("counting_samesymbol_shiftedstart3", Split::OodTest, 0);
    assert_eq!((ids[0], length, labels[0], labels[1], labels[51]), (1, 51, -1, 2, 52));
}

#[test]
fn split_sizes() {
    for (name, train, val, ood) in [
        ("counting_samesymbol_mod10", 1_000_000, 300, 50),
        ("counting_samesymbol_mod10bos", 1_000_000, 300, 50),
        ("counting_samesymbol_shiftedstart3", 1_000_000, 50, 1225),
    ] {
        let task = Task::by_name(name).unwrap();
        let rows = |s| task.rows(s, 1_000_000).unwrap();
        assert_eq!((rows(Split::Train), rows(Split::Val), rows(Split::OodTest)), (train, val, ood), "{name}");
        assert!(task.rows(Split::Train, 3).unwrap_err().to_string().contains("at least 50"));
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    let message = Task::by_name("counting_samesymbol_mod10boss").unwrap_err().to_string();
    assert!(message.contains("did you mean `counting_samesymbol_mod10bos`?"), "{message}");
}

#[test]
fn same_seed_same_bytes_and_the_round_trip_is_the_identity() {
    let dir = tempfile::tempdir().unwrap();
    let task = Task::by_name("counting_samesymbol_shiftedstart3").unwrap();
    let (a, b) = (dir.path().join("a.parquet"), dir.path().join("b.parquet"));
    generate_split(&task, Split::Train, 3, 20_000, &a, |_| ()).unwrap();
    generate_split(&task, Split::Train, 3, 20_000, &b, |_| ()).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    assert_eq!(Dataset::read(&a).unwrap(), Dataset::generated(&task, Split::Train, 3, 20_000));
}

#[test]
fn a_truncated_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("val.parquet");
    let task = Task::by_name("counting_samesymbol_mod10").unwrap();
    generate_split(&task, Split::Val, 0, 300, &path, |_| ()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for keep in [0, 3, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        let error = Dataset::read(&path).unwrap_err();
        assert!(matches!(error, DataError::Damaged { .. }), "{keep}: {error}");
        assert!(error.to_string().contains("val.parquet"));
    }
}

#[test]
fn tracks_are_prefix_closed_and_stay_inside_the_vocabulary() {
    for name in Task::names() {
        let task = Task::by_name(name).unwrap();
        let v = task.vocabulary.len();
        for index in 0..task.family.distinct_tracks().unwrap() {
            let long = task.family.track(0, index, 1000);
            assert!(long.input_ids.iter().all(|t| usize::from(*t) < v), "{name} {index}");
            assert!(long.labels.iter().all(|l| *l >= -1 && i64::from(*l) < v as i64), "{name} {index}");
            for length in 1..110 {
                if length > long.max_length() {
                    let error = long.prefix(length).unwrap_err();
                    assert!(error.reason.contains("last number"), "{name} {index} {length}: {error}");
                    continue;
                }
                let short = task.family.track(0, index, length);
                assert_eq!(short.prefix(length), long.prefix(length), "{name} {index} {length}");
                assert_eq!(long.prefix(length).unwrap().input_ids.len(), long.tokens(length));
            }
        }
    }
}

#[test]
fn the_out_of_distribution_examples_are_prefixes_of_tracks() {
    for name in Task::names() {
        let task = Task::by_name(name).unwrap();
        let tracks: Vec<_> =
            (0..task.family.distinct_tracks().unwrap()).map(|i| task.family.track(0, i, 1000)).collect();
        let rows = task.rows(Split::OodTest, 1_000).unwrap();
        for e in Dataset::generated(&task, Split::OodTest, 0, rows).iter() {
            let on_a_track: HashSet<bool> =
                tracks.iter().filter_map(|t| t.prefix(e.length).ok()).map(|p| p == e).collect();
            assert!(on_a_track.contains(&true), "{name}: length {}", e.length);
        }
    }
}
