//! Whether an ONNX file computes what the model computes in burn.

use anyhow::{Context as _, Result, bail};
use burn::tensor::TensorData;
use data::{Augmentation, Batch, Collation, ExampleRef, PAD, PositionSampling, Task, stream_rng};
use evaluators::{LoadOptions, Provider};
use exporters::{Precision, STATEFUL_FILE};
use models::{Cpu, Model, ModelConfig, Weights};
use rand::RngExt;
use std::path::Path;

/// The largest difference between burn's logits and ONNX Runtime's that an exported file may have, in float32 …
const TOLERANCE: f32 = 1e-4;
/// … and where products are computed in half the bits. There, the argmax must agree as well wherever the two best logits
/// differ by more, but for one token in a thousand.
const NARROW_TOLERANCE: f32 = 2e-2;
/// A recurrent model can be chaotic on sequences unlike any in training, and then any two implementations part after some
/// hundred tokens. How much it amplifies rounding is measured by rounding its weights, in the last bit for float32; a
/// difference of up to this many times what that does is rounding too.
const ROUNDING_FACTOR: f32 = 32.0;
/// Models that hand on their states are also fed this many tokens …
const PIECED_LENGTH: usize = 65;
/// … in pieces of so many.
const PIECES: [usize; 3] = [1, 7, 64];

/// A model to be compared with its file.
pub struct Check<'a> {
    /// Sizes.
    pub config: &'a ModelConfig,
    /// Tokens, positions and lengths.
    pub task: &'a Task,
    /// Weights.
    pub weights: &'a Weights,
    /// Of the file.
    pub precision: Precision,
}

/// The largest difference that was found.
#[derive(Debug, Clone)]
pub struct Worst {
    /// Between two logits.
    pub difference: f32,
    /// In tokens.
    pub length: usize,
    /// The tokens that were fed at a time, where that was not all of them.
    piece: Option<usize>,
    /// The effect of rounding the weights at that length, where it was measured.
    rounding: Option<f32>,
    /// Of the tokens whose two best logits differ by more than the tolerance, the share with another argmax.
    flipped: f64,
    precision: Precision,
}

impl Worst {
    fn tolerance(&self) -> f32 {
        if self.precision == Precision::Fp32 { TOLERANCE } else { NARROW_TOLERANCE }
    }

    fn is_rounding(&self) -> bool {
        if let Some(rounding) = self.rounding {
            return self.difference <= self.tolerance().max(ROUNDING_FACTOR * rounding); // false for NaN
        }
        self.difference <= self.tolerance() && self.flipped <= 1e-3
    }
}

impl std::fmt::Display for Worst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "largest difference {:.1e}, at length {}", self.difference, self.length)?;
        if let Some(piece) = self.piece {
            write!(f, " in pieces of {piece}")?;
        }
        match (self.rounding, self.precision) {
            (None, _) => Ok(()),
            (Some(rounding), Precision::Fp32) => {
                write!(f, " of random tokens, where a change of the weights in the last bit alone makes {rounding:.1e}")
            }
            (Some(rounding), narrow) => {
                write!(
                    f,
                    " of random tokens, where rounding the weights to {} alone makes {rounding:.1e}",
                    narrow.name()
                )
            }
        }
    }
}

/// Changes of the weights in their last bits that are tried where a difference may be rounding.
const NUDGES: u64 = 4;

