//! The dialects in which spreadsheets and tools save a CSV file: encodings, delimiters, decimals, percent, spellings.

use super::{KEYS, VALUES};
use std::borrow::Cow;

/// Characters between the values of a line, in the order in which they are tried.
pub const DELIMITERS: [char; 4] = [',', ';', '\t', '|'];

/// The text of a file: UTF-8 or UTF-16, with a byte order mark or without.
pub fn decode(bytes: &[u8]) -> Cow<'_, str> {
    let utf16 = |unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().skip(1).map(|pair| unit(*pair)).collect();
        String::from_utf16_lossy(&units).into()
    };
    match bytes {
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest),
        all => String::from_utf8_lossy(all),
    }
}

/// A CSV file without what stands before its header.
pub struct Source<'a> {
    pub delimiter: char,
    pub body: &'a str,
}

/// Finds the delimiter: the one that `sep=` names, as spreadsheets write it, or else the one by which most of the columns
/// that are needed are found. Empty lines and comments before the header are passed over.
pub fn source(text: &str) -> Source<'_> {
    let mut body = text;
    let mut named = None;
    while let Some((line, rest)) = body.split_once('\n') {
        let line = line.trim();
        let separator = line.trim_matches('"').strip_prefix("sep=").and_then(|rest| rest.chars().next());
        if separator.is_none() && !line.is_empty() && !line.starts_with('#') {
            break;
        }
        named = named.or(separator.filter(char::is_ascii));
        body = rest;
    }
    let found = |delimiter: &char| {
        let header: Vec<String> = match reader(body, *delimiter).headers() {
            Ok(header) => header.iter().map(title).collect(),
            Err(_) => vec![],
        };
        let needed = KEYS.iter().copied().chain(VALUES.map(|(_, theirs)| theirs));
        (needed.filter(|name| header.iter().any(|title| title == name)).count(), header.len())
    };
    let best = DELIMITERS.iter().rev().max_by_key(|delimiter| found(delimiter)).copied();
    Source { delimiter: named.or(best).unwrap_or(','), body }
}

pub fn reader(text: &str, delimiter: char) -> csv::Reader<&[u8]> {
    let delimiter = u8::try_from(delimiter).unwrap_or(b',');
    csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes())
}

/// Characters around a value that are none of it; quotes are taken off where nothing stands before them.
pub fn is_around(c: char) -> bool {
    c.is_whitespace() || c == '"' || c == '\u{feff}'
}

/// The name of a column as the authors spell it: in small letters, with underscores.
pub fn title(name: &str) -> String {
    let plain = |c: char| if c.is_whitespace() || c == '-' { '_' } else { c.to_ascii_lowercase() };
    name.trim_matches(is_around).chars().map(plain).collect()
}

/// A count as it is written without a fraction: `2` for `2.0`. A text that is no number stays as it is; words for a
/// missing value become empty.
pub fn count(text: &str, delimiter: char) -> String {
    let missing = ["nan", "none", "null", "na", "n/a", "-"];
    match number(text, delimiter) {
        _ if missing.contains(&text.to_lowercase().as_str()) => String::new(),
        Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => format!("{number:.0}"),
        _ => text.to_owned(),
    }
}

/// `true`, `false`, or nothing, however a tool spells it.
pub fn flag(text: &str, delimiter: char) -> String {
    match count(text, delimiter).to_lowercase().as_str() {
        "true" | "1" | "yes" => "true".to_owned(),
        "false" | "0" | "no" => "false".to_owned(),
        other => other.to_owned(),
    }
}

/// Positions as the authors spell them, who may be us.
pub fn positions_of(text: &str) -> String {
    let known = |part: &str| {
        match part {
            "rope" => "rotary",
            "nope" => "none",
            "scalar" => "scaler",
            "randomized" | "randomised" => "rdmz",
            other => other,
        }
        .to_owned()
    };
    text.to_lowercase().split(['_', '+']).map(known).collect::<Vec<_>>().join("_")
}

/// The scale of a column of accuracies: shares or percent.
pub struct Scale {
    /// The largest number, if it says that the column counts in percent.
    percent: Option<f64>,
    /// Values that are no accuracies.
    strange: Vec<String>,
}

impl Scale {
    /// A number above 1, or a percent sign, says that the whole column is in percent.
    pub fn of(texts: &[String], delimiter: char) -> Self {
        let numbers: Vec<f64> = texts.iter().filter_map(|text| number(text, delimiter)).collect();
        let largest = numbers.iter().copied().filter(|v| *v <= 100.0).fold(0.0, f64::max);
        let signed = texts.iter().any(|text| text.ends_with('%'));
        let percent = (largest > 1.0 + 1e-6 || signed).then_some(largest);
        let is_strange = |text: &&String| match number(text, delimiter) {
            None => !count(text, delimiter).is_empty(),
            Some(value) => value > 100.0,
        };
        Self { percent, strange: texts.iter().filter(is_strange).cloned().collect() }
    }

    /// The accuracy that a text stands for. Negative numbers stand for "no such tokens".
    pub fn value(&self, text: &str, delimiter: char) -> Option<f64> {
        let value = number(text, delimiter)? / if self.percent.is_some() { 100.0 } else { 1.0 };
        (0.0..=1.0 + 1e-6).contains(&value).then(|| value.min(1.0))
    }

    pub fn notice(&self, column: &str) -> Vec<String> {
        let percent = self.percent.map(|largest| format!("`{column}` is read as percent (up to {largest})"));
        let strange = self.strange.first().map(|first| {
            format!(
                "`{column}` has {} values that are no accuracies and left out, such as `{first}`",
                self.strange.len()
            )
        });
        percent.into_iter().chain(strange).collect()
    }
}

/// A number, with a percent sign or without; where commas do not separate values, they may mark decimals.
pub fn number(text: &str, delimiter: char) -> Option<f64> {
    let text = text.trim_end_matches('%').trim();
    let text = if delimiter != ',' && !text.contains('.') { text.replace(',', ".") } else { text.to_owned() };
    text.parse().ok().filter(|value: &f64| value.is_finite())
}
