//! Properties of every architecture regardless of its weights, and the initial weights.

use burn::backend::Autodiff;
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;
use data::stream_rng;
use models::layers::{DropoutSource, dropout};
use models::lstm::LstmConfig;
use models::mamba::MambaConfig;
use models::ops::RecurrentWeights;
use models::ops::dropout::Mask;
use models::ops::recurrent::RecurrentOps;
use models::rnn::RnnConfig;
use models::s4::S4Config;
use models::transformer::{PositionalEmbedding, TransformerConfig};
use models::{Cpu, Model, ModelConfig, ModelInput, Positions, Weight, WeightError, Weights};
use rand::{Rng, RngExt};
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};

const VOCAB: usize = 13;

fn rnn(hidden_size: usize, num_layers: usize, dropout: f64) -> ModelConfig {
    ModelConfig::Rnn(RnnConfig { hidden_size, num_layers, dropout, ..Default::default() })
}

fn lstm(hidden_size: usize, num_layers: usize, dropout: f64) -> ModelConfig {
    ModelConfig::Lstm(LstmConfig { hidden_size, num_layers, dropout, ..Default::default() })
}

fn s4(hidden_size: usize, num_layers: usize, dropout: f64) -> ModelConfig {
    ModelConfig::S4(S4Config { hidden_size, num_layers, dropout, kernel_length: 64, ..Default::default() })
}

fn mamba(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Mamba(MambaConfig { hidden_size, num_layers, ..Default::default() })
}

fn transformer(
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    positional_embedding: PositionalEmbedding,
) -> ModelConfig {
    ModelConfig::Transformer(TransformerConfig {
        hidden_size,
        num_layers,
        num_heads,
        positional_embedding,
        ..Default::default()
    })
}

fn nope() -> ModelConfig {
    transformer(16, 2, 2, PositionalEmbedding::None)
}

fn rope() -> ModelConfig {
    transformer(16, 2, 2, PositionalEmbedding::Rope)
}

/// Every architecture, two layers of width 16.
fn all() -> [ModelConfig; 6] {
    [rnn(16, 2, 0.5), lstm(16, 2, 0.5), s4(16, 2, 0.5), mamba(16, 2), nope(), rope()]
}

fn model(config: &ModelConfig, seed: u64) -> Model<Cpu> {
    config.init(VOCAB, seed, &Default::default())
}

fn weights(config: &ModelConfig, seed: u64) -> Weights {
    Weights::of(&model(config, seed)).unwrap()
}

/// One example at positions 0, 1, 2 …
fn input(ids: &[i64]) -> ModelInput<Cpu> {
    let positions: Vec<i64> = (0..ids.len() as i64).collect();
    ModelInput {
        input_ids: ints(ids),
        position_ids: Positions::Integers(ints(&positions)),
        attention_mask: None,
        dropout: None,
    }
}

fn ints(values: &[i64]) -> Tensor<Cpu, 2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Default::default())
}

fn mask(values: &[f32]) -> Option<Tensor<Cpu, 2>> {
    Some(Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Default::default()))
}

