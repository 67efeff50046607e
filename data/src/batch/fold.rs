//! Folding: a causal model's outputs after `a a` do not depend on later tokens, so an example that is a prefix of
//! another needs no pass of its own.

use crate::{Batch, PositionIds};
use std::ops::Range;

/// Groups strings by prefix: the first of a group begins with each of the others. `joins(first, other)` decides for
/// strings of which the latter is a prefix of the former.
///
/// Groups and their members are indices into `strings`; groups are in the order of their first members.
pub fn prefix_groups<T: Ord>(strings: &[&[T]], mut joins: impl FnMut(usize, usize) -> bool) -> Vec<Vec<usize>> {
    // In descending order, a string follows directly after those that begin with it.
    let mut order: Vec<usize> = (0..strings.len()).collect();
    order.sort_by(|&a, &b| strings[b].cmp(strings[a]).then(a.cmp(&b)));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for index in order {
        match groups.last_mut() {
            Some(group) if strings[group[0]].starts_with(strings[index]) && joins(group[0], index) => group.push(index),
            _ => groups.push(vec![index]),
        }
    }
    groups.sort_by_key(|group| group[0]);
    groups
}

/// A batch whose rows may each stand for several examples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Folded {
    /// The rows.
    pub batch: Batch,
    /// How many examples have this position's label, `[batch, seq]`; 0 where there is none.
    pub counts: Vec<u32>,
    /// How many examples each row stands for, `[batch]`.
    pub examples: Vec<u32>,
}

impl Folded {
    /// Every row stands for itself.
    pub fn unfolded(batch: Batch) -> Self {
        Self { counts: label_counts(&batch.labels), examples: vec![1; batch.batch], batch }
    }

    /// Leaves out rows that others begin with, with the same positions and mask: to their last label, where the loss of
    /// a causal model looks no further, or with `whole_rows` to the end of the padding. Rows that have different labels
    /// at a position stay apart. The batch keeps its width, and its order.
    ///
    /// A row that begins with a masked token must be repeated as a whole: a query without any visible key attends to
    /// later keys.
    pub fn fold(batch: Batch, whole_rows: bool) -> Self {
        let seq = batch.seq;
        let at = |row: usize, length: usize| row * seq..row * seq + length;
        let extent = |row: usize| {
            let row = at(row, seq);
            let whole = whole_rows || batch.attention_mask[row.clone()].first() == Some(&0);
            let last = batch.labels[row].iter().rposition(|&label| label >= 0);
            if whole { seq } else { last.map_or(0, |last| last + 1) }
        };
        let strings: Vec<&[i64]> = (0..batch.batch).map(|row| &batch.input_ids[at(row, extent(row))]).collect();
        let mut labels = batch.labels.clone();
        let mut counts = label_counts(&labels);
        let mut examples = vec![1; batch.batch];
        let groups = prefix_groups(&strings, |first, other| {
            let [a, b] = [first, other].map(|row| at(row, strings[other].len()));
            let compatible = |(&a, &b): (&i64, &i64)| a < 0 || b < 0 || a == b;
            let joins = batch.attention_mask[a.clone()] == batch.attention_mask[b.clone()]
                && same(&batch.position_ids, a.clone(), b.clone())
                && labels[a.clone()].iter().zip(&labels[b.clone()]).all(compatible);
            if joins {
                for (a, b) in a.zip(b) {
                    labels[a] = labels[a].max(labels[b]);
                    counts[a] += counts[b];
                }
                examples[first] += examples[other];
            }
            joins
        });
        let rows: Vec<usize> = groups.iter().map(|group| group[0]).collect();
        let ints = |values: &[i64]| pick(values, &rows, seq);
        let batch = Batch {
            batch: rows.len(),
            seq,
            input_ids: ints(&batch.input_ids),
            labels: ints(&labels),
            position_ids: match &batch.position_ids {
                PositionIds::Integers(ids) => PositionIds::Integers(ints(ids)),
                PositionIds::Scalars(values) => PositionIds::Scalars(pick(values, &rows, seq)),
            },
            attention_mask: ints(&batch.attention_mask),
        };
        Self { batch, counts: pick(&counts, &rows, seq), examples: pick(&examples, &rows, 1) }
    }

    /// How many examples there are.
    pub fn total_examples(&self) -> u64 {
        self.examples.iter().map(|&examples| u64::from(examples)).sum()
    }

    /// Labels of all examples.
    pub fn labelled(&self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }
}

