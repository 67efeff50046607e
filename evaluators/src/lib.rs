//! Length sweeps: how far does a model count? An ONNX file goes in, a table with one row per test length comes out.
//!
//! [`Model`] loads the file through ONNX Runtime and checks that it keeps the project's ONNX contract. [`Sweep`] runs a
//! [`data::Task`]'s test sequences through it and scores every length of [`Lengths`]; where it can, one pass over the
//! longest sequence answers all shorter ones. Predictions and losses are computed inside the graph, so that logits never
//! leave the device. [`metrics`] defines the scores. [`to_record_batch`] turns the outcome into an Arrow table, and
//! [`write()`] puts it into a Parquet, Arrow, CSV or JSON file.
//!
//! The ONNX Runtime library itself is found (or fetched with pip, once) at run time: see [`RuntimeLibrary`]. Nothing
//! here knows how models are trained, and any model that keeps the contract can be evaluated.
//!
//! ```no_run
//! use evaluators::{Format, LoadOptions, Model, Sweep, write};
//! use std::path::Path;
//!
//! let mut model = Model::load(Path::new("model.onnx"), LoadOptions::default())?;
//! let table = Sweep::new(&mut model).lengths(1..=1000).run()?;
//! write(&table, Format::Parquet, Path::new("sweep.parquet"))?;
//! # Ok::<(), evaluators::EvalError>(())
//! ```

mod error;
mod execute;
mod journal;
mod lengths;
mod memory;
pub mod metrics;
mod model;
mod outcome;
mod plan;
mod runtime;
mod scoring;
mod setting;
mod sweep;
mod table;
mod tally;

pub use error::{EvalError, Result};
pub use lengths::Lengths;
pub use metrics::{Running, Score, wilson};
pub use model::{LoadOptions, Logits, Model, ModelInfo, Provider};
pub use outcome::{DatasetResult, LengthResult, Plan, Prediction, Progress, SweepResult};
pub use runtime::{RuntimeLibrary, Source, available_providers, environment};
pub use sweep::Sweep;
pub use table::{Format, SweepFacts, to_record_batch, totals_to_record_batch, write, write_predictions};
