//! Gated linear attention, the models made of it, and xLSTM: the operation against its definition, states, sizes.

use crate::common::{Training, check_gradients, difference, flat, ids, input, random, shaken};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use models::gla::GlaConfig;
use models::hgrn2::Hgrn2Config;
use models::mamba2::Mamba2Config;
use models::ops::gated_linear_attention::{GatedLinearAttention, GatedLinearAttentionOp, blocks, recurrent};
use models::ops::slstm::{self, SlstmOp, SlstmState};
use models::ops::ssd::{self, Divisor, Normalised, Ssd, SsdOp};
use models::xlstm::XlstmConfig;
use models::{Architecture, Cpu, Model, ModelConfig, ModelInput};

/// [batch, heads, seq, key, value]: square states, and blocks of them side by side, with and without filling.
const SHAPES: [[usize; 5]; 8] = [
    [1, 1, 1, 1, 1],
    [2, 2, 7, 4, 4],
    [1, 3, 20, 2, 4],
    [2, 1, 19, 6, 3],
    [1, 2, 33, 5, 3],
    [1, 1, 40, 3, 8],
    [2, 2, 17, 1, 5],
    [1, 2, 130, 8, 4],
];

fn arguments([batch, heads, seq, key, value]: [usize; 5], per_head: bool) -> Vec<Vec<f64>> {
    let n = batch * heads * seq;
    let decays = random(n * if per_head { 1 } else { key }, 1.0, 4).into_iter().map(|x| 1.0 / (1.0 + (-3.0 * x).exp()));
    vec![
        random(n * key, 1.0, 1),
        random(n * key, 1.0, 2),
        random(n * value, 1.0, 3),
        decays.collect(),
        random(batch * heads * key * value, 1.0, 5),
    ]
}

fn inputs<B: Backend>(
    a: &[Tensor<B, 1>],
    [batch, heads, seq, key, value]: [usize; 5],
    per_head: bool,
) -> (GatedLinearAttention<B>, Tensor<B, 4>) {
    let shaped = |x: &Tensor<B, 1>, size: usize| x.clone().reshape([batch, seq, heads, size]);
    let inputs = GatedLinearAttention {
        q: shaped(&a[0], key),
        k: shaped(&a[1], key),
        v: shaped(&a[2], value),
        decay: shaped(&a[3], if per_head { 1 } else { key }),
    };
    (inputs, a[4].clone().reshape([batch, heads, key, value]))
}

fn single(values: &[f64]) -> Tensor<Cpu, 1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (&Default::default(), DType::F32))
}

#[test]
fn kernel_and_blocks_equal_the_definition_at_every_shape() {
    for shape in SHAPES {
        for (per_head, given) in [(false, true), (true, false)] {
            let tensors: Vec<Tensor<Cpu, 1>> = arguments(shape, per_head).iter().map(|x| single(x)).collect();
            let (inputs, state) = inputs(&tensors, shape, per_head);
            let state = given.then_some(state);
            let (expected_y, expected_last) = recurrent(inputs.clone(), state.clone());
            // (Blocks twice where a head has one decay: the kernel of that is `ssd`'s.)
            for op in [blocks, Cpu::gated_linear_attention] {
                let (y, last) = op(inputs.clone(), state.clone());
                assert_eq!((y.dims(), last.dims()), (expected_y.dims(), expected_last.dims()), "{shape:?}");
                let [y, last] = [(y, &expected_y), (last, &expected_last)]
                    .map(|(found, expected)| difference(&flat(found), &flat(expected.clone())));
                assert!(y.max(last) < 1e-5, "{shape:?}, per head {per_head}: {y} {last}");
            }
        }
    }
}

/// Heads that share queries and keys: 1, 2, 3 and 12 of them, of which at most 8 are computed together.
const SHARED: [([usize; 5], usize); 7] = [
    ([1, 1, 1, 1, 1], 1),
    ([2, 4, 7, 4, 4], 2),
    ([1, 3, 20, 2, 4], 1),
    ([2, 2, 65, 6, 3], 2),
    ([1, 12, 33, 5, 3], 1),
    ([2, 2, 128, 17, 5], 1),
    ([1, 2, 150, 8, 20], 2),
];

