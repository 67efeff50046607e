//! Runs of the original PyTorch code become runs here.
#![allow(clippy::unwrap_used)]

mod common;

use common::{fails, files, ok, repository};
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
    let dir = tempfile::tempdir().unwrap();
    for folder in entries.map(|entry| entry.unwrap().path()).filter(|path| path.join("config.json").is_file()) {
        let imported = import(dir.path(), folder.to_str().unwrap());
        ok(dir.path(), &["export", "--handle", imported["handle"].as_str().unwrap()]);
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
