//! Training, export and reports, through the library of `pipeline`.

use crate::calls::{Raised, Watch, released};
use crate::errors::{Failure, Kind};
use pipeline::config::Config;
use pipeline::export::{ExportPlan, export_run};
use pipeline::train::Outcome;
use pipeline::{ReportPlan, RunDir, StepReport, Watcher, Workspace, write_report};
use pyo3::prelude::*;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Tells Python how training goes.
struct Teller {
    watch: Mutex<Watch>,
    notes: Option<Py<PyAny>>,
    handle: Mutex<Option<String>>,
    raised: Raised,
}

impl Teller {
    fn new(callback: Option<Py<PyAny>>, notes: Option<Py<PyAny>>) -> (Arc<Self>, Raised) {
        let raised = Raised::default();
        let watch = Mutex::new(Watch::new(callback, raised.clone()));
        (Arc::new(Self { watch, notes, handle: Mutex::default(), raised: raised.clone() }), raised)
    }
}

impl Watcher for Teller {
    fn started(&self, run: &RunDir) {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.handle().to_owned());
    }

    fn step(&self, report: &StepReport) -> bool {
        let now = || (report.step, report.total_steps, report.loss, report.val_accuracy);
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if report.step == report.total_steps { watch.tell(now) } else { watch.goes_on(now) }
    }

    fn note(&self, line: &str) {
        if let Some(notes) = &self.notes {
            let told = Python::attach(|py| notes.bind(py).call1((line,)).map(drop));
            told.unwrap_or_else(|error| self.raised.put(error));
        }
    }
}

/// Changes to a config as Python gives them: JSON, which it makes of its dictionaries.
fn changes(overrides: &str) -> Result<Vec<(String, toml::Value)>, Failure> {
    let wrong = |error: String| Failure::new(Kind::Argument, format!("cannot read the overrides: {error}"));
    let table: serde_json::Map<String, Json> =
        serde_json::from_str(overrides).map_err(|error| wrong(error.to_string()))?;
    let value = |(key, value): (String, Json)| {
        let value = toml::Value::try_from(value).map_err(|error| wrong(format!("{key}: {error}")))?;
        Ok((key, value))
    };
    table.into_iter().map(value).collect()
}

/// A config as Python gives it, with changes to it.
fn config(source: &ConfigSource, overrides: &str) -> Result<Config, Failure> {
    let wrong = |error: String| Failure::new(Kind::Argument, format!("cannot read the config: {error}"));
    let overrides = changes(overrides)?;
    Ok(match source {
        ConfigSource { file: Some(path), .. } => Config::load(path, &overrides)?,
        ConfigSource { toml: Some(text), .. } => Config::parse(text, &overrides)?,
        ConfigSource { json, .. } => {
            let table: Json =
                serde_json::from_str(json.as_deref().unwrap_or("{}")).map_err(|error| wrong(error.to_string()))?;
            let text = toml::to_string(&table).map_err(|error| wrong(error.to_string()))?;
            Config::parse(&text, &overrides)?
        }
    })
}

/// A config: a file, TOML, or JSON.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct ConfigSource {
    file: Option<PathBuf>,
    toml: Option<String>,
    json: Option<String>,
}

fn json_of(config: &Config) -> Result<String, Failure> {
    serde_json::to_string(config).map_err(|error| Failure::new(Kind::Other, error.to_string()))
}

/// A config with everything that it leaves to defaults, as JSON.
#[pyfunction]
pub fn read_config(py: Python<'_>, source: ConfigSource, overrides: &str) -> PyResult<String> {
    released(py, || json_of(&config(&source, overrides)?))
}

/// The facts about a run, as JSON.
fn facts(run: &RunDir) -> Result<Json, Failure> {
    let progress = run.progress();
    let config = Config::load(&run.config(), &[])?;
    let model = run.onnx();
    Ok(json!({
        "handle": run.handle(),
        "path": run.path(),
        "status": progress.as_ref().map_or("imported", |progress| progress.status.name()),
        "step": progress.as_ref().map(|progress| progress.step),
        "total_steps": progress.as_ref().map(|progress| progress.total_steps),
        "task": config.task.name,
        "arch": config.model.arch(),
        "seed": config.train.seed,
        "model": model.is_file().then_some(model),
    }))
}

fn trained(run: &RunDir, outcome: &Outcome) -> Result<String, Failure> {
    let mut all = facts(run)?;
    all["outcome"] = json!({ "loss": outcome.loss, "seconds": outcome.seconds, "splits": outcome.scores() });
    Ok(all.to_string())
}

