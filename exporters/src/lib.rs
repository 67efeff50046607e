//! Lowers trained models to ONNX files that any length and any batch can be run through.
//!
//! | file | what it writes |
//! |---|---|
//! | `rnn.rs`, `lstm.rs`, `gru.rs`, `mingru.rs`, `s4.rs`, `mamba.rs`, `rwkv5.rs`, `rwkv6.rs`, `deltanet.rs`, `transformer.rs` | one architecture each, in the order of the file of that name in `models` |
//! | `layers.rs` | the layers they share, as `models::layers` |
//! | `graph.rs` | the builder: names, initializers, nodes, the file |
//! | [`onnx`] | the protobuf types, generated from `proto/onnx.proto` |
//!
//! A lowering does not trace: it states the graph, so nothing is unrolled and no length is fixed. A recurrent layer is
//! one `RNN`, `LSTM` or `GRU` node, or a `Scan` over steps or chunks of steps; the Transformer builds its causal mask from
//! the length of its input. The graph follows the
//! modules of the model. In a viewer, the node `/h.0/attn/c_attn/MatMul` multiplies by `h.0.attn.c_attn.weight`, which is
//! the name and, unless the name says otherwise (`….T` transposed, `….iofc` gates reordered), the layout in the
//! checkpoint.
//!
//! Every file has the input `input_ids` `[batch, seq]` and the output `logits` `[batch, seq, vocab]`. The Transformer
//! also takes `attention_mask` and, unless it has no positional embedding, `position_ids`, both `[batch, seq]`. A recurrent model gives
//! its states after the last token as `state_<name>_out` `[batch, …]`, and takes them as the optional `state_<name>_in`:
//! a long sequence can be fed in pieces, in constant memory. Whoever runs the file finds the vocabulary, the positional embedding and where the model comes from in its metadata: see [`ExportInfo`].

mod attention;
mod deltanet;
mod error;
mod graph;
mod gru;
mod layers;
mod lstm;
mod mamba;
mod mingru;
#[allow(missing_docs, clippy::all)]
pub mod onnx {
    //! The ONNX messages, generated from `proto/onnx.proto`.
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
mod options;
mod rnn;
mod rwkv;
mod rwkv5;
mod rwkv6;
mod s4;
mod transformer;

pub use error::ExportError;
pub use options::{ExportOptions, OPSETS, Precision, Target};

use graph::GraphBuilder;
use models::{ModelConfig, Weights};

/// What the metadata of a file says beyond the model's own sizes; each field is stored under its name.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportInfo {
    /// The run.
    pub handle: String,
    /// The task the model was trained on.
    pub task: String,
    /// The tokens; a token's place is its id. Stored as a JSON list.
    pub vocab: Vec<String>,
    /// The longest training example, counted as a sweep counts length.
    pub train_max_length: usize,
    /// Positions lie below this.
    pub max_position_embeddings: usize,
    /// How positions were drawn while training.
    pub augmentation: String,
    /// The run's seed.
    pub seed: u64,
    /// The checkpoint within the run.
    pub checkpoint: String,
}

/// The name of the second file, beside the first, where the weights of a very large model are.
pub const WEIGHTS_FILE: &str = "model.onnx.data";

/// An ONNX file, ready to be written to disk.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxFile {
    /// The graph, and the weights unless they are apart.
    pub model: Vec<u8>,
    /// What belongs into [`WEIGHTS_FILE`]: the weights, where the graph could not hold them.
    pub weights: Option<Vec<u8>>,
}

/// The ONNX file of a model.
pub fn export(
    config: &ModelConfig,
    weights: &Weights,
    info: &ExportInfo,
    options: &ExportOptions,
) -> Result<OnnxFile, ExportError> {
    options.validate()?;
    config.validate()?;
    let vocab = info.vocab.len();
    check_vocabulary(config, weights, vocab)?;
    let mut g = GraphBuilder::new(config.arch(), weights, options);
    match config {
        ModelConfig::Rnn(c) => rnn::lower(c, vocab, &mut g)?,
        ModelConfig::Lstm(c) => lstm::lower(c, vocab, &mut g)?,
        ModelConfig::Gru(c) => gru::lower(c, vocab, &mut g)?,
        ModelConfig::MinGru(c) => mingru::lower(c, vocab, &mut g)?,
        ModelConfig::DeltaNet(c) => deltanet::lower(c, vocab, &mut g)?,
        ModelConfig::S4(c) => s4::lower(c, vocab, &mut g)?,
        ModelConfig::Mamba(c) => mamba::lower(c, vocab, &mut g)?,
        ModelConfig::Rwkv5(c) => rwkv5::lower(c, vocab, &mut g)?,
        ModelConfig::Rwkv6(c) => rwkv6::lower(c, vocab, &mut g)?,
        ModelConfig::Transformer(c) => transformer::lower(c, vocab, &mut g)?,
    }
    g.finish(&metadata(config, info, options))
}

/// The lowerings would find this too, but as a matter of shapes.
fn check_vocabulary(config: &ModelConfig, weights: &Weights, vocab: usize) -> Result<(), ExportError> {
    // where embeddings are tied, the table of the embedding makes the logits
    let decoders: &[&'static str] = match config {
        ModelConfig::Rnn(_) | ModelConfig::Lstm(_) | ModelConfig::S4(_) => &["decoder.weight", "encoder.weight"],
        ModelConfig::Gru(_) | ModelConfig::MinGru(_) | ModelConfig::DeltaNet(_) => &["decoder.weight"],
        ModelConfig::Mamba(_) => &["backbone.embedding.weight"],
        ModelConfig::Rwkv5(_) | ModelConfig::Rwkv6(_) => &["head.weight"],
        ModelConfig::Transformer(_) => &["lm_head.weight", "wte.weight"],
    };
    let rows = |name: &&'static str| Some((*name, *weights.get(name)?.shape.first()?));
    match decoders.iter().find_map(rows) {
        Some((decoder, rows)) if rows != vocab => Err(ExportError::Vocabulary { vocab, decoder, rows }),
        _ => Ok(()),
    }
}

fn metadata(config: &ModelConfig, info: &ExportInfo, options: &ExportOptions) -> Vec<(&'static str, String)> {
    let mut metadata = vec![
        ("handle", info.handle.clone()),
        ("task", info.task.clone()),
        ("arch", config.arch().into()),
        ("vocab", serde_json::Value::from(info.vocab.clone()).to_string()),
        ("positional_embedding", config.positional_embedding().into()),
        ("max_position_embeddings", info.max_position_embeddings.to_string()),
        ("train_max_length", info.train_max_length.to_string()),
        ("augmentation", info.augmentation.clone()),
        ("num_layers", config.num_layers().to_string()),
        ("hidden_size", config.hidden_size().to_string()),
        ("seed", info.seed.to_string()),
        ("checkpoint", info.checkpoint.clone()),
        ("precision", options.precision.name().into()),
    ];
    // Positions at and beyond this one have no row in the model's table.
    metadata.extend(config.max_length().map(|limit| ("position_limit", limit.to_string())));
    metadata
}
