//! Tasks: named presets of a family ([`Task`]), the examples they consist of ([`Example`]), endless test sequences
//! ([`Track`]) and their vocabularies.

mod config;
mod example;
mod name;
mod papers;
mod track;
mod vocab;

pub(crate) use name::split as split_settings;

pub use config::TaskConfig;
pub use example::{Example, ExampleRef, IGNORE};
pub use track::{LengthLimit, Track};
pub use vocab::{PAD, SetLoss, Vocabulary};

use crate::families::{
    Arithmetic, Automaton, Auxiliary, AuxiliaryData, Brackets, Command, Counter, Counting, Debug, Define, Examples,
    Expressions, Family, InductionHeads, Interleaved, Modular, Mqar, OwnData, Plain, Prompt, RaspL, Recall, Selective,
    SelectiveCopying, SelectiveItems, SelectiveModular, ShiftedStart, Stack, Tally,
};
use crate::{BLANK, DataError, suggest};
use name::{parse_name, show};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::sync::LazyLock;
use toml::{Table, Value};

/// The splits of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// The training examples.
    Train,
    /// The same distribution, for model selection.
    Val,
    /// Longer sequences than any in training.
    OodTest,
    /// The test of a task's auxiliary data.
    Auxiliary(Auxiliary),
}

impl Split {
    /// The splits that every task has, in the order of writing. [`Task::splits`] lists those of one task.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::OodTest];

    /// The split's name in files and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::OodTest => "ood_test",
            Self::Auxiliary(auxiliary) => auxiliary.test_name(),
        }
    }

    /// The purpose of the random streams that letters come from.
    pub(crate) fn letters(self) -> &'static str {
        match self {
            Self::Train => "train letters",
            Self::Val => "val letters",
            Self::OodTest | Self::Auxiliary(_) => "ood_test letters",
        }
    }
}

impl FromStr for Split {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let all = || Self::ALL.into_iter().chain(Auxiliary::ALL.map(Self::Auxiliary));
        all().find(|split| split.name() == name).ok_or_else(|| DataError::UnknownSplit {
            name: name.to_owned(),
            nearest: suggest::nearest(name, all().map(Self::name)).map(str::to_owned),
        })
    }
}

/// A helper token after each token of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Helper {
    #[default]
    None,
    Pad,
    Blk,
}

/// The settings that every family has; `presets.toml` explains them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Common {
    helper: Helper,
    #[serde(skip_serializing_if = "Option::is_none")]
    auxiliary: Option<Auxiliary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auxiliary_examples: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    train_examples: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_position_embeddings: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_seq_len: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    set_loss: Option<SetLoss>,
}

/// The name among [`Task::parameters`] of what identifies the files that examples are made from.
pub(crate) const CONTENT: &str = "content";

const COMMON: [&str; 7] = [
    "helper",
    "auxiliary",
    "auxiliary_examples",
    "train_examples",
    "max_position_embeddings",
    "max_seq_len",
    "set_loss",
];

/// A family with its parameters fixed.
///
/// A task's name states all of its settings: a preset of the paper (`counting_samesymbol_mod10bos`) or a family,
/// with settings that differ from it after commas: `modular,modulus=7,train_max=35`,
/// `counting_samesymbol,last_number=1000`. Values are written as in TOML, but that plain words need no quotation marks:
/// `dataset,path=data/parity,vocab=["a", "b"]`, `dataset,path="a, b"`.
#[derive(Debug)]
pub struct Task {
    /// The name, with its settings in alphabetical order.
    pub name: String,
    /// The generator and label rule of the main examples.
    pub family: Box<dyn Family>,
    /// Data mixed into training.
    pub auxiliary: Option<AuxiliaryData>,
    /// Tokens in id order.
    pub vocabulary: Vocabulary,
    /// Rows of a learned position table; position ids are drawn below this.
    pub max_position_embeddings: usize,
    /// The longest training sequence in tokens that the original pads to.
    pub max_seq_len: usize,
    /// Main examples in the training split of the paper.
    pub train_examples: usize,
    /// Every setting with its value, those that have none left out.
    pub parameters: Vec<(String, String)>,
}

