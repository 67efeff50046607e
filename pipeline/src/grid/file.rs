//! `GRID.toml`: tasks × architectures × positional embeddings × layers × seeds.

use crate::config::{Config, check_seed, parse_toml};
use anyhow::{Context, Result, bail};
use evaluators::Lengths;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A grid as it is written down. Unknown keys are errors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GridFile {
    tasks: Vec<String>,
    seeds: Vec<Value>,
    /// For every job: `[set.train] max_steps = 1000`.
    #[serde(default)]
    set: Table,
    #[serde(default)]
    eval: EvalSettings,
    architecture: Vec<Architecture>,
}

/// `[[architecture]]`: a config and what is varied in it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Architecture {
    /// Relative to the grid's file.
    config: PathBuf,
    /// `none`, `absolute`, `sinusoidal`, `rope` or `scalar`, with an augmentation behind a plus: `rope+shift`.
    #[serde(default)]
    positional_embeddings: Vec<String>,
    #[serde(default)]
    layers: Vec<u32>,
    #[serde(default)]
    set: Table,
}

/// `[eval]`: how every job is evaluated.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSettings {
    /// Test lengths, as `pipeline eval --lengths` takes them.
    pub lengths: String,
    /// Splits that are scored as they are.
    pub splits: Vec<String>,
    /// Test sequences per length at most; the default of `pipeline eval` if not set.
    pub samples: Option<u64>,
}

impl Default for EvalSettings {
    fn default() -> Self {
        Self { lengths: "1..1000".into(), splits: vec!["ood_test".into()], samples: None }
    }
}

impl EvalSettings {
    /// The test lengths.
    ///
    /// # Errors
    /// They are no lengths.
    pub fn parsed_lengths(&self) -> Result<Lengths> {
        self.lengths.parse().context("in eval.lengths")
    }
}

/// The jobs of a grid.
#[derive(Debug)]
pub struct Grid {
    /// Its name: that of its file.
    pub name: String,
    /// One per run, in the order of the file: tasks, then architectures, positions, layers, seeds.
    pub jobs: Vec<Job>,
    /// How every job is evaluated.
    pub eval: EvalSettings,
}

/// A run of the grid: trained, exported and evaluated.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name, also that of its files.
    pub name: String,
    /// Everything that the run is.
    pub config: Config,
}

impl Grid {
    /// Reads a grid and resolves all of its jobs; `overrides` (`table.key`, value) come last.
    ///
    /// # Errors
    /// The grid or one of its configs cannot be read or makes no sense, or two jobs are the same.
    pub fn read(path: &Path, overrides: &[(String, Value)]) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read the grid {}\n  hint: the paper's are in configs/paper/grids/", path.display())
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&text, name, folder, overrides).with_context(|| format!("in the grid {}", path.display()))
    }

    fn parse(text: &str, name: String, folder: &Path, overrides: &[(String, Value)]) -> Result<Self> {
        parse_toml(text)?; // numbers that are too large are named
        let file: GridFile = toml::from_str(text).map_err(|e| anyhow::anyhow!("{}", e.to_string().trim_end()))?;
        file.seeds.iter().try_for_each(|seed| check_seed("seeds", seed))?;
        for (key, empty) in [
            ("tasks", file.tasks.is_empty()),
            ("seeds", file.seeds.is_empty()),
            ("architecture", file.architecture.is_empty()),
        ] {
            if empty {
                bail!("`{key}` is empty\n  hint: a grid has at least one of each of tasks, seeds and [[architecture]]");
            }
        }
        file.eval.parsed_lengths()?;
        let common = flatten(&file.set)?;
        let mut jobs: Vec<Job> = Vec::new();
        for task in &file.tasks {
            for architecture in &file.architecture {
                let own = flatten(&architecture.set)?;
                let config = folder.join(&architecture.config);
                let stem = architecture.config.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                for positions in optional(&architecture.positional_embeddings) {
                    for layers in optional(&architecture.layers) {
                        for seed in &file.seeds {
                            let mut name = vec![task.clone(), stem.clone()];
                            name.extend(positions.cloned());
                            name.extend(layers.map(|n| format!("{n}l")));
                            name.push(format!("s{seed}"));
                            let mut set = [common.clone(), own.clone()].concat();
                            set.push(("task.name".into(), task.clone().into()));
                            set.extend(positions.iter().flat_map(|p| position_settings(p)));
                            set.extend(layers.map(|n| ("model.num_layers".to_owned(), Value::from(*n))));
                            set.push(("train.seed".into(), seed.clone()));
                            set.extend_from_slice(overrides);
                            let name = crate::report::figures::file_name(&name.join("."));
                            let config = Config::load(&config, &set).with_context(|| format!("in its job {name}"))?;
                            config.task.task()?;
                            jobs.push(Job { name, config });
                        }
                    }
                }
            }
        }
        distinguish(&mut jobs)?;
        Ok(Self { name, jobs, eval: file.eval })
    }
}

/// Every value, or once none where nothing is varied.
fn optional<T>(values: &[T]) -> Vec<Option<&T>> {
    if values.is_empty() { vec![None] } else { values.iter().map(Some).collect() }
}

