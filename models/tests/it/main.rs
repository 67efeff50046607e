//! The tests of this crate in one program, which is linked once. Separate are those that need a process of their own:
//! `fuzz` measures the memory of its process, `gradients` sets the type of floats for all of it, and `parity_cuda`
//! needs a card.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../reference/mod.rs"]
mod reference;

mod architectures;
mod checkpoints;
mod gated_deltanet;
mod hybrid;
mod learning;
mod linear_attention;
mod ops;
mod options;
mod parity;
mod properties;
mod recurrences;
mod rwkv;
mod state_spaces;
