//! An example as an object of JSON, its tokens as texts or as ids:
//!
//! ```text
//! {"tokens": ["a", "a", "b"], "labels": ["-1", "1", "2"], "length": 3}
//! {"input_ids": [0, 0, 1], "labels": [-1, 1, 2]}
//! ```

use super::Coder;
use crate::IGNORE;
use crate::dataset::reading::Found;
use crate::dataset::text::shorten;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A token or label as it is written.
#[derive(Debug, Clone, PartialEq, Serialize)]
enum Word {
    Text(String),
    Number(i64),
    None,
}

#[derive(Deserialize)]
struct Written {
    tokens: Option<Vec<Word>>,
    input_ids: Option<Vec<Word>>,
    labels: Vec<Word>,
    length: Option<i64>,
}

/// An example in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub input_ids: Vec<u16>,
    pub labels: Vec<i16>,
    /// The count of main tokens, where it is stated; at most the number of tokens.
    pub length: Option<u32>,
}

impl Record {
    /// Reads one object.
    ///
    /// # Errors
    /// The problem, and where.
    pub fn parse(line: &str, coder: &mut dyn Coder) -> Result<Self, String> {
        let written: Written = serde_json::from_str(line).map_err(|e| {
            let message = e.to_string();
            message.replace(&format!(" at line {} column", e.line()), " at character")
        })?;
        let are_ids = written.tokens.is_none();
        let words = match (written.tokens, written.input_ids) {
            (Some(_), Some(_)) => return Err("has both `tokens` and `input_ids`".into()),
            (Some(words), None) | (None, Some(words)) => words,
            (None, None) => return Err("has neither `tokens` nor `input_ids`".into()),
        };
        let input_ids: Vec<u16> = words.iter().map(|word| token(word, are_ids, coder)).collect::<Result<_, _>>()?;
        let labels: Vec<i16> =
            written.labels.iter().map(|word| label(word, are_ids, coder)).collect::<Result<_, _>>()?;
        match (input_ids.len(), labels.len()) {
            (0, _) => return Err("has no tokens".into()),
            (tokens, n) if tokens != n => return Err(format!("has {tokens} tokens but {n} labels")),
            _ => {}
        }
        let fits = |n: i64| u32::try_from(n).ok().filter(|n| *n as usize <= input_ids.len());
        let told = |n: i64| format!("has the length {n}, but {} tokens", input_ids.len());
        let length = written.length.map(|n| fits(n).ok_or_else(|| told(n))).transpose()?;
        Ok(Self { input_ids, labels, length })
    }

    pub fn found(&self) -> Found<'_> {
        Found { input_ids: &self.input_ids, labels: &self.labels, length: self.length, masked: false }
    }
}

fn token(word: &Word, is_id: bool, coder: &mut dyn Coder) -> Result<u16, String> {
    let named = |text: &str, why: String| format!("the token `{}` {why}", shorten(text));
    match word {
        Word::Number(id) if is_id => {
            let tokens = coder.bounds().tokens.min(i16::MAX as usize);
            let known = u16::try_from(*id).ok().filter(|id| usize::from(*id) < tokens);
            known.ok_or_else(|| format!("has the token id {id}, but the vocabulary has {tokens} tokens"))
        }
        Word::Number(number) => coder.token(&number.to_string()).map_err(|why| named(&number.to_string(), why)),
        Word::Text(text) => coder.token(text).map_err(|why| named(text, why)),
        Word::None => Err("a token is null".into()),
    }
}

fn label(word: &Word, is_id: bool, coder: &mut dyn Coder) -> Result<i16, String> {
    let named = |text: &str, why: String| format!("the label `{}` {why}", shorten(text));
    match word {
        Word::None | Word::Number(-1 | -100) => Ok(IGNORE),
        Word::Number(label) if is_id => {
            let count = coder.bounds().labels.min(1 << 15);
            let known = i16::try_from(*label).ok().filter(|label| *label >= 0 && (*label as usize) < count);
            known.ok_or_else(|| format!("has the label {label}, but labels are below {count}"))
        }
        Word::Number(number) => coder.label(&number.to_string()).map_err(|why| named(&number.to_string(), why)),
        Word::Text(text) => coder.label(text).map_err(|why| named(text, why)),
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a whole number")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Word, E> {
                Ok(Word::Text(text.to_owned()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Word, E> {
                Ok(Word::Number(number))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Word, E> {
                i64::try_from(number).map(Word::Number).map_err(|_| E::custom("a number is too large"))
            }

            fn visit_unit<E: Error>(self) -> Result<Word, E> {
                Ok(Word::None)
            }
        }
        deserializer.deserialize_any(Words)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{SetLoss, Vocabulary};

    #[test]
    fn tokens_are_texts_or_ids_and_every_mistake_is_named() {
        let vocabulary = Vocabulary::numbers_then(2, &["a"]);
        let parse = |line: &str| Record::parse(line, &mut &vocabulary);
        let expected = Record { input_ids: vec![3, 3, 1], labels: vec![-1, -1, 2], length: Some(2) };
        for line in [
            r#"{"tokens": ["a", "a", "1"], "labels": ["-1", null, "2"], "length": 2}"#,
            r#"{"tokens": ["a", "a", 1], "labels": [-1, -100, 2], "length": 2, "more": {"x": [1]}}"#,
            r#"{"input_ids": [3, 3, 1], "labels": [-1, -1, 2], "length": 2}"#,
            r#"{"input_ids": [3, "a", 1], "labels": [-1, -1, "2"], "length": 2}"#,
        ] {
            assert_eq!(parse(line).as_ref(), Ok(&expected), "{line}");
        }
        for (line, part) in [
            ("hello", "expected value at character 1"),
            (r#"{"tokens": ["a"]}"#, "missing field `labels`"),
            (r#"{"labels": ["1"]}"#, "neither `tokens` nor `input_ids`"),
            (r#"{"tokens": ["b"], "labels": ["1"]}"#, "the token `b` is not in the vocabulary"),
            (r#"{"tokens": ["a"], "labels": ["b"]}"#, "the label `b` is not in the vocabulary"),
            (r#"{"tokens": ["a"], "labels": []}"#, "has 1 tokens but 0 labels"),
            (r#"{"tokens": [], "labels": []}"#, "has no tokens"),
            (r#"{"tokens": [null], "labels": [1]}"#, "a token is null"),
            (r#"{"tokens": [1.5], "labels": [1]}"#, "a string or a whole number"),
            (r#"{"input_ids": [4], "labels": [1]}"#, "has the token id 4, but the vocabulary has 4 tokens"),
            (r#"{"input_ids": [-2], "labels": [1]}"#, "has the token id -2"),
            (r#"{"input_ids": [1], "labels": [4]}"#, "has the label 4, but labels are below 4"),
            (r#"{"input_ids": [1], "labels": [1], "length": 2}"#, "has the length 2, but 1 tokens"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
        let sets = vocabulary.with_units(&["1".into(), "a".into()], SetLoss::Bce).unwrap();
        let parse = |line: &str| Record::parse(line, &mut &sets);
        assert_eq!(parse(r#"{"tokens": ["a", 1], "labels": ["01", null]}"#).unwrap().labels, [2, -1]);
        let error = parse(r#"{"tokens": ["a"], "labels": ["2"]}"#).unwrap_err();
        assert!(error.contains("is no set of 2 units: 2 digits 0 and 1"), "{error}");
    }
}
