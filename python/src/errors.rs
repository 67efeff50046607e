//! Errors of the libraries as Python's exceptions: the classes of `inductive_counting._errors`, with the text that the
//! command shows.

use data::DataError;
use evaluators::EvalError;
use pyo3::prelude::*;
use pyo3::types::PyType;
use std::io::ErrorKind;

/// The kinds of exceptions, by what their user can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `Error`: anything else.
    Other,
    /// `ArgumentError`, which is a `ValueError`: another argument or config is needed.
    Argument,
    /// `ModelError`, which is a `ValueError`: the model cannot be used.
    Model,
    /// `FileError`, which is an `OSError`: a file cannot be read, written or used.
    File,
    /// `MissingFileError`, which is a `FileNotFoundError`.
    Missing,
}

impl Kind {
    fn class(self) -> &'static str {
        match self {
            Self::Other => "Error",
            Self::Argument => "ArgumentError",
            Self::Model => "ModelError",
            Self::File => "FileError",
            Self::Missing => "MissingFileError",
        }
    }

    /// The exception of this kind.
    pub fn error(self, text: impl Into<String>) -> PyErr {
        let text = text.into();
        Python::attach(|py| {
            let class = py.import("inductive_counting._errors").and_then(|module| module.getattr(self.class()));
            match class.and_then(|class| Ok(class.cast_into::<PyType>()?)) {
                Ok(class) => PyErr::from_type(class, text),
                Err(error) => error,
            }
        })
    }

    fn of_io(error: &std::io::Error) -> Self {
        if error.kind() == ErrorKind::NotFound { Self::Missing } else { Self::File }
    }

    fn of_data(error: &DataError) -> Self {
        match error {
            DataError::Io { source, .. } => Self::of_io(source),
            DataError::Damaged { .. }
            | DataError::Unreadable { .. }
            | DataError::Rejected { .. }
            | DataError::Ambiguous { .. }
            | DataError::Invalid { .. } => Self::File,
            DataError::CommandNotAllowed { .. } | DataError::Command { .. } => Self::Other,
            _ => Self::Argument,
        }
    }

    fn of_eval(error: &EvalError) -> Self {
        match error {
            EvalError::Data(error) => Self::of_data(error),
            EvalError::Lengths { .. }
            | EvalError::UnknownName { .. }
            | EvalError::TaskMismatch { .. }
            | EvalError::NoTask { .. }
            | EvalError::Positions { .. }
            | EvalError::Iterations { .. } => Self::Argument,
            EvalError::Load { .. }
            | EvalError::Weights { .. }
            | EvalError::Contract { .. }
            | EvalError::Run { .. }
            | EvalError::NothingRan { .. } => Self::Model,
            _ => Self::Other,
        }
    }

    /// Of the first cause that has a type. Messages of the pipeline's own are about the config and the options.
    fn of_pipeline(error: &anyhow::Error) -> Self {
        let kind = |cause: &(dyn std::error::Error + 'static)| {
            let data = cause.downcast_ref::<DataError>().map(Self::of_data);
            let eval = || cause.downcast_ref::<EvalError>().map(Self::of_eval);
            let io = || cause.downcast_ref::<std::io::Error>().map(Self::of_io);
            data.or_else(eval).or_else(io)
        };
        error.chain().find_map(kind).unwrap_or(Self::Argument)
    }
}

/// An error on its way to Python.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    text: String,
}

impl Failure {
    /// An error of this kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A panic, which no input should cause.
    pub fn of_panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let said = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let said = said.unwrap_or("it did not say why");
        Self::new(
            Kind::Other,
            format!("something failed that cannot: {said}\n  hint: this is a defect; please report it"),
        )
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::new(Kind::of_data(&error), error.to_string())
    }
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        Self::new(Kind::of_eval(&error), error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Kind::of_pipeline(&error), pipeline::describe(&error))
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        failure.kind.error(failure.text)
    }
}
