//! The report as files: a page, or Markdown with pictures beside it.

use super::{Report, figures, html, markdown};
use crate::Workspace;
use crate::cli::outputs::Outputs;
use anyhow::{Result, bail};
use data::files;
use std::path::{Component, Path, PathBuf};

/// A report to write.
#[derive(Debug, Clone)]
pub struct ReportPlan {
    /// The page, whose name ends in `.html` or `.md`.
    pub output: PathBuf,
    /// A CSV file of published values to compare with.
    pub reference: Option<PathBuf>,
    /// A folder for the figures as files of their own. Markdown shows them from there, and has one beside it by default.
    pub figures: Option<PathBuf>,
}

/// A report that was written.
#[derive(Debug, Clone)]
pub struct WrittenReport {
    /// The page, then the figures.
    pub files: Vec<PathBuf>,
    /// Runs that have results.
    pub runs: usize,
    /// Result files that were read.
    pub results: usize,
    /// Rows of the report's tables: a task and a model, over its seeds.
    pub entries: usize,
    /// Files and values that were left out, and why.
    pub notices: Vec<String>,
    /// All of this in one line.
    pub summary: String,
}

/// Puts the results of all runs of the workspace on one page.
///
/// # Errors
/// There are no results; a file cannot be read or written, or would replace something else.
pub fn write_report(workspace: &Workspace, plan: &ReportPlan) -> Result<WrittenReport> {
    let (folder, output) = (&workspace.runs, &plan.output);
    let extension = output.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if !matches!(extension.as_str(), "html" | "md") {
        bail!("-o {}: a report is HTML or Markdown\n  hint: let the name end in .html or .md", output.display());
    }
    // Markdown shows its figures from files beside it.
    let beside = || output.with_extension("").to_string_lossy().into_owned() + "-figures";
    let into = plan.figures.clone().or_else(|| (extension == "md").then(|| PathBuf::from(beside())));
    let mut outputs = Outputs::default();
    outputs.spares_runs(folder);
    outputs.spares_datasets(&workspace.datasets);
    for result in results(folder) {
        outputs.reads("a result", &result);
    }
    if let Some(reference) = &plan.reference {
        outputs.reads("the file of published values", reference);
    }
    outputs.writes("the report", output);
    if let Some(folder) = &into {
        outputs.writes_into(folder);
    }
    outputs.check()?;
    let report = Report::read(folder, plan.reference.as_deref())?;
    for notice in report.shown_notices() {
        let line = if notice.starts_with("warning: ") { notice } else { format!("note: {notice}") };
        workspace.progress.note(line);
    }
    if report.entries.is_empty() {
        bail!(
            "there are no results under {}\n  hint: `pipeline train --config <C>`, `pipeline export` and `pipeline eval` make some",
            folder.display()
        );
    }
    let runs = folder.to_string_lossy();
    let drawn = if into.is_some() { figures::all(&report) } else { vec![] };
    let mut pictures = Vec::new();
    if let Some(folder) = &into {
        drawn.iter().flat_map(|figure| figure.files(folder)).for_each(|path| outputs.writes("a picture", &path));
        outputs.check()?;
        pictures = figures::write(&drawn, folder, &outputs)?;
    }
    let text = match &into {
        Some(figures) if extension == "md" => {
            markdown::document(&report, &runs, &drawn, &link(files::folder_of(output), figures))
        }
        _ => html::page(&report, &runs),
    };
    outputs.write(output, |path| Ok(files::write_bytes(path, text.as_bytes())?))?;
    Ok(WrittenReport {
        files: std::iter::once(output.clone()).chain(pictures).collect(),
        runs: report.runs(),
        results: report.files,
        entries: report.entries.len(),
        summary: report.summary(),
        notices: report.notices,
    })
}

/// The files of runs that a report reads.
fn results(runs: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_run = |run: PathBuf| {
        let beside = ["config.toml", "metrics.parquet"].map(|name| run.join(name));
        entries(&run.join("eval")).chain(beside).collect::<Vec<_>>()
    };
    entries(runs).flat_map(of_run).collect()
}

/// How a page in `from` links to the folder `to`: the way there, in the spelling of URLs.
fn link(from: &Path, to: &Path) -> String {
    let (from, to) = (files::place(from), files::place(to));
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| "..".to_owned());
    let down = to.components().skip(shared).filter_map(|part| match part {
        Component::Normal(name) => Some(encoded(&name.to_string_lossy())),
        _ => None,
    });
    let parts: Vec<String> = up.chain(down).collect();
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// A name within a URL.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~,=+@".contains(&byte);
    let bytes = name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_from_the_page_to_its_figures() {
        let way = |from: &str, to: &str| link(Path::new(from), Path::new(to));
        assert_eq!(way("/a/b", "/a/b/report-figures"), "report-figures");
        assert_eq!(way("/a/b/c", "/a/figures (1)"), "../../figures%20%281%29");
        assert_eq!(way("out", "figs/50%"), "../figs/50%25");
        assert_eq!(way(".", "figs"), "figs");
        assert_eq!(way("/a", "/a"), ".");
    }
}
