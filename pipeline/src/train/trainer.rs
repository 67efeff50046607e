//! The training loop: [`train`] reads from top to bottom, and [`Trainer`] has its parts.

use crate::StepReport;
use crate::run::{RunProgress, Status};
use crate::stop;
use crate::train::batches::{Folding, batch_of, collation, pieces};
use crate::train::checkpoint::{Checkpoint, State};
use crate::train::curve::{Curve, evaluation_row};
use crate::train::divergence::{NotFinite, Recent, diverged};
use crate::train::evaluation::{Evaluation, evaluate, groups};
use crate::train::gpu_faults;
use crate::train::loss_scale::LossScale;
use crate::train::metrics::MetricsRow;
use crate::train::optimizer::Adam;
use crate::train::setup::Setup;
use crate::train::source::{Source, StepExamples};
use crate::train::step::{Recipe, loss_scale, optimisation_step};
use anyhow::{Context, Result};
use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::AutodiffBackend;
use data::{Collation, Folded};
use indicatif::ProgressBar;
use models::ops::SequenceOps;
use models::{Model, Weights};
use serde_json::{Value as Json, json};
use std::time::{Duration, Instant};

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

    /// The scores of the last evaluation of every split as JSON: an object for each, by name.
    pub fn scores(&self) -> serde_json::Map<String, Json> {
        let scores = |Evaluation { score, loss, unseen_accuracy, .. }: &Evaluation| {
            json!({
                "loss": loss,
                "accuracy": score.accuracy(),
                "counting_accuracy": score.counting_accuracy(),
                "last_accuracy": score.last_accuracy(),
                "sequence_accuracy": score.sequence_accuracy(),
                "unseen_accuracy": unseen_accuracy,
            })
        };
        self.evaluations.iter().map(|(name, evaluation)| (name.clone(), scores(evaluation))).collect()
    }
}

/// Trains: checkpoints, curve and progress go to the run. The same config gives the same weights, on a CPU to the last bit,
/// however often training is interrupted and resumed.
pub fn train<B>(setup: &Setup<'_>, device: &B::Device) -> Result<Outcome>
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    let (mut model, mut trainer) = Trainer::<B>::new(setup, device)?;
    trainer.begin(&model)?;

    while trainer.goes_on() {
        // One step of the optimiser. Its loss and gradient norm stay on the device.
        let pieces = trainer.next_pieces()?;
        model = trainer.step(model, &pieces)?;

        // Most steps end here, without waiting for the device.
        let due = trainer.due();
        if !(due.log || due.evaluation || due.checkpoint) {
            continue;
        }

        // Losses since the last look: training ends with an error where one is not finite.
        trainer.read_losses()?;
        if due.log {
            trainer.log()?;
        }

        // Evaluation and checkpoint, whose time does not count as training.
        let pause = Instant::now();
        if due.evaluation {
            trainer.evaluate(&model)?;
        }
        let enough = trainer.has_reached_enough();
        if due.checkpoint || enough {
            trainer.checkpoint(&model, due.evaluation)?;
        }
        trainer.do_not_count(pause.elapsed());
    }
    trainer.finish()
}

/// The actions that follow a step.
struct Due {
    log: bool,
    evaluation: bool,
    checkpoint: bool,
}

/// All that training keeps between steps, but for the model: a step takes that and gives back another.
struct Trainer<'a, B: AutodiffBackend> {
    setup: &'a Setup<'a>,
    device: &'a B::Device,
    /// Optimisation steps in an epoch, and in all; where training ended early (`train.stop_at`), those that are done.
    per_epoch: u64,
    total: u64,

    /// Optimisation steps that are done.
    step: u64,
    optimizer: Adam<B>,
    loss_scale: Option<LossScale>,
    source: Source<'a>,

    recent: Recent<B::InnerBackend>,
    /// Loss and gradient norm of the last step that was looked at.
    loss: f64,
    grad_norm: f64,
    /// The last evaluation of every split, by name.
    evaluations: Vec<(String, Evaluation)>,
    evaluation_seconds: f64,

    curve: Curve<'a>,
    bar: ProgressBar,
    folding: Folding,
    /// Tokens since the last log entry, and its time, put off by the pauses since then.
    tokens: usize,
    since: Instant,
    /// Whether a signal, or the program that watches, asked to stop.
    stopped: bool,
}

