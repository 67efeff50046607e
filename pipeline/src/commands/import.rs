//! `pipeline import`: makes a run out of one of the original PyTorch code.

use super::Context;
use crate::cli::ImportArgs;
use crate::config::Config;
use crate::run::{RunDir, RunProgress, Status};
use crate::train::checkpoint::{Checkpoint, State};
use anyhow::{Context as _, Result, bail};
use data::Task;
use models::original::Original;
use models::{Cpu, Model, StateDict, Weights};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

pub fn run(context: &Context, args: ImportArgs) -> Result<()> {
    let mut source = if args.folder.is_file() { Source::file(&args.folder) } else { Source::newest(&args.folder)? };
    let path = config_file(&args.folder, &source.file)?;
    let original = read_config(&path)?;
    let task = task(&original, args.task.as_deref()).with_context(|| format!("in {}", path.display()))?;
    let mut model: Model<Cpu> = original.model.init(task.vocabulary.len(), 0, &Default::default());
    let state_dict = StateDict::read(&source.file)?;
    source.count(&state_dict);
    let fitted = state_dict.fit(&model).with_context(|| format!("in {}", source.file.display()))?;
    fitted.weights.load_into(&mut model).with_context(|| format!("in {}", source.file.display()))?;
    let config = run_config(&original, &task)?;

    let run = RunDir::create(&context.runs)?;
    let write = || -> Result<()> {
        let state = State { epoch: source.epoch, step: source.step, ..Default::default() };
        Checkpoint::write(&run.checkpoint(source.epoch, source.step), state, &Weights::of(&model)?, None)?;
        run.set_progress(&RunProgress { status: Status::Finished, step: source.step, total_steps: source.step })?;
        // The config comes last: it makes the folder a run.
        Ok(data::files::write_bytes(&run.config(), config.to_toml()?.as_bytes())?)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_dir_all(run.path());
    })?;

    for note in original.notes.iter().chain(&source.notes).chain(&fitted.notes) {
        context.progress.note(note);
    }
    if !original.unused.is_empty() {
        context.progress.note(format!("fields of config.json without a meaning here: {}", original.unused.join(", ")));
    }
    let (arch, file) = (original.model.arch(), source.file.display());
    match original.task.as_deref().or(args.task.as_deref()) {
        Some(_) => context.progress.note(format!("{arch} of {file} · task {}", task.name)),
        None => context.progress.note(format!(
            "{arch} of {file} · no task, only its {} tokens: evaluate it with --task, or with --split and a file",
            task.vocabulary.len()
        )),
    }
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

/// `config.json` in the folder, or else beside the checkpoint or in the folders above it, as far as the folder goes.
fn config_file(folder: &Path, checkpoint: &Path) -> Result<PathBuf> {
    const NAME: &str = "config.json";
    // A checkpoint that is named itself may lie two folders below its config, as `checkpoints/checkpoint_3/` does.
    let above = checkpoint.ancestors().skip(1).take(if folder == checkpoint { 3 } else { 1 });
    let mut places = std::iter::once(folder).chain(above).map(|folder| folder.join(NAME));
    places.find(|path| path.is_file()).with_context(|| {
        let place = if folder == checkpoint { checkpoint.with_file_name(NAME) } else { folder.join(NAME) };
        format!(
            "cannot read {}: there is no such file\n  hint: `pipeline import` takes the folder of a run of the original \
             code, with its config.json",
            place.display()
        )
    })
}

fn read_config(path: &Path) -> Result<Original> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read = Original::read(&bytes);
    // A file that cannot be read at all may be no config.
    if let Err(error) = &read
        && error.field == "config.json"
        && let Some((what, hint)) = models::disguise(&bytes, path).filter(|(what, _)| !what.contains("JSON"))
    {
        bail!("cannot import {}: {what}\n  hint: {hint}", path.display());
    }
    read.with_context(|| format!("cannot import {}", path.display()))
}

/// The task that the config, or whoever imports, names. Its tokens must be those of the config. Without a name, the tokens
/// alone are a task: one without examples.
fn task(original: &Original, name: Option<&str>) -> Result<Task> {
    let own = || {
        let tokens = original.vocab.as_ref()?.iter().map(|token| Value::from(token.as_str()).to_string());
        Some(format!("dataset,vocab=[{}]", tokens.collect::<Vec<_>>().join(", ")))
    };
    let Some(name) = name.map(str::to_owned).or_else(|| original.task.clone()).or_else(own) else {
        bail!(
            "the config names no task, and has neither `vocab` nor `vocab_size`\n  hint: name the task with --task; `pipeline data list` shows all of them"
        )
    };
    let name = name.as_str();
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
    /// Other readings that are possible.
    notes: Vec<String>,
}

