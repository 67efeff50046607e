use super::words::{MAX_NUMBER, Symbols, Words, check_range, counting_tokens, example_rng};
use super::{Define, Examples, Family, copies};
use crate::{IGNORE, Split, Track, Vocabulary, stream_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Modular counting: the label of the i-th symbol is ((i − 1) mod m) + 1, so labels run 1..m and a multiple of m is
/// labelled m. Source: arXiv 2405.20131, section 3 (modular counting).
///
/// Training has equally many copies of every length up to `train_max`; the out-of-distribution split goes up to twice
/// that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Modular {
    /// m.
    pub modulus: u32,
    /// The longest training sequence; five times the modulus by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_max: Option<u32>,
    /// Prepend the token `0`, unlabelled, as a beginning of sequence.
    pub bos: bool,
    /// The shortest out-of-distribution sequence; by default one more than the longest training sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ood_min: Option<u32>,
    /// Out-of-distribution sequences of each length.
    pub ood_repeats: usize,
    /// The symbols to count.
    pub symbols: Symbols,
    #[serde(skip)]
    words: Words,
}

impl Default for Modular {
    fn default() -> Self {
        Self {
            modulus: 10,
            train_max: None,
            bos: false,
            ood_min: None,
            ood_repeats: 1,
            symbols: Symbols::Same,
            words: Words::default(),
        }
    }
}

impl Modular {
    fn train_max(&self) -> u32 {
        self.train_max.unwrap_or(5 * self.modulus)
    }

    fn ood_lengths(&self) -> std::ops::RangeInclusive<u32> {
        self.ood_min.unwrap_or(self.train_max() + 1)..=2 * self.train_max()
    }

    fn sequence(&self, length: u32, rng: &mut impl Rng) -> Vec<u16> {
        let mut input_ids = if self.bos { vec![self.words.number(0)] } else { vec![] };
        input_ids.extend(self.words.symbols(length, rng));
        input_ids
    }
}

impl Define for Modular {
    const NAME: &'static str = "modular";
    const EXAMPLES: &'static [&'static str] = &["modulus=3,train_max=7,symbols=diff,helper=blk"];

    fn tokens(&self) -> Vec<String> {
        counting_tokens(self.modulus, self.symbols)
    }

    fn validate(&self) -> Result<(), String> {
        check_range("modulus", self.modulus, 1..=MAX_NUMBER)?;
        check_range("train_max", self.train_max(), 1..=100_000)?;
        check_range("ood_repeats", self.ood_repeats as u32, 1..=1000)?;
        check_range("ood_min", *self.ood_lengths().start(), 1..=*self.ood_lengths().end())
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.words = Words::new(vocabulary, self.modulus, self.symbols);
    }

    fn longest(&self) -> usize {
        usize::from(self.bos) + 2 * self.train_max() as usize
    }
}

impl Family for Modular {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    /// Of a remainder.
    fn chance(&self, _length: u32) -> Option<f64> {
        Some(1.0 / f64::from(self.modulus))
    }

    fn train_max_length(&self) -> u32 {
        self.train_max()
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        let lengths = self.train_max() as usize;
        match split {
            Split::Train => copies(train, lengths, "lengths"),
            Split::Val => Ok((300 / lengths).max(1) * lengths),
            Split::OodTest | Split::Auxiliary(_) => Ok(self.ood_lengths().count() * self.ood_repeats),
        }
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        let lengths = self.train_max() as usize;
        Box::new(move |index| {
            let length = match split {
                Split::Train | Split::Val => 1 + (index % lengths) as u32,
                Split::OodTest | Split::Auxiliary(_) => self.ood_lengths().start() + (index / self.ood_repeats) as u32,
            };
            self.labelled(self.sequence(length, &mut example_rng(seed, split, index)), length)
        })
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        let symbols = match input_ids {
            [bos, rest @ ..] if self.bos && *bos == self.words.number(0) => rest,
            _ if self.bos => return Err("the input does not start with `0`".into()),
            all => all,
        };
        match !symbols.is_empty() && symbols.iter().all(|id| self.words.is_symbol(*id)) {
            true => Ok(symbols.len() as u32),
            false => Err("the input is not a row of symbols".into()),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        let bos = usize::from(self.bos);
        let label = |i: usize| match i.checked_sub(bos) {
            Some(symbol) => self.words.label(symbol as u32 % self.modulus + 1),
            None => IGNORE,
        };
        (0..input_ids.len()).map(label).collect()
    }

    fn distinct_tracks(&self) -> Option<usize> {
        (!self.symbols.are_drawn()).then_some(1)
    }

    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let input_ids = self.sequence(max_length, &mut stream_rng(seed, "track", index as u64));
        Track::from_example(self.labelled(input_ids, max_length), usize::from(self.bos), 1, None)
    }
}
