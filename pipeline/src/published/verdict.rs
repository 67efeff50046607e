//! Intervals, verdicts, and whether models come out in the published order.

use super::values::Claim;
use crate::report::statistics::t_quantile;
use evaluators::wilson;
use rand::RngExt;

/// A closed interval of shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Range {
    /// Cut to [0, 1].
    pub fn within_shares(self) -> Self {
        Self { low: self.low.max(0.0), high: self.high.min(1.0) }
    }

    /// The smallest interval with both in it.
    pub fn and(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    fn meets(self, other: Self) -> bool {
        // Ends that are computed in different ways may differ in the last digit.
        self.low <= other.high + 1e-12 && other.low <= self.high + 1e-12
    }
}

/// Student's 95 % interval of a mean over `runs` runs with standard deviation `sd`; the mean alone for one run.
pub fn t_interval(mean: f64, sd: f64, runs: usize) -> Range {
    let half = if runs > 1 { t_quantile(runs - 1) * sd / (runs as f64).sqrt() } else { 0.0 };
    Range { low: mean - half, high: mean + half }.within_shares()
}

/// How the runs of a cell become its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// The mean over runs.
    Mean,
    /// The best run.
    Max,
}

impl Rule {
    /// As it is written in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Max => "max",
        }
    }
}

/// The value of some runs, and its 95 % interval: of a mean, Student's over the runs, and nowhere narrower than Wilson's
/// for the test sequences of one run; of a maximum, Wilson's. `None` without runs.
pub fn summarise(values: &[f64], sequences: u64, rule: Rule) -> Option<(f64, Range)> {
    let binomial = |value: f64| {
        let (low, high) = wilson((value * sequences as f64).round() as u64, sequences, 1.959_964);
        Range { low, high }
    };
    let n = values.len() as f64;
    match rule {
        Rule::Max => values.iter().copied().max_by(f64::total_cmp).map(|best| (best, binomial(best))),
        Rule::Mean if values.is_empty() => None,
        Rule::Mean => {
            let mean = values.iter().sum::<f64>() / n;
            let sd = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
            Some((mean, binomial(mean).and(t_interval(mean, sd, values.len()))))
        }
    }
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Our interval and the published value's have common ground; or the bound holds.
    Inside,
    /// They have none, and ours is above.
    Above,
    /// They have none, and ours is below.
    Below,
    /// There are no runs.
    NotRun,
    /// There were runs, and none that counts by the rule of selection.
    NoneFits,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Above => "outside (above)",
            Self::Below => "outside (below)",
            Self::NotRun => "not run",
            Self::NoneFits => "no run fits",
        }
    }

    /// The verdict on a value and its interval.
    pub fn of(claim: &Claim, value: f64, interval: Range) -> Self {
        match claim {
            Claim::Number { range, .. } if interval.meets(*range) => Self::Inside,
            Claim::Number { range, .. } if interval.low > range.high => Self::Above,
            Claim::Number { .. } => Self::Below,
            Claim::AtLeast(bound) if value >= *bound => Self::Inside,
            Claim::AtLeast(_) => Self::Below,
            Claim::Below(bound) if value < *bound => Self::Inside,
            Claim::Below(_) => Self::Above,
        }
    }
}

/// Spearman's rank correlation, ties with their mean rank; `None` for fewer than three pairs, or where one side is constant.
pub fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 3 {
        return None;
    }
    let ranks = |values: Vec<f64>| -> Vec<f64> {
        let rank = |v: &f64| {
            let below = values.iter().filter(|other| *other < v).count() as f64;
            let equal = values.iter().filter(|other| *other == v).count() as f64;
            below + (equal - 1.0) / 2.0
        };
        values.iter().map(rank).collect()
    };
    let (a, b) = (ranks(pairs.iter().map(|p| p.0).collect()), ranks(pairs.iter().map(|p| p.1).collect()));
    let middle = (pairs.len() - 1) as f64 / 2.0;
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(&b).map(|(a, b)| f(a - middle, b - middle)).sum::<f64>();
    let (aa, bb, ab) = (sum(&|a, _| a * a), sum(&|_, b| b * b), sum(&|a, b| a * b));
    (aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt())
}

/// One model in [`order`]: the published mean with its standard deviation and runs, and our runs.
#[derive(Debug, Clone)]
pub struct Ranked {
    /// Published mean.
    pub theirs: f64,
    /// Standard deviation over their runs, and how many there are.
    pub spread: Option<(f64, u32)>,
    /// The values of our runs.
    pub ours: Vec<f64>,
}

