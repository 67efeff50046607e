//! The ways in which papers sum up a sweep: means over a range of lengths, accuracy above chance, and how far a model
//! reaches.

use crate::LengthResult;

/// A model that is right this often is said to have a length.
pub const SOLVED: f64 = 0.99;

/// Means over lengths, each length with the same weight, over those that have a score.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Means {
    /// Lengths with a score.
    pub lengths: u64,
    /// Of [`Score::accuracy`](crate::Score::accuracy), over all labelled positions; Delétang et al. (arXiv 2207.02098)
    /// report it over the lengths beyond those of training.
    pub accuracy: Option<f64>,
    /// Of the last labelled position.
    pub last_accuracy: Option<f64>,
    /// Exact match: of sequences that are right everywhere.
    pub sequence_accuracy: Option<f64>,
    /// Of [`scaled`] accuracy, over the lengths whose chance level is known.
    pub scaled_accuracy: Option<f64>,
}

impl Means {
    /// The means over the results whose length is `wanted`.
    pub fn over(results: &[LengthResult], wanted: impl Fn(u32) -> bool) -> Self {
        let scored = || results.iter().filter(|r| wanted(r.length)).filter_map(|r| Some((r, r.score()?)));
        Self {
            lengths: scored().count() as u64,
            accuracy: mean(scored().filter_map(|(_, s)| s.accuracy())),
            last_accuracy: mean(scored().filter_map(|(_, s)| s.last_accuracy())),
            sequence_accuracy: mean(scored().filter_map(|(_, s)| s.sequence_accuracy())),
            scaled_accuracy: mean(scored().filter_map(|(r, s)| Some(scaled(s.accuracy()?, r.chance?)))),
        }
    }
}

/// (accuracy − chance) / (1 − chance): 0 for guessing and 1 for a model that is always right, as Grazzi et al. (arXiv
/// 2411.12537) report it.
pub fn scaled(accuracy: f64, chance: f64) -> f64 {
    (accuracy - chance) / (1.0 - chance)
}

/// How far a model gets with at least a share of sequences right everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// The largest length with that share.
    pub largest: Option<u32>,
    /// The largest length up to which every length with a score has it.
    pub unbroken: Option<u32>,
}

impl Reach {
    /// The reach of a sweep, whose results are in the order of lengths.
    pub fn of(results: &[LengthResult], share: f64) -> Self {
        let scored = || results.iter().filter_map(|r| Some((r.length, r.score()?.sequence_accuracy()? >= share)));
        Self {
            largest: scored().filter(|(_, is_solved)| *is_solved).map(|(length, _)| length).next_back(),
            unbroken: scored().take_while(|(_, is_solved)| *is_solved).map(|(length, _)| length).last(),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0u64), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Plan, Running, Score};

    /// Lengths 1, 2, …, each with two sequences of one position, of which so many are right; `None` has no score.
    fn results(right: &[Option<u32>]) -> Vec<LengthResult> {
        let result = |(right, length): (&Option<u32>, u32)| LengthResult {
            length,
            in_distribution: true,
            plan: Plan::Exhaustive,
            chance: (length != 2).then_some(0.5),
            outcome: right.ok_or_else(|| "no string of this length".to_owned()).map(|right| {
                let mut score = Score::default();
                for sequence in 0..2 {
                    let mut running = Running::default();
                    running.push_scored(sequence < right, 0.0);
                    score.add(&running);
                }
                score
            }),
        };
        right.iter().zip(1..).map(result).collect()
    }

    #[test]
    fn means_weigh_lengths_equally_and_leave_out_those_without_a_score() {
        let results = results(&[Some(2), Some(0), None, Some(1), Some(2)]);
        let all = Means::over(&results, |_| true);
        assert_eq!((all.lengths, all.accuracy, all.sequence_accuracy), (4, Some(0.625), Some(0.625)));
        assert_eq!(all.scaled_accuracy, Some((1.0 + 0.0 + 1.0) / 3.0), "length 2 has no chance level");
        assert_eq!(Means::over(&results, |length| length > 4).accuracy, Some(1.0));
        assert_eq!(Means::over(&results, |length| length == 3), Means::default());
        assert_eq!(scaled(0.2, 0.2), 0.0);
    }

    #[test]
    fn a_reach_is_unbroken_up_to_the_first_length_that_fails() {
        let reach = |right: &[Option<u32>]| Reach::of(&results(right), SOLVED);
        let found = reach(&[Some(2), None, Some(2), Some(1), Some(2), Some(0)]);
        assert_eq!((found.unbroken, found.largest), (Some(3), Some(5)));
        assert_eq!(reach(&[Some(0), None]), Reach::default());
    }
}
