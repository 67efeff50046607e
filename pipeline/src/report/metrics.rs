//! The metrics of whole splits that the paper reports.

/// A metric of whole splits.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its column in result tables.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
}

/// The metrics that the paper reports.
pub const METRICS: [Metric; 3] = [
    Metric { name: "last_accuracy", title: "Last-token accuracy" },
    Metric { name: "accuracy", title: "Accuracy over all tokens" },
    Metric { name: "unseen_accuracy", title: "Accuracy over tokens beyond the trained lengths" },
];
