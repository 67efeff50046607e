//! Properties of the exported file of every architecture, with each of its options and positional schemes, for both
//! targets: all of `ModelConfig::examples`, so that new ones are tested automatically.

use crate::common::{TARGETS, all_nodes, decoded, exported, files, graph, spelled};
use exporters::onnx::{GraphProto, ModelProto};
use exporters::{ExportOptions, OnnxFile, Target};
use models::ModelConfig;
use models::hybrid::Kind;
use models::positions::Input;
use std::collections::HashSet;

#[test]
fn inputs_and_outputs_are_those_of_the_contract() {
    for config in ModelConfig::examples() {
        for target in TARGETS {
            let model = exported(&config, target);
            let graph = model.graph.as_ref().unwrap();
            let mut expected = vec!["input_ids int64 [batch, seq]".to_owned()];
            let attention = match &config {
                ModelConfig::Transformer(config) => Some(config.clone()),
                ModelConfig::Hybrid(config) => {
                    Some(config.attention()).filter(|_| config.kinds().any(|k| k == Kind::Attention))
                }
                _ => None,
            };
            if let Some(config) = attention {
                expected.push("attention_mask int64 [batch, seq]".to_owned());
                expected.extend((config.iterations > 0).then(|| "iterations int64 []".to_owned()));
                expected.extend(match config.positional_embedding.input() {
                    Input::None => None,
                    Input::Integers => Some("position_ids int64 [batch, seq]".to_owned()),
                    Input::Scalars => Some("position_ids float [batch, seq]".to_owned()),
                });
            }
            assert_eq!(graph.input.iter().map(spelled).collect::<Vec<_>>(), expected, "{config:?}");
            assert_eq!(graph.output.iter().map(spelled).collect::<Vec<_>>(), ["logits float [batch, seq, 13]"]);
            let limit = model.metadata_props.iter().find(|entry| entry.key() == "position_limit");
            let limit = limit.map(|entry| entry.value().to_owned());
            assert_eq!(limit, config.max_length().map(|limit| limit.to_string()), "{config:?}");
        }
    }
}

#[test]
fn the_file_says_what_it_is_written_in_and_by_whom() {
    for config in ModelConfig::examples() {
        for target in TARGETS {
            let model = exported(&config, target);
            assert_eq!((model.ir_version(), model.producer_name()), (10, "inductive-counting pipeline"));
            assert_eq!(model.producer_version(), env!("CARGO_PKG_VERSION"));
            let opsets: Vec<_> = model.opset_import.iter().map(|set| (set.domain(), set.version())).collect();
            assert_eq!(opsets[0], ("", 20));
            assert!(target == Target::Ort || opsets.len() == 1, "{config:?}: standard operators only, not {opsets:?}");
            let metadata = |key: &str| {
                model.metadata_props.iter().find(|entry| entry.key() == key).map(|entry| entry.value().to_owned())
            };
            assert_eq!(metadata("arch").as_deref(), Some(config.arch()));
            assert_eq!(metadata("positional_embedding").as_deref(), Some(config.positional_embedding()));
            assert_eq!(model.graph.unwrap().name(), config.arch());
        }
    }
}

/// `config` with another width and number of layers.
fn resized(config: &ModelConfig, hidden: usize, layers: usize) -> ModelConfig {
    let mut fields = serde_json::to_value(config).unwrap();
    fields["hidden_size"] = hidden.into();
    fields["num_layers"] = layers.into();
    serde_json::from_value(fields).unwrap()
}

#[test]
fn nothing_is_unrolled_and_every_layer_costs_the_same() {
    for config in ModelConfig::examples() {
        for target in TARGETS {
            let count = |hidden, layers| all_nodes(&graph(&resized(&config, hidden, layers), target)).len();
            assert_eq!(count(16, 2), count(64, 2), "{config:?}: width must not add nodes");
            // two by two: a hybrid's blocks alternate
            assert_eq!(count(16, 6) - count(16, 4), count(16, 4) - count(16, 2), "{config:?}");
        }
    }
}

