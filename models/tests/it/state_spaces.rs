//! S4 and Mamba: tests of state spaces.

use crate::reference::npz::Npz;
use burn::prelude::*;
use burn::tensor::TensorData;
use data::stream_rng;
use models::hippo::HippoLegS;
use models::mamba::{Mamba, MambaConfig, MambaState};
use models::ops::causal_convolution::CausalConvolutionOp;
use models::ops::s4_kernel::{S4Kernel, S4KernelOp};
use models::ops::scan::{SelectiveScan, SelectiveScanOp};
use models::s4::{MODES, S4, S4Config};
use models::state_space::{S4Parameters, StateSpace, product};
use models::{Cpu, Model, ModelConfig, ModelInput, Positions, Weight, Weights};
use rand::RngExt;
use std::path::{Path, PathBuf};

const VOCAB: usize = 13;

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/s4").join(file)
}

fn random(n: usize, bound: f32, index: u64) -> Vec<f32> {
    let mut rng = stream_rng(1, "test values", index);
    (0..n).map(|_| rng.random_range(-bound..=bound)).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<Cpu, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
}

fn flat<const D: usize>(tensor: Tensor<Cpu, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    eprintln!("{what}: differs by at most {difference:.2e}");
    assert!(found.iter().all(|v| v.is_finite()) && difference < tolerance, "{what}: differs by {difference:e}");
}

// HiPPO ---------------------------------------------------------------------------------------------------------------

/// Against LAPACK's eigenvectors, which are normalised in the same way up to their sign; B and P turn it together.
#[test]
fn hippo_legs_is_that_of_the_published_code() {
    let mut file = Npz::open(&fixture("hippo_legs_N64.npz"));
    let mut pairs = |name: &str| file.array::<f64>(name).unwrap().1;
    let (a, p, b, b_unclipped) = (pairs("A"), pairs("P"), pairs("B"), pairs("B_unclipped"));
    let found = HippoLegS::new(MODES);
    let imaginary: Vec<f64> = a.chunks(2).map(|pair| pair[1]).collect();
    assert_close("frequencies", &found.frequencies, &imaginary, 1e-4);
    for mode in 0..MODES {
        let at = |values: &[f64]| [values[2 * mode], values[2 * mode + 1]];
        let sign = (found.p[mode][1] * at(&p)[1]).signum();
        let turned = |pair: [f64; 2]| pair.map(|v| v * sign);
        assert_close(&format!("P of mode {mode}"), &turned(found.p[mode]), &at(&p), 1e-5);
        assert_close(&format!("B of mode {mode}"), &turned(found.b[mode]), &at(&b_unclipped), 1e-5);
        let [re, im] = turned(found.b[mode]);
        assert_close(&format!("clipped B of mode {mode}"), &[re, im.clamp(-2.0, 2.0)], &at(&b), 1e-5);
    }
}

/// The continuous state space A of the diagonalised form has HiPPO-LegS's eigenvalues −1 … −2·MODES: their sum is the
/// trace, 2·Re Σ Λ − 2·Σ |P|², and the sum of their squares the trace of A².
#[test]
fn hippo_legs_keeps_the_trace() {
    let start = HippoLegS::new(MODES);
    let n = 2 * MODES;
    let norm: f64 = start.p.iter().map(|[re, im]| re * re + im * im).sum();
    assert!((-(MODES as f64) - 2.0 * norm + (n * (n + 1) / 2) as f64).abs() < 1e-7, "trace");
    // A = diag(Λ) − P·P*, so tr A² = Σ Λ² − 2·P*·diag(Λ)·P + (P*·P)²; in pairs, of which the real parts stay.
    let squares: f64 = start.frequencies.iter().map(|f| 2.0 * (0.25 - f * f)).sum();
    let trace = squares + 2.0 * norm + 4.0 * norm * norm;
    let expected = (n * (n + 1) * (2 * n + 1) / 6) as f64;
    assert!((trace / expected - 1.0).abs() < 1e-7, "tr A² is {trace}, not {expected}");
}

// The kernel ----------------------------------------------------------------------------------------------------------

/// The parameters of one layer, owned.
struct Layer {
    inv_dt: Vec<f32>,
    a_real: Vec<f32>,
    a_imag: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    p: Vec<f32>,
}

