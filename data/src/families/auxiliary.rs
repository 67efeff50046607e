use super::interleaved::interleave;
use super::words::Words;
use crate::{Example, PAD, Vocabulary};
use serde::{Deserialize, Serialize};

/// Data that is mixed into the training of another task, to teach it the number words. Source: arXiv 2405.20131,
/// appendix (auxiliary tasks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auxiliary {
    /// `1 2 … 99` labelled `2 3 … 100`: the successor of every number.
    Addbigram,
    /// `1 <b> <b> …` labelled `1 2 … 100`: every further token adds one.
    AddbigramBlkseq,
    /// The same with `<null>`, the vocabulary's first token, whose embedding should stay zero.
    AddbigramNullseq,
    /// `k <b> <b> …` labelled `k … 100`, for the first half of the numbers k.
    AddbigramShiftedblkseq,
    /// The same with `<null>`.
    AddbigramShiftednullseq,
    /// `x y` labelled `x, x + y`, for every x and y whose sum is a number.
    Addtable,
    /// The same with `<pad>` after each: `x <pad> y <pad>` labelled `−1 x −1 x + y`.
    AddtablePadhelper,
}

impl Auxiliary {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Addbigram,
        Self::AddbigramBlkseq,
        Self::AddbigramNullseq,
        Self::AddbigramShiftedblkseq,
        Self::AddbigramShiftednullseq,
        Self::Addtable,
        Self::AddtablePadhelper,
    ];

    /// The name in configs.
    pub fn name(self) -> &'static str {
        self.test_name().trim_end_matches("_test")
    }

    /// The name of its test split.
    pub fn test_name(self) -> &'static str {
        match self {
            Self::Addbigram => "addbigram_test",
            Self::AddbigramBlkseq => "addbigram_blkseq_test",
            Self::AddbigramNullseq => "addbigram_nullseq_test",
            Self::AddbigramShiftedblkseq => "addbigram_shiftedblkseq_test",
            Self::AddbigramShiftednullseq => "addbigram_shiftednullseq_test",
            Self::Addtable => "addtable_test",
            Self::AddtablePadhelper => "addtable_padhelper_test",
        }
    }

    /// Lines of the published test file for each different string.
    fn test_copies(self) -> usize {
        match self {
            Self::Addbigram | Self::AddbigramBlkseq | Self::AddbigramNullseq => 10,
            _ => 1,
        }
    }

    /// The published number of training lines. That of `addtable` was never published: 20 copies of the table.
    pub(crate) fn default_examples(self) -> usize {
        if matches!(self, Self::Addtable | Self::AddtablePadhelper) { 99_000 } else { 100_000 }
    }

    /// The token that fills sequences, and whether it is the first of the vocabulary rather than the last.
    pub(crate) fn filler(self) -> Option<(&'static str, bool)> {
        match self {
            Self::AddbigramBlkseq | Self::AddbigramShiftedblkseq => Some(("<b>", false)),
            Self::AddbigramNullseq | Self::AddbigramShiftednullseq => Some(("<null>", true)),
            _ => None,
        }
    }
}

/// The strings of an [`Auxiliary`] in a task's vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuxiliaryData {
    /// Which.
    pub kind: Auxiliary,
    /// How many are mixed into [`crate::Task::train_examples`] main examples.
    pub examples: usize,
    /// Every different one, in the order of the test split.
    strings: Vec<Example>,
    words: Words,
    pad: u16,
    /// Consecutive training examples are this many strings apart, so that any number of them is spread over all.
    stride: usize,
}

impl AuxiliaryData {
    pub(crate) fn new(kind: Auxiliary, examples: usize, vocabulary: &Vocabulary) -> Result<Self, String> {
        let last = (1..).take_while(|n: &u32| vocabulary.id(&n.to_string()).is_some()).last().unwrap_or(0);
        if last < 3 || vocabulary.id("0").is_none() {
            return Err(format!("auxiliary = {} needs number words in the vocabulary", kind.name()));
        }
        let words = Words::numbers(vocabulary, last);
        let filler = kind.filler().and_then(|(token, _)| vocabulary.id(token)).unwrap_or(0);
        let filled = |k: u32| {
            let mut input_ids = vec![words.number(k)];
            input_ids.resize(1 + (last - k) as usize, filler);
            input_ids
        };
        let inputs: Vec<Vec<u16>> = match kind {
            Auxiliary::Addbigram => vec![(1..last).map(|n| words.number(n)).collect()],
            Auxiliary::AddbigramBlkseq | Auxiliary::AddbigramNullseq => vec![filled(1)],
            Auxiliary::AddbigramShiftedblkseq | Auxiliary::AddbigramShiftednullseq => {
                (1..=last / 2).map(filled).collect()
            }
            Auxiliary::Addtable | Auxiliary::AddtablePadhelper => {
                let pairs = (1..last).flat_map(|x| (1..=last - x).map(move |y| [x, y]));
                pairs.map(|pair| pair.map(|n| words.number(n)).to_vec()).collect()
            }
        };
        let mut out = Self {
            kind,
            examples,
            strings: vec![],
            words,
            pad: vocabulary.id(PAD).unwrap_or(0),
            stride: spread(inputs.len()),
        };
        let strings = inputs.into_iter().map(|input_ids| {
            let (labels, length) = (out.bare_rule(&input_ids), out.bare_length(&input_ids));
            let example = Example { input_ids, labels, length };
            if out.helped() { interleave(&example, out.pad, false) } else { example }
        });
        out.strings = strings.collect();
        Ok(out)
    }

    /// Examples of the test split.
    pub fn test_rows(&self) -> usize {
        self.strings.len() * self.kind.test_copies()
    }

    /// The longest string in tokens.
    pub(crate) fn longest(&self) -> usize {
        self.strings.iter().map(|s| s.input_ids.len()).max().unwrap_or(0)
    }

    pub(crate) fn test(&self, index: usize) -> Example {
        self.strings[index % self.strings.len()].clone()
    }

    pub(crate) fn train(&self, index: usize) -> Example {
        self.test(index.wrapping_mul(self.stride))
    }

    fn helped(&self) -> bool {
        self.kind == Auxiliary::AddtablePadhelper
    }

    fn bare_rule(&self, input_ids: &[u16]) -> Vec<i16> {
        match self.kind {
            Auxiliary::Addbigram => input_ids.iter().map(|id| *id as i16 + 1).collect(),
            _ => self.words.running_sum(input_ids, true),
        }
    }

    /// Main tokens: the fillers of a filled sequence, otherwise the numbers.
    fn bare_length(&self, input_ids: &[u16]) -> u32 {
        input_ids.len() as u32 - u32::from(self.kind.filler().is_some())
    }

    /// The example with this input, if there is one.
    pub(crate) fn find(&self, input_ids: &[u16]) -> Option<&Example> {
        self.strings.iter().find(|s| s.input_ids == input_ids)
    }
}

/// A number near the golden section of `n` that has no divisor in common with it.
fn spread(n: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let start = (n as f64 * 0.618).round() as usize;
    (start.max(1)..).find(|s| gcd(*s, n) == 1).unwrap_or(1)
}