/// Whole models under the names that programs give them, the preferred one first.
const MODELS: [&str; 8] = [
    "model.safetensors",
    "model.pt",
    "model.pth",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "mp_rank_00_model_states.pt",
    "last.ckpt",
];

/// Files of PyTorch that are no models, by how their names begin.
const OTHERS: [&str; 9] = [
    "optimizer",
    "scheduler",
    "rng_state",
    "random_states",
    "training_args",
    "scaler",
    "sampler",
    "custom_checkpoint",
    "dl_state",
];

impl Source {
    fn file(file: &Path) -> Self {
        Self { file: file.into(), epoch: 0, step: 0, notes: vec![] }
    }

    /// A model beside the config, or else the newest checkpoint: `<epoch>_<step>_<arch>.pt` and `<epoch>_rwkv.pth` under
    /// `ckpts/` as the original writes them, the folders `checkpoint-<step>` of Hugging Face and accelerate, the files
    /// `epoch=<epoch>-step=<step>.ckpt` of Lightning, or the only file there is.
    fn newest(folder: &Path) -> Result<Self> {
        if let Some(found) = Self::model_in(folder)? {
            return Ok(found);
        }
        let mut places = vec![folder.to_owned(), folder.join("ckpts"), folder.join("checkpoints")];
        places.extend(lightning_logs(folder));
        for place in &places {
            // The original's numbers mean something only where the original writes them.
            let numbered = entries(place).into_iter().filter(|_| *place != *folder).filter_map(Self::numbered);
            if let Some(found) = numbered.max_by_key(|source| (source.epoch, source.step)) {
                return Ok(found);
            }
            if place != folder
                && let Some(found) = Self::model_in(place)?
            {
                return Ok(found);
            }
            if let Some(found) = Self::newest_folder(place)? {
                return Ok(found);
            }
            let written = entries(place).into_iter().filter_map(Self::lightning);
            if let Some(found) = written.max_by_key(|source| (source.step, source.epoch)) {
                return Ok(found);
            }
        }
        let only: Vec<PathBuf> =
            places.iter().flat_map(|place| entries(place)).filter(|file| is_weights(file)).collect();
        match &only[..] {
            [one] => Ok(Self::file(one)),
            [] => Err(no_checkpoint(folder)),
            several => bail!(
                "{} has several checkpoints, and none of them is called model.safetensors or model.pt: {}\n  \
                 hint: name the one that is meant: pipeline import {}",
                folder.display(),
                names(several),
                several[0].display()
            ),
        }
    }

    /// The whole model of a folder, which may be split into shards or lie a folder deeper.
    fn model_in(folder: &Path) -> Result<Option<Self>> {
        let deeper = folder.join("pytorch_model");
        let places = MODELS.map(|name| folder.join(name)).into_iter().chain(MODELS.map(|name| deeper.join(name)));
        let mut found = places.filter(|file| file.is_file()).collect::<Vec<_>>().into_iter();
        if let Some(file) = found.next() {
            let mut source = Self::file(&file);
            let more: Vec<PathBuf> = found.collect();
            if !more.is_empty() {
                source.notes.push(format!("taken: {}; also there: {}", file.display(), names(&more)));
            }
            return Ok(Some(source));
        }
        // Shards without their list.
        let first = |file: &PathBuf| file_name(file).contains("-00001-of-") && is_weights(file);
        if let Some(file) = entries(folder).into_iter().find(first) {
            return Ok(Some(Self::file(&file)));
        }
        for place in [folder.to_owned(), deeper, folder.join("pytorch_model_fsdp_0")] {
            if entries(&place).iter().any(|file| file.extension().is_some_and(|e| e == "distcp")) {
                bail!(
                    "{} holds a checkpoint in the shards of torch.distributed\n  hint: python -m \
                     torch.distributed.checkpoint.format_utils dcp_to_torch {} {} converts it",
                    place.display(),
                    place.display(),
                    folder.join("model.pt").display(),
                );
            }
        }
        Ok(None)
    }