impl Layer {
    fn of(weights: &Weights) -> Self {
        let values = |name: &str| weights.get(&format!("s4_layers.0.layer.kernel.{name}")).unwrap().values.clone();
        Self {
            inv_dt: values("inv_dt"),
            a_real: values("A_real"),
            a_imag: values("A_imag"),
            b: values("B"),
            c: values("C"),
            p: values("P"),
        }
    }

    fn parameters(&self) -> S4Parameters<'_> {
        let Self { inv_dt, a_real, a_imag, b, c, p } = self;
        S4Parameters { inv_dt, a_real, a_imag, b, c, p }
    }

    fn kernel(&self, l_kernel: usize, length: usize) -> Vec<f64> {
        let hidden = self.inv_dt.len();
        let modes = self.a_real.len() / hidden;
        let pairs = |values: &[f32]| tensor(values, [1, hidden, modes, 2]);
        let kernel = S4Kernel {
            inv_dt: tensor(&self.inv_dt, [hidden, 1]),
            a_real: tensor(&self.a_real, [hidden, modes]),
            a_imag: tensor(&self.a_imag, [hidden, modes]),
            b: pairs(&self.b),
            c: pairs(&self.c),
            p: pairs(&self.p),
            l_kernel,
        };
        flat(Cpu::s4_kernel(kernel, length))
    }
}

fn published() -> Weights {
    Weights::read(&fixture("model.safetensors")).unwrap()
}

/// K_t = C·Āᵗ·B̄, one step after another in float64.
fn taps(space: &StateSpace, length: usize) -> Vec<f64> {
    let mut row = space.c.clone();
    let mut taps = Vec::with_capacity(length);
    for _ in 0..length {
        taps.push(row.iter().zip(&space.b).map(|(c, b)| c * b).sum());
        row = product(&row, &space.a, space.n);
    }
    taps
}

#[test]
fn the_kernel_is_that_of_the_published_code() {
    let expected = Npz::open(&fixture("kernel_layer0_L64.npz")).array::<f64>("kernel_f64").unwrap().1;
    assert_close("kernel", &Layer::of(&published()).kernel(64, 64), &expected, 1e-5);
}

#[test]
fn the_kernel_is_right_at_every_length() {
    let weights = published();
    let l_kernel = weights.integer("s4_layers.0.layer.kernel.l_kernel").unwrap();
    assert_eq!(l_kernel, 64);
    let layer = Layer::of(&weights);
    let spaces: Vec<StateSpace> = layer.parameters().channels().collect();
    for length in [1, 2, 40, 63, 64, 65, 128, 129, 300] {
        let expected = spaces.iter().flat_map(|space| {
            let mut space = space.clone();
            space.untruncate(l_kernel);
            taps(&space, length)
        });
        let expected: Vec<f64> = expected.collect();
        assert_close(&format!("kernel of {length}"), &layer.kernel(l_kernel, length), &expected, 2e-5);
    }
}

#[test]
fn any_length_can_be_stored() {
    let mut layer = Layer::of(&published());
    let spaces: Vec<StateSpace> = layer.parameters().channels().collect();
    for l_kernel in [1, 2, 3, 50, 127] {
        let mut stored = vec![];
        let mut expected = vec![];
        for space in &spaces {
            let mut space = space.clone();
            space.untruncate(64);
            expected.extend(taps(&space, l_kernel));
            space.truncate(l_kernel);
            stored.extend(space.c_pairs());
        }
        layer.c = stored;
        assert_close(&format!("kernel stored at {l_kernel}"), &layer.kernel(l_kernel, l_kernel), &expected, 2e-5);
    }
}

#[test]
fn truncation_can_be_undone() {
    for space in Layer::of(&published()).parameters().channels() {
        for l in [1, 5, 64] {
            let mut there_and_back = space.clone();
            there_and_back.truncate(l);
            assert_ne!(there_and_back.c, space.c);
            there_and_back.untruncate(l);
            assert_close(&format!("C truncated at {l}"), &there_and_back.c, &space.c, 1e-9);
        }
    }
}

#[test]
fn powers_are_repeated_products() {
    let space = Layer::of(&published()).parameters().channels().nth(3).unwrap();
    let mut power = space.power(0);
    for l in 1..=9 {
        power = product(&power, &space.a, space.n);
        assert_close(&format!("power {l}"), &space.power(l), &power, 1e-12);
    }
}

