//! The tests of this crate in one program, which is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod architectures;
mod common;
mod recurrences;
mod state_spaces;
mod structure;
