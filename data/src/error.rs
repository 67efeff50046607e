use std::path::PathBuf;

/// What can go wrong with tasks and datasets. Every message says what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No preset has this name.
    #[error("there is no task `{name}`{}\n  hint: `pipeline data list` shows every task", did_you_mean(.nearest))]
    UnknownTask {
        /// The name that was asked for.
        name: String,
        /// The closest existing name, if one is close.
        nearest: Option<String>,
    },
    /// A setting of a task that does not exist, or with an impossible value.
    #[error("task `{task}`: {reason}\n  hint: {hint}")]
    TaskSetting {
        /// The task.
        task: String,
        /// What is wrong with which setting.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// A split name that no task has.
    #[error(
        "there is no split `{name}`{}\n  hint: the splits are train, val, ood_test, and the tests of auxiliary data such as addbigram_test",
        did_you_mean(.nearest)
    )]
    UnknownSplit {
        /// The name that was asked for.
        name: String,
        /// The closest existing name, if one is close.
        nearest: Option<String>,
    },
    /// A split that other tasks have.
    #[error("task `{task}` has no split `{split}`\n  hint: it has {}", .splits.join(", "))]
    NoSuchSplit {
        /// The task.
        task: String,
        /// The split that was asked for.
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
        /// The name that was asked for.
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
        /// Positions that there are.
        max_position_embeddings: usize,
    },
    /// More or fewer examples were asked for than the family can give.
    #[error("task `{task}`: {reason}")]
    SplitSize {
        /// The task.
        task: String,
        /// What was asked, what is possible.
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
    /// A Parquet file that cannot be decoded.
    #[error(
        "cannot read {}: {reason}\n  hint: the file is damaged or is not Parquet; `pipeline data generate --task <T> --force` writes a dataset anew",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// Examples of another program that are not right; nothing was imported.
    #[error("{} is not imported: {problems} of {rows} examples are wrong\n{}\n  hint: {hint}", .path.display(), first_of(.first, *.problems))]
    Rejected {
        /// The file.
        path: PathBuf,
        /// Examples in it.
        rows: usize,
        /// How many of them are wrong.
        problems: usize,
        /// What is wrong with the first ones, by line or row.
        first: Vec<String>,
        /// What to do about it.
        hint: String,
    },
    /// A readable Parquet file that does not hold a dataset.
    #[error("{} is not a dataset of this program: {reason}\n  hint: {hint}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The first thing found wrong.
        reason: String,
        /// What to do about it.
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
            "\n  hint: nothing was left behind; free some space or point --runs-dir / --data-dir elsewhere"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "\n  hint: check the permissions, or point --runs-dir / --data-dir elsewhere"
        }
        ErrorKind::NotFound => "\n  hint: check the path",
        _ => "",
    }
}

impl DataError {
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
