//! The parts of a serialized `ModelProto` that have to be read before ONNX Runtime does: its version of the operators,
//! its outputs, and its tensors in other files. Field numbers are those of onnx.proto.

use crate::model::scoring::Message;

/// Messages may nest this deep before a file is taken for damaged; graphs inside of graphs are rare.
const DEEPEST: usize = 64;

/// A message that holds tensors, itself or further inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    Sparse,
    Tensor,
}

impl Kind {
    /// The kind of message in the field with this number, where it can contain tensors.
    fn field(self, number: u64) -> Option<Self> {
        match (self, number) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Graph, 1) | (Self::Function, 7) => Some(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::Sparse),
            (Self::Node, 5) => Some(Self::Attribute),
            _ => None,
        }
    }
}

/// The fields of a message in order; ends early where the bytes are not protobuf.
#[derive(Clone)]
struct Fields<'a>(&'a [u8]);

/// A field: its number, its content, and its bytes in the message.
struct Field<'a> {
    number: u64,
    value: Value<'a>,
    whole: &'a [u8],
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let start = self.0;
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return None, // groups, which nobody writes
        };
        Some(Field { number: key >> 3, value, whole: &start[..start.len() - self.0.len()] })
    }
}

fn bytes(message: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    Fields(message).filter(move |field| field.number == number).filter_map(|field| match field.value {
        Value::Bytes(bytes) => Some(bytes),
        Value::Number(_) => None,
    })
}

fn number(message: &[u8], number: u64) -> Option<u64> {
    Fields(message).filter(|field| field.number == number).find_map(|field| match field.value {
        Value::Number(value) => Some(value),
        Value::Bytes(_) => None,
    })
}

fn text(message: &[u8], number: u64) -> Option<&str> {
    bytes(message, number).last().and_then(|bytes| std::str::from_utf8(bytes).ok())
}

/// The version of the standard operators that a model is written in.
pub(crate) fn opset(model: &[u8]) -> Option<u64> {
    let standard = bytes(model, 8).filter(|import| matches!(text(import, 1), None | Some("" | "ai.onnx")));
    standard.filter_map(|import| number(import, 2)).last()
}

/// The metadata entry `key`.
pub(crate) fn metadata<'a>(model: &'a [u8], key: &str) -> Option<&'a str> {
    bytes(model, 14).filter(|entry| text(entry, 1) == Some(key)).find_map(|entry| text(entry, 2))
}

/// The graph of a model that has exactly one, in a file that is whole.
pub(crate) fn only_graph(model: &[u8]) -> Option<&[u8]> {
    let (mut read, mut found) = (0, None);
    for field in Fields(model) {
        read += field.whole.len();
        if let (7, Value::Bytes(graph)) = (field.number, field.value)
            && found.replace(graph).is_some()
        {
            return None;
        }
    }
    found.filter(|_| read == model.len())
}

/// The element type of the graph's output `name`, as onnx.proto numbers them.
pub(crate) fn output_type(model: &[u8], name: &str) -> Option<u64> {
    let output = bytes(model, 7).flat_map(|graph| bytes(graph, 12)).find(|output| text(output, 1) == Some(name))?;
    let tensor = bytes(output, 2).flat_map(|kind| bytes(kind, 1)).last()?; // TypeProto.tensor_type
    number(tensor, 1)
}

/// A part of another file that holds a tensor's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The file, relative to the model's folder.
    pub location: String,
    /// How long the file must be at least, as far as the model says it.
    pub end: u64,
}

/// The parts of other files that a model's tensors lie in.
pub(crate) fn parts(model: &[u8]) -> Vec<Part> {
    let mut found = Vec::new();
    visit(Kind::Model, model, 0, &mut |tensor| found.extend(part(tensor)));
    found
}

fn part(tensor: &[u8]) -> Option<Part> {
    let entry = |key: &str| bytes(tensor, 13).filter(|entry| text(entry, 1) == Some(key)).find_map(|e| text(e, 2));
    let size = |key| entry(key).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    let external = number(tensor, 14) == Some(1); // DataLocation.EXTERNAL
    let location = entry("location").filter(|_| external)?.to_owned();
    Some(Part { location, end: size("offset").saturating_add(size("length")) })
}

