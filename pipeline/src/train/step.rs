//! One optimisation step: forward and backward pass over the batches of a step, then AdamW.

use crate::config::{Config, Precision};
use crate::train::loss_scale::LossScale;
use crate::train::optimizer::{Adam, global_norm};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{ElementConversion, Int, Tensor, TensorData};
use data::{Folded, Vocabulary};
use models::layers::DropoutSource;
use models::ops::SequenceOps;
use models::ops::autocast::autocast;
use models::{Model, weighted_cross_entropy, weighted_l2_wrap, weighted_set_loss};
use std::sync::{Mutex, PoisonError};

/// Held from the forward pass to the end of the backward pass. burn-autodiff 0.21 cleans up the graphs of all threads after
/// a backward pass, and may take away a parameter that another thread is just about to use for the first time: its
/// gradient would be missing.
static GRAPH: Mutex<()> = Mutex::new(());

/// The scale of the loss before the first step: none but in fp16, the only type that gradients can be too small for.
pub fn loss_scale(config: &Config) -> Option<LossScale> {
    (config.train.precision == Precision::Fp16).then(LossScale::default)
}

/// The facts about training that every step needs.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// The config of the run.
    pub config: &'a Config,
    /// The tokens and labels of its task.
    pub vocabulary: &'a Vocabulary,
}

/// One step: the model after it, and the loss and the gradient's norm before it, each `[1]`, still on the device. With a
/// `loss_scale`, gradients that overflow are computed again with a smaller one. See [`gradients`] and [`Adam::step`].
#[allow(clippy::type_complexity)] // the inner backend's tensors have no shorter name
pub fn optimisation_step<B>(
    recipe: Recipe<'_>,
    model: Model<B>,
    optimizer: &mut Adam<B>,
    loss_scale: &mut Option<LossScale>,
    pieces: &[Folded],
    step: u64,
    device: &B::Device,
) -> (Model<B>, Tensor<B::InnerBackend, 1>, Tensor<B::InnerBackend, 1>)
where
    B: AutodiffBackend + SequenceOps,
    B::InnerBackend: SequenceOps,
{
    loop {
        let scale = loss_scale.map_or(1.0, |s| s.scale);
        let (gradients, loss) = gradients(recipe, &model, pieces, step, scale, device);
        let norm = global_norm(&model, &gradients);
        if let Some(loss_scale) = loss_scale {
            if norm.clone().into_scalar().elem::<f64>().is_finite() {
                loss_scale.succeeded();
            } else if loss_scale.overflowed() {
                continue;
            }
        }
        let (model, grad_norm) = optimizer.step(step, model, gradients, norm, scale);
        return (model, loss, grad_norm);
    }
}

