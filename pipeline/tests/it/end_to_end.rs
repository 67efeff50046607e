//! End to end on toy sizes: generate, train, export, sweep; what is written where, and that it is the same again.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use crate::common::{files, ok, repository, tiny_training};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;

/// The rows of a Parquet file, and a float column of it.
fn column(path: &Path, name: &str) -> Vec<Option<f64>> {
    use arrow::array::AsArray;
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let mut values = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let column = batch.column_by_name(name).unwrap();
        values.extend(column.as_primitive::<arrow::datatypes::Float64Type>().iter());
    }
    values
}

#[test]
fn a_run_holds_what_it_should_and_the_sweep_covers_every_length() {
    for config in ["configs/quickstart.toml", "configs/quickstart-transformer.toml", "configs/lstm.toml"] {
        let dir = tempfile::tempdir().unwrap();
        let is_recurrent = !config.contains("transformer");
        let config = repository(config);
        let printed = ok(dir.path(), &tiny_training(&config, &["--seed", "7"]));
        let lines: Vec<&str> = printed.lines().collect();
        let handle = lines[0];
        assert_eq!(lines.last().unwrap(), &handle, "the handle is printed first and last");

        assert_eq!(ok(dir.path(), &["export", "--json"]).parse::<Value>().unwrap()["handle"], handle);
        let table = ok(dir.path(), &["eval", "--lengths", "1..120", "--predictions"]);
        assert!(table.contains("1–50") && table.contains("eval/sweep.parquet"), "{table}");

        let run = dir.path().join("runs").join(handle);
        let mut expected: Vec<String> =
            [".lock", "config.toml", "metrics.parquet", "model.onnx", "status.json"].map(String::from).to_vec();
        expected.extend(is_recurrent.then(|| "model.stateful.onnx".to_owned()));
        for checkpoint in ["epoch-0001-step-4", "epoch-0002-step-6"] {
            for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
                expected.push(format!("checkpoints/{checkpoint}/{file}"));
            }
        }
        for file in ["sweep.parquet", "sweep-predictions.parquet", "sweep.png", "sweep.svg"] {
            expected.push(format!("eval/{file}"));
        }
        expected.sort();
        assert_eq!(files(&run), expected);

        assert!(fs::read_to_string(run.join("config.toml")).unwrap().contains("seed = 7"));
        assert_eq!(column(&run.join("eval/sweep.parquet"), "last_accuracy").len(), 120);
        // Before training, after each epoch: validation and out-of-distribution; and every second step.
        assert_eq!(column(&run.join("metrics.parquet"), "loss").len(), 3 * 2 + 3);
        assert!(column(&run.join("metrics.parquet"), "loss").iter().all(|l| l.unwrap().is_finite()));
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let dir = tempfile::tempdir().unwrap();
    let config = repository("configs/quickstart.toml");
    let train = |arguments: &[&str]| {
        let printed: Value = ok(dir.path(), arguments).parse().unwrap();
        dir.path().join("runs").join(printed["handle"].as_str().unwrap())
    };
    let weights = |run: &Path| fs::read(run.join("checkpoints/epoch-0002-step-6/model.safetensors")).unwrap();
    let first = train(&tiny_training(&config, &["--seed", "1", "--json", "--quiet"]));
    let again = train(&tiny_training(&config, &["--seed", "1", "--json", "--quiet"]));
    let other = train(&tiny_training(&config, &["--seed", "2", "--json", "--quiet"]));
    assert!(weights(&first) == weights(&again) && weights(&first) != weights(&other));

    let resolved = first.join("config.toml");
    let repeated = train(&["train", "--config", resolved.to_str().unwrap(), "--json", "--quiet"]);
    assert!(weights(&first) == weights(&repeated));
}

#[test]
fn both_plans_and_all_formats_agree() {
    let dir = tempfile::tempdir().unwrap();
    let config = repository("configs/quickstart-transformer.toml");
    ok(dir.path(), &tiny_training(&config, &["--task", "counting_samesymbol_shiftedstart3"]));
    ok(dir.path(), &["export"]);
    let sweep = |more: &[&str]| {
        let mut arguments = vec!["eval", "--lengths", "1..105:3", "--json"];
        arguments.extend(more);
        ok(dir.path(), &arguments).parse::<Value>().unwrap()
    };
    let accuracies = |v: &Value| -> Vec<(Value, Value, Value)> {
        let rows = v["lengths"].as_array().unwrap();
        rows.iter().map(|r| (r["length"].clone(), r["accuracy"].clone(), r["status"].clone())).collect()
    };
    let single = sweep(&[]);
    let exhaustive = sweep(&["--exhaustive", "--max-tokens", "500", "--threads", "1"]);
    assert_eq!(accuracies(&single), accuracies(&exhaustive));
    assert_eq!(
        (&single["lengths"][0]["plan"], &exhaustive["lengths"][0]["plan"]),
        (&"single_pass".into(), &"exhaustive".into())
    );
    let last = single["lengths"].as_array().unwrap().last().unwrap();
    assert_eq!(last["length"], 103);
    assert_eq!(last["status"], "past the vocabulary's last number (100)");

    for format in ["arrow", "csv", "json", "parquet"] {
        sweep(&["--format", format, "-o", &format!("out/table.{format}")]);
    }
    let csv = fs::read_to_string(dir.path().join("out/table.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 35);
    let json: Value = fs::read_to_string(dir.path().join("out/table.json")).unwrap().parse().unwrap();
    assert_eq!(json.as_array().unwrap().len(), 35);
    assert_eq!(&fs::read(dir.path().join("out/table.arrow")).unwrap()[..6], b"ARROW1");
}
