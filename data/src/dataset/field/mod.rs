//! Files of examples whose tokens are not known yet: everything that [`super::import()`] takes, objects of JSON with
//! tokens instead of ids, and three formats in which the field publishes its data.

mod flare;
mod layout;
mod mlregtest;
mod record;
mod word_problem;

pub(crate) use layout::splits;
pub(crate) use record::Record;

use super::reading::{Bounds, Place, Source, Visit};
use super::source::{Head, head};
use super::text::{self, Interner, for_each_line};
use super::{NO_EXAMPLES, ROWS};
use crate::{DataError, Vocabulary};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// The token in front of the strings of a language, so that the empty string has a position.
pub(crate) const BOS: &str = "<bos>";
/// The end of a string, where labels are the sets of what may come next.
pub(crate) const EOS: &str = "<eos>";
/// The labels of a string: it is in the language, or not.
pub(crate) const ACCEPT: &str = "accept";
pub(crate) const REJECT: &str = "reject";

/// How texts become numbers. An error is the end of a sentence that names the text.
pub(crate) trait Coder {
    /// The id of a token.
    fn token(&mut self, token: &str) -> Result<u16, String>;
    /// The number of a label.
    fn label(&mut self, label: &str) -> Result<i16, String>;
    /// The label that is the set of these tokens.
    fn set(&mut self, tokens: &mut dyn Iterator<Item = &str>) -> Result<i16, String>;
    /// What numbers are possible where a file has numbers instead of texts.
    fn bounds(&self) -> Bounds;
}

/// The numbers of a vocabulary.
impl Coder for &Vocabulary {
    fn token(&mut self, token: &str) -> Result<u16, String> {
        self.id(token).ok_or_else(|| "is not in the vocabulary".to_owned())
    }

    fn label(&mut self, label: &str) -> Result<i16, String> {
        self.parse_label(label)
    }

    fn set(&mut self, tokens: &mut dyn Iterator<Item = &str>) -> Result<i16, String> {
        let mut set = 0;
        for token in tokens {
            let unit = self.id(token).and_then(|id| self.units().iter().position(|unit| *unit == id));
            set |= 1 << unit.ok_or_else(|| format!("has `{}`, which is no unit", text::shorten(token)))?;
        }
        Ok(set)
    }

    fn bounds(&self) -> Bounds {
        Bounds::of(self)
    }
}

/// Gives numbers to tokens as they come; labels are tokens as well unless they are sets.
#[derive(Default)]
pub(crate) struct Collector {
    pub interner: Interner,
    pub are_sets: bool,
}

impl Coder for Collector {
    fn token(&mut self, token: &str) -> Result<u16, String> {
        self.interner.id(token)
    }

    fn label(&mut self, label: &str) -> Result<i16, String> {
        if self.are_sets { Ok(0) } else { self.interner.label(label) }
    }

    fn set(&mut self, tokens: &mut dyn Iterator<Item = &str>) -> Result<i16, String> {
        for token in tokens {
            self.interner.id(token)?;
        }
        Ok(0)
    }

    fn bounds(&self) -> Bounds {
        Bounds::NONE
    }
}

/// The label of a string of a language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StringLabels {
    /// At the last token, whether the string is in the language.
    #[default]
    Membership,
    /// At every token, the set of what may come next in a string of the language, its end included; strings that are
    /// not in it have no labels and are left out.
    NextSymbols,
}

enum Form {
    Usual(Box<Source>),
    Records,
    WordProblem,
    MlRegTest,
    Flare(StringLabels),
}

/// A file or folder with the examples of one split, recognised by its contents.
pub(crate) struct Rows {
    path: PathBuf,
    form: Form,
}

impl Rows {
    /// # Errors
    /// There is no such file, or none of a known kind; `labels` is for another kind.
    pub fn recognise(path: &Path, labels: StringLabels) -> Result<Self, DataError> {
        let form = if path.is_dir() {
            if flare::is_folder(path) { Form::Flare(labels) } else { Form::Usual(Box::new(Source::open(path)?)) }
        } else {
            match head(path)? {
                Head(text) if text.is_empty() => {
                    let hint = ROWS.into();
                    return Err(DataError::Invalid { path: path.into(), reason: NO_EXAMPLES.into(), hint });
                }
                head if head.is_table_of(&word_problem::COLUMNS) => Form::WordProblem,
                head if mlregtest::is_first_line(head.first_line()) => Form::MlRegTest,
                Head(text) if text.starts_with('{') && text.contains("\"tokens\"") => Form::Records,
                _ => Form::Usual(Box::new(Source::open(path)?)),
            }
        };
        if labels == StringLabels::NextSymbols && !matches!(form, Form::Flare(_)) {
            return Err(DataError::Invalid {
                path: path.into(),
                reason: "string_labels = next_symbols is for folders with main.tok and next-symbols.jsonl".into(),
                hint: "leave string_labels out".into(),
            });
        }
        Ok(Self { path: path.into(), form })
    }

