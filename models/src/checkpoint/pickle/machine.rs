//! The pickle machine: a stack, the marks on it, and a memo.

use super::PickleError::{self, Damaged, Foreign};
use super::names::Global;
use super::{Object, Pickled, Storage, Tensor, Value};
use std::collections::HashMap;

/// Containers may be nested this deep; training checkpoints need ten levels.
const MAX_DEPTH: u8 = 32;

/// More containers and tensors, more things remembered or more things on the stack than this cannot be a state dict.
pub(super) const MAX_OBJECTS: usize = 1 << 22;

/// Limit on the pairs of one dict and on the axes of a tensor: both can be copied again and again.
const MAX_PAIRS: usize = 1 << 12;
const MAX_AXES: usize = 64;

/// The error for a truncated or garbled pickle.
const SHORT: &str = "its pickle is damaged";

fn short() -> PickleError {
    Damaged(SHORT.into())
}

/// The error for a pickle that refers to an unknown name.
pub(crate) fn refusal(name: &str) -> String {
    format!("its pickle asks for {name}, which no state dict needs; it was not run")
}

/// Runs the pickle at the beginning of `bytes`.
pub(crate) fn run(bytes: &[u8]) -> Result<Pickled<'_>, PickleError> {
    let mut machine = Machine {
        rest: bytes,
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        objects: vec![],
        depths: vec![],
        asks_for: None,
    };
    let end = machine.run();
    match (end, machine.asks_for) {
        (Ok(root), asks_for) => {
            Ok(Pickled { root, objects: machine.objects, asks_for, length: bytes.len() - machine.rest.len() })
        }
        // An error after an unknown name may be a consequence of it.
        (Err(_), Some(name)) => Err(Foreign(refusal(&name))),
        (Err(error), None) => Err(error),
    }
}

/// Its state.
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    objects: Vec<Object<'a>>,
    /// How deep each object is nested.
    depths: Vec<u8>,
    asks_for: Option<String>,
}

