//! The GPU kernels of a backend against the references in float64 on the CPU: outputs and every gradient, at awkward
//! sizes.
#![allow(dead_code)] // each test uses a part

#[path = "kernels.rs"]
mod kernels;

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use kernels::{Argument, Flat, UNIT, compare, draw, flat, results};
use models::ops::delta::{self, DeltaRule};
use models::ops::gelu::GeluOp;
use models::ops::generalized_delta::{self, GeneralizedDelta};
use models::ops::recurrent::{gru_reference, lstm_reference, rnn_reference};
use models::ops::scan::{self, SelectiveScan};
use models::ops::slstm::{self, SlstmState};
use models::ops::{
    LayerInput, RecurrentWeights, SequenceOps, linear_recurrence as linear, recurrent as layers, wkv as matrix,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};

type Exact = kernels::Training;

/// Every new size is compiled by itself.
const CASES: u32 = 8;

/// Compares a kernel with its reference, and with itself.
fn check<B: SequenceOps>(
    what: &str,
    arguments: &[Argument],
    kernel: impl Fn(&[Flat<Autodiff<B>>]) -> Vec<Flat<Autodiff<B>>>,
    reference: impl Fn(&[Flat<Exact>]) -> Vec<Flat<Exact>>,
) {
    let arguments = draw(arguments);
    let found = results::<Autodiff<B>>(&arguments, DType::F32, &kernel);
    assert_eq!(found, results::<Autodiff<B>>(&arguments, DType::F32, &kernel), "{what}: not the same twice");
    compare(what, arguments.len(), 1e-2, &found, &results(&arguments, DType::F64, reference));
}

/// Runs `test` on the sizes that models have, and on a few awkward ones.
fn on_shapes<S: Strategy>(usual: S::Value, shapes: S, test: impl Fn(S::Value)) {
    test(usual);
    let config = Config { failure_persistence: None, ..Config::with_cases(CASES) };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let tested = TestRunner::new_with_rng(config, rng).run(&shapes, |shape| {
        test(shape);
        Ok(())
    });
    tested.unwrap();
}

pub fn selective_scan<B: SequenceOps>() {
    let shapes = (1..4usize, 1..40usize, 1..150usize, 1..20usize, any::<bool>(), any::<bool>());
    on_shapes((2, 33, 64, 16, false, false), shapes, |(batch, seq, channels, state, given, negative)| {
        let (wide, narrow) = (batch * seq * channels, batch * seq * state);
        let arguments = [
            (wide, UNIT),
            (wide, [-8.0, 2.0]),
            (channels, UNIT),
            (channels * state, [-4.0, -0.1]),
            (narrow, UNIT),
            (narrow, UNIT),
            (channels, UNIT),
            (wide, [-3.0, 3.0]),
            (batch * channels * state, UNIT),
        ];
        type Inputs<B> = (SelectiveScan<B>, Option<Tensor<B, 3>>);
        fn inputs<B: Backend>(
            a: &[Flat<B>],
            [batch, seq, channels, state]: [usize; 4],
            negative_eigenvalues: bool,
        ) -> Inputs<B> {
            let [u, delta, z] = [0, 1, 7].map(|i: usize| a[i].clone().reshape([batch, seq, channels]));
            let [b, c] = [4, 5].map(|i: usize| a[i].clone().reshape([batch, seq, state]));
            let (delta_bias, d, matrix) = (a[2].clone(), a[6].clone(), a[3].clone().reshape([channels, state]));
            let h = a.get(8).map(|h| h.clone().reshape([batch, channels, state]));
            (SelectiveScan { u, delta, delta_bias, a: matrix, b, c, d, z, negative_eigenvalues }, h)
        }
        let shape = [batch, seq, channels, state];
        check::<B>(
            &format!("selective scan {shape:?}, negative eigenvalues: {negative}"),
            &arguments[..if given { 9 } else { 8 }],
            |a| {
                let (inputs, h) = inputs(a, shape, negative);
                let (y, last) = scan::cpu::selective_scan(&inputs, h.as_ref()).expect("a kernel");
                vec![flat(y), flat(last)]
            },
            |a| {
                let (inputs, h) = inputs(a, shape, negative);
                let (y, last) = scan::reference(inputs, h);
                vec![flat(y), flat(last)]
            },
        );
    });
}

