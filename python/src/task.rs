//! Tasks.

use crate::calls::{released, released_apart};
use crate::errors::{Failure, Kind};
use data::Split;
use evaluators::Lengths;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// Tests of more main tokens may take a while.
const LONG: u32 = 1 << 14;

/// The names of all presets.
#[pyfunction]
pub fn task_names() -> Vec<&'static str> {
    data::Task::names().collect()
}

/// Lets tasks of the family `command` run their programs.
#[pyfunction]
pub fn allow_commands() {
    data::allow_commands();
}

/// Tokens as words, or as ids.
#[derive(FromPyObject)]
pub enum Tokens {
    /// Ids.
    Ids(Vec<i64>),
    /// Words.
    Words(Vec<String>),
}

/// A task: see `inductive_counting.task`.
#[pyclass(frozen, module = "inductive_counting._native")]
pub struct Task {
    /// The task itself.
    pub task: Arc<data::Task>,
}

impl Task {
    /// The task of this name.
    pub fn named(py: Python<'_>, name: &str) -> PyResult<Arc<data::Task>> {
        released(py, || data::Task::by_name(name).map(Arc::new))
    }

    /// Ids below the size of the vocabulary.
    fn ids(&self, tokens: &Tokens) -> Result<Vec<u16>, Failure> {
        let (task, vocabulary) = (&self.task.name, &self.task.vocabulary);
        let has = || format!("hint: its tokens are {}", vocabulary.tokens().join(" "));
        let wrong =
            |found: String| Failure::new(Kind::Argument, format!("task `{task}` has no token {found}\n  {}", has()));
        let of_id = |id: &i64| {
            let id =
                usize::try_from(*id).ok().filter(|id| *id < vocabulary.len()).ok_or_else(|| wrong(id.to_string()))?;
            Ok(id as u16) // ids have 16 bits
        };
        match tokens {
            Tokens::Ids(ids) => ids.iter().map(of_id).collect(),
            Tokens::Words(words) => {
                words.iter().map(|word| vocabulary.id(word).ok_or_else(|| wrong(format!("`{word}`")))).collect()
            }
        }
    }
}

#[pymethods]
impl Task {
    #[new]
    fn new(py: Python<'_>, name: &str) -> PyResult<Self> {
        Ok(Self { task: Self::named(py, name)? })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.task.name
    }

    #[getter]
    fn family(&self) -> &'static str {
        self.task.family.name()
    }

    #[getter]
    fn paper(&self) -> Option<&'static str> {
        self.task.paper()
    }

    #[getter]
    fn vocabulary(&self) -> Vec<String> {
        self.task.vocabulary.tokens().to_vec()
    }

    #[getter]
    fn units(&self) -> Vec<String> {
        self.task.vocabulary.unit_tokens()
    }

    #[getter]
    fn pad_id(&self) -> u16 {
        self.task.vocabulary.pad_id()
    }

    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let settings = PyDict::new(py);
        self.task.parameters.iter().try_for_each(|(key, value)| settings.set_item(key, value))?;
        Ok(settings)
    }

    #[getter]
    fn splits(&self) -> Vec<&'static str> {
        self.task.splits().into_iter().map(Split::name).collect()
    }

    #[getter]
    fn train_max_length(&self) -> u32 {
        self.task.family.train_max_length()
    }

    #[getter]
    fn train_examples(&self) -> usize {
        self.task.train_examples
    }

    #[getter]
    fn max_seq_len(&self) -> usize {
        self.task.max_seq_len
    }

    #[getter]
    fn max_position_embeddings(&self) -> usize {
        self.task.max_position_embeddings
    }

    #[pyo3(signature = (length=None))]
    fn chance(&self, length: Option<u32>) -> Option<f64> {
        self.task.family.chance(length.unwrap_or_else(|| self.task.family.train_max_length()))
    }

    /// Ids of words.
    fn encode(&self, tokens: Tokens) -> PyResult<Vec<u16>> {
        Ok(self.ids(&tokens)?)
    }

    /// Words of ids.
    fn decode(&self, ids: Vec<i64>) -> PyResult<Vec<String>> {
        let ids = self.ids(&Tokens::Ids(ids))?;
        Ok(ids.into_iter().filter_map(|id| self.task.vocabulary.token(id)).map(str::to_owned).collect())
    }

    /// A label in text.
    fn label(&self, label: i16) -> String {
        self.task.vocabulary.label(label)
    }

    /// The label of every token; -1 where nothing is asked.
    fn labels(&self, py: Python<'_>, tokens: Tokens) -> PyResult<Vec<i16>> {
        let ids = self.ids(&tokens)?;
        let task = &self.task;
        released(py, || {
            task.labels(&ids).map_err(|reason| {
                let words: Vec<&str> = ids.iter().filter_map(|id| task.vocabulary.token(*id)).collect();
                let text = format!(
                    "`{}` is no sequence of the task {}: {reason}\n  hint: `ic.dataset` gives sequences of it",
                    words.join(" "),
                    task.name
                );
                Failure::new(Kind::Argument, text)
            })
        })
    }

    /// Test number `index` of a length: ids and labels.
    #[pyo3(signature = (length, index=0, seed=0))]
    fn test(&self, py: Python<'_>, length: u32, index: usize, seed: u64) -> PyResult<(Vec<u16>, Vec<i16>)> {
        let task = self.task.clone();
        let none = move |task: &data::Task, reason: String| {
            Failure::new(Kind::Argument, format!("task `{}` has no test of length {length}: {reason}", task.name))
        };
        if length > Lengths::LONGEST {
            return Err(none(&task, format!("sequences go up to length {}", Lengths::LONGEST)).into());
        }
        let make = move || {
            task.family.outside().map_or(Ok(()), |outside| outside.ready())?;
            task.family.test(seed, index, length).map_err(|limit| none(&task, limit.reason))
        };
        let test = if length > LONG { released_apart(py, make) } else { released(py, make) }?;
        Ok((test.input_ids, test.labels))
    }

    fn __repr__(&self) -> String {
        format!(
            "<Task {}: {} tokens, lengths 1..{} in training>",
            self.name(),
            self.task.vocabulary.len(),
            self.train_max_length()
        )
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.task.name == other.task.name && self.task.parameters == other.task.parameters
    }

    fn __hash__(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.task.name.hash(&mut hasher);
        hasher.finish()
    }

    /// Pickles as its name: a DataLoader's workers make it again.
    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<(Py<PyAny>, (String,))> {
        Ok((slf.get_type().into_any().unbind(), (slf.get().task.name.clone(),)))
    }
}
