use data::{Augmentation, DataError};
use std::path::PathBuf;

/// Errors of loading a model, sweeping it over lengths and writing its results.
///
/// Every message says what was being done, to which file or option, what was found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// An invalid `--lengths` value.
    #[error(
        "cannot read the lengths `{text}`: {reason}\n  hint: write 1..1000 (both ends count), 10..500:10, or 10,50,100"
    )]
    Lengths {
        /// The text given.
        text: String,
        /// The first thing found wrong.
        reason: String,
    },
    /// A name that is not in a closed set of choices.
    #[error("there is no {what} `{name}`{}\n  hint: the choices are {choices}", did_you_mean(.nearest))]
    UnknownName {
        /// "provider", "format".
        what: &'static str,
        /// The name given.
        name: String,
        /// The closest existing name, if one is close.
        nearest: Option<String>,
        /// All names.
        choices: String,
    },
    /// The caller has stopped the sweep.
    #[error("the sweep was interrupted")]
    Interrupted,
    /// ONNX Runtime was not found on this machine and could not be fetched.
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
        /// The loader's message.
        reason: String,
        /// The remedy.
        hint: String,
    },
    /// A provider that was requested by name cannot run here.
    #[error("cannot use the provider `{provider}`: {reason}\n  hint: {hint}")]
    Provider {
        /// `cuda` or `tensorrt`.
        provider: &'static str,
        /// The missing part.
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
        /// ONNX Runtime's message.
        reason: String,
    },
    /// A file of external weights that cannot be used.
    #[error("cannot load {}: its weights in `{location}` {reason}\n  hint: {hint}", .path.display())]
    Weights {
        /// The model file.
        path: PathBuf,
        /// The file with the weights, as the model names it.
        location: String,
        /// The problem.
        reason: String,
        /// The remedy.
        hint: &'static str,
    },
    /// There is nothing to run on; no input causes that.
    #[error("there is no session to run the model in\n  hint: this is a defect of the evaluator; please report it")]
    NoSession,
    /// Another process evaluates with the same journal.
    #[error(
        "another evaluation keeps its progress in {}\n  hint: wait until it has ended, or run this one in another folder",
        .path.display()
    )]
    Busy {
        /// The journal.
        path: PathBuf,
    },
    /// An ONNX model whose inputs, outputs or metadata the evaluator does not support.
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
    /// A number of iterations that the model cannot run with.
    #[error("{} cannot apply its blocks {iterations} times: {reason}", .path.display())]
    Iterations {
        /// The model file.
        path: PathBuf,
        /// What was asked for.
        iterations: u32,
        /// Why it cannot, with a hint.
        reason: &'static str,
    },
    /// The model and the task do not belong together.
    #[error("cannot evaluate {} on the task `{task}`: {reason}\n  hint: choose the task that the model was trained on", .path.display())]
    TaskMismatch {
        /// The model file.
        path: PathBuf,
        /// The task.
        task: String,
        /// The difference.
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
        /// The augmentation that the metadata or the caller names.
        augmentation: Augmentation,
    },
    /// A pass through the model failed.
    #[error(
        "cannot run {} on {batch} sequences of {seq} tokens: {reason}\n  hint: {}",
        .path.display(), run_hint(.reason)
    )]
    Run {
        /// The model file.
        path: PathBuf,
        /// Rows of the batch.
        batch: usize,
        /// Tokens per row.
        seq: usize,
        /// ONNX Runtime's message.
        reason: String,
    },
    /// The model ran at none of the requested lengths.
    #[error(
        "cannot run {} at any of the {lengths} lengths; at length {length}: {reason}\n  hint: {}",
        .path.display(), run_hint(.reason)
    )]
    NothingRan {
        /// The model file.
        path: PathBuf,
        /// How many lengths were requested.
        lengths: usize,
        /// The shortest that failed.
        length: u32,
        /// ONNX Runtime's message there, shortened.
        reason: String,
    },
    /// A result table that cannot be built.
    #[error(
        "cannot build the result table: {reason}\n  hint: this is a defect of the evaluator; please report it with the command"
    )]
    Table {
        /// Arrow's message.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// The result type of this crate.
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

fn run_hint(reason: &str) -> &'static str {
    match is_out_of_memory(reason) {
        true => "lower the token budget of a batch (--max-tokens) or the longest length",
        false => {
            "a model that was traced with one example may run at its shape only: export it with symbolic batch and seq, or \
             ask for the lengths that it takes"
        }
    }
}

/// Whether an error of ONNX Runtime is about memory; its providers have no common error for it.
pub(crate) fn is_out_of_memory(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    let signs = ["out of memory", "out_of_memory", "failed to allocate", "alloc_failed", "bad_alloc", "bad allocation"];
    signs.iter().any(|sign| reason.contains(sign))
}

/// Characters of a status.
const LONGEST_REASON: usize = 200;

