//! The layers that architectures share, with parameters named and laid out as in the PyTorch checkpoints.

pub mod fla;
pub mod min_rnn;
mod short_conv;

pub use short_conv::ShortConv;

use crate::Init;
use crate::ops::dropout::Mask;
use crate::ops::{LayerInput, RecurrentWeights, SequenceOps};
use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::module::embedding;

/// A lookup table, `weight` `[vocab, hidden]`.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// One row per token.
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: Backend> Embedding<B> {
    /// N(0, `std`²).
    pub fn new(init: &mut Init<'_, B>, vocab: usize, hidden: usize, std: f64) -> Self {
        Self { weight: init.normal([vocab, hidden], std) }
    }

    /// `[batch, seq]` → `[batch, seq, hidden]`.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        embedding(self.weight.val(), ids)
    }

    /// The same as the input of a recurrent layer, which may not need the rows.
    pub fn lookup(&self, ids: Tensor<B, 2, Int>) -> LayerInput<B> {
        LayerInput::Embedded { table: self.weight.val(), ids }
    }
}

/// The embedding of tokens: fully trained, or with token 0 (`<null>`) frozen at zero.
#[derive(Module, Debug)]
pub enum TokenEmbedding<B: Backend> {
    /// One trained row per token.
    Trained(Embedding<B>),
    /// The first row is frozen at zero.
    NullFrozen(NullFrozenEmbedding<B>),
}

impl<B: Backend> TokenEmbedding<B> {
    /// N(0, `std`²); with `freeze_null`, the first row is zero and not trained.
    pub fn new(init: &mut Init<'_, B>, vocab: usize, hidden: usize, std: f64, freeze_null: bool) -> Self {
        match freeze_null {
            false => Self::Trained(Embedding::new(init, vocab, hidden, std)),
            true => Self::NullFrozen(NullFrozenEmbedding::new(init, vocab, hidden, std)),
        }
    }

    /// One row per token, `[vocab, hidden]`.
    pub fn table(&self) -> Tensor<B, 2> {
        match self {
            Self::Trained(e) => e.weight.val(),
            Self::NullFrozen(e) => Tensor::cat(vec![e.weight_freeze.val(), e.weight_train.val()], 0),
        }
    }

    /// `[batch, seq]` → `[batch, seq, hidden]`.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        embedding(self.table(), ids)
    }

    /// The same as the input of a recurrent layer, which may not need the rows.
    pub fn lookup(&self, ids: Tensor<B, 2, Int>) -> LayerInput<B> {
        LayerInput::Embedded { table: self.table(), ids }
    }
}

/// A lookup table whose first row is zero and gets no gradient.
#[derive(Module, Debug)]
pub struct NullFrozenEmbedding<B: Backend> {
    /// `[vocab − 1, hidden]`.
    weight_train: Param<Tensor<B, 2>>,
    /// `[1, hidden]`.
    weight_freeze: Param<Tensor<B, 2>>,
}

impl<B: Backend> NullFrozenEmbedding<B> {
    fn new(init: &mut Init<'_, B>, vocab: usize, hidden: usize, std: f64) -> Self {
        Self {
            weight_train: init.normal([vocab - 1, hidden], std),
            weight_freeze: init.constant([1, hidden], 0.0).set_require_grad(false),
        }
    }
}

/// y = x·Wᵀ/√hidden, where W `[vocab, hidden]` is the embedding's table: the decoder of a model with tied embeddings
/// (Press & Wolf, arXiv 1608.05859).
pub fn tied_decoder<B: SequenceOps>(x: Tensor<B, 3>, table: Tensor<B, 2>) -> Tensor<B, 3> {
    let [_, hidden] = table.dims();
    B::projection(x / (hidden as f64).sqrt(), table)
}

/// y = x·Wᵀ, `weight` `[out, in]`: PyTorch's `Linear` without a bias.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: Backend> Linear<B> {
    /// N(0, `std`²).
    pub fn new(init: &mut Init<'_, B>, input: usize, output: usize, std: f64) -> Self {
        Self { weight: init.normal([output, input], std) }
    }
}

impl<B: SequenceOps> Linear<B> {
    /// `[batch, seq, in]` → `[batch, seq, out]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        B::projection(x, self.weight.val())
    }
}

