//! Files in the format of MLRegTest (van der Poel et al., arXiv 2304.07687): a string, one character for each symbol, a
//! tab, and whether it is in the language, TRUE or FALSE. The files of a language are called
//! `<name>_<Train|Dev|TestSR|TestSA|TestLR|TestLA>.txt`.
//!
//! The layout follows descriptions of the published archive, not the archive itself.

use super::{Coder, membership, string_ids};
use crate::DataError;
use crate::dataset::reading::{Found, Place, Visit};
use crate::dataset::text::{for_each_line, shorten};
use std::path::Path;

/// The ends of files' names, and the splits that they are here.
pub(super) const SPLITS: [(&str, &str); 6] = [
    ("_Train.txt", "train"),
    ("_Dev.txt", "val"),
    ("_TestLR.txt", "ood_test"),
    ("_TestLA.txt", "TestLA"),
    ("_TestSR.txt", "TestSR"),
    ("_TestSA.txt", "TestSA"),
];

fn parts(line: &str) -> Option<(&str, bool)> {
    let (string, label) = line.split_once('\t')?;
    match label.trim() {
        label if label.eq_ignore_ascii_case("true") => Some((string, true)),
        label if label.eq_ignore_ascii_case("false") => Some((string, false)),
        _ => None,
    }
}

pub(super) fn is_first_line(line: &str) -> bool {
    parts(line).is_some()
}

pub(super) fn for_each(path: &Path, coder: &mut dyn Coder, visit: Visit<'_>) -> Result<(), DataError> {
    for_each_line(path, |number, line| {
        let parsed = line.and_then(|line| {
            let (string, accepted) = parts(line).ok_or_else(|| format!("is `{}`", shorten(line)))?;
            let symbols = string.char_indices().map(|(at, c)| &string[at..at + c.len_utf8()]);
            let ids = string_ids(symbols, coder)?;
            let labels = membership(ids.len(), accepted, coder)?;
            Ok((ids, labels))
        });
        let place = Place::line(number);
        match &parsed {
            Ok((input_ids, labels)) => visit(&place, Ok(Found { input_ids, labels, length: None, masked: false })),
            Err(problem) => visit(&place, Err(problem.clone())),
        }
    })
}
