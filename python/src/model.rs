//! Models to sweep: ONNX files, ONNX in memory, and functions of Python.

use crate::calls::{Raised, released};
use crate::errors::Failure;
use crate::examples::memory;
use crate::task::Task;
use data::Batch;
use evaluators::{LoadOptions, ModelInfo};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A model that is loaded.
#[pyclass(frozen, module = "inductive_counting._native")]
pub struct Model {
    /// Its sessions run one sweep at a time.
    model: Mutex<evaluators::Model>,
    /// The exception that a function of Python ended with, which ends the sweep.
    pub raised: Raised,
}

impl Model {
    fn new(model: evaluators::Model) -> Self {
        Self { model: Mutex::new(model), raised: Raised::default() }
    }

    /// The model itself. Wait for it only while the interpreter is released.
    pub fn lock(&self) -> MutexGuard<'_, evaluators::Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T: Send>(&self, py: Python<'_>, what: impl FnOnce(&evaluators::Model) -> T + Send) -> PyResult<T> {
        released(py, || Ok::<_, Failure>(what(&self.lock())))
    }
}

fn options(provider: &str, threads: Option<usize>) -> Result<LoadOptions, Failure> {
    Ok(LoadOptions { provider: provider.parse()?, threads })
}

#[pymethods]
impl Model {
    /// Loads a file.
    #[staticmethod]
    #[pyo3(signature = (path, provider="auto", threads=None, logits=None))]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        provider: &str,
        threads: Option<usize>,
        logits: Option<&str>,
    ) -> PyResult<Self> {
        let load = || {
            let options = options(provider, threads)?;
            Ok::<_, Failure>(evaluators::Model::load_with_logits(&path, options, logits)?)
        };
        Ok(Self::new(released(py, load)?))
    }

    /// Loads a serialised `ModelProto`.
    #[staticmethod]
    #[pyo3(signature = (name, model, provider="auto", threads=None, logits=None))]
    fn from_bytes(
        py: Python<'_>,
        name: &str,
        model: &Bound<'_, PyBytes>,
        provider: &str,
        threads: Option<usize>,
        logits: Option<&str>,
    ) -> PyResult<Self> {
        let bytes = model.as_bytes().to_vec();
        let load = || {
            let options = options(provider, threads)?;
            Ok::<_, Failure>(evaluators::Model::from_bytes(name, bytes, options, logits)?)
        };
        Ok(Self::new(released(py, load)?))
    }

    /// Makes a model of a function, which is given the memory of int64 ids `[batch, seq]`, and both numbers, and returns
    /// the bytes of float32 logits `[batch, seq, vocab]`.
    #[staticmethod]
    #[pyo3(signature = (name, function, task, train_max_length=None, lenient=false))]
    fn from_function(
        name: &str,
        function: Py<PyAny>,
        task: &Task,
        train_max_length: Option<u32>,
        lenient: bool,
    ) -> PyResult<Self> {
        let raised = Raised::default();
        let info = ModelInfo {
            task: Some(task.task.name.clone()),
            vocab: Some(task.task.vocabulary.tokens().to_vec()),
            train_max_length,
            ..ModelInfo::default()
        };
        let keep = raised.clone();
        let run = move |batch: &Batch| -> Result<Vec<f32>, String> {
            Python::attach(|py| logits(py, &function, batch)).map_err(|error| {
                let text = Python::attach(|py| error.value(py).to_string());
                let is_status =
                    lenient && Python::attach(|py| error.is_instance_of::<pyo3::exceptions::PyException>(py));
                if !is_status {
                    keep.put(error);
                }
                text
            })
        };
        Ok(Self { raised, ..Self::new(evaluators::Model::from_function(name, info, run)) })
    }

    /// The logits `[batch, seq, vocab]` of ids `[batch, seq]`: their memory, float32, and the size of the vocabulary.
    fn logits<'py>(
        &self,
        py: Python<'py>,
        ids: Vec<i64>,
        batch: usize,
        seq: usize,
    ) -> PyResult<(Bound<'py, PyByteArray>, usize)> {
        let run = || {
            let mut model = self.lock();
            let found = model.run_ids(&ids, batch, seq)?;
            Ok::<_, Failure>((found.values().to_vec(), found.vocab()))
        };
        let (values, vocab) = self.raised.or(released(py, run))?;
        Ok((memory(py, &values, f32::to_ne_bytes)?, vocab))
    }

    /// Makes a looped model apply its blocks so many times from now on.
    fn set_iterations(&self, py: Python<'_>, iterations: u32) -> PyResult<()> {
        released(py, || Ok::<_, Failure>(self.lock().set_iterations(iterations)?))
    }

    /// How the model was interpreted, for people.
    #[getter]
    fn notes(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.ask(py, |model| model.notes().to_vec())
    }

    /// Why it runs on the CPU although the library has CUDA.
    #[getter]
    fn fallback(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.ask(py, |model| model.fallback().map(str::to_owned))
    }

    /// The task that its metadata names.
    #[getter]
    fn task(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.ask(py, |model| model.info().task.clone())
    }
}

/// Calls a function with the ids of a batch.
fn logits(py: Python<'_>, function: &Py<PyAny>, batch: &Batch) -> PyResult<Vec<f32>> {
    let ids = memory(py, &batch.input_ids, i64::to_ne_bytes)?;
    let found = function.bind(py).call1((ids, batch.batch, batch.seq))?;
    let (values, _) = found.cast::<PyBytes>()?.as_bytes().as_chunks();
    Ok(values.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
}
