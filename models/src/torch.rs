//! Reads what `torch.save` writes of a state dict: a zip archive with the storages as files and a pickle that says which
//! part of which storage is which tensor.
//!
//! A pickle is a program. This reader knows the instructions and the few names that a state dict needs, and refuses all
//! others by name; nothing is ever called.

use crate::weights::{Weight, numbers};
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::rc::Rc;
use zip::ZipArchive;

/// How a zip archive begins.
pub(crate) const MAGIC: &[u8] = b"PK\x03\x04";

/// Tuples and dicts may be nested this deep; a state dict needs five levels.
const MAX_DEPTH: usize = 32;

/// The tensors of the file by name, each with its type.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<(String, Dtype, Weight)>, String> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let index = archive.file_names().find_map(|name| name.strip_suffix("data.pkl")).map(str::to_owned);
    let folder = index.ok_or("the archive has no data.pkl: torch.save did not write it")?;
    let mut file = |name: &str| -> Result<Vec<u8>, String> {
        let name = format!("{folder}{name}");
        let mut entry = archive.by_name(&name).map_err(|e| format!("{name}: {e}"))?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|e| format!("{name}: {e}"))?;
        Ok(content)
    };
    if file("byteorder").is_ok_and(|order| order.starts_with(b"big")) {
        return Err("the numbers are big-endian; save the state dict again on another machine".into());
    }
    let state_dict = Pickle::new(&file("data.pkl")?).run()?;
    let Value::Dict(entries) = &*state_dict else { return Err("it holds no dict of tensors".into()) };
    let mut storages: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let mut tensors = Vec::new();
    for (key, value) in entries {
        let Value::Text(name) = &**key else { return Err("a key of the dict is not a string".into()) };
        let Value::Tensor(tensor) = &**value else {
            return Err(format!("`{name}` is not a tensor; save model.state_dict() by itself"));
        };
        let storage = &*tensor.storage;
        if !storages.contains_key(storage.key.as_str()) {
            storages.insert(&storage.key, file(&format!("data/{}", storage.key))?);
        }
        let weight = tensor.gather(&storages[storage.key.as_str()]).map_err(|e| format!("{name}: {e}"))?;
        tensors.push((name.clone(), storage.dtype, weight));
    }
    Ok(tensors)
}

/// What a pickle can build here.
#[derive(Debug)]
enum Value {
    /// `None`, a number that is no size, a hook: kept as a place holder.
    Other,
    Int(i64),
    Text(String),
    Tuple(Vec<Rc<Value>>),
    Dict(Vec<(Rc<Value>, Rc<Value>)>),
    Global(Global),
    Storage(Rc<Storage>),
    Tensor(Tensor),
}

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

impl Global {
    fn new(module: &str, name: &str) -> Result<Self, String> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "DoubleStorage") => Self::Storage(Dtype::F64),
            ("torch", "FloatStorage") => Self::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Self::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Dtype::BF16),
            ("torch", "LongStorage") => Self::Storage(Dtype::I64),
            ("torch", "IntStorage") => Self::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Self::Storage(Dtype::I16),
            ("torch", "CharStorage") => Self::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Self::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Self::Storage(Dtype::BOOL),
            _ => return Err(format!("its pickle asks for {module}.{name}, which no state dict needs; it was not run")),
        })
    }
}

/// One file of the archive, wherever the tensors lay when they were saved.
#[derive(Debug)]
struct Storage {
    key: String,
    dtype: Dtype,
}

/// A view into a storage, in elements.
#[derive(Debug, Clone)]
struct Tensor {
    storage: Rc<Storage>,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl Tensor {
    /// The tensor's numbers, row-major.
    fn gather(&self, storage: &[u8]) -> Result<Weight, String> {
        let values = numbers(self.storage.dtype, storage)?;
        let Self { offset, shape, stride, .. } = self;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= values.len());
        let last = shape.iter().zip(stride).try_fold(*offset, |at, (&d, &s)| {
            let reach = d.saturating_sub(1).checked_mul(s)?;
            at.checked_add(reach)
        });
        let (Some(elements), Some(last)) = (elements, last) else { return Err("its size is absurd".into()) };
        if elements > 0 && last >= values.len() {
            return Err(format!("it reaches to element {last} of a storage of {}", values.len()));
        }
        let mut place = vec![0; shape.len()]; // counts through the shape, the last axis fastest
        let mut gathered = Vec::with_capacity(elements);
        for _ in 0..elements {
            gathered.push(values[offset + place.iter().zip(stride).map(|(i, s)| i * s).sum::<usize>()]);
            for (axis, i) in place.iter_mut().enumerate().rev() {
                *i += 1;
                if *i < shape[axis] {
                    break;
                }
                *i = 0;
            }
        }
        Ok(Weight { shape: shape.clone(), values: gathered })
    }
}

/// The pickle machine: a stack, the marks on it, and a memo.
struct Pickle<'a> {
    rest: &'a [u8],
    stack: Vec<(Rc<Value>, usize)>, // with the depth of nesting
    marks: Vec<usize>,
    memo: HashMap<usize, (Rc<Value>, usize)>,
}

