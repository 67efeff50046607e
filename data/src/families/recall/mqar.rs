use super::{Sample, check_count, family_of_samples};
use crate::families::lengths::{Lengths, Splits};
use crate::families::words::numbers_then;
use crate::families::{Define, Family};
use crate::{Example, IGNORE, Vocabulary};
use rand::RngExt;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Multi-query associative recall: n pairs of a key and its value, then every key once more, to be answered with its
/// value, among filler. Source: Arora et al., "Zoology" (arXiv 2312.04927), appendix; HazyResearch/zoology.
///
/// Keys are tokens 1 to V/2 − 1 and values tokens V/2 to V − 1, none of them twice. Of the places 2n, 2n + 2, 2n + 4 …,
/// the g-th one is drawn for a query with a weight of g^(a − 1), without replacement. The length is the number of
/// tokens.
///
/// Filler is drawn from the whole vocabulary. Where it would read as a query (a stored key at an even place before that
/// key's own query), it is drawn again, so that tokens alone determine the labels. The original leaves it there,
/// unscored; such sequences are accepted with their labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqar {
    /// V, the number of tokens.
    pub vocabulary: u32,
    /// What stands where there is no query.
    pub filler: Filler,
    /// a, the power of the distances: the smaller, the more queries stand near the pairs.
    pub power: f64,
    /// Pairs in the tests of sweeps; 0: a quarter of the length, the most that there is room for.
    pub sweep_pairs: u32,
    /// Lengths of training and validation, with numbers of pairs.
    pub train_lengths: Lengths,
    /// Lengths of the out-of-distribution split, with numbers of pairs.
    pub test_lengths: Lengths,
    /// Examples of the validation split.
    pub val_examples: usize,
    /// Examples of the out-of-distribution split.
    pub test_examples: usize,
    #[serde(skip)]
    splits: Splits,
    #[serde(skip)]
    zero: u16,
    /// g^(1 − a) for every place of the splits.
    #[serde(skip)]
    rarity: Vec<f64>,
}

/// The tokens of [`Mqar`] that are no part of a pair and no query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filler {
    /// Any, each equally likely.
    #[default]
    Any,
    /// Token 0.
    Zero,
}

impl Default for Mqar {
    fn default() -> Self {
        Self {
            vocabulary: 8192,
            filler: Filler::Any,
            power: 0.01,
            sweep_pairs: 0,
            train_lengths: Lengths::new("64x4x5+128x8+256x16+256x32+256x64"),
            test_lengths: Lengths::new("64x4+64x8+64x16+128x32+256x64+512x128+1024x256"),
            val_examples: 4500,
            test_examples: 7000,
            splits: Splits::default(),
            zero: 0,
            rarity: vec![],
        }
    }
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Unknown,
    Stored(u16),
    Answered,
}

/// Reads pairs, and what may be a query, from the start of a sequence.
struct Memory {
    keys: Vec<Key>,
    /// Whether all pairs so far belong to the pairs at the beginning.
    in_pairs: bool,
}

impl Memory {
    /// The answer at an even place with the key `key`, if it asks for something. `value` is the next token, if it is a
    /// value.
    fn answer(&mut self, key: Option<usize>, value: Option<u16>) -> Option<u16> {
        let known = key.and_then(|key| self.keys.get_mut(key));
        match (known, value) {
            (Some(known @ Key::Unknown), Some(value)) if self.in_pairs => {
                *known = Key::Stored(value);
                None
            }
            (known, _) => {
                self.in_pairs = false;
                let known = known?;
                let Key::Stored(value) = *known else { return None };
                *known = Key::Answered;
                Some(value)
            }
        }
    }
}

impl Mqar {
    fn half(&self) -> u16 {
        (self.vocabulary / 2) as u16
    }

    /// The number of a key, which is at least 1.
    fn key(&self, id: u16) -> Option<usize> {
        let key = id.wrapping_sub(self.zero);
        (1..self.half()).contains(&key).then_some(usize::from(key))
    }

