use crate::EvalError;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// More values than this are a typing mistake, not a sweep.
const MOST: u64 = 10_000_000;

/// The lengths of a sweep: ascending, without repetition, all at least 1.
///
/// Parsed from `a..b` or `a..=b` (both ends count), `a..b:step`, single numbers, and comma lists of these.
///
/// ```
/// let lengths: evaluators::Lengths = "1..3,10..30:10".parse()?;
/// assert_eq!(lengths.as_slice(), [1, 2, 3, 10, 20, 30]);
/// # Ok::<(), evaluators::EvalError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths(Vec<u32>);

impl Lengths {
    /// The longest length that can be asked for: a sequence of so many tokens still fits into memory, and is made in
    /// seconds.
    pub const LONGEST: u32 = 1 << 24;

    /// Exactly the lengths that occur in `values`; zeros are dropped.
    pub fn from_values(values: impl IntoIterator<Item = u32>) -> Self {
        let mut values: Vec<u32> = values.into_iter().filter(|&l| l > 0).collect();
        values.sort_unstable();
        values.dedup();
        Self(values)
    }

    /// The lengths, ascending.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// The longest; `None` only where there are none at all.
    pub fn longest(&self) -> Option<u32> {
        self.0.last().copied()
    }
}

/// `41..500` where all between the first and the last are there; `10, 20, … 100` otherwise.
impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_slice() {
            [] => f.write_str("none"),
            [only] => write!(f, "{only}"),
            [first, .., last] if (last - first) as usize + 1 == self.0.len() => write!(f, "{first}..{last}"),
            [first, second] => write!(f, "{first}, {second}"),
            [first, second, .., last] => write!(f, "{first}, {second}, … {last}"),
        }
    }
}

impl From<RangeInclusive<u32>> for Lengths {
    fn from(range: RangeInclusive<u32>) -> Self {
        Self::from_values(range)
    }
}

impl FromStr for Lengths {
    type Err = EvalError;

    fn from_str(text: &str) -> Result<Self, EvalError> {
        let failed = |reason| EvalError::Lengths { text: text.to_owned(), reason };
        if text.trim().is_empty() {
            return Err(failed("it is empty".into()));
        }
        let ranges = text.split(',').map(|part| Range::parse(part.trim())).collect::<Result<Vec<_>, _>>();
        let ranges = ranges.map_err(failed)?;
        let count: u64 = ranges.iter().map(Range::count).sum();
        if count > MOST {
            return Err(failed(format!("that is {count} lengths, more than {MOST}")));
        }
        Ok(Self::from_values(ranges.iter().flat_map(Range::values)))
    }
}

/// `first ..= last` in steps.
struct Range {
    first: u32,
    last: u32,
    step: u32,
}

impl Range {
    fn parse(part: &str) -> Result<Self, String> {
        let Some((first, rest)) = part.split_once("..") else {
            let only = number(part)?;
            return Self { first: only, last: only, step: 1 }.checked();
        };
        let (last, step) = match rest.split_once(':') {
            Some((last, step)) => (last, number(step)?),
            None => (rest, 1),
        };
        Self { first: number(first)?, last: number(last.trim_start_matches('='))?, step }.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let Self { first, last, step } = self;
        match self {
            Self { first: 0, .. } => Err("lengths start at 1, not 0".into()),
            Self { step: 0, .. } => Err("a step of 0 never arrives".into()),
            _ if first > last => Err(format!("{first}..{last} runs backwards; did you mean {last}..{first}?")),
            _ if last > Lengths::LONGEST => Err(format!("{last} is longer than {}", Lengths::LONGEST)),
            _ => Ok(Self { first, last, step }),
        }
    }

    fn count(&self) -> u64 {
        u64::from((self.last - self.first) / self.step) + 1
    }

    fn values(&self) -> impl Iterator<Item = u32> {
        (self.first..=self.last).step_by(self.step as usize)
    }
}

fn number(text: &str) -> Result<u32, String> {
    let text = text.trim();
    text.parse().map_err(|_| match text {
        "" => "a number is missing".to_owned(),
        _ if text.bytes().all(|b| b.is_ascii_digit()) => format!("{text} is too large"),
        _ => format!("`{text}` is not a length"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Vec<u32> {
        text.parse::<Lengths>().unwrap().0
    }

    fn refused(text: &str) -> String {
        text.parse::<Lengths>().unwrap_err().to_string()
    }

    #[test]
    fn ranges_count_both_ends_and_mix_with_lists() {
        assert_eq!(parsed("1..4"), [1, 2, 3, 4]);
        assert_eq!(parsed("1..=4"), [1, 2, 3, 4]);
        assert_eq!(parsed("7..7"), [7]);
        assert_eq!(parsed("10..50:20"), [10, 30, 50]);
        assert_eq!(parsed("10..45:20"), [10, 30]);
        assert_eq!(parsed("50,10,50, 100"), [10, 50, 100]);
        assert_eq!(parsed("1..3,2..5,50"), [1, 2, 3, 4, 5, 50]);
        assert_eq!(parsed("1..1000").len(), 1000);
    }

    #[test]
    fn every_mistake_has_its_message() {
        let hint = "\n  hint: write 1..1000 (both ends count), 10..500:10, or 10,50,100";
        for (text, reason) in [
            ("0..10", "lengths start at 1, not 0"),
            ("0", "lengths start at 1, not 0"),
            ("5..1", "5..1 runs backwards; did you mean 1..5?"),
            ("x", "`x` is not a length"),
            ("1..x", "`x` is not a length"),
            ("-3", "`-3` is not a length"),
            ("", "it is empty"),
            ("1,,2", "a number is missing"),
            ("5..", "a number is missing"),
            ("1..9:0", "a step of 0 never arrives"),
            ("99999999999", "99999999999 is too large"),
            ("1..16000000", "that is 16000000 lengths, more than 10000000"),
            ("10,16777217", "16777217 is longer than 16777216"),
            ("4000000000", "4000000000 is longer than 16777216"),
        ] {
            assert_eq!(refused(text), format!("cannot read the lengths `{text}`: {reason}{hint}"));
        }
    }
}