impl<'a> Pickle<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, stack: vec![], marks: vec![], memo: HashMap::new() }
    }

    /// Runs to the end, and gives what is on the stack then.
    fn run(mut self) -> Result<Rc<Value>, String> {
        loop {
            match self.byte()? {
                b'.' => return Ok(self.pop()?.0),
                instruction => self.step(instruction)?,
            }
        }
    }

    fn step(&mut self, instruction: u8) -> Result<(), String> {
        match instruction {
            0x80 => drop(self.byte()?),  // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'N' | 0x88 | 0x89 => self.push(Value::Other), // NONE, NEWTRUE, NEWFALSE
            b'G' => {
                self.take(8)?; // BINFLOAT
                self.push(Value::Other);
            }
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => {
                let bytes = self.take(4)?.first_chunk().copied().unwrap_or_default();
                self.push(Value::Int(i32::from_le_bytes(bytes).into()));
            }
            0x8a => {
                let length = self.byte()?.into(); // LONG1
                self.int(length)?;
            }
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b'}' => self.push(Value::Dict(vec![])),
            b')' => self.push(Value::Tuple(vec![])),
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(instruction - 0x84)).ok_or(SHORT)?;
                self.tuple(start)?;
            }
            b't' => {
                let start = self.mark()?;
                self.tuple(start)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(Global::new(module, name)?));
            }
            0x93 => {
                let (name, module) = (self.pop()?.0, self.pop()?.0); // STACK_GLOBAL
                let (Value::Text(module), Value::Text(name)) = (&*module, &*name) else { return Err(SHORT.into()) };
                self.push(Value::Global(Global::new(module, name)?));
            }
            b's' => {
                let start = self.stack.len().checked_sub(2).ok_or(SHORT)?;
                self.set_items(start)?;
            }
            b'u' => {
                let start = self.mark()?;
                self.set_items(start)?;
            }
            b'Q' => {
                let (id, _) = self.pop()?;
                self.push(storage(&id)?);
            }
            b'R' => {
                let (arguments, function) = (self.pop()?.0, self.pop()?.0);
                self.push(reduce(&function, &arguments)?);
            }
            b'b' => drop(self.pop()?), // BUILD: attributes of a dict, such as `_metadata`
            b'q' => {
                let key = self.size(1)?;
                self.memoize(key)?;
            }
            b'r' => {
                let key = self.size(4)?;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len())?,
            b'h' => {
                let key = self.size(1)?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.size(4)?;
                self.recall(key)?;
            }
            other => return Err(format!("its pickle has the instruction {other:#04x}, which no state dict needs")),
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned little-endian number of `n` ≤ 8 bytes.
    fn size(&mut self, n: usize) -> Result<usize, String> {
        let mut bytes = [0; 8];
        let taken = self.take(n)?;
        bytes.get_mut(..n).ok_or("its pickle has a number of more than 64 bits")?.copy_from_slice(taken);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|e| e.to_string())
    }

    fn int(&mut self, n: usize) -> Result<(), String> {
        let value = self.size(n)?;
        self.push(Value::Int(i64::try_from(value).map_err(|e| e.to_string())?));
        Ok(())
    }

    /// A string after its length in `n` bytes.
    fn text(&mut self, n: usize) -> Result<(), String> {
        let length = self.size(n)?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|e| e.to_string())?;
        self.push(Value::Text(text.to_owned()));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|&b| b == b'\n').ok_or(SHORT)?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|e| e.to_string())
    }

    fn push(&mut self, value: Value) {
        self.stack.push((Rc::new(value), 0));
    }

    fn pop(&mut self) -> Result<(Rc<Value>, usize), String> {
        self.stack.pop().ok_or_else(|| SHORT.into())
    }

    fn mark(&mut self) -> Result<usize, String> {
        self.marks.pop().filter(|&start| start <= self.stack.len()).ok_or_else(|| SHORT.into())
    }

    /// What lies on the stack from `start` on, and how deep something that holds it all is nested.
    fn above(&mut self, start: usize) -> Result<(Vec<Rc<Value>>, usize), String> {
        let items = self.stack.split_off(start);
        let depth = items.iter().map(|(_, depth)| depth + 1).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err("its pickle is nested too deep".into());
        }
        Ok((items.into_iter().map(|(value, _)| value).collect(), depth))
    }

    fn tuple(&mut self, start: usize) -> Result<(), String> {
        let (items, depth) = self.above(start)?;
        self.stack.push((Rc::new(Value::Tuple(items)), depth));
        Ok(())
    }

    /// Puts the keys and values from `start` on into the dict below them.
    fn set_items(&mut self, start: usize) -> Result<(), String> {
        let (items, depth) = self.above(start)?;
        let Some((dict, dict_depth)) = self.stack.last_mut() else { return Err(SHORT.into()) };
        // The memo may know the dict as well, as it was when it was empty; no state dict comes back to it.
        if Rc::get_mut(dict).is_none() {
            *dict = Rc::new(match &**dict {
                Value::Dict(entries) => Value::Dict(entries.iter().map(|(k, v)| (k.clone(), v.clone())).collect()),
                _ => Value::Other,
            });
        }
        let Some(Value::Dict(entries)) = Rc::get_mut(dict) else {
            return Err("its pickle fills what is no dict".into());
        };
        entries.extend(items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
        *dict_depth = (*dict_depth).max(depth);
        Ok(())
    }

    fn memoize(&mut self, key: usize) -> Result<(), String> {
        let top = self.stack.last().ok_or(SHORT)?.clone();
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Result<(), String> {
        let value = self.memo.get(&key).ok_or("its pickle recalls what it never stored")?;
        self.stack.push(value.clone());
        Ok(())
    }
}

/// What every pickle that is cut short or shuffled comes to.
const SHORT: &str = "its pickle is damaged";

/// `('storage', <type>, key, device, elements)`; the device does not matter.
fn storage(id: &Value) -> Result<Value, String> {
    if let Value::Tuple(parts) = id
        && let [kind, dtype, key, _, _] = &parts[..]
        && let (Value::Text(kind), Value::Global(Global::Storage(dtype)), Value::Text(key)) =
            (&**kind, &**dtype, &**key)
        && kind == "storage"
    {
        return Ok(Value::Storage(Rc::new(Storage { key: key.clone(), dtype: *dtype })));
    }
    Err("its pickle refers to something that is no storage".into())
}

/// A call of one of the known functions.
fn reduce(function: &Value, arguments: &Value) -> Result<Value, String> {
    let Value::Tuple(arguments) = arguments else { return Err(SHORT.into()) };
    let arguments: Vec<&Value> = arguments.iter().map(|v| &**v).collect();
    match (function, &arguments[..]) {
        (Value::Global(Global::OrderedDict), []) => Ok(Value::Dict(vec![])),
        (Value::Global(Global::RebuildParameter), [Value::Tensor(tensor), ..]) => Ok(Value::Tensor(tensor.clone())),
        (
            Value::Global(Global::RebuildTensor),
            [Value::Storage(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(stride), ..],
        ) => {
            let (shape, stride) = (sizes(shape)?, sizes(stride)?);
            if shape.len() != stride.len() {
                return Err(SHORT.into());
            }
            let offset = usize::try_from(*offset).map_err(|e| e.to_string())?;
            Ok(Value::Tensor(Tensor { storage: storage.clone(), offset, shape, stride }))
        }
        _ => Err("its pickle calls something with arguments that no state dict has".into()),
    }
}

fn sizes(values: &[Rc<Value>]) -> Result<Vec<usize>, String> {
    let size = |value: &Rc<Value>| match &**value {
        Value::Int(n) => usize::try_from(*n).map_err(|e| e.to_string()),
        _ => Err(SHORT.into()),
    };
    values.iter().map(size).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(pickle: &[u8]) -> Result<Rc<Value>, String> {
        Pickle::new(pickle).run()
    }

    #[test]
    fn a_pickle_that_asks_for_other_names_is_refused() {
        for (pickle, name) in [
            (&b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."[..], "os.system"),
            (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
            (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        ] {
            let error = run(pickle).unwrap_err();
            assert!(error.contains(name) && error.contains("was not run"), "{error}");
        }
        let error = run(b"(S'abc'\n.").unwrap_err();
        assert!(error.contains("0x53"), "{error}");
    }

    #[test]
    fn broken_pickles_are_errors() {
        for pickle in [
            &b""[..],
            b".",
            b"t.",
            b"R.",
            b")R.",
            b"u.",
            b"(u.",
            b"s.",
            b"h\x07.",
            b"q\x01.",
            b"\x8a\x09.",
            b"X\xff\xff\xff\xff.",
            b"\x87.",
            b"Q.",
            b"NQ.",
        ] {
            run(pickle).unwrap_err();
        }
        let deep = [vec![b')'], vec![0x85; 1_000_000], vec![b'.']].concat();
        assert!(run(&deep).unwrap_err().contains("nested"));
    }

    #[test]
    fn views_are_gathered_by_offset_and_stride() {
        let storage = Rc::new(Storage { key: "0".into(), dtype: Dtype::U8 });
        let view = |offset, shape: &[usize], stride: &[usize]| {
            let (shape, stride) = (shape.to_vec(), stride.to_vec());
            Tensor { storage: storage.clone(), offset, shape, stride }.gather(&[0, 1, 2, 3, 4, 5])
        };
        assert_eq!(view(0, &[2, 3], &[3, 1]).unwrap().values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(view(0, &[3, 2], &[1, 3]).unwrap().values, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(view(4, &[2], &[1]).unwrap().values, [4.0, 5.0]);
        assert_eq!(view(5, &[], &[]).unwrap().values, [5.0]);
        assert!(view(9, &[0], &[1]).unwrap().values.is_empty());
        assert!(view(5, &[2], &[1]).is_err());
        assert!(view(0, &[7], &[0]).is_err());
        assert!(view(0, &[usize::MAX, 2], &[1, 1]).is_err());
        assert!(view(usize::MAX, &[2], &[1]).is_err());
    }
}
