//! `pipeline models`.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::common::{fails, ok};
use models::ModelConfig;
use serde_json::Value;
use std::fs;

#[test]
fn every_architecture_is_listed_with_its_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let listed: Value = serde_json::from_str(&ok(dir.path(), &["models", "--json"])).unwrap();
    let models = listed["models"].as_array().unwrap();
    let names: Vec<&str> = models.iter().map(|model| model["arch"].as_str().unwrap()).collect();
    assert_eq!(names, ModelConfig::ARCHITECTURES);
    let of = |arch: &str| models.iter().find(|model| model["arch"] == arch).unwrap();
    // 128 channels and 13 tokens: embedding and decoder, four gates with two matrices and two biases.
    assert_eq!(of("lstm")["parameters"], 2 * 13 * 128 + 4 * (2 * 128 * 128 + 2 * 128));
    assert_eq!(of("lstm")["state_size"], 2 * 128, "the output and the cell");
    assert_eq!(of("rnn")["state_size"], 128);
    assert_eq!(of("gla")["state_size"], 2 * 64 * 32, "two layers, 4 heads of 16 keys and 32 values");
    assert_eq!(of("mamba2")["state_size"], 2 * (256 * 64 + (256 + 2 * 64) * 3));
    let transformer = of("transformer");
    let settings = &transformer["settings"];
    let (layers, hidden) = (settings["num_layers"].as_u64().unwrap(), settings["hidden_size"].as_u64().unwrap());
    assert_eq!(transformer["state_size"], 0);
    assert_eq!(transformer["state_per_token"], 2 * layers * hidden);
    assert!(listed["positional_embeddings"].as_array().unwrap().iter().any(|scheme| scheme["name"] == "rope"));
    let text = ok(dir.path(), &["models"]);
    assert!(text.contains("lstm\tLSTM\t") && text.contains("alibi\tALiBi"), "{text}");
}

#[test]
fn a_config_says_how_large_its_model_is() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, "[task]\nname = 'chomsky/parity_check'\n[model]\narch = 'rnn'\nhidden_size = 8\n").unwrap();
    let listed: Value = serde_json::from_str(&ok(dir.path(), &["models", "config.toml", "--json"])).unwrap();
    let [model] = &listed["models"].as_array().unwrap()[..] else { panic!("{listed}") };
    assert_eq!((&model["arch"], &model["state_size"]), (&"rnn".into(), &8.into()));
    // a mixer's own table, also on the command line
    let hybrid = ["bench", "train", "--arch", "hybrid", "--hidden", "16", "--batch", "1", "--seq", "4", "--steps", "1"];
    let timed: Value = serde_json::from_str(&ok(
        dir.path(),
        &[&hybrid[..], &["--json", "--set", "model.num_heads=2", "--set", "model.mamba.state_size=3"]].concat(),
    ))
    .unwrap();
    let wider: Value =
        serde_json::from_str(&ok(dir.path(), &[&hybrid[..], &["--json", "--set", "model.num_heads=2"]].concat()))
            .unwrap();
    // 13 states less in each of 32 channels, and as many rows of B and C
    assert_eq!(wider["parameters"].as_u64().unwrap() - timed["parameters"].as_u64().unwrap(), 13 * 32 * 3);
    fails(dir.path(), &[&hybrid[..], &["--set", "model.mamba.state=3"]].concat(), 1, &["mamba.state", "did you mean"]);
    fails(dir.path(), &["models", "nowhere.toml"], 1, &["nowhere.toml"]);
    fails(dir.path(), &["models", "--task", "nothing"], 1, &["nothing", "hint:"]);
}
