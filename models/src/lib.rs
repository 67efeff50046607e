//! Sequence models as burn modules: one file per architecture, readable next to its paper.
//!
//! | file | architecture |
//! |---|---|
//! | [`rnn`] | Elman RNN with tanh |
//! | [`lstm`] | LSTM |
//! | [`s4`] | S4: a structured state space per channel, trained as a convolution |
//! | [`mamba`] | Mamba: a selective state space |
//! | [`rwkv5`], [`rwkv6`] | RWKV-5 "Eagle" and RWKV-6 "Finch"; what they share is in [`rwkv`] |
//! | [`gru`] | GRU |
//! | [`mingru`] | minGRU, a GRU that is linear in its state |
//! | [`deltanet`] | Gated DeltaNet, with eigenvalues down to −1 |
//! | [`transformer`] | causal Transformer, pre-norm, ReLU MLP; no, absolute, sinusoidal, rotary or scalar positions |
//!
//! What is costly and sequential sits behind [`ops::SequenceOps`], a trait over burn's `Backend` with a plain-tensor
//! default for each operation. [`Model`] is any of the architectures, built from a [`ModelConfig`]; [`Weights`] are its
//! parameters by name, in the layout of PyTorch's state dict, and what checkpoints and the exporters hold.

mod config;
pub mod deltanet;
mod error;
mod groups;
pub mod gru;
pub mod hippo;
mod init;
pub mod layers;
mod loss;
pub mod lstm;
pub mod mamba;
pub mod mingru;
mod model;
pub mod ops;
pub mod original;
pub mod rnn;
pub mod rwkv;
pub mod rwkv5;
pub mod rwkv6;
pub mod s4;
pub mod state_space;
mod torch;
pub mod transformer;
mod weights;

pub use config::ModelConfig;
pub use error::{ConfigError, InputError};
pub use groups::ParameterGroup;
pub use init::Init;
pub use loss::{l2_wrap, masked_cross_entropy, predictions, weighted_cross_entropy, weighted_l2_wrap};
pub use model::{Model, ModelInput, Positions};
pub use weights::{Weight, WeightError, Weights};

/// The CPU backend.
pub type Cpu = burn_flex::Flex;

/// The CUDA backend; the driver is loaded at run time.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cuda::Cuda;

#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;