pub fn wkv<B: SequenceOps>() {
    let shapes = (1..4usize, 1..4usize, 1..40usize, 1..20usize, any::<bool>(), any::<bool>());
    on_shapes((1, 2, 20, 64, true, false), shapes, |(batch, heads, seq, size, steady, given)| {
        let n = batch * heads * seq * size;
        let decay = if steady { heads * size } else { n };
        let state = batch * heads * size * size;
        let arguments = [(n, UNIT), (n, UNIT), (n, UNIT), (decay, [0.0, 1.0]), (heads * size, UNIT), (state, UNIT)];
        type Inputs<B> = ([Tensor<B, 4>; 4], Tensor<B, 2>, Option<Tensor<B, 4>>);
        let decay = if steady { [1, heads, 1, size] } else { [batch, heads, seq, size] };
        fn inputs<B: Backend>(a: &[Flat<B>], shape: [usize; 4], decay: [usize; 4]) -> Inputs<B> {
            let [batch, heads, _, size] = shape;
            let [r, k, v] = [0, 1, 2].map(|i: usize| a[i].clone().reshape(shape));
            let state = a.get(5).map(|state| state.clone().reshape([batch, heads, size, size]));
            ([r, k, v, a[3].clone().reshape(decay)], a[4].clone().reshape([heads, size]), state)
        }
        let shape = [batch, heads, seq, size];
        check::<B>(
            &format!("wkv {shape:?}"),
            &arguments[..if given { 6 } else { 5 }],
            |a| {
                let (inputs, bonus, state) = inputs(a, shape, decay);
                let (y, last) = matrix::cpu::wkv(inputs.each_ref(), &bonus, state.as_ref()).expect("a kernel");
                vec![flat(y), flat(last)]
            },
            |a| {
                let ([r, k, v, decay], bonus, state) = inputs(a, shape, decay);
                let (y, last) = matrix::recurrent(r, k, v, decay, bonus, state);
                vec![flat(y), flat(last)]
            },
        );
    });
}

pub fn generalized_delta<B: SequenceOps>() {
    let shapes = (1..4usize, 1..4usize, 1..40usize, 1..20usize, 1..20usize, any::<bool>());
    on_shapes((1, 2, 20, 64, 64, false), shapes, |(batch, heads, seq, key, value, given)| {
        let (keys, values) = (batch * heads * seq * key, batch * heads * seq * value);
        // removals of small keys: the matrix stays of the size of what is written
        let small = [-1.0, 1.0].map(|x: f64| x / (key as f64).sqrt());
        let arguments = [
            (keys, UNIT),
            (keys, UNIT),
            (keys, [0.0, 1.0]),
            (keys, small),
            (keys, small),
            (values, UNIT),
            (batch * heads * key * value, UNIT),
        ];
        fn inputs<B: Backend>(a: &[Flat<B>], shape: [usize; 5]) -> (GeneralizedDelta<B>, Option<Tensor<B, 4>>) {
            let [batch, heads, seq, key, value] = shape;
            let keys = |i: usize| a[i].clone().reshape([batch, heads, seq, key]);
            let v = a[5].clone().reshape([batch, heads, seq, value]);
            let inputs =
                GeneralizedDelta { q: keys(0), k: keys(1), v, decay: keys(2), removed: keys(3), under: keys(4) };
            (inputs, a.get(6).map(|state| state.clone().reshape([batch, heads, key, value])))
        }
        let shape = [batch, heads, seq, key, value];
        check::<B>(
            &format!("generalised delta rule {shape:?}"),
            &arguments[..if given { 7 } else { 6 }],
            |a| {
                let (inputs, state) = inputs(a, shape);
                let (y, last) = generalized_delta::cpu::generalized_delta(&inputs, state.as_ref()).expect("a kernel");
                vec![flat(y), flat(last)]
            },
            |a| {
                let (inputs, state) = inputs(a, shape);
                let (y, last) = generalized_delta::recurrent(inputs, state);
                vec![flat(y), flat(last)]
            },
        );
    });
}

pub fn slstm<B: SequenceOps>() {
    let shapes = (1..4usize, 1..4usize, 1..20usize, 1..20usize, any::<bool>());
    on_shapes((2, 4, 16, 16, false), shapes, |(batch, heads, seq, size, given)| {
        let hidden = heads * size;
        let small = [-1.0, 1.0].map(|x: f64| x / (size as f64).sqrt());
        let arguments = [(batch * seq * 4 * hidden, [-2.0, 2.0]), (heads * 4 * size * size, small)];
        let shape = [batch, heads, seq, size];
        fn inputs<B: Backend>(a: &[Flat<B>], [batch, heads, seq, size]: [usize; 4]) -> [Tensor<B, 3>; 2] {
            [a[0].clone().reshape([batch, seq, 4 * heads * size]), a[1].clone().reshape([heads, 4 * size, size])]
        }
        // no gradient belongs to a state
        fn state<B: Backend>(like: &Flat<B>, [batch, heads, _, size]: [usize; 4]) -> SlstmState<B> {
            let part = |by: f32, least: f32| {
                let values: Vec<f32> = (0..batch * heads * size).map(|i| least + (i as f32 * by).sin().abs()).collect();
                let data = TensorData::new(values, [batch, heads * size]);
                Tensor::from_data(data, (&like.device(), like.dtype()))
            };
            SlstmState { y: part(0.3, -0.5), c: part(0.7, -0.5), n: part(1.1, 0.5), m: part(1.3, -0.5) }
        }
        check::<B>(
            &format!("slstm {shape:?}"),
            &arguments,
            |a| {
                let [gates, recurrent] = inputs(a, shape);
                let before = given.then(|| state(&a[0], shape));
                let (y, _) = slstm::cpu::slstm(&gates, &recurrent, before.as_ref()).expect("a kernel");
                vec![flat(y)]
            },
            |a| {
                let [gates, recurrent] = inputs(a, shape);
                let (y, _) = slstm::reference(gates, recurrent, given.then(|| state(&a[0], shape)));
                vec![flat(y)]
            },
        );
    });
}

