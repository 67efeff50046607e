//! Counting tasks and everything around their examples.
//!
//! The task families live in [`families`]: each one states its label rule once, and the rule serves the
//! training and validation splits, the endless test sequences of a length sweep ([`Track`]) and the tests.
//! A [`Task`] is a named preset of a family together with its [`Vocabulary`] and size limits.
//!
//! An example is a pure function of (task, split, seed, index), so a dataset has the same bytes however it is
//! produced. [`Dataset`] holds examples in memory and reads and writes the Parquet files (and reads what other programs
//! make of them, in Parquet, Arrow, JSON and CSV), [`DatasetFolders`] says where they are kept, [`Batch`] pads some of
//! them into the rectangular arrays that models take and gives them positions ([`Augmentation`]), [`Folded`] leaves out
//! rows that others begin with, and [`EpochOrder`] is the seeded shuffle.
//!
//! ```
//! use data::{Batch, Collation, Split, Task};
//!
//! let task = Task::by_name("modular,modulus=3,train_max=6")?;
//! let make = task.examples(Split::Train, 0); // seed 0
//! let examples: Vec<_> = (0..4).map(make).collect();
//! let rows: Vec<_> = examples.iter().map(|example| example.as_ref()).collect();
//! let batch = Batch::collate(&rows, &task.vocabulary, &Collation::sequential())?;
//! assert_eq!(batch.input_ids.len(), 4 * batch.seq); // [batch, seq], padded on the right
//! assert_eq!(task.labels(&examples[0].input_ids).as_ref(), Ok(&examples[0].labels));
//! # Ok::<(), data::DataError>(())
//! ```

mod batch;
mod dataset;
mod error;
pub mod families;
pub mod files;
mod rng;
pub mod suggest;
mod task;
pub mod threads;

pub use batch::{
    Augmentation, BLANK, Batch, Collation, EpochOrder, Folded, PositionIds, PositionSampling, prefix_groups,
};
pub use dataset::{
    Dataset, DatasetFolders, DatasetInfo, GENERATOR_VERSION, Imported, Origin, StringLabels, capped, dataset_dict,
    generate_split, import, record_batches, short_name, split_name, text,
};
pub use error::DataError;
pub use families::{Auxiliary, Family, Outside, allow_commands};
pub use rng::stream_rng;
pub use task::{Example, ExampleRef, IGNORE, LengthLimit, PAD, SetLoss, Split, Task, TaskConfig, Track, Vocabulary};