    fn value(&self, id: u16) -> Option<u16> {
        let value = id.wrapping_sub(self.zero);
        (value >= self.half() && u32::from(value) < self.vocabulary).then_some(id)
    }

    fn memory(&self) -> Memory {
        Memory { keys: vec![Key::Unknown; usize::from(self.half())], in_pairs: true }
    }

    /// The places of the queries: numbers below `places`, in the order of the keys.
    ///
    /// Drawing without replacement is a race: the place that is drawn first, second … is the one with the smallest,
    /// second smallest … of exponentially distributed times whose rates are the weights.
    fn places(&self, pairs: usize, places: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
        let rarity = |place: usize| match self.rarity.get(place) {
            Some(rarity) => *rarity,
            None => rarity(place, self.power),
        };
        let time = |place: usize, rng: &mut ChaCha8Rng| -(1.0 - rng.random::<f64>()).ln() * rarity(place);
        let mut times: Vec<(f64, u32)> = (0..places).map(|place| (time(place, rng), place as u32)).collect();
        if pairs < places {
            times.select_nth_unstable_by(pairs, |a, b| a.0.total_cmp(&b.0));
            times.truncate(pairs);
        }
        times.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        times.into_iter().map(|(_, place)| place).collect()
    }

    fn filler(&self, rng: &mut ChaCha8Rng) -> u16 {
        match self.filler {
            Filler::Any => self.zero + rng.random_range(0..self.vocabulary as u16),
            Filler::Zero => self.zero,
        }
    }

    fn read(&self, input_ids: &[u16]) -> Result<(u32, Vec<i16>), String> {
        let (tokens, rest) = input_ids.as_chunks::<2>();
        if !rest.is_empty() || tokens.is_empty() {
            return Err("the number of tokens is not even".into());
        }
        let mut memory = self.memory();
        let mut labels = vec![IGNORE; input_ids.len()];
        for (i, [key, value]) in tokens.iter().enumerate() {
            if let Some(answer) = memory.answer(self.key(*key), self.value(*value)) {
                labels[2 * i] = answer as i16;
            }
        }
        match labels.iter().any(|label| *label >= 0) {
            true => Ok((input_ids.len() as u32, labels)),
            false => Err("no key of the pairs at the beginning is asked for".into()),
        }
    }

    /// Whether labels are right where every key of the first n pairs is labelled once, at an even place behind them.
    fn are_answers(&self, input_ids: &[u16], labels: &[i16]) -> bool {
        let pairs = labels.iter().filter(|label| **label >= 0).count();
        if pairs == 0 || 4 * pairs > input_ids.len() || !input_ids.len().is_multiple_of(2) {
            return false;
        }
        let mut memory = self.memory();
        for [key, value] in input_ids[..2 * pairs].as_chunks::<2>().0 {
            memory.answer(self.key(*key), self.value(*value));
        }
        if !memory.in_pairs {
            return false;
        }
        let scored = input_ids.iter().zip(labels).enumerate().filter(|(_, (_, label))| **label >= 0);
        let mut right = scored.map(|(at, (id, label))| {
            let answer = memory.answer(self.key(*id), None).map(|value| value as i16);
            at >= 2 * pairs && at % 2 == 0 && answer == Some(*label)
        });
        right.all(|right| right)
    }
}

/// g^(1 − a) of the place number g − 1.
fn rarity(place: usize, power: f64) -> f64 {
    (place as f64 + 1.0).powf(1.0 - power)
}

impl Sample for Mqar {
    fn splits(&self) -> &Splits {
        &self.splits
    }

    fn usual_pairs(&self, length: u32) -> Option<u32> {
        Some(if self.sweep_pairs > 0 { self.sweep_pairs } else { length / 4 })
    }

