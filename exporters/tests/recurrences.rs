//! What the exported files of GRU, minGRU, RWKV and Gated DeltaNet look like.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use exporters::onnx::{GraphProto, ModelProto, NodeProto, tensor_shape_proto::dimension, type_proto};
use exporters::{ExportInfo, ExportOptions, Target, export};
use models::deltanet::DeltaNetConfig;
use models::gru::GruConfig;
use models::mingru::MinGruConfig;
use models::rwkv5::Rwkv5Config;
use models::rwkv6::Rwkv6Config;
use models::{Cpu, ModelConfig, Weights};
use prost::Message;
use std::collections::HashSet;

const VOCAB: usize = 13;

fn gru(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Gru(GruConfig { hidden_size, num_layers, ..Default::default() })
}

fn every_kind(hidden_size: usize, num_layers: usize) -> [ModelConfig; 5] {
    let (head_size, dropout) = (16, 0.0);
    let deltanet = DeltaNetConfig { hidden_size, num_layers, head_size, ..Default::default() };
    [
        gru(hidden_size, num_layers),
        ModelConfig::MinGru(MinGruConfig { hidden_size, num_layers, dropout }),
        ModelConfig::DeltaNet(deltanet),
        ModelConfig::Rwkv5(Rwkv5Config { hidden_size, num_layers, head_size, dropout }),
        ModelConfig::Rwkv6(Rwkv6Config { hidden_size, num_layers, head_size, dropout }),
    ]
}

fn weights(config: &ModelConfig) -> Weights {
    Weights::of(&config.init::<Cpu>(VOCAB, 1, &Default::default())).unwrap()
}

fn info() -> ExportInfo {
    ExportInfo {
        handle: "1123_142530".into(),
        task: "counting_samesymbol_mod10bos".into(),
        vocab: (0..VOCAB).map(|id| id.to_string()).collect(),
        train_max_length: 50,
        max_position_embeddings: 128,
        augmentation: "none".into(),
        seed: 1234,
        checkpoint: "epoch-0003-step-93750".into(),
    }
}

fn exported(config: &ModelConfig, target: Target) -> ModelProto {
    let options = ExportOptions { target, ..Default::default() };
    ModelProto::decode(&export(config, &weights(config), &info(), &options).unwrap().model[..]).unwrap()
}

fn graph(config: &ModelConfig, target: Target) -> GraphProto {
    exported(config, target).graph.unwrap()
}

/// The nodes of the graph and of the bodies of its loops.
fn all_nodes(graph: &GraphProto) -> Vec<&NodeProto> {
    let bodies = |node| -> Vec<&NodeProto> {
        let node: &NodeProto = node;
        node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()).flat_map(all_nodes).collect()
    };
    graph.node.iter().flat_map(|node| [vec![node], bodies(node)].concat()).collect()
}

const TARGETS: [Target; 2] = [Target::Portable, Target::Ort];

#[test]
fn every_state_goes_in_and_comes_out() {
    let expected: [&[&str]; 5] = [
        &["h_l0 [32]", "h_l1 [32]"],
        &["h_l0 [64]", "h_l1 [64]"],
        &["memory_l0 [2, 16, 16]", "memory_l1 [2, 16, 16]"],
        RWKV_STATES,
        RWKV_STATES,
    ];
    const RWKV_STATES: &[&str] = &[
        "att_shift_l0 [1, 32]",
        "wkv_l0 [2, 16, 16]",
        "ffn_shift_l0 [1, 32]",
        "att_shift_l1 [1, 32]",
        "wkv_l1 [2, 16, 16]",
        "ffn_shift_l1 [1, 32]",
    ];
    for target in TARGETS {
        for (config, expected) in every_kind(32, 2).iter().zip(expected) {
            let graph = graph(config, target);
            let spelled = |values: &[exporters::onnx::ValueInfoProto], end: &str| -> Vec<String> {
                let states = values.iter().filter(|value| value.name().starts_with("state_"));
                states
                    .map(|value| {
                        let name = value.name().strip_prefix("state_").unwrap().strip_suffix(end).unwrap();
                        let Some(type_proto::Value::TensorType(tensor)) = value.r#type.clone().unwrap().value else {
                            panic!("no tensor")
                        };
                        let sizes = tensor.shape.unwrap().dim.into_iter().filter_map(|dim| match dim.value.unwrap() {
                            dimension::Value::DimParam(_) => None,
                            dimension::Value::DimValue(n) => Some(n),
                        });
                        format!("{name} {:?}", sizes.collect::<Vec<_>>())
                    })
                    .collect()
            };
            assert_eq!(spelled(&graph.input, "_in"), expected, "{config:?}");
            assert_eq!(spelled(&graph.output, "_out"), expected, "{config:?}");
        }
    }
}

#[test]
fn nothing_is_unrolled_and_every_layer_costs_the_same() {
    for target in TARGETS {
        for kind in 0..5 {
            let count = |hidden, layers| all_nodes(&graph(&every_kind(hidden, layers)[kind], target)).len();
            assert_eq!(count(16, 2), count(64, 2), "width must not add nodes");
            assert_eq!(count(16, 4) - count(16, 3), count(16, 3) - count(16, 2));
        }
    }
}

