//! The threads that the kernels of the CPU share.

use data::threads;
use rayon::ThreadPoolBuilder;
use std::io::{Error, ErrorKind};
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;

/// Starts rayon's threads, on which everything on a CPU is computed: as many as `RAYON_NUM_THREADS` says, or as there
/// are cores; fewer where the system allows no more, and none but the calling one where it allows none.
///
/// A program calls it before it computes anything. Rayon itself starts its threads when they are first needed, and
/// panics where one is refused. Calling it again changes nothing.
pub fn start() {
    let named = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.trim().parse::<usize>().ok());
    let cores = threads::available();
    // A typing error must not start thousands; more than a few per core only wait for each other.
    start_threads(named.filter(|n| *n > 0).map_or(cores, |n| n.min(4 * cores).min(threads::MOST)));
}

fn start_threads(most: usize) {
    // Threads are started first and get their work afterwards: a pool that fails half-way can never be built again.
    let idle = |_| -> Option<Sender<rayon::ThreadBuilder>> {
        let (work, given) = channel::<rayon::ThreadBuilder>();
        let wait = move || given.recv().into_iter().for_each(rayon::ThreadBuilder::run);
        Builder::new().name("kernels".into()).spawn(wait).ok().map(|_| work)
    };
    let mut waiting: Vec<_> = (0..most).map_while(idle).collect();
    let pool = match waiting.len() {
        0 => ThreadPoolBuilder::new().num_threads(1).use_current_thread(),
        found => ThreadPoolBuilder::new().num_threads(found),
    };
    let give = move |thread| {
        let refused = || Error::from(ErrorKind::WouldBlock);
        let work = waiting.pop().ok_or_else(refused)?;
        work.send(thread).map_err(|_| refused())
    };
    let _ = pool.spawn_handler(give).build_global(); // fails only where there is one already
}
