use super::compositions::{Compositions, arrange};
use super::words::{Words, example_rng, numbers_then};
use super::{Define, Examples, Family, copies};
use crate::{IGNORE, PAD, Split, Track, Vocabulary, stream_rng};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Items, and how often each may occur: the labels 0..=9 count the earlier occurrences.
const ITEMS: usize = 10;
const MAX_COUNT: u32 = 10;
/// The longest training sequence.
const TRAIN_MAX: u32 = 50;
/// The longest test.
const LONGEST: u32 = ITEMS as u32 * MAX_COUNT;
/// [`Design::Spread`] draws a composition again with these probabilities, by its smallest part: in training from more
/// than 20 tokens on, …
const TRAIN_REJECTION: [f64; 4] = [0.9995, 0.985, 0.8, 0.2];
/// … and in the out-of-distribution split by the smallest number of missing occurrences.
const OOD_REJECTION: [f64; 3] = [0.99, 0.5, 0.2];

/// Selective counting of ten items: the input mixes the digits, and a token's label is how often it has occurred
/// before. Each item occurs at most ten times. Source: arXiv 2405.20131, section 3 (selective counting).
///
/// How often the items occur in a sequence of n tokens is drawn uniformly among all ways (compositions of n into ten
/// parts of at most ten), filtered or not by the [`Design`]; the order is uniform. Longer tests add the items missing
/// from ten of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectiveItems {
    /// Which sequences are trained on.
    pub design: Design,
    /// Prepend `<bos>`, unlabelled.
    pub bos: bool,
    #[serde(skip)]
    words: Words,
    #[serde(skip)]
    bos_id: u16,
    /// Compositions whose parts are at least 0, 1, 2, 3 and 4.
    #[serde(skip)]
    compositions: Vec<Compositions>,
}

/// How the sequences of [`SelectiveItems`] are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Design {
    /// Training has equally many sequences of every length up to 50. Most of those in which some item is rare are drawn
    /// again, in long training sequences and (where some item is nearly exhausted) in tests.
    Spread,
    /// Training has sequences of 50 tokens alone, and nothing is drawn again.
    Longest,
}

impl Default for SelectiveItems {
    fn default() -> Self {
        let (words, compositions) = (Words::default(), vec![]);
        Self { design: Design::Spread, bos: false, words, bos_id: 0, compositions }
    }
}

impl SelectiveItems {
    /// A composition of n, where one with smallest part m is accepted with probability 1 − `rejection[m]`: first the
    /// smallest part is drawn in proportion to its acceptance, then a composition that has it.
    fn composition(&self, n: u32, rejection: &[f64], rng: &mut impl Rng) -> Vec<u32> {
        let at_least = |m: usize| self.compositions.get(m).map_or(0, |c| c.count(n)) as f64;
        let accepted = |m: usize| match rejection.get(m) {
            Some(p) => (at_least(m) - at_least(m + 1)) * (1.0 - p),
            None => at_least(m), // everything that is left
        };
        let weights: Vec<f64> = (0..=rejection.len()).map(accepted).collect();
        let mut ticket = rng.random::<f64>() * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            ticket -= weight;
            ticket < 0.0
        });
        let possible = || weights.iter().rposition(|weight| *weight > 0.0); // should rounding leave a rest
        let smallest = drawn.or_else(possible).unwrap_or(0);
        loop {
            let parts = self.compositions[smallest].draw(n, rng);
            if smallest == rejection.len() || parts.contains(&(smallest as u32)) {
                return parts;
            }
        }
    }

    fn counts(&self, split: Split, n: u32, rng: &mut impl Rng) -> Vec<u32> {
        let spread = self.design == Design::Spread;
        match split {
            Split::Train | Split::Val if spread && n > 20 => self.composition(n, &TRAIN_REJECTION, rng),
            Split::Train | Split::Val => self.composition(n, &[], rng),
            Split::OodTest | Split::Auxiliary(_) => {
                let rejection: &[f64] = if spread { &OOD_REJECTION } else { &[] };
                self.composition(LONGEST - n, rejection, rng).into_iter().map(|d| MAX_COUNT - d).collect()
            }
        }
    }

    /// `<bos>`, if there is one, and the items in random order.
    fn sequence(&self, counts: &[u32], rng: &mut impl Rng) -> Vec<u16> {
        let bos = self.bos.then_some(self.bos_id);
        bos.into_iter().chain(arrange(counts, rng).into_iter().map(|i| self.words.number(u32::from(i)))).collect()
    }

    /// The lengths of a split, in cycles; and how many cycles, except in training.
    fn lengths(&self, split: Split) -> (std::ops::RangeInclusive<u32>, usize) {
        match (split, self.design) {
            (Split::OodTest | Split::Auxiliary(_), _) => (TRAIN_MAX + 1..=LONGEST - 1, 61),
            (_, Design::Spread) => (1..=TRAIN_MAX, 40),
            (_, Design::Longest) => (TRAIN_MAX..=TRAIN_MAX, 2000),
        }
    }
}

