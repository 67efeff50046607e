//! Length sweeps measure length extrapolation: how far does a model count? An ONNX file goes in, a table with one row
//! per test length comes out.
//!
//! [`Model`] loads the file through ONNX Runtime and checks that it keeps the project's ONNX contract. [`Sweep`] runs a
//! [`data::Task`]'s test sequences through it and scores every length of [`Lengths`]; where it can, one pass over the
//! longest sequence answers all shorter ones; a model from elsewhere is probed for that first. Predictions and losses
//! are computed inside the graph, so that logits never leave the device. [`metrics`] defines the scores.
//! [`to_record_batch`] turns them into an Arrow table, and [`write()`] puts it into a Parquet, Arrow, CSV or JSON file.
//!
//! The ONNX Runtime library itself is found (or fetched with pip, once) at run time: see [`RuntimeLibrary`]. Nothing
//! here knows how models are trained, and any model that keeps the contract can be evaluated.
//!
//! Words inside: a *track* ([`data::Track`]) is an endless test sequence, whose test of length L is its beginning of L
//! main tokens. A *slot* is the index of a length in the sweep's list, a *span* a range of slots that one pass over a
//! track answers, and a *reach* the slots that a track can answer at all. An *item* is a sequence to run that is not
//! built yet: its track, its span, its tokens; a *job* is the same with tokens and labels, and its *cuts*, the places
//! where the score of a slot is read. A *plan* says which items there are, a *batch score* is the result of one batch
//! of jobs, and a *tally* the sums over all of them, for every slot.
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
mod model;
mod result;
mod runtime;
mod sweep;

pub use error::{EvalError, Result};
pub use model::fingerprint::model_fingerprint;
pub use model::{LoadOptions, Logits, Model, ModelInfo, Provider};
pub use result::means::{self, Means, Reach};
pub use result::metrics::{self, Running, Score, wilson};
pub use result::table::{
    Format, SweepFacts, TABLE_VERSION, TABLE_VERSION_KEY, predictions_to_record_batch, to_record_batch,
    totals_to_record_batch, write, write_predictions,
};
pub use result::{DatasetResult, LengthResult, Plan, Prediction, Progress, SweepResult};
pub use runtime::plugins::{load_provider_library, provider_plugins};
pub use runtime::{RuntimeLibrary, Source, available_providers, cache_folder, environment, use_python_package};
pub use sweep::Sweep;
pub use sweep::lengths::Lengths;
pub use sweep::probe::{Finding, Probe};
