//! A sweep on one screen.

use crate::cli::table::{Table, column};
use evaluators::{DatasetResult, LengthResult, Means};

/// One row per range of lengths: how often the last token was right, the worst length, what could not be scored.
pub fn table(results: &[LengthResult], train_max: Option<u32>) -> Table {
    let mut table = Table::new([
        column("length"),
        column("last token right").right(),
        column("all tokens right").right(),
        column("worst length").right(),
        column("sequences").right(),
        column("status").wrap(16),
    ]);
    for group in groups(results, train_max) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let range = if first.length == last.length {
            first.length.to_string()
        } else {
            format!("{}–{}", first.length, last.length)
        };
        let scored: Vec<_> = group.iter().filter_map(|r| Some((r.length, r.score()?))).collect();
        let mean = |of: fn(&evaluators::Score) -> Option<f64>| mean(scored.iter().filter_map(|(_, s)| of(s)));
        let accuracies = scored.iter().filter_map(|(length, s)| Some((*length, s.last_accuracy()?)));
        let worst = accuracies.min_by(|a, b| a.1.total_cmp(&b.1));
        let problem = group.iter().find(|r| r.score().is_none());
        let status = match (problem, group.len() - scored.len()) {
            (None, _) => "ok".to_owned(),
            (Some(r), n) if n == group.len() => r.status().to_owned(),
            (Some(r), _) => format!("from {}: {}", r.length, r.status()),
        };
        let sequences: u64 = scored.iter().map(|(_, s)| s.n_sequences).sum();
        table.row([
            range,
            percent(mean(evaluators::Score::last_accuracy)),
            percent(mean(evaluators::Score::accuracy)),
            worst.map_or("–".into(), |(length, a)| format!("{length}: {}", percent(Some(a)))),
            sequences.to_string(),
            status,
        ]);
    }
    table
}

/// One row per range of lengths: the means that papers report.
pub fn means(ranges: &[(String, Means)]) -> Table {
    let titles = ["accuracy", "above chance", "exact match", "last token"];
    let numbers = titles.map(|title| column(title).right());
    let mut table =
        Table::new([column("mean over").wrap(12)].into_iter().chain(numbers).chain([column("scored").right()]));
    for (range, means) in ranges {
        table.row([
            range.clone(),
            percent(means.accuracy),
            percent(means.scaled_accuracy),
            percent(means.sequence_accuracy),
            percent(means.last_accuracy),
            format!("{} lengths", means.lengths),
        ]);
    }
    table
}

/// One row per split, with the original's metrics.
pub fn splits(results: &[DatasetResult]) -> Table {
    let titles = ["counting", "last", "overall", "unseen lengths", "loss", "sequences"];
    let scores = titles.map(|title| column(title).right());
    let split = column("split").wrap(12);
    let mut table = Table::new([split].into_iter().chain(scores).chain([column("status").wrap(12)]));
    for result in results {
        let total = &result.total;
        let times = if result.loops > 1 { format!(" ({} passes)", result.loops) } else { String::new() };
        table.row([
            result.by_length.facts.split.clone(),
            percent(total.counting_accuracy()),
            percent(total.last_accuracy()),
            percent(total.accuracy()),
            percent(total.unseen_accuracy()),
            result.batch_mean_loss.map_or("–".into(), |loss| format!("{loss:.4}")),
            format!("{}{times}", total.n_sequences),
            result.status().to_owned(),
        ]);
    }
    table
}

/// Mean last-token accuracy over the scored lengths for which `wanted` holds.
#[cfg(feature = "train")]
pub fn mean_last_accuracy(results: &[LengthResult], wanted: impl Fn(u32) -> bool) -> Option<f64> {
    mean(results.iter().filter(|r| wanted(r.length)).filter_map(|r| r.score()?.last_accuracy()))
}

/// `97.3 %`, or a dash.
pub fn percent(value: Option<f64>) -> String {
    value.map_or("–".into(), |v| format!("{:.1} %", 100.0 * v))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// Trained lengths, then doublings of them (or, not knowing them, tenths of the sweep).
fn groups(results: &[LengthResult], train_max: Option<u32>) -> Vec<&[LengthResult]> {
    let longest = results.last().map_or(1, |r| r.length);
    if results.len() <= 12 {
        return results.chunks(1).collect();
    }
    let first = train_max.unwrap_or(longest.div_ceil(16)).max(1);
    let mut edge = first;
    let mut rest = results;
    let mut groups = Vec::new();
    while !rest.is_empty() {
        let (group, after) = rest.split_at(rest.partition_point(|r| r.length <= edge));
        if !group.is_empty() {
            groups.push(group);
        }
        rest = after;
        edge = edge.saturating_mul(2);
    }
    groups
}
