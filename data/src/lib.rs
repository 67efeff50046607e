//! Counting tasks and everything around their examples.
//!
//! The task families live in [`families`]: each one states its label rule once, and the rule serves the
//! training and validation splits, the endless test sequences of a length sweep ([`Track`]) and the tests.
//! A [`Task`] is a named preset of a family together with its [`Vocabulary`] and size limits.
//!
//! An example is a pure function of (task, split, seed, index), so a dataset has the same bytes however it is
//! produced. [`Dataset`] holds examples in memory and reads and writes the Parquet files, [`Batch`] pads some of
//! them into the rectangular arrays that models take and gives them positions ([`Augmentation`]), [`Folded`] leaves out rows
//! that others begin with, and [`EpochOrder`] is the seeded shuffle.

mod batch;
mod dataset;
mod error;
mod example;
pub mod families;
pub mod files;
mod fold;
mod import;
mod positions;
mod rng;
pub mod suggest;
mod task;
mod task_config;
pub mod text;
mod track;
mod vocab;

pub use batch::{Batch, Collation, EpochOrder};
pub use dataset::{Dataset, DatasetInfo, GENERATOR_VERSION, generate_split};
pub use error::DataError;
pub use example::{Example, ExampleRef, IGNORE};
pub use families::{Auxiliary, Family};
pub use fold::{Folded, prefix_groups};
pub use import::{Imported, import, split_name};
pub use positions::{Augmentation, BLANK, PositionIds, PositionScheme};
pub use rng::stream_rng;
pub use task::{Split, Task};
pub use task_config::TaskConfig;
pub use track::{LengthLimit, Track};
pub use vocab::{PAD, Vocabulary};
