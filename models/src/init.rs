use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::TensorData;
use data::stream_rng;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Draws initial parameters from one seeded stream on the CPU, so that a seed means the same weights on every device.
///
/// Parameters are numbered in the order in which they are made; the numbers are their burn ids, which is what lets an
/// optimizer's saved state find them again in another process.
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
        let n = shape.iter().product();
        let values = (0..n).map(|_| self.rng.random_range(-bound..=bound) as f32).collect();
        self.param(values, shape)
    }

    /// Normal with mean 0 and standard deviation `std`.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<B, D>> {
        let n = shape.iter().product();
        let draw = |rng: &mut ChaCha8Rng| -> f64 { StandardNormal.sample(rng) };
        let values = (0..n).map(|_| (draw(&mut self.rng) * std) as f32).collect();
        self.param(values, shape)
    }

    /// All entries equal.
    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<B, D>> {
        let n = shape.iter().product();
        self.param(vec![value; n], shape)
    }

    /// These values, row-major.
    pub fn param<const D: usize>(&mut self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<B, D>> {
        self.made += 1;
        let tensor = Tensor::from_data(TensorData::new(values, shape), self.device);
        Param::initialized(ParamId::from(self.made), tensor.require_grad())
    }
}
