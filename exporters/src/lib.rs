//! Lowers trained models to ONNX files for any batch size and length.
//!
//! | file | what it writes |
//! |---|---|
//! | `architectures/` | one architecture each, in the order of the file of that name in `models` |
//! | `attention.rs` | causal attention and its masks |
//! | `positions/` | positional embeddings, as `models::positions` |
//! | `layers.rs` | the layers they share, as `models::layers` |
//! | `graph/` | the builder: names, initializers, nodes, the file |
//! | [`onnx`] | the protobuf types, generated from `proto/onnx.proto` |
//!
//! The dispatch to them is made from the list [`models::architectures!`].
//!
//! A lowering does not trace: it states the graph, so nothing is unrolled and no length is fixed. A recurrent layer is
//! one `RNN`, `LSTM` or `GRU` node, or a `Scan` over steps or chunks of steps; the Transformer builds its causal mask
//! from the length of its input. The graph follows the modules of the model. In a viewer, the node
//! `/h.0/attn/c_attn/MatMul` multiplies by `h.0.attn.c_attn.weight`, which is the name and, unless the name says
//! otherwise (`….T` transposed, `….iofc` gates reordered), the layout in the checkpoint.
//!
//! Every file has the input `input_ids` `[batch, seq]` and the output `logits` `[batch, seq, vocab]`. The Transformer
//! also takes `attention_mask` and, unless it has no positional embedding, `position_ids`, both `[batch, seq]`; a looped one
//! `iterations`, an integer without axes. Of a recurrent model there is a
//! second file, which also takes its states before the first token as `state_<name>_in` `[batch, …]` and gives those after the last
//! one as `state_<name>_out`: with it, a long sequence can be fed in pieces, in constant memory. The metadata has the vocabulary,
//! the positional embedding and the origin of the model: see [`ExportInfo`].

mod architectures;
mod attention;
mod error;
mod fla;
mod graph;
mod layers;
mod linear_attention;
mod min_rnn;
mod options;
mod positions;

pub use error::ExportError;
pub use options::{ExportOptions, OPSETS, Precision, Target};

pub use graph::proto as onnx;

use graph::{Finished, GraphBuilder};
use models::{ModelConfig, Weights};

/// The metadata of a file beyond the model's own sizes; each field is stored under its name.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportInfo {
    /// The run.
    pub handle: String,
    /// The task the model was trained on.
    pub task: String,
    /// The tokens; a token's place is its id. Stored as a JSON list.
    pub vocab: Vec<String>,
    /// The tokens that a label is a set of: a set's members are those of them with a positive logit. Where labels are
    /// tokens there are none, and the file says nothing of it. Stored as a JSON list.
    pub units: Vec<String>,
    /// The longest training example, counted as a sweep counts length.
    pub train_max_length: usize,
    /// Positions are below this.
    pub max_position_embeddings: usize,
    /// How positions were drawn while training.
    pub augmentation: String,
    /// The run's seed.
    pub seed: u64,
    /// The checkpoint within the run.
    pub checkpoint: String,
    /// The checksum of the checkpoint's weights, by which a model is known to be made of them.
    pub checkpoint_checksum: String,
}

/// The name of the second file, beside the first, where the weights of a very large model are.
pub const WEIGHTS_FILE: &str = "model.onnx.data";

/// The name of the file, beside the model, that takes and gives recurrent states.
pub const STATEFUL_FILE: &str = "model.stateful.onnx";

/// [`WEIGHTS_FILE`] for [`STATEFUL_FILE`].
pub const STATEFUL_WEIGHTS_FILE: &str = "model.stateful.onnx.data";

/// An ONNX file, ready to be written to disk.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxFile {
    /// The graph, and the weights unless they are apart.
    pub model: Vec<u8>,
    /// The contents of [`WEIGHTS_FILE`]: the weights, where the graph could not hold them.
    pub weights: Option<Vec<u8>>,
}

