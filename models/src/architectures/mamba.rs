//! Mamba: embedding → residual blocks of RMSNorm and a selective state space → RMSNorm → the embedding as decoder. No
//! positions.
//!
//! Source: A. Gu and T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752;
//! sizes and initialisation of arXiv 2405.20131. The range of eigenvalues may be that of R. Grazzi et al., "Unlocking
//! State-Tracking in Linear RNNs Through Negative Eigenvalues", arXiv 2411.12537.
#![allow(non_snake_case)] // A and D, as in the paper and in checkpoints

use crate::architecture::Architecture;
use crate::layers::{Embedding, Linear, RmsNorm, ShortConv};
use crate::ops::SequenceOps;
use crate::ops::scan::SelectiveScan;
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::{Module, Param};
use burn::prelude::*;
use serde::{Deserialize, Serialize};

/// Sizes of a [`Mamba`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MambaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// N, the size of each channel's state.
    pub state_size: usize,
    /// The length of the short convolution.
    pub conv_kernel: usize,
    /// A block has `expand`·`hidden_size` channels.
    pub expand: usize,
    /// Whether the eigenvalues of the recurrence reach from −1 to 1 instead of from 0 to 1: 2·exp(Δ·A) − 1 instead of
    /// exp(Δ·A).
    pub negative_eigenvalues: bool,
}

/// ε of every RMSNorm.
pub const RMS_NORM_EPSILON: f64 = 1e-5;

impl Default for MambaConfig {
    fn default() -> Self {
        Self { hidden_size: 128, num_layers: 2, state_size: 16, conv_kernel: 4, expand: 2, negative_eigenvalues: false }
    }
}

impl Architecture for MambaConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["backbone.embedding.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        let sizes =
            [("state_size", self.state_size, 1), ("conv_kernel", self.conv_kernel, 2), ("expand", self.expand, 1)];
        match sizes.into_iter().find(|(_, size, least)| size < least) {
            Some((key, _, least)) => Err(ConfigError::new(key, format!("must be at least {least}"))),
            None => Ok(()),
        }
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, ..Self::default() };
        let odd = Self { state_size: 3, conv_kernel: 2, expand: 3, negative_eigenvalues: true, ..small.clone() };
        vec![small, odd]
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("lm_head.weight", "backbone.embedding.weight"))
    }
}

impl MambaConfig {
    /// Channels inside a block.
    pub fn channels(&self) -> usize {
        self.expand * self.hidden_size
    }

    /// The rank of the projection that makes the step sizes, ⌈hidden_size/16⌉.
    pub fn dt_rank(&self) -> usize {
        self.hidden_size.div_ceil(16)
    }

    /// A model over `vocab` tokens: embedding N(0, 0.02²), the rest as in [`Mixer`].
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Mamba<B> {
        Mamba {
            backbone: Backbone {
                embedding: Embedding::new(init, vocab, self.hidden_size, 0.02),
                layers: (0..self.num_layers).map(|_| Block::new(self, init)).collect(),
                norm_f: RmsNorm::new(init, self.hidden_size, RMS_NORM_EPSILON),
            },
        }
    }
}

/// See the [module documentation](self). The decoder is the embedding: checkpoints have it twice, once as
/// `lm_head.weight`.
#[derive(Module, Debug)]
pub struct Mamba<B: Backend> {
    backbone: Backbone<B>,
}

#[derive(Module, Debug)]
struct Backbone<B: Backend> {
    embedding: Embedding<B>,
    layers: Vec<Block<B>>,
    norm_f: RmsNorm<B>,
}

/// The state of one block between tokens.
#[derive(Debug, Clone)]
pub struct MambaState<B: Backend> {
    /// The last inputs of the short convolution, `[batch, channels, conv_kernel − 1]`.
    pub conv: Tensor<B, 3>,
    /// `[batch, channels, state_size]`.
    pub ssm: Tensor<B, 3>,
}

impl<B: Backend> Network<B> for Mamba<B> {}

impl<B: SequenceOps> Mamba<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of tokens that follow those which left `state` behind (none if `None`), and the
    /// state of every block after them.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<MambaState<B>>>,
    ) -> (Tensor<B, 3>, Vec<MambaState<B>>) {
        let Backbone { embedding, layers, norm_f } = &self.backbone;
        let mut x = embedding.forward(input.input_ids); // [batch, seq, hidden]
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(layers.len());
        for block in layers {
            let (y, state) = block.mixer.forward(block.norm.forward(x.clone()), before.next());
            x = x + y;
            after.push(state);
        }
        (B::projection(norm_f.forward(x), embedding.weight.val()), after)
    }
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    norm: RmsNorm<B>,
    mixer: Mixer<B>,
}

impl<B: Backend> Block<B> {
    fn new(config: &MambaConfig, init: &mut Init<'_, B>) -> Self {
        Self { norm: RmsNorm::new(init, config.hidden_size, RMS_NORM_EPSILON), mixer: Mixer::new(config, init) }
    }
}

