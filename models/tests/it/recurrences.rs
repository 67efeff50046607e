//! Recurrent models: their operations against the definitions, and their states. Their learning is tested in
//! `learning.rs`.

use crate::common::{Training, check_gradients, difference, flat, fresh, ids, input, random, shaken, tensor};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;
use models::deltanet::DeltaNetConfig;
use models::gru::GruConfig;
use models::mingru::MinGruConfig;
use models::minlstm::MinLstmConfig;
use models::ops::delta::{self, DeltaRule, DeltaRuleOp};
use models::ops::generalized_delta::{self, GeneralizedDelta, GeneralizedDeltaOp};
use models::ops::linear_recurrence::LinearRecurrenceOp;
use models::ops::{RecurrentWeights, SequenceOps, wkv};
use models::rwkv5::Rwkv5Config;
use models::rwkv6::Rwkv6Config;
use models::rwkv7::Rwkv7Config;
use models::{Cpu, Model, ModelConfig, ModelInput, Weights};

fn gru(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Gru(GruConfig { hidden_size, num_layers, dropout: 0.1 })
}

fn mingru(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Mingru(MinGruConfig { hidden_size, num_layers, dropout: 0.1 })
}

fn deltanet(hidden_size: usize, num_layers: usize, head_size: usize) -> ModelConfig {
    let negative_eigenvalues = true;
    ModelConfig::Deltanet(DeltaNetConfig { hidden_size, num_layers, head_size, negative_eigenvalues, dropout: 0.1 })
}

fn minlstm(hidden_size: usize, num_layers: usize) -> ModelConfig {
    ModelConfig::Minlstm(MinLstmConfig { hidden_size, num_layers, dropout: 0.1 })
}

fn all() -> [ModelConfig; 7] {
    let (hidden_size, num_layers, head_size, dropout) = (32, 2, 8, 0.1);
    [
        gru(hidden_size, num_layers),
        mingru(hidden_size, num_layers),
        minlstm(hidden_size, num_layers),
        deltanet(hidden_size, num_layers, head_size),
        ModelConfig::Rwkv5(Rwkv5Config { hidden_size, num_layers, head_size, dropout }),
        ModelConfig::Rwkv6(Rwkv6Config { hidden_size, num_layers, head_size, dropout }),
        ModelConfig::Rwkv7(Rwkv7Config { hidden_size, num_layers, head_size, dropout, ..Default::default() }),
    ]
}

// Operations ----------------------------------------------------------------------------------------------------------

/// Powers of two and their neighbours, primes, and more than one chunk.
const SHAPES: [[usize; 4]; 8] = [
    [1, 1, 1, 1],
    [2, 1, 2, 3],
    [1, 3, 3, 2],
    [2, 2, 7, 4],
    [1, 1, 64, 2],
    [1, 2, 127, 3],
    [1, 1, 128, 2],
    [2, 1, 300, 3],
];

type Attention<B> = fn(&[Tensor<B, 1>], [usize; 4], bool) -> [Tensor<B, 1>; 2];

/// Flat arguments of both: q or r, k, v, decay, then the bonus or the step, then the state.
fn arguments(shape: [usize; 4], value: usize, fourth: usize, fifth: usize) -> Vec<Vec<f64>> {
    let [batch, heads, seq, key] = shape;
    let rows = batch * heads * seq;
    let sizes = [rows * key, rows * key, rows * value, fourth, fifth, batch * heads * key * value];
    let mut all: Vec<Vec<f64>> = sizes.iter().zip(0..).map(|(&n, i)| random(n, 1.0, i)).collect();
    // decays as they occur: exp(−exp(w))
    all[3].iter_mut().for_each(|w| *w = (-(4.0 * *w - 2.0).exp()).exp());
    all
}

fn wkv_arguments(shape: [usize; 4]) -> Vec<Vec<f64>> {
    let [batch, heads, seq, size] = shape;
    arguments(shape, size, batch * heads * seq * size, heads * size)
}

/// How long the values of the delta rule are: shorter than the keys, as long, or longer.
fn value_size([_, heads, seq, key]: [usize; 4]) -> usize {
    (key + (heads + seq) % 3).saturating_sub(1).max(1)
}

