//! Files that appear whole or not at all.
//!
//! All output files go through [`write_atomic`]: into a temporary file beside its destination, flushed to disk,
//! renamed. Links are followed, so that a link stays one; devices and pipes are written into. Missing features of a
//! file system (CIFS and FUSE often have no permissions and no flush) are reported once and do not lose a result.

mod destination;

pub use destination::{Destination, DestinationKind, destination, folder_of, is_same_file, place};

use crate::DataError;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, OnceLock};

/// Writes `path` through `fill`: into a temporary file in the same folder, flushed to disk, then renamed.
///
/// When `fill` or the disk fails, the temporary file is removed and the previous file at `path` stays.
/// Parent folders are created. A new file gets the permissions that the umask gives, a replaced one keeps its own.
/// Other than regular files (see [`destination`]), destinations are written into.
pub fn write_atomic<E>(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E>
where
    E: From<DataError>,
{
    let destination = destination(path)?;
    if destination.kind.is_stream() {
        return fill(&mut open_stream(&destination).map_err(DataError::io("write", path))?);
    }
    let folder = folder_of(&destination.path);
    make_folder(folder)?;
    let mut temporary = temporary_in(folder).map_err(DataError::io("write", path))?;
    fill(temporary.as_file_mut())?;
    if destination.kind == DestinationKind::File {
        keep_permissions(temporary.as_file(), &destination.path);
    }
    flush(temporary.as_file()).map_err(DataError::io("write", path))?;
    temporary.persist(&destination.path).map_err(|e| DataError::io("write", path)(e.error))?;
    sync_folder(folder);
    Ok(())
}

/// [`write_atomic`] for bytes that are already in memory.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    write_atomic(path, |file| file.write_all(bytes).map_err(DataError::io("write", path)))
}

/// Checks that `path` can be written, before the work that it is for: writes a temporary file into its folder and
/// removes it. If that folder does not exist yet, its nearest existing parent is tried.
///
/// # Errors
/// The error that [`write_atomic`] would fail with.
pub fn probe(path: &Path) -> Result<(), DataError> {
    let destination = destination(path)?;
    match destination.kind {
        DestinationKind::New => {}
        DestinationKind::File => {
            // A write-protected file must not be replaced through its folder.
            let opened = OpenOptions::new().append(true).open(&destination.path);
            opened.map_err(DataError::io("write", path))?;
        }
        _ => return Ok(()),
    }
    probe_folder(folder_of(&destination.path))
}

/// [`probe`] for a folder in which files are to be written.
///
/// # Errors
/// It cannot be created, or files in it cannot be written.
pub fn probe_folder(folder: &Path) -> Result<(), DataError> {
    for part in folder.ancestors() {
        let part = if part.as_os_str().is_empty() { Path::new(".") } else { part };
        let action = if part == folder { "write into" } else { "create the folder" };
        return match part.metadata() {
            Ok(found) if found.is_dir() => {
                let tried =
                    temporary_in(part).and_then(|mut file| file.write_all(b"probe").and_then(|()| file.close()));
                tried.map_err(DataError::io(action, folder))
            }
            Ok(_) => Err(DataError::io("create the folder", folder)(ErrorKind::NotADirectory.into())),
            // A dangling link blocks a folder.
            Err(e) if is_missing(&e) && !part.is_symlink() => continue,
            Err(e) => Err(DataError::io("create the folder", folder)(e)),
        };
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn make_folder(folder: &Path) -> Result<(), DataError> {
    // "A file is in the way" is clearer than "something exists".
    let told = |e: io::Error| if e.kind() == ErrorKind::AlreadyExists { ErrorKind::NotADirectory.into() } else { e };
    std::fs::create_dir_all(folder).map_err(told).map_err(DataError::io("create the folder", folder))
}

/// The prefix of temporary file names, followed by the process id and a random part.
const PARTIAL: &str = ".partial-";

/// An empty file with a name of its own, with the permissions that the umask gives; removed when dropped. It is locked
/// for as long as it is open, so that other processes see that it is in use.
fn temporary_in(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    remove_abandoned(folder);
    let mut builder = tempfile::Builder::new();
    let prefix = format!("{PARTIAL}{}-", std::process::id());
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder)?;
    let _ = temporary.as_file().try_lock(); // where there are no locks, nothing is removed either
    Ok(temporary)
}

/// Removes temporary files of killed processes from `folder`, the first time that this process writes into it.
fn remove_abandoned(folder: &Path) {
    static SEEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let Ok(place) = folder.canonicalize() else { return };
    if !SEEN.lock().unwrap_or_else(|e| e.into_inner()).insert(place) {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_abandoned(&entry) {
            let _ = std::fs::remove_file(entry.path()); // as far as possible
        }
    }
}

/// Whether a file has a name that only [`temporary_in`] gives, and its process is gone: by its id, where that can be
/// looked up, and because the lock is free, which also works across machines and containers.
fn is_abandoned(entry: &std::fs::DirEntry) -> bool {
    let name = entry.file_name();
    let process = || name.to_str()?.strip_prefix(PARTIAL)?.split_once('-')?.0.parse::<u32>().ok();
    let Some(process) = process().filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) else { return false };
    let processes = Path::new("/proc/self").exists();
    if process == std::process::id() || (processes && Path::new("/proc").join(process.to_string()).exists()) {
        return false;
    }
    File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
}

