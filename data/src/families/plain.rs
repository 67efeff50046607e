use super::words::{MAX_NUMBER, Symbols, Words, check_range, counting_tokens, example_rng, past_last_number};
use super::{Define, Examples, Family};
use crate::{Split, Track, Vocabulary, stream_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Counting from one single string: the input is c symbols, labelled 1 … c; training repeats c = `train_max`, so the
/// larger numbers never occur in it (they can be learnt from auxiliary data). With `start`, the input begins with the
/// number 1 and the labels are 2 … c + 1. Source: arXiv 2405.20131, section 3 and its appendix on plain counting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plain {
    /// Begin with the number 1.
    pub start: bool,
    /// Symbols of the training string.
    pub train_max: u32,
    /// The longest test string; by default as far as the numbers go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ood_max: Option<u32>,
    /// The largest number word, where the labels end.
    pub last_number: u32,
    /// The symbols to count.
    pub symbols: Symbols,
    #[serde(skip)]
    words: Words,
    #[serde(skip)]
    label_start: bool,
}

impl Default for Plain {
    fn default() -> Self {
        Self {
            start: false,
            train_max: 50,
            ood_max: None,
            last_number: 100,
            symbols: Symbols::Same,
            words: Words::default(),
            label_start: false,
        }
    }
}

impl Plain {
    fn sequence(&self, c: u32, rng: &mut impl Rng) -> Vec<u16> {
        let mut input_ids = if self.start { vec![self.words.number(1)] } else { vec![] };
        input_ids.extend(self.words.symbols(c, rng));
        input_ids
    }

    /// The longest string that the numbers allow.
    fn end(&self) -> u32 {
        self.last_number - u32::from(self.start)
    }
}

impl Define for Plain {
    const NAME: &'static str = "plain";
    const EXAMPLES: &'static [&'static str] =
        &["start=true,last_number=30,train_max=10,auxiliary=addbigram_nullseq,helper=pad"];

    fn tokens(&self) -> Vec<String> {
        counting_tokens(self.last_number, self.symbols)
    }

    fn validate(&self) -> Result<(), String> {
        check_range("last_number", self.last_number, 3..=MAX_NUMBER)?;
        check_range("train_max", self.train_max, 1..=self.end() - 1)?;
        check_range("ood_max", self.ood_max.unwrap_or(self.end()), self.train_max + 1..=self.end())
    }

    fn bind(&mut self, vocabulary: &Vocabulary, helper: bool) {
        self.words = Words::new(vocabulary, self.last_number, self.symbols);
        self.label_start = helper;
    }

    fn longest(&self) -> usize {
        self.last_number as usize
    }
}

impl Family for Plain {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn train_max_length(&self) -> u32 {
        self.train_max
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        match split {
            Split::Train => Ok(train),
            Split::Val => Ok(10),
            Split::OodTest | Split::Auxiliary(_) => Ok((self.ood_max.unwrap_or(self.end()) - self.train_max) as usize),
        }
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        Box::new(move |index| {
            let c = match split {
                Split::Train | Split::Val => self.train_max,
                Split::OodTest | Split::Auxiliary(_) => self.train_max + 1 + index as u32,
            };
            self.labelled(self.sequence(c, &mut example_rng(seed, split, index)), c)
        })
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        let form = if self.start { "`1 a … a`" } else { "`a … a`" };
        let run = self.words.run_or_reason(input_ids, form)?;
        match run.start == self.start.then_some(1) && run.addon.is_none() {
            true => Ok(run.count),
            false => Err(format!("the input is not of the form {form}")),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        self.words.running_sum(input_ids, self.label_start)
    }

    fn distinct_tracks(&self) -> Option<usize> {
        (!self.symbols.are_drawn()).then_some(1)
    }

    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let length = max_length.min(self.end());
        let input_ids = self.sequence(length, &mut stream_rng(seed, "track", index as u64));
        let limit = Some((self.end(), past_last_number(self.last_number)));
        Track::from_example(self.labelled(input_ids, length), usize::from(self.start), 1, limit)
    }
}
