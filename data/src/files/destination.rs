//! The file that a path names: links followed, devices and pipes told apart, two spellings compared.

use super::is_missing;
use crate::DataError;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

/// Links that are followed one after the other at most; Linux follows as many.
const MOST_LINKS: usize = 40;

/// The destination that a path names, all links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The path that the links lead to.
    pub path: PathBuf,
    /// The kind of file there.
    pub kind: DestinationKind,
}

/// See [`Destination`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestinationKind {
    /// Nothing yet.
    New,
    /// A regular file, which is replaced as a whole.
    File,
    /// A device or a pipe, which is written into.
    Stream,
    /// This process's standard output.
    Stdout,
    /// This process's standard error.
    Stderr,
}

impl DestinationKind {
    /// Whether output passes through, so that no file remains.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Stream | Self::Stdout | Self::Stderr)
    }
}

/// Follows all links of `path`, also dangling ones.
///
/// # Errors
/// It is a folder, or something that cannot hold a file (a disk, a socket); links lead in circles; a folder on the
/// way may not be looked into.
pub fn destination(path: &Path) -> Result<Destination, DataError> {
    let failed = |source| Err(DataError::Io { action: "write", path: path.into(), source });
    let mut real = path.to_path_buf();
    for _ in 0..=MOST_LINKS {
        let ends_in_separator = real.to_string_lossy().ends_with(std::path::is_separator);
        if real.file_name().is_none() || ends_in_separator {
            return failed(ErrorKind::IsADirectory.into());
        }
        if let Some(kind) = descriptor(&real) {
            return Ok(Destination { path: real, kind });
        }
        let found = match real.symlink_metadata() {
            Ok(found) => found,
            // Failures to create missing folders show when they are created.
            Err(e) if is_missing(&e) => {
                return Ok(Destination { path: real, kind: DestinationKind::New });
            }
            Err(e) => return failed(e),
        };
        if found.is_dir() {
            return failed(ErrorKind::IsADirectory.into());
        }
        if !found.is_symlink() {
            let kind = if found.is_file() { Some(DestinationKind::File) } else { stream(found.file_type()) };
            return match kind {
                Some(kind) => Ok(Destination { path: real, kind }),
                None => failed(io::Error::other("it is no file, no pipe and no character device")),
            };
        }
        match real.read_link() {
            Ok(target) => real = folder_of(&real).join(target),
            Err(e) => return failed(e),
        }
    }
    failed(io::Error::other("its links lead in circles"))
}

/// `/dev/stdout`, `/dev/fd/1` and the like: their link targets are not real paths.
fn descriptor(path: &Path) -> Option<DestinationKind> {
    let number: u32 = path.file_name()?.to_str()?.parse().ok()?;
    let folder = folder_of(path).canonicalize().ok()?;
    let own = Path::new("/proc/self/fd").canonicalize().ok();
    (Some(&folder) == own.as_ref() || folder == Path::new("/dev/fd")).then_some(match number {
        1 => DestinationKind::Stdout,
        2 => DestinationKind::Stderr,
        _ => DestinationKind::Stream,
    })
}

#[cfg(unix)]
fn stream(kind: std::fs::FileType) -> Option<DestinationKind> {
    use std::os::unix::fs::FileTypeExt;
    (kind.is_char_device() || kind.is_fifo()).then_some(DestinationKind::Stream)
}

#[cfg(not(unix))]
fn stream(_: std::fs::FileType) -> Option<DestinationKind> {
    None
}

/// The folder that a file is in; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// A canonical path, whether or not something is there: absolute, links followed, no `.` and `..`.
pub fn place(path: &Path) -> PathBuf {
    let path = destination(path).map_or_else(|_| path.to_path_buf(), |destination| destination.path);
    if let Ok(found) = path.canonicalize() {
        return found;
    }
    let absolute = std::path::absolute(&path).unwrap_or(path);
    for folder in absolute.ancestors().skip(1) {
        let (Ok(found), Ok(rest)) = (folder.canonicalize(), absolute.strip_prefix(folder)) else { continue };
        let mut place = found;
        for part in rest.components() {
            match part {
                Component::ParentDir => _ = place.pop(),
                Component::CurDir => {}
                other => place.push(other),
            }
        }
        return place;
    }
    absolute
}

/// Whether two paths lead to one file: through links, hard links or another spelling.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(found_a), Ok(found_b)) => is_same_inode(&found_a, &found_b) || place(a) == place(b),
        _ => place(a) == place(b),
    }
}

#[cfg(unix)]
fn is_same_inode(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_inode(_: &std::fs::Metadata, _: &std::fs::Metadata) -> bool {
    false
}
