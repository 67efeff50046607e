use super::words::{MAX_NUMBER, check_range};
use crate::{Split, stream_rng};
use rand::RngExt;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

/// A count and a number that is added after it or that it starts from.
pub(crate) type Pair = (u32, u32);

/// Picks the pair of a split's example, with the example's own random stream.
pub(crate) type Pick<'a> = Box<dyn Fn(usize, &mut ChaCha8Rng) -> Pair + Send + Sync + 'a>;

/// Which (count c, number k) pairs a family trains on, validates on, and tests on.
///
/// Training draws c uniformly from 1..=`train_max`, then k uniformly from 1..=`last_number` − c, and draws again where
/// the pair is one of the `val_cells` pairs held out for validation: a set drawn uniformly, once per seed. The test
/// pairs are all those with c > `train_max` and c + k ≤ `last_number`, c outer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pairs {
    pub train_max: u32,
    pub last_number: u32,
    pub val_cells: usize,
}

impl Pairs {
    pub fn check(&self) -> Result<(), String> {
        check_range("last_number", self.last_number, 2..=MAX_NUMBER)?;
        check_range("train_max", self.train_max, 1..=self.last_number - 1)?;
        let pairs = self.train_pairs().count();
        match self.val_cells < pairs {
            true => Ok(()),
            false => Err(format!("val_cells = {} leaves nothing of the {pairs} pairs to train on", self.val_cells)),
        }
    }

    fn train_pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        (1..=self.train_max).flat_map(|c| (1..=self.last_number - c).map(move |k| (c, k)))
    }

    /// The held-out pairs, in the order of the validation split.
    pub fn val(&self, seed: u64) -> Vec<Pair> {
        let pairs: Vec<Pair> = self.train_pairs().collect();
        let drawn = index::sample(&mut stream_rng(seed, "val cells", 0), pairs.len(), self.val_cells);
        drawn.into_iter().map(|i| pairs[i]).collect()
    }

    /// The pairs beyond training.
    pub fn ood(&self) -> Vec<Pair> {
        let counts = self.train_max + 1..self.last_number;
        counts.flat_map(|c| (1..=self.last_number - c).map(move |k| (c, k))).collect()
    }

    pub fn pick(self, split: Split, seed: u64) -> Pick<'static> {
        match split {
            Split::Train => {
                let held_out: HashSet<Pair> = self.val(seed).into_iter().collect();
                Box::new(move |_, rng| {
                    loop {
                        let c = rng.random_range(1..=self.train_max);
                        let k = rng.random_range(1..=self.last_number - c);
                        if !held_out.contains(&(c, k)) {
                            return (c, k);
                        }
                    }
                })
            }
            Split::Val => pick_from(self.val(seed)),
            Split::OodTest | Split::Auxiliary(_) => pick_from(self.ood()),
        }
    }

    pub fn rows(&self, split: Split, train: usize) -> usize {
        match split {
            Split::Train => train,
            Split::Val => self.val_cells,
            Split::OodTest | Split::Auxiliary(_) => self.ood().len(),
        }
    }
}

/// The pairs of an enumeration, over and over.
pub(crate) fn pick_from(pairs: Vec<Pair>) -> Pick<'static> {
    Box::new(move |index, _| pairs[index % pairs.len()])
}
