//! `pipeline bench`: the trainer's own steps, timed.

use super::Context;
use crate::cli::table::{Table, column};
use crate::cli::{BenchCommand, BenchTrainArgs};
use crate::config::{Config, parse_override};
use crate::train::batches::pieces;
use crate::train::device::Device;
use crate::train::optimizer::Adam;
use crate::train::step::{Recipe, loss_scale, optimisation_step};
use anyhow::{Result, bail};
use burn::backend::Autodiff;
use burn::module::Module;
use burn::tensor::ElementConversion;
use burn::tensor::backend::AutodiffBackend;
use data::{Dataset, DatasetInfo, ExampleRef, PAD, Task, stream_rng};
use models::ops::SequenceOps;
use models::ops::cpu::memory::keep_freed_memory;
use models::{Heads, Model, ModelConfig};
use rand::seq::IndexedRandom;
use serde_json::json;
use std::time::Instant;
use toml::Value;

pub fn run(context: &Context, command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Train(args) => train(context, &args),
    }
}

/// The measured times.
struct Timing {
    parameters: usize,
    /// Seconds of every timed step, in ascending order.
    seconds: Vec<f64>,
    /// Loss of the last step.
    loss: f64,
}

impl Timing {
    /// The middle one, or the mean of the two middle ones.
    fn median(&self) -> f64 {
        let n = self.seconds.len();
        (self.seconds[(n - 1) / 2] + self.seconds[n / 2]) / 2.0
    }
}

fn train(context: &Context, args: &BenchTrainArgs) -> Result<()> {
    let config = config(args)?;
    let task = config.task.task()?;
    let device = Device::of(&config.train)?;
    let timing = match device {
        Device::Cpu => {
            keep_freed_memory();
            time::<Autodiff<models::Cpu>>(context, args, &config, &task, &Default::default())
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let time = |cuda: &_| time::<Autodiff<models::Cuda>>(context, args, &config, &task, cuda);
            crate::train::device::on_cuda(index, time)
        }
    }?;
    let BenchTrainArgs { batch, seq, .. } = args;
    let (median, fastest) = (timing.median(), timing.seconds[0]);
    let tokens_per_s = f64::from(*batch) * f64::from(*seq) / median;
    let (arch, positions) = (config.model.arch(), config.model.positional_embedding());
    let as_json = || {
        json!({
            "mode": "train",
            "arch": arch,
            "positional_embedding": positions,
            "hidden": config.model.hidden_size(),
            "layers": config.model.num_layers(),
            "vocab": task.vocabulary.len(),
            "batch": batch,
            "seq": seq,
            "device": device.to_string(),
            "precision": config.train.precision.name(),
            "parameters": timing.parameters,
            "steps": timing.seconds.len(),
            "loss": timing.loss,
            "step_ms_min": 1e3 * fastest,
            "step_ms_median": 1e3 * median,
            "tokens_per_s": tokens_per_s,
        })
    };
    let as_text = || {
        let mut table = Table::new([
            column("model").wrap(16),
            column("parameters").right(),
            column("batch"),
            column("device").wrap(8),
            column("ms per step").right(),
            column("fastest").right(),
            column("tokens/s").right(),
        ]);
        let has_positions = ModelConfig::kind(arch).is_some_and(|kind| (kind.has_positions)());
        let positions = if has_positions { format!(" ({positions})") } else { String::new() };
        table.row([
            format!("{arch}{positions}, {} × {}", config.model.num_layers(), config.model.hidden_size()),
            timing.parameters.to_string(),
            format!("{batch} × {seq}"),
            device.to_string(),
            format!("{:.2}", 1e3 * median),
            format!("{:.2}", 1e3 * fastest),
            format!("{tokens_per_s:.0}"),
        ]);
        table.to_string()
    };
    context.print(as_json, as_text)
}

