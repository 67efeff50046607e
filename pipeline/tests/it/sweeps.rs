//! Sweeps over exported models of every architecture, and a sweep that is killed.
#![allow(clippy::unwrap_used, clippy::panic)]
#![cfg(feature = "train")]

use crate::common::{command, fails, ok, repository, run};
use data::{Task, Vocabulary};
use evaluators::{LoadOptions, Model, Plan, Probe, Provider, Sweep, SweepResult};
use exporters::{ExportInfo, ExportOptions, export};
use models::{Cpu, ModelConfig, Weight, Weights};
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

const TASK: &str = "counting_samesymbol_mod10bos";
/// The first example of every architecture, looped and with states alone, and of every positional scheme with which a
/// token's position is the same in longer sequences.
fn configs() -> Vec<(String, ModelConfig)> {
    let mut found: Vec<(String, ModelConfig)> = vec![];
    for config in ModelConfig::examples().into_iter().filter(|config| config.augmentation().is_prefix_stable()) {
        let kind = [config.iterations().map(|_| "-looped"), (config.state_per_token() == 0).then_some("-states")];
        let kind: String = kind.into_iter().flatten().collect();
        let name = format!("{}-{}{kind}", config.arch(), config.positional_embedding());
        if found.iter().all(|(known, _)| *known != name) {
            found.push((name, config));
        }
    }
    found
}

/// An untrained model as an ONNX file; its weights are enlarged, because fresh logits are nearly equal.
fn write_model(config: &ModelConfig, vocabulary: &Vocabulary, path: &Path) {
    write_enlarged(config, vocabulary, path, 2.0);
}

/// The same, with matrices so many times as large as fresh ones.
fn write_enlarged(config: &ModelConfig, vocabulary: &Vocabulary, path: &Path, factor: f32) {
    write_with(config, vocabulary, path, factor, &ExportOptions::default());
}

fn write_with(config: &ModelConfig, vocabulary: &Vocabulary, path: &Path, factor: f32, options: &ExportOptions) {
    let fresh = Weights::of(&config.init::<Cpu>(vocabulary.len(), 1, &Default::default())).unwrap();
    let larger = |(name, weight): (&str, &Weight)| {
        let is_matrix = weight.shape.len() == 2 && !name.contains("kernel") && !name.ends_with("A_log");
        let values = weight.values.iter().map(|v| if is_matrix { factor * v } else { *v }).collect();
        (name.to_owned(), Weight { shape: weight.shape.clone(), values })
    };
    let integers = fresh.integers().map(|(name, value)| (name.to_owned(), value)).collect::<Vec<_>>();
    let weights = fresh.iter().map(larger).collect::<Weights>().with_integers(integers);
    let info = ExportInfo {
        handle: "1123_000000".into(),
        task: TASK.into(),
        vocab: vocabulary.tokens().to_vec(),
        units: vec![],
        train_max_length: 50,
        max_position_embeddings: 128,
        augmentation: "none".into(),
        seed: 1,
        checkpoint: "none".into(),
        checkpoint_checksum: factor.to_string(),
    };
    let files = export(config, &weights, &info, options).unwrap();
    let twin = path.with_extension("stateful.onnx");
    for (path, file) in [(path, Some(files.model)), (&twin, files.stateful)] {
        let Some(file) = file else { continue };
        std::fs::write(path, file.model).unwrap();
        if let Some(weights) = file.weights {
            std::fs::write(path.with_added_extension("data"), weights).unwrap();
        }
    }
}

