//! Kernels against references: outputs and every gradient, in memory that is full of NaN before they write to it.
#![allow(dead_code)] // each test uses a part

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorData};
use data::stream_rng;
use models::Cpu;
use models::ops::cpu::memory::fill_with_nan;
use rand::RngExt;

pub type Training = Autodiff<Cpu>;

/// An argument or a result of an operation, of any shape.
pub type Flat<B = Training> = Tensor<B, 1>;

/// An argument: its size and the range of its numbers.
pub type Argument = (usize, [f64; 2]);

pub const UNIT: [f64; 2] = [-1.0, 1.0];

/// Relative to the largest entry of an output or gradient.
pub const TOLERANCE: f64 = 1e-5;

/// Numbers uniform on `from..to`, different for each `index`, that float32 can hold.
pub fn random(n: usize, [from, to]: [f64; 2], index: u64) -> Vec<f64> {
    let mut rng = stream_rng(1, "test values", index);
    (0..n).map(|_| f64::from(rng.random_range(from..to) as f32)).collect()
}

/// Numbers for all arguments.
pub fn draw(arguments: &[Argument]) -> Vec<Vec<f64>> {
    arguments.iter().zip(0..).map(|(&(n, range), i)| random(n, range, i)).collect()
}

pub fn flat<B: Backend, const D: usize>(x: Tensor<B, D>) -> Flat<B> {
    x.reshape([-1])
}

/// The outputs, and the gradient of every argument of Σ c·outputs with fixed c; empty where there is none.
pub fn results<B: AutodiffBackend>(
    arguments: &[Vec<f64>],
    dtype: DType,
    f: impl Fn(&[Flat<B>]) -> Vec<Flat<B>>,
) -> Vec<Vec<f64>> {
    fill_with_nan(true);
    let tensor = |values: &[f64]| -> Flat<B> {
        let data = TensorData::from(values).convert_dtype(dtype);
        Tensor::from_data(data, (&Default::default(), dtype))
    };
    let inputs: Vec<Flat<B>> = arguments.iter().map(|a| tensor(a).require_grad()).collect();
    let outputs = f(&inputs);
    let weighted = outputs.iter().zip(90..).map(|(y, i)| (y.clone() * tensor(&random(y.dims()[0], UNIT, i))).sum());
    let gradients = weighted.reduce(|a, b| a + b).unwrap().backward();
    let values = |x: TensorData| x.iter::<f64>().collect();
    let gradient = |x: &Flat<B>| x.grad(&gradients).map_or(vec![], |g| values(g.into_data()));
    let gradients: Vec<Vec<f64>> = inputs.iter().map(gradient).collect();
    outputs.into_iter().map(|y| values(y.into_data())).chain(gradients).collect()
}

/// Compares results, of which the last are gradients. Where a part is zero but for rounding, a relative error is
/// meaningless: `floor` is the least that counts as its largest entry.
pub fn compare(what: &str, arguments: usize, floor: f64, found: &[Vec<f64>], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let first = found.len() - arguments;
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let part = if i < first { format!("output {i}") } else { format!("gradient {}", i - first) };
        assert_eq!(found.len(), expected.len(), "{what}: {part}");
        let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let difference = (found - expected).abs(); // NaN is no less than anything
            assert!(
                difference <= TOLERANCE * largest.max(floor),
                "{what}: {part}: {found}, not {expected} of {largest}"
            );
        }
    }
}
