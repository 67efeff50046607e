use super::words::{MAX_NUMBER, Words, check_range, example_rng, numbers_then};
use super::{Define, Examples, Family, compositions::arrange, copies};
use crate::{PAD, Split, Track, Vocabulary, stream_rng};
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Selective counting of two items: the input mixes `a` and `b`, and a token's label is how often it has occurred so
/// far, itself included. Source: arXiv 2405.20131, section 3 (selective counting).
///
/// Training has equally many sequences of each pair (1 ≤ a's, 0 ≤ b's) with at most `max_count` tokens, in random
/// order; the out-of-distribution split has every pair of more tokens, but at most `max_count` of each item, where the
/// labels end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selective {
    /// The longest training sequence, and how often an item may occur in a test.
    pub max_count: u32,
    #[serde(skip)]
    words: Words,
    #[serde(skip)]
    items: [u16; 2],
}

impl Default for Selective {
    fn default() -> Self {
        Self { max_count: 50, words: Words::default(), items: [0; 2] }
    }
}

impl Selective {
    fn pairs(&self, split: Split) -> Vec<[u32; 2]> {
        let max = self.max_count;
        let all = |least: u32| (least..=max).flat_map(move |a| (0..=max).map(move |b| [a, b]));
        match split {
            Split::Train | Split::Val => all(1).filter(|[a, b]| a + b <= max).collect(),
            Split::OodTest | Split::Auxiliary(_) => all(0).filter(|[a, b]| a + b > max).collect(),
        }
    }

    fn sequence(&self, pair: [u32; 2], rng: &mut impl rand::Rng) -> Vec<u16> {
        arrange(&pair, rng).into_iter().map(|item| self.items[usize::from(item)]).collect()
    }
}

/// How often each token has occurred up to and including itself, as number labels.
pub(super) fn inclusive_counts(input_ids: &[u16], items: &[u16], words: &Words) -> Vec<i16> {
    let mut counts = vec![0; items.len()];
    let label = |id: &u16| {
        let item = items.iter().position(|item| item == id)?;
        counts[item] += 1;
        (counts[item] <= words.last()).then(|| words.label(counts[item]))
    };
    input_ids.iter().map(label).map(|label| label.unwrap_or(crate::IGNORE)).collect()
}

impl Define for Selective {
    const NAME: &'static str = "selective";
    const EXAMPLES: &'static [&'static str] = &["max_count=6,helper=blk"];

    fn tokens(&self) -> Vec<String> {
        numbers_then(self.max_count, [PAD, "a", "b"])
    }

    fn validate(&self) -> Result<(), String> {
        check_range("max_count", self.max_count, 2..=1000.min(MAX_NUMBER))
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.words = Words::numbers(vocabulary, self.max_count);
        self.items = ["a", "b"].map(|item| vocabulary.id(item).unwrap_or(0));
    }

    fn longest(&self) -> usize {
        2 * self.max_count as usize
    }
}

impl Family for Selective {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn train_max_length(&self) -> u32 {
        self.max_count
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        let pairs = self.pairs(split).len();
        match split {
            Split::Train => copies(train, pairs, "pairs of counts"),
            Split::Val => Ok(pairs),
            Split::OodTest | Split::Auxiliary(_) => Ok(2 * pairs),
        }
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        let pairs = self.pairs(split);
        Box::new(move |index| {
            let [a, b] = pairs[index % pairs.len()];
            self.labelled(self.sequence([a, b], &mut example_rng(seed, split, index)), a + b)
        })
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        for (item, name) in self.items.iter().zip(["a", "b"]) {
            let n = input_ids.iter().filter(|id| *id == item).count();
            if n > self.max_count as usize {
                return Err(format!("`{name}` occurs {n} times, but the numbers end at {}", self.max_count));
            }
        }
        match !input_ids.is_empty() && input_ids.iter().all(|id| self.items.contains(id)) {
            true => Ok(input_ids.len() as u32),
            false => Err("the input is not made of `a` and `b`".into()),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        inclusive_counts(input_ids, &self.items, &self.words)
    }

    fn distinct_tracks(&self) -> Option<usize> {
        None
    }

    /// The first half (`max_count` tokens) has a uniformly drawn number of `a`, the second half the rest of `max_count`
    /// of each. So at every length the number of `a` is uniform on the possible values, as in the published splits
    /// (which leave out training sequences of `b` alone); the order within the first half is uniform, and within the
    /// second.
    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let rng = &mut stream_rng(seed, "track", index as u64);
        let a = rng.random_range(0..=self.max_count);
        let b = self.max_count - a;
        let mut input_ids = self.sequence([a, b], rng);
        input_ids.extend(self.sequence([b, a], rng));
        let end = 2 * self.max_count;
        let length = max_length.min(end);
        input_ids.truncate(length as usize);
        let reason = format!("past the vocabulary's last number ({} for each of two items)", self.max_count);
        Track::from_example(self.labelled(input_ids, length), 0, 1, Some((end, reason)))
    }
}
