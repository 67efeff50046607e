//! Plans which sequences run, and which of them share a batch.

use data::{Example, ExampleRef, Track};
use std::iter::Peekable;
use std::ops::Range;

/// A sequence to run, before it is built: cheap, so that a plan of millions of them can be walked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Which track, or which example of a dataset.
    pub index: usize,
    /// The lengths that it answers, as a range of the sweep's list; not empty.
    pub span: Range<usize>,
    /// Its tokens.
    pub tokens: usize,
}

/// The limits of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Rows × tokens of the longest row that are in memory at once.
    pub tokens: usize,
    /// Rows × tokens of the longest row that run one after another: keeps enough batches for all threads.
    pub work: usize,
    /// Longer rows are fed in pieces of this many tokens; only one piece is in memory.
    pub piece: Option<usize>,
    /// Rows × the square of the longest row: the scores of attention in memory at once.
    pub square: Option<usize>,
    /// Rows.
    pub rows: usize,
    /// Only rows of equal length share a batch, so that none is padded.
    pub equal: bool,
}

impl Budget {
    fn allows(&self, rows: usize, longest: usize) -> bool {
        let held = self.piece.map_or(longest, |piece| longest.min(piece));
        rows <= self.rows
            && rows * held <= self.tokens
            && rows * longest <= self.work
            && self.square.is_none_or(|square| rows.saturating_mul(longest * longest) <= square)
    }
}

/// Cuts a stream of items, best sorted by length, into batches within the budget. An item over the budget runs alone.
pub(crate) fn pack<I: Iterator<Item = Item>>(items: I, budget: Budget) -> Pack<I> {
    Pack { items: items.peekable(), budget }
}

/// See [`pack`].
pub(crate) struct Pack<I: Iterator<Item = Item>> {
    items: Peekable<I>,
    budget: Budget,
}

impl<I: Iterator<Item = Item>> Iterator for Pack<I> {
    type Item = Vec<Item>;

    fn next(&mut self) -> Option<Vec<Item>> {
        let first = self.items.next()?;
        let mut longest = first.tokens;
        let mut batch = vec![first];
        let budget = self.budget;
        while let Some(item) = self.items.next_if(|item| {
            let fits = budget.allows(batch.len() + 1, longest.max(item.tokens));
            fits && (!budget.equal || item.tokens == longest)
        }) {
            longest = longest.max(item.tokens);
            batch.push(item);
        }
        Some(batch)
    }
}

/// A sequence to run, and the places where its score is read.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Which track, or which example of a dataset.
    pub index: usize,
    /// The seed of its random positions, below 2³².
    pub draw: u64,
    /// The tokens and labels.
    pub example: Example,
    /// Ascending.
    pub cuts: Vec<Cut>,
}

/// The first `tokens` tokens are the test of the length in this slot of the list of lengths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub slot: usize,
    pub tokens: usize,
}

impl Job {
    /// Runs the longest of `lengths[span]` and scores all of them; the track reaches them.
    pub fn of_track(index: usize, mut track: Track, lengths: &[u32], span: Range<usize>) -> Self {
        let longest = lengths[span.end - 1];
        let cuts: Vec<_> = span.map(|slot| Cut { slot, tokens: track.tokens(lengths[slot]) }).collect();
        let tokens = track.tokens(longest);
        track.input_ids.truncate(tokens);
        track.labels.truncate(tokens);
        let example = Example { input_ids: track.input_ids, labels: track.labels, length: longest };
        Self { index, draw: draw(index, longest), example, cuts }
    }

    /// Runs the test of one length of a track whose tests are not prefixes of each other.
    pub fn of_test(index: usize, example: Example, slot: usize) -> Self {
        let cuts = vec![Cut { slot, tokens: example.input_ids.len() }];
        Self { index, draw: draw(index, example.length), example, cuts }
    }

    /// Runs an example of a dataset as it is.
    pub fn of_example(index: usize, example: ExampleRef<'_>, slot: usize) -> Self {
        let cuts = vec![Cut { slot, tokens: example.input_ids.len() }];
        let ExampleRef { input_ids, labels, length } = example;
        let example = Example { input_ids: input_ids.to_vec(), labels: labels.to_vec(), length };
        Self { index, draw: index as u64, example, cuts }
    }

    /// Tokens to run.
    pub fn tokens(&self) -> usize {
        self.example.input_ids.len()
    }

    /// The same sequence up to its cut number `cuts` − 1; `cuts` ≥ 1.
    pub fn shortened(&self, cuts: usize) -> Self {
        let cuts = &self.cuts[..cuts];
        Self { cuts: cuts.to_vec(), ..self.beginning(cuts.last().map_or(0, |cut| cut.tokens)) }
    }

    /// The first `tokens` tokens, without scores.
    pub fn beginning(&self, tokens: usize) -> Self {
        let Example { input_ids, labels, length } = &self.example;
        let example =
            Example { input_ids: input_ids[..tokens].to_vec(), labels: labels[..tokens].to_vec(), length: *length };
        Self { index: self.index, draw: self.draw, example, cuts: vec![] }
    }
}

/// Every (length, track) draws its own positions, regardless of the rest of its batch.
fn draw(index: usize, length: u32) -> u64 {
    ((u64::from(length) << 16) ^ index as u64) & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Budget =
        Budget { tokens: usize::MAX, work: usize::MAX, piece: None, square: None, rows: usize::MAX, equal: false };

    fn packed(lengths: impl IntoIterator<Item = usize>, budget: Budget) -> Vec<Vec<usize>> {
        let items = lengths.into_iter().enumerate().map(|(index, tokens)| Item { index, span: 0..1, tokens });
        pack(items, budget).map(|batch| batch.iter().map(|i| i.tokens).collect()).collect()
    }

    #[test]
    fn every_bound_is_kept_and_nothing_is_lost() {
        let lengths = [9, 8, 8, 5, 3, 3, 2, 1, 1];
        assert_eq!(packed(lengths, WIDE), [lengths.to_vec()]);
        assert_eq!(packed(lengths, Budget { tokens: 16, ..WIDE }), [vec![9], vec![8, 8], vec![5, 3, 3], vec![2, 1, 1]]);
        assert_eq!(packed(lengths, Budget { work: 5, ..WIDE })[..3], [vec![9], vec![8], vec![8]]);
        assert_eq!(packed(lengths, Budget { rows: 4, ..WIDE }).len(), 3);
        assert_eq!(packed(lengths, Budget { square: Some(128), ..WIDE })[..2], [vec![9], vec![8, 8]]);
        // in pieces of 4, long rows cost what short ones do
        let pieces = Budget { tokens: 16, piece: Some(4), ..WIDE };
        assert_eq!(packed(lengths, pieces), [vec![9, 8, 8, 5], vec![3, 3, 2, 1, 1]]);
        let equal = Budget { equal: true, ..WIDE };
        assert_eq!(packed(lengths, equal), [vec![9], vec![8, 8], vec![5], vec![3, 3], vec![2], vec![1, 1]]);
        assert_eq!(packed([3, 3, 3], Budget { rows: 1, ..equal }), [[3], [3], [3]]);
        assert_eq!(packed([], WIDE), Vec::<Vec<usize>>::new());
        assert_eq!(packed([5, 5], Budget { tokens: 0, ..WIDE }), [[5], [5]]);
    }
}