/// The ONNX files of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxFiles {
    /// The model: sequences in, logits out.
    pub model: OnnxFile,
    /// [`STATEFUL_FILE`]: the same model with its recurrent states as inputs `state_<name>_in` and outputs `state_<name>_out`, for
    /// sequences in pieces. `None` for models without states. The first file's metadata has its fingerprint.
    pub stateful: Option<OnnxFile>,
}

/// The ONNX files of a model.
pub fn export(
    config: &ModelConfig,
    weights: &Weights,
    info: &ExportInfo,
    options: &ExportOptions,
) -> Result<OnnxFiles, ExportError> {
    options.validate()?;
    config.validate()?;
    let vocab = info.vocab.len();
    check_vocabulary(config, weights, vocab)?;
    let parameters = weights.iter().map(|(_, weight)| weight.values.len()).sum();
    let metadata = metadata(config, info, options, parameters);
    let build = |stateful, metadata: &[(&str, String)]| {
        let mut g = GraphBuilder::new(config.arch(), weights, options, stateful);
        lower(config, vocab, &mut g)?;
        g.finish(metadata)
    };
    let file = |built: Finished| OnnxFile { model: built.model, weights: built.weights };
    // What attention remembers is no state of a file: no sequence can go on in pieces then.
    let can_go_on = config.state_per_token() == 0;
    let stateful = build(can_go_on, &metadata)?;
    if !(stateful.has_states && can_go_on) {
        return Ok(OnnxFiles { model: file(stateful), stateful: None });
    }
    let link = ("stateful_fingerprint", stateful.graph_fingerprint.clone());
    let model = build(false, &[&metadata[..], &[link]].concat())?;
    Ok(OnnxFiles { model: file(model), stateful: Some(file(stateful)) })
}

/// The numbers of all recurrent states of a model of these sizes, for one sequence, as its ONNX file has them; 0 for a
/// Transformer, whose cache grows with the sequence by
/// [`state_per_token`](models::Architecture::state_per_token).
pub fn state_size(config: &ModelConfig, vocab: usize, weights: &Weights) -> Result<usize, ExportError> {
    config.validate()?;
    let mut g = GraphBuilder::new(config.arch(), weights, &ExportOptions::default(), true);
    lower(config, vocab, &mut g)?;
    Ok(g.finish(&[])?.state_size)
}

macro_rules! lowerings {
    ($($Variant:ident $module:ident $Config:ident $title:literal;)*) => {
        /// States the model's graph.
        fn lower(config: &ModelConfig, vocab: usize, g: &mut GraphBuilder<'_>) -> Result<(), ExportError> {
            match config {
                $(ModelConfig::$Variant(config) => architectures::$module::lower(config, vocab, g),)*
            }
        }
    };
}

models::architectures!(lowerings);

/// The lowerings would find this too, but report shapes.
fn check_vocabulary(config: &ModelConfig, weights: &Weights, vocab: usize) -> Result<(), ExportError> {
    let rows = |name: &&'static str| Some((*name, *weights.get(name)?.shape.first()?));
    match config.decoder_weights().iter().find_map(rows) {
        Some((decoder, rows)) if rows != vocab => Err(ExportError::Vocabulary { vocab, decoder, rows }),
        _ => Ok(()),
    }
}

fn metadata(
    config: &ModelConfig,
    info: &ExportInfo,
    options: &ExportOptions,
    parameters: usize,
) -> Vec<(&'static str, String)> {
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
        ("checkpoint_checksum", info.checkpoint_checksum.clone()),
        ("precision", options.precision.name().into()),
    ];
    metadata.push(("parameters", parameters.to_string()));
    metadata.push(("state_per_token", config.state_per_token().to_string()));
    metadata.extend((!config.is_causal()).then(|| ("causal", "false".into())));
    metadata.extend(config.iterations().map(|iterations| ("iterations", iterations.to_string())));
    metadata.extend((!info.units.is_empty()).then(|| ("units", serde_json::json!(info.units).to_string())));
    // Positions at and beyond this one have no row in the model's table.
    metadata.extend(config.max_length().map(|limit| ("position_limit", limit.to_string())));
    metadata
}