/// The facts about a family that need no settings.
struct Kind {
    name: &'static str,
    examples: &'static [&'static str],
    define: fn(Table, Common) -> Result<Task, String>,
}

const fn kind<F: Define>() -> Kind {
    Kind { name: F::NAME, examples: F::EXAMPLES, define: define::<F> }
}

/// Every family: a line for each.
const FAMILIES: &[Kind] = &[
    kind::<Counting>(),
    kind::<ShiftedStart>(),
    kind::<Plain>(),
    kind::<Modular>(),
    kind::<Selective>(),
    kind::<SelectiveItems>(),
    kind::<SelectiveModular>(),
    kind::<RaspL>(),
    kind::<Debug>(),
    kind::<Automaton>(),
    kind::<Brackets>(),
    kind::<Counter>(),
    kind::<Expressions>(),
    kind::<Stack>(),
    kind::<Tally>(),
    kind::<Prompt>(),
    kind::<Arithmetic>(),
    kind::<Mqar>(),
    kind::<Recall>(),
    kind::<InductionHeads>(),
    kind::<SelectiveCopying>(),
    kind::<OwnData>(),
    kind::<Command>(),
];

/// The presets in the order of their file. A test makes every one of them; the file is part of the program.
static PRESETS: LazyLock<Vec<(&'static str, Table)>> = LazyLock::new(|| {
    let text = include_str!("presets.toml");
    let tables: Table = text.parse().unwrap_or_default();
    // a line for each, `name = { … }`, or a table under `[name]`; names with `/` have quotes
    let names = text.lines().filter_map(|line| match line.strip_prefix('[') {
        Some(header) => header.split_once(']'),
        None => line.split_once(" = {").or_else(|| line.split_once("= {")),
    });
    let names = names.map(|(name, _)| name.trim().trim_matches('"'));
    names.filter_map(|name| Some((name, tables.get(name)?.as_table()?.clone()))).collect()
});

