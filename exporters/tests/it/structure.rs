//! The structure of an exported file, read back through the protobuf types. Its results are checked where ONNX Runtime is at
//! hand, by `pipeline export`.

use crate::common::{VOCAB, decoded, files, info, spelled, stateful_graph, weights};
use exporters::onnx::{GraphProto, ModelProto, NodeProto};
use exporters::{ExportError, ExportOptions, OnnxFile, Precision, Target, export};
use models::ModelConfig;
use models::lstm::LstmConfig;
use models::rnn::RnnConfig;
use models::transformer::{PositionalEmbedding, TransformerConfig};
use prost::Message;

fn rnn(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Rnn(RnnConfig { hidden_size, num_layers, ..Default::default() })
}

fn lstm(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Lstm(LstmConfig { hidden_size, num_layers, ..Default::default() })
}

fn transformer(hidden_size: usize, num_layers: usize, positional_embedding: PositionalEmbedding) -> ModelConfig {
    ModelConfig::Transformer(TransformerConfig {
        hidden_size,
        num_layers,
        num_heads: 4,
        positional_embedding,
        ..Default::default()
    })
}

/// One of each kind.
fn every_kind(hidden: usize, layers: usize) -> [ModelConfig; 4] {
    [
        rnn(hidden, layers),
        lstm(hidden, layers),
        transformer(hidden, layers, PositionalEmbedding::None),
        transformer(hidden, layers, PositionalEmbedding::Rope),
    ]
}

fn exported(config: &ModelConfig) -> ModelProto {
    decoded(&files(config, &ExportOptions::default()).model)
}

fn graph(config: &ModelConfig) -> GraphProto {
    exported(config).graph.unwrap()
}

fn nodes_of<'a>(graph: &'a GraphProto, op: &str) -> Vec<&'a NodeProto> {
    graph.node.iter().filter(|node| node.op_type() == op).collect()
}

#[test]
fn inputs_and_outputs_are_those_of_the_contract() {
    let ids = "input_ids int64 [batch, seq]";
    let mask = "attention_mask int64 [batch, seq]";
    let positions = "position_ids int64 [batch, seq]";
    let cases: [(ModelConfig, &[&str]); 4] = [
        (rnn(16, 2), &[ids]),
        (lstm(16, 2), &[ids]),
        (transformer(16, 2, PositionalEmbedding::None), &[ids, mask]),
        (transformer(16, 2, PositionalEmbedding::Rope), &[ids, mask, positions]),
    ];
    for (config, inputs) in cases {
        let graph = graph(&config);
        let required = graph.input.iter().filter(|input| !input.name().starts_with("state_"));
        assert_eq!(required.map(spelled).collect::<Vec<_>>(), inputs, "{config:?}");
        assert_eq!(spelled(&graph.output[0]), "logits float [batch, seq, 13]");
    }
}

fn small(positional_embedding: PositionalEmbedding) -> TransformerConfig {
    TransformerConfig { hidden_size: 16, num_layers: 2, num_heads: 4, positional_embedding, ..Default::default() }
}

fn tied() -> ModelConfig {
    let config = small(PositionalEmbedding::None);
    ModelConfig::Transformer(TransformerConfig { tie_word_embeddings: true, ..config })
}

fn null_frozen() -> ModelConfig {
    let config = small(PositionalEmbedding::None);
    ModelConfig::Transformer(TransformerConfig { freeze_null_embedding: true, ..config })
}

#[test]
fn a_transformer_takes_the_positions_that_it_uses_and_says_how_far_they_go() {
    use PositionalEmbedding::{Absolute, None as NoPositions, Rope, Scalar, Sinusoidal};
    struct Case {
        positions: PositionalEmbedding,
        kind: Option<&'static str>,
        limit: Option<&'static str>,
    }
    let (integers, scalars) = (Some("position_ids int64 [batch, seq]"), Some("position_ids float [batch, seq]"));
    for Case { positions, kind, limit } in [
        Case { positions: Absolute, kind: integers, limit: Some("128") },
        Case { positions: Sinusoidal, kind: integers, limit: Some("128") },
        Case { positions: Scalar, kind: scalars, limit: None },
        Case { positions: Rope, kind: integers, limit: None },
        Case { positions: NoPositions, kind: None, limit: None },
    ] {
        let model = exported(&ModelConfig::Transformer(small(positions)));
        let inputs: Vec<String> = model.graph.unwrap().input.iter().map(spelled).collect();
        assert_eq!(inputs.get(2).map(String::as_str), kind, "{positions:?}");
        let found = model.metadata_props.iter().find(|entry| entry.key() == "position_limit");
        assert_eq!(found.map(|entry| entry.value()), limit, "{positions:?}");
    }
}

