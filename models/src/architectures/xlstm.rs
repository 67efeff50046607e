//! xLSTM: blocks of an LSTM with exponential gates, whose heads mix their outputs (sLSTM), or that writes into a matrix
//! (mLSTM), in any order.
//!
//! Source: M. Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv 2405.04517; parameters as in the package NX-AI/xlstm
//! with its ordinary backends.

use crate::architecture::{Architecture, Heads};
use crate::checkpoint::original::{Fields, OriginalError};
use crate::layers::{Embedding, Linear, ShortConv, by_head};
use crate::ops::slstm::{GATES, SlstmState};
use crate::ops::ssd::{Divisor, Normalised, Ssd};
use crate::ops::{Activation, SequenceOps};
use crate::training::ParameterGroup;
use crate::{ConfigError, Init, ModelInput, Network};
use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::activation::log_sigmoid;
use serde::{Deserialize, Serialize};

/// Sizes of an [`Xlstm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XlstmConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// The blocks that are sLSTMs, counted from 0; the others are mLSTMs.
    pub slstm_at: Vec<usize>,
    /// Heads of a block.
    pub num_heads: usize,
    /// Taps of an sLSTM's convolution, which its input and forget gates see; 0: none.
    pub slstm_conv: usize,
    /// Taps of an mLSTM's convolution, which its queries and keys see; 0: none.
    pub mlstm_conv: usize,
    /// An mLSTM has `mlstm_factor`·`hidden_size` channels, rounded up to a multiple of `round_to`.
    pub mlstm_factor: f64,
    /// Channels that an mLSTM's projections to queries, keys and values mix.
    pub qkv_block: usize,
    /// Whether an MLP follows an sLSTM.
    pub feed_forward: bool,
    /// The MLP has `feed_forward_factor`·`hidden_size` channels, rounded up to a multiple of `round_to`.
    pub feed_forward_factor: f64,
    /// See `mlstm_factor`.
    pub round_to: usize,
    /// Whether the decoder is the embedding.
    pub tie_word_embeddings: bool,
}

/// ε of every norm.
pub const NORM_EPSILON: f64 = 1e-5;

/// Added to the divisor of an mLSTM's outputs.
pub const DIVISOR_EPSILON: f32 = 1e-6;

impl Default for XlstmConfig {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_layers: 2,
            slstm_at: vec![],
            num_heads: 4,
            slstm_conv: 4,
            mlstm_conv: 4,
            mlstm_factor: 2.0,
            qkv_block: 4,
            feed_forward: true,
            feed_forward_factor: 1.3,
            round_to: 64,
            tie_word_embeddings: false,
        }
    }
}

impl Architecture for XlstmConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["lm_head.weight", "token_embedding.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        for (key, size) in [("num_heads", self.num_heads), ("qkv_block", self.qkv_block), ("round_to", self.round_to)] {
            if size == 0 {
                return Err(ConfigError::new(key, "must be at least 1"));
            }
        }
        for (key, taps) in [("slstm_conv", self.slstm_conv), ("mlstm_conv", self.mlstm_conv)] {
            if taps == 1 {
                return Err(ConfigError::new(key, "must be 0, for no convolution, or at least 2"));
            }
        }
        let factors = [("mlstm_factor", self.mlstm_factor), ("feed_forward_factor", self.feed_forward_factor)];
        if let Some((key, factor)) = factors.into_iter().find(|(_, factor)| !(*factor > 0.0 && *factor <= 1e3)) {
            return Err(ConfigError::new(key, format!("{factor} must be a positive number of at most 1000")));
        }
        if let Some(block) = self.slstm_at.iter().find(|block| **block >= self.num_layers) {
            let reason = format!("there is no block {block}: the {} blocks are counted from 0", self.num_layers);
            return Err(ConfigError::new("slstm_at", reason));
        }
        let divides = |key, channels: usize, parts: usize, what: &str| match channels.is_multiple_of(parts) {
            true => Ok(()),
            false => {
                Err(ConfigError::new(key, format!("{what}, {channels}, cannot be split into {parts} equal parts")))
            }
        };
        if (0..self.num_layers).any(|i| self.is_slstm(i)) {
            divides("num_heads", self.hidden_size, self.num_heads, "hidden_size")?;
        }
        if (0..self.num_layers).any(|i| !self.is_slstm(i)) {
            let what = "the channels of an mLSTM";
            divides("num_heads", self.channels(), self.num_heads, what)?;
            if !self.channels().is_multiple_of(self.qkv_block) {
                let reason = format!("{what}, {}, are not a multiple of {}", self.channels(), self.qkv_block);
                return Err(ConfigError::new("qkv_block", reason));
            }
        }
        Ok(())
    }

    fn parameter_group(&self, name: &str) -> ParameterGroup {
        let decays = name.contains("weight") && !name.contains("norm") && !name.contains("token_embedding");
        if decays { ParameterGroup::DEFAULT } else { ParameterGroup::UNDECAYED }
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, num_heads: 2, round_to: 8, ..Self::default() };
        vec![
            small.clone(),
            Self { slstm_at: vec![1], ..small.clone() },
            Self { slstm_at: vec![0, 1], slstm_conv: 0, feed_forward: false, ..small.clone() },
            Self {
                slstm_at: vec![0],
                num_heads: 4,
                mlstm_conv: 0,
                mlstm_factor: 1.5,
                qkv_block: 2,
                feed_forward_factor: 2.0,
                tie_word_embeddings: true,
                ..small
            },
        ]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Number("num_heads"))
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("lm_head.weight", "token_embedding.weight"))
    }

    fn original(f: &Fields<'_>) -> Option<Result<Self, OriginalError>> {
        Some(Self::of(f))
    }
}

