mod facts;

use super::outside::Outside;
use super::{Define, Examples, Family};
pub(crate) use facts::content;
use facts::{Counter, Facts, Loaded, SplitFacts, facts, load, token_hash};

use crate::dataset::field::{Rows, StringLabels};
use crate::{DataError, Example, IGNORE, LengthLimit, SetLoss, Split, Track, Vocabulary, stream_rng};
use rand::seq::index;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// How long an example is, in main tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthsOf {
    /// Its tokens without those that are not to be counted.
    #[default]
    Counted,
    /// The column `length`.
    Given,
}

/// The settings of [`OwnData`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A folder with the splits, or a file of training examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The training examples: a file or folder, or a split of the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// The validation examples, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<String>,
    /// The split `ood_test`, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// Without validation examples: the share of the training examples that is set aside for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
    /// The tokens in id order; by default those of the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab: Option<Vec<String>>,
    /// The tokens that labels are sets of; none where a label is a token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
    /// Where lengths come from.
    pub lengths: LengthsOf,
    /// The tokens that a length does not count.
    pub uncounted: Vec<String>,
    /// The labels of strings of a language.
    pub string_labels: StringLabels,
    /// Of a folder with files of several languages, which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// A hash of the tokens. The config of a run has it, so that its model is not taken for one of other tokens when
    /// the files have changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_hash: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: None,
            train: None,
            val: None,
            test: None,
            held_out: None,
            vocab: None,
            units: vec![],
            lengths: LengthsOf::default(),
            uncounted: vec![crate::dataset::field::BOS.into()],
            string_labels: StringLabels::default(),
            language: None,
            token_hash: None,
        }
    }
}

/// Examples of files that somebody else made: their labels are right by definition.
///
/// Training examples come in an order drawn by the seed, so that the first of them are a random subset; those of other
/// splits in the order of their file. The test of length L are the examples of `ood_test` of that length, or else those
/// of `val`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OwnData {
    settings: Settings,
    #[serde(skip)]
    facts: Option<Arc<Facts>>,
    #[serde(skip)]
    vocabulary: Option<Vocabulary>,
    #[serde(skip)]
    counter: Counter,
    #[serde(skip)]
    loaded: Mutex<HashMap<String, Arc<Loaded>>>,
    #[serde(skip)]
    held: OnceLock<Vec<u32>>,
    #[serde(skip)]
    orders: Mutex<HashMap<u64, Arc<Vec<u32>>>>,
    #[serde(skip)]
    tests: Mutex<Option<Arc<Tests>>>,
}

const TRAIN: &str = "train";
const VAL: &str = "val";
const TEST: &str = "ood_test";

impl Settings {
    /// Whether there are only tokens: the task of a model that was imported without one.
    fn has_no_files(&self) -> bool {
        let files = [&self.path, &self.train, &self.val, &self.test];
        files.iter().all(|file| file.is_none()) && self.vocab.is_some()
    }
}

impl OwnData {
    fn split(&self, name: &str) -> Option<&SplitFacts> {
        self.facts.as_ref()?.splits.iter().find(|split| split.name == name)
    }

    fn rows_of(&self, name: &str) -> usize {
        self.split(name).map_or(0, |split| split.rows)
    }

    /// How many training examples are set aside.
    fn held_out(&self) -> usize {
        let share = self.settings.held_out.filter(|_| self.split(VAL).is_none()).unwrap_or(0.0);
        (share * self.rows_of(TRAIN) as f64).round() as usize
    }

    /// The training examples that are set aside: the same for every seed, so that no model trains on them.
    fn held(&self) -> &[u32] {
        self.held.get_or_init(|| {
            let drawn = index::sample(&mut stream_rng(0, "held out", 0), self.rows_of(TRAIN), self.held_out());
            let mut drawn: Vec<u32> = drawn.into_iter().map(|index| index as u32).collect();
            drawn.sort_unstable();
            drawn
        })
    }

    /// The other training examples, in the order of a seed.
    fn order(&self, seed: u64) -> Arc<Vec<u32>> {
        let mut known = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let draw = || {
            let held = self.held();
            let rest: Vec<u32> = (0..self.rows_of(TRAIN) as u32).filter(|at| held.binary_search(at).is_err()).collect();
            let drawn = index::sample(&mut stream_rng(seed, "own data", 0), rest.len(), rest.len());
            Arc::new(drawn.into_iter().map(|index| rest[index]).collect())
        };
        known.entry(seed).or_insert_with(draw).clone()
    }