/// A checkpoint from before the first step has C itself; the published code's first step turns it into that of
/// `model.safetensors`.
#[test]
fn a_fresh_checkpoint_is_truncated_when_it_is_loaded() {
    let config = ModelConfig::S4(S4Config { hidden_size: 32, kernel_length: 64, ..Default::default() });
    let (name, length) = ("s4_layers.0.layer.kernel.C", "s4_layers.0.layer.kernel.l_kernel");
    let (stored, fresh) = (published(), Weights::read(&fixture("fresh.safetensors")).unwrap());
    assert_eq!(fresh.integer(length), Some(0));
    let tensors =
        stored.iter().map(|(n, w)| (n.to_owned(), if n == name { fresh.get(name).unwrap() } else { w }.clone()));
    let weights = tensors.collect::<Weights>().with_integers([(length.to_owned(), 0)]);

    let mut model: Model<Cpu> = config.init(VOCAB, 0, &Default::default());
    weights.load_into(&mut model).unwrap();
    let loaded = Weights::of(&model).unwrap();
    assert_eq!(loaded.integer(length), Some(64));
    let wide = |weight: &Weight| -> Vec<f64> { weight.values.iter().map(|v| f64::from(*v)).collect() };
    // the published code takes powers of its matrices in float32
    assert_close("C", &wide(loaded.get(name).unwrap()), &wide(stored.get(name).unwrap()), 1e-4);
}

/// C starts complex normal of variance 1, and is stored truncated.
#[test]
fn the_initial_c_is_normal() {
    let config = S4Config { hidden_size: 64, kernel_length: 100, ..Default::default() };
    let model: Model<Cpu> = ModelConfig::S4(config).init(VOCAB, 3, &Default::default());
    let weights = Weights::of(&model).unwrap();
    assert_eq!(weights.integer("s4_layers.0.layer.kernel.l_kernel"), Some(100));
    let layer = Layer::of(&weights);
    let c = layer.parameters().channels().flat_map(|mut space| {
        space.untruncate(100);
        space.c_pairs().map(f64::from).collect::<Vec<_>>()
    });
    let c: Vec<f64> = c.collect();
    let n = c.len() as f64;
    let (mean, square) = (c.iter().sum::<f64>() / n, c.iter().map(|v| v * v).sum::<f64>() / n);
    assert!(mean.abs() < 5.0 * (0.5 / n).sqrt(), "mean {mean}");
    assert!((square - 0.5).abs() < 5.0 * 0.5 * (2.0 / n).sqrt(), "variance {square}");
    let within = c.iter().filter(|v| v.abs() < 0.5f64.sqrt()).count() as f64 / n;
    assert!((within - 0.6827).abs() < 5.0 * (0.2166 / n).sqrt(), "{within} are within a standard deviation");
}

#[test]
fn lengths_of_kernels_are_part_of_a_checkpoint() {
    let config = ModelConfig::S4(S4Config { hidden_size: 4, num_layers: 2, kernel_length: 10, ..Default::default() });
    let mut model: Model<Cpu> = config.init(VOCAB, 0, &Default::default());
    let saved = Weights::of(&model).unwrap();
    let names = |i: usize| format!("s4_layers.{i}.layer.kernel.l_kernel");
    assert_eq!(saved.integers().collect::<Vec<_>>(), [(&*names(0), 10), (&*names(1), 10)]);

    let others = saved.clone().with_integers([(names(0), 20), (names(1), 30)]);
    others.load_into(&mut model).unwrap();
    assert_eq!(Weights::of(&model).unwrap(), others);
    for (integers, problem) in [
        (vec![(names(0), 10)], format!("{} is missing", names(1))),
        (vec![(names(0), 10), (names(1), usize::MAX)], format!("{} is {}", names(1), usize::MAX)),
    ] {
        let error = saved.clone().with_integers(integers).load_into(&mut model).unwrap_err().to_string();
        assert!(error.contains(&problem), "{error}");
    }
}

// The operations ------------------------------------------------------------------------------------------------------