    /// The path that it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that it reads.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.form {
            Form::Usual(source) => source.files(),
            Form::Flare(labels) => flare::files(&self.path, *labels),
            Form::Records | Form::WordProblem | Form::MlRegTest => vec![self.path.clone()],
        }
    }

    /// The tokens in id order and the units, where the file states them.
    pub fn described(&self) -> Option<(Vec<String>, Vec<String>)> {
        let Form::Usual(source) = &self.form else { return None };
        let units = source.info.as_ref().map(|info| info.units.clone()).unwrap_or_default();
        source.vocab.clone().map(|vocab| (vocab, units))
    }

    /// Whether its ids are those of these tokens, as far as it says.
    pub fn is_of(&self, tokens: &[String]) -> bool {
        self.described().is_none_or(|(vocab, _)| tokens.starts_with(&vocab))
    }

    /// Whether it has numbers where others have tokens.
    pub fn has_ids(&self) -> bool {
        matches!(&self.form, Form::Usual(source) if !source.is_pairs())
    }

    /// Tokens that are not in the files but that examples have, and labels.
    pub fn own_tokens(&self) -> &'static [&'static str] {
        match &self.form {
            Form::Flare(StringLabels::NextSymbols) => &[BOS, EOS],
            Form::Flare(StringLabels::Membership) | Form::MlRegTest => &[BOS, ACCEPT, REJECT],
            Form::Usual(_) | Form::Records | Form::WordProblem => &[],
        }
    }

    /// Visits every example with its place, or the problem with it.
    ///
    /// # Errors
    /// A file cannot be read to its end, or `visit` fails.
    pub fn for_each(&self, coder: &mut dyn Coder, visit: Visit<'_>) -> Result<(), DataError> {
        match &self.form {
            Form::Usual(source) => {
                let bounds = coder.bounds();
                let coder = RefCell::new(coder);
                let mut parse = |line: &str| {
                    let token = &mut |token: &str| coder.borrow_mut().token(token);
                    text::parse(line, token, &mut |label| coder.borrow_mut().label(label))
                };
                source.for_each(bounds, &mut parse, visit)
            }
            Form::Records => for_each_line(&self.path, |number, line| {
                let record = line.and_then(|line| Record::parse(line, coder));
                match &record {
                    Ok(record) => visit(&Place::line(number), Ok(record.found())),
                    Err(problem) => visit(&Place::line(number), Err(problem.clone())),
                }
            }),
            Form::WordProblem => word_problem::for_each(&self.path, coder, visit),
            Form::MlRegTest => mlregtest::for_each(&self.path, coder, visit),
            Form::Flare(labels) => flare::for_each(&self.path, *labels, coder, visit),
        }
    }

    /// The error for a problem with one example.
    pub fn invalid(&self, reason: String) -> DataError {
        let hint = match &self.form {
            Form::Usual(source) => source.hint(&reason),
            Form::Records => "a line is {\"tokens\": [\"a\", \"b\"], \"labels\": [\"-1\", \"1\"]}",
            Form::WordProblem => "input and target are as many tokens, with blanks between them",
            Form::MlRegTest => "a line is a string, a tab, and TRUE or FALSE",
            Form::Flare(_) => flare::HINT,
        };
        DataError::Invalid { path: self.path.clone(), reason, hint: hint.into() }
    }
}

/// The ids of a string of a language, `<bos>` in front.
fn string_ids<'a>(tokens: impl Iterator<Item = &'a str>, coder: &mut dyn Coder) -> Result<Vec<u16>, String> {
    let all = std::iter::once(BOS).chain(tokens);
    all.map(|token| coder.token(token).map_err(|why| format!("the token `{}` {why}", text::shorten(token)))).collect()
}

/// The labels of a string of `tokens` tokens that is in the language or not: one, at the end.
fn membership(tokens: usize, accepted: bool, coder: &mut dyn Coder) -> Result<Vec<i16>, String> {
    let label = if accepted { ACCEPT } else { REJECT };
    let label = coder.label(label).map_err(|why| format!("the label `{label}` {why}"))?;
    let mut labels = vec![crate::IGNORE; tokens];
    labels.last_mut().into_iter().for_each(|last| *last = label);
    Ok(labels)
}