/// q, k, v, decays (zeros among them), what is written, a state, skips, normalisers, and the least divisors.
fn ssd_arguments([batch, heads, seq, key, value]: [usize; 5], sharing: usize) -> Vec<Vec<f64>> {
    let (steps, shared) = (batch * seq * heads, batch * seq * sharing);
    let mut decays: Vec<f64> = random(steps, 1.0, 4).into_iter().map(|x| 1.0 / (1.0 + (-3.0 * x).exp())).collect();
    decays.iter_mut().step_by(5).for_each(|decay| *decay = 0.0);
    vec![
        random(shared * key, 1.0, 1),
        random(shared * key, 1.0, 2),
        random(steps * value, 1.0, 3),
        decays,
        random(steps, 1.0, 7),
        random(batch * heads * key * value, 1.0, 5),
        random(heads, 1.0, 8),
        random(batch * heads * key, 1.0, 6),
        random(steps, 0.5, 9).into_iter().map(|x| x + 0.6).collect(),
    ]
}

/// Both operations, by kernels or by the definition: their outputs and last states, one after another.
fn both_ssds<B: SsdOp>(
    kernels: bool,
    a: &[Tensor<B, 1>],
    ([batch, heads, seq, key, value], sharing): ([usize; 5], usize),
    given: bool,
) -> [Tensor<B, 1>; 2] {
    let headed = |x: &Tensor<B, 1>, heads: usize, size: usize| x.clone().reshape([batch, seq, heads, size]);
    let steps = |x: &Tensor<B, 1>| x.clone().reshape([batch, seq, heads]);
    let inputs = Ssd {
        q: headed(&a[0], sharing, key),
        k: headed(&a[1], sharing, key),
        v: headed(&a[2], heads, value),
        decay: steps(&a[3]),
        write: steps(&a[4]),
    };
    let state = given.then(|| a[5].clone().reshape([batch, heads, key, value]));
    let both = state.clone().map(|state| (state, a[7].clone().reshape([batch, heads, key])));
    let divisor = Divisor { least: steps(&a[8]), epsilon: 1e-6 };
    let (skipped, normalised) = match kernels {
        true => (B::ssd(inputs.clone(), a[6].clone(), state), B::normalised_ssd(inputs, divisor, both)),
        false => (
            ssd::reference(inputs.clone(), a[6].clone(), state, recurrent),
            ssd::normalised_reference(inputs, divisor, both, recurrent),
        ),
    };
    let Normalised { y, state, normaliser } = normalised;
    let normalised = vec![y.flatten::<1>(0, 3), state.flatten(0, 3), normaliser.flatten(0, 2)];
    let skipped = vec![skipped.0.flatten::<1>(0, 3), skipped.1.flatten(0, 3)];
    [skipped, normalised].map(|parts| Tensor::cat(parts, 0))
}

#[test]
fn one_decay_per_head_and_its_gradients_equal_the_definition_at_every_shape() {
    for (i, size) in SHARED.into_iter().enumerate() {
        let arguments = ssd_arguments(size.0, size.1);
        let run = |kernels, operation: usize, weights: Option<&Tensor<Training, 1>>| {
            let tensors: Vec<Tensor<Training, 1>> =
                arguments.iter().map(|x| Tensor::from_inner(single(x)).require_grad()).collect();
            let [skipped, normalised] = both_ssds(kernels, &tensors, size, i % 2 == 0);
            let outputs = if operation == 0 { skipped } else { normalised };
            let weights = weights.cloned().unwrap_or_else(|| outputs.clone().sin().detach());
            let gradients = (outputs.clone() * weights.clone()).sum().backward();
            let gradients = tensors.iter().map(|x| x.grad(&gradients).map(flat)).collect::<Vec<_>>();
            (weights, flat(outputs.inner()), gradients)
        };
        for operation in [0, 1] {
            let (weights, expected, expected_gradients) = run(false, operation, None);
            let (_, found, gradients) = run(true, operation, Some(&weights));
            let scale = |x: &[f64]| x.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
            assert!(difference(&found, &expected) < 1e-5 * scale(&expected), "{size:?}, operation {operation}");
            for (argument, pair) in gradients.iter().zip(&expected_gradients).enumerate() {
                let (Some(found), Some(expected)) = pair else {
                    assert!(pair.0.is_none() && pair.1.is_none(), "{size:?}, {operation}: argument {argument}");
                    continue;
                };
                let change = difference(found, expected) / scale(expected);
                assert!(change < 2e-5, "{size:?}, operation {operation}, argument {argument}: {change}");
            }
        }
    }
}