/// y = x·Wᵀ + b, `weight` `[out, in]`: PyTorch's `Linear`.
#[derive(Module, Debug)]
pub struct Affine<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Affine<B> {
    /// Both uniform on ±1/√in, as PyTorch's default.
    pub fn new(init: &mut Init<'_, B>, input: usize, output: usize) -> Self {
        let bound = 1.0 / (input as f64).sqrt();
        Self { weight: init.uniform([output, input], bound), bias: init.uniform([output], bound) }
    }
}

impl<B: SequenceOps> Affine<B> {
    /// `[batch, seq, in]` → `[batch, seq, out]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        B::affine(x, self.weight.val().transpose(), self.bias.val(), false)
    }
}

/// down(GELU(up(x))), four times as wide in between (GELU: Hendrycks and Gimpel, arXiv 1606.08415, exact).
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    up: Affine<B>,
    down: Affine<B>,
}

impl<B: Backend> Mlp<B> {
    /// Weights and biases uniform on ±1/√in.
    pub fn new(init: &mut Init<'_, B>, hidden: usize) -> Self {
        Self { up: Affine::new(init, hidden, 4 * hidden), down: Affine::new(init, 4 * hidden, hidden) }
    }
}

impl<B: SequenceOps> Mlp<B> {
    /// `[batch, seq, hidden]` → the same shape.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.down.forward(B::exact_gelu(self.up.forward(x)))
    }
}

/// y = x·W + b, `weight` `[in, out]`: GPT-2's `Conv1D`.
#[derive(Module, Debug)]
pub struct Conv1d<B: Backend> {
    /// `[in, out]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Conv1d<B> {
    /// Weight N(0, `std`²), bias 0.
    pub fn new(init: &mut Init<'_, B>, input: usize, output: usize, std: f64) -> Self {
        Self { weight: init.normal([input, output], std), bias: init.constant([output], 0.0) }
    }
}

impl<B: SequenceOps> Conv1d<B> {
    /// `[batch, seq, in]` → `[batch, seq, out]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        B::affine(x, self.weight.val(), self.bias.val(), false)
    }

    /// max(y, 0) of [`forward`](Self::forward).
    pub fn forward_relu(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        B::affine(x, self.weight.val(), self.bias.val(), true)
    }
}

/// Normalisation over the last axis with biased variance, then scale and shift (Ba et al., arXiv 1607.06450).
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[hidden]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[hidden]`.
    pub bias: Param<Tensor<B, 1>>,
    epsilon: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// Weight 1, bias 0.
    pub fn new(init: &mut Init<'_, B>, hidden: usize, epsilon: f64) -> Self {
        Self { weight: init.constant([hidden], 1.0), bias: init.constant([hidden], 0.0), epsilon }
    }
}

impl<B: SequenceOps> LayerNorm<B> {
    /// `[batch, seq, hidden]` → the same shape.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let width = x.dims()[2];
        B::norm(x, self.weight.val(), Some(self.bias.val()), width, self.epsilon)
    }
}

/// x / √(mean x² + ε) · weight over the last axis, or over that of every head (Zhang & Sennrich, arXiv 1910.07467).
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[hidden]`, or of one head.
    pub weight: Param<Tensor<B, 1>>,
    epsilon: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// Weight 1.
    pub fn new(init: &mut Init<'_, B>, hidden: usize, epsilon: f64) -> Self {
        Self { weight: init.constant([hidden], 1.0), epsilon }
    }
}

impl<B: SequenceOps> RmsNorm<B> {
    /// `[batch, seq, hidden]` → the same shape.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let width = x.dims()[2];
        B::norm(x, self.weight.val(), None, width, self.epsilon)
    }

    /// Every head by itself, with the same weight: `[batch, seq, heads·width]` → the same shape.
    pub fn of_heads(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        B::norm(x, self.weight.val(), None, self.weight.dims()[0], self.epsilon)
    }
}

/// Where the randomness of dropout comes from: masks are a function of (seed, step, place), so that a resumed run draws
/// the same masks as an uninterrupted one. `None` is evaluation.
#[derive(Debug, Clone, Copy)]
pub struct DropoutSource {
    /// The run's seed.
    pub seed: u64,
    /// The optimisation step.
    pub step: u64,
}