#[test]
fn tied_and_frozen_embeddings_are_one_table() {
    let [tied, null] = [tied(), null_frozen()].map(|config| graph(&config));
    let shape = |graph: &GraphProto, name: &str| {
        Some(graph.initializer.iter().find(|tensor| tensor.name() == name)?.dims.clone())
    };
    assert_eq!(shape(&tied, "wte.weight"), Some(vec![13, 16]));
    assert_eq!(shape(&tied, "wte.weight.T"), Some(vec![16, 13]));
    assert_eq!(shape(&tied, "lm_head.weight.T"), None);
    assert_eq!(shape(&null, "wte.weight"), Some(vec![13, 16]));
    assert_eq!(shape(&null, "wte.weight_train"), None);
}

#[test]
fn recurrent_states_are_trailing_inputs_and_outputs_of_the_second_file() {
    let cases: [(ModelConfig, &[&str]); 2] =
        [(rnn(16, 2), &["h_l0", "h_l1"]), (lstm(16, 2), &["h_l0", "c_l0", "h_l1", "c_l1"])];
    for (config, states) in cases {
        let graph = stateful_graph(&config, Target::Portable);
        let spell = |end: &str| -> Vec<String> {
            states.iter().map(|state| format!("state_{state}_{end} float [batch, 16]")).collect()
        };
        assert_eq!(graph.input[1..].iter().map(spelled).collect::<Vec<_>>(), spell("in"), "{config:?}");
        assert_eq!(graph.output[1..].iter().map(spelled).collect::<Vec<_>>(), spell("out"));
    }
}

#[test]
fn metadata_is_complete() {
    let model = exported(&transformer(16, 2, PositionalEmbedding::Rope));
    let found: Vec<_> = model.metadata_props.iter().map(|entry| (entry.key(), entry.value())).collect();
    let vocab = r#"["\"0\"","\"1\"","\"2\"","\"3\"","\"4\"","\"5\"","\"6\"","\"7\"","\"8\"","\"9\"","\"10\"","\"11\"","\"12\""]"#;
    let expected = [
        ("handle", "1123_142530"),
        ("task", "counting_samesymbol_mod10bos"),
        ("arch", "transformer"),
        ("vocab", vocab),
        ("positional_embedding", "rope"),
        ("max_position_embeddings", "128"),
        ("train_max_length", "50"),
        ("augmentation", "shift"),
        ("num_layers", "2"),
        ("hidden_size", "16"),
        ("seed", "1234"),
        ("checkpoint", "epoch-0003-step-93750"),
        ("checkpoint_checksum", "0"),
        ("precision", "fp32"),
        ("parameters", "7008"),
        ("state_per_token", "64"),
        ("state_size", "0"),
    ];
    assert_eq!(found[..17], expected);
    assert_eq!((found[17].0, found[17].1.len(), found.len()), ("graph_fingerprint", 16, 18));

    let limit = |model: ModelProto| {
        model.metadata_props.iter().find(|e| e.key() == "position_limit").map(|e| e.value().to_owned())
    };
    assert_eq!(limit(model), None);
    let table = exported(&transformer(16, 2, PositionalEmbedding::Absolute));
    assert_eq!(limit(table).as_deref(), Some("128"), "the rows of the position table");
}

#[test]
fn a_recurrent_layer_is_one_node() {
    for layers in [1, 3] {
        assert_eq!(nodes_of(&graph(&rnn(8, layers)), "RNN").len(), layers);
        assert_eq!(nodes_of(&graph(&lstm(8, layers)), "LSTM").len(), layers);
    }
}

