//! Examples padded into the rectangular arrays that models take.

use super::positions::{HelperTokens, PositionIds, PositionSampling};
use crate::{DataError, ExampleRef, IGNORE, Vocabulary};

/// Settings that turn examples into a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collation {
    /// How positions are made.
    pub positions: PositionSampling,
    /// Pad to this many tokens, instead of to the longest row.
    pub pad_to: Option<usize>,
}

impl Collation {
    /// Positions 0, 1, 2 …, padded to the longest row.
    pub const fn sequential() -> Self {
        Self { positions: PositionSampling::SEQUENTIAL, pad_to: None }
    }
}

/// Examples padded on the right into rectangles, row-major `[batch, seq]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// Rows.
    pub batch: usize,
    /// Columns: the longest row's tokens, or [`Collation::pad_to`].
    pub seq: usize,
    /// Token ids; padding is the vocabulary's pad id.
    pub input_ids: Vec<i64>,
    /// Labels; −1 where there is none and on padding.
    pub labels: Vec<i64>,
    /// Positions, see [`crate::Augmentation`]; padding has 0.
    pub position_ids: PositionIds,
    /// The padding mask: 1 for real tokens, 0 for `<pad>`, also inside a sequence.
    pub attention_mask: Vec<i64>,
}

impl Batch {
    /// The most tokens of a batch, padding included: 2²⁸, whose arrays take 8 GB.
    pub const MOST_TOKENS: usize = 1 << 28;