    fn possible(&self, length: u32, pairs: Option<u32>) -> Result<(), String> {
        let pairs = pairs.unwrap_or(0);
        if !length.is_multiple_of(2) {
            return Err("an odd number of tokens".into());
        }
        if pairs == 0 || u64::from(length) < 4 * u64::from(pairs) {
            return Err(format!(
                "{} pairs and their queries need {} tokens",
                pairs.max(1),
                4 * u64::from(pairs.max(1))
            ));
        }
        if length >= self.vocabulary || pairs >= self.vocabulary / 2 {
            return Err(format!("a vocabulary of {} tokens is not larger than the length", self.vocabulary));
        }
        Ok(())
    }

    fn sample(&self, length: u32, pairs: Option<u32>, rng: &mut ChaCha8Rng) -> Example {
        let (tokens, pairs) = (length as usize, pairs.unwrap_or(1) as usize);
        let half = usize::from(self.half());
        let keys = sample(rng, half - 1, pairs);
        let values = sample(rng, half, pairs);
        let mut memory = self.memory();
        let mut input_ids = Vec::with_capacity(tokens);
        let mut labels = vec![IGNORE; tokens];
        for (key, value) in keys.iter().zip(values.iter()) {
            let (key, value) = (key + 1, self.zero + (half + value) as u16);
            memory.answer(Some(key), Some(value));
            input_ids.extend([self.zero + key as u16, value]);
        }
        let places = tokens / 2 - pairs;
        let mut asked = vec![0; places];
        for (key, place) in keys.iter().zip(self.places(pairs, places, rng)) {
            asked[place as usize] = key + 1;
        }
        for key in asked {
            let first = match key {
                0 => loop {
                    let id = self.filler(rng);
                    let is_query = self.key(id).is_some_and(|key| matches!(memory.keys[key], Key::Stored(_)));
                    if !is_query {
                        break id;
                    }
                },
                key => self.zero + key as u16,
            };
            let second = self.filler(rng);
            if let Some(answer) = memory.answer(self.key(first), self.value(second)) {
                labels[input_ids.len()] = answer as i16;
            }
            input_ids.extend([first, second]);
        }
        Example { input_ids, labels, length }
    }
}

impl Define for Mqar {
    const NAME: &'static str = "mqar";
    const EXAMPLES: &'static [&'static str] = &[
        "vocabulary=20,power=1.5,sweep_pairs=2,helper=blk,train_lengths=8x2+10x1,test_lengths=12-18x3",
        "vocabulary=31,filler=zero,train_lengths=8-16x2,test_lengths=20-30x5",
    ];

    fn tokens(&self) -> Vec<String> {
        numbers_then(self.vocabulary - 1, [""; 0])
    }

    fn validate(&self) -> Result<(), String> {
        check_count("vocabulary", self.vocabulary, 6)?;
        if !(0.0..=10.0).contains(&self.power) {
            return Err(format!("power = {} is not between 0 and 10", self.power));
        }
        self.check_lengths(&self.train_lengths, &self.test_lengths, true)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.zero = vocabulary.id("0").unwrap_or(0);
        self.splits = self.bound(&self.train_lengths, &self.test_lengths);
        let longest = self.longest().min(1 << 16);
        self.rarity = (0..longest / 2).map(|place| rarity(place, self.power)).collect();
    }

    fn longest(&self) -> usize {
        self.train_lengths.last().max(self.test_lengths.last()) as usize
    }
}

impl Family for Mqar {
    family_of_samples!();

    /// The labels themselves, where they are right for the first n pairs: filler may read like more of them.
    fn expected(&self, input_ids: &[u16], labels: &[i16]) -> Result<Vec<i16>, String> {
        match self.are_answers(input_ids, labels) {
            true => Ok(labels.to_vec()),
            false => self.labels(input_ids),
        }
    }

    fn chance(&self, _length: u32) -> Option<f64> {
        Some(2.0 / f64::from(self.vocabulary))
    }
}