#[test]
fn names_are_unique_and_edges_lead_somewhere() {
    for target in TARGETS {
        for config in every_kind(32, 2) {
            let graph = graph(&config, target);
            let mut names = HashSet::new();
            assert!(all_nodes(&graph).iter().all(|node| names.insert(node.name().to_owned())), "{config:?}");
            let mut tensors = HashSet::new();
            for tensor in &graph.initializer {
                assert!(tensors.insert(tensor.name()), "{config:?}: {} twice", tensor.name());
            }
            tensors.extend(graph.input.iter().map(|input| input.name())); // optional inputs are initializers as well
            let mut used = HashSet::new();
            for node in &graph.node {
                assert!(
                    node.input.iter().all(|name| name.is_empty() || tensors.contains(name.as_str())),
                    "{config:?}: {}",
                    node.name()
                );
                assert!(node.output.iter().all(|name| tensors.insert(name)), "{config:?}: {}", node.name());
            }
            used.extend(all_nodes(&graph).into_iter().flat_map(|node| &node.input).map(String::as_str));
            let unused: Vec<_> =
                graph.initializer.iter().map(|t| t.name()).filter(|name| !used.contains(name)).collect();
            assert!(unused.is_empty(), "{config:?}: {unused:?}");
            assert!(graph.output.iter().all(|output| tensors.contains(output.name())), "{config:?}");
        }
    }
}

#[test]
fn only_files_for_onnx_runtime_have_its_operators() {
    for config in every_kind(32, 2) {
        for target in TARGETS {
            let model = exported(&config, target);
            let graph = model.graph.as_ref().unwrap();
            let attentions = graph.node.iter().filter(|node| node.domain() == "com.microsoft");
            let attentions = attentions.map(|node| node.op_type()).collect::<Vec<_>>();
            let matrices = matches!(config.arch(), "rwkv6" | "deltanet"); // decays of RWKV-5 are constants
            let expected = if target == Target::Ort && matrices { vec!["LinearAttention"; 2] } else { vec![] };
            assert_eq!(attentions, expected, "{config:?} for {}", target.name());
            let mut domains = vec![("", 20)];
            domains.extend(expected.first().map(|_| ("com.microsoft", 1)));
            let found: Vec<_> = model.opset_import.iter().map(|set| (set.domain(), set.version())).collect();
            assert_eq!(found, domains, "{config:?} for {}", target.name());
        }
    }
}

/// Tables replace products with the first layer's inputs as long as there are few different inputs.
#[test]
fn only_small_vocabularies_have_tables() {
    let config = every_kind(32, 2)[3].clone();
    for (vocab, tables) in [(64, 4), (65, 0)] {
        let weights = Weights::of(&config.init::<Cpu>(vocab, 1, &Default::default())).unwrap();
        let info = ExportInfo { vocab: (0..vocab).map(|id| id.to_string()).collect(), ..info() };
        let file = export(&config, &weights, &info, &ExportOptions::default()).unwrap();
        let graph = ModelProto::decode(&file.model[..]).unwrap().graph.unwrap();
        let names: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
        let of_layer = |layer, end| {
            names.iter().filter(|name| name.starts_with(&format!("blocks.{layer}.att.")) && name.ends_with(end)).count()
        };
        assert_eq!((of_layer(0, ".table_now"), of_layer(0, ".table_before")), (tables, tables), "{names:?}");
        assert_eq!((of_layer(0, "weight.T"), of_layer(1, "weight.T")), (5 - tables, 5), "{names:?}");
        assert_eq!((of_layer(1, ".table_now"), of_layer(1, ".table_before")), (0, 0), "{names:?}");
    }
}

#[test]
fn targets_have_names() {
    for target in TARGETS {
        assert_eq!(target.name().parse::<Target>().unwrap(), target);
    }
    let error = "tensorflow".parse::<Target>().unwrap_err().to_string();
    assert_eq!(error, "no target is called `tensorflow`\n  hint: use portable or ort");
}

#[test]
fn gates_of_a_gru_are_reordered_for_onnx() {
    let config = gru(2, 1);
    let graph = graph(&config, Target::Portable);
    let node = graph.node.iter().find(|node| node.op_type() == "GRU").unwrap();
    assert_eq!(node.input[1..4], ["gru.weight_ih_l0.zrh", "gru.weight_hh_l0.zrh", "gru.bias_l0.zrh"]);
    assert!(node.attribute.iter().any(|a| a.name() == "linear_before_reset" && a.i() == 1));
    let stored = graph.initializer.iter().find(|tensor| tensor.name() == "gru.weight_ih_l0.zrh").unwrap();
    assert_eq!(stored.dims, [1, 6, 2]);
    let weights = weights(&config);
    let gates: Vec<&[f32]> = weights.get("gru.weight_ih_l0").unwrap().values.chunks(4).collect(); // r, z, n
    let expected = [gates[1], gates[0], gates[2]].concat();
    assert_eq!(stored.raw_data(), expected.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
}
