//! Loading: models that keep the ONNX contract, and the message for each violation.

use crate::common::{fixture, model, on_cpu};
use evaluators::{LoadOptions, Model, Provider, RuntimeLibrary, available_providers};

fn refused(name: &str) -> String {
    match Model::load(&fixture(name), on_cpu(1)) {
        Err(error) => error.to_string().replace(&fixture(name).display().to_string(), "MODEL"),
        Ok(_) => String::new(),
    }
}

fn breach(reason: &str) -> String {
    format!(
        "MODEL does not keep the ONNX contract: {reason}\n  hint: inputs are input_ids and, where needed, position_ids \
         and attention_mask, all int64 [batch, seq] (scalar positions: float32); the output is logits float32 [batch, seq, vocab]; batch and seq \
         are symbolic"
    )
}

#[test]
fn metadata_is_read_by_its_key_names() {
    let model = model("counts_mod10");
    let info = model.info();
    assert_eq!(info.handle.as_deref(), Some("0102_030405"));
    assert_eq!(info.task.as_deref(), Some(crate::common::MOD10));
    assert_eq!((info.arch.as_deref(), info.precision.as_deref()), (Some("lstm"), Some("fp32")));
    assert_eq!((info.num_layers, info.hidden_size, info.seed), (Some(1), Some(64), Some(1234)));
    assert_eq!((info.train_max_length, info.max_position_embeddings), (Some(50), Some(128)));
    assert_eq!(info.position_limit, None);
    assert_eq!(info.vocab.as_ref().unwrap()[11..], ["<pad>", "a"]);
    assert_eq!((model.provider(), model.fallback()), (Provider::Cpu, None));
}

#[test]
fn breaches_of_the_contract_are_named() {
    for (name, reason) in [
        ("extra_input", "it needs the input `state_0_in` Tensor<f32>(batch, seq), which the evaluator does not know"),
        (
            "only_batches_of_2",
            "its input `input_ids` Tensor<i64>(2, seq) has a fixed batch, so it serves only batches of that size",
        ),
        ("bad_metadata", "its metadata `seed` is `twelve`, not a number"),
    ] {
        assert_eq!(refused(name), breach(reason), "{name}");
    }
}

#[test]
fn files_that_are_no_models_are_named() {
    assert_eq!(
        refused("absent"),
        "cannot read the model MODEL: No such file or directory (os error 2)\n  hint: check the path"
    );
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("text.onnx", "this is not a protobuf"), ("empty.onnx", "")] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let message = Model::load(&path, on_cpu(1)).err().unwrap().to_string();
        assert!(message.starts_with(&format!("cannot load {} as an ONNX model: ", path.display())), "{message}");
        assert!(message.contains("\n  hint: `pipeline export` writes one"), "{message}");
    }
    let folder = Model::load(dir.path(), on_cpu(1)).err().unwrap().to_string();
    assert!(folder.starts_with(&format!("cannot read the model {}: ", dir.path().display())), "{folder}");
}

#[test]
fn run_ids_gives_the_logits_of_every_position() {
    let mut model = model("counts_mod10");
    let logits = model.run_ids(&[0, 12, 12, 0, 12, 12], 2, 3).unwrap();
    assert_eq!((logits.vocab(), logits.values().len()), (13, 2 * 3 * 13));
    assert_eq!(logits.sequence(0), logits.sequence(1));
    let mut expected = [0.0; 13];
    expected[2] = 8.0;
    assert_eq!(logits.sequence(1)[2 * 13..], expected);
    let message = model.run_ids(&[0, 12], 1, 3).err().unwrap().to_string();
    assert!(message.contains("on 1 sequences of 3 tokens: 2 token ids were given"), "{message}");
}

#[test]
fn positions_and_mask_reach_models_that_want_them() {
    let mut model = model("reads_positions");
    let logits = model.run_ids(&[0, 12, 12, 12], 1, 4).unwrap();
    assert_eq!(logits.sequence(0)[3 * 13 + 3], 8.0, "position 3 is labelled 3");
    let batch = data::Batch {
        batch: 1,
        seq: 2,
        input_ids: vec![0, 12],
        labels: vec![-1, 1],
        position_ids: data::PositionIds::Integers(vec![0, 7]),
        attention_mask: vec![1, 0],
    };
    assert_eq!(model.run(&batch).unwrap().sequence(0)[13], 8.0, "a masked position is labelled 0");
}

#[test]
fn a_provider_that_is_missing_is_an_error_and_auto_goes_to_the_cpu() {
    let offered = available_providers().unwrap();
    assert!(offered.iter().any(|p| p == "CPUExecutionProvider"), "{offered:?}");
    assert!(RuntimeLibrary::find().unwrap().is_some());
    if offered.iter().any(|p| p == "CUDAExecutionProvider") {
        return; // what happens then depends on the machine
    }
    for provider in [Provider::Cuda, Provider::TensorRt] {
        let options = LoadOptions { provider, threads: None };
        let message = Model::load(&fixture("counts_mod10"), options).err().unwrap().to_string();
        let start =
            format!("cannot use the provider `{provider}`: the ONNX Runtime library was built without it\n  hint:");
        assert!(message.starts_with(&start), "{message}");
    }
    let model = Model::load(&fixture("counts_mod10"), LoadOptions::default()).unwrap();
    assert_eq!((model.provider(), model.fallback()), (Provider::Cpu, None));
}

#[test]
fn provider_names_are_parsed_and_typos_answered() {
    for name in ["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino"] {
        assert_eq!(name.parse::<Provider>().unwrap().to_string(), name);
    }
    assert_eq!(
        "tensort".parse::<Provider>().unwrap_err().to_string(),
        "there is no provider `tensort`; did you mean `tensorrt`?\n  hint: the choices are auto, cpu, cuda, tensorrt, \
         tensorrt-rtx, openvino"
    );
}