#[test]
fn the_layers_of_a_transformer_share_mask_and_rotation() {
    let graph = graph(&transformer(16, 3, PositionalEmbedding::Rope));
    // the queries are in eight parts, each with its own mask
    for (op, count) in [("Range", 1), ("Greater", 8), ("Where", 8), ("Cos", 1), ("Sin", 1)] {
        assert_eq!(nodes_of(&graph, op).len(), count, "{op}");
    }
}

#[test]
fn a_viewer_shows_the_names_of_the_checkpoint() {
    let config = transformer(16, 2, PositionalEmbedding::None);
    let graph = graph(&config);
    let product = graph.node.iter().find(|node| node.name() == "/h.1/attn/c_attn/MatMul").unwrap();
    assert_eq!(product.input[1], "h.1.attn.c_attn.weight");
    let stored = graph.initializer.iter().find(|tensor| tensor.name() == product.input[1]).unwrap();
    let weights = weights(&config);
    let weight = weights.get("h.1.attn.c_attn.weight").unwrap();
    assert_eq!(stored.dims, [16, 48]);
    assert_eq!(stored.raw_data(), weight.values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
}

/// Where no position is in it, the first layer's input has one value per token.
#[test]
fn queries_keys_and_values_of_the_first_layer_are_looked_up() {
    use PositionalEmbedding::{Absolute, None, Rope, Sinusoidal};
    for (positions, tables) in [(None, true), (Rope, true), (Absolute, false), (Sinusoidal, false)] {
        // 13 tokens
        for (width, small) in [(8, true), (4, false)] {
            let config = TransformerConfig {
                hidden_size: width,
                num_heads: 2,
                positional_embedding: positions,
                ..Default::default()
            };
            let graph = graph(&ModelConfig::Transformer(config));
            let has = |name: &str| graph.initializer.iter().any(|tensor| tensor.name() == name);
            for (layer, tables) in [(0, tables && small), (1, false)] {
                for part in ["q", "k", "v"] {
                    assert_eq!(has(&format!("h.{layer}.attn.c_attn.table_{part}")), tables, "{positions:?} {width}");
                }
                assert_eq!(has(&format!("h.{layer}.attn.c_attn.weight")), !tables, "{positions:?} {width}");
                assert_eq!(has(&format!("h.{layer}.ln_1.weight")), !tables, "{positions:?} {width}");
            }
        }
    }
}

#[test]
fn gates_are_reordered_for_onnx() {
    let config = lstm(2, 1);
    let graph = graph(&config);
    let node = nodes_of(&graph, "LSTM")[0];
    assert_eq!(node.input[1..4], ["lstm.weight_ih_l0.iofc", "lstm.weight_hh_l0.iofc", "lstm.bias_l0.iofc"]);
    let stored = graph.initializer.iter().find(|tensor| tensor.name() == "lstm.weight_ih_l0.iofc").unwrap();
    assert_eq!(stored.dims, [1, 8, 2]);
    let weights = weights(&config);
    let gates: Vec<&[f32]> = weights.get("lstm.weight_ih_l0").unwrap().values.chunks(4).collect(); // i, f, g, o
    let expected = [gates[0], gates[3], gates[1], gates[2]].concat();
    assert_eq!(stored.raw_data(), expected.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
}

/// Fewer tokens than channels: the first layer's weights are products with the embeddings.
#[test]
fn a_small_vocabulary_is_encoded_by_the_first_recurrent_layer() {
    let of = |config: &ModelConfig, name: &str| -> Option<(Vec<i64>, Vec<f32>)> {
        let graph = graph(config);
        let tensor = graph.initializer.iter().find(|tensor| tensor.name() == name)?;
        let bytes = tensor.raw_data().chunks_exact(4);
        Some((tensor.dims.clone(), bytes.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()))
    };
    let (wide, narrow) = (lstm(VOCAB + 1, 2), lstm(VOCAB, 2));
    let (dims, units) = of(&wide, "encoder.one_hot").unwrap();
    assert_eq!(dims, [VOCAB as i64; 2]);
    assert!(units.iter().enumerate().all(|(i, &x)| x == if i / VOCAB == i % VOCAB { 1.0 } else { 0.0 }));
    assert!(of(&wide, "encoder.weight").is_none() && of(&wide, "lstm.weight_ih_l0.iofc").is_none());

    let hidden = VOCAB + 1;
    let (dims, encoded) = of(&wide, "lstm.weight_ih_l0.encoder.iofc").unwrap();
    assert_eq!(dims, [1, 4 * hidden as i64, VOCAB as i64]);
    let weights = weights(&wide);
    let (w, e) = (&weights.get("lstm.weight_ih_l0").unwrap().values, &weights.get("encoder.weight").unwrap().values);
    let dot =
        |row: usize, token: usize| -> f32 { (0..hidden).map(|i| w[row * hidden + i] * e[token * hidden + i]).sum() };
    for (gate, pytorch) in [0, 3, 1, 2].into_iter().enumerate() {
        let (stored, row) = (encoded[(gate * hidden + 1) * VOCAB + 5], pytorch * hidden + 1);
        assert!((stored - dot(row, 5)).abs() < 1e-6, "gate {gate}: {stored}");
    }
    assert_eq!(of(&wide, "lstm.weight_ih_l1.iofc").unwrap().0, [1, 4 * hidden as i64, hidden as i64]);

    assert!(of(&narrow, "encoder.weight").is_some() && of(&narrow, "lstm.weight_ih_l0.iofc").is_some());
    assert!(of(&narrow, "encoder.one_hot").is_none());
}

#[test]
fn the_file_is_hardly_larger_than_its_weights() {
    for config in every_kind(128, 2) {
        let weights = weights(&config);
        let file = export(&config, &weights, &info(VOCAB), &Default::default()).unwrap().model.model.len();
        let limit = 4 * weights.num_parameters() * 105 / 100 + 4096;
        assert!(file <= limit, "{file} > {limit} bytes for {config:?}");
    }
}

/// Exports `of`'s weights as if they were `config`'s.
fn refusal(config: &ModelConfig, of: &ModelConfig, vocab: usize) -> ExportError {
    export(config, &weights(of), &info(vocab), &Default::default()).unwrap_err()
}

#[test]
fn a_missing_weight_is_named() {
    let error = refusal(&lstm(8, 2), &lstm(8, 1), VOCAB);
    assert_eq!(
        error.to_string(),
        "cannot export the model: its weight `lstm.weight_ih_l1`, of shape [32, 8], is not in the checkpoint\n  \
         hint: do arch and num_layers match the run that saved the checkpoint?"
    );
}

#[test]
fn a_misshaped_weight_is_named() {
    let error = refusal(&lstm(16, 1), &lstm(8, 1), VOCAB);
    assert_eq!(
        error.to_string(),
        "cannot export the model: its weight `encoder.weight` should have shape [13, 16], but has [13, 8] in the checkpoint\n  \
         hint: do hidden_size and the task match the run that saved the checkpoint?"
    );
}

#[test]
fn weights_without_a_place_are_named() {
    let error = refusal(&rnn(8, 1), &rnn(8, 2), VOCAB);
    assert_eq!(
        error.to_string(),
        "cannot export the model: it has no place for `lstm.bias_hh_l1`, `lstm.bias_ih_l1`, `lstm.weight_hh_l1`, \
         `lstm.weight_ih_l1` of the checkpoint\n  hint: do arch and num_layers match the run that saved the checkpoint?"
    );
}

#[test]
fn the_vocabulary_must_fit_the_logits() {
    let tied = tied();
    for (config, decoder) in [
        (rnn(8, 1), "decoder.weight"),
        (transformer(8, 1, PositionalEmbedding::None), "lm_head.weight"),
        (tied, "wte.weight"),
    ] {
        let error = refusal(&config, &config, 12);
        assert_eq!(
            error.to_string(),
            format!(
                "cannot export the model: the vocabulary has 12 tokens, but `{decoder}` scores 13\n  \
                 hint: was the checkpoint trained on another task?"
            )
        );
    }
}

#[test]
fn impossible_sizes_are_refused_by_key() {
    let possible = transformer(16, 1, PositionalEmbedding::None);
    let impossible = transformer(18, 1, PositionalEmbedding::None);
    assert!(matches!(refusal(&impossible, &possible, VOCAB), ExportError::Config(e) if e.key == "num_heads"));
}

fn with(options: ExportOptions) -> impl Fn(&ModelConfig) -> OnnxFile {
    move |config| files(config, &options).model
}

#[test]
fn half_precision_halves_the_file_and_keeps_the_interface() {
    for config in every_kind(128, 2) {
        let full = with(ExportOptions::default())(&config).model;
        for precision in [Precision::Fp16, Precision::Bf16] {
            let half = with(ExportOptions { precision, ..Default::default() })(&config).model;
            assert!(half.len() < full.len() * 6 / 10, "{} of {} bytes for {config:?}", half.len(), full.len());
            let (half, full) = (ModelProto::decode(&half[..]).unwrap(), ModelProto::decode(&full[..]).unwrap());
            let interface = |model: &ModelProto| {
                let graph = model.graph.as_ref().unwrap();
                graph.input.iter().chain(&graph.output).map(spelled).collect::<Vec<_>>()
            };
            assert_eq!(interface(&half), interface(&full));
            let said = half.metadata_props.iter().find(|entry| entry.key() == "precision").unwrap();
            assert_eq!(said.value(), precision.name());
        }
    }
}

#[test]
fn weights_too_large_for_a_message_go_to_a_second_file() {
    let config = lstm(32, 1);
    let whole = with(ExportOptions::default())(&config);
    assert_eq!(whole.weights, None);
    let apart = with(ExportOptions { largest_message: 10_000, ..Default::default() })(&config);
    let (file, data) = (ModelProto::decode(&apart.model[..]).unwrap(), apart.weights.unwrap());
    assert!(apart.model.len() < whole.model.len() / 4);
    let tensors = |model: &ModelProto| model.graph.clone().unwrap().initializer;
    for (moved, inside) in tensors(&file).iter().zip(tensors(&ModelProto::decode(&whole.model[..]).unwrap())) {
        let field = |key| moved.external_data.iter().find(|e| e.key() == key).map(|e| e.value().to_owned());
        let Some(location) = field("location") else {
            assert_eq!(moved.raw_data(), inside.raw_data());
            continue;
        };
        assert_eq!(location, "model.onnx.data");
        let [offset, length] = ["offset", "length"].map(|key| field(key).unwrap().parse::<usize>().unwrap());
        assert_eq!(&data[offset..offset + length], inside.raw_data(), "{}", moved.name());
    }
}

#[test]
fn the_opset_is_a_choice_within_limits() {
    let config = rnn(8, 1);
    let file = with(ExportOptions { opset: 23, ..Default::default() })(&config).model;
    assert_eq!(ModelProto::decode(&file[..]).unwrap().opset_import[0].version(), 23);
    let options = ExportOptions { opset: 12, ..Default::default() };
    let error = export(&config, &weights(&config), &info(VOCAB), &options).unwrap_err();
    assert_eq!(error.to_string(), "cannot export the model in opset 12\n  hint: give one of 20 to 23");
}

/// A bias by distance is requested piece by piece; a table of distances ends where all larger ones are alike.
#[test]
fn a_table_of_distances_has_a_column_for_each_that_differs() {
    let config = TransformerConfig { t5_buckets: 8, t5_max_distance: 64, ..small(PositionalEmbedding::T5) };
    let graph = graph(&ModelConfig::Transformer(config));
    let table = "h.0.attn.relative_attention_bias.weight.by_distance";
    let stored = graph.initializer.iter().find(|tensor| tensor.name() == table).unwrap();
    assert_eq!(stored.dims, [4, 33], "from distance 32 on, all are in the last bucket");
}

/// Of a scheme that differs from layer to layer, the nodes are in the attention of each layer.
#[test]
fn what_differs_from_layer_to_layer_is_in_the_layers() {
    for (positions, op, module) in [
        (PositionalEmbedding::Fire, "Relu", "attn/fire"),
        (PositionalEmbedding::Cope, "CumSum", "attn/cope"),
        (PositionalEmbedding::Ssmax, "Log", "attn/ssmax"),
    ] {
        let graph = graph(&ModelConfig::Transformer(small(positions)));
        for layer in 0..2 {
            let start = format!("/h.{layer}/{module}/{op}");
            assert!(graph.node.iter().any(|node| node.name().starts_with(&start)), "{start}");
        }
    }
    let shared = graph(&ModelConfig::Transformer(small(PositionalEmbedding::Logn)));
    assert_eq!(nodes_of(&shared, "Log").len(), 1, "all layers share it");
}
