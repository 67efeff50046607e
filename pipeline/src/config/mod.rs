//! A run's config: a TOML file, then `--task`/`--seed`/`--device`, then every `--set`, resolved and checked once.

mod optimizer;
mod parse;
mod stop_at;

pub use self::optimizer::{OptimizerConfig, OptimizerKind, Schedule};
pub use self::stop_at::StopAt;

use self::parse::{decode, decode_model, set, suggestion};
use anyhow::{Context, Result, bail};
use data::{Split, TaskConfig};
use models::ModelConfig;
use models::ops::autocast::HalfPrecision;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

pub(crate) use self::parse::{check_seed, not_a_seed, parse_override, parse_toml};

const TABLES: [&str; 5] = ["task", "model", "train", "optimizer", "eval"];

/// Everything that makes a run what it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// The task to learn.
    pub task: TaskConfig,
    /// The model that learns it.
    pub model: ModelConfig,
    /// How long, and on what.
    pub train: TrainConfig,
    /// The optimiser and its schedule.
    pub optimizer: OptimizerConfig,
    /// Evaluation while training.
    pub eval: EvalConfig,
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
    /// Examples in an optimisation step.
    pub batch_size: usize,
    /// Pieces in which a step's gradient is computed, one after the other, to need less memory. Divides `batch_size`, and
    /// does not change what a step computes.
    pub accumulate: usize,
    /// Pad every batch to this many tokens; to its longest example if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_to: Option<usize>,
    /// Draw new examples in every step instead of going through a fixed set of them: `task.train_examples` of them are
    /// an epoch.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// With `fresh`: all examples of a step have the same length, which is drawn.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub equal_lengths: bool,
    /// Examples that others begin with need no pass of their own, in training (where there is no dropout) and in
    /// evaluation. Does not change what a step computes, but for rounding.
    pub fold: bool,
    /// Seed of weights, batch order, random positions and dropout.
    pub seed: u64,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// `fp32`, `tf32`, `bf16` or `fp16`.
    pub precision: Precision,
    /// Start from the weights in this safetensors file instead of random ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// Save a checkpoint every this many steps, besides the one at each epoch's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Keep this many of the newest checkpoints, and the best one; all of them if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
    /// Evaluate every this many steps, besides before the first and at each epoch's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// Write a training row to metrics.parquet every this many steps.
    pub log_every: u64,
    /// Write the curve as TensorBoard event files as well.
    pub tensorboard: bool,
    /// End training as soon as evaluations reach this, instead of after all steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_at: Option<StopAt>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 5,
            max_steps: None,
            batch_size: 32,
            accumulate: 1,
            pad_to: None,
            fresh: false,
            equal_lengths: false,
            fold: true,
            seed: 1234,
            device: "auto".into(),
            precision: Precision::Fp32,
            init_from: None,
            checkpoint_every: None,
            keep: None,
            eval_every: None,
            log_every: 50,
            tensorboard: false,
            stop_at: None,
        }
    }
}

impl TrainConfig {
    /// Optimisation steps of one pass over `examples` examples, the last of them with what is left.
    pub fn steps_per_epoch(&self, examples: usize) -> u64 {
        examples.div_ceil(self.batch_size) as u64
    }

    /// Optimisation steps of a whole run.
    pub fn total_steps(&self, examples: usize) -> u64 {
        self.max_steps.unwrap_or(u64::MAX).min(self.epochs * self.steps_per_epoch(examples))
    }
}

/// The type in which training multiplies matrices. Parameters, the optimiser's moments, the residual stream, norms, softmax
/// and loss have 32 bits in all of them, checkpoints and exports too; see [`models::ops::autocast`]. Evaluation while
/// training is in `fp32`, as the export is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits. On a CPU that is exact; on CUDA, from compute capability 8.0 on, it is `tf32` anyway, since burn 0.21
    /// chooses among kernels with and without TF32 by their time, and has no switch to leave the former out.
    Fp32,
    /// CUDA only: 32-bit inputs that are rounded to 11 bits of precision where that is faster.
    Tf32,
    /// bfloat16 inputs, summed in 32 bits.
    Bf16,
    /// IEEE half precision inputs, summed in 32 bits, with dynamic loss scaling.
    Fp16,
}

impl Precision {
    /// The type of products, where it is not the parameters'.
    pub fn half(self) -> Option<HalfPrecision> {
        match self {
            Self::Fp32 | Self::Tf32 => None,
            Self::Bf16 => Some(HalfPrecision::Bf16),
            Self::Fp16 => Some(HalfPrecision::Fp16),
        }
    }

