use super::pairs::{Pair, Pairs, Pick, pick_from};
use super::words::{MAX_NUMBER, Symbols, Words, check_range, counting_tokens, example_rng, past_last_number};
use super::{Define, Examples, Family, copies, counting};
use crate::{Split, Track, Vocabulary, stream_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Shifted start: the input is a number k, then c symbols; the labels of the symbols are k + 1 … k + c. With helper
/// tokens the start is labelled as well, with k. Source: arXiv 2405.20131, section 3 (shifted starts).
///
/// `train` says which (c, k) occur in training and validation, `ood` which in the out-of-distribution split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShiftedStart {
    /// The training strings.
    pub train: Training,
    /// The out-of-distribution strings.
    pub ood: Beyond,
    /// The smallest start of `fixed_length` and `fixed_end`.
    pub first_start: u32,
    /// The largest count in training.
    pub train_max: u32,
    /// The largest number word, where the labels end.
    pub last_number: u32,
    /// How many (c, k) `cells` and `counting_and_cells` hold out for validation.
    pub val_cells: usize,
    /// Copies of the training strings that make the validation split of `fixed_length` and `fixed_end`.
    pub val_repeats: usize,
    /// Copies of the out-of-distribution strings that make its split.
    pub ood_repeats: usize,
    /// The symbols to count.
    pub symbols: Symbols,
    #[serde(skip)]
    words: Words,
    #[serde(skip)]
    label_start: bool,
}

/// The training strings of a [`ShiftedStart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Training {
    /// c ≤ `train_max`, k ≤ `last_number` − c, all but the pairs held out for validation.
    Cells,
    /// The same pairs, each as two examples: [`super::Counting`]'s (symbols, then k), then this family's.
    CountingAndCells,
    /// Always c = `train_max`, from `first_start` to where the numbers end.
    FixedLength,
    /// Always up to the same label, `first_start` + `train_max`: k goes up while c goes down from `train_max` to 1.
    FixedEnd,
}

/// The test strings of a [`ShiftedStart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beyond {
    /// Every c > `train_max` with every start that leaves room, c outer.
    AllLengths,
    /// Every start once, up to the last number, where that is longer than in training.
    ToLastNumber,
}

impl Default for ShiftedStart {
    fn default() -> Self {
        Self {
            train: Training::Cells,
            ood: Beyond::AllLengths,
            first_start: 1,
            train_max: 50,
            last_number: 100,
            val_cells: 300,
            val_repeats: 1,
            ood_repeats: 1,
            symbols: Symbols::Same,
            words: Words::default(),
            label_start: false,
        }
    }
}

/// `[k] symbols…`
pub(super) fn sequence(words: &Words, k: u32, c: u32, rng: &mut impl Rng) -> Vec<u16> {
    let mut input_ids = vec![words.number(k)];
    input_ids.extend(words.symbols(c, rng));
    input_ids
}

impl ShiftedStart {
    fn pairs(&self) -> Pairs {
        Pairs { train_max: self.train_max, last_number: self.last_number, val_cells: self.val_cells }
    }

    /// The one count that start `k` has in training, where it has only one.
    fn fixed_count(&self, k: u32) -> Option<u32> {
        match self.train {
            Training::Cells | Training::CountingAndCells => None,
            Training::FixedLength => Some(self.train_max),
            Training::FixedEnd => Some(self.first_start + self.train_max - k),
        }
    }

    /// The starts of the training strings (of a sweep's tracks, where training draws them).
    fn starts(&self) -> std::ops::RangeInclusive<u32> {
        match self.train {
            Training::Cells | Training::CountingAndCells => 1..=self.last_number - self.train_max,
            Training::FixedLength => self.first_start..=self.last_number - self.train_max,
            Training::FixedEnd => self.first_start..=self.first_start + self.train_max - 1,
        }
    }

    /// The (c, k) of the training strings, where they are enumerated.
    fn fixed_pairs(&self) -> Vec<Pair> {
        self.starts().filter_map(|k| Some((self.fixed_count(k)?, k))).collect()
    }

    fn ood_pairs(&self) -> Vec<Pair> {
        let last = self.last_number;
        match self.ood {
            Beyond::AllLengths => (self.train_max + 1..=last)
                .flat_map(|c| self.starts().filter(move |k| k + c <= last).map(move |k| (c, k)))
                .collect(),
            Beyond::ToLastNumber => {
                let longer = |k: &u32| last - k > self.fixed_count(*k).unwrap_or(self.train_max);
                self.starts().filter(longer).map(|k| (last - k, k)).collect()
            }
        }
    }

