//! A run's config: a TOML file, then `--task`/`--seed`/`--device`, then every `--set`, resolved and checked once.

use anyhow::{Context, Result, bail};
use data::suggest::nearest;
use models::ModelConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::{Table, Value};

const TABLES: [&str; 5] = ["task", "model", "train", "optimizer", "eval"];

/// Everything that makes a run what it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// What to learn.
    pub task: TaskConfig,
    /// What learns it.
    pub model: ModelConfig,
    /// How long, and on what.
    pub train: TrainConfig,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Evaluation while training.
    pub eval: EvalConfig,
}

/// `[task]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// A name from `pipeline data list`.
    pub name: String,
    /// Training examples to generate where the dataset does not exist yet.
    #[serde(default = "TaskConfig::default_train_examples")]
    pub train_examples: usize,
    /// Seed of the dataset.
    #[serde(default)]
    pub data_seed: u64,
}

impl TaskConfig {
    fn default_train_examples() -> usize {
        1_000_000
    }
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the training examples.
    pub epochs: u64,
    /// Stop after this many optimisation steps, if that comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Examples in a step.
    pub batch_size: usize,
    /// Seed of weights, batch order and dropout.
    pub seed: u64,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Save a checkpoint every this many steps, besides the one at each epoch's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Evaluate on validation and the out-of-distribution split every this many steps, besides at each epoch's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// Write a training row to metrics.parquet every this many steps.
    pub log_every: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 5,
            max_steps: None,
            batch_size: 32,
            seed: 1234,
            device: "auto".into(),
            checkpoint_every: None,
            eval_every: None,
            log_every: 50,
        }
    }
}

/// `[optimizer]`: AdamW (Loshchilov & Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Learning rate after warm-up.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay, on every parameter.
    pub weight_decay: f32,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup_steps: u64,
    /// Gradients are scaled down to this global L2 norm.
    pub grad_clip: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, warmup_steps: 0, grad_clip: 1.0 }
    }
}

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Examples in an evaluation batch.
    pub batch_size: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { batch_size: 64 }
    }
}

impl Config {
    /// Reads `path` and applies `overrides` (`table.key`, value) in order.
    pub fn load(path: &Path, overrides: &[(String, Value)]) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read the config {}\n  hint: the ones that come with the program are in configs/",
                path.display()
            )
        })?;
        Self::parse(&text, overrides).with_context(|| format!("in the config {}", path.display()))
    }

    /// [`Config::load`] for text that is already in memory.
    pub fn parse(text: &str, overrides: &[(String, Value)]) -> Result<Self> {
        let mut tables: Table =
            text.parse().map_err(|e: toml::de::Error| anyhow::anyhow!("{}", e.to_string().trim_end()))?;
        for (key, value) in overrides {
            set(&mut tables, key, value.clone())?;
        }
        if let Some(unknown) = tables.keys().find(|k| !TABLES.contains(&k.as_str())) {
            bail!("unknown table [{unknown}]\n  hint: {}", suggestion(unknown, &TABLES));
        }
        let mut take = |name: &str| match tables.remove(name) {
            None => Ok(Table::new()),
            Some(Value::Table(table)) => Ok(table),
            Some(other) => bail!("`{name}` must be a table, not {}", other.type_str()),
        };
        let config = Self {
            task: decode("task", take("task")?)?,
            model: decode_model(take("model")?)?,
            train: decode("train", take("train")?)?,
            optimizer: decode("optimizer", take("optimizer")?)?,
            eval: decode("eval", take("eval")?)?,
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        self.model.validate()?;
        let positive = [
            ("train.epochs", self.train.epochs),
            ("train.batch_size", self.train.batch_size as u64),
            ("train.log_every", self.train.log_every),
            ("train.max_steps", self.train.max_steps.unwrap_or(1)),
            ("train.checkpoint_every", self.train.checkpoint_every.unwrap_or(1)),
            ("train.eval_every", self.train.eval_every.unwrap_or(1)),
            ("eval.batch_size", self.eval.batch_size as u64),
            ("task.train_examples", self.task.train_examples as u64),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, v)| *v == 0) {
            bail!("{key} must be at least 1");
        }
        let o = &self.optimizer;
        for (key, value) in [("optimizer.lr", o.lr), ("optimizer.grad_clip", o.grad_clip)] {
            if !(value.is_finite() && value > 0.0) {
                bail!("{key} must be a positive number, not {value}");
            }
        }
        Ok(())
    }

    /// The resolved config as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the config as TOML")
    }
}

/// Splits a `--set` argument; the value is TOML, or a bare string (`train.device=cpu`).
pub fn parse_override(argument: &str) -> Result<(String, Value)> {
    let Some((key, text)) = argument.split_once('=') else {
        bail!(
            "--set {argument}: there is no `=`\n  hint: write --set table.key=value, for example --set optimizer.lr=3e-4"
        );
    };
    let document: Result<Table, _> = format!("value = {text}").parse();
    let value = document.ok().and_then(|mut t| t.remove("value")).unwrap_or_else(|| Value::String(text.trim().into()));
    Ok((key.trim().to_owned(), value))
}

