//! The facts about files of examples that a task needs before it reads them: vocabulary, sizes, a hash of the contents.
//!
//! They are found by reading everything, once: in a process for as long as the files keep their sizes and times, and for
//! large files also on disk, in the user's cache.

use super::Settings;
use crate::dataset::field::{BOS, Coder, Collector, EOS, Rows, StringLabels, splits};
use crate::dataset::without_panics;
use crate::families::MAX_UNITS;
use crate::{DataError, Dataset, ExampleRef, PAD, SetLoss, Vocabulary, files};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

/// Files that are larger in all have their facts kept on disk; smaller ones are read in no time.
const LARGE: u64 = 8 << 20;

/// Raised whenever the same files give other facts.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The vocabulary.
    pub tokens: Vec<String>,
    /// The tokens that labels are sets of.
    pub units: Vec<String>,
    pub splits: Vec<SplitFacts>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SplitFacts {
    pub name: String,
    pub path: PathBuf,
    pub rows: usize,
    /// Tokens of the longest example.
    pub tokens: usize,
    /// Tokens of the longest example, `<pad>` not counted.
    pub seen: usize,
    /// Main tokens of the longest example.
    pub longest: u32,
    /// Different labels.
    pub labels: usize,
    /// A hash of its files.
    pub content: String,
}

/// Examples in memory, and which have a length.
#[derive(Debug)]
pub(super) struct Loaded {
    pub examples: Dataset,
    pub by_length: BTreeMap<u32, Vec<u32>>,
}

/// The facts about the files that `settings` name.
///
/// # Errors
/// The files cannot be found or read, or an example is wrong: the first is named.
pub(super) fn facts(settings: &Settings) -> Result<Arc<Facts>, DataError> {
    static KNOWN: LazyLock<Mutex<HashMap<String, Arc<Facts>>>> = LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = find(settings)?;
    let (key, bytes) = key(settings, &found)?;
    if let Some(facts) = known().get(&key) {
        return Ok(facts.clone());
    }
    let cache = if bytes > LARGE { cache_file(&key) } else { None };
    let kept = cache.as_ref().and_then(|path| read_cache(path, &key));
    let is_new = kept.is_none();
    let facts = Arc::new(kept.map_or_else(|| scan(settings, &found), Ok)?);
    if let Some(path) = cache.filter(|_| is_new) {
        // A cache that cannot be written only costs time.
        let document = serde_json::json!({ "key": key, "facts": &*facts });
        let _ = files::write_bytes(&path, document.to_string().as_bytes());
    }
    known().insert(key, facts.clone());
    Ok(facts)
}

/// The splits that the settings name, opened.
fn find(settings: &Settings) -> Result<Vec<(String, Rows)>, DataError> {
    let mut found = match &settings.path {
        Some(path) => splits(Path::new(path), settings.string_labels, settings.language.as_deref())?,
        None => vec![],
    };
    for (name, given) in [("train", &settings.train), ("val", &settings.val), ("ood_test", &settings.test)] {
        let Some(given) = given else { continue };
        // A split of the folder, a path in it, or a path.
        let own = found.iter().find(|(own, _)| own == given).map(|(_, path)| path.clone());
        let inside = settings.path.as_ref().map(|path| Path::new(path).join(given)).filter(|path| path.exists());
        let path = own.or(inside).unwrap_or_else(|| PathBuf::from(given));
        // one that was another split of the folder has this name now
        let is_main = |own: &str| ["train", "val", "ood_test"].contains(&own);
        found.retain(|(own, at)| own != name && (is_main(own) || *at != path));
        found.push((name.to_owned(), path));
    }
    let open = |(name, path): (String, PathBuf)| {
        without_panics(&path, || Rows::recognise(&path, settings.string_labels)).map(|rows| (name, rows))
    };
    found.into_iter().map(open).collect()
}

/// The settings, and what the file system says about the files: as long as that is the same, so are the facts.
fn key(settings: &Settings, found: &[(String, Rows)]) -> Result<(String, u64), DataError> {
    let (mut key, mut bytes) = (serde_json::json!([VERSION, settings]).to_string(), 0);
    for (name, rows) in found {
        for file in rows.files() {
            let metadata = file.metadata().map_err(DataError::io("read", &file))?;
            let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let place = std::path::absolute(&file).unwrap_or(file);
            bytes += metadata.len();
            key += &format!("\n{name} {} {} {:?}", place.display(), metadata.len(), modified.unwrap_or_default());
        }
    }
    Ok((key, bytes))
}

fn cache_file(key: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache =
        set("XDG_CACHE_HOME").filter(|path| path.is_absolute()).or_else(|| Some(set("HOME")?.join(".cache")))?;
    let mut hash = Hash::new();
    hash.add(key.as_bytes());
    Some(cache.join("inductive-counting").join("datasets").join(format!("{}.json", hash.text())))
}

