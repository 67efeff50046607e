//! The native part of the Python module `inductive_counting`: thin bindings over `data`, `evaluators` and `pipeline`.
//!
//! The package beside this crate (`python/inductive_counting`) is what people call; it turns their arguments into the
//! plain ones here. Three rules hold everywhere: work runs with the interpreter released (`calls::released`), so that
//! other threads of Python go on; Ctrl-C and exceptions of callbacks end it (`calls::Watch`); and an error becomes the
//! Python exception of its kind with the text that the command shows (`errors`).

mod calls;
mod errors;
mod examples;
mod model;
mod sweep;
mod table;
mod task;
mod training;

use pyo3::prelude::*;

/// The functions and classes, as `inductive_counting._native`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::examples::{batch, epoch_order, examples, split_rows};
    #[pymodule_export]
    use super::model::Model;
    #[pymodule_export]
    use super::sweep::{score, sweep};
    #[pymodule_export]
    use super::table::Table;
    #[pymodule_export]
    use super::task::{Task, allow_commands, task_names};
    #[pymodule_export]
    use super::training::{export, read_config, report, resume, run, runs, train};

    use pyo3::prelude::*;
    use std::path::PathBuf;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("longest", evaluators::Lengths::LONGEST)?;
        module.add("cuda", cfg!(feature = "cuda"))
    }

    /// Names the folder of the package `onnxruntime`, or says with None that there is none.
    #[pyfunction]
    #[pyo3(signature = (folder))]
    fn use_onnxruntime(folder: Option<PathBuf>) {
        evaluators::use_python_package(folder.as_deref());
    }

    /// The ONNX Runtime that sweeps load: its file, its version and how it was found.
    #[pyfunction]
    fn onnxruntime(py: Python<'_>) -> PyResult<Option<(PathBuf, Option<String>, String)>> {
        let found = super::calls::released(py, evaluators::RuntimeLibrary::find)?;
        Ok(found.map(|library| (library.path, library.version, library.source.to_string())))
    }
}
