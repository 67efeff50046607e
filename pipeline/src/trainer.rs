//! The training loop.

use crate::checkpoint::{Checkpoint, State};
use crate::config::Config;
use crate::evaluation::{Evaluation, evaluate, groups};
use crate::metrics_log::{self, MetricsRow};
use crate::optimizer::Adam;
use crate::progress::Progress;
use crate::run_dir::{RunDir, RunProgress, Status};
use crate::stop;
use crate::tensorboard::EventFile;
use anyhow::{Context, Result, bail};
use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use data::{Batch, Collation, Dataset, EpochOrder, Folded, Task};
use models::layers::DropoutSource;
use models::ops::SequenceOps;
use models::{Model, ModelConfig, ModelInput, Weights, weighted_cross_entropy, weighted_l2_wrap};
use std::time::Instant;

/// The examples of a run.
pub struct Splits {
    /// What is trained on.
    pub train: Dataset,
    /// What is evaluated on, by name: `val` (the same distribution) first, then `ood_test` (longer sequences) and others.
    pub evaluated: Vec<(String, Dataset)>,
}

/// One run's training, up to the device that it is on.
pub struct Job<'a> {
    /// Where everything is written.
    pub run: &'a RunDir,
    /// What to do.
    pub config: &'a Config,
    /// The task that the config names.
    pub task: &'a Task,
    /// Its examples.
    pub splits: &'a Splits,
    /// Weights to start from, instead of random ones.
    pub initial: Option<Weights>,
    /// Go on from here, instead of from the start.
    pub resume: Option<Checkpoint>,
    /// Bars and notes.
    pub progress: &'a Progress,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Whether all steps are done; otherwise a signal asked to stop, and a checkpoint was saved.
    pub finished: bool,
    /// Optimisation steps.
    pub steps: u64,
    /// Optimisation steps that the config asks for.
    pub total_steps: u64,
    /// Wall-clock seconds of all parts of the run, evaluation included.
    pub seconds: f64,
    /// Of these, seconds of evaluation since the last start.
    pub evaluation_seconds: f64,
    /// Loss of the last step.
    pub loss: f64,
    /// How many rows the examples of a step became, since the last start.
    pub folding: Folding,
    /// The last evaluation of every split, by name.
    pub evaluations: Vec<(String, Evaluation)>,
}

impl Outcome {
    /// The last evaluation of a split.
    pub fn evaluation(&self, split: &str) -> Option<&Evaluation> {
        self.evaluations.iter().find(|(name, _)| name == split).map(|(_, evaluation)| evaluation)
    }
}

