//! Threads, even where the system allows few of them: `ulimit -u`, a container's limit of processes and a full machine
//! all make starting one fail. The standard library panics then; everything here continues with fewer, on the calling
//! thread if necessary, or returns an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// The most threads that can be requested: more than any machine has cores for one process.
pub const MOST: usize = 1024;
/// How often [`share_until`] asks while it waits for the other threads.
const ASKED_EVERY: Duration = Duration::from_millis(50);

/// The system refused to start a thread.
#[derive(Debug, thiserror::Error)]
#[error(
    "the system allows no more threads ({source})\n  hint: raise `ulimit -u` or the limit of processes of the container, or lower --threads"
)]
pub struct NoThread {
    source: std::io::Error,
}

/// As many threads as this process may use at once.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST)
}

/// Starts a thread.
///
/// # Errors
/// The system allows no more; `work` is then dropped.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, NoThread> {
    Builder::new().spawn_scoped(scope, work).map_err(|source| NoThread { source })
}

/// Whether the system lets this process have `count` more threads right now: they are started, and end. For libraries
/// that hang if they cannot start a thread.
pub fn are_allowed(count: usize) -> bool {
    let before = running();
    let gate = Mutex::new(()); // held until all are there at once
    let started = std::thread::scope(|scope| {
        let held = gate.lock();
        let wait = || drop(gate.lock());
        let started = (0..count).take_while(|_| spawn(scope, wait).is_ok()).count();
        drop(held);
        started
    });
    // A thread that has ended still counts until the system has released it.
    let patience = Instant::now() + Duration::from_millis(200);
    while running() > before && Instant::now() < patience {
        std::thread::sleep(Duration::from_micros(100));
    }
    started == count
}

/// The threads of this process, as far as the system says.
fn running() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Runs `work` on up to `count` threads at once, of which the calling one is the first, and returns when all have
/// ended. `work` takes its share from a queue of its own, so that fewer threads do the same.
pub fn share(count: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        let _ = (1..count).try_for_each(|_| spawn(scope, &work).map(|_| ()));
        work();
    });
}

/// [`share`] for long work that may be stopped; returns whether it was. `work` gets a function that says whether to stop,
/// and returns early once it does. On the calling thread that function is `stop`; the other threads follow it.
pub fn share_until(
    count: usize,
    stop: &mut dyn FnMut() -> bool,
    work: impl Fn(&mut dyn FnMut() -> bool) + Sync,
) -> bool {
    let stopped = AtomicBool::new(false);
    let mut asked = || {
        if !stopped.load(Relaxed) && stop() {
            stopped.store(true, Relaxed);
        }
        stopped.load(Relaxed)
    };
    let (working, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (work, stopped) = (&work, &stopped);
        let _ = (1..count).try_for_each(|_| {
            let working = working.clone(); // closed when this thread ends
            spawn(scope, move || {
                work(&mut || stopped.load(Relaxed));
                drop(working);
            })
            .map(|_| ())
        });
        drop(working);
        work(&mut asked);
        while ended.recv_timeout(ASKED_EVERY) == Err(RecvTimeoutError::Timeout) {
            asked();
        }
    });
    stopped.into_inner()
}

/// Runs every job, each on a thread of its own as far as the system allows, the others one after the other on the
/// calling thread. Returns their results in order; `Err` where one panicked.
pub fn all<T: Send>(jobs: impl IntoIterator<Item = impl FnOnce() -> T + Send>) -> Vec<std::thread::Result<T>> {
    // A thread that cannot be started drops its closure. So each fetches its job when it runs.
    let jobs: Vec<_> = jobs.into_iter().map(|job| Mutex::new(Some(job))).collect();
    let run = |index: usize| {
        let job = jobs[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        job.map(|job| catch_unwind(AssertUnwindSafe(job)))
    };
    std::thread::scope(|scope| {
        let run = &run;
        let started: Vec<_> = (0..jobs.len()).map(|index| spawn(scope, move || run(index)).ok()).collect();
        let here: Vec<_> = started.iter().enumerate().map(|(i, thread)| thread.is_none().then(|| run(i))).collect();
        let ended = started.into_iter().zip(here).map(|(thread, here)| match (thread, here) {
            (Some(thread), _) => thread.join().unwrap_or_else(|panic| Some(Err(panic))),
            (None, outcome) => outcome.flatten(),
        });
        ended.flatten().collect() // every job ran once
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn threads_can_be_tried_out() {
        assert!(are_allowed(0) && are_allowed(1) && are_allowed(9));
    }

    #[test]
    fn all_jobs_run_once_and_their_results_keep_the_order() {
        let squares = all((0..20u32).map(|n| move || n * n));
        assert_eq!(squares.into_iter().map(Result::unwrap).collect::<Vec<_>>()[..4], [0, 1, 4, 9]);
        let outcomes = all([false, true].map(|fails| move || if fails { panic!("as asked") } else { 1 }));
        assert!(outcomes[0].as_ref().is_ok_and(|one| *one == 1) && outcomes[1].is_err());
        let (next, sum) = (AtomicUsize::new(1), AtomicUsize::new(0));
        share(4, || {
            while let Some(n) = Some(next.fetch_add(1, Relaxed)).filter(|n| *n <= 100) {
                sum.fetch_add(n, Relaxed);
            }
        });
        assert_eq!(sum.into_inner(), 5050);
    }

    #[test]
    fn shared_work_stops_in_every_thread_and_while_the_others_are_waited_for() {
        let (next, sum) = (AtomicUsize::new(1), AtomicUsize::new(0));
        let stopped = share_until(4, &mut || false, |stop| {
            while let Some(n) = Some(next.fetch_add(1, Relaxed)).filter(|n| *n <= 100 && !stop()) {
                sum.fetch_add(n, Relaxed);
            }
        });
        assert!(!stopped);
        assert_eq!(sum.into_inner(), 5050);
        // The calling thread ends at once; the others go on until somebody says stop.
        let caller = std::thread::current().id();
        let mut asked = 0;
        let mut at_the_third = || {
            asked += 1;
            asked >= 3
        };
        let stopped = share_until(3, &mut at_the_third, |stop| {
            while std::thread::current().id() != caller && !stop() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(stopped && asked == 3, "{asked}");
    }
}