/// Zeroes entries with probability `p` and scales the rest by 1/(1−p) while training (Srivastava et al., 2014).
/// `place` tells several dropouts of one forward pass apart.
pub fn dropout<B: SequenceOps, const D: usize>(
    x: Tensor<B, D>,
    p: f64,
    source: Option<DropoutSource>,
    place: u64,
) -> Tensor<B, D> {
    let dims = x.dims();
    masked(x, dims, p, source, place)
}

/// Like [`dropout`], but of whole channels: a channel of `[batch, seq, channels]` is dropped at all time steps of an
/// example or at none (Tompson et al., arXiv 1411.4280).
pub fn channel_dropout<B: SequenceOps>(
    x: Tensor<B, 3>,
    p: f64,
    source: Option<DropoutSource>,
    place: u64,
) -> Tensor<B, 3> {
    let [batch, _, channels] = x.dims();
    masked(x, [batch, 1, channels], p, source, place)
}

/// x times a random mask of this shape.
fn masked<B: SequenceOps, const D: usize>(
    x: Tensor<B, D>,
    shape: [usize; D],
    p: f64,
    source: Option<DropoutSource>,
    place: u64,
) -> Tensor<B, D> {
    match source {
        Some(DropoutSource { seed, step }) if p > 0.0 => {
            B::dropout(x, shape, Mask { p, seed, stream: step << 16 | place })
        }
        _ => x,
    }
}

/// The parameters of one RNN or LSTM layer, in PyTorch's layout (see [`RecurrentWeights`]).
#[derive(Module, Debug)]
pub struct RecurrentLayer<B: Backend> {
    weight_ih: Param<Tensor<B, 2>>,
    weight_hh: Param<Tensor<B, 2>>,
    bias_ih: Param<Tensor<B, 1>>,
    bias_hh: Param<Tensor<B, 1>>,
}

impl<B: Backend> RecurrentLayer<B> {
    /// All parameters uniform on ±1/√hidden.
    pub fn new(init: &mut Init<'_, B>, gates: usize, hidden: usize) -> Self {
        let bound = 1.0 / (hidden as f64).sqrt();
        let rows = gates * hidden;
        Self {
            weight_ih: init.uniform([rows, hidden], bound),
            weight_hh: init.uniform([rows, hidden], bound),
            bias_ih: init.uniform([rows], bound),
            bias_hh: init.uniform([rows], bound),
        }
    }

    /// The tensors, for [`crate::ops::SequenceOps`].
    pub fn weights(&self) -> RecurrentWeights<B> {
        RecurrentWeights {
            weight_ih: self.weight_ih.val(),
            weight_hh: self.weight_hh.val(),
            bias_ih: self.bias_ih.val(),
            bias_hh: self.bias_hh.val(),
        }
    }
}

/// x/√(Σ x² + ε) in every group of `width` channels, `[batch, seq, channels]` → the same shape.
pub(crate) fn unit<B: SequenceOps>(x: Tensor<B, 3>, width: usize, epsilon: f64) -> Tensor<B, 3> {
    let weight = Tensor::full([width], (width as f64).powf(-0.5), (&x.device(), x.dtype()));
    B::norm(x, weight, None, width, epsilon / width as f64)
}

/// `[batch, seq, heads·head_size]` → `[batch, seq, heads, head_size]`.
pub(crate) fn by_head<B: Backend>(x: Tensor<B, 3>, head_size: usize) -> Tensor<B, 4> {
    let [batch, seq, channels] = x.dims();
    x.reshape([batch, seq, channels / head_size, head_size])
}

/// `[batch, seq, heads·head_size]` → `[batch, heads, seq, head_size]`.
pub(crate) fn split_heads<B: Backend>(x: Tensor<B, 3>, head_size: usize) -> Tensor<B, 4> {
    by_head(x, head_size).swap_dims(1, 2)
}

/// Every head as many times in a row as there are to be `heads`: `[batch, fewer heads, seq, size]` →
/// `[batch, heads, seq, size]`.
pub(crate) fn repeat_heads<B: Backend>(x: Tensor<B, 4>, heads: usize) -> Tensor<B, 4> {
    let [batch, present, seq, size] = x.dims();
    if present == heads {
        return x;
    }
    let x = x.unsqueeze_dim::<5>(2).expand([batch, present, heads / present, seq, size]);
    x.reshape([batch, heads, seq, size])
}