/// Trains: checkpoints, curve and progress go to the run. The same config gives the same weights, on a CPU to the last bit,
/// however often training is interrupted and resumed.
pub fn train<B>(job: &Job<'_>, device: &B::Device) -> Result<Outcome>
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    let Job { run, config, task, splits, progress, .. } = job;
    let (settings, vocabulary) = (&config.train, &task.vocabulary);
    let per_epoch = settings.steps_per_epoch(splits.train.len());
    let total = settings.total_steps(splits.train.len());
    let max_seen = splits.evaluated.first().map_or(0, |(_, val)| val.max_seen_len());
    let (mut model, mut optimizer) = start::<B>(job, total, device)?;
    let first = job.resume.as_ref().map_or(0, |c| c.state().step);
    let mut curve = Curve::begin(job)?;
    let mut evaluations = Vec::new();
    let mut evaluation_seconds = 0.0;
    let mut evaluate_now = |model: &Model<B>, step: u64, epoch: u64, curve: &mut Curve| -> Result<_> {
        let (start, model) = (Instant::now(), model.valid());
        let collation = Collation { pad_to: None, ..collation(config, step) };
        let mut found = Vec::new();
        for (name, examples) in &splits.evaluated {
            let batch_size = config.eval.batch_size;
            let batch = |indices: &[u32]| batch_of(config, task, examples, indices, &collation);
            let fold = if settings.fold { Some(config.model.augmentation()) } else { None };
            let groups = groups(examples, vocabulary, fold);
            let evaluation = evaluate(&model, examples, vocabulary, &groups, batch_size, batch, max_seen, device)
                .with_context(|| format!("while evaluating on {name}"))?;
            curve.push(evaluation_row(step, epoch, name, &evaluation))?;
            found.push((name.clone(), evaluation));
        }
        curve.save()?;
        progress.note(format!("step {step} · epoch {epoch} · {}", accuracies(&found)));
        for (name, evaluation) in &found {
            if let Some(sample) = &evaluation.sample {
                progress.detail(format!("  {name}: {}", sample.describe(vocabulary)));
            }
        }
        evaluation_seconds += start.elapsed().as_secs_f64();
        Ok(found)
    };
    if first == 0 {
        evaluations = evaluate_now(&model, 0, 0, &mut curve)?;
    }

    let report = |status: Status, step: u64| run.set_progress(&RunProgress { status, step, total_steps: total });
    report(Status::Running, first)?;
    let bar = progress.bar(config.model.arch(), total, "steps");
    bar.set_position(first);
    bar.reset_eta();
    let mut order = EpochOrder::new(settings.seed, first / per_epoch + 1, splits.train.len());
    let mut recent = Recent::<B::InnerBackend>::default();
    let (mut step, mut loss, mut stopped) = (first, f64::NAN, false);
    let (mut tokens, mut since) = (0, Instant::now());
    let mut folding = Folding::default();
    while step < total && !stopped {
        let (epoch, index) = (step / per_epoch + 1, step % per_epoch);
        if index == 0 {
            order = EpochOrder::new(settings.seed, epoch, splits.train.len());
        }
        let rows = order.batch(index as usize, settings.batch_size);
        let pieces = pieces(config, task, &splits.train, rows, step)?;
        folding.add(&pieces);
        tokens += rows.iter().map(|&i| splits.train.get(i as usize).input_ids.len()).sum::<usize>();

        let (updated, step_loss, grad_norm) = optimisation_step(config, model, &mut optimizer, &pieces, step, device);
        model = updated;
        recent.push(step_loss, grad_norm);
        step += 1;
        bar.set_position(step);

        stopped = stop::requested();
        let ends_epoch = step == total || index + 1 == per_epoch;
        let due = |every: Option<u64>| ends_epoch || every.is_some_and(|every| step.is_multiple_of(every));
        let (log, evaluation) = (step.is_multiple_of(settings.log_every), due(settings.eval_every));
        let checkpoint = due(settings.checkpoint_every) || stopped;
        if !(log || evaluation || checkpoint) {
            continue;
        }
        let (last_loss, grad_norm) = recent.check(step).or_else(|bad| diverged(job, per_epoch, &bad))?;
        loss = last_loss;
        if log {
            let tokens_per_s = tokens as f64 / since.elapsed().as_secs_f64();
            (tokens, since) = (0, Instant::now());
            curve.push(MetricsRow {
                step,
                epoch,
                split: "train".into(),
                loss: Some(loss),
                lr: Some(optimizer.lr(step - 1)),
                grad_norm: Some(grad_norm),
                tokens_per_s: Some(tokens_per_s),
                ..Default::default()
            })?;
            let accuracies = accuracies(&evaluations);
            bar.set_message(format!("loss {loss:.4} · {tokens_per_s:.0} tokens/s{folding} · {accuracies}"));
        }
        let pause = Instant::now();
        if evaluation {
            evaluations = evaluate_now(&model, step, epoch, &mut curve)?;
        }
        if checkpoint {
            // The curve first: a checkpoint promises that all rows up to its step are there.
            curve.save()?;
            let val = evaluations.first().filter(|_| evaluation).map(|(_, val)| val);
            let state = State {
                epoch,
                step,
                seconds: curve.seconds(),
                val_accuracy: val.and_then(|v| v.score.accuracy()),
                val_loss: val.and_then(|v| v.loss),
                ..Default::default()
            };
            let weights = Weights::of(&model)?;
            if weights.iter().any(|(_, w)| w.values.iter().any(|v| !v.is_finite())) {
                return diverged(job, per_epoch, &NotFinite { step, loss, grad_norm });
            }
            Checkpoint::write(&run.checkpoint(epoch, step), state, &weights, Some(&optimizer.state()?))?;
            if let Some(keep) = settings.keep {
                run.prune_checkpoints(keep)?;
            }
            report(Status::Running, step)?;
        }
        since += pause.elapsed();
    }
    bar.finish_and_clear();
    let finished = step == total;
    report(if finished { Status::Finished } else { Status::Interrupted }, step)?;
    let seconds = curve.seconds();
    Ok(Outcome { finished, steps: step, total_steps: total, seconds, evaluation_seconds, loss, folding, evaluations })
}

