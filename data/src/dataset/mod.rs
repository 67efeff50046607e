//! Examples in memory and on disk: [`Dataset`] and the description in its files ([`DatasetInfo`]). This program writes
//! Parquet; files of other programs (Parquet, Arrow, JSON, CSV and text) are recognised by their contents.

mod arrow_ipc;
mod columns;
mod damage;
pub(crate) mod field;
mod import;
mod layout;
mod padding;
mod pages;
mod parquet;
mod reading;
mod records;
mod source;
pub mod text;

pub use self::parquet::{generate_split, record_batches};
pub use field::StringLabels;
pub use import::{Imported, import, split_name};
pub use layout::{DatasetFolders, Origin, capped, short_name};
pub use source::dataset_dict;

pub(crate) use self::damage::without_panics;
use self::reading::{Bounds, Source};
use self::text::Interner;
use crate::task::CONTENT;
use crate::{DataError, Example, ExampleRef, PAD, SetLoss, Split, Task, Vocabulary};
use std::collections::BTreeMap;
use std::path::Path;

/// Raised whenever the same (task, seed) gives other bytes. Version 1 had the same examples in unsigned columns, from
/// which `length - 200` wraps around; its files are read like those of this version.
pub const GENERATOR_VERSION: u32 = 2;

/// The versions whose examples are those of [`GENERATOR_VERSION`].
const SAME_EXAMPLES: std::ops::RangeInclusive<u32> = 1..=GENERATOR_VERSION;

/// Rows per Arrow batch while writing and reading; bounds the memory next to the dataset itself.
pub(crate) const CHUNK: usize = 16_384;

/// The same bound for tokens: long examples come fewer at a time.
pub(crate) const CHUNK_TOKENS: usize = 4 << 20;

/// The description in a dataset file: in the footer of Parquet and in the Arrow schema, so that pyarrow has it as
/// `table.schema.metadata`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetInfo {
    /// The task the examples belong to.
    pub task: String,
    /// The tokens in id order.
    pub vocab: Vec<String>,
    /// The tokens that labels are sets of; none where labels are tokens.
    pub units: Vec<String>,
    /// The seed they were generated with.
    pub seed: u64,
    /// [`GENERATOR_VERSION`] of the writer; 0 for imported examples, whose seed is 0 as well.
    pub generator_version: u32,
    /// [`Task::parameters`]; empty in files of generator 1, which lack them.
    pub settings: BTreeMap<String, String>,
}

impl DatasetInfo {
    /// The description of the examples that `task` generates from `seed`.
    pub fn of(task: &Task, seed: u64) -> Self {
        Self {
            task: task.name.clone(),
            vocab: task.vocabulary.tokens().to_vec(),
            units: task.vocabulary.unit_tokens(),
            seed,
            generator_version: GENERATOR_VERSION,
            settings: task.parameters.iter().cloned().collect(),
        }
    }

    /// The description of examples of `task` from another program.
    pub fn imported(task: &Task) -> Self {
        Self { generator_version: 0, ..Self::of(task, 0) }
    }

    /// The description of examples without a task.
    fn unknown(vocab: Vec<String>) -> Self {
        let units = vec![];
        Self { task: "unknown".into(), vocab, units, seed: 0, generator_version: 0, settings: BTreeMap::new() }
    }

    /// The tokens and labels of the examples.
    pub fn vocabulary(&self) -> Vocabulary {
        let tokens = Vocabulary::new(self.vocab.clone());
        // units were checked when the description was made or read
        tokens.clone().with_units(&self.units, SetLoss::default()).unwrap_or(tokens)
    }

    /// The description in a file, without its examples, and the number of examples it states.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is not a dataset of this program.
    pub fn read(path: &Path) -> Result<(Self, usize), DataError> {
        without_panics(path, || {
            let source = Source::open(path)?;
            let info = source.info.clone().map_err(|reason| source.invalid(reason, UNDESCRIBED))?;
            Ok((info, source.rows()?))
        })
    }

    /// Whether the examples come from another program.
    pub fn is_imported(&self) -> bool {
        self.generator_version == 0
    }

    /// Whether the examples are those that `task` generates from `seed`.
    pub fn is_of(&self, task: &Task, seed: u64) -> bool {
        let wanted = Self::of(task, seed);
        let same_settings = self.settings.is_empty() || self.has_settings(&wanted);
        (&self.task, &self.vocab, &self.units, self.seed) == (&wanted.task, &wanted.vocab, &wanted.units, seed)
            && same_settings
            && SAME_EXAMPLES.contains(&self.generator_version)
    }

