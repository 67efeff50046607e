//! What runs a model: an ONNX Runtime session, or a function of the caller.

use data::Batch;
use ort::session::Session;

/// Logits `[batch, seq, vocab]`, row-major, of a batch; or why there are none.
pub(crate) type Forward = Box<dyn FnMut(&Batch) -> std::result::Result<Vec<f32>, String> + Send>;

/// What runs a model.
pub(crate) enum Engine {
    /// An ONNX file.
    Session(Box<Session>),
    /// Anything else: see [`Model::from_function`](crate::Model::from_function).
    Function(Forward),
}

impl Engine {
    /// The session, where there is one.
    pub fn session(&self) -> Option<&Session> {
        match self {
            Self::Session(session) => Some(session),
            Self::Function(_) => None,
        }
    }
}

impl From<Session> for Engine {
    fn from(session: Session) -> Self {
        Self::Session(Box::new(session))
    }
}

/// The width of rows of logits, where there are `batch` × `seq` of them in so many values.
///
/// # Errors
/// They do not come out even.
pub(crate) fn width(values: usize, batch: usize, seq: usize) -> std::result::Result<usize, String> {
    let rows = batch * seq;
    match values.checked_div(rows) {
        Some(width) if width > 0 && width * rows == values => Ok(width),
        _ => Err(format!("it gave {values} logits for [{batch}, {seq}] tokens, which are no [batch, seq, vocab]")),
    }
}