/// Model and optimiser as they are before the first step: fresh, from given weights, or from a checkpoint.
fn start<B>(job: &Job<'_>, total_steps: u64, device: &B::Device) -> Result<(Model<B>, Adam<B>)>
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    let config = job.config;
    let mut model: Model<B> = config.model.init(job.task.vocabulary.len(), config.train.seed, device);
    if let Some(checkpoint) = &job.resume {
        let doing = || format!("in the checkpoint {}", checkpoint.path().display());
        checkpoint.weights()?.load_into(&mut model).with_context(doing)?;
        let mut optimizer = Adam::new(&config.optimizer, config.model.arch(), &model, total_steps);
        optimizer.load_state(&checkpoint.optimizer()?, &model, device).with_context(doing)?;
        job.progress.note(format!("going on from step {} of {total_steps}", checkpoint.state().step));
        return Ok((model, optimizer));
    }
    if let (Some(weights), Some(path)) = (&job.initial, &config.train.init_from) {
        weights.load_into(&mut model).with_context(|| format!("in train.init_from = {}", path.display()))?;
        job.progress.note(format!("starting from the weights in {}", path.display()));
    }
    job.progress.note(format!(
        "{}: {} layer(s) of width {}, {} parameters, {total_steps} steps of {} examples",
        config.model.arch(),
        config.model.num_layers(),
        config.model.hidden_size(),
        model.num_params(),
        config.train.batch_size,
    ));
    let optimizer = Adam::new(&config.optimizer, config.model.arch(), &model, total_steps);
    Ok((model, optimizer))
}

/// How the examples of a step become batches. Random positions are drawn by seed, step and example.
fn collation(config: &Config, step: u64) -> Collation {
    let positions = config.model.positions(config.train.seed, step);
    Collation { positions, pad_to: config.train.pad_to }
}

/// The examples with these indices, which are those of one step, in `train.accumulate` batches; folded where that changes
/// neither loss nor gradient.
///
/// # Errors
/// The model cannot take them, see [`models::ModelConfig::check`].
pub fn pieces(config: &Config, task: &Task, examples: &Dataset, rows: &[u32], step: u64) -> Result<Vec<Folded>> {
    let size = config.train.batch_size / config.train.accumulate;
    let collation = collation(config, step);
    let folds = config.train.fold && !config.model.has_dropout();
    let piece = |rows: &[u32]| {
        let batch = batch_of(config, task, examples, rows, &collation)?;
        Ok(if folds { Folded::fold(batch, pulls_logits(&config.model)) } else { Folded::unfolded(batch) })
    };
    rows.chunks(size).map(piece).collect()
}

/// The examples with these indices as a batch that the model can take.
fn batch_of(config: &Config, task: &Task, examples: &Dataset, indices: &[u32], collation: &Collation) -> Result<Batch> {
    let rows = indices.iter().map(|&i| (u64::from(i), examples.get(i as usize)));
    let batch = Batch::collate_rows(rows, &task.vocabulary, collation)?;
    config.model.check(&batch)?;
    Ok(batch)
}

/// Whether the recipe has the term of [`weighted_l2_wrap`], which is over all positions, those of the padding too.
fn pulls_logits(model: &ModelConfig) -> bool {
    matches!(model, ModelConfig::Rwkv5(_) | ModelConfig::Rwkv6(_))
}

