//! Tables on their way to Python: Arrow's C stream in a capsule, by which pyarrow, Polars and others take the buffers as
//! they are.

use crate::errors::{Failure, Kind};
use arrow::datatypes::SchemaRef;
use arrow::ffi::FFI_ArrowSchema;
use arrow::ffi_stream::FFI_ArrowArrayStream;
use arrow::record_batch::{RecordBatch, RecordBatchIterator};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

/// A table of Arrow batches. It has the methods of Arrow's PyCapsule interface, and no others.
#[pyclass(frozen, module = "inductive_counting._native")]
pub struct Table {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

impl Table {
    /// A table of these batches; `None` where there are none, since nothing says what its columns are.
    pub fn of(batches: Vec<RecordBatch>) -> PyResult<Self> {
        match batches.first() {
            Some(first) => Ok(Self { schema: first.schema(), batches }),
            None => {
                Err(Failure::new(Kind::Other, "a table has no batch\n  hint: this is a defect; please report it")
                    .into())
            }
        }
    }
}

#[pymethods]
impl Table {
    /// The schema as a capsule.
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(&*self.schema);
        let schema = schema.map_err(|error| Failure::new(Kind::Other, error.to_string()))?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }

    /// The batches as a capsule. Whoever takes it shares the buffers. A schema that is asked for is not followed, as the
    /// interface allows.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = requested_schema;
        let batches = self.batches.clone().into_iter().map(Ok);
        let reader = RecordBatchIterator::new(batches, self.schema.clone());
        PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(Box::new(reader)), c"arrow_array_stream")
    }
}
