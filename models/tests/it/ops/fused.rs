//! The CPU kernels of recurrent layers against the references: outputs and all gradients, at any size, with any number
//! of threads.

use crate::common::cpu;
use crate::common::kernels::{Flat, Training, UNIT};
use crate::common::{random, tensor};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use models::ops::recurrent::{RecurrentOps, gru_reference, lstm_reference, rnn_reference};
use models::ops::{LayerInput, RecurrentWeights};
use proptest::prelude::*;

type Tensors = Vec<Flat>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Layer {
    Rnn,
    Lstm,
    Gru,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    layer: Layer,
    batch: usize,
    seq: usize,
    input: usize,
    hidden: usize,
    state: bool,
    /// The input is an embedding of so many tokens.
    vocab: Option<usize>,
    /// The inputs of the loss: the outputs, the last state, or both.
    outputs: bool,
    last: bool,
}

impl Case {
    fn gates(self) -> usize {
        match self.layer {
            Layer::Rnn => 1,
            Layer::Lstm => 4,
            Layer::Gru => 3,
        }
    }

    fn lengths(self) -> Vec<usize> {
        let Case { batch, seq, input, hidden, .. } = self;
        let rows = self.gates() * hidden;
        let mut lengths = vec![self.vocab.unwrap_or(batch * seq) * input, rows * input, rows * hidden, rows, rows];
        let states = if self.layer == Layer::Lstm { 2 } else { 1 };
        lengths.extend(std::iter::repeat_n(batch * hidden, if self.state { states } else { 0 }));
        lengths
    }

    fn layer(self, inputs: Tensors, kernel: bool) -> Tensors {
        let Case { batch, seq, input, hidden, .. } = self;
        let rows = self.gates() * hidden;
        let shrink = 1.0 / (hidden as f64).sqrt();
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().unwrap();
        let x = next();
        let x = match self.vocab {
            None => LayerInput::Rows(x.reshape([batch, seq, input])),
            Some(vocab) => {
                let ids = (0..batch * seq).map(|i| (i * i + 3 * i / 2) as i64 % vocab as i64).collect::<Vec<_>>();
                let ids = Tensor::from_data(TensorData::new(ids, [batch, seq]), &Default::default());
                LayerInput::Embedded { table: x.reshape([vocab, input]), ids }
            }
        };
        let weights = RecurrentWeights {
            weight_ih: next().reshape([rows, input]) * shrink,
            weight_hh: next().reshape([rows, hidden]) * shrink,
            bias_ih: next(),
            bias_hh: next(),
        };
        let mut state = || self.state.then(|| next().reshape([batch, hidden]));
        let (outputs, last) = match (self.layer, kernel) {
            (Layer::Rnn, true) => Training::rnn_layer(x, weights, state()),
            (Layer::Rnn, false) => rnn_reference(x.rows(), weights, state()),
            (Layer::Gru, true) => Training::gru_layer(x, weights, state()),
            (Layer::Gru, false) => gru_reference(x.rows(), weights, state()),
            (Layer::Lstm, _) => {
                let state = state().map(|h| (h, state().unwrap()));
                let (y, (h, c)) = match kernel {
                    true => Training::lstm_layer(x, weights, state),
                    false => lstm_reference(x.rows(), weights, state),
                };
                (y, Tensor::cat(vec![h, c], 1))
            }
        };
        let parts = [self.outputs.then(|| outputs.flatten(0, 2)), self.last.then(|| last.flatten(0, 1))];
        parts.into_iter().flatten().collect()
    }

    fn check(self) {
        let arguments: Vec<_> = self.lengths().into_iter().map(|n| (n, UNIT)).collect();
        let run = |kernel| move |inputs: &[Flat]| self.layer(inputs.to_vec(), kernel);
        cpu::check(&format!("{self:?}"), 1e-3, &arguments, run(true), run(false));
    }
}

fn layers() -> impl Strategy<Value = Layer> {
    prop_oneof![Just(Layer::Rnn), Just(Layer::Lstm), Just(Layer::Gru)]
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (layers(), 1..20usize, 1..12usize, 1..20usize, 1..40usize);
    let vocab = prop::option::of(1..9usize);
    (sizes, any::<bool>(), vocab, 0..3usize).prop_map(|((layer, batch, seq, input, hidden), state, vocab, seen)| {
        let (outputs, last) = (seen != 1, seen != 0);
        Case { layer, batch, seq, input, hidden, state, vocab, outputs, last }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn recurrent_layers(case in cases()) {
        case.check();
    }
}

#[test]
fn recurrent_layers_of_one_and_of_many() {
    for layer in [Layer::Rnn, Layer::Lstm, Layer::Gru] {
        for (batch, seq, hidden) in [(1, 1, 1), (1, 33, 8), (33, 1, 17), (3, 40, 300)] {
            for state in [false, true] {
                Case { layer, batch, seq, input: 5, hidden, state, vocab: None, outputs: true, last: true }.check();
            }
        }
    }
}

/// Weights so large that the threads share them out at every time step.
#[test]
fn wide_recurrent_layers() {
    for (layer, hidden) in [(Layer::Rnn, 730), (Layer::Lstm, 370), (Layer::Gru, 430)] {
        for (batch, seq) in [(5, 4), (1, 3)] {
            let vocab = (batch > 1).then_some(3);
            Case { layer, batch, seq, input: 5, hidden, state: true, vocab, outputs: true, last: true }.check();
        }
    }
}

#[test]
fn weights_that_need_no_gradient_get_none() {
    let value = |n: usize, index| tensor::<Training, 1>(&random(n, 1.0, index), [n]).cast(DType::F32);
    let x = value(2 * 3 * 4, 0).reshape([2, 3, 4]).require_grad();
    let weights = RecurrentWeights {
        weight_ih: value(20, 1).reshape([5, 4]),
        weight_hh: value(25, 2).reshape([5, 5]),
        bias_ih: value(5, 3).require_grad(),
        bias_hh: value(5, 4),
    };
    let (y, _) = Training::rnn_layer(x.clone(), weights.clone(), None);
    let gradients = y.sum().backward();
    assert!(x.grad(&gradients).is_some() && weights.bias_ih.grad(&gradients).is_some());
    assert!(weights.weight_hh.grad(&gradients).is_none() && weights.bias_hh.grad(&gradients).is_none());
}
