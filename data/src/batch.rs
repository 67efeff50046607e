use crate::{ExampleRef, IGNORE, Vocabulary, stream_rng};
use rand::seq::SliceRandom;

/// Examples padded on the right into rectangles, row-major `[batch, seq]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Rows.
    pub batch: usize,
    /// Columns: the longest row's tokens.
    pub seq: usize,
    /// Token ids; padding is the vocabulary's pad id.
    pub input_ids: Vec<i64>,
    /// Labels; −1 where there is none and on padding.
    pub labels: Vec<i64>,
    /// Positions 0, 1, 2 …; helper tokens share the position of the next real token, padding has 0.
    pub position_ids: Vec<i64>,
    /// 1 for real tokens, 0 for `<pad>`, also inside a sequence.
    pub attention_mask: Vec<i64>,
}

impl Batch {
    /// Pads `examples` to the longest of them.
    pub fn collate(examples: &[ExampleRef<'_>], vocabulary: &Vocabulary) -> Self {
        let pad = vocabulary.pad_id();
        let helpers = [vocabulary.id(crate::PAD), vocabulary.id("<blk>")];
        let batch = examples.len();
        let seq = examples.iter().map(|e| e.input_ids.len()).max().unwrap_or(0);
        let mut out = Self {
            batch,
            seq,
            input_ids: vec![i64::from(pad); batch * seq],
            labels: vec![i64::from(IGNORE); batch * seq],
            position_ids: vec![0; batch * seq],
            attention_mask: vec![0; batch * seq],
        };
        for (row, example) in examples.iter().enumerate() {
            let mut position = 0;
            for (column, (&id, &label)) in example.input_ids.iter().zip(example.labels).enumerate() {
                let at = row * seq + column;
                out.input_ids[at] = i64::from(id);
                out.labels[at] = i64::from(label);
                out.position_ids[at] = position;
                out.attention_mask[at] = i64::from(Some(id) != helpers[0]);
                if !helpers.contains(&Some(id)) {
                    position += 1;
                }
            }
        }
        out
    }

    /// Whether the attention mask can change a labelled position of a causal model: whether a masked token stands at or
    /// before the last label of its row. Padding on the right never does.
    pub fn mask_matters(&self) -> bool {
        let rows = self.attention_mask.chunks(self.seq.max(1)).zip(self.labels.chunks(self.seq.max(1)));
        rows.into_iter().any(|(mask, labels)| {
            let last = labels.iter().rposition(|&l| l >= 0);
            last.is_some_and(|last| mask[..=last].contains(&0))
        })
    }

    /// Positions that carry a label.
    pub fn labelled(&self) -> usize {
        self.labels.iter().filter(|&&l| l >= 0).count()
    }
}

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
    use crate::{Example, PAD};

    #[test]
    fn helpers_share_the_next_position_and_padding_is_masked() {
        let v = Vocabulary::numbers_then(5, &[PAD, "a", "<blk>"]);
        let (pad, a, blk) = (6, 7, 8);
        let long = Example { input_ids: vec![a, pad, a, blk, 5], labels: vec![-1, 1, -1, 2, 6], length: 2 };
        let short = Example { input_ids: vec![a], labels: vec![1], length: 1 };
        let b = Batch::collate(&[long.as_ref(), short.as_ref()], &v);
        assert_eq!((b.batch, b.seq), (2, 5));
        assert_eq!(b.position_ids, [0, 1, 1, 2, 2, 0, 0, 0, 0, 0]);
        assert_eq!(b.attention_mask, [1, 0, 1, 1, 1, 1, 0, 0, 0, 0]);
        assert_eq!(b.labels, [-1, 1, -1, 2, 6, 1, -1, -1, -1, -1]);
        assert_eq!(b.labelled(), 4);
        assert!(b.mask_matters());
        assert!(!Batch::collate(&[short.as_ref()], &v).mask_matters());
    }

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