impl Check<'_> {
    /// The lengths to compare at, in tokens: the shortest, those of training and twice that, and a long one, as far as
    /// the model's positions go.
    pub fn lengths(&self) -> Vec<usize> {
        let trained = self.task.family.train_max_length() as usize;
        let mut lengths = vec![1, 2, trained, 2 * trained, 1000];
        if let Some(limit) = self.config.max_length() {
            lengths.push(limit);
            lengths.retain(|&length| length <= limit);
        }
        lengths.retain(|&length| length > 0); // a task may have empty strings alone
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// Compares the file at `onnx` at each length, on random tokens of which some are padding, inside and at the end; and likewise
    /// the one beside it that takes states, which is also fed in pieces. Returns the worst.
    ///
    /// # Errors
    /// The file differs by more than rounding explains, or cannot be run.
    pub fn run(&self, onnx: &Path, lengths: &[usize]) -> Result<Worst> {
        let worst = self.worst(onnx, lengths)?;
        if !worst.is_rounding() {
            bail!(
                "the ONNX file gives other logits than burn: {worst}; allowed is {:.0e}\n  \
                 hint: no file was left; this is a defect of the exporter, please report it with the run's config.toml",
                worst.tolerance()
            );
        }
        Ok(worst)
    }

    /// The worst length: one that cannot be rounding, or else the one with the largest difference. Where the difference is
    /// beyond the tolerance, the model with rounded weights runs too.
    fn worst(&self, onnx: &Path, lengths: &[usize]) -> Result<Worst> {
        let open =
            |path: &Path| evaluators::Model::load_alone(path, LoadOptions { provider: Provider::Cpu, threads: None });
        let stateful = onnx.with_file_name(STATEFUL_FILE);
        let mut sessions = vec![open(onnx)?];
        if stateful.is_file() {
            sessions.push(open(&stateful)?);
        }
        let model = self.model(self.weights)?;
        let none =
            Worst { difference: 0.0, length: 0, piece: None, rounding: None, flipped: 0.0, precision: self.precision };
        let mut worst = none.clone();
        let whole = lengths.iter().map(|&length| (length, None));
        let pieces = if sessions.len() > 1 { PIECES.as_slice() } else { &[] };
        let runs: Vec<_> = whole.chain(pieces.iter().map(|&piece| (PIECED_LENGTH, Some(piece)))).collect();
        let of_each =
            (0..sessions.len()).flat_map(|file| runs.iter().map(move |&(length, piece)| (file, length, piece)));
        for (file, length, piece) in of_each.filter(|(file, _, piece)| *file == 1 || piece.is_none()) {
            let session = &mut sessions[file];
            let batch = self.batch(length)?;
            let logits = |model: &Model<Cpu>| model.forward(model.input(&batch, &Default::default())).into_data();
            let ours = logits(&model);
            let ours = values(&ours)?;
            let theirs = match piece {
                None => session.run(&batch)?.values().to_vec(),
                Some(piece) => session.run_pieces(&batch, piece)?,
            };
            let difference = largest_difference(ours, &theirs)?;
            let flipped = flipped(ours, &theirs, self.task.vocabulary.len(), none.tolerance());
            let mut found = Worst { difference, length, piece, flipped, ..none };
            if !found.is_rounding() {
                let mut rounding = 0f32;
                for weights in self.rounded() {
                    let rounded = logits(&self.model(&weights)?);
                    rounding = rounding.max(largest_difference(ours, values(&rounded)?)?);
                }
                found.rounding = Some(rounding);
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

    fn model(&self, weights: &Weights) -> Result<Model<Cpu>> {
        let mut model = self.config.init(self.task.vocabulary.len(), 0, &Default::default());
        weights.load_into(&mut model).context("cannot load the checkpoint's weights")?;
        Ok(model)
    }

    /// The weights as rounding may leave them. A model that makes much of little does so by chance, so that there are several
    /// for single precision.
    fn rounded(&self) -> Vec<Weights> {
        match self.precision {
            Precision::Fp32 => (0..NUDGES).map(|seed| self.weights.nudged(seed)).collect(),
            narrow => {
                let round = |(name, weight): (&str, &models::Weight)| {
                    let values = weight.values.iter().map(|&v| narrow.round(v)).collect();
                    (name.to_owned(), models::Weight { shape: weight.shape.clone(), values })
                };
                let integers = self.weights.integers().map(|(name, value)| (name.to_owned(), value));
                vec![self.weights.iter().map(round).collect::<Weights>().with_integers(integers)]
            }
        }
    }

    /// Two sequences of random tokens; the second ends in padding after three quarters, if the vocabulary has padding.
    fn batch(&self, length: usize) -> Result<Batch> {
        let vocabulary = &self.task.vocabulary;
        let has_padding = vocabulary.id(PAD).is_some();
        let mut rng = stream_rng(0, "export check", length as u64);
        let mut tokens = |n: usize| -> Vec<u16> {
            let mut ids: Vec<u16> = (0..n).map(|_| rng.random_range(0..vocabulary.len() as u16)).collect();
            // A sequence that starts with padding has no key to attend to.
            while has_padding && ids[0] == vocabulary.pad_id() {
                ids[0] = rng.random_range(0..vocabulary.len() as u16);
            }
            // Without padding inside, burn runs without a mask, and what follows the padding at the end is up to each.
            if n > 1 && has_padding {
                ids[n / 2] = vocabulary.pad_id();
            }
            ids
        };
        let rows = [tokens(length), tokens(if has_padding { (3 * length).div_ceil(4) } else { length })];
        // With a label at every token the mask is not left out.
        let labels = vec![0; length];
        let examples = [&rows[0], &rows[1]].map(|ids| ExampleRef {
            input_ids: ids,
            labels: &labels[..ids.len()],
            length: ids.len() as u32,
        });
        let augmentation = match self.config.augmentation() {
            drawn if drawn.is_scalar() => Augmentation::Zooming,
            _ => Augmentation::None,
        };
        let positions = PositionSampling { augmentation, ..PositionSampling::SEQUENTIAL };
        Ok(Batch::collate(&examples, vocabulary, &Collation { positions, pad_to: None })?)
    }
}

fn values(logits: &TensorData) -> Result<&[f32]> {
    logits.as_slice::<f32>().map_err(|e| anyhow::anyhow!("cannot read the logits back: {e:?}"))
}

fn largest_difference(ours: &[f32], theirs: &[f32]) -> Result<f32> {
    if ours.len() != theirs.len() {
        bail!("the ONNX file gives {} logits where burn gives {}", theirs.len(), ours.len());
    }
    // `max` would swallow a NaN.
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    Ok(differences.fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst }))
}

/// Of the tokens whose two best logits differ by more than `margin`, the share with another argmax.
fn flipped(ours: &[f32], theirs: &[f32], vocab: usize, margin: f32) -> f64 {
    let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
    let (mut clear, mut other) = (0u32, 0u32);
    for (ours, theirs) in ours.chunks(vocab).zip(theirs.chunks(vocab)) {
        let first = best(ours);
        let second = ours.iter().enumerate().filter(|(i, _)| *i != first).map(|(_, v)| *v).fold(f32::MIN, f32::max);
        if ours[first] - second > margin {
            clear += 1;
            other += u32::from(best(theirs) != first);
        }
    }
    f64::from(other) / f64::from(clear.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use exporters::{ExportInfo, ExportOptions, Target, export};
    use models::rnn::RnnConfig;
    use models::transformer::TransformerConfig;

    fn task() -> Task {
        Task::by_name("counting_samesymbol_mod10").unwrap()
    }

    fn info() -> ExportInfo {
        ExportInfo {
            handle: "1123_000000".into(),
            task: "task".into(),
            vocab: task().vocabulary.tokens().to_vec(),
            units: vec![],
            train_max_length: 3,
            max_position_embeddings: 8,
            augmentation: "none".into(),
            seed: 1,
            checkpoint_checksum: "0".into(),
            checkpoint: "epoch-0001-step-1".into(),
        }
    }

    /// Writes the files of a model, the first one to `path`.
    fn write(path: &Path, config: &ModelConfig, weights: &Weights, info: &ExportInfo, options: &ExportOptions) {
        let files = export(config, weights, info, options).unwrap();
        std::fs::write(path, files.model.model).unwrap();
        let stateful = path.with_file_name(STATEFUL_FILE);
        match files.stateful {
            Some(file) => std::fs::write(stateful, file.model).unwrap(),
            None if stateful.exists() => std::fs::remove_file(stateful).unwrap(),
            None => {}
        }
    }

    fn fresh(config: &ModelConfig, seed: u64) -> Weights {
        Weights::of(&config.init::<Cpu>(task().vocabulary.len(), seed, &Default::default())).unwrap()
    }

    fn scaled(weights: &Weights, name: &str, factor: f32) -> Weights {
        let scale = |(n, w): (&str, &models::Weight)| {
            let values = w.values.iter().map(|v| if n == name { v * factor } else { *v }).collect();
            (n.to_owned(), models::Weight { shape: w.shape.clone(), values })
        };
        let integers = weights.integers().map(|(name, value)| (name.to_owned(), value)).collect::<Vec<_>>();
        weights.iter().map(scale).collect::<Weights>().with_integers(integers)
    }

    /// Compares the model with `weights` to a file made of `of`.
    fn compare(
        config: &ModelConfig,
        weights: &Weights,
        of: &Weights,
        lengths: &[usize],
        precision: Precision,
    ) -> Result<Worst> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        let options = ExportOptions { precision, ..Default::default() };
        write(&path, config, of, &info(), &options);
        Check { config, task: &task(), weights, precision }.run(&path, lengths)
    }

    /// A model of every kind that is lowered in a way of its own, small, with logits that are not all alike.
    fn every_kind() -> impl Iterator<Item = (ModelConfig, Weights)> {
        let config = |settings: String| -> ModelConfig {
            serde_json::from_str(&format!(r#"{{{settings}, "hidden_size": 16, "num_layers": 2}}"#)).unwrap()
        };
        let decays = [-0.2, -0.35].map(|factor| {
            let config = config(r#""arch": "rwkv5", "head_size": 8"#.into());
            let weights = scaled(&fresh(&config, 1), "blocks.0.att.time_decay", factor);
            (config, scaled(&weights, "blocks.1.att.time_decay", factor))
        });
        let fresh = ModelConfig::examples().into_iter().map(|config| {
            let weights = fresh(&config, 1);
            (config, weights)
        });
        // logarithms of decays down to -3.3 and to -8.2: constants of every kind, and too fast for them
        fresh.chain(decays).map(|(config, weights)| {
            let decoder = *config.decoder_weights().iter().find(|name| weights.get(name).is_some()).unwrap();
            (config, scaled(&weights, decoder, 3.0))
        })
    }

    /// At every length, in blocks and pieces that do and do not divide it, in each precision, for each target.
    #[test]
    fn every_kind_of_model_agrees_in_every_form() {
        let dir = tempfile::tempdir().unwrap();
        for (config, weights) in every_kind() {
            for (precision, target) in [
                (Precision::Fp32, Target::Portable),
                (Precision::Fp32, Target::Ort),
                (Precision::Fp16, Target::Portable),
                (Precision::Fp16, Target::Ort),
            ] {
                let path = dir.path().join("model.onnx");
                let options = ExportOptions { precision, target, ..Default::default() };
                write(&path, &config, &weights, &info(), &options);
                let check = Check { config: &config, task: &task(), weights: &weights, precision };
                let worst = check.run(&path, &[1, 2, 63, 64, 65, 128]).unwrap();
                assert!(worst.rounding.is_none(), "{config:?} {options:?}: {worst}");
            }
        }
    }

    /// More tokens than RWKV-5's first layer makes tables for.
    #[test]
    fn a_large_vocabulary_agrees() {
        let task = Task::by_name("counting_diffsymbol").unwrap();
        let vocab = task.vocabulary.tokens().to_vec();
        let config: ModelConfig =
            serde_json::from_str(r#"{"arch": "rwkv5", "head_size": 8, "hidden_size": 16, "num_layers": 1}"#).unwrap();
        let weights = Weights::of(&config.init::<Cpu>(vocab.len(), 1, &Default::default())).unwrap();
        let weights = scaled(&weights, "head.weight", 3.0);
        let info = ExportInfo { vocab, ..info() };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        write(&path, &config, &weights, &info, &ExportOptions::default());
        let check = Check { config: &config, task: &task, weights: &weights, precision: Precision::Fp32 };
        let worst = check.run(&path, &[1, 2, 63, 64, 65, 90]).unwrap();
        assert!(worst.rounding.is_none(), "{worst}");
    }

    #[test]
    fn a_file_with_other_logits_is_refused() {
        let config = ModelConfig::Rnn(RnnConfig { hidden_size: 8, ..Default::default() });
        let (ours, other) = (fresh(&config, 1), fresh(&config, 2));
        let error = compare(&config, &ours, &other, &[1, 7], Precision::Fp32).unwrap_err().to_string();
        assert!(error.contains("other logits than burn"), "{error}");
        let worst = compare(&config, &ours, &ours, &[1, 7], Precision::Fp32).unwrap();
        assert!(worst.difference < 1e-5 && worst.rounding.is_none(), "{worst}");
    }

    /// Recurrent weights this large make an RNN chaotic: two implementations agree for some tokens and then part, as two
    /// runs with weights that differ in the last bit do. The same file is refused if its decoder is off by a thousandth.
    #[test]
    fn chaos_is_told_apart_from_a_wrong_file() {
        let config = ModelConfig::Rnn(RnnConfig { hidden_size: 32, ..Default::default() });
        let chaotic = scaled(&scaled(&fresh(&config, 1), "decoder.weight", 50.0), "lstm.weight_hh_l0", 6.0);
        let lengths = [1, 2, 50, 1000];
        let worst = compare(&config, &chaotic, &chaotic, &lengths, Precision::Fp32).unwrap();
        assert!(worst.difference > TOLERANCE && worst.rounding.is_some(), "{worst}");
        assert!(worst.length == 1000 || worst.piece.is_some(), "{worst}"); // short pieces of an unlike shape round apart too

        let wrong = scaled(&chaotic, "decoder.weight", 1.001);
        let error = compare(&config, &chaotic, &wrong, &lengths, Precision::Fp32).unwrap_err().to_string();
        assert!(error.contains("at length 1"), "{error}");
    }

    #[test]
    fn half_precision_agrees_less_closely_and_still_refuses_other_weights() {
        let config =
            ModelConfig::Transformer(TransformerConfig { hidden_size: 32, num_heads: 2, ..Default::default() });
        let weights = scaled(&fresh(&config, 1), "lm_head.weight", 20.0);
        let worst = compare(&config, &weights, &weights, &[1, 60], Precision::Fp16).unwrap();
        assert!(worst.difference > 1e-5 && worst.difference < NARROW_TOLERANCE && worst.rounding.is_none(), "{worst}");
        let wrong = scaled(&weights, "ln_f.weight", 1.1);
        assert!(compare(&config, &weights, &wrong, &[1, 60], Precision::Fp16).is_err());
    }
}
