use super::{Examples, Family};
use crate::{Example, LengthLimit, Split, Track, Vocabulary, stream_rng};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;
use std::str::FromStr;

/// The longest length of a split.
const LONGEST: u32 = 100_000;

/// The lengths of a split in main tokens: ranges that share its examples equally.
///
/// Written as `"1..40"` (both ends count), `"51..100,101..150"`, or a number; `1-40` and `51-100+101-150` mean the
/// same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

/// The shortest and the longest length of a range.
pub(crate) type Range = (u32, u32);

impl Ranges {
    /// `first ..= last`.
    pub fn range(first: u32, last: u32) -> Self {
        Self(vec![(first, last)])
    }

    /// The ranges, in the order in which they are written.
    pub(crate) fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The longest length.
    pub fn longest(&self) -> u32 {
        self.0.iter().map(|(_, last)| *last).max().unwrap_or(0)
    }

    /// Refuses lengths outside of `shortest ..= 100 000`, naming the setting.
    pub(crate) fn check(&self, setting: &str, shortest: u32) -> Result<(), String> {
        match self.0.iter().find(|(first, last)| *first < shortest || *last > LONGEST) {
            Some((first, last)) => Err(format!(
                "{setting} = \"{first}..{last}\" is not between {shortest} and {LONGEST}\n  hint: write \"1..40\" or \"51..100,101..150\""
            )),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}..{last}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Ranges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "`{text}` is not a list of lengths: {why}\n  hint: write \"1..40\" (both ends count) or \"51..100,101..150\""
            )
        };
        let number = |part: &str| part.trim().parse().map_err(|_| wrong(&format!("`{}` is no number", part.trim())));
        let range = |part: &str| {
            let (first, last) = match part.split_once("..").or_else(|| part.split_once('-')) {
                Some((first, last)) => (number(first)?, number(last.trim_start_matches('='))?),
                None => (number(part)?, number(part)?),
            };
            if first > last { Err(wrong(&format!("{first}..{last} runs backwards"))) } else { Ok((first, last)) }
        };
        text.split([',', '+']).map(range).collect::<Result<_, _>>().map(Self)
    }
}

impl Serialize for Ranges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected lengths such as \"1..40\" or 40")]
        enum Written {
            One(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::One(length) => Ok(Self::range(length, length)),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// The lengths and sizes of the splits of a [`Sampled`] family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Splits<'a> {
    /// The lengths of training and validation.
    pub train: &'a Ranges,
    /// The lengths of the out-of-distribution split.
    pub test: &'a Ranges,
    /// The size of the validation split.
    pub val_examples: usize,
    /// The size of the out-of-distribution split.
    pub test_examples: usize,
}

impl<'a> Splits<'a> {
    /// The lengths of a split.
    pub fn lengths(self, split: Split) -> &'a Ranges {
        match split {
            Split::Train | Split::Val => self.train,
            Split::OodTest | Split::Auxiliary(_) => self.test,
        }
    }

    /// The longest length of any split.
    pub fn longest(self) -> u32 {
        self.train.longest().max(self.test.longest())
    }

    /// Refuses lengths below `shortest`, and splits without examples.
    pub fn check(self, shortest: u32) -> Result<(), String> {
        self.train.check("train_lengths", shortest)?;
        self.test.check("test_lengths", shortest)?;
        for (setting, size) in [("val_examples", self.val_examples), ("test_examples", self.test_examples)] {
            if !(1..=100_000_000).contains(&size) {
                return Err(format!("{setting} = {size} is not between 1 and 100000000"));
            }
        }
        Ok(())
    }
}

/// A family whose examples are drawn by length. It has every method of [`Family`] through this.
pub(crate) trait Sampled: fmt::Debug + Send + Sync {
    /// [`Family::name`].
    const NAME: &'static str;

    /// The lengths and sizes of the splits.
    fn splits(&self) -> Splits<'_>;

    /// Why there is no sequence of `length` main tokens, where there is none.
    fn gap(&self, length: u32) -> Option<String>;

