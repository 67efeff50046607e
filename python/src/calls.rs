//! Calls from Python: released while they work, and ended by Ctrl-C and by exceptions of callbacks.

use crate::errors::Failure;
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often work looks whether Ctrl-C was pressed, and tells how far it is: often enough for a person, seldom enough
/// not to wait for the interpreter, which other threads may hold for milliseconds at a time.
const LOOK: Duration = Duration::from_millis(50);

/// Runs `work` without the interpreter, so that other threads of Python go on. A panic becomes an exception of the
/// ordinary kind.
pub fn released<T, E>(py: Python<'_>, work: impl FnOnce() -> Result<T, E> + Send) -> PyResult<T>
where
    T: Send,
    E: Into<Failure> + Send,
{
    ended(py.detach(|| catch_unwind(AssertUnwindSafe(work))))
}

fn ended<T, E: Into<Failure>>(outcome: std::thread::Result<Result<T, E>>) -> PyResult<T> {
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(PyErr::from(error.into())),
        Err(panic) => Err(Failure::of_panic(&*panic).into()),
    }
}

/// [`released`] for long work that nobody can tell to stop: on a thread of its own, which Ctrl-C leaves to itself.
pub fn released_apart<T, E>(py: Python<'_>, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> PyResult<T>
where
    T: Send + 'static,
    E: Into<Failure> + Send + 'static,
{
    let (done, outcome) = mpsc::channel();
    let apart = move || done.send(catch_unwind(AssertUnwindSafe(work))).unwrap_or(()); // nobody waits after Ctrl-C
    std::thread::Builder::new().spawn(apart)?;
    let outcome = Mutex::new(outcome);
    loop {
        let found = py.detach(|| outcome.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LOOK));
        match found {
            Ok(found) => return ended(found),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::of_panic(&"its thread is gone").into()),
        }
    }
}

/// The first exception of a call: of its callbacks, or of Ctrl-C.
#[derive(Debug, Clone, Default)]
pub struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    /// Keeps an exception, unless there is one.
    pub fn put(&self, error: PyErr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The exception, where there is one; otherwise `result`.
    pub fn or<T>(&self, result: PyResult<T>) -> PyResult<T> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => result,
        }
    }
}

/// Looks from time to time, on behalf of work that is going on, whether Ctrl-C was pressed, and tells a callback how far
/// the work is.
pub struct Watch {
    callback: Option<Py<PyAny>>,
    raised: Raised,
    last: Instant,
}

impl Watch {
    /// With a callback of the progress, if there is one; exceptions go to `raised`.
    pub fn new(callback: Option<Py<PyAny>>, raised: Raised) -> Self {
        Self { callback, raised, last: Instant::now() }
    }

    /// Whether the work should go on. `now` are the arguments of the callback.
    pub fn goes_on<A>(&mut self, now: impl FnOnce() -> A) -> bool
    where
        A: for<'py> pyo3::call::PyCallArgs<'py>,
    {
        if self.raised.is_set() {
            return false;
        }
        if self.last.elapsed() < LOOK {
            return true;
        }
        self.last = Instant::now();
        self.tell(now)
    }

    /// The same, whenever the last time was.
    pub fn tell<A>(&mut self, now: impl FnOnce() -> A) -> bool
    where
        A: for<'py> pyo3::call::PyCallArgs<'py>,
    {
        let told = Python::attach(|py| {
            py.check_signals()?;
            self.callback.as_ref().map_or(Ok(()), |callback| callback.bind(py).call1(now()).map(drop))
        });
        told.map_err(|error| self.raised.put(error)).is_ok()
    }
}
