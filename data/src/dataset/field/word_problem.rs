//! Word problems of groups as `jopetty/word-problem` writes them (Merrill, Petty & Sabharwal, "The Illusion of State in
//! State-Space Models", arXiv 2404.08819): CSV with the columns `seed,input,target`, elements separated by blanks. The
//! target at each position is the product of all elements so far.

use super::Coder;
use crate::DataError;
use crate::dataset::reading::{Found, Place, Visit};
use crate::dataset::text::shorten;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

pub(super) const COLUMNS: [&str; 3] = ["seed", "input", "target"];

pub(super) fn for_each(path: &Path, coder: &mut dyn Coder, visit: Visit<'_>) -> Result<(), DataError> {
    let file = File::open(path).map_err(DataError::io("read", path))?;
    let mut table = csv::ReaderBuilder::new().flexible(true).from_reader(BufReader::new(file));
    let wrong = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(e) => DataError::io("read", path)(e),
        other => DataError::Invalid {
            path: path.into(),
            reason: format!("{other:?}"),
            hint: "it begins like a table seed,input,target; write it again as CSV in UTF-8".into(),
        },
    };
    let mut row = csv::StringRecord::new();
    while table.read_record(&mut row).map_err(wrong)? {
        let place = Place::line(row.position().map_or(0, |p| p.line() as usize));
        let parsed = match (row.len(), row.get(1), row.get(2)) {
            (3, Some(input), Some(target)) => parse(input, target, coder),
            (fields, ..) => Err(format!("has {fields} fields, not seed, input and target")),
        };
        match &parsed {
            Ok((input_ids, labels)) => visit(&place, Ok(Found { input_ids, labels, length: None, masked: false }))?,
            Err(problem) => visit(&place, Err(problem.clone()))?,
        }
    }
    Ok(())
}

fn parse(input: &str, target: &str, coder: &mut dyn Coder) -> Result<(Vec<u16>, Vec<i16>), String> {
    let told = |what: &str, word: &str, why: String| format!("the {what} `{}` {why}", shorten(word));
    let tokens = input.split_ascii_whitespace();
    let input_ids = tokens.map(|token| coder.token(token).map_err(|why| told("token", token, why)));
    let input_ids = input_ids.collect::<Result<Vec<_>, _>>()?;
    let labels = target.split_ascii_whitespace();
    let labels = labels.map(|label| coder.label(label).map_err(|why| told("label", label, why)));
    let labels = labels.collect::<Result<Vec<_>, _>>()?;
    match (input_ids.len(), labels.len()) {
        (0, _) => Err("has no tokens".into()),
        (tokens, n) if tokens != n => Err(format!("has {tokens} tokens but {n} labels")),
        _ => Ok((input_ids, labels)),
    }
}