    /// The examples of a split of the files, read the first time.
    fn load(&self, name: &str) -> Result<Arc<Loaded>, DataError> {
        let known = || self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = known().get(name) {
            return Ok(loaded.clone());
        }
        let (Some(split), Some(vocabulary)) = (self.split(name), &self.vocabulary) else {
            return Err(DataError::NoSuchSplit {
                task: Self::NAME.into(),
                split: name.into(),
                splits: self.facts.iter().flat_map(|facts| &facts.splits).map(|split| split.name.clone()).collect(),
            });
        };
        let rows = Rows::recognise(&split.path, self.settings.string_labels)?;
        let loaded = Arc::new(load(&rows, vocabulary, &self.counter)?);
        if loaded.examples.len() != split.rows {
            return Err(rows.invalid("its examples have changed while it was in use".into()));
        }
        known().insert(name.to_owned(), loaded.clone());
        Ok(loaded)
    }

    /// The examples of a split.
    fn chosen(&self, split: &str, seed: u64) -> Result<Chosen, DataError> {
        match split {
            TRAIN => Ok((self.load(TRAIN)?, Some(self.order(seed)))),
            VAL if self.split(VAL).is_none() => Ok((self.load(TRAIN)?, Some(Arc::new(self.held().to_vec())))),
            other => Ok((self.load(other)?, None)),
        }
    }

    /// The splits that tests of a length come from.
    fn test_splits(&self) -> Vec<&'static str> {
        let is_there = |name: &&str| self.split(name).is_some() || (*name == VAL && self.held_out() > 0);
        [TEST, VAL].into_iter().filter(is_there).collect()
    }

    /// The examples that tests come from, by length.
    fn tests(&self) -> Result<Tests, DataError> {
        let of_split = |name: &str| {
            let (loaded, chosen) = self.chosen(name, 0)?;
            let mut by_length = loaded.by_length.clone();
            if let Some(chosen) = chosen {
                by_length.values_mut().for_each(|indices| indices.retain(|at| chosen.binary_search(at).is_ok()));
                by_length.retain(|_, indices| !indices.is_empty());
            }
            Ok((loaded, by_length))
        };
        self.test_splits().into_iter().map(of_split).collect()
    }

    /// [`Self::tests`], read the first time.
    fn known_tests(&self) -> Result<Arc<Tests>, DataError> {
        let mut known = self.tests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tests) = &*known {
            return Ok(tests.clone());
        }
        let tests = Arc::new(self.tests()?);
        *known = Some(tests.clone());
        Ok(tests)
    }
}

/// The examples of a split of the files, and the indices of those that are meant, where not all are.
type Chosen = (Arc<Loaded>, Option<Arc<Vec<u32>>>);

/// The examples that tests come from, by length: those of a split before those of the next.
type Tests = Vec<(Arc<Loaded>, BTreeMap<u32, Vec<u32>>)>;

impl Define for OwnData {
    const NAME: &'static str = "dataset";

    fn tokens(&self) -> Vec<String> {
        self.facts.as_ref().map(|facts| facts.tokens.clone()).unwrap_or_default()
    }

    fn units(&self) -> Vec<String> {
        self.facts.as_ref().map(|facts| facts.units.clone()).unwrap_or_default()
    }

    fn validate(&self) -> Result<(), String> {
        let Settings { path, train, vocab, held_out, .. } = &self.settings;
        if path.is_none() && train.is_none() && !self.settings.has_no_files() {
            return Err("there is no `path`\n  hint: path = FOLDER has the files of the splits; or train = FILE, \
                        val = FILE, test = FILE"
                .into());
        }
        if let Some(share) = held_out.filter(|share| !(*share > 0.0 && *share < 1.0)) {
            return Err(format!("held_out = {share} is no share between 0 and 1"));
        }
        check_tokens(vocab.as_deref().unwrap_or_default())
    }