impl XlstmConfig {
    /// Whether this block is an sLSTM.
    pub fn is_slstm(&self, block: usize) -> bool {
        self.slstm_at.contains(&block)
    }

    /// Channels of an mLSTM.
    pub fn channels(&self) -> usize {
        self.rounded(self.mlstm_factor)
    }

    /// Channels of the MLP after an sLSTM.
    pub fn feed_forward_channels(&self) -> usize {
        self.rounded(self.feed_forward_factor)
    }

    fn rounded(&self, factor: f64) -> usize {
        ((self.hidden_size as f64 * factor / self.round_to as f64).ceil() as usize).max(1) * self.round_to
    }

    /// A model over `vocab` tokens. Weights that read the residual stream N(0, 2/(5·hidden)), those that write to it
    /// N(0, (2/(layers·√hidden))²), convolutions U(±1/√taps), scales 1; recurrent matrices and the gates of an mLSTM are 0,
    /// with forget gates open to different degrees.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Xlstm<B> {
        let hidden = self.hidden_size;
        Xlstm {
            token_embedding: Embedding::new(init, vocab, hidden, self.std()),
            xlstm_block_stack: Stack {
                blocks: (0..self.num_layers).map(|i| self.block(i, init)).collect(),
                post_blocks_norm: ScaleNorm::new(init, hidden),
            },
            lm_head: (!self.tie_word_embeddings).then(|| Linear::new(init, hidden, vocab, self.std())),
        }
    }

    fn std(&self) -> f64 {
        (2.0 / (5.0 * self.hidden_size as f64)).sqrt()
    }

    fn block<B: Backend>(&self, block: usize, init: &mut Init<'_, B>) -> Block<B> {
        let hidden = self.hidden_size;
        let out_std = 2.0 / (self.num_layers as f64 * (hidden as f64).sqrt());
        let has_mlp = self.is_slstm(block) && self.feed_forward;
        Block {
            xlstm_norm: ScaleNorm::new(init, hidden),
            xlstm: match self.is_slstm(block) {
                true => Cell::Slstm(self.slstm(block, init)),
                false => Cell::Mlstm(self.mlstm(out_std, init)),
            },
            ffn_norm: has_mlp.then(|| ScaleNorm::new(init, hidden)),
            ffn: has_mlp.then(|| {
                let channels = self.feed_forward_channels();
                FeedForward {
                    proj_up: Linear::new(init, hidden, 2 * channels, self.std()),
                    proj_down: Linear::new(init, channels, hidden, out_std),
                }
            }),
        }
    }

    fn slstm<B: Backend>(&self, block: usize, init: &mut Init<'_, B>) -> Slstm<B> {
        let (hidden, heads) = (self.hidden_size, self.num_heads);
        let size = hidden / heads;
        let gate = |init: &mut Init<'_, B>| Headwise { weight: init.normal([heads, size, size], self.std()) };
        // From 5 down to −7 over the channels of a head, the steeper the higher the block (appendix of the code).
        let depth = if self.num_layers > 1 { block as f64 / (self.num_layers - 1) as f64 } else { 0.0 };
        let forget = |channel: usize| {
            let place = if size > 1 { (channel % size) as f64 / (size - 1) as f64 } else { 0.0 };
            (5.0 - 12.0 * place.powf(0.3 + 1.3 * depth)) as f32
        };
        let bias = (0..GATES * hidden).map(|i| if i / hidden == 1 { forget(i % hidden) } else { 0.0 });
        Slstm {
            fgate: gate(init),
            igate: gate(init),
            zgate: gate(init),
            ogate: gate(init),
            conv1d: (self.slstm_conv > 0)
                .then(|| CausalConv { conv: ShortConv::biased(init, hidden, self.slstm_conv) }),
            slstm_cell: SlstmCell {
                _recurrent_kernel_: init.constant([heads, GATES * size, size], 0.0),
                _bias_: init.values(bias.collect(), [GATES * hidden]),
            },
            group_norm: ScaleNorm::new(init, hidden),
        }
    }

    fn mlstm<B: Backend>(&self, out_std: f64, init: &mut Init<'_, B>) -> Mlstm<B> {
        let (hidden, channels, heads, block) = (self.hidden_size, self.channels(), self.num_heads, self.qkv_block);
        let mix =
            |init: &mut Init<'_, B>| Headwise { weight: init.normal([channels / block, block, block], self.std()) };
        let open = |head: usize| 3.0 + 3.0 * head as f32 / (heads - 1).max(1) as f32;
        Mlstm {
            proj_up: Linear::new(init, hidden, 2 * channels, self.std()),
            q_proj: mix(init),
            k_proj: mix(init),
            v_proj: mix(init),
            conv1d: (self.mlstm_conv > 0)
                .then(|| CausalConv { conv: ShortConv::biased(init, channels, self.mlstm_conv) }),
            mlstm_cell: MlstmCell {
                igate: HeadGate { weight: init.constant([heads, 3 * channels], 0.0), bias: init.normal([heads], 0.1) },
                fgate: HeadGate {
                    weight: init.constant([heads, 3 * channels], 0.0),
                    bias: init.values((0..heads).map(open).collect(), [heads]),
                },
                outnorm: ScaleNorm::new(init, channels),
            },
            learnable_skip: init.constant([channels], 1.0),
            proj_down: Linear::new(init, channels, hidden, out_std),
        }
    }

    fn of(f: &Fields<'_>) -> Result<Self, OriginalError> {
        let default = Self::default();
        // Which follow from `slstm_at`.
        f.flag("has_m")?;
        f.flag("has_s")?;
        Ok(Self {
            hidden_size: f.required("hidden_size")?,
            num_layers: f.required("num_hidden_layers")?,
            slstm_at: f.get("slstm_at")?.unwrap_or_default(),
            num_heads: f.get("num_heads")?.unwrap_or(default.num_heads),
            slstm_conv: f.get("slstm_conv")?.unwrap_or(default.slstm_conv),
            mlstm_conv: f.get("mlstm_conv")?.unwrap_or(default.mlstm_conv),
            mlstm_factor: f.get("mlstm_proj_factor")?.unwrap_or(default.mlstm_factor),
            qkv_block: f.get("qkv_proj_blocksize")?.unwrap_or(default.qkv_block),
            feed_forward: f.get("ff")?.unwrap_or(true),
            feed_forward_factor: f.get("ff_proj_factor")?.unwrap_or(default.feed_forward_factor),
            round_to: f.get("round_to")?.unwrap_or(default.round_to),
            tie_word_embeddings: f.flag("tie_word_embeddings")?,
        })
    }
}

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Xlstm<B: Backend> {
    token_embedding: Embedding<B>,
    xlstm_block_stack: Stack<B>,
    /// `None`: the embedding.
    lm_head: Option<Linear<B>>,
}