    fn pick(&self, split: Split, seed: u64) -> Pick<'static> {
        let fixed = self.fixed_pairs();
        match split {
            Split::Train | Split::Val if fixed.is_empty() => self.pairs().pick(split, seed),
            Split::Train | Split::Val => pick_from(fixed),
            Split::OodTest | Split::Auxiliary(_) => pick_from(self.ood_pairs()),
        }
    }

    /// Examples per pair.
    fn per_pair(&self) -> usize {
        if self.train == Training::CountingAndCells { 2 } else { 1 }
    }
}

impl Define for ShiftedStart {
    const NAME: &'static str = "shifted_start";
    const EXAMPLES: &'static [&'static str] = &[
        "train=counting_and_cells,helper=pad,symbols=diff",
        "train=fixed_end,first_start=0,train_max=9,last_number=30,helper=blk",
    ];

    fn tokens(&self) -> Vec<String> {
        counting_tokens(self.last_number, self.symbols)
    }

    fn validate(&self) -> Result<(), String> {
        check_range("last_number", self.last_number, 2..=MAX_NUMBER)?;
        check_range("train_max", self.train_max, 1..=self.last_number - 1)?;
        check_range("first_start", self.first_start, 0..=self.last_number - self.train_max)?;
        check_range("val_repeats", self.val_repeats as u32, 1..=1000)?;
        check_range("ood_repeats", self.ood_repeats as u32, 1..=1000)?;
        if *self.starts().end() > self.last_number {
            return Err(format!(
                "the starts go up to {}, past last_number = {}",
                self.starts().end(),
                self.last_number
            ));
        }
        if self.ood_pairs().is_empty() {
            return Err("no sequence is longer than in training".into());
        }
        if self.fixed_pairs().is_empty() { self.pairs().check() } else { Ok(()) }
    }

    fn bind(&mut self, vocabulary: &Vocabulary, helper: bool) {
        self.words = Words::new(vocabulary, self.last_number, self.symbols);
        self.label_start = helper;
    }

    fn longest(&self) -> usize {
        1 + (self.last_number - self.starts().start()) as usize
    }
}

impl Family for ShiftedStart {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn train_max_length(&self) -> u32 {
        self.train_max
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        let fixed = self.fixed_pairs().len();
        match split {
            Split::Train if fixed > 0 => copies(train, fixed, "starts"),
            Split::Train => copies(train, self.per_pair(), "examples of a pair"),
            Split::Val if fixed > 0 => Ok(fixed * self.val_repeats),
            Split::Val => Ok(self.val_cells * self.per_pair()),
            Split::OodTest | Split::Auxiliary(_) => Ok(self.ood_pairs().len() * self.ood_repeats * self.per_pair()),
        }
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        let pick = self.pick(split, seed);
        Box::new(move |index| {
            let pair = index / self.per_pair();
            let (c, k) = pick(pair, &mut example_rng(seed, split, pair));
            let mut letters = stream_rng(seed, split.letters(), index as u64);
            let counting = self.train == Training::CountingAndCells && index.is_multiple_of(2);
            let input_ids = match counting {
                true => counting::sequence(&self.words, c, k, &mut letters),
                false => sequence(&self.words, k, c, &mut letters),
            };
            self.labelled(input_ids, c)
        })
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        let run = self.words.run_or_reason(input_ids, "`number a … a`")?;
        match (run.start, run.addon) {
            (Some(_), None) => Ok(run.count),
            (None, _) if self.train == Training::CountingAndCells => Ok(run.count),
            (None, _) => Err("the input does not start with a number".into()),
            (Some(_), Some(_)) => Err("there is a number at both ends".into()),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        self.words.running_sum(input_ids, self.label_start)
    }

    fn ends_bare(&self, input_ids: &[u16]) -> bool {
        self.words.run(input_ids).is_some_and(|run| run.addon.is_some())
    }

    fn distinct_tracks(&self) -> Option<usize> {
        (!self.symbols.are_drawn()).then(|| self.starts().count())
    }

    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let k = self.starts().start() + (index % self.starts().count()) as u32;
        let end = self.last_number - k;
        let length = max_length.min(end);
        let input_ids = sequence(&self.words, k, length, &mut stream_rng(seed, "track", index as u64));
        Track::from_example(self.labelled(input_ids, length), 1, 1, Some((end, past_last_number(self.last_number))))
    }
}
