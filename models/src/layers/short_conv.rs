//! The causal convolution of Mamba and of linear attention: a few taps for each channel.

use crate::Init;
use crate::ops::SequenceOps;
use burn::module::{Module, Param};
use burn::prelude::*;

/// A causal convolution of each channel with a few taps of its own.
#[derive(Module, Debug)]
pub struct ShortConv<B: Backend> {
    /// `[channels, 1, taps]`; the last tap is the present.
    weight: Param<Tensor<B, 3>>,
    /// `[channels]`.
    bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> ShortConv<B> {
    /// With a bias, both U(±1/√taps): PyTorch's default.
    pub fn biased(init: &mut Init<'_, B>, channels: usize, taps: usize) -> Self {
        let bound = 1.0 / (taps as f64).sqrt();
        Self { weight: init.uniform([channels, 1, taps], bound), bias: Some(init.uniform([channels], bound)) }
    }

    /// Without a bias, N(0, `std`²).
    pub fn new(init: &mut Init<'_, B>, channels: usize, taps: usize, std: f64) -> Self {
        Self { weight: init.normal([channels, 1, taps], std), bias: None }
    }
}

impl<B: SequenceOps> ShortConv<B> {
    /// With SiLU if `silu`, `[batch, seq, channels]` → the same shape. The state holds the last inputs,
    /// `[batch, channels, taps − 1]`; none are zeros.
    pub fn forward(&self, x: Tensor<B, 3>, state: Option<Tensor<B, 3>>, silu: bool) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let [batch, seq, channels] = x.dims();
        let past = self.weight.dims()[2] - 1;
        let before = state.map(|state| state.swap_dims(1, 2)); // [batch, past, channels]
        let bias = match &self.bias {
            Some(bias) => bias.val(),
            None => Tensor::zeros([channels], (&x.device(), x.dtype())),
        };
        let y = B::short_convolution(x.clone(), self.weight.val(), bias, before.clone(), silu);
        let last = match seq >= past {
            true => x.narrow(1, seq - past, past),
            false => {
                let before = before.unwrap_or_else(|| Tensor::zeros([batch, past, channels], (&x.device(), x.dtype())));
                Tensor::cat(vec![before.narrow(1, seq, past - seq), x], 1)
            }
        };
        (y, last.swap_dims(1, 2))
    }
}
