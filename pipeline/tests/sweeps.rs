//! Sweeps over exported models of every architecture, and a sweep that is killed.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "train")]

mod common;

use common::{command, fails, ok, repository};
use data::{Task, Vocabulary};
use evaluators::{LoadOptions, Model, Plan, Provider, Sweep, SweepResult};
use exporters::{ExportInfo, export};
use models::{Cpu, ModelConfig, Weight, Weights};
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

const TASK: &str = "counting_samesymbol_mod10bos";
const CONFIGS: [(&str, &str); 9] = [
    ("rnn", r#"{"arch": "rnn", "hidden_size": 16, "num_layers": 2}"#),
    ("lstm", r#"{"arch": "lstm", "hidden_size": 16, "num_layers": 2}"#),
    ("s4", r#"{"arch": "s4", "hidden_size": 16, "num_layers": 2}"#),
    ("mamba", r#"{"arch": "mamba", "hidden_size": 16, "num_layers": 2}"#),
    ("rwkv5", r#"{"arch": "rwkv5", "hidden_size": 16, "num_layers": 2, "head_size": 8}"#),
    ("rwkv6", r#"{"arch": "rwkv6", "hidden_size": 16, "num_layers": 2, "head_size": 8}"#),
    ("nope", r#"{"arch": "transformer", "hidden_size": 16, "num_heads": 2, "positional_embedding": "none"}"#),
    ("rope", r#"{"arch": "transformer", "hidden_size": 16, "num_heads": 2, "positional_embedding": "rope"}"#),
    (
        "sinusoidal",
        r#"{"arch": "transformer", "hidden_size": 16, "num_heads": 2, "positional_embedding": "sinusoidal",
            "max_position_embeddings": 128}"#,
    ),
];

/// An untrained model as an ONNX file; its weights are enlarged, because fresh logits are nearly equal.
fn write_model(config: &str, vocabulary: &Vocabulary, path: &Path) {
    let config: ModelConfig = serde_json::from_str(config).unwrap();
    let fresh = Weights::of(&config.init::<Cpu>(vocabulary.len(), 1, &Default::default())).unwrap();
    let larger = |(name, weight): (&str, &Weight)| {
        let is_matrix = weight.shape.len() == 2 && !name.contains("kernel") && !name.ends_with("A_log");
        let values = weight.values.iter().map(|v| if is_matrix { 2.0 * v } else { *v }).collect();
        (name.to_owned(), Weight { shape: weight.shape.clone(), values })
    };
    let integers = fresh.integers().map(|(name, value)| (name.to_owned(), value)).collect::<Vec<_>>();
    let weights = fresh.iter().map(larger).collect::<Weights>().with_integers(integers);
    let info = ExportInfo {
        handle: "1123_000000".into(),
        task: TASK.into(),
        vocab: vocabulary.tokens().to_vec(),
        train_max_length: 50,
        max_position_embeddings: 128,
        augmentation: "none".into(),
        seed: 1,
        checkpoint: "none".into(),
    };
    std::fs::write(path, export(&config, &weights, &info, &Default::default()).unwrap().model).unwrap();
}

fn load(path: &Path, threads: usize) -> Model {
    Model::load(path, LoadOptions { provider: Provider::Cpu, threads: Some(threads) }).unwrap()
}

/// The same answers, and losses up to rounding.
fn assert_same(name: &str, a: &SweepResult, b: &SweepResult) {
    assert_eq!(a.predictions, b.predictions, "{name}");
    for (a, b) in a.lengths.iter().zip(&b.lengths) {
        assert_eq!(a.status(), b.status(), "{name}");
        let (Some(a), Some(b)) = (a.score(), b.score()) else { continue };
        assert_eq!((a.counting_correct, a.last_correct, a.n_tokens), (b.counting_correct, b.last_correct, b.n_tokens));
        assert!((a.loss_sum - b.loss_sum).abs() < 1e-3 * b.loss_sum, "{name}: {} {}", a.loss_sum, b.loss_sum);
    }
}

#[test]
fn every_plan_says_the_same_for_every_architecture() {
    let task = Task::by_name(TASK).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, config) in CONFIGS {
        let path = dir.path().join(format!("{name}.onnx"));
        write_model(config, &task.vocabulary, &path);
        let with_workers = |workers, threads, exhaustive, max_tokens| {
            let mut model = load(&path, threads);
            let sweep = Sweep::new(&mut model).task(&task).lengths(1..=300).exhaustive(exhaustive).workers(workers);
            sweep.max_tokens(max_tokens).keep_predictions(true).results().unwrap()
        };
        let sweep = |threads, exhaustive, max_tokens| with_workers(None, threads, exhaustive, max_tokens);
        let single = sweep(1, false, None);
        let scored = single.lengths.iter().filter(|r| r.plan == Plan::SinglePass && r.status() == "ok").count();
        // a table of 128 positions holds the first token and 127 symbols
        assert_eq!(scored, if name == "sinusoidal" { 127 } else { 300 }, "{name}");
        let loss = |length: usize| single.lengths[length - 1].score().unwrap().loss().unwrap();
        let guesses = single.predictions.last().unwrap().predicted.iter().collect::<HashSet<_>>();
        let varies = guesses.len() > 1 || (loss(1) - loss(scored)).abs() > 1e-2;
        assert!(varies, "{name} says the same everywhere, so that everything would agree");
        let exhaustive = sweep(1, true, None);
        assert_same(name, &single, &exhaustive);
        assert_eq!(exhaustive, sweep(2, true, None), "{name} on 2 threads");
        assert_eq!(exhaustive, with_workers(Some(2), 2, true, None), "{name} in 2 sessions");
        assert_eq!(single, sweep(2, false, None), "{name} in a single pass on 2 threads");
        assert_same(name, &single, &sweep(2, false, Some(64))); // in pieces of 256 tokens, where there are states
        assert_same(name, &single, &sweep(2, true, Some(600)));
    }
}

#[test]
fn a_killed_process_is_taken_up_and_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let task = Task::by_name(TASK).unwrap();
    write_model(r#"{"arch": "lstm", "hidden_size": 64}"#, &task.vocabulary, &dir.path().join("m.onnx"));
    let arguments =
        ["eval", "--model", "m.onnx", "--lengths", "1..400", "--exhaustive", "--max-tokens", "400", "--quiet"];
    ok(dir.path(), &arguments);
    let whole = std::fs::read(dir.path().join("m-sweep.parquet")).unwrap();
    let journal = dir.path().join(".m-sweep.progress");
    assert!(!journal.exists(), "nothing is left behind");
    std::fs::remove_file(dir.path().join("m-sweep.parquet")).unwrap();

    for kilobytes in [2, 10] {
        let mut process = command(dir.path(), &arguments).spawn().unwrap();
        let start = Instant::now();
        while journal.metadata().map_or(0, |m| m.len()) < kilobytes << 10 && start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(1));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(journal.metadata().unwrap().len() >= kilobytes << 10, "it is killed while it runs");
        assert!(!dir.path().join("m-sweep.parquet").exists());
    }
    ok(dir.path(), &arguments);
    assert!(std::fs::read(dir.path().join("m-sweep.parquet")).unwrap() == whole);
    assert!(!journal.exists());
}

#[test]
fn splits_and_several_models_in_one_call() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = |name: &str| repository(&format!("evaluators/tests/fixtures/{name}.onnx"));
    let (good, breaks) = (fixture("counts_mod10"), fixture("breaks_at_60"));
    let arguments =
        ["eval", "--model", &good, "--model", &breaks, "--lengths", "1..80", "--split", "ood_test", "--json", "-q"];
    let document: serde_json::Value = serde_json::from_str(&ok(dir.path(), &arguments)).unwrap();
    let unseen = |index: usize| document["results"][index]["splits"][0]["unseen_accuracy"].as_f64().unwrap();
    assert_eq!(unseen(0), 1.0);
    assert!((unseen(1) - 405.0 / 1225.0).abs() < 1e-12, "{}", unseen(1));
    assert_eq!(document["results"][1]["lengths"].as_array().unwrap().len(), 80);
    for file in document["results"][1]["files"].as_array().unwrap() {
        assert!(dir.path().join(file.as_str().unwrap()).is_file(), "{file}");
    }

    let together = [&arguments[..9], &["--format", "csv", "-o", "both.txt", "-q"]].concat();
    ok(dir.path(), &together);
    let table = std::fs::read_to_string(dir.path().join("both.txt")).unwrap();
    assert_eq!(table.lines().count(), 1 + 2 * 80);
    let totals = std::fs::read_to_string(dir.path().join("both-ood_test-total.csv")).unwrap();
    assert_eq!(totals.lines().count(), 1 + 2, "{totals}");
    assert!(
        totals.starts_with("handle,task,arch,") && totals.lines().next().unwrap().contains(",unseen_accuracy,loss,")
    );

    // the generated file is the split
    ok(dir.path(), &["data", "generate", "--task", TASK, "--train", "50", "-q"]);
    let path = format!("datasets/{TASK}/ood_test.parquet");
    let of_file = ok(dir.path(), &["eval", "--model", &breaks, "--split", &path, "--json", "-q"]);
    let of_file: serde_json::Value = serde_json::from_str(&of_file).unwrap();
    assert_eq!(of_file["splits"], document["results"][1]["splits"]);
    assert!(of_file["lengths"].as_array().unwrap().is_empty(), "a split alone makes no sweep");
}

/// Lengths past a position table have no answer, and the result says so.
#[test]
fn a_position_table_ends_the_sweep() {
    let task = Task::by_name(TASK).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absolute.onnx");
    let config = r#"{"arch": "transformer", "hidden_size": 16, "num_heads": 2, "positional_embedding": "absolute"}"#;
    write_model(config, &task.vocabulary, &path);
    let mut model = load(&path, 1);
    let found = Sweep::new(&mut model).task(&task).lengths(120..=135).results().unwrap();
    // 128 positions: the token in front and 127 symbols
    let ok: Vec<u32> = found.lengths.iter().filter(|r| r.status() == "ok").map(|r| r.length).collect();
    assert_eq!(ok, (120..=127).collect::<Vec<_>>());
}

/// As the original tester does: every checkpoint, in one table.
#[test]
fn every_checkpoint_of_a_run_is_swept_into_one_table() {
    let dir = tempfile::tempdir().unwrap();
    let config = repository("configs/lstm.toml");
    let sets = ["train.max_steps=6", "train.checkpoint_every=2", "task.train_examples=200", "model.hidden_size=8"];
    let train = sets.iter().flat_map(|set| ["--set", *set]);
    let train: Vec<&str> = ["train", "--config", &config, "-q", "--json"].into_iter().chain(train).collect();
    let trained: serde_json::Value = ok(dir.path(), &train).trim().parse().unwrap();
    let run = dir.path().join("runs").join(trained["handle"].as_str().unwrap());

    ok(dir.path(), &["eval", "--checkpoints", "all", "--lengths", "1..30", "--format", "csv", "-q"]);
    let table = std::fs::read_to_string(run.join("eval/checkpoints.csv")).unwrap();
    for checkpoint in ["epoch-0001-step-2,", "epoch-0001-step-4,", "epoch-0001-step-6,"] {
        assert_eq!(table.lines().filter(|line| line.contains(checkpoint)).count(), 30, "{table}");
    }
    assert!(!run.join("model.onnx").exists() && !run.join("eval/sweep.csv").exists());

    let models = || {
        let folders = std::fs::read_dir(run.join("checkpoints")).unwrap();
        folders.map(|f| f.unwrap().path().join("model.onnx").metadata().unwrap().modified().unwrap()).max()
    };
    let before = models();
    let kept = ok(dir.path(), &["export", "--checkpoint", "all", "--json", "-q"]);
    assert_eq!(kept.trim().parse::<serde_json::Value>().unwrap(), serde_json::json!([]), "all are newer");
    assert_eq!(models(), before);
    fails(dir.path(), &["export", "--checkpoint", "all", "--all"], 1, &["one checkpoint of every run"]);
}
