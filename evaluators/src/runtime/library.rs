//! A library file: its version, and whether it is whole, because a copy or a download may have been interrupted.

use super::{RuntimeLibrary, Source};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Why a library is incomplete, if it is: a copy or download was interrupted. The system's loader maps such a file and
/// ends the process with a bus error once it touches what is missing. Its providers, which lie beside it, count too.
pub(super) fn cut_off(library: &Path) -> Option<String> {
    let folder = library.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let providers = folder.into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libonnxruntime_providers_") && name.ends_with(".so")
    });
    cut_off_alone(library).or_else(|| {
        let mut providers: Vec<PathBuf> = providers.collect();
        providers.sort();
        let named =
            |path: PathBuf| Some(format!("its {}: {}", path.file_name()?.to_string_lossy(), cut_off_alone(&path)?));
        providers.into_iter().find_map(named)
    })
}

/// [`cut_off`] for one file; only of ELF, Linux's format, is it known how long a file must be.
pub(super) fn cut_off_alone(path: &Path) -> Option<String> {
    const MAGIC: &[u8] = b"\x7fELF\x02\x01"; // 64 bits, the lowest byte first
    let mut file = std::fs::File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let mut header = Vec::new();
    std::io::Read::by_ref(&mut file).take(64).read_to_end(&mut header).ok()?;
    let start = header.len().min(MAGIC.len());
    if header[..start] != MAGIC[..start] {
        return None; // the loader says what it is instead
    }
    let number = |bytes: &[u8], at: usize, width: usize| {
        let bytes = bytes.get(at..at + width).unwrap_or_default();
        bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let field = |at, width| number(&header, at, width);
    let (segments, segment, count) = (field(32, 8), field(54, 2), field(56, 2));
    let sections = field(40, 8).saturating_add(field(58, 2) * field(60, 2));
    let table = segments.saturating_add(segment * count);
    let mut end = sections.max(table).max(64);
    if table <= size && segment >= 56 {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(segments)).ok()?;
        file.take(segment * count).read_to_end(&mut bytes).ok()?;
        for entry in bytes.chunks_exact(segment as usize) {
            end = end.max(number(entry, 8, 8).saturating_add(number(entry, 32, 8)));
        }
    }
    (end > size).then(|| format!("the file is cut off, it has {size} of {end} bytes"))
}

/// The library in `capi/` of an unpacked Python package, with the version of its name or of the package's metadata.
pub(super) fn library_in(package: &Path, source: Source) -> Option<RuntimeLibrary> {
    let files = std::fs::read_dir(package.join("capi")).ok()?.flatten();
    let path = files.map(|f| f.path()).find(|p| is_library(p))?;
    let version = version_in_name(&path).or_else(|| version_in_metadata(package));
    Some(RuntimeLibrary { path, version, source })
}

pub(super) fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "onnxruntime.dll"
        || name.starts_with("libonnxruntime.so")
        || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
}

/// `libonnxruntime.so.1.31.1` and `libonnxruntime.1.31.1.dylib` tell their version.
pub(super) fn version_in_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_prefix("libonnxruntime.")?;
    let version = name.strip_prefix("so.").or_else(|| name.strip_suffix(".dylib"))?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// The version in the name of the folder `onnxruntime…-<version>.dist-info` beside the package.
pub(super) fn version_in_metadata(package: &Path) -> Option<String> {
    let names = std::fs::read_dir(package.parent()?).ok()?.flatten().map(|f| f.file_name());
    let mut stems = names.filter_map(|n| Some(n.to_str()?.strip_suffix(".dist-info")?.to_owned()));
    let stem = stems.find(|s| s.starts_with("onnxruntime"))?;
    stem.split_once('-').map(|(_, version)| version.to_owned())
}