/// `[set.train] max_steps = 1000` as (`train.max_steps`, 1000).
///
/// # Errors
/// A key outside of a table.
pub fn flatten(tables: &Table) -> Result<Vec<(String, Value)>> {
    let mut flat = Vec::new();
    for (table, keys) in tables {
        let Some(keys) = keys.as_table() else {
            bail!("set.{table} is not a table\n  hint: write set.train.max_steps = 1000, or a table [set.train]");
        };
        flat.extend(keys.iter().map(|(key, value)| (format!("{table}.{key}"), value.clone())));
    }
    Ok(flat)
}

fn position_settings(name: &str) -> [(String, Value); 2] {
    let (positions, augmentation) = name.split_once('+').unwrap_or((name, "none"));
    [("model.positional_embedding".into(), positions.into()), ("model.augmentation".into(), augmentation.into())]
}

/// Jobs that differ get names that differ; jobs that do not are a mistake.
fn distinguish(jobs: &mut [Job]) -> Result<()> {
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for index in 0..jobs.len() {
        let same_name = seen.entry(jobs[index].name.clone()).or_default();
        if let Some(twin) = same_name.iter().find(|twin| jobs[**twin].config == jobs[index].config) {
            bail!(
                "two of its jobs are the same run: {}\n  hint: an architecture, a task or a seed is listed twice",
                jobs[*twin].name
            );
        }
        same_name.push(index);
        if same_name.len() > 1 {
            let name = format!("{}-{}", jobs[index].name, same_name.len());
            jobs[index].name = name;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<Grid> {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        Grid::parse(text, "test".into(), &configs, &[])
    }

    const GRID: &str = "tasks = ['counting_samesymbol_mod10bos', 'counting_samesymbol']
seeds = [1, 2]
[set.train]
max_steps = 7
[[architecture]]
config = 'rnn.toml'
layers = [1, 2]
[[architecture]]
config = 'transformer.toml'
positional_embeddings = ['none', 'rope+shift']
set.optimizer.lr = 5e-4
";

    #[test]
    fn a_grid_is_the_product_of_what_it_varies() {
        let grid = parse(GRID).unwrap();
        assert_eq!(grid.jobs.len(), 2 * (2 + 2) * 2);
        let last = &grid.jobs[15];
        assert_eq!(last.name, "counting_samesymbol-transformer-rope-shift-s2");
        assert_eq!((last.config.optimizer.lr, last.config.train.max_steps, last.config.train.seed), (5e-4, Some(7), 2));
        assert_eq!(last.config.model.augmentation().name(), "shift");
        assert_eq!(grid.jobs[2].config.model.num_layers(), 2);
    }

    #[test]
    fn cells_of_tasks_with_many_settings_have_names_that_fit_into_file_names() {
        let task = "modular,auxiliary=addtable,auxiliary_examples=1000,helper=pad,max_position_embeddings=100000,\
                    max_seq_len=100000,modulus=7,train_examples=100000,train_max=14";
        let text = GRID.replace("'counting_samesymbol']", &format!("'{task}']"));
        let mut names: Vec<String> = parse(&text).unwrap().jobs.into_iter().map(|job| job.name).collect();
        assert!(names.iter().all(|name| name.len() <= 130 && !name.contains([',', '='])), "{names:?}");
        let jobs = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), jobs);
    }

    #[test]
    fn mistakes_are_named() {
        for (find, replace, expected) in [
            ("rnn.toml", "rmn.toml", "cannot read the config"),
            ("seeds = [1, 2]", "seeds = [1, 1]", "two of its jobs are the same run"),
            ("seeds = [1, 2]", "seeds = []", "`seeds` is empty"),
            ("seeds = [1, 2]", "seeds = [1, 9223372036854775808]", "seeds 9223372036854775808: seeds go up to 9223"),
            ("seeds = [1, 2]", "seeds = [1, -2]", "seeds -2: seeds go up to"),
            ("seeds = [1, 2]", "seeds = [1, 2.0]", "seeds 2.0: seeds go up to"),
            ("seeds = [1, 2]", "seeds = ['1']", "seeds \"1\": seeds go up to"),
            ("max_steps = 7", "seed = 9223372036854775808", "set.train.seed 9223372036854775808: seeds go up to"),
            ("seeds = [1, 2]", "seeds = [1]\nsteps = 3", "unknown field `steps`"),
            ("max_steps", "max_step", "unknown key train.max_step"),
            ("mod10bos", "mod10boss", "did you mean"),
            ("rope+shift", "rope+shit", "shit"),
            ("[set.train]\nmax_steps = 7", "[eval]\nlengths = '5..1'", "eval.lengths"),
        ] {
            let error = format!("{:#}", parse(&GRID.replace(find, replace)).unwrap_err());
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn every_grid_that_comes_with_the_program_is_sound() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/paper/grids");
        let grids: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(grids.len() >= 3);
        for path in grids {
            assert!(!Grid::read(&path, &[]).unwrap().jobs.is_empty());
        }
    }
}