fn read_cache(path: &Path, key: &str) -> Option<Facts> {
    #[derive(Deserialize)]
    struct Kept {
        key: String,
        facts: Facts,
    }
    let kept: Kept = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    (kept.key == key).then_some(kept.facts)
}

/// Reads everything: first the tokens, then the examples in the numbers of these.
fn scan(settings: &Settings, found: &[(String, Rows)]) -> Result<Facts, DataError> {
    let (tokens, units) = vocabulary(settings, found)?;
    let vocabulary = Vocabulary::new(tokens.clone()).with_units(&units, SetLoss::default());
    let vocabulary = vocabulary.map_err(|reason| wrong_setting(settings, reason))?;
    let counter = Counter::new(settings, &vocabulary);
    let mut splits = Vec::new();
    for (name, rows) in found {
        let loaded = load(rows, &vocabulary, &counter)?;
        let examples = &loaded.examples;
        let labels: BTreeSet<i16> =
            examples.iter().flat_map(|e| e.labels.iter().copied()).filter(|label| *label >= 0).collect();
        if labels.is_empty() {
            return Err(rows.invalid("no token of it has a label".into()));
        }
        let pad = vocabulary.pad_id();
        let seen = |e: ExampleRef| e.input_ids.iter().filter(|id| **id != pad).count();
        splits.push(SplitFacts {
            name: name.clone(),
            path: rows.path().to_owned(),
            rows: examples.len(),
            tokens: examples.iter().map(|e| e.input_ids.len()).max().unwrap_or(0),
            seen: examples.iter().map(seen).max().unwrap_or(0),
            longest: loaded.by_length.keys().next_back().copied().unwrap_or(0),
            labels: labels.len(),
            content: content(&rows.files())?,
        });
    }
    Ok(Facts { tokens, units, splits })
}

fn wrong_setting(settings: &Settings, reason: String) -> DataError {
    let path = settings.path.as_ref().or(settings.train.as_ref()).map(PathBuf::from).unwrap_or_default();
    DataError::Invalid {
        path,
        reason,
        hint: "vocab = [\"a\", \"b\", …] lists all tokens, units are some of them".into(),
    }
}

/// The tokens in id order and the units: as set, as the files describe them, or as they occur.
fn vocabulary(settings: &Settings, found: &[(String, Rows)]) -> Result<(Vec<String>, Vec<String>), DataError> {
    let described = || found.iter().find_map(|(_, rows)| rows.described());
    let (mut tokens, mut units) = match (&settings.vocab, described()) {
        (Some(vocab), _) => (vocab.clone(), vec![]),
        (None, Some(described)) => described,
        (None, None) => (occurring(settings, found)?, vec![]),
    };
    if !settings.units.is_empty() {
        units.clone_from(&settings.units);
    }
    for (_, rows) in found {
        if !rows.is_of(&tokens) {
            return Err(rows.invalid("its metadata has another `vocab` than the task's, or than another split".into()));
        }
    }
    for own in found.iter().flat_map(|(_, rows)| rows.own_tokens()).chain(&[PAD]) {
        if !tokens.iter().any(|token| token == own) {
            tokens.push((*own).to_owned());
        }
    }
    if settings.string_labels == StringLabels::NextSymbols && units.is_empty() {
        let special = [BOS, EOS, PAD];
        units = tokens.iter().filter(|token| !special.contains(&token.as_str())).cloned().collect();
        units.push(EOS.into());
        if units.len() > MAX_UNITS {
            let reason =
                format!("labels would be sets of {} tokens, but at most {MAX_UNITS} are possible", units.len());
            return Err(wrong_setting(settings, reason));
        }
    }
    Ok((tokens, units))
}

/// The tokens that occur, numbers by their value and then the others in the order of their bytes; or numbers, where
/// files have numbers.
fn occurring(settings: &Settings, found: &[(String, Rows)]) -> Result<Vec<String>, DataError> {
    if let Some((_, rows)) = found.iter().find(|(_, rows)| rows.has_ids()) {
        if let Some((_, other)) = found.iter().find(|(_, rows)| !rows.has_ids()) {
            let reason = format!("it has ids, but {} has tokens", other.path().display());
            return Err(rows.invalid(reason));
        }
        let sets = !settings.units.is_empty();
        let mut last = 0;
        for (_, rows) in found {
            each(rows, &mut Collector::default(), &mut |ids, labels, _| {
                let labels = labels.iter().filter(|_| !sets).filter_map(|label| u16::try_from(*label).ok());
                last = ids.iter().copied().chain(labels).fold(last, u16::max);
                Ok(())
            })?;
        }
        return Ok((0..=last).map(|id| id.to_string()).collect());
    }
    let mut collector = Collector { are_sets: !settings.units.is_empty(), ..Collector::default() };
    found.iter().try_for_each(|(_, rows)| each(rows, &mut collector, &mut |_, _, _| Ok(())))?;
    let mut tokens = collector.interner.into_tokens();
    tokens.extend(settings.units.clone());
    tokens.retain(|token| token != PAD);
    tokens.sort_by_cached_key(|token| (token.parse::<u64>().map_or(u64::MAX, |n| n), token.clone()));
    tokens.dedup();
    Ok(tokens)
}