/// 1 where there is a label.
fn label_counts(labels: &[i64]) -> Vec<u32> {
    labels.iter().map(|&label| u32::from(label >= 0)).collect()
}

/// Whether the positions in two ranges are the same.
fn same(positions: &PositionIds, a: Range<usize>, b: Range<usize>) -> bool {
    match positions {
        PositionIds::Integers(ids) => ids[a] == ids[b],
        PositionIds::Scalars(values) => values[a] == values[b],
    }
}

/// These rows of `[rows, width]`.
fn pick<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
    rows.iter().flat_map(|&row| values[row * width..(row + 1) * width].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Augmentation, Collation, Example, PAD, PositionSampling, Vocabulary};

    const A: u16 = 7;
    const B: u16 = 8;

    fn example(input_ids: &[u16], labels: &[i16]) -> Example {
        Example { input_ids: input_ids.to_vec(), labels: labels.to_vec(), length: input_ids.len() as u32 }
    }

    fn collate(examples: &[Example], augmentation: Augmentation) -> Batch {
        let vocabulary = Vocabulary::numbers_then(5, &[PAD, "a", "b"]);
        let positions = PositionSampling { augmentation, max_position_embeddings: 64, seed: 1, draw: 0 };
        let examples: Vec<_> = examples.iter().map(Example::as_ref).collect();
        Batch::collate(&examples, &vocabulary, &Collation { positions, pad_to: None }).unwrap()
    }

    #[test]
    fn prefixes_and_copies_become_one_row() {
        let examples = [
            example(&[A, A], &[1, 2]),
            example(&[A, B], &[1, -1]), // the loss looks no further than its `a`
            example(&[A, A, A], &[1, -1, 3]),
            example(&[A, A], &[1, 2]),
            example(&[B, A], &[4, 5]),
        ];
        let folded = Folded::fold(collate(&examples, Augmentation::None), false);
        assert_eq!((folded.batch.batch, folded.batch.seq), (2, 3));
        assert_eq!(folded.batch.input_ids, [7, 7, 7, 8, 7, 6]);
        assert_eq!(folded.batch.labels, [1, 2, 3, 4, 5, -1]);
        assert_eq!(folded.counts, [4, 2, 1, 1, 1, 0]);
        assert_eq!(folded.examples, [4, 1]);
        assert_eq!(folded.labelled(), 9);
    }

    #[test]
    fn what_does_not_fold_stays_as_it_is() {
        let batch = collate(&[example(&[B, A], &[1, 2]), example(&[A, A], &[1, 2])], Augmentation::None);
        assert_eq!(Folded::fold(batch.clone(), false), Folded::unfolded(batch));
    }

    #[test]
    fn contradicting_labels_keep_rows_apart() {
        let examples = [example(&[A, A, A], &[1, 2, 3]), example(&[A, A], &[1, 2]), example(&[A, A], &[1, 4])];
        let folded = Folded::fold(collate(&examples, Augmentation::None), false);
        assert_eq!(folded.batch.labels, [1, 2, 3, 1, 4, -1]);
        assert_eq!(folded.labelled(), 7);
        assert_eq!(folded.examples.iter().sum::<u32>(), 3);
    }

    #[test]
    fn whole_rows_fold_only_onto_copies() {
        let examples = [example(&[A, A, A], &[1, 2, 3]), example(&[A, A], &[1, 2]), example(&[A, A], &[1, 2])];
        let folded = Folded::fold(collate(&examples, Augmentation::None), true);
        assert_eq!(folded.examples, [1, 2]);
        assert_eq!(folded.counts, [1, 1, 1, 2, 2, 0]);
    }

    #[test]
    fn positions_of_their_own_keep_rows_apart() {
        let examples = [example(&[A, A, A], &[1, 2, 3]), example(&[A, A], &[1, 2]), example(&[A, A], &[1, 2])];
        let rows = |augmentation| Folded::fold(collate(&examples, augmentation), false).examples;
        assert_eq!(rows(Augmentation::None), [3]);
        assert_eq!(rows(Augmentation::Zooming), [1, 2]);
        assert_eq!(rows(Augmentation::Randomized), [1, 1, 1]);
    }

    #[test]
    fn rows_that_begin_with_a_masked_token_must_be_copies() {
        let pad = 6;
        let long = example(&[pad, A, pad, A], &[-1, 1, -1, 2]);
        let folded =
            Folded::fold(collate(&[long.clone(), example(&[pad, A], &[-1, 1]), long], Augmentation::None), false);
        assert_eq!(folded.examples, [2, 1]);
    }
}
