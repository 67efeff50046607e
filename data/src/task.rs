use crate::families::{Family, Modular, ShiftedStart};
use crate::{DataError, Vocabulary, suggest};
use std::str::FromStr;

/// The splits of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// What models train on.
    Train,
    /// The same distribution, for model selection.
    Val,
    /// Longer sequences than any in training.
    OodTest,
}

impl Split {
    /// All of them, in the order of writing.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::OodTest];

    /// The split's name in files and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::OodTest => "ood_test",
        }
    }
}

impl FromStr for Split {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let found = Self::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| DataError::UnknownSplit { name: name.to_owned() })
    }
}

/// A family with its parameters fixed, under the name the paper's code gave it.
#[derive(Debug)]
pub struct Task {
    /// For example `counting_samesymbol_mod10bos`.
    pub name: String,
    /// The generator and label rule.
    pub family: Box<dyn Family>,
    /// Tokens in id order.
    pub vocabulary: Vocabulary,
    /// Rows of a learned position table; position ids are drawn below this.
    pub max_position_embeddings: usize,
    /// The longest training sequence in tokens that the original pads to.
    pub max_seq_len: usize,
}

type Preset = (&'static str, fn() -> Box<dyn Family>);

const PRESETS: &[Preset] = &[
    ("counting_samesymbol_mod10", || Box::new(Modular { modulus: 10, train_max: 50, bos: false })),
    ("counting_samesymbol_mod10bos", || Box::new(Modular { modulus: 10, train_max: 50, bos: true })),
    ("counting_samesymbol_shiftedstart3", || Box::new(ShiftedStart { starts: 50, train_length: 50, last_number: 100 })),
];

impl Task {
    /// The names of all presets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// The preset called `name`.
    pub fn by_name(name: &str) -> Result<Self, DataError> {
        let Some((_, family)) = PRESETS.iter().find(|(n, _)| *n == name) else {
            let nearest = suggest::nearest(name, Self::names()).map(str::to_owned);
            return Err(DataError::UnknownTask { name: name.to_owned(), nearest });
        };
        let family = family();
        let vocabulary = family.vocabulary();
        Ok(Self { name: name.to_owned(), family, vocabulary, max_position_embeddings: 128, max_seq_len: 128 })
    }

    /// The size of a split when `train` training examples are asked for.
    pub fn rows(&self, split: Split, train: usize) -> Result<usize, DataError> {
        self.family.rows(split, train).map_err(|reason| DataError::SplitSize { task: self.name.clone(), reason })
    }
}