/// One step: the model after it, and the loss and the gradient's norm before it, each `[1]`, still on the device. See
/// [`gradients`] and [`Adam::step`].
#[allow(clippy::type_complexity)] // the inner backend's tensors have no shorter name
pub fn optimisation_step<B>(
    config: &Config,
    model: Model<B>,
    optimizer: &mut Adam<B>,
    pieces: &[Folded],
    step: u64,
    device: &B::Device,
) -> (Model<B>, Tensor<B::InnerBackend, 1>, Tensor<B::InnerBackend, 1>)
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    let (gradients, loss) = gradients(config, &model, pieces, step, device);
    let (model, grad_norm) = optimizer.step(step, model, gradients);
    (model, loss, grad_norm)
}

/// The gradient of the mean loss over all labelled tokens of the pieces, and that loss `[1]`, still on the device. RWKV's
/// gradient has the term of [`weighted_l2_wrap`] as well, as its recipe says.
fn gradients<B>(
    config: &Config,
    model: &Model<B>,
    pieces: &[Folded],
    step: u64,
    device: &B::Device,
) -> (GradientsParams, Tensor<B::InnerBackend, 1>)
where
    B: AutodiffBackend + SequenceOps,
{
    let labelled: u64 = pieces.iter().map(Folded::labelled).sum();
    let cells: u64 = pieces.iter().map(|piece| piece.total_examples() * piece.batch.seq as u64).sum();
    let mut sum = GradientsAccumulator::new();
    let mut loss = Tensor::zeros([1], device);
    for (number, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.labelled() > 0) {
        let batch = &piece.batch;
        let dropout = DropoutSource { seed: config.train.seed, step: step * pieces.len() as u64 + number as u64 };
        let labels = TensorData::new(batch.labels.clone(), [batch.batch, batch.seq]);
        let labels = Tensor::<B, 2, Int>::from_data(labels, device);
        let share = |counts: &[u32], of: u64| counts.iter().map(|&n| n as f32 / of as f32).collect::<Vec<f32>>();
        let weights = TensorData::new(share(&piece.counts, labelled), [batch.batch, batch.seq]);
        let logits = model.forward(ModelInput::new(batch, device).training(dropout));
        let pull = pulls_logits(&config.model).then(|| {
            let weights = Tensor::from_floats(share(&piece.examples, cells).as_slice(), device);
            weighted_l2_wrap(logits.clone(), weights)
        });
        let mut piece_loss = weighted_cross_entropy(logits, labels, Tensor::from_data(weights, device));
        if let Some(pull) = pull {
            piece_loss = piece_loss + pull;
        }
        sum.accumulate(model, GradientsParams::from_grads(piece_loss.backward(), model));
        loss = loss + piece_loss.inner();
    }
    (sum.grads(), loss)
}

/// How many rows the examples of the steps became.
#[derive(Debug, Clone, Copy, Default)]
pub struct Folding {
    steps: u64,
    examples: u64,
    rows: u64,
}

impl Folding {
    fn add(&mut self, pieces: &[Folded]) {
        self.steps += 1;
        self.examples += pieces.iter().map(Folded::total_examples).sum::<u64>();
        self.rows += pieces.iter().map(|piece| piece.batch.batch as u64).sum::<u64>();
    }

    /// Mean number of rows in a step.
    pub fn rows_per_step(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.rows as f64 / self.steps as f64)
    }
}

/// ` · folded 32 → 1.3`, the means of examples and rows in a step; nothing where every example had a row of its own.
impl std::fmt::Display for Folding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mean = |n: u64| (10.0 * n as f64 / self.steps as f64).round() / 10.0;
        if self.rows < self.examples {
            write!(f, " · folded {} → {}", mean(self.examples), mean(self.rows))?;
        }
        Ok(())
    }
}

/// Losses and gradient norms that have not been looked at. They stay on the device until something is to be written, so that
/// steps need not wait for each other.
struct Recent<B: Backend> {
    losses: Vec<Tensor<B, 1>>,
    grad_norms: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Default for Recent<B> {
    fn default() -> Self {
        Self { losses: vec![], grad_norms: vec![] }
    }
}

/// A step after which training makes no sense.
struct NotFinite {
    step: u64,
    loss: f64,
    grad_norm: f64,
}

impl<B: Backend> Recent<B> {
    fn push(&mut self, loss: Tensor<B, 1>, grad_norm: Tensor<B, 1>) {
        self.losses.push(loss);
        self.grad_norms.push(grad_norm);
    }

