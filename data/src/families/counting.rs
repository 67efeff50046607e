use super::pairs::Pairs;
use super::words::{Symbols, Words, counting_tokens, example_rng, past_last_number};
use super::{Define, Examples, Family};
use crate::{Split, Track, Vocabulary};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Counting, then adding: the input is c symbols and a number k; the labels are 1, 2, …, c and, at the number, c + k.
/// Source: arXiv 2405.20131, section 3.
///
/// Some (c, k) are held out of training for validation; the out-of-distribution split enumerates every c > `train_max`.
/// Sweeps count without the number at the end: it would end the sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Counting {
    /// The largest count in training.
    pub train_max: u32,
    /// The largest number word, where the labels end.
    pub last_number: u32,
    /// How many (c, k) are held out for validation.
    pub val_cells: usize,
    /// The symbols to count.
    pub symbols: Symbols,
    #[serde(skip)]
    words: Words,
}

impl Default for Counting {
    fn default() -> Self {
        Self { train_max: 50, last_number: 100, val_cells: 300, symbols: Symbols::Same, words: Words::default() }
    }
}

/// `symbols… [k]`
pub(super) fn sequence(words: &Words, c: u32, k: u32, rng: &mut impl Rng) -> Vec<u16> {
    let mut input_ids = words.symbols(c, rng);
    input_ids.push(words.number(k));
    input_ids
}

impl Counting {
    fn pairs(&self) -> Pairs {
        Pairs { train_max: self.train_max, last_number: self.last_number, val_cells: self.val_cells }
    }
}

impl Define for Counting {
    const NAME: &'static str = "counting";
    const EXAMPLES: &'static [&'static str] =
        &["last_number=20,train_max=5,val_cells=9,helper=pad,symbols=diff,auxiliary=addtable_padhelper"];

    fn tokens(&self) -> Vec<String> {
        counting_tokens(self.last_number, self.symbols)
    }

    fn validate(&self) -> Result<(), String> {
        self.pairs().check()
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.words = Words::new(vocabulary, self.last_number, self.symbols);
    }

    fn longest(&self) -> usize {
        self.last_number as usize
    }
}

impl Family for Counting {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn train_max_length(&self) -> u32 {
        self.train_max
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        Ok(self.pairs().rows(split, train))
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        let pick = self.pairs().pick(split, seed);
        Box::new(move |index| {
            let mut rng = example_rng(seed, split, index);
            let (c, k) = pick(index, &mut rng);
            self.labelled(sequence(&self.words, c, k, &mut rng), c)
        })
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        let run = self.words.run_or_reason(input_ids, "`a … a [number]`")?;
        match run.start {
            None => Ok(run.count),
            Some(_) => Err("the input starts with a number".into()),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        self.words.running_sum(input_ids, true)
    }

    fn ends_bare(&self, input_ids: &[u16]) -> bool {
        input_ids.last().is_some_and(|id| self.words.value(*id).is_some())
    }

    fn distinct_tracks(&self) -> Option<usize> {
        (!self.symbols.are_drawn()).then_some(1)
    }

    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let length = max_length.min(self.last_number);
        let symbols = self.words.symbols(length, &mut crate::stream_rng(seed, "track", index as u64));
        let limit = Some((self.last_number, past_last_number(self.last_number)));
        Track::from_example(self.labelled(symbols, length), 0, 1, limit)
    }
}