/// Steps 0 … 2 and keys of length 1, some of which repeat.
fn delta_arguments(shape: [usize; 4]) -> Vec<Vec<f64>> {
    let [batch, heads, seq, size] = shape;
    let mut all = arguments(shape, value_size(shape), batch * heads * seq, batch * heads * seq);
    all[4].iter_mut().for_each(|step| *step += 1.0);
    let keys: Vec<Vec<f64>> = all[1].chunks(size).map(<[f64]>::to_vec).collect();
    for (i, key) in all[1].chunks_mut(size).enumerate() {
        let given = &keys[if i % 3 == 0 { 0 } else { i }];
        let length = given.iter().map(|k| k * k).sum::<f64>().sqrt();
        key.iter_mut().zip(given).for_each(|(key, given)| *key = given / length);
    }
    all
}

/// As for the delta rule, but that a share of what a key reads, of every channel its own, is removed.
fn generalized_arguments(shape: [usize; 4]) -> Vec<Vec<f64>> {
    let [batch, heads, seq, size] = shape;
    let mut all = arguments(shape, value_size(shape), batch * heads * seq * size, batch * heads * seq * size);
    let state = all.pop().unwrap_or_default();
    let keys = all[4].clone();
    let unit = keys.chunks(size).flat_map(|key| {
        let length = key.iter().map(|k| k * k).sum::<f64>().sqrt();
        key.iter().map(move |k| k / length)
    });
    all[4] = unit.collect();
    let rates = random(keys.len(), 0.5, 6);
    all.push(all[4].iter().zip(rates).map(|(key, rate)| key * (rate + 0.5)).collect());
    all.push(state);
    all
}

fn wkv_by<B: Backend>(
    a: &[Tensor<B, 1>],
    shape: [usize; 4],
    with_state: bool,
    op: impl Fn([Tensor<B, 4>; 4], Tensor<B, 2>, Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>),
) -> [Tensor<B, 1>; 2] {
    let [batch, heads, _, size] = shape;
    let sequences = [0, 1, 2, 3].map(|i: usize| a[i].clone().reshape(shape));
    let state = with_state.then(|| a[5].clone().reshape([batch, heads, size, size]));
    let (y, state) = op(sequences, a[4].clone().reshape([heads, size]), state);
    assert_eq!(y.dims(), shape);
    [y.reshape([-1]), state.reshape([-1])]
}

fn delta_by<B: Backend>(
    a: &[Tensor<B, 1>],
    shape: [usize; 4],
    with_state: bool,
    op: impl Fn(DeltaRule<B>, Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>),
) -> [Tensor<B, 1>; 2] {
    let ([batch, heads, seq, key], value) = (shape, value_size(shape));
    let [q, k] = [0, 1].map(|i: usize| a[i].clone().reshape(shape));
    let v = a[2].clone().reshape([batch, heads, seq, value]);
    let [decay, step] = [3, 4].map(|i: usize| a[i].clone().reshape([batch, heads, seq]));
    let state = with_state.then(|| a[5].clone().reshape([batch, heads, key, value]));
    let (y, state) = op(DeltaRule { q, k, v, step, decay }, state);
    assert_eq!(y.dims(), [batch, heads, seq, value]);
    assert_eq!(state.dims(), [batch, heads, key, value]);
    [y.reshape([-1]), state.reshape([-1])]
}

fn fast_wkv<B: SequenceOps>(a: &[Tensor<B, 1>], shape: [usize; 4], with_state: bool) -> [Tensor<B, 1>; 2] {
    wkv_by(a, shape, with_state, |[r, k, v, decay], bonus, state| B::wkv(r, k, v, decay, bonus, state))
}

fn defined_wkv<B: Backend>(a: &[Tensor<B, 1>], shape: [usize; 4], with_state: bool) -> [Tensor<B, 1>; 2] {
    wkv_by(a, shape, with_state, |[r, k, v, decay], bonus, state| wkv::recurrent(r, k, v, decay, bonus, state))
}

fn fast_delta<B: SequenceOps>(a: &[Tensor<B, 1>], shape: [usize; 4], with_state: bool) -> [Tensor<B, 1>; 2] {
    delta_by(a, shape, with_state, B::delta_rule)
}

fn defined_delta<B: Backend>(a: &[Tensor<B, 1>], shape: [usize; 4], with_state: bool) -> [Tensor<B, 1>; 2] {
    delta_by(a, shape, with_state, delta::recurrent)
}