    /// Whether the settings are the same, and the contents of the files that examples were made from, as far as both
    /// state them.
    pub fn has_settings(&self, other: &Self) -> bool {
        let content = |info: &Self| info.settings.get(CONTENT).cloned();
        let own = |info: &Self| {
            let settings = info.settings.clone().into_iter();
            settings.filter(|(key, _)| key != CONTENT).collect::<BTreeMap<_, _>>()
        };
        let same_content = content(self).zip(content(other)).is_none_or(|(a, b)| a == b);
        same_content && own(self) == own(other)
    }

    /// The splits whose files have changed since; empty where that is not known or not so.
    pub fn changed_files(&self, task: &Task) -> Vec<String> {
        let content = |info: &Self| info.settings.get(CONTENT).cloned().unwrap_or_default();
        let (before, now) = (content(self), content(&Self::of(task, self.seed)));
        let before: Vec<&str> = before.split(", ").collect();
        let changed = now.split(", ").filter(|part| !before.contains(part) && !part.is_empty());
        if content(self).is_empty() { vec![] } else { changed.map(|part| name_of(part).to_owned()).collect() }
    }

    fn to_metadata(&self, more: &[(&str, String)]) -> BTreeMap<String, String> {
        let own = [
            ("task", self.task.clone()),
            ("vocab", serde_json::Value::from(self.vocab.clone()).to_string()),
            ("seed", self.seed.to_string()),
            ("generator_version", self.generator_version.to_string()),
            ("settings", serde_json::json!(self.settings).to_string()),
        ];
        let units = (!self.units.is_empty()).then(|| ("units", serde_json::json!(self.units).to_string()));
        own.iter().chain(&units).chain(more).map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    pub(crate) fn from_metadata(metadata: &BTreeMap<String, String>) -> Result<Self, String> {
        let get = |key: &str| metadata.get(key).ok_or_else(|| format!("its metadata has no `{key}`"));
        let number = |key: &str| get(key)?.parse::<u64>().map_err(|_| format!("its `{key}` is not a number"));
        let settings = metadata.get("settings").map(|text| serde_json::from_str(text)).transpose();
        let list = |name: &str, text: &String| {
            serde_json::from_str::<Vec<String>>(text).map_err(|_| format!("its `{name}` is not a JSON list"))
        };
        let vocab = list("vocab", get("vocab")?)?;
        let units = metadata.get("units").map_or(Ok(vec![]), |text| list("units", text))?;
        Vocabulary::new(vocab.clone()).with_units(&units, SetLoss::default())?;
        Ok(Self {
            task: get("task")?.clone(),
            vocab,
            units,
            seed: number("seed")?,
            generator_version: u32::try_from(number("generator_version")?)
                .map_err(|_| "its `generator_version` is not that of a generator".to_owned())?,
            settings: settings.map_err(|_| "its `settings` are not a JSON object".to_owned())?.unwrap_or_default(),
        })
    }
}

/// The split in a part of [`Task::parameters`]' content: `train 0123456789abcdef`.
fn name_of(part: &str) -> &str {
    part.split_once(' ').map_or("the command", |(name, _)| name)
}

/// The error for files without a row.
pub(crate) const NO_EXAMPLES: &str = "it has no examples";
pub(crate) const ROWS: &str =
    "a text file has a pair [[tokens], [labels]] on each line; a table has a row for each example";

/// The note on padding that was recognised by its labels alone, and removed.
pub(crate) fn padding_note(padded: usize, rows: usize) -> Option<String> {
    (padded > 0).then(|| {
        format!(
            "`{PAD}` that is labelled `{PAD}` was taken for padding in {padded} of {rows} examples: it is left out and not scored"
        )
    })
}

const UNDESCRIBED: &str = "name the task that the examples are of with --task";

/// Examples in memory, one allocation per column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    info: DatasetInfo,
    tokens: Vec<u16>,
    labels: Vec<i16>,
    ends: Vec<usize>,
    lengths: Vec<u32>,
    /// Examples with padding that the file does not declare, recognised by its labels.
    padded: usize,
}

