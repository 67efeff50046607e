//! Weights by name: this repository's checkpoints, and those of PyTorch.

pub mod original;
mod pickle;
mod state_dict;
mod torch;
pub(crate) mod weights;

pub use state_dict::{Fitted, StateDict, disguise};
pub use weights::{Weight, WeightError, Weights};
