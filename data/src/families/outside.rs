use crate::{DataError, Example};
use std::ops::Range;
use std::path::Path;

/// The examples of a family without a rule: they come from outside, from files or from a program, and so do their
/// labels. What is outside can be missing, change, or be wrong, so that everything here can fail.
pub trait Outside: Sync {
    /// Splits besides those of [`crate::Task::splits`], by name.
    fn more_splits(&self) -> Vec<String> {
        vec![]
    }

    /// A setting that ties the task to the tokens that it has now, which a run keeps: where they come from can change.
    fn tie(&self) -> Option<(&'static str, String)> {
        None
    }

    /// Whether the training examples never end, so that each step can have new ones.
    fn is_endless(&self) -> bool {
        false
    }

    /// Refuses, before any work, where there can be no examples.
    ///
    /// # Errors
    /// The reason.
    fn ready(&self) -> Result<(), DataError> {
        Ok(())
    }

    /// Looks, before the first `rows` examples of a split are used, for mistakes that no single one shows.
    ///
    /// # Errors
    /// The mistake.
    fn check(&self, _split: &str, _seed: u64, _rows: usize) -> Result<(), DataError> {
        Ok(())
    }

    /// The examples of a split by index, as far as there are so many.
    ///
    /// # Errors
    /// They cannot be had, or one is wrong: the first is named.
    fn examples(&self, split: &str, seed: u64, range: Range<usize>) -> Result<Vec<Example>, DataError>;

    /// The examples of a file, read as this family reads its own; `None` where it reads none.
    ///
    /// # Errors
    /// It cannot be read, or an example is wrong.
    fn read(&self, _file: &Path) -> Result<Option<Vec<Example>>, DataError> {
        Ok(None)
    }
}