fn set(tables: &mut Table, key: &str, value: Value) -> Result<()> {
    let Some((table, name)) = key.split_once('.') else {
        bail!("`{key}` does not name a table and a key\n  hint: write table.key, for example optimizer.lr");
    };
    match tables.entry(table).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => {
            inner.insert(name.to_owned(), value);
            Ok(())
        }
        other => bail!("`{table}` must be a table, not {}", other.type_str()),
    }
}

/// Reads one table; an unknown key is reported as `table.key` with the nearest valid one.
fn decode<T: DeserializeOwned>(name: &str, table: Table) -> Result<T> {
    T::deserialize(Value::Table(table)).map_err(|error| {
        let message = error.message();
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        if let (true, [unknown, valid @ ..]) = (message.starts_with("unknown field"), quoted.as_slice()) {
            return anyhow::anyhow!("unknown key {name}.{unknown}\n  hint: {}", suggestion(unknown, valid));
        }
        anyhow::anyhow!("in [{name}]: {}", error.to_string().trim_end())
    })
}

fn decode_model(mut table: Table) -> Result<ModelConfig> {
    let known = ModelConfig::ARCHITECTURES;
    let arch = match table.remove("arch") {
        Some(Value::String(arch)) => arch,
        Some(other) => bail!("model.arch must be a string, not {}", other.type_str()),
        None => bail!("model.arch is missing\n  hint: one of {}", known.join(", ")),
    };
    match arch.as_str() {
        "rnn" => decode("model", table).map(ModelConfig::Rnn),
        "lstm" => decode("model", table).map(ModelConfig::Lstm),
        "s4" => decode("model", table).map(ModelConfig::S4),
        "mamba" => decode("model", table).map(ModelConfig::Mamba),
        "rwkv5" => decode("model", table).map(ModelConfig::Rwkv5),
        "rwkv6" => decode("model", table).map(ModelConfig::Rwkv6),
        "transformer" => decode("model", table).map(ModelConfig::Transformer),
        _ => bail!("unknown model.arch `{arch}`\n  hint: {}", suggestion(&arch, &known)),
    }
}

fn suggestion(name: &str, valid: &[&str]) -> String {
    match nearest(name, valid.iter().copied()) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("one of {}", valid.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MINIMAL: &str = "[task]\nname = 'counting_samesymbol_mod10'\n[model]\narch = 'rnn'\n";

    fn error(text: &str, set: &[&str]) -> String {
        let overrides: Vec<_> = set.iter().map(|s| parse_override(s).unwrap()).collect();
        format!("{:#}", Config::parse(text, &overrides).unwrap_err())
    }

    #[test]
    fn overrides_win_and_the_resolved_config_reads_back() {
        let set = ["model.hidden_size=32", "optimizer.lr=3e-4", "train.device=cpu", "train.max_steps=300"];
        let overrides: Vec<_> = set.iter().map(|s| parse_override(s).unwrap()).collect();
        let config = Config::parse(MINIMAL, &overrides).unwrap();
        assert_eq!((config.model.hidden_size(), config.optimizer.lr), (32, 3e-4));
        assert_eq!((config.train.device.as_str(), config.train.max_steps), ("cpu", Some(300)));
        assert_eq!(Config::parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    }

    #[test]
    fn unknown_names_come_with_the_nearest_valid_one() {
        for (set, expected) in [
            ("model.hiden_size=32", "unknown key model.hiden_size\n  hint: did you mean `hidden_size`?"),
            ("optimiser.lr=1", "unknown table [optimiser]\n  hint: did you mean `optimizer`?"),
            ("train.epoch=3", "unknown key train.epoch\n  hint: did you mean `epochs`?"),
            ("model.arch=lstn", "unknown model.arch `lstn`\n  hint: did you mean `lstm`?"),
        ] {
            assert_eq!(error(MINIMAL, &[set]), expected);
        }
    }

    #[test]
    fn impossible_values_are_refused_with_their_key() {
        for (set, expected) in [
            (vec!["train.batch_size=0"], "train.batch_size must be at least 1"),
            (vec!["optimizer.lr=-1.0"], "optimizer.lr must be a positive number"),
            (vec!["model.dropout=1.5"], "model.dropout: 1.5 is not a probability"),
            (vec!["model.arch=transformer", "model.num_heads=7"], "model.num_heads: hidden_size 1024"),
            (vec!["train.epochs='many'"], "in [train]: invalid type: string \"many\""),
        ] {
            let message = error(MINIMAL, &set);
            assert!(message.contains(expected), "{message}");
        }
        assert!(error("[task]\nname = 'x'", &[]).contains("model.arch is missing"));
        assert!(error("[model]\narch = 'rnn'", &[]).contains("missing field `name`"));
        assert!(parse_override("lr").unwrap_err().to_string().contains("table.key=value"));
    }
}