fn visit(kind: Kind, message: &[u8], depth: usize, found: &mut impl FnMut(&[u8])) {
    if kind == Kind::Tensor {
        return found(message);
    }
    for field in Fields(message) {
        if let (Some(inner), Value::Bytes(bytes), true) = (kind.field(field.number), field.value, depth < DEEPEST) {
            visit(inner, bytes, depth + 1, found);
        }
    }
}

/// The model with every `location` of a tensor replaced by the result of `place`; everything else is unchanged.
pub(crate) fn relocate(model: &[u8], place: &impl Fn(&str) -> Option<String>) -> Vec<u8> {
    relocated(Kind::Model, model, 0, place).into_bytes()
}

fn relocated(kind: Kind, message: &[u8], depth: usize, place: &impl Fn(&str) -> Option<String>) -> Message {
    let (mut out, mut read) = (Message::default(), 0);
    for Field { number, value, whole } in Fields(message) {
        read += whole.len();
        out = match (kind.field(number), value) {
            (Some(inner), Value::Bytes(bytes)) if depth < DEEPEST => {
                out.message(number, relocated(inner, bytes, depth + 1, place))
            }
            (_, Value::Bytes(entry)) if kind == Kind::Tensor && number == 13 && text(entry, 1) == Some("location") => {
                match text(entry, 2).and_then(place) {
                    Some(moved) => {
                        let entry = Message::default().bytes(1, b"location").bytes(2, moved.as_bytes());
                        out.message(number, entry)
                    }
                    None => out.raw(whole),
                }
            }
            _ => out.raw(whole),
        };
    }
    out.raw(&message[read..]) // ONNX Runtime refuses the rest, which is not protobuf
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(key: &str, value: &str) -> Message {
        Message::default().bytes(1, key.as_bytes()).bytes(2, value.as_bytes())
    }

    fn tensor(location: &str, offset: u64) -> Message {
        let tensor = Message::default().int(1, 3).bytes(8, b"weight");
        let tensor = tensor.message(13, entry("location", location)).message(13, entry("offset", &offset.to_string()));
        tensor.message(13, entry("length", "12")).int(14, 1)
    }

    /// One in the graph, one as an attribute inside a branch, one that is no longer external.
    fn model(first: &str, second: &str) -> Vec<u8> {
        let branch = Message::default().message(5, tensor(second, 8));
        let attribute = Message::default().bytes(1, b"then_branch").message(6, branch).int(20, 5);
        let node = Message::default().bytes(4, b"If").message(5, attribute);
        let inline = Message::default().message(13, entry("location", "old")).bytes(9, b"abc");
        let output = Message::tensor_info("scores", 10, &["batch", "seq", "vocab"]);
        let graph = Message::default().message(1, node).message(5, tensor(first, 4)).message(5, inline);
        let import = |domain: &str, version| Message::default().bytes(1, domain.as_bytes()).int(2, version);
        let model = Message::default().int(1, 8).message(7, graph.message(12, output));
        model.message(8, import("com.microsoft", 1)).message(8, import("", 9)).into_bytes()
    }

    #[test]
    fn a_model_is_read_without_decoding_it() {
        let model = model("a.data", "b.data");
        assert_eq!((opset(&model), output_type(&model, "scores")), (Some(9), Some(10)));
        assert_eq!(output_type(&model, "logits"), None);
        let part = |location: &str, end| Part { location: location.into(), end };
        assert_eq!(parts(&model), [part("b.data", 20), part("a.data", 16)]);
        for damaged in [b"this is not a protobuf".as_slice(), &[0xff; 40], &model[..model.len() / 2]] {
            let _ = (opset(damaged), output_type(damaged, "x"), parts(damaged)); // right or wrong, they return
        }
    }

    #[test]
    fn only_locations_change() {
        let moved = |location: &str| (location == "a.data").then(|| "blobs/0123456789abcdef".repeat(20));
        assert_eq!(relocate(&model("a.data", "b.data"), &moved), model(&moved("a.data").unwrap(), "b.data"));
        assert_eq!(relocate(&model("a.data", "b.data"), &|_| None), model("a.data", "b.data"));
    }
}