impl Task {
    /// The names of all presets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// The names of all families.
    pub fn families() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|family| family.name)
    }

    /// Names of tasks that between them use every setting: all presets, and the examples of the families.
    pub fn names_for_tests() -> impl Iterator<Item = String> {
        let own = |family: &'static Kind| family.examples.iter().map(|settings| format!("{},{settings}", family.name));
        Self::names().map(str::to_owned).chain(FAMILIES.iter().flat_map(own))
    }

    /// The task called `name`: a preset or a family, then any settings as `,key=value`.
    ///
    /// # Errors
    /// There is no such preset, family or setting, or a setting has an impossible value.
    pub fn by_name(name: &str) -> Result<Self, DataError> {
        Self::with_settings(name, Table::new())
    }

    /// [`Self::by_name`] with more settings, which come last.
    ///
    /// # Errors
    /// As [`Self::by_name`].
    pub fn with_settings(name: &str, more: Table) -> Result<Self, DataError> {
        let (base, mut settings) = parse_name(name)?;
        settings.extend(more);
        let mut table = match PRESETS.iter().find(|(name, _)| *name == base) {
            Some((_, preset)) => preset.clone(),
            None if Self::families().any(|name| name == base) => Table::from_iter([("family".into(), base.into())]),
            None => {
                let nearest = suggest::nearest(base, Self::names().chain(Self::families())).map(str::to_owned);
                return Err(DataError::UnknownTask { name: base.to_owned(), nearest });
            }
        };
        settings.retain(|key, value| table.get(key) != Some(value));
        table.extend(settings.clone());
        let name = std::iter::once(base.to_owned()).chain(settings.iter().map(|(k, v)| format!("{k}={}", show(v))));
        let name = name.collect::<Vec<_>>().join(",");
        let setting = |reason: String| {
            let (reason, hint) = match reason.split_once("\n  hint: ") {
                Some((reason, hint)) => (reason.to_owned(), hint.to_owned()),
                None => (reason, "`pipeline data list --json` shows the settings of every task".to_owned()),
            };
            DataError::TaskSetting { task: name.clone(), reason, hint }
        };
        let common: Table = COMMON.iter().filter_map(|key| table.remove_entry(*key)).collect();
        let common = Common::deserialize(common).map_err(|e| setting(explain(&e)))?;
        let family = table.remove("family");
        let family = family.as_ref().and_then(Value::as_str).unwrap_or_default();
        let define = FAMILIES.iter().find(|known| known.name == family);
        let define = define.ok_or_else(|| setting(format!("there is no family `{family}`")))?;
        let task = (define.define)(table, common).map_err(setting)?;
        Ok(Self { name, ..task })
    }

    /// The paper that the task's preset is from; `None` for families of this program with settings of one's own.
    pub fn paper(&self) -> Option<&'static str> {
        let (base, _) = parse_name(&self.name).ok()?;
        PRESETS.iter().any(|(name, _)| *name == base).then(|| papers::paper_of(base)).flatten()
    }

    /// The settings of a preset that differ from the family's own.
    pub fn settings(&self) -> Vec<(String, String)> {
        let (base, settings) = parse_name(&self.name).unwrap_or((&self.name, Table::new()));
        let preset = PRESETS.iter().find(|(name, _)| *name == base).map(|(_, preset)| preset.clone());
        let all = preset.unwrap_or_default().into_iter().filter(|(key, _)| key != "family").chain(settings);
        all.map(|(key, value)| (key, show(&value))).collect()
    }

    /// The splits that a dataset of this task has, in the order of writing.
    pub fn splits(&self) -> Vec<Split> {
        self.family.splits().into_iter().chain(self.auxiliary.as_ref().map(|a| Split::Auxiliary(a.kind))).collect()
    }

    /// The size of a split for `train` main training examples. Auxiliary data comes on top, in the
    /// proportion of the paper.
    pub fn rows(&self, split: Split, train: usize) -> Result<usize, DataError> {
        let none = || DataError::NoSuchSplit {
            task: self.name.clone(),
            split: split.name().into(),
            splits: self.splits().into_iter().map(|s| s.name().to_owned()).collect(),
        };
        if !self.splits().contains(&split) {
            return Err(none());
        }
        let rows = self.family.rows(split, train);
        let rows = rows.map_err(|reason| DataError::SplitSize { task: self.name.clone(), reason })?;
        match (split, &self.auxiliary) {
            (Split::Train, Some(auxiliary)) => Ok(rows + div_round(rows * auxiliary.examples, self.train_examples)),
            (Split::Auxiliary(_), Some(auxiliary)) => Ok(auxiliary.test_rows()),
            _ => Ok(rows),
        }
    }

    /// The examples of a split, see [`Family::examples`]. In training, auxiliary examples are spread evenly among the
    /// main ones.
    pub fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        match (split, &self.auxiliary) {
            (Split::Auxiliary(_), Some(auxiliary)) => Box::new(move |index| auxiliary.test(index)),
            (Split::Train, Some(auxiliary)) => {
                let main = self.family.examples(split, seed);
                // how many of the first n examples are auxiliary
                let before = |n: usize| div_round(n * auxiliary.examples, auxiliary.examples + self.train_examples);
                Box::new(move |index| match before(index) {
                    n if n < before(index + 1) => auxiliary.train(n),
                    n => main(index - n),
                })
            }
            _ => self.family.examples(split, seed),
        }
    }

    /// The label of every token of a sequence, by the rules, main and auxiliary; [`IGNORE`] where there is none.
    ///
    /// # Errors
    /// The input is not a sequence of the task, and why; or its family has no rule.
    pub fn labels(&self, input_ids: &[u16]) -> Result<Vec<i16>, String> {
        match self.auxiliary.as_ref().and_then(|auxiliary| auxiliary.find(input_ids)) {
            Some(example) => Ok(example.labels.clone()),
            None if self.family.outside().is_some() => Err("its labels come with its examples, by no rule".into()),
            None => self.family.labels(input_ids),
        }
    }

    /// Checks an example of another program against the label rules, main and auxiliary.
    ///
    /// # Errors
    /// The problem: the input is not a sequence of the task, or a label differs from the rule's.
    pub fn check_labels(&self, input_ids: &[u16], labels: &[i16]) -> Result<(), String> {
        let auxiliary = self.auxiliary.as_ref().and_then(|a| a.find(input_ids));
        let expected = match auxiliary {
            Some(example) => example.labels.clone(),
            None => self.family.expected(input_ids, labels)?,
        };
        match expected.iter().zip(labels).position(|(e, l)| e != l) {
            Some(at) => {
                let (found, expected) = (self.vocabulary.label(labels[at]), self.vocabulary.label(expected[at]));
                Err(format!("label {} is `{found}`, but the rule gives `{expected}`", at + 1))
            }
            None => Ok(()),
        }
    }

    /// The number of main tokens of a sequence; its labelled positions if it is not one of this task.
    pub fn length(&self, input_ids: &[u16], labels: &[i16]) -> u32 {
        let labelled = || labels.iter().filter(|l| **l >= 0).count() as u32;
        self.main_tokens(input_ids).unwrap_or_else(labelled)
    }

    /// The main tokens of a sequence of this task.
    pub(crate) fn main_tokens(&self, input_ids: &[u16]) -> Option<u32> {
        let auxiliary = || self.auxiliary.as_ref().and_then(|a| a.find(input_ids)).map(|example| example.length);
        self.family.length(input_ids).ok().or_else(auxiliary)
    }

    /// The number of tokens of an example of another program without padding: if a sequence belongs to this task only
    /// without the unlabelled `<pad>` at its end, that is padding of a table of equally long rows.
    pub fn without_padding(&self, input_ids: &[u16], labels: &[i16]) -> usize {
        let tokens = input_ids.len();
        let Some(pad) = self.vocabulary.id(PAD) else { return tokens };
        let padding = input_ids.iter().zip(labels).rev().take_while(|(id, label)| **id == pad && **label < 0).count();
        let known = |n: usize| {
            let inputs = &input_ids[..n];
            self.family.length(inputs).is_ok() || self.auxiliary.as_ref().is_some_and(|a| a.find(inputs).is_some())
        };
        if padding == 0 || padding == tokens || known(tokens) {
            return tokens;
        }
        // helper tokens are `<pad>` as well, so that some of it may belong to the sequence
        (tokens - padding..tokens).find(|n| known(*n)).unwrap_or(tokens)
    }

    /// The longest validation input in tokens other than `<pad>`, helpers `<blk>`, starts and all: beyond this rank,
    /// labelled positions are the unseen lengths of the paper's code.
    pub fn max_seen_len(&self, seed: u64) -> Result<usize, DataError> {
        if let Some(longest) = self.family.max_seen_len() {
            return Ok(longest);
        }
        let pad = self.vocabulary.id(PAD);
        let examples = self.examples(Split::Val, seed);
        let tokens = |e: Example| e.input_ids.iter().filter(|id| Some(**id) != pad).count();
        Ok((0..self.rows(Split::Val, 0)?).map(|i| tokens(examples(i))).max().unwrap_or(0))
    }
}

