//! Ways to draw the strings of an automaton.

use super::machine::{Machine, NEVER};
use crate::families::sampled::Range;
use crate::stream_rng;
use rand::seq::index;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// How strings are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// Every letter independently and uniformly.
    #[default]
    Uniform,
    /// Every letter uniformly among those after which the string can still be accepted.
    Walk,
    /// Every accepted string of a length is equally likely; without `accept`, every allowed one.
    Accepted,
    /// Letters until a coin says stop, with an expected number in the middle of the range, and again unless the string
    /// is accepted and long enough. A range's longest strings are those that no coin stopped. So of one length, every
    /// accepted string is equally likely. Source: arXiv 2009.11264, Tomita 5 and 6.
    Geometric,
    /// As `geometric`, but a string that is not accepted gets the last letter appended. Source: the same, parity.
    GeometricAppended,
    /// Runs of the two letters, of lengths that are uniform in what is left; after an odd run of the second letter, an
    /// even one of the first. Source: the same, Tomita 3.
    RandomRuns,
    /// Four runs of the two letters in turn, of lengths that are uniform in what is left of the range's longest string:
    /// nearly all are long. Source: the same, Tomita 7.
    FourRuns,
    /// Blocks of the two letters in turn, as many as `blocks`, with uniform ends. Source: arXiv 2506.16055.
    Blocks,
    /// Pairs of an instruction (the first letter writes, the second reads, the third is to be ignored) and a bit, the
    /// last two letters; the first writes, the last reads, and its bit is left out. Source: arXiv 2306.00946.
    FlipFlop,
}

/// Logarithms of the numbers of accepted strings by length and state.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Paths {
    states: usize,
    /// `[length][state]`: ln of how many strings of the length lead from the state into an accepting one.
    ln: Vec<f64>,
}

impl Paths {
    /// Counts all lengths up to `longest`. The logarithms are exact to about `longest`·10⁻¹⁶.
    pub fn new(machine: &Machine, longest: u32) -> Self {
        let states = machine.states();
        let mut ln: Vec<f64> = Vec::with_capacity(states * (longest as usize + 1));
        ln.extend(machine.accepting.iter().map(|accepts| if *accepts { 0.0 } else { f64::NEG_INFINITY }));
        for length in 1..=longest as usize {
            let before = (length - 1) * states;
            for state in 0..states as u16 {
                let ways = machine.drawn.iter().map(|letter| machine.next(state, *letter)).filter(|to| *to != NEVER);
                let counts = ways.map(|to| ln[before + usize::from(to)]);
                let largest = counts.clone().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = counts.map(|count| (count - largest).exp()).sum();
                ln.push(if largest == f64::NEG_INFINITY { largest } else { largest + sum.ln() });
            }
        }
        Self { states, ln }
    }

    /// The longest length that is counted.
    fn longest(&self) -> usize {
        (self.ln.len() / self.states.max(1)).saturating_sub(1)
    }

    /// ln of how many strings of `length` are accepted from a state.
    fn get(&self, length: usize, state: u16) -> f64 {
        self.ln[length * self.states + usize::from(state)]
    }
}

/// An automaton's strings, as one of the samplers draws them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Strings {
    pub sampler: Sampler,
    pub machine: Machine,
    blocks: u32,
    paths: Paths,
    /// The letters of [`Sampler::Walk`] in each state, one state after the other.
    ways: Vec<u16>,
    /// Where the letters of each state begin.
    first_way: Vec<usize>,
}

impl Strings {
    /// Prepares to draw strings up to `longest`; longer ones take more work.
    ///
    /// # Errors
    /// The sampler does not go with the automaton.
    pub fn new(sampler: Sampler, machine: Machine, blocks: Option<u32>, longest: u32) -> Result<Self, String> {
        let mut strings = Self { sampler, blocks: blocks.unwrap_or(0), ..Self::default() };
        let live = machine.live();
        for state in 0..machine.states() as u16 {
            strings.first_way.push(strings.ways.len());
            let goes = |letter: &&u16| match machine.next(state, **letter) {
                NEVER => false,
                to => live[usize::from(to)],
            };
            strings.ways.extend(machine.drawn.iter().filter(goes));
        }
        strings.first_way.push(strings.ways.len());
        strings.machine = machine;
        if strings.counts() {
            // small automata have the counts for usual sweeps at hand as well
            let is_small = strings.machine.step.len() <= 1000;
            strings.paths = Paths::new(&strings.machine, if is_small { longest.max(1000) } else { longest });
        }
        strings.check(&live)?;
        Ok(strings)
    }