#[derive(Module, Debug)]
struct Stack<B: Backend> {
    blocks: Vec<Block<B>>,
    post_blocks_norm: ScaleNorm<B>,
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    xlstm_norm: ScaleNorm<B>,
    xlstm: Cell<B>,
    ffn_norm: Option<ScaleNorm<B>>,
    ffn: Option<FeedForward<B>>,
}

// A block has one of them, and there are few blocks.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
enum Cell<B: Backend> {
    Slstm(Slstm<B>),
    Mlstm(Mlstm<B>),
}

/// (x − mean)/√(variance + ε)·(1 + weight) over all channels, or over those of every head.
#[derive(Module, Debug)]
struct ScaleNorm<B: Backend> {
    weight: Param<Tensor<B, 1>>,
}

/// A matrix for each of several groups of channels, `[groups, out, in]`.
#[derive(Module, Debug)]
struct Headwise<B: Backend> {
    weight: Param<Tensor<B, 3>>,
}

#[derive(Module, Debug)]
struct CausalConv<B: Backend> {
    conv: ShortConv<B>,
}

/// down(GELU(first half of up(x))⊙second half).
#[derive(Module, Debug)]
struct FeedForward<B: Backend> {
    proj_up: Linear<B>,
    proj_down: Linear<B>,
}

