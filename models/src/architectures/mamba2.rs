//! Mamba-2: embedding → residual blocks of RMSNorm and a state space with one rate of decay per head → RMSNorm → decoder.
//! No positions.
//!
//! Source: T. Dao and A. Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
//! Space Duality", arXiv 2405.21060, section 7; parameters as in `mamba_ssm` (state-spaces/mamba).
#![allow(non_snake_case)] // A and D, as in the paper and in checkpoints

use crate::architecture::{Architecture, Heads};
use crate::checkpoint::original::{Fields, OriginalError};
use crate::layers::{Embedding, Linear, RmsNorm, ShortConv, by_head};
use crate::ops::scan::softplus;
use crate::ops::ssd::Ssd;
use crate::ops::{Gate, SequenceOps};
use crate::training::ParameterGroup;
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::{Module, Param};
use burn::prelude::*;
use serde::{Deserialize, Serialize};

/// Sizes of a [`Mamba2`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mamba2Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// N, the size of each channel's state.
    pub state_size: usize,
    /// A block has `expand`·`hidden_size` channels.
    pub expand: usize,
    /// P, the channels of a head.
    pub head_size: usize,
    /// Groups of heads that share what is written and read, B and C.
    pub num_groups: usize,
    /// The length of the short convolution.
    pub conv_kernel: usize,
    /// Whether the decoder is the embedding.
    pub tie_word_embeddings: bool,
}

/// ε of every RMSNorm.
pub const RMS_NORM_EPSILON: f64 = 1e-5;

impl Default for Mamba2Config {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_layers: 2,
            state_size: 64,
            expand: 2,
            head_size: 64,
            num_groups: 1,
            conv_kernel: 4,
            tie_word_embeddings: true,
        }
    }
}

impl Architecture for Mamba2Config {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["lm_head.weight", "backbone.embedding.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("state_size", self.state_size, 1),
            ("expand", self.expand, 1),
            ("head_size", self.head_size, 1),
            ("num_groups", self.num_groups, 1),
            ("conv_kernel", self.conv_kernel, 2),
        ];
        if let Some((key, _, least)) = sizes.into_iter().find(|(_, size, least)| size < least) {
            return Err(ConfigError::new(key, format!("must be at least {least}")));
        }
        let channels = self.hidden_size.saturating_mul(self.expand);
        if !channels.is_multiple_of(self.head_size) {
            let reason = format!(
                "{channels} channels (expand·hidden_size) cannot be split into heads of {}\n  hint: choose a divisor of \
                 {channels}",
                self.head_size
            );
            return Err(ConfigError::new("head_size", reason));
        }
        if !(channels / self.head_size).is_multiple_of(self.num_groups) {
            let reason = format!("{} heads cannot be split into {} groups", channels / self.head_size, self.num_groups);
            return Err(ConfigError::new("num_groups", reason));
        }
        Ok(())
    }

    fn parameter_group(&self, name: &str) -> ParameterGroup {
        let undecayed = ["A_log", "mixer.D", "dt_bias"].iter().any(|end| name.ends_with(end));
        if undecayed { ParameterGroup::UNDECAYED } else { ParameterGroup::DEFAULT }
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, state_size: 16, head_size: 16, ..Self::default() };
        vec![
            small.clone(),
            Self { state_size: 12, head_size: 8, num_groups: 2, tie_word_embeddings: false, ..small.clone() },
            Self { state_size: 5, head_size: 12, expand: 3, conv_kernel: 2, ..small },
        ]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Size("head_size"))
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("lm_head.weight", "backbone.embedding.weight"))
    }

    fn original(f: &Fields<'_>) -> Option<Result<Self, OriginalError>> {
        Some(Self::of(f))
    }
}

impl Mamba2Config {
    /// Channels inside a block.
    pub fn channels(&self) -> usize {
        self.expand * self.hidden_size
    }

    /// Heads of a block.
    pub fn num_heads(&self) -> usize {
        self.channels() / self.head_size
    }

    /// Channels of the convolution: the input, B and C.
    pub fn conv_channels(&self) -> usize {
        self.channels() + 2 * self.num_groups * self.state_size
    }