/// A selective state space between two projections, gated (figure 3 of the paper). R is the rank of the step sizes.
#[derive(Module, Debug)]
pub struct Mixer<B: Backend> {
    /// `[2·channels, hidden]`: the input and its gate.
    in_proj: Linear<B>,
    conv1d: ShortConv<B>,
    /// `[R + 2·state, channels]`: the step sizes' low-rank part, B and C.
    x_proj: Linear<B>,
    dt_proj: StepSizes<B>,
    /// A = −exp(A_log), `[channels, state]`.
    A_log: Param<Tensor<B, 2>>,
    /// The skip connection, `[channels]`.
    D: Param<Tensor<B, 1>>,
    /// `[hidden, channels]`.
    out_proj: Linear<B>,
    negative_eigenvalues: bool,
}

impl<B: Backend> Mixer<B> {
    /// Projections U(±1/√in), `out_proj` the same over √num_layers; A = −1 … −state_size in every channel, D = 1; step
    /// sizes start log-uniform on 0.001 … 0.1.
    pub(crate) fn new(config: &MambaConfig, init: &mut Init<'_, B>) -> Self {
        let (hidden, channels, state) = (config.hidden_size, config.channels(), config.state_size);
        let rank = config.dt_rank();
        let bound = |input: usize| 1.0 / (input as f64).sqrt();
        let linear =
            |init: &mut Init<'_, B>, output, input, bound| Linear { weight: init.uniform([output, input], bound) };
        let log_a = (0..channels).flat_map(|_| (1..=state).map(|n| (n as f32).ln())).collect();
        Self {
            in_proj: linear(init, 2 * channels, hidden, bound(hidden)),
            conv1d: ShortConv::biased(init, channels, config.conv_kernel),
            x_proj: linear(init, rank + 2 * state, channels, bound(channels)),
            dt_proj: StepSizes::new(init, channels, rank),
            A_log: init.values(log_a, [channels, state]),
            D: init.constant([channels], 1.0),
            out_proj: linear(init, hidden, channels, bound(channels) / (config.num_layers as f64).sqrt()),
            negative_eigenvalues: config.negative_eigenvalues,
        }
    }
}

impl<B: SequenceOps> Mixer<B> {
    /// `[batch, seq, hidden]` → the same shape, and the state after it.
    pub(crate) fn forward(&self, x: Tensor<B, 3>, state: Option<MambaState<B>>) -> (Tensor<B, 3>, MambaState<B>) {
        let (conv, ssm) = state.map(|s| (s.conv, s.ssm)).unzip();
        let channels = self.D.dims()[0];
        let half = |i: usize| self.in_proj.weight.val().narrow(0, i * channels, channels);
        let [u, z] = [0, 1].map(|i| B::projection(x.clone(), half(i))); // [batch, seq, channels]
        let (u, conv) = self.conv1d.forward(u, conv, true);
        let (rank, state) = (self.dt_proj.weight.dims()[1], self.A_log.dims()[1]);
        let [delta, b, c] = split(self.x_proj.forward(u.clone()), [rank, state, state]);
        let inputs = SelectiveScan {
            u,
            delta: B::projection(delta, self.dt_proj.weight.val()), // [batch, seq, channels]
            delta_bias: self.dt_proj.bias.val(),
            a: -self.A_log.val().exp(),
            b,
            c,
            d: self.D.val(),
            z,
            negative_eigenvalues: self.negative_eigenvalues,
        };
        let (y, ssm) = B::selective_scan(inputs, ssm);
        (self.out_proj.forward(y), MambaState { conv, ssm })
    }
}

/// Cuts the last axis into parts of these widths.
fn split<B: Backend, const N: usize>(x: Tensor<B, 3>, widths: [usize; N]) -> [Tensor<B, 3>; N] {
    let mut start = 0;
    widths.map(|width| {
        start += width;
        x.clone().narrow(2, start - width, width)
    })
}

/// The projection from the low-rank part to the step sizes, before softplus.
#[derive(Module, Debug)]
struct StepSizes<B: Backend> {
    /// `[channels, R]`.
    weight: Param<Tensor<B, 2>>,
    /// `[channels]`.
    bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> StepSizes<B> {
    /// Weight U(±1/√R); softplus(bias) log-uniform on 0.001 … 0.1.
    fn new(init: &mut Init<'_, B>, channels: usize, rank: usize) -> Self {
        let weight = init.uniform([channels, rank], 1.0 / (rank as f64).sqrt());
        let logs = init.draw_uniform(channels, 0.001f64.ln(), 0.1f64.ln());
        // softplus⁻¹(x) = log(eˣ − 1)
        let bias = logs.into_iter().map(|log| f64::from(log).exp().max(1e-4).exp_m1().ln() as f32).collect();
        Self { weight, bias: init.values(bias, [channels]) }
    }
}
