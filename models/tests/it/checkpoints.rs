//! Checkpoints of PyTorch in all the ways in which people save them. `fixtures/make_checkpoints.py` made the files.

use models::original::Original;
use models::{Cpu, Fitted, Model, ModelConfig, StateDict, WeightError, Weights};
use std::path::{Path, PathBuf};

const VOCAB: usize = 13;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)
}

fn config(change: impl Fn(String) -> String) -> ModelConfig {
    let text = std::fs::read_to_string(fixture("config.json")).unwrap();
    Original::read(change(text).as_bytes()).unwrap().model
}

fn untied() -> Model<Cpu> {
    config(|text| text).init(VOCAB, 0, &Default::default())
}

fn tied() -> Model<Cpu> {
    let tied = |text: String| text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    config(tied).init(VOCAB, 0, &Default::default())
}

fn fit(path: &Path, model: &Model<Cpu>) -> Result<Fitted, WeightError> {
    StateDict::read(path)?.fit(model)
}

fn plain() -> Weights {
    Weights::read(&fixture("model.safetensors")).unwrap()
}

/// The message of a file that is not read.
fn refusal(name: &str) -> String {
    let error = fit(&fixture(name), &untied()).expect_err(name).to_string();
    assert!(error.contains("hint:"), "{error}");
    assert!(!error.contains("damaged"), "{name} is not damaged: {error}");
    error
}

#[test]
fn the_same_model_in_every_form_is_the_same_model() {
    for name in [
        "model.safetensors",
        "plain.pt",
        "legacy.pt",
        "protocol4.pt",
        "compressed.pt",
        "parameters.pt",
        "attributes.pt",
        "tagged.pt",
        "views.pt",
        "views_legacy.pt",
        "float64.pt",
        "module.pt",
        "compiled.pt",
        "module_compiled.pt",
        "compiled_module.pt",
        "compiled_inside.pt",
        "nested.pt",
        "model_state_dict.pt",
        "training_legacy.pt",
        "parts.pt",
        "beside.pt",
        "twice.pt",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    ] {
        let fitted = fit(&fixture(name), &untied()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(fitted.weights, plain(), "{name}");
        assert!(fitted.notes.is_empty(), "{name}: {:?}", fitted.notes);
        fitted.weights.load_into(&mut untied()).unwrap();
    }
}

#[test]
fn what_is_left_out_is_said() {
    for (name, notes) in [
        ("lightning.ckpt", "tensors beside the model are left out: state_dict.criterion.weight"),
        ("ema.pt", "of two sets of weights, `ema.` is left out and `model.` is taken"),
        ("averaged.pt", "of two sets of weights, `ema_model.` is left out and `model.` is taken"),
    ] {
        let fitted = fit(&fixture(name), &untied()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((fitted.weights, fitted.notes.join("\n").as_str()), (plain(), notes), "{name}");
    }
}

#[test]
fn epoch_and_step_of_a_training_checkpoint_are_known() {
    let file = StateDict::read(&fixture("nested.pt")).unwrap();
    assert_eq!((file.number("epoch"), file.number("global_step"), file.number("best")), (Some(3), Some(500), None));
}

#[test]
fn nobody_guesses_between_two_models() {
    for (name, models, hint) in [
        ("two.pt", "`student.`, `teacher.`", "map_location='cpu')['student'], 'model.pt')"),
        ("two_flat.pt", "`student.`, `teacher.`", "if k.startswith('student.')}, 'model.pt')"),
    ] {
        let error = refusal(name);
        assert!(error.contains("2 models that fit") && error.contains(models) && error.contains(hint), "{error}");
    }
}

#[test]
fn what_is_no_state_dict_is_named_with_the_line_that_converts_it() {
    for (name, what, line) in [
        (
            "whole.pt",
            "__main__.Rnn, which no state dict needs; it was not run",
            "weights_only=False).state_dict(), 'model.pt')",
        ),
        ("namespace.pt", "argparse.Namespace", "weights_only=False)['model'], 'model.pt')"),
        ("namespace_flat.pt", "argparse.Namespace", "if torch.is_tensor(v)}, 'model.pt')"),
        ("script.pt", "TorchScript", "torch.jit.load("),
        ("arrays.npz", "archive of NumPy", "safetensors.numpy import save_file"),
    ] {
        let error = refusal(name);
        assert!(error.contains(what) && error.contains(line) && error.contains(name), "{error}");
    }
    let error = refusal("float8.pt");
    assert!(error.contains("encoder.weight cannot be read: numbers of a type"), "{error}");
}

#[test]
fn a_missing_name_is_said_once_with_what_is_there_instead() {
    let error = fit(&fixture("missing.pt"), &untied()).unwrap_err();
    let WeightError::Mismatch(problems) = &error else { panic!("{error:?}") };
    let expected = ["decoder.weight is missing", "decoder.weights is not in the model (is it decoder.weight?)"];
    assert_eq!(problems, &expected);
    let error = plain().load_into(&mut tied()).unwrap_err();
    let WeightError::Mismatch(problems) = &error else { panic!("{error:?}") };
    assert_eq!(problems, &["decoder.weight is not in the model"]);
}

#[test]
fn tied_tables_are_read_under_either_name_and_equal_ones_stay_two() {
    let expected = fit(&fixture("tied.pt"), &tied()).unwrap().weights;
    assert!(expected.get("decoder.weight").is_none());
    for name in ["tied.safetensors", "tied_unnamed.safetensors", "equal.safetensors"] {
        assert_eq!(fit(&fixture(name), &tied()).unwrap().weights, expected, "{name}");
    }
    let error = fit(&fixture("differ.safetensors"), &tied()).unwrap_err().to_string();
    assert!(error.contains("decoder.weight is not in the model, which ties it to encoder.weight"), "{error}");

    // The config does not tie them: both names must be in the file, or said to be one.
    for name in ["equal.safetensors", "tied.pt", "tied.safetensors"] {
        let weights = fit(&fixture(name), &untied()).unwrap().weights;
        assert_eq!(weights.get("decoder.weight"), weights.get("encoder.weight"), "{name}");
        assert_eq!(weights.get("decoder.weight"), expected.get("encoder.weight"), "{name}");
        let mut model = untied();
        weights.load_into(&mut model).unwrap();

        // And they stay two in the program's own checkpoint.
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("untied-{name}"));
        std::fs::write(&path, Weights::of(&model).unwrap().to_safetensors().unwrap()).unwrap();
        assert_eq!(Weights::read(&path).unwrap(), weights, "{name}");
        assert_eq!(fit(&path, &untied()).unwrap().weights, weights, "{name}");
        std::fs::remove_file(path).unwrap();
    }
    let error = fit(&fixture("tied_unnamed.safetensors"), &untied()).unwrap_err().to_string();
    assert_eq!(error.matches("encoder.weight is missing").count(), 1, "{error}");
}

// Files under the name of a checkpoint --------------------------------------------------------------------------------

fn read(name: &str, bytes: &[u8]) -> Result<StateDict, WeightError> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let found = StateDict::read(&path);
    std::fs::remove_file(&path).unwrap();
    found
}

