//! `pipeline export`: writes `model.onnx` into a run, after checking it against burn in ONNX Runtime.

use super::Context;
use crate::cli::ExportArgs;
use crate::config::Config;
use crate::run_dir::RunDir;
use anyhow::{Context as _, Result, bail};
use burn::tensor::TensorData;
use data::{Batch, PositionIds, Task, stream_rng};
use evaluators::{LoadOptions, Provider};
use exporters::{ExportInfo, export};
use models::{Cpu, Model, ModelInput, Weights};
use rand::RngExt;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The largest difference between burn's logits and ONNX Runtime's that an exported file may have …
const TOLERANCE: f32 = 1e-4;
/// … unless the model itself amplifies rounding: a recurrent model can be chaotic on sequences unlike any in training, and
/// then any two implementations part after some hundred tokens. How much it amplifies is measured by changing its weights
/// in the last bit; a difference of up to this many times what that does is rounding too.
const ROUNDING_FACTOR: f32 = 32.0;

/// What an export left behind.
pub struct Exported {
    /// The file.
    pub path: PathBuf,
    /// The largest difference found by the check.
    pub largest_difference: f32,
    /// The lengths that were compared, in tokens.
    pub lengths: Vec<usize>,
}

pub fn run(context: &Context, args: ExportArgs) -> Result<()> {
    let runs = &context.global.runs_dir;
    let run = match &args.handle {
        Some(handle) => RunDir::open(runs, handle)?,
        None => RunDir::newest(runs, "run", "`pipeline train --config <C>` makes one", |_| true)?,
    };
    let exported = export_run(context, &run)?;
    let as_json = || {
        json!({
            "handle": run.handle(),
            "model": exported.path,
            "largest_difference": exported.largest_difference,
            "lengths_checked": exported.lengths,
        })
    };
    let as_text = || format!("{} · next: pipeline eval --handle {}", exported.path.display(), run.handle());
    context.print(as_json, as_text)
}

/// Exports the run's last checkpoint. The file is checked under a temporary name and appears only if it agrees.
pub fn export_run(context: &Context, run: &RunDir) -> Result<Exported> {
    let config = Config::load(&run.config(), &[])?;
    let task = Task::by_name(&config.task.name)?;
    let vocab = task.vocabulary.len();
    let checkpoint = run.last_checkpoint()?;
    let weights = Weights::read(&checkpoint.join("model.safetensors"))?;
    let info = ExportInfo {
        handle: run.handle().to_owned(),
        task: task.name.clone(),
        vocab: task.vocabulary.tokens().to_vec(),
        train_max_length: task.family.train_max_length() as usize,
        max_position_embeddings: task.max_position_embeddings,
        augmentation: "none".into(),
        seed: config.train.seed,
        checkpoint: checkpoint.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        precision: "fp32".into(),
    };
    let bytes = export(&config.model, &weights, &info)?;

    let lengths = vec![1, 2, task.family.train_max_length() as usize, 1000];
    let build = |weights: &Weights| -> Result<Model<Cpu>> {
        let mut model = config.model.init(vocab, config.train.seed, &Default::default());
        weights.load_into(&mut model).with_context(|| format!("in the checkpoint {}", checkpoint.display()))?;
        Ok(model)
    };
    let nudged = || build(&weights.nudged(0));
    let worst = write_if_equal(&run.onnx(), &bytes, &build(&weights)?, nudged, &lengths, vocab)
        .with_context(|| format!("cannot export run {}", run.handle()))?;
    context.progress.note(format!("exported {} · ONNX Runtime agrees with burn: {worst}", info.checkpoint));
    Ok(Exported { path: run.onnx(), largest_difference: worst.difference, lengths })
}

/// The largest difference that was found.
struct Worst {
    difference: f32,
    length: usize,
    /// What a change of the weights in the last bit does at that length, where it was measured.
    rounding: Option<f32>,
}

impl Worst {
    fn is_rounding(&self) -> bool {
        let allowed = self.rounding.map_or(TOLERANCE, |rounding| TOLERANCE.max(ROUNDING_FACTOR * rounding));
        self.difference <= allowed // false for NaN
    }
}

impl std::fmt::Display for Worst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "largest difference {:.1e}, at length {}", self.difference, self.length)?;
        match self.rounding {
            Some(rounding) => {
                write!(f, " of random tokens, where a change of the weights in the last bit alone makes {rounding:.1e}")
            }
            None => Ok(()),
        }
    }
}