fn generalized_by<B: Backend>(
    a: &[Tensor<B, 1>],
    shape: [usize; 4],
    with_state: bool,
    op: impl Fn(GeneralizedDelta<B>, Option<Tensor<B, 4>>) -> (Tensor<B, 4>, Tensor<B, 4>),
) -> [Tensor<B, 1>; 2] {
    let ([batch, heads, seq, key], value) = (shape, value_size(shape));
    let [q, k, decay] = [0, 1, 3].map(|i: usize| a[i].clone().reshape(shape));
    let [removed, under] = [4, 5].map(|i: usize| a[i].clone().reshape(shape));
    let v = a[2].clone().reshape([batch, heads, seq, value]);
    let state = with_state.then(|| a[6].clone().reshape([batch, heads, key, value]));
    let (y, state) = op(GeneralizedDelta { q, k, v, decay, removed, under }, state);
    assert_eq!(y.dims(), [batch, heads, seq, value]);
    assert_eq!(state.dims(), [batch, heads, key, value]);
    [y.reshape([-1]), state.reshape([-1])]
}

fn fast_generalized<B: SequenceOps>(a: &[Tensor<B, 1>], shape: [usize; 4], with_state: bool) -> [Tensor<B, 1>; 2] {
    generalized_by(a, shape, with_state, B::generalized_delta)
}

fn defined_generalized<B: Backend>(a: &[Tensor<B, 1>], shape: [usize; 4], with_state: bool) -> [Tensor<B, 1>; 2] {
    generalized_by(a, shape, with_state, generalized_delta::recurrent)
}

fn assert_equal(what: &str, fast: Attention<Cpu>, defined: Attention<Cpu>, a: &[Vec<f64>], shape: [usize; 4]) {
    let a: Vec<Tensor<Cpu, 1>> = a.iter().map(|a| tensor(a, [a.len()])).collect();
    for with_state in [false, true] {
        let [fast, defined] = [fast, defined].map(|op| op(&a, shape, with_state).map(flat));
        for (fast, defined) in fast.iter().zip(&defined) {
            let difference = difference(fast, defined);
            assert!(difference < 1e-11, "{what} {shape:?}, state {with_state}: {difference:e}");
        }
    }
}

#[test]
fn fast_recurrences_are_the_defined_ones() {
    for shape in SHAPES {
        assert_equal("wkv", fast_wkv, defined_wkv, &wkv_arguments(shape), shape);
        assert_equal("delta rule", fast_delta, defined_delta, &delta_arguments(shape), shape);
        let arguments = generalized_arguments(shape);
        assert_equal("generalised delta rule", fast_generalized, defined_generalized, &arguments, shape);
    }
}

#[test]
fn extreme_decays_are_exact() {
    let shape = [1, 1, 200, 4];
    for (name, decay) in [("forget all", 0.0), ("forget nothing", 1.0), ("below the smallest number", 1e-300)] {
        for (arguments, fast, defined) in [
            (wkv_arguments(shape), fast_wkv as Attention<Cpu>, defined_wkv as Attention<Cpu>),
            (delta_arguments(shape), fast_delta, defined_delta),
            (generalized_arguments(shape), fast_generalized, defined_generalized),
        ] {
            let mut a = arguments;
            a[3].fill(decay);
            // now and then a step that does the opposite
            a[3].iter_mut().step_by(7).for_each(|d| *d = 1.0 - *d);
            assert_equal(name, fast, defined, &a, shape);
        }
    }
}

/// One key over and over, corrected by twice the error each time: the memory of it flips its sign at every step. In
/// float32, where sums of powers of the recurrence's matrix would be lost.
#[test]
fn the_delta_rule_flips_what_it_knows() {
    let (seq, size) = (200, 4);
    let single = |values: Vec<f32>, shape: [usize; 4]| {
        Tensor::<Cpu, 4>::from_data(TensorData::new(values, shape), &Default::default())
    };
    let key: Vec<f32> = (0..seq).flat_map(|_| [0.5; 4]).collect();
    let keys = single(key, [1, 1, seq, size]);
    let inputs = DeltaRule {
        q: keys.clone(),
        k: keys.clone(),
        v: keys.zeros_like(),
        step: Tensor::full([1, 1, seq], 2.0, &Default::default()),
        decay: Tensor::ones([1, 1, seq], &Default::default()),
    };
    let state = single(vec![0.5; size * size], [1, 1, size, size]); // gives (1, 1, 1, 1) for the key
    let (y, _) = Cpu::delta_rule(inputs, Some(state));
    for (t, y) in flat(y).chunks(size).enumerate() {
        let sign = if t % 2 == 0 { -1.0 } else { 1.0 };
        assert!(y.iter().all(|y| (y - sign).abs() < 1e-4), "{t}: {y:?}");
    }
}

