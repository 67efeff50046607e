use std::borrow::Cow;

/// A setting of `[model]` that cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("model.{key}: {reason}")]
pub struct ConfigError {
    /// The key in `[model]`.
    pub key: Cow<'static, str>,
    /// The problem and its remedy.
    pub reason: String,
}

impl ConfigError {
    pub(crate) fn new(key: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into() }
    }
}

/// A batch that a model cannot take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InputError {
    /// A position has no row in the model's table.
    #[error(
        "position {position} is past the model's table of {limit} positions\n  \
         hint: use shorter sequences, or train with a larger model.max_position_embeddings"
    )]
    PastTable {
        /// The largest position of the batch.
        position: i64,
        /// The rows of the table.
        limit: usize,
    },
    /// The model takes fractions where the batch has integers, or the other way round.
    #[error(
        "positional_embedding `{embedding}` takes {wanted} positions, but the batch was collated with {found} ones\n  \
         hint: collate with the model's own augmentation, `{augmentation}`"
    )]
    PositionKind {
        /// The model's positional embedding.
        embedding: &'static str,
        /// `integer` or `scalar`.
        wanted: &'static str,
        /// `integer` or `scalar`.
        found: &'static str,
        /// The augmentation that makes positions of the right kind.
        augmentation: &'static str,
    },
}