/// Puts an ONNX file in place if it gives the logits of `model`; nothing is left behind if it does not.
fn write_if_equal(
    path: &Path,
    bytes: &[u8],
    model: &Model<Cpu>,
    nudged: impl Fn() -> Result<Model<Cpu>>,
    lengths: &[usize],
    vocab: usize,
) -> Result<Worst> {
    let candidate = path.with_file_name(".partial-model.onnx");
    data::files::write_bytes(&candidate, bytes)?;
    let place = || {
        let worst = compare(model, nudged, &candidate, lengths, vocab)?;
        if !worst.is_rounding() {
            bail!(
                "the ONNX file gives other logits than burn: {worst}; allowed is {TOLERANCE:.0e}\n  \
                 hint: no file was left; this is a defect of the exporter, please report it with the run's config.toml"
            );
        }
        std::fs::rename(&candidate, path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(worst)
    };
    place().inspect_err(|_| {
        let _ = std::fs::remove_file(&candidate);
    })
}

/// Runs random tokens through both at each length, and where they differ by more than the tolerance also through the
/// nudged model. Returns the worst length: one that cannot be rounding, or else the one with the largest difference.
fn compare(
    model: &Model<Cpu>,
    nudged: impl Fn() -> Result<Model<Cpu>>,
    onnx: &Path,
    lengths: &[usize],
    vocab: usize,
) -> Result<Worst> {
    let mut session = evaluators::Model::load(onnx, LoadOptions { provider: Provider::Cpu, threads: None })?;
    let mut worst = Worst { difference: 0.0, length: 0, rounding: None };
    for &length in lengths {
        let batch = random_batch(2, length, vocab);
        let logits = |model: &Model<Cpu>| model.forward(ModelInput::new(&batch, &Default::default())).into_data();
        let ours = logits(model);
        let ours = values(&ours)?;
        let difference = largest_difference(ours, session.run(&batch)?.values())?;
        let mut found = Worst { difference, length, rounding: None };
        if !found.is_rounding() {
            let nudged = logits(&nudged()?);
            found.rounding = Some(largest_difference(ours, values(&nudged)?)?);
            if !found.is_rounding() {
                return Ok(found);
            }
        }
        if found.difference >= worst.difference {
            worst = found;
        }
    }
    Ok(worst)
}

fn values(logits: &TensorData) -> Result<&[f32]> {
    logits.as_slice::<f32>().map_err(|e| anyhow::anyhow!("cannot read the logits back: {e:?}"))
}

fn random_batch(batch: usize, seq: usize, vocab: usize) -> Batch {
    let mut rng = stream_rng(0, "export check", seq as u64);
    Batch {
        batch,
        seq,
        input_ids: (0..batch * seq).map(|_| rng.random_range(0..vocab as i64)).collect(),
        labels: vec![-1; batch * seq],
        position_ids: PositionIds::Integers((0..batch).flat_map(|_| 0..seq as i64).collect()),
        attention_mask: vec![1; batch * seq],
    }
}

fn largest_difference(ours: &[f32], theirs: &[f32]) -> Result<f32> {
    if ours.len() != theirs.len() {
        bail!("the ONNX file gives {} logits where burn gives {}", theirs.len(), ours.len());
    }
    // `max` would swallow a NaN.
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    Ok(differences.fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use models::ModelConfig;
    use models::rnn::RnnConfig;

    const VOCAB: usize = 5;

    fn model(weights: &Weights, config: &ModelConfig) -> Model<Cpu> {
        let mut model = config.init(VOCAB, 0, &Default::default());
        weights.load_into(&mut model).unwrap();
        model
    }

    fn file(config: &ModelConfig, weights: &Weights) -> Vec<u8> {
        let info = ExportInfo {
            handle: "1123_000000".into(),
            task: "task".into(),
            vocab: (0..VOCAB).map(|i| i.to_string()).collect(),
            train_max_length: 3,
            max_position_embeddings: 8,
            augmentation: "none".into(),
            seed: 1,
            checkpoint: "epoch-0001-step-1".into(),
            precision: "fp32".into(),
        };
        export(config, weights, &info).unwrap()
    }

    fn scaled(weights: &Weights, name: &str, factor: f32) -> Weights {
        let scale = |(n, w): (&str, &models::Weight)| {
            let values = w.values.iter().map(|v| if n == name { v * factor } else { *v }).collect();
            (n.to_owned(), models::Weight { shape: w.shape.clone(), values })
        };
        weights.iter().map(scale).collect()
    }

    #[test]
    fn a_file_with_other_logits_is_refused_and_nothing_is_left() {
        let config = ModelConfig::Rnn(RnnConfig { hidden_size: 8, ..Default::default() });
        let weights = |seed| Weights::of(&config.init::<Cpu>(VOCAB, seed, &Default::default())).unwrap();
        let (ours, other) = (weights(1), weights(2));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        let write = |bytes: &[u8]| {
            let nudged = || Ok(model(&ours.nudged(0), &config));
            write_if_equal(&path, bytes, &model(&ours, &config), nudged, &[1, 7], VOCAB)
        };

        let error = write(&file(&config, &other)).err().unwrap().to_string();
        assert!(error.contains("other logits than burn"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let worst = write(&file(&config, &ours)).unwrap();
        assert!(worst.difference < 1e-5 && worst.rounding.is_none());
        assert!(path.is_file());
    }

    /// Recurrent weights this large make an RNN chaotic: two implementations agree for some tokens and then part, as two
    /// runs with weights that differ in the last bit do. The same file is refused if its decoder is off by a thousandth.
    #[test]
    fn chaos_is_told_apart_from_a_wrong_file() {
        let config = ModelConfig::Rnn(RnnConfig { hidden_size: 32, ..Default::default() });
        let fresh = Weights::of(&config.init::<Cpu>(VOCAB, 1, &Default::default())).unwrap();
        let chaotic = scaled(&scaled(&fresh, "decoder.weight", 50.0), "lstm.weight_hh_l0", 6.0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        let write = |bytes: &[u8]| {
            let nudged = || Ok(model(&chaotic.nudged(0), &config));
            write_if_equal(&path, bytes, &model(&chaotic, &config), nudged, &[1, 2, 50, 1000], VOCAB)
        };
        let worst = write(&file(&config, &chaotic)).unwrap();
        assert!(worst.difference > TOLERANCE && worst.length == 1000 && worst.rounding.is_some(), "{worst}");

        let wrong = scaled(&chaotic, "decoder.weight", 1.001);
        let error = write(&file(&config, &wrong)).err().unwrap().to_string();
        assert!(error.contains("at length 1"), "{error}");
    }
}