    /// The newest of the folders `checkpoint-500`, `checkpoint_3`, `step_500` or `epoch_3` that has a model in it.
    fn newest_folder(place: &Path) -> Result<Option<Self>> {
        let mut folders: Vec<(&str, u64, PathBuf)> = Vec::new();
        for path in entries(place).into_iter().filter(|path| path.is_dir()) {
            let name = file_name(&path);
            let families = ["checkpoint", "global_step", "step", "epoch"];
            let number = |family: &str| -> Option<u64> {
                name.strip_prefix(family)?.trim_start_matches(['-', '_']).parse().ok()
            };
            if let Some((family, number)) = families.iter().find_map(|family| Some((*family, number(family)?))) {
                folders.push((family, number, path));
            }
        }
        folders.sort();
        let mut notes = Vec::new();
        let mut found: Option<(&str, Self)> = None;
        for (family, number, path) in folders.into_iter().rev() {
            if found.as_ref().is_some_and(|(other, _)| *other == family) {
                continue;
            }
            let Some(source) = Self::model_in(&path)? else {
                notes.push(format!("passed over, as there is no model in it: {}", path.display()));
                continue;
            };
            if let Some((_, other)) = &found {
                bail!(
                    "{} and {} count in different ways; it is not clear which is the newest\n  hint: name the one that is meant: \
                     pipeline import {}",
                    path.display(),
                    other.file.parent().unwrap_or(&other.file).display(),
                    path.display()
                );
            }
            let (epoch, step) = if family == "epoch" { (number, 0) } else { (epoch_of(&path), number) };
            found = Some((family, Self { epoch, step, ..source }));
        }
        Ok(found.map(|(_, source)| Self { notes: [source.notes, notes].concat(), ..source }))
    }

    /// `<epoch>_<step>_<arch>.pt`
    fn numbered(file: PathBuf) -> Option<Self> {
        let known = ["pt", "pth", "safetensors"];
        file.extension().and_then(|e| e.to_str()).filter(|e| known.contains(e)).filter(|_| file.is_file())?;
        let mut numbers = file.file_stem()?.to_str()?.split('_').map_while(|part| part.parse().ok());
        Some(Self { epoch: numbers.next()?, step: numbers.next().unwrap_or(0), ..Self::file(&file) })
    }

    /// `epoch=3-step=500.ckpt`, perhaps with more between and behind.
    fn lightning(file: PathBuf) -> Option<Self> {
        let name = file_name(&file);
        let name = name.strip_suffix(".ckpt").filter(|_| file.is_file())?;
        let number = |key: &str| {
            let digits = name.split_once(key)?.1;
            digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        Some(Self { epoch: number("epoch=")?, step: number("step=").unwrap_or(0), ..Self::file(&file) })
    }

    /// Takes epoch and step from the checkpoint itself, where its name does not say them.
    fn count(&mut self, state_dict: &StateDict) {
        if (self.epoch, self.step) == (0, 0) {
            self.epoch = state_dict.number("epoch").unwrap_or(0);
            let steps = ["global_step", "global_steps", "step", "iteration"];
            self.step = steps.iter().find_map(|name| state_dict.number(name)).unwrap_or(0);
        }
    }
}

/// The epoch that Hugging Face's trainer writes beside a checkpoint, begun ones counted.
fn epoch_of(folder: &Path) -> u64 {
    let text = fs::read(folder.join("trainer_state.json")).unwrap_or_default();
    let state: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    state["epoch"].as_f64().filter(|epoch| (0.0..1e9).contains(epoch)).map_or(0, |epoch| epoch.ceil() as u64)
}

/// The checkpoints of Lightning's newest version.
fn lightning_logs(folder: &Path) -> Option<PathBuf> {
    let version = |path: PathBuf| Some((file_name(&path).strip_prefix("version_")?.parse::<u64>().ok()?, path));
    let versions = entries(&folder.join("lightning_logs")).into_iter().filter_map(version);
    Some(versions.max()?.1.join("checkpoints"))
}

/// Whether a file may hold a model, by its name.
fn is_weights(file: &Path) -> bool {
    let endings = ["pt", "pth", "bin", "ckpt", "safetensors"];
    let name = file_name(file);
    file.is_file()
        && file.extension().and_then(|e| e.to_str()).is_some_and(|ending| endings.contains(&ending))
        && !OTHERS.iter().any(|other| name.starts_with(other))
}

/// The entries of a folder, sorted; nothing where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The names of a few files.
fn names(files: &[PathBuf]) -> String {
    let more = if files.len() > 6 { ", …" } else { "" };
    files.iter().take(6).map(|file| file_name(file)).collect::<Vec<_>>().join(", ") + more
}

fn no_checkpoint(folder: &Path) -> anyhow::Error {
    let shown = folder.display();
    if !folder.is_dir() {
        return anyhow::anyhow!(
            "cannot read {}: there is no such folder\n  hint: `pipeline import` takes the folder of a run of the original \
             code, with its config.json",
            folder.join("config.json").display()
        );
    }
    anyhow::anyhow!(
        "{shown} has no model.safetensors and no model.pt, and no checkpoint under ckpts/\n  \
         hint: checkpoints there are called <epoch>_<step>_<arch>.pt or <epoch>_rwkv.pth; pytorch_model.bin, last.ckpt, \
         checkpoint-<step>/ and shards with their index are found as well, and any other file by its name: pipeline import FILE"
    )
}
