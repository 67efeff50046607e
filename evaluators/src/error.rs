use data::{Augmentation, DataError};
use std::path::PathBuf;

/// What can go wrong while a model is loaded, swept over lengths and its results written.
///
/// Every message says what was being done, to which file or option, what was found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A `--lengths` value that names no set of lengths.
    #[error(
        "cannot read the lengths `{text}`: {reason}\n  hint: write 1..1000 (both ends count), 10..500:10, or 10,50,100"
    )]
    Lengths {
        /// What was typed.
        text: String,
        /// The first thing found wrong.
        reason: String,
    },
    /// A name that is none of a closed set of choices.
    #[error("there is no {what} `{name}`{}\n  hint: the choices are {choices}", did_you_mean(.nearest))]
    UnknownName {
        /// "provider", "format".
        what: &'static str,
        /// What was asked for.
        name: String,
        /// The closest existing name, if one is close.
        nearest: Option<String>,
        /// All names.
        choices: String,
    },
    /// ONNX Runtime is nowhere on this machine and could not be fetched.
    #[error(
        "cannot find the ONNX Runtime library; these places were tried:{}\n  hint: `pip install onnxruntime`, or set ORT_DYLIB_PATH to the file of an ONNX Runtime 1.22 or newer",
        listed(.tried)
    )]
    RuntimeNotFound {
        /// Each place, with what was found there.
        tried: Vec<String>,
    },
    /// The folder that the fetched library is kept in cannot be written.
    #[error(
        "cannot keep ONNX Runtime in the cache {}: {source}\n  hint: set XDG_CACHE_HOME to a folder with 70 MB free, or set ORT_DYLIB_PATH to the file of an ONNX Runtime 1.22 or newer",
        .path.display()
    )]
    Cache {
        /// The cache folder.
        path: PathBuf,
        /// The reason the operating system gave.
        source: std::io::Error,
    },
    /// The library was found, but is unusable.
    #[error("cannot load ONNX Runtime from {} ({origin}): {reason}\n  hint: {hint}", .path.display())]
    RuntimeLoad {
        /// The library file.
        path: PathBuf,
        /// How it was chosen.
        origin: String,
        /// What the loader said.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// A provider was asked for by name and cannot run here.
    #[error("cannot use the provider `{provider}`: {reason}\n  hint: {hint}")]
    Provider {
        /// `cuda` or `tensorrt`.
        provider: &'static str,
        /// What is missing.
        reason: String,
        /// How to get it.
        hint: String,
    },
    /// ONNX Runtime refused the model file.
    #[error(
        "cannot load {} as an ONNX model: {reason}\n  hint: `pipeline export` writes one from a run; models from elsewhere must be ONNX of opset 26 or older",
        .path.display()
    )]
    Load {
        /// The model file.
        path: PathBuf,
        /// What ONNX Runtime said.
        reason: String,
    },
    /// An ONNX model with other inputs, outputs or metadata than the evaluator works with.
    #[error(
        "{} does not keep the ONNX contract: {reason}\n  hint: inputs are input_ids and, where needed, position_ids and attention_mask, all int64 [batch, seq] (scalar positions: float32); the output is logits float32 [batch, seq, vocab]; batch and seq are symbolic",
        .path.display()
    )]
    Contract {
        /// The model file.
        path: PathBuf,
        /// The first thing found wrong.
        reason: String,
    },
    /// The model and the task do not belong together.
    #[error("cannot evaluate {} on the task `{task}`: {reason}\n  hint: choose the task that the model was trained on", .path.display())]
    TaskMismatch {
        /// The model file.
        path: PathBuf,
        /// The task.
        task: String,
        /// What differs.
        reason: String,
    },
    /// Neither the model nor the caller says which task it is for.
    #[error(
        "{} does not say which task it is for\n  hint: name it with --task; `pipeline data list` shows them",
        .path.display()
    )]
    NoTask {
        /// The model file.
        path: PathBuf,
    },
    /// The model takes positions of another type than the augmentation makes.
    #[error(
        "cannot evaluate {}: its position_ids are {kind}, but its positions are `{}`\n  hint: float positions are `scaler+shift` or `zooming`, all others are int64; choose with --augmentation",
        .path.display(),
        .augmentation.name()
    )]
    Positions {
        /// The model file.
        path: PathBuf,
        /// `float` or `int64`.
        kind: &'static str,
        /// What the metadata or the caller says.
        augmentation: Augmentation,
    },
    /// A pass through the model failed.
    #[error(
        "cannot run {} on {batch} sequences of {seq} tokens: {reason}\n  hint: if memory ran out, lower the token budget of a batch or the longest length",
        .path.display()
    )]
    Run {
        /// The model file.
        path: PathBuf,
        /// Rows of the batch.
        batch: usize,
        /// Tokens per row.
        seq: usize,
        /// What ONNX Runtime said.
        reason: String,
    },
    /// A result table that cannot be built.
    #[error(
        "cannot build the result table: {reason}\n  hint: this is a defect of the evaluator; please report it with the command"
    )]
    Table {
        /// What Arrow said.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, EvalError>;

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
}

fn listed(items: &[String]) -> String {
    items.iter().map(|item| format!("\n    {item}")).collect()
}

/// The choice called `name` out of a closed set, or an error that names the nearest.
pub(crate) fn choose<T: Copy>(what: &'static str, name: &str, choices: &[(&'static str, T)]) -> Result<T> {
    let found = choices.iter().find(|(n, _)| *n == name);
    found.map(|(_, value)| *value).ok_or_else(|| EvalError::UnknownName {
        what,
        name: name.to_owned(),
        nearest: data::suggest::nearest(name, choices.iter().map(|(n, _)| *n)).map(str::to_owned),
        choices: choices.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", "),
    })
}
