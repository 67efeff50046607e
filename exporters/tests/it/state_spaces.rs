//! The exported files of S4 and Mamba.

use crate::common::{VOCAB, all_nodes as nodes, info, spelled, stateful_graph, weights};
use exporters::onnx::{GraphProto, ModelProto};
use exporters::{ExportError, ExportOptions, Precision, Target, export};
use models::mamba::MambaConfig;
use models::s4::S4Config;
use models::{ModelConfig, Weights};
use prost::Message;

fn s4(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::S4(S4Config { hidden_size, num_layers, kernel_length: 16, ..Default::default() })
}

fn mamba(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Mamba(MambaConfig { hidden_size, num_layers, ..Default::default() })
}

fn export_of(config: &ModelConfig, weights: &Weights, options: &ExportOptions) -> Result<Vec<u8>, ExportError> {
    export(config, weights, &info(VOCAB), options).map(|files| files.model.model)
}

fn graph(config: &ModelConfig) -> GraphProto {
    let file = export_of(config, &weights(config), &Default::default()).unwrap();
    ModelProto::decode(&file[..]).unwrap().graph.unwrap()
}

fn scans(graph: &GraphProto) -> usize {
    nodes(graph).iter().filter(|node| node.op_type() == "Scan").count()
}

fn size_of(graph: &GraphProto, name: &str) -> usize {
    let tensor = graph.initializer.iter().find(|t| t.name() == name).unwrap_or_else(|| panic!("no {name}"));
    tensor.raw_data().len()
}

#[test]
fn tokens_and_states_go_in_and_logits_and_states_come_out() {
    let s4_states = ["x_l0 float [batch, 16, 64]", "x_l1 float [batch, 16, 64]"];
    let mamba_states = [
        "conv_l0 float [batch, 32, 3]",
        "ssm_l0 float [batch, 32, 16]",
        "conv_l1 float [batch, 32, 3]",
        "ssm_l1 float [batch, 32, 16]",
    ];
    for (config, states) in [(s4(16, 2), &s4_states[..]), (mamba(16, 2), &mamba_states)] {
        let graph = stateful_graph(&config, Target::Portable);
        let with = |first: &str, end: &str| {
            let states = states.iter().map(|state| format!("state_{}", state.replacen(' ', &format!("_{end} "), 1)));
            [vec![first.to_owned()], states.collect()].concat()
        };
        let inputs: Vec<String> = graph.input.iter().map(spelled).collect();
        assert_eq!(inputs, with("input_ids int64 [batch, seq]", "in"));
        let outputs: Vec<String> = graph.output.iter().map(spelled).collect();
        assert_eq!(outputs, with("logits float [batch, seq, 13]", "out"));
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
