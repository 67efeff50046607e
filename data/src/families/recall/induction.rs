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

/// Induction heads: a string in which a marker stands, and the marker again: the answer is what followed it.
///
/// Symbols are uniform. The marker stands at a uniform place that leaves room for the answer and one more symbol. With
/// more than one trigger, half of the sequences have one marker; the others have as many as `triggers` at independent
/// places, less those that do not follow the one before with the answer between them, all followed by the same answer.
///
/// Sources of the presets: Fu et al., "Hungry Hungry Hippos" (arXiv 2212.14052), HazyResearch/safari; Gu and Dao,
/// "Mamba" (arXiv 2312.00752), section 4.1.2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InductionHeads {
    /// The number of different symbols.
    pub symbols: u32,
    /// The marker.
    #[serde(deserialize_with = "token")]
    pub marker: String,
    /// m, the number of tokens in the answer; all but the last of them follow the last marker in the input.
    pub answer_tokens: u32,
    /// How often the marker stands before at most.
    pub triggers: u32,
    /// Which positions are labelled.
    pub labels: Labels,
    /// A token of the vocabulary that never occurs, if any.
    #[serde(deserialize_with = "token")]
    pub unused: String,
    /// How ids are numbered.
    pub order: Order,
    /// Whether the last marker counts as length.
    pub length_with_marker: bool,
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
    marker_id: u16,
}

impl Default for InductionHeads {
    fn default() -> Self {
        Self {
            symbols: 15,
            marker: "S".into(),
            answer_tokens: 1,
            triggers: 1,
            labels: Labels::Answers,
            unused: String::new(),
            order: Order::Numbers,
            length_with_marker: true,
            train_lengths: Lengths::new("256"),
            test_lengths: Lengths::new("512+1024+2048+4096+8192+16384"),
            val_examples: 1000,
            test_examples: 600,
            splits: Splits::default(),
            zero: 0,
            marker_id: 0,
        }
    }
}

impl InductionHeads {
    fn is_symbol(&self, id: u16) -> bool {
        u32::from(id.wrapping_sub(self.zero)) < self.symbols
    }

    fn marker_tokens(&self) -> u32 {
        u32::from(self.length_with_marker)
    }

    fn read(&self, input_ids: &[u16]) -> Result<(u32, Vec<i16>), String> {
        let m = self.answer_tokens as usize;
        let last = input_ids.len().checked_sub(m).filter(|last| input_ids[*last] == self.marker_id);
        let last = last.ok_or_else(|| format!("`{}` does not stand before the end", self.marker))?;
        let marked = |(_, id): &(usize, &u16)| **id == self.marker_id;
        let mut markers = input_ids[..last].iter().enumerate().filter(marked).map(|(at, _)| at);
        let first = markers.next().ok_or_else(|| format!("`{}` does not stand in the string", self.marker))?;
        let answer = input_ids.get(first + 1..first + 1 + m).filter(|_| first + m < last);
        let answer = answer.ok_or_else(|| format!("there is no room for an answer after `{}`", self.marker))?;
        let follows = |at: usize| answer.iter().zip(&input_ids[at + 1..]).all(|(right, id)| right == id);
        if !markers.all(|at| at + m < last && follows(at)) || !follows(last) {
            return Err(format!("`{}` is not always followed by the same tokens", self.marker));
        }
        if !input_ids.iter().all(|id| self.is_symbol(*id) || *id == self.marker_id)
            || !answer.iter().all(|id| self.is_symbol(*id))
        {
            return Err("the string is not made of symbols".into());
        }
        let labels = match self.labels {
            Labels::Next => next_tokens(input_ids, answer[m - 1]),
            Labels::Answers => {
                let mut labels = vec![IGNORE; last];
                labels.extend(answer.iter().map(|id| *id as i16));
                labels
            }
        };
        Ok((last as u32 + self.marker_tokens(), labels))
    }
}

