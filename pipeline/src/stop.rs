//! Stopping at the end of a step: the first SIGINT or SIGTERM asks for it, the second ends the process at once.

use anyhow::{Context, Result};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// The exit status of a process that a second signal ended, as shells report Ctrl-C.
const STOPPED: i32 = 130;

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on signals ask to stop instead of ending the process. Calling it again changes nothing.
pub fn listen() -> Result<()> {
    if REQUESTED.get().is_some() {
        return Ok(());
    }
    let requested = REQUESTED.get_or_init(Arc::default);
    for signal in TERM_SIGNALS {
        // In this order: the flag is still unset when the first signal is asked whether to end the process.
        flag::register_conditional_shutdown(*signal, STOPPED, Arc::clone(requested))
            .and_then(|_| flag::register(*signal, Arc::clone(requested)))
            .context("cannot listen for signals")?;
    }
    Ok(())
}

/// Whether a signal has asked to stop.
pub fn requested() -> bool {
    REQUESTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}