#[test]
fn the_convolution_is_the_sum_it_stands_for() {
    for (batch, seq, hidden) in [(1, 1, 1), (3, 2, 2), (1, 63, 1), (2, 64, 1), (1, 65, 2), (2, 131, 3), (1, 400, 1)] {
        let (u, k) = (random(batch * seq * hidden, 1.0, 1), random(hidden * seq, 1.0, 2));
        let mut expected = vec![0.0; u.len()];
        for (i, y) in expected.iter_mut().enumerate() {
            let (example, t, h) = (i / hidden / seq, i / hidden % seq, i % hidden);
            let term = |s: usize| f64::from(u[(example * seq + s) * hidden + h]) * f64::from(k[h * seq + t - s]);
            *y = (0..=t).map(term).sum();
        }
        let found = Cpu::causal_convolution(tensor(&u, [batch, seq, hidden]), tensor(&k, [hidden, seq]));
        assert_close(&format!("{batch}×{seq}×{hidden}"), &flat(found), &expected, 2e-5);
    }
}

#[test]
fn the_scan_is_the_recurrence_it_stands_for() {
    for (batch, seq, channels, state, negative_eigenvalues) in
        [(1, 1, 1, 1, false), (2, 13, 3, 4, false), (1, 100, 2, 16, false), (2, 13, 3, 4, true), (1, 100, 2, 16, true)]
    {
        let x = batch * seq * channels;
        let (u, a) = (random(x, 1.0, 1), random(channels * state, 1.0, 2));
        let a: Vec<f32> = a.iter().map(|v| v - 1.0).collect();
        let (delta, z) = (random(x, 3.0, 3), random(x, 2.0, 7));
        let (bias, d) = (random(channels, 1.0, 8), random(channels, 1.0, 9));
        let (b, c) = (random(batch * seq * state, 1.0, 4), random(batch * seq * state, 1.0, 5));
        let start = random(batch * channels * state, 1.0, 6);
        let mut h: Vec<f64> = start.iter().map(|v| f64::from(*v)).collect();
        let mut expected = vec![0.0; x];
        for (example, t) in (0..batch).flat_map(|example| (0..seq).map(move |t| (example, t))) {
            for (channel, n) in (0..channels).flat_map(|channel| (0..state).map(move |n| (channel, n))) {
                let (row, gate) = ((example * seq + t) * channels + channel, (example * seq + t) * state + n);
                let h = &mut h[(example * channels + channel) * state + n];
                let delta = f64::from(delta[row] + bias[channel]).exp().ln_1p();
                let decay = (delta * f64::from(a[channel * state + n])).exp();
                let factor = if negative_eigenvalues { 2.0 * decay - 1.0 } else { decay };
                *h = factor * *h + delta * f64::from(u[row]) * f64::from(b[gate]);
                expected[row] += *h * f64::from(c[gate]);
            }
        }
        for (i, y) in expected.iter_mut().enumerate() {
            let (u, d, z) = (f64::from(u[i]), f64::from(d[i % channels]), f64::from(z[i]));
            *y = (*y + d * u) * z / (1.0 + (-z).exp());
        }
        let wide = [batch, seq, channels];
        let narrow = [batch, seq, state];
        let inputs = SelectiveScan {
            u: tensor(&u, wide),
            delta: tensor(&delta, wide),
            delta_bias: tensor(&bias, [channels]),
            d: tensor(&d, [channels]),
            z: tensor(&z, wide),
            a: tensor(&a, [channels, state]),
            b: tensor(&b, narrow),
            c: tensor(&c, narrow),
            negative_eigenvalues,
        };
        let (y, last) = Cpu::selective_scan(inputs, Some(tensor(&start, [batch, channels, state])));
        assert_close(&format!("outputs {batch}×{seq}"), &flat(y), &expected, 1e-5);
        assert_close(&format!("state {batch}×{seq}"), &flat(last), &h, 1e-5);
    }
}

// In pieces -----------------------------------------------------------------------------------------------------------

const PIECES: [usize; 4] = [1, 7, 64, 28];

fn tokens(batch: usize, start: usize, seq: usize) -> ModelInput<Cpu> {
    let total: usize = PIECES.iter().sum();
    let mut rng = stream_rng(1, "tokens", 0);
    let ids: Vec<i64> = (0..batch * total).map(|_| rng.random_range(0..VOCAB as i64)).collect();
    let ids = Tensor::<Cpu, 2, Int>::from_data(TensorData::new(ids, [batch, total]), &Default::default());
    let input_ids = ids.narrow(1, start, seq);
    ModelInput {
        position_ids: Positions::Integers(input_ids.zeros_like()),
        input_ids,
        attention_mask: None,
        dropout: None,
    }
}

