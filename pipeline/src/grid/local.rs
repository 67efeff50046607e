//! Jobs in worker processes on this machine.

use super::file::Job;
use super::job::{KnownRuns, Runner, Share, State};
use crate::cli::progress::Progress;
use crate::stop;
use anyhow::{Context, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// How many jobs run at the same time, and the GPUs that they share.
pub struct Workers {
    /// Jobs at the same time.
    pub number: usize,
    /// Values of `CUDA_VISIBLE_DEVICES` that workers take in turn; none where there is no GPU.
    pub gpus: Vec<String>,
}

impl Workers {
    /// As many as asked for; one per GPU, or one, by default.
    pub fn of(asked: Option<u16>) -> Self {
        let found = || crate::cuda::driver().map_or(0, |driver| driver.devices.len());
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let gpus = if cfg!(feature = "cuda") { gpus(visible.as_deref(), found()) } else { vec![] };
        Self { number: asked.map_or(gpus.len().max(1), usize::from), gpus }
    }
}

/// Runs jobs to their ends, several at a time, until they are done or a signal asks to stop. Returns those that were begun:
/// their indices, how far they came, and the seconds that this call spent on them.
///
/// # Errors
/// The files of the jobs cannot be written or locked. What goes wrong inside a job is its [`State::Failed`].
pub fn run_all(
    progress: &Progress,
    name: &str,
    jobs: &[&Job],
    runner: &Runner,
    known: &KnownRuns,
    workers: &Workers,
) -> Result<Vec<(usize, State, f64)>> {
    let Workers { number, gpus } = workers;
    let threads = (*number > 1).then(|| (data::threads::available() / number).max(1));
    let bar = progress.bar(name.to_owned(), jobs.len() as u64, "jobs");
    let (next, finished) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = |worker: usize| -> Result<()> {
        let gpu = (!gpus.is_empty()).then(|| gpus[worker % gpus.len()].clone());
        let share = Share { threads, gpu, own_group: true };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index).filter(|_| !stop::requested()) else { return Ok(()) };
            let start = Instant::now();
            let state = runner.run(job, known, &share)?;
            let seconds = start.elapsed().as_secs_f64();
            bar.inc(1);
            progress.note(format!("{} · {} · {seconds:.0} s", job.name, state.name()));
            finished.lock().unwrap_or_else(|e| e.into_inner()).push((index, state, seconds));
        }
    };
    let work = &work;
    let ended = data::threads::all((0..(*number).min(jobs.len())).map(|worker| move || work(worker)));
    ended.into_iter().try_for_each(|ended| ended.ok().context("a worker of the grid broke off")?)?;
    bar.finish_and_clear();
    Ok(finished.into_inner().unwrap_or_else(|e| e.into_inner()))
}

/// The values of `CUDA_VISIBLE_DEVICES` that give a worker a GPU of its own, of a list and the number of devices that the
/// driver shows for it. A list ends, as for CUDA, at the first entry that is no device: a number that is too large or -1,
/// nothing, or a device that was named already.
fn gpus(list: Option<&str>, found: usize) -> Vec<String> {
    let Some(list) = list else { return (0..found).map(|gpu| gpu.to_string()).collect() };
    let mut gpus: Vec<String> = Vec::new();
    for gpu in list.split(',').map(str::trim).take(found) {
        let is_named = |prefix: &str| gpu.len() > prefix.len() && gpu.starts_with(prefix);
        let is_number = !gpu.is_empty() && gpu.bytes().all(|byte| byte.is_ascii_digit());
        if !(is_number || is_named("GPU-") || is_named("MIG-")) || gpus.iter().any(|other| other == gpu) {
            break;
        }
        gpus.push(gpu.to_owned());
    }
    gpus
}

#[cfg(test)]
mod tests {
    use super::gpus;

    #[test]
    fn a_worker_has_a_gpu_that_the_driver_has() {
        assert_eq!(gpus(None, 2), ["0", "1"]);
        assert_eq!(gpus(Some("3, 1"), 2), ["3", "1"]);
        assert!(gpus(Some("0,1,2,3"), 0).is_empty(), "there is no GPU");
        assert!(gpus(None, 0).is_empty());
        assert!(gpus(Some(""), 0).is_empty());
        // CUDA ends such lists early: the rest is not there.
        assert_eq!(gpus(Some("1,-1"), 1), ["1"]);
        assert_eq!(gpus(Some("1,-1,0"), 1), ["1"]);
        assert_eq!(gpus(Some("0,,1"), 1), ["0"]);
        assert_eq!(gpus(Some("0,9,1"), 1), ["0"]);
        assert_eq!(gpus(Some("GPU-8932f937,GPU-77"), 2), ["GPU-8932f937", "GPU-77"]);
        assert_eq!(gpus(Some("MIG-8932f937"), 1), ["MIG-8932f937"]);
        // Regardless of the driver, no two workers share what is one device.
        assert_eq!(gpus(Some("1,-1"), 2), ["1"]);
        assert_eq!(gpus(Some("0,0"), 2), ["0"]);
    }
}
