//! Runs a program for its output: for a limited time, and no further than it says what it was asked for.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How much a program may say, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub lines: usize,
    pub bytes: usize,
    pub timeout: Duration,
}

/// Why there is no output to be used, as the end of a sentence about the program; and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub reason: String,
    pub hint: String,
}

impl Failure {
    pub fn new(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: hint.into() }
    }
}

/// The last words of a program on standard error that are shown.
const LAST_LINES: usize = 12;
const LAST_BYTES: usize = 4096;

/// What the reader of standard output has to say.
enum Heard {
    All(Vec<u8>),
    TooMuch(String),
    Broken(std::io::Error),
}

/// The output of a program that was started with these words.
pub(super) fn output(words: &[String], limits: Limits) -> Result<String, Failure> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Failure::new("has no words", "command = [\"python3\", \"make.py\"] names a program"));
    };
    let mut running = Running::start(program, arguments)?;
    let (tell, heard) = channel();
    let (tell_last, last) = channel();
    let no_thread = |e: std::io::Error| Failure::new(format!("cannot be listened to: {e}"), "lower --threads");
    let (stdout, stderr) = (running.child.stdout.take(), running.child.stderr.take());
    Builder::new().spawn(move || listen(stdout, limits, &tell)).map_err(no_thread)?;
    Builder::new().spawn(move || keep_last(stderr, &tell_last)).map_err(no_thread)?;
    let end = Instant::now() + limits.timeout;
    let timed_out = || {
        let seconds = limits.timeout.as_secs();
        Failure::new(
            format!("did not end within {seconds} s and was killed"),
            "timeout = SECONDS gives it more time for each call; it is to print what it was asked for, and end",
        )
    };
    let output = match heard.recv_timeout(limits.timeout) {
        Ok(Heard::All(output)) => output,
        Ok(Heard::TooMuch(reason)) => {
            return Err(Failure::new(
                format!("{reason} and was killed"),
                "it is to print one line for each of the --count examples, and nothing else",
            ));
        }
        Ok(Heard::Broken(error)) => {
            return Err(Failure::new(format!("cannot be listened to: {error}"), "try again"));
        }
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            return Err(with_last_words(timed_out(), &mut running, &last));
        }
    };
    let Some(status) = running.status_until(end) else {
        return Err(with_last_words(timed_out(), &mut running, &last));
    };
    if !status.success() {
        let failure = Failure::new(format!("ended with {status}"), "run it by hand to see what is wrong");
        return Err(with_last_words(failure, &mut running, &last));
    }
    String::from_utf8(output).map_err(|e| {
        let at = e.utf8_error().valid_up_to() + 1;
        Failure::new(format!("printed something that is not UTF-8, at byte {at}"), "it is to print lines of JSON")
    })
}

/// The reason with what the program said last, once it is over.
fn with_last_words(failure: Failure, running: &mut Running, last: &Receiver<String>) -> Failure {
    running.end();
    let words = last.recv_timeout(Duration::from_millis(500)).unwrap_or_default();
    let lines: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return failure;
    }
    let shown = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n    ");
    Failure { reason: format!("{}; its last words:\n    {shown}", failure.reason), ..failure }
}

