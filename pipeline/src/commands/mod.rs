//! One module per command: arguments in, library calls, results out.

#[cfg(feature = "train")]
mod bench;
pub mod data;
mod doctor;
pub mod eval;
#[cfg(feature = "train")]
mod export;
#[cfg(feature = "train")]
mod grid;
#[cfg(feature = "train")]
mod import;
#[cfg(feature = "train")]
mod models;
#[cfg(feature = "train")]
mod quickstart;
#[cfg(feature = "train")]
mod report;
#[cfg(feature = "train")]
mod reproduce;
#[cfg(feature = "train")]
mod runs;
#[cfg(feature = "train")]
mod train;

use crate::Workspace;
use crate::cli::progress::Progress;
use crate::cli::table;
use crate::cli::{Cli, Command, Global};
use anyhow::{Context as _, Result};
use std::io::Write;
use std::ops::Deref;

/// Runs the command that was typed.
pub fn run(cli: Cli) -> Result<()> {
    let Global { runs_dir, data_dir, json, quiet, verbose, allow_command } = cli.global;
    if allow_command {
        ::data::allow_commands();
    }
    let progress = Progress::new(quiet, verbose);
    let workspace = Workspace { runs: runs_dir, datasets: data_dir, progress };
    let context = Context {
        workspace,
        json,
        #[cfg(feature = "train")]
        allow_command,
    };
    #[cfg(feature = "train")]
    if cli.command.computes() {
        ::models::pool::start();
    }
    let progress = context.progress.clone();
    ::data::files::on_warning(move |line| progress.note(format!("warning: {line}")));
    match cli.command {
        Command::Data(command) => data::run(&context, command),
        Command::Eval(args) => eval::run(&context, args),
        Command::Doctor => doctor::run(&context),
        #[cfg(feature = "train")]
        Command::Quickstart => quickstart::run(&context),
        #[cfg(feature = "train")]
        Command::Models(args) => models::run(&context, args),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(&context, args),
        #[cfg(feature = "train")]
        Command::Grid(args) => grid::run(&context, args),
        #[cfg(feature = "train")]
        Command::Reproduce(args) => reproduce::run(&context, args),
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

/// The global options, as every command gets them.
pub struct Context {
    /// Its fields are at hand as the context's own: `context.runs`, `context.progress`.
    workspace: Workspace,
    /// Whether results are JSON.
    pub json: bool,
    /// Whether programs of tasks may be run; for child processes.
    #[cfg(feature = "train")]
    pub allow_command: bool,
}

impl Deref for Context {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.workspace
    }
}

impl Context {
    /// Prints a result on standard output: the JSON document under `--json`, otherwise the text.
    pub fn print(&self, json: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) -> Result<()> {
        let output = match (self.json, table::screen_width()) {
            (true, _) => json().to_string(),
            (false, Some(width)) => table::prose(&text(), width),
            (false, None) => text(),
        };
        let mut stdout = std::io::stdout().lock();
        let written = writeln!(stdout, "{}", output.trim_end()).and_then(|()| stdout.flush());
        written.context(
            "cannot write the result to standard output\n  hint: free some space or redirect it elsewhere; files that were written are kept",
        )
    }
}