/// The rank correlation of our means with the published ones over the models of a task, and the 95 % interval of its
/// bootstrap: our runs are drawn again with replacement, the published means from a normal distribution with their
/// standard error. Where neither side has more than one run of a model, nothing varies, and the interval says so by having
/// no width. `None` for fewer than three models, or where one side is constant.
pub fn order(models: &[Ranked]) -> Option<(f64, Range)> {
    const DRAWS: usize = 2000;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let models: Vec<&Ranked> = models.iter().filter(|model| !model.ours.is_empty()).collect();
    let found = rank_correlation(&models.iter().map(|m| (m.theirs, mean(&m.ours))).collect::<Vec<_>>())?;
    let mut rng = data::stream_rng(0, "bootstrap", 0);
    let mut draws: Vec<f64> = (0..DRAWS)
        .filter_map(|_| {
            let drawn: Vec<(f64, f64)> = models
                .iter()
                .map(|model| {
                    let n = model.ours.len();
                    let ours: Vec<f64> = (0..n).map(|_| model.ours[rng.random_range(0..n)]).collect();
                    let error = model.spread.map_or(0.0, |(sd, runs)| sd / f64::from(runs.max(1)).sqrt());
                    // Box and Muller; 1 − u is never 0.
                    let (u, v): (f64, f64) = (rng.random(), rng.random());
                    let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                    (model.theirs + error * normal, mean(&ours))
                })
                .collect();
            rank_correlation(&drawn)
        })
        .collect();
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| draws.get((share * (draws.len().saturating_sub(1)) as f64).round() as usize).copied();
    Some((found, Range { low: at(0.025)?.min(found), high: at(0.975)?.max(found) }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_interval_is_never_narrower_than_that_of_the_test_sequences() {
        // Three runs that are all right on 100 sequences: Wilson's (96.3 %, 100 %), not a point.
        let (mean, all_right) = summarise(&[1.0, 1.0, 1.0], 100, Rule::Mean).unwrap();
        assert!(mean == 1.0 && (all_right.low - 0.963).abs() < 1e-3 && all_right.high == 1.0, "{all_right:?}");
        // Runs that differ much: Student's, 0.5 ± 4.3027 · 0.1 / √3.
        let (mean, wide) = summarise(&[0.4, 0.5, 0.6], 100_000, Rule::Mean).unwrap();
        assert!((mean - 0.5).abs() < 1e-12 && (wide.low - (0.5 - 0.248_416)).abs() < 1e-5, "{wide:?}");
        let (best, interval) = summarise(&[0.4, 0.9, 0.6], 100, Rule::Max).unwrap();
        assert!(best == 0.9 && (interval.low - 0.8256).abs() < 1e-3 && (interval.high - 0.9448).abs() < 1e-3);
        assert_eq!(summarise(&[], 100, Rule::Mean), None);
        assert_eq!(summarise(&[], 100, Rule::Max), None);
    }

    #[test]
    fn verdicts_follow_from_intervals_and_bounds() {
        let range = |low, high| Range { low, high };
        let number = Claim::Number { value: 0.8, range: range(0.79, 0.81), spread: None };
        for (low, high, expected) in [
            (0.7, 0.9, Verdict::Inside),
            (0.81, 0.9, Verdict::Inside),
            (0.82, 0.9, Verdict::Above),
            (0.1, 0.78, Verdict::Below),
        ] {
            assert_eq!(Verdict::of(&number, 0.5 * (low + high), range(low, high)), expected, "{low}..{high}");
        }
        let any = range(0.0, 1.0);
        assert_eq!(Verdict::of(&Claim::AtLeast(0.95), 0.95, any), Verdict::Inside);
        assert_eq!(Verdict::of(&Claim::AtLeast(0.95), 0.94, any), Verdict::Below);
        assert_eq!(Verdict::of(&Claim::Below(0.95), 0.94, any), Verdict::Inside);
        assert_eq!(Verdict::of(&Claim::Below(0.95), 0.95, any), Verdict::Above);
    }

    #[test]
    fn rank_correlations_are_those_by_hand() {
        let same = [(1.0, 10.0), (2.0, 20.0), (3.0, 30.0)];
        assert_eq!(rank_correlation(&same), Some(1.0));
        assert_eq!(rank_correlation(&[(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]), Some(-1.0));
        // Ranks 0, 1, 2, 3 and 1, 0, 3, 2: 1 − 6 · 4 / (4 · 15) = 0.6.
        let swapped = rank_correlation(&[(0.1, 0.2), (0.2, 0.1), (0.3, 0.9), (0.4, 0.8)]);
        assert!((swapped.unwrap() - 0.6).abs() < 1e-12);
        // A tie has the mean rank 0.5: covariance 1.5, variances 2 and 1.5.
        let tied = rank_correlation(&[(1.0, 0.5), (2.0, 0.5), (3.0, 0.7)]);
        assert!((tied.unwrap() - 1.5 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(rank_correlation(&same[..2]), None);
        assert_eq!(rank_correlation(&[(1.0, 0.5), (2.0, 0.5), (3.0, 0.5)]), None);
    }

    #[test]
    fn an_order_is_as_certain_as_its_runs() {
        let model = |theirs: f64, ours: &[f64]| Ranked { theirs, spread: Some((0.01, 4)), ours: ours.to_vec() };
        let clear = [model(0.1, &[0.2, 0.21]), model(0.5, &[0.6, 0.61]), model(0.9, &[0.95, 0.96])];
        assert_eq!(order(&clear), Some((1.0, Range { low: 1.0, high: 1.0 })));
        let vague = [model(0.1, &[0.1, 0.9]), model(0.5, &[0.2, 0.8]), model(0.9, &[0.3, 0.9])];
        let (found, interval) = order(&vague).unwrap();
        assert!(interval.low < 0.0 && interval.low <= found && found <= interval.high, "{found} {interval:?}");
        assert_eq!(order(&vague), order(&vague), "the same draws every time");
        assert_eq!(order(&clear[..2]), None);
    }
}
