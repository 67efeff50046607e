//! Reads files of `torch.save`: since PyTorch 1.6 a zip archive with the storages as files and a pickle that says
//! which part of which storage is which tensor; before that, and with `_use_new_zipfile_serialization=False`, the
//! pickle and the storages one after the other.

use super::pickle::{self, Object, PickleError, Pickled, Tensor, Value};
use super::state_dict::{Contents, Entry, Place, Trouble, View};
use safetensors::tensor::Dtype;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use zip::ZipArchive;

/// The first bytes of a zip archive.
pub(crate) const ZIP: &[u8] = b"PK\x03\x04";

/// The magic number at the start of a file without zip, 0x1950a86a20f9469cfc6c, with its pickle instruction.
const MAGIC_NUMBER: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// Names are at most this long.
const MAX_NAME: usize = 300;

/// Containers in containers: `checkpoint["models"][0]["state"]` and the like.
const MAX_DEPTH: usize = 12;

/// Limit on the tensors, containers and keys visited: containers may be held by many others.
const MAX_VISITS: usize = 1 << 19;
const MAX_KEYS: usize = 1 << 22;

/// Whether `torch.save` wrote a file with this beginning without zip.
pub(crate) fn is_legacy(head: &[u8]) -> bool {
    head.windows(MAGIC_NUMBER.len()).take(16).any(|window| window == MAGIC_NUMBER)
}

/// The open archive.
pub(crate) type Archive = ZipArchive<BufReader<File>>;

/// A zip archive of `torch.save`.
pub(crate) fn read_zip(path: &Path, file: File) -> Result<(Contents, Archive), Trouble> {
    let cut = |e: zip::result::ZipError| Trouble::damaged(format!("its zip archive is cut short or broken: {e}"));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(cut)?;
    let pickle =
        archive.file_names().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).map(str::to_owned);
    let pickle = pickle.ok_or_else(|| no_pickle(path, &archive))?;
    let folder = pickle.trim_end_matches("data.pkl").to_owned();
    if archive.index_for_name(&format!("{folder}constants.pkl")).is_some() {
        return Err(torch_script(path));
    }
    let order = member(&mut archive, &format!("{folder}byteorder"), 16).unwrap_or_default();
    let bytes = member(&mut archive, &pickle, pickle::MAX_LENGTH)?;
    let pickled = pickle::run(&bytes).map_err(|e| trouble(path, e))?;
    let mut places = HashMap::new();
    let mut contents = Contents { big_endian: order.starts_with(b"big"), is_torch: true, ..Default::default() };
    for object in &pickled.objects {
        let Object::Storage(storage) = object else { continue };
        places.entry(storage.key).or_insert_with(|| {
            let name = format!("{folder}data/{}", storage.key);
            contents.places.push(match archive.index_for_name(&name) {
                Some(index) => Place::Member(index),
                None => Place::Missing(name),
            });
            contents.places.len() - 1
        });
    }
    tensors(path, &pickled, &places, &mut contents)?;
    Ok((contents, archive))
}

/// A member of an archive, which is at most `limit` bytes long.
pub(crate) fn member(archive: &mut Archive, name: &str, limit: u64) -> Result<Vec<u8>, Trouble> {
    let index = archive.index_for_name(name).ok_or_else(|| Trouble::damaged(format!("{name} is missing in it")))?;
    member_at(archive, index, limit)
}

/// The same by its number.
pub(crate) fn member_at(archive: &mut Archive, index: usize, limit: u64) -> Result<Vec<u8>, Trouble> {
    let name = archive.name_for_index(index).unwrap_or_default().to_owned();
    let entry = archive.by_index(index).map_err(|e| Trouble::damaged(format!("{name}: {e}")))?;
    let mut content = Vec::new();
    // One byte more, so that the checksum of a member of exactly this length is checked.
    let read = entry.take(limit + 1).read_to_end(&mut content);
    let length = read.map_err(|e| Trouble::damaged(format!("{name}: {e}")))?;
    if length as u64 > limit {
        return Err(Trouble::foreign(
            format!("{name} in it unpacks to more than {} MiB", limit >> 20),
            "save it again without compression and with nothing but model.state_dict()",
        ));
    }
    Ok(content)
}

