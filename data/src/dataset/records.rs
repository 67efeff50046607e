//! Examples as text with names: objects of JSON, a line each or in a list, and CSV.
//!
//! ```text
//! {"input_ids": [0, 12, 12], "labels": [-1, 1, 2], "length": 2}
//! ```

use super::columns::{INPUTS, LABELS, LENGTH, MASK, MAX_ROW_TOKENS, READ, RawExample, check_names, hint_of};
use crate::DataError;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

const PANDAS: &str = "pandas writes lists of examples with to_json(FILE, orient=\"records\", lines=True)";

const CSV: &str =
    "the columns are input_ids and labels, with lists like \"[0, 1, 1]\"; Parquet keeps lists as they are";

/// Reads one object.
///
/// # Errors
/// The problem, and where.
pub(crate) fn parse(text: &str, out: &mut RawExample) -> Result<(), String> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let read = Record(out).deserialize(&mut parser).and_then(|()| parser.end());
    read.map_err(|e| e.to_string().replace(&format!(" at line {} column", e.line()), " at character"))
}

/// Visits the objects of a list with their numbers, from 0 on, or the problem with one. Invalid JSON ends the walk.
///
/// # Errors
/// The file cannot be read, is not such a list, or `visit` fails.
pub(crate) fn for_each_of_list(
    path: &Path,
    visit: impl FnMut(usize, Result<&mut RawExample, String>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut reader = BufReader::new(File::open(path).map_err(DataError::io("read", path))?);
    skip_mark(&mut reader).map_err(DataError::io("read", path))?;
    let mut parser = serde_json::Deserializer::from_reader(reader);
    let mut failed = None;
    let list = List { visit, failed: &mut failed };
    let read = parser.deserialize_seq(list).and_then(|()| parser.end());
    match (read, failed) {
        (_, Some(error)) => Err(error),
        (Ok(()), None) => Ok(()),
        (Err(e), None) if e.is_io() => Err(DataError::io("read", path)(e.into())),
        (Err(e), None) => {
            let reason = e.to_string();
            let hint = hint_of(&reason).unwrap_or(PANDAS).into();
            Err(DataError::Invalid { path: path.into(), reason, hint })
        }
    }
}

/// Visits the rows of a table as text with their lines, or the problem with one.
///
/// # Errors
/// The file cannot be read, has no such columns, or `visit` fails.
pub(crate) fn for_each_of_csv(
    path: &Path,
    mut visit: impl FnMut(usize, Result<&mut RawExample, String>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let invalid =
        |reason: String| DataError::Invalid { path: path.into(), hint: hint_of(&reason).unwrap_or(CSV).into(), reason };
    let mut reader = BufReader::new(File::open(path).map_err(DataError::io("read", path))?);
    skip_mark(&mut reader).map_err(DataError::io("read", path))?;
    let head = reader.fill_buf().map_err(DataError::io("read", path))?;
    let header = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let names = |separator: u8| {
        let columns = header.split(move |b| *b == separator);
        columns.filter(|name| name.trim_ascii().strip_prefix(b"\"").unwrap_or(name).starts_with(b"input_ids")).count()
    };
    let separator = [b',', b';', b'\t'].into_iter().find(|s| header.contains(s) && names(*s) > 0).unwrap_or(b',');
    // A field without end is as long as the file at most.
    let mut table = csv::ReaderBuilder::new().delimiter(separator).from_reader(reader);
    let wrong = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(e) => DataError::io("read", path)(e),
        csv::ErrorKind::Utf8 { pos, err } => {
            let line = pos.map_or(0, |pos| pos.line());
            invalid(format!("line {line}: {err}"))
        }
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.map_or(0, |pos| pos.line());
            invalid(format!("line {line} has {len} fields, but the first has {expected_len}"))
        }
        other => invalid(format!("{other:?}")),
    };
    let header = table.headers().map_err(wrong)?.clone();
    let column = |name: &str| header.iter().position(|found| found.trim() == name);
    let found = || header.iter().collect::<Vec<_>>().join(", ");
    let missing = |name: &str| invalid(format!("there is no column `{name}`: its columns are [{}]", found()));
    check_names(header.iter().map(str::trim)).map_err(invalid)?;
    let inputs = column(INPUTS).ok_or_else(|| missing(INPUTS))?;
    let labels = column(LABELS).ok_or_else(|| missing(LABELS))?;
    let (length, mask) = (column(LENGTH), column(MASK));
    let (mut row, mut raw) = (csv::StringRecord::new(), RawExample::default());
    while table.read_record(&mut row).map_err(wrong)? {
        let line = row.position().map_or(0, |p| p.line() as usize);
        let field = |index: usize| row.get(index).unwrap_or_default();
        let mut read = || {
            numbers(field(inputs), &mut raw.inputs).map_err(|e| format!("`{INPUTS}` {e}"))?;
            numbers(field(labels), &mut raw.labels).map_err(|e| format!("`{LABELS}` {e}"))?;
            raw.length = length.map_or(Ok(None), |index| count(field(index)))?;
            let mask = mask.map(field).filter(|field| !field.trim().is_empty());
            raw.mask = mask.map(flags).transpose().map_err(|e| format!("`{MASK}` {e}"))?;
            Ok(())
        };
        let read = read();
        visit(line, read.map(|()| &mut raw))?;
    }
    Ok(())
}

