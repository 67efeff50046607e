//! Exports a small model of every kind, with an input and the logits that burn computes from it, for other programs to
//! compare with:
//!
//! ```text
//! cargo run --release -p exporters --example reimport_cases -- FOLDER
//! ```
//!
//! Each architecture, and each positional scheme of a Transformer, is a kind: two files, `<kind>.onnx` and
//! `<kind>.safetensors`; the latter has `input_ids`, `attention_mask`, `position_ids` (or float `positions`)
//! `[batch, seq]` and `logits` `[batch, seq, vocab]`.

use data::{Augmentation, Batch, Collation, ExampleRef, PAD, PositionIds, PositionSampling, Vocabulary};
use exporters::{ExportInfo, export};
use models::transformer::{PositionalEmbedding, TransformerConfig};
use models::{Cpu, Model, ModelConfig, Weight, Weights};
use safetensors::tensor::{Dtype, TensorView};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: reimport_cases FOLDER")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let vocabulary = Vocabulary::numbers_then(10, &[PAD, "a"]);
    for kind in ModelConfig::KINDS.iter().filter(|kind| !(kind.has_positions)()) {
        let examples = (kind.examples)();
        let config = examples.first().ok_or("no example")?;
        write(config, &vocabulary, &folder.join(kind.name))?;
    }
    for &positional_embedding in PositionalEmbedding::ALL {
        let config = TransformerConfig {
            hidden_size: 16,
            num_layers: 2,
            num_heads: 2,
            positional_embedding,
            ..Default::default()
        };
        // without positions, the file needs another name than the keyword
        let name = if positional_embedding.name() == "none" { "nope" } else { positional_embedding.name() };
        write(&ModelConfig::Transformer(config), &vocabulary, &folder.join(name))?;
    }
    Ok(())
}

fn write(config: &ModelConfig, vocabulary: &Vocabulary, path: &Path) -> Result<(), Box<dyn Error>> {
    let device = Default::default();
    let mut model: Model<Cpu> = config.init(vocabulary.len(), 1, &device);
    // A fresh model's logits are nearly zero, and then everything agrees.
    let larger = |(name, weight): (&str, &Weight)| {
        let is_matrix = weight.shape.len() == 2 && !name.contains("kernel") && !name.ends_with("A_log");
        let values = weight.values.iter().map(|v| if is_matrix { 3.0 * v } else { *v }).collect();
        (name.to_owned(), Weight { shape: weight.shape.clone(), values })
    };
    let fresh = Weights::of(&model)?;
    let integers = fresh.integers().map(|(name, value)| (name.to_owned(), value));
    let weights = fresh.iter().map(larger).collect::<Weights>().with_integers(integers.collect::<Vec<_>>());
    weights.load_into(&mut model)?;
    let info = ExportInfo {
        handle: "none".into(),
        task: "none".into(),
        vocab: vocabulary.tokens().to_vec(),
        units: vec![],
        train_max_length: 0,
        max_position_embeddings: 128,
        augmentation: "none".into(),
        seed: 1,
        checkpoint: "none".into(),
        checkpoint_checksum: "0".into(),
    };
    std::fs::write(path.with_extension("onnx"), export(config, &weights, &info, &Default::default())?.model.model)?;

    let rows: [Vec<u16>; 2] = [(0..37).map(|i| i * 7 % 13).collect(), (0..20).map(|i| i * 5 % 11).collect()];
    let labels = [0i16; 37];
    let examples = rows.each_ref().map(|ids| ExampleRef {
        input_ids: ids,
        labels: &labels[..ids.len()],
        length: ids.len() as u32,
    });
    let scalar = config.augmentation().is_scalar();
    let augmentation = if scalar { Augmentation::Zooming } else { Augmentation::None };
    let positions = PositionSampling { augmentation, ..PositionSampling::SEQUENTIAL };
    let batch = Batch::collate(&examples, vocabulary, &Collation { positions, pad_to: None })?;
    let logits: Vec<f32> = model.forward(model.input(&batch, &device)).into_data().iter::<f32>().collect();
    let bytes = |ints: &[i64]| ints.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let shape = vec![batch.batch, batch.seq];
    let ints = [
        ("input_ids", bytes(&batch.input_ids)),
        ("attention_mask", bytes(&batch.attention_mask)),
        ("position_ids", bytes(batch.position_ids.as_integers().unwrap_or_default())),
    ];
    let bytes = |floats: &[f32]| floats.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let logits = bytes(&logits);
    let mut tensors =
        vec![("logits", TensorView::new(Dtype::F32, vec![batch.batch, batch.seq, vocabulary.len()], &logits)?)];
    let scalars;
    if let PositionIds::Scalars(values) = &batch.position_ids {
        scalars = bytes(values);
        tensors.push(("positions", TensorView::new(Dtype::F32, shape.clone(), &scalars)?));
    }
    for (name, values) in &ints {
        if !values.is_empty() {
            tensors.push((name, TensorView::new(Dtype::I64, shape.clone(), values)?));
        }
    }
    safetensors::serialize_to_file(tensors, None, &path.with_extension("safetensors"))?;
    Ok(())
}