    /// A whole input of `length` main tokens, a length without a gap, as tests and training draw it.
    fn draw(&self, split: Split, length: u32, rng: &mut ChaCha8Rng) -> Vec<u16>;

    /// A whole input of a length within the range, for samplers in which the length follows from the rest; `None`
    /// where lengths are drawn first, uniformly.
    fn draw_in(&self, _split: Split, _range: Range, _rng: &mut ChaCha8Rng) -> Option<Vec<u16>> {
        None
    }

    /// The longest sequence of a range: its end, where the sampler keeps to that.
    fn longest_in(&self, (_, last): Range) -> u32 {
        last
    }

    /// [`Family::length`].
    fn main_tokens(&self, input_ids: &[u16]) -> Result<u32, String>;

    /// [`Family::rule`].
    fn label(&self, input_ids: &[u16]) -> Vec<i16>;

    /// Tokens before the first main token (or after the last: their number), and tokens per main token.
    fn layout(&self) -> (usize, usize);

    /// [`Family::prefix_closed`]; then [`Self::draw`] draws token after token.
    fn closed(&self) -> bool {
        false
    }

    /// [`Family::leaves_last_open`].
    fn open(&self) -> bool {
        false
    }

    /// The length of the sequence that stands for `length` in a test: itself, unless it has a gap that the original
    /// rounds.
    fn rounded(&self, length: u32) -> u32 {
        length
    }

    /// The length of an example of a split for which `length` was drawn from a range.
    fn drawn_as(&self, length: u32, _range: Range) -> u32 {
        self.rounded(length)
    }

    /// [`Family::distinct_tracks`].
    fn distinct(&self) -> Option<usize> {
        None
    }

    /// [`Family::chance`].
    fn guess(&self, _length: u32) -> Option<f64> {
        None
    }
}

/// The split whose sampler tests use.
const TEST: Split = Split::OodTest;

/// The random stream of a test: of a track where all lengths share it, of a length otherwise.
fn track_rng(seed: u64, index: usize, length: Option<u32>) -> ChaCha8Rng {
    stream_rng(seed, "track", index as u64 ^ u64::from(length.unwrap_or(0)) << 40)
}

/// The lengths of each range that have sequences.
fn possible<F: Sampled>(family: &F, lengths: &Ranges) -> Vec<Vec<u32>> {
    let of_range = |&(first, last): &Range| {
        let mut possible: Vec<u32> = (first..=last).map(|length| family.drawn_as(length, (first, last))).collect();
        possible.retain(|length| family.gap(*length).is_none());
        possible
    };
    lengths.ranges().iter().map(of_range).filter(|range| !range.is_empty()).collect()
}

/// Refuses lengths of which no sequence exists; for `validate`, once the family can say so.
pub(crate) fn check_gaps<F: Sampled>(family: &F) -> Result<(), String> {
    let Splits { train, test, .. } = family.splits();
    for (setting, lengths) in [("train_lengths", train), ("test_lengths", test)] {
        for &(first, last) in lengths.ranges() {
            let gaps = || (first..=last).map(|length| family.gap(family.drawn_as(length, (first, last))));
            if let Some(Some(reason)) = gaps().all(|gap| gap.is_some()).then(|| gaps().next()).flatten() {
                let range = Ranges::range(first, last);
                return Err(format!(
                    "{setting}: no sequence has a length of {range}: {reason}\n  hint: write other lengths"
                ));
            }
        }
    }
    Ok(())
}

impl<F: Sampled> Family for F {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn train_max_length(&self) -> u32 {
        self.splits().train.ranges().iter().map(|range| self.longest_in(*range)).max().unwrap_or(0)
    }

    fn train_lengths(&self) -> std::ops::RangeInclusive<u32> {
        let first = self.splits().train.ranges().iter().map(|(first, _)| *first).min();
        first.unwrap_or(1).max(1)..=self.train_max_length()
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        Ok(match split {
            Split::Train => train,
            Split::Val => self.splits().val_examples,
            Split::OodTest | Split::Auxiliary(_) => self.splits().test_examples,
        })
    }