/// Logits of one example, one row per token.
fn logits(model: &Model<Cpu>, input: ModelInput<Cpu>) -> Vec<Vec<f32>> {
    let values: Vec<f32> = model.forward(input).into_data().iter().collect();
    values.chunks(VOCAB).map(<[f32]>::to_vec).collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // `f32::max` would ignore NaN.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

fn flat<const D: usize>(tensor: &Tensor<Cpu, D>) -> Vec<f32> {
    tensor.to_data().iter().collect()
}

/// Values uniform on ±`bound`, different for each `index`.
fn random(n: usize, bound: f32, index: u64) -> Vec<f32> {
    let mut rng = stream_rng(1, "test values", index);
    (0..n).map(|_| rng.random_range(-bound..=bound)).collect()
}

// Sizes ---------------------------------------------------------------------------------------------------------------

/// The trainable parameters of the models of arXiv 2405.20131, with 103 and 13 tokens, at 1, 2 and 4 layers.
#[test]
fn parameter_counts_are_those_of_the_paper() {
    let count = |config: ModelConfig, vocab| config.init::<Cpu>(vocab, 0, &Default::default()).num_params();
    for (layers, counts) in [(1, [59_392, 36_352]), (2, [92_416, 69_376]), (4, [158_464, 135_424])] {
        assert_eq!([103, 13].map(|v| count(rnn(128, layers, 0.1), v)), counts, "rnn, {layers} layers");
    }
    for (layers, counts) in [(1, [158_464, 135_424]), (2, [290_560, 267_520]), (4, [554_752, 531_712])] {
        assert_eq!([103, 13].map(|v| count(lstm(128, layers, 0.1), v)), counts, "lstm, {layers} layers");
    }
    for (layers, counts) in [(1, [92_672, 69_632]), (2, [158_976, 135_936]), (4, [291_584, 268_544])] {
        assert_eq!([103, 13].map(|v| count(s4(128, layers, 0.1), v)), counts, "s4, {layers} layers");
    }
    for (layers, counts) in [(1, [129_920, 118_400]), (2, [246_528, 235_008]), (4, [479_744, 468_224])] {
        assert_eq!([103, 13].map(|v| count(mamba(128, layers), v)), counts, "mamba, {layers} layers");
    }
    for (layers, counts) in
        [(1, [12_809_216, 12_624_896]), (2, [25_405_440, 25_221_120]), (4, [50_597_888, 50_413_568])]
    {
        let nope = transformer(1024, layers, 8, PositionalEmbedding::None);
        assert_eq!([103, 13].map(|v| count(nope.clone(), v)), counts, "transformer, {layers} layers");
    }
    let rope = transformer(1024, 1, 8, PositionalEmbedding::Rope);
    assert_eq!([103, 13].map(|v| count(rope.clone(), v)), [12_809_216, 12_624_896], "rope has no parameters");
}

// Positions -----------------------------------------------------------------------------------------------------------

const IDS: [i64; 9] = [0, 12, 3, 12, 5, 12, 12, 7, 1];

#[test]
fn no_query_sees_a_masked_key() {
    let at = 4;
    let mut other = IDS;
    other[at] = 9;
    let mut ones = [1.0; IDS.len()];
    ones[at] = 0.0;
    for config in [nope(), rope()] {
        let model = model(&config, 0);
        let run = |ids, mask| logits(&model, ModelInput { attention_mask: mask, ..input(ids) });
        let (seen, seen_changed) = (run(&IDS, None), run(&other, None));
        let (masked, masked_changed) = (run(&IDS, mask(&ones)), run(&other, mask(&ones)));
        for t in (0..IDS.len()).filter(|&t| t != at) {
            let change = difference(&masked[t], &masked_changed[t]);
            assert!(change < 1e-6, "{config:?}: the masked token changed the logits of {t} by {change}");
        }
        assert!(difference(&seen[at + 1], &seen_changed[at + 1]) > 1e-5, "{config:?}: unmasked, it is seen");
    }
}

#[test]
fn rope_knows_distances_and_nope_knows_no_positions() {
    let at = |positions: &[i64]| ModelInput { position_ids: Positions::Integers(ints(positions)), ..input(&IDS) };
    let plain: Vec<i64> = (0..IDS.len() as i64).collect();
    let shifted: Vec<i64> = plain.iter().map(|p| p + 40).collect();
    let stretched: Vec<i64> = plain.iter().map(|p| p * 5).collect();
    for (config, distances_matter) in [(nope(), false), (rope(), true)] {
        let mut model = model(&config, 0);
        // Initial queries and keys are so small that attention hardly depends on them: larger ones show the rotation.
        edited(&model, "loud", |name, weight| {
            if name.ends_with("c_attn.weight") {
                weight.values.iter_mut().for_each(|v| *v *= 30.0);
            }
        })
        .load_into(&mut model)
        .unwrap();
        let [plain, shifted, stretched] = [&plain, &shifted, &stretched].map(|p| logits(&model, at(p)).concat());
        // Angles up to 48 rounded to float32 are off by 2e-6, and the scores here are of order 10.
        assert!(difference(&plain, &shifted) < 2e-4, "{config:?}: {}", difference(&plain, &shifted));
        let change = difference(&plain, &stretched);
        assert_eq!(change > 1e-2, distances_matter, "{config:?}: stretching changed the logits by {change}");
        assert_eq!(change > 0.0, distances_matter, "{config:?}: stretching changed the logits by {change}");
    }
}

// The recurrent state -------------------------------------------------------------------------------------------------

fn recurrent<B: Backend>(gates: usize, input: usize, hidden: usize) -> RecurrentWeights<B> {
    let matrix = |rows, columns, index| {
        let values = random(rows * columns, 0.7, index);
        Tensor::from_data(TensorData::new(values, [rows, columns]), &Default::default())
    };
    let rows = gates * hidden;
    RecurrentWeights {
        weight_ih: matrix(rows, input, 10),
        weight_hh: matrix(rows, hidden, 11),
        bias_ih: matrix(1, rows, 12).reshape([rows]),
        bias_hh: matrix(1, rows, 13).reshape([rows]),
    }
}

/// Feeds 13 steps at once, then 1, 7 and 5 of them with the state carried over; `layer` takes and gives the state as a
/// list. Returns the largest difference between the outputs, and between the states at the end.
fn in_pieces(
    layer: impl Fn(Tensor<Cpu, 3>, Option<Vec<Tensor<Cpu, 2>>>) -> (Tensor<Cpu, 3>, Vec<Tensor<Cpu, 2>>),
) -> [f32; 2] {
    let (batch, seq, channels) = (3, 13, 5);
    let values = TensorData::new(random(batch * seq * channels, 2.0, 14), [batch, seq, channels]);
    let x = Tensor::<Cpu, 3>::from_data(values, &Default::default());
    let (whole, last) = layer(x.clone(), None);
    let (mut state, mut pieces) = (None, vec![]);
    for steps in [0..1, 1..8, 8..13] {
        let (out, next) = layer(x.clone().slice([0..batch, steps]), state);
        pieces.push(out);
        state = Some(next);
    }
    let state_difference = last.iter().zip(state.unwrap()).map(|(a, b)| difference(&flat(a), &flat(&b)));
    [difference(&flat(&whole), &flat(&Tensor::cat(pieces, 1))), state_difference.fold(0.0, f32::max)]
}

#[test]
fn an_rnn_fed_in_pieces_equals_the_whole() {
    let weights = recurrent::<Cpu>(1, 5, 6);
    let differences = in_pieces(|x, state| {
        let (out, h) = Cpu::rnn_layer(x, weights.clone(), state.map(|s| s[0].clone()));
        (out, vec![h])
    });
    assert!(differences.iter().all(|&d| d < 1e-6), "{differences:?}");
    let forgetful = in_pieces(|x, _| {
        let (out, h) = Cpu::rnn_layer(x, weights.clone(), None);
        (out, vec![h])
    });
    assert!(forgetful.iter().all(|&d| d > 1e-2), "the state must matter for this test to mean anything: {forgetful:?}");
}

#[test]
fn an_lstm_fed_in_pieces_equals_the_whole() {
    let weights = recurrent::<Cpu>(4, 5, 6);
    let differences = in_pieces(|x, state| {
        let (out, (h, c)) = Cpu::lstm_layer(x, weights.clone(), state.map(|s| (s[0].clone(), s[1].clone())));
        (out, vec![h, c])
    });
    assert!(differences.iter().all(|&d| d < 1e-6), "{differences:?}");
    for kept in [0, 1] {
        let forgetful = in_pieces(|x, state| {
            let part = |s: &[Tensor<Cpu, 2>], i: usize| if i == kept { s[i].clone() } else { s[i].zeros_like() };
            let state = state.map(|s| (part(&s, 0), part(&s, 1)));
            let (out, (h, c)) = Cpu::lstm_layer(x, weights.clone(), state);
            (out, vec![h, c])
        });
        assert!(forgetful.iter().all(|&d| d > 1e-3), "both h and c must matter: {forgetful:?}");
    }
}

#[test]
fn the_last_state_is_the_last_output() {
    let x = Tensor::<Cpu, 3>::from_data(TensorData::new(random(30, 2.0, 15), [2, 3, 5]), &Default::default());
    let last = |out: Tensor<Cpu, 3>| flat(&out.narrow(1, 2, 1));
    let (out, h) = Cpu::rnn_layer(x.clone(), recurrent(1, 5, 6), None);
    assert_eq!(last(out), flat(&h));
    let (out, (h, _)) = Cpu::lstm_layer(x, recurrent(4, 5, 6), None);
    assert_eq!(last(out), flat(&h));
}

// Initialisation ------------------------------------------------------------------------------------------------------

#[test]
fn a_seed_means_the_same_weights() {
    for config in all() {
        assert_eq!(weights(&config, 3), weights(&config, 3), "{config:?}");
        let training = config.init::<Autodiff<Cpu>>(VOCAB, 3, &Default::default());
        assert_eq!(weights(&config, 3), Weights::of(&training).unwrap(), "{config:?} on another backend");
        for ((name, a), (_, b)) in weights(&config, 3).iter().zip(weights(&config, 4).iter()) {
            let last = name.rsplit('.').next().unwrap();
            let norm = name.contains("ln_") || name.contains("norm") || (name.starts_with("h.") && last == "bias");
            let constant = norm
                || matches!((&config, last), (ModelConfig::S4(_), "A_real" | "A_imag" | "B" | "P"))
                || matches!((&config, last), (ModelConfig::Mamba(_), "A_log" | "D"));
            assert_eq!(a == b, constant, "{name} with seeds 3 and 4");
        }
    }
}

/// Mean, standard deviation and largest size of the values.
fn statistics(weight: &Weight) -> [f64; 3] {
    let values: Vec<f64> = weight.values.iter().map(|v| f64::from(*v)).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    [mean, variance.sqrt(), values.iter().fold(0.0, |m, v| m.max(v.abs()))]
}

/// N(0, `std`²) to within five standard errors.
fn assert_normal(name: &str, weight: &Weight, std: f64) {
    let [mean, found, _] = statistics(weight);
    let n = weight.values.len() as f64;
    assert!(mean.abs() < 5.0 * std / n.sqrt(), "{name}: mean {mean}");
    assert!((found / std - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{name}: standard deviation {found}, not {std}");
    // A normal variable is within one standard deviation with probability 0.683, a uniform one with 0.577.
    let within = weight.values.iter().filter(|v| f64::from(v.abs()) < std).count() as f64 / n;
    assert!((within - 0.6827).abs() < 5.0 * (0.2166 / n).sqrt(), "{name}: {within} are within a standard deviation");
}

/// Uniform on ±`bound`, whose standard deviation is bound/√3, to within five standard errors.
fn assert_uniform(name: &str, weight: &Weight, bound: f64) {
    let [mean, found, largest] = statistics(weight);
    let (n, std) = (weight.values.len() as f64, bound / 3f64.sqrt());
    assert!(mean.abs() < 5.0 * std / n.sqrt(), "{name}: mean {mean}");
    assert!((found / std - 1.0).abs() < 5.0 / (5.0 * n).sqrt(), "{name}: standard deviation {found}, not {std}");
    assert!(largest <= bound * (1.0 + 1e-6) && largest > bound * 0.95, "{name}: largest {largest}, bound {bound}");
}

fn assert_uniform_between(name: &str, weight: &Weight, [low, high]: [f64; 2]) {
    let middle = ((low + high) / 2.0) as f32;
    let centred = weight.values.iter().map(|v| v - middle).collect();
    assert_uniform(name, &Weight { shape: weight.shape.clone(), values: centred }, (high - low) / 2.0);
}

#[test]
fn initial_weights_have_the_documented_distributions() {
    for config in [rnn(128, 2, 0.1), lstm(128, 2, 0.1)] {
        for (name, weight) in weights(&config, 5).iter() {
            match name {
                "encoder.weight" | "decoder.weight" => assert_normal(name, weight, 0.02),
                _ => assert_uniform(name, weight, 1.0 / 128f64.sqrt()),
            }
        }
    }
    let layers = 3;
    let all = |weight: &Weight, value: f32| weight.values.iter().all(|v| *v == value);
    let steps = [0.001f64.ln(), 0.1f64.ln()];
    for (name, weight) in weights(&s4(128, 2, 0.1), 5).iter() {
        match name.rsplit('.').next().unwrap() {
            "C" => {} // truncated: see the tests of state spaces
            "D" => assert_normal(name, weight, 1.0),
            "inv_dt" => assert_uniform_between(name, weight, steps),
            "A_real" => assert!(all(weight, 0.5f32.ln()), "{name}"),
            "A_imag" => assert!(weight.values.iter().all(|v| *v > 0.1), "{name}"),
            "B" => assert!(weight.values.chunks(2).all(|b| b[1].abs() <= 2.0), "{name}"),
            "P" => assert!(weight.values.iter().all(|v| v.is_finite()), "{name}"),
            _ if name == "encoder.weight" => assert_normal(name, weight, 1.0),
            "weight" if name.starts_with("norms.") => assert!(all(weight, 1.0), "{name}"),
            "bias" if name.starts_with("norms.") => assert!(all(weight, 0.0), "{name}"),
            _ => assert_uniform(name, weight, 1.0 / 128f64.sqrt()),
        }
    }
    for (name, weight) in weights(&mamba(128, layers), 5).iter() {
        match name.split_once("mixer.").map_or(name, |(_, rest)| rest) {
            "backbone.embedding.weight" => assert_normal(name, weight, 0.02),
            "in_proj.weight" => assert_uniform(name, weight, 1.0 / 128f64.sqrt()),
            "out_proj.weight" => assert_uniform(name, weight, 1.0 / (256.0 * layers as f64).sqrt()),
            "x_proj.weight" => assert_uniform(name, weight, 1.0 / 256f64.sqrt()),
            "conv1d.weight" | "conv1d.bias" => assert_uniform(name, weight, 0.5),
            "dt_proj.weight" => assert_uniform(name, weight, 1.0 / 8f64.sqrt()),
            "dt_proj.bias" => {
                let logs = weight.values.iter().map(|v| v.exp().ln_1p().ln()).collect();
                assert_uniform_between(name, &Weight { shape: weight.shape.clone(), values: logs }, steps);
            }
            "A_log" => {
                let right = weight.values.iter().enumerate().all(|(i, v)| (v.exp() - (i % 16 + 1) as f32).abs() < 1e-5);
                assert!(right, "{name}");
            }
            _ => assert!(all(weight, 1.0), "{name}"), // D and the norms
        }
    }
    for (name, weight) in weights(&transformer(64, layers, 4, PositionalEmbedding::Rope), 5).iter() {
        let norm = name.contains("ln_");
        match name.rsplit_once('.').unwrap() {
            (_, "bias") => assert!(all(weight, 0.0), "{name}"),
            (_, "weight") if norm => assert!(all(weight, 1.0), "{name}"),
            (module, _) if module.ends_with("c_proj") => {
                assert_normal(name, weight, 0.02 / (2.0 * layers as f64).sqrt());
            }
            _ => assert_normal(name, weight, 0.02),
        }
    }
}

// Dropout -------------------------------------------------------------------------------------------------------------

#[test]
fn dropout_keeps_the_expected_part_and_follows_its_source() {
    let p = 0.3;
    let source = DropoutSource { seed: 1, step: 2 };
    let ones = Tensor::<Cpu, 3>::ones([20, 50, 100], &Default::default());
    let draw = |source, place| flat(&dropout(ones.clone(), p, Some(source), place));
    let masked = draw(source, 1);

    let keep = 1.0 / (1.0 - p) as f32;
    assert!(masked.iter().all(|&v| v == 0.0 || (v - keep).abs() < 1e-6), "entries are dropped or scaled by {keep}");
    let (n, kept) = (masked.len() as f64, masked.iter().filter(|&&v| v != 0.0).count() as f64);
    let standard_error = (p * (1.0 - p) / n).sqrt();
    assert!((kept / n - (1.0 - p)).abs() < 5.0 * standard_error, "{} are kept", kept / n);

    assert_eq!(masked, draw(source, 1));
    for (other, place) in [
        (DropoutSource { seed: 2, ..source }, 1),
        (DropoutSource { step: 3, ..source }, 1),
        (DropoutSource { step: 0, ..source }, 1),
        (source, 2),
    ] {
        assert_ne!(masked, draw(other, place), "{other:?}, place {place}");
    }
    assert_eq!(flat(&dropout(ones.clone(), p, None, 1)), flat(&ones), "evaluation");
    assert_eq!(flat(&dropout(ones.clone(), 0.0, Some(source), 1)), flat(&ones), "probability 0");
}

#[test]
fn every_factor_of_a_dropout_is_a_word_of_its_stream() {
    let (p, seed, stream) = (0.3, 5, 2 << 16 | 1);
    let factors = Mask { p, seed, stream }.factors(10_001);
    let mut rng = stream_rng(seed, "dropout", stream);
    for (i, factor) in factors.into_iter().enumerate() {
        let dropped = f64::from(rng.next_u32()) < p * 2f64.powi(32);
        assert_eq!(factor, if dropped { 0.0 } else { 1.0 / 0.7 }, "{i}");
    }
    let (n, p) = (1 << 20, 1e-3);
    let dropped = Mask { p, seed, stream }.factors(n).into_iter().filter(|&f| f == 0.0).count() as f64;
    let standard_error = (p * (1.0 - p) * n as f64).sqrt();
    assert!((dropped - p * n as f64).abs() < 5.0 * standard_error, "{dropped} of {n}");
}

/// Of neighbours, of rows, of one place and the next, and of one step and the next.
#[test]
fn dropouts_do_not_depend_on_each_other() {
    let (n, p) = (1 << 20, 0.3);
    let drop = |step: u64, place: u64| -> Vec<f64> {
        let factors = Mask { p, seed: 1, stream: step << 16 | place }.factors(n);
        factors.into_iter().map(|f| f64::from(f) - 1.0).collect() // of mean 0
    };
    let one = drop(7, 1);
    let variance = p / (1.0 - p);
    let check = |what: &str, other: &[f64]| {
        let covariance = one.iter().zip(other).map(|(a, b)| a * b).sum::<f64>() / other.len() as f64;
        assert!(covariance.abs() < 5.0 * variance / (other.len() as f64).sqrt(), "{what}: {covariance}");
    };
    let own = one.iter().map(|x| x * x).sum::<f64>() / n as f64;
    assert!((own / variance - 1.0).abs() < 0.01, "{own}, not {variance}");
    for shift in [1, 2, 16, 128, 4096] {
        check(&format!("{shift} numbers on"), &one[shift..]);
    }
    check("the next place", &drop(7, 2));
    check("the next step", &drop(8, 1));
}

#[test]
fn recurrent_models_drop_between_layers_in_training_only() {
    let source = DropoutSource { seed: 1, step: 2 };
    for make in [rnn, lstm] {
        let run = |layers, p, source: Option<DropoutSource>| {
            let model = model(&make(16, layers, p), 0);
            logits(&model, ModelInput { dropout: source, ..input(&IDS) }).concat()
        };
        assert_eq!(run(2, 0.5, None), run(2, 0.0, None), "evaluation");
        assert_ne!(run(2, 0.5, Some(source)), run(2, 0.5, None), "training");
        assert_eq!(run(2, 0.5, Some(source)), run(2, 0.5, Some(source)), "the same step twice");
        assert_ne!(run(2, 0.5, Some(source)), run(2, 0.5, Some(DropoutSource { step: 3, ..source })), "the next step");
        assert_eq!(run(1, 0.5, Some(source)), run(1, 0.5, None), "none after the last layer");
    }
}

// Weights on disk -----------------------------------------------------------------------------------------------------

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.safetensors", std::process::id()))
}

fn read_bytes(name: &str, bytes: &[u8]) -> Result<Weights, WeightError> {
    let path = scratch(name);
    std::fs::write(&path, bytes).unwrap();
    let weights = Weights::read(&path);
    std::fs::remove_file(&path).unwrap();
    weights
}

fn to_bytes(tensors: &[(String, Weight)]) -> Vec<u8> {
    let bytes = |w: &Weight| w.values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let buffers: Vec<_> = tensors.iter().map(|(name, w)| (name, w.shape.clone(), bytes(w))).collect();
    let views = buffers.iter().map(|(name, shape, b)| (name, TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn tensors(weights: &Weights) -> Vec<(String, Weight)> {
    weights.iter().map(|(name, weight)| (name.to_owned(), weight.clone())).collect()
}

/// The model's weights after `edit`.
fn edited(model: &Model<Cpu>, file: &str, edit: impl Fn(&str, &mut Weight)) -> Weights {
    let mut tensors = tensors(&Weights::of(model).unwrap());
    tensors.iter_mut().for_each(|(name, weight)| edit(name, weight));
    read_bytes(file, &to_bytes(&tensors)).unwrap()
}

#[test]
fn loading_keeps_the_ids_by_which_an_optimizer_finds_its_state() {
    let config = lstm(16, 2, 0.0);
    let mut loaded = model(&config, 1);
    weights(&config, 0).load_into(&mut loaded).unwrap();
    assert_eq!(burn::module::list_param_ids(&loaded), burn::module::list_param_ids(&model(&config, 2)));
}

#[test]
fn weights_that_do_not_fit_are_named_by_their_names_in_the_file() {
    let mut tensors = tensors(&weights(&lstm(16, 2, 0.0), 0));
    tensors.retain(|(name, _)| name != "lstm.weight_ih_l0" && name != "decoder.weight");
    tensors.push(("nonsense".into(), Weight { shape: vec![2], values: vec![0.0; 2] }));
    tensors.push(("lstm.weight_hh_l2".into(), Weight { shape: vec![64, 16], values: vec![0.0; 1024] }));
    for (name, weight) in &mut tensors {
        if name == "encoder.weight" || name == "lstm.weight_hh_l1" {
            weight.shape.reverse();
        }
    }
    let weights = read_bytes("misfits", &to_bytes(&tensors)).unwrap();
    let error = weights.load_into(&mut model(&lstm(16, 2, 0.0), 0)).unwrap_err();
    let WeightError::Mismatch(problems) = &error else { panic!("{error:?}") };
    assert_eq!(problems.len(), 6, "{problems:#?}");
    let text = error.to_string();
    for (name, problem) in [
        ("lstm.weight_ih_l0", "missing"),
        ("decoder.weight", "missing"),
        ("nonsense", "not in the model"),
        ("lstm.weight_hh_l2", "not in the model"),
        ("encoder.weight", "[13, 16]"),
        ("lstm.weight_hh_l1", "[64, 16]"),
    ] {
        let found = problems.iter().any(|p| p.contains(name) && p.contains(problem));
        assert!(found, "nothing says `{name}` and `{problem}` in {problems:#?}");
        assert!(text.contains(name), "{text}");
    }
    assert!(text.contains("hint:"), "{text}");
}

#[test]
fn weights_of_another_architecture_do_not_load() {
    let error = weights(&nope(), 0).load_into(&mut model(&rnn(16, 2, 0.0), 0)).unwrap_err().to_string();
    assert!(
        error.contains("lstm.weight_hh_l1 is missing") && error.contains("wte.weight is not in the model"),
        "{error}"
    );
}

#[test]
fn damaged_weights_are_refused_with_the_name_of_the_file() {
    let whole = weights(&rnn(16, 1, 0.0), 0).to_safetensors().unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut flipped = whole.clone();
    flipped[8] = b'['; // the JSON no longer begins with a brace
    let mut endless = whole.clone();
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes()); // a header longer than any file
    let cut = |n: usize| whole[..n].to_vec();
    let damaged =
        [0, 4, 8, header / 2, header - 1, header, header + 2, whole.len() / 2, whole.len() - 4, whole.len() - 1];
    let damaged = damaged.map(|n| (format!("cut after {n} of {} bytes", whole.len()), cut(n)));
    let others = [("a broken header".to_owned(), flipped), ("an endless header".to_owned(), endless)];
    let complex = TensorView::new(Dtype::C64, vec![1], &[0; 8]).unwrap();
    let complex = ("complex numbers".to_owned(), safetensors::serialize([("encoder.weight", complex)], None).unwrap());
    for (what, bytes) in damaged.into_iter().chain(others).chain([complex]) {
        let error = read_bytes("damaged", &bytes).expect_err(&what);
        assert!(matches!(error, WeightError::Damaged { .. }), "{what}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(&scratch("damaged").display().to_string()) && text.contains("hint:"), "{what}: {text}");
    }
    assert!(read_bytes("damaged", &whole).is_ok(), "undamaged, it reads");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Weights::read(Path::new("nowhere/model.safetensors")).unwrap_err();
    assert!(matches!(error, WeightError::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("nowhere/model.safetensors"), "{error}");
}

#[test]
fn sizes_that_cannot_be_built_are_refused_by_key() {
    let heads = |hidden, heads| transformer(hidden, 2, heads, PositionalEmbedding::None);
    for (config, key) in [
        (heads(64, 7), "num_heads"),
        (heads(64, 0), "num_heads"),
        (transformer(12, 2, 4, PositionalEmbedding::Rope), "num_heads"), // three channels cannot be paired
        (heads(0, 4), "hidden_size"),
        (rnn(0, 1, 0.1), "hidden_size"),
        (lstm(16, 0, 0.1), "num_layers"),
        (rnn(16, 1, 1.0), "dropout"),
        (lstm(16, 1, -0.1), "dropout"),
        (lstm(16, 1, f64::NAN), "dropout"),
        (s4(16, 1, 1.5), "dropout"),
        (ModelConfig::S4(S4Config { kernel_length: 0, ..Default::default() }), "kernel_length"),
        (ModelConfig::S4(S4Config { kernel_length: 1 << 15, ..Default::default() }), "kernel_length"),
        (ModelConfig::Mamba(MambaConfig { state_size: 0, ..Default::default() }), "state_size"),
        (ModelConfig::Mamba(MambaConfig { conv_kernel: 1, ..Default::default() }), "conv_kernel"),
        (ModelConfig::Mamba(MambaConfig { expand: 0, ..Default::default() }), "expand"),
    ] {
        let error = config.validate().expect_err(&format!("{config:?}"));
        assert_eq!(error.key, key, "{config:?}");
        assert!(error.to_string().starts_with(&format!("model.{key}: ")), "{error}");
    }
    for config in all().into_iter().chain([heads(12, 4), rnn(1, 1, 0.0)]) {
        config.validate().unwrap();
    }
}
