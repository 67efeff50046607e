//! Sequence models as burn modules: one file per architecture, readable next to its paper.
//!
//! | file | architecture |
//! |---|---|
//! | [`rnn`] | Elman RNN with tanh |
//! | [`lstm`] | LSTM |
//! | [`transformer`] | causal Transformer, pre-norm, ReLU MLP; none, absolute, sinusoidal, rotary or scalar positions |
//!
//! What is costly and sequential sits behind [`ops::SequenceOps`], a trait over burn's `Backend` with a plain-tensor
//! default for each operation. [`Model`] is any of the architectures, built from a [`ModelConfig`]; [`Weights`] are its
//! parameters by name, in the layout of PyTorch's state dict, and what checkpoints and the exporters hold.

mod config;
mod error;
mod init;
pub mod layers;
mod loss;
pub mod lstm;
mod model;
pub mod ops;
pub mod original;
pub mod rnn;
mod torch;
pub mod transformer;
mod weights;

pub use config::ModelConfig;
pub use error::{ConfigError, InputError};
pub use init::Init;
pub use loss::{masked_cross_entropy, predictions};
pub use model::{Model, ModelInput, Positions};
pub use weights::{Weight, WeightError, Weights};

/// The CPU backend.
pub type Cpu = burn_flex::Flex;

/// The CUDA backend; the driver is loaded at run time.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cuda::Cuda;

#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;
