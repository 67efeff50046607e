//! The task families: one file each, one label rule each.

mod modular;
mod shifted_start;

pub use modular::Modular;
pub use shifted_start::ShiftedStart;

use crate::{Example, Split, Track, Vocabulary};

/// A parametrised kind of counting task.
pub trait Family: std::fmt::Debug + Send + Sync {
    /// The family's name in configs and listings.
    fn name(&self) -> &'static str;

    /// The parameters as (name, value), for listings.
    fn parameters(&self) -> Vec<(&'static str, String)>;

    /// The tokens in id order.
    fn vocabulary(&self) -> Vocabulary;

    /// The longest main-token count in training; sweeps call lengths up to here in-distribution.
    fn train_max_length(&self) -> u32;

    /// How many examples a split has. `train` is the size asked for; families whose training set is whole copies of
    /// an enumeration round it down. An error says which sizes work.
    fn rows(&self, split: Split, train: usize) -> Result<usize, String>;

    /// Example `index` of a split, `index < rows(split, train)`. Enumerated splits ignore the seed.
    fn example(&self, split: Split, seed: u64, index: usize) -> Example;

    /// How many different tracks there are (`None`: they are sampled, without end).
    fn distinct_tracks(&self) -> Option<usize>;

    /// Track `index`, as long as its labels go but at most `max_length` main tokens.
    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track;
}
