//! Means over seeds and their uncertainty.

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The ends of the interval; `None` where a single value says nothing about it.
    pub interval: Option<(f64, f64)>,
    /// Values that it is the mean of.
    pub n: usize,
}

impl Estimate {
    /// Mean and Student's t-interval of accuracies: m ± t₀.₉₇₅(n−1) · s / √n, cut to [0, 1]. `None` without values.
    pub fn of_accuracies(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let interval = (n > 1).then(|| {
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            let half = t_quantile(n - 1) * (variance / n as f64).sqrt();
            ((mean - half).max(0.0), (mean + half).min(1.0))
        });
        Some(Self { mean, interval, n })
    }

    /// `97.3`, or with an interval `97.3 [95.0, 99.1]`; in percent.
    pub fn percent(&self) -> String {
        let number = |v: f64| format!("{:.1}", 100.0 * v);
        match self.interval {
            None => number(self.mean),
            Some((low, high)) => format!("{} [{}, {}]", number(self.mean), number(low), number(high)),
        }
    }
}

/// The 97.5 % quantile of Student's t distribution: tabulated up to 9 degrees of freedom, from there on the expansion
/// in Abramowitz & Stegun, "Handbook of Mathematical Functions", 26.7.5, to three terms (error below 0.001).
pub fn t_quantile(degrees: usize) -> f64 {
    const TABLE: [f64; 9] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622];
    if let Some(value) = degrees.checked_sub(1).and_then(|i| TABLE.get(i)) {
        return *value;
    }
    let (z, v): (f64, f64) = (1.959_964, degrees.max(1) as f64);
    let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
    let first = (z3 + z) / 4.0;
    let second = (5.0 * z5 + 16.0 * z3 + 3.0 * z) / 96.0;
    let third = (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / 384.0;
    z + first / v + second / v.powi(2) + third / v.powi(3)
}

/// `count` values averaged in at most `most` groups of neighbours that are as equal as can be: the first and one past the
/// last index of each.
pub fn bins(count: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let groups = count.min(most.max(1));
    (0..groups).map(move |g| (g * count / groups, (g + 1) * count / groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (degrees, value) in [(1, 12.706), (9, 2.262), (10, 2.228), (20, 2.086), (30, 2.042), (120, 1.980)] {
            assert!((t_quantile(degrees) - value).abs() < 1e-3, "{degrees}");
        }
    }

    #[test]
    fn an_interval_needs_two_values_and_stays_within_accuracies() {
        let one = Estimate::of_accuracies(&[0.5]);
        assert_eq!(one.map(|e| (e.mean, e.interval, e.n)), Some((0.5, None, 1)));
        let three = Estimate::of_accuracies(&[0.2, 0.4, 0.6]).map(|e| e.percent());
        assert_eq!(three.as_deref(), Some("40.0 [0.0, 89.7]"));
        assert_eq!(Estimate::of_accuracies(&[]), None);
    }

    #[test]
    fn bins_cover_everything_once() {
        let all: Vec<_> = bins(10, 4).collect();
        assert_eq!(all, [(0, 2), (2, 5), (5, 7), (7, 10)]);
        assert_eq!(bins(3, 100).count(), 3);
        assert_eq!(bins(0, 4).count(), 0);
    }
}