#[test]
fn what_is_no_checkpoint_is_named_for_what_it_is() {
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n";
    let tar = [vec![b'x'; 257], b"ustar\0".to_vec(), vec![0; 249]].concat();
    for (name, bytes, what, hint) in [
        ("a.safetensors", &b""[..], "it is empty", "copy or download"),
        ("b.pt", &[0; 4096][..], "nothing but zeros", "copy or download"),
        ("c.pt", lfs.as_bytes(), "pointer of Git LFS", "git lfs pull"),
        ("d.safetensors", b"\n<!DOCTYPE html>\n<html>", "web page", "/resolve/"),
        ("e.pt", b"<html><body>404", "web page", "/resolve/"),
        ("f.pt", b"\x1f\x8b\x08\0\0\0\0\0", "compressed by gzip", "gunzip"),
        ("g.pt", b"\x89HDF\r\n\x1a\n", "HDF5", "PyTorch"),
        ("h.pt", b"{\"error\": \"Not Found\"}", "JSON text", "name the file"),
        ("i.safetensors", b"Access to model x is restricted", "begins with `Access to model x", "name the file"),
        ("j.pt", b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", "a pickle, but not one of torch.save", "pickle.load"),
        ("k.pt", &tar, "tar archive", "torch.load"),
        ("l.onnx", b"\x08\x08\x12\x07pytorch\x1a\x01", "ONNX model", "pipeline eval --model"),
        (
            "m.pt",
            b"\x12\x34\x56\x78\x9a\xbc\xde\xf0\x12",
            "neither safetensors nor a file of torch.save",
            "state_dict()",
        ),
        ("n.index.json", b"[1]", "without a `weight_map`", "index.json"),
        ("o.json", b"{\"weight_map\": {\"a\": \"../x.bin\"}}", "`../x.bin`, which is no file beside it", "beside"),
        ("p.json", b"{\"weight_map\": {\"a\": \"x.bin\"}}", "shard x.bin is not beside it", "all shards"),
        ("q-00001-of-00002.bin", b"", "q-00002-of-00002.bin is not beside it", "all shards"),
    ] {
        let error = read(name, bytes).expect_err(name).to_string();
        assert!(error.contains(what) && error.contains(hint) && error.contains(name), "{name}: {error}");
        assert!(!error.contains("damaged"), "{name}: {error}");
    }
    let error = StateDict::read(&fixture("")).unwrap_err().to_string();
    assert!(error.contains("it is a folder") && error.contains("hint:"), "{error}");
}

#[test]
fn what_is_cut_short_is_said_to_be() {
    for name in ["plain.pt", "legacy.pt", "model.safetensors", "compressed.pt", "nested.pt"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for cut in [whole.len() / 2, whole.len() - 1] {
            let error = match read(name, &whole[..cut]) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{name} cut to {cut} bytes is read"),
            };
            assert!(error.contains("cut short") || error.contains("pickle is damaged"), "{name} at {cut}: {error}");
            assert!(error.contains("hint:") && error.contains("damaged"), "{name} at {cut}: {error}");
        }
    }
}