    /// A model over `vocab` tokens: embedding and decoder N(0, 0.02²), the rest as in [`Mixer`].
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Mamba2<B> {
        let hidden = self.hidden_size;
        Mamba2 {
            backbone: Backbone {
                embedding: Embedding::new(init, vocab, hidden, 0.02),
                layers: (0..self.num_layers)
                    .map(|_| Block {
                        norm: RmsNorm::new(init, hidden, RMS_NORM_EPSILON),
                        mixer: Mixer::new(self, init),
                    })
                    .collect(),
                norm_f: RmsNorm::new(init, hidden, RMS_NORM_EPSILON),
            },
            lm_head: (!self.tie_word_embeddings).then(|| Linear::new(init, hidden, vocab, 0.02)),
        }
    }

    fn of(f: &Fields<'_>) -> Result<Self, OriginalError> {
        f.only("rms_norm", &true)?;
        f.only("norm_before_gate", &false)?;
        f.only("norm_epsilon", &RMS_NORM_EPSILON)?;
        f.only("bias", &false)?;
        f.only("conv_bias", &true)?;
        f.only("d_intermediate", &0)?;
        // How it was computed, which changes nothing.
        f.get::<serde_json::Value>("chunk_size")?;
        f.get::<serde_json::Value>("residual_in_fp32")?;
        Ok(Self {
            hidden_size: f.required("hidden_size")?,
            num_layers: f.required("num_hidden_layers")?,
            state_size: f.get("d_state")?.unwrap_or(128),
            expand: f.get("expand")?.unwrap_or(2),
            head_size: f.get("headdim")?.unwrap_or(64),
            num_groups: f.get("ngroups")?.unwrap_or(1),
            conv_kernel: f.get("d_conv")?.unwrap_or(4),
            tie_word_embeddings: f.get("tie_word_embeddings")?.unwrap_or(true),
        })
    }
}

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Mamba2<B: Backend> {
    backbone: Backbone<B>,
    /// `None`: the embedding.
    lm_head: Option<Linear<B>>,
}

#[derive(Module, Debug)]
struct Backbone<B: Backend> {
    embedding: Embedding<B>,
    layers: Vec<Block<B>>,
    norm_f: RmsNorm<B>,
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    norm: RmsNorm<B>,
    mixer: Mixer<B>,
}

/// The state of one block between tokens.
#[derive(Debug, Clone)]
pub struct Mamba2State<B: Backend> {
    /// The last inputs of the short convolution, `[batch, channels + 2·groups·state_size, conv_kernel − 1]`.
    pub conv: Tensor<B, 3>,
    /// `[batch, heads, state_size, head_size]`.
    pub ssm: Tensor<B, 4>,
}

impl<B: Backend> Network<B> for Mamba2<B> {}

impl<B: SequenceOps> Mamba2<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of tokens that follow those which left `state` behind (none if `None`), and the
    /// state of every block after them.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<Mamba2State<B>>>,
    ) -> (Tensor<B, 3>, Vec<Mamba2State<B>>) {
        let Backbone { embedding, layers, norm_f } = &self.backbone;
        let mut x = embedding.forward(input.input_ids); // [batch, seq, hidden]
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(layers.len());
        for block in layers {
            let (y, state) = block.mixer.forward(block.norm.forward(x.clone()), before.next());
            x = x + y;
            after.push(state);
        }
        let x = norm_f.forward(x);
        let logits = match &self.lm_head {
            Some(decoder) => decoder.forward(x),
            None => B::projection(x, embedding.weight.val()),
        };
        (logits, after)
    }
}

/// A state space between two projections, gated and normalised (figure 6 of the paper). E is `expand`·`hidden_size`, G the
/// number of groups, N the size of a state.
#[derive(Module, Debug)]
pub struct Mixer<B: Backend> {
    /// `[2E + 2GN + heads, hidden]`: the gate, the input, B, C and the step sizes.
    in_proj: Linear<B>,
    /// Over input, B and C.
    conv1d: ShortConv<B>,
    /// `[heads]`.
    dt_bias: Param<Tensor<B, 1>>,
    /// A = −exp(A_log), `[heads]`.
    A_log: Param<Tensor<B, 1>>,
    /// The skip connection, `[heads]`.
    D: Param<Tensor<B, 1>>,
    /// `[E]`, in groups.
    norm: RmsNorm<B>,
    /// `[hidden, E]`.
    out_proj: Linear<B>,
    /// Channels of a head.
    head_size: usize,
    /// Groups.
    groups: usize,
}

