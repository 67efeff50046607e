//! Recall of what stood earlier in the sequence: values of keys ([`Mqar`], [`Recall`]), what followed a marker
//! ([`InductionHeads`]), and tokens among blanks ([`SelectiveCopying`]).

mod induction;
mod mqar;
mod pairs;
mod selective_copying;

pub use induction::InductionHeads;
pub use mqar::{Filler, Mqar};
pub use pairs::{Queries, Recall};
pub use selective_copying::{Placement, SelectiveCopying, Slots};

use super::lengths::{Lengths, Size, Splits, length_rng, nearest_track};
use super::words::{MAX_NUMBER, check_range, example_rng};
use crate::{Example, LengthLimit, PAD, Split, Track};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Which positions are labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// Those where the answer can be known.
    #[default]
    Answers,
    /// All of them, with the next token.
    Next,
}

/// The order in which the ids of tokens are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// `0`, `1`, `2`, … `10`.
    #[default]
    Numbers,
    /// As strings: `0`, `1`, `10`, `11`, … `2`.
    Strings,
}

impl Order {
    fn tokens(self, n: u32) -> Vec<String> {
        let mut tokens: Vec<String> = (0..n).map(|n| n.to_string()).collect();
        if self == Self::Strings {
            tokens.sort_unstable();
        }
        tokens
    }
}

/// Appends special tokens to a vocabulary, those that there are.
fn with_special(mut tokens: Vec<String>, special: &[&str]) -> Vec<String> {
    for token in special.iter().filter(|token| !token.is_empty()) {
        tokens.push((*token).to_owned());
    }
    tokens
}

/// Refuses special tokens that are other tokens as well.
fn check_special(tokens: &[String], special: &[(&str, &str)]) -> Result<(), String> {
    for (setting, token) in special {
        let times = tokens.iter().filter(|known| known == token).count();
        if times > 1 || *token == PAD {
            return Err(format!("{setting} = {token} is another token of the vocabulary"));
        }
    }
    Ok(())
}

/// `name` must be between 1 and what fits into a vocabulary.
fn check_count(name: &str, value: u32, least: u32) -> Result<(), String> {
    check_range(name, value, least..=MAX_NUMBER)
}

/// The labels of a sequence in which every position is labelled with the next token, and the last with `answer`.
fn next_tokens(input_ids: &[u16], answer: u16) -> Vec<i16> {
    input_ids.iter().skip(1).chain([&answer]).map(|id| *id as i16).collect()
}

/// `own` labels, or those of all positions, which the training files of some programs have.
fn or_next_tokens(input_ids: &[u16], labels: &[i16], own: Vec<i16>) -> Vec<i16> {
    let answer = own.last().and_then(|label| u16::try_from(*label).ok());
    let next = answer.map(|answer| next_tokens(input_ids, answer));
    next.filter(|next| next == labels).unwrap_or(own)
}

/// What the families of this module differ in; the rest of [`super::Family`] is the same.
trait Sample {
    fn splits(&self) -> &Splits;

    /// Why there are no examples of a length, with a number of pairs where the family has them.
    fn possible(&self, length: u32, pairs: Option<u32>) -> Result<(), String>;

    /// An example; [`Self::possible`] says yes.
    fn sample(&self, length: u32, pairs: Option<u32>, rng: &mut ChaCha8Rng) -> Example;

    /// How many pairs the tests of a length have, where the family has pairs.
    fn usual_pairs(&self, _length: u32) -> Option<u32> {
        None
    }

    fn bound(&self, train: &Lengths, test: &Lengths) -> Splits {
        let sizes = |lengths: &Lengths| lengths.sizes("", |length, pairs| self.possible(length, pairs));
        Splits { train: sizes(train).unwrap_or_default(), test: sizes(test).unwrap_or_default() }
    }

    fn check_lengths(&self, train: &Lengths, test: &Lengths, has_pairs: bool) -> Result<(), String> {
        for (name, lengths) in [("train_lengths", train), ("test_lengths", test)] {
            lengths.check_pairs(name, has_pairs)?;
            lengths.sizes(name, |length, pairs| self.possible(length, pairs))?;
        }
        Ok(())
    }

    fn split_example(&self, split: Split, seed: u64, index: usize) -> Example {
        let rng = &mut example_rng(seed, split, index);
        let Size { length, pairs, .. } = match split {
            Split::Train => self.splits().train.draw(rng),
            Split::Val => self.splits().train.turn(index),
            Split::OodTest | Split::Auxiliary(_) => self.splits().test.turn(index),
        };
        self.sample(length, pairs, rng)
    }

    fn of_exactly(&self, seed: u64, index: usize, length: u32) -> Option<Example> {
        let rng = &mut length_rng(seed, "of length", index, length);
        let Size { pairs, .. } = self.splits().train.draw_of(length, rng)?;
        Some(self.sample(length, pairs, rng))
    }

    fn test_of(&self, seed: u64, index: usize, length: u32) -> Result<Example, LengthLimit> {
        let pairs = self.usual_pairs(length);
        self.possible(length, pairs).map_err(|reason| LengthLimit { length, reason })?;
        Ok(self.sample(length, pairs, &mut length_rng(seed, "track", index, length)))
    }

    fn track_of(&self, seed: u64, index: usize, length: u32) -> Track {
        nearest_track(length, self.splits(), |length| self.test_of(seed, index, length))
    }
}

/// Implements the methods of [`super::Family`] that are the same for every family of this module.
macro_rules! family_of_samples {
    () => {
        fn name(&self) -> &'static str {
            <Self as crate::families::Define>::NAME
        }

        fn train_max_length(&self) -> u32 {
            self.train_lengths.last()
        }

        fn train_lengths(&self) -> std::ops::RangeInclusive<u32> {
            self.train_lengths.span()
        }

        fn rows(&self, split: crate::Split, train: usize) -> Result<usize, String> {
            Ok(match split {
                crate::Split::Train => train,
                crate::Split::Val => self.val_examples,
                crate::Split::OodTest | crate::Split::Auxiliary(_) => self.test_examples,
            })
        }

        fn examples(&self, split: crate::Split, seed: u64) -> crate::families::Examples<'_> {
            Box::new(move |index| self.split_example(split, seed, index))
        }

        fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
            self.read(input_ids).map(|(length, _)| length)
        }

        fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
            self.read(input_ids).map(|(_, labels)| labels).unwrap_or_default()
        }

        fn prefix_closed(&self) -> bool {
            false
        }

        fn distinct_tracks(&self) -> Option<usize> {
            None
        }

        fn track(&self, seed: u64, index: usize, max_length: u32) -> crate::Track {
            self.track_of(seed, index, max_length)
        }

        fn test(&self, seed: u64, index: usize, length: u32) -> Result<crate::Example, crate::LengthLimit> {
            self.test_of(seed, index, length)
        }

        fn of_length(&self, seed: u64, index: usize, length: u32) -> Option<crate::Example> {
            self.of_exactly(seed, index, length)
        }
    };
}
use family_of_samples;
