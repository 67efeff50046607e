//! The model that flash-linear-attention (fla-org) puts around its layers: embedding → blocks of a mixer and a gated MLP,
//! each after an RMSNorm and added to the residual stream → RMSNorm → decoder. Parameters are named as there.

use super::{Embedding, Linear, RmsNorm, ShortConv};
use crate::ops::{Gate, SequenceOps};
use crate::{ConfigError, Init, ModelInput};
use burn::module::{Module, Param};
use burn::prelude::*;

/// Standard deviation of all weights at the start.
pub const STD: f64 = 0.02;

/// Sizes of an [`FlaModel`].
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Channels inside an MLP.
    pub intermediate: usize,
    /// ε of the norms on the residual stream.
    pub norm_epsilon: f64,
    /// Whether the decoder is the embedding.
    pub tied: bool,
}

impl Sizes {
    /// Channels inside an MLP where the config leaves them open (0): ⌊8·hidden/3⌋, rounded up to a multiple of 256.
    pub fn intermediate(chosen: usize, hidden: usize) -> usize {
        if chosen > 0 { chosen } else { (8 * hidden / 3).next_multiple_of(256) }
    }
}

/// Refuses an ε that is no positive number.
pub fn check_epsilon(epsilon: f64) -> Result<(), ConfigError> {
    if epsilon > 0.0 && epsilon.is_finite() {
        return Ok(());
    }
    Err(ConfigError::new("norm_epsilon", format!("{epsilon} must be a positive number")))
}

/// See the [module documentation](self). `M` is the mixer.
#[derive(Module, Debug)]
pub struct FlaModel<B: Backend, M: Module<B>> {
    pub(crate) model: Backbone<B, M>,
    /// `None`: the embedding.
    lm_head: Option<Linear<B>>,
}

#[derive(Module, Debug)]
pub(crate) struct Backbone<B: Backend, M: Module<B>> {
    embeddings: Embedding<B>,
    layers: Vec<Block<B, M>>,
    norm: RmsNorm<B>,
    /// What the mixers share, `[layers, hidden]`; only HGRN2 has it.
    pub(crate) lower_bounds: Option<Param<Tensor<B, 2>>>,
}

#[derive(Module, Debug)]
struct Block<B: Backend, M: Module<B>> {
    attn_norm: RmsNorm<B>,
    attn: M,
    mlp_norm: RmsNorm<B>,
    mlp: GatedMlp<B>,
}

impl<B: Backend, M: Module<B>> FlaModel<B, M> {
    /// A model over `vocab` tokens with weights N(0, 0.02²), whose mixers are made by `mixer`.
    pub fn new(
        sizes: Sizes,
        vocab: usize,
        init: &mut Init<'_, B>,
        mut mixer: impl FnMut(&mut Init<'_, B>) -> M,
    ) -> Self {
        let norm = |init: &mut Init<'_, B>| RmsNorm::new(init, sizes.hidden, sizes.norm_epsilon);
        let embeddings = Embedding::new(init, vocab, sizes.hidden, STD);
        let block = |_| Block {
            attn_norm: norm(init),
            attn: mixer(init),
            mlp_norm: norm(init),
            mlp: GatedMlp::new(init, sizes.hidden, sizes.intermediate),
        };
        let layers = (0..sizes.layers).map(block).collect();
        let norm = norm(init);
        let lm_head = (!sizes.tied).then(|| Linear::new(init, sizes.hidden, vocab, STD));
        Self { model: Backbone { embeddings, layers, norm, lower_bounds: None }, lm_head }
    }
}

impl<B: Backend, M: Module<B>> FlaModel<B, M> {
    /// The mixers of all blocks.
    pub(crate) fn mixers(&self) -> impl Iterator<Item = &M> {
        self.model.layers.iter().map(|block| &block.attn)
    }
}

impl<B: SequenceOps, M: Module<B>> FlaModel<B, M> {
    /// Logits `[batch, seq, vocab]` of tokens that follow those which left `state` behind (none if `None`), and the state
    /// of every block after them. `mix` runs the mixer of the block with this number.
    pub(crate) fn run<S>(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<S>>,
        mut mix: impl FnMut(usize, &M, Tensor<B, 3>, Option<S>) -> (Tensor<B, 3>, S),
    ) -> (Tensor<B, 3>, Vec<S>) {
        let Backbone { embeddings, layers, norm, .. } = &self.model;
        let mut x = embeddings.forward(input.input_ids); // [batch, seq, hidden]
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(layers.len());
        for (i, block) in layers.iter().enumerate() {
            let (y, state) = mix(i, &block.attn, block.attn_norm.forward(x.clone()), before.next());
            x = x + y;
            x = x.clone() + block.mlp.forward(block.mlp_norm.forward(x));
            after.push(state);
        }
        let x = norm.forward(x);
        let logits = match &self.lm_head {
            Some(decoder) => decoder.forward(x),
            None => B::projection(x, embeddings.weight.val()),
        };
        (logits, after)
    }
}

/// down(silu(gate(x))⊙up(x)), without biases (SwiGLU: Shazeer, arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct GatedMlp<B: Backend> {
    gate_proj: Linear<B>,
    up_proj: Linear<B>,
    down_proj: Linear<B>,
}

impl<B: Backend> GatedMlp<B> {
    /// Weights N(0, 0.02²).
    pub fn new(init: &mut Init<'_, B>, hidden: usize, intermediate: usize) -> Self {
        Self {
            gate_proj: Linear::new(init, hidden, intermediate, STD),
            up_proj: Linear::new(init, hidden, intermediate, STD),
            down_proj: Linear::new(init, intermediate, hidden, STD),
        }
    }
}

impl<B: SequenceOps> GatedMlp<B> {
    /// `[batch, seq, hidden]` → the same shape.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let gate = self.gate_proj.forward(x.clone());
        self.down_proj.forward(B::gated(self.up_proj.forward(x), gate, Gate::Silu))
    }
}

/// `x` `[batch, seq, channels]` after its convolution, if there is one (with SiLU if `silu`), and its state.
pub(crate) fn convolved<B: SequenceOps>(
    conv: &Option<ShortConv<B>>,
    x: Tensor<B, 3>,
    state: Option<Tensor<B, 3>>,
    silu: bool,
) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
    match conv {
        Some(conv) => {
            let (y, state) = conv.forward(x, state, silu);
            (y, Some(state))
        }
        None => (x, None),
    }
}
