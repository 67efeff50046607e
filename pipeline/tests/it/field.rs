//! The standard tasks of length generalisation from training to a sweep: labels at blanks, after a prompt, at queries, and
//! labels that are sets.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use crate::common::{ok, repository};
use serde_json::Value;
use std::path::Path;

fn json(folder: &Path, arguments: &[&str]) -> Value {
    ok(folder, &[arguments, &["--json", "--quiet"]].concat()).parse().unwrap()
}

/// Trains a small LSTM on fresh examples and exports it; the handle.
fn trained(folder: &Path, task: &str, more: &[&str]) -> String {
    let config = repository("configs/lstm.toml");
    let mut arguments = vec!["train", "--config", &config, "--task", task];
    let common = [
        "train.fresh=true",
        "train.equal_lengths=true",
        "train.batch_size=16",
        "train.epochs=1",
        "model.hidden_size=16",
        "task.val_examples=20",
        "task.test_examples=20",
    ];
    common.iter().chain(more).for_each(|set| arguments.extend(["--set", set]));
    let handle = json(folder, &arguments)["handle"].as_str().unwrap().to_owned();
    ok(folder, &["export", "--handle", &handle, "--quiet"]);
    handle
}

/// Both ways of sweeping score every length of every kind of task alike, and say why a length has no score.
#[test]
fn sweeps_of_every_kind_of_task_are_exact() {
    for (task, without_tests) in [
        ("word/S5", vec![]),
        ("bhatt/dyck2", (1..=40).step_by(2).collect::<Vec<u64>>()),
        ("chomsky/reverse_string", vec![]),
        ("huang/bin_majority", vec![]),
        ("mqar/v128", (1..=40).filter(|length| length % 2 == 1 || *length < 4).collect()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let handle = trained(dir.path(), task, &["train.max_steps=2"]);
        let sweep = |more: &[&str]| {
            let swept = json(
                dir.path(),
                &[&["eval", "--handle", &handle, "--lengths", "1..40", "--samples", "7", "--mean", "21..40"], more]
                    .concat(),
            );
            let row = |row: &Value| {
                let part = |key: &str| row[key].clone();
                ["length", "n_sequences", "accuracy", "sequence_accuracy", "last_accuracy", "chance", "status"]
                    .map(part)
            };
            (swept["lengths"].as_array().unwrap().iter().map(row).collect::<Vec<_>>(), swept["means"].clone())
        };
        let (plain, means) = sweep(&[]);
        assert_eq!((plain.clone(), means.clone()), sweep(&["--exhaustive"]), "{task}");
        let missing: Vec<u64> = plain.iter().filter(|row| row[6] != "ok").map(|row| row[0].as_u64().unwrap()).collect();
        assert_eq!(missing, without_tests, "{task}");
        assert!(plain.iter().filter(|row| row[6] == "ok").all(|row| row[1] == 7), "{task}: {plain:?}");
        assert!(means[0]["accuracy"].is_f64() && means[0]["range"] == "21..40", "{means}");
    }
}

/// Tomita 4, no three zeros in a row, by the sets of letters that may come next: an LSTM learns it within a second. Its
/// loss is the squared error of a sigmoid.
#[test]
fn labels_that_are_sets_are_learnt_and_scored() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["train.max_steps=400", "optimizer.lr=2e-2", "task.train_examples=100000"];
    let handle = trained(dir.path(), "bhatt/tomita4", &sets);
    let arguments = ["eval", "--handle", &handle, "--lengths", "2..40", "--mean", "2..40", "--predictions"];
    let swept = json(dir.path(), &arguments);
    let exact = swept["means"][0]["sequence_accuracy"].as_f64().unwrap();
    assert!(exact > 0.95, "{exact}");
    let shown = ok(dir.path(), &["data", "show", "--task", "bhatt/dyck1", "-n", "1"]);
    assert!(shown.contains("input (  )") && shown.contains("label 11 10"), "{shown}");
}
