//! Hybrids: blocks of any mixers in any order on one residual stream, each followed by a gated MLP. The model around the
//! mixers is that of flash-linear-attention ([`fla`](crate::layers::fla)); the mixers are those of this program's other
//! architectures, causal attention, and the gated linear recurrence of Griffin ([`rglru`]).
//!
//! Sources: O. Lieber et al., "Jamba: A Hybrid Transformer-Mamba Language Model", arXiv 2403.19887 (Mamba and attention without
//! positions, an MLP after each); S. De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient
//! Language Models", arXiv 2402.19427 (`blocks = ["rglru", "rglru", "attention"]` with a window); L. Ren et al., "Samba",
//! arXiv 2406.07522.

mod attention;
mod config;
pub mod rglru;

pub use attention::HybridAttention;
pub use config::{HybridConfig, Kind};

use crate::architecture::Architecture;
use crate::error::InputError;
use crate::gated_deltanet::{GatedDeltanetAttention, GatedDeltanetState};
use crate::gla::{GlaAttention, GlaState};
use crate::hgrn2::{Hgrn2Attention, Hgrn2State};
use crate::layers::fla::FlaModel;
use crate::mamba::MambaState;
use crate::mamba2::Mamba2State;
use crate::ops::SequenceOps;
use crate::{Init, ModelInput, Network, mamba, mamba2};
use burn::module::Module;
use burn::prelude::*;
use data::Batch;
use rglru::{Rglru, RglruState};

impl HybridConfig {
    /// A model over `vocab` tokens: what is around the mixers N(0, 0.02²), the mixers as in the models they are from.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Hybrid<B> {
        let mut kinds = self.kinds();
        FlaModel::new(self.sizes(), vocab, init, |init| match kinds.next().unwrap_or(Kind::Attention) {
            Kind::Attention => Mixer::Attention(HybridAttention::new(self, init)),
            Kind::Mamba => Mixer::Mamba(mamba::Mixer::new(&self.mamba(), init)),
            Kind::Mamba2 => Mixer::Mamba2(mamba2::Mixer::new(&self.mamba2(), init)),
            Kind::GatedDeltanet => Mixer::GatedDeltanet(GatedDeltanetAttention::new(&self.gated_deltanet(), init)),
            Kind::Gla => Mixer::Gla(self.gla().attention(init)),
            Kind::Hgrn2 => Mixer::Hgrn2(self.hgrn2().attention(init)),
            Kind::Rglru => Mixer::Rglru(Rglru::new(self, init)),
        })
    }
}

/// See the [module documentation](self).
pub type Hybrid<B> = FlaModel<B, Mixer<B>>;

/// The mixer of a block.
#[derive(Module, Debug)]
pub enum Mixer<B: Backend> {
    /// Softmax attention.
    Attention(HybridAttention<B>),
    /// See [`mamba`].
    Mamba(mamba::Mixer<B>),
    /// See [`mamba2`].
    Mamba2(mamba2::Mixer<B>),
    /// See [`gated_deltanet`](crate::gated_deltanet).
    GatedDeltanet(GatedDeltanetAttention<B>),
    /// See [`gla`](crate::gla).
    Gla(GlaAttention<B>),
    /// See [`hgrn2`](crate::hgrn2); without lower bounds.
    Hgrn2(Hgrn2Attention<B>),
    /// See [`rglru`].
    Rglru(Rglru<B>),
}

/// The state of one block between tokens.
#[derive(Debug, Clone)]
pub enum HybridState<B: Backend> {
    /// See [`mamba`].
    Mamba(MambaState<B>),
    /// See [`mamba2`].
    Mamba2(Mamba2State<B>),
    /// See [`gated_deltanet`](crate::gated_deltanet).
    GatedDeltanet(GatedDeltanetState<B>),
    /// See [`gla`](crate::gla).
    Gla(GlaState<B>),
    /// See [`hgrn2`](crate::hgrn2).
    Hgrn2(Hgrn2State<B>),
    /// See [`rglru`].
    Rglru(RglruState<B>),
}

impl<B: Backend> Network<B> for Hybrid<B> {
    fn check(&self, batch: &Batch) -> Result<(), InputError> {
        let attention = self.mixers().find_map(|mixer| match mixer {
            Mixer::Attention(attention) => Some(&attention.config),
            _ => None,
        });
        attention.map_or(Ok(()), |config| config.check(batch))
    }
}

impl<B: SequenceOps> Hybrid<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_from(input, None).0
    }

    /// Logits `[batch, seq, vocab]` of tokens that follow those which left `state` behind (none if `None`), and the state of
    /// every block after them; `None` of attention, which sees `input` alone: only a model without attention can go on.
    pub fn forward_from(
        &self,
        input: ModelInput<B>,
        state: Option<Vec<Option<HybridState<B>>>>,
    ) -> (Tensor<B, 3>, Vec<Option<HybridState<B>>>) {
        let (positions, mask) = (input.position_ids.clone(), input.attention_mask.clone());
        self.run(input, state, |_, mixer, x, before| {
            macro_rules! recurrent {
                ($Kind:ident, $mixer:expr, $forward:expr) => {{
                    let before = match before.flatten() {
                        Some(HybridState::$Kind(state)) => Some(state),
                        _ => None,
                    };
                    let (y, after) = $forward($mixer, x, before);
                    (y, Some(HybridState::$Kind(after)))
                }};
            }
            match mixer {
                Mixer::Attention(attention) => (attention.forward(x, positions.clone(), mask.clone()), None),
                Mixer::Mamba(mixer) => recurrent!(Mamba, mixer, mamba::Mixer::forward),
                Mixer::Mamba2(mixer) => recurrent!(Mamba2, mixer, mamba2::Mixer::forward),
                Mixer::GatedDeltanet(mixer) => recurrent!(GatedDeltanet, mixer, GatedDeltanetAttention::forward),
                Mixer::Gla(mixer) => recurrent!(Gla, mixer, GlaAttention::forward),
                Mixer::Hgrn2(mixer) => {
                    recurrent!(Hgrn2, mixer, |mixer: &Hgrn2Attention<B>, x, state| { mixer.forward(x, None, state) })
                }
                Mixer::Rglru(mixer) => recurrent!(Rglru, mixer, Rglru::forward),
            }
        })
    }
}
