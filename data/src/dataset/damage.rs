//! Files that cannot be read: damaged ones, and whole ones in a form that is not read here.

use crate::DataError;
use parquet::errors::ParquetError;
use std::cell::Cell;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

/// The most tokens of a file, and the most rows. A file with more is a mistake or an attack: a few kilobytes of Parquet
/// can say `0` that often.
pub(super) const MAX_TOKENS: u64 = 1 << 32;

pub(super) fn damaged(path: &Path, reason: &dyn Display) -> DataError {
    DataError::Damaged { path: path.into(), reason: reason.to_string() }
}

pub(super) fn unreadable(path: &Path, reason: &str) -> DataError {
    DataError::Unreadable {
        path: path.into(),
        reason: reason.to_owned(),
        hint: "the file is whole, but in a form that is not read here; write it again, say with pyarrow: \
               pq.write_table(pq.read_table(FILE), FILE, compression=\"zstd\")"
            .into(),
    }
}

/// An error of the decoder: the file is damaged, unless the decoder says that it lacks something.
pub(super) fn undecoded(path: &Path, error: &ParquetError) -> DataError {
    let reason = error.to_string();
    let lacks = ["Disabled feature", "not supported", "not yet", "encrypt"];
    match error {
        ParquetError::NYI(_) => unreadable(path, &reason),
        ParquetError::External(inner) if inner.is::<std::io::Error>() => damaged(path, &reason),
        _ if lacks.iter().any(|word| reason.contains(word)) => unreadable(path, &reason),
        _ => damaged(path, &reason),
    }
}

/// The decoders are not written against all malicious or damaged bytes: a panic in one is the file's fault, and is
/// reported only as that.
pub(crate) fn without_panics<T>(path: &Path, read: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    thread_local!(static READING: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !READING.get() {
                before(info);
            }
        }));
    });
    let outer = READING.replace(true);
    let read = catch_unwind(AssertUnwindSafe(read));
    READING.set(outer);
    read.unwrap_or_else(|_| Err(damaged(path, &"the decoder failed on its contents")))
}
