//! The model around the recurrences of minimal RNNs, whose gates see only the input: embedding → blocks of a recurrence and an
//! MLP, each after a LayerNorm and added to the residual stream → LayerNorm → decoder.
//!
//! Source: L. Feng et al., "Were RNNs All We Needed?", arXiv 2410.01201. As there, a block is a minimal RNN and an MLP with
//! norms and residuals; the short convolution of the paper's language models is left out.

use super::{Embedding, LayerNorm, Linear, Mlp, dropout};
use crate::ops::SequenceOps;
use crate::{Init, ModelInput};
use burn::module::Module;
use burn::prelude::*;

/// LayerNorm's ε.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Channels of the state per channel of the residual stream.
pub const EXPANSION: usize = 2;

/// A recurrence between two projections.
pub trait Recurrence<B: Backend>: Module<B> {
    /// `[batch, seq, hidden]` → the same shape, from the state `[batch, 2·hidden]` (0 if `None`), and the state after it.
    fn mix(&self, x: Tensor<B, 3>, state: Option<Tensor<B, 2>>) -> (Tensor<B, 3>, Tensor<B, 2>);
}

/// See the [module documentation](self). `M` is the recurrence.
#[derive(Module, Debug)]
pub struct MinRnn<B: Backend, M: Module<B>> {
    encoder: Embedding<B>,
    blocks: Vec<Block<B, M>>,
    norm_f: LayerNorm<B>,
    decoder: Linear<B>,
    dropout: f64,
}

#[derive(Module, Debug)]
struct Block<B: Backend, M: Module<B>> {
    norm_1: LayerNorm<B>,
    mixer: M,
    norm_2: LayerNorm<B>,
    mlp: Mlp<B>,
}

impl<B: Backend, M: Module<B>> MinRnn<B, M> {
    /// A model over `vocab` tokens: embedding and decoder N(0, 0.02²), the rest PyTorch's default U(±1/√in). `sizes` are the
    /// width and the number of blocks.
    pub fn new(
        [hidden, layers]: [usize; 2],
        dropout: f64,
        vocab: usize,
        init: &mut Init<'_, B>,
        mut mixer: impl FnMut(&mut Init<'_, B>) -> M,
    ) -> Self {
        let norm = |init: &mut Init<'_, B>| LayerNorm::new(init, hidden, LAYER_NORM_EPSILON);
        Self {
            encoder: Embedding::new(init, vocab, hidden, 0.02),
            blocks: (0..layers)
                .map(|_| Block {
                    norm_1: norm(init),
                    mixer: mixer(init),
                    norm_2: norm(init),
                    mlp: Mlp::new(init, hidden),
                })
                .collect(),
            norm_f: norm(init),
            decoder: Linear::new(init, hidden, vocab, 0.02),
            dropout,
        }
    }
}

impl<B: SequenceOps, M: Recurrence<B>> MinRnn<B, M> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of a piece of a sequence, from the state after the piece before it (one
    /// `[batch, 2·hidden]` per block), and the state after this one.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<Tensor<B, 2>>>,
    ) -> (Tensor<B, 3>, Vec<Tensor<B, 2>>) {
        let mut x = self.encoder.forward(input.input_ids); // [batch, seq, hidden]
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let drop = |y, place| dropout(y, self.dropout, input.dropout, 2 * i as u64 + place);
            let (y, last) = block.mixer.mix(block.norm_1.forward(x.clone()), before.next());
            x = x + drop(y, 0);
            x = x.clone() + drop(block.mlp.forward(block.norm_2.forward(x)), 1);
            after.push(last);
        }
        (self.decoder.forward(self.norm_f.forward(x)), after)
    }
}