    /// Whether the sampler needs the numbers of accepted strings.
    fn counts(&self) -> bool {
        matches!(self.sampler, Sampler::Accepted | Sampler::Geometric | Sampler::GeometricAppended)
    }

    fn check(&self, live: &[bool]) -> Result<(), String> {
        let Self { machine, sampler, .. } = self;
        let states = || 0..machine.states() as u16;
        let name =
            serde_json::to_value(sampler).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default();
        let needs = |letters: usize, are: &str| match machine.letters == letters {
            true => Ok(()),
            false => {
                Err(format!("sampler = \"{name}\" is for {letters} letters, {are}, but there are {}", machine.letters))
            }
        };
        match sampler {
            Sampler::Uniform => {
                let all =
                    states().all(|state| machine.drawn.iter().all(|letter| machine.next(state, *letter) != NEVER));
                all.then_some(()).ok_or_else(|| {
                    "sampler = \"uniform\" draws letters that `step` does not allow everywhere\n  hint: sampler = \"walk\" or \"accepted\" draws allowed ones".to_owned()
                })
            }
            _ if !live[usize::from(machine.start)] => Err("accept: no string is accepted".into()),
            Sampler::Accepted | Sampler::Geometric => Ok(()),
            Sampler::Walk => match states().find(|state| live[usize::from(*state)] && self.ways(*state).is_empty()) {
                Some(state) => Err(format!(
                    "sampler = \"walk\": no letter leads on from state number {state}\n  hint: use sampler = \"accepted\""
                )),
                None => Ok(()),
            },
            Sampler::GeometricAppended => {
                let closes = |state: u16| match machine.next(state, machine.letters as u16 - 1) {
                    NEVER => false,
                    to => machine.accepting[usize::from(to)],
                };
                let open = states().find(|state| !machine.accepting[usize::from(*state)] && !closes(*state));
                open.map_or(Ok(()), |state| {
                    Err(format!(
                        "sampler = \"{name}\": after state number {state}, the last letter does not lead to acceptance"
                    ))
                })
            }
            Sampler::RandomRuns | Sampler::FourRuns => needs(2, "which runs consist of"),
            Sampler::Blocks if self.blocks == 0 => Err("sampler = \"blocks\" goes with `blocks`".into()),
            Sampler::Blocks => Ok(()),
            Sampler::FlipFlop => needs(5, "write, read, ignore and two bits"),
        }?;
        // what is drawn without regard to the table has to be allowed by it
        let mut rng = stream_rng(0, "sampler", 0);
        let lengths = (1..40).filter(|length| self.gap(*length).is_none()).take(20);
        let wrong = lengths.map(|length| self.draw(length, 0.5, &mut rng)).find(|string| machine.run(string).is_none());
        wrong.map_or(Ok(()), |_| Err(format!("sampler = \"{name}\" draws strings that `step` does not allow")))
    }

    fn ways(&self, state: u16) -> &[u16] {
        &self.ways[self.first_way[usize::from(state)]..self.first_way[usize::from(state) + 1]]
    }

