//! The CPU's kernels of state spaces and linear recurrences against the references in float64: outputs and every
//! gradient, at awkward sizes, and to the last bit regardless of the number of threads.

use crate::common::cpu;
use crate::common::kernels::{Argument, Flat, Training, UNIT, flat};
use burn::prelude::*;
use burn::tensor::activation;
use burn::tensor::{DType, TensorData};
use models::ops::activation::{self as activations, Activation, ActivationOp};
use models::ops::causal_convolution::{self as convolution, CausalConvolutionOp};
use models::ops::delta::{self, DeltaRule, DeltaRuleOp};
use models::ops::dropout::{self as drop, DropoutOp, Mask};
use models::ops::gated::{self, Gate, GatedOp};
use models::ops::gated_linear_attention::{self, GatedLinearAttention, GatedLinearAttentionOp};
use models::ops::gelu::GeluOp;
use models::ops::generalized_delta::{self, GeneralizedDelta, GeneralizedDeltaOp};
use models::ops::head_scale::{self, HeadScaleOp};
use models::ops::headwise::{self, HeadwiseOp};
use models::ops::linear_recurrence::{self as linear, LinearRecurrenceOp};
use models::ops::norm::{self as norms, NormOp};
use models::ops::s4_kernel::{self as s4, S4Kernel, S4KernelOp};
use models::ops::scan::{self, SelectiveScan, SelectiveScanOp};
use models::ops::short_convolution::{self as short, ShortConvolutionOp};
use models::ops::slstm::{self, SlstmOp, SlstmState};
use models::ops::split::{self, SplitOp};
use models::ops::squared_relu::{self, SquaredReluOp};
use models::ops::ssd::{self, Divisor, Normalised, Ssd, SsdOp};
use models::ops::token_mix::{self as mix, TokenMixOps};
use models::ops::wkv::{self, WkvOp};
use proptest::prelude::*;

fn check(
    what: &str,
    arguments: &[Argument],
    kernel: impl Fn(&[Flat]) -> Vec<Flat> + Sync,
    reference: impl Fn(&[Flat]) -> Vec<Flat>,
) {
    cpu::check(what, 1e-2, arguments, kernel, reference);
}