/// The logits of all tokens at once, and of the pieces with the state carried over.
fn whole_and_pieces<S>(
    batch: usize,
    whole: impl Fn(ModelInput<Cpu>) -> Tensor<Cpu, 3>,
    piece: impl Fn(ModelInput<Cpu>, Option<S>) -> (Tensor<Cpu, 3>, S),
) -> [Vec<f64>; 2] {
    let whole = whole(tokens(batch, 0, PIECES.iter().sum()));
    let (mut state, mut start, mut logits) = (None, 0, vec![]);
    for length in PIECES {
        let (piece, next) = piece(tokens(batch, start, length), state);
        logits.push(piece);
        (state, start) = (Some(next), start + length);
    }
    [flat(whole), flat(Tensor::cat(logits, 1))]
}

#[test]
fn s4_fed_in_pieces_equals_the_whole() {
    let config = S4Config { hidden_size: 8, num_layers: 2, kernel_length: 64, ..Default::default() };
    let model: S4<Cpu> = config.init(VOCAB, &mut models::Init::new(1, &Default::default()));
    let [whole, pieces] =
        whole_and_pieces(3, |input| model.forward(input), |input, state| model.forward_from(input, state));
    assert_close("logits", &pieces, &whole, 5e-5);
    let [_, forgetful] = whole_and_pieces(
        3,
        |input| model.forward(input),
        |input, _: Option<()>| (model.forward_from(input, None).0, ()),
    );
    assert!(forgetful.iter().zip(&whole).any(|(a, b)| (a - b).abs() > 1e-2), "the state must matter");
}

#[test]
fn mamba_fed_in_pieces_equals_the_whole() {
    let config = MambaConfig { hidden_size: 8, num_layers: 2, ..Default::default() };
    let mut model: Mamba<Cpu> = config.init(VOCAB, &mut models::Init::new(1, &Default::default()));
    // Initial embeddings are small: at their size the tests below could see little.
    model = loud(model);
    let [whole, pieces] =
        whole_and_pieces(3, |input| model.forward(input), |input, state| model.forward_from(input, state));
    assert_close("logits", &pieces, &whole, 1e-5);
    let without_conv = |s: MambaState<Cpu>| MambaState { conv: s.conv.zeros_like(), ..s };
    let without_ssm = |s: MambaState<Cpu>| MambaState { ssm: s.ssm.zeros_like(), ..s };
    for forget in [without_conv as fn(_) -> _, without_ssm] {
        let [_, forgetful] = whole_and_pieces(
            3,
            |input| model.forward(input),
            |input, state: Option<Vec<_>>| {
                model.forward_from(input, state.map(|blocks| blocks.into_iter().map(forget).collect()))
            },
        );
        let change = forgetful.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(change > 1e-4, "each half of the state must matter: {change}");
    }
}

fn loud(model: Mamba<Cpu>) -> Mamba<Cpu> {
    let mut model = Model::Mamba(model);
    let weights = Weights::of(&model).unwrap();
    let tensors = weights.iter().map(|(name, weight)| {
        let factor = if name == "backbone.embedding.weight" { 30.0 } else { 1.0 };
        let values = weight.values.iter().map(|v| v * factor).collect();
        (name.to_owned(), Weight { shape: weight.shape.clone(), values })
    });
    tensors.collect::<Weights>().load_into(&mut model).unwrap();
    let Model::Mamba(model) = model else { panic!("another architecture") };
    model
}

// The tied decoder ----------------------------------------------------------------------------------------------------

#[test]
fn mambas_decoder_is_in_the_file_and_not_in_the_weights() {
    let config = ModelConfig::Mamba(MambaConfig { hidden_size: 16, num_layers: 1, ..Default::default() });
    let model: Model<Cpu> = config.init(VOCAB, 0, &Default::default());
    let weights = Weights::of(&model).unwrap();
    assert!(weights.get("lm_head.weight").is_none());
    let bytes = weights.to_safetensors().unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embedding = file.tensor("backbone.embedding.weight").unwrap();
    assert_eq!(file.tensor("lm_head.weight").unwrap().data(), embedding.data());

    // A decoder of its own is not this model's.
    let other = Weight { shape: vec![VOCAB, 16], values: vec![1.0; VOCAB * 16] };
    let tensors = weights.iter().map(|(name, weight)| (name.to_owned(), weight.clone()));
    let untied: Weights = tensors.chain([("lm_head.weight".to_owned(), other)]).collect();
    let error = untied.load_into(&mut model.clone()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight is not in the model"), "{error}");
}
