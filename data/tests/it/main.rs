//! The tests of this crate in one program, which is linked once. Separate is `fuzz`, which runs for a given time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod files;
mod foreign;
mod own;
mod padding;
mod published;
mod rules;
mod tasks;