#[test]
fn names_are_unique_and_edges_lead_somewhere() {
    for config in ModelConfig::examples() {
        for target in TARGETS {
            let graph = graph(&config, target);
            let mut names = HashSet::new();
            assert!(all_nodes(&graph).iter().all(|node| names.insert(node.name().to_owned())), "{config:?}");
            let mut tensors = HashSet::new();
            for tensor in &graph.initializer {
                assert!(tensors.insert(tensor.name()), "{config:?}: {} twice", tensor.name());
            }
            let required = graph.input.iter().filter(|input| !input.name().starts_with("state_"));
            for input in required {
                assert!(tensors.insert(input.name()), "{config:?}: {} twice", input.name());
            }
            // topological order: every input of a node precedes it
            check_edges(&graph, tensors);
            let used: HashSet<&str> =
                all_nodes(&graph).into_iter().flat_map(|node| &node.input).map(String::as_str).collect();
            let unused = graph.initializer.iter().map(|t| t.name()).filter(|name| !used.contains(name));
            assert_eq!(unused.collect::<Vec<_>>(), [""; 0], "{config:?}");
        }
    }
}

/// A loop body can use tensors from outside.
fn check_edges<'a>(graph: &'a GraphProto, mut tensors: HashSet<&'a str>) {
    for node in &graph.node {
        let known = |name: &String| name.is_empty() || tensors.contains(name.as_str());
        assert!(node.input.iter().all(known), "{}: {:?}", node.name(), node.input);
        for body in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            let inner = tensors.iter().copied().chain(body.input.iter().map(|input| input.name())).collect();
            check_edges(body, inner);
        }
        assert!(node.output.iter().all(|name| tensors.insert(name)), "{}", node.name());
    }
    assert!(graph.output.iter().all(|output| tensors.contains(output.name())), "{:?}", graph.name);
}

/// Some programs warn about an input that has an initializer, and others cannot tell the two apart.
#[test]
fn no_input_is_an_initializer_and_no_node_is_without_use() {
    for config in ModelConfig::examples() {
        for target in TARGETS {
            let files = files(&config, &ExportOptions { target, ..Default::default() });
            for file in [Some(&files.model), files.stateful.as_ref()].into_iter().flatten() {
                let graph = decoded(file).graph.unwrap();
                let initializers: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
                let both = graph.input.iter().find(|input| initializers.contains(input.name()));
                assert!(both.is_none(), "{config:?}: {both:?}");
                let read = all_nodes(&graph).into_iter().flat_map(|node| &node.input).map(String::as_str);
                let used: HashSet<&str> = read.chain(graph.output.iter().map(|output| output.name())).collect();
                let idle = graph.node.iter().find(|node| !node.output.iter().any(|output| used.contains(&output[..])));
                assert!(idle.is_none(), "{config:?}: {idle:?}");
                assert!(initializers.is_subset(&used), "{config:?}");
            }
        }
    }
}

/// The second file has the same inputs and outputs, and every state as an input and as an output; the first names it.
#[test]
fn a_file_with_states_goes_with_every_model_that_has_them() {
    let said = |model: &ModelProto, key: &str| {
        model.metadata_props.iter().find(|entry| entry.key() == key).map(|entry| entry.value().to_owned())
    };
    for config in ModelConfig::examples() {
        let files = files(&config, &ExportOptions::default());
        let model = decoded(&files.model);
        let stateful: Option<&OnnxFile> = files.stateful.as_ref();
        assert_eq!(stateful.is_none(), config.state_per_token() > 0, "{config:?}: attention cannot go on");
        let Some(stateful) = stateful.map(decoded) else {
            assert_eq!(said(&model, "stateful_fingerprint"), None);
            continue;
        };
        assert_eq!(said(&model, "stateful_fingerprint"), said(&stateful, "graph_fingerprint"), "{config:?}");
        let (model, stateful) = (model.graph.unwrap(), stateful.graph.unwrap());
        let rest = |all: &[exporters::onnx::ValueInfoProto], first: &[exporters::onnx::ValueInfoProto], end: &str| {
            assert_eq!(all[..first.len()], *first, "{config:?}");
            let states = all[first.len()..].iter().map(spelled);
            states.map(|state| state.replace(&format!("_{end} "), " ")).collect::<Vec<_>>()
        };
        let before = rest(&stateful.input, &model.input, "in");
        assert_eq!(before, rest(&stateful.output, &model.output, "out"), "{config:?}");
        assert!(!before.is_empty() && before.iter().all(|state| state.contains(" float [batch, ")), "{before:?}");
    }
}