impl<'a> Machine<'a> {
    /// Runs to the end and returns the top of the stack.
    fn run(&mut self) -> Result<Value<'a>, PickleError> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                instruction => self.step(instruction)?,
            }
            if self.stack.len().max(self.memo.len()).max(self.objects.len()).max(self.marks.len()) > MAX_OBJECTS {
                return Err(Foreign("its pickle holds more objects than any state dict".into()));
            }
        }
    }

    fn step(&mut self, instruction: u8) -> Result<(), PickleError> {
        match instruction {
            0x80 => drop(self.byte()?),  // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' | b'0' | b'1' | b'2' => self.rearrange(instruction)?,
            b'N' | 0x88 | 0x89 | b'G' | b'F' | b'I' | b'L' | b'K' | b'M' | b'J' | 0x8a | 0x8b => {
                self.number(instruction)?
            }
            b'X' | b'T' => self.text(4)?, // BINUNICODE, and BINSTRING: the strings of Python 2
            0x8c | b'U' => self.text(1)?, // SHORT_BINUNICODE, SHORT_BINSTRING
            0x8d => self.text(8)?,
            b'B' => self.bytes(4)?,
            b'C' => self.bytes(1)?,
            0x8e | 0x96 => self.bytes(8)?, // BINBYTES8, BYTEARRAY8
            b'}' | b']' | b')' | 0x8f | 0x85..=0x87 | b't' | b'l' | b'd' | 0x91 => self.container(instruction)?,
            b's' | b'u' | b'a' | b'e' | 0x90 => self.fill(instruction)?,
            b'c' | 0x93 | b'Q' | b'R' | 0x81 | 0x92 | b'b' => self.call(instruction)?,
            b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => self.remember(instruction)?,
            other => {
                let reason = format!("its pickle has the instruction {other:#04x}, which no state dict needs");
                return Err(Foreign(reason));
            }
        }
        Ok(())
    }

    /// Marks, and values that are dropped or doubled.
    fn rearrange(&mut self, instruction: u8) -> Result<(), PickleError> {
        match instruction {
            b'0' => drop(self.pop()?), // POP
            b'1' => {
                let start = self.mark()?; // POP_MARK
                self.stack.truncate(start);
            }
            b'2' => {
                let top = *self.stack.last().ok_or_else(short)?; // DUP
                self.stack.push(top);
            }
            _ => self.marks.push(self.stack.len()),
        }
        Ok(())
    }

    /// `None`, truth values and numbers.
    fn number(&mut self, instruction: u8) -> Result<(), PickleError> {
        let value = match instruction {
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'G' => {
                self.take(8)?; // BINFLOAT
                Value::Other
            }
            b'F' => {
                self.line()?; // FLOAT
                Value::Other
            }
            b'I' => match self.line()? {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                digits => digits.parse().map_or(Value::Other, Value::Int),
            },
            b'L' => {
                let digits = self.line()?.trim_end_matches('L'); // LONG
                digits.parse().map_or(Value::Other, Value::Int)
            }
            b'K' => Value::Int(self.byte()?.into()),
            b'M' => Value::Int(self.size(2)? as i64),
            b'J' => {
                let bytes = self.take(4)?.first_chunk().copied().unwrap_or_default();
                Value::Int(i32::from_le_bytes(bytes).into())
            }
            0x8a => {
                let length = self.byte()?.into(); // LONG1
                self.long(length)?
            }
            0x8b => {
                let length = self.size(4)?; // LONG4
                self.long(length)?
            }
            _ => Value::Other, // NONE
        };
        self.stack.push(value);
        Ok(())
    }

    /// New dicts, tuples, lists and sets.
    fn container(&mut self, instruction: u8) -> Result<(), PickleError> {
        match instruction {
            b'}' => self.make(Object::Dict(vec![]), 0)?,
            b']' | b')' => self.make(Object::Sequence(vec![]), 0)?,
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(instruction - 0x84)).ok_or_else(short)?;
                self.sequence(start)?;
            }
            b't' | b'l' => {
                let start = self.mark()?;
                self.sequence(start)?;
            }
            b'd' => {
                let start = self.mark()?; // DICT
                let items = self.stack.split_off(start);
                self.make(Object::Dict(vec![]), 0)?;
                self.stack.extend(items);
                self.set_items(start + 1)?;
            }
            0x91 => {
                let start = self.mark()?; // FROZENSET
                self.stack.truncate(start);
                self.stack.push(Value::Other);
            }
            _ => self.stack.push(Value::Other), // EMPTY_SET
        }
        Ok(())
    }

    /// Moves the top of the stack into the dict, list or set below it.
    fn fill(&mut self, instruction: u8) -> Result<(), PickleError> {
        match instruction {
            b's' => {
                let start = self.stack.len().checked_sub(2).ok_or_else(short)?;
                self.set_items(start)?;
            }
            b'u' => {
                let start = self.mark()?;
                self.set_items(start)?;
            }
            b'a' => {
                let start = self.stack.len().checked_sub(1).ok_or_else(short)?;
                self.append(start)?;
            }
            b'e' => {
                let start = self.mark()?;
                self.append(start)?;
            }
            _ => {
                let start = self.mark()?; // ADDITEMS
                self.stack.truncate(start);
            }
        }
        Ok(())
    }

    /// Names, storages, and calls of the former.
    fn call(&mut self, instruction: u8) -> Result<(), PickleError> {
        match instruction {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?); // STACK_GLOBAL
                let (Value::Text(module), Value::Text(name)) = (module, name) else { return Err(short()) };
                self.global(module, name);
            }
            b'Q' => {
                let id = self.pop()?;
                let value = self.persistent(id)?;
                self.stack.push(value);
            }
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?); // REDUCE, NEWOBJ
                self.reduce(function, arguments)?;
            }
            0x92 => {
                let (_, arguments, function) = (self.pop()?, self.pop()?, self.pop()?); // NEWOBJ_EX
                self.reduce(function, arguments)?;
            }
            _ => drop(self.pop()?), // BUILD: attributes of a dict, such as `_metadata`
        }
        Ok(())
    }

    /// Stores the top of the stack in the memo, or pushes a value from the memo.
    fn remember(&mut self, instruction: u8) -> Result<(), PickleError> {
        let key = match instruction {
            b'q' | b'h' => self.size(1)?,
            b'r' | b'j' => self.size(4)?,
            b'p' | b'g' => self.line()?.parse().map_err(|_| short())?,
            _ => self.memo.len(), // MEMOIZE
        };
        if matches!(instruction, b'h' | b'j' | b'g') { self.recall(key) } else { self.memoize(key) }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], PickleError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned little-endian number of `n` ≤ 8 bytes.
    fn size(&mut self, n: usize) -> Result<usize, PickleError> {
        let mut bytes = [0; 8];
        bytes[..n].copy_from_slice(self.take(n)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| short())
    }

    /// A signed little-endian number of any length; one too large for a size is skipped.
    fn long(&mut self, n: usize) -> Result<Value<'a>, PickleError> {
        let taken = self.take(n)?;
        Ok(match taken.last() {
            None => Value::Int(0),
            Some(_) if n > 8 => Value::Other,
            Some(last) => {
                let mut bytes = [if last & 0x80 == 0 { 0 } else { 0xff }; 8];
                bytes[..n].copy_from_slice(taken);
                Value::Int(i64::from_le_bytes(bytes))
            }
        })
    }

    /// A string after its length in `n` bytes. (Python 2 has bytes here that are not text.)
    fn text(&mut self, n: usize) -> Result<(), PickleError> {
        let length = self.size(n)?;
        let text = std::str::from_utf8(self.take(length)?).map_or(Value::Other, Value::Text);
        self.stack.push(text);
        Ok(())
    }

    fn bytes(&mut self, n: usize) -> Result<(), PickleError> {
        let length = self.size(n)?;
        self.take(length)?;
        self.stack.push(Value::Other);
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let end = self.rest.iter().position(|&b| b == b'\n').ok_or_else(short)?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| short())
    }

    fn pop(&mut self) -> Result<Value<'a>, PickleError> {
        self.stack.pop().ok_or_else(short)
    }

    fn mark(&mut self) -> Result<usize, PickleError> {
        self.marks.pop().filter(|&start| start <= self.stack.len()).ok_or_else(short)
    }

    fn global(&mut self, module: &str, name: &str) {
        let global = Global::new(module, name);
        if global == Global::Unknown && self.asks_for.is_none() {
            // A name is a line of any length.
            self.asks_for = Some(format!("{module}.{name}").chars().take(200).collect());
        }
        self.stack.push(Value::Global(global));
    }

    fn depth(&self, value: Value<'a>) -> u8 {
        if let Value::Object(number) = value { self.depths.get(number).copied().unwrap_or(0) } else { 0 }
    }

    /// How deep something is nested that holds all of `items`.
    fn depth_over(&self, items: &[Value<'a>]) -> Result<u8, PickleError> {
        let depth = items.iter().map(|item| self.depth(*item) + 1).max().unwrap_or(0);
        if depth > MAX_DEPTH { Err(Foreign("its pickle is nested too deep".into())) } else { Ok(depth) }
    }

    fn make(&mut self, object: Object<'a>, depth: u8) -> Result<(), PickleError> {
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
        self.depths.push(depth);
        Ok(())
    }

    fn sequence(&mut self, start: usize) -> Result<(), PickleError> {
        let items = self.stack.split_off(start);
        let depth = self.depth_over(&items)?;
        self.make(Object::Sequence(items), depth)
    }

    /// Moves the keys and values from `start` on into the dict below them.
    fn set_items(&mut self, start: usize) -> Result<(), PickleError> {
        let items = self.stack.split_off(start);
        let depth = self.depth_over(&items)?;
        match *self.stack.last().ok_or_else(short)? {
            Value::Object(number) => {
                let Object::Dict(entries) = &mut self.objects[number] else { return Err(short()) };
                entries.extend(items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)));
                self.depths[number] = self.depths[number].max(depth);
                Ok(())
            }
            Value::Other | Value::Opaque => Ok(()),
            _ => Err(short()),
        }
    }

    /// Moves the values from `start` on into the list below.
    fn append(&mut self, start: usize) -> Result<(), PickleError> {
        let items = self.stack.split_off(start);
        let depth = self.depth_over(&items)?;
        match *self.stack.last().ok_or_else(short)? {
            Value::Object(number) => {
                let Object::Sequence(list) = &mut self.objects[number] else { return Err(short()) };
                list.extend(items);
                self.depths[number] = self.depths[number].max(depth);
                Ok(())
            }
            Value::Other | Value::Opaque => Ok(()),
            _ => Err(short()),
        }
    }

    fn memoize(&mut self, key: usize) -> Result<(), PickleError> {
        let top = *self.stack.last().ok_or_else(short)?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Result<(), PickleError> {
        let recalled = "its pickle recalls what it never stored";
        let value = self.memo.get(&key).ok_or_else(|| Damaged(recalled.into()))?;
        self.stack.push(*value);
        Ok(())
    }

    fn items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        let Value::Object(number) = value else { return None };
        if let Some(Object::Sequence(items)) = self.objects.get(number) { Some(items) } else { None }
    }

    /// `('storage', <type>, key, device, elements)`, the device does not matter; in old files with a part of another
    /// storage as `(key, offset, elements)` behind. Models that were pickled whole have `('module', <type>, …)`.
    fn persistent(&mut self, id: Value<'a>) -> Result<Value<'a>, PickleError> {
        match self.items(id) {
            Some(
                [Value::Text("storage"), Value::Global(Global::Storage(dtype)), Value::Text(key), _, _, rest @ ..],
            ) => {
                let start = match rest.first().and_then(|view| self.items(*view)) {
                    Some([_, Value::Int(offset), ..]) => usize::try_from(*offset).map_err(|_| short())?,
                    _ => 0,
                };
                let storage = Object::Storage(Storage { key, dtype: *dtype, start });
                self.make(storage, 0)?;
                self.pop()
            }
            Some([Value::Text("module"), class, ..]) => Ok(*class),
            Some([Value::Text("storage"), Value::Global(Global::Unknown), ..]) => Ok(Value::Opaque),
            _ => Err(Damaged("its pickle refers to something that is no storage".into())),
        }
    }

    /// A call of one of the known functions. Nothing is called: only a description of the result is made.
    fn reduce(&mut self, function: Value<'a>, arguments: Value<'a>) -> Result<(), PickleError> {
        let made = match function {
            Value::Global(Global::Unknown) | Value::Opaque => Value::Opaque,
            Value::Global(Global::Plain | Global::Dtype(_)) | Value::Other => Value::Other,
            Value::Global(Global::Dict) => return self.dict(arguments),
            Value::Global(Global::Strange(kind)) => return self.make(Object::Strange(kind), 0),
            Value::Global(Global::RebuildParameter) => match self.items(arguments) {
                Some([tensor, ..]) => *tensor,
                _ => return Err(arguments_error()),
            },
            Value::Global(Global::RebuildFromType) => match self.items(arguments) {
                // Its own function may not be this one again.
                Some([Value::Global(inner), _, arguments, ..]) if *inner != Global::RebuildFromType => {
                    let (inner, arguments) = (*inner, *arguments);
                    return self.reduce(Value::Global(inner), arguments);
                }
                _ => return Err(arguments_error()),
            },
            Value::Global(Global::RebuildTensor) => return self.tensor(arguments, false),
            Value::Global(Global::RebuildTyped) => return self.tensor(arguments, true),
            _ => return Err(arguments_error()),
        };
        self.stack.push(made);
        Ok(())
    }

    /// A dict from nothing, from a list of pairs (as Python 2 wrote them), or with the class of its default values.
    fn dict(&mut self, arguments: Value<'a>) -> Result<(), PickleError> {
        let items = self.items(arguments).ok_or_else(arguments_error)?;
        let list = items.first().and_then(|list| self.items(*list)).unwrap_or_default();
        if list.len() > MAX_PAIRS {
            return Err(Foreign("its pickle holds more objects than any state dict".into()));
        }
        let pairs: Vec<_> = list.iter().filter_map(|pair| self.items(*pair)?.first_chunk::<2>().copied()).collect();
        let depth = self.depth_over(&pairs.concat())?;
        self.make(Object::Dict(pairs.into_iter().map(|[key, value]| (key, value)).collect()), depth)
    }

    fn tensor(&mut self, arguments: Value<'a>, typed: bool) -> Result<(), PickleError> {
        let items = self.items(arguments).ok_or_else(arguments_error)?;
        let [Value::Object(storage), Value::Int(offset), shape, stride, rest @ ..] = items else {
            return match items {
                [Value::Opaque, ..] => {
                    self.stack.push(Value::Opaque);
                    Ok(())
                }
                _ => Err(arguments_error()),
            };
        };
        let Some(Object::Storage(storage)) = self.objects.get(*storage) else { return Err(arguments_error()) };
        let mut storage = *storage;
        if typed {
            storage.dtype = match rest {
                [_, _, Value::Global(Global::Dtype(dtype)), ..] => *dtype,
                _ => return Err(arguments_error()),
            };
        }
        let sizes = |value: Value<'a>| -> Result<Vec<usize>, PickleError> {
            let size = |value: &Value<'a>| match value {
                Value::Int(n) => usize::try_from(*n).map_err(|_| short()),
                _ => Err(short()),
            };
            let axes = self.items(value).filter(|axes| axes.len() <= MAX_AXES).ok_or_else(arguments_error)?;
            axes.iter().map(size).collect()
        };
        let (shape, stride) = (sizes(*shape)?, sizes(*stride)?);
        if shape.len() != stride.len() {
            return Err(short());
        }
        let offset = usize::try_from(*offset).map_err(|_| short())?;
        self.make(Object::Tensor(Tensor { storage, offset, shape, stride }), 0)
    }
}

fn arguments_error() -> PickleError {
    Damaged("its pickle calls something with arguments that no state dict has".into())
}
