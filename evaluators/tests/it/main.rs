//! The tests of the evaluator from outside, in one program: it links once.
#![allow(clippy::unwrap_used)]

mod common;
mod foreign;
mod function;
mod model;
mod probe;
mod sweep;
mod table;
