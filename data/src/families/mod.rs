//! The task families: one file each, one label rule each.
//!
//! A family is what the paper calls a task, with its numbers left open: [`Modular`] counts modulo any modulus. Its
//! fields are the settings that configs know. Helper tokens and auxiliary data are added to any family by
//! [`crate::Task`].

mod automaton;
mod auxiliary;
mod brackets;
mod command;
mod compositions;
mod counter;
mod counting;
mod debug;
mod expressions;
mod interleaved;
mod lengths;
mod modular;
mod outside;
mod own_data;
mod pairs;
mod plain;
mod prompt;
mod raspl;
mod recall;
mod sampled;
mod selective;
mod selective_items;
mod selective_modular;
mod shifted_start;
mod stack;
mod tally;
mod words;

pub use crate::dataset::StringLabels;
pub use automaton::{Automaton, Emit, Kind, Sampler, State};
pub use auxiliary::{Auxiliary, AuxiliaryData};
pub use brackets::{Brackets, Closing};
pub use command::{Command, allow_commands};
pub use counter::Counter;
pub use counting::Counting;
pub use debug::Debug;
pub use expressions::{Expressions, Form};
pub use lengths::Lengths;
pub use modular::Modular;
pub use outside::Outside;
pub use own_data::{LengthsOf, OwnData, Settings};
pub use plain::Plain;
pub use prompt::{
    Alphabet, Answers, Arithmetic, ArithmeticOperation, Endian, Numbers, Operands, Operation, Prompt, Query, Second,
};
pub use raspl::RaspL;
pub use recall::{Filler, InductionHeads, Labels, Mqar, Order, Placement, Queries, Recall, SelectiveCopying, Slots};
pub use sampled::Ranges;
pub use selective::Selective;
pub use selective_items::{Design, SelectiveItems};
pub use selective_modular::SelectiveModular;
pub use shifted_start::{Beyond, ShiftedStart, Training};
pub use stack::Stack;
pub use tally::{Question, Shares, Tally};
pub use words::Symbols;

pub(crate) use interleaved::Interleaved;

use crate::{Example, IGNORE, LengthLimit, PAD, Split, Track, Vocabulary};

/// The examples of a split by index: see [`Family::examples`].
pub type Examples<'a> = Box<dyn Fn(usize) -> Example + Send + Sync + 'a>;

/// A counting task: its sequences, and the rule that labels them.
pub trait Family: std::fmt::Debug + Send + Sync {
    /// The family's name in configs and listings.
    fn name(&self) -> &'static str;

    /// The longest main-token count in training; sweeps call lengths up to here in-distribution.
    fn train_max_length(&self) -> u32;

    /// The source of the examples where it is outside of this program: the family has no rule then, and the labels that
    /// examples come with are right.
    fn outside(&self) -> Option<&dyn Outside> {
        None
    }

    /// The splits besides the test of auxiliary data, in the order of writing.
    fn splits(&self) -> Vec<Split> {
        Split::ALL.to_vec()
    }

    /// The longest validation input in tokens other than `<pad>`, where that is known without making the examples.
    fn max_seen_len(&self) -> Option<usize> {
        None
    }

    /// The lengths of training, in main tokens. Not each of them needs to have an example.
    fn train_lengths(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.train_max_length()
    }

    /// How many examples a split has. `train` is the requested size; families whose training set is whole copies of
    /// an enumeration round it down. An error says which sizes work.
    fn rows(&self, split: Split, train: usize) -> Result<usize, String>;

    /// The examples of a split: a function of the index, the same for the same seed regardless of the order of calls
    /// and the number of threads. Enumerated splits ignore the seed. Meant for `index < rows(split, train)`; the examples
    /// of training go on behind that, new ones where they are drawn, and again from the first where they are
    /// enumerated. Where examples come from [`Self::outside`], that says what is wrong; here, it is an unlabelled token.
    fn examples(&self, split: Split, seed: u64) -> Examples<'_>;

    /// One of [`Self::examples`]; for many, get the function once.
    fn example(&self, split: Split, seed: u64, index: usize) -> Example {
        self.examples(split, seed)(index)
    }

    /// The main tokens of a sequence of this family (without start, bos and helper tokens), or why it is not one.
    fn length(&self, input_ids: &[u16]) -> Result<u32, String>;

    /// The label rule: the labels of a sequence that [`Self::length`] accepts; of anything else, the result is
    /// unspecified.
    fn rule(&self, input_ids: &[u16]) -> Vec<i16>;

    /// The labels of a sequence, or why it does not belong to this family.
    fn labels(&self, input_ids: &[u16]) -> Result<Vec<i16>, String> {
        self.length(input_ids).map(|_| self.rule(input_ids))
    }

    /// [`Self::labels`] for a sequence that comes with `labels`: where the rule allows several labels and theirs is one
    /// of them, it is the expected one.
    fn expected(&self, input_ids: &[u16], _labels: &[i16]) -> Result<Vec<i16>, String> {
        self.labels(input_ids)
    }

    /// Whether a later token may still change the label of the last one.
    fn leaves_last_open(&self) -> bool {
        false
    }

    /// A sequence with its labels.
    fn labelled(&self, input_ids: Vec<u16>, length: u32) -> Example {
        Example { labels: self.rule(&input_ids), input_ids, length }
    }

