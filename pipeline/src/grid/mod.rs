//! Grids of runs: every job is trained, exported and evaluated by processes of its own, so that what goes wrong in one
//! stays in one.
//!
//! There is no book to keep: a job is its resolved config, its run is the one in the runs folder with that config, and
//! what the run's folder holds says what is left to do. So a grid can be killed at any time, go on, be split among
//! machines that share the folder, and recognise runs that were trained by hand. Only failures are written down.

pub mod file;
pub mod job;
pub mod local;
pub mod predict;
pub mod slurm;