    /// The numbers of strings up to `length`.
    fn paths(&self, length: u32) -> Cow<'_, Paths> {
        match self.paths.longest() >= length as usize {
            true => Cow::Borrowed(&self.paths),
            false => Cow::Owned(Paths::new(&self.machine, length)),
        }
    }

    /// Why there is no string of this length, if there is none.
    pub fn gap(&self, length: u32) -> Option<String> {
        let shortest = |n: u32| (length < n).then(|| format!("the shortest string has {n} letters"));
        match self.sampler {
            Sampler::Accepted | Sampler::Geometric | Sampler::GeometricAppended => {
                let none = self.paths(length).get(length as usize, self.machine.start) == f64::NEG_INFINITY;
                shortest(1).or_else(|| none.then(|| format!("no string of {length} letters is accepted")))
            }
            Sampler::Blocks => {
                (length < self.blocks).then(|| format!("{} blocks have at least {} letters", self.blocks, self.blocks))
            }
            Sampler::FlipFlop if length.is_multiple_of(2) => {
                Some("pairs without the last bit have an odd length".into())
            }
            Sampler::FlipFlop => shortest(3),
            _ => shortest(1),
        }
    }

    /// Whether at most one string of each length is drawn.
    pub fn are_single(&self) -> bool {
        match self.sampler {
            Sampler::Uniform => self.machine.drawn.len() == 1,
            Sampler::Walk | Sampler::Accepted => {
                (0..self.machine.states() as u16).all(|state| self.ways(state).len() <= 1)
            }
            _ => false,
        }
    }

    /// A string of this length, which has no gap. `ignore` is the share of instructions to ignore.
    pub fn draw(&self, length: u32, ignore: f64, rng: &mut impl Rng) -> Vec<u16> {
        let n = length as usize;
        match self.sampler {
            Sampler::Uniform => match self.machine.drawn[..] {
                [a, b] => bits(n, rng).map(|bit| if bit { b } else { a }).collect(),
                ref drawn => (0..n).map(|_| drawn[rng.random_range(0..drawn.len())]).collect(),
            },
            Sampler::Walk => self.walk(n, rng),
            Sampler::Accepted | Sampler::Geometric | Sampler::GeometricAppended => {
                self.accepted(n, self.machine.start, &self.paths(length), rng)
            }
            Sampler::RandomRuns => random_runs(n, rng),
            Sampler::FourRuns => loop {
                let string = four_runs(n, rng);
                if string.len() == n {
                    return string;
                }
            },
            Sampler::Blocks => blocks(n, self.blocks as usize, rng),
            Sampler::FlipFlop => flip_flop(n, ignore, rng),
        }
    }

    /// A string of a range, where its length is not drawn first.
    pub fn draw_in(&self, (first, last): Range, rng: &mut impl Rng) -> Option<Vec<u16>> {
        match self.sampler {
            Sampler::Geometric => Some(self.geometric((first, last), rng)),
            Sampler::GeometricAppended => Some(self.geometric_appended((first, last), rng)),
            Sampler::FourRuns => loop {
                let string = four_runs(last as usize, rng);
                if string.len() >= first as usize {
                    return Some(string);
                }
            },
            _ => None,
        }
    }

    fn walk(&self, n: usize, rng: &mut impl Rng) -> Vec<u16> {
        let mut state = self.machine.start;
        let mut string = Vec::with_capacity(n);
        for _ in 0..n {
            let letter = match self.ways(state) {
                [] => break, // refused by `check`
                [only] => *only,
                ways => ways[rng.random_range(0..ways.len())],
            };
            string.push(letter);
            state = self.machine.next(state, letter);
        }
        string
    }

    /// Every string of `n` letters that is accepted from `state` with the same probability.
    fn accepted(&self, n: usize, mut state: u16, paths: &Paths, rng: &mut impl Rng) -> Vec<u16> {
        let mut string = Vec::with_capacity(n);
        for left in (0..n).rev() {
            let ways = self.ways(state);
            let next = |letter: u16| self.machine.next(state, letter);
            let letter = match *ways {
                [] => break, // a gap
                [only] => only,
                _ => {
                    let all = paths.get(left + 1, state);
                    let mut rest: f64 = rng.random();
                    let chosen = ways.iter().find(|letter| {
                        rest -= (paths.get(left, next(**letter)) - all).exp();
                        rest < 0.0
                    });
                    let possible = || ways.iter().rev().find(|way| paths.get(left, next(**way)) > f64::NEG_INFINITY);
                    chosen.or_else(possible).copied().unwrap_or(0)
                }
            };
            string.push(letter);
            state = next(letter);
        }
        string
    }

    /// See [`Sampler::Geometric`]: a length, then a string, as probable as where letters are drawn until a coin says
    /// stop.
    fn geometric(&self, (first, last): Range, rng: &mut impl Rng) -> Vec<u16> {
        let paths = self.paths(last);
        let ln_on = ln_on((first, last));
        let ln_letters = (self.machine.drawn.len() as f64).ln();
        // at the end, no coin is tossed
        let ln_stop = |n: u32| if n == last { 0.0 } else { (-ln_on.exp_m1()).ln() };
        let ln_weight =
            |n: u32| paths.get(n as usize, self.machine.start) + f64::from(n) * (ln_on - ln_letters) + ln_stop(n);
        let largest = (first..=last).map(ln_weight).fold(f64::NEG_INFINITY, f64::max);
        let weight = |n: u32| (ln_weight(n) - largest).exp();
        let mut rest = rng.random::<f64>() * (first..=last).map(weight).sum::<f64>();
        let chosen = (first..=last).find(|n| {
            rest -= weight(*n);
            rest < 0.0
        });
        self.accepted(chosen.unwrap_or(last) as usize, self.machine.start, &paths, rng)
    }

    /// See [`Sampler::GeometricAppended`].
    fn geometric_appended(&self, (first, last): Range, rng: &mut impl Rng) -> Vec<u16> {
        let Self { machine, .. } = self;
        let ln_on = ln_on((first, last));
        for _ in 0..1000 {
            // a coin has no memory: the letters beyond the first ones are as many as if there were none before
            let more = (rng.random::<f64>().max(f64::MIN_POSITIVE).ln() / ln_on) as u64;
            let n = u64::from(first).saturating_add(more).min(u64::from(last)) as usize;
            let mut string = Vec::with_capacity(n + 1);
            string.extend((0..n).map(|_| machine.drawn[rng.random_range(0..machine.drawn.len())]));
            if machine.accepts(&string) {
                return string;
            }
            if n < last as usize {
                string.push(machine.letters as u16 - 1);
                return string;
            }
        }
        self.geometric((first, last), rng) // where next to no long string is accepted
    }
}

