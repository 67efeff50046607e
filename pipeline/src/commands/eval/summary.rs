//! The results of `pipeline eval` for people and programs: a document, a table, a picture.

use super::Evaluated;
use crate::cli::summary;
use crate::plot::{self, Figure, Series};
use evaluators::{LengthResult, Lengths, Means, Reach, means};
use serde_json::{Value, json};

pub fn document(evaluated: &Evaluated, ranges: &[Lengths]) -> Value {
    let all = evaluated.sweep.iter().flat_map(|sweep| &sweep.lengths).cloned().collect::<Vec<_>>();
    let reach = Reach::of(&all, means::SOLVED);
    let of_range = |range: &Lengths| {
        let means = over(&all, range);
        json!({
            "range": range.to_string(),
            "lengths": means.lengths,
            "accuracy": means.accuracy,
            "scaled_accuracy": means.scaled_accuracy,
            "sequence_accuracy": means.sequence_accuracy,
            "last_accuracy": means.last_accuracy,
        })
    };
    let lengths = evaluated.sweep.iter().flat_map(|sweep| &sweep.lengths).map(row).collect::<Vec<_>>();
    let splits = evaluated.splits.iter().map(|split| {
        let total = &split.total;
        json!({
            "split": split.by_length.facts.split,
            "loops": split.loops,
            "n_sequences": total.n_sequences,
            "counting_accuracy": total.counting_accuracy(),
            "last_accuracy": total.last_accuracy(),
            "accuracy": total.accuracy(),
            "unseen_accuracy": total.unseen_accuracy(),
            "sequence_accuracy": total.sequence_accuracy(),
            "loss": split.batch_mean_loss,
            "status": split.status(),
        })
    });
    json!({
        "handle": evaluated.facts.handle,
        "model": evaluated.model,
        "task": evaluated.facts.task,
        "provider": evaluated.facts.provider,
        "iterations": evaluated.facts.iterations,
        "seconds": evaluated.seconds,
        "session_seconds": evaluated.session_seconds,
        "files": evaluated.files,
        "lengths": lengths,
        "means": ranges.iter().map(of_range).collect::<Vec<_>>(),
        "solved": { "share": means::SOLVED, "largest": reach.largest, "unbroken": reach.unbroken },
        "splits": splits.collect::<Vec<_>>(),
    })
}

fn row(result: &LengthResult) -> Value {
    let score = result.score();
    json!({
        "length": result.length,
        "n_sequences": score.map_or(0, |s| s.n_sequences),
        "accuracy": score.and_then(|s| s.accuracy()),
        "counting_accuracy": score.and_then(|s| s.counting_accuracy()),
        "last_accuracy": score.and_then(|s| s.last_accuracy()),
        "in_distribution": result.in_distribution,
        "status": result.status(),
        "plan": result.plan.name(),
        "sequence_accuracy": score.and_then(|s| s.sequence_accuracy()),
        "chance": result.chance,
    })
}

fn over(results: &[LengthResult], range: &Lengths) -> Means {
    Means::over(results, |length| range.as_slice().binary_search(&length).is_ok())
}

pub fn summary_text(evaluated: &Evaluated, ranges: &[Lengths]) -> String {
    let Evaluated { facts, sweep, splits, seconds, .. } = evaluated;
    let what = sweep.iter().map(|sweep| format!("{} lengths", sweep.lengths.len()));
    let what: Vec<String> = what.chain(splits.iter().map(|split| split.by_length.facts.split.clone())).collect();
    let (arch, what) = (facts.arch.as_deref().unwrap_or("model"), what.join(", "));
    let looped = facts.iterations.map_or(String::new(), |iterations| format!(", {iterations} iterations"));
    let mut lines = vec![format!("{arch}{looped} on {} · {} · {what} in {seconds:.2} s", facts.task, facts.provider)];
    lines.extend(sweep.iter().map(|sweep| summary::table(&sweep.lengths, evaluated.train_max).to_string()));
    if let Some(sweep) = sweep.as_ref().filter(|_| !ranges.is_empty()) {
        let means: Vec<_> = ranges.iter().map(|range| (range.to_string(), over(&sweep.lengths, range))).collect();
        lines.push(summary::means(&means).to_string());
        if let Some(length) = Reach::of(&sweep.lengths, means::SOLVED).largest {
            lines.push(format!("largest length with at least 99 % exact matches: {length}"));
        }
    }
    if !splits.is_empty() {
        lines.push(summary::splits(splits).to_string());
    }
    lines.extend(evaluated.files.iter().map(|file| file.display().to_string()));
    lines.join("\n")
}

/// One line per model; nothing where no sweep has two lengths.
pub fn figure(all: &[Evaluated]) -> Option<Figure> {
    let first = all.first()?;
    let series: Vec<Series> = all
        .iter()
        .filter_map(|evaluated| {
            let points = plot::points(&evaluated.sweep.as_ref()?.lengths);
            let facts = &evaluated.facts;
            let positions = facts.positional_embedding.as_deref().unwrap_or_default();
            let name = plot::display_name(facts.arch.as_deref().unwrap_or("model"), positions);
            let label = match facts.iterations {
                Some(iterations) if all.iter().all(|other| other.model == first.model) => {
                    format!("{name}, {iterations} iterations")
                }
                _ if all.len() > 1 => format!("{name} {}", evaluated.name),
                _ => name,
            };
            (points.len() > 1).then_some(Series { label, points })
        })
        .collect();
    let longest = series.iter().map(|s| s.points.len()).max()?;
    let period = plot::period(first.task.family.as_ref());
    let title = match &series[..] {
        [one] if plot::counts(&first.task.name) => format!("How far does the {} count?", one.label),
        [one] => format!("How far does the {} get?", one.label),
        _ if plot::counts(&first.task.name) => "How far do they count?".to_owned(),
        _ => "How far do they get?".to_owned(),
    };
    Some(Figure {
        title,
        subtitle: format!(
            "{} · last-token accuracy{}",
            plot::short_task(&first.task.name),
            plot::smoothing_note(longest, period)
        ),
        x_title: plot::length_title(&first.task.name),
        train_max: first.train_max,
        period,
        chance: plot::chance(first.task.family.as_ref()),
        series,
    })
}