/// The error for a zip archive without `data.pkl`.
fn no_pickle(path: &Path, archive: &Archive) -> Trouble {
    let shown = path.display();
    let has = |part: &str| archive.file_names().any(|name| name.contains(part));
    if archive.file_names().any(|name| name.ends_with(".npy")) {
        return Trouble::foreign(
            "it is an archive of NumPy",
            format!(
                "python -c \"import numpy; from safetensors.numpy import save_file; \
                 save_file(dict(numpy.load('{shown}')), 'model.safetensors')\" converts it"
            ),
        );
    }
    if has("constants.pkl") || has("/code/") {
        return torch_script(path);
    }
    let inside = archive
        .file_names()
        .find(|name| [".pt", ".pth", ".bin", ".ckpt", ".safetensors"].iter().any(|ending| name.ends_with(ending)));
    match inside {
        Some(inside) => {
            Trouble::foreign("it is a zip archive with files in it", format!("unpack it and name {inside}"))
        }
        None => Trouble::foreign(
            "it is a zip archive without a data.pkl: torch.save did not write it",
            "name the file of torch.save or safetensors itself",
        ),
    }
}

fn torch_script(path: &Path) -> Trouble {
    Trouble::foreign(
        "it is a TorchScript program of torch.jit.save, not a state dict",
        format!(
            "python -c \"import torch; torch.save(torch.jit.load('{}', map_location='cpu').state_dict(), 'model.pt')\" \
             converts it",
            path.display()
        ),
    )
}

/// A file without zip: magic number, version, a description of the machine, the object, the keys of its storages, and
/// the storages in that order, each after the number of its elements.
pub(crate) fn read_legacy(path: &Path, file: &mut File) -> Result<Contents, Trouble> {
    let io = |e: std::io::Error| Trouble::damaged(e.to_string());
    let length = file.metadata().map_err(io)?.len();
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    file.by_ref().take(pickle::MAX_LENGTH).read_to_end(&mut head).map_err(io)?;
    let mut at = 0;
    let mut next = || -> Result<Pickled<'_>, Trouble> {
        let pickled = pickle::run(&head[at..]).map_err(|e| trouble(path, e))?;
        at += pickled.length;
        Ok(pickled)
    };
    let (_, version, machine, object, keys) = (next()?, next()?, next()?, next()?, next()?);
    if version.root != Value::Int(1001) {
        return Err(Trouble::foreign(
            "it is a file of torch.save in a version that is not known here",
            convert(path, str::to_owned),
        ));
    }
    let little = machine.item(machine.root, "little_endian");
    let mut contents =
        Contents { big_endian: little == Some(Value::Bool(false)), is_torch: true, ..Default::default() };
    let mut types: HashMap<&str, Option<Dtype>> = HashMap::new();
    for item in &object.objects {
        if let Object::Storage(storage) = item {
            types.entry(storage.key).or_insert(storage.dtype);
        }
    }
    let Some(Object::Sequence(keys)) = keys.object(keys.root) else {
        return Err(Trouble::damaged("its list of storages is damaged"));
    };
    let mut places = HashMap::new();
    let mut start = at as u64;
    for key in keys {
        let Value::Text(key) = key else { return Err(Trouble::damaged("its list of storages is damaged")) };
        let cut = || Trouble::damaged(format!("it is cut short: storage {key} is not whole"));
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(start)).map_err(io)?;
        file.read_exact(&mut count).map_err(|_| cut())?;
        // Unsupported types have no known size, so that whatever follows cannot be found.
        let known = types.get(key).ok_or_else(|| Trouble::damaged(format!("storage {key} is no tensor's")))?;
        let dtype = known.ok_or_else(|| {
            Trouble::foreign(
                "it holds tensors whose numbers have a type that is not read here",
                convert(path, str::to_owned),
            )
        })?;
        let bytes = u64::from_le_bytes(count).checked_mul(dtype.bitsize() as u64 / 8).ok_or_else(cut)?;
        start += 8;
        let end = start.checked_add(bytes).filter(|end| *end <= length).ok_or_else(cut)?;
        places.insert(*key, contents.places.len());
        contents.places.push(Place::Range { start, bytes });
        start = end;
    }
    tensors(path, &object, &places, &mut contents)?;
    Ok(contents)
}