impl<B: Backend> Mixer<B> {
    /// Projections U(±1/√in), `out_proj` the same over √num_layers; A uniform on −16 … −1, D = 1; step sizes start
    /// log-uniform on 0.001 … 0.1.
    pub(crate) fn new(config: &Mamba2Config, init: &mut Init<'_, B>) -> Self {
        let (hidden, channels, heads) = (config.hidden_size, config.channels(), config.num_heads());
        let bound = |input: usize| 1.0 / (input as f64).sqrt();
        let linear =
            |init: &mut Init<'_, B>, output, input, bound| Linear { weight: init.uniform([output, input], bound) };
        Self {
            in_proj: linear(init, channels + config.conv_channels() + heads, hidden, bound(hidden)),
            conv1d: ShortConv::biased(init, config.conv_channels(), config.conv_kernel),
            dt_bias: {
                let logs = init.draw_uniform(heads, 0.001f64.ln(), 0.1f64.ln());
                // softplus⁻¹(x) = log(eˣ − 1)
                let bias = logs.into_iter().map(|log| f64::from(log).exp().max(1e-4).exp_m1().ln() as f32);
                init.values(bias.collect(), [heads])
            },
            A_log: {
                let a = init.draw_uniform(heads, 1.0, 16.0);
                init.values(a.into_iter().map(f32::ln).collect(), [heads])
            },
            D: init.constant([heads], 1.0),
            norm: RmsNorm::new(init, channels, RMS_NORM_EPSILON),
            out_proj: linear(init, hidden, channels, bound(channels) / (config.num_layers as f64).sqrt()),
            head_size: config.head_size,
            groups: config.num_groups,
        }
    }
}

impl<B: SequenceOps> Mixer<B> {
    /// `[batch, seq, hidden]` → the same shape, and the state after it.
    pub(crate) fn forward(&self, x: Tensor<B, 3>, state: Option<Mamba2State<B>>) -> (Tensor<B, 3>, Mamba2State<B>) {
        let [batch, seq, _] = x.dims();
        let (before, ssm) = state.map(|state| (state.conv, state.ssm)).unzip();
        let (channels, heads) = (self.norm.weight.dims()[0], self.D.dims()[0]);
        let [rows, _] = self.in_proj.weight.dims();
        let part = |start: usize, width: usize| {
            B::projection(x.clone(), self.in_proj.weight.val().narrow(0, start, width)) // [batch, seq, width]
        };
        let conv_channels = rows - channels - heads;
        let (z, dt) = (part(0, channels), part(rows - heads, heads));
        let (u, conv) = self.conv1d.forward(part(channels, conv_channels), before, true);
        let state_size = (conv_channels - channels) / (2 * self.groups);
        let shared = self.groups * state_size;
        let [v, keys, queries] = B::split(u, [channels, shared, shared]);
        let delta = softplus(dt + self.dt_bias.val().unsqueeze()); // [batch, seq, heads]
        let decay = (delta.clone() * self.A_log.val().exp().unsqueeze()).neg().exp();
        let inputs = Ssd {
            q: by_head(queries, state_size), // [batch, seq, groups, state]
            k: by_head(keys, state_size),
            v: by_head(v, self.head_size), // [batch, seq, heads, head_size]
            decay,
            write: delta,
        };
        let (y, ssm) = B::ssd(inputs, self.D.val(), ssm);
        let y = B::gated(y.reshape([batch, seq, channels]), z, Gate::Silu);
        let y = B::norm(y, self.norm.weight.val(), None, channels / self.groups, RMS_NORM_EPSILON);
        (self.out_proj.forward(y), Mamba2State { conv, ssm })
    }
}
