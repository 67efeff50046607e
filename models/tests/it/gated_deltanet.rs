//! Gated DeltaNet and Gated DeltaProduct: states, sizes, groups, and what their `config.json` means. Their numbers are
//! compared in `parity.rs`, their operation in `recurrences.rs`.

use crate::common::{difference, flat, ids, input, shaken};
use burn::module::Module;
use models::gated_deltanet::{GatedDeltanetConfig, GatedDeltanetState};
use models::original::Original;
use models::{Architecture, Cpu, Model, ModelConfig, ParameterGroup};
use serde_json::json;

type State = Vec<GatedDeltanetState<Cpu>>;

/// Logits of pieces of `size` tokens, each from what `carry` leaves of the state after the one before it.
fn in_pieces(model: &Model<Cpu>, ids: &[i64], size: usize, carry: fn(State) -> Option<State>) -> Vec<f64> {
    let Model::GatedDeltanet(model) = model else { panic!("another architecture") };
    let mut state = None;
    let mut logits = vec![];
    for piece in ids.chunks(size) {
        let (out, after) = model.forward_from(input(piece), state.take().and_then(carry));
        logits.extend(flat(out));
        state = Some(after);
    }
    logits
}

#[test]
fn pieces_with_both_states_carried_over_equal_the_whole() {
    let ids = ids(100);
    for config in GatedDeltanetConfig::examples() {
        let model = shaken(&ModelConfig::GatedDeltanet(config.clone()));
        let whole = flat(model.forward(input(&ids)));
        for size in [1, 2, 7, 64] {
            let change = difference(&whole, &in_pieces(&model, &ids, size, Some));
            assert!(change < 2e-5, "{config:?}: pieces of {size} differ by {change}");
        }
        let forget_memory = |state: State| {
            let forget = |s: GatedDeltanetState<Cpu>| GatedDeltanetState { memory: s.memory.zeros_like(), ..s };
            Some(state.into_iter().map(forget).collect())
        };
        let change = difference(&whole, &in_pieces(&model, &ids, 50, forget_memory));
        assert!(change > 1e-3, "{config:?}: the memory must matter, and does by only {change}");
        let forget_inputs = |state: State| {
            let forget = |s: GatedDeltanetState<Cpu>| GatedDeltanetState { conv: Default::default(), ..s };
            Some(state.into_iter().map(forget).collect())
        };
        let change = difference(&whole, &in_pieces(&model, &ids, 50, forget_inputs));
        let convolved = config.conv_kernel > 0;
        assert!(if convolved { change > 1e-3 } else { change < 2e-5 }, "{config:?}: inputs matter by {change}");
    }
}

/// By default, queries and keys are three quarters as wide as the model and values one and a half times: with the gate and
/// the output, 6·hidden² weights, as flash-linear-attention says of its layer.
#[test]
fn parameter_counts_are_those_of_the_formulas() {
    let (h, v) = (128, 13);
    let count = |config: GatedDeltanetConfig| {
        ModelConfig::GatedDeltanet(config).init::<Cpu>(v, 0, &Default::default()).num_params()
    };
    let (heads, key, value, inner) = (2, 48, 96, 512);
    let around = 2 * v * h + h; // embedding, decoder and the last norm
    let block = 6 * h * h // q, k, v, gate and output
        + 2 * heads * h + 2 * heads // steps, decays, their rates and biases
        + 4 * heads * (2 * key + value) + value // convolutions, the norm of heads
        + 3 * h * inner + 2 * h;
    assert_eq!(count(GatedDeltanetConfig::default()), around + 2 * block);
    // Another key, value and step with taps of their own per correction.
    let further = heads * (key + value) * (h + 4) + heads * h;
    let product = GatedDeltanetConfig { num_householder: 3, ..Default::default() };
    assert_eq!(count(product), around + 2 * (block + 2 * further));
}

#[test]
fn rates_and_biases_of_decays_do_not_decay() {
    let config = GatedDeltanetConfig::default();
    for name in ["A_log", "dt_bias"] {
        assert_eq!(config.parameter_group(&format!("model.layers.1.attn.{name}")), ParameterGroup::UNDECAYED, "{name}");
    }
    for name in ["model.layers.1.attn.a_proj.weight", "model.layers.0.attn.o_norm.weight", "lm_head.weight"] {
        assert_eq!(config.parameter_group(name), ParameterGroup::DEFAULT, "{name}");
    }
}

#[test]
fn sizes_that_cannot_be_built_are_refused_by_key() {
    let default = GatedDeltanetConfig::default;
    for (config, key) in [
        (GatedDeltanetConfig { num_heads: 0, ..default() }, "num_heads"),
        (GatedDeltanetConfig { head_size: 0, ..default() }, "head_size"),
        (GatedDeltanetConfig { num_v_heads: 3, ..default() }, "num_v_heads"),
        (GatedDeltanetConfig { num_v_heads: 1, ..default() }, "num_v_heads"),
        (GatedDeltanetConfig { expand_v: 0.33, ..default() }, "expand_v"),
        (GatedDeltanetConfig { expand_v: 0.0, ..default() }, "expand_v"),
        (GatedDeltanetConfig { expand_v: f64::NAN, ..default() }, "expand_v"),
        (GatedDeltanetConfig { expand_v: 1e300, ..default() }, "expand_v"),
        (GatedDeltanetConfig { num_householder: 0, ..default() }, "num_householder"),
        (GatedDeltanetConfig { num_householder: 17, ..default() }, "num_householder"),
        (GatedDeltanetConfig { conv_kernel: 1, ..default() }, "conv_kernel"),
        (GatedDeltanetConfig { norm_epsilon: 0.0, ..default() }, "norm_epsilon"),
    ] {
        let error = ModelConfig::GatedDeltanet(config.clone()).validate().expect_err(&format!("{config:?}"));
        assert_eq!(error.key, key, "{config:?}");
    }
}

/// The two configs of flash-linear-attention have other defaults for the same layer.
#[test]
fn fields_that_a_config_json_leaves_out_are_those_of_its_code() {
    let read = |model_type: &str| {
        let config = json!({"model_type": model_type, "hidden_size": 2048, "num_hidden_layers": 21});
        match Original::new(&config).unwrap().model {
            ModelConfig::GatedDeltanet(config) => config,
            other => panic!("{other:?}"),
        }
    };
    let net = read("gated_deltanet");
    let expected = GatedDeltanetConfig {
        hidden_size: 2048,
        num_layers: 21,
        num_heads: 6,
        head_size: 256,
        expand_v: 2.0,
        ..Default::default()
    };
    assert_eq!(net, expected);
    assert_eq!(read("gated_deltaproduct"), GatedDeltanetConfig { forget_gate: false, ..expected });
    let config = json!({"arch": "gated_deltanet", "hidden_size": 8, "num_hidden_layers": 1, "num_householder": 2});
    assert_eq!(Original::new(&config).unwrap_err().field, "num_householder");
}
