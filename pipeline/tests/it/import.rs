//! Runs of the original PyTorch code become runs here.
#![allow(clippy::unwrap_used)]

use crate::common::{fails, files, ok, repository};
use std::fs;
use std::path::Path;

fn fixture(name: &str) -> String {
    repository(&format!("models/tests/fixtures/{name}"))
}

/// A folder with the config of the small RNN, after `change`.
fn original(folder: &Path, change: impl Fn(String) -> String) {
    fs::create_dir_all(folder.join("ckpts")).unwrap();
    let config = fs::read_to_string(fixture("rnn/config.json")).unwrap();
    fs::write(folder.join("config.json"), change(config)).unwrap();
}

fn import(dir: &Path, folder: &str) -> serde_json::Value {
    serde_json::from_str(&ok(dir, &["import", folder, "--json"])).unwrap()
}

#[test]
fn an_imported_run_is_exported_and_evaluated_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let imported = import(dir.path(), &fixture("rnn"));
    let handle = imported["handle"].as_str().unwrap();
    assert_eq!((&imported["arch"], &imported["task"]), (&"rnn".into(), &"counting_samesymbol_mod10bos".into()));
    let run = dir.path().join("runs").join(handle);
    assert_eq!(
        files(&run),
        [
            "checkpoints/epoch-0000-step-0/model.safetensors",
            "checkpoints/epoch-0000-step-0/state.json",
            "config.toml",
            "status.json"
        ]
    );
    let weights = |path: &Path| fs::read(path).unwrap();
    let saved = weights(&run.join("checkpoints/epoch-0000-step-0/model.safetensors"));
    assert_eq!(saved.len(), weights(Path::new(&fixture("rnn/model.safetensors"))).len());

    ok(dir.path(), &["export", "--handle", handle]);
    ok(dir.path(), &["eval", "--handle", handle, "--lengths", "1..20", "-q"]);
    assert!(run.join("model.onnx").is_file() && run.join("eval/sweep.parquet").is_file());
    fails(dir.path(), &["train", "--resume", handle], 1, &["optimizer.safetensors", "hint:", "--init-from"]);
}

#[test]
fn the_newest_checkpoint_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("original");
    original(&folder, |config| config);
    for name in ["2_99999_RNN.pt", "10_500_RNN.pt", "10_5_RNN.pt", "notes.txt", "best.pt"] {
        fs::copy(fixture("rnn/model.safetensors"), folder.join("ckpts").join(name)).unwrap();
    }
    let imported = import(dir.path(), "original");
    assert_eq!(imported["checkpoint"], "original/ckpts/10_500_RNN.pt");
    let run = dir.path().join("runs").join(imported["handle"].as_str().unwrap());
    assert!(run.join("checkpoints/epoch-0010-step-500/model.safetensors").is_file());
}

#[test]
fn what_cannot_be_imported_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    fails(dir.path(), &["import", "nowhere"], 1, &["nowhere/config.json", "hint:"]);

    let folder = dir.path().join("original");
    original(&folder, |config| config);
    fails(dir.path(), &["import", "original"], 1, &["no checkpoint under ckpts/", "hint:"]);

    let checkpoint = folder.join("ckpts/1_1_RNN.pt");
    let whole = fs::read(fixture("types.pt")).unwrap();
    fs::write(&checkpoint, &whole[..whole.len() / 2]).unwrap();
    fails(dir.path(), &["import", "original"], 1, &["1_1_RNN.pt", "hint:"]);
    fs::write(&checkpoint, &whole).unwrap();
    fails(dir.path(), &["import", "original"], 1, &["1_1_RNN.pt", "encoder.weight is missing", "float16 is not in"]);

    fs::copy(fixture("rnn/model.safetensors"), &checkpoint).unwrap();
    original(&folder, |config| config.replace("\"RNN\"", "\"LSTM\""));
    fails(dir.path(), &["import", "original"], 1, &["lstm.weight_hh_l0 is [32, 32], but the model's is [128, 32]"]);
    original(&folder, |config| config.replace("\"hidden_size\": 32", "\"hidden_size\": -1"));
    fails(dir.path(), &["import", "original"], 1, &["original/config.json", "hidden_size"]);
    original(&folder, |config| config.replace("mod10bos", "mod10"));
    import(dir.path(), "original"); // the same tokens
    original(&folder, |config| config.replace("_mod10bos", ""));
    fails(dir.path(), &["import", "original"], 1, &["token 11 is `<pad>`, but the task's is `11`", "--task"]);
    original(&folder, |config| config.replace("counting_samesymbol_mod10bos", "counting_mod10"));
    fails(dir.path(), &["import", "original"], 1, &["counting_mod10", "hint:"]);
    assert_eq!(fs::read_dir(dir.path().join("runs")).unwrap().count(), 1);
}

