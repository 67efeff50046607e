/// A setting of `[model]` that cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("model.{key}: {reason}")]
pub struct ConfigError {
    /// The key in `[model]`.
    pub key: &'static str,
    /// What is wrong and what to do.
    pub reason: String,
}

impl ConfigError {
    pub(crate) fn new(key: &'static str, reason: impl Into<String>) -> Self {
        Self { key, reason: reason.into() }
    }
}
