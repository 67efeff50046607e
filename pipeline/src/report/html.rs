//! The report as one page that needs no network: tables as they are, curves as JSON that its script draws.

use super::figures::TRAINING;
use super::{Comparison, Report, ResultTable, TaskFacts, repeat};
use serde_json::{Value, json};
use std::fmt::Write;

/// Points of all accuracy curves, and of all training curves, together: they bound the size of the page.
const LENGTH_POINTS: usize = 90_000;
const STEP_POINTS: usize = 60_000;

/// The page.
pub fn page(report: &Report, runs: &str) -> String {
    let parts = [
        ("css", include_str!("page.css").to_owned()),
        ("js", include_str!("page.js").to_owned()),
        ("summary", escape(&report.summary())),
        ("shared", report.shared().map_or(String::new(), |s| format!("<p id=\"shared\">{}</p>\n", escape(&s)))),
        ("map", map(report)),
        ("tables", tables(report)),
        ("repeat", repeat_section(report, runs)),
        ("notices", notices(report)),
        // `<` could end the script element that the document stands in.
        ("data", data(report).to_string().replace('<', "\\u003c")),
    ];
    let mut page = String::new();
    let mut rest = include_str!("page.html");
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page += before;
        page += parts.iter().find(|(part, _)| *part == name).map_or("", |(_, text)| text);
        rest = after;
    }
    page + rest
}

/// Text for HTML, also within quotes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// The data that the script draws. Accuracies are counted in 1/10000.
fn data(report: &Report) -> Value {
    let most_lengths = (LENGTH_POINTS / report.entries.len().max(1)).clamp(8, 75);
    let most_steps = (STEP_POINTS / (TRAINING.len() * report.entries.len().max(1))).clamp(6, 120);
    let task = |task: &TaskFacts| {
        // Models that were swept over the same lengths share their bins.
        let mut grids: Vec<Vec<(u32, u32)>> = Vec::new();
        let (mut curves, mut training) = (Vec::new(), Vec::new());
        for entry in report.entries.iter().filter(|c| c.task == task.name) {
            let Some(model) = report.models.iter().position(|name| *name == entry.model) else { continue };
            let curve = entry.curve(most_lengths, task.period);
            if !curve.is_empty() {
                let bins: Vec<(u32, u32)> = curve.iter().map(|p| (p.first, p.last)).collect();
                let grid = grids.iter().position(|g| *g == bins).unwrap_or_else(|| {
                    grids.push(bins);
                    grids.len() - 1
                });
                let counted = |v: f64| (10_000.0 * v).round() as u32;
                curves.push(json!({
                    "model": model,
                    "grid": grid,
                    "mean": curve.iter().map(|p| counted(p.mean)).collect::<Vec<_>>(),
                    "low": curve.iter().map(|p| counted(p.interval.0)).collect::<Vec<_>>(),
                    "high": curve.iter().map(|p| counted(p.interval.1)).collect::<Vec<_>>(),
                }));
            }
            for (kind, shown) in TRAINING.iter().enumerate() {
                let points = entry.training(shown.split, shown.value, most_steps);
                if !points.is_empty() {
                    let (x, y): (Vec<f64>, Vec<f64>) =
                        points.into_iter().map(|(x, y)| (x.round(), four_digits(y))).unzip();
                    training.push(json!({ "model": model, "kind": kind, "x": x, "y": y }));
                }
            }
        }
        json!({
            "name": task.name, "trained": task.train_max, "chance": task.chance, "period": task.period,
            "grids": grids, "curves": curves, "training": training,
        })
    };
    let kinds = TRAINING.iter().map(|kind| json!({ "title": kind.title, "log": kind.logarithmic }));
    json!({
        "models": report.models,
        "tasks": report.tasks.iter().map(task).collect::<Vec<_>>(),
        "kinds": kinds.collect::<Vec<_>>(),
    })
}

fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The first table without intervals, to be taken in at a glance.
fn map(report: &Report) -> String {
    let Some(first) = report.tables().into_iter().next() else { return String::new() };
    let entry = |value: &Comparison| format!("{:.0}", 100.0 * value.ours.mean);
    format!(
        "<section id=\"map\">\n<h2>Tasks and models</h2>\n<p class=\"note\">{}, in percent.</p>\n{}</section>\n",
        escape(&first.title),
        table(report, &first, false, entry)
    )
}