impl Dataset {
    /// An empty dataset.
    pub fn new(info: DatasetInfo) -> Self {
        Self { info, tokens: vec![], labels: vec![], ends: vec![], lengths: vec![], padded: 0 }
    }

    /// An empty dataset of tokens and labels that no task is known to have.
    pub(crate) fn without_task(vocabulary: &Vocabulary) -> Self {
        let unknown = DatasetInfo::unknown(vocabulary.tokens().to_vec());
        Self::new(DatasetInfo { units: vocabulary.unit_tokens(), ..unknown })
    }

    /// A whole split of `task`, without going through a file.
    ///
    /// # Errors
    /// The examples come from outside ([`crate::Family::outside`]) and cannot be had, or one is wrong.
    pub fn generated(task: &Task, split: Split, seed: u64, rows: usize) -> Result<Self, DataError> {
        if let Some(outside) = task.family.outside() {
            return Ok(Self::of_examples(task, seed, &outside.examples(split.name(), seed, 0..rows)?));
        }
        let mut out = Self::new(DatasetInfo::of(task, seed));
        let examples = task.examples(split, seed);
        (0..rows).for_each(|i| out.push(examples(i).as_ref()));
        Ok(out)
    }

    /// A split or file that only the task knows: one that comes from outside. `None` where there is none of this name.
    ///
    /// # Errors
    /// It cannot be read, or an example is wrong.
    pub fn from_outside(task: &Task, split: &str) -> Result<Option<Self>, DataError> {
        let Some(outside) = task.family.outside() else { return Ok(None) };
        let path = Path::new(split);
        let examples = match outside.more_splits().iter().any(|name| name == split) {
            true => Some(outside.examples(split, 0, 0..usize::MAX)?),
            false if path.exists() && split.parse::<Split>().is_err() => without_panics(path, || outside.read(path))?,
            false => None,
        };
        Ok(examples.map(|examples| Self::of_examples(task, 0, &examples)))
    }

    fn of_examples(task: &Task, seed: u64, examples: &[Example]) -> Self {
        let mut out = Self::new(DatasetInfo::of(task, seed));
        examples.iter().for_each(|example| out.push(example.as_ref()));
        out
    }

    /// Appends an example.
    pub fn push(&mut self, example: ExampleRef<'_>) {
        self.tokens.extend_from_slice(example.input_ids);
        self.labels.extend_from_slice(example.labels);
        self.ends.push(self.tokens.len());
        self.lengths.push(example.length);
    }

    /// The description of the examples.
    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// The assumptions made while reading the examples that the file does not state, if any.
    pub fn note(&self) -> Option<String> {
        padding_note(self.padded, self.len())
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Example number `index`; panics past the end, as slices do.
    pub fn get(&self, index: usize) -> ExampleRef<'_> {
        let range = index.checked_sub(1).map_or(0, |i| self.ends[i])..self.ends[index];
        ExampleRef { input_ids: &self.tokens[range.clone()], labels: &self.labels[range], length: self.lengths[index] }
    }

    /// All examples in order.
    pub fn iter(&self) -> impl Iterator<Item = ExampleRef<'_>> + Clone {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The longest input in tokens other than `<pad>`. Of the validation split, the paper's code treats this as the
    /// longest sequence seen in training.
    pub fn max_seen_len(&self) -> usize {
        let pad = self.info.vocab.iter().rposition(|token| token == PAD);
        let real = |e: ExampleRef| e.input_ids.iter().filter(|id| Some(usize::from(**id)) != pad).count();
        self.iter().map(real).max().unwrap_or(0)
    }