/// Where the same key reads and writes, with the step as the rate, the generalised rule is the delta rule.
#[test]
fn the_generalized_delta_rule_contains_the_delta_rule() {
    let shape = [2, 3, 37, 5];
    let a: Vec<Tensor<Cpu, 1>> = delta_arguments(shape).iter().map(|a| tensor(a, [a.len()])).collect();
    let [known, known_state] = defined_delta(&a, shape, true);
    let generalized = |DeltaRule { q, k, v, step, decay }: DeltaRule<Cpu>, state| {
        let [step, decay] = [step, decay].map(|x| x.unsqueeze_dim::<4>(3).expand(k.dims()));
        let removed = decay.clone() * k.clone();
        let k = step * k;
        Cpu::generalized_delta(GeneralizedDelta { q, under: k.clone(), v, k, removed, decay }, state)
    };
    let [found, state] = delta_by(&a, shape, true, generalized);
    assert!(difference(&flat(known), &flat(found)) < 1e-11);
    assert!(difference(&flat(known_state), &flat(state)) < 1e-11);
}

#[test]
fn gradients_of_the_recurrences_are_their_derivatives() {
    for shape in [[1, 1, 1, 2], [2, 1, 3, 2], [1, 2, 6, 2]] {
        let what = format!("wkv {shape:?}");
        check_gradients(&what, &wkv_arguments(shape), |a| Tensor::cat(fast_wkv(&a, shape, true).to_vec(), 0));
        let what = format!("delta rule {shape:?}");
        check_gradients(&what, &delta_arguments(shape), |a| Tensor::cat(fast_delta(&a, shape, true).to_vec(), 0));
        let what = format!("generalised delta rule {shape:?}");
        check_gradients(&what, &generalized_arguments(shape), |a| {
            Tensor::cat(fast_generalized(&a, shape, true).to_vec(), 0)
        });
        let [batch, _, seq, channels] = shape;
        let n = batch * seq * channels;
        let a: Vec<Vec<f64>> = [n, n, batch * channels].iter().zip(0..).map(|(&n, i)| random(n, 1.0, i)).collect();
        check_gradients(&format!("linear recurrence {shape:?}"), &a, |x| {
            let [a, b] = [0, 1].map(|i: usize| x[i].clone().reshape([batch, seq, channels]));
            let (y, last) = Training::linear_recurrence(a, b, Some(x[2].clone().reshape([batch, channels])));
            Tensor::cat(vec![y.reshape([-1]), last.reshape([-1])], 0)
        });
    }
}

/// Input, weights and state of a GRU layer from 3 to 2 channels.
fn gru_layer<B: SequenceOps>(a: &[Tensor<B, 1>], [batch, seq]: [usize; 2]) -> [Tensor<B, 1>; 2] {
    let weights = RecurrentWeights {
        weight_ih: a[1].clone().reshape([6, 3]),
        weight_hh: a[2].clone().reshape([6, 2]),
        bias_ih: a[3].clone(),
        bias_hh: a[4].clone(),
    };
    let x = a[0].clone().reshape([batch, seq, 3]);
    let (y, last) = B::gru_layer(x, weights, Some(a[5].clone().reshape([batch, 2])));
    [y.reshape([-1]), last.reshape([-1])]
}

fn gru_arguments([batch, seq]: [usize; 2]) -> Vec<Vec<f64>> {
    [batch * seq * 3, 18, 12, 6, 6, batch * 2].iter().zip(0..).map(|(&n, i)| random(n, 1.0, i)).collect()
}

#[test]
fn gradients_of_the_gru_are_its_derivatives() {
    for shape in [[1, 1], [2, 3], [1, 7]] {
        check_gradients(&format!("gru_layer {shape:?}"), &gru_arguments(shape), |a| {
            Tensor::cat(gru_layer(&a, shape).to_vec(), 0)
        });
    }
}

