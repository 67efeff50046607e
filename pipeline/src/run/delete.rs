//! Deleting a run, so that half of one is never taken for a run.

use super::RunDir;
use super::lock::FileLock;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where runs go that are being deleted.
const DELETED: &str = ".deleted-";

impl RunDir {
    /// Deletes the run, which nobody may be at: `locks` are those of [`Self::lock_all`]. It goes out of the way first,
    /// so that half of a run is never taken for one.
    pub(crate) fn delete(&self, locks: Vec<FileLock>) -> Result<()> {
        let doing = || format!("cannot delete {}", self.path.display());
        let runs = self.path.parent().unwrap_or(Path::new("."));
        let mut doomed = runs.join(format!("{DELETED}{}", self.handle));
        for attempt in 2.. {
            if doomed.symlink_metadata().is_err() {
                break;
            }
            doomed = runs.join(format!("{DELETED}{}-{attempt}", self.handle));
        }
        fs::rename(&self.path, &doomed).with_context(doing)?;
        // NFS keeps files that are still open under another name, in the same folder: ours are closed first.
        drop(locks);
        let removed = remove_folder(&doomed);
        removed.with_context(|| format!("run `{}` is no more, but not all of its files are gone", self.handle))
    }

    /// Removes what is left of runs whose deletion was cut short.
    pub(crate) fn remove_deleted(runs: &Path) {
        for entry in fs::read_dir(runs).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(DELETED) {
                let _ = fs::remove_dir_all(entry.path()); // or the next time
            }
        }
    }
}

/// Removes a folder; several times, because a file that another process has open may stay for a while.
fn remove_folder(path: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) if start.elapsed() < Duration::from_secs(2) => std::thread::sleep(Duration::from_millis(50)),
            result => {
                return result.with_context(|| {
                    format!("cannot remove {}\n  hint: another program may have files in it open; end it and remove the folder", path.display())
                });
            }
        }
    }
}
