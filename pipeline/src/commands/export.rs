//! `pipeline export`: writes `model.onnx` into a run, after checking it against burn in ONNX Runtime.

use super::Context;
use crate::cli::ExportArgs;
use crate::config::Config;
use crate::run_dir::RunDir;
use anyhow::{Context as _, Result, bail};
use burn::tensor::TensorData;
use data::{Batch, Task, stream_rng};
use evaluators::{LoadOptions, Provider};
use exporters::{ExportInfo, export};
use models::{Cpu, Model, ModelInput, Weights};
use rand::RngExt;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The largest difference between burn's logits and ONNX Runtime's that an exported file may have.
const TOLERANCE: f32 = 1e-4;

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
    let mut model: Model<Cpu> = config.model.init(vocab, config.train.seed, &Default::default());
    weights.load_into(&mut model).with_context(|| format!("in the checkpoint {}", checkpoint.display()))?;

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
    let largest_difference = write_if_equal(&run.onnx(), &bytes, &model, &lengths, vocab)
        .with_context(|| format!("cannot export run {}", run.handle()))?;
    context.progress.note(format!(
        "exported {} · ONNX Runtime agrees with burn: largest difference {largest_difference:.1e} at lengths {lengths:?}",
        info.checkpoint
    ));
    Ok(Exported { path: run.onnx(), largest_difference, lengths })
}

/// Puts an ONNX file in place if it gives the logits of `model`; nothing is left behind if it does not. Returns the largest
/// difference.
fn write_if_equal(path: &Path, bytes: &[u8], model: &Model<Cpu>, lengths: &[usize], vocab: usize) -> Result<f32> {
    let candidate = path.with_file_name(".partial-model.onnx");
    data::files::write_bytes(&candidate, bytes)?;
    let place = || {
        let (length, difference) = compare(model, &candidate, lengths, vocab)?;
        if difference.is_nan() || difference > TOLERANCE {
            bail!(
                "the ONNX file gives other logits than burn: they differ by {difference:.1e} at length {length}, allowed is {TOLERANCE:.0e}\n  \
                 hint: no file was left; this is a defect of the exporter, please report it with the run's config.toml"
            );
        }
        std::fs::rename(&candidate, path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(difference)
    };
    place().inspect_err(|_| {
        let _ = std::fs::remove_file(&candidate);
    })
}

/// Runs random tokens through both at each length; the length with the largest difference, and that difference.
fn compare(model: &Model<Cpu>, onnx: &Path, lengths: &[usize], vocab: usize) -> Result<(usize, f32)> {
    let mut session = evaluators::Model::load(onnx, LoadOptions { provider: Provider::Cpu, threads: None })?;
    let mut worst = (0, 0.0f32);
    for &seq in lengths {
        let batch = random_batch(2, seq, vocab);
        let ours = model.forward(ModelInput::new(&batch, &Default::default())).into_data();
        let theirs = session.run(&batch)?;
        let difference = largest_difference(&ours, theirs.values())?;
        if difference.is_nan() || difference >= worst.1 {
            worst = (seq, difference);
        }
    }
    Ok(worst)
}

fn random_batch(batch: usize, seq: usize, vocab: usize) -> Batch {
    let mut rng = stream_rng(0, "export check", seq as u64);
    Batch {
        batch,
        seq,
        input_ids: (0..batch * seq).map(|_| rng.random_range(0..vocab as i64)).collect(),
        labels: vec![-1; batch * seq],
        position_ids: (0..batch).flat_map(|_| 0..seq as i64).collect(),
        attention_mask: vec![1; batch * seq],
    }
}

fn largest_difference(ours: &TensorData, theirs: &[f32]) -> Result<f32> {
    let ours = ours.as_slice::<f32>().map_err(|e| anyhow::anyhow!("cannot read the logits back: {e:?}"))?;
    if ours.len() != theirs.len() {
        bail!("the ONNX file gives {} logits where burn gives {}", theirs.len(), ours.len());
    }
    // `max` would swallow a NaN.
    Ok(ours
        .iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use models::ModelConfig;
    use models::rnn::RnnConfig;

    #[test]
    fn a_file_with_other_logits_is_refused_and_nothing_is_left() {
        let config = ModelConfig::Rnn(RnnConfig { hidden_size: 8, ..Default::default() });
        let vocab = 5;
        let model: Model<Cpu> = config.init(vocab, 1, &Default::default());
        let other: Model<Cpu> = config.init(vocab, 2, &Default::default());
        let info = ExportInfo {
            handle: "1123_000000".into(),
            task: "task".into(),
            vocab: (0..vocab).map(|i| i.to_string()).collect(),
            train_max_length: 3,
            max_position_embeddings: 8,
            augmentation: "none".into(),
            seed: 1,
            checkpoint: "epoch-0001-step-1".into(),
            precision: "fp32".into(),
        };
        let bytes = export(&config, &Weights::of(&other).unwrap(), &info).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");

        let error = write_if_equal(&path, &bytes, &model, &[1, 7], vocab).unwrap_err().to_string();
        assert!(error.contains("other logits than burn"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        assert!(write_if_equal(&path, &bytes, &other, &[1, 7], vocab).unwrap() < 1e-5);
        assert!(path.is_file());
    }
}