impl Define for SelectiveItems {
    const NAME: &'static str = "selective_items";
    const EXAMPLES: &'static [&'static str] = &["bos=true,helper=pad"];

    fn tokens(&self) -> Vec<String> {
        let others: &[&str] = if self.bos { &["<bos>", PAD] } else { &[PAD] };
        numbers_then(MAX_COUNT - 1, others.iter().copied())
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.words = Words::numbers(vocabulary, MAX_COUNT - 1);
        self.bos_id = vocabulary.id("<bos>").unwrap_or(0);
        let least = 0..=TRAIN_REJECTION.len() as u32;
        self.compositions = least.map(|min| Compositions::new(ITEMS, min, MAX_COUNT, TRAIN_MAX)).collect();
    }

    fn longest(&self) -> usize {
        LONGEST as usize + usize::from(self.bos)
    }
}

impl Family for SelectiveItems {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn train_max_length(&self) -> u32 {
        TRAIN_MAX
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        let (lengths, cycles) = self.lengths(split);
        match split {
            Split::Train => copies(train, lengths.count(), "lengths"),
            _ => Ok(cycles * lengths.count()),
        }
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        let (lengths, _) = self.lengths(split);
        let (first, cycle) = (*lengths.start(), lengths.count());
        Box::new(move |index| {
            let rng = &mut example_rng(seed, split, index);
            let n = first + (index % cycle) as u32;
            let counts = self.counts(split, n, rng);
            self.labelled(self.sequence(&counts, rng), n)
        })
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        let items = match input_ids {
            [bos, rest @ ..] if self.bos && *bos == self.bos_id => rest,
            _ if self.bos => return Err("the input does not start with `<bos>`".into()),
            all => all,
        };
        for item in 0..ITEMS as u32 {
            let n = items.iter().filter(|id| **id == self.words.number(item)).count();
            if n > MAX_COUNT as usize {
                return Err(format!("`{item}` occurs {n} times, but the labels end at ten occurrences"));
            }
        }
        match !items.is_empty() && items.iter().all(|id| self.words.value(*id).is_some()) {
            true => Ok(items.len() as u32),
            false => Err("the input is not made of digits".into()),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        let mut counts = [0; ITEMS];
        let label = |id: &u16| {
            let count = counts.get_mut(self.words.value(*id)? as usize)?;
            *count += 1;
            (*count <= MAX_COUNT).then(|| self.words.label(*count - 1))
        };
        input_ids.iter().map(label).map(|label| label.unwrap_or(IGNORE)).collect()
    }

    fn distinct_tracks(&self) -> Option<usize> {
        None
    }

    /// The first 50 tokens are a training sequence of that length, the rest are the items missing from ten of each,
    /// each part in uniform order. Shorter and longer prefixes are valid tests, but not distributed exactly like the
    /// published splits, which draw every length independently.
    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let rng = &mut stream_rng(seed, "track", index as u64);
        let counts = self.counts(Split::Train, TRAIN_MAX, rng);
        let missing: Vec<u32> = counts.iter().map(|n| MAX_COUNT - n).collect();
        let header = usize::from(self.bos);
        let mut input_ids = self.sequence(&counts, rng);
        input_ids.extend(self.sequence(&missing, rng).into_iter().skip(header));
        let length = max_length.min(LONGEST);
        input_ids.truncate(header + length as usize);
        let reason = format!("past the vocabulary's last number ({MAX_COUNT} of each of {ITEMS} items)");
        Track::from_example(self.labelled(input_ids, length), header, 1, Some((LONGEST, reason)))
    }
}
