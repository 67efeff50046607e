use super::selective::inclusive_counts;
use super::words::Words;
use super::{Define, Examples, Family};
use crate::{PAD, Split, Track, Vocabulary};
use serde::{Deserialize, Serialize};

/// The smallest task, for trying a trainer out: training and validation are copies of `a b b` labelled `1 1 2`, the
/// out-of-distribution split copies of `a b b a a` labelled `1 1 2 2 3`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Debug {
    #[serde(skip)]
    words: Words,
    #[serde(skip)]
    items: [u16; 2],
}

const LONGEST: &[usize] = &[0, 1, 1, 0, 0];

impl Debug {
    fn sequence(&self, length: u32) -> Vec<u16> {
        LONGEST.iter().take(length as usize).map(|item| self.items[*item]).collect()
    }
}

impl Define for Debug {
    const NAME: &'static str = "debug";

    fn tokens(&self) -> Vec<String> {
        [PAD, "a", "b", "1", "2", "3"].map(String::from).to_vec()
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.words = Words::from_one(vocabulary, 3);
        self.items = ["a", "b"].map(|item| vocabulary.id(item).unwrap_or(0));
    }

    fn longest(&self) -> usize {
        LONGEST.len()
    }
}

impl Family for Debug {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn train_max_length(&self) -> u32 {
        3
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        Ok(if split == Split::Train { train } else { 8 })
    }

    fn examples(&self, split: Split, _seed: u64) -> Examples<'_> {
        let length = match split {
            Split::Train | Split::Val => 3,
            Split::OodTest | Split::Auxiliary(_) => 5,
        };
        Box::new(move |_| self.labelled(self.sequence(length), length))
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        match !input_ids.is_empty() && self.rule(input_ids).iter().all(|l| *l >= 0) {
            true => Ok(input_ids.len() as u32),
            false => Err("the input is not made of `a` and `b`, each at most three times".into()),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        inclusive_counts(input_ids, &self.items, &self.words)
    }

    fn distinct_tracks(&self) -> Option<usize> {
        Some(1)
    }

    fn track(&self, _seed: u64, _index: usize, max_length: u32) -> Track {
        let end = LONGEST.len() as u32;
        let length = max_length.min(end);
        let limit = Some((end, format!("the task's only test has {end} tokens")));
        Track::from_example(self.labelled(self.sequence(length), length), 0, 1, limit)
    }
}
