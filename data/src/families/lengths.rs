use crate::{Example, LengthLimit, Track, stream_rng};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use toml::Value;

/// The largest length that settings may name.
const LONGEST: u32 = 1 << 20;

/// Lengths of a split as they are written in settings: `5..20`, `64,128`, and for families that show pairs `64x4`, a
/// length with a number of pairs. A last number is a weight: `64x4x5,128x8` has five of the first for one of the second.
/// `5-20` and `64+128` mean the same, where a comma would end the setting.
///
/// A range has every length in it that the family has examples of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "String")]
pub struct Lengths {
    items: Vec<Item>,
    text: String,
}

/// `first-last x pairs x weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    first: u32,
    last: u32,
    pairs: Option<u32>,
    weight: u32,
}

impl TryFrom<Value> for Lengths {
    type Error = String;

    /// A single length is a number in TOML.
    fn try_from(value: Value) -> Result<Self, String> {
        let text = match &value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let items: Option<Vec<Item>> = text.split([',', '+']).map(|item| Item::parse(item.trim())).collect();
        match items {
            Some(items) => Ok(Self { items, text }),
            None => Err(format!(
                "`{text}` names no lengths\n  hint: write one (40), a range (1..40), several (64,128), or with pairs \
                 64x4, at most {LONGEST}"
            )),
        }
    }
}

impl From<Lengths> for String {
    fn from(lengths: Lengths) -> Self {
        lengths.text
    }
}

impl Item {
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| (1..=LONGEST).contains(n));
        let mut parts = text.split('x');
        let range = parts.next()?;
        let ends = range.split_once("..").or_else(|| range.split_once('-'));
        let (first, last) = ends.unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        let pairs = parts.next().map(|n| number(n).ok_or(())).transpose().ok()?;
        let weight = parts.next().map(|n| number(n).ok_or(())).transpose().ok()?;
        let valid = first <= last && parts.next().is_none() && weight.is_none_or(|weight| weight <= 1000);
        valid.then_some(Self { first, last, pairs, weight: weight.unwrap_or(1) })
    }
}

impl Lengths {
    /// Lengths of a default, which a test parses again.
    pub(super) fn new(text: &str) -> Self {
        Self { items: text.split([',', '+']).filter_map(Item::parse).collect(), text: text.to_owned() }
    }

    /// From the shortest to the longest one.
    pub fn span(&self) -> std::ops::RangeInclusive<u32> {
        self.items.iter().map(|item| item.first).min().unwrap_or(0)..=self.last()
    }

    /// The longest one.
    pub fn last(&self) -> u32 {
        self.items.iter().map(|item| item.last).max().unwrap_or(0)
    }

    /// Refuses numbers of pairs where a family has none, and missing ones where it has.
    pub(super) fn check_pairs(&self, name: &str, has_pairs: bool) -> Result<(), String> {
        let example = if has_pairs { "64x4 is a length of 64 with 4 pairs" } else { "write lengths alone: 1..40" };
        match self.items.iter().all(|item| item.pairs.is_some() == has_pairs) {
            true => Ok(()),
            false if has_pairs => Err(format!("{name} = {} states no pairs\n  hint: {example}", self.text)),
            false => Err(format!("{name} = {} states pairs, which the task has not\n  hint: {example}", self.text)),
        }
    }

    /// Those that a family has examples of; in a range the others are left out.
    ///
    /// # Errors
    /// `name` (the setting) has none, or a single one is impossible: why.
    pub(super) fn sizes(
        &self,
        name: &str,
        possible: impl Fn(u32, Option<u32>) -> Result<(), String>,
    ) -> Result<Sizes, String> {
        let mut sizes = Sizes::default();
        let mut total = 0;
        for Item { first, last, pairs, weight } in &self.items {
            let before = sizes.0.len();
            let mut refusal = String::new();
            for length in *first..=*last {
                match possible(length, *pairs) {
                    Ok(()) => {
                        total += *weight as usize;
                        sizes.0.push(Size { length, pairs: *pairs, end: total });
                    }
                    Err(reason) => refusal = reason,
                }
            }
            if sizes.0.len() == before {
                return Err(format!("{name} = {}: length {last}: {refusal}", self.text));
            }
        }
        Ok(sizes)
    }
}

/// The lengths of a split, each as often as its weight says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sizes(Vec<Size>);

/// A length, and how many pairs its examples have if that is stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub length: u32,
    pub pairs: Option<u32>,
    /// The sum of the weights up to and with this one.
    end: usize,
}

