//! From examples to the inputs of a model: padding and masks ([`Batch`]), positions ([`PositionSampling`]), rows that
//! others begin with left out ([`Folded`]), and the order of an epoch ([`EpochOrder`]).

mod collate;
mod fold;
mod order;
mod positions;

pub use collate::{Batch, Collation};
pub use fold::{Folded, prefix_groups};
pub use order::EpochOrder;
pub use positions::{Augmentation, BLANK, PositionIds, PositionSampling};
