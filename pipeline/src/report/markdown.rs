//! The report as Markdown: the tables, and the figures by their file names.

use super::figures::Figure;
use super::{Report, repeat};
use std::fmt::Write;

/// The document. `folder` is where the figures are, seen from it.
pub fn document(report: &Report, runs: &str, figures: &[Figure], folder: &str) -> String {
    let mut text = format!("# How far do they count?\n\n{}\n", escape(&report.summary()));
    report.shared().iter().for_each(|shared| text += &format!("\n{}\n", escape(shared)));
    if !report.notices.is_empty() {
        text += "\n## Notices\n\n";
        report.shown_notices().iter().for_each(|notice| text += &format!("- {}\n", escape(notice)));
    }
    for table in report.tables() {
        let _ = write!(text, "\n## {}\n\nIn percent: mean over runs [95 % interval]", escape(&table.title));
        let published = table.values.iter().flatten().flatten().any(|value| value.theirs.is_some());
        text += if published { "; after the slash, the paper's value.\n\n" } else { ".\n\n" };
        let tasks: Vec<String> =
            table.tasks.iter().filter_map(|t| Some(escape(report.tasks.get(*t)?.short_name()))).collect();
        let _ = writeln!(text, "| model | {} |\n|---|{}", tasks.join(" | "), "---|".repeat(tasks.len()));
        for (model, values) in table.models.iter().zip(&table.values) {
            let entries = values.iter().map(|value| match value {
                None => "–".to_owned(),
                Some(value) => match &value.theirs {
                    None => value.ours.percent(),
                    Some((theirs, differences)) if differences.is_empty() => {
                        format!("{} / {}", value.ours.percent(), theirs.percent())
                    }
                    Some((theirs, differences)) => {
                        format!("{} / {} ({})", value.ours.percent(), theirs.percent(), escape(&differences.join(", ")))
                    }
                },
            });
            let _ = writeln!(text, "| {} | {} |", escape(model), entries.collect::<Vec<_>>().join(" | "));
        }
    }
    if !figures.is_empty() {
        text += "\n## Figures\n";
    }
    for figure in figures {
        let path = format!("{folder}/{}.svg", figure.name).replace(' ', "%20");
        let _ = write!(text, "\n![{}]({path})\n", escape(&figure.title));
    }
    let _ = write!(text, "\n## Repeat it\n\n{}\n", escape(&repeat::versions()));
    for entry in &report.entries {
        let _ = write!(text, "\n{} on {}:\n\n", escape(&entry.model), escape(&entry.task));
        repeat::commands(entry, runs).iter().for_each(|command| text += &format!("    {command}\n"));
    }
    text
}

/// Text that Markdown takes as it is, also within tables.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\`*_[]<>|#".contains(c) {
            escaped.push('\\');
        }
        escaped.push(if c == '\n' { ' ' } else { c });
    }
    escaped
}
