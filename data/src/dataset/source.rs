//! Recognises a file or folder of examples by its contents, not by its name.

use crate::DataError;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The forms that examples are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A Parquet file.
    Parquet,
    /// Arrow IPC, in a file (Feather) or as a stream (as Hugging Face's `save_to_disk` writes it).
    Arrow,
    /// The text format of the paper's code, see [`super::text`].
    Pairs,
    /// An object of JSON on each line.
    JsonLines,
    /// A list of objects of JSON.
    JsonList,
    /// A table as text, its lists written out: `"[0, 1, 1]"`.
    Csv,
}

/// A file of a [`parts`] list, in its place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// How much of a file is examined.
const HEAD: u64 = 4096;

/// Unsupported formats, recognised by their first bytes: their names and hints.
const FOREIGN: [(&[u8], &str, &str); 18] = [
    (b"PARE", "an encrypted Parquet file", "write it again without encryption"),
    (b"FEA1", "a Feather file of version 1", "`pandas.read_feather(FILE).to_parquet(\"FILE.parquet\")` converts it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it: `gunzip FILE`"),
    (b"\x28\xb5\x2f\xfd", "an archive of zstd", "unpack it: `zstd -d FILE`"),
    (b"BZh", "a bzip2 archive", "unpack it: `bunzip2 FILE`"),
    (b"\xfd7zXZ\0", "an xz archive", "unpack it: `unxz FILE`"),
    (b"\x04\x22\x4d\x18", "an archive of lz4", "unpack it: `lz4 -d FILE`"),
    (b"7z\xbc\xaf", "a 7-zip archive", "unpack it"),
    (b"PK\x03\x04", "a zip archive, as .npz, .xlsx and .pt files are", "write the examples as Parquet"),
    (b"\x80\x02", "a Python pickle", PICKLE),
    (b"\x80\x03", "a Python pickle", PICKLE),
    (b"\x80\x04", "a Python pickle", PICKLE),
    (b"\x80\x05", "a Python pickle", PICKLE),
    (b"\x93NUMPY", "an array of NumPy", "write the examples as Parquet, with the lists input_ids and labels"),
    (
        b"ORC",
        "an ORC file",
        "`pyarrow.orc.read_table(FILE)` reads it and `pyarrow.parquet.write_table` writes it as Parquet",
    ),
    (b"Obj\x01", "an Avro file", "write the examples as Parquet"),
    (b"SQLite format 3", "a database of SQLite", "write the examples as Parquet; DuckDB does that with COPY"),
    (b"\x89HDF", "an HDF5 file", "`pandas.read_hdf(FILE).to_parquet(\"FILE.parquet\")` converts it"),
];

const PICKLE: &str = "`pandas.read_pickle(FILE).to_parquet(\"FILE.parquet\")` converts it";

/// Endings of files that are not text, and their first bytes.
const BINARY: [(&str, &str, &[u8]); 5] = [
    ("parquet", "Parquet", b"PAR1"),
    ("pq", "Parquet", b"PAR1"),
    ("arrow", "Arrow", b"ARROW1"),
    ("feather", "Arrow", b"ARROW1"),
    ("ipc", "Arrow", b"ARROW1"),
];

/// The beginning of a file as text, without a byte order mark and blanks.
pub(crate) struct Head(pub String);

impl Head {
    pub fn first_line(&self) -> &str {
        self.0.lines().next().unwrap_or_default()
    }

    /// Whether the first line is the header of a table with exactly these columns.
    pub fn is_table_of(&self, columns: &[&str]) -> bool {
        self.first_line().split(',').map(|name| name.trim().trim_matches('"')).eq(columns.iter().copied())
    }
}

/// Refuses what is no file: examples are read more than once, and a pipe may have no end.
fn regular(path: &Path) -> Result<(), DataError> {
    if path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Err(DataError::Unreadable {
            path: path.into(),
            reason: "it is a device or a pipe, which cannot be read twice".into(),
            hint: "write its contents into a file first".into(),
        });
    }
    Ok(())
}

/// Reads the beginning of a file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn head(path: &Path) -> Result<Head, DataError> {
    regular(path)?;
    let mut head = Vec::new();
    let file = File::open(path).map_err(DataError::io("read", path))?;
    file.take(HEAD).read_to_end(&mut head).map_err(DataError::io("read", path))?;
    Ok(Head(String::from_utf8_lossy(head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&head)).into_owned()))
}

