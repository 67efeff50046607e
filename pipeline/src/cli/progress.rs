//! Progress for a person who waits: bars and notes on standard error, or, where that is no terminal, a line now and then.
//! Standard output is for results.

use crate::cli::table;
use crate::watch::Watched;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike};
use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a log gets a line of a long job. The environment variable [`INTERVAL_VARIABLE`] says otherwise, in seconds.
const INTERVAL: Duration = Duration::from_secs(60);
const INTERVAL_VARIABLE: &str = "PIPELINE_PROGRESS_SECONDS";

/// Bars and notes on standard error, or silence under `--quiet`.
#[derive(Debug, Clone)]
pub struct Progress {
    bars: MultiProgress,
    quiet: bool,
    verbose: bool,
    /// Whether bars are written as lines of a log.
    log: bool,
    /// The program that is told as well.
    watched: Watched,
}

impl Progress {
    /// As the command line asks: `--quiet` and `--verbose`.
    pub fn new(quiet: bool, verbose: bool) -> Self {
        let terminal = ProgressDrawTarget::stderr();
        let log = terminal.is_hidden();
        let target = match (quiet, log) {
            (true, _) => ProgressDrawTarget::hidden(),
            (false, true) => ProgressDrawTarget::term_like_with_hz(Box::new(Log::new(interval(), Box::new(say))), 4),
            (false, false) => terminal,
        };
        let bars = MultiProgress::with_draw_target(target);
        Self { bars, quiet, verbose, log, watched: Watched::default() }
    }

    /// The same, and a program that is told as well.
    pub fn watched(self, watched: Watched) -> Self {
        Self { watched, ..self }
    }

    /// The program that is told as well.
    #[cfg(feature = "train")]
    pub fn watcher(&self) -> Option<&dyn crate::Watcher> {
        self.watched.0.as_deref()
    }

    /// A line for a person, above any bar.
    pub fn note(&self, line: impl Display) {
        if let Watched(Some(watcher)) = &self.watched {
            watcher.note(&line.to_string());
        }
        if !self.quiet {
            let line = line.to_string();
            let line = table::error_screen_width().map_or_else(|| line.clone(), |width| table::prose(&line, width));
            self.bars.suspend(|| say(&line));
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
        let start = if self.log { "{prefix}" } else { "{prefix:>11} {bar:20}" };
        let template = format!("{start} {{pos}}/{{len}} {unit} · {{rate}} · ETA {{eta}} · {{wide_msg}}");
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

/// A line on standard error; where that is closed or full, nobody can be told.
pub fn say(line: &dyn Display) {
    let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("{line}\n"));
}

fn interval() -> Duration {
    let named = std::env::var(INTERVAL_VARIABLE).ok().and_then(|text| text.parse().ok());
    named.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(INTERVAL)
}

/// Takes a line.
type Teller = Box<dyn Fn(&dyn Display) + Send + Sync>;

/// Takes bars for a terminal's, and passes on what they look like once in a while. No thread is needed for that: bars are
/// drawn when they move.
struct Log {
    interval: Duration,
    state: Mutex<State>,
    write: Teller,
}

struct State {
    /// When the last line was written, or the first bar could have been.
    last: Instant,
    /// The bars of the drawing that is going on.
    drawn: Vec<String>,
}

impl Log {
    fn new(interval: Duration, write: Teller) -> Self {
        Self { interval, state: Mutex::new(State { last: Instant::now(), drawn: vec![] }), write }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("interval", &self.interval).finish_non_exhaustive()
    }
}

impl TermLike for Log {
    fn width(&self) -> u16 {
        300 // no bar is cut
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let text = text.trim().trim_end_matches('·').trim_end();
        if !text.is_empty() {
            self.state.lock().unwrap_or_else(PoisonError::into_inner).drawn.push(text.to_owned());
        }
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let drawn = std::mem::take(&mut state.drawn);
        if !drawn.is_empty() && state.last.elapsed() >= self.interval {
            state.last = Instant::now();
            drawn.iter().for_each(|line| (self.write)(line));
        }
        Ok(())
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;

    fn logged(interval: Duration) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let write = move |line: &dyn Display| kept.lock().unwrap().push(line.to_string());
        let target = ProgressDrawTarget::term_like(Box::new(Log::new(interval, Box::new(write))));
        let bars = MultiProgress::with_draw_target(target);
        let progress = Progress { bars, quiet: false, verbose: false, log: true, watched: Watched::default() };
        let bar = progress.bar("lstm", 100, "steps");
        for step in 1..=100 {
            bar.set_message(format!("loss 0.{step}"));
            bar.set_position(step);
            std::thread::sleep(Duration::from_millis(2));
        }
        bar.finish_and_clear();
        lines.lock().unwrap().clone()
    }

    #[test]
    fn a_log_gets_a_line_per_interval_and_none_of_what_is_short() {
        assert_eq!(logged(Duration::from_secs(60)), [""; 0]);
        let lines = logged(Duration::from_millis(60));
        assert!((1..=8).contains(&lines.len()), "{lines:?}");
        for line in lines {
            assert!(line.starts_with("lstm ") && line.contains("/100 steps · "), "{line}");
            assert!(line.contains("/s · ETA ") && line.contains(" · loss 0."), "{line}");
            assert!(!line.contains('\u{1b}') && !line.contains('━') && line.trim() == line, "{line}");
        }
    }
}
