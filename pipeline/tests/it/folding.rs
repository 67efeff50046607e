//! Folding is work left out, not another experiment: losses and scores are those of training without it.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::ok;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type};
use models::{Heads, ModelConfig};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::fs::File;
use std::path::Path;

/// Step, split, then loss, gradient norm and the three accuracies.
type Row = (u64, String, [Option<f64>; 5]);

/// Trains 50 steps; the result and the curve.
fn train(folder: &Path, sets: &[&str]) -> (Value, Vec<Row>) {
    let config = folder.join("config.toml");
    std::fs::write(&config, "[task]\nname = 'counting_samesymbol_mod10bos'\n[model]\narch = 'rnn'\n").unwrap();
    let mut arguments = vec!["train", "--config", config.to_str().unwrap(), "--device", "cpu", "--json", "--quiet"];
    let common = [
        "task.train_examples=300",
        "train.batch_size=8",
        "train.max_steps=50",
        "train.log_every=1",
        "model.hidden_size=16",
        "optimizer.lr=3e-4",
    ];
    common.iter().chain(sets).for_each(|set| arguments.extend(["--set", set]));
    let result: Value = ok(folder, &arguments).parse().unwrap();
    let run = folder.join("runs").join(result["handle"].as_str().unwrap());
    let file = File::open(run.join("metrics.parquet")).unwrap();
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        let column = |name: &str| batch.column_by_name(name).unwrap().clone();
        let (steps, splits) = (column("step"), column("split"));
        let numbers = ["loss", "grad_norm", "accuracy", "last_accuracy", "sequence_accuracy"].map(column);
        for i in 0..batch.num_rows() {
            let number = |column: &arrow::array::ArrayRef| {
                column.is_valid(i).then(|| column.as_primitive::<Float64Type>().value(i))
            };
            let values = numbers.each_ref().map(number);
            rows.push((
                steps.as_primitive::<Int64Type>().value(i) as u64,
                splits.as_string::<i32>().value(i).into(),
                values,
            ));
        }
    }
    (result, rows)
}

/// Trains with and without folding; returns the mean number of rows in a folded step.
fn folded_is_unfolded(sets: &[&str]) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let (folded, ours) = train(dir.path(), sets);
    let (unfolded, theirs) = train(dir.path(), &[sets, &["train.fold=false"]].concat());
    assert!(unfolded["rows_per_step"].as_f64().unwrap() > 7.9, "{sets:?}");
    assert!(ours.len() > 50 && ours.len() == theirs.len(), "{sets:?}");
    for ((step, split, values), (_, _, expected)) in ours.iter().zip(&theirs) {
        // Of the later gradients, rounding leaves less: an optimiser amplifies it.
        let compared = if *step > 5 && split == "train" { 1 } else { 5 };
        for (value, expected) in values.iter().zip(expected).take(compared) {
            let tolerance = 1e-5 * expected.unwrap_or(0.0).max(1.0);
            let difference = (value.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs();
            assert!(difference < tolerance, "{sets:?}, step {step}, {split}: {value:?}, unfolded {expected:?}");
        }
    }
    folded["rows_per_step"].as_f64().unwrap()
}

/// The overrides that choose an architecture, small and without dropout.
fn small(kind: &models::Kind) -> Vec<String> {
    let mut sets = vec![format!("model.arch={}", kind.name)];
    let undropped = (kind.benchmark)(128).into_iter().filter(|(key, _)| *key == "dropout");
    sets.extend(undropped.map(|(key, value)| format!("model.{key}={value}")));
    if let Some(Heads::Size(key)) = (kind.heads)() {
        sets.push(format!("model.{key}=8"));
    }
    sets
}

/// Where the padding counts in the gradient, as RWKV's recipe has it, only copies fold.
#[test]
fn every_architecture_folds_to_one_row_or_folds_copies() {
    for kind in ModelConfig::KINDS {
        let pulls = (kind.examples)()[0].pulls_logits();
        let mut sets = small(kind);
        if pulls {
            sets.extend(["model.num_layers=1", "optimizer.lr=1e-4"].map(str::to_owned));
        }
        let rows = folded_is_unfolded(&sets.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(if pulls { (4.0..7.99).contains(&rows) } else { rows == 1.0 }, "{}: {rows}", kind.name);
    }
}

#[test]
fn positions_labels_and_pieces_of_every_kind() {
    let transformer = ["model.arch=transformer", "model.num_heads=2", "model.num_layers=1"];
    let folds = |more: &[&str]| folded_is_unfolded(&[&transformer, more].concat());
    assert_eq!(folds(&["model.positional_embedding=rope"]), 1.0);
    let shifted = folds(&["model.positional_embedding=absolute", "model.augmentation=shift"]);
    assert!(shifted > 7.0, "only where the same start was drawn: {shifted}");
    assert!(folds(&["model.positional_embedding=scalar"]) < 8.0, "copies have the same fractions");
    assert!(
        (1.9..=2.0).contains(&folds(&["train.accumulate=2"])),
        "one row for each piece; the last step has one piece"
    );
    assert!(folds(&["model.resid_pdrop=0.1"]) > 7.9, "an epoch's last step has fewer than 8 examples");
    assert!(folds(&["task.name=counting_diffsymbol_mod10"]) > 1.0);
}

/// Helper tokens that attention must not see.
#[test]
fn masked_tokens() {
    let helped = "task.name=counting_samesymbol_padhelper";
    for arch in ["transformer", "rnn"] {
        folded_is_unfolded(&[helped, &format!("model.arch={arch}"), "model.num_layers=1"]);
    }
}