fn tables(report: &Report) -> String {
    let mut text = String::from("<section id=\"tables\">\n<h2>Tables</h2>\n");
    if report.reference.is_some() {
        text += "<p class=\"note\">In percent: mean over runs and 95 % interval; below it, where the paper’s model matches, \
                 its published value over n seeds.</p>\n";
    } else {
        text += "<p class=\"note\">In percent: mean over runs and 95 % interval.</p>\n";
    }
    let entry = |value: &Comparison| {
        let bracket = |e: &super::Estimate| {
            e.interval.map(|(low, high)| format!("[{:.1}, {:.1}]", 100.0 * low, 100.0 * high)).unwrap_or_default()
        };
        let mut text =
            format!("{:.1}<small>{} n={}</small>", 100.0 * value.ours.mean, bracket(&value.ours), value.ours.n);
        if let Some((theirs, differences)) = &value.theirs {
            let differences: String = differences.iter().map(|d| format!(", {}", escape(d))).collect();
            let _ = write!(
                text,
                "<small class=ref data-v={:.5}>paper {:.1} {} n={}{differences}</small>",
                theirs.mean,
                100.0 * theirs.mean,
                bracket(theirs),
                theirs.n
            );
        }
        text
    };
    for (index, found) in report.tables().iter().enumerate() {
        let open = if index == 0 { " open" } else { "" };
        let body = table(report, found, true, entry);
        let _ = write!(text, "<details{open}><summary>{}</summary>\n{body}</details>\n", escape(&found.title));
    }
    text + "</section>\n"
}

fn table(report: &Report, table: &ResultTable, named: bool, entry: impl Fn(&Comparison) -> String) -> String {
    let id = if named { format!(" id=\"table-{}\"", escape(&table.id)) } else { String::new() };
    let mut text = format!(
        "<div class=\"wide\"><p class=\"hint\">more columns: swipe or scroll sideways →</p>\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table{id}>\n\
         <thead><tr><th scope=\"col\">model</th>",
        escape(&table.title)
    );
    for task in table.tasks.iter().filter_map(|t| report.tasks.get(*t)) {
        let name = escape(task.short_name()).replace('_', "_<wbr>");
        let _ = write!(text, "<th scope=\"col\" data-task=\"{}\">{name}</th>", escape(&task.name));
    }
    text += "</tr></thead>\n<tbody>\n";
    for (model, values) in table.models.iter().zip(&table.values) {
        let _ = write!(text, "<tr><th scope=\"row\">{}</th>", escape(model));
        for value in values {
            match value {
                None => text += "<td class=none>–</td>",
                Some(value) => {
                    let mean = value.ours.mean;
                    let strong = if mean > 0.55 { " class=strong" } else { "" };
                    let body = entry(value);
                    let _ = write!(text, "<td{strong} style=--v:{mean:.2} data-v={mean:.6}>{body}</td>");
                }
            }
        }
        text += "</tr>\n";
    }
    text + "</tbody></table></div></div>\n"
}

fn repeat_section(report: &Report, runs: &str) -> String {
    let mut text =
        format!("<section id=\"repeat\">\n<h2>Repeat it</h2>\n<p class=\"note\">{}</p>\n", escape(&repeat::versions()));
    for task in &report.tasks {
        let _ = writeln!(text, "<details><summary>{}</summary>", escape(&task.name));
        for entry in report.entries.iter().filter(|c| c.task == task.name) {
            let commands: String = repeat::commands(entry, runs).iter().map(|c| escape(c) + "\n").collect();
            let _ = writeln!(text, "<p class=\"note\">{}</p><pre>{commands}</pre>", escape(&entry.model));
        }
        text += "</details>\n";
    }
    text + "</section>\n"
}

fn notices(report: &Report) -> String {
    if report.notices.is_empty() {
        return String::new();
    }
    // They come before the results that they are about; of many, the first are seen at once.
    const SEEN: usize = 4;
    let items = |notices: &[String]| notices.iter().map(|n| format!("<li>{}</li>\n", escape(n))).collect::<String>();
    let notices = report.shown_notices();
    let (seen, more) = notices.split_at(notices.len().min(SEEN));
    let more = match more.len() {
        0 => String::new(),
        _ => format!(
            "<details><summary>{} more</summary>\n<ul>\n{}</ul>\n</details>\n",
            report.notices.len() - seen.len(),
            items(more)
        ),
    };
    format!("<section id=\"notices\">\n<h2>Notices</h2>\n<ul>\n{}</ul>\n{more}</section>\n", items(seen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::entries::Entry;
    use crate::report::statistics::Estimate;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let evil = "</script><img src=x onerror=alert(1)>\"'&";
        let longer = Estimate::of_accuracies(&[0.5]);
        let entry = Entry { task: evil.into(), model: evil.into(), longer, ..Entry::default() };
        let task = TaskFacts { name: evil.into(), train_max: None, chance: None, period: None };
        let notices = vec![evil.to_owned()];
        let (entries, tasks, models) = (vec![entry], vec![task], vec![evil.to_owned()]);
        let common = vec![evil.to_owned()];
        let page = page(&Report { entries, tasks, models, common, reference: None, files: 1, notices }, evil);
        assert_eq!(page.matches("</script>").count(), 2, "one for the data, one for the script");
        assert!(!page.contains("<img") && !page.contains("{{"));
    }
}
