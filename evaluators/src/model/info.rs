//! A model's metadata.

use ort::session::ModelMetadata;
use std::str::FromStr;

/// The metadata of a model file, each field from the key of the same name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// The run that it was exported from.
    pub handle: Option<String>,
    /// The task it was trained on.
    pub task: Option<String>,
    /// The architecture, `lstm` for example.
    pub arch: Option<String>,
    /// The kind of positional embedding.
    pub positional_embedding: Option<String>,
    /// The tokens in id order (in the file a JSON list).
    pub vocab: Option<Vec<String>>,
    /// The longest length in training.
    pub train_max_length: Option<u32>,
    /// How position ids were augmented in training; `none` or absent where they were not.
    pub augmentation: Option<String>,
    /// Layers.
    pub num_layers: Option<u32>,
    /// Width.
    pub hidden_size: Option<u32>,
    /// The training seed.
    pub seed: Option<u64>,
    /// The checkpoint that was exported.
    pub checkpoint: Option<String>,
    /// The arithmetic, `fp32` for example.
    pub precision: Option<String>,
    /// Weights, one that serves twice counted once.
    pub parameters: Option<u64>,
    /// Numbers of all recurrent states of one sequence.
    pub state_size: Option<u64>,
    /// Numbers that a cache of keys and values has for every token.
    pub state_per_token: Option<u64>,
    /// How often a looped model applied its blocks in training; absent for models that are not looped.
    pub iterations: Option<u32>,
    /// Whether no output depends on later tokens; absent where the file does not say it.
    pub causal: Option<bool>,
    /// Position ids in training were below this; limits nothing by itself.
    pub max_position_embeddings: Option<u32>,
    /// Rows of a position table: position ids must be below this. Where the file does not say it, models with absolute
    /// or sinusoidal positions have as many as `max_position_embeddings`, and others have no table.
    pub position_limit: Option<u32>,
}

impl ModelInfo {
    pub(super) fn read(metadata: &ModelMetadata<'_>) -> std::result::Result<Self, String> {
        fn number<T: FromStr>(metadata: &ModelMetadata<'_>, key: &str) -> std::result::Result<Option<T>, String> {
            let Some(text) = metadata.custom(key) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| format!("its metadata `{key}` is `{text}`, not a number"))
        }
        let positional_embedding = metadata.custom("positional_embedding");
        let max_position_embeddings = number(metadata, "max_position_embeddings")?;
        let has_table = matches!(positional_embedding.as_deref(), Some("absolute" | "sinusoidal"));
        let vocab = metadata.custom("vocab").map(|text| serde_json::from_str(&text)).transpose();
        Ok(Self {
            handle: metadata.custom("handle"),
            task: metadata.custom("task"),
            arch: metadata.custom("arch"),
            positional_embedding,
            vocab: vocab.map_err(|e| format!("its metadata `vocab` is not a JSON list of tokens ({e})"))?,
            train_max_length: number(metadata, "train_max_length")?,
            augmentation: metadata.custom("augmentation"),
            num_layers: number(metadata, "num_layers")?,
            hidden_size: number(metadata, "hidden_size")?,
            seed: number(metadata, "seed")?,
            checkpoint: metadata.custom("checkpoint"),
            precision: metadata.custom("precision"),
            parameters: number(metadata, "parameters")?,
            state_size: number(metadata, "state_size")?,
            state_per_token: number(metadata, "state_per_token")?,
            iterations: number(metadata, "iterations")?,
            causal: match metadata.custom("causal").as_deref() {
                None => None,
                Some("true") => Some(true),
                Some("false") => Some(false),
                Some(other) => return Err(format!("its metadata `causal` is `{other}`, neither true nor false")),
            },
            max_position_embeddings,
            position_limit: number(metadata, "position_limit")?.or(max_position_embeddings.filter(|_| has_table)),
        })
    }
}