/// The error for a file whose pickle could not be read.
fn trouble(path: &Path, error: PickleError) -> Trouble {
    match error {
        PickleError::Damaged(reason) => Trouble::damaged(reason),
        PickleError::Foreign(reason) => Trouble::foreign(reason, convert(path, str::to_owned)),
    }
}

/// The line of Python that saves a state dict from a file. `part` makes the state dict's expression of the file's.
fn convert(path: &Path, part: impl Fn(&str) -> String) -> String {
    let loaded = format!("torch.load('{}', map_location='cpu', weights_only=False)", path.display());
    format!(
        "python -c \"import torch; torch.save({}, 'model.pt')\" converts it; that runs what the file says, so trust it first",
        part(&loaded)
    )
}

/// Collects all tensors of the pickle, with the names of the containers that hold them.
fn tensors(
    path: &Path,
    pickled: &Pickled<'_>,
    places: &HashMap<&str, usize>,
    contents: &mut Contents,
) -> Result<(), Trouble> {
    let mut walk = Walk { pickled, places, contents, visits: 0, keys: 0 };
    walk.value(pickled.root, &Whereabouts::default(), 0);
    let too_many = walk.is_at_its_end();
    if let Some(name) = &pickled.asks_for {
        let part = |loaded: &str| state_dict_in(pickled, contents, loaded);
        return Err(Trouble::foreign(pickle::refusal(name), convert(path, part)));
    }
    if too_many {
        return Err(Trouble::foreign("it holds more tensors than any model", convert(path, str::to_owned)));
    }
    if contents.entries.is_empty() {
        let what = match pickled.object(pickled.root) {
            Some(Object::Tensor(_)) => "it is a single tensor, no state dict",
            _ => "there are no tensors in it",
        };
        return Err(Trouble::foreign(what, "save model.state_dict() with torch.save"));
    }
    if let Some(Object::Dict(entries)) = pickled.object(pickled.root) {
        for (key, value) in entries {
            if let (Value::Text(key), Value::Int(number)) = (key, value) {
                contents.numbers.push(((*key).to_owned(), *number));
            }
        }
    }
    Ok(())
}

/// The expression of the state dict in an object that is not fully known.
fn state_dict_in(pickled: &Pickled<'_>, contents: &Contents, loaded: &str) -> String {
    let Some(Object::Dict(entries)) = pickled.object(pickled.root) else { return format!("{loaded}.state_dict()") };
    let mut counts = vec![0; contents.containers.len()];
    contents.entries.iter().for_each(|entry| counts[entry.container] += 1);
    // The largest container; of equal ones the outermost.
    let largest = counts.iter().enumerate().max_by_key(|(i, n)| (**n, Reverse(*i)));
    match largest.filter(|(_, n)| **n > 0).and_then(|(i, _)| contents.containers.get(i)) {
        // Tensors and other values side by side.
        Some(keys) if keys.is_empty() => {
            format!("{{k: v for k, v in {loaded}.items() if torch.is_tensor(v)}}")
        }
        Some(keys) => format!("{loaded}{keys}"),
        // One of the values is a whole model.
        None => {
            let usual = ["model", "net", "network", "module"];
            let model = usual.iter().find(|name| entries.iter().any(|(key, _)| *key == Value::Text(name)));
            model.map_or_else(|| format!("{loaded}.state_dict()"), |name| format!("{loaded}['{name}'].state_dict()"))
        }
    }
}

