use crate::{IGNORE, Split, Vocabulary, stream_rng};
use rand::{Rng, RngExt};
use serde::{Deserialize, Deserializer, Serialize};

/// The longest list of number words: token ids must fit labels, which are 16-bit and signed.
pub(crate) const MAX_NUMBER: u32 = 30_000;

/// The symbols to count. Labels never depend on which letter a symbol is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Symbols {
    /// Every symbol is `a`.
    #[default]
    Same,
    /// Every symbol is one of the 26 letters, drawn independently and uniformly.
    Diff,
    /// As `diff`, with a first `a` in the vocabulary that never occurs: two vocabularies of the paper's code have it.
    DiffDeadA,
}

impl Symbols {
    /// The vocabulary's entries.
    fn tokens(self) -> Vec<String> {
        let letters = || ('a'..='z').map(String::from);
        match self {
            Self::Same => vec!["a".into()],
            Self::Diff => letters().collect(),
            Self::DiffDeadA => std::iter::once("a".into()).chain(letters()).collect(),
        }
    }

    /// Whether symbols are drawn at random.
    pub fn are_drawn(self) -> bool {
        self != Self::Same
    }
}

/// The number words `0 ..= last`, then `others`.
pub(crate) fn numbers_then(last: u32, others: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    (0..=last).map(|n| n.to_string()).chain(others.into_iter().map(Into::into)).collect()
}

/// The tokens of the families that count symbols with number words: numbers, `<pad>`, symbols.
pub(crate) fn counting_tokens(last: u32, symbols: Symbols) -> Vec<String> {
    numbers_then(last, std::iter::once(crate::PAD.to_owned()).chain(symbols.tokens()))
}

/// The ids of number words and symbols in a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    zero: u16,
    last: u32,
    symbols: Vec<u16>,
}

/// A sequence of the form `[start] symbols… [addon]`, where start and addon are numbers that may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub start: Option<u32>,
    pub count: u32,
    pub addon: Option<u32>,
}

impl Words {
    pub fn new(vocabulary: &Vocabulary, last: u32, symbols: Symbols) -> Self {
        let mut symbols: Vec<u16> = symbols.tokens().iter().filter_map(|t| vocabulary.id(t)).collect();
        symbols.dedup(); // the dead `a` encodes to the living one
        Self { zero: vocabulary.id("0").unwrap_or(0), last, symbols }
    }

    /// The number words alone.
    pub fn numbers(vocabulary: &Vocabulary, last: u32) -> Self {
        Self { zero: vocabulary.id("0").unwrap_or(0), last, symbols: vec![] }
    }

    /// The number words from 1 on, where the vocabulary has no `0`.
    pub fn from_one(vocabulary: &Vocabulary, last: u32) -> Self {
        Self { zero: vocabulary.id("1").unwrap_or(1).saturating_sub(1), last, symbols: vec![] }
    }

    /// The largest number.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// The id of a number word, `n ≤ last`.
    pub fn number(&self, n: u32) -> u16 {
        self.zero + n as u16
    }

    /// [`Self::number`] as a label.
    pub fn label(&self, n: u32) -> i16 {
        self.number(n) as i16
    }

    /// The number that a token stands for.
    pub fn value(&self, id: u16) -> Option<u32> {
        id.checked_sub(self.zero).map(u32::from).filter(|n| *n <= self.last)
    }

    pub fn is_symbol(&self, id: u16) -> bool {
        self.symbols.contains(&id)
    }

    /// `count` symbols, drawn where there is more than one.
    pub fn symbols(&self, count: u32, rng: &mut impl Rng) -> Vec<u16> {
        match self.symbols[..] {
            [only] => vec![only; count as usize],
            ref letters => (0..count).map(|_| letters[rng.random_range(0..letters.len())]).collect(),
        }
    }

    /// Splits `[start] symbols… [addon]`, at least one symbol; `None` for anything else.
    pub fn run(&self, input_ids: &[u16]) -> Option<Run> {
        let (start, rest) = match input_ids {
            [first, rest @ ..] if self.value(*first).is_some() => (self.value(*first), rest),
            all => (None, all),
        };
        let (symbols, addon) = match rest {
            [rest @ .., last] if self.value(*last).is_some() => (rest, self.value(*last)),
            all => (all, None),
        };
        let all_symbols = !symbols.is_empty() && symbols.iter().all(|id| self.is_symbol(*id));
        all_symbols.then_some(Run { start, count: symbols.len() as u32, addon })
    }

    /// [`Self::run`] with a reason where it fails or where the labels run out of numbers.
    pub fn run_or_reason(&self, input_ids: &[u16], form: &str) -> Result<Run, String> {
        let run = self.run(input_ids).ok_or_else(|| format!("the input is not of the form {form}"))?;
        let total = run.start.unwrap_or(0) + run.count + run.addon.unwrap_or(0);
        if total > self.last {
            return Err(format!("the labels would reach {total}, past the last number {}", self.last));
        }
        Ok(run)
    }

    /// The label rule of counting: a running sum in which a number adds its value and any other token adds one. A
    /// number at the very start is labelled only where `label_start` says so.
    pub fn running_sum(&self, input_ids: &[u16], label_start: bool) -> Vec<i16> {
        let mut sum = 0;
        let labelled = |(i, id): (usize, &u16)| {
            let value = self.value(*id);
            sum += value.unwrap_or(1);
            if sum > self.last || (i == 0 && value.is_some() && !label_start) { IGNORE } else { self.label(sum) }
        };
        input_ids.iter().enumerate().map(labelled).collect()
    }
}

/// The random stream of one example.
pub(crate) fn example_rng(seed: u64, split: Split, index: usize) -> rand_chacha::ChaCha8Rng {
    stream_rng(seed, split.name(), index as u64)
}

/// Why a track of number words ends.
pub(crate) fn past_last_number(last: u32) -> String {
    format!("past the vocabulary's last number ({last})")
}

/// `value` must lie in `range`.
pub(crate) fn check_range(name: &str, value: u32, range: std::ops::RangeInclusive<u32>) -> Result<(), String> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("{name} = {value} is not between {} and {}", range.start(), range.end())),
    }
}

/// A setting that is a token: `16` is one as well, though it is a number in TOML.
pub(crate) fn token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let value = toml::Value::deserialize(deserializer)?;
    Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// [`token`] where there may be none.
pub(crate) fn some_token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    token(deserializer).map(Some)
}
