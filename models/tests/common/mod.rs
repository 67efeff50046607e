//! Helpers of the tests; [`kernels`] and [`cpu`] are for those of kernels.
#![allow(dead_code)] // each test uses a part

pub mod cpu;
pub mod kernels;

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use data::stream_rng;
use models::{Cpu, Model, ModelConfig, ModelInput, Positions, Weight, Weights};
use rand::RngExt;

pub type Training = Autodiff<Cpu>;

pub const VOCAB: usize = 13;

/// A model as training begins.
pub fn fresh(config: &ModelConfig) -> Model<Cpu> {
    config.init(VOCAB, 1, &Default::default())
}

/// A model none of whose weights is zero or small: where a block adds nothing at the start, it does here.
pub fn shaken(config: &ModelConfig) -> Model<Cpu> {
    let mut model = fresh(config);
    let shake = |(i, (name, weight)): (usize, (&str, &Weight))| {
        let by = random(weight.values.len(), 0.3, i as u64);
        let values = weight.values.iter().zip(by).map(|(v, by)| v + by as f32).collect();
        (name.to_owned(), Weight { shape: weight.shape.clone(), values })
    };
    let fresh = Weights::of(&model).unwrap();
    let integers: Vec<_> = fresh.integers().map(|(name, value)| (name.to_owned(), value)).collect();
    let weights = fresh.iter().enumerate().map(shake).collect::<Weights>().with_integers(integers);
    weights.load_into(&mut model).unwrap();
    model
}

/// Numbers uniform on ±`bound`, different for each `index`.
pub fn random(n: usize, bound: f64, index: u64) -> Vec<f64> {
    let mut rng = stream_rng(1, "test values", index);
    (0..n).map(|_| rng.random_range(-bound..=bound)).collect()
}

pub fn input(ids: &[i64]) -> ModelInput<Cpu> {
    let ids = Tensor::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), &Default::default());
    ModelInput { input_ids: ids.clone(), position_ids: Positions::Integers(ids), attention_mask: None, dropout: None }
}

pub fn ids(n: usize) -> Vec<i64> {
    (0..n).map(|i| (i * i + 3 * i) as i64 % VOCAB as i64).collect()
}

pub fn flat<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter().collect()
}

pub fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    // `f32::max` would ignore NaN.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

/// A float64 tensor.
pub fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<B, D> {
    let data = TensorData::new(values.to_vec(), shape);
    Tensor::from_data(data, (&Default::default(), DType::F64))
}

/// [`check_gradients_within`] 1e-7.
pub fn check_gradients(
    what: &str,
    arguments: &[Vec<f64>],
    f: impl Fn(Vec<Tensor<Training, 1>>) -> Tensor<Training, 1>,
) {
    check_gradients_within(1e-7, what, arguments, f);
}

/// Checks every gradient of Σ c·f(arguments), c fixed, against the central difference quotient (f(h) − f(−h)) / 2h in
/// float64. Its own error is h²/6 = 2e-11 times the third derivative, plus some rounding, 1e-16/h = 1e-11, per output.
/// `f` takes and gives flat tensors.
pub fn check_gradients_within(
    tolerance: f64,
    what: &str,
    arguments: &[Vec<f64>],
    f: impl Fn(Vec<Tensor<Training, 1>>) -> Tensor<Training, 1>,
) {
    const STEP: f64 = 1e-5;
    let variables: Vec<Tensor<Training, 1>> = arguments.iter().map(|a| tensor(a, [a.len()]).require_grad()).collect();
    let outputs = f(variables.clone());
    let c = random(outputs.dims()[0], 1.0, 99);
    let gradients = (outputs * tensor(&c, [c.len()])).sum().backward();
    let value = |arguments: &[Vec<f64>]| -> f64 {
        let outputs = flat(f(arguments.iter().map(|a| tensor(a, [a.len()])).collect()));
        outputs.iter().zip(&c).map(|(y, c)| y * c).sum()
    };
    for (i, variable) in variables.iter().enumerate() {
        for (j, gradient) in flat(variable.grad(&gradients).unwrap()).into_iter().enumerate() {
            let moved = |by: f64| {
                let mut arguments = arguments.to_vec();
                arguments[i][j] += by;
                value(&arguments)
            };
            let quotient = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let difference = (gradient - quotient).abs();
            assert!(difference < tolerance, "{what}, argument {i}[{j}]: {gradient}, not {quotient}");
        }
    }
}
