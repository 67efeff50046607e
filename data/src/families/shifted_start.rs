use super::Family;
use crate::{Example, IGNORE, PAD, Split, Track, Vocabulary};

/// Shifted start: the input is a number k, then c symbols; the labels of the symbols are k + 1 … k + c.
/// Source: arXiv 2405.20131, section 3 (shifted starts).
///
/// The training and validation strings have k in 1..=`starts` and always c = `train_length` symbols; the
/// out-of-distribution split enumerates every longer c with k + c ≤ `last_number`, c outer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShiftedStart {
    /// The starts 1..=this occur.
    pub starts: u32,
    /// Symbols of every training string.
    pub train_length: u32,
    /// The largest number word, where the labels end.
    pub last_number: u32,
}

impl ShiftedStart {
    /// The label rule: the `i`-th symbol (1-based) after the start `k`.
    fn label(k: u32, i: u32) -> u32 {
        k + i
    }

    fn sequence(&self, k: u32, length: u32) -> Example {
        let mut input_ids = vec![k as u16];
        input_ids.resize(1 + length as usize, self.last_number as u16 + 2); // after 0..=last and <pad>
        let mut labels = vec![IGNORE];
        labels.extend((1..=length).map(|i| Self::label(k, i) as i16));
        Example { input_ids, labels, length }
    }

    /// The out-of-distribution cells (c, k) in file order.
    fn ood_cells(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (self.train_length + 1..self.last_number)
            .flat_map(move |c| (1..=self.starts.min(self.last_number - c)).map(move |k| (c, k)))
    }
}

impl Family for ShiftedStart {
    fn name(&self) -> &'static str {
        "shifted_start"
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![
            ("starts", self.starts.to_string()),
            ("train_length", self.train_length.to_string()),
            ("last_number", self.last_number.to_string()),
        ]
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::numbers_then(self.last_number, &[PAD, "a"])
    }

    fn train_max_length(&self) -> u32 {
        self.train_length
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        let starts = self.starts as usize;
        match split {
            Split::Train if train < starts => Err(format!(
                "{train} training examples were asked for, but there are {starts} starts with equally many copies each\n  hint: ask for at least {starts}"
            )),
            Split::Train => Ok(train / starts * starts),
            Split::Val => Ok(starts),
            Split::OodTest => Ok(self.ood_cells().count()),
        }
    }

    fn example(&self, split: Split, _seed: u64, index: usize) -> Example {
        match split {
            Split::Train | Split::Val => self.sequence(index as u32 % self.starts + 1, self.train_length),
            Split::OodTest => {
                let (c, k) = self.ood_cells().nth(index).unwrap_or((self.train_length, 1));
                self.sequence(k, c)
            }
        }
    }

    fn distinct_tracks(&self) -> Option<usize> {
        Some(self.starts as usize)
    }

    fn track(&self, _seed: u64, index: usize, max_length: u32) -> Track {
        let k = index as u32 % self.starts + 1;
        let end = self.last_number - k;
        let reason = format!("past the vocabulary's last number ({})", self.last_number);
        Track::from_example(self.sequence(k, max_length.min(end)), 1, 1, Some((end, reason)))
    }
}