/// Reads standard output to its end, or until there is too much of it.
fn listen(stdout: Option<impl Read>, limits: Limits, tell: &Sender<Heard>) {
    let (mut output, mut lines, mut buffer) = (Vec::new(), 0, vec![0; 1 << 16]);
    let Some(mut stdout) = stdout else { return };
    let heard = loop {
        match stdout.read(&mut buffer) {
            Ok(0) => break Heard::All(output),
            Ok(read) => {
                lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count();
                output.extend_from_slice(&buffer[..read]);
                if lines > limits.lines {
                    break Heard::TooMuch(format!(
                        "printed more than the {} lines that it was asked for",
                        limits.lines
                    ));
                }
                if output.len() > limits.bytes {
                    break Heard::TooMuch(format!(
                        "printed more than the {} bytes that {} examples may have",
                        limits.bytes, limits.lines
                    ));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => break Heard::Broken(e),
        }
    };
    let _ = tell.send(heard); // nobody listens any more after the time is up
}

/// Reads standard error to its end and keeps the last of it.
fn keep_last(stderr: Option<impl Read>, tell: &Sender<String>) {
    let (mut last, mut buffer) = (Vec::new(), vec![0; 1 << 12]);
    let Some(mut stderr) = stderr else { return };
    loop {
        match stderr.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                last.extend_from_slice(&buffer[..read]);
                last.drain(..last.len().saturating_sub(LAST_BYTES));
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = tell.send(String::from_utf8_lossy(&last).into_owned());
}

/// A program that is over when this is dropped, and all that it has started with it.
struct Running {
    child: Child,
    is_over: bool,
}

impl Running {
    fn start(program: &str, arguments: &[String]) -> Result<Self, Failure> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0); // so that all of it can be ended
        #[cfg(target_os = "linux")]
        ends_with_this_process(&mut command);
        let child = command.spawn().map_err(|e| {
            Failure::new(
                format!("cannot be started: {e}"),
                format!("`{program}` must be a program: its path, or its name in a folder of PATH"),
            )
        })?;
        Ok(Self { child, is_over: false })
    }

    /// How it ended; `None` if it has not by then.
    fn status_until(&mut self, end: Instant) -> Option<ExitStatus> {
        while !self.has_ended() {
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.end()
    }

    /// Whether it has ended. Its number is not given to another process before [`Self::end`].
    #[cfg(unix)]
    fn has_ended(&mut self) -> bool {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        let Some(process) = Pid::from_raw(self.child.id().cast_signed()) else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(process), options), Ok(None))
    }

    #[cfg(not(unix))]
    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it, and on Unix what it has started as well; returns how it ended.
    fn end(&mut self) -> Option<ExitStatus> {
        if !self.is_over {
            #[cfg(unix)]
            {
                use rustix::process::{Pid, Signal, kill_process_group};
                if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
                    let _ = kill_process_group(group, Signal::KILL); // all of it may be over already
                }
            }
            let _ = self.child.kill();
        }
        self.is_over = true;
        self.child.wait().ok()
    }
}

/// The kernel ends the program where this process is ended while it waits for it: signals of a terminal do not reach a
/// process group of its own.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn ends_with_this_process(command: &mut Command) {
    use rustix::process::{Signal, set_parent_process_death_signal};
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec, only `prctl` is called, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(script: &str, limits: Limits) -> Result<String, Failure> {
        output(&["sh".into(), "-c".into(), script.into()], limits)
    }

    const LIMITS: Limits = Limits { lines: 3, bytes: 1000, timeout: Duration::from_secs(20) };

    #[test]
    fn output_is_what_was_printed() {
        assert_eq!(run("echo one; echo two", LIMITS).unwrap(), "one\ntwo\n");
        assert_eq!(run("true", LIMITS).unwrap(), "");
    }

    #[test]
    fn a_crash_is_told_with_the_last_words() {
        let failure = run("echo 1; for n in $(seq 30); do echo word $n >&2; done; exit 3", LIMITS).unwrap_err();
        assert!(failure.reason.starts_with("ended with exit status: 3; its last words:\n    word 19\n"), "{failure:?}");
        assert!(failure.reason.ends_with("word 30"), "{failure:?}");
        let failure = run("kill -9 $$", LIMITS).unwrap_err();
        assert!(failure.reason.contains("signal: 9"), "{failure:?}");
        let missing = output(&["/no/such/program".into()], LIMITS).unwrap_err();
        assert!(missing.reason.starts_with("cannot be started") && missing.hint.contains("PATH"), "{missing:?}");
    }

    #[test]
    fn what_hangs_or_says_too_much_is_killed_with_all_that_it_started() {
        let short = Limits { timeout: Duration::from_millis(300), ..LIMITS };
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("alive");
        let alive = format!("(sleep 1; echo > {}) & ", mark.display());
        for (script, limits, part) in [
            ("sleep 100", short, "did not end within 0 s and was killed"),
            ("exec >&-; sleep 100", short, "did not end within"),
            ("sleep 100 & sleep 100", short, "did not end within"),
            ("yes", LIMITS, "printed more than the 3 lines that it was asked for and was killed"),
            ("yes | tr -d '\\n'", LIMITS, "printed more than the 1000 bytes"),
        ] {
            let start = Instant::now();
            let failure = run(&format!("{alive}{script}"), limits).unwrap_err();
            assert!(failure.reason.contains(part), "{script}: {failure:?}");
            assert!(start.elapsed() < Duration::from_secs(10), "{script}");
        }
        // what it leaves running when it ends is ended as well
        assert_eq!(run(&format!("({alive}) >/dev/null 2>&1 & echo done"), LIMITS).unwrap(), "done\n");
        std::thread::sleep(Duration::from_millis(1300));
        assert!(!mark.exists(), "a process outlived its program");
    }
}