    /// As it is written in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
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
        let mut tables = parse_toml(text)?;
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
        let mut with_seed = |name: &str, seed: &str| {
            let table = take(name)?;
            table.get(seed).map_or(Ok(()), |value| check_seed(&format!("{name}.{seed}"), value))?;
            Ok::<_, anyhow::Error>(table)
        };
        let (task, train) = (with_seed("task", "data_seed")?, with_seed("train", "seed")?);
        let task: TaskConfig = decode("task", task)?;
        let definition = task.task()?;
        let mut config = Self {
            model: decode_model(take("model")?, &definition)?,
            task,
            train: decode("train", train)?,
            optimizer: decode("optimizer", take("optimizer")?)?,
            eval: decode("eval", take("eval")?)?,
        };
        config.validate()?;
        config.model.check_vocabulary(&definition.vocabulary)?;
        let optimizer = &mut config.optimizer;
        optimizer.weight_decay.get_or_insert(optimizer.default_weight_decay());
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        self.model.validate()?;
        let train = &self.train;
        let positive = [
            ("train.epochs", train.epochs),
            ("train.batch_size", train.batch_size as u64),
            ("train.accumulate", train.accumulate as u64),
            ("train.log_every", train.log_every),
            ("train.max_steps", train.max_steps.unwrap_or(1)),
            ("train.pad_to", train.pad_to.unwrap_or(1) as u64),
            ("train.checkpoint_every", train.checkpoint_every.unwrap_or(1)),
            ("train.keep", train.keep.unwrap_or(1) as u64),
            ("train.eval_every", train.eval_every.unwrap_or(1)),
            ("eval.batch_size", self.eval.batch_size as u64),
            ("task.train_examples", self.task.train_examples as u64),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, v)| *v == 0) {
            bail!("{key} must be at least 1");
        }
        if !train.batch_size.is_multiple_of(train.accumulate) {
            bail!(
                "train.accumulate is {}, which does not divide train.batch_size = {}\n  \
                 hint: batch_size is the size of a whole optimisation step; accumulate splits it into equal pieces",
                train.accumulate,
                train.batch_size
            );
        }
        if let Some(stop_at) = &train.stop_at {
            stop_at.validate(self.task.task()?.splits())?;
        }
        if train.equal_lengths && !train.fresh {
            bail!(
                "train.equal_lengths needs train.fresh: the examples of a dataset come in lengths of their own\n  \
                 hint: set train.fresh=true as well"
            );
        }
        self.optimizer.validate(train.max_steps)
    }

    /// The first key, as `table.key`, in which `self` differs from `before` although a resumed run must keep it: all
    /// but where to train, for how long, and what to write down. (A schedule that falls ends with the run, so it fixes how
    /// long.)
    pub(crate) fn first_fixed_difference(&self, before: &Self) -> Result<Option<String>> {
        let mut free = vec!["device", "checkpoint_every", "keep", "eval_every", "log_every", "tensorboard"];
        if self.optimizer.schedule == Schedule::Constant {
            free.extend(["epochs", "max_steps", "stop_at"]);
        }
        let (ours, theirs) = (Table::try_from(self)?, Table::try_from(before)?);
        for table in TABLES {
            let keys = |tables: &Table| tables.get(table).and_then(Value::as_table).cloned().unwrap_or_default();
            let (ours, theirs) = (keys(&ours), keys(&theirs));
            let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
            names.retain(|name| !(table == "train" && free.contains(&name.as_str())));
            if let Some(name) = names.into_iter().find(|name| ours.get(*name) != theirs.get(*name)) {
                return Ok(Some(format!("{table}.{name}")));
            }
        }
        Ok(None)
    }

    /// The optimisation steps of a run.
    ///
    /// # Errors
    /// Its task is unknown.
    pub fn total_steps(&self) -> Result<u64> {
        let examples = self.task.train_examples;
        let fixed = || self.task.task()?.rows(Split::Train, examples);
        Ok(self.train.total_steps(if self.train.fresh { examples } else { fixed()? }))
    }

    /// The resolved config as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the config as TOML")
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
    fn every_config_that_comes_with_the_program_is_sound() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let mut checked = 0;
        for folder in [configs.join("paper"), configs] {
            for entry in std::fs::read_dir(folder).unwrap().filter_map(Result::ok) {
                if entry.path().extension().is_some_and(|e| e == "toml") {
                    Config::load(&entry.path(), &[]).unwrap();
                    checked += 1;
                }
            }
        }
        assert!(checked >= 10, "{checked}");
    }

    #[test]
    fn a_run_that_goes_on_keeps_what_it_is() {
        let config = |set: &[&str]| {
            let overrides: Vec<_> = set.iter().map(|s| parse_override(s).unwrap()).collect();
            Config::parse(MINIMAL, &overrides).unwrap()
        };
        let difference =
            |a: &[&str], b: &[&str]| config(a).first_fixed_difference(&config(b)).unwrap().unwrap_or_default();
        assert_eq!(difference(&["train.epochs=9", "train.keep=2", "train.max_steps=3"], &["train.device=cpu"]), "");
        assert_eq!(difference(&["optimizer.lr=0.5"], &[]), "optimizer.lr");
        assert_eq!(difference(&[], &["train.pad_to=128"]), "train.pad_to");
        assert_eq!(difference(&["train.precision=bf16"], &[]), "train.precision");
        let cosine = "optimizer.schedule=cosine";
        assert_eq!(difference(&[cosine, "train.epochs=9"], &[cosine]), "train.epochs");
    }

    #[test]
    fn weight_decay_follows_the_optimizer_unless_it_is_set() {
        let decay = |set: &[&str]| {
            let overrides: Vec<_> = set.iter().map(|s| parse_override(s).unwrap()).collect();
            Config::parse(MINIMAL, &overrides).unwrap().optimizer.weight_decay
        };
        assert_eq!(decay(&[]), Some(0.01));
        assert_eq!(decay(&["optimizer.name=adam"]), Some(0.0));
        assert_eq!(decay(&["optimizer.weight_decay=0"]), Some(0.0));
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
            (vec!["model.hidden_size=4611686018427387904"], "must be at most 65536"),
            (vec!["train.batch_size=0"], "train.batch_size must be at least 1"),
            (vec!["optimizer.lr=-1.0"], "optimizer.lr must be a positive number"),
            (vec!["model.dropout=1.5"], "model.dropout: 1.5 is not a probability"),
            (vec!["model.arch=transformer", "model.num_heads=7"], "model.num_heads: hidden_size 1024"),
            (vec!["train.accumulate=5"], "train.accumulate is 5, which does not divide train.batch_size = 32"),
            (vec!["optimizer.name=adam", "optimizer.weight_decay=0.1"], "adam has none"),
            (vec!["optimizer.name=sgd"], "unknown variant `sgd`, expected `adam` or `adamw`"),
            (vec!["train.precision=fp8"], "unknown variant `fp8`, expected one of `fp32`, `tf32`, `bf16`, `fp16`"),
            (vec!["optimizer.beta2=1.0"], "optimizer.beta2 must be at least 0 and less than 1"),
            (
                vec!["optimizer.schedule=cosine", "optimizer.warmup_steps=10", "train.max_steps=10"],
                "before the cosine begins",
            ),
            (
                vec!["optimizer.schedule=linear", "optimizer.warmup_steps=10", "train.max_steps=10"],
                "before the line begins",
            ),
            (vec!["train.stop_at={ value = 1.5 }"], "train.stop_at.value must be above 0 and at most 1, not 1.5"),
            (vec!["train.stop_at={ split = 'vall' }"], "train.stop_at.split `vall` is not evaluated while training"),
            (vec!["train.stop_at={ metric = 'loss' }"], "train.stop_at.metric `loss` is no accuracy"),
            (vec!["train.stop_at={ evaluations = 0 }"], "train.stop_at.evaluations must be at least 1"),
            (vec!["train.stop_at={ values = 1.0 }"], "unknown key train.values"),
            (vec!["train.seed=-1"], "train.seed -1: seeds go up to 9223372036854775807"),
            (vec!["train.seed=1.5"], "train.seed 1.5: seeds go up to"),
            (vec!["train.seed=seven"], "train.seed \"seven\": seeds go up to"),
            (vec!["train.seed=true"], "train.seed true: seeds go up to"),
            (vec!["train.seed=[1, 2]"], "train.seed [1, 2]: seeds go up to"),
            (vec!["task.data_seed=-1"], "task.data_seed -1: seeds go up to"),
            (vec!["train.epochs='many'"], "in [train]: invalid type: string \"many\""),
        ] {
            let message = error(MINIMAL, &set);
            assert!(message.contains(expected), "{message}");
        }
        let large = |line: &str| error(&format!("{MINIMAL}{line}"), &[]);
        for seed in ["9223372036854775808", "18446744073709551615", "340282366920938463463374607431768211456"] {
            for (line, key) in [("[train]\nseed", "train.seed"), ("[task]\ndata_seed", "task.data_seed")] {
                let text = format!("[model]\narch = 'rnn'\n{line} = {seed}\n");
                assert!(
                    error(&text, &[]).contains(&format!("{key} {seed}: seeds go up to 9223372036854775807")),
                    "{key}"
                );
                let set = parse_override(&format!("{key}={seed}")).unwrap_err().to_string();
                assert!(set.contains(&format!("--set {key} {seed}: seeds go up to 9223372036854775807")), "{set}");
            }
        }
        let message = large("[train]\nmax_steps = 0xffff_ffff_ffff_ffff\n");
        assert!(message.contains("train.max_steps") && message.contains("go from"), "{message}");
        assert!(error("[task]\nname = 'counting_samesymbol'", &[]).contains("model.arch is missing"));
        assert!(error("[model]\narch = 'rnn'", &[]).contains("missing field `name`"));
        assert!(parse_override("lr").unwrap_err().to_string().contains("table.key=value"));
    }
}
