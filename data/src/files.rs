//! Files that appear whole or not at all.

use crate::DataError;
use std::fs::File;
use std::path::Path;

/// Writes `path` through `fill`: into a temporary file in the same folder, flushed to disk, then renamed.
///
/// When `fill` or the disk fails, the temporary file is removed and whatever was at `path` before stays.
/// Parent folders are created.
pub fn write_atomic<E>(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E>
where
    E: From<DataError>,
{
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(DataError::io("create the folder", folder))?;
    let mut temporary =
        tempfile::Builder::new().prefix(".partial-").tempfile_in(folder).map_err(DataError::io("write", path))?;
    set_default_permissions(temporary.as_file(), path)?;
    fill(temporary.as_file_mut())?;
    temporary.as_file().sync_all().map_err(DataError::io("write", path))?;
    temporary.persist(path).map_err(|e| DataError::io("write", path)(e.error))?;
    sync_folder(folder);
    Ok(())
}

/// [`write_atomic`] for bytes that are already in memory.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    write_atomic(path, |file| {
        use std::io::Write;
        file.write_all(bytes).map_err(DataError::io("write", path))
    })
}

/// Flushes a folder's directory entry, so that a rename survives a power cut. Best effort: some systems refuse.
pub fn sync_folder(folder: &Path) {
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
}

/// Temporary files are created readable by their owner alone; results are meant to be shared.
#[cfg(unix)]
fn set_default_permissions(file: &File, path: &Path) -> Result<(), DataError> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(DataError::io("write", path))
}

#[cfg(not(unix))]
fn set_default_permissions(_: &File, _: &Path) -> Result<(), DataError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
}