fn skip_mark(reader: &mut BufReader<File>) -> std::io::Result<()> {
    if reader.fill_buf()?.starts_with(b"\xEF\xBB\xBF") {
        reader.consume(3);
    }
    Ok(())
}

/// The items of a list as text: `[0, 1, 1]`, as NumPy writes it (`[0 1 1]`), or with other brackets.
fn words(text: &str) -> Result<impl Iterator<Item = &str>, String> {
    if text.contains("...") {
        return Err("is shortened by NumPy: make lists of its arrays before they are written".into());
    }
    let text = text.trim().trim_start_matches(['[', '(', '{']).trim_end_matches([']', '}']);
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    Ok(words.map(|word| {
        // Python prints a list of NumPy's numbers as `np.int64(3)`
        let word = word.strip_suffix(')').unwrap_or(word);
        word.strip_prefix("np.").and_then(|n| n.split_once('(')).map_or(word, |(_, n)| n)
    }))
}

/// A field with a length; a field that is not a number is something else.
fn count(text: &str) -> Result<Option<i64>, String> {
    let text = text.trim();
    if let Ok(whole) = text.parse() {
        return Ok(Some(whole));
    }
    match text.parse::<f64>() {
        Ok(value) if value.fract() == 0.0 => Ok(Some(value as i64)),
        Ok(value) if !value.is_nan() => Err(format!("has the length {text}")),
        _ => Ok(None),
    }
}

/// A list of 0 and 1 as text, or of `true` and `false` in any spelling.
fn flags(text: &str) -> Result<Vec<i64>, String> {
    let flag = |word: &str| match word.trim_start_matches("np.").trim_end_matches('_').to_ascii_lowercase().as_str() {
        "true" => Ok(1),
        "false" => Ok(0),
        other => match other.parse::<f64>() {
            Ok(0.0) => Ok(0),
            Ok(1.0) => Ok(1),
            _ => Err(format!("has `{}`, which is neither 0 nor 1", word.chars().take(20).collect::<String>())),
        },
    };
    words(text)?.map(flag).collect()
}

/// A list of integers as text.
fn numbers(text: &str, out: &mut Vec<i64>) -> Result<(), String> {
    out.clear();
    for number in words(text)? {
        if matches!(number.to_ascii_lowercase().as_str(), "true" | "false") {
            return Err(format!("has the boolean `{number}`, not an integer"));
        }
        let whole = number.parse().ok().or_else(|| {
            let value: f64 = number.parse().ok()?;
            (value.fract() == 0.0).then_some(value as i64)
        });
        out.push(
            whole
                .ok_or_else(|| format!("has `{}`, which is no integer", number.chars().take(20).collect::<String>()))?,
        );
    }
    Ok(())
}

/// `[{…}, {…}]`
struct List<'a, F> {
    visit: F,
    failed: &'a mut Option<DataError>,
}

impl<'de, F> Visitor<'de> for List<'_, F>
where
    F: FnMut(usize, Result<&mut RawExample, String>) -> Result<(), DataError>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let (mut number, mut raw) = (0, RawExample::default());
        loop {
            let next = list.next_element_seed(Record(&mut raw));
            if next.map_err(|e| A::Error::custom(format!("example {number}: {e}")))?.is_none() {
                return Ok(());
            }
            if let Err(error) = (self.visit)(number, Ok(&mut raw)) {
                *self.failed = Some(error);
                return Err(A::Error::custom("stopped"));
            }
            number += 1;
        }
    }
}

/// `{"input_ids": […], "labels": […]}`, with anything else beside them.
struct Record<'a>(&'a mut RawExample);

