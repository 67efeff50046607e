//! Sequence models as burn modules: one file per architecture, readable next to its paper.
//!
//! | file | architecture |
//! |---|---|
//! | [`rnn`] | Elman RNN with tanh |
//! | [`lstm`] | LSTM |
//! | [`s4`] | S4: a structured state space per channel, trained as a convolution |
//! | [`mamba`] | Mamba: a selective state space |
//! | [`mamba2`] | Mamba-2: a state space with one rate of decay per head |
//! | [`rwkv5`], [`rwkv6`], [`rwkv7`] | RWKV-5 "Eagle", RWKV-6 "Finch" and RWKV-7 "Goose"; what they share is in [`rwkv`] |
//! | [`gru`] | GRU |
//! | [`mingru`] | minGRU, a GRU that is linear in its state |
//! | [`minlstm`] | minLSTM, an LSTM that is linear in its state |
//! | [`deltanet`] | Gated DeltaNet, with eigenvalues down to −1 |
//! | [`gated_deltanet`] | Gated DeltaNet and Gated DeltaProduct of flash-linear-attention |
//! | [`gla`] | gated linear attention |
//! | [`hgrn2`] | HGRN2: gated linear attention that writes what it forgets |
//! | [`xlstm`] | xLSTM: sLSTM and mLSTM blocks in any order |
//! | [`hybrid`] | blocks of any of these mixers, of attention, and of Griffin's gated linear recurrence |
//! | [`transformer`] | causal Transformer, pre-norm, ReLU MLP; no, absolute, sinusoidal, rotary or scalar positions |
//!
//! Each is a file of `architectures/` whose config implements [`Architecture`], and a line of the list
//! [`architectures!`] that the enums [`ModelConfig`] and [`Model`] are made of. Positions of Transformers are in
//! [`positions`](mod@positions), one file and one line of [`positions!`] each.
//!
//! Costly sequential operations are behind [`ops::SequenceOps`], a trait over burn's `Backend` with a folder for each
//! operation: its reference, and kernels where it has any. [`Model`] is any of the architectures, built from a
//! [`ModelConfig`]; [`Weights`] are its parameters by name, in the layout of PyTorch's state dict, as checkpoints and
//! exporters use them.

#[macro_use]
mod lists;

mod architecture;
pub mod architectures;
mod checkpoint;
mod error;
pub mod layers;
mod model;
pub mod ops;
pub mod pool;
pub mod positions;
mod training;

pub use architecture::{Architecture, Heads, Kind, ModelConfig};
pub use architectures::s4::{hippo, state_space};
pub use architectures::*;
pub use checkpoint::original;
pub use checkpoint::{Fitted, StateDict, Weight, WeightError, Weights, disguise};
pub use error::{ConfigError, InputError};
pub use model::{Model, ModelInput, Network, Positions};
pub use training::{
    Init, ParameterGroup, l2_wrap, masked_cross_entropy, predictions, weighted_cross_entropy, weighted_l2_wrap,
    weighted_set_loss,
};

/// The CPU backend.
pub type Cpu = burn_flex::Flex;

/// The CUDA backend; the driver is loaded at run time.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cuda::Cuda;

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;
