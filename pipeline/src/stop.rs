//! Stopping at the end of a step.
//!
//! Batch systems, terminals and people ask in different ways: Ctrl-C is SIGINT, `kill` and Slurm's `scancel` send
//! SIGTERM, a terminal that closes SIGHUP, batch systems that give notice SIGUSR1, SIGUSR2 or SIGXCPU. The first of
//! them asks to save and stop. Another SIGINT, SIGTERM or SIGQUIT says that this takes too long, unless it comes within
//! a second: that is the same request on its second way, as where Slurm signals all processes of a job and a grid
//! passes it on to its child.

use anyhow::{Context, Result};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::low_level;
use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The exit status of a process that a second signal ended, as shells report Ctrl-C.
const STOPPED: c_int = 130;

/// Signals within this time of the first are the first.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// The zero of the clock.
static START: OnceLock<Instant> = OnceLock::new();
/// Milliseconds since the start at which stopping was asked for, plus one; 0 where it was not.
static REQUESTED: AtomicU64 = AtomicU64::new(0);
/// Whether it was asked for again.
static URGENT: AtomicBool = AtomicBool::new(false);
/// Whether asking again ends the process.
static ENDS: AtomicBool = AtomicBool::new(false);

/// The effect of a second signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    /// It ends the process, at once.
    Ends,
    /// It is for the process to act on: see [`is_urgent`].
    IsTold,
}

/// From now on signals ask to stop instead of ending the process. Calling it again changes nothing.
pub fn listen(second: Second) -> Result<()> {
    if START.set(Instant::now()).is_err() {
        return Ok(());
    }
    ENDS.store(second == Second::Ends, Ordering::Relaxed);
    for signal in TERM_SIGNALS.iter().chain(NOTICES) {
        // A process that was started with nohup outlives its terminal.
        if !(is_of_terminals(*signal) && is_ignored(*signal)) {
            register(*signal).context("cannot listen for signals")?;
        }
    }
    Ok(())
}

/// Whether a signal has asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed) != 0
}

/// Whether a second signal has asked to stop at once.
pub fn is_urgent() -> bool {
    URGENT.load(Ordering::Relaxed)
}

/// Signals that only ask.
#[cfg(unix)]
const NOTICES: &[c_int] = {
    use signal_hook::consts::{SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU};
    &[SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU]
};
#[cfg(not(unix))]
const NOTICES: &[c_int] = &[];

#[allow(unsafe_code)]
fn register(signal: c_int) -> std::io::Result<()> {
    // SAFETY: `arrived` does what a handler may do: it reads the clock, loads and stores atomics, and calls `_exit`.
    unsafe { low_level::register(signal, move || arrived(signal)) }.map(drop)
}

/// Runs in the signal's handler.
fn arrived(signal: c_int) {
    let Some(start) = START.get() else { return };
    let now = start.elapsed().as_millis() as u64 + 1;
    let Err(first) = REQUESTED.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) else { return };
    if !NOTICES.contains(&signal) && now > first + SAME_REQUEST.as_millis() as u64 {
        URGENT.store(true, Ordering::Relaxed);
        if ENDS.load(Ordering::Relaxed) {
            low_level::exit(STOPPED);
        }
    }
}

/// Whether it is what a terminal sends when it closes.
#[cfg(unix)]
fn is_of_terminals(signal: c_int) -> bool {
    signal == libc::SIGHUP
}
#[cfg(not(unix))]
fn is_of_terminals(_: c_int) -> bool {
    false
}

/// Whether the process was started with the signal ignored.
#[cfg(unix)]
#[allow(unsafe_code)]
fn is_ignored(signal: c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, `sigaction` writes the current one to the pointer, which is to a live local, and
    // returns 0; only then is it read.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
#[cfg(not(unix))]
fn is_ignored(_: c_int) -> bool {
    false
}

/// Asks another process of this program to save and stop, with a signal that never counts as a second one; whether it could
/// be asked.
#[cfg(unix)]
#[allow(unsafe_code)]
pub fn ask(child: &std::process::Child) -> bool {
    let Ok(id) = libc::pid_t::try_from(child.id()) else { return false };
    // SAFETY: `kill` takes any two numbers; the child was not waited for, so that the id is its own.
    unsafe { libc::kill(id, libc::SIGUSR1) == 0 }
}
/// Signals are unknown here.
#[cfg(not(unix))]
pub fn ask(_: &std::process::Child) -> bool {
    false
}