/// Written out with scalars, as PyTorch documents it.
#[test]
fn the_gru_is_that_of_pytorch() {
    let seq = 5;
    let a = gru_arguments([1, seq]);
    let tensors: Vec<Tensor<Cpu, 1>> = a.iter().map(|a| tensor(a, [a.len()])).collect();
    let [found, _] = gru_layer(&tensors, [1, seq]).map(flat);
    let [x, w, v, b, c, h] = &a[..] else { panic!() };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut h = [h[0], h[1]];
    for (t, found) in found.chunks(2).enumerate() {
        let input = |row: usize| b[row] + (0..3).map(|j| w[3 * row + j] * x[3 * t + j]).sum::<f64>();
        let before = h;
        let state = |row: usize| c[row] + (0..2).map(|j| v[2 * row + j] * before[j]).sum::<f64>();
        for i in 0..2 {
            let r = sigmoid(input(i) + state(i));
            let z = sigmoid(input(2 + i) + state(2 + i));
            let n = (input(4 + i) + r * state(4 + i)).tanh();
            h[i] = (1.0 - z) * n + z * before[i];
        }
        assert!(difference(found, &h) < 1e-12, "step {t}: {found:?}, not {h:?}");
    }
}

// Models --------------------------------------------------------------------------------------------------------------

/// Counted by hand, for width 128 and 13 tokens.
#[test]
fn parameter_counts_are_those_of_the_formulas() {
    let (h, v) = (128, 13);
    let tables = 2 * v * h; // embedding and decoder
    let mlp = 4 * h * (h + 1) + h * (4 * h + 1);
    let count = |config: ModelConfig| config.init::<Cpu>(v, 0, &Default::default()).num_params();
    for layers in [1, 3] {
        assert_eq!(count(gru(h, layers)), tables + layers * (2 * 3 * h * h + 2 * 3 * h));
        let mixer = 2 * 2 * h * (h + 1) + h * (2 * h + 1);
        assert_eq!(count(mingru(h, layers)), tables + layers * (mixer + mlp + 4 * h) + 2 * h);
        let mixer = 3 * 2 * h * (h + 1) + h * (2 * h + 1);
        assert_eq!(count(minlstm(h, layers)), tables + layers * (mixer + mlp + 4 * h) + 2 * h);
        let mixer = 5 * h * h + 2 * 2 * h + 2 * 2 + 64; // five square matrices, two rows per head, two numbers per head
        assert_eq!(count(deltanet(h, layers, 64)), tables + layers * (mixer + mlp + 4 * h) + 2 * h);
    }
}

/// Logits of pieces of `size` tokens, each from the state after the one before it, or from none.
fn in_pieces<S>(
    ids: &[i64],
    size: usize,
    carry: bool,
    forward_from: impl Fn(ModelInput<Cpu>, Option<S>) -> (Tensor<Cpu, 3>, S),
) -> Vec<f64> {
    let mut state = None;
    let mut logits = vec![];
    for piece in ids.chunks(size) {
        let (out, after) = forward_from(input(piece), state.take().filter(|_| carry));
        logits.extend(flat(out));
        state = Some(after);
    }
    logits
}

#[test]
fn pieces_with_the_state_carried_over_equal_the_whole() {
    let ids = ids(200);
    for config in all() {
        let model = shaken(&config);
        let whole = flat(model.forward(input(&ids)));
        let pieces = |size, carry| match &model {
            Model::Gru(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Mingru(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Minlstm(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Deltanet(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Rwkv5(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Rwkv6(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Rwkv7(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            other => panic!("{other:?}"),
        };
        for size in [1, 7, 64] {
            let change = difference(&whole, &pieces(size, true));
            assert!(change < 2e-5, "{config:?}: pieces of {size} differ by {change}");
        }
        let change = difference(&whole, &pieces(64, false));
        assert!(change > 1e-2, "{config:?}: the state must matter, and does by only {change}");
    }
}

#[test]
fn a_gru_is_called_as_in_pytorch() {
    let names = Weights::of(&fresh(&gru(8, 1))).unwrap();
    assert!(names.get("gru.weight_ih_l0").is_some());
}

#[test]
fn heads_must_divide_the_width() {
    for size in [0, 48] {
        assert_eq!(deltanet(64, 1, size).validate().unwrap_err().key, "head_size");
    }
    for config in all() {
        config.validate().unwrap();
    }
}

/// Down to −1 only with the option: steps are 2σ or σ.
#[test]
fn steps_are_doubled_for_negative_eigenvalues() {
    let config = |negative_eigenvalues| DeltaNetConfig { negative_eigenvalues, ..Default::default() };
    assert_eq!([true, false].map(|negative| config(negative).largest_step()), [2.0, 1.0]);
}