/// By way of the generalised rule.
pub fn delta_rule<B: SequenceOps>() {
    let shapes = (1..4usize, 1..4usize, 1..40usize, 1..20usize, 1..20usize, any::<bool>());
    on_shapes((1, 2, 20, 48, 96, false), shapes, |(batch, heads, seq, key, value, given)| {
        let (keys, values, steps) = (batch * heads * seq * key, batch * heads * seq * value, batch * heads * seq);
        let unit = [-1.0, 1.0].map(|x: f64| x / (key as f64).sqrt());
        let arguments = [
            (keys, UNIT),
            (keys, unit),
            (values, UNIT),
            (steps, [0.0, 2.0]),
            (steps, [0.0, 1.0]),
            (batch * heads * key * value, UNIT),
        ];
        fn inputs<B: Backend>(a: &[Flat<B>], shape: [usize; 5]) -> (DeltaRule<B>, Option<Tensor<B, 4>>) {
            let [batch, heads, seq, key, value] = shape;
            let [q, k] = [0, 1].map(|i: usize| a[i].clone().reshape([batch, heads, seq, key]));
            let [step, decay] = [3, 4].map(|i: usize| a[i].clone().reshape([batch, heads, seq]));
            let inputs = DeltaRule { q, k, v: a[2].clone().reshape([batch, heads, seq, value]), step, decay };
            (inputs, a.get(5).map(|state| state.clone().reshape([batch, heads, key, value])))
        }
        let shape = [batch, heads, seq, key, value];
        check::<B>(
            &format!("delta rule {shape:?}"),
            &arguments[..if given { 6 } else { 5 }],
            |a| {
                let (inputs, state) = inputs(a, shape);
                let (y, last) = delta::generalized(&inputs, state.as_ref()).expect("a kernel");
                vec![flat(y), flat(last)]
            },
            |a| {
                let (inputs, state) = inputs(a, shape);
                let (y, last) = delta::recurrent(inputs, state);
                vec![flat(y), flat(last)]
            },
        );
    });
}

pub fn linear_recurrence<B: SequenceOps>() {
    let shapes = (1..4usize, 1..40usize, 1..150usize, any::<bool>());
    on_shapes((2, 33, 64, false), shapes, |(batch, seq, channels, given)| {
        let n = batch * seq * channels;
        let arguments = [(n, [0.0, 1.0]), (n, UNIT), (batch * channels, UNIT)];
        type Inputs<B> = ([Tensor<B, 3>; 2], Option<Tensor<B, 2>>);
        fn inputs<B: Backend>(x: &[Flat<B>], [batch, seq, channels]: [usize; 3]) -> Inputs<B> {
            let h = x.get(2).map(|h| h.clone().reshape([batch, channels]));
            ([0, 1].map(|i: usize| x[i].clone().reshape([batch, seq, channels])), h)
        }
        let shape = [batch, seq, channels];
        check::<B>(
            &format!("linear recurrence {shape:?}"),
            &arguments[..if given { 3 } else { 2 }],
            |x| {
                let ([a, b], h) = inputs(x, shape);
                let (states, last) = linear::cpu::linear_recurrence(&a, &b, h.as_ref()).expect("a kernel");
                vec![flat(states), flat(last)]
            },
            |x| {
                let ([a, b], h) = inputs(x, shape);
                let (states, last) = linear::reference(a, b, h);
                vec![flat(states), flat(last)]
            },
        );
    });
}

