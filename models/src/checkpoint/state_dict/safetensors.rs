//! Files of safetensors.

use super::contents::{Contents, Entry, Place, Trouble, View};
use crate::checkpoint::weights::{UNTIED, numbers};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Headers of safetensors and lists of shards are at most this long.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// The header's entry of a tensor in a safetensors file.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Names, shapes and places in a safetensors file. The rules are the format's: no overlaps, no gaps, nothing behind.
pub(super) fn read_safetensors(file: &mut File, length: u64) -> Result<Contents, Trouble> {
    let io = |e: std::io::Error| Trouble::damaged(e.to_string());
    let mut size = [0; 8];
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    file.read_exact(&mut size).map_err(|_| nothing_known(file, length))?;
    let header = u64::from_le_bytes(size);
    let mut first = [0];
    let begins = file.read_exact(&mut first).is_ok() && first == *b"{";
    if !begins || header > MAX_HEADER {
        return Err(nothing_known(file, length));
    }
    let Some(body) = length.checked_sub(8).and_then(|rest| rest.checked_sub(header)) else {
        let reason = format!("it is cut short: its header has {header} bytes, the whole file {length}");
        return Err(Trouble::damaged(reason));
    };
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(8)).map_err(io)?;
    file.take(header).read_to_end(&mut text).map_err(io)?;
    let broken = |e: &dyn std::fmt::Display| Trouble::damaged(format!("its header is broken: {e}"));
    let mut map: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text).map_err(|e| broken(&e))?;
    let mut contents = Contents { containers: vec![String::new()], ..Default::default() };
    if let Some(serde_json::Value::Object(metadata)) = map.remove("__metadata__") {
        for (key, value) in metadata {
            match (key.as_str(), value) {
                (UNTIED, serde_json::Value::String(name)) => contents.untied.push(name),
                (_, serde_json::Value::String(name)) => contents.aliases.push((key, name)),
                _ => {}
            }
        }
    }
    let mut infos: Vec<(String, Info)> = Vec::new();
    for (name, value) in map {
        let info = Info::deserialize(value).map_err(|e| broken(&format!("{name}: {e}")))?;
        infos.push((name, info));
    }
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected = 0;
    for (name, info) in infos {
        let (start, end) = info.data_offsets;
        let dtype: Option<Dtype> = Dtype::deserialize(serde_json::Value::String(info.dtype.clone())).ok();
        let elements = info.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let bits = elements.and_then(|n| n.checked_mul(dtype.map_or(0, |dtype| dtype.bitsize() as u64)));
        let fits = end.checked_sub(start).is_some_and(|bytes| dtype.is_none() || bits == bytes.checked_mul(8));
        if start != expected || !fits {
            return Err(broken(&format!("the place of {name} is wrong")));
        }
        expected = end;
        let mut stride = vec![1usize; info.shape.len()];
        for axis in (1..stride.len()).rev() {
            stride[axis - 1] = stride[axis].saturating_mul(info.shape[axis]);
        }
        let unread = || format!("numbers of type {}, which cannot be read", info.dtype);
        let view = match dtype.filter(|dtype| numbers(*dtype, &[]).is_ok()) {
            Some(dtype) => Ok(View { place: contents.places.len(), dtype, offset: 0, stride }),
            None => Err(unread()),
        };
        contents.places.push(Place::Range { start: 8 + header + start, bytes: end - start });
        contents.entries.push(Entry { name, container: 0, shape: info.shape, view, alias: false });
    }
    if expected > body {
        let reason = format!("it is cut short: its tensors have {expected} bytes, of which {body} are there");
        return Err(Trouble::damaged(reason));
    }
    if expected < body {
        return Err(Trouble::damaged(format!("{} bytes too many follow its last tensor", body - expected)));
    }
    Ok(contents)
}

fn nothing_known(file: &mut File, length: u64) -> Trouble {
    let mut head = Vec::new();
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(8).read_to_end(&mut head));
    let begins: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
    Trouble::foreign(
        format!("it is neither safetensors nor a file of torch.save ({length} bytes, which begin with {begins})"),
        "save the weights with torch.save(model.state_dict(), 'model.pt')",
    )
}
