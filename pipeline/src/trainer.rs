//! The training loop.

use crate::config::{Config, OptimizerConfig};
use crate::metrics_log::{self, MetricsRow};
use crate::progress::Progress;
use crate::run_dir::RunDir;
use anyhow::{Context, Result, bail};
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{ElementConversion, Int, Tensor, TensorData};
use data::{Batch, Collation, Dataset, EpochOrder, ExampleRef, Task, Vocabulary};
use evaluators::{Running, Score};
use models::layers::DropoutSource;
use models::ops::SequenceOps;
use models::{Model, ModelInput, Weights, masked_cross_entropy};
use std::path::Path;
use std::time::Instant;

/// The three splits of the task.
pub struct Splits {
    /// What is trained on.
    pub train: Dataset,
    /// The same distribution.
    pub val: Dataset,
    /// Longer sequences.
    pub ood_test: Dataset,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Optimisation steps.
    pub steps: u64,
    /// Wall-clock seconds, evaluation included.
    pub seconds: f64,
    /// Loss of the last step.
    pub loss: f64,
    /// Scores on validation at the end.
    pub val: Score,
    /// Scores on the out-of-distribution split at the end.
    pub ood_test: Score,
}

/// Trains from scratch: checkpoints, curve and progress go to `run`; the same config gives the same weights.
pub fn train<B>(
    run: &RunDir,
    config: &Config,
    task: &Task,
    splits: &Splits,
    device: &B::Device,
    progress: &Progress,
) -> Result<Outcome>
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    let (settings, seed) = (&config.train, config.train.seed);
    let vocabulary = &task.vocabulary;
    let per_epoch = splits.train.len().div_ceil(settings.batch_size) as u64;
    let total = settings.max_steps.unwrap_or(u64::MAX).min(settings.epochs * per_epoch);

    let mut model: Model<B> = config.model.init(vocabulary.len(), seed, device);
    let mut optimizer = adamw(&config.optimizer).init::<B, Model<B>>();
    progress.note(format!(
        "{}: {} layer(s) of width {}, {} parameters, {total} steps of {} examples",
        config.model.arch(),
        config.model.num_layers(),
        config.model.hidden_size(),
        model.num_params(),
        settings.batch_size,
    ));

    let start = Instant::now();
    let bar = progress.bar(config.model.arch(), total, "steps");
    let mut curve = Vec::new();
    let evaluate_now =
        |model: &Model<B>, step: u64, epoch: u64, curve: &mut Vec<MetricsRow>| -> Result<(Score, Score)> {
            let model = model.valid();
            let mut score = |split, examples: &Dataset| -> Result<Score> {
                let score = evaluate(&model, examples, vocabulary, config.eval.batch_size, device)?;
                curve.push(evaluation_row(step, epoch, split, &score, start));
                Ok(score)
            };
            let scores = (score("val", &splits.val)?, score("ood_test", &splits.ood_test)?);
            metrics_log::write(curve, &run.metrics())?;
            Ok(scores)
        };

    let (mut val, mut ood_test) = evaluate_now(&model, 0, 0, &mut curve)?;
    let (mut step, mut loss) = (0, f64::NAN);
    let (mut tokens, mut since) = (0, Instant::now());
    for epoch in 1..=settings.epochs {
        let order = EpochOrder::new(seed, epoch, splits.train.len());
        for index in 0..order.steps(settings.batch_size) {
            let examples = order.batch(index, settings.batch_size);
            let examples: Vec<ExampleRef> = examples.iter().map(|&i| splits.train.get(i as usize)).collect();
            let batch = Batch::collate(&examples, vocabulary, &Collation::plain())?;

            let input = ModelInput::new(&batch, device).training(DropoutSource { seed, step });
            let mean_loss = masked_cross_entropy(model.forward(input), labels(&batch, device));
            let mut gradients = GradientsParams::from_grads(mean_loss.backward(), &model);
            loss = mean_loss.into_scalar().elem::<f64>();
            let grad_norm = clip_global_norm(&model, &mut gradients, config.optimizer.grad_clip);
            if !loss.is_finite() || !grad_norm.is_finite() {
                bail!(
                    "training diverged at step {step} of run {}: loss {loss}, gradient norm {grad_norm}\n  hint: lower optimizer.lr or raise optimizer.warmup_steps",
                    run.handle()
                );
            }
            let lr = learning_rate(&config.optimizer, step);
            model = optimizer.step(lr, model, gradients);

            step += 1;
            tokens += batch.batch * batch.seq;
            bar.set_position(step);
            if step.is_multiple_of(settings.log_every) {
                let tokens_per_s = tokens as f64 / since.elapsed().as_secs_f64();
                curve.push(MetricsRow {
                    step,
                    epoch,
                    split: "train",
                    loss: Some(loss),
                    lr: Some(lr),
                    grad_norm: Some(grad_norm),
                    tokens_per_s: Some(tokens_per_s),
                    seconds: start.elapsed().as_secs_f64(),
                    ..Default::default()
                });
                bar.set_message(format!("loss {loss:.4} · {}", accuracies(&val, &ood_test)));
                (tokens, since) = (0, Instant::now());
            }
            let done = step == total;
            let due = |every: Option<u64>| !done && every.is_some_and(|every| step.is_multiple_of(every));
            if due(settings.eval_every) {
                (val, ood_test) = evaluate_now(&model, step, epoch, &mut curve)?;
            }
            if due(settings.checkpoint_every) {
                save_checkpoint(&run.checkpoint(epoch, step), &model, &optimizer.to_record(), epoch, step)?;
            }
            if done {
                break;
            }
        }
        (val, ood_test) = evaluate_now(&model, step, epoch, &mut curve)?;
        save_checkpoint(&run.checkpoint(epoch, step), &model, &optimizer.to_record(), epoch, step)?;
        progress.detail(format!("epoch {epoch}, step {step}: loss {loss:.4} · {}", accuracies(&val, &ood_test)));
        if step == total {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(Outcome { steps: step, seconds: start.elapsed().as_secs_f64(), loss, val, ood_test })
}

fn adamw(config: &OptimizerConfig) -> AdamWConfig {
    AdamWConfig::new()
        .with_beta_1(config.beta1)
        .with_beta_2(config.beta2)
        .with_epsilon(config.epsilon)
        .with_weight_decay(config.weight_decay)
}

/// lr·min(1, n / warmup_steps) for step n = 0, 1, …: the first step of a warm-up has learning rate 0.
fn learning_rate(config: &OptimizerConfig, step: u64) -> f64 {
    let warmup = config.warmup_steps;
    if step < warmup { config.lr * step as f64 / warmup as f64 } else { config.lr }
}

fn labels<B: AutodiffBackend>(batch: &Batch, device: &B::Device) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(batch.labels.clone(), [batch.batch, batch.seq]), device)
}