/// Every reference model, where they lie beside the checkout: imported and exported, which compares ONNX Runtime with burn.
#[test]
fn every_reference_model_can_be_imported_and_exported() {
    let models = repository("../shared/reference/models");
    let Ok(entries) = fs::read_dir(&models) else {
        return eprintln!("skipped: the reference models are not here");
    };
    let more = fs::read_dir(repository("../shared/reference/models-beyond")).into_iter().flatten();
    let dir = tempfile::tempdir().unwrap();
    for folder in
        entries.chain(more).map(|entry| entry.unwrap().path()).filter(|path| path.join("config.json").is_file())
    {
        let imported = import(dir.path(), folder.to_str().unwrap());
        ok(dir.path(), &["export", "--handle", imported["handle"].as_str().unwrap()]);
        if !folder.join("model.pt").is_file() {
            continue;
        }
        // A PyTorch file gives the same weights.
        let torch = dir.path().join("torch").join(folder.file_name().unwrap());
        fs::create_dir_all(&torch).unwrap();
        for file in ["config.json", "model.pt"] {
            fs::copy(folder.join(file), torch.join(file)).unwrap();
        }
        let weights = |imported: &serde_json::Value| {
            let checkpoint = "checkpoints/epoch-0000-step-0/model.safetensors";
            fs::read(dir.path().join("runs").join(imported["handle"].as_str().unwrap()).join(checkpoint)).unwrap()
        };
        assert_eq!(weights(&import(dir.path(), torch.to_str().unwrap())), weights(&imported), "{}", folder.display());
    }
}

