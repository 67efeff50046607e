//! Files and streams of Arrow IPC. Offsets and sizes are checked first, because the decoder trusts them.

use super::damage::{MAX_TOKENS, damaged, unreadable};
use crate::DataError;
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::{try_fb_to_schema, try_schema_from_ipc_buffer};
use arrow::ipc::reader::{FileReader, StreamDecoder, read_footer_length};
use arrow::ipc::{MessageHeader, root_as_footer, root_as_message};
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// The schema of a file or stream of Arrow IPC; none of its batches is read.
pub(super) fn arrow_schema(path: &Path) -> Result<SchemaRef, DataError> {
    const LARGEST: u64 = 64 << 20;
    let mut head = Vec::new();
    let mut file = BufReader::new(File::open(path).map_err(DataError::io("read", path))?);
    let mut more = |head: &mut Vec<u8>, bytes: u64| {
        file.by_ref().take(bytes.min(LARGEST)).read_to_end(head).map_err(DataError::io("read", path))
    };
    more(&mut head, 8)?;
    if head.starts_with(ARROW_FILE) {
        let footer = footer(path)?;
        let footer =
            root_as_footer(&footer).map_err(|e| damaged(path, &format!("its index cannot be decoded: {e}")))?;
        let schema = footer.schema().ok_or_else(|| damaged(path, &"it has no schema"))?;
        return Ok(Arc::new(try_fb_to_schema(schema).map_err(|e| damaged(path, &e))?));
    }
    let word = |at: usize| head.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes);
    let size = if word(0) == u32::MAX { u64::from(word(4)) } else { u64::from(word(0)).saturating_sub(4) };
    more(&mut head, size)?;
    Ok(Arc::new(try_schema_from_ipc_buffer(&head).map_err(|e| damaged(path, &e))?))
}

/// How a file of Arrow IPC begins and ends; a stream has neither mark.
const ARROW_FILE: &[u8] = b"ARROW1";

/// The index at the end of a file of Arrow IPC.
fn footer(path: &Path) -> Result<Vec<u8>, DataError> {
    let io = |e| DataError::io("read", path)(e);
    let cut = || damaged(path, &"it does not end as it should");
    let mut file = File::open(path).map_err(DataError::io("read", path))?;
    let length = file.metadata().map_err(io)?.len();
    let mut end = [0; 10];
    file.seek(SeekFrom::Start(length.checked_sub(10).ok_or_else(cut)?)).map_err(io)?;
    file.read_exact(&mut end).map_err(io)?;
    let size = read_footer_length(end).map_err(|_| cut())? as u64;
    file.seek(SeekFrom::Start((length - 10).checked_sub(size).ok_or_else(cut)?)).map_err(io)?;
    let mut footer = Vec::new();
    file.take(size).read_to_end(&mut footer).map_err(io)?;
    Ok(footer)
}