impl<'a, B> Trainer<'a, B>
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    /// Model and trainer as they are before the first step of this process.
    fn new(setup: &'a Setup<'a>, device: &'a B::Device) -> Result<(Model<B>, Self)> {
        let (settings, examples) = (&setup.config.train, setup.splits.train.per_epoch());
        let (per_epoch, total) = (settings.steps_per_epoch(examples), settings.total_steps(examples));
        let (model, optimizer) = start::<B>(setup, total, device)?;
        let state = setup.resume.as_ref().map(Checkpoint::state);
        let step = state.map_or(0, |state| state.step);
        let trainer = Self {
            setup,
            device,
            per_epoch,
            total,
            step,
            optimizer,
            loss_scale: state.and_then(|state| state.loss_scale).or_else(|| loss_scale(setup.config)),
            source: Source::new(setup),
            recent: Recent::default(),
            loss: f64::NAN,
            grad_norm: f64::NAN,
            evaluations: vec![],
            evaluation_seconds: 0.0,
            curve: Curve::begin(setup)?,
            bar: ProgressBar::hidden(),
            folding: Folding::default(),
            tokens: 0,
            since: Instant::now(),
            stopped: false,
        };
        Ok((model, trainer))
    }

    /// Scores the model as it is at the start, where that is not in the curve yet, and shows a bar.
    fn begin(&mut self, model: &Model<B>) -> Result<()> {
        if self.has_reached_enough() || self.step == self.total {
            // Its process was ended before it said that it was done: the scores are in the curve, and not yet told.
            self.setup.progress.note(format!("all {} steps were done already", self.total));
            self.score(model, false)?;
            self.loss = self.curve.last_loss().unwrap_or(self.loss);
        } else {
            self.report(Status::Running)?;
            if self.step == 0 {
                self.evaluate(model)?;
            }
        }
        self.bar = self.setup.progress.bar(self.setup.config.model.arch(), self.total, "steps");
        self.bar.set_position(self.step);
        self.bar.reset_eta();
        self.since = Instant::now();
        Ok(())
    }

    /// Whether the evaluations so far reach `train.stop_at`; if so, no step is left. Only where the last one was of this
    /// step does that end training here: an earlier one would have ended it there.
    fn has_reached_enough(&mut self) -> bool {
        let stop_at = self.setup.config.train.stop_at.as_ref();
        let reached = stop_at.is_some_and(|stop_at| stop_at.is_reached(self.curve.rows(), self.step));
        if reached && self.total > self.step {
            self.setup.progress.note(format!("step {}: train.stop_at is reached", self.step));
            self.total = self.step;
        }
        reached
    }

    fn goes_on(&self) -> bool {
        self.step < self.total && !self.stopped
    }

    /// The epoch of the last step, counted from 1; 0 before the first step.
    fn epoch(&self) -> u64 {
        self.step.div_ceil(self.per_epoch)
    }

    /// The examples of the next step.
    fn next_pieces(&mut self) -> Result<Vec<Folded>> {
        let Setup { config, task, .. } = self.setup;
        let StepExamples { examples, rows } = self.source.of_step(self.step)?;
        let pieces = pieces(config, task, &examples, &rows, self.step)?;
        self.folding.add(&pieces);
        self.tokens += rows.iter().map(|&i| examples.get(i as usize).input_ids.len()).sum::<usize>();
        Ok(pieces)
    }

    /// Forward, backward and update: the model after the step.
    fn step(&mut self, model: Model<B>, pieces: &[Folded]) -> Result<Model<B>> {
        let Self { optimizer, loss_scale, .. } = self;
        let recipe = Recipe { config: self.setup.config, vocabulary: &self.setup.task.vocabulary };
        let (model, loss, grad_norm) =
            optimisation_step(recipe, model, optimizer, loss_scale, pieces, self.step, self.device);
        gpu_faults::check()?;
        self.recent.push(loss, grad_norm);
        self.step += 1;
        self.bar.set_position(self.step);
        self.stopped =
            stop::requested() || !self.setup.progress.watcher().is_none_or(|it| it.step(&self.report_of_step()));
        Ok(model)
    }

    /// How far training is, for a program that wants to know.
    fn report_of_step(&self) -> StepReport {
        StepReport {
            step: self.step,
            total_steps: self.total,
            loss: Some(self.loss).filter(|loss| !loss.is_nan()),
            val_accuracy: self.evaluations.first().and_then(|(_, val)| val.score.accuracy()),
        }
    }

    /// The actions that the settings ask for after the last step. The end of an epoch has an evaluation and a checkpoint.
    fn due(&self) -> Due {
        let (settings, step) = (&self.setup.config.train, self.step);
        let ends_epoch = step == self.total || step.is_multiple_of(self.per_epoch);
        let due = |every: Option<u64>| ends_epoch || every.is_some_and(|every| step.is_multiple_of(every));
        Due {
            log: step.is_multiple_of(settings.log_every),
            evaluation: due(settings.eval_every),
            checkpoint: due(settings.checkpoint_every) || self.stopped,
        }
    }

    /// Fetches the losses and gradient norms of the steps since the last call.
    fn read_losses(&mut self) -> Result<()> {
        let found = self.recent.check(self.step);
        gpu_faults::check()?; // numbers from a device that failed mean nothing
        (self.loss, self.grad_norm) = found.or_else(|bad| diverged(self.setup, self.per_epoch, &bad))?;
        Ok(())
    }

    /// A row of the curve, and the bar's message.
    fn log(&mut self) -> Result<()> {
        let tokens_per_s = self.tokens as f64 / self.since.elapsed().as_secs_f64();
        (self.tokens, self.since) = (0, Instant::now());
        self.curve.push(MetricsRow {
            step: self.step,
            epoch: self.epoch(),
            split: "train".into(),
            loss: Some(self.loss),
            lr: Some(self.optimizer.lr(self.step - 1)),
            grad_norm: Some(self.grad_norm),
            tokens_per_s: Some(tokens_per_s),
            ..Default::default()
        })?;
        let (loss, folding, accuracies) = (self.loss, self.folding, accuracies(&self.evaluations));
        self.bar.set_message(format!("loss {loss:.4} · {tokens_per_s:.0} tokens/s{folding} · {accuracies}"));
        Ok(())
    }

    /// Scores the model on every split, for the curve as well.
    fn evaluate(&mut self, model: &Model<B>) -> Result<()> {
        self.score(model, true)
    }

    /// Scores the model on every split and says so; in rows of the curve only where these are `new`.
    fn score(&mut self, model: &Model<B>, new: bool) -> Result<()> {
        let (start, model) = (Instant::now(), model.valid());
        let Setup { config, task, splits, progress, .. } = self.setup;
        let (step, epoch, vocabulary) = (self.step, self.epoch(), &task.vocabulary);
        let max_seen = splits.evaluated.first().map_or(0, |(_, val)| val.max_seen_len());
        let collation = Collation { pad_to: None, ..collation(config, step) };
        let mut found = Vec::new();
        for (name, examples) in &splits.evaluated {
            let batch_size = config.eval.batch_size;
            let batch = |indices: &[u32]| batch_of(config, task, examples, indices, &collation);
            let folds = config.train.fold && config.model.is_causal();
            let fold = folds.then(|| config.model.augmentation());
            let groups = groups(examples, vocabulary, fold);
            let evaluation = evaluate(&model, examples, vocabulary, &groups, batch_size, batch, max_seen, self.device)
                .with_context(|| format!("while evaluating on {name}"))?;
            gpu_faults::check()?;
            if new {
                self.curve.push(evaluation_row(step, epoch, name, &evaluation))?;
            }
            found.push((name.clone(), evaluation));
        }
        if new {
            self.curve.save()?;
        }
        progress.note(format!("step {step} · epoch {epoch} · {}", accuracies(&found)));
        for (name, evaluation) in &found {
            if let Some(sample) = &evaluation.sample {
                progress.detail(format!("  {name}: {}", sample.describe(vocabulary)));
            }
        }
        self.evaluation_seconds += start.elapsed().as_secs_f64();
        self.evaluations = found;
        Ok(())
    }

    /// Writes model and optimiser, with the score of validation where the model was `evaluated` after this step.
    fn checkpoint(&mut self, model: &Model<B>, evaluated: bool) -> Result<()> {
        let (run, step, epoch) = (self.setup.run, self.step, self.epoch());
        // The curve first: a checkpoint promises that all rows up to its step are there.
        self.curve.save()?;
        let val = self.evaluations.first().filter(|_| evaluated).map(|(_, val)| val);
        let state = State {
            epoch,
            step,
            seconds: self.curve.seconds(),
            val_accuracy: val.and_then(|v| v.score.accuracy()),
            val_loss: val.and_then(|v| v.loss),
            loss_scale: self.loss_scale,
            ..Default::default()
        };
        let (weights, optimizer_state) = (Weights::of(model)?, self.optimizer.state()?);
        gpu_faults::check()?;
        if weights.iter().any(|(_, w)| w.values.iter().any(|v| !v.is_finite())) {
            let bad = NotFinite { step, loss: self.loss, grad_norm: self.grad_norm };
            return diverged(self.setup, self.per_epoch, &bad);
        }
        Checkpoint::write(&run.checkpoint(epoch, step), state, &weights, Some(&optimizer_state))?;
        if let Some(keep) = self.setup.config.train.keep {
            run.prune_checkpoints(keep)?;
        }
        self.report(Status::Running)
    }

    /// Leaves time out of the speed of training.
    fn do_not_count(&mut self, pause: Duration) {
        self.since += pause;
    }

    /// Tells the run's folder how far training is.
    fn report(&self, status: Status) -> Result<()> {
        self.setup.run.set_progress(&RunProgress { status, step: self.step, total_steps: self.total })
    }

    fn finish(self) -> Result<Outcome> {
        self.bar.finish_and_clear();
        let finished = self.step == self.total;
        self.report(if finished { Status::Finished } else { Status::Interrupted })?;
        Ok(Outcome {
            finished,
            steps: self.step,
            total_steps: self.total,
            seconds: self.curve.seconds(),
            evaluation_seconds: self.evaluation_seconds,
            loss: self.loss,
            folding: self.folding,
            evaluations: self.evaluations,
        })
    }
}