/// Recognises a file.
///
/// # Errors
/// It cannot be read, or has no supported format; the error says what it is instead.
pub(crate) fn format(path: &Path) -> Result<Format, DataError> {
    regular(path)?;
    let mut head = Vec::new();
    let file = File::open(path).map_err(DataError::io("read", path))?;
    file.take(HEAD).read_to_end(&mut head).map_err(DataError::io("read", path))?;
    let unreadable = |reason: &str, hint: &str| {
        Err(DataError::Unreadable { path: path.into(), reason: reason.into(), hint: hint.into() })
    };
    if head.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    if head.starts_with(b"ARROW1") || head.starts_with(&[0xff; 4]) {
        return Ok(Format::Arrow);
    }
    if let Some((_, name, hint)) = FOREIGN.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return unreadable(&format!("it is {name}"), hint);
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return unreadable("it is text in UTF-16", "save it as UTF-8");
    }
    if head.starts_with(b"version https://git-lfs") {
        return unreadable("it is only the pointer of Git LFS to the file", "`git lfs pull` fetches the file");
    }
    let text = String::from_utf8_lossy(head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&head));
    let text = text.trim_start();
    if text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("<html") || start.eq_ignore_ascii_case("<!doc")) {
        return unreadable("it is a page of the web", "download the file itself, not the page about it");
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    let binary = BINARY.iter().find(|(binary, ..)| *binary == ending);
    match text.as_bytes().first() {
        Some(b'{') => return Ok(Format::JsonLines),
        Some(b'[') if text[1..].trim_start().starts_with('{') => return Ok(Format::JsonList),
        Some(b'[') => return Ok(Format::Pairs),
        _ => {}
    }
    let header = text.lines().next().unwrap_or_default();
    if header.split([',', ';', '\t']).any(|column| column.trim().trim_matches('"') == "input_ids") {
        return Ok(Format::Csv);
    }
    match binary {
        Some((_, name, magic)) if magic.starts_with(&head) => {
            let reason = if head.is_empty() { "it is empty".into() } else { format!("it ends where {name} begins") };
            Err(DataError::Damaged { path: path.into(), reason })
        }
        Some((_, name, _)) => {
            let start: String = text.chars().take(16).collect();
            unreadable(
                &format!("its name says {name}, but it begins with `{}`", start.escape_debug()),
                "name a file of Parquet, Arrow, JSON or CSV, or a text file with a pair [[tokens], [labels]] on each line",
            )
        }
        None => Ok(Format::Pairs),
    }
}

/// The files that `path` stands for, in their order: itself, or those of a folder, by name. A folder is one of Hugging
/// Face's `save_to_disk`, or one into which Spark, Dask, DuckDB and others write a large table: hidden files and those
/// that begin with `_` are left out, `column=value` folders are part of it.
///
/// # Errors
/// A file cannot be read, is not a file of examples, or the folder holds several datasets or none.
pub(crate) fn parts(path: &Path) -> Result<Vec<Part>, DataError> {
    if !path.is_dir() {
        return Ok(vec![Part { path: path.into(), format: format(path)? }]);
    }
    let invalid = |reason: String, hint: &str| DataError::Invalid { path: path.into(), reason, hint: hint.into() };
    if let Some(splits) = dataset_dict(path)? {
        let names: Vec<String> = splits.into_iter().map(|(_, folder)| folder.display().to_string()).collect();
        let reason = format!("it is a folder of several datasets: {}", names.join(", "));
        return Err(invalid(reason, "name one of them"));
    }
    let mut files = match hugging_face(path)? {
        Some(files) => files,
        None => {
            let mut files = Vec::new();
            walk(path, 0, &mut files)?;
            files
        }
    };
    if files.is_empty() {
        return Err(invalid("there is no file in it".into(), "name a file, or a folder with the parts of one dataset"));
    }
    several_splits(path, &files)?;
    if files.len() > 1 {
        files.retain(|file| file.metadata().map_or(true, |m| m.len() > 0)); // Spark leaves empty parts of text
    }
    let parts =
        files.into_iter().map(|path| Ok(Part { format: format(&path)?, path })).collect::<Result<Vec<_>, _>>()?;
    if let Some(other) = parts.iter().find(|part| part.format != parts[0].format) {
        let reason = format!("{} and {} are of different kinds", parts[0].path.display(), other.path.display());
        return Err(invalid(reason, "name a file, or a folder with the parts of one dataset and nothing else"));
    }
    Ok(parts)
}

/// The splits of a folder that Hugging Face's `DatasetDict.save_to_disk` wrote, by name; `None` for everything else.
///
/// # Errors
/// Its list of splits cannot be read.
pub fn dataset_dict(folder: &Path) -> Result<Option<Vec<(String, PathBuf)>>, DataError> {
    let Some(document) = json(&folder.join("dataset_dict.json"))? else { return Ok(None) };
    let names = document.get("splits").and_then(serde_json::Value::as_array).into_iter().flatten();
    let names = names.filter_map(|name| name.as_str());
    Ok(Some(names.map(|name| (name.to_owned(), folder.join(name))).collect()))
}

/// The files of a folder that Hugging Face's `save_to_disk` wrote.
fn hugging_face(folder: &Path) -> Result<Option<Vec<PathBuf>>, DataError> {
    let Some(state) = json(&folder.join("state.json"))? else { return Ok(None) };
    let Some(files) = state.get("_data_files").and_then(serde_json::Value::as_array) else { return Ok(None) };
    let names = files.iter().filter_map(|file| file.get("filename")?.as_str());
    Ok(Some(names.map(|name| folder.join(name)).collect()))
}

