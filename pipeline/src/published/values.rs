//! `values.csv`: what was published, with the source of every number.

use super::verdict::{Range, t_interval};
use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// A published value of a cell at a slice.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The row and the column of the cell.
    pub row: String,
    /// See `row`.
    pub column: String,
    /// The name of the slice.
    pub slice: String,
    /// What is claimed.
    pub claim: Claim,
    /// Paper and table, or repository and file.
    pub source: String,
}

/// A number, or a bound.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// A mean or maximum, as a fraction.
    Number {
        /// The number.
        value: f64,
        /// Where the value lies, given its printed digits and the spread of its runs.
        range: Range,
        /// Standard deviation and number of runs, where known.
        spread: Option<(f64, u32)>,
    },
    /// At least this, by a theory or a text.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
}

impl Claim {
    /// The number, where it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Number { value, .. } => Some(*value),
            Self::AtLeast(_) | Self::Below(_) => None,
        }
    }
}

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    row: String,
    column: String,
    slice: String,
    /// A number, `>=0.9` or `<0.9`; in percent where it ends in `%`.
    value: String,
    /// Standard deviation over runs, in the same unit.
    sd: Option<f64>,
    /// Runs.
    runs: Option<u32>,
    source: String,
}

/// Reads the file.
///
/// # Errors
/// A line is not of the file's form, has no source, or is there twice; the message has its number.
pub fn parse(text: &str) -> Result<Vec<Published>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).comment(Some(b'#')).from_reader(text.as_bytes());
    let mut all: Vec<Published> = Vec::new();
    for (number, line) in reader.deserialize::<Line>().enumerate() {
        let line = line.with_context(|| format!("value {}", number + 1))?;
        let doing = || format!("value {} ({}, {}, {})", number + 1, line.row, line.column, line.slice);
        if line.source.is_empty() {
            bail!(
                "{}: it has no source\n  hint: name the paper and its table, or the repository and its file",
                doing()
            );
        }
        if all.iter().any(|p| (&p.row, &p.column, &p.slice) == (&line.row, &line.column, &line.slice)) {
            bail!("{}: it is there twice", doing());
        }
        let claim = claim(&line).with_context(doing)?;
        let Line { row, column, slice, source, .. } = line;
        all.push(Published { row, column, slice, claim, source });
    }
    Ok(all)
}

fn claim(line: &Line) -> Result<Claim> {
    let (text, unit) = match line.value.strip_suffix('%') {
        Some(text) => (text.trim(), 100.0),
        None => (line.value.as_str(), 1.0),
    };
    let number = |text: &str| -> Result<f64> {
        let value: f64 = text.trim().parse().with_context(|| format!("`{}` is no number", line.value))?;
        let value = value / unit;
        if !(0.0..=1.0).contains(&value) {
            bail!("`{}` is no share\n  hint: write fractions of 1, or percent with a % behind the number", line.value);
        }
        Ok(value)
    };
    if let Some(bound) = text.strip_prefix(">=") {
        return Ok(Claim::AtLeast(number(bound)?));
    }
    if let Some(bound) = text.strip_prefix('<') {
        return Ok(Claim::Below(number(bound)?));
    }
    let value = number(text)?;
    let digits = text.split_once('.').map_or(0, |(_, digits)| digits.len());
    let rounding = 0.5 / unit * 0.1f64.powi(i32::try_from(digits)?);
    let mut range = Range { low: value - rounding, high: value + rounding }.within_shares();
    let spread = line.sd.map(|sd| sd / unit).zip(line.runs);
    if let Some((sd, runs)) = spread {
        range = range.and(t_interval(value, sd, runs as usize));
    }
    Ok(Claim::Number { value, range, spread })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, clippy::unwrap_used)]
    use super::*;

    const HEAD: &str = "row,column,slice,value,sd,runs,source\n";

    fn one(line: &str) -> Result<Published> {
        parse(&format!("{HEAD}{line}\n")).map(|mut all| all.remove(0))
    }

    #[test]
    fn a_value_lies_where_its_digits_and_its_runs_allow() {
        let range = |line: &str| match one(line).unwrap().claim {
            Claim::Number { range, .. } => (range.low, range.high),
            other => panic!("{other:?}"),
        };
        let near = |found: (f64, f64), low: f64, high: f64| {
            assert!((found.0 - low).abs() < 1e-6 && (found.1 - high).abs() < 1e-6, "{found:?}");
        };
        near(range("a,b,1..5,0.9996,,,x"), 0.99955, 0.99965);
        near(range("a,b,1..5,100.0 %,,,x"), 0.9995, 1.0);
        // 0.8 ± 2.7764 · 0.1 / √5
        near(range("a,b,1..5,0.80,0.1,5,x"), 0.8 - 0.124_164_4, 0.8 + 0.124_164_4);
        assert_eq!(one("a,b,1..5,>=0.95,,,theory").unwrap().claim, Claim::AtLeast(0.95));
        assert_eq!(one("a,b,1..5,<95%,,,theory").unwrap().claim, Claim::Below(0.95));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            ("a,b,1..5,0.9,,,", "it has no source"),
            ("a,b,1..5,97,,,x", "no share"),
            ("a,b,1..5,many,,,x", "`many` is no number"),
            ("a,b,1..5,0.9,,,x\na,b,1..5,0.8,,,x", "value 2 (a, b, 1..5): it is there twice"),
        ] {
            let error = format!("{:#}", one(line).unwrap_err());
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(format!("{:#}", parse("row,column\na,b\n").unwrap_err()).contains("missing field"));
    }
}