/// ln of the probability of another letter: as many as the middle of the range are expected.
fn ln_on((first, last): Range) -> f64 {
    let middle = f64::from(first + last) / 2.0;
    (middle / (1.0 + middle)).ln()
}

/// Fair bits.
fn bits(n: usize, rng: &mut impl Rng) -> impl Iterator<Item = bool> {
    let mut word = 0u64;
    (0..n).map(move |i| {
        word = if i.is_multiple_of(64) { rng.random() } else { word >> 1 };
        word & 1 == 1
    })
}

/// See [`Sampler::RandomRuns`].
fn random_runs(n: usize, rng: &mut impl Rng) -> Vec<u16> {
    let mut string: Vec<u16> = Vec::with_capacity(n);
    let mut ones = 0; // in the last run of ones
    while string.len() < n {
        let one: bool = rng.random();
        let left = n - string.len();
        let run = match !one && ones % 2 == 1 {
            true => 2 * rng.random_range(0..=left / 2),
            false => rng.random_range(0..=left),
        };
        if one {
            ones = if string.last() == Some(&0) && run > 0 { run } else { ones + run };
        }
        string.extend(std::iter::repeat_n(u16::from(one), run));
    }
    string
}

/// See [`Sampler::FourRuns`]; a string of at most `n` letters.
fn four_runs(n: usize, rng: &mut impl Rng) -> Vec<u16> {
    let mut left = n;
    let runs = [0, 1, 0, 1].map(|letter| {
        let run = rng.random_range(0..=left);
        left -= run;
        (letter, run)
    });
    runs.into_iter().flat_map(|(letter, run)| std::iter::repeat_n(letter, run)).collect()
}

/// See [`Sampler::Blocks`].
fn blocks(n: usize, blocks: usize, rng: &mut impl Rng) -> Vec<u16> {
    let mut ends: Vec<usize> = index::sample(rng, n - 1, blocks - 1).into_iter().map(|end| end + 1).collect();
    ends.push(n);
    ends.sort_unstable();
    let mut string = Vec::with_capacity(n);
    for (block, end) in ends.into_iter().enumerate() {
        string.resize(end, (block % 2) as u16);
    }
    string
}

/// See [`Sampler::FlipFlop`]; `n` is odd.
fn flip_flop(n: usize, ignore: f64, rng: &mut impl Rng) -> Vec<u16> {
    const WRITE: u16 = 0;
    const READ: u16 = 1;
    const IGNORE: u16 = 2;
    const BIT: u16 = 3; // the first of two
    let mut string = Vec::with_capacity(n + 1);
    let mut stored = BIT;
    for pair in 0..n.div_ceil(2) {
        let instruction = match pair {
            0 => WRITE,
            _ if 2 * pair + 1 == n => READ,
            _ if rng.random::<f64>() < ignore => IGNORE,
            _ if rng.random() => WRITE,
            _ => READ,
        };
        let bit = if instruction == READ { stored } else { BIT + u16::from(rng.random::<bool>()) };
        if instruction == WRITE {
            stored = bit;
        }
        string.extend([instruction, bit]);
    }
    string.truncate(n);
    string
}
