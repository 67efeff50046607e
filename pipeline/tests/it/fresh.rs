//! Training on examples that are drawn anew in every step.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use crate::common::{fails, files, ok, repository};
use serde_json::Value;
use std::fs;
use std::path::Path;

fn arguments<'a>(config: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "--config", config, "--task", "counting_diffsymbol_mod10", "--json", "--quiet"];
    let common = [
        "task.train_examples=320",
        "train.fresh=true",
        "train.batch_size=32",
        "train.epochs=2",
        "train.checkpoint_every=7",
        "train.log_every=1",
        "model.hidden_size=8",
    ];
    common.iter().chain(more).for_each(|set| arguments.extend(["--set", set]));
    arguments
}

fn train(folder: &Path, more: &[&str]) -> String {
    let config = repository("configs/lstm.toml");
    let printed: Value = ok(folder, &arguments(&config, more)).parse().unwrap();
    printed["handle"].as_str().unwrap().to_owned()
}

/// An epoch is as many examples as the config says, none of which lies in a file; a run that was stopped at any step goes
/// on with the examples that would have come.
#[test]
fn examples_of_a_step_are_the_same_after_a_resumption() {
    let dir = tempfile::tempdir().unwrap();
    let weights = |handle: &str| {
        fs::read(dir.path().join("runs").join(handle).join("checkpoints/epoch-0002-step-20/model.safetensors")).unwrap()
    };
    let whole = train(dir.path(), &[]);
    let parts = train(dir.path(), &["train.max_steps=13"]);
    ok(dir.path(), &["train", "--resume", &parts, "--set", "train.max_steps=20", "--quiet"]);
    assert!(weights(&whole) == weights(&parts), "other examples came after the resumption");
    let datasets = files(&dir.path().join("datasets"));
    assert!(datasets.iter().any(|file| file.ends_with("val.parquet")), "{datasets:?}");
    assert!(!datasets.iter().any(|file| file.ends_with("train.parquet")), "{datasets:?}");
    // A second pass over a fixed set sees the same examples, so that its losses go down faster than new ones allow.
    let fixed = train(dir.path(), &["train.fresh=false"]);
    assert!(weights(&fixed) != weights(&whole));
    let shown: Value = ok(dir.path(), &["runs", "show", &whole, "--json"]).parse().unwrap();
    assert_eq!(shown["status"], "finished");
}

#[test]
fn what_cannot_be_drawn_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let config = repository("configs/lstm.toml");
    let refused = |more: &[&str], parts: &[&str]| fails(dir.path(), &arguments(&config, more), 1, parts);
    refused(&["train.equal_lengths=true", "train.fresh=false"], &["train.equal_lengths needs train.fresh", "hint:"]);
    refused(&["train.equal_lengths=true"], &["counting_diffsymbol_mod10 draws no examples by length", "hint:"]);
    assert_eq!(files(dir.path()), Vec::<String>::new());
}