#[test]
fn an_exhausted_decay_leaves_nothing_of_what_was_before() {
    // All decays zero: only a step's own key and value are read.
    let size = ([1, 1, 70, 3, 2], 1);
    let mut arguments = ssd_arguments(size.0, size.1);
    arguments[3].fill(0.0);
    let tensors: Vec<Tensor<Cpu, 1>> = arguments.iter().map(|x| single(x)).collect();
    let [skipped, _] = both_ssds(true, &tensors, size, true);
    let found = flat(skipped);
    for t in 0..70 {
        let dot: f64 = (0..3).map(|i| arguments[0][3 * t + i] * arguments[1][3 * t + i]).sum();
        for i in 0..2 {
            let expected = (dot * arguments[4][t] + arguments[6][0]) * arguments[2][2 * t + i];
            assert!((found[2 * t + i] - expected).abs() < 1e-5, "step {t}");
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for (shape, per_head) in [([1, 2, 5, 4, 2], false), ([2, 1, 6, 3, 5], true)] {
        check_gradients("gated linear attention", &arguments(shape, per_head), |a| {
            let (inputs, state) = inputs(&a, shape, per_head);
            let (y, last) = blocks(inputs, Some(state));
            Tensor::cat(vec![y.flatten::<1>(0, 3), last.flatten::<1>(0, 3)], 0)
        });
    }
}

#[test]
fn the_slstms_kernel_leaves_the_states_of_the_definition_behind() {
    for [batch, seq, heads, size] in [[1, 1, 1, 1], [2, 5, 2, 3], [1, 9, 3, 16], [2, 4, 1, 19]] {
        let hidden = heads * size;
        let values = |n: usize, bound, index| single(&random(n, bound, index));
        let gates = values(batch * seq * 4 * hidden, 3.0, 1).reshape([batch, seq, 4 * hidden]);
        let recurrent = values(heads * 4 * size * size, 0.5, 2).reshape([heads, 4 * size, size]);
        let mut states: [Option<SlstmState<Cpu>>; 2] = [None, None];
        for _ in 0..2 {
            let (y, after) = Cpu::slstm(gates.clone(), recurrent.clone(), states[0].take());
            let (expected_y, expected) = slstm::reference(gates.clone(), recurrent.clone(), states[1].take());
            let mut change = difference(&flat(y), &flat(expected_y));
            for (found, expected) in
                [(&after.y, &expected.y), (&after.c, &expected.c), (&after.n, &expected.n), (&after.m, &expected.m)]
            {
                change = change.max(difference(&flat(found.clone()), &flat(expected.clone())));
            }
            assert!(change < 1e-5, "{batch} {seq} {heads} {size}: {change}");
            states = [Some(after), Some(expected)];
        }
    }
}

#[test]
fn the_slstms_gradients_equal_finite_differences() {
    let (batch, seq, heads, size) = (2, 4, 2, 2);
    let arguments = vec![random(batch * seq * 16, 1.0, 1), random(heads * 4 * size * size, 0.7, 2)];
    check_gradients("slstm", &arguments, |a| {
        let gates = a[0].clone().reshape([batch, seq, 16]);
        let (y, _) = slstm::reference(gates, a[1].clone().reshape([heads, 4 * size, size]), None);
        y.flatten::<1>(0, 2)
    });
}

/// Counted by hand, for width 64 and 13 tokens.
#[test]
fn parameter_counts_are_those_of_the_formulas() {
    let (h, v, inner) = (64, 13, 96);
    let count = |config: ModelConfig| config.init::<Cpu>(v, 0, &Default::default()).num_params();
    for layers in [1, 3] {
        let around = 2 * v * h + h + layers * (2 * h + 3 * h * inner);
        let gla = GlaConfig { hidden_size: h, num_layers: layers, intermediate_size: inner, ..Default::default() };
        // q and k half as wide; v, gate and output; decays of rank 16 with a bias; a norm of one head
        let mixer = h * h + 3 * h * h + 16 * h + 16 * h / 2 + h / 2 + h / 4;
        assert_eq!(count(ModelConfig::Gla(gla)), around + layers * mixer);
        let hgrn2 = Hgrn2Config { hidden_size: h, num_layers: layers, intermediate_size: inner, ..Default::default() };
        assert_eq!(count(ModelConfig::Hgrn2(hgrn2)), around + layers * (4 * h * h + h + h));
        let mamba2 = Mamba2Config { hidden_size: h, num_layers: layers, state_size: 16, ..Default::default() };
        let convolved = 2 * h + 2 * 16;
        let mixer = h * (2 * h + convolved + 2) + 5 * convolved + 3 * 2 + 2 * h + 2 * h * h;
        assert_eq!(count(ModelConfig::Mamba2(mamba2)), v * h + h + layers * (mixer + h));
    }
    let xlstm = XlstmConfig { hidden_size: h, num_layers: 2, slstm_at: vec![1], ..Default::default() };
    let slstm = 4 * h * h / 4 + 4 * h * h / 4 + 4 * h + 5 * h + h + h + h + (2 * 128 * h + 128 * h);
    let inner = 2 * h;
    let mlstm = 2 * inner * h + 3 * 4 * inner + 5 * inner + 2 * 4 * (3 * inner + 1) + inner + inner + inner * h + h;
    assert_eq!(count(ModelConfig::Xlstm(xlstm)), 2 * v * h + h + slstm + mlstm);
    let chosen = GlaConfig { hidden_size: 128, ..Default::default() }.sizes().intermediate;
    assert_eq!(chosen, 512, "341 rounded up to a multiple of 256");
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
    let ids = ids(150);
    let configs =
        ModelConfig::examples().into_iter().filter(|c| ["gla", "hgrn2", "mamba2", "xlstm"].contains(&c.arch()));
    for config in configs {
        let model = shaken(&config);
        let whole = flat(model.forward(input(&ids)));
        let pieces = |size, carry| match &model {
            Model::Gla(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Hgrn2(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Mamba2(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            Model::Xlstm(m) => in_pieces(&ids, size, carry, |x, state| m.forward_from(x, state)),
            other => panic!("{other:?}"),
        };
        for size in [1, 7, 64] {
            let change = difference(&whole, &pieces(size, true));
            assert!(change < 2e-5, "{config:?}: pieces of {size} differ by {change}");
        }
        let change = difference(&whole, &pieces(64, false));
        assert!(change > 1e-3, "{config:?}: the state must matter, and does by only {change}");
    }
}

#[test]
fn sizes_that_do_not_divide_are_refused_by_name() {
    let gla = GlaConfig { hidden_size: 12, num_heads: 2, ..Default::default() };
    for (config, key) in [
        (GlaConfig { num_heads: 5, ..gla.clone() }, "expand_k"),
        (GlaConfig { expand_v: 0.3, ..gla.clone() }, "expand_v"),
        (GlaConfig { num_kv_heads: 3, ..gla.clone() }, "num_kv_heads"),
        (GlaConfig { num_heads: 0, ..gla.clone() }, "num_heads"),
        (GlaConfig { conv_kernel: 1, ..gla.clone() }, "conv_kernel"),
        (GlaConfig { norm_epsilon: 0.0, ..gla }, "norm_epsilon"),
    ] {
        assert_eq!(config.check_settings().unwrap_err().key, key, "{config:?}");
    }
    let hgrn2 = Hgrn2Config { hidden_size: 12, expand_ratio: 5, ..Default::default() };
    assert_eq!(hgrn2.check_settings().unwrap_err().key, "expand_ratio");
    let mamba2 = Mamba2Config { hidden_size: 12, head_size: 6, ..Default::default() };
    for (config, key) in [
        (Mamba2Config { head_size: 7, ..mamba2.clone() }, "head_size"),
        (Mamba2Config { num_groups: 3, ..mamba2.clone() }, "num_groups"),
        (Mamba2Config { conv_kernel: 1, ..mamba2 }, "conv_kernel"),
    ] {
        assert_eq!(config.check_settings().unwrap_err().key, key, "{config:?}");
    }
}
