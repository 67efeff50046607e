//! `pipeline import`: makes a run out of one of the original PyTorch code.

use super::Context;
use crate::checkpoint::{Checkpoint, State};
use crate::cli::ImportArgs;
use crate::config::Config;
use crate::run_dir::{RunDir, RunProgress, Status};
use anyhow::{Context as _, Result, bail};
use data::Task;
use models::original::Original;
use models::{Cpu, Model, Weights};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

pub fn run(context: &Context, args: ImportArgs) -> Result<()> {
    let folder = &args.folder;
    let original = read_config(folder)?;
    let task =
        task(&original, args.task.as_deref()).with_context(|| format!("in {}", config_file(folder).display()))?;
    let source = Source::newest(folder)?;
    let mut model: Model<Cpu> = original.model.init(task.vocabulary.len(), 0, &Default::default());
    Weights::read(&source.file)?.load_into(&mut model).with_context(|| format!("in {}", source.file.display()))?;
    let config = run_config(&original, &task)?;

    let run = RunDir::create(&context.global.runs_dir)?;
    let write = || -> Result<()> {
        let state = State { epoch: source.epoch, step: source.step, ..Default::default() };
        Checkpoint::write(&run.checkpoint(source.epoch, source.step), state, &Weights::of(&model)?, None)?;
        run.set_progress(&RunProgress { status: Status::Finished, step: source.step, total_steps: source.step })?;
        // What makes the folder a run comes last.
        Ok(data::files::write_bytes(&run.config(), config.to_toml()?.as_bytes())?)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_dir_all(run.path());
    })?;

    for note in &original.notes {
        context.progress.note(note);
    }
    if !original.unused.is_empty() {
        context.progress.note(format!("fields of config.json without a meaning here: {}", original.unused.join(", ")));
    }
    context.progress.note(format!("{} of {} · task {}", original.model.arch(), source.file.display(), task.name));
    let as_json = || {
        json!({
            "handle": run.handle(),
            "run": run.path(),
            "checkpoint": source.file,
            "arch": original.model.arch(),
            "task": task.name,
            "unused_fields": original.unused,
        })
    };
    context.print(as_json, || format!("next: pipeline export --handle {0}\n{0}", run.handle()))
}

fn config_file(folder: &Path) -> PathBuf {
    folder.join("config.json")
}

fn read_config(folder: &Path) -> Result<Original> {
    let path = config_file(folder);
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {}\n  hint: `pipeline import` takes the folder of a run of the original code, with its config.json",
            path.display()
        )
    })?;
    let doing = || format!("cannot import {}", path.display());
    let config = serde_json::from_str(&text).with_context(doing)?;
    Original::new(&config).with_context(doing)
}

/// The task that the config, or whoever imports, names. Its tokens must be those of the config.
fn task(original: &Original, name: Option<&str>) -> Result<Task> {
    let Some(name) = name.or(original.task.as_deref()) else {
        bail!("the config names no task\n  hint: name it with --task; `pipeline data list` shows all of them")
    };
    let task = Task::by_name(name)?;
    original.model.check_vocabulary(&task.vocabulary)?;
    let Some(theirs) = &original.vocab else { return Ok(task) };
    let ours = task.vocabulary.tokens();
    if let Some(id) = (0..ours.len().max(theirs.len())).find(|&id| ours.get(id) != theirs.get(id)) {
        let spelled = |token: Option<&String>| token.map_or("missing".to_owned(), |token| format!("`{token}`"));
        bail!(
            "the config's vocabulary is not that of the task {name}: token {id} is {}, but the task's is {}\n  \
             hint: name the task with these tokens with --task",
            spelled(theirs.get(id)),
            spelled(ours.get(id)),
        );
    }
    Ok(task)
}

/// The config of a run with this model, with the defaults for everything about training.
fn run_config(original: &Original, task: &Task) -> Result<Config> {
    let table = |key: &str, value: Value| Value::Table(Table::from_iter([(key.to_owned(), value)]));
    let mut tables = Table::new();
    tables.insert("task".into(), table("name", task.name.clone().into()));
    tables.insert("model".into(), Value::try_from(&original.model)?);
    if let Some(seed) = original.seed {
        tables.insert("train".into(), table("seed", Value::try_from(seed)?));
    }
    Config::parse(&toml::to_string(&tables)?, &[])
}

/// The checkpoint to import.
struct Source {
    file: PathBuf,
    epoch: u64,
    step: u64,
}

impl Source {
    /// `model.safetensors` or `model.pt` beside the config, or else the newest under `ckpts/`, where the original writes
    /// `<epoch>_<step>_<arch>.pt` and `<epoch>_rwkv.pth`.
    fn newest(folder: &Path) -> Result<Self> {
        let beside = ["model.safetensors", "model.pt", "model.pth"].map(|name| folder.join(name));
        if let Some(file) = beside.into_iter().find(|file| file.is_file()) {
            return Ok(Self { file, epoch: 0, step: 0 });
        }
        let entries = fs::read_dir(folder.join("ckpts")).into_iter().flatten().filter_map(Result::ok);
        let numbered = entries.filter_map(|entry| Self::numbered(entry.path()));
        numbered.max_by_key(|source| (source.epoch, source.step)).with_context(|| {
            format!(
                "{} has no model.safetensors and no model.pt, and no checkpoint under ckpts/\n  \
                 hint: checkpoints there are called <epoch>_<step>_<arch>.pt or <epoch>_rwkv.pth",
                folder.display()
            )
        })
    }

    fn numbered(file: PathBuf) -> Option<Self> {
        let known = ["pt", "pth", "safetensors"];
        file.extension().and_then(|e| e.to_str()).filter(|e| known.contains(e)).filter(|_| file.is_file())?;
        let mut numbers = file.file_stem()?.to_str()?.split('_').map_while(|part| part.parse().ok());
        Some(Self { epoch: numbers.next()?, step: numbers.next().unwrap_or(0), file })
    }
}