/// A config with a vocabulary and no task: the run is exported, and evaluated on a task or a file that is named.
#[test]
fn a_model_without_a_task_is_imported_with_its_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("original");
    original(&folder, |config| config.replace("\"task\": \"counting_samesymbol_mod10bos\",", ""));
    fs::copy(fixture("rnn/model.safetensors"), folder.join("model.safetensors")).unwrap();
    let imported = import(dir.path(), "original");
    let handle = imported["handle"].as_str().unwrap();
    assert!(imported["task"].as_str().unwrap().starts_with("dataset,vocab=[\"0\",\"1\","), "{imported}");
    ok(dir.path(), &["export", "--handle", handle]);
    fails(dir.path(), &["eval", "--handle", handle, "--lengths", "1..9"], 1, &["no examples", "--task", "--split"]);
    let task = "counting_samesymbol_mod10bos";
    let swept = ok(dir.path(), &["eval", "--handle", handle, "--lengths", "1..9", "--task", task, "--json", "-q"]);
    let with_task = import(dir.path(), &fixture("rnn"));
    let other = with_task["handle"].as_str().unwrap();
    ok(dir.path(), &["export", "--handle", other]);
    let expected = ok(dir.path(), &["eval", "--handle", other, "--lengths", "1..9", "--json", "-q"]);
    // All but whether a length was seen in training, which nobody says here.
    let scores = |text: &str| {
        let swept: serde_json::Value = serde_json::from_str(text).unwrap();
        let rows = swept["lengths"].as_array().unwrap().iter();
        rows.map(|row| (row["length"].clone(), row["accuracy"].clone(), row["loss"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(scores(&swept), scores(&expected));
    fs::write(dir.path().join("examples.jsonl"), "{\"tokens\": [\"a\", \"a\"], \"labels\": [\"1\", \"2\"]}\n").unwrap();
    ok(dir.path(), &["eval", "--handle", handle, "--split", "examples.jsonl", "-q"]);
}

/// A folder with the config of the small RNN in all its forms, and with these of its files: (fixture, name in the folder).
fn with_files(dir: &Path, name: &str, files: &[(&str, &str)]) -> String {
    let folder = dir.join(name);
    for (from, to) in [("config.json", "config.json")].iter().chain(files) {
        let to = folder.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fixture(&format!("checkpoints/{from}")), to).unwrap();
    }
    name.to_owned()
}

/// The bytes of the imported checkpoint, of any epoch and step.
fn weights(dir: &Path, imported: &serde_json::Value) -> Vec<u8> {
    let checkpoints = dir.join("runs").join(imported["handle"].as_str().unwrap()).join("checkpoints");
    let checkpoint = fs::read_dir(checkpoints).unwrap().next().unwrap().unwrap().path();
    fs::read(checkpoint.join("model.safetensors")).unwrap()
}

#[test]
fn checkpoints_of_every_tool_are_found_and_come_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let plain = with_files(dir.path(), "plain", &[("model.safetensors", "model.safetensors")]);
    let expected = weights(dir.path(), &import(dir.path(), &plain));
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].map(|name| (name, name));
    let index = ("model.safetensors.index.json", "model.safetensors.index.json");
    for (i, (files, step)) in [
        (&[("module_compiled.pt", "model.pt")][..], "epoch-0000-step-0"),
        (&[("legacy.pt", "pytorch_model.bin")], "epoch-0000-step-0"),
        (&[("lightning.ckpt", "last.ckpt")], "epoch-0003-step-500"),
        (&[("lightning.ckpt", "checkpoints/last.ckpt")], "epoch-0003-step-500"),
        (&[("ema.pt", "rnn.pth"), ("plain.pt", "optimizer.pt")], "epoch-0000-step-0"),
        (&[("plain.pt", "pytorch_model/mp_rank_00_model_states.pt")], "epoch-0000-step-0"),
        (
            &[
                ("plain.pt", "lightning_logs/version_10/checkpoints/epoch=2-step=30.ckpt"),
                ("two.pt", "lightning_logs/version_10/checkpoints/epoch=1-step=20.ckpt"),
                ("two.pt", "lightning_logs/version_9/checkpoints/epoch=5-step=70.ckpt"),
            ],
            "epoch-0002-step-30",
        ),
        (
            &[
                ("model.safetensors", "checkpoint-500/model.safetensors"),
                ("two.pt", "checkpoint-60/pytorch_model.bin"),
                ("plain.pt", "checkpoint-600/optimizer.pt"), // its model was never written
            ],
            "epoch-0000-step-500",
        ),
        (&[("plain.pt", "checkpoints/checkpoint_3/pytorch_model.bin")], "epoch-0000-step-3"),
        (&[index, shards[0], shards[1]], "epoch-0000-step-0"),
        (&[shards[0], shards[1]], "epoch-0000-step-0"),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = with_files(dir.path(), &format!("form{i}"), files);
        let imported = import(dir.path(), &folder);
        assert!(weights(dir.path(), &imported) == expected, "{files:?}");
        let run = dir.path().join("runs").join(imported["handle"].as_str().unwrap());
        assert!(run.join("checkpoints").join(step).is_dir(), "{files:?}: {:?}", crate::common::files(&run));
    }
    // A checkpoint by its own name, with the config in its folder or above.
    let named = with_files(dir.path(), "named", &[("compiled.pt", "a.pt"), ("module.pt", "deep/er/b.pt")]);
    for file in ["a.pt", "deep/er/b.pt"] {
        assert!(weights(dir.path(), &import(dir.path(), &format!("{named}/{file}"))) == expected, "{file}");
    }
    // Weights to begin with are read in the same ways.
    let file = fixture("checkpoints/ema.pt");
    let set = ["model.hidden_size=4", "model.num_layers=1", "train.max_steps=1", "optimizer.warmup_steps=9"];
    let set = set.iter().flat_map(|set| ["--set", set]);
    let toml = dir.path().join("rnn.toml");
    fs::write(&toml, "[task]\nname = 'counting_samesymbol_mod10bos'\ntrain_examples = 100\n[model]\narch = 'rnn'\n")
        .unwrap();
    let arguments = ["train", "--config", "rnn.toml", "--init-from", &file, "--json", "-q"].into_iter().chain(set);
    let trained = ok(dir.path(), &arguments.collect::<Vec<_>>());
    // The first step of a warm-up has learning rate 0: what comes out is what went in.
    assert!(weights(dir.path(), &serde_json::from_str(&trained).unwrap()) == expected);
}

