//! Checks in float64: the gradient of every operation of `models::ops` against difference quotients, and the
//! reference models to within a few units of rounding.
//!
//! The float type is a setting of the device for the whole process, so these tests have a program of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod reference;

use burn::prelude::*;
use burn::tensor::{FloatDType, IntDType, TensorData, set_default_dtypes};
use common::{Training, random};
use models::Cpu;
use models::ops::attention::{self, AttentionOptions, KeyMask};
use models::ops::by_distance::ByDistanceOp;
use models::ops::causal_convolution::CausalConvolutionOp;
use models::ops::contextual_positions::ContextualPositionsOp;
use models::ops::recurrent::{RecurrentOps, RecurrentWeights};
use models::ops::s4_kernel::{S4Kernel, S4KernelOp};
use models::ops::scan::{SelectiveScan, SelectiveScanOp};
use reference::parity::Tolerance;
use std::sync::Once;

type Flat = Tensor<Training, 1>;

/// The CPU, computing in float64.
fn device() -> <Training as burn::tensor::backend::BackendTypes>::Device {
    static FLOAT64: Once = Once::new();
    let device = Default::default();
    FLOAT64.call_once(|| set_default_dtypes::<Cpu>(&device, FloatDType::F64, IntDType::I32).unwrap());
    device
}

// Operations ----------------------------------------------------------------------------------------------------------

/// Third derivatives are below 50 here, and gradients of size 0.1 to 5: see [`common::check_gradients_within`].
fn check_gradient(what: &str, arguments: &[Vec<f64>], f: impl Fn(Vec<Flat>) -> Flat) {
    device();
    common::check_gradients_within(2e-9, what, arguments, f);
}

/// Batch and length.
const SHAPES: [(usize, usize); 5] = [(1, 1), (1, 5), (3, 1), (2, 3), (1, 7)];

/// Input, weights and state of a recurrent layer from 3 to 2 channels.
fn recurrent_arguments(gates: usize, batch: usize, seq: usize, states: usize) -> Vec<Vec<f64>> {
    let rows = gates * 2;
    let sizes = [batch * seq * 3, rows * 3, rows * 2, rows, rows].into_iter().chain(vec![batch * 2; states]);
    sizes.enumerate().map(|(i, n)| random(n, 0.8, i as u64)).collect()
}

fn recurrent_weights(gates: usize, arguments: &[Flat]) -> RecurrentWeights<Training> {
    let rows = gates * 2;
    RecurrentWeights {
        weight_ih: arguments[1].clone().reshape([rows, 3]),
        weight_hh: arguments[2].clone().reshape([rows, 2]),
        bias_ih: arguments[3].clone(),
        bias_hh: arguments[4].clone(),
    }
}

#[test]
fn rnn_layer() {
    for (batch, seq) in SHAPES {
        let what = format!("rnn_layer, batch {batch}, seq {seq}");
        check_gradient(&what, &recurrent_arguments(1, batch, seq, 1), |a| {
            let (x, h) = (a[0].clone().reshape([batch, seq, 3]), a[5].clone().reshape([batch, 2]));
            let (out, h) = Training::rnn_layer(x, recurrent_weights(1, &a), Some(h));
            Tensor::cat(vec![out.reshape([-1]), h.reshape([-1])], 0)
        });
    }
}

#[test]
fn lstm_layer() {
    for (batch, seq) in SHAPES {
        let what = format!("lstm_layer, batch {batch}, seq {seq}");
        check_gradient(&what, &recurrent_arguments(4, batch, seq, 2), |a| {
            let [h, c] = [5, 6].map(|i: usize| a[i].clone().reshape([batch, 2]));
            let x = a[0].clone().reshape([batch, seq, 3]);
            let (out, (h, c)) = Training::lstm_layer(x, recurrent_weights(4, &a), Some((h, c)));
            Tensor::cat(vec![out.reshape([-1]), h.reshape([-1]), c.reshape([-1])], 0)
        });
    }
}