    /// Whether labels stand at the end of a sequence though nothing in it announces the end, so that a prefix may be a
    /// sequence with labels of its own.
    fn ends_unannounced(&self) -> bool {
        false
    }

    /// Whether the last token of this sequence gets no helper token, in tasks that have them.
    fn ends_bare(&self, _input_ids: &[u16]) -> bool {
        false
    }

    /// Whether the length-L test of a track is the beginning of its longer tests, so that one pass over the longest
    /// answers all. Otherwise every length has sequences of its own: see [`Self::test`].
    fn prefix_closed(&self) -> bool {
        true
    }

    /// How many different tracks there are (`None`: they are sampled, without end).
    fn distinct_tracks(&self) -> Option<usize>;

    /// Track `index`, as long as its labels go but at most `max_length` main tokens. A function of (`seed`, `index`)
    /// and, for families that are not [`Self::prefix_closed`], `max_length`.
    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track;

    /// A training example of exactly `length` main tokens, for training in which all examples of a batch are equally
    /// long; `None` where the family draws none by length or has none of this length. A function of its arguments.
    fn of_length(&self, _seed: u64, _index: usize, _length: u32) -> Option<Example> {
        None
    }

    /// The accuracy of guessing at a scored position of the length-`length` test, or of the whole answer where that is
    /// what the field reports; `None` where nobody states one.
    fn chance(&self, _length: u32) -> Option<f64> {
        None
    }

    /// The length-`length` test of track `index`, or why there is none. Works for every family; where
    /// [`Self::prefix_closed`] holds, prefixes of one [`Self::track`] are the same tests for less work.
    fn test(&self, seed: u64, index: usize, length: u32) -> Result<Example, LengthLimit> {
        self.track(seed, index, length).prefix(length).map(|e| e.to_example())
    }
}

/// The interface with which a [`crate::Task`] makes a family from its settings.
pub(crate) trait Define: Family + serde::de::DeserializeOwned + serde::Serialize + 'static {
    /// [`Family::name`].
    const NAME: &'static str;

    /// Settings that between them use every option that presets do not, as they follow the family's name
    /// (`modulus=3,helper=blk`). Every test of all tasks runs them.
    const EXAMPLES: &'static [&'static str] = &[];

    /// The vocabulary in id order, without tokens of helpers and auxiliary data.
    fn tokens(&self) -> Vec<String>;

    /// The tokens that a label is a set of, in the order of the label's digits; none where a label is one token.
    ///
    /// The label of a set is a number whose bit i says whether unit i is in it: 0 is the empty set, and there are at
    /// most [`MAX_UNITS`] units. In text, a set is a string of digits 0 and 1, unit 0 first.
    fn units(&self) -> Vec<String> {
        vec![]
    }

    /// Refuses impossible settings, naming the setting.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }

    /// Looks at what is outside of the settings, once they are validated: files that they name.
    ///
    /// # Errors
    /// The setting that is wrong, and a hint.
    fn prepare(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// The size of the training split, if none is given.
    fn train_examples(&self) -> usize {
        1_000_000
    }

    /// What identifies the contents of the files that its examples are made from; datasets made from others are not
    /// used.
    fn content(&self) -> Option<String> {
        None
    }

    /// Looks up the ids of its tokens in the final vocabulary; `helper` says whether there are helper tokens.
    fn bind(&mut self, vocabulary: &Vocabulary, helper: bool);

    /// Tokens of the longest example in any split, without helpers.
    fn longest(&self) -> usize;
}

/// How many units a label that is a set may have: it is a number of 16 bits with a sign.
pub const MAX_UNITS: usize = 15;

/// `train` rounded down to whole copies of `strings` things called `name`.
fn copies(train: usize, strings: usize, name: &str) -> Result<usize, String> {
    match train / strings {
        0 => Err(format!(
            "{train} training examples were asked for, but there are {strings} {name} with equally many copies each\n  hint: ask for at least {strings}"
        )),
        n => Ok(n * strings),
    }
}

/// One example from outside, for whoever has no use for an error: an unlabelled token where there is none.
fn outside_example(outside: &dyn Outside, split: &str, seed: u64, index: usize) -> Example {
    let found = outside.examples(split, seed, index..index + 1).ok().and_then(|mut found| found.pop());
    found.unwrap_or_else(|| Example { input_ids: vec![0], labels: vec![IGNORE], length: 0 })
}

/// Whether tokens may be a sequence of a family without a rule: there are some, and no padding at the end.
fn outside_length(input_ids: &[u16], vocabulary: Option<&Vocabulary>) -> Result<(), String> {
    let pad = vocabulary.and_then(|vocabulary| vocabulary.id(PAD));
    match input_ids.last() {
        None => Err("there are no tokens".into()),
        last if last.copied() == pad => Err("the sequence ends in padding".into()),
        Some(_) => Ok(()),
    }
}

/// A test from outside as a track of its own; an unlabelled token where there is none.
fn outside_track(test: Option<Example>) -> Track {
    let example = test.unwrap_or_else(|| Example { input_ids: vec![0], labels: vec![IGNORE], length: 0 });
    let header = example.input_ids.len() - example.length as usize;
    Track::single(example, header, None)
}
