use super::compositions::{Compositions, arrange};
use super::words::{Words, check_range, example_rng, numbers_then};
use super::{Define, Examples, Family};
use crate::{IGNORE, PAD, Split, Track, Vocabulary, stream_rng};
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Selective modular counting: the input mixes the items 0 … m − 1, and a token's label is how often it has occurred
/// before, modulo m. Source: arXiv 2405.20131, appendix (selective counting, modular).
///
/// Training and validation sequences have `train_length` tokens, out-of-distribution ones twice as many. How often the
/// items occur is drawn uniformly among all ways with at most `train_length` of each; the order is uniform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectiveModular {
    /// m, also the number of items.
    pub modulus: u32,
    /// Tokens of a training sequence.
    pub train_length: u32,
    #[serde(skip)]
    words: Words,
    #[serde(skip)]
    compositions: Option<Compositions>,
}

impl Default for SelectiveModular {
    fn default() -> Self {
        Self { modulus: 4, train_length: 64, words: Words::default(), compositions: None }
    }
}

impl Define for SelectiveModular {
    const NAME: &'static str = "selective_modular";
    const EXAMPLES: &'static [&'static str] = &["modulus=3,train_length=9,helper=pad"];

    fn tokens(&self) -> Vec<String> {
        numbers_then(self.modulus - 1, [PAD])
    }

    fn validate(&self) -> Result<(), String> {
        check_range("modulus", self.modulus, 2..=10)?; // the ways of 10 items in 512 tokens fit 64 bits
        check_range("train_length", self.train_length, 1..=256)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.words = Words::numbers(vocabulary, self.modulus - 1);
        let (parts, max) = (self.modulus as usize, self.train_length);
        self.compositions = Some(Compositions::new(parts, 0, max, 2 * max));
    }

    fn longest(&self) -> usize {
        2 * self.train_length as usize
    }
}

impl Family for SelectiveModular {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    /// Of a remainder.
    fn chance(&self, _length: u32) -> Option<f64> {
        Some(1.0 / f64::from(self.modulus))
    }

    fn train_max_length(&self) -> u32 {
        self.train_length
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        match split {
            Split::Train => Ok(train),
            Split::Val => Ok(2000),
            Split::OodTest | Split::Auxiliary(_) => Ok(3000),
        }
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        let length = match split {
            Split::Train | Split::Val => self.train_length,
            Split::OodTest | Split::Auxiliary(_) => 2 * self.train_length,
        };
        Box::new(move |index| {
            let rng = &mut example_rng(seed, split, index);
            let counts = self.compositions.as_ref().map(|c| c.draw(length, rng)).unwrap_or_default();
            let items = arrange(&counts, rng);
            self.labelled(items.into_iter().map(|i| self.words.number(u32::from(i))).collect(), length)
        })
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        match !input_ids.is_empty() && input_ids.iter().all(|id| self.words.value(*id).is_some()) {
            true => Ok(input_ids.len() as u32),
            false => Err(format!("the input is not made of the items 0 … {}", self.modulus - 1)),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        let mut counts = vec![0; self.modulus as usize];
        let label = |id: &u16| {
            let count = counts.get_mut(self.words.value(*id)? as usize)?;
            *count += 1;
            Some(self.words.label((*count - 1) % self.modulus))
        };
        input_ids.iter().map(label).map(|label| label.unwrap_or(IGNORE)).collect()
    }

    fn distinct_tracks(&self) -> Option<usize> {
        None
    }

    /// A Pólya urn: after i tokens the next is d with probability (number of d + 1) / (i + m). Its length-L prefix has
    /// exactly the distribution of a fresh draw of length L without the limit on each item; up to `train_length` that
    /// is the distribution of training.
    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let rng = &mut stream_rng(seed, "track", index as u64);
        let mut urn: Vec<u16> = (0..self.modulus as u16).collect();
        for _ in 0..max_length {
            urn.push(urn[rng.random_range(0..urn.len())]);
        }
        let input_ids = urn.into_iter().skip(self.modulus as usize).map(|i| self.words.number(u32::from(i))).collect();
        Track::from_example(self.labelled(input_ids, max_length), 0, 1, None)
    }
}
