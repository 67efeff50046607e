use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// Draws weak compositions: how often each of `parts` items occurs in a sequence of `n`, between `min` and `max` times
/// each, uniformly among all ways.
///
/// The number of ways to compose r with j parts is tabulated, and parts are drawn one after the other by it. That is
/// the distribution of drawing any composition (stars and bars) again and again until all parts are within bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compositions {
    min: u32,
    max: u32,
    /// `ways[j][r]`: compositions of r into j parts.
    ways: Vec<Vec<u64>>,
}

impl Compositions {
    /// Of every n up to `largest`. The numbers of ways must fit 64 bits.
    pub fn new(parts: usize, min: u32, max: u32, largest: u32) -> Self {
        let mut ways = vec![vec![0u64; largest as usize + 1]; parts + 1];
        ways[0][0] = 1;
        for j in 1..=parts {
            for r in 0..=largest {
                let parts = min..=max.min(r);
                ways[j][r as usize] = parts.map(|part| ways[j - 1][(r - part) as usize]).sum();
            }
        }
        Self { min, max, ways }
    }

    /// How many compositions of `n` there are.
    pub fn count(&self, n: u32) -> u64 {
        self.ways[self.ways.len() - 1][n as usize]
    }

    /// A composition of `n`; there must be one.
    pub fn draw(&self, n: u32, rng: &mut impl Rng) -> Vec<u32> {
        let mut rest = n;
        let draw = |j: usize| {
            let mut ticket = rng.random_range(0..self.ways[j + 1][rest as usize].max(1));
            let mut part = self.min;
            while part < self.max.min(rest) {
                let ways = self.ways[j][(rest - part) as usize];
                if ticket < ways {
                    break;
                }
                ticket -= ways;
                part += 1;
            }
            rest -= part;
            part
        };
        (0..self.ways.len() - 1).rev().map(draw).collect()
    }
}

/// `counts[i]` copies of item i for every i, in uniformly random order.
pub(crate) fn arrange(counts: &[u32], rng: &mut impl Rng) -> Vec<u16> {
    let copies = |(item, n): (usize, &u32)| std::iter::repeat_n(item as u16, *n as usize);
    let mut items: Vec<u16> = counts.iter().enumerate().flat_map(copies).collect();
    items.shuffle(rng);
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream_rng;

    #[test]
    fn every_composition_is_as_frequent_as_the_others() {
        let compositions = Compositions::new(3, 0, 3, 9); // of 4: those of 15 without a part above 3, which are 12
        assert_eq!([compositions.count(4), compositions.count(9), compositions.count(0)], [12, 1, 1]);
        let mut rng = stream_rng(0, "test", 0);
        let mut seen = std::collections::HashMap::<Vec<u32>, u32>::new();
        (0..12_000).for_each(|_| *seen.entry(compositions.draw(4, &mut rng)).or_default() += 1);
        assert_eq!(seen.len(), 12);
        for (parts, times) in &seen {
            assert!(parts.iter().sum::<u32>() == 4 && parts.iter().all(|p| *p <= 3), "{parts:?}");
            assert!((870..1130).contains(times), "{parts:?}: {times}"); // 1000 expected, standard deviation 30
        }
        assert_eq!(compositions.draw(9, &mut rng), [3, 3, 3]);
    }
}