    fn prepare(&mut self) -> Result<(), String> {
        if self.settings.has_no_files() {
            let Settings { vocab, units, .. } = &self.settings;
            let facts = Facts { tokens: vocab.clone().unwrap_or_default(), units: units.clone(), splits: vec![] };
            let vocabulary = Vocabulary::new(facts.tokens.clone()).with_units(units, SetLoss::default())?;
            self.counter = Counter::new(&self.settings, &vocabulary);
            (self.facts, self.vocabulary) = (Some(Arc::new(facts)), Some(vocabulary));
            return Ok(());
        }
        let found = facts(&self.settings).map_err(|error| error.to_string())?;
        let (wanted, hash) = (&self.settings.token_hash, token_hash(&found));
        if wanted.as_ref().is_some_and(|wanted| *wanted != hash) {
            return Err(format!(
                "its files have other tokens than they had when this was made (token_hash = {hash} now)\n  hint: a model \
                 is one of the tokens that it was trained on: bring the files back, or train anew"
            ));
        }
        let vocabulary = Vocabulary::new(found.tokens.clone()).with_units(&found.units, SetLoss::default())?;
        self.counter = Counter::new(&self.settings, &vocabulary);
        (self.facts, self.vocabulary) = (Some(found), Some(vocabulary));
        if self.split(TRAIN).is_none() {
            return Err("there are no training examples\n  hint: train = FILE names them".into());
        }
        if self.split(VAL).is_none() && self.held_out() == 0 {
            let reason = match self.settings.held_out {
                Some(share) => format!("held_out = {share} of {} training examples is none", self.rows_of(TRAIN)),
                None => "there are no validation examples".into(),
            };
            return Err(format!(
                "{reason}\n  hint: val = FILE names them; or held_out = 0.1 sets a tenth of the training examples aside"
            ));
        }
        match self.rows_of(TRAIN).saturating_sub(self.held_out()) {
            0 => Err("no training example is left\n  hint: held_out is a smaller share".into()),
            _ => Ok(()),
        }
    }

    fn bind(&mut self, _vocabulary: &Vocabulary, _helper: bool) {}

    fn longest(&self) -> usize {
        self.facts.iter().flat_map(|facts| &facts.splits).map(|split| split.tokens).max().unwrap_or(0)
    }

    fn train_examples(&self) -> usize {
        self.rows_of(TRAIN).saturating_sub(self.held_out()).max(1)
    }

    fn content(&self) -> Option<String> {
        let facts = self.facts.as_ref().filter(|facts| !facts.splits.is_empty())?;
        let splits = facts.splits.iter().filter(|split| [TRAIN, VAL, TEST].contains(&split.name.as_str()));
        Some(splits.map(|split| format!("{} {}", split.name, split.content)).collect::<Vec<_>>().join(", "))
    }
}

/// A list of tokens without one that is empty or there twice.
pub(super) fn check_tokens(tokens: &[String]) -> Result<(), String> {
    let twice = tokens.iter().enumerate().find(|(i, token)| token.is_empty() || tokens[..*i].contains(token));
    match twice {
        Some((_, token)) if token.is_empty() => Err("vocab has an empty token".into()),
        Some((_, token)) if token == "-1" => Err("vocab has the token `-1`, which says that there is no label".into()),
        Some((_, token)) => Err(format!("vocab has the token `{token}` twice")),
        None if tokens.iter().any(|token| token == "-1") => {
            Err("vocab has the token `-1`, which says that there is no label".into())
        }
        None => Ok(()),
    }
}

impl Outside for OwnData {
    fn ready(&self) -> Result<(), DataError> {
        if !self.settings.has_no_files() {
            return Ok(());
        }
        Err(DataError::TaskSetting {
            task: Self::NAME.into(),
            reason: "it has a vocabulary, but no examples".into(),
            hint: "name a task with the same tokens with --task, or a file of examples with --split".into(),
        })
    }

    fn tie(&self) -> Option<(&'static str, String)> {
        let is_tied = self.settings.vocab.is_some() || self.settings.token_hash.is_some();
        self.facts.as_ref().filter(|_| !is_tied).map(|facts| ("token_hash", token_hash(facts)))
    }

    fn more_splits(&self) -> Vec<String> {
        let names = self.facts.iter().flat_map(|facts| &facts.splits).map(|split| split.name.clone());
        names.filter(|name| ![TRAIN, VAL, TEST].contains(&name.as_str())).collect()
    }

