use super::Define;
use super::sampled::{Ranges, Sampled, Splits, Tokens, check_gaps};
use super::words::check_range;
use crate::{IGNORE, PAD, Split, Vocabulary};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Strings of the form a^n b^n, a^n b^n c^n and so on. The label of a letter is the set of the letters that may come
/// next, the last of them `T` for the end. Source: Bhattamishra et al., arXiv 2009.11264 (counter languages).
///
/// Lengths are those of strings; the paper's ranges are of n.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Counter {
    /// How many letters there are.
    pub letters: u32,
    /// The lengths of training and validation.
    pub train_lengths: Ranges,
    /// The lengths of the out-of-distribution split.
    pub test_lengths: Ranges,
    /// The size of the validation split.
    pub val_examples: usize,
    /// The size of the out-of-distribution split.
    pub test_examples: usize,
    #[serde(skip)]
    tokens: Tokens,
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            letters: 2,
            train_lengths: Ranges::range(2, 100),
            test_lengths: Ranges::range(102, 200),
            val_examples: 1000,
            test_examples: 3000,
            tokens: Tokens::default(),
        }
    }
}

/// Where a string is: in which block, how many letters of it have been read, and how many each block has.
#[derive(Debug, Clone, Copy)]
struct Place {
    block: u16,
    read: u32,
    n: u32,
}

impl Counter {
    fn alphabet(&self) -> Vec<String> {
        ('a'..='z').take(self.letters as usize).map(String::from).chain(["T".to_owned()]).collect()
    }

    /// The place after a letter, or `None` where it may not come.
    fn step(&self, place: Option<Place>, letter: u16) -> Option<Place> {
        match place {
            _ if u32::from(letter) >= self.letters => None,
            None => (letter == 0).then_some(Place { block: 0, read: 1, n: 1 }),
            Some(Place { block: 0, read, .. }) if letter == 0 => Some(Place { block: 0, read: read + 1, n: read + 1 }),
            Some(Place { block, read, n }) if letter == block && read < n => Some(Place { block, read: read + 1, n }),
            Some(Place { block, read, n }) if letter == block + 1 && read == n => {
                Some(Place { block: letter, read: 1, n })
            }
            Some(_) => None,
        }
    }

    /// The letters that may follow, as a set.
    fn next(&self, Place { block, read, n }: Place) -> i16 {
        let here = i16::from(block == 0 || read < n) << block;
        let after = i16::from(read == n) << (block + 1);
        here | after
    }
}

impl Define for Counter {
    const NAME: &'static str = "counter";
    const EXAMPLES: &'static [&'static str] = &["letters=4,train_lengths=4..9,test_lengths=10..40", "helper=pad"];

    fn tokens(&self) -> Vec<String> {
        self.alphabet().into_iter().chain([PAD.to_owned()]).collect()
    }

    fn units(&self) -> Vec<String> {
        self.alphabet()
    }

    fn validate(&self) -> Result<(), String> {
        check_range("letters", self.letters, 2..=super::MAX_UNITS as u32 - 1)?;
        self.splits().check(1)?;
        check_gaps(self)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.tokens = Tokens::new(vocabulary, self.alphabet());
    }

    fn longest(&self) -> usize {
        self.splits().longest() as usize
    }
}

impl Sampled for Counter {
    const NAME: &'static str = "counter";

    fn splits(&self) -> Splits<'_> {
        Splits {
            train: &self.train_lengths,
            test: &self.test_lengths,
            val_examples: self.val_examples,
            test_examples: self.test_examples,
        }
    }

    fn gap(&self, length: u32) -> Option<String> {
        let fits = length > 0 && length.is_multiple_of(self.letters);
        (!fits).then(|| format!("lengths are multiples of {}", self.letters))
    }

    fn draw(&self, _split: Split, length: u32, _rng: &mut ChaCha8Rng) -> Vec<u16> {
        let n = length / self.letters;
        (0..self.letters as u16).flat_map(|letter| std::iter::repeat_n(self.tokens.id(letter), n as usize)).collect()
    }

    fn main_tokens(&self, input_ids: &[u16]) -> Result<u32, String> {
        let mut place = None;
        for (i, id) in input_ids.iter().enumerate() {
            let next = self.tokens.number(*id).and_then(|letter| self.step(place, letter));
            place = Some(next.ok_or_else(|| format!("token {} is not allowed after the ones before it", i + 1))?);
        }
        place.map(|_| input_ids.len() as u32).ok_or_else(|| "there is no letter".into())
    }

    fn label(&self, input_ids: &[u16]) -> Vec<i16> {
        let mut place = None;
        let mut wrong = false;
        let label = |id: &u16| {
            place = if wrong { None } else { self.tokens.number(*id).and_then(|letter| self.step(place, letter)) };
            wrong |= place.is_none();
            place.map_or(IGNORE, |place| self.next(place))
        };
        input_ids.iter().map(label).collect()
    }

    fn layout(&self) -> (usize, usize) {
        (0, 1)
    }

    fn distinct(&self) -> Option<usize> {
        Some(1)
    }
}