/// Scores every example; examples of similar length share a batch, so little is padded.
fn evaluate<B: SequenceOps>(
    model: &Model<B>,
    examples: &Dataset,
    vocabulary: &Vocabulary,
    batch_size: usize,
    device: &B::Device,
) -> Result<Score> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| examples.get(i).input_ids.len());
    let mut score = Score::default();
    for chunk in order.chunks(batch_size) {
        let chunk: Vec<ExampleRef> = chunk.iter().map(|&i| examples.get(i)).collect();
        let batch = Batch::collate(&chunk, vocabulary, &Collation::plain())?;
        let logits = model.forward(ModelInput::new(&batch, device)).into_data();
        let logits = logits.into_vec::<f32>().map_err(|e| anyhow::anyhow!("cannot read the logits back: {e:?}"))?;
        let row = batch.seq * vocabulary.len();
        for (example, logits) in chunk.iter().zip(logits.chunks(row)) {
            let mut sequence = Running::default();
            for (logits, &label) in logits.chunks(vocabulary.len()).zip(example.labels) {
                if let Ok(label) = usize::try_from(label) {
                    sequence.push(logits, label);
                }
            }
            score.add(&sequence);
        }
    }
    Ok(score)
}

fn evaluation_row(step: u64, epoch: u64, split: &'static str, score: &Score, start: Instant) -> MetricsRow {
    MetricsRow {
        step,
        epoch,
        split,
        loss: score.loss(),
        accuracy: score.accuracy(),
        counting_accuracy: score.counting_accuracy(),
        last_accuracy: score.last_accuracy(),
        sequence_accuracy: score.sequence_accuracy(),
        seconds: start.elapsed().as_secs_f64(),
        ..Default::default()
    }
}

fn accuracies(val: &Score, ood_test: &Score) -> String {
    let percent = |a: Option<f64>| a.map_or("–".into(), |a| format!("{:.1} %", 100.0 * a));
    format!("accuracy: val {}, ood {}", percent(val.accuracy()), percent(ood_test.accuracy()))
}

/// Scales all gradients so that their joint L2 norm is at most `max_norm` (Pascanu et al., arXiv 1211.5063); returns the
/// norm they had.
fn clip_global_norm<B: AutodiffBackend>(model: &Model<B>, gradients: &mut GradientsParams, max_norm: f64) -> f64 {
    struct Squares<'a, B: AutodiffBackend> {
        gradients: &'a GradientsParams,
        sums: Vec<Tensor<B::InnerBackend, 1>>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Squares<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id) {
                self.sums.push(gradient.square().sum());
            }
        }
    }
    struct Scale<'a> {
        gradients: &'a mut GradientsParams,
        factor: f64,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
                self.gradients.register(param.id, gradient * self.factor);
            }
        }
    }
    let mut squares = Squares::<B> { gradients, sums: vec![] };
    model.visit(&mut squares);
    let norm = Tensor::cat(squares.sums, 0).sum().sqrt().into_scalar().elem::<f64>();
    if norm > max_norm {
        model.visit(&mut Scale { gradients, factor: max_norm / (norm + 1e-6) });
    }
    norm
}

/// Writes the folder under a temporary name and renames it, so that a checkpoint is there whole or not at all.
fn save_checkpoint<B, R>(path: &Path, model: &Model<B>, optimizer: &R, epoch: u64, step: u64) -> Result<()>
where
    B: AutodiffBackend + SequenceOps,
    R: burn::record::Record<B> + Clone,
{
    let doing = || format!("cannot save the checkpoint {}", path.display());
    let folder = path.parent().with_context(doing)?;
    let temporary = folder.join(format!(".partial-{step}"));
    let write = || -> Result<()> {
        data::files::write_bytes(&temporary.join("model.safetensors"), &Weights::of(model)?.to_safetensors()?)?;
        let record = BinBytesRecorder::<FullPrecisionSettings>::default().record(optimizer.clone(), ())?;
        data::files::write_bytes(&temporary.join("optimizer.bin"), &record)?;
        let state = serde_json::json!({ "epoch": epoch, "step": step });
        data::files::write_bytes(&temporary.join("state.json"), format!("{state}\n").as_bytes())?;
        std::fs::rename(&temporary, path)?;
        data::files::sync_folder(folder);
        Ok(())
    };
    write().with_context(doing).inspect_err(|_| {
        let _ = std::fs::remove_dir_all(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_starts_at_zero_and_ends_at_the_full_rate() {
        let config = OptimizerConfig { lr: 2.0, warmup_steps: 4, ..Default::default() };
        let rates: Vec<f64> = (0..6).map(|n| learning_rate(&config, n)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]);
    }
}
