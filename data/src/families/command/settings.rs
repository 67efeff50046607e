//! Values of settings as people write them.

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

/// Lengths from the first to the last: `1..40`, `[1, 40]`, or `40` for all up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub low: u32,
    pub high: u32,
}

impl Span {
    fn parse(text: &str) -> Option<Self> {
        let (low, high) = match text.split_once("..") {
            Some((low, high)) => (low.trim().parse().ok()?, high.trim_start_matches('=').trim().parse().ok()?),
            None => (0, text.trim().parse().ok()?),
        };
        (low <= high).then_some(Self { low, high })
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}..{}", self.low, self.high))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Last(u32),
            Both([u32; 2]),
        }
        let span = match Written::deserialize(deserializer) {
            Ok(Written::Text(text)) => Self::parse(&text),
            Ok(Written::Last(high)) => Some(Self { low: 0, high }),
            Ok(Written::Both([low, high])) => (low <= high).then_some(Self { low, high }),
            Err(_) => None,
        };
        span.ok_or_else(|| D::Error::custom("lengths are a range such as \"1..40\", both ends included"))
    }
}

/// The words of a command: a list, or a text that is split as a shell does, without running one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Words(pub Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            List(Vec<String>),
        }
        let quotes = "command: a quotation mark is open, or a backslash stands at the end";
        match Written::deserialize(deserializer) {
            Ok(Written::List(words)) => Ok(Self(words)),
            Ok(Written::Text(text)) => shlex::split(&text).map(Self).ok_or_else(|| D::Error::custom(quotes)),
            Err(_) => Err(D::Error::custom("command is a list of words, or one text that is split into words")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lengths_and_words_are_read_as_people_write_them() {
        #[derive(Deserialize)]
        struct Read {
            span: Option<Span>,
            words: Option<Words>,
        }
        let span = |text: &str| toml::from_str::<Read>(&format!("span = {text}")).ok().and_then(|read| read.span);
        for text in ["'1..40'", "'1..=40'", "' 1 .. 40 '", "[1, 40]"] {
            assert_eq!(span(text), Some(Span { low: 1, high: 40 }), "{text}");
        }
        assert_eq!((span("40"), span("'40'")), (Some(Span { low: 0, high: 40 }), Some(Span { low: 0, high: 40 })));
        for text in ["'40..1'", "[40, 1]", "[1]", "'a..b'", "-3", "''", "true"] {
            assert_eq!(span(text), None, "{text}");
        }
        let words = |text: &str| toml::from_str::<Read>(&format!("words = {text}")).ok().and_then(|read| read.words);
        let expected = Some(Words(vec!["python3".into(), "a b.py".into(), "--x=$HOME".into()]));
        assert_eq!(words(r#"["python3", "a b.py", "--x=$HOME"]"#), expected);
        assert_eq!(words(r#""python3 'a b.py' --x=$HOME""#), expected, "nothing is expanded");
        assert_eq!((words(r#""python3 'a b.py""#), words("7")), (None, None));
    }
}
