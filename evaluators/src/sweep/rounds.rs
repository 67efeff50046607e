//! Matches tracks with the lengths that they test.

use crate::sweep::plan::{Item, Job};
use crate::sweep::setting::Setting;
use crate::sweep::tally::Tally;
use crate::{EvalError, LengthResult, Plan, Result};
use data::{Example, Family, LengthLimit, Track};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The task's tests for the lengths of a sweep.
pub(crate) struct Tests<'s> {
    pub setting: &'s Setting<'s>,
    /// Ascending.
    pub lengths: &'s [u32],
    seed: u64,
    /// The number of different tracks; `None` if unlimited.
    distinct: Option<usize>,
}

/// Tracks that run together, and the lengths that want them.
pub(crate) struct Round {
    /// Slots of the sweep's list of lengths, ascending.
    pub open: Vec<usize>,
    /// The lengths in these slots.
    pub asked: Vec<u32>,
    /// Of every track.
    pub reach: Vec<Reach>,
}

/// The lengths that a track can answer.
pub(crate) struct Reach {
    index: usize,
    /// The lengths that it has a test of, as ranges of those requested, ascending.
    slots: Vec<Range<usize>>,
    header: usize,
    stride: usize,
}

impl Reach {
    fn contains(&self, slot: usize) -> bool {
        let block = self.slots.partition_point(|block| block.end <= slot);
        self.slots.get(block).is_some_and(|block| block.contains(&slot))
    }

    /// How many lengths there are.
    fn lengths(&self) -> usize {
        self.slots.iter().map(Range::len).sum()
    }
}

/// Numbers in ascending order as ranges.
fn blocks(slots: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for slot in slots {
        match blocks.last_mut().filter(|block| block.end == slot) {
            Some(block) => block.end += 1,
            None => blocks.push(slot..slot + 1),
        }
    }
    blocks
}

/// The number of lengths that a track reaches, and its index.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Furthest {
    lengths: usize,
    index: usize,
}

impl Furthest {
    /// The one that reaches further, the first of two equal ones.
    pub fn max(self, other: Self) -> Self {
        if other.lengths > self.lengths { other } else { self }
    }
}

impl<'s> Tests<'s> {
    /// Track number i is a function of (`seed`, i).
    pub fn new(setting: &'s Setting<'s>, lengths: &'s [u32], seed: u64) -> Self {
        Self { setting, lengths, seed, distinct: setting.task.family.distinct_tracks() }
    }

