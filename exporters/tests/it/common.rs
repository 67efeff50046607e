//! Exports of fresh models, decoded.

use exporters::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};
use exporters::{ExportInfo, ExportOptions, OnnxFile, OnnxFiles, Target, export};
use models::{Cpu, ModelConfig, Weights};
use prost::Message;

pub const VOCAB: usize = 13;
pub const TARGETS: [Target; 2] = [Target::Portable, Target::Ort];

pub fn weights(config: &ModelConfig) -> Weights {
    Weights::of(&config.init::<Cpu>(VOCAB, 1, &Default::default())).unwrap()
}

/// Tokens are numbers in quotation marks, which JSON has to escape.
pub fn info(vocab: usize) -> ExportInfo {
    ExportInfo {
        handle: "1123_142530".into(),
        task: "counting_samesymbol_mod10bos".into(),
        vocab: (0..vocab).map(|id| format!("\"{id}\"")).collect(),
        units: vec![],
        train_max_length: 50,
        max_position_embeddings: 128,
        augmentation: "shift".into(),
        seed: 1234,
        checkpoint: "epoch-0003-step-93750".into(),
        checkpoint_checksum: "0".into(),
    }
}

/// The files of a fresh model.
pub fn files(config: &ModelConfig, options: &ExportOptions) -> OnnxFiles {
    export(config, &weights(config), &info(VOCAB), options).unwrap()
}

pub fn decoded(file: &OnnxFile) -> ModelProto {
    ModelProto::decode(&file.model[..]).unwrap()
}

pub fn exported(config: &ModelConfig, target: Target) -> ModelProto {
    decoded(&files(config, &ExportOptions { target, ..Default::default() }).model)
}

pub fn graph(config: &ModelConfig, target: Target) -> GraphProto {
    exported(config, target).graph.unwrap()
}

/// The graph of the file with states.
pub fn stateful_graph(config: &ModelConfig, target: Target) -> GraphProto {
    let files = files(config, &ExportOptions { target, ..Default::default() });
    decoded(&files.stateful.unwrap()).graph.unwrap()
}

/// The nodes of the graph and of the bodies of its loops.
pub fn all_nodes(graph: &GraphProto) -> Vec<&NodeProto> {
    let bodies = graph.node.iter().flat_map(|node| node.attribute.iter().filter_map(|a| a.g.as_ref()));
    graph.node.iter().chain(bodies.flat_map(all_nodes)).collect()
}

/// `input_ids int64 [batch, seq]`, as the contract spells it.
pub fn spelled(value: &ValueInfoProto) -> String {
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.clone().unwrap().value else { panic!("no tensor") };
    let element = match tensor.elem_type() {
        1 => "float",
        7 => "int64",
        other => panic!("type {other}"),
    };
    let dims = tensor.shape.unwrap().dim.into_iter().map(|dim| match dim.value.unwrap() {
        dimension::Value::DimParam(name) => name,
        dimension::Value::DimValue(n) => n.to_string(),
    });
    format!("{} {element} [{}]", value.name(), dims.collect::<Vec<_>>().join(", "))
}
