use serde::{Deserialize, Serialize};

/// What the answer of a [`super::Prompt`] is, for the string x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// x.
    #[default]
    Copy,
    /// x from its end to its start.
    Reverse,
    /// x, and x again.
    Duplicate,
    /// The symbols of x in ascending order.
    Sort,
    /// The symbols at positions 2, 4, 6 …, then those at 1, 3, 5 …
    OddsFirst,
    /// x is a string twice, with a mark in the place of one symbol, and with another mark at the end if its length is
    /// odd: the symbol. The string of length 1 is `1`, and so is its answer.
    Missing,
    /// What follows an n-gram, which stands before or after x, where it occurs in x for the first time.
    AfterNgram,
}

impl Operation {
    /// The answer for a string of symbols; that of [`Self::Missing`] and [`Self::AfterNgram`] needs more than a string.
    pub(super) fn answer(self, x: &[u16]) -> Vec<u16> {
        match self {
            Self::Copy | Self::Missing | Self::AfterNgram => x.to_vec(),
            Self::Reverse => x.iter().rev().copied().collect(),
            Self::Duplicate => [x, x].concat(),
            Self::Sort => {
                let mut sorted = x.to_vec();
                sorted.sort_unstable();
                sorted
            }
            Self::OddsFirst => x.iter().skip(1).step_by(2).chain(x.iter().step_by(2)).copied().collect(),
        }
    }

    /// The most tokens that an answer has.
    pub(super) fn longest_answer(self, length: usize) -> usize {
        match self {
            Self::Duplicate => 2 * length,
            Self::Missing => 1,
            _ => length,
        }
    }
}

/// Where `ngram` occurs in `x` for the first time.
pub(super) fn first_occurrence(x: &[u16], ngram: &[u16]) -> Option<usize> {
    x.windows(ngram.len().max(1)).position(|window| window == ngram)
}

/// Whether some n-gram occurs in `x` just once.
pub(super) fn has_unique_ngram(x: &[u16], n: usize) -> bool {
    let times = |ngram: &[u16]| x.windows(n).filter(|window| *window == ngram).count();
    x.windows(n).any(|ngram| times(ngram) == 1)
}

/// The missing symbol of a string twice in which `mark` stands for one symbol.
pub(super) fn missing(x: &[u16], mark: u16, odd_mark: u16, one: u16) -> Option<u16> {
    let twice = match x {
        [only] => return (*only == one).then_some(one),
        [twice @ .., last] if x.len() % 2 == 1 => (*last == odd_mark).then_some(twice)?,
        _ => x,
    };
    let (first, second) = twice.split_at(twice.len() / 2);
    let mut pairs = first.iter().zip(second).filter(|(a, b)| a != b);
    let found = match pairs.next()? {
        (a, b) if *a == mark => *b,
        (a, b) if *b == mark => *a,
        _ => return None,
    };
    let plain = |id: &u16| *id != odd_mark && *id != mark;
    let whole = pairs.next().is_none() && twice.iter().filter(|id| plain(id)).count() + 1 == twice.len();
    whole.then_some(found)
}
