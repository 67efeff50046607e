use super::Family;
use crate::{Example, IGNORE, PAD, Split, Track, Vocabulary};

/// Modular counting: the input is `a a a …`, and the label of the i-th symbol is ((i − 1) mod m) + 1, so labels run
/// 1..m and a multiple of m is labelled m. Source: arXiv 2405.20131, section 3 (modular counting).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modular {
    /// m.
    pub modulus: u32,
    /// Lengths 1..=this are trained on; the out-of-distribution split is the next as many lengths.
    pub train_max: u32,
    /// Prepend the token `0`, unlabelled, as a beginning of sequence.
    pub bos: bool,
}

impl Modular {
    /// The label rule, for the 1-based position `i`.
    fn label(&self, i: u32) -> u32 {
        (i - 1) % self.modulus + 1
    }

    fn sequence(&self, length: u32) -> Example {
        let symbol = self.symbol();
        let header = usize::from(self.bos);
        let mut input_ids = vec![0; header];
        let mut labels = vec![IGNORE; header];
        input_ids.resize(header + length as usize, symbol);
        labels.extend((1..=length).map(|i| self.label(i) as i16)); // the number n has id n
        Example { input_ids, labels, length }
    }

    fn symbol(&self) -> u16 {
        self.modulus as u16 + 2 // after the numbers 0..=m and <pad>
    }
}

impl Family for Modular {
    fn name(&self) -> &'static str {
        "modular"
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![
            ("modulus", self.modulus.to_string()),
            ("train_max", self.train_max.to_string()),
            ("bos", self.bos.to_string()),
        ]
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::numbers_then(self.modulus, &[PAD, "a"])
    }

    fn train_max_length(&self) -> u32 {
        self.train_max
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        let lengths = self.train_max as usize;
        match split {
            Split::Train if train < lengths => Err(format!(
                "{train} training examples were asked for, but there are {lengths} lengths with equally many copies each\n  hint: ask for at least {lengths}"
            )),
            Split::Train => Ok(train / lengths * lengths),
            Split::Val => Ok((300 / lengths).max(1) * lengths),
            Split::OodTest => Ok(lengths),
        }
    }

    fn example(&self, split: Split, _seed: u64, index: usize) -> Example {
        let cycle = index as u32 % self.train_max + 1;
        match split {
            Split::Train | Split::Val => self.sequence(cycle),
            Split::OodTest => self.sequence(self.train_max + cycle),
        }
    }

    fn distinct_tracks(&self) -> Option<usize> {
        Some(1)
    }

    fn track(&self, _seed: u64, _index: usize, max_length: u32) -> Track {
        Track::from_example(self.sequence(max_length), usize::from(self.bos), 1, None)
    }
}
