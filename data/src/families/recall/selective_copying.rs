use super::{Sample, check_count, check_special, family_of_samples, with_special};
use crate::families::lengths::{Lengths, Splits};
use crate::families::words::{numbers_then, token};
use crate::families::{Define, Family};
use crate::{Example, IGNORE, Vocabulary};
use rand::RngExt;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Selective copying: tokens among blanks, to be repeated in their order without the blanks.
///
/// Sources of the presets: Gu and Dao, "Mamba" (arXiv 2312.00752), section 4.1.1; Poli et al., "Mechanistic Design and
/// Scaling of Hybrid Architectures" (arXiv 2403.17844), whose code is athms/mad-lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectiveCopying {
    /// The number of different tokens to copy.
    pub symbols: u32,
    /// How many of them a sequence has, at all lengths.
    pub content: u32,
    /// The blank.
    #[serde(deserialize_with = "token")]
    pub blank: String,
    /// The token that asks for the copy.
    #[serde(deserialize_with = "token")]
    pub copy: String,
    /// Where blanks stand.
    pub placement: Placement,
    /// Where the answer stands, and what counts as length.
    pub slots: Slots,
    /// Lengths of training and validation.
    pub train_lengths: Lengths,
    /// Lengths of the out-of-distribution split.
    pub test_lengths: Lengths,
    /// Examples of the validation split.
    pub val_examples: usize,
    /// Examples of the out-of-distribution split.
    pub test_examples: usize,
    #[serde(skip)]
    splits: Splits,
    #[serde(skip)]
    zero: u16,
    #[serde(skip)]
    ids: [u16; 2],
}

/// Where the blanks of a [`SelectiveCopying`] stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// The tokens to copy stand at uniform places.
    #[default]
    Uniform,
    /// Each blank stands before one of the tokens to copy, each equally likely: never after the last one.
    Before,
}

/// The labelled positions of a [`SelectiveCopying`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slots {
    /// As many copy tokens as there are tokens to copy. They do not count as length.
    #[default]
    Copies,
    /// As many blanks, after one copy token. All tokens count as length.
    Blanks,
}

impl Default for SelectiveCopying {
    fn default() -> Self {
        Self {
            symbols: 14,
            content: 16,
            blank: "N".into(),
            copy: "C".into(),
            placement: Placement::Uniform,
            slots: Slots::Copies,
            train_lengths: Lengths::new("256"),
            test_lengths: Lengths::new("512+1024"),
            val_examples: 1000,
            test_examples: 1000,
            splits: Splits::default(),
            zero: 0,
            ids: [0; 2],
        }
    }
}

impl SelectiveCopying {
    fn read(&self, input_ids: &[u16]) -> Result<(u32, Vec<i16>), String> {
        let [blank, copy] = self.ids;
        let asked = input_ids.iter().position(|id| *id == copy);
        let asked = asked.ok_or_else(|| format!("there is no `{}`", self.copy))?;
        let (shown, rest) = input_ids.split_at(asked);
        let is_symbol = |id: &u16| u32::from(id.wrapping_sub(self.zero)) < self.symbols;
        if !shown.iter().all(|id| *id == blank || is_symbol(id)) {
            return Err(format!("the tokens before `{}` are not all symbols and `{}`", self.copy, self.blank));
        }
        let (slot, slots) = match self.slots {
            Slots::Copies => (copy, rest),
            Slots::Blanks => (blank, &rest[1..]),
        };
        let content = shown.iter().filter(|id| **id != blank);
        let n = content.clone().count();
        if n == 0 || slots.len() != n || slots.iter().any(|id| *id != slot) {
            return Err(format!("{n} tokens to copy are not followed by as many slots"));
        }
        let mut labels = vec![IGNORE; input_ids.len() - n];
        labels.extend(content.map(|id| *id as i16));
        let length = match self.slots {
            Slots::Copies => shown.len(),
            Slots::Blanks => input_ids.len(),
        };
        Ok((length as u32, labels))
    }

    /// How many tokens of a sequence are neither blanks to draw nor to copy.
    fn fixed(&self) -> u32 {
        match self.slots {
            Slots::Copies => 0,
            Slots::Blanks => self.content + 1,
        }
    }
}

impl Sample for SelectiveCopying {
    fn splits(&self) -> &Splits {
        &self.splits
    }

    fn possible(&self, length: u32, _pairs: Option<u32>) -> Result<(), String> {
        let least = self.content + self.fixed();
        match length < least {
            true => Err(format!("{} tokens to copy need a length of {least}", self.content)),
            false => Ok(()),
        }
    }

    fn sample(&self, length: u32, _pairs: Option<u32>, rng: &mut ChaCha8Rng) -> Example {
        let ([blank, copy], n) = (self.ids, self.content as usize);
        let shown = (length - self.fixed()) as usize;
        // how many blanks stand before each token
        let mut before = vec![0; n];
        match self.placement {
            Placement::Before => (n..shown).for_each(|_| before[rng.random_range(0..n)] += 1),
            Placement::Uniform => {
                let mut places = sample(rng, shown, n).into_vec();
                places.sort_unstable();
                let mut free = 0;
                for (before, place) in before.iter_mut().zip(places) {
                    *before = place - free;
                    free = place + 1;
                }
            }
        }
        let mut input_ids = Vec::with_capacity(shown + n + 1);
        for blanks in before {
            input_ids.resize(input_ids.len() + blanks, blank);
            input_ids.push(self.zero + rng.random_range(0..self.symbols as u16));
        }
        input_ids.resize(shown, blank);
        match self.slots {
            Slots::Copies => input_ids.resize(shown + n, copy),
            Slots::Blanks => {
                input_ids.push(copy);
                input_ids.resize(shown + 1 + n, blank);
            }
        }
        let labels = self.read(&input_ids).map(|(_, labels)| labels).unwrap_or_default();
        Example { input_ids, labels, length }
    }
}

impl Define for SelectiveCopying {
    const NAME: &'static str = "selective_copying";
    const EXAMPLES: &'static [&'static str] = &[
        "symbols=3,content=2,helper=blk,blank=_,train_lengths=2-9,test_lengths=12",
        "symbols=3,content=4,placement=before,train_lengths=4-9,test_lengths=12",
        "symbols=3,content=4,slots=blanks,copy=?,train_lengths=9-15,test_lengths=20",
    ];

    fn tokens(&self) -> Vec<String> {
        with_special(numbers_then(self.symbols - 1, [""; 0]), &[&self.blank, &self.copy])
    }

    fn validate(&self) -> Result<(), String> {
        check_count("symbols", self.symbols, 1)?;
        check_count("content", self.content, 1)?;
        if self.blank.is_empty() || self.copy.is_empty() {
            return Err("blank and copy are tokens: neither may be empty".into());
        }
        check_special(&self.tokens(), &[("blank", &self.blank), ("copy", &self.copy)])?;
        self.check_lengths(&self.train_lengths, &self.test_lengths, false)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.zero = vocabulary.id("0").unwrap_or(0);
        self.ids = [&self.blank, &self.copy].map(|token| vocabulary.id(token).unwrap_or(u16::MAX));
        self.splits = self.bound(&self.train_lengths, &self.test_lengths);
    }

    fn longest(&self) -> usize {
        let longest = self.train_lengths.last().max(self.test_lengths.last());
        match self.slots {
            Slots::Copies => (longest + self.content) as usize,
            Slots::Blanks => longest as usize,
        }
    }
}

impl Family for SelectiveCopying {
    family_of_samples!();

    fn chance(&self, _length: u32) -> Option<f64> {
        Some(1.0 / f64::from(self.symbols))
    }
}