    /// Training draws lengths; the other splits go through them, so that each has its share.
    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        let lengths = self.splits().lengths(split);
        let possible = possible(self, lengths);
        Box::new(move |index| {
            let mut rng = stream_rng(seed, split.name(), index as u64);
            let ranges = lengths.ranges();
            let range = match split {
                Split::Train if ranges.len() > 1 => rng.random_range(0..ranges.len()),
                _ => index % ranges.len().max(1),
            };
            if let Some(input_ids) = ranges.get(range).and_then(|range| self.draw_in(split, *range, &mut rng)) {
                let length = self.main_tokens(&input_ids).unwrap_or(0);
                return self.labelled(input_ids, length);
            }
            let Some(of_range) = possible.get(range % possible.len().max(1)) else {
                return Example { input_ids: vec![], labels: vec![], length: 0 }; // refused by `validate`
            };
            let place = match split {
                Split::Train => rng.random_range(0..of_range.len()),
                _ => index / ranges.len() % of_range.len(),
            };
            let length = of_range[place];
            self.labelled(self.draw(split, length, &mut rng), length)
        })
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        self.main_tokens(input_ids)
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        self.label(input_ids)
    }

    fn leaves_last_open(&self) -> bool {
        self.open()
    }

    fn prefix_closed(&self) -> bool {
        self.closed()
    }

    fn distinct_tracks(&self) -> Option<usize> {
        self.distinct()
    }

    /// Of families that are not closed, the test of `max_length`, or of the nearest shorter length that has one.
    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let (header, stride) = self.layout();
        let length =
            (0..=max_length).rev().map(|length| self.rounded(length)).find(|length| self.gap(*length).is_none());
        let Some(length) = length else {
            let nothing = Example { input_ids: vec![], labels: vec![], length: 0 };
            let reason = self.gap(max_length).unwrap_or_default();
            return Track::single(nothing, 0, Some((0, reason)));
        };
        let mut rng = track_rng(seed, index, (!self.closed()).then_some(length));
        let example = self.labelled(self.draw(TEST, length, &mut rng), length);
        Track { prefix_closed: self.closed(), ..Track::from_example(example, header, stride, None) }
    }

    fn of_length(&self, seed: u64, index: usize, length: u32) -> Option<Example> {
        let index = index as u64 ^ u64::from(length) << 40;
        let draw = || self.draw(Split::Train, length, &mut stream_rng(seed, "of_length", index));
        self.gap(length).is_none().then(|| self.labelled(draw(), length))
    }

    fn chance(&self, length: u32) -> Option<f64> {
        self.guess(length)
    }

    fn test(&self, seed: u64, index: usize, length: u32) -> Result<Example, LengthLimit> {
        let rounded = self.rounded(length);
        if let Some(reason) = self.gap(rounded) {
            return Err(LengthLimit { length, reason });
        }
        let mut rng = track_rng(seed, index, (!self.closed()).then_some(rounded));
        Ok(self.labelled(self.draw(TEST, rounded, &mut rng), rounded))
    }
}

/// The ids of a family's tokens, which it numbers itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    ids: Vec<u16>,
    numbers: Vec<Option<u16>>,
}

impl Tokens {
    /// Numbers `tokens` in their order.
    pub fn new(vocabulary: &Vocabulary, tokens: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let ids: Vec<u16> = tokens.into_iter().map(|token| vocabulary.id(token.as_ref()).unwrap_or(0)).collect();
        let mut numbers = vec![None; vocabulary.len()];
        for (number, id) in ids.iter().enumerate().rev() {
            numbers[usize::from(*id)] = Some(number as u16);
        }
        Self { ids, numbers }
    }

    /// The id of a number.
    pub fn id(&self, number: u16) -> u16 {
        self.ids[usize::from(number)]
    }

    /// [`Self::id`] as a label.
    pub fn label(&self, number: u16) -> i16 {
        self.id(number) as i16
    }

    /// The number of an id, if it is one of these tokens.
    pub fn number(&self, id: u16) -> Option<u16> {
        self.numbers.get(usize::from(id)).copied().flatten()
    }
}