fn open_stream(destination: &Destination) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        // Standard output so far was printed before.
        let standard = match destination.kind {
            DestinationKind::Stdout => {
                io::stdout().flush()?;
                Some(io::stdout().as_fd().try_clone_to_owned()?)
            }
            DestinationKind::Stderr => Some(io::stderr().as_fd().try_clone_to_owned()?),
            _ => None,
        };
        if let Some(standard) = standard {
            return Ok(standard.into());
        }
    }
    OpenOptions::new().write(true).open(&destination.path)
}

/// Flushes a file to disk. A file system without flushing is no error; one that failed to write accepted data is.
///
/// # Errors
/// The disk is full or broken.
pub fn flush(file: &File) -> io::Result<()> {
    const BROKEN_DISK: i32 = 5; // EIO
    let Err(error) = file.sync_all() else { return Ok(()) };
    let lost = matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::TimedOut
    );
    if lost || error.raw_os_error() == Some(BROKEN_DISK) {
        return Err(error);
    }
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        warn(&format!("this file system cannot flush files to disk ({error}); a power cut may lose them"))
    });
    Ok(())
}

/// Flushes a folder's directory entry, so that a rename survives a power cut. Best effort: some systems refuse.
pub fn sync_folder(folder: &Path) {
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
}

/// Gives `file` the permissions of the one at `old`, where they differ.
#[cfg(unix)]
fn keep_permissions(file: &File, old: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = |metadata: std::fs::Metadata| metadata.permissions().mode() & 0o777;
    let (Ok(new), Ok(old)) = (file.metadata().map(mode), old.metadata().map(mode)) else { return };
    if new == old {
        return;
    }
    if let Err(error) = file.set_permissions(PermissionsExt::from_mode(old)) {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            warn(&format!("this file system has no permissions ({error}); replaced files get the default ones"));
        });
    }
}

#[cfg(not(unix))]
fn keep_permissions(_: &File, _: &Path) {}

type Warn = Box<dyn Fn(&str) + Send + Sync>;

static WARN: OnceLock<Warn> = OnceLock::new();

/// Sets the listener for warnings about missing features of the file system, each given once. Only the first call
/// counts.
pub fn on_warning(tell: impl Fn(&str) + Send + Sync + 'static) {
    let _ = WARN.set(Box::new(tell));
}