/// What is done with ids, labels and the length of an example.
type Take<'a> = &'a mut dyn FnMut(&[u16], &[i16], Option<u32>) -> Result<(), String>;

/// Visits the examples of a split; the first wrong one is an error.
fn each(rows: &Rows, coder: &mut dyn Coder, take: Take<'_>) -> Result<(), DataError> {
    without_panics(rows.path(), || {
        rows.for_each(coder, &mut |place, found| {
            let taken = found.and_then(|found| take(found.input_ids, found.labels, found.length));
            taken.map_err(|problem| {
                let colon = if problem.starts_with("has ") || problem.starts_with("is ") { "" } else { ":" };
                rows.invalid(format!("{place}{colon} {problem}"))
            })
        })
    })
}

/// How main tokens are counted.
#[derive(Debug, Default)]
pub(super) struct Counter {
    uncounted: Vec<u16>,
    are_given: bool,
    pad: Option<u16>,
}

impl Counter {
    pub fn new(settings: &Settings, vocabulary: &Vocabulary) -> Self {
        Self {
            uncounted: settings.uncounted.iter().filter_map(|token| vocabulary.id(token)).collect(),
            are_given: settings.lengths == super::LengthsOf::Given,
            pad: vocabulary.id(PAD),
        }
    }

    /// The tokens that are counted.
    pub fn count(&self, input_ids: &[u16]) -> u32 {
        input_ids.iter().filter(|id| !self.uncounted.contains(id) && Some(**id) != self.pad).count() as u32
    }

    fn length(&self, input_ids: &[u16], given: Option<u32>) -> Result<u32, String> {
        match (self.are_given, given) {
            (false, _) => Ok(self.count(input_ids)),
            (true, Some(length)) => Ok(length),
            (true, None) => Err("has no `length`, and lengths = given".into()),
        }
    }

    /// An example without `<pad>` at its ends that has no label, or itself as a label.
    fn without_padding(&self, input_ids: &[u16], labels: &[i16]) -> Result<std::ops::Range<usize>, String> {
        let is_padding =
            |at: &usize| Some(input_ids[*at]) == self.pad && (labels[*at] < 0 || labels[*at] as u16 == input_ids[*at]);
        let start = (0..input_ids.len()).take_while(is_padding).count();
        let behind = (start..input_ids.len()).rev().take_while(is_padding).count();
        match start..input_ids.len() - behind {
            range if range.is_empty() => Err("has no token but padding".into()),
            range => Ok(range),
        }
    }
}

/// Reads the examples of a split.
///
/// # Errors
/// A file cannot be read, or an example is wrong: the first is named.
pub(super) fn load(rows: &Rows, vocabulary: &Vocabulary, counter: &Counter) -> Result<Loaded, DataError> {
    let mut examples = Dataset::without_task(vocabulary);
    let mut by_length: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    each(rows, &mut &*vocabulary, &mut |input_ids, labels, given| {
        let range = counter.without_padding(input_ids, labels)?;
        let (input_ids, labels) = (&input_ids[range.clone()], &labels[range]);
        let length = counter.length(input_ids, given)?;
        if length as usize > input_ids.len() {
            return Err(format!("has the length {length}, but {} tokens", input_ids.len()));
        }
        by_length.entry(length).or_default().push(examples.len() as u32);
        examples.push(ExampleRef { input_ids, labels, length });
        Ok(())
    })?;
    if examples.is_empty() {
        return Err(rows.invalid("it has no examples".into()));
    }
    Ok(Loaded { examples, by_length })
}

/// A hash of the contents of files.
pub(crate) fn content(paths: &[PathBuf]) -> Result<String, DataError> {
    let (mut hash, mut buffer) = (Hash::new(), vec![0; 1 << 16]);
    for path in paths {
        let mut file = File::open(path).map_err(DataError::io("read", path))?;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hash.add(&buffer[..read]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(DataError::io("read", path)(e)),
            }
        }
    }
    Ok(hash.text())
}

/// A hash of tokens and units.
pub(super) fn token_hash(facts: &Facts) -> String {
    let mut hash = Hash::new();
    for token in facts.tokens.iter().chain(&facts.units) {
        hash.add(token.as_bytes());
        hash.add(&[0xff]); // no byte of UTF-8
    }
    hash.text()
}

/// FNV-1a.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    }

    fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}
