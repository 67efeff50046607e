use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::TensorData;
use data::stream_rng;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Draws initial parameters from one seeded stream on the CPU, so that a seed means the same weights on every device.
///
/// Parameters are numbered in the order in which they are made; the numbers are their burn ids, by which an optimizer's
/// saved state finds them in another process.
#[derive(Debug)]
pub struct Init<'a, B: Backend> {
    rng: ChaCha8Rng,
    made: u64,
    device: &'a B::Device,
}

impl<'a, B: Backend> Init<'a, B> {
    /// A fresh stream.
    pub fn new(seed: u64, device: &'a B::Device) -> Self {
        Self { rng: stream_rng(seed, "initial weights", 0), made: 0, device }
    }

    /// Uniform on ±`bound`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f64) -> Param<Tensor<B, D>> {
        let values = self.draw_uniform(shape.iter().product(), -bound, bound);
        self.param(values, shape)
    }

    /// Values uniform on `low..=high`, for values computed from draws.
    pub fn draw_uniform(&mut self, n: usize, low: f64, high: f64) -> Vec<f32> {
        (0..n).map(|_| self.rng.random_range(low..=high) as f32).collect()
    }

    /// Values normal with mean 0 and standard deviation `std`, for values computed from draws.
    pub fn draw_normal(&mut self, n: usize, std: f64) -> Vec<f32> {
        let draw = |rng: &mut ChaCha8Rng| -> f64 { StandardNormal.sample(rng) };
        (0..n).map(|_| (draw(&mut self.rng) * std) as f32).collect()
    }

    /// Normal with mean 0 and standard deviation `std`.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<B, D>> {
        let values = self.draw_normal(shape.iter().product(), std);
        self.param(values, shape)
    }

    /// Normal with mean 0 and standard deviation `std`, drawn again beyond two of them.
    pub fn truncated_normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<B, D>> {
        let mut draw = || {
            loop {
                let x: f64 = StandardNormal.sample(&mut self.rng);
                if x.abs() <= 2.0 {
                    return (x * std) as f32;
                }
            }
        };
        let values = (0..shape.iter().product()).map(|_| draw()).collect();
        self.param(values, shape)
    }

    /// All entries equal.
    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<B, D>> {
        let n = shape.iter().product();
        self.param(vec![value; n], shape)
    }

    /// Computed, not drawn: row-major `values`, as many as the shape says.
    pub fn values<const D: usize>(&mut self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<B, D>> {
        self.param(values, shape)
    }

    /// `gain` times a matrix whose rows (or columns, where there are fewer of them) are orthonormal, uniform among all
    /// such matrices (Saxe et al., arXiv 1312.6120).
    pub fn orthogonal(&mut self, [rows, columns]: [usize; 2], gain: f64) -> Param<Tensor<B, 2>> {
        let (few, many) = (rows.min(columns), rows.max(columns));
        let mut basis: Vec<Vec<f64>> = Vec::with_capacity(few);
        for _ in 0..few {
            let mut v: Vec<f64> = (0..many).map(|_| StandardNormal.sample(&mut self.rng)).collect();
            // Gram-Schmidt, twice: the second pass removes rounding errors of the first.
            for other in basis.iter().chain(&basis) {
                let along: f64 = v.iter().zip(other).map(|(a, b)| a * b).sum();
                v.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let norm = v.iter().map(|a| a * a).sum::<f64>().sqrt();
            v.iter_mut().for_each(|a| *a /= norm);
            basis.push(v);
        }
        let at = |i: usize, j: usize| if rows <= columns { basis[i][j] } else { basis[j][i] };
        let entries = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
        self.param(entries.map(|(i, j)| (gain * at(i, j)) as f32).collect(), [rows, columns])
    }

    fn param<const D: usize>(&mut self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<B, D>> {
        self.made += 1;
        let tensor = Tensor::from_data(TensorData::new(values, shape), self.device);
        Param::initialized(ParamId::from(self.made), tensor.require_grad())
    }
}