/// Calls the listener, see [`on_warning`].
pub fn warn(line: &str) {
    if let Some(tell) = WARN.get() {
        tell(line);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/file.txt");
        write_bytes(&path, b"old").unwrap();
        let failed: Result<(), DataError> = write_atomic(&path, |_| Err(DataError::TooLong { tokens: 2, pad_to: 1 }));
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_killed_processes_were_writing_goes_and_what_live_ones_write_stays() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: String| fs::write(dir.path().join(name), "x").unwrap();
        let left = || {
            let names = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        };
        let abandoned = ".partial-4000000000-abcdef"; // no system gives such numbers to processes
        put(abandoned.into());
        let kept = [format!(".partial-{}-abcdef", std::process::id()), ".partial-7".into(), ".partial-export-x".into()];
        kept.iter().for_each(|name| put(name.clone()));
        write_bytes(&dir.path().join("file"), b"1").unwrap();
        let mut expected = [&kept[..], &["file".into()]].concat();
        expected.sort();
        assert_eq!(left(), expected);

        let other = tempfile::tempdir().unwrap();
        let path = other.path().join(abandoned);
        fs::write(&path, "x").unwrap();
        let lock = File::open(&path).unwrap();
        lock.lock().unwrap();
        write_bytes(&other.path().join("file"), b"1").unwrap();
        assert!(path.exists(), "another machine may be writing it");
    }

    #[test]
    fn a_probe_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file.txt");
        probe(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        write_bytes(&path, b"1").unwrap();
        probe(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1");
        for (wrong, part) in [
            (dir.path().join("a"), "directory"),
            (dir.path().join("new/"), "directory"),
            (path.join("below"), "cannot create the folder"),
            (path.join("deeper/below"), "cannot create the folder"),
            (dir.path().join("x".repeat(300)).join("file"), "File name too long"),
            (dir.path().join("x".repeat(300)), "File name too long"),
        ] {
            let message = probe(&wrong).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_place_has_one_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(place(&dir.path().join("new/../file")), place(&file));
        assert_eq!(place(&dir.path().join("./gone/./x/../y")), place(&dir.path().join("gone/y")));
        fs::hard_link(&file, dir.path().join("hard")).unwrap();
        assert!(is_same_file(&file, &dir.path().join("hard")) && is_same_file(&file, &dir.path().join("./file")));
        assert!(!is_same_file(&file, &dir.path().join("other")));
    }

    #[cfg(unix)]
    mod unix {
        use super::*;
        use std::os::unix::fs::{PermissionsExt, symlink};
        use std::process::Command;

        fn mode(path: &Path) -> u32 {
            path.metadata().unwrap().permissions().mode() & 0o777
        }

        #[test]
        fn a_new_file_is_as_any_other_and_a_replaced_one_keeps_its_permissions() {
            let dir = tempfile::tempdir().unwrap();
            let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
            write_bytes(&ours, b"1").unwrap();
            File::create(&plain).unwrap();
            assert_eq!(mode(&ours), mode(&plain));
            for kept in [0o600, 0o664, 0o640] {
                fs::set_permissions(&ours, fs::Permissions::from_mode(kept)).unwrap();
                write_bytes(&ours, b"2").unwrap();
                assert_eq!(mode(&ours), kept);
            }
        }

        #[test]
        fn links_stay_links() {
            let dir = tempfile::tempdir().unwrap();
            let (real, link, second) =
                (dir.path().join("far/real"), dir.path().join("link"), dir.path().join("second"));
            symlink("far/real", &link).unwrap(); // it leads to nothing yet
            symlink(&link, &second).unwrap();
            for text in [b"1", b"2"] {
                write_bytes(&second, text).unwrap();
                assert_eq!(fs::read(&real).unwrap(), text);
            }
            assert!(link.is_symlink() && second.is_symlink() && !real.is_symlink());
            assert_eq!(fs::read_dir(dir.path().join("far")).unwrap().count(), 1);
            assert!(is_same_file(&real, &second));

            symlink("gone", dir.path().join("nowhere")).unwrap();
            let message = probe(&dir.path().join("nowhere/file")).unwrap_err().to_string();
            assert!(message.starts_with("cannot create the folder"), "{message}");
            symlink("circle", dir.path().join("circle")).unwrap();
            let message = write_bytes(&dir.path().join("circle"), b"").unwrap_err().to_string();
            assert!(message.contains("lead in circles"), "{message}");
        }

        #[test]
        fn devices_and_pipes_are_written_into() {
            let dir = tempfile::tempdir().unwrap();
            write_bytes(Path::new("/dev/null"), b"gone").unwrap();
            assert!(!Path::new("/dev/null").is_file());
            let null = dir.path().join("null");
            symlink("/dev/null", &null).unwrap();
            write_bytes(&null, b"gone").unwrap();
            assert!(null.is_symlink());

            let pipe = dir.path().join("pipe");
            assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            probe(&pipe).unwrap(); // nobody reads yet, and it does not wait
            let reader = std::thread::spawn({
                let pipe = pipe.clone();
                move || fs::read(pipe).unwrap()
            });
            write_bytes(&pipe, b"through").unwrap();
            assert_eq!(reader.join().unwrap(), b"through");
            assert_eq!(destination(&pipe).unwrap().kind, DestinationKind::Stream);
        }

        #[cfg(target_os = "linux")]
        #[test]
        fn standard_output_is_known_by_all_its_names() {
            for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
                assert_eq!(destination(Path::new(name)).unwrap().kind, DestinationKind::Stdout, "{name}");
            }
            assert_eq!(destination(Path::new("/dev/stderr")).unwrap().kind, DestinationKind::Stderr);
        }
    }
}
