//! What a person sees while waiting: bars and notes on standard error. Standard output is for results.

use crate::cli::Global;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::borrow::Cow;
use std::fmt::{Display, Write};

/// Bars and notes on standard error, or silence under `--quiet`.
#[derive(Debug, Clone)]
pub struct Progress {
    bars: MultiProgress,
    quiet: bool,
    verbose: bool,
}

impl Progress {
    /// As the command line asks.
    pub fn new(global: &Global) -> Self {
        let target = if global.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { bars: MultiProgress::with_draw_target(target), quiet: global.quiet, verbose: global.verbose }
    }

    /// A line for a person, above any bar.
    pub fn note(&self, line: impl Display) {
        if !self.quiet {
            self.bars.suspend(|| eprintln!("{line}"));
        }
    }

    /// A line for a person who asked for more.
    pub fn detail(&self, line: impl Display) {
        if self.verbose {
            self.note(line);
        }
    }

    /// A bar over `total` units with a rate, an ETA and room for a live message.
    pub fn bar(&self, what: impl Into<Cow<'static, str>>, total: u64, unit: &str) -> ProgressBar {
        let template =
            format!("{{prefix:>11}} {{bar:20}} {{pos}}/{{len}} {unit} · {{rate}} · ETA {{eta}} · {{wide_msg}}");
        let rate = |state: &ProgressState, out: &mut dyn Write| {
            let digits = if state.per_sec() < 100.0 { 1 } else { 0 };
            let _ = write!(out, "{:.digits$}/s", state.per_sec());
        };
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = style.with_key("rate", rate);
        let bar = ProgressBar::new(total).with_prefix(what).with_style(style.progress_chars("━╸─"));
        self.bars.add(bar)
    }
}