/// The gradient of `scale` times the mean loss over all labelled tokens of the pieces, and that loss `[1]`, still on the
/// device. RWKV's gradient has the term of [`weighted_l2_wrap`] as well, as its recipe says.
fn gradients<B>(
    Recipe { config, vocabulary }: Recipe<'_>,
    model: &Model<B>,
    pieces: &[Folded],
    step: u64,
    scale: f32,
    device: &B::Device,
) -> (GradientsParams, Tensor<B::InnerBackend, 1>)
where
    B: AutodiffBackend + SequenceOps,
{
    let labelled: u64 = pieces.iter().map(Folded::labelled).sum();
    let cells: u64 = pieces.iter().map(|piece| piece.total_examples() * piece.batch.seq as u64).sum();
    let mut sum = GradientsAccumulator::new();
    let mut loss = Tensor::zeros([1], device);
    let _alone = GRAPH.lock().unwrap_or_else(PoisonError::into_inner);
    for (number, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.labelled() > 0) {
        let batch = &piece.batch;
        let dropout = DropoutSource { seed: config.train.seed, step: step * pieces.len() as u64 + number as u64 };
        let share = |counts: &[u32], of: u64| counts.iter().map(|&n| n as f32 / of as f32).collect::<Vec<f32>>();
        let weights = TensorData::new(share(&piece.counts, labelled), [batch.batch, batch.seq]);
        let input = model.input(batch, device).training(dropout);
        let logits = autocast(config.train.precision.half(), || model.forward(input));
        let pull = config.model.pulls_logits().then(|| {
            let weights = Tensor::from_floats(share(&piece.examples, cells).as_slice(), device);
            weighted_l2_wrap(logits.clone(), weights)
        });
        let weights = Tensor::from_data(weights, device);
        let mut piece_loss = if vocabulary.units().is_empty() {
            let labels = TensorData::new(batch.labels.clone(), [batch.batch, batch.seq]);
            weighted_cross_entropy(logits, Tensor::<B, 2, Int>::from_data(labels, device), weights)
        } else {
            weighted_set_loss(logits, &batch.labels, weights, vocabulary)
        };
        if let Some(pull) = pull {
            piece_loss = piece_loss + pull;
        }
        loss = loss + piece_loss.clone().inner();
        sum.accumulate(model, GradientsParams::from_grads((piece_loss * scale).backward(), model));
    }
    (sum.grads(), loss)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::backend::Autodiff;
    use data::{Batch, Collation, Example, Task};
    use models::{Heads, ModelConfig, Weights};
    use serde::Deserialize;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// Losses and norms that scripts/pytorch_training_reference.py measured.
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
        Batch::collate(&examples, &task.vocabulary, &Collation::sequential()).unwrap()
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
            let mut optimizer = Adam::new(&config.optimizer, &config.model, &model, 20);
            for step in 0..20 {
                let pieces = [Folded::unfolded(batch(step, &task))];
                let recipe = Recipe { config: &config, vocabulary: &task.vocabulary };
                let (updated, loss, norm) =
                    optimisation_step(recipe, model, &mut optimizer, &mut None, &pieces, step as u64, &device);
                model = updated;
                let (loss, norm) = (loss.into_scalar().elem::<f64>(), norm.into_scalar().elem::<f64>());
                let (expected, expected_norm) = (reference.loss[step], reference.grad_norm[step]);
                assert!((loss - expected).abs() < 1e-5, "{arch} step {step}: loss {loss}, PyTorch's {expected}");
                assert!((norm / expected_norm - 1.0).abs() < 1e-3, "{arch} step {step}: norm {norm}, {expected_norm}");
            }
            assert!(reference.loss[19] < 0.9 * reference.loss[0], "{arch} has learnt something");
        }
    }

    fn small(arch: &str, precision: &str) -> Config {
        let kind = ModelConfig::kind(arch).unwrap();
        let mut settings = vec![format!("arch = '{arch}'"), "hidden_size = 16".into()];
        let chosen = (kind.benchmark)(128).into_iter().filter(|(key, _)| ["dropout", "num_layers"].contains(key));
        let chosen: Vec<_> = chosen.collect();
        settings.extend(chosen.iter().all(|(key, _)| *key != "num_layers").then(|| "num_layers = 1".into()));
        settings.extend(chosen.into_iter().map(|(key, value)| format!("{key} = {value}")));
        settings.extend((kind.heads)().map(|heads| match heads {
            Heads::Number(key) => format!("{key} = 2"),
            Heads::Size(key) => format!("{key} = 8"),
        }));
        settings.extend((kind.has_positions)().then(|| "positional_embedding = 'rope'".into()));
        let config = format!(
            "[task]\nname = 'counting_samesymbol_mod10bos'\n[model]\n{}\n\
             [train]\nprecision = '{precision}'\n[optimizer]\nlr = {}\n",
            settings.join("\n"),
            // At 1e-2, its loss jumps up and down in any precision.
            if arch == "gla" { 5e-3 } else { 1e-2 },
        );
        Config::parse(&config, &[]).unwrap()
    }

    /// Loss before every step, and the weights and the scale of the loss after the last.
    fn train_from(
        config: &Config,
        mut scale: Option<LossScale>,
        steps: usize,
    ) -> (Vec<f64>, Weights, Option<LossScale>) {
        type B = Autodiff<models::Cpu>;
        let task = Task::by_name(&config.task.name).unwrap();
        let device = Default::default();
        let mut model: Model<B> = config.model.init(task.vocabulary.len(), 0, &device);
        let mut optimizer = Adam::new(&config.optimizer, &config.model, &model, steps as u64);
        let mut losses = Vec::new();
        for step in 0..steps {
            let pieces = [Folded::unfolded(batch(step, &task))];
            let recipe = Recipe { config, vocabulary: &task.vocabulary };
            let (updated, loss, norm) =
                optimisation_step(recipe, model, &mut optimizer, &mut scale, &pieces, step as u64, &device);
            model = updated;
            assert!(norm.into_scalar().is_finite());
            losses.push(loss.into_scalar().elem());
        }
        (losses, Weights::of(&model).unwrap(), scale)
    }

    #[test]
    fn every_architecture_learns_in_half_precision_as_in_single() {
        let steps = 20;
        let mut wrong = vec![];
        for arch in ModelConfig::ARCHITECTURES {
            let (exact, _, _) = train_from(&small(arch, "fp32"), None, steps);
            assert!(exact[steps - 1] < 0.9 * exact[0], "{arch}: {exact:?}");
            for precision in ["bf16", "fp16"] {
                let config = small(arch, precision);
                let (losses, _, _) = train_from(&config, loss_scale(&config), steps);
                let late = |losses: &[f64]| losses[steps - 5..].iter().sum::<f64>();
                let off = (late(&losses) / late(&exact) - 1.0).abs();
                eprintln!("{arch}, {precision}: off by {off}");
                if !(off > 0.0 && off < 0.05) {
                    wrong.push(format!("{arch}, {precision}: off by {off}: {losses:?}, not {exact:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// See [`GRAPH`]. A run beside others loses no gradient: it has the losses that it has alone.
    #[test]
    fn runs_of_several_threads_do_not_disturb_each_other() {
        let config = small("transformer", "fp32");
        let (alone, weights, _) = train_from(&config, None, 5);
        let outcomes = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| train_from(&config, None, 5))).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
        });
        for (losses, after, _) in outcomes {
            assert_eq!((&losses, &after), (&alone, &weights));
        }
    }

    /// Gradients that overflow cost attempts and nothing else: the scale that is left gives the same weights from the
    /// start.
    #[test]
    fn a_loss_that_is_scaled_too_much_is_scaled_less() {
        let config = small("lstm", "fp16");
        let scale = |scale| Some(LossScale { scale, good_steps: 0 });
        let (losses, weights, left) = train_from(&config, scale((1u64 << 40) as f32), 3);
        let left = left.unwrap();
        assert!(left.scale < (1u64 << 30) as f32 && left.good_steps >= 1, "{left:?}");
        let (expected, expected_weights, after) = train_from(&config, scale(left.scale), 3);
        assert_eq!((losses, weights), (expected, expected_weights));
        assert_eq!(after.unwrap().scale, left.scale);
    }
}
