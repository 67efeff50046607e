use std::path::PathBuf;

/// Errors of tasks and datasets. Every message says what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No preset has this name.
    #[error("there is no task `{name}`{}\n  hint: `pipeline data list` shows every task", did_you_mean(.nearest))]
    UnknownTask {
        /// The name given.
        name: String,
        /// The closest existing name, if one is close.
        nearest: Option<String>,
    },
    /// A setting of a task that does not exist, or with an impossible value.
    #[error("task `{task}`: {reason}\n  hint: {hint}")]
    TaskSetting {
        /// The task.
        task: String,
        /// The setting and its problem.
        reason: String,
        /// The remedy.
        hint: String,
    },
    /// A split name that no task has.
    #[error(
        "there is no split `{name}`{}\n  hint: the splits are train, val, ood_test, and the tests of auxiliary data such as addbigram_test",
        did_you_mean(.nearest)
    )]
    UnknownSplit {
        /// The name given.
        name: String,
        /// The closest existing name, if one is close.
        nearest: Option<String>,
    },
    /// A split that other tasks have.
    #[error("task `{task}` has no split `{split}`\n  hint: it has {}", .splits.join(", "))]
    NoSuchSplit {
        /// The task.
        task: String,
        /// The requested split.
        split: String,
        /// Those it has.
        splits: Vec<String>,
    },
    /// No augmentation has this name.
    #[error(
        "there is no position augmentation `{name}`{}\n  hint: none, shift, randomized, scaler+shift or zooming",
        did_you_mean(.nearest)
    )]
    UnknownAugmentation {
        /// The name given.
        name: String,
        /// The closest existing name, if one is close.
        nearest: Option<String>,
    },
    /// A batch is to be narrower than an example.
    #[error(
        "an example has {tokens} tokens, but batches are padded to {pad_to}\n  hint: examples are never cut; pad to at least {tokens} or to the longest of a batch"
    )]
    TooLong {
        /// Tokens of the example.
        tokens: usize,
        /// The width of the batch.
        pad_to: usize,
    },
    /// A batch is to have more tokens than [`crate::Batch::MOST_TOKENS`].
    #[error(
        "a batch of {rows} rows of {tokens} tokens is too large: there may be {} tokens\n  hint: pad to less, or take fewer examples at once",
        crate::Batch::MOST_TOKENS
    )]
    TooLarge {
        /// Rows of the batch.
        rows: usize,
        /// The width of the batch.
        tokens: usize,
    },
    /// Too few positions to draw from.
    #[error(
        "an example has {tokens} tokens, but `{augmentation}` draws {} positions below max_position_embeddings = {max_position_embeddings}\n  hint: one position is spare; raise max_position_embeddings or use shorter examples",
        .tokens + 1
    )]
    PositionRange {
        /// The augmentation.
        augmentation: &'static str,
        /// Tokens of the example other than `<pad>` and `<blk>`.
        tokens: usize,
        /// Available positions.
        max_position_embeddings: usize,
    },
    /// The family cannot give the requested number of examples.
    #[error("task `{task}`: {reason}")]
    SplitSize {
        /// The task.
        task: String,
        /// The request, and the possible sizes.
        reason: String,
    },
    /// The operating system refused to read or write a file.
    #[error("cannot {action} {}: {source}{}", .path.display(), io_hint(.source))]
    Io {
        /// "read", "write", "create" …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason the operating system gave.
        source: std::io::Error,
    },
    /// A damaged file.
    #[error(
        "cannot read {}: {reason}\n  hint: the file is damaged or was not written to its end; copy or write it again",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The decoder's message.
        reason: String,
    },
    /// An undamaged file of an unsupported format.
    #[error("cannot read {}: {reason}\n  hint: {hint}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kind of file found.
        reason: String,
        /// How to convert it.
        hint: String,
    },
    /// Invalid examples of another program; nothing was imported.
    #[error("{} is not imported: {problems} of {rows} examples are wrong\n{}\n  hint: {hint}", .path.display(), first_of(.first, *.problems))]
    Rejected {
        /// The file.
        path: PathBuf,
        /// Examples in it.
        rows: usize,
        /// How many of them are wrong.
        problems: usize,
        /// The problems of the first ones, by line or row.
        first: Vec<String>,
        /// The remedy.
        hint: String,
    },
    /// Several files of a split that differ.
    #[error(
        "split {split} of {task} is there for several seeds or sizes: {}\n  hint: name the file that is meant",
        .files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Ambiguous {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// Some of the files.
        files: Vec<PathBuf>,
    },
    /// A task runs a program, and nobody has said that it may.
    #[error(
        "the examples of this task come from a program, which was not run: {command}\n  hint: --allow-command runs it; do that only if you trust whoever wrote the config or the model"
    )]
    CommandNotAllowed {
        /// The whole command.
        command: String,
    },
    /// The program of a task did not give the examples that it was asked for.
    #[error("the command {command} {reason}\n  hint: {hint}")]
    Command {
        /// The whole command.
        command: String,
        /// The end of a sentence about it.
        reason: String,
        /// The remedy.
        hint: String,
    },
    /// A readable file that does not hold the examples that it should.
    #[error("cannot use {}: {reason}\n  hint: {hint}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The first thing found wrong.
        reason: String,
        /// The remedy.
        hint: String,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
}

fn first_of(first: &[String], problems: usize) -> String {
    let lines: Vec<String> = first.iter().map(|problem| format!("  {problem}")).collect();
    let more = problems - first.len().min(problems);
    let more = if more > 0 { format!("\n  … and {more} more") } else { String::new() };
    lines.join("\n") + &more
}

fn io_hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "\n  hint: the file was not left half-written; free some space or point --runs-dir / --data-dir / -o elsewhere"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "\n  hint: check the permissions, or point --runs-dir / --data-dir / -o elsewhere"
        }
        ErrorKind::NotFound => "\n  hint: check the path",
        ErrorKind::NotADirectory => "\n  hint: a part of the path is a file, not a folder",
        ErrorKind::IsADirectory => "\n  hint: name a file in it",
        _ => "",
    }
}

impl DataError {
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
