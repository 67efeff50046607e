//! What the exported files of S4 and Mamba look like.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use exporters::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};
use exporters::{ExportError, ExportInfo, ExportOptions, Precision, export};
use models::mamba::MambaConfig;
use models::s4::S4Config;
use models::{Cpu, ModelConfig, Weights};
use prost::Message;
use std::collections::HashSet;

const VOCAB: usize = 13;

fn s4(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::S4(S4Config { hidden_size, num_layers, kernel_length: 16, ..Default::default() })
}

fn mamba(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Mamba(MambaConfig { hidden_size, num_layers, ..Default::default() })
}

fn weights(config: &ModelConfig) -> Weights {
    Weights::of(&config.init::<Cpu>(VOCAB, 1, &Default::default())).unwrap()
}

fn export_of(config: &ModelConfig, weights: &Weights, options: &ExportOptions) -> Result<Vec<u8>, ExportError> {
    let info = ExportInfo {
        handle: "1123_142530".into(),
        task: "counting_samesymbol_mod10bos".into(),
        vocab: (0..VOCAB).map(|id| id.to_string()).collect(),
        train_max_length: 50,
        max_position_embeddings: 128,
        augmentation: "none".into(),
        seed: 1234,
        checkpoint: "epoch-0003-step-93750".into(),
    };
    export(config, weights, &info, options).map(|file| file.model)
}

fn graph(config: &ModelConfig) -> GraphProto {
    let file = export_of(config, &weights(config), &Default::default()).unwrap();
    ModelProto::decode(&file[..]).unwrap().graph.unwrap()
}

/// All nodes, those in the bodies of loops as well.
fn nodes(graph: &GraphProto) -> Vec<&NodeProto> {
    let bodies = graph.node.iter().flat_map(|node| node.attribute.iter().filter_map(|a| a.g.as_ref()));
    graph.node.iter().chain(bodies.flat_map(nodes)).collect()
}

fn scans(graph: &GraphProto) -> usize {
    nodes(graph).iter().filter(|node| node.op_type() == "Scan").count()
}

fn size_of(graph: &GraphProto, name: &str) -> usize {
    let tensor = graph.initializer.iter().find(|t| t.name() == name).unwrap_or_else(|| panic!("no {name}"));
    tensor.raw_data().len()
}

/// `input_ids [batch, seq]`.
fn spelled(value: &ValueInfoProto) -> String {
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.clone().unwrap().value else { panic!("no tensor") };
    let dims = tensor.shape.unwrap().dim.into_iter().map(|dim| match dim.value.unwrap() {
        dimension::Value::DimParam(name) => name,
        dimension::Value::DimValue(n) => n.to_string(),
    });
    format!("{} [{}]", value.name(), dims.collect::<Vec<_>>().join(", "))
}

#[test]
fn tokens_and_states_go_in_and_logits_and_states_come_out() {
    let s4_states = ["x_l0 [16, 64]", "x_l1 [16, 64]"];
    let mamba_states = ["conv_l0 [32, 3]", "ssm_l0 [32, 16]", "conv_l1 [32, 3]", "ssm_l1 [32, 16]"];
    for (config, states) in [(s4(16, 2), &s4_states[..]), (mamba(16, 2), &mamba_states)] {
        let graph = graph(&config);
        let state = |end: &str, batch: &str| {
            let end = format!("_{end} [{batch}, ");
            states.iter().map(|state| format!("state_{}", state.replace(" [", &end))).collect::<Vec<_>>()
        };
        let inputs: Vec<String> = graph.input.iter().map(spelled).collect();
        assert_eq!(inputs, [vec!["input_ids [batch, seq]".to_owned()], state("in", "state_batch")].concat());
        let outputs: Vec<String> = graph.output.iter().map(spelled).collect();
        assert_eq!(outputs, [vec!["logits [batch, seq, 13]".to_owned()], state("out", "batch")].concat());
    }
}

#[test]
fn nothing_is_unrolled_and_every_layer_costs_the_same() {
    for make in [s4, mamba] {
        let count = |hidden, layers| nodes(&graph(&make(hidden, layers))).len();
        assert_eq!(count(8, 2), count(32, 2), "width must not add nodes");
        assert_eq!(count(8, 3) - count(8, 2), count(8, 2) - count(8, 1));
        for layers in [1, 3] {
            assert_eq!(scans(&graph(&make(8, layers))), layers, "one loop per layer");
        }
    }
}

