//! Models as other programs export them: each scores what the same model of our own would.

use crate::common::{MOD10, on_cpu};
use data::Task;
use evaluators::{EvalError, Lengths, Model, Sweep, SweepResult, model_fingerprint};
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/foreign").join(name)
}

fn foreign(name: &str) -> Model {
    Model::load(&file(&format!("{name}.onnx")), on_cpu(1)).unwrap()
}

fn swept(model: &mut Model, lengths: &str) -> Result<SweepResult, EvalError> {
    let task = Task::by_name(MOD10).unwrap();
    Sweep::new(model).task(&task).lengths(lengths.parse::<Lengths>().unwrap()).results()
}

fn assert_perfect(name: &str, results: &SweepResult) {
    for result in &results.lengths {
        let score = result.score().unwrap_or_else(|| unreachable!("{name}: {}", result.status()));
        assert_eq!(score.accuracy(), Some(1.0), "{name} at length {}", result.length);
        let loss = (1.0 + 12.0 * (-8f64).exp()).ln();
        assert!((score.loss().unwrap() - loss).abs() < 1e-6, "{name}: {:?}", score.loss());
    }
}

#[test]
fn types_and_names_of_other_programs_are_taken() {
    for name in [
        "ids_int32",
        "ids_float",
        "tokens",
        "anything",
        "logits_float16",
        "logits_bfloat16",
        "logits_double",
        "mask_int32",
        "mask_bool",
        "mask_float",
        "mask_float16",
        "mask_uint8",
        "token_types",
        "segments",
        "positions_int32",
        "external",
    ] {
        let mut model = foreign(name);
        assert_perfect(name, &swept(&mut model, "1..30").unwrap());
        // the logits themselves
        let logits = model.run_ids(&[0, 12, 12, 12], 1, 4).unwrap();
        assert_eq!(logits.sequence(0)[3 * 13..], [0., 0., 0., 8., 0., 0., 0., 0., 0., 0., 0., 0., 0.], "{name}");
    }
}

#[test]
fn masks_mask_whatever_their_type() {
    for name in ["mask_int32", "mask_bool", "mask_float", "mask_float16", "mask_uint8"] {
        let batch = data::Batch {
            batch: 1,
            seq: 2,
            input_ids: vec![0, 12],
            labels: vec![-1, 1],
            position_ids: data::PositionIds::Integers(vec![0, 1]),
            attention_mask: vec![1, 0],
        };
        assert_eq!(foreign(name).run(&batch).unwrap().sequence(0)[13], 8.0, "{name}");
    }
}

#[test]
fn guesses_about_inputs_and_outputs_are_told() {
    assert_eq!(foreign("tokens").notes(), ["it has no input `input_ids`; its input `tokens` gets the token ids"]);
    assert!(foreign("ids_int32").notes().is_empty() && foreign("external").notes().is_empty());
    let mut model = crate::common::model("no_logits");
    assert_eq!(model.notes(), ["it has no output `logits`; its output `scores` is taken for them"]);
    assert_perfect("no_logits", &swept(&mut model, "1..30").unwrap());
}

#[test]
fn one_of_several_outputs_is_named() {
    let path = file("two_outputs.onnx");
    let load = |name| Model::load_with_logits(&path, on_cpu(1), name);
    let results = swept(&mut load(Some("probabilities")).unwrap(), "1..30").unwrap();
    assert_perfect("probabilities", &results);
    let other = swept(&mut load(Some("hidden")).unwrap(), "1..30").unwrap();
    assert_eq!(other.lengths[20].score().unwrap().accuracy(), Some(0.0), "the one that was named is taken");
    let message = load(None).err().unwrap().to_string();
    let listed = "it has no output `logits`, but `hidden` Tensor<f32>(batch, seq, 13), `probabilities` \
                  Tensor<f32>(batch, seq, 13); --logits NAME says which to take";
    assert!(message.contains(listed), "{message}");
    let message = load(Some("logits")).err().unwrap().to_string();
    assert!(message.contains("it has no output `logits`, but `hidden`"), "{message}");
}

/// ONNX Runtime scores from opset 11 on; older models are scored from their logits, to the same numbers.
#[test]
fn old_models_score_like_new_ones() {
    let new = swept(&mut foreign("opset_20"), "1..40").unwrap();
    for name in ["opset_7", "opset_9"] {
        let old = swept(&mut foreign(name), "1..40").unwrap();
        for (old, new) in old.lengths.iter().zip(&new.lengths) {
            let (old, new) = (old.score().unwrap(), new.score().unwrap());
            assert_eq!((old.accuracy(), old.last_correct), (new.accuracy(), new.last_correct), "{name}");
            assert!((old.loss_sum - new.loss_sum).abs() < 1e-5 * new.loss_sum, "{name}");
        }
    }
}

