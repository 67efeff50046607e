//! Exports weights from a safetensors file, outside any run:
//!
//! ```text
//! cargo run --release -p exporters --example export_safetensors -- \
//!     '{"arch": "transformer", "hidden_size": 64, "num_heads": 4, "positional_embedding": "rope"}' \
//!     model.safetensors model.onnx
//! ```
//!
//! The first argument is a `[model]` table as JSON. Tokens are called by their ids. A fourth may name the
//! precision, a fifth the target.

use exporters::{ExportInfo, ExportOptions, export};
use models::{ModelConfig, Weights};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, input, output, rest @ ..] = &arguments[..] else {
        return Err("usage: export_safetensors MODEL_AS_JSON IN.safetensors OUT.onnx [PRECISION [TARGET]]".into());
    };
    let precision = rest.first().map_or("fp32", String::as_str).parse()?;
    let target = rest.get(1).map_or("portable", String::as_str).parse()?;
    let config: ModelConfig = serde_json::from_str(config)?;
    let weights = Weights::read(Path::new(input))?;
    let decoder = [
        "decoder.weight",
        "lm_head.weight",
        "head.weight",
        "backbone.embedding.weight",
        "wte.weight",
        "encoder.weight",
    ]
    .iter()
    .find_map(|name| weights.get(name));
    let vocab = decoder.and_then(|weight| weight.shape.first()).ok_or("the file has no decoder")?;
    let info = ExportInfo {
        handle: "none".into(),
        task: "none".into(),
        vocab: (0..*vocab).map(|id| id.to_string()).collect(),
        units: vec![],
        train_max_length: 0,
        max_position_embeddings: config.max_position_embeddings().unwrap_or(0),
        augmentation: config.augmentation().name().into(),
        seed: 0,
        checkpoint: input.clone(),
        checkpoint_checksum: "0".into(),
    };
    let file = export(&config, &weights, &info, &ExportOptions { precision, target, ..Default::default() })?;
    std::fs::write(output, file.model.model)?;
    Ok(())
}