#[test]
fn the_length_that_a_kernel_was_trained_for_leaves_no_trace() {
    let count = |kernel_length| {
        let config = S4Config { hidden_size: 8, kernel_length, ..Default::default() };
        let graph = graph(&ModelConfig::S4(config));
        (nodes(&graph).len(), graph.initializer.iter().map(|t| t.dims.clone()).collect::<Vec<_>>())
    };
    assert_eq!(count(16), count(500));
}

#[test]
fn names_are_unique_and_edges_lead_somewhere() {
    for config in [s4(16, 2), mamba(16, 2)] {
        let graph = graph(&config);
        let mut names = HashSet::new();
        assert!(nodes(&graph).iter().all(|node| names.insert(node.name())), "{config:?}");
        let mut tensors: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
        assert_eq!(tensors.len(), graph.initializer.len());
        tensors.extend(graph.input.iter().map(|input| input.name()));
        check_edges(&graph, tensors);
        let used: HashSet<&String> = nodes(&graph).iter().flat_map(|node| &node.input).collect();
        let unused: Vec<_> = graph.initializer.iter().filter(|t| !used.contains(&t.name.clone().unwrap())).collect();
        assert!(unused.is_empty(), "{unused:?}");
    }
}

/// Topological order: whatever a node or the body of its loop reads is there before it.
fn check_edges<'a>(graph: &'a GraphProto, mut tensors: HashSet<&'a str>) {
    for node in &graph.node {
        let there = |name: &String| name.is_empty() || tensors.contains(name.as_str());
        assert!(node.input.iter().all(there), "{} reads {:?}", node.name(), node.input);
        for body in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
            let inside = tensors.iter().copied().chain(body.input.iter().map(|input| input.name()));
            check_edges(body, inside.collect());
        }
        assert!(node.output.iter().all(|name| tensors.insert(name)), "{} writes {:?}", node.name(), node.output);
    }
    assert!(graph.output.iter().all(|output| tensors.contains(output.name())));
}

/// S4's recurrence is folded into matrices, five of 64×64 per channel; everything else is as large as the weights.
#[test]
fn the_file_is_hardly_larger_than_weights_and_folded_matrices() {
    for (config, folded) in [(s4(128, 2), 2 * 128 * 5 * 64 * 64), (mamba(128, 2), 0)] {
        let weights = weights(&config);
        let file = export_of(&config, &weights, &Default::default()).unwrap().len();
        // besides the names of nodes, zeros for the states and Mamba's embedding once more, as the decoder
        let limit = 4 * (folded + weights.num_parameters() + 2 * 128 * 64 + VOCAB * 128) * 102 / 100 + 32_768;
        assert!(file <= limit, "{file} > {limit} bytes for {config:?}");
    }
}

#[test]
fn half_precision_leaves_the_recurrences_alone() {
    let options = ExportOptions { precision: Precision::Fp16, ..Default::default() };
    for (config, narrowed, kept) in [
        (s4(16, 1), "s4_layers.0.output_linear.0.weight.T", "s4_layers.0.layer.kernel.chunk"),
        (mamba(16, 1), "backbone.layers.0.mixer.in_proj.weight.T", "backbone.layers.0.mixer.scan.A.T"),
    ] {
        let file = export_of(&config, &weights(&config), &options).unwrap();
        let (full, half) = (graph(&config), ModelProto::decode(&file[..]).unwrap().graph.unwrap());
        assert_eq!(size_of(&half, narrowed) * 2, size_of(&full, narrowed));
        assert_eq!(size_of(&half, kept), size_of(&full, kept));
    }
}

#[test]
fn the_length_of_a_kernel_must_be_in_the_checkpoint() {
    let config = s4(8, 1);
    let without = weights(&config).with_integers([]);
    let error = export_of(&config, &without, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("`s4_layers.0.layer.kernel.l_kernel`"), "{error}");
}

#[test]
fn tied_and_null_frozen_embeddings_of_s4_are_written() {
    for (tie_word_embeddings, freeze_null_embedding) in [(true, false), (false, true)] {
        let config = S4Config {
            hidden_size: 8,
            kernel_length: 16,
            tie_word_embeddings,
            freeze_null_embedding,
            ..Default::default()
        };
        assert_eq!(size_of(&graph(&ModelConfig::S4(config)), "encoder.weight"), 4 * VOCAB * 8);
    }
}