    /// Reads a file written by [`generate_split`] or [`crate::import()`], checking every row: columns, equal list
    /// lengths, ids and labels inside the vocabulary. Other programs may have rewritten it, as long as it keeps its
    /// description.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is not a dataset of this program.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        without_panics(path, || {
            let source = Source::open(path)?;
            if let Err(reason) = &source.info {
                return Err(source.invalid(reason.clone(), UNDESCRIBED));
            }
            Self::collect(&source, None)
        })
    }

    /// Reads examples of `task` from anything that [`crate::import()`] takes. Without a task, the file's own
    /// description counts; without that, the vocabulary is the tokens that occur in it, or numbers.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, is of another vocabulary, has no examples, or a wrong one: the first is
    /// named.
    pub fn read_as(path: &Path, task: Option<&Task>) -> Result<Self, DataError> {
        without_panics(path, || {
            let source = Source::open(path)?;
            let read = Self::collect(&source, task)?;
            if read.is_empty() {
                return Err(source.invalid(NO_EXAMPLES.into(), ROWS));
            }
            Ok(read)
        })
    }

    /// Reads a whole text file for display. Without a task, the vocabulary is the tokens in order of occurrence.
    ///
    /// # Errors
    /// The file cannot be read, or the first wrong line.
    pub fn read_pairs(path: &Path, task: Option<&Task>) -> Result<Self, DataError> {
        Self::collect(&Source::pairs(path), task)
    }

    pub(crate) fn collect(source: &Source, task: Option<&Task>) -> Result<Self, DataError> {
        if let Some(task) = task {
            check_vocabulary(task, source)?;
        }
        let info = match (&source.info, task) {
            (Ok(info), _) => Some(info.clone()),
            (Err(_), Some(task)) => Some(DatasetInfo::imported(task)),
            (Err(_), None) => source.vocab.clone().map(DatasetInfo::unknown),
        };
        let described = source.info.is_ok();
        // Files of this program have the lengths; where another one has dropped them, they are counted.
        let named =
            if described && task.is_none() { info.as_ref().and_then(|i| Task::by_name(&i.task).ok()) } else { None };
        let counter = task.or(named.as_ref());
        let mut interner = Interner::default();
        let vocabulary = info.as_ref().map(DatasetInfo::vocabulary);
        let bounds = vocabulary.as_ref().map_or(Bounds::NONE, Bounds::of);
        let pad = vocabulary.as_ref().and_then(|vocabulary| vocabulary.id(PAD));
        let mut parse = |line: &str| match &vocabulary {
            Some(vocabulary) => text::parse_line(line, vocabulary),
            None => text::parse_new(line, &mut interner),
        };
        let mut out = Self::new(info.clone().unwrap_or_else(|| DatasetInfo::unknown(vec![])));
        source.for_each(bounds, &mut parse, &mut |place, found| {
            let wrong = |problem: String| {
                let colon = if problem.starts_with("has ") { "" } else { ":" };
                source.invalid(format!("{place}{colon} {problem}"), source.hint(&problem))
            };
            let found = found.map_err(wrong)?;
            // Files of this program are not padded, unless another program has rewritten them.
            let (own, length) = match (described, counter) {
                (false, Some(task)) => (padding::own(task, &found).map_err(wrong)?, None),
                _ => {
                    let range = padding::without_labelled(found.input_ids, found.labels, pad).map_err(wrong)?;
                    let is_assumed = range.len() < found.input_ids.len();
                    (padding::Own { range, is_assumed }, found.length)
                }
            };
            out.padded += usize::from(own.is_assumed);
            let (input_ids, labels) = (&found.input_ids[own.range.clone()], &found.labels[own.range]);
            let labelled = || labels.iter().filter(|label| **label >= 0).count() as u32;
            let count = || counter.map_or_else(labelled, |task| task.length(input_ids, labels));
            out.push(ExampleRef { input_ids, labels, length: length.unwrap_or_else(count) });
            Ok(())
        })?;
        if info.is_none() {
            out.info.vocab = interner.into_tokens();
            if !source.is_pairs() {
                let ids = out.tokens.iter().copied().chain(out.labels.iter().filter_map(|l| u16::try_from(*l).ok()));
                out.info.vocab = (0..=ids.max().unwrap_or(0)).map(|id| id.to_string()).collect();
            }
        }
        Ok(out)
    }
}

/// Examples belong to a task only if their ids mean its tokens.
pub(crate) fn check_vocabulary(task: &Task, source: &Source) -> Result<(), DataError> {
    let wanted = task.vocabulary.tokens();
    let Some(found) = source.vocab.as_ref().filter(|found| *found != wanted) else { return Ok(()) };
    let reason = match wanted.iter().zip(found).position(|(w, f)| w != f) {
        Some(id) => format!("token {id} of its vocabulary is `{}`, but `{}` in {}", found[id], wanted[id], task.name),
        None => format!("its vocabulary has {} tokens, that of {} has {}", found.len(), task.name, wanted.len()),
    };
    let hint = match &source.info {
        Ok(info) => format!("it was written for the task {}", info.task),
        Err(_) => {
            "its metadata says `vocab`: name the task that it is of, or give its tokens the ids of this one".into()
        }
    };
    Err(source.invalid(reason, &hint))
}