#[test]
fn causal_attention() {
    let (heads, dim) = (2, 3);
    for (batch, seq) in SHAPES {
        // The first key stays: a query without any allowed key is settled by rounding, which has no derivative.
        let hide = |i: usize| if i % seq % 3 == 1 { 0.0 } else { 1.0 };
        let hidden: Vec<f64> = (0..batch * seq).map(hide).collect();
        for identity in [None, Some(false), Some(true)] {
            let what = format!("causal_attention, batch {batch}, seq {seq}, mask with identity {identity:?}");
            let arguments: Vec<Vec<f64>> = (0..3).map(|i| random(batch * heads * seq * dim, 1.0, i)).collect();
            // A bias for each head of each example, one for the heads of all, and one for everything.
            for shape in [None, Some([batch, heads]), Some([1, heads]), Some([1, 1])] {
                let bias = shape.map(|[examples, heads]| random(examples * heads * seq * seq, 1.0, 3));
                let arguments: Vec<Vec<f64>> = arguments.iter().cloned().chain(bias).collect();
                check_gradient(&format!("{what}, bias {shape:?}"), &arguments, |a| {
                    let [q, k, v] = [0, 1, 2].map(|i: usize| a[i].clone().reshape([batch, heads, seq, dim]));
                    let mask = identity.map(|identity| {
                        let keys = Flat::from_data(TensorData::from(&hidden[..]), &device()).reshape([batch, seq]);
                        KeyMask { keys, identity }
                    });
                    let bias = shape.map(|[examples, heads]| a[3].clone().reshape([examples, heads, seq, seq]));
                    let options = AttentionOptions { bias, mask, ..AttentionOptions::new(heads, 0.7) };
                    attention::probabilities(q, k, &options).matmul(v).reshape([-1])
                });
            }
        }
    }
}

#[test]
fn by_distance() {
    for (heads, seq) in SHAPES {
        check_gradient(&format!("by_distance, {heads} × {seq}"), &[random(heads * seq, 1.0, 0)], |a| {
            Training::by_distance(a[0].clone().reshape([heads, seq])).reshape([-1])
        });
    }
}

#[test]
fn contextual_positions() {
    let heads = 2;
    // The last position is reached in the longer sequences, or never.
    for ((batch, seq), positions) in SHAPES.into_iter().flat_map(|shape| [(shape, 1), (shape, 3), (shape, 9)]) {
        let hidden: Vec<f64> = (0..batch * seq).map(|i| if i % seq % 3 == 1 { 0.0 } else { 1.0 }).collect();
        for identity in [None, Some(false), Some(true)] {
            let what = format!("contextual_positions, {batch} × {seq}, {positions} positions, identity {identity:?}");
            let rows = batch * heads * seq;
            let arguments = [random(rows * seq, 1.0, 0), random(rows * positions, 1.0, 1)];
            check_gradient(&what, &arguments, |a| {
                let mask = identity.map(|identity| {
                    let keys = Flat::from_data(TensorData::from(&hidden[..]), &device()).reshape([batch, seq]);
                    KeyMask { keys, identity }
                });
                let logits = a[0].clone().reshape([batch, heads, seq, seq]);
                let by_position = a[1].clone().reshape([batch, heads, seq, positions]);
                Training::contextual_positions(logits, by_position, mask.as_ref()).reshape([-1])
            });
        }
    }
}

#[test]
fn s4_kernel() {
    let (hidden, modes) = (2, 2);
    let pairs = hidden * modes * 2;
    let sizes = [hidden, hidden * modes, hidden * modes, pairs, pairs, pairs];
    let arguments: Vec<Vec<f64>> = (0u64..).zip(sizes).map(|(i, n)| random(n, 0.8, i)).collect();
    // shorter than the stored kernel, as long, and so long that it is doubled once and twice; odd and even
    for (l_kernel, length) in [(7, 1), (7, 5), (8, 8), (7, 9), (6, 20)] {
        check_gradient(&format!("s4_kernel, {length} of {l_kernel}"), &arguments, |a| {
            let pair = |i: usize| a[i].clone().reshape([1, hidden, modes, 2]);
            let kernel = S4Kernel {
                inv_dt: a[0].clone().reshape([hidden, 1]),
                a_real: a[1].clone().reshape([hidden, modes]),
                a_imag: a[2].clone().reshape([hidden, modes]),
                b: pair(3),
                c: pair(4),
                p: pair(5),
                l_kernel,
            };
            Training::s4_kernel(kernel, length).reshape([-1])
        });
    }
}

