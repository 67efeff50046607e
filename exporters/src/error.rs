use models::ConfigError;

/// Why a model cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The sizes contradict each other.
    #[error("cannot export the model: {0}")]
    Config(#[from] ConfigError),
    /// The model needs a weight that the checkpoint does not have.
    #[error(
        "cannot export the model: its weight `{name}`, of shape {expected:?}, is not in the checkpoint\n  \
         hint: do arch and num_layers match the run that saved the checkpoint?"
    )]
    MissingWeight {
        /// The name in the checkpoint.
        name: String,
        /// The shape the model needs.
        expected: Vec<usize>,
    },
    /// A weight's shape does not match the model's sizes.
    #[error(
        "cannot export the model: its weight `{name}` should have shape {expected:?}, but has {found:?} in the checkpoint\n  \
         hint: do hidden_size and the task match the run that saved the checkpoint?"
    )]
    WrongShape {
        /// The name in the checkpoint.
        name: String,
        /// The shape the model needs.
        expected: Vec<usize>,
        /// The shape in the checkpoint.
        found: Vec<usize>,
    },
    /// The checkpoint has weights that the model does not, so the export would compute something else.
    #[error(
        "cannot export the model: it has no place for {} of the checkpoint\n  \
         hint: do arch and num_layers match the run that saved the checkpoint?", .names.join(", ")
    )]
    UnusedWeights {
        /// The names in the checkpoint.
        names: Vec<String>,
    },
    /// Tokens and logits do not correspond.
    #[error(
        "cannot export the model: the vocabulary has {vocab} tokens, but `{decoder}` scores {rows}\n  \
         hint: was the checkpoint trained on another task?"
    )]
    Vocabulary {
        /// Tokens in the vocabulary.
        vocab: usize,
        /// The weight that makes logits, by its name in the checkpoint.
        decoder: &'static str,
        /// How many logits it makes.
        rows: usize,
    },
    /// The files are not written in this version of ONNX's operators.
    #[error("cannot export the model in opset {found}\n  hint: give one of {} to {}", .known.start(), .known.end())]
    Opset {
        /// The version requested.
        found: i64,
        /// The supported versions.
        known: std::ops::RangeInclusive<i64>,
    },
    /// There is no such precision.
    #[error("no precision is called `{name}`\n  hint: use fp32, fp16 or bf16")]
    Precision {
        /// The name given.
        name: String,
    },
    /// Files are not written for this.
    #[error("no target is called `{name}`\n  hint: use portable or ort")]
    Target {
        /// The name given.
        name: String,
    },
}
