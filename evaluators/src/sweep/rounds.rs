//! Matches tracks with the lengths that they test.

use crate::sweep::plan::{Item, Job};
use crate::sweep::setting::Setting;
use crate::sweep::tally::Tally;
use crate::{LengthResult, Plan};
use data::{Example, Family, LengthLimit, Track};
use std::ops::Range;

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
    /// The lengths that it has a test of, as ranges of those requested, ascending: one, unless lengths in between have
    /// no test.
    slots: Vec<Range<usize>>,
    header: usize,
    stride: usize,
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

impl Reach {
    fn contains(&self, slot: usize) -> bool {
        let at = self.slots.partition_point(|slots| slots.end <= slot);
        self.slots.get(at).is_some_and(|slots| slots.contains(&slot))
    }

    /// How many lengths it has a test of.
    fn len(&self) -> usize {
        self.slots.iter().map(ExactSizeIterator::len).sum()
    }
}

/// The slots that fit, as ranges of consecutive ones.
fn runs(slots: usize, fits: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = vec![];
    for slot in (0..slots).filter(|slot| fits(*slot)) {
        match runs.last_mut() {
            Some(run) if run.end == slot => run.end += 1,
            _ => runs.push(slot..slot + 1),
        }
    }
    runs
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

    fn test(&self, index: usize, length: u32) -> Result<Example, LengthLimit> {
        self.family().test(self.seed, self.number(index), length)
    }

    /// Walks over the tracks, which costs little next to the model, to see which of the lengths each has a test of.
    pub fn round(&self, tracks: Range<usize>, open: Vec<usize>) -> Round {
        let asked: Vec<u32> = open.iter().map(|&slot| self.lengths[slot]).collect();
        let reach = tracks.map(|index| self.reach(index, &asked)).collect();
        Round { open, asked, reach }
    }

    fn reach(&self, index: usize, asked: &[u32]) -> Reach {
        let track = self.track(index);
        let slots = if self.family().prefix_closed() {
            let fits =
                |&length: &u32| track.prefix(length).is_ok_and(|example| self.setting.obstacle(example).is_none());
            match self.setting.fixed_tokens {
                Some(_) => runs(asked.len(), |slot| fits(&asked[slot])),
                None => runs(asked.partition_point(fits), |_| true),
            }
        } else {
            let runs_at = |example: &Example| self.setting.obstacle(example.as_ref()).is_none();
            runs(asked.len(), |slot| self.test(index, asked[slot]).is_ok_and(|example| runs_at(&example)))
        };
        Reach { index, slots, header: track.header, stride: track.stride }
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
    pub fn results(&self, plan: Plan, tally: &Tally, furthest: Furthest) -> Vec<LengthResult> {
        let result = |(slot, &length): (usize, &u32)| {
            let obstacle = || {
                let test = self.test(furthest.index, length);
                test.map_or_else(|limit| Some(limit.reason), |example| self.setting.obstacle(example.as_ref()))
            };
            self.setting.result(length, plan, &tally.scores[slot], tally.failures[slot].clone(), obstacle)
        };
        self.lengths.iter().enumerate().map(result).collect()
    }
}

impl Round {
    /// The first of the tracks that reach the most lengths.
    pub fn furthest(&self) -> Furthest {
        let of =
            |reach: &Reach| Furthest { lengths: reach.slots.last().map_or(0, |slots| slots.end), index: reach.index };
        self.reach.iter().map(of).fold(Furthest::default(), Furthest::max)
    }

    /// How many sequences will be scored for each slot.
    pub fn expected(&self) -> impl Iterator<Item = (usize, usize)> {
        let tracks = |asked: usize| self.reach.iter().filter(|reach| reach.contains(asked)).count();
        self.open.iter().enumerate().map(move |(asked, &slot)| (slot, tracks(asked)))
    }

    /// The tokens of all `lengths`, as the track has them that reaches the most.
    pub fn sizes(&self, lengths: &[u32]) -> Vec<usize> {
        let Some(longest) = self.reach.iter().max_by_key(|reach| reach.len()) else { return vec![] };
        lengths.iter().map(|length| longest.header + *length as usize * longest.stride).collect()
    }
}

/// The sequences of a round, longest first.
pub(crate) fn items<'i>(
    plan: Plan,
    lengths: &'i [u32],
    reach: &'i [Reach],
) -> impl Iterator<Item = Item> + Clone + Send + 'i {
    let levels = if plan == Plan::SinglePass { 0..1 } else { 0..lengths.len() };
    levels.rev().flat_map(move |slot| {
        reach.iter().filter_map(move |reach| {
            let span = match plan {
                // tests that are prefixes of a longer one have no gaps between them
                Plan::SinglePass => reach.slots.last()?.clone(),
                _ if reach.contains(slot) => slot..slot + 1,
                _ => 0..0,
            };
            let last = span.clone().next_back()?;
            Some(Item { index: reach.index, span, tokens: reach.header + lengths[last] as usize * reach.stride })
        })
    })
}
