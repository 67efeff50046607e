//! The sequences and lengths that a probe tries.

use crate::sweep::setting::Setting;
use data::Track;

/// Sequences of at least this many tokens are tried; a sweep up to the default length of 1000 stays within it.
pub(super) const LONG: usize = 1024;
/// The numbers of tokens that are tried, besides those of the task's longest training sequences and, beyond these, each
/// double and the longest.
pub(super) const WIDTHS: [usize; 15] = [1, 2, 3, 5, 8, 13, 21, 34, 64, 65, 128, 129, 257, 512, LONG];
/// Every number of tokens up to here is compared with the pass over the longest sequence.
const EVERY: usize = 64;
/// From there to [`LONG`], every number is compared if the weights take at most this many bytes, every second up to
/// four times as many, every fourth up to sixteen times, and so on: one sequence after the other costs more the larger
/// they are.
const SMALL: usize = 1 << 16;
/// At least one of this many is compared.
const COARSEST: usize = 32;
/// Beyond [`LONG`], this many numbers of tokens are compared.
const BEYOND: usize = 24;

pub(super) fn sorted(mut values: Vec<usize>) -> Vec<usize> {
    values.sort_unstable();
    values.dedup();
    values
}

/// The numbers of tokens below `top` that are compared for a model of so many bytes, ascending: all up to [`EVERY`],
/// then one of so many up to [`LONG`], then [`BEYOND`] in equal shares, the last being the longest but one. Where some
/// are left out, the place taken within a share varies, so that all remainders modulo 64 occur.
pub(super) fn checked(top: usize, bytes: usize) -> impl Iterator<Item = usize> {
    let share = (0..COARSEST.ilog2()).find(|power| bytes <= SMALL << (2 * power)).map_or(COARSEST, |power| 1 << power);
    let per_64 = 64 / share;
    // an odd factor leads through all places of a share
    let place = move |number: usize| number * share + (5 * (number / per_64) + 3) % share;
    let near = (0..LONG / share).map(place).filter(|width| *width > EVERY);
    let far = top.saturating_sub(LONG);
    let step = far.div_ceil(BEYOND).max(1);
    let beyond = (0..BEYOND).map(move |number| LONG + (number + 1) * step - 1 - 7 * number % step);
    let all = (1..=EVERY).chain(near).chain((EVERY..LONG).step_by(64)).chain(beyond);
    let last = top.saturating_sub(1);
    let below = all.filter(move |width| *width < last).chain([last]);
    sorted(below.filter(|width| *width > 0).collect()).into_iter()
}

/// The sequences to try: two test sequences of the task, one of the tokens that occur in them, and one of any tokens,
/// of `longest` tokens each.
pub(super) fn sequences(setting: &Setting<'_>, longest: usize) -> Vec<Vec<u16>> {
    let any = tokens(setting);
    let test = |index: usize| -> Vec<u16> {
        let Track { input_ids, .. } = setting.task.family.track(0, index, u32::try_from(longest).unwrap_or(u32::MAX));
        let again = if input_ids.is_empty() { &any } else { &input_ids };
        again.iter().copied().cycle().take(longest).collect()
    };
    let (first, second) = (test(0), test(1));
    let mut usual: Vec<u16> = [&first[..], &second[..]].concat().into_iter().filter(|id| any.contains(id)).collect();
    usual.sort_unstable();
    usual.dedup();
    let random = |seed: u64, of: &[u16]| -> Vec<u16> {
        let mut random = Random(seed);
        (0..longest).map(|_| random.of(of)).collect()
    };
    let mut sequences = vec![first];
    for further in [second, random(1, &any), random(2, &usual)] {
        if !sequences.contains(&further) {
            sequences.push(further);
        }
    }
    sequences
}

/// The vocabulary without `<pad>`, which a padding mask would hide.
pub(super) fn tokens(setting: &Setting<'_>) -> Vec<u16> {
    let vocabulary = &setting.task.vocabulary;
    let pad = vocabulary.id(data::PAD);
    (0..vocabulary.len() as u16).filter(|id| Some(*id) != pad).collect()
}

/// Splitmix64: good enough here, and the same on every machine.
pub(super) struct Random(pub u64);

impl Random {
    pub fn of(&mut self, tokens: &[u16]) -> u16 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = (mixed ^ mixed >> 31) % tokens.len().max(1) as u64;
        tokens.get(at as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn small_models_are_compared_everywhere_and_large_ones_at_every_remainder() {
        let all: Vec<usize> = checked(1001, 1000).collect();
        assert_eq!(all, (1..=1000).collect::<Vec<_>>());
        for (bytes, widest) in
            [(2 * SMALL, 2), (5 * SMALL, 4), (1 << 20, 4), (1 << 21, 8), (1 << 24, 16), (1 << 30, COARSEST)]
        {
            let some: Vec<usize> = checked(1025, bytes).collect();
            assert!(some[..EVERY].iter().copied().eq(1..=EVERY) && some.last() == Some(&1024));
            let gaps = some.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(gaps.clone().max() == Some(widest), "{bytes}: {:?}", gaps.max());
            let remainders: HashSet<usize> =
                some.iter().filter(|width| **width > EVERY).map(|width| width % 64).collect();
            assert!(remainders.len() >= 60 || widest == COARSEST, "{bytes}");
        }
        let far: Vec<usize> = checked(100_001, 1000).filter(|width| *width > LONG).collect();
        assert!((BEYOND..=BEYOND + 1).contains(&far.len()) && far.last() == Some(&100_000), "{far:?}");
        assert_eq!(checked(1, 1000).count(), 0);
        assert_eq!(checked(0, 1000).count(), 0);
    }
}
