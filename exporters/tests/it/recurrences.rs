//! The exported files of GRU, minGRU, RWKV and Gated DeltaNet.

use crate::common::{TARGETS, VOCAB, exported, graph, info, stateful_graph, weights};
use exporters::onnx::{ModelProto, tensor_shape_proto::dimension, type_proto};
use exporters::{ExportInfo, ExportOptions, Target, export};
use models::deltanet::DeltaNetConfig;
use models::gated_deltanet::GatedDeltanetConfig;
use models::gru::GruConfig;
use models::mingru::MinGruConfig;
use models::minlstm::MinLstmConfig;
use models::rwkv5::Rwkv5Config;
use models::rwkv6::Rwkv6Config;
use models::rwkv7::Rwkv7Config;
use models::{Cpu, ModelConfig, Weights};
use prost::Message;

fn gru(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Gru(GruConfig { hidden_size, num_layers, ..Default::default() })
}

fn minlstm(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Minlstm(MinLstmConfig { hidden_size, num_layers, dropout: 0.1 })
}

fn mingru(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Mingru(MinGruConfig { hidden_size, num_layers, ..Default::default() })
}

fn deltanet(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Deltanet(DeltaNetConfig { hidden_size, num_layers, head_size: 16, ..Default::default() })
}

/// Two heads of keys, and four of values that are twice as long.
fn gated_deltanet(num_householder: usize, forget_gate: bool) -> ModelConfig {
    ModelConfig::GatedDeltanet(GatedDeltanetConfig {
        hidden_size: 32,
        num_layers: 2,
        num_v_heads: 4,
        head_size: 8,
        num_householder,
        forget_gate,
        ..Default::default()
    })
}

fn rwkv5(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Rwkv5(Rwkv5Config { hidden_size, num_layers, head_size: 16, ..Default::default() })
}

fn rwkv6(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Rwkv6(Rwkv6Config { hidden_size, num_layers, head_size: 16, ..Default::default() })
}

fn rwkv7(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Rwkv7(Rwkv7Config { hidden_size, num_layers, head_size: 16, ..Default::default() })
}

#[test]
fn every_state_goes_in_and_comes_out() {
    const RWKV_STATES: &[&str] = &[
        "att_shift_l0 [1, 32]",
        "wkv_l0 [2, 16, 16]",
        "ffn_shift_l0 [1, 32]",
        "att_shift_l1 [1, 32]",
        "wkv_l1 [2, 16, 16]",
        "ffn_shift_l1 [1, 32]",
    ];
    const DELTANET_STATES: &[&str] = &[
        "q_conv_l0 [16, 3]",
        "k_conv_l0 [16, 3]",
        "v_conv_l0 [64, 3]",
        "memory_l0 [4, 8, 16]",
        "q_conv_l1 [16, 3]",
        "k_conv_l1 [16, 3]",
        "v_conv_l1 [64, 3]",
        "memory_l1 [4, 8, 16]",
    ];
    let cases: [(ModelConfig, &[&str]); 8] = [
        (gru(32, 2), &["h_l0 [32]", "h_l1 [32]"]),
        (mingru(32, 2), &["h_l0 [64]", "h_l1 [64]"]),
        (minlstm(32, 2), &["h_l0 [64]", "h_l1 [64]"]),
        (deltanet(32, 2), &["memory_l0 [2, 16, 16]", "memory_l1 [2, 16, 16]"]),
        (gated_deltanet(1, true), DELTANET_STATES),
        (rwkv5(32, 2), RWKV_STATES),
        (rwkv6(32, 2), RWKV_STATES),
        (rwkv7(32, 2), RWKV_STATES),
    ];
    for target in TARGETS {
        for (config, expected) in &cases {
            let graph = stateful_graph(config, target);
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
            assert_eq!(spelled(&graph.input, "_in"), *expected, "{config:?}");
            assert_eq!(spelled(&graph.output, "_out"), *expected, "{config:?}");
        }
    }
}

#[test]
fn only_files_for_onnx_runtime_have_its_operators() {
    // decays of RWKV-5 are constants
    for (config, matrices) in [
        (gru(32, 2), false),
        (mingru(32, 2), false),
        (minlstm(32, 2), false),
        (deltanet(32, 2), true),
        (gated_deltanet(1, true), true),
        (gated_deltanet(3, false), true),
        (rwkv5(32, 2), false),
        (rwkv6(32, 2), true),
        (rwkv7(32, 2), false), // no operator has its rule
    ] {
        for target in TARGETS {
            let model = exported(&config, target);
            let graph = model.graph.as_ref().unwrap();
            let attentions = graph.node.iter().filter(|node| node.domain() == "com.microsoft");
            let attentions = attentions.map(|node| node.op_type()).collect::<Vec<_>>();
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
    let config = rwkv5(32, 2);
    for (vocab, tables) in [(64, 4), (65, 0)] {
        let weights = Weights::of(&config.init::<Cpu>(vocab, 1, &Default::default())).unwrap();
        let info = ExportInfo { vocab: (0..vocab).map(|id| id.to_string()).collect(), ..info(VOCAB) };
        let file = export(&config, &weights, &info, &ExportOptions::default()).unwrap();
        let graph = ModelProto::decode(&file.model.model[..]).unwrap().graph.unwrap();
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
