//! Hybrids: a model of one kind of mixer is that architecture itself, mixers keep their rules, settings are those of blocks.

use crate::common::{difference, flat, fresh, ids, input, shaken};
use models::hybrid::{HybridConfig, Kind};
use models::original::Original;
use models::{Cpu, Model, ModelConfig, ParameterGroup, Weights};
use serde_json::{Value, json};

fn parsed(config: Value) -> ModelConfig {
    let config: ModelConfig = serde_json::from_value(config).unwrap();
    config.validate().unwrap();
    config
}

/// The weights of a model of linear attention, under the same names, give the same logits.
#[test]
fn a_hybrid_of_one_mixer_is_that_model() {
    let common = json!({"hidden_size": 16, "num_layers": 2, "intermediate_size": 24});
    let cases = [
        ("gla", json!({"num_heads": 2, "conv_kernel": 3})),
        ("gated_deltanet", json!({"head_size": 4, "num_householder": 2, "negative_eigenvalues": true})),
        ("hgrn2", json!({"expand_ratio": 8})),
    ];
    for (name, settings) in cases {
        let with = |more: &[(&str, Value)]| {
            let mut config = common.clone();
            more.iter().for_each(|(key, value)| config[*key] = value.clone());
            config
        };
        let mut own = with(&[("arch", name.into())]);
        settings.as_object().unwrap().iter().for_each(|(key, value)| own[key] = value.clone());
        if name == "hgrn2" {
            own["lower_bound"] = false.into();
        }
        let hybrid = with(&[("arch", "hybrid".into()), ("blocks", json!([name, name])), (name, settings)]);
        let model = shaken(&parsed(own));
        let weights = Weights::of(&model).unwrap();
        let mut other = fresh(&parsed(hybrid));
        weights.load_into(&mut other).unwrap();
        let ids = ids(40);
        let change = difference(&flat(model.forward(input(&ids))), &flat(other.forward(input(&ids))));
        assert_eq!(change, 0.0, "{name}");
    }
}

#[test]
fn settings_are_written_as_they_are_read_and_mixers_keep_their_rules() {
    let config = parsed(json!({
        "arch": "hybrid", "hidden_size": 16, "blocks": ["mamba2", "attention", "rglru"], "num_heads": 2,
        "mamba2": {"head_size": 8, "state_size": 4}
    }));
    assert_eq!(config.num_layers(), 3, "a block for each mixer");
    let written = serde_json::to_value(&config).unwrap();
    assert_eq!(written["mamba2"]["head_size"], 8);
    assert!(written.get("gla").is_none() && written["mamba2"].get("hidden_size").is_none(), "{written}");
    assert_eq!(parsed(written), config);
    let group = |name: &str| config.parameter_group(name);
    assert_eq!(group("model.layers.0.attn.A_log"), ParameterGroup::UNDECAYED);
    assert_eq!(group("model.layers.0.attn.D"), ParameterGroup::UNDECAYED);
    assert_eq!(group("model.layers.0.attn.in_proj.weight"), ParameterGroup::DEFAULT);
    assert_eq!(group("model.layers.2.attn.lambda"), ParameterGroup::UNDECAYED);
    assert_eq!(group("model.layers.1.attn.q_proj.weight"), ParameterGroup::DEFAULT);
    assert_eq!(config.state_per_token(), 2 * 16, "one block of attention");
}

#[test]
fn settings_that_no_block_has_are_refused() {
    let refused = |more: Value, words: &str| {
        let mut config = json!({"arch": "hybrid", "hidden_size": 16, "num_heads": 2, "blocks": ["mamba", "attention"]});
        more.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        let error = match serde_json::from_value::<ModelConfig>(config) {
            Ok(config) => config.validate().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(words), "{error}");
    };
    refused(json!({"gla": {}}), "gla: there are settings of it, but no block is one");
    refused(json!({"mamba": {"hidden_size": 8}}), "mamba.hidden_size is no setting of this mixer alone");
    refused(
        json!({"mamba": {"state_sizes": 8}}),
        "mamba.state_sizes: there is no such setting\n  hint: did you mean `state_size`?",
    );
    refused(json!({"mamba": {"state_size": 0}}), "model.mamba.state_size: must be at least 1");
    refused(json!({"mamba": {"state_size": 1e9}}), "mamba: invalid type");
    refused(json!({"mamba": {"state_size": 1_000_000}}), "model.mamba.state_size: must be at most 65536");
    refused(json!({"blocks": []}), "blocks");
    refused(json!({"blocks": ["mamba", "lstm"]}), "unknown variant `lstm`");
    refused(json!({"num_layers": 1}), "model.num_layers: 1 is less than the 2 mixers");
    refused(json!({"num_heads": 3}), "num_heads");
    refused(json!({"positional_embedding": "t5"}), "model.positional_embedding: t5 is not for hybrids");
    refused(json!({"blocks": ["mamba"], "attention_window": 4}), "attention_window");
    refused(json!({"intermediate_size": 1_000_000_000}), "model.intermediate_size: must be at most 262144");
}

/// flash-linear-attention says which layers are attention in the field `attn`.
#[test]
fn layers_of_attention_in_a_published_config_make_a_hybrid() {
    let config = |attention: Value| {
        json!({
            "model_type": "gated_deltanet", "hidden_size": 32, "num_hidden_layers": 4, "num_heads": 2, "head_dim": 8,
            "expand_v": 1, "allow_neg_eigval": true, "attn": attention
        })
    };
    let read = |attention| Original::new(&config(attention));
    let window = json!({"layers": [1, 3], "num_heads": 4, "num_kv_heads": null, "qkv_bias": false, "rope_theta": 10000.0, "window_size": 7});
    let ModelConfig::Hybrid(hybrid) = read(window).unwrap().model else { panic!("no hybrid") };
    let (linear, attention) = (Kind::GatedDeltanet, Kind::Attention);
    assert_eq!(hybrid.kinds().collect::<Vec<_>>(), [linear, attention, linear, attention]);
    assert_eq!((hybrid.num_heads, hybrid.attention_window, hybrid.intermediate_size), (4, 7, 256));
    assert!(hybrid.gated_deltanet().negative_eigenvalues && hybrid.gated_deltanet().head_size == 8);
    let model = ModelConfig::Hybrid(HybridConfig { ..hybrid }).init::<Cpu>(7, 0, &Default::default());
    assert!(matches!(model, Model::Hybrid(_)));
    let weights = Weights::of(&model).unwrap();
    assert!(weights.get("model.layers.1.attn.q_proj.weight").is_some(), "their names");
    let refused = |attention, words: &str| {
        let error = read(attention).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(json!({"layers": [4], "num_heads": 4}), "attn: layers [4], but there are 4");
    refused(json!({"layers": [1]}), "attn: missing field `num_heads`");
    refused(json!({"layers": [1], "num_heads": 4, "num_kv_heads": 2}), "attn: num_kv_heads must be num_heads, 4");
    refused(json!({"layers": [1], "num_heads": 4, "qk_norm": true}), "attn: neither qkv_bias nor qk_norm");
    refused(json!({"layers": [1], "num_heads": 4, "rope_thet": 3}), "attn: unknown field `rope_thet`");
    refused(json!({"layers": [1], "num_heads": 4, "window_size": -6}), "attn: invalid value");
    refused(json!({"layers": [], "num_heads": 4}), "attn: it lists no layers");
    refused(json!([1]), "attn");
}