    /// Loss and gradient norm of the last step, which is number `step`; or the first step for which they are not finite.
    fn check(&mut self, step: u64) -> std::result::Result<(f64, f64), NotFinite> {
        let first = step + 1 - self.losses.len() as u64;
        let read = |tensors: &mut Vec<Tensor<B, 1>>| -> Vec<f64> {
            Tensor::cat(std::mem::take(tensors), 0).into_data().iter::<f64>().collect()
        };
        let values = read(&mut self.losses).into_iter().zip(read(&mut self.grad_norms));
        let mut last = (f64::NAN, f64::NAN);
        for (step, (loss, grad_norm)) in (first..).zip(values) {
            if !(loss.is_finite() && grad_norm.is_finite()) {
                return Err(NotFinite { step, loss, grad_norm });
            }
            last = (loss, grad_norm);
        }
        Ok(last)
    }
}

/// Says where training broke down and what there is to go on with.
fn diverged<T>(job: &Job<'_>, per_epoch: u64, bad: &NotFinite) -> Result<T> {
    let NotFinite { step, loss, grad_norm } = bad;
    let (epoch, index) = ((step - 1) / per_epoch + 1, (step - 1) % per_epoch);
    let order = EpochOrder::new(job.config.train.seed, epoch, job.splits.train.len());
    let examples = order.batch(index as usize, job.config.train.batch_size);
    let examples = examples.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let total_steps = job.config.train.total_steps(job.splits.train.len());
    job.run.set_progress(&RunProgress { status: Status::Diverged, step: *step, total_steps })?;
    let good = match job.run.last_checkpoint(|_| ()) {
        Ok(checkpoint) => format!("the last good checkpoint is {}", checkpoint.path().display()),
        Err(_) => "there is no checkpoint before it".to_owned(),
    };
    bail!(
        "training diverged at step {step} (epoch {epoch}) of run {}: loss {loss}, gradient norm {grad_norm}\n  \
         its batch was the training examples {examples}\n  {good}\n  \
         hint: lower optimizer.lr or raise optimizer.warmup_steps",
        job.run.handle()
    )
}

/// The run's training curve, in memory and on disk.
struct Curve<'a> {
    run: &'a RunDir,
    rows: Vec<MetricsRow>,
    events: Option<EventFile>,
    /// Seconds of the run before this process.
    earlier: f64,
    start: Instant,
}

impl<'a> Curve<'a> {
    /// An empty curve, or the rows up to the checkpoint that training goes on from: later ones will be made again.
    fn begin(job: &Job<'a>) -> Result<Self> {
        let mut rows = Vec::new();
        let mut earlier = 0.0;
        if let Some(checkpoint) = &job.resume {
            earlier = checkpoint.state().seconds;
            match metrics_log::read(&job.run.metrics()) {
                Ok(read) => rows = read,
                Err(error) => job.progress.note(format!("the training curve begins anew: {error:#}")),
            }
            rows.retain(|row| row.step <= checkpoint.state().step);
        }
        let tensorboard = job.config.train.tensorboard;
        let events = tensorboard.then(|| EventFile::create(&job.run.tensorboard(), &rows, earlier)).transpose()?;
        Ok(Self { run: job.run, rows, events, earlier, start: Instant::now() })
    }

    fn seconds(&self) -> f64 {
        self.earlier + self.start.elapsed().as_secs_f64()
    }

    fn push(&mut self, row: MetricsRow) -> Result<()> {
        let row = MetricsRow { seconds: self.seconds(), ..row };
        if let Some(events) = &mut self.events {
            events.append(std::slice::from_ref(&row))?;
        }
        self.rows.push(row);
        Ok(())
    }

    fn save(&self) -> Result<()> {
        metrics_log::write(&self.rows, &self.run.metrics())
    }
}

