//! Training, besides the models: initial weights, losses, parameter groups.

mod groups;
mod init;
mod loss;

pub use groups::ParameterGroup;
pub use init::Init;
pub use loss::{
    l2_wrap, masked_cross_entropy, predictions, weighted_cross_entropy, weighted_l2_wrap, weighted_set_loss,
};