/// Trains a run: the facts about it, as JSON.
#[pyfunction]
#[pyo3(signature = (source, overrides, runs, datasets, callback=None, notes=None))]
pub fn train(
    py: Python<'_>,
    source: ConfigSource,
    overrides: &str,
    runs: PathBuf,
    datasets: PathBuf,
    callback: Option<Py<PyAny>>,
    notes: Option<Py<PyAny>>,
) -> PyResult<String> {
    let (teller, raised) = Teller::new(callback, notes);
    let workspace = Workspace::new(runs, datasets).watched_by(teller.clone());
    let done = released(py, || -> Result<String, Failure> {
        let (run, outcome) = pipeline::train::train(&workspace, config(&source, overrides)?)?;
        trained(&run, &outcome)
    });
    let handle = teller.handle.lock().unwrap_or_else(PoisonError::into_inner).clone();
    raised.or(done).map_err(|error| with_handle(py, error, handle))
}

/// Tells whoever catches an exception which run it ended: it is its attribute `run`.
fn with_handle(py: Python<'_>, error: PyErr, handle: Option<String>) -> PyErr {
    if let Some(handle) = handle {
        let _ = error.value(py).setattr("run", handle); // an exception without attributes says it in its text only
    }
    error
}

/// Continues a run: the facts about it, as JSON.
#[pyfunction]
#[pyo3(signature = (handle, overrides, runs, datasets, callback=None, notes=None))]
pub fn resume(
    py: Python<'_>,
    handle: String,
    overrides: &str,
    runs: PathBuf,
    datasets: PathBuf,
    callback: Option<Py<PyAny>>,
    notes: Option<Py<PyAny>>,
) -> PyResult<String> {
    let (teller, raised) = Teller::new(callback, notes);
    let workspace = Workspace::new(runs, datasets).watched_by(teller);
    let done = released(py, || -> Result<String, Failure> {
        let run = workspace.run(&handle)?;
        let outcome = pipeline::train::resume(&workspace, &run, &changes(overrides)?)?;
        trained(&run, &outcome)
    });
    raised.or(done).map_err(|error| with_handle(py, error, Some(handle)))
}

/// The facts about all runs, oldest first, as JSON; and about those that cannot be read, why.
#[pyfunction]
pub fn runs(py: Python<'_>, runs: PathBuf) -> PyResult<(String, Vec<String>)> {
    released(py, || -> Result<_, Failure> {
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        for run in Workspace::new(runs, PathBuf::new()).runs()? {
            match facts(&run) {
                Ok(one) => found.push(one),
                Err(error) => unreadable.push(format!("run {} cannot be read: {}", run.handle(), error.text())),
            }
        }
        Ok((Json::from(found).to_string(), unreadable))
    })
}

/// The facts about a run and its whole config, as JSON.
#[pyfunction]
pub fn run(py: Python<'_>, runs: PathBuf, handle: &str) -> PyResult<(String, String)> {
    released(py, || -> Result<_, Failure> {
        let run = Workspace::new(runs, PathBuf::new()).run(handle)?;
        Ok((facts(&run)?.to_string(), json_of(&Config::load(&run.config(), &[])?)?))
    })
}

/// Exports a run, and returns the file.
#[pyfunction]
#[pyo3(signature = (runs, handle, checkpoint=None, precision=None, opset=None, verify=true, notes=None))]
#[allow(clippy::too_many_arguments)] // they are keywords on the other side
pub fn export(
    py: Python<'_>,
    runs: PathBuf,
    handle: &str,
    checkpoint: Option<String>,
    precision: Option<&str>,
    opset: Option<i64>,
    verify: bool,
    notes: Option<Py<PyAny>>,
) -> PyResult<PathBuf> {
    let (teller, raised) = Teller::new(None, notes);
    let workspace = Workspace::new(runs, PathBuf::from("datasets")).watched_by(teller);
    let exported = released(py, || -> Result<PathBuf, Failure> {
        let run = workspace.run(handle)?;
        let mut plan = ExportPlan { checkpoint, unchecked: !verify, ..ExportPlan::default() };
        if let Some(precision) = precision {
            plan.options.precision = precision.parse().map_err(anyhow::Error::from)?;
        }
        plan.options.opset = opset.unwrap_or(plan.options.opset);
        Ok(export_run(&workspace, &run, &plan)?.path)
    });
    raised.or(exported)
}

/// Puts the results of all runs on one page; the files that were written, and a line about it.
#[pyfunction]
#[pyo3(signature = (runs, output, reference=None, figures=None, notes=None))]
pub fn report(
    py: Python<'_>,
    runs: PathBuf,
    output: PathBuf,
    reference: Option<PathBuf>,
    figures: Option<PathBuf>,
    notes: Option<Py<PyAny>>,
) -> PyResult<(Vec<PathBuf>, String)> {
    let (teller, raised) = Teller::new(None, notes);
    let workspace = Workspace::new(runs, Path::new("datasets")).watched_by(teller);
    let written = released(py, || -> Result<_, Failure> {
        let written = write_report(&workspace, &ReportPlan { output, reference, figures })?;
        Ok((written.files, written.summary))
    });
    raised.or(written)
}