impl Sample for InductionHeads {
    fn splits(&self) -> &Splits {
        &self.splits
    }

    fn possible(&self, length: u32, _pairs: Option<u32>) -> Result<(), String> {
        let least = self.answer_tokens + 2 + self.marker_tokens();
        match length < least {
            true => Err(format!("a marker and its answer need a length of {least}")),
            false => Ok(()),
        }
    }

    fn sample(&self, length: u32, _pairs: Option<u32>, rng: &mut ChaCha8Rng) -> Example {
        let (tokens, m) = ((length - self.marker_tokens()) as usize, self.answer_tokens as usize);
        let symbols = self.symbols as u16;
        let mut input_ids = Vec::with_capacity(tokens + m);
        input_ids.extend((0..tokens).map(|_| self.zero + rng.random_range(0..symbols)));
        let triggers = if self.triggers > 1 && rng.random_bool(0.5) { self.triggers } else { 1 };
        let mut places: Vec<usize> = (0..triggers).map(|_| rng.random_range(0..tokens - 1 - m)).collect();
        places.sort_unstable();
        let first = places[0];
        let answer: Vec<u16> = input_ids[first + 1..=first + m].to_vec();
        let mut free = 0;
        for place in places {
            if place >= free {
                input_ids[place] = self.marker_id;
                input_ids[place + 1..=place + m].copy_from_slice(&answer);
                free = place + m + 1;
            }
        }
        input_ids.push(self.marker_id);
        input_ids.extend(&answer[..m - 1]);
        let labels = self.read(&input_ids).map(|(_, labels)| labels).unwrap_or_default();
        Example { input_ids, labels, length }
    }
}

impl Define for InductionHeads {
    const NAME: &'static str = "induction_heads";
    const EXAMPLES: &'static [&'static str] = &[
        "symbols=4,marker=!,helper=blk,train_lengths=4-10,test_lengths=12",
        "symbols=3,answer_tokens=2,triggers=4,train_lengths=9-20,test_lengths=30",
        "labels=next,length_with_marker=false,unused=_,order=strings,train_lengths=4-10,test_lengths=12",
    ];

    fn tokens(&self) -> Vec<String> {
        with_special(self.order.tokens(self.symbols), &[&self.marker, &self.unused])
    }

    fn validate(&self) -> Result<(), String> {
        check_count("symbols", self.symbols, 1)?;
        check_count("answer_tokens", self.answer_tokens, 1)?;
        check_count("triggers", self.triggers, 1)?;
        if self.marker.is_empty() {
            return Err("marker is empty".into());
        }
        check_special(&self.tokens(), &[("marker", &self.marker), ("unused", &self.unused)])?;
        self.check_lengths(&self.train_lengths, &self.test_lengths, false)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.zero = vocabulary.id("0").unwrap_or(0);
        self.marker_id = vocabulary.id(&self.marker).unwrap_or(u16::MAX);
        self.splits = self.bound(&self.train_lengths, &self.test_lengths);
    }

    fn longest(&self) -> usize {
        let longest = self.train_lengths.last().max(self.test_lengths.last()) - self.marker_tokens();
        (longest + self.answer_tokens) as usize
    }
}

impl Family for InductionHeads {
    family_of_samples!();

    /// Labels of all positions are accepted from other programs.
    fn expected(&self, input_ids: &[u16], labels: &[i16]) -> Result<Vec<i16>, String> {
        self.labels(input_ids).map(|own| or_next_tokens(input_ids, labels, own))
    }

    /// Where all positions are labelled with the next token.
    fn leaves_last_open(&self) -> bool {
        self.labels == Labels::Next
    }

    /// A marker in the string and the last one look the same.
    fn ends_unannounced(&self) -> bool {
        self.triggers > 1 && self.labels == Labels::Answers
    }

    fn chance(&self, _length: u32) -> Option<f64> {
        Some(1.0 / f64::from(self.symbols))
    }
}