/// A small document, where there is one.
fn json(path: &Path) -> Result<Option<serde_json::Value>, DataError> {
    if !path.is_file() {
        return Ok(None);
    }
    let mut text = String::new();
    let file = File::open(path).map_err(DataError::io("read", path))?;
    file.take(16 << 20).read_to_string(&mut text).map_err(DataError::io("read", path))?;
    let document = serde_json::from_str(&text);
    document.map(Some).map_err(|e| DataError::Damaged { path: path.into(), reason: e.to_string() })
}

/// The parts below a folder, sorted by name, numbers in names by their value.
fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let entries = std::fs::read_dir(folder).map_err(DataError::io("read", folder))?;
    let entries: Vec<_> = entries.collect::<Result<_, _>>().map_err(DataError::io("read", folder))?;
    let mut entries: Vec<(String, PathBuf)> =
        entries.into_iter().map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).collect();
    entries.retain(|(name, _)| !name.starts_with(['.', '_']) && name != "dataset_info.json");
    entries.sort_by_cached_key(|(name, _)| natural(name));
    for (name, path) in entries {
        if !path.is_dir() {
            files.push(path);
        } else if name.contains('=') && depth < 8 {
            walk(&path, depth + 1, files)?;
        } else {
            return Err(DataError::Invalid {
                path: folder.into(),
                reason: format!("the folder {name} is in it"),
                hint: "name a file, or a folder with the parts of one dataset and nothing else".into(),
            });
        }
    }
    Ok(())
}

/// A key that sorts `part-2` before `part-10`: text and numbers in turn.
fn natural(name: &str) -> Vec<(String, u128, usize)> {
    let mut key = vec![(String::new(), 0u128, 0usize)];
    for c in name.chars() {
        let last = key.len() - 1;
        let (text, number, digits) = &mut key[last];
        match c.to_digit(10) {
            Some(digit) => {
                *number = number.saturating_mul(10).saturating_add(u128::from(digit));
                *digits += 1;
            }
            None if *digits > 0 => key.push((c.to_string(), 0, 0)),
            None => text.push(c),
        }
    }
    key
}

/// Files that are the splits of a dataset are not parts of one split.
fn several_splits(folder: &Path, files: &[PathBuf]) -> Result<(), DataError> {
    let stem = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let end = name.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(name.len());
        name[..end].trim_end_matches(['-', '_']).to_ascii_lowercase()
    };
    let mut stems: Vec<String> = files.iter().map(stem).collect();
    stems.dedup();
    let split = |stem: &String| {
        matches!(stem.as_str(), "train" | "val" | "valid" | "validation" | "dev" | "test") || stem.ends_with("_test")
    };
    if stems.len() < 2 || !stems.iter().any(split) {
        return Ok(());
    }
    let names = files.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned()));
    let names: Vec<String> = names.take(8).collect();
    Err(DataError::Invalid {
        path: folder.into(),
        reason: format!("it is a folder of several splits: {}", names.join(", ")),
        hint: "name the file of one of them".into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_come_in_the_order_of_their_numbers() {
        let mut names = ["part-10.parquet", "part-9.parquet", "part-0001.parquet", "a.parquet", "part-2-x.parquet"];
        names.sort_by_cached_key(|name| natural(name));
        assert_eq!(names, ["a.parquet", "part-0001.parquet", "part-2-x.parquet", "part-9.parquet", "part-10.parquet"]);
    }

    #[test]
    fn files_are_what_they_hold_whatever_they_are_called() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let told = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            format(&path).map_err(|e| e.to_string())
        };
        for (bytes, expected) in [
            (&b"PAR1...."[..], Format::Parquet),
            (b"ARROW1\0\0", Format::Arrow),
            (b"\xff\xff\xff\xff\x10\0\0\0", Format::Arrow),
            (b"\xEF\xBB\xBF [[\"a\"], [\"1\"]]", Format::Pairs),
            (b"{\"input_ids\": []}", Format::JsonLines),
            (b"[\n {\"input_ids\": []}]", Format::JsonList),
            (b"\"labels\";\"input_ids\"\n", Format::Csv),
        ] {
            assert_eq!(told(bytes), Ok(expected));
        }
        for (bytes, part) in [
            (&b"\x1f\x8b\x08"[..], "it is a gzip archive\n  hint: unpack it"),
            (b"\x80\x04\x95", "it is a Python pickle\n  hint: `pandas.read_pickle"),
            (b"version https://git-lfs.github.com/spec/v1\n", "it is only the pointer of Git LFS"),
            (b"<!DOCTYPE html>", "it is a page of the web"),
            (b"\xff\xfe[\0[\0", "it is text in UTF-16"),
            (b"hello", "its name says Parquet, but it begins with `hello`"),
            (b"", "it is empty\n  hint: the file is damaged or was not written to its end"),
            (b"PA", "it ends where Parquet begins"),
        ] {
            let error = told(bytes).unwrap_err();
            assert!(error.contains(part) && error.contains("x.parquet"), "{part}: {error}");
        }
    }
}
