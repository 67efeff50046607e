//! The metadata of an ONNX file, read without reading its weights.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;

/// `ModelProto.metadata_props`, a list of `StringStringEntryProto`.
const METADATA: u64 = 14;

/// The value of a metadata key.
///
/// # Errors
/// The file cannot be read, or is cut off or no protobuf.
pub fn read(path: &Path, key: &str) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let mut found = None;
    let mut at = 0;
    while at < length {
        let (field, size) = field(&mut file)?;
        let start = file.stream_position()?;
        at = start.checked_add(size).filter(|end| *end <= length).ok_or(io::ErrorKind::UnexpectedEof)?;
        if field != METADATA {
            file.seek_relative((at - start) as i64)?;
            continue;
        }
        let mut entry = vec![0; size as usize];
        file.read_exact(&mut entry)?;
        let (mut rest, mut texts) = (entry.as_slice(), [None, None]);
        while !rest.is_empty() {
            let (field, size) = self::field(&mut rest)?;
            let (text, after) = rest.split_at_checked(size as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
            if let Some(slot) = (field as usize).checked_sub(1).and_then(|i| texts.get_mut(i)) {
                *slot = Some(String::from_utf8_lossy(text).into_owned());
            }
            rest = after;
        }
        if let [Some(name), value] = texts
            && name == key
        {
            found = Some(value.unwrap_or_default());
        }
    }
    Ok(found)
}

/// The number of the next field and the bytes that its value has; of numbers, that was read already.
fn field(from: &mut impl BufRead) -> io::Result<(u64, u64)> {
    let tag = varint(from)?;
    let size = match tag & 7 {
        0 => varint(from).map(|_| 0)?,
        1 => 8,
        2 => varint(from)?,
        5 => 4,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok((tag >> 3, size))
}

fn varint(from: &mut impl Read) -> io::Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_metadata_behind_a_graph_is_found_and_a_cut_is_noticed() {
        let entry = |key: &str, value: &str| {
            let mut bytes = vec![0x0a, key.len() as u8];
            bytes.extend(key.bytes());
            bytes.extend([0x12, value.len() as u8]);
            bytes.extend(value.bytes());
            [vec![0x72, bytes.len() as u8], bytes].concat()
        };
        // ir_version = 300; a graph of 200 bytes; two entries.
        let graph = [vec![0x3a, 0xc8, 0x01], vec![0x72; 200]].concat();
        let file = [vec![0x08, 0xac, 0x02], graph, entry("task", "count"), entry("seed", "7")].concat();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        std::fs::write(&path, &file).unwrap();
        assert_eq!(read(&path, "seed").unwrap().as_deref(), Some("7"));
        assert_eq!(read(&path, "task").unwrap().as_deref(), Some("count"));
        assert_eq!(read(&path, "handle").unwrap(), None);
        std::fs::write(&path, &file[..file.len() - 1]).unwrap();
        assert!(read(&path, "task").is_err());
    }
}
