//! The seeded shuffle of every epoch.

use crate::stream_rng;
use rand::seq::SliceRandom;

/// The order in which one epoch visits the training examples: a permutation fixed by (seed, epoch), so that a run can
/// resume at any step without having kept it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOrder(Vec<u32>);

impl EpochOrder {
    /// The order of `epoch` over `examples` examples.
    pub fn new(seed: u64, epoch: u64, examples: usize) -> Self {
        let mut order: Vec<u32> = (0..examples as u32).collect();
        order.shuffle(&mut stream_rng(seed, "epoch order", epoch));
        Self(order)
    }

    /// The example indices of batch number `step` within the epoch; the last batch may be smaller, past it it is empty.
    pub fn batch(&self, step: usize, batch_size: usize) -> &[u32] {
        let start = (step * batch_size).min(self.0.len());
        &self.0[start..(start + batch_size).min(self.0.len())]
    }

    /// Batches in the epoch.
    pub fn steps(&self, batch_size: usize) -> usize {
        self.0.len().div_ceil(batch_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_every_example_once_and_differs_from_the_next() {
        let (first, second) = (EpochOrder::new(7, 0, 100), EpochOrder::new(7, 1, 100));
        let mut seen: Vec<u32> = (0..first.steps(32)).flat_map(|s| first.batch(s, 32).to_vec()).collect();
        assert_ne!(first, second);
        assert_eq!(first, EpochOrder::new(7, 0, 100));
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<u32>>());
        assert!(first.batch(4, 32).is_empty());
    }
}
