//! Locks on files: one process has a file to itself, or several share it. The system lets go of a lock when its process
//! ends, in any way, so that none is ever left behind; the file itself may stay, and means nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Others take a lock for a moment to see whether it is free: whoever wants it asks for this long.
#[cfg(feature = "train")]
const PATIENCE: Duration = Duration::from_millis(400);

/// A lock, held until the value is dropped.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    /// Goes with the lock, where nobody shares it.
    temporary: Option<PathBuf>,
}

/// Who else may hold the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody.
    Exclusive,
    /// Others that share it.
    Shared,
}

/// The result of asking for a lock.
#[derive(Debug)]
pub enum Attempt {
    /// It is ours.
    Held(FileLock),
    /// Another process has it.
    Taken,
    /// There is no lock to be had: the folder cannot be written, or its file system has none.
    Impossible(#[cfg_attr(not(feature = "train"), allow(dead_code))] io::Error), // evaluation goes on without
}

/// Asks for the lock on `path`, which is created where it is missing, once.
pub fn attempt(path: &Path, kind: Kind) -> Attempt {
    // A file that was deleted in the meantime, and maybe made again, locks nothing out: then once more. (Where files
    // have no lasting numbers, the last time has to do.)
    for again in (0..10).rev() {
        let file = match open(path, kind) {
            Ok(file) => file,
            Err(error) => return Attempt::Impossible(error),
        };
        let locked = match kind {
            Kind::Exclusive => file.try_lock(),
            Kind::Shared => file.try_lock_shared(),
        };
        match locked {
            Ok(()) if is_at(&file, path) || again == 0 => {
                return Attempt::Held(FileLock { file, temporary: None });
            }
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => return Attempt::Taken,
            Err(TryLockError::Error(error)) => return Attempt::Impossible(error),
        }
    }
    Attempt::Taken
}

/// [`attempt`], over and over until the lock is not taken or `enough` says so, which is told for how long it has been.
pub fn attempt_until(path: &Path, kind: Kind, mut enough: impl FnMut(Duration) -> bool) -> Attempt {
    let start = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        match attempt(path, kind) {
            Attempt::Taken if !enough(start.elapsed()) => std::thread::sleep(pause),
            other => return other,
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}

/// [`attempt`] that is not put off by those who only look.
#[cfg(feature = "train")]
pub fn attempt_patiently(path: &Path, kind: Kind) -> Attempt {
    attempt_until(path, kind, |waited| waited > PATIENCE)
}

/// Whether a process holds the lock on `path`; without making the file.
#[cfg(feature = "train")]
pub fn is_taken(path: &Path) -> bool {
    let file = File::open(path);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

impl FileLock {
    /// Lets others share what this process had to itself.
    pub fn share(&self) -> io::Result<()> {
        self.file.lock_shared()
    }

    /// Deletes the file, which is at `path`, when the last who shares the lock drops it.
    pub fn and_its_file(mut self, path: &Path) -> Self {
        self.temporary = Some(path.to_owned());
        self
    }

    /// The locked file: the lock is held for as long as a process has it open.
    #[cfg(feature = "train")]
    pub fn to_file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary
            && self.file.try_lock().is_ok()
            && is_at(&self.file, path)
        {
            let _ = std::fs::remove_file(path); // the lock counts, not the file
        }
    }
}

fn open(path: &Path, kind: Kind) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    // Whoever cannot write can still share.
    file.or_else(|error| if kind == Kind::Shared { File::open(path).map_err(|_| error) } else { Err(error) })
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: io::Result<std::fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    identity(file.metadata()) == identity(path.metadata())
}

/// A file that is open cannot be deleted there.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_writes_or_several_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let Attempt::Held(first) = attempt(&path, Kind::Exclusive) else { unreachable!("nobody has it") };
        assert!(matches!(attempt(&path, Kind::Exclusive), Attempt::Taken));
        assert!(matches!(attempt(&path, Kind::Shared), Attempt::Taken));
        first.share().unwrap();
        assert!(matches!(attempt(&path, Kind::Shared), Attempt::Held(_)));
        assert!(matches!(attempt(&path, Kind::Exclusive), Attempt::Taken));
        drop(first);
        assert!(matches!(attempt(&path, Kind::Exclusive), Attempt::Held(_)));
        assert!(matches!(attempt(&dir.path().join("gone/lock"), Kind::Shared), Attempt::Impossible(_)));
    }

    #[test]
    fn the_last_deletes_a_file_that_is_there_for_the_lock_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let share = || match attempt(&path, Kind::Shared) {
            Attempt::Held(lock) => lock.and_its_file(&path),
            _ => unreachable!("all share it"),
        };
        let (first, second) = (share(), share());
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    /// Who waited for a lock whose file was deleted meanwhile has locked nothing, and asks for the one that is there.
    #[test]
    fn the_lock_is_that_of_the_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let Attempt::Held(old) = attempt(&path, Kind::Exclusive) else { unreachable!("nobody has it") };
        std::fs::remove_file(&path).unwrap();
        let Attempt::Held(_new) = attempt(&path, Kind::Exclusive) else { unreachable!("it is another file") };
        drop(old);
        assert!(matches!(attempt(&path, Kind::Exclusive), Attempt::Taken));
    }
}
