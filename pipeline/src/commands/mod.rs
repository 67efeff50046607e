//! One module per command: arguments in, library calls, results out.

#[cfg(feature = "train")]
mod bench;
mod data;
mod doctor;
pub mod eval;
#[cfg(feature = "train")]
mod export;
#[cfg(feature = "train")]
mod import;
#[cfg(feature = "train")]
mod quickstart;
#[cfg(feature = "train")]
mod report;
#[cfg(feature = "train")]
mod runs;
#[cfg(feature = "train")]
mod sweep;
#[cfg(feature = "train")]
mod train;

use crate::cli::{Cli, Command};
use crate::progress::Progress;
use anyhow::Result;
use std::io::Write;

/// Runs the command that was typed.
pub fn run(cli: Cli) -> Result<()> {
    let context = Context { progress: Progress::new(&cli.global), global: cli.global };
    match cli.command {
        Command::Data(command) => data::run(&context, command),
        Command::Eval(args) => eval::run(&context, args),
        Command::Doctor => doctor::run(&context),
        #[cfg(feature = "train")]
        Command::Quickstart => quickstart::run(&context),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(&context, args),
        #[cfg(feature = "train")]
        Command::Sweep(args) => sweep::run(&context, args),
        #[cfg(feature = "train")]
        Command::Report(args) => report::run(&context, args),
        #[cfg(feature = "train")]
        Command::Runs(args) => runs::run(&context, args),
        #[cfg(feature = "train")]
        Command::Import(args) => import::run(&context, args),
        #[cfg(feature = "train")]
        Command::Export(args) => export::run(&context, args),
        #[cfg(feature = "train")]
        Command::Bench(command) => bench::run(&context, command),
    }
}

/// What every command gets: the global options and a place to talk to a person.
pub struct Context {
    /// The global options.
    pub global: crate::cli::Global,
    /// Bars and notes.
    pub progress: Progress,
}

impl Context {
    /// Prints a result on standard output: the JSON document under `--json`, otherwise the text.
    pub fn print(&self, json: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) -> Result<()> {
        let output = if self.global.json { json().to_string() } else { text() };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", output.trim_end())?;
        stdout.flush()?;
        Ok(())
    }
}