/// Small and odd ones, and those that vectors fill.
fn sizes_of_heads() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1..20usize, 1 => Just(32usize), 1 => 40..70usize, 1 => Just(64usize)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn selective_scan(
        batch in 1..4usize,
        seq in 1..50usize,
        channels in 1..80usize,
        state in 1..20usize,
        given: bool,
        negative_eigenvalues: bool,
    ) {
        let (wide, narrow) = (batch * seq * channels, batch * seq * state);
        let arguments = [
            (wide, UNIT), (wide, [-4.0, 2.0]), (channels, UNIT), (channels * state, [-4.0, -0.1]), (narrow, UNIT),
            (narrow, UNIT), (channels, UNIT), (wide, [-3.0, 3.0]), (batch * channels * state, UNIT),
        ];
        let inputs = |a: &[Flat]| {
            let [u, delta, z] = [0, 1, 7].map(|i: usize| a[i].clone().reshape([batch, seq, channels]));
            let [b, c] = [4, 5].map(|i: usize| a[i].clone().reshape([batch, seq, state]));
            let (delta_bias, d, matrix) = (a[2].clone(), a[6].clone(), a[3].clone().reshape([channels, state]));
            let h = given.then(|| a[8].clone().reshape([batch, channels, state]));
            (SelectiveScan { u, delta, delta_bias, a: matrix, b, c, d, z, negative_eigenvalues }, h)
        };
        let run = |a: &[Flat], op: fn(SelectiveScan<Training>, Option<Tensor<Training, 3>>) -> _| {
            let (inputs, h) = inputs(a);
            let (y, last): (Tensor<Training, 3>, Tensor<Training, 3>) = op(inputs, h);
            vec![flat(y), flat(last)]
        };
        let arguments = &arguments[..if given { 9 } else { 8 }];
        check("scan", arguments, |a| run(a, Training::selective_scan), |a| run(a, scan::reference));
    }

    #[test]
    fn wkv(batch in 1..4usize, heads in 1..4usize, seq in 1..50usize, size in sizes_of_heads(), steady: bool, given: bool) {
        let n = batch * heads * seq * size;
        let decay = if steady { heads * size } else { n };
        let state = batch * heads * size * size;
        let arguments = [(n, UNIT), (n, UNIT), (n, UNIT), (decay, [0.0, 1.0]), (heads * size, UNIT), (state, UNIT)];
        let run = |a: &[Flat], fast: bool| {
            let [r, k, v] = [0, 1, 2].map(|i: usize| a[i].clone().reshape([batch, heads, seq, size]));
            let decay = a[3].clone().reshape(if steady { [1, heads, 1, size] } else { [batch, heads, seq, size] });
            let bonus = a[4].clone().reshape([heads, size]);
            let state = given.then(|| a[5].clone().reshape([batch, heads, size, size]));
            let op = if fast { Training::wkv } else { wkv::recurrent };
            let (y, last) = op(r, k, v, decay, bonus, state);
            vec![flat(y), flat(last)]
        };
        check("wkv", &arguments[..if given { 6 } else { 5 }], |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn slstm(batch in 1..4usize, heads in 1..4usize, seq in 1..30usize, size in sizes_of_heads(), given: bool) {
        let hidden = heads * size;
        let (n, states) = (batch * seq * 4 * hidden, batch * hidden);
        let short = [-1.0, 1.0].map(|x: f64| x / (size as f64).sqrt());
        let wide = [-3.0, 3.0];
        let arguments = [(n, wide), (heads * 4 * size * size, short)];
        // No gradients belong to states.
        let some = |i: usize, least: f32| -> Tensor<Training, 2> {
            let values: Vec<f32> = (0..states).map(|j| least + 0.4 * ((7 * j + 3 * i) as f32).sin()).collect();
            Tensor::from_data(TensorData::new(values, [batch, hidden]), (&Default::default(), DType::F32))
        };
        let run = |a: &[Flat], fast: bool| {
            let gates = a[0].clone().reshape([batch, seq, 4 * hidden]);
            let recurrent = a[1].clone().reshape([heads, 4 * size, size]);
            let dtype = gates.dtype();
            let state = given.then(|| {
                let [y, c, n, m] = [(0, 0.0), (1, 0.0), (2, 1.0), (3, 0.0)].map(|(i, least)| some(i, least).cast(dtype));
                SlstmState { y, c, n, m }
            });
            let op = if fast { Training::slstm } else { slstm::reference };
            let (y, _) = op(gates, recurrent, state);
            vec![flat(y)]
        };
        check("slstm", &arguments, |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn delta_rule(
        batch in 1..4usize,
        heads in 1..4usize,
        seq in 1..50usize,
        key in sizes_of_heads(),
        value in sizes_of_heads(),
        square: bool,
        given: bool,
    ) {
        let value = if square { key } else { value };
        let (rows, state) = (batch * heads * seq, batch * heads * key * value);
        let (keys, values) = (rows * key, rows * value);
        // Keys are short enough for the rule to contract.
        let short = [-1.0, 1.0].map(|x: f64| x / (key as f64).sqrt());
        let arguments =
            [(keys, UNIT), (keys, short), (values, UNIT), (rows, [0.0, 2.0]), (rows, [0.0, 1.0]), (state, UNIT)];
        let run = |a: &[Flat], op: fn(DeltaRule<Training>, Option<Tensor<Training, 4>>) -> _| {
            let [q, k] = [0, 1].map(|i: usize| a[i].clone().reshape([batch, heads, seq, key]));
            let v = a[2].clone().reshape([batch, heads, seq, value]);
            let [step, decay] = [3, 4].map(|i: usize| a[i].clone().reshape([batch, heads, seq]));
            let state = given.then(|| a[5].clone().reshape([batch, heads, key, value]));
            let (y, last): (Tensor<Training, 4>, Tensor<Training, 4>) = op(DeltaRule { q, k, v, step, decay }, state);
            vec![flat(y), flat(last)]
        };
        let arguments = &arguments[..if given { 6 } else { 5 }];
        check("delta rule", arguments, |a| run(a, Training::delta_rule), |a| run(a, delta::recurrent));
    }

    #[test]
    fn generalized_delta(
        batch in 1..4usize,
        heads in 1..4usize,
        seq in 1..50usize,
        key in sizes_of_heads(),
        value in sizes_of_heads(),
        square: bool,
        given: bool,
    ) {
        let value = if square { key } else { value };
        let (rows, state) = (batch * heads * seq, batch * heads * key * value);
        let (keys, values) = (rows * key, rows * value);
        // What is removed is short enough for the rule to contract.
        let short = [-1.0, 1.0].map(|x: f64| x / (key as f64).sqrt());
        let arguments =
            [(keys, UNIT), (keys, UNIT), (values, UNIT), (keys, [0.0, 1.0]), (keys, short), (keys, short), (state, UNIT)];
        let run = |a: &[Flat], op: fn(GeneralizedDelta<Training>, Option<Tensor<Training, 4>>) -> _| {
            let [q, k, decay] = [0, 1, 3].map(|i: usize| a[i].clone().reshape([batch, heads, seq, key]));
            let [removed, under] = [4, 5].map(|i: usize| a[i].clone().reshape([batch, heads, seq, key]));
            let v = a[2].clone().reshape([batch, heads, seq, value]);
            let state = given.then(|| a[6].clone().reshape([batch, heads, key, value]));
            let inputs = GeneralizedDelta { q, k, v, decay, removed, under };
            let (y, last): (Tensor<Training, 4>, Tensor<Training, 4>) = op(inputs, state);
            vec![flat(y), flat(last)]
        };
        let arguments = &arguments[..if given { 7 } else { 6 }];
        check(
            "generalised delta rule",
            arguments,
            |a| run(a, Training::generalized_delta),
            |a| run(a, generalized_delta::recurrent),
        );
    }

    #[test]
    fn gated_linear_attention(
        batch in 1..4usize,
        heads in 1..4usize,
        seq in 1..150usize,
        key in sizes_of_heads(),
        value in sizes_of_heads(),
        shared: [bool; 4],
        given: bool,
    ) {
        let state = batch * heads * key * value;
        // All may share one head, of which the state then has one too.
        prop_assume!(heads == 1 || shared.contains(&false));
        let [of_q, of_k, of_v, of_decay] = shared.map(|shared| if shared { 1 } else { heads });
        let rows = batch * seq;
        let arguments = [
            (rows * of_q * key, UNIT),
            (rows * of_k * key, UNIT),
            (rows * of_v * value, UNIT),
            (rows * of_decay * key, [0.0, 1.0]),
            (state, UNIT),
        ];
        let run = |a: &[Flat], op: fn(GatedLinearAttention<Training>, Option<Tensor<Training, 4>>) -> _| {
            let shaped = |i: usize, heads: usize, size: usize| a[i].clone().reshape([batch, seq, heads, size]);
            let inputs = GatedLinearAttention {
                q: shaped(0, of_q, key),
                k: shaped(1, of_k, key),
                v: shaped(2, of_v, value),
                decay: shaped(3, of_decay, key),
            };
            let state = given.then(|| a[4].clone().reshape([batch, heads, key, value]));
            let (y, last): (Tensor<Training, 4>, Tensor<Training, 4>) = op(inputs, state);
            vec![flat(y), flat(last)]
        };
        let arguments = &arguments[..if given { 5 } else { 4 }];
        check(
            "gated linear attention",
            arguments,
            |a| run(a, Training::gated_linear_attention),
            |a| run(a, gated_linear_attention::recurrent),
        );
    }

    /// 12 heads are more than are computed together.
    #[test]
    fn one_decay_per_head(
        batch in 1..4usize,
        [heads, sharing] in prop_oneof![Just([1usize, 1]), Just([3, 3]), Just([4, 2]), Just([3, 1]), Just([12, 1])],
        seq in 1..150usize,
        key in sizes_of_heads(),
        value in sizes_of_heads(),
        given: bool,
        normalised: bool,
    ) {
        let (shared, rows) = (batch * seq * sharing, batch * seq * heads);
        let arguments = [
            (shared * key, UNIT),
            (shared * key, UNIT),
            (rows * value, UNIT),
            (rows, [0.0, 1.0]),
            (rows, UNIT),
            if normalised { (rows, [0.5, 1.5]) } else { (heads, UNIT) },
            (batch * heads * key * value, UNIT),
            (batch * heads * key, UNIT),
        ];
        let run = |a: &[Flat], kernel: bool| {
            let headed = |i: usize, heads: usize, size: usize| a[i].clone().reshape([batch, seq, heads, size]);
            let steps = |i: usize| a[i].clone().reshape([batch, seq, heads]);
            let [q, k, v] = [headed(0, sharing, key), headed(1, sharing, key), headed(2, heads, value)];
            let inputs = Ssd { q, k, v, decay: steps(3), write: steps(4) };
            let state = given.then(|| a[6].clone().reshape([batch, heads, key, value]));
            let recurrent = gated_linear_attention::recurrent;
            if normalised {
                let state = state.map(|state| (state, a[7].clone().reshape([batch, heads, key])));
                let divisor = Divisor { least: steps(5), epsilon: 1e-6 };
                let Normalised { y, state, normaliser } = match kernel {
                    true => Training::normalised_ssd(inputs, divisor, state),
                    false => ssd::normalised_reference(inputs, divisor, state, recurrent),
                };
                return vec![flat(y), flat(state), flat(normaliser)];
            }
            let (y, last) = match kernel {
                true => Training::ssd(inputs, a[5].clone(), state),
                false => ssd::reference(inputs, a[5].clone(), state, recurrent),
            };
            vec![flat(y), flat(last)]
        };
        let count = if !given { 6 } else if normalised { 8 } else { 7 };
        check("one decay per head", &arguments[..count], |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn gated_sum(batch in 1..3usize, seq in 1..150usize, channels in 1..200usize) {
        let n = batch * seq * channels;
        let arguments = [(n, UNIT), (n, UNIT), (channels, UNIT), (n, [-3.0, 3.0])];
        type Op = fn(Tensor<Training, 3>, Tensor<Training, 3>, Tensor<Training, 1>, Tensor<Training, 3>) -> Tensor<Training, 3>;
        let run = |a: &[Flat], op: Op| {
            let [x, u, z] = [0, 1, 3].map(|i: usize| a[i].clone().reshape([batch, seq, channels]));
            vec![flat(op(x, u, a[2].clone(), z))]
        };
        check("gated sum", &arguments, |a| run(a, Training::gated_sum), |a| run(a, gated::sum_reference));
    }

    #[test]
    fn activation(n in 1..200usize, wide: bool) {
        let range = if wide { [-30.0, 30.0] } else { [-0.3, 0.3] };
        for activation in [Activation::Exp, Activation::LogSigmoid, Activation::Sigmoid, Activation::Silu, Activation::Tanh] {
            let range = if activation == Activation::Exp { [-30.0, 3.0] } else { range };
            let run = |a: &[Flat], op: fn(Tensor<Training, 3>, Activation) -> _| {
                let y: Tensor<Training, 3> = op(a[0].clone().reshape([1, n, 1]), activation);
                vec![flat(y)]
            };
            let what = format!("{activation:?}");
            check(&what, &[(n, range)], |a| run(a, Training::activation), |a| run(a, activations::reference));
        }
    }

    /// Not all of the parts have to be used.
    #[test]
    fn split(batch in 1..3usize, seq in 1..150usize, widths in [1..9usize, 1..9usize, 1..9usize], all: bool) {
        let channels = widths.iter().sum::<usize>();
        let run = |a: &[Flat], op: fn(Tensor<Training, 3>, [usize; 3]) -> _| {
            let [first, second, third]: [Tensor<Training, 3>; 3] = op(a[0].clone().reshape([batch, seq, channels]), widths);
            if all { vec![flat(first * 2.0), flat(second), flat(third)] } else { vec![flat(first)] }
        };
        check("split", &[(batch * seq * channels, UNIT)], |a| run(a, Training::split), |a| run(a, split::reference));
    }

    #[test]
    fn head_scale(batch in 1..3usize, seq in 1..150usize, heads in 1..4usize, size in sizes_of_heads()) {
        let rows = batch * seq * heads;
        let run = |a: &[Flat], op: fn(Tensor<Training, 4>, Tensor<Training, 3>) -> _| {
            let x = a[0].clone().reshape([batch, seq, heads, size]);
            let y: Tensor<Training, 4> = op(x, a[1].clone().reshape([batch, seq, heads]));
            vec![flat(y)]
        };
        let arguments = [(rows * size, UNIT), (rows, UNIT)];
        check("head_scale", &arguments, |a| run(a, Training::head_scale), |a| run(a, head_scale::reference));
    }

    /// Blocks of 4 × 4 have code of their own.
    #[test]
    fn headwise(
        batch in 1..3usize,
        seq in prop_oneof![1..20usize, Just(300usize)],
        groups in 1..9usize,
        [input, output] in prop_oneof![Just([4usize, 4]), [1..9usize, 1..9usize]],
    ) {
        let arguments = [(batch * seq * groups * input, UNIT), (groups * output * input, UNIT)];
        let run = |a: &[Flat], op: fn(Tensor<Training, 3>, Tensor<Training, 3>) -> _| {
            let x = a[0].clone().reshape([batch, seq, groups * input]);
            let y: Tensor<Training, 3> = op(x, a[1].clone().reshape([groups, output, input]));
            vec![flat(y)]
        };
        check("headwise", &arguments, |a| run(a, Training::headwise), |a| run(a, headwise::reference));
    }

    /// Both products, or the first alone.
    #[test]
    fn headwise_pair(
        batch in 1..3usize,
        seq in prop_oneof![1..20usize, Just(300usize)],
        groups in 1..9usize,
        [input, output] in prop_oneof![Just([4usize, 4]), [1..9usize, 1..9usize]],
        both: bool,
    ) {
        let weights = (groups * output * input, UNIT);
        let arguments = [(batch * seq * groups * input, UNIT), weights, weights];
        let run = |a: &[Flat], kernel: bool| {
            let x = a[0].clone().reshape([batch, seq, groups * input]);
            // (The second weights of a product that is not used have no gradient in the reference.)
            let second = if both { a[2].clone() } else { a[1].clone().detach() };
            let weights = [a[1].clone(), second].map(|weight| weight.reshape([groups, output, input]));
            let [first, second]: [Tensor<Training, 3>; 2] = match kernel {
                true => Training::headwise_pair(x, weights),
                false => weights.map(|weight| headwise::reference(x.clone(), weight)),
            };
            if both { vec![flat(first), flat(second)] } else { vec![flat(first)] }
        };
        check("headwise pair", &arguments[..if both { 3 } else { 2 }], |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn linear_recurrence(batch in 1..4usize, seq in 1..50usize, channels in 1..80usize, given: bool) {
        let n = batch * seq * channels;
        let arguments = [(n, [0.0, 1.0]), (n, UNIT), (batch * channels, UNIT)];
        let run = |x: &[Flat], fast: bool| {
            let [a, b] = [0, 1].map(|i: usize| x[i].clone().reshape([batch, seq, channels]));
            let h = given.then(|| x[2].clone().reshape([batch, channels]));
            let op = if fast { Training::linear_recurrence } else { linear::reference };
            let (states, last) = op(a, b, h);
            vec![flat(states), flat(last)]
        };
        check("recurrence", &arguments[..if given { 3 } else { 2 }], |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn s4_kernel(hidden in 1..40usize, modes in 1..5usize, l_kernel in 1..150usize, length in 1..150usize) {
        let pairs = (hidden * modes * 2, UNIT);
        let plane = (hidden * modes, UNIT);
        let arguments = [(hidden, UNIT), plane, plane, pairs, pairs, pairs];
        let run = |a: &[Flat], fast: bool| {
            let pairs = |i: usize| a[i].clone().reshape([1, hidden, modes, 2]);
            let plane = |i: usize| a[i].clone().reshape([hidden, modes]);
            let parameters = S4Kernel {
                inv_dt: a[0].clone().reshape([hidden, 1]),
                a_real: plane(1),
                a_imag: plane(2),
                b: pairs(3),
                c: pairs(4),
                p: pairs(5),
                l_kernel,
            };
            let length = length.min(l_kernel); // the kernel does not make longer ones itself
            vec![flat(if fast { Training::s4_kernel } else { s4::reference }(parameters, length))]
        };
        check("S4's kernel", &arguments, |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn causal_convolution(batch in 1..6usize, seq in 1..150usize, channels in 1..20usize) {
        let arguments = [(batch * seq * channels, UNIT), (channels * seq, UNIT)];
        let run = |a: &[Flat], fast: bool| {
            let op = if fast { Training::causal_convolution } else { convolution::reference };
            vec![flat(op(a[0].clone().reshape([batch, seq, channels]), a[1].clone().reshape([channels, seq])))]
        };
        check("convolution", &arguments, |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn norm(rows in 1..300usize, width in 2..40usize, groups in 1..4usize, shared: bool, centred: bool) {
        let (channels, parameters) = (width * groups, if shared { width } else { width * groups });
        let arguments = [(rows * channels, [-2.0, 3.0]), (parameters, UNIT), (parameters, UNIT)];
        let run = |a: &[Flat], fast: bool| {
            let op = if fast { Training::norm } else { norms::reference };
            let bias = centred.then(|| a[2].clone());
            vec![flat(op(a[0].clone().reshape([1, rows, channels]), a[1].clone(), bias, width, 1e-5))]
        };
        check("norm", &arguments[..if centred { 3 } else { 2 }], |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn functions_of_single_numbers(n in 1..40_000usize) {
        let arguments = [(n, [-6.0, 6.0]), (n, [-6.0, 6.0])];
        let row = |x: &Flat| x.clone().reshape([1, 1, n]);
        for gate in [Gate::Sigmoid, Gate::Silu] {
            let kernel = |a: &[Flat]| vec![flat(Training::gated(row(&a[0]), row(&a[1]), gate))];
            check("gate", &arguments, kernel, |a| vec![flat(gated::reference(row(&a[0]), row(&a[1]), gate))]);
        }
        let (gelu, arguments) = (burn::tensor::activation::gelu, &arguments[..1]);
        check("GELU", arguments, |a| vec![flat(Training::exact_gelu(row(&a[0])))], |a| vec![gelu(a[0].clone())]);
        let kernel = |a: &[Flat]| vec![flat(Training::squared_relu(row(&a[0])))];
        check("squared ReLU", arguments, kernel, |a| vec![flat(squared_relu::reference(row(&a[0])))]);
    }

    #[test]
    fn dropout(batch in 1..4usize, seq in 1..150usize, channels in 1..80usize, whole: bool, stream: u64) {
        let shape = [batch, if whole { 1 } else { seq }, channels];
        let mask = Mask { p: 0.3, seed: 1, stream };
        let x = |a: &[Flat]| a[0].clone().reshape([batch, seq, channels]);
        let kernel = |a: &[Flat]| vec![flat(Training::dropout(x(a), shape, mask))];
        check("dropout", &[(batch * seq * channels, UNIT)], kernel, |a| vec![flat(drop::reference(x(a), shape, mask))]);
    }

    #[test]
    fn token_mix(batch in 1..4usize, seq in 1..150usize, channels in 1..40usize, given: bool) {
        let n = batch * seq * channels;
        let arguments = [(n, UNIT), (channels, UNIT), (batch * channels, UNIT), (n, UNIT)];
        let run = |a: &[Flat], fast: bool| {
            let x = a[0].clone().reshape([batch, seq, channels]);
            let last = given.then(|| a[2].clone().reshape([batch, 1, channels]));
            let weights = given.then(|| a[3].clone().reshape([batch, seq, channels]));
            if fast {
                return vec![flat(Training::token_mix(x, last, a[1].clone(), weights))];
            }
            let last = last.unwrap_or_else(|| Tensor::zeros([batch, 1, channels], (&x.device(), x.dtype())));
            vec![flat(mix::reference(x, last, a[1].clone(), weights))]
        };
        check("token mix", &arguments[..if given { 4 } else { 2 }], |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn token_mixes(batch in 1..4usize, seq in 1..150usize, channels in 1..40usize, used in 1..8u8) {
        let arguments = [(batch * seq * channels, UNIT), (3 * channels, UNIT), (batch * channels, UNIT)];
        let run = |a: &[Flat], fast: bool| {
            let (x, last) = (a[0].clone().reshape([batch, seq, channels]), a[2].clone().reshape([batch, 1, channels]));
            let weights = a[1].clone().reshape([3, channels]);
            let mixtures: [Tensor<Training, 3>; 3] = match fast {
                true => Training::token_mixes(x, Some(last), weights),
                false => [0, 1, 2].map(|m| {
                    let weight = weights.clone().narrow(0, m, 1).reshape([channels]);
                    mix::reference(x.clone(), last.clone(), weight, None)
                }),
            };
            // Some of them have no part in the loss.
            let used = mixtures.into_iter().enumerate().filter(|(m, _)| used >> m & 1 == 1);
            used.map(|(_, mixture)| flat(mixture)).collect()
        };
        check("token mixes", &arguments, |a| run(a, true), |a| run(a, false));
    }

    #[test]
    fn short_convolution(batch in 1..4usize, seq in 1..40usize, channels in 1..80usize, taps in 2..6usize, given: bool) {
        let n = batch * seq * channels;
        let arguments = [(n, UNIT), (channels * taps, UNIT), (channels, UNIT), (batch * (taps - 1) * channels, UNIT)];
        let run = |a: &[Flat], fast: bool| {
            let x = a[0].clone().reshape([batch, seq, channels]);
            let (weight, bias) = (a[1].clone().reshape([channels, 1, taps]), a[2].clone());
            let before = given.then(|| a[3].clone().reshape([batch, taps - 1, channels]));
            if fast {
                return vec![flat(Training::short_convolution(x, weight, bias, before, true))];
            }
            let inputs = Tensor::cat(before.into_iter().chain([x]).collect(), 1);
            vec![flat(activation::silu(short::reference(inputs, weight, bias, !given)))]
        };
        check("short convolution", &arguments[..if given { 4 } else { 3 }], |a| run(a, true), |a| run(a, false));
    }
}