/// Everything but the name, from a family's own settings and those of every family.
fn define<F: Define>(settings: Table, common: Common) -> Result<Task, String> {
    let mut family = F::deserialize(settings).map_err(|e| explain(&e))?;
    family.validate()?;
    family.prepare()?;
    if family.outside().is_some() && (common.helper != Helper::None || common.auxiliary.is_some()) {
        return Err(format!("helper and auxiliary are for tasks with a rule, and {} has none", F::NAME));
    }
    let content = family.content().map(|content| (CONTENT.to_owned(), content));
    let parameters = [Table::try_from(&family), Table::try_from(&common)].into_iter().flatten().flatten();
    let parameters = parameters.map(|(key, value)| (key, show(&value))).chain(content).collect();

    let mut tokens = family.tokens();
    tokens.extend((common.helper == Helper::Blk).then(|| BLANK.to_owned()));
    match common.auxiliary.and_then(Auxiliary::filler) {
        Some((filler, true)) => tokens.insert(0, filler.into()),
        Some((filler, false)) => tokens.push(filler.into()),
        None => {}
    }
    let units = family.units();
    if units.is_empty() && common.set_loss.is_some() {
        return Err("set_loss is for labels that are sets, and these are tokens".into());
    }
    let vocabulary = Vocabulary::new(tokens).with_units(&units, common.set_loss.unwrap_or_default())?;
    family.bind(&vocabulary, common.helper != Helper::None);
    let longest = family.longest();
    let name = family.name().to_owned();
    let train_max = family.train_max_length();
    let train_examples = common.train_examples.unwrap_or_else(|| family.train_examples());
    let helper = match common.helper {
        Helper::None => None,
        Helper::Pad => {
            let pad = vocabulary.id(PAD);
            let no_pad =
                || format!("helper = pad: {name} has no <pad> in its vocabulary\n  hint: helper = \"blk\" adds one");
            Some(pad.ok_or_else(no_pad)?)
        }
        Helper::Blk => vocabulary.id(BLANK),
    };
    let family: Box<dyn Family> = match helper {
        Some(helper) => Box::new(Interleaved { inner: Box::new(family), helper }),
        None => Box::new(family),
    };
    let auxiliary = common.auxiliary.map(|kind| {
        let examples = common.auxiliary_examples.unwrap_or_else(|| kind.default_examples());
        AuxiliaryData::new(kind, examples, &vocabulary)
    });
    let auxiliary = auxiliary.transpose()?;
    let longest = auxiliary.as_ref().map_or(longest, |a| longest.max(a.longest()));
    let in_tokens = if helper.is_some() { 2 * longest } else { longest };
    let max_position_embeddings = common.max_position_embeddings.unwrap_or((longest + 1).max(128));
    let max_seq_len = common.max_seq_len.unwrap_or(in_tokens.max(128));
    if train_examples == 0 {
        return Err("train_examples must be at least 1".into());
    }
    let train_tokens = if helper.is_some() { 2 * train_max as usize } else { train_max as usize };
    if max_seq_len < train_tokens {
        return Err(format!(
            "max_seq_len = {max_seq_len} is less than the {train_tokens} tokens of training sequences"
        ));
    }
    if max_position_embeddings <= train_max as usize {
        return Err(format!(
            "max_position_embeddings = {max_position_embeddings} does not reach over training sequences of {train_max}"
        ));
    }
    Ok(Task { name, family, auxiliary, vocabulary, max_position_embeddings, max_seq_len, train_examples, parameters })
}

/// The error for an unknown setting names the nearest known one.
fn explain(error: &toml::de::Error) -> String {
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted[..] {
        [unknown, ref valid @ ..] if message.starts_with("unknown field") => {
            let valid: Vec<&str> = valid.iter().copied().chain(COMMON).collect();
            let hint = match suggest::nearest(unknown, valid.iter().copied()) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("one of {}", valid.join(", ")),
            };
            format!("there is no setting `{unknown}`\n  hint: {hint}")
        }
        _ => message.trim_end().to_owned(),
    }
}

/// a / b, rounded to the nearest.
fn div_round(a: usize, b: usize) -> usize {
    (a + b / 2) / b
}
