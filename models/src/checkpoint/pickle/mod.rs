//! The pickle inside a file of `torch.save`.
//!
//! A pickle is a program. This machine knows the instructions that Python writes and builds containers, numbers and
//! descriptions of tensors; it never calls anything. Any other name becomes a placeholder, so that the rest can still
//! be read, and is reported: such a pickle is refused.

mod machine;
mod names;

pub(crate) use machine::{refusal, run};
pub(crate) use names::Global;

use safetensors::tensor::Dtype;

/// Pickles are at most this long.
pub(crate) const MAX_LENGTH: u64 = 64 << 20;

/// Why a pickle cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PickleError {
    /// It is truncated or garbled.
    Damaged(String),
    /// It is a pickle of something else.
    Foreign(String),
}

/// The values that a pickle can build here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// `None`, a number that cannot be a size, a hook: kept as a placeholder.
    Other,
    /// Something made by a name that is not known.
    Opaque,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    Global(Global),
    /// The number of an object of [`Pickled::objects`].
    Object(usize),
}

/// Values that can hold others, or be held by several.
#[derive(Debug)]
pub(crate) enum Object<'a> {
    /// A tuple or a list.
    Sequence(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
    /// A tensor without numbers that could be read, and of what kind it is.
    Strange(&'static str),
}

/// One part of the file, regardless of the device that the tensors were saved from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Storage<'a> {
    pub key: &'a str,
    /// `None` for types that are not read here.
    pub dtype: Option<Dtype>,
    /// The element of the part with which the storage begins.
    pub start: usize,
}

/// A view into a storage, in elements.
#[derive(Debug, Clone)]
pub(crate) struct Tensor<'a> {
    pub storage: Storage<'a>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
}

/// The result of a pickle.
#[derive(Debug)]
pub(crate) struct Pickled<'a> {
    pub root: Value<'a>,
    pub objects: Vec<Object<'a>>,
    /// The first name that it refers to and that no state dict needs.
    pub asks_for: Option<String>,
    /// Its length in bytes.
    pub length: usize,
}

impl<'a> Pickled<'a> {
    /// The object behind a value.
    pub fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        if let Value::Object(number) = value { self.objects.get(number) } else { None }
    }

    /// The value under a key, where `value` is a dict.
    pub fn item(&self, value: Value<'a>, key: &str) -> Option<Value<'a>> {
        let Object::Dict(entries) = self.object(value)? else { return None };
        entries.iter().rev().find(|(k, _)| *k == Value::Text(key)).map(|(_, v)| *v)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::PickleError::{Damaged, Foreign};
    use super::machine::MAX_OBJECTS;
    use super::*;

    /// As in file readers: a pickle that needs more than tensors is an error.
    fn read(pickle: &[u8]) -> Result<Pickled<'_>, String> {
        let pickled = run(pickle).map_err(|e| match e {
            Damaged(reason) | Foreign(reason) => reason,
        })?;
        pickled.asks_for.as_deref().map_or(Ok(()), |name| Err(refusal(name))).map(|()| pickled)
    }

    #[test]
    fn a_pickle_that_asks_for_other_names_is_refused() {
        for (pickle, name) in [
            (&b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."[..], "os.system"),
            (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
            (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
            (b"\x80\x02c__main__\nModel\n)\x81}b.", "__main__.Model"),
            (b"\x80\x02}X\x01\x00\x00\x00acargparse\nNamespace\n)Rs.", "argparse.Namespace"),
            (b"cos\nsystem\n\xff", "os.system"),
        ] {
            let error = read(pickle).unwrap_err();
            assert!(error.contains(name) && error.contains("was not run"), "{error}");
        }
        let error = read(b"(S'abc'\n.").unwrap_err();
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
            b"a.",
            b"e.",
            b"d.",
            b"1.",
            b"2.",
            b"0.",
            b"\x90.",
            b"K\x01K\x02K\x03s.",
            b"h\x07.",
            b"q\x01.",
            b"px\n.",
            b"\x8a\x09.",
            b"\x8b\xff\xff\xff\xff.",
            b"X\xff\xff\xff\xff.",
            b"\x87.",
            b"Q.",
            b"NQ.",
        ] {
            read(pickle).unwrap_err();
        }
        let deep = [vec![b')'], vec![0x85; 1_000_000], vec![b'.']].concat();
        assert!(read(&deep).unwrap_err().contains("nested"));
        for endless in [b"N", b"}", b"(", b"2"] {
            let pickle = [b"N".to_vec(), endless.repeat(MAX_OBJECTS + 2), b".".to_vec()].concat();
            assert!(read(&pickle).unwrap_err().contains("more objects"));
        }
    }

    #[test]
    fn containers_and_numbers_of_every_protocol_are_passed_over() {
        for pickle in [
            // {'a': [1, 2.5, True], 'b': {3, 4}, 'c': 10**30, 'd': b'xy'}, protocols 1, 2 and 4
            &b"}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01G@\x04\x00\x00\x00\x00\x00\x00I01\neX\x01\x00\x00\x00bq\x03c__builtin__\nset\nq\x04(]q\x05(K\x03K\x04etRX\x01\x00\x00\x00cq\x06L1000000000000000000000000000000L\nu."[..],
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01G@\x04\x00\x00\x00\x00\x00\x00\x88eX\x01\x00\x00\x00cq\x06\x8a\x0d\x00\x00\x00\x40\xea\xed\x74\x46\xd0\x9c\x2c\x9f\x0cu.",
            b"\x80\x04}\x94(\x8c\x01a\x94]\x94(K\x01G@\x04\x00\x00\x00\x00\x00\x00\x88e\x8c\x01b\x94\x8f\x94(K\x03K\x04\x90\x8c\x01d\x94C\x02xy\x94u.",
        ] {
            let pickled = read(pickle).unwrap();
            assert_eq!(pickled.length, pickle.len());
            let list = pickled.item(pickled.root, "a").unwrap();
            let Some(Object::Sequence(list)) = pickled.object(list) else { panic!("{list:?}") };
            assert_eq!(list[..], [Value::Int(1), Value::Other, Value::Bool(true)]);
        }
        let negative = read(b"\x8a\x02\x00\xff.").unwrap();
        assert_eq!(negative.root, Value::Int(-256));
    }

    #[test]
    fn a_dict_that_holds_itself_is_no_trouble() {
        let pickled = read(b"}q\x00X\x01\x00\x00\x00ah\x00s.").unwrap();
        assert_eq!(pickled.item(pickled.root, "a"), Some(pickled.root));
    }
}
