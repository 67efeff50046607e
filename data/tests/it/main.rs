//! The tests of this crate in one program, which is linked once. Separate is `fuzz`, which runs for a given time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod automata;
mod automaton_settings;
mod field;
mod files;
mod foreign;
mod own;
mod padding;
mod prompt_samplers;
mod prompts;
mod published;
mod recall;
mod rules;
mod stacks;
mod statistics;
mod tables;
mod tasks;
