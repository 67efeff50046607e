//! The text format of the paper's code: one JSON pair `[[tokens], [labels]]` a line, all of them strings.
//!
//! ```text
//! [["a", "a", "3"], ["1", "2", "5"]]
//! ```

use crate::{DataError, ExampleRef, IGNORE, Vocabulary};
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line that is read; longer ones are refused and skipped without being held in memory.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// An example as a line, without its end.
pub fn to_line(example: ExampleRef<'_>, vocabulary: &Vocabulary) -> String {
    let quoted = |token: Option<&str>| serde_json::Value::from(token.unwrap_or("-1")).to_string();
    let token = |id: &u16| quoted(vocabulary.token(*id));
    let label = |label: &i16| quoted(Some(&vocabulary.label(*label)));
    let list = |tokens: Vec<String>| format!("[{}]", tokens.join(", "));
    let inputs = list(example.input_ids.iter().map(token).collect());
    format!("[{inputs}, {}]", list(example.labels.iter().map(label).collect()))
}

/// The token ids and labels of a line.
///
/// # Errors
/// The problem with the line, and where: it is not such a pair, a token is not in the vocabulary, there are no tokens,
/// or not as many labels.
pub fn parse_line(line: &str, vocabulary: &Vocabulary) -> Result<(Vec<u16>, Vec<i16>), String> {
    let token = &mut |token: &str| vocabulary.id(token).ok_or_else(|| "is not in the vocabulary".to_owned());
    parse(line, token, &mut |label| vocabulary.parse_label(label))
}

/// [`parse_line`] where every new token, in a label too, gets the next id.
pub(crate) fn parse_new(line: &str, interner: &mut Interner) -> Result<(Vec<u16>, Vec<i16>), String> {
    let interner = RefCell::new(interner);
    let label = &mut |label: &str| interner.borrow_mut().label(label);
    parse(line, &mut |token| interner.borrow_mut().id(token), label)
}

/// Gives ids to tokens as they come.
#[derive(Default)]
pub(crate) struct Interner {
    ids: HashMap<String, u16>,
    tokens: Vec<String>,
}

impl Interner {
    pub(crate) fn into_tokens(self) -> Vec<String> {
        self.tokens
    }

    /// The label that a text stands for, with the next id where it is new.
    pub(crate) fn label(&mut self, label: &str) -> Result<i16, String> {
        match label {
            "-1" => Ok(IGNORE),
            label => i16::try_from(self.id(label)?).map_err(|_| "is no label".to_owned()),
        }
    }

    pub(crate) fn id(&mut self, token: &str) -> Result<u16, String> {
        if let Some(id) = self.ids.get(token) {
            return Ok(*id);
        }
        let id = u16::try_from(self.tokens.len()).ok().filter(|id| *id < i16::MAX as u16);
        let id = id.ok_or("is one too many: there are 32767 different ones before it")?;
        self.ids.insert(token.to_owned(), id);
        self.tokens.push(token.to_owned());
        Ok(id)
    }
}

/// The lines of a file one after the other, without their ends (`\n`, `\r\n`) and a byte order mark.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    buffer: Vec<u8>,
    number: usize,
}

impl Lines {
    /// # Errors
    /// The file cannot be read.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io("read", path))?;
        Ok(Self { path: path.into(), reader: BufReader::new(file), buffer: Vec::new(), number: 0 })
    }

    /// The next line, or the problem with it; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next(&mut self) -> Result<Option<Result<&str, String>>, DataError> {
        let Self { path, reader, buffer, number } = self;
        let io = |e| DataError::io("read", path)(e);
        buffer.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', buffer).map_err(io)?;
        if read == 0 {
            return Ok(None);
        }
        *number += 1;
        if buffer.len() > MAX_LINE_BYTES {
            if buffer.last() != Some(&b'\n') {
                reader.skip_until(b'\n').map_err(io)?;
            }
            return Ok(Some(Err(format!("the line is longer than {} MiB", MAX_LINE_BYTES >> 20))));
        }
        let bytes = buffer.strip_suffix(b"\n").unwrap_or(buffer);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let bytes = if *number == 1 { bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes) } else { bytes };
        Ok(Some(std::str::from_utf8(bytes).map_err(|e| format!("byte {} is not UTF-8", e.valid_up_to() + 1))))
    }
}

