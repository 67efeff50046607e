//! Runs the built program the way a person does.
#![allow(dead_code, clippy::unwrap_used)] // every test file uses some of this

use std::path::Path;
use std::process::{Command, Output};

/// The result of a call of the program.
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { status: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// The program with arguments, in a folder. It takes signals as a terminal's programs do, however the tests were
/// started, and it ends after ten minutes: a test that waits for it fails then instead of waiting for ever.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.current_dir(folder).args(arguments);
    #[cfg(unix)]
    as_from_a_terminal(&mut command);
    command
}

/// What `nohup`, a shell's background or a batch system ignores for its programs is not ignored for this one.
#[cfg(unix)]
#[allow(unsafe_code)]
fn as_from_a_terminal(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    const SECONDS: libc::rlim_t = 600;
    let prepare = || {
        for signal in [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGTERM,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGXCPU,
            libc::SIGALRM,
        ] {
            // SAFETY: between fork and exec only functions that are safe in signal handlers may be called: `signal` is.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        let limit = libc::rlimit { rlim_cur: 2 * SECONDS, rlim_max: 2 * SECONDS };
        // SAFETY: so are these; the alarm outlives exec, and the limit of processor time is its children's too.
        unsafe {
            libc::alarm(SECONDS as libc::c_uint);
            libc::setrlimit(libc::RLIMIT_CPU, &limit);
        }
        Ok(())
    };
    // SAFETY: see above; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
}

/// Runs it, without a check of its result.
pub fn run(folder: &Path, arguments: &[&str]) -> Ran {
    command(folder, arguments).output().unwrap().into()
}

/// Runs it and insists on success; returns standard output.
pub fn ok(folder: &Path, arguments: &[&str]) -> String {
    let ran = run(folder, arguments);
    assert_eq!(ran.status, 0, "{arguments:?}\n{}{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// Runs it and insists on one error message with this exit status that contains all of `parts`.
pub fn fails(folder: &Path, arguments: &[&str], status: i32, parts: &[&str]) {
    let ran = run(folder, arguments);
    check_failure(&ran, arguments, status, parts);
}

/// The checks of [`fails`].
pub fn check_failure(ran: &Ran, arguments: &[&str], status: i32, parts: &[&str]) {
    assert_eq!(ran.status, status, "{arguments:?}\n{}{}", ran.stdout, ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().filter(|l| l.starts_with("error:")).count(), 1, "{}", ran.stderr);
    for part in parts {
        assert!(ran.stderr.contains(part), "no `{part}` in\n{}", ran.stderr);
    }
}

/// All files below a folder, relative and sorted.
pub fn files(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

/// A path in this repository.
pub fn repository(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

/// A training command that ends within a second: an RNN of width 8, a few steps.
pub fn tiny_training<'a>(config: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "--config", config];
    for set in [
        "task.train_examples=100",
        "train.batch_size=32",
        "train.max_steps=6",
        "train.epochs=2",
        "train.log_every=2",
        "model.hidden_size=8",
    ] {
        arguments.extend(["--set", set]);
    }
    arguments.extend(more);
    arguments
}
