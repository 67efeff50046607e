//! Failures of a GPU, which burn reports as panics: of its device thread, where the work it had then is lost without a word
//! to whoever asked for it, or of the thread that reads a result.
//!
//! [`guard`] keeps both from the user and remembers them; [`check`] asks whether one has happened. Whoever has read a value
//! from the device and asks afterwards knows that the value is right, since the device does its work in order.

#![cfg_attr(not(feature = "cuda"), allow(dead_code))] // without CUDA there is nothing to guard, but the trainer asks

use anyhow::{Result, bail};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Faults, oldest first; more than the first few are consequences of these.
static FAULTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Whether [`FAULTS`] has any: read after every step.
static FAILED: AtomicBool = AtomicBool::new(false);
/// Faults that are kept.
const KEPT: usize = 8;
/// Characters of a fault that are shown: compilers quote the whole source of a kernel.
const SHOWN: usize = 300;

thread_local! {
    /// Whether this thread is inside [`guard`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, which computes on the GPU `device`, and then `finish`, which waits until the device has nothing left to
/// do: a process must not end under its hands. A failure of the device is an error, regardless of the result of `work`.
///
/// # Errors
/// Those of `work`; the device failed.
pub fn guard<T>(device: &str, work: impl FnOnce() -> Result<T>, finish: impl FnOnce()) -> Result<T> {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |info| {
            if !remember(info) {
                others(info)
            }
        }));
    });
    FAULTS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    FAILED.store(false, Ordering::SeqCst);
    GUARDED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let _ = catch_unwind(AssertUnwindSafe(finish)); // what goes wrong in it is remembered as well
    GUARDED.set(false);
    match (outcome, check()) {
        (_, Err(fault)) => Err(fault.context(format!("{device} failed"))),
        (Ok(outcome), Ok(())) => outcome,
        (Err(_), Ok(())) => bail!("{device} failed, and did not say why"),
    }
}

/// Whether the device has done all that it was asked to until the last value that was read from it.
///
/// # Errors
/// It failed: in a line what it said, and what to do about it.
pub fn check() -> Result<()> {
    if !FAILED.load(Ordering::SeqCst) {
        return Ok(());
    }
    let faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    bail!("{}", describe(&faults))
}

/// Takes note of a panic of the device's thread, or of a guarded one; other panics are not its business.
fn remember(info: &PanicHookInfo<'_>) -> bool {
    // cubecl calls the threads of its devices DSU-<type>-<index> and DSD-….
    let of_device =
        std::thread::current().name().is_some_and(|name| name.starts_with("DSU-") || name.starts_with("DSD-"));
    if !of_device && !GUARDED.get() {
        return false;
    }
    let mut faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    if faults.len() < KEPT {
        let place =
            info.location().map(|at| format!(" ({}:{})", at.file().rsplit('/').next().unwrap_or_default(), at.line()));
        faults.push(format!("{}{}", info.payload_as_str().unwrap_or("a panic"), place.unwrap_or_default()));
    }
    FAILED.store(true, Ordering::SeqCst);
    true
}

/// `faults` as a message, and a hint.
fn describe(faults: &[String]) -> String {
    let has = |signs: &[&str]| faults.iter().find(|fault| signs.iter().any(|sign| fault.to_lowercase().contains(sign)));
    if has(&["out of memory", "out_of_memory", "out-of-memory", "can't allocate buffer", "buffertoobig"]).is_some() {
        return "out of device memory\n  hint: lower train.batch_size, raise train.accumulate (more and smaller pieces of \
                a step), or lower model.hidden_size; other programs on the GPU take memory as well (nvidia-smi)"
            .into();
    }
    if has(&["unsupported_ptx", "unsupported ptx", "unsupportedptx"]).is_some() {
        return "the driver is too old for the installed NVRTC, whose code it does not read\n  hint: update the driver, or \
                install an NVRTC of the CUDA version that `pipeline doctor` prints for the driver"
            .into();
    }
    if has(&["selected by autotune"]).is_some() {
        return "burn chose a kernel, by timing similar sizes, that cannot run at this one\n  hint: `pipeline train --resume` \
                with CUBECL_AUTOTUNE_LEVEL=full chooses among more, after removing inductive-counting/autotune from the \
                user's cache folder; or train with --device cpu"
            .into();
    }
    if let Some(fault) = has(&["nvrtc", "compilation error", "failed to compile"]) {
        return format!(
            "a kernel could not be compiled: {}\n  hint: `pipeline doctor` shows the compiler that is used; NVRTC must be \
             whole (libnvrtc-builtins beside libnvrtc) and have the headers of its own version in CUDA_PATH",
            shorten(compiler_error(fault))
        );
    }
    let fault = faults.first().map_or("no reason given", String::as_str);
    format!(
        "the driver or a kernel gave up: {}\n  hint: `nvidia-smi` and the system's log may say more",
        shorten(fault)
    )
}

/// The first line of a compiler's output that is an error, or all of it.
fn compiler_error(fault: &str) -> &str {
    fault.lines().find(|line| line.contains("error:") || line.contains("nvrtc:")).unwrap_or(fault)
}

/// The beginning of a text, in one line.
fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn device_thread(work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().name("DSD-0-0".into()).spawn(work).unwrap();
        let _ = thread.join(); // as cubecl does, nobody is told
    }

    // One test: what it looks at is the whole process's.
    #[test]
    fn a_device_that_fails_ends_the_work_even_if_nobody_noticed() {
        let text = |result: Result<i32>| format!("{:#}", result.unwrap_err());
        assert_eq!(guard("cuda:0", || Ok(3), || ()).unwrap(), 3);
        let own = text(guard("cuda:0", || bail!("its own error"), || ()));
        assert_eq!(own, "its own error");

        let work = || {
            device_thread(|| panic!("called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 12"));
            assert!(check().is_err(), "asked while it works");
            Ok(3)
        };
        let unnoticed = text(guard("cuda:0", work, || ()));
        assert!(unnoticed.contains("cuda:0 failed") && unnoticed.contains("out of device memory"), "{unnoticed}");
        assert!(unnoticed.contains("train.batch_size"), "{unnoticed}");

        let source =
            format!("nvrtc: error: cannot open libnvrtc-builtins\n{}", "__global__ void f() {}\n".repeat(30_000));
        let compiler = text(guard("cuda:1", move || -> Result<i32> { panic!("{source}") }, || ()));
        assert!(compiler.contains("cannot open libnvrtc-builtins") && compiler.len() < 1000, "{compiler}");
        assert!(!compiler.contains("__global__"), "{compiler}");

        let other = text(guard("cuda:0", || Ok(3), || panic!("illegal address {}", "x".repeat(5000))));
        assert!(other.contains("illegal address") && other.len() < 1000, "{other}");
        assert_eq!(guard("cuda:0", || Ok(4), || ()).unwrap(), 4, "a fault is that of its own guard");
    }
}