/// ONNX Runtime's message as one readable line: without its own source files, functions and conditions, but with the
/// node.
pub(crate) fn shortened(reason: &str) -> String {
    let line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    let (place, message) = match line.rsplit_once("Status Message: ") {
        Some((place, message)) => (node(place), message),
        None => (None, &*line),
    };
    let message = without_source(message);
    // "CUDA failure 2: out of memory ; GPU=0 ; hostname=… ; file=… ; line=… ; expr=…"
    let message = message.split(" ; GPU=").next().unwrap_or(message);
    let message = message.strip_suffix("Please fix either the inputs/outputs or the model.").unwrap_or(message).trim();
    let mut message = message.trim_end_matches('.').to_owned();
    if let Some((at, _)) = message.char_indices().nth(LONGEST_REASON) {
        message.truncate(at);
        message.push('…');
    }
    match place {
        Some(node) => format!("{message} (in {node})"),
        None => message,
    }
}

/// `Gather '/wpe/Gather'` out of "Non-zero status code returned while running Gather node. Name:'/wpe/Gather' ".
fn node(place: &str) -> Option<String> {
    let (_, rest) = place.rsplit_once("while running ")?;
    let (operator, rest) = rest.split_once(" node.")?;
    let name = rest.split_once("Name:'").and_then(|(_, name)| name.split_once('\'')).map_or("", |(name, _)| name);
    Some(if name.is_empty() { operator.to_owned() } else { format!("{operator} `{name}`") })
}

/// Without a beginning like
/// `/onnxruntime_src/…/element_wise_ops.h:540 void onnxruntime::Init(int64_t) axis == 1 was false. `.
fn without_source(message: &str) -> &str {
    let is_source = |word: &str| {
        let file = word.rsplit_once(':').filter(|(_, line)| line.parse::<u32>().is_ok()).map(|(file, _)| file);
        file.is_some_and(|file| [".cc", ".h", ".cpp", ".hpp", ".cu", ".cuh"].iter().any(|end| file.ends_with(end)))
    };
    let Some((_, signature)) = message.split_once(' ').filter(|(first, _)| is_source(first)) else { return message };
    let Some(rest) = after_brackets(signature, '(', ')') else { return signature };
    let rest = rest.strip_prefix("const ").unwrap_or(rest);
    let rest = if rest.starts_with("[with ") { after_brackets(rest, '[', ']').unwrap_or(rest) } else { rest };
    match rest.split_once(" was false. ") {
        Some((_, said)) if !said.trim().is_empty() => said,
        _ => rest,
    }
}

/// The text after the first bracketed part.
fn after_brackets(text: &str, open: char, close: char) -> Option<&str> {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(text[at + close.len_utf8()..].trim_start());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_of_full_memories_are_known() {
        for message in [
            "Failed to allocate memory for requested buffer of size 1024",
            "CUDA failure 2: out of memory",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
            "std::bad_alloc",
        ] {
            assert!(is_out_of_memory(message), "{message}");
            assert!(run_hint(message).contains("--max-tokens"));
        }
        let shape = "Got invalid dimensions for input: input_ids";
        assert!(!is_out_of_memory(shape) && !run_hint(shape).contains("max-tokens"));
    }

    #[test]
    fn of_long_messages_what_matters_is_left() {
        for (said, left) in [
            (
                "Non-zero status code returned while running Gather node. Name:'/wpe/Gather' Status Message: indices element \
                 out of data bounds, idx=64 must be within the inclusive range [-64,63]",
                "indices element out of data bounds, idx=64 must be within the inclusive range [-64,63] (in Gather \
                 `/wpe/Gather`)",
            ),
            (
                "Non-zero status code returned while running Add node. Name:'' Status Message: \
                 /onnxruntime_src/onnxruntime/core/providers/cpu/math/element_wise_ops.h:540 void \
                 onnxruntime::BroadcastIterator::Init(int64_t, int64_t) axis == 1 || axis == largest was false. Attempting \
                 to broadcast an axis by a dimension other than 1. 50 by 100\n",
                "Attempting to broadcast an axis by a dimension other than 1. 50 by 100 (in Add)",
            ),
            (
                "Got invalid dimensions for input: input_ids for the following indices\n index: 1 Got: 5 Expected: 51\n \
                 Please fix either the inputs/outputs or the model.",
                "Got invalid dimensions for input: input_ids for the following indices index: 1 Got: 5 Expected: 51",
            ),
            (
                "CUDA failure 2: out of memory ; GPU=0 ; hostname=node ; file=/onnxruntime_src/a.cc ; line=376 ; expr=f();",
                "CUDA failure 2: out of memory",
            ),
            (
                "/a/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, std::function<void(int)>) \
                 Failed to allocate memory for requested buffer of size 12",
                "Failed to allocate memory for requested buffer of size 12",
            ),
            ("it gave no logits", "it gave no logits"),
        ] {
            assert_eq!(shortened(said), left);
        }
        assert_eq!(shortened(&"ä".repeat(1000)).chars().count(), LONGEST_REASON + 1);
    }
}