#[derive(Module, Debug)]
struct Slstm<B: Backend> {
    /// Of the input gate, whatever its name says: the published layer hands it to the cell's first gate.
    fgate: Headwise<B>,
    /// Of the forget gate.
    igate: Headwise<B>,
    zgate: Headwise<B>,
    ogate: Headwise<B>,
    conv1d: Option<CausalConv<B>>,
    slstm_cell: SlstmCell<B>,
    group_norm: ScaleNorm<B>,
}

#[derive(Module, Debug)]
struct SlstmCell<B: Backend> {
    /// `[heads, 4·size, size]`: of input, forget, cell input and output gate.
    _recurrent_kernel_: Param<Tensor<B, 3>>,
    /// `[4·hidden]`, gate by gate.
    _bias_: Param<Tensor<B, 1>>,
}

#[derive(Module, Debug)]
struct Mlstm<B: Backend> {
    proj_up: Linear<B>,
    q_proj: Headwise<B>,
    k_proj: Headwise<B>,
    v_proj: Headwise<B>,
    conv1d: Option<CausalConv<B>>,
    mlstm_cell: MlstmCell<B>,
    /// `[channels]`.
    learnable_skip: Param<Tensor<B, 1>>,
    proj_down: Linear<B>,
}

#[derive(Module, Debug)]
struct MlstmCell<B: Backend> {
    igate: HeadGate<B>,
    fgate: HeadGate<B>,
    outnorm: ScaleNorm<B>,
}

/// One number per head.
#[derive(Module, Debug)]
struct HeadGate<B: Backend> {
    /// `[heads, 3·channels]`.
    weight: Param<Tensor<B, 2>>,
    /// `[heads]`.
    bias: Param<Tensor<B, 1>>,
}

/// The state of one block between tokens.
#[derive(Debug, Clone)]
pub struct XlstmState<B: Backend> {
    /// The last inputs of the convolution, `[batch, channels, taps − 1]`; `None` without one.
    pub conv: Option<Tensor<B, 3>>,
    /// The cell's.
    pub cell: XlstmCellState<B>,
}

/// The state of a block's cell.
#[derive(Debug, Clone)]
pub enum XlstmCellState<B: Backend> {
    /// Of an sLSTM.
    Slstm(SlstmState<B>),
    /// Of an mLSTM.
    Mlstm {
        /// `[batch, heads, key, value]`, times e^−m.
        memory: Tensor<B, 4>,
        /// `[batch, channels]`, times e^−m.
        normaliser: Tensor<B, 2>,
        /// m, `[batch, 1, heads]`.
        stabiliser: Tensor<B, 3>,
    },
}

impl<B: Backend> Network<B> for Xlstm<B> {}

impl<B: Backend> ScaleNorm<B> {
    fn new(init: &mut Init<'_, B>, channels: usize) -> Self {
        Self { weight: init.constant([channels], 0.0) }
    }
}

impl<B: SequenceOps> ScaleNorm<B> {
    /// In groups of `width` channels: `[batch, seq, channels]` → the same shape.
    fn forward(&self, x: Tensor<B, 3>, width: usize) -> Tensor<B, 3> {
        let weight = self.weight.val();
        let no_bias = Tensor::zeros_like(&weight);
        B::norm(x, weight + 1.0, Some(no_bias), width, NORM_EPSILON)
    }
}

impl<B: SequenceOps> Headwise<B> {
    /// `[batch, seq, groups·in]` → `[batch, seq, groups·out]`.
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        B::headwise(x, self.weight.val())
    }

    /// Two layers of the same input.
    fn pair(layers: [&Self; 2], x: Tensor<B, 3>) -> [Tensor<B, 3>; 2] {
        B::headwise_pair(x, layers.map(|layer| layer.weight.val()))
    }
}

