//! `pipeline models`: the architectures and positions, their settings, and how large their models and states are.

use super::Context;
use crate::cli::ModelsArgs;
use crate::cli::table::{Table, column};
use crate::config::Config;
use ::data::Task;
use ::models::transformer::PositionalEmbedding;
use ::models::{Cpu, ModelConfig, Weights};
use anyhow::{Context as _, Result};
use exporters::state_size;
use serde_json::{Map, Value, json};

pub fn run(context: &Context, args: ModelsArgs) -> Result<()> {
    let (sizes, task) = match &args.config {
        Some(path) => {
            let config = Config::load(path, &[])?;
            let task = match &args.task {
                Some(name) => Task::by_name(name)?,
                None => config.task.task()?,
            };
            (vec![Sizes::of(&config.model, &task)?], task)
        }
        None => {
            let task = Task::by_name(args.task.as_deref().unwrap_or(DEFAULT_TASK))?;
            let of = |arch: &&str| Sizes::of(&default_model(arch)?, &task);
            (ModelConfig::ARCHITECTURES.iter().map(of).collect::<Result<_>>()?, task)
        }
    };
    let positions = if args.config.is_none() { PositionalEmbedding::ALL } else { &[] };
    let as_json = || {
        let models: Vec<Value> = sizes.iter().map(Sizes::json).collect();
        let positions: Vec<Value> =
            positions.iter().map(|scheme| json!({ "name": scheme.name(), "title": scheme.title() })).collect();
        json!({ "task": task.name, "models": models, "positional_embeddings": positions })
    };
    context.print(as_json, || {
        let mut text = table(&sizes).to_string();
        if !positions.is_empty() {
            let mut schemes = Table::new([column("positional_embedding"), column("title")]);
            positions.iter().for_each(|scheme| schemes.row([scheme.name().to_owned(), scheme.title().to_owned()]));
            text = format!("{text}\n\n{schemes}");
        }
        text
    })
}

/// The task whose tokens are counted unless another is named.
const DEFAULT_TASK: &str = "counting_samesymbol_mod10bos";

/// The model of this architecture with all settings at their defaults.
fn default_model(arch: &str) -> Result<ModelConfig> {
    serde_json::from_value(json!({ "arch": arch })).with_context(|| format!("cannot build the default {arch}"))
}

/// A model and how large it is.
struct Sizes {
    config: ModelConfig,
    parameters: usize,
    /// Numbers of its recurrent states for one sequence.
    state: usize,
}

impl Sizes {
    fn of(config: &ModelConfig, task: &Task) -> Result<Self> {
        config.validate()?;
        let vocab = task.vocabulary.len();
        let weights = Weights::of(&config.init::<Cpu>(vocab, 0, &Default::default()))?;
        let parameters = weights.iter().map(|(_, weight)| weight.values.len()).sum();
        Ok(Self { config: config.clone(), parameters, state: state_size(config, vocab, &weights)? })
    }

    fn title(&self) -> &'static str {
        ModelConfig::kind(self.config.arch()).map_or("", |kind| kind.title)
    }

    /// The keys of `[model]` but `arch`.
    fn settings(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut settings)) = serde_json::to_value(&self.config) else { return Map::new() };
        settings.remove("arch");
        settings
    }

    fn json(&self) -> Value {
        json!({
            "arch": self.config.arch(),
            "title": self.title(),
            "parameters": self.parameters,
            "state_size": self.state,
            "state_per_token": self.config.state_per_token(),
            "settings": self.settings(),
        })
    }
}

fn table(sizes: &[Sizes]) -> Table {
    let mut table = Table::new([
        column("arch"),
        column("model").optional(),
        column("parameters").right(),
        column("state").right(),
        column("state per token").right(),
        column("settings").wrap(24),
    ]);
    for model in sizes {
        let settings: Vec<String> = model.settings().iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row([
            model.config.arch().to_owned(),
            model.title().to_owned(),
            model.parameters.to_string(),
            model.state.to_string(),
            model.config.state_per_token().to_string(),
            settings.join(" "),
        ]);
    }
    table
}