#[test]
fn causal_convolution() {
    let hidden = 2;
    for (batch, seq) in SHAPES {
        let arguments = [random(batch * seq * hidden, 1.0, 0), random(seq * hidden, 1.0, 1)];
        check_gradient(&format!("causal_convolution, batch {batch}, seq {seq}"), &arguments, |a| {
            let (u, k) = (a[0].clone().reshape([batch, seq, hidden]), a[1].clone().reshape([hidden, seq]));
            Training::causal_convolution(u, k).reshape([-1])
        });
    }
    // two blocks and a rest; few coordinates, for each takes four evaluations
    let seq = 130;
    let u = random(seq, 0.3, 2);
    check_gradient("causal_convolution over several blocks", &[random(seq, 0.3, 3)], |a| {
        let u = Flat::from_data(TensorData::from(&u[..]), &device()).reshape([1, seq, 1]);
        Training::causal_convolution(u, a[0].clone().reshape([1, seq])).reshape([-1])
    });
}

#[test]
fn selective_scan() {
    let (channels, state) = (3, 2);
    for ((batch, seq), negative_eigenvalues) in SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let (x, gate) = (batch * seq * channels, batch * seq * state);
        let sizes = [x, x, channels * state, gate, gate, batch * channels * state, channels, channels, x];
        let arguments: Vec<Vec<f64>> = (0u64..).zip(sizes).map(|(i, n)| random(n, 0.8, i)).collect();
        check_gradient(&format!("selective_scan, batch {batch}, seq {seq}"), &arguments, |a| {
            let inputs = SelectiveScan {
                u: a[0].clone().reshape([batch, seq, channels]),
                delta: a[1].clone().reshape([batch, seq, channels]),
                a: a[2].clone().reshape([channels, state]) - 1.0,
                b: a[3].clone().reshape([batch, seq, state]),
                c: a[4].clone().reshape([batch, seq, state]),
                delta_bias: a[6].clone(),
                d: a[7].clone(),
                z: a[8].clone().reshape([batch, seq, channels]),
                negative_eigenvalues,
            };
            let h = a[5].clone().reshape([batch, channels, state]);
            let (y, h) = Training::selective_scan(inputs, Some(h));
            Tensor::cat(vec![y.reshape([-1]), h.reshape([-1])], 0)
        });
    }
}

// Models --------------------------------------------------------------------------------------------------------------

/// Gradients are compared after rounding each number to float32.
const FLOAT64: Tolerance = Tolerance { logits: 1e-12, relative: 1e-7 };

macro_rules! parity {
    ($($name:ident)*) => {
        $(#[test]
        #[allow(non_snake_case)] // as the folders are called
        fn $name() {
            reference::parity::check::<Training>(stringify!($name), &device(), &FLOAT64);
        })*
    };
}

parity! {
    rnn lstm s4 mamba
    rwkv5 rwkv5_x052 rwkv5_bf16ckpt rwkv7 rwkv7_small rwkv7_saved_while_training
    transformer_nope transformer_ape_shift transformer_sinusoidal_shift transformer_rope_shift transformer_spe
    transformer_padhelper_rope
    transformer_alibi transformer_t5 transformer_kerple transformer_fire transformer_cope transformer_ssmax
    transformer_fire_L64 transformer_kerple_clamped transformer_cope_npos8 transformer_logn transformer_logn_clip
    options_alibi options_t5 options_kerple options_fire options_cope options_ssmax options_logn options_logn_clip
    options_windows options_encoder options_both_ways
    gated_deltanet gated_deltaproduct_n2
    gated_deltanet_bare gated_deltanet_shared gated_deltaproduct_small gated_deltaproduct_steady
    hybrid_griffin hybrid_jamba minlstm_small looped looped_injected
    options_absolute_frozen options_identity options_tied options_null options_scales
    options_rnn_tied options_rnn_null options_lstm_tied options_lstm_null
}