impl Sizes {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len().max(1)
    }

    fn total(&self) -> usize {
        self.0.last().map_or(1, |size| size.end)
    }

    /// In turn: the first `total` indices have every size as often as its weight says.
    pub fn turn(&self, index: usize) -> Size {
        let ticket = index % self.total();
        let at = self.0.partition_point(|size| size.end <= ticket);
        self.0.get(at).copied().unwrap_or(Size { length: 1, pairs: None, end: 1 })
    }

    /// At random, in proportion to the weights.
    pub fn draw(&self, rng: &mut impl Rng) -> Size {
        self.turn(rng.random_range(0..self.total()))
    }

    /// One of a given length at random, in proportion to the weights, if there is any.
    pub fn draw_of(&self, length: u32, rng: &mut impl Rng) -> Option<Size> {
        let weight = |at: usize| self.0[at].end - at.checked_sub(1).map_or(0, |before| self.0[before].end);
        let of_length = || (0..self.0.len()).filter(|at| self.0[*at].length == length);
        let total: usize = of_length().map(weight).sum();
        let mut ticket = if total > 0 { rng.random_range(0..total) } else { return None };
        let drawn = of_length().find(|at| match ticket.checked_sub(weight(*at)) {
            Some(rest) => {
                ticket = rest;
                false
            }
            None => true,
        });
        drawn.map(|at| self.0[at])
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Size> {
        self.0.iter().copied()
    }
}

/// The lengths and sizes of all splits: `train` and `val` share their lengths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Splits {
    pub train: Sizes,
    pub test: Sizes,
}

/// The random stream of an example of a given length.
pub(super) fn length_rng(seed: u64, purpose: &str, index: usize, length: u32) -> ChaCha8Rng {
    stream_rng(seed, purpose, ((index as u64) << 32) | u64::from(length))
}

/// The test of `length` as a track. Where there is none, it is that of the nearest training or test length below, or
/// of the shortest one above.
pub(super) fn nearest_track(length: u32, splits: &Splits, test: impl Fn(u32) -> Result<Example, LengthLimit>) -> Track {
    let single = |example: Example, limit| {
        let header = example.input_ids.len().saturating_sub(example.length as usize);
        Track::single(example, header, limit)
    };
    let limit = match test(length) {
        Ok(example) => return single(example, None),
        Err(limit) => Some((length.saturating_sub(1), limit.reason)),
    };
    let known = splits.train.iter().chain(splits.test.iter()).map(|size| size.length);
    let (mut below, mut above): (Vec<u32>, Vec<u32>) = known.partition(|known| *known < length);
    below.sort_unstable_by(|a, b| b.cmp(a));
    above.sort_unstable();
    let example = below.into_iter().chain(above).find_map(|near| test(near).ok());
    let nothing = || Example { input_ids: vec![], labels: vec![], length: 0 };
    single(example.unwrap_or_else(nothing), limit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lengths(text: &str) -> Result<Lengths, String> {
        Lengths::try_from(Value::String(text.into()))
    }

    #[test]
    fn lengths_as_they_are_written() {
        let sizes = |text: &str| lengths(text).unwrap().sizes("train_lengths", |_, _| Ok(())).unwrap();
        let shown = |text: &str, n: usize| -> Vec<(u32, Option<u32>)> {
            let sizes = sizes(text);
            (0..n).map(|i| (sizes.turn(i).length, sizes.turn(i).pairs)).collect()
        };
        let expected = vec![(5, None), (6, None), (7, None), (9, None), (5, None)];
        assert_eq!(expected, shown("5-7+9", 5));
        assert_eq!(expected, shown("5..7, 9", 5));
        assert_eq!(lengths("5..7,9").unwrap().span(), 5..=9);
        let expected = vec![(64, Some(4)), (64, Some(4)), (64, Some(4)), (128, Some(8)), (64, Some(4))];
        assert_eq!(expected, shown("64x4x3+128x8", 5));
        assert_eq!(lengths("64x4+1024x256+9").unwrap().last(), 1024);
        assert_eq!(Lengths::try_from(Value::Integer(40)).unwrap(), lengths("40").unwrap());
        assert_eq!(String::from(lengths("1-40").unwrap()), "1-40");
        for wrong in ["", "0", "5-4", "a", "1-", "4x", "4x1x1x1", "4x1x2000", "1048577", "1+", "-5"] {
            assert!(lengths(wrong).is_err_and(|why| why.contains("hint: ")), "{wrong}");
        }
    }

    #[test]
    fn ranges_leave_out_what_is_impossible_and_single_lengths_may_not() {
        let even = |length: u32, _| if length.is_multiple_of(2) { Ok(()) } else { Err("an odd length".to_owned()) };
        let sizes = lengths("1-9").unwrap().sizes("test_lengths", even).unwrap();
        assert_eq!(sizes.iter().map(|size| size.length).collect::<Vec<_>>(), [2, 4, 6, 8]);
        let error = lengths("2-8+9").unwrap().sizes("test_lengths", even).unwrap_err();
        assert_eq!(error, "test_lengths = 2-8+9: length 9: an odd length");
    }
}
