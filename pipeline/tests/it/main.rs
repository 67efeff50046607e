//! The program and its library, as a person or another program uses them. One test binary: linking the models takes longer
//! than most of the tests. `tests/machines.rs` and `tests/slurm.rs` have processes of their own.

mod bench;
mod common;
mod data;
mod end_to_end;
mod errors;
mod field;
mod folding;
mod fresh;
mod grids;
mod import;
mod library;

mod outputs;
mod own;
mod reproduce;
mod sizes;
mod sweeps;
mod tables;
mod together;
mod training;
