//! The contents of files that are there already: which are results that may be replaced, which are something else.

use super::endings::{TABLES, is_one_of};
use data::files;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How files begin that are no results of any command, or only under some names; and what they are.
const KINDS: [(&[u8], &str); 22] = [
    (b"PAR1", PARQUET),
    (b"ARROW1", ARROW),
    (b"\x89PNG", PNG),
    (b"PK\x03\x04", "a zip archive, as checkpoints of PyTorch and .npz files are"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "an archive of zstd"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-zip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"SQLite format 3", "a database of SQLite"),
    (b"\x7fELF", "a program"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"RIFF", "a picture or a sound"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
];

const PARQUET: &str = "a Parquet file";

const ARROW: &str = "an Arrow file";

const PNG: &str = "a PNG picture";

/// The kind of the file at `path`, by how it begins, where no command writes that kind under such a name. Text may be an
/// earlier result.
pub fn holds_something_else(path: &Path) -> Option<&'static str> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(1024).read_to_end(&mut head).ok()?;
    let found = match KINDS.iter().find(|(start, _)| head.starts_with(start)) {
        Some((_, kind)) => *kind,
        // ModelProto: its version, then one of its fields with a length
        None if matches!(head[..], [8, 1..=30, 0x12 | 0x1a | 0x22 | 0x32 | 0x3a | 0x42, ..]) => "an ONNX model",
        None if head.get(8) == Some(&b'{') && head[..8].contains(&0) => "a file of weights (safetensors)",
        None if head.contains(&0) => "a file of something else",
        None => return None,
    };
    let ending = path.extension().unwrap_or_default();
    let usual: &[&str] = match found {
        PARQUET | ARROW => &["parquet", "pq", "arrow", "feather", "ipc"],
        PNG => &["png"],
        _ => &[],
    };
    // A name without an ending that is known can be that of a table in any format.
    let any = [&TABLES[..], &["html", "md", "svg", "png"]].concat();
    let is_free = matches!(found, PARQUET | ARROW) && !is_one_of(ending, &any);
    (!is_free && !is_one_of(ending, usual)).then_some(found)
}

/// Whether the file holds examples, as Parquet or as lines of JSON.
pub fn is_dataset(path: &Path) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut start = [0; 4];
    if file.read_exact(&mut start).is_err() {
        return false;
    }
    if &start != b"PAR1" {
        return start.starts_with(b"[[\"") || (start.starts_with(b"{") && names_examples(path));
    }
    ParquetRecordBatchReaderBuilder::try_new(file).is_ok_and(|reader| {
        let has = |name: &str| reader.schema().column_with_name(name).is_some();
        has("input_ids") && has("labels")
    })
}

/// Whether the first line of a text names the column of token ids.
fn names_examples(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && String::from_utf8_lossy(&head).lines().next().is_some_and(|line| line.contains("\"input_ids\""))
}

/// The files in which an ONNX file says that weights of it are: values of `location` in its protobuf messages.
pub fn external_data(model: &Path) -> Vec<PathBuf> {
    const KEY: &[u8] = b"\x0a\x08location\x12";
    let bytes = std::fs::read(model).unwrap_or_default(); // one that cannot be read fails when it is loaded
    let mut found = HashSet::new();
    let mut rest = &bytes[..];
    while let Some(at) = rest.windows(KEY.len()).position(|window| window == KEY) {
        rest = &rest[at + KEY.len()..];
        let (mut length, mut shift) = (0usize, 0);
        for byte in rest.iter().take(3) {
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let name = rest.get(shift / 7..shift / 7 + length).and_then(|name| std::str::from_utf8(name).ok());
        found.extend(name.filter(|name| !name.is_empty()));
    }
    let real = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    let folders = [files::folder_of(model), files::folder_of(&real)];
    found.iter().flat_map(|name| folders.map(|folder| folder.join(name))).collect()
}