    fn examples(&self, split: &str, seed: u64, range: Range<usize>) -> Result<Vec<Example>, DataError> {
        let (loaded, chosen) = self.chosen(split, seed)?;
        let end = range.end.min(chosen.as_ref().map_or(loaded.examples.len(), |chosen| chosen.len()));
        let at = |index: usize| chosen.as_ref().map_or(index, |chosen| chosen[index] as usize);
        Ok((range.start.min(end)..end).map(|index| loaded.examples.get(at(index)).to_example()).collect())
    }

    fn read(&self, file: &Path) -> Result<Option<Vec<Example>>, DataError> {
        let rows = Rows::recognise(file, self.settings.string_labels)?;
        let Some(vocabulary) = &self.vocabulary else { return Ok(None) };
        if !rows.is_of(vocabulary.tokens()) {
            return Err(rows.invalid("its metadata has another `vocab` than the task's".into()));
        }
        let loaded = load(&rows, vocabulary, &self.counter)?;
        Ok(Some(loaded.examples.iter().map(|example| example.to_example()).collect()))
    }
}

impl Family for OwnData {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn outside(&self) -> Option<&dyn Outside> {
        Some(self)
    }

    fn splits(&self) -> Vec<Split> {
        if self.settings.has_no_files() {
            return vec![];
        }
        let all = Split::ALL.into_iter();
        all.filter(|split| *split != Split::OodTest || self.split(TEST).is_some()).collect()
    }

    fn train_max_length(&self) -> u32 {
        self.split(TRAIN).map_or(0, |split| split.longest)
    }

    fn max_seen_len(&self) -> Option<usize> {
        let split = self.split(VAL).or(self.split(TRAIN));
        split.map(|split| split.seen).or(self.settings.has_no_files().then_some(0))
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        let there = self.rows_of(TRAIN).saturating_sub(self.held_out());
        match split {
            Split::Train if train > there => Err(format!(
                "{train} training examples were asked for, but there are {there}\n  hint: ask for fewer, or leave train_examples out"
            )),
            Split::Train => Ok(train),
            Split::Val if self.split(VAL).is_none() => Ok(self.held_out()),
            Split::Val => Ok(self.rows_of(VAL)),
            Split::OodTest | Split::Auxiliary(_) => Ok(self.rows_of(TEST)),
        }
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        Box::new(move |index| super::outside_example(self, split.name(), seed, index))
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        super::outside_length(input_ids, self.vocabulary.as_ref()).map(|()| self.counter.count(input_ids))
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        vec![IGNORE; input_ids.len()]
    }

    fn expected(&self, input_ids: &[u16], labels: &[i16]) -> Result<Vec<i16>, String> {
        self.length(input_ids).map(|_| labels.to_vec())
    }

    fn prefix_closed(&self) -> bool {
        false
    }

    fn distinct_tracks(&self) -> Option<usize> {
        let tests = self.known_tests().ok();
        let most = |tests: &Tests| tests.iter().flat_map(|(_, lengths)| lengths.values().map(Vec::len)).max();
        Some(tests.and_then(|tests| most(&tests)).unwrap_or(0))
    }

    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        // the longest test up to there, or any
        let tests = self.known_tests().ok();
        let lengths = || tests.iter().flat_map(|tests| tests.iter().flat_map(|(_, lengths)| lengths.keys().copied()));
        let length = lengths().filter(|length| *length <= max_length).max().or_else(|| lengths().min());
        let test = length.map(|length| self.test(seed, index, length).or_else(|_| self.test(seed, 0, length)));
        super::outside_track(test.and_then(Result::ok))
    }

    fn test(&self, _seed: u64, index: usize, length: u32) -> Result<Example, LengthLimit> {
        let limit = |reason: String| LengthLimit { length, reason };
        let tests = self.known_tests().map_err(|error| limit(error.to_string()))?;
        let found = tests.iter().find_map(|(loaded, lengths)| Some((loaded, lengths.get(&length)?)));
        match found {
            None => Err(limit(format!("no example of this length in {}", self.test_splits().join(" and ")))),
            Some((loaded, indices)) => match indices.get(index) {
                Some(at) => Ok(loaded.examples.get(*at as usize).to_example()),
                None => Err(limit(format!("there are {} examples of this length", indices.len()))),
            },
        }
    }

    fn chance(&self, _length: u32) -> Option<f64> {
        let labels = self.split(TEST).or(self.split(TRAIN))?.labels;
        Some(1.0 / labels as f64)
    }
}
