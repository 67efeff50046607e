//! `train.stop_at`: when training ends before its last step.

use super::suggestion;
use crate::train::metrics::MetricsRow;
use anyhow::{Result, bail};
use data::Split;
use serde::{Deserialize, Serialize};

/// `train.stop_at`: training ends, as finished, at the first evaluation that reaches `value`. The evaluation before the
/// first step does not count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopAt {
    /// The split that is looked at.
    pub split: String,
    /// One of [`StopAt::METRICS`].
    pub metric: String,
    /// What the metric has to reach, in (0, 1].
    pub value: f64,
    /// How many evaluations in a row have to reach it.
    pub evaluations: u64,
}

impl Default for StopAt {
    fn default() -> Self {
        Self { split: "val".into(), metric: "sequence_accuracy".into(), value: 1.0, evaluations: 1 }
    }
}

impl StopAt {
    /// What can be looked at: columns of the training curve.
    pub const METRICS: [&str; 4] = ["accuracy", "counting_accuracy", "last_accuracy", "sequence_accuracy"];

    /// Whether the evaluations of a curve up to step `step` reach it: the last `evaluations` of them, all after step 0. A
    /// function of the curve alone, so that a resumed run stops where an uninterrupted one does.
    pub(crate) fn is_reached(&self, curve: &[MetricsRow], step: u64) -> bool {
        let evaluations = curve.iter().rev().filter(|row| row.split == self.split && (1..=step).contains(&row.step));
        let mut found = 0;
        for row in evaluations.take(usize::try_from(self.evaluations).unwrap_or(usize::MAX)) {
            if self.metric_of(row).is_none_or(|value| value < self.value) {
                return false;
            }
            found += 1;
        }
        found == self.evaluations
    }

    fn metric_of(&self, row: &MetricsRow) -> Option<f64> {
        match self.metric.as_str() {
            "accuracy" => row.accuracy,
            "counting_accuracy" => row.counting_accuracy,
            "last_accuracy" => row.last_accuracy,
            _ => row.sequence_accuracy,
        }
    }

    pub(super) fn validate(&self, splits: Vec<Split>) -> Result<()> {
        let evaluated: Vec<&str> =
            splits.iter().filter(|split| **split != Split::Train).map(|split| split.name()).collect();
        if !evaluated.contains(&self.split.as_str()) {
            bail!(
                "train.stop_at.split `{}` is not evaluated while training\n  hint: {}",
                self.split,
                suggestion(&self.split, &evaluated)
            );
        }
        if !Self::METRICS.contains(&self.metric.as_str()) {
            bail!(
                "train.stop_at.metric `{}` is no accuracy\n  hint: {}",
                self.metric,
                suggestion(&self.metric, &Self::METRICS)
            );
        }
        if !(self.value > 0.0 && self.value <= 1.0) {
            bail!("train.stop_at.value must be above 0 and at most 1, not {}", self.value);
        }
        if self.evaluations == 0 {
            bail!("train.stop_at.evaluations must be at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, split: &str, sequence_accuracy: f64) -> MetricsRow {
        MetricsRow { step, split: split.into(), sequence_accuracy: Some(sequence_accuracy), ..Default::default() }
    }

    #[test]
    fn it_is_reached_by_as_many_evaluations_in_a_row_as_it_asks_for() {
        let curve = [
            row(0, "val", 1.0),
            row(10, "val", 1.0),
            row(10, "ood_test", 0.0),
            row(20, "val", 0.5),
            row(30, "val", 0.9),
            row(30, "ood_test", 0.0),
            row(35, "train", 0.0),
            row(40, "val", 0.9),
        ];
        let reached = |value, evaluations| {
            let stop_at = StopAt { value, evaluations, ..Default::default() };
            (0..=40).step_by(10).filter(|step| stop_at.is_reached(&curve, *step)).collect::<Vec<u64>>()
        };
        assert_eq!(reached(1.0, 1), [10]);
        assert_eq!(reached(0.9, 1), [10, 30, 40]);
        assert_eq!(reached(0.9, 2), [40]);
        assert_eq!(reached(0.9, 3), [0u64; 0]);
        let other = StopAt { metric: "accuracy".into(), ..Default::default() };
        assert!(!other.is_reached(&curve, 10), "a metric that is missing reaches nothing");
    }
}