/// Visits the lines of a file with their numbers, from 1 on, but for empty lines at the end; or the problem with a
/// line.
///
/// # Errors
/// The file cannot be read, or `visit` fails.
pub(crate) fn for_each_line(
    path: &Path,
    mut visit: impl FnMut(usize, Result<&str, String>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let (mut lines, mut number, mut empty) = (Lines::open(path)?, 0, 0);
    while let Some(line) = lines.next()? {
        number += 1;
        if line == Ok("") {
            empty += 1; // wrong only if something follows
            continue;
        }
        for before in number - empty..number {
            visit(before, Err("the line is empty".into()))?;
        }
        empty = 0;
        visit(number, line)?;
    }
    Ok(())
}

/// Parses a line; `token` and `label` give the number for a text or the problem with it.
pub(crate) fn parse(
    line: &str,
    token: Encode<'_, u16>,
    label: Encode<'_, i16>,
) -> Result<(Vec<u16>, Vec<i16>), String> {
    let mut parser = serde_json::Deserializer::from_str(line);
    let pair = Pair(token, label).deserialize(&mut parser).and_then(|pair| parser.end().map(|()| pair));
    let (input_ids, labels) = pair.map_err(|e| {
        let message = e.to_string();
        message.replace(&format!(" at line {} column", e.line()), " at character")
    })?;
    match (input_ids.len(), labels.len()) {
        (0, _) => Err("there are no tokens".into()),
        (tokens, n) if tokens != n => Err(format!("there are {tokens} tokens but {n} labels")),
        _ => Ok((input_ids, labels)),
    }
}

/// How a text becomes a number; an error is the end of a sentence that names the text.
pub(crate) type Encode<'a, T> = &'a mut dyn FnMut(&str) -> Result<T, String>;

/// `[[tokens], [labels]]`
struct Pair<'a>(Encode<'a, u16>, Encode<'a, i16>);

impl<'de> DeserializeSeed<'de> for Pair<'_> {
    type Value = (Vec<u16>, Vec<i16>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Pair<'_> {
    type Value = (Vec<u16>, Vec<i16>);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a pair [[tokens], [labels]]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
        let Self(token, label) = self;
        let token = |text: &str| token(text).map_err(|why| format!("the token `{}` {why}", shorten(text)));
        let inputs = pair.next_element_seed(Strings(token))?;
        let inputs = inputs.ok_or_else(|| A::Error::invalid_length(0, &"a pair [[tokens], [labels]]"))?;
        let label = |text: &str| label(text).map_err(|why| format!("the label `{}` {why}", shorten(text)));
        let labels = pair.next_element_seed(Strings(label))?;
        let labels = labels.ok_or_else(|| A::Error::invalid_length(1, &"a pair [[tokens], [labels]]"))?;
        Ok((inputs, labels))
    }
}

/// A list of strings, each turned into a `T`.
struct Strings<F>(F);

impl<'de, T, F: FnMut(&str) -> Result<T, String>> DeserializeSeed<'de> for Strings<F> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T, F: FnMut(&str) -> Result<T, String>> Visitor<'de> for Strings<F> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = list.next_element_seed(OneString(&mut self.0))? {
            out.push(item);
        }
        Ok(out)
    }
}

/// One string, borrowed where JSON has no escapes in it.
struct OneString<'a, F>(&'a mut F);

impl<'de, T, F: FnMut(&str) -> Result<T, String>> DeserializeSeed<'de> for OneString<'_, F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnMut(&str) -> Result<T, String>> Visitor<'_> for OneString<'_, F> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

/// Tokens in messages are shortened.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(20) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
