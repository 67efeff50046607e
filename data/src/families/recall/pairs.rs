use super::{
    Labels, Order, Sample, check_count, check_special, family_of_samples, next_tokens, or_next_tokens, with_special,
};
use crate::families::lengths::{Lengths, Splits};
use crate::families::words::token;
use crate::families::{Define, Family};
use crate::{Example, IGNORE, Vocabulary};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Recall in context: pairs of a key and the value that the sequence gave it at first, then a last key that has
/// occurred.
///
/// Keys are the first ids and values the next ones, then those of noise. Keys are drawn with replacement, each equally
/// likely, as is the value when a key occurs for the first time; the last key is any of those that have occurred, each
/// equally likely. The length is the number of tokens of the pairs; the last key, and a marker before it, come on top.
///
/// Sources of the presets: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures" (arXiv 2403.17844),
/// in-context and noisy recall; Fu et al., "Hungry Hungry Hippos" (arXiv 2212.14052), associative recall.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recall {
    /// The number of different keys.
    pub keys: u32,
    /// The number of different values.
    pub values: u32,
    /// The number of different noise tokens.
    pub noise: u32,
    /// The fraction of pairs that are two noise tokens instead.
    pub noise_fraction: f64,
    /// Which keys are answered.
    pub queries: Queries,
    /// Which positions are labelled.
    pub labels: Labels,
    /// The token before the last key, if any.
    #[serde(deserialize_with = "token")]
    pub marker: String,
    /// A token of the vocabulary that never occurs, if any.
    #[serde(deserialize_with = "token")]
    pub unused: String,
    /// How ids are numbered.
    pub order: Order,
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
    marker_id: Option<u16>,
}

/// The keys of a [`Recall`] that are answered with their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Queries {
    /// Each that has occurred before.
    #[default]
    All,
    /// The last one.
    Last,
}

impl Default for Recall {
    fn default() -> Self {
        Self {
            keys: 8,
            values: 8,
            noise: 0,
            noise_fraction: 0.0,
            queries: Queries::All,
            labels: Labels::Answers,
            marker: String::new(),
            unused: String::new(),
            order: Order::Numbers,
            train_lengths: Lengths::new("126"),
            test_lengths: Lengths::new("254+510"),
            val_examples: 1280,
            test_examples: 1280,
            splits: Splits::default(),
            zero: 0,
            marker_id: None,
        }
    }
}

/// A token of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Key(usize),
    Value,
    Noise,
    Other,
}

impl Recall {
    fn kind(&self, id: u16) -> Kind {
        let n = u32::from(id.wrapping_sub(self.zero));
        match n {
            _ if n < self.keys => Kind::Key(n as usize),
            _ if n < self.keys + self.values => Kind::Value,
            _ if n < self.keys + self.values + self.noise => Kind::Noise,
            _ => Kind::Other,
        }
    }

    fn read(&self, input_ids: &[u16]) -> Result<(u32, Vec<i16>), String> {
        let marker = usize::from(self.marker_id.is_some());
        let Some(shown) = input_ids.len().checked_sub(1 + marker).filter(|shown| shown.is_multiple_of(2)) else {
            return Err("the input is not made of pairs and a last key".into());
        };
        if self.marker_id.is_some_and(|marker| input_ids[shown] != marker) {
            return Err(format!("`{}` does not stand before the last key", self.marker));
        }
        let mut labels = vec![IGNORE; input_ids.len()];
        let mut values = vec![None; self.keys as usize];
        for (i, [first, second]) in input_ids[..shown].as_chunks::<2>().0.iter().enumerate() {
            match (self.kind(*first), self.kind(*second)) {
                (Kind::Noise, Kind::Noise) => {}
                (Kind::Key(key), Kind::Value) => match values[key] {
                    None => values[key] = Some(*second),
                    Some(value) if value != *second => {
                        return Err(format!("the key of pair {} had another value before", i + 1));
                    }
                    Some(value) if self.queries == Queries::All => labels[2 * i] = value as i16,
                    Some(_) => {}
                },
                _ => return Err(format!("pair {} is not a key and a value", i + 1)),
            }
        }
        let last = input_ids.last().copied().unwrap_or(0);
        let answer = match self.kind(last) {
            Kind::Key(key) => values[key].ok_or("the last key has not occurred before")?,
            _ => return Err("the last token is not a key".into()),
        };
        match self.labels {
            Labels::Next => labels = next_tokens(input_ids, answer),
            Labels::Answers => labels[input_ids.len() - 1] = answer as i16,
        }
        Ok((shown as u32, labels))
    }
}

