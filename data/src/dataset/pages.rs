//! Protection against Parquet pages that unpack to more than their headers say.
//!
//! The decoder unpacks pages of gzip and Brotli to their end, regardless of the size in their headers: some kilobytes
//! of them can become more than the memory of any machine. Here, they are first unpacked into a sink, up to that size.
//! Other compressions are bounded by it in the decoder.

use super::damage::damaged;
use crate::DataError;
use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, copy, sink};
use std::path::Path;

/// Checks that the pages of a column unpack to at most the size they state.
///
/// # Errors
/// They unpack to more, or the file cannot be read.
pub(crate) fn check(path: &Path, column: &ColumnChunkMetaData) -> Result<(), DataError> {
    let gzip = match column.compression() {
        Compression::GZIP(_) => true,
        Compression::BROTLI(_) => false,
        _ => return Ok(()),
    };
    let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    let (Ok(start), Ok(length)) = (u64::try_from(start), u64::try_from(column.compressed_size())) else {
        return Err(damaged(path, &"a column of it begins before the file does"));
    };
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(DataError::io("read", path))?;
    file.seek(SeekFrom::Start(start)).map_err(DataError::io("read", path))?;
    file.take(length).read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let mut reader = Compact(rest);
        let Some(header) = reader.page() else { return Ok(()) }; // the decoder reports an invalid header
        let (Ok(packed), Ok(becomes)) = (usize::try_from(header.packed), u64::try_from(header.becomes)) else {
            return Err(damaged(path, &"a page of it has a negative size"));
        };
        let Some(page) = reader.0.get(..packed) else { return Ok(()) };
        let levels = usize::try_from(header.levels).unwrap_or(0).min(packed);
        let (page, limit) = (&page[levels..], becomes.saturating_sub(levels as u64));
        if header.is_packed && !page.is_empty() {
            let unpacked = if gzip {
                copy(&mut MultiGzDecoder::new(page).take(limit + 1), &mut sink())
            } else {
                copy(&mut brotli::Decompressor::new(page, 1 << 12).take(limit + 1), &mut sink())
            };
            if unpacked.is_ok_and(|unpacked| unpacked > limit) {
                return Err(damaged(path, &format!("a page of it becomes more than the {becomes} bytes that it says")));
            }
        }
        rest = &reader.0[packed..];
    }
    Ok(())
}

/// The sizes in a page's header.
#[derive(Debug, Default, PartialEq)]
struct PageHeader {
    becomes: i64,
    packed: i64,
    /// Bytes at its beginning that are not compressed.
    levels: i64,
    is_packed: bool,
}

/// The part of Thrift's compact protocol that page headers need.
struct Compact<'a>(&'a [u8]);

impl Compact<'_> {
    fn page(&mut self) -> Option<PageHeader> {
        let mut header = PageHeader { is_packed: true, ..PageHeader::default() };
        let mut last = 0;
        while let Some((field, kind)) = self.field(&mut last)? {
            match (field, kind) {
                (2, INTEGER) => header.becomes = self.integer()?,
                (3, INTEGER) => header.packed = self.integer()?,
                (8, STRUCT) => {
                    let mut inner = 0;
                    while let Some((field, kind)) = self.field(&mut inner)? {
                        match (field, kind) {
                            (5 | 6, INTEGER) => header.levels = header.levels.checked_add(self.integer()?)?,
                            (7, kind) => {
                                header.is_packed = kind == 1;
                                self.skip(kind, 0)?;
                            }
                            (_, kind) => self.skip(kind, 0)?,
                        }
                    }
                }
                (_, kind) => self.skip(kind, 0)?,
            }
        }
        Some(header)
    }

    /// The number and type of the next field; `Some(None)` at the end of a struct.
    fn field(&mut self, last: &mut i64) -> Option<Option<(i64, u8)>> {
        let byte = self.byte()?;
        let kind = byte & 15;
        if kind == 0 {
            return Some(None);
        }
        *last = match byte >> 4 {
            0 => self.integer()?,
            step => last.checked_add(i64::from(step))?,
        };
        Some(Some((*last, kind)))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1 | 2 => {}
            3 => drop(self.byte()?),
            4..=INTEGER_LAST => drop(self.unsigned()?),
            7 => self.bytes(8)?,
            8 => {
                let length = self.unsigned()?;
                self.bytes(usize::try_from(length).ok()?)?;
            }
            9 | 10 if depth < 16 => {
                let byte = self.byte()?;
                let size = if byte >> 4 == 15 { self.unsigned()? } else { u64::from(byte >> 4) };
                for _ in 0..size {
                    match byte & 15 {
                        1 | 2 => drop(self.byte()?), // in lists, booleans have a byte each
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
            }
            STRUCT if depth < 16 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn bytes(&mut self, n: usize) -> Option<()> {
        self.0 = self.0.get(n..)?;
        Some(())
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn integer(&mut self) -> Option<i64> {
        let zigzag = self.unsigned()?;
        Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }
}

/// Thrift's 32-bit integers, the last of its integers, and its structs.
const INTEGER: u8 = 5;
const INTEGER_LAST: u8 = 6;
const STRUCT: u8 = 12;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn headers_of_both_versions_of_pages() {
        // type 0, becomes 300, packed 20, data_page_header { 10 values, encodings }
        let first = [0x15, 0x00, 0x15, 0xd8, 0x04, 0x15, 0x28, 0x2c, 0x15, 0x14, 0x15, 0x00, 0x00, 0x00];
        let header = Compact(&first).page().unwrap();
        assert_eq!(header, PageHeader { becomes: 300, packed: 20, levels: 0, is_packed: true });
        // type 3, becomes 300, packed 20, data_page_header_v2 { …, levels of 3 and 4 bytes, not compressed }
        let second = [
            0x15, 0x06, 0x15, 0xd8, 0x04, 0x15, 0x28, 0x5c, 0x15, 0x14, 0x15, 0x00, 0x15, 0x14, 0x15, 0x00, 0x15, 0x06,
            0x15, 0x08, 0x12, 0x00, 0x00,
        ];
        let header = Compact(&second).page().unwrap();
        assert_eq!(header, PageHeader { becomes: 300, packed: 20, levels: 7, is_packed: false });
        assert_eq!(Compact(&first[..6]).page(), None);
    }
}
