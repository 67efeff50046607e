//! Which runs of a cell are still to be made, and which of them count.

use super::verdict::Rule;
use serde::Deserialize;

/// `[selection]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// How runs become one value.
    pub rule: Rule,
    /// Runs that count, for every learning rate.
    pub runs: usize,
    /// Runs that are made at most, where some do not count.
    pub tries: Option<usize>,
    /// The seed of the first run; others follow by ones.
    #[serde(default)]
    pub first_seed: u64,
    /// Which runs count; all of them if not set.
    pub fit: Option<Fit>,
    /// The slice by whose mean the best learning rate is chosen, where there are several.
    pub choose: Option<String>,
}

/// Which runs count.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// A slice, or a split that is evaluated while training: its last evaluation.
    pub on: String,
    /// Runs count from here on.
    pub at_least: f64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It counts.
    Fits,
    /// It does not.
    DoesNotFit,
    /// It failed: its loss was no longer finite, for example.
    Failed,
}

impl Selection {
    /// Runs that are made at most.
    pub fn most(&self) -> usize {
        match (&self.fit, self.tries) {
            (Some(_), Some(tries)) => tries.max(self.runs),
            _ => self.runs,
        }
    }

    /// How many more runs to make after these, which are those of the first seeds in their order: as many as are missing,
    /// since each of them would be made even if they were made one by one.
    pub fn missing(&self, ended: &[Ended]) -> usize {
        let kept = ended.iter().filter(|e| **e == Ended::Fits).count();
        self.runs.saturating_sub(kept).min(self.most().saturating_sub(ended.len()))
    }

    /// The places of those that count: the first `runs` that fit, in the order of seeds.
    pub fn kept(&self, ended: &[Ended]) -> Vec<usize> {
        let fitting = ended.iter().enumerate().filter(|(_, e)| **e == Ended::Fits).map(|(index, _)| index);
        fitting.take(self.runs).collect()
    }
}

/// The learning rate whose runs are best on average, by its place; the first of equals. Those without runs do not count.
pub fn best(values: &[Vec<f64>]) -> Option<usize> {
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let with_runs = values.iter().enumerate().filter(|(_, values)| !values.is_empty());
    with_runs.map(|(index, values)| (index, mean(values))).rev().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Ended::{DoesNotFit, Failed, Fits};

    fn selection(runs: usize, tries: Option<usize>, fit: bool) -> Selection {
        let fit = fit.then(|| Fit { on: "val".into(), at_least: 1.0 });
        Selection { rule: Rule::Mean, runs, tries, first_seed: 0, fit, choose: None }
    }

    #[test]
    fn seeds_follow_until_enough_runs_fit_or_enough_were_tried() {
        let five_of_eight = selection(5, Some(8), true);
        assert_eq!(five_of_eight.missing(&[]), 5);
        assert_eq!(five_of_eight.missing(&[Fits, DoesNotFit, Fits, Fits, DoesNotFit]), 2);
        assert_eq!(five_of_eight.missing(&[DoesNotFit; 7]), 1);
        assert_eq!(five_of_eight.missing(&[DoesNotFit; 8]), 0);
        assert_eq!(five_of_eight.missing(&[Fits; 5]), 0);
        assert_eq!(five_of_eight.kept(&[Fits, DoesNotFit, Fits, Failed, Fits, Fits, Fits, Fits]), [0, 2, 4, 5, 6]);
    }

    #[test]
    fn without_a_condition_every_run_counts_and_a_failed_one_is_not_made_up_for() {
        let three = selection(3, Some(8), false);
        assert_eq!((three.most(), three.missing(&[]), three.missing(&[Fits, Failed])), (3, 3, 1));
        assert_eq!(three.missing(&[Fits, Failed, Fits]), 0);
        assert_eq!(three.kept(&[Fits, Failed, Fits]), [0, 2]);
    }

    #[test]
    fn the_best_learning_rate_is_the_one_whose_mean_is_highest() {
        assert_eq!(best(&[vec![0.1, 0.3], vec![], vec![0.25, 0.25], vec![0.2]]), Some(2));
        assert_eq!(best(&[vec![0.5], vec![0.5]]), Some(0), "the first of equals");
        assert_eq!(best(&[vec![], vec![]]), None);
    }
}
