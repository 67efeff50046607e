//! Folders in the format of FLaRe (Butoi et al., "Training Neural Networks as Recognizers of Formal Languages", arXiv
//! 2411.07107): `main.tok` has a string on each line, its tokens separated by blanks; `labels.txt` says on each line
//! whether it is in the language, 1 or 0. An empty line is the empty string.
//!
//! `next-symbols.jsonl` has a line for each string of the language only: a list with an object for each prefix,
//! beginning with the empty one, of what may come next (`s`) and whether the string may end (`e`).

use super::{BOS, Coder, EOS, StringLabels, membership, string_ids};
use crate::DataError;
use crate::dataset::reading::{Found, Place, Visit};
use crate::dataset::text::Lines;
use serde::Deserialize;
use std::path::{Path, PathBuf};

const STRINGS: &str = "main.tok";
const LABELS: &str = "labels.txt";
const NEXT: &str = "next-symbols.jsonl";

/// The folder of the splits other than train.
pub(super) const OTHERS: &str = "datasets";

pub(super) const HINT: &str = "main.tok has a string on each line and labels.txt as many lines 1 or 0; next-symbols.jsonl \
                               has one line for each string labelled 1";

/// What may follow a prefix.
#[derive(Deserialize)]
struct Next {
    /// Tokens, separated by blanks.
    s: String,
    /// Whether the string may end.
    e: bool,
}

pub(super) fn is_folder(path: &Path) -> bool {
    path.join(STRINGS).is_file()
}

/// Whether a folder has the files that these labels are in.
pub(super) fn has(folder: &Path, labels: StringLabels) -> bool {
    files(folder, labels).iter().all(|file| file.is_file())
}

pub(super) fn files(folder: &Path, labels: StringLabels) -> Vec<PathBuf> {
    let next = (labels == StringLabels::NextSymbols).then_some(NEXT);
    [STRINGS, LABELS].into_iter().chain(next).map(|name| folder.join(name)).collect()
}

pub(super) fn for_each(
    folder: &Path,
    kind: StringLabels,
    coder: &mut dyn Coder,
    visit: Visit<'_>,
) -> Result<(), DataError> {
    let invalid = |reason: String| DataError::Invalid { path: folder.into(), reason, hint: HINT.into() };
    let labels = labels(&folder.join(LABELS))?;
    let path = folder.join(STRINGS);
    let mut strings = Lines::open(&path)?;
    let mut sets = (kind == StringLabels::NextSymbols).then(|| Lines::open(&folder.join(NEXT))).transpose()?;
    let mut count = 0;
    while let Some(line) = strings.next()? {
        let accepted = labels.get(count).copied();
        count += 1;
        let Some(accepted) = accepted else { continue };
        let ids = line.and_then(|line| string_ids(line.split_ascii_whitespace(), coder));
        let row = match &mut sets {
            None => ids.and_then(|ids| membership(ids.len(), accepted, coder).map(|labels| (ids, labels))),
            Some(_) if !accepted => continue,
            Some(sets) => {
                let Some(next) = sets.next()? else {
                    return Err(invalid(format!("{NEXT} ends before line {count} of {STRINGS}, which is labelled 1")));
                };
                ids.and_then(|ids| next_symbols(next?, ids.len(), coder).map(|labels| (ids, labels)))
            }
        };
        let place = Place { part: Some(&path), unit: "line", number: count };
        match &row {
            Ok((input_ids, labels)) => visit(&place, Ok(Found { input_ids, labels, length: None, masked: false }))?,
            Err(problem) => visit(&place, Err(problem.clone()))?,
        }
    }
    if count != labels.len() {
        return Err(invalid(format!("{STRINGS} has {count} lines, but {LABELS} has {}", labels.len())));
    }
    if let Some(sets) = &mut sets
        && sets.next()?.is_some()
    {
        let positive = labels.iter().filter(|accepted| **accepted).count();
        return Err(invalid(format!("{NEXT} has more lines than the {positive} strings that are labelled 1")));
    }
    Ok(())
}

fn labels(path: &Path) -> Result<Vec<bool>, DataError> {
    let (mut lines, mut labels) = (Lines::open(path)?, Vec::new());
    while let Some(line) = lines.next()? {
        labels.push(match line.map(str::trim) {
            Ok("1") => true,
            Ok("0") => false,
            other => {
                let reason = match other {
                    Ok(line) => format!("line {} is `{}`", labels.len() + 1, crate::dataset::text::shorten(line)),
                    Err(problem) => format!("line {}: {problem}", labels.len() + 1),
                };
                return Err(DataError::Invalid { path: path.into(), reason, hint: HINT.into() });
            }
        });
    }
    Ok(labels)
}

/// The sets after `<bos>` and each token.
fn next_symbols(line: &str, tokens: usize, coder: &mut dyn Coder) -> Result<Vec<i16>, String> {
    let sets: Vec<Next> = serde_json::from_str(line).map_err(|e| format!("its line of {NEXT}: {e}"))?;
    if sets.len() != tokens {
        return Err(format!("has {} prefixes in {NEXT}, but {tokens} tokens with `{BOS}`", sets.len()));
    }
    let label = |next: &Next| {
        let mut tokens = next.s.split_ascii_whitespace().chain(next.e.then_some(EOS));
        coder.set(&mut tokens).map_err(|why| format!("its set in {NEXT} {why}"))
    };
    sets.iter().map(label).collect()
}