impl<'de> DeserializeSeed<'de> for Record<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Record<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `input_ids` and `labels`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let RawExample { inputs, labels, length, mask } = self.0;
        (*length, *inputs, *labels, *mask) = (None, vec![], vec![], None);
        let mut seen: Vec<&str> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let Some(name) = READ.into_iter().find(|name| *name == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("there are two columns `{name}`")));
            }
            seen.push(name);
            let in_column = |e: A::Error| A::Error::custom(format!("`{name}`: {e}"));
            match name {
                INPUTS => map.next_value_seed(Numbers { out: inputs, flags: false }).map_err(in_column)?,
                LABELS => map.next_value_seed(Numbers { out: labels, flags: false }).map_err(in_column)?,
                MASK => {
                    let mut flags = Vec::new();
                    let seed = Numbers { out: &mut flags, flags: true };
                    *mask = map.next_value_seed(Nullable(seed)).map_err(in_column)?.map(|()| flags);
                }
                _ => {
                    let value = map.next_value::<serde_json::Value>()?;
                    *length = match value.as_f64() {
                        Some(number) if number.fract() == 0.0 => Some(number as i64),
                        Some(number) => return Err(A::Error::custom(format!("the length is {number}"))),
                        None => None, // something else of that name
                    };
                }
            }
        }
        match [INPUTS, LABELS].iter().find(|name| !seen.contains(name)) {
            Some(name) => Err(A::Error::custom(format!("there is no `{name}`"))),
            None => Ok(()),
        }
    }
}

/// A value that may be `null`, which counts as missing.
struct Nullable<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list, or null")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

/// A list of integers; with `flags`, of 0 and 1 or of booleans.
struct Numbers<'a> {
    out: &'a mut Vec<i64>,
    flags: bool,
}

impl<'de> DeserializeSeed<'de> for Numbers<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Numbers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.flags { "a list of 0 and 1 or of booleans" } else { "a list of integers" })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(number) = list.next_element_seed(Item { flags: self.flags })? {
            if self.out.len() == MAX_ROW_TOKENS {
                return Err(A::Error::custom(format!("there are more than {MAX_ROW_TOKENS} items in a list")));
            }
            self.out.push(number);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(format!("there is an object where a list of integers should be; {PANDAS}")))
    }
}

/// An item of such a list.
struct Item {
    flags: bool,
}

impl Item {
    fn checked<E: Error>(&self, number: i64) -> Result<i64, E> {
        match self.flags && !matches!(number, 0 | 1) {
            true => Err(E::custom(format!("{number} is neither 0 nor 1"))),
            false => Ok(number),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Item {
    type Value = i64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<i64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Item {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.flags { "0, 1 or a boolean" } else { "an integer" })
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<i64, E> {
        self.checked(number)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<i64, E> {
        self.checked(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<i64, E> {
        match number.fract() == 0.0 {
            true => self.checked(number as i64),
            false if self.flags => Err(E::custom(format!("{number} is neither 0 nor 1"))),
            false => Err(E::custom(format!("{number} is no integer"))),
        }
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<i64, E> {
        match self.flags {
            true => Ok(i64::from(flag)),
            false => Err(E::custom(format!("the boolean `{flag}` is no integer"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn objects_of_json() {
        let mut raw = RawExample::default();
        parse(r#"{"x": {"y": [1]}, "labels": [-100, 3.0], "length": 1, "input_ids": [0, 5]}"#, &mut raw).unwrap();
        assert_eq!((&raw.inputs[..], &raw.labels[..], raw.length), (&[0, 5][..], &[-100, 3][..], Some(1)));
        for (text, part) in [
            (r#"{"input_ids": [1]}"#, "there is no `labels`"),
            (r#"{"input_ids": [1.5], "labels": [1]}"#, "1.5 is no integer at character"),
            (r#"{"input_ids": ["a"], "labels": [1]}"#, "invalid type: string \"a\""),
            (r#"{"input_ids": {"0": [1]}, "labels": {"0": [1]}}"#, "orient=\"records\", lines=True"),
            (r#"{"input_ids": [1], "labels": [1]"#, "EOF"),
            (r#"{"input_ids": [1], "labels": [1]} {}"#, "trailing characters"),
        ] {
            let error = parse(text, &mut raw).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn lists_as_text() {
        let mut out = vec![];
        for text in [
            "[0, 1, -100]",
            "[ 0  1\n -100]",
            "(0,1,-100)",
            "{0,1,-100}",
            "0 1 -100",
            "[0.0, 1.0, -1e2]",
            "[np.int8(0), np.int64(1), np.int32(-100)]",
        ] {
            numbers(text, &mut out).unwrap();
            assert_eq!(out, [0, 1, -100], "{text}");
        }
        assert!(numbers("[0 1 ... 1 2]", &mut out).unwrap_err().contains("shortened by NumPy"));
        assert!(numbers("[0, a]", &mut out).unwrap_err().contains("`a`"));
        numbers("[]", &mut out).unwrap();
        assert!(out.is_empty());
    }
}