/// The twin of another export would give another model's answers.
#[test]
fn the_file_with_states_is_taken_with_its_own_model_only() {
    let dir = tempfile::tempdir().unwrap();
    let (path, twin) = (dir.path().join("model.onnx"), dir.path().join("model.stateful.onnx"));
    let config: ModelConfig = serde_json::from_str(r#"{"arch": "lstm", "hidden_size": 8, "num_layers": 1}"#).unwrap();
    let vocabulary = Task::by_name(TASK).unwrap().vocabulary;
    write_enlarged(&config, &vocabulary, &path, 3.0);
    let other = std::fs::read(&twin).unwrap();
    write_enlarged(&config, &vocabulary, &path, 2.0);

    let model = load(&path, 1);
    assert!(model.is_stateful() && model.is_own_export() && model.notes().is_empty(), "{:?}", model.notes());
    assert_eq!(model.fingerprint(), evaluators::model_fingerprint(&path).ok().as_deref());
    let alone = Model::load_alone(&path, LoadOptions { provider: Provider::Cpu, threads: Some(1) }).unwrap();
    assert!(!alone.is_stateful() && alone.fingerprint() == model.fingerprint());

    std::fs::write(&twin, other).unwrap();
    let model = load(&path, 1);
    assert!(!model.is_stateful(), "the states of another model");
    assert_eq!(model.notes(), ["model.stateful.onnx beside it is not of the same export, and is not used"]);
    std::fs::write(&twin, "not a model").unwrap();
    assert!(!load(&path, 1).is_stateful());
    std::fs::remove_file(&twin).unwrap();
    assert!(!load(&path, 1).is_stateful() && load(&path, 1).notes().is_empty());
}

/// Weights in files of their own are no part of a graph: that of two exports may be the same.
#[test]
fn a_file_with_states_and_the_weights_of_another_checkpoint_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (path, twin) = (dir.path().join("model.onnx"), dir.path().join("model.stateful.onnx"));
    let config: ModelConfig = serde_json::from_str(r#"{"arch": "lstm", "hidden_size": 64, "num_layers": 1}"#).unwrap();
    let vocabulary = Task::by_name(TASK).unwrap().vocabulary;
    let apart = ExportOptions { largest_message: 10_000, ..Default::default() };
    write_with(&config, &vocabulary, &path, 3.0, &apart);
    let data = dir.path().join("model.stateful.onnx.data");
    let (other, weights) = (std::fs::read(&twin).unwrap(), std::fs::read(&data).unwrap());
    write_with(&config, &vocabulary, &path, 2.0, &apart);
    assert!(load(&path, 1).is_stateful() && weights != std::fs::read(&data).unwrap());

    std::fs::write(&twin, other).unwrap();
    std::fs::write(&data, weights).unwrap();
    let model = load(&path, 1);
    assert!(!model.is_stateful(), "{:?}", model.notes());
    assert_eq!(model.notes().len(), 1);
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
    for (name, config) in configs() {
        let path = dir.path().join(format!("{name}.onnx"));
        let with_workers = |workers, threads, exhaustive, max_tokens| {
            let mut model = load(&path, threads);
            let sweep = Sweep::new(&mut model).task(&task).lengths(1..=300).exhaustive(exhaustive).workers(workers);
            sweep.max_tokens(max_tokens).keep_predictions(true).results().unwrap()
        };
        let sweep = |threads, exhaustive, max_tokens| with_workers(None, threads, exhaustive, max_tokens);
        // a table of 128 positions holds the first token and 127 symbols
        let expected = config.max_length().map_or(300, |limit| limit - 1);
        let varying = [2.0, 4.0, 8.0].into_iter().find_map(|factor| {
            write_enlarged(&config, &task.vocabulary, &path, factor);
            let single = sweep(1, false, None);
            let scored = single.lengths.iter().filter(|r| r.plan == Plan::SinglePass && r.status() == "ok").count();
            assert_eq!(scored, expected, "{name}");
            let loss = |length: usize| single.lengths[length - 1].score().unwrap().loss().unwrap();
            let guesses = single.predictions.last().unwrap().predicted.iter().collect::<HashSet<_>>();
            (guesses.len() > 1 || (loss(1) - loss(scored)).abs() > 1e-2).then_some(single)
        });
        let single =
            varying.unwrap_or_else(|| panic!("{name} says the same everywhere, so that everything would agree"));
        let exhaustive = sweep(1, true, None);
        assert_same(&name, &single, &exhaustive);
        assert_eq!(exhaustive, sweep(2, true, None), "{name} on 2 threads");
        assert_eq!(exhaustive, with_workers(Some(2), 2, true, None), "{name} in 2 sessions");
        assert_eq!(single, sweep(2, false, None), "{name} in a single pass on 2 threads");
        assert_same(&name, &single, &sweep(2, false, Some(64))); // in pieces of 256 tokens, where there are states
        assert_same(&name, &single, &sweep(2, true, Some(600)));
    }
}

/// The number is an input of the file, so that it can be another one than in training.
#[test]
fn a_looped_model_runs_with_other_numbers_of_iterations() {
    let dir = tempfile::tempdir().unwrap();
    let (path, task) = (dir.path().join("m.onnx"), Task::by_name(TASK).unwrap());
    let loops = |iterations: u32, injected: bool| -> ModelConfig {
        let config = serde_json::json!({
            "arch": "transformer", "hidden_size": 16, "num_heads": 2, "positional_embedding": "alibi",
            "iterations": iterations, "input_injection": injected,
        });
        serde_json::from_value(config).unwrap()
    };
    let ids: Vec<i64> = (0..60).map(|i| (i * i) as i64 % task.vocabulary.len() as i64).collect();
    for injected in [false, true] {
        write_model(&loops(2, injected), &task.vocabulary, &path);
        let mut model = load(&path, 1);
        assert_eq!((model.iterations(), model.info().iterations), (Some(2), Some(2)));
        let mut logits = |iterations| {
            model.set_iterations(iterations).unwrap();
            model.run_ids(&ids, 2, 30).unwrap().values().to_vec()
        };
        for iterations in [1, 2, 5] {
            let found = logits(iterations);
            let mut other = load(&other_model(&dir, &loops(iterations, injected), &task.vocabulary), 1);
            assert_eq!(found, other.run_ids(&ids, 2, 30).unwrap().values(), "as if trained with {iterations}");
        }
        assert_ne!(logits(1), logits(5));
    }
    let refused = load(&path, 1).set_iterations(0).unwrap_err().to_string();
    assert!(refused.contains("hint: choose 1 or more"), "{refused}");

    let swept = ok(
        dir.path(),
        &["eval", "--model", "m.onnx", "--lengths", "1..9", "--iterations", "1,4", "-o", "r.json", "--json", "-q"],
    );
    let swept: serde_json::Value = serde_json::from_str(&swept).unwrap();
    assert_eq!((&swept["results"][0]["iterations"], &swept["results"][1]["iterations"]), (&1.into(), &4.into()));
    let table: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.path().join("r.json")).unwrap()).unwrap();
    let column =
        |name: &str| table.as_array().unwrap().iter().map(|row| row[name].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!(column("iterations"), [vec![1; 9], vec![4; 9]].concat());
    let per_token = 2 * 2 * 16; // keys and values of two layers
    assert_eq!(column("state_size")[0..2], [per_token, 2 * per_token]);
    assert_eq!(column("state_size")[9..11], [4 * per_token, 8 * per_token]);
    ok(dir.path(), &["eval", "--model", "m.onnx", "--lengths", "1..9", "--iterations", "3", "-q"]);
    assert!(dir.path().join("m-iterations.parquet").is_file());

    let config: ModelConfig = serde_json::from_str(r#"{"arch": "rnn", "hidden_size": 8}"#).unwrap();
    write_model(&config, &task.vocabulary, &path);
    let arguments = ["eval", "--model", "m.onnx", "--lengths", "1..9", "--iterations", "3"];
    fails(dir.path(), &arguments, 1, &["m.onnx cannot apply its blocks 3 times: it is not looped", "hint: "]);
}

/// Another model's file, in the same folder.
fn other_model(dir: &tempfile::TempDir, config: &ModelConfig, vocabulary: &Vocabulary) -> std::path::PathBuf {
    let path = dir.path().join("other.onnx");
    write_model(config, vocabulary, &path);
    path
}

#[test]
fn our_exports_are_known_and_have_what_others_are_probed_for() {
    let task = Task::by_name(TASK).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ours, renamed) = (dir.path().join("ours.onnx"), dir.path().join("renamed.onnx"));
    for (name, config) in configs() {
        write_model(&config, &task.vocabulary, &ours);
        let mut model = load(&ours, 1);
        assert!(model.is_own_export(), "{name}");
        assert_eq!(Sweep::new(&mut model).task(&task).probe().unwrap(), None, "{name} is not probed");
        // Another producer_name behind the file, which is what readers of protobuf take.
        let mut bytes = std::fs::read(&ours).unwrap();
        bytes.extend(b"\x12\x07another");
        std::fs::write(&renamed, &bytes).unwrap();
        let mut model = load(&renamed, 1);
        assert!(!model.is_own_export(), "{name}");
        let found = Sweep::new(&mut model).task(&task).probe().unwrap().unwrap();
        let Probe { causal, padding, batch, repeatable, pieces, regular, .. } = &found;
        let holds = [causal, padding, batch, repeatable, pieces].map(|finding| finding.holds());
        assert!(holds == [true; 5] && *regular, "{name}: {found}");
        assert_eq!(found.plan(), Plan::SinglePass, "{name}");
    }
    // A node behind the graph, under our name and with all our metadata.
    let mut bytes = std::fs::read(&ours).unwrap();
    bytes.extend(b"\x3a\x00");
    std::fs::write(&renamed, &bytes).unwrap();
    assert!(!load(&renamed, 1).is_own_export());
}

