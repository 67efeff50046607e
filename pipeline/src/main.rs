//! The `pipeline` command: train, export to ONNX, sweep test lengths.

mod cli;
mod commands;
mod cuda;
mod plot;
mod progress;
mod run_dir;
mod summary;

#[cfg(feature = "train")]
mod checkpoint;
#[cfg(feature = "train")]
mod checksum;
#[cfg(feature = "train")]
mod config;
#[cfg(feature = "train")]
mod device;
#[cfg(feature = "train")]
mod evaluation;
#[cfg(feature = "train")]
mod loss_scale;
#[cfg(feature = "train")]
mod metrics_log;
#[cfg(feature = "train")]
mod onnx_check;
#[cfg(feature = "train")]
mod optimizer;
#[cfg(feature = "train")]
mod report;
#[cfg(feature = "train")]
mod stop;
#[cfg(feature = "train")]
mod sweep;
#[cfg(feature = "train")]
mod tensorboard;
#[cfg(feature = "train")]
mod trainer;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    disable_telemetry();
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// ONNX Runtime 1.29 and later write a device id into the user's cache, and may send it, unless told not to before they
/// are loaded.
#[allow(unsafe_code)]
fn disable_telemetry() {
    // SAFETY: the first statement of the program; no other thread exists that could read the environment.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

/// The whole chain of causes, outermost first, each once.
fn describe(error: &anyhow::Error) -> String {
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