/// Where a walk is: the names so far with a dot after each, and the expression of Python that leads there.
#[derive(Default)]
struct Whereabouts {
    name: String,
    expression: String,
}

/// A walk through all containers.
struct Walk<'p, 'a> {
    pickled: &'p Pickled<'a>,
    places: &'p HashMap<&'p str, usize>,
    contents: &'p mut Contents,
    visits: usize,
    keys: usize,
}

impl Walk<'_, '_> {
    fn is_at_its_end(&self) -> bool {
        self.visits >= MAX_VISITS || self.keys >= MAX_KEYS
    }

    fn value(&mut self, value: Value<'_>, here: &Whereabouts, depth: usize) {
        let holds = |value: Value<'_>| matches!(value, Value::Object(_));
        let items: Vec<(String, String, Value<'_>)> = match self.pickled.object(value) {
            Some(Object::Dict(entries)) => {
                self.keys += entries.len();
                // For a repeated key the last value counts, as in Python.
                let mut last = BTreeMap::new();
                for (i, (key, _)) in entries.iter().enumerate() {
                    last.insert(key_of(*key), i);
                }
                let mut kept: Vec<usize> = last.into_values().filter(|i| holds(entries[*i].1)).collect();
                kept.sort_unstable();
                let named = |i: usize| key_of(entries[i].0).map(|(name, keys)| (name, keys, entries[i].1));
                kept.into_iter().filter_map(named).collect()
            }
            Some(Object::Sequence(items)) => {
                self.keys += items.len();
                let held = items.iter().enumerate().filter(|(_, value)| holds(**value));
                held.map(|(i, value)| (i.to_string(), format!("[{i}]"), *value)).collect()
            }
            _ => return,
        };
        let is_tensor = |value| matches!(self.pickled.object(value), Some(Object::Tensor(_) | Object::Strange(_)));
        if items.iter().any(|(_, _, value)| is_tensor(*value)) {
            self.contents.containers.push(here.expression.clone());
        }
        let container = self.contents.containers.len().saturating_sub(1);
        for (name, expression, value) in items {
            self.visits += 1;
            let full = format!("{}{name}", here.name);
            if self.is_at_its_end() {
                return;
            }
            if full.len() > MAX_NAME || depth >= MAX_DEPTH {
                continue;
            }
            match self.pickled.object(value) {
                Some(Object::Tensor(tensor)) => self.tensor(full, container, tensor),
                Some(Object::Strange(kind)) => {
                    let view = Err((*kind).to_owned());
                    self.contents.entries.push(Entry { name: full, container, shape: vec![], view, alias: false });
                }
                Some(_) => {
                    let expression = format!("{}{expression}", here.expression);
                    self.value(value, &Whereabouts { name: full + ".", expression }, depth + 1);
                }
                None => {}
            }
        }
    }

    fn tensor(&mut self, name: String, container: usize, tensor: &Tensor<'_>) {
        let view = match (tensor.storage.dtype, self.places.get(tensor.storage.key)) {
            (Some(dtype), Some(place)) => Ok(View {
                place: *place,
                dtype,
                offset: tensor.offset.saturating_add(tensor.storage.start),
                stride: tensor.stride.clone(),
            }),
            (None, _) => Err("numbers of a type that is not read here".to_owned()),
            (_, None) => Err("its numbers are not in the file".to_owned()),
        };
        self.contents.entries.push(Entry { name, container, shape: tensor.shape.clone(), view, alias: false });
    }
}

/// A key as a part of a name, and as a Python subscript.
fn key_of(key: Value<'_>) -> Option<(String, String)> {
    match key {
        Value::Text(text) if text.len() <= MAX_NAME => Some((text.to_owned(), format!("['{text}']"))),
        Value::Int(number) => Some((number.to_string(), format!("[{number}]"))),
        _ => None,
    }
}