/// A layer with `gates` and `states`, from rows and from an embedding.
#[allow(clippy::type_complexity)] // the two functions
fn recurrent<B: SequenceOps>(
    what: &str,
    [gates, states]: [usize; 2],
    kernel: fn(
        &LayerInput<Autodiff<B>>,
        RecurrentWeights<Autodiff<B>>,
        Vec<Tensor<Autodiff<B>, 2>>,
    ) -> Vec<Flat<Autodiff<B>>>,
    reference: fn(Tensor<Exact, 3>, RecurrentWeights<Exact>, Vec<Tensor<Exact, 2>>) -> Vec<Flat<Exact>>,
) {
    const VOCAB: usize = 3;
    let shapes = (1..4usize, 1..12usize, 1..6usize, 1..80usize, any::<bool>(), any::<bool>());
    on_shapes((2, 10, 128, 128, true, false), shapes, |(batch, seq, input, hidden, embedded, given)| {
        let rows = if embedded { VOCAB } else { batch * seq };
        let arguments = [
            (rows * input, UNIT),
            (gates * hidden * input, UNIT),
            (gates * hidden * hidden, [-1.0, 1.0].map(|x: f64| x / (hidden as f64).sqrt())),
            (gates * hidden, UNIT),
            (gates * hidden, UNIT),
            (batch * hidden, UNIT),
            (batch * hidden, UNIT),
        ];
        fn layer_input<B: Backend>(a: &[Flat<B>], [batch, seq, input]: [usize; 3], embedded: bool) -> LayerInput<B> {
            if !embedded {
                return a[0].clone().reshape([batch, seq, input]).into();
            }
            let ids: Vec<i64> = (0..batch * seq).map(|i| (i * i + i / 3) as i64 % VOCAB as i64).collect();
            let ids = Tensor::from_data(TensorData::new(ids, [batch, seq]), &a[0].device());
            LayerInput::Embedded { table: a[0].clone().reshape([VOCAB, input]), ids }
        }
        fn weights<B: Backend>(a: &[Flat<B>], hidden: usize) -> RecurrentWeights<B> {
            let rows = a[3].dims()[0];
            RecurrentWeights {
                weight_ih: a[1].clone().reshape([rows, a[1].dims()[0] / rows]),
                weight_hh: a[2].clone().reshape([rows, hidden]),
                bias_ih: a[3].clone(),
                bias_hh: a[4].clone(),
            }
        }
        fn state<B: Backend>(a: &[Flat<B>], batch: usize) -> Vec<Tensor<B, 2>> {
            a[5..].iter().map(|x| x.clone().reshape([batch as i64, -1])).collect()
        }
        check::<B>(
            &format!("{what} [{batch}, {seq}, {input}] -> {hidden}"),
            &arguments[..5 + if given { states } else { 0 }],
            |a| kernel(&layer_input(a, [batch, seq, input], embedded), weights(a, hidden), state(a, batch)),
            |a| reference(layer_input(a, [batch, seq, input], embedded).rows(), weights(a, hidden), state(a, batch)),
        );
    });
}

pub fn rnn<B: SequenceOps>() {
    recurrent::<B>(
        "rnn",
        [1, 1],
        |x, weights, state| {
            let (y, h) = layers::cpu::rnn_layer(x, &weights, state.first()).expect("a kernel");
            vec![flat(y), flat(h)]
        },
        |x, weights, state| {
            let (y, h) = rnn_reference(x, weights, state.first().cloned());
            vec![flat(y), flat(h)]
        },
    );
}

pub fn lstm<B: SequenceOps>() {
    fn pair<B: Backend>(state: Vec<Tensor<B, 2>>) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        Some((state.first()?.clone(), state.get(1)?.clone()))
    }
    recurrent::<B>(
        "lstm",
        [4, 2],
        |x, weights, state| {
            let (y, (h, c)) = layers::cpu::lstm_layer(x, &weights, pair(state).as_ref()).expect("a kernel");
            vec![flat(y), flat(h), flat(c)]
        },
        |x, weights, state| {
            let (y, (h, c)) = lstm_reference(x, weights, pair(state));
            vec![flat(y), flat(h), flat(c)]
        },
    );
}

pub fn gru<B: SequenceOps>() {
    recurrent::<B>(
        "gru",
        [3, 1],
        |x, weights, state| {
            let (y, h) = layers::cpu::gru_layer(x, &weights, state.first()).expect("a kernel");
            vec![flat(y), flat(h)]
        },
        |x, weights, state| {
            let (y, h) = gru_reference(x, weights, state.first().cloned());
            vec![flat(y), flat(h)]
        },
    );
}

pub fn exact_gelu<B: SequenceOps>() {
    on_shapes((2, 33, 64), (1..4usize, 1..40usize, 1..150usize), |(batch, seq, channels)| {
        let shape = [batch, seq, channels];
        check::<B>(
            &format!("exact gelu {shape:?}"),
            &[(shape.iter().product(), [-4.0, 4.0])],
            |x| vec![flat(Autodiff::<B>::exact_gelu(x[0].clone().reshape(shape)))],
            |x| vec![flat(burn::tensor::activation::gelu(x[0].clone().reshape(shape)))], // exact on the CPU
        );
    });
}