#[test]
fn models_from_elsewhere_are_probed_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = |name: &str| repository(&format!("evaluators/tests/fixtures/{name}.onnx"));
    let eval = |name: &str, more: &[&str]| {
        let model = fixture(name);
        let start = ["eval", "--model", &model, "--task", TASK, "--json", "-o", "out.csv", "--format", "csv"];
        let ran = run(dir.path(), &[&start[..], more].concat());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        (serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap(), ran.stderr)
    };
    for (name, plan, note) in [
        ("total", "exhaustive", "not causal: "),
        ("pad", "equal_lengths", "not independent of padding: "),
        ("crowd", "one_by_one", "not independent of the batch: "),
        ("foreign", "single_pass", "so one pass over the longest sequence can answer all lengths"),
    ] {
        let (found, said) = eval(name, &["--lengths", "1..100"]);
        let rows = found["lengths"].as_array().unwrap();
        assert!(rows.iter().all(|row| row["plan"] == plan && row["last_accuracy"] == 1.0), "{name}: {}", rows[0]);
        assert_eq!(
            said.lines().filter(|line| line.contains("was probed: ") && line.contains(note)).count(),
            1,
            "{said}"
        );
        let (found, _) = eval(name, &["--split", "val"]);
        assert_eq!(found["splits"][0]["last_accuracy"], 1.0, "{name}");
    }
    assert_eq!(eval("total", &["--lengths", "1..9", "-q"]).1, "");
    let (found, _) = eval("table_64", &["--lengths", "60..70"]);
    let ok = found["lengths"].as_array().unwrap().iter().filter(|row| row["status"] == "ok").count();
    assert_eq!(ok, 4);
    let model = fixture("table_64");
    let arguments = ["eval", "--model", &model, "--task", TASK, "--lengths", "80..90"];
    fails(
        dir.path(),
        &arguments,
        1,
        &["table_64.onnx", "at any of the 11 lengths", "64 by 65", "hint: a model that was traced"],
    );
}

#[test]
fn a_killed_process_is_taken_up_and_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let task = Task::by_name(TASK).unwrap();
    let config = serde_json::from_str(r#"{"arch": "lstm", "hidden_size": 64}"#).unwrap();
    write_model(&config, &task.vocabulary, &dir.path().join("m.onnx"));
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
    let path = format!("datasets/{TASK}-n50-s0/ood_test.parquet");
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
    write_model(&serde_json::from_str(config).unwrap(), &task.vocabulary, &path);
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