/// Passes on the schema of a file or stream of Arrow IPC, then its batches.
pub(super) fn for_each_batch(
    path: &Path,
    mut visit: impl FnMut(&SchemaRef, Option<&RecordBatch>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
    let undecoded = |e: &ArrowError| match e {
        ArrowError::NotYetImplemented(reason) => unreadable(path, reason),
        e if e.to_string().contains("not supported") => unreadable(path, &e.to_string()),
        e => damaged(path, e),
    };
    if bytes.starts_with(ARROW_FILE) {
        let footer = footer(path)?;
        let footer =
            root_as_footer(&footer).map_err(|e| damaged(path, &format!("its index cannot be decoded: {e}")))?;
        let blocks = footer.dictionaries().into_iter().flatten().chain(footer.recordBatches().into_iter().flatten());
        let mut total = 0;
        for block in blocks {
            // The decoder takes the place of the body from the index, not from the message itself.
            let place = |n: i64| usize::try_from(n).map_err(|_| damaged(path, &ENDS));
            let (at, head) = (place(block.offset())?, place(i64::from(block.metaDataLength()))?);
            let body = at.checked_add(head).zip(Some(place(block.bodyLength())?));
            check_message(&bytes, at, body, &mut total).map_err(|reason| damaged(path, &reason))?;
        }
        let reader = FileReader::try_new(Cursor::new(bytes), None).map_err(|e| undecoded(&e))?;
        let schema = reader.schema();
        visit(&schema, None)?;
        for batch in reader {
            visit(&schema, Some(&batch.map_err(|e| undecoded(&e))?))?;
        }
        return Ok(());
    }
    let (mut at, mut total) = (0, 0);
    while let Some(next) = check_message(&bytes, at, None, &mut total).map_err(|reason| damaged(path, &reason))? {
        at = next;
    }
    let mut buffer = Buffer::from_vec(bytes);
    let mut decoder = StreamDecoder::new();
    let mut told = false;
    while !buffer.is_empty() {
        let batch = match decoder.decode(&mut buffer) {
            Ok(batch) => batch,
            Err(_) if told && decoder.finish().is_ok() => break, // something behind the end of the stream
            Err(e) => return Err(undecoded(&e)),
        };
        let Some(schema) = decoder.schema() else { continue };
        if !told {
            told = true;
            visit(&schema, None)?;
        }
        if let Some(batch) = batch {
            visit(&schema, Some(&batch))?;
        }
    }
    decoder.finish().map_err(|e| undecoded(&e))?;
    if told { Ok(()) } else { Err(damaged(path, &"it has no schema")) }
}

const ENDS: &str = "it ends in the middle of a message";

/// Checks that the buffers of a message are where it says, and no larger than a file can sensibly hold: the decoder
/// allocates the stated unpacked size of compressed ones, which is added to `total`. Its body follows it, unless `body`
/// says where that begins and how long it is. Returns where the next message of a stream begins, if there is one.
fn check_message(
    bytes: &[u8],
    at: usize,
    body: Option<(usize, usize)>,
    total: &mut u64,
) -> Result<Option<usize>, String> {
    let number = |at: usize| -> Option<i64> { Some(i64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)) };
    let word = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    let (mut size, mut at) = match at.checked_add(4).filter(|next| *next <= bytes.len()) {
        Some(next) => (word(at).ok_or(ENDS)?, next),
        None if at == bytes.len() => return Ok(None),
        None => return Err(ENDS.into()),
    };
    if size == u32::MAX {
        size = word(at).ok_or(ENDS)?;
        at += 4;
    }
    if size == 0 {
        return Ok(None);
    }
    let end = at.checked_add(size as usize).filter(|end| *end <= bytes.len()).ok_or(ENDS)?;
    let message = root_as_message(&bytes[at..end]).map_err(|e| format!("a message of it cannot be decoded: {e}"))?;
    let (end, body) = match body {
        Some(placed) => placed,
        None => (end, usize::try_from(message.bodyLength()).map_err(|_| ENDS)?),
    };
    let next = end.checked_add(body).filter(|next| *next <= bytes.len()).ok_or(ENDS)?;
    let batch = match message.header_type() {
        MessageHeader::RecordBatch => message.header_as_record_batch(),
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|d| d.data()),
        _ => None,
    };
    let compressed = batch.is_some_and(|batch| batch.compression().is_some());
    for buffer in batch.and_then(|batch| batch.buffers()).into_iter().flatten() {
        let offset = |n: i64| usize::try_from(n).map_err(|_| ENDS);
        let start = end.checked_add(offset(buffer.offset())?).ok_or(ENDS)?;
        let stop = start.checked_add(offset(buffer.length())?).filter(|stop| *stop <= next).ok_or(ENDS)?;
        if !compressed || start == stop {
            continue;
        }
        let becomes = number(start).filter(|_| start + 8 <= stop).ok_or(ENDS)?.max(0).unsigned_abs();
        *total = total.saturating_add(becomes);
        if becomes > 1 << 31 || *total > 8 * MAX_TOKENS {
            return Err(format!("a buffer of it says that it becomes {becomes} bytes"));
        }
    }
    Ok(Some(next))
}