#[test]
fn messages_speak_of_the_model_and_never_of_what_was_added_to_it() {
    for (name, part) in [
        ("time_first", "at any of the 30 lengths; at length 1: its logits do not have the shape [1, 2, 13]"),
        (
            "ambiguous",
            "it has no input `input_ids`, but `left` Tensor<i64>(batch, seq), `other` Tensor<i64>(batch, seq)",
        ),
    ] {
        let path = file(&format!("{name}.onnx"));
        let message = match Model::load(&path, on_cpu(1)) {
            Err(error) => error.to_string(),
            Ok(mut model) => match swept(&mut model, "1..30") {
                Err(error) => error.to_string(),
                Ok(results) => results.lengths[29].status().to_owned(),
            },
        };
        assert!(message.contains(part), "{name}: {message}");
        assert!(!message.contains("evaluators_") && !message.contains("GatherElements"), "{message}");
    }
}

fn copied(folder: &Path, names: &[(&str, &str)]) {
    std::fs::create_dir_all(folder).unwrap();
    for (from, to) in names {
        std::fs::copy(file(from), folder.join(to)).unwrap();
    }
}

/// As `huggingface_hub` lays out its cache.
#[cfg(unix)]
#[test]
fn weights_behind_links_are_read() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("snapshots/0123/onnx");
    copied(&dir.path().join("blobs"), &[("external.onnx", "4f1c"), ("external.onnx_data", "9a77")]);
    std::fs::create_dir_all(&snapshot).unwrap();
    symlink("../../../blobs/4f1c", snapshot.join("model.onnx")).unwrap();
    symlink("../../../blobs/9a77", snapshot.join("external.onnx_data")).unwrap();
    let mut model = Model::load(&snapshot.join("model.onnx"), on_cpu(2)).unwrap();
    assert_perfect("snapshot", &swept(&mut model, "1..30").unwrap());

    // a link from elsewhere to a model with its weights beside it
    copied(&dir.path().join("plain"), &[("external.onnx", "m.onnx"), ("external.onnx_data", "external.onnx_data")]);
    symlink("plain/m.onnx", dir.path().join("current.onnx")).unwrap();
    let mut model = Model::load(&dir.path().join("current.onnx"), on_cpu(2)).unwrap();
    assert_perfect("link", &swept(&mut model, "1..30").unwrap());
    let fingerprint = |path: &str| model_fingerprint(&dir.path().join(path)).unwrap();
    assert_eq!(fingerprint("current.onnx"), fingerprint("snapshots/0123/onnx/model.onnx"), "the same model");
}

#[test]
fn weights_in_other_files_are_part_of_the_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("external.onnx");
    copied(dir.path(), &[("external.onnx", "external.onnx"), ("external.onnx_data", "external.onnx_data")]);
    let before = model_fingerprint(&path).unwrap();
    assert_eq!(Model::load(&path, on_cpu(1)).unwrap().fingerprint(), Some(&*before));
    copied(dir.path(), &[("external_zero.onnx_data", "external.onnx_data")]);
    assert_ne!(model_fingerprint(&path).unwrap(), before);
    std::fs::remove_file(dir.path().join("external.onnx_data")).unwrap();
    let message = Model::load(&path, on_cpu(1)).err().unwrap().to_string();
    assert!(message.contains("its weights in `external.onnx_data` are not there"), "{message}");
}

/// The weights of a model are exchanged between a killed sweep and the next; earlier scores do not count.
#[test]
fn a_killed_sweep_does_not_go_on_with_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (path, journal) = (dir.path().join("external.onnx"), dir.path().join("progress"));
    let task = Task::by_name(MOD10).unwrap();
    let run = |journal: Option<&Path>| {
        let mut model = Model::load(&path, on_cpu(1)).unwrap();
        let sweep = Sweep::new(&mut model).task(&task).lengths(1..=40).exhaustive(true).max_tokens(Some(100));
        sweep.journal(journal).results().unwrap().lengths
    };
    copied(dir.path(), &[("external.onnx", "external.onnx"), ("external.onnx_data", "external.onnx_data")]);
    run(Some(&journal));
    let record = std::fs::read(&journal).unwrap();
    std::fs::write(&journal, &record[..record.len() / 2]).unwrap();
    copied(dir.path(), &[("external_zero.onnx_data", "external.onnx_data")]);
    assert_eq!(run(Some(&journal)), run(None));
}
