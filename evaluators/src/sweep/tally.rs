//! Sums over the sessions' results.

use crate::sweep::work::BatchScore;
use crate::{Prediction, Score};

/// Scores per slot of the list of lengths.
pub(crate) struct Tally {
    pub scores: Vec<Score>,
    pub failures: Vec<Option<String>>,
    /// Sequences that are still to be scored.
    missing: Vec<u64>,
    pub predictions: Vec<Prediction>,
}

impl Tally {
    pub fn new(slots: usize) -> Self {
        let scores = vec![Score::default(); slots];
        Self { scores, failures: vec![None; slots], missing: vec![0; slots], predictions: vec![] }
    }

    pub fn expect(&mut self, slot: usize, sequences: usize) {
        self.missing[slot] += sequences as u64;
    }

    pub fn add(&mut self, mut outcome: BatchScore) {
        for (slot, score) in outcome.scores {
            self.scores[slot].merge(&score);
            self.missing[slot] = self.missing[slot].saturating_sub(score.n_sequences);
        }
        for (slot, why) in outcome.failures {
            self.failures[slot].get_or_insert(why); // the first in the order of the plan, regardless of batches
            self.missing[slot] = 0;
        }
        self.predictions.append(&mut outcome.predictions);
    }

    pub fn finished(&self) -> u64 {
        self.missing.iter().filter(|missing| **missing == 0).count() as u64
    }

    /// Whether further sequences would narrow this slot's interval down to `width`.
    pub fn is_wide(&self, slot: usize, width: f64) -> bool {
        let score = &self.scores[slot];
        let interval = score.last_accuracy_interval().filter(|_| score.nan == 0 && self.failures[slot].is_none());
        interval.is_some_and(|(low, high)| high - low > width)
    }
}

/// The mean, where there is anything to average.
#[derive(Default)]
pub(crate) struct Mean {
    sum: f64,
    n: u32,
}

impl Mean {
    pub fn add(&mut self, value: Option<f64>) {
        self.sum += value.unwrap_or(0.0);
        self.n += u32::from(value.is_some());
    }

    pub fn value(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / f64::from(self.n))
    }
}