/// A safetensors file with a header of any kind.
fn safetensors(header: &str, body: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; body]].concat()
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    for (header, body, what) in [
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, "8 bytes, of which 4 are there"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9, "1 bytes too many"),
        (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "the place of a is wrong"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12, "the place of a is wrong"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "the place of a is wrong"),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "the place of b is wrong",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615],"data_offsets":[0,8]}}"#,
            8,
            "wrong",
        ),
        (r#"{"a":7}"#, 0, "header is broken"),
        (r#"{"a""#, 0, "header is broken"),
    ] {
        let error = read("header.safetensors", &safetensors(header, body)).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("hint:"), "{header}: {error}");
    }
}

// Settings ------------------------------------------------------------------------------------------------------------

#[test]
fn config_files_are_read_as_python_and_people_write_them() {
    let strict = config(|text| text);
    let wide = |text: String| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let text = std::fs::read_to_string(fixture("config.json")).unwrap();
    for (what, bytes) in [
        ("a byte order mark", format!("\u{feff}{text}").into_bytes()),
        ("UTF-16", [vec![0xff, 0xfe], wide(text.clone())].concat()),
        ("a whole number with a fraction", text.replace("\"hidden_size\": 4", "\"hidden_size\": 4.0").into_bytes()),
        (
            "a switch as a number",
            text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": 0").into_bytes(),
        ),
        ("NaN", text.replacen('{', "{\"loss\": NaN, \"best\": -Infinity,", 1).into_bytes()),
        ("a comment first", format!("/* a run */ {text}").into_bytes()),
        ("a comment", text.replacen('{', "{ // of the run\n", 1).into_bytes()),
    ] {
        let read = Original::read(&bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(read.model, strict, "{what}");
    }
    for (change, message) in [
        (("\"hidden_size\": 4", "\"hidden_size\": 4.5"), "hidden_size: invalid type: floating point `4.5`"),
        (("\"hidden_size\": 4", "\"hidden_size\": NaN"), "hidden_size: invalid type: string \"NaN\""),
        (("\"dropout\": 0.1", "\"dropout\": Infinity"), "dropout: invalid type: string \"Infinity\""),
        (
            ("\"dropout\": 0.1", "\"seed\": 15316877896914379087"),
            "seed: 15316877896914379087: seeds go up to 9223372036854775807",
        ),
        (("\"dropout\": 0.1", "\"seed\": 9223372036854775808"), "seed: 9223372036854775808: seeds go up to"),
        (("\"dropout\": 0.1", "\"seed\": 1e30"), "seeds go up to 9223372036854775807"),
        (("\"dropout\": 0.1", "\"seed\": -1"), "seed: invalid value: integer `-1`"),
        (("{", "{{"), "config.json: it is not JSON"),
    ] {
        let changed = text.replacen(change.0, change.1, 1);
        assert_ne!(changed, text);
        let error = Original::read(changed.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let seed = |seed: &str| {
        let text = text.replacen('{', &format!("{{\"seed\": {seed},"), 1);
        Original::read(text.as_bytes()).unwrap().seed
    };
    assert_eq!([seed("9223372036854775807"), seed("42.0"), seed("null")], [Some(i64::MAX as u64), Some(42), None]);
}