impl<B: SequenceOps> Xlstm<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of tokens that follow those which left `state` behind (none if `None`), and the
    /// state of every block after them.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<XlstmState<B>>>,
    ) -> (Tensor<B, 3>, Vec<XlstmState<B>>) {
        let Stack { blocks, post_blocks_norm } = &self.xlstm_block_stack;
        let mut x = self.token_embedding.forward(input.input_ids); // [batch, seq, hidden]
        let hidden = x.dims()[2];
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(blocks.len());
        for block in blocks {
            let normal = block.xlstm_norm.forward(x.clone(), hidden);
            let (y, state) = match &block.xlstm {
                Cell::Slstm(cell) => cell.forward(normal, before.next()),
                Cell::Mlstm(cell) => cell.forward(normal, before.next()),
            };
            x = x + y;
            if let (Some(norm), Some(ffn)) = (&block.ffn_norm, &block.ffn) {
                x = x.clone() + ffn.forward(norm.forward(x, hidden));
            }
            after.push(state);
        }
        let x = post_blocks_norm.forward(x, hidden);
        let logits = match &self.lm_head {
            Some(decoder) => decoder.forward(x),
            None => B::projection(x, self.token_embedding.weight.val()),
        };
        (logits, after)
    }
}

impl<B: SequenceOps> FeedForward<B> {
    /// `[batch, seq, hidden]` → the same shape.
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let channels = self.proj_up.weight.dims()[0] / 2;
        let half = |i: usize| B::projection(x.clone(), self.proj_up.weight.val().narrow(0, i * channels, channels));
        self.proj_down.forward(B::exact_gelu(half(0)) * half(1))
    }
}

impl<B: SequenceOps> Slstm<B> {
    /// `[batch, seq, hidden]` → the same shape, and the state after it.
    fn forward(&self, x: Tensor<B, 3>, state: Option<XlstmState<B>>) -> (Tensor<B, 3>, XlstmState<B>) {
        let (conv, cell) = match state {
            Some(XlstmState { conv, cell: XlstmCellState::Slstm(cell) }) => (conv, Some(cell)),
            _ => (None, None),
        };
        let (u, conv) = match &self.conv1d {
            Some(CausalConv { conv: layer }) => {
                let (u, conv) = layer.forward(x.clone(), conv, true);
                (u, Some(conv))
            }
            None => (x.clone(), None),
        };
        let gates = [([&self.fgate, &self.igate], u), ([&self.zgate, &self.ogate], x)];
        let gates = gates.into_iter().flat_map(|(layers, x)| Headwise::pair(layers, x)).collect();
        let gates = Tensor::cat(gates, 2) + self.slstm_cell._bias_.val().unsqueeze(); // [batch, seq, 4·hidden]
        let recurrent = self.slstm_cell._recurrent_kernel_.val();
        let size = recurrent.dims()[2];
        let (y, cell) = B::slstm(gates, recurrent, cell);
        (self.group_norm.forward(y, size), XlstmState { conv, cell: XlstmCellState::Slstm(cell) })
    }
}