fn evaluation_row(step: u64, epoch: u64, split: &str, evaluation: &Evaluation) -> MetricsRow {
    let score = &evaluation.score;
    MetricsRow {
        step,
        epoch,
        split: split.to_owned(),
        loss: evaluation.loss,
        accuracy: score.accuracy(),
        counting_accuracy: score.counting_accuracy(),
        last_accuracy: score.last_accuracy(),
        sequence_accuracy: score.sequence_accuracy(),
        unseen_accuracy: evaluation.unseen_accuracy,
        ..Default::default()
    }
}

fn accuracies(evaluations: &[(String, Evaluation)]) -> String {
    let one = |(name, evaluation): &(String, Evaluation)| {
        let accuracy = evaluation.score.accuracy().map_or("–".into(), |a| format!("{:.1} %", 100.0 * a));
        format!("{name} {accuracy}")
    };
    format!("accuracy: {}", evaluations.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::backend::Autodiff;
    use burn::tensor::ElementConversion;
    use data::Example;
    use serde::Deserialize;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// What scripts/pytorch_training_reference.py measured.
    #[derive(Deserialize)]
    struct Reference {
        loss: Vec<f64>,
        grad_norm: Vec<f64>,
    }

    /// The batch of a step, by the formula in that script.
    fn batch(step: usize, task: &Task) -> Batch {
        let example = |row: usize| {
            let n = (7 * step + 5 * row) % 12 + 1;
            let labels = (1..=n).map(|i| (i % 10) as i16);
            let input_ids = [vec![0], vec![12; n]].concat();
            Example { input_ids, labels: std::iter::once(-1).chain(labels).collect(), length: n as u32 }
        };
        let examples: Vec<Example> = (0..8).map(example).collect();
        let examples: Vec<_> = examples.iter().map(Example::as_ref).collect();
        Batch::collate(&examples, &task.vocabulary, &Collation::plain()).unwrap()
    }

    /// Warm-up, clipping and AdamW over twenty steps, from the same weights and batches.
    #[test]
    fn losses_are_those_of_pytorch() {
        type B = Autodiff<models::Cpu>;
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pytorch");
        let text = std::fs::read_to_string(fixtures.join("losses.json")).unwrap();
        let references: BTreeMap<String, Reference> = serde_json::from_str(&text).unwrap();
        assert_eq!(references.len(), 4);
        for (arch, reference) in references {
            let extra = match arch.as_str() {
                "transformer" => "num_heads = 2\npositional_embedding = 'rope'",
                "mamba" => "",
                _ => "dropout = 0.0",
            };
            let config = format!(
                "[task]\nname = 'counting_samesymbol_mod10bos'\n\
                 [model]\narch = '{arch}'\nhidden_size = 16\nnum_layers = 2\n{extra}\n\
                 [optimizer]\nlr = 1e-2\nwarmup_steps = 6\ngrad_clip = 0.25\n"
            );
            let config = Config::parse(&config, &[]).unwrap();
            let task = Task::by_name(&config.task.name).unwrap();
            let device = Default::default();
            let mut model: Model<B> = config.model.init(task.vocabulary.len(), 0, &device);
            let weights = Weights::read(&fixtures.join(format!("{arch}.safetensors"))).unwrap();
            weights.load_into(&mut model).unwrap();
            let mut optimizer = Adam::new(&config.optimizer, &arch, &model, 20);
            for step in 0..20 {
                let pieces = [Folded::unfolded(batch(step, &task))];
                let (gradients, loss) = gradients(&config, &model, &pieces, step as u64, &device);
                let (updated, norm) = optimizer.step(step as u64, model, gradients);
                model = updated;
                let (loss, norm) = (loss.into_scalar().elem::<f64>(), norm.into_scalar().elem::<f64>());
                let (expected, expected_norm) = (reference.loss[step], reference.grad_norm[step]);
                assert!((loss - expected).abs() < 1e-5, "{arch} step {step}: loss {loss}, PyTorch's {expected}");
                assert!((norm / expected_norm - 1.0).abs() < 1e-3, "{arch} step {step}: norm {norm}, {expected_norm}");
            }
            assert!(reference.loss[19] < 0.9 * reference.loss[0], "{arch} has learnt something");
        }
    }
}