/// The config that the options stand for: no dropout, positions and kernels as long as the examples.
fn config(args: &BenchTrainArgs) -> Result<Config> {
    let mut overrides: Vec<(String, Value)> = Vec::new();
    let mut push = |key: &str, value: Value| overrides.push((key.to_owned(), value));
    let hidden = i64::from(args.hidden);
    push("task.name", args.task.clone().into());
    push("model.arch", args.arch.clone().into());
    push("model.hidden_size", hidden.into());
    push("model.num_layers", 1.into());
    push("train.batch_size", i64::from(args.batch).into());
    push("train.device", args.device.clone().into());
    // `Config::parse` reports an unknown architecture.
    if let Some(kind) = ModelConfig::kind(&args.arch) {
        for (key, value) in (kind.benchmark)(args.seq as usize) {
            push(&format!("model.{key}"), Value::try_from(value)?);
        }
        if let Some(layers) = args.layers {
            push("model.num_layers", i64::from(layers).into());
        }
        let arch = kind.name;
        match ((kind.heads)(), args.heads.map(i64::from)) {
            (_, None) => {}
            (Some(Heads::Number(key)), Some(heads)) => push(&format!("model.{key}"), heads.into()),
            (Some(Heads::Size(key)), Some(heads)) if hidden % heads == 0 => {
                push(&format!("model.{key}"), (hidden / heads).into());
            }
            (Some(Heads::Size(_)), Some(heads)) => {
                bail!("--heads {heads} does not divide --hidden {hidden}\n  hint: choose a divisor of {hidden}")
            }
            (None, Some(_)) => bail!("--heads: the architecture {arch} has none\n  hint: leave it out"),
        }
        match &args.positional_embedding {
            Some(name) if (kind.has_positions)() => push("model.positional_embedding", name.clone().into()),
            Some(_) => bail!("--positional-embedding: the architecture {arch} has none\n  hint: leave it out"),
            None => {}
        }
    }
    for argument in &args.set {
        overrides.push(parse_override(argument)?);
    }
    Config::parse("", &overrides)
}

/// The examples of a step: uniform tokens and labels from all of the task's vocabulary but `<pad>`, which attention would
/// have to mask.
fn random_examples(args: &BenchTrainArgs, task: &Task, step: u64) -> Dataset {
    let pad = task.vocabulary.id(PAD);
    let ids: Vec<u16> = (0..task.vocabulary.len() as u16).filter(|id| Some(*id) != pad).collect();
    let mut rng = stream_rng(0, "bench", step);
    let mut draw = || -> Vec<u16> { (0..args.seq).filter_map(|_| ids.choose(&mut rng).copied()).collect() };
    let mut examples = Dataset::new(DatasetInfo::of(task, 0));
    for _ in 0..args.batch {
        let (input_ids, labels) = (draw(), draw().into_iter().map(|id| id as i16).collect::<Vec<_>>());
        examples.push(ExampleRef { input_ids: &input_ids, labels: &labels, length: args.seq });
    }
    examples
}

/// Times the steps from collation until the loss is known.
fn time<B>(context: &Context, args: &BenchTrainArgs, config: &Config, task: &Task, device: &B::Device) -> Result<Timing>
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    let steps = u64::from(args.warmup) + u64::from(args.steps);
    let rows: Vec<u32> = (0..args.batch).collect();
    let mut model: Model<B> = config.model.init(task.vocabulary.len(), config.train.seed, device);
    let parameters = model.num_params();
    let mut optimizer = Adam::new(&config.optimizer, &config.model, &model, steps);
    let mut loss_scale = loss_scale(config);
    let mut timing = Timing { parameters, seconds: vec![], loss: f64::NAN };
    let bar = context.progress.bar(config.model.arch(), steps, "steps");
    for step in 0..steps {
        let examples = random_examples(args, task, step);
        let start = Instant::now();
        let pieces = pieces(config, task, &examples, &rows, step)?;
        let recipe = Recipe { config, vocabulary: &task.vocabulary };
        let (updated, loss, grad_norm) =
            optimisation_step(recipe, model, &mut optimizer, &mut loss_scale, &pieces, step, device);
        timing.loss = loss.into_scalar().elem::<f64>();
        grad_norm.into_data();
        B::sync(device).map_err(|e| anyhow::anyhow!("the device failed in step {step}: {e}"))?;
        let seconds = start.elapsed().as_secs_f64();
        model = updated;
        if step >= u64::from(args.warmup) {
            timing.seconds.push(seconds);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    timing.seconds.sort_by(f64::total_cmp);
    Ok(timing)
}