#[test]
fn tied_tables_and_equal_ones_are_exported_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let tie = |folder: &str| {
        let config = dir.path().join(folder).join("config.json");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(config, text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true")).unwrap();
    };
    let tied = with_files(dir.path(), "tied", &[("tied.safetensors", "model.safetensors")]);
    tie(&tied);
    let equal = with_files(dir.path(), "equal", &[("equal.safetensors", "model.safetensors")]);
    for folder in [tied, equal] {
        let imported = import(dir.path(), &folder);
        ok(dir.path(), &["export", "--handle", imported["handle"].as_str().unwrap()]);
    }
}

#[test]
fn what_is_no_checkpoint_or_more_than_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (i, (files, parts)) in [
        (&[("two.pt", "model.pt")][..], &["2 models that fit: `student.`, `teacher.`", "['student']"][..]),
        (&[("whole.pt", "model.pt")], &["__main__.Rnn", "was not run", ".state_dict(), 'model.pt')"]),
        (&[("arrays.npz", "model.pt")], &["archive of NumPy", "safetensors.numpy"]),
        (&[("plain.pt", "a.pt"), ("plain.pt", "b.pt")], &["several checkpoints", "a.pt, b.pt", "pipeline import"]),
        (&[("plain.pt", "step_5/model.pt"), ("plain.pt", "epoch_1/model.pt")], &["count in different ways", "epoch_1"]),
        (&[("plain.pt", "pytorch_model_fsdp_0/__0_0.distcp")], &["torch.distributed", "dcp_to_torch"]),
        (
            &[("model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors")],
            &["00002-of-00002", "not beside it"],
        ),
        (&[("missing.pt", "model.pt")], &["decoder.weights is not in the model (is it decoder.weight?)"]),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = with_files(dir.path(), &format!("bad{i}"), files);
        fails(dir.path(), &["import", &folder], 1, &[parts, &["hint:"]].concat());
        let message = crate::common::run(dir.path(), &["import", &folder]).stderr;
        assert!(!message.contains("damaged"), "{message}");
    }
    for (name, content, parts) in [
        ("empty", "", &["it is empty"][..]),
        ("pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", &["Git LFS", "git lfs pull"]),
        ("page", "<!DOCTYPE html>\n<html></html>", &["web page", "/resolve/"]),
    ] {
        let folder = with_files(dir.path(), name, &[]);
        for file in ["model.safetensors", "config.json"] {
            fs::write(dir.path().join(&folder).join(file), content).unwrap();
            fails(dir.path(), &["import", &folder], 1, &[parts, &[file, "hint:"]].concat());
        }
    }
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn a_config_with_what_python_writes_is_read_and_a_seed_that_is_too_large_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("original");
    let with = |change: &dyn Fn(String) -> String| {
        original(&folder, change);
        fs::copy(fixture("rnn/model.safetensors"), folder.join("model.safetensors")).unwrap();
    };
    for change in [
        &(|c: String| c.replacen('{', "{\"best_val_loss\": Infinity, \"grad_clip\": NaN,", 1))
            as &dyn Fn(String) -> String,
        &|c| format!("\u{feff}{c}"),
        &|c| c.replace("\"hidden_size\": 32", "\"hidden_size\": 32.0"),
        &|c| c.replacen('{', "{\"seed\": 9223372036854775807, // large\n", 1),
    ] {
        with(change);
        import(dir.path(), "original");
    }
    with(&|c| c.replacen('{', "{\"seed\": 15316877896914379087,", 1));
    let parts = ["original/config.json", "seed", "15316877896914379087: seeds go up to 9223372036854775807"];
    fails(dir.path(), &["import", "original"], 1, &parts);
    with(&|c| c.replace("\"hidden_size\": 32", "\"hidden_size\": NaN"));
    fails(dir.path(), &["import", "original"], 1, &["original/config.json", "hidden_size", "NaN"]);
}
