//! The graph that a lowering states: its builder, and the messages that it is written in.

mod builder;
mod messages;
mod ops;
pub mod proto;

pub(crate) use builder::{Finished, GraphBuilder, Value};
pub(crate) use messages::{Attribute, BATCH, Dim, SEQ};
