//! Train sequence models on short sequences, export them to ONNX, and measure accuracy at lengths far beyond training: the
//! library below the `pipeline` command, for programs that train from Rust.
//!
//! - [`config::Config`]: what to learn, what learns it, how long, on what; the same TOML as on the command line.
//! - [`train`]: a config becomes a run. Datasets are generated, checkpoints and curve written, interrupted runs resumed.
//! - [`export`]: a run becomes `model.onnx`, compared with the trained model before it appears.
//! - [`RunDir`]: what is in a run's folder.
//! - [`write_report`]: all results of all runs on one page.
//!
//! Test lengths are swept by the crate `evaluators`, which needs none of this. Everything that a person would be asked
//! on the command line (grids, imports) is the command's only. A program that trains and wants to show how far that is,
//! or to stop it, is a [`Watcher`].
//!
//! Train a small model, export it, and say where it is (`examples/train_from_rust.rs` is the whole program):
//!
//! ```no_run
//! # #[cfg(feature = "train")]
//! # fn main() -> anyhow::Result<()> {
//! use pipeline::Workspace;
//! use pipeline::config::Config;
//! use pipeline::export::{ExportPlan, export_run};
//! use pipeline::train::train;
//!
//! let config = Config::parse(
//!     "[task]
//!      name = 'counting_samesymbol_mod10bos'
//!      [model]
//!      arch = 'lstm'
//!      hidden_size = 32
//!      [train]
//!      epochs = 3",
//!     &[],
//! )?;
//! let workspace = Workspace::new("runs", "datasets");
//! let (run, outcome) = train(&workspace, config)?;
//! let exported = export_run(&workspace, &run, &ExportPlan::default())?;
//! println!("{}: loss {:.4}, {}", run.handle(), outcome.loss, exported.path.display());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "train"))]
//! # fn main() {}
//! ```
//!
//! ONNX Runtime writes a device id into the user's cache, and may send it, unless `ORT_DISABLE_TELEMETRY=1` is in the
//! environment before it is loaded. The command sets that; a program that exports should be started with it.
//!
//! # Features
//! `eval` is the evaluator, without burn; `train` adds training, export and everything else on a CPU; `cuda` NVIDIA GPUs.

mod cli;
mod commands;
mod cuda;
mod plot;
mod run;
mod split;
mod watch;
mod workspace;

#[cfg(feature = "train")]
pub mod config;
#[cfg(feature = "train")]
pub mod export;
#[cfg(feature = "train")]
mod grid;
#[cfg(feature = "train")]
mod published;
#[cfg(feature = "train")]
mod report;
#[cfg(feature = "train")]
mod stop;
#[cfg(feature = "train")]
pub mod train;

#[cfg(feature = "train")]
pub use report::write::{ReportPlan, WrittenReport, write_report};
pub use run::RunDir;
#[cfg(feature = "train")]
pub use run::{RunProgress, Status};
pub use split::read_split;
pub use watch::{StepReport, Watcher};
pub use workspace::Workspace;

use clap::Parser;
use std::process::ExitCode;

/// The `pipeline` command: reads the process's arguments, does what they say, and reports an error on standard error.
pub fn command_line() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            cli::progress::say(&format_args!("error: {}", describe(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An error as the command shows it: the whole chain of causes, outermost first, each once.
pub fn describe(error: &anyhow::Error) -> String {
    let mut lines: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if !lines.iter().any(|seen| seen.contains(&cause)) {
            lines.push(cause);
        }
    }
    lines.join("\n  caused by: ")
}

/// `pipeline … | head` ends without a complaint.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