impl Sample for Recall {
    fn splits(&self) -> &Splits {
        &self.splits
    }

    fn possible(&self, length: u32, _pairs: Option<u32>) -> Result<(), String> {
        match length.is_multiple_of(2) && length > 0 {
            true => Ok(()),
            false => Err("pairs have an even number of tokens".into()),
        }
    }

    fn sample(&self, length: u32, _pairs: Option<u32>, rng: &mut ChaCha8Rng) -> Example {
        let shown = length as usize / 2;
        let [keys, values, noise] = [self.keys, self.values, self.noise].map(|n| n as u16);
        let is_noisy = noise > 0 && self.noise_fraction > 0.0;
        let kept = if is_noisy { rng.random_range(0..shown) } else { 0 }; // one pair at least is none of noise
        let mut input_ids = Vec::with_capacity(2 * shown + 2);
        let mut bound = vec![None; usize::from(keys)];
        let mut occurred = vec![];
        for i in 0..shown {
            if is_noisy && i != kept && rng.random_bool(self.noise_fraction) {
                let first = self.zero + keys + values;
                input_ids.extend([0; 2].map(|_: u16| first + rng.random_range(0..noise)));
                continue;
            }
            let key = rng.random_range(0..keys);
            let value = *bound[usize::from(key)].get_or_insert_with(|| {
                occurred.push(key);
                self.zero + keys + rng.random_range(0..values)
            });
            input_ids.extend([self.zero + key, value]);
        }
        input_ids.extend(self.marker_id);
        input_ids.push(self.zero + occurred[rng.random_range(0..occurred.len())]);
        let labels = self.read(&input_ids).map(|(_, labels)| labels).unwrap_or_default();
        Example { input_ids, labels, length }
    }
}

impl Define for Recall {
    const NAME: &'static str = "recall";
    const EXAMPLES: &'static [&'static str] = &[
        "keys=3,values=2,helper=blk,train_lengths=2-10,test_lengths=12",
        "keys=3,values=4,noise=5,noise_fraction=0.9,train_lengths=6-20,test_lengths=30",
        "labels=next,noise=1,noise_fraction=0.5,train_lengths=4-10,test_lengths=12",
        "labels=next,queries=last,marker=?,keys=5,train_lengths=4-10,test_lengths=12",
        "queries=last,order=strings,keys=9,values=9,train_lengths=2-20,test_lengths=40",
    ];

    fn tokens(&self) -> Vec<String> {
        let numbers = self.order.tokens(self.keys + self.values + self.noise);
        with_special(numbers, &[&self.marker, &self.unused])
    }

    fn validate(&self) -> Result<(), String> {
        check_count("keys", self.keys, 1)?;
        check_count("values", self.values, 1)?;
        check_count("noise", self.noise, 0)?;
        check_count("keys + values + noise", self.keys + self.values + self.noise, 2)?;
        if !(0.0..=1.0).contains(&self.noise_fraction) {
            return Err(format!("noise_fraction = {} is not between 0 and 1", self.noise_fraction));
        }
        if self.noise == 0 && self.noise_fraction > 0.0 {
            return Err(format!("noise_fraction = {} needs noise tokens: noise = 0", self.noise_fraction));
        }
        check_special(&self.tokens(), &[("marker", &self.marker), ("unused", &self.unused)])?;
        self.check_lengths(&self.train_lengths, &self.test_lengths, false)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.zero = vocabulary.id("0").unwrap_or(0);
        self.marker_id = if self.marker.is_empty() { None } else { vocabulary.id(&self.marker) };
        self.splits = self.bound(&self.train_lengths, &self.test_lengths);
    }

    fn longest(&self) -> usize {
        let longest = self.train_lengths.last().max(self.test_lengths.last()) as usize;
        longest + 1 + usize::from(!self.marker.is_empty())
    }
}

impl Family for Recall {
    family_of_samples!();

    /// Labels of all positions are accepted from other programs.
    fn expected(&self, input_ids: &[u16], labels: &[i16]) -> Result<Vec<i16>, String> {
        self.labels(input_ids).map(|own| or_next_tokens(input_ids, labels, own))
    }

    /// Where all positions are labelled with the next token.
    fn leaves_last_open(&self) -> bool {
        self.labels == Labels::Next
    }

    /// Without a marker, nothing tells the last key from the others.
    fn ends_unannounced(&self) -> bool {
        self.queries == Queries::Last && self.marker.is_empty()
    }

    fn chance(&self, _length: u32) -> Option<f64> {
        Some(1.0 / f64::from(self.values))
    }
}