    /// Pads `examples`; the draws of random positions are numbered by the row.
    ///
    /// # Errors
    /// An example is longer than [`Collation::pad_to`], or has more tokens than there are positions to draw from; or the
    /// batch would have more than [`Self::MOST_TOKENS`].
    pub fn collate(
        examples: &[ExampleRef<'_>],
        vocabulary: &Vocabulary,
        collation: &Collation,
    ) -> Result<Self, DataError> {
        Self::collate_rows(examples.iter().enumerate().map(|(i, e)| (i as u64, *e)), vocabulary, collation)
    }

    /// [`Self::collate`] with a number (below 2³²) for each example, which its random positions are drawn by: the
    /// example's index in a dataset, say, so that they do not depend on which examples share a batch.
    ///
    /// # Errors
    /// As [`Self::collate`].
    pub fn collate_rows<'a>(
        rows: impl Iterator<Item = (u64, ExampleRef<'a>)> + Clone,
        vocabulary: &Vocabulary,
        collation: &Collation,
    ) -> Result<Self, DataError> {
        let (batch, longest) = rows.clone().fold((0, 0), |(n, seq), (_, e)| (n + 1, seq.max(e.input_ids.len())));
        let seq = collation.pad_to.unwrap_or(longest);
        if longest > seq {
            return Err(DataError::TooLong { tokens: longest, pad_to: seq });
        }
        let fits = |size: &usize| *size <= Self::MOST_TOKENS;
        let too_large = || DataError::TooLarge { rows: batch, tokens: seq };
        let size = batch.checked_mul(seq).filter(fits).ok_or_else(too_large)?;
        let helpers = HelperTokens::of(vocabulary);
        let mut out = Self {
            batch,
            seq,
            input_ids: vec![i64::from(vocabulary.pad_id()); size],
            labels: vec![i64::from(IGNORE); size],
            position_ids: collation.positions.zeros(size),
            attention_mask: vec![0; size],
        };
        for (row, (number, example)) in rows.enumerate() {
            let start = row * seq;
            for (column, (&id, &label)) in example.input_ids.iter().zip(example.labels).enumerate() {
                out.input_ids[start + column] = i64::from(id);
                out.labels[start + column] = i64::from(label);
                out.attention_mask[start + column] = i64::from(helpers.pad != Some(id));
            }
            collation.positions.fill(example, &helpers, number, &mut out.position_ids, start)?;
        }
        Ok(out)
    }

    /// Whether the attention mask can change a labelled position of a model: whether there is a masked token at all; of a
    /// causal model, one at or before the last label of its row, which padding on the right never is.
    pub fn mask_matters(&self, is_causal: bool) -> bool {
        if !is_causal {
            return self.attention_mask.contains(&0);
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Augmentation, Example, PAD};

    #[test]
    fn helpers_share_the_next_position_and_padding_is_masked() {
        let v = Vocabulary::numbers_then(5, &[PAD, "a", "<blk>"]);
        let (pad, a, blk) = (6, 7, 8);
        let long = Example { input_ids: vec![a, pad, a, blk, 5], labels: vec![-1, 1, -1, 2, 6], length: 2 };
        let short = Example { input_ids: vec![a], labels: vec![1], length: 1 };
        let b = Batch::collate(&[long.as_ref(), short.as_ref()], &v, &Collation::sequential()).unwrap();
        assert_eq!((b.batch, b.seq), (2, 5));
        assert_eq!(b.position_ids, PositionIds::Integers(vec![0, 1, 1, 2, 2, 0, 0, 0, 0, 0]));
        assert_eq!(b.attention_mask, [1, 0, 1, 1, 1, 1, 0, 0, 0, 0]);
        assert_eq!(b.labels, [-1, 1, -1, 2, 6, 1, -1, -1, -1, -1]);
        assert_eq!(b.labelled(), 4);
        assert!(b.mask_matters(true));
        assert!(!Batch::collate(&[short.as_ref()], &v, &Collation::sequential()).unwrap().mask_matters(false));
        let padded = Example { input_ids: vec![a, a, a], labels: vec![1, 1, 1], length: 3 };
        let b = Batch::collate(&[short.as_ref(), padded.as_ref()], &v, &Collation::sequential()).unwrap();
        assert_eq!([true, false].map(|is_causal| b.mask_matters(is_causal)), [false, true]);
    }

    /// `a <pad> a <pad> 5` and `a a a`, padded to 8, with a table of 16 positions.
    fn positions(augmentation: Augmentation, draw: u64) -> PositionIds {
        let v = Vocabulary::numbers_then(5, &[PAD, "a", "<blk>"]);
        let helped = Example { input_ids: vec![7, 6, 7, 6, 5], labels: vec![-1; 5], length: 2 };
        let bare = Example { input_ids: vec![7; 3], labels: vec![-1; 3], length: 3 };
        let positions = PositionSampling { augmentation, max_position_embeddings: 16, seed: 3, draw };
        let collation = Collation { positions, pad_to: Some(8) };
        Batch::collate(&[helped.as_ref(), bare.as_ref()], &v, &collation).unwrap().position_ids
    }

    fn integers(positions: PositionIds) -> [[i64; 8]; 2] {
        let rows = positions.as_integers().unwrap().as_chunks::<8>().0;
        [rows[0], rows[1]]
    }

    #[test]
    fn deterministic_positions() {
        let plain = integers(positions(Augmentation::None, 0));
        assert_eq!(plain, [[0, 1, 1, 2, 2, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0]]);
        let zooming = [0.25, 0.5, 0.5, 0.75, 0.75, 0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(positions(Augmentation::Zooming, 0), PositionIds::Scalars(zooming.to_vec()));
    }

    #[test]
    fn shifts_are_uniform_and_leave_room_for_the_spare_position() {
        let mut seen = [0; 13]; // starts 0..=P−E
        for draw in 0..2600 {
            let [helped, bare] = integers(positions(Augmentation::Shift, draw));
            let s = helped[0];
            assert_eq!(helped, [s, s + 1, s + 1, s + 2, s + 2, 0, 0, 0]);
            assert_eq!(bare[..3], [bare[0], bare[0] + 1, bare[0] + 2]);
            seen[s as usize] += 1;
            let scaled = positions(Augmentation::ScalerShift, draw);
            assert_eq!(scaled.as_scalars().unwrap()[1], (s + 1) as f32 / 16.0);
        }
        assert!(seen.iter().all(|n| (140..260).contains(n)), "{seen:?}"); // 200 expected, standard deviation 14
    }

    #[test]
    fn randomized_positions_increase_and_never_take_the_largest_draw() {
        let mut last = 0;
        for draw in 0..2000 {
            let [helped, _] = integers(positions(Augmentation::Randomized, draw));
            assert!(helped[0] < helped[1] && helped[1] == helped[2] && helped[2] < helped[3] && helped[3] == helped[4]);
            assert!((0..15).contains(&helped[4]));
            last = last.max(helped[4]);
        }
        assert_eq!(last, 14);
    }

    #[test]
    fn draws_depend_on_seed_draw_and_row_number_only() {
        for augmentation in [Augmentation::Shift, Augmentation::Randomized, Augmentation::ScalerShift] {
            assert_eq!(positions(augmentation, 5), positions(augmentation, 5));
            assert!((0..10).any(|draw| positions(augmentation, draw) != positions(augmentation, draw + 1)));
        }
        let v = Vocabulary::numbers_then(5, &[PAD, "a"]);
        let e = Example { input_ids: vec![7; 3], labels: vec![-1; 3], length: 3 };
        let positions =
            PositionSampling { augmentation: Augmentation::Randomized, max_position_embeddings: 99, seed: 1, draw: 0 };
        let collation = Collation { positions, pad_to: None };
        let rows = |numbers: &[u64]| {
            let rows = numbers.iter().map(|n| (*n, e.as_ref()));
            Batch::collate_rows(rows, &v, &collation).unwrap().position_ids.as_integers().unwrap().to_vec()
        };
        assert_eq!(rows(&[4, 9])[3..], rows(&[9]));
    }

    #[test]
    fn examples_that_do_not_fit() {
        let v = Vocabulary::numbers_then(5, &[PAD, "a"]);
        let e = Example { input_ids: vec![7; 16], labels: vec![-1; 16], length: 16 };
        let collate = |augmentation, pad_to| {
            let positions = PositionSampling { augmentation, max_position_embeddings: 16, seed: 0, draw: 0 };
            Batch::collate(&[e.as_ref()], &v, &Collation { positions, pad_to })
        };
        let error = collate(Augmentation::Shift, None).unwrap_err().to_string();
        assert!(error.starts_with("an example has 16 tokens, but `shift` draws 17 positions"), "{error}");
        let error = collate(Augmentation::None, Some(15)).unwrap_err().to_string();
        assert!(error.starts_with("an example has 16 tokens, but batches are padded to 15"), "{error}");
        for pad_to in [usize::MAX, usize::MAX / 8, Batch::MOST_TOKENS + 1] {
            let error = collate(Augmentation::None, Some(pad_to)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("a batch of 1 rows of {pad_to} tokens is too large")), "{error}");
        }
        assert!(collate(Augmentation::None, None).is_ok());
        assert!(collate(Augmentation::Zooming, None).is_ok());
    }
}