impl<B: SequenceOps> Mlstm<B> {
    /// `[batch, seq, hidden]` → the same shape, and the state after it.
    ///
    /// With log f = log σ(f̃) and m_t = max(log f_t + m_{t−1}, ĩ_t), which keeps exponentials small and cancels:
    /// C_t = f C_{t−1} + i k vᵀ, n_t = f n_{t−1} + i k, h_t = C_tᵀq/(max(|n_tᵀq|, e^−m_t) + ε), where
    /// f = exp(log f_t + m_{t−1} − m_t), i = exp(ĩ_t − m_t).
    fn forward(&self, x: Tensor<B, 3>, state: Option<XlstmState<B>>) -> (Tensor<B, 3>, XlstmState<B>) {
        let (conv, cell) = match state {
            Some(XlstmState { conv, cell: XlstmCellState::Mlstm { memory, normaliser, stabiliser } }) => {
                (conv, Some((memory, normaliser, stabiliser)))
            }
            _ => (None, None),
        };
        let [batch, seq, _] = x.dims();
        let channels = self.learnable_skip.dims()[0];
        let heads = self.mlstm_cell.igate.bias.dims()[0];
        let size = channels / heads;
        let half = |i: usize| B::projection(x.clone(), self.proj_up.weight.val().narrow(0, i * channels, channels));
        let (x, z) = (half(0), half(1)); // [batch, seq, channels]
        let (u, conv) = match &self.conv1d {
            Some(CausalConv { conv: layer }) => {
                let (u, conv) = layer.forward(x.clone(), conv, true);
                (u, Some(conv))
            }
            None => (B::activation(x.clone(), Activation::Silu), None),
        };
        let [q, k] = Headwise::pair([&self.q_proj, &self.k_proj], u.clone());
        let v = self.v_proj.forward(x.clone());
        let [input, forget] = self.mlstm_cell.gates([&q, &k, &v]); // [batch, seq, heads]
        let log_forget = log_sigmoid(forget);

        let (memory, normaliser, before) = match cell {
            Some((memory, normaliser, stabiliser)) => (Some(memory), Some(normaliser), stabiliser),
            // As good as −∞: nothing of what was before the first token is left.
            None => (None, None, Tensor::full([batch, 1, heads], LOWEST, (&input.device(), input.dtype()))),
        };
        let m = stabiliser(log_forget.clone().detach(), input.clone().detach(), before.clone());
        let earlier = match seq {
            1 => before,
            _ => Tensor::cat(vec![before, m.clone().narrow(1, 0, seq - 1)], 1),
        };
        let forget = (log_forget + earlier - m.clone()).exp(); // [batch, seq, heads]
        let write = (input - m.clone()).exp();
        let inputs = Ssd {
            q: by_head(q, size),
            k: by_head(k, size),
            v: by_head(v, size),
            decay: forget,
            write: write / (size as f64).sqrt(),
        };
        let state = memory.zip(normaliser).map(|(memory, n)| (memory, n.reshape([batch, heads, size])));
        let divisor = Divisor { least: (-m.clone()).exp(), epsilon: DIVISOR_EPSILON };
        let Normalised { y, state: memory, normaliser } = B::normalised_ssd(inputs, divisor, state);
        let normaliser = normaliser.reshape([batch, channels]);
        let y = self.mlstm_cell.outnorm.forward(y.reshape([batch, seq, channels]), size);
        let cell = XlstmCellState::Mlstm { memory, normaliser, stabiliser: m.narrow(1, seq - 1, 1) };
        let y = B::gated_sum(y, u, self.learnable_skip.val(), z);
        (self.proj_down.forward(y), XlstmState { conv, cell })
    }
}

/// A logarithm that is as good as −∞, and that sums stay finite with.
const LOWEST: f64 = -1e30;

/// The stabilisers m_t = max(a_t + m_{t−1}, b_t), `[batch, seq, heads]`, after `before` `[batch, 1, heads]`, by spans that
/// double: the sum A of the a of a span, and M, its last stabiliser if there was nothing before it.
fn stabiliser<B: Backend>(a: Tensor<B, 3>, b: Tensor<B, 3>, before: Tensor<B, 3>) -> Tensor<B, 3> {
    let [batch, seq, heads] = a.dims();
    let (mut sums, mut most) = (a, b);
    let mut span = 1;
    while span < seq {
        let nothing = |value: f64| Tensor::full([batch, span, heads], value, (&sums.device(), sums.dtype()));
        let shifted =
            |x: &Tensor<B, 3>, fill: Tensor<B, 3>| Tensor::cat(vec![fill, x.clone().narrow(1, 0, seq - span)], 1);
        let earlier = shifted(&most, nothing(LOWEST));
        let total = sums.clone() + shifted(&sums, nothing(0.0));
        most = most.max_pair(earlier + sums.clone());
        sums = total;
        span *= 2;
    }
    most.max_pair(before + sums)
}

impl<B: SequenceOps> MlstmCell<B> {
    /// Input and forget gate of q, k and v side by side, `[batch, seq, channels]` each → `[batch, seq, heads]`.
    fn gates(&self, parts: [&Tensor<B, 3>; 3]) -> [Tensor<B, 3>; 2] {
        let Self { igate, fgate, .. } = self;
        let [heads, channels] = igate.weight.dims();
        let channels = channels / 3;
        // Both at once, so that q, k and v are read once, and have one gradient of it.
        let weight = Tensor::cat(vec![igate.weight.val(), fgate.weight.val()], 0); // [2·heads, 3·channels]
        let bias = Tensor::cat(vec![igate.bias.val(), fgate.bias.val()], 0);
        let products = parts.into_iter().enumerate().map(|(i, x)| {
            B::projection(x.clone(), weight.clone().narrow(1, i * channels, channels)) // [batch, seq, 2·heads]
        });
        let gates = products.fold(bias.reshape([1, 1, 2 * heads]), |sum, product| product + sum);
        B::split(gates, [heads, heads])
    }
}