    fn family(&self) -> &'s dyn Family {
        self.setting.task.family.as_ref()
    }

    /// How many tests there are. Where positions are drawn, a track repeats with other positions.
    pub fn supply(&self) -> usize {
        let random = self.setting.positions.augmentation.is_random();
        self.distinct.filter(|_| !random).unwrap_or(usize::MAX)
    }

    fn number(&self, index: usize) -> usize {
        self.distinct.map_or(index, |n| index % n.max(1))
    }

    fn track(&self, index: usize) -> Track {
        self.family().track(self.seed, self.number(index), self.lengths.last().copied().unwrap_or(0))
    }

    fn test(&self, index: usize, length: u32) -> std::result::Result<Example, LengthLimit> {
        self.family().test(self.seed, self.number(index), length)
    }

    /// Walks over the tracks, which costs little next to the model, to see which of the lengths each has a test of.
    ///
    /// # Errors
    /// `stop` said true, which is asked between any two tests.
    pub fn round(&self, tracks: Range<usize>, open: Vec<usize>, stop: &mut dyn FnMut() -> bool) -> Result<Round> {
        let asked: Vec<u32> = open.iter().map(|&slot| self.lengths[slot]).collect();
        let closed = self.family().prefix_closed();
        let mut own = if closed { vec![] } else { self.single_tests(tracks.clone(), &asked, stop)? }.into_iter();
        let mut reach = Vec::new();
        for index in tracks {
            go_on(stop)?;
            let track = self.track(index);
            let slots = if closed { self.prefixes(&track, &asked) } else { own.next().unwrap_or_default() };
            reach.push(Reach { index, slots, header: track.header, stride: track.stride });
        }
        Ok(Round { open, asked, reach })
    }

    /// The lengths that a track tests with its prefixes.
    fn prefixes(&self, track: &Track, asked: &[u32]) -> Vec<Range<usize>> {
        let fits = |length: &u32| track.prefix(*length).is_ok_and(|example| self.setting.obstacle(example).is_none());
        match self.setting.fixed_tokens {
            Some(_) => blocks((0..asked.len()).filter(|slot| fits(&asked[*slot]))),
            None => blocks(0..asked.partition_point(fits)),
        }
    }

    /// The lengths that each track has a test of its own of, one length after the other: what is costly to make for one
    /// track may be there for the others.
    fn single_tests(
        &self,
        tracks: Range<usize>,
        asked: &[u32],
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Vec<Range<usize>>>> {
        let runs = |example: &Example| self.setting.obstacle(example.as_ref()).is_none();
        let (next, found) = (AtomicUsize::new(0), Mutex::new(vec![vec![false; asked.len()]; tracks.len()]));
        let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
        let stopped = data::threads::share_until(data::threads::available(), stop, |stop| {
            loop {
                let slot = next.fetch_add(1, Ordering::Relaxed);
                let Some(length) = asked.get(slot) else { return };
                let has =
                    |index: usize| (!stop()).then(|| self.test(index, *length).is_ok_and(|example| runs(&example)));
                let Some(has) = tracks.clone().map(has).collect::<Option<Vec<bool>>>() else { return };
                lock().iter_mut().zip(has).for_each(|(own, has)| own[slot] = has);
            }
        });
        if stopped {
            return Err(EvalError::Interrupted);
        }
        let of_track = |own: &Vec<bool>| blocks((0..asked.len()).filter(|slot| own[*slot]));
        Ok(lock().iter().map(of_track).collect())
    }

    /// The sequence of an item of a round.
    pub fn job(&self, Item { index, span, .. }: Item, round: &Round) -> Job {
        let own = if self.family().prefix_closed() { None } else { self.test(index, round.asked[span.start]).ok() };
        let mut job = match own {
            Some(example) => Job::of_test(index, example, span.start),
            None => Job::of_track(index, self.track(index), &round.asked, span),
        };
        job.cuts.iter_mut().for_each(|cut| cut.slot = round.open[cut.slot]);
        job
    }

    /// One row per length. Where even the longest track ends before the length, it knows why; otherwise the model is
    /// the limit.
    ///
    /// # Errors
    /// `stop` said true, which is asked for every length.
    pub fn results(
        &self,
        plan: Plan,
        tally: &Tally,
        furthest: Furthest,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<LengthResult>> {
        let result = |(slot, &length): (usize, &u32)| {
            go_on(stop)?;
            let obstacle = || {
                let test = self.test(furthest.index, length);
                test.map_or_else(|limit| Some(limit.reason), |example| self.setting.obstacle(example.as_ref()))
            };
            Ok(self.setting.result(length, plan, &tally.scores[slot], tally.failures[slot].clone(), obstacle))
        };
        self.lengths.iter().enumerate().map(result).collect()
    }
}

/// # Errors
/// `stop` says true.
pub(crate) fn go_on(stop: &mut dyn FnMut() -> bool) -> Result<()> {
    if stop() { Err(EvalError::Interrupted) } else { Ok(()) }
}

impl Round {
    /// The first of the tracks that reach the most lengths.
    pub fn furthest(&self) -> Furthest {
        let of =
            |reach: &Reach| Furthest { lengths: reach.slots.last().map_or(0, |last| last.end), index: reach.index };
        self.reach.iter().map(of).fold(Furthest::default(), Furthest::max)
    }

    /// How many sequences will be scored for each slot.
    pub fn expected(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut ends = vec![(0, 0); self.open.len() + 1]; // of blocks: how many begin at a slot, and how many ended before it
        for block in self.reach.iter().flat_map(|reach| &reach.slots) {
            ends[block.start].0 += 1;
            ends[block.end].1 += 1;
        }
        self.open.iter().zip(ends).scan(0, |tracks, (&slot, (begin, ended))| {
            *tracks = *tracks + begin - ended;
            Some((slot, *tracks))
        })
    }

    /// The tokens of all `lengths`, as the track has them that reaches the most.
    pub fn sizes(&self, lengths: &[u32]) -> Vec<usize> {
        let Some(longest) = self.reach.iter().max_by_key(|reach| reach.lengths()) else { return vec![] };
        lengths.iter().map(|length| longest.header + *length as usize * longest.stride).collect()
    }
}

/// The sequences of a round, longest first.
pub(crate) fn items<'i>(plan: Plan, lengths: &'i [u32], reach: &'i [Reach]) -> impl Iterator<Item = Item> + Send + 'i {
    let levels = if plan == Plan::SinglePass { 0..1 } else { 0..lengths.len() };
    levels.rev().flat_map(move |slot| {
        reach.iter().flat_map(move |reach| {
            let spans = match plan {
                Plan::SinglePass => reach.slots.clone(),
                _ if reach.contains(slot) => blocks([slot]),
                _ => vec![],
            };
            spans.into_iter().filter_map(move |span| {
                let last = span.clone().next_back()?;
                Some(Item { index: reach.index, tokens: reach.header + lengths[last] as usize * reach.stride, span })
            })
        })
    })
}

/// The tokens of all [`items`], without a walk over every length of every track.
pub(crate) fn total_tokens(plan: Plan, lengths: &[u32], reach: &[Reach]) -> usize {
    let sum = |sum: &mut usize, length: &u32| {
        *sum += *length as usize;
        Some(*sum)
    };
    let sums: Vec<usize> = std::iter::once(0).chain(lengths.iter().scan(0, sum)).collect();
    let tokens = |reach: &Reach| -> usize {
        let block = |block: &Range<usize>| match plan {
            Plan::SinglePass => reach.header + lengths[block.end - 1] as usize * reach.stride,
            _ => block.len() * reach.header + (sums[block.end] - sums[block.start]) * reach.stride,
        };
        reach.slots.iter().map(block).sum()
    };
    reach.iter().map(tokens).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_without_a_test_leave_the_later_ones_alone() {
        let reach = [
            Reach { index: 4, slots: blocks([0, 1, 3]), header: 1, stride: 2 },
            Reach { index: 5, slots: blocks([]), header: 1, stride: 2 },
        ];
        assert_eq!(reach[0].slots, [0..2, 3..4]);
        assert_eq!((reach[0].lengths(), reach[0].contains(2), reach[0].contains(3)), (3, false, true));
        let spans = |plan| items(plan, &[5, 6, 7, 9], &reach).map(|item| (item.span, item.tokens)).collect::<Vec<_>>();
        assert_eq!(spans(Plan::Exhaustive), [(3..4, 19), (1..2, 13), (0..1, 11)]);
        assert_eq!(spans(Plan::SinglePass), [(0..2, 13), (3..4, 19)]);
        assert_eq!(total_tokens(Plan::Exhaustive, &[5, 6, 7, 9], &reach), 19 + 13 + 11);
        assert_eq!(total_tokens(Plan::SinglePass, &[5, 6, 7, 9], &reach), 13 + 19);
        let round = Round { open: vec![0, 1, 2, 3], asked: vec![5, 6, 7, 9], reach: reach.into() };
        assert_eq!((round.furthest().index, round.furthest().lengths), (4, 4));
        assert_eq!(round.expected().collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 0), (3, 1)]);
        assert_eq!(round.sizes(&[5, 9]), [11, 19]);
    }
}