/// Model and optimiser as they are before the first step: fresh, from given weights, or from a checkpoint.
fn start<B>(setup: &Setup<'_>, total_steps: u64, device: &B::Device) -> Result<(Model<B>, Adam<B>)>
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    let config = setup.config;
    let mut model: Model<B> = config.model.init(setup.task.vocabulary.len(), config.train.seed, device);
    if let Some(checkpoint) = &setup.resume {
        let doing = || format!("in the checkpoint {}", checkpoint.path().display());
        checkpoint.weights()?.load_into(&mut model).with_context(doing)?;
        let mut optimizer = Adam::new(&config.optimizer, &config.model, &model, total_steps);
        if checkpoint.state().step == total_steps {
            return Ok((model, optimizer));
        }
        optimizer.load_state(&checkpoint.optimizer()?, &model, device).with_context(doing)?;
        setup.progress.note(format!("going on from step {} of {total_steps}", checkpoint.state().step));
        return Ok((model, optimizer));
    }
    if let (Some(weights), Some(path)) = (&setup.initial, &config.train.init_from) {
        weights.load_into(&mut model).with_context(|| format!("in train.init_from = {}", path.display()))?;
        setup.progress.note(format!("starting from the weights in {}", path.display()));
    }
    setup.progress.note(format!(
        "{}: {} layer(s) of width {}, {} parameters, {total_steps} steps of {} examples in {}",
        config.model.arch(),
        config.model.num_layers(),
        config.model.hidden_size(),
        model.num_params(),
        config.train.batch_size,
        config.train.precision.name(),
    ));
    let optimizer = Adam::new(&config.optimizer, &config.model, &model, total_steps);
    Ok((model, optimizer))
}

fn accuracies(evaluations: &[(String, Evaluation)]) -> String {
    let one = |(name, evaluation): &(String, Evaluation)| {
        let accuracy = evaluation.score.accuracy().map_or("–".into(), |a| format!("{:.1} %", 100.0 * a));
        format!("{name} {accuracy}")
    };
    format!("accuracy: {}", evaluations.iter().map(one).collect::<Vec<_>>().join(", "))
}
