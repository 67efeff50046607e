use super::operation::{first_occurrence, has_unique_ngram, missing};
use super::{Answers, Ask, Draw, Frame, Names, Operation, Question, Trouble};
use crate::families::lengths::{Lengths, Splits};
use crate::families::words::{MAX_NUMBER, check_range, some_token, token};
use crate::families::{Define, Examples, Family};
use crate::{Example, LengthLimit, Split, Track, Vocabulary};
use rand::RngExt;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How often a string without a unique n-gram is drawn again.
const TRIES: usize = 8;

/// A string of symbols, and an [`Operation`] on it. The length is that of the string.
///
/// Strings are uniform. Lengths of training are drawn uniformly, those of validation and of the out-of-distribution
/// split come in turn.
///
/// Sources of the presets: Delétang et al., "Neural Networks and the Chomsky Hierarchy" (arXiv 2207.02098); Huang et
/// al., "A Formal Framework for Understanding Length Generalization in Transformers" (arXiv 2410.02140); Jelassi et
/// al., "Repeat After Me" (arXiv 2402.01032).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompt {
    /// What the answer is.
    pub operation: Operation,
    /// Where it stands.
    pub answers: Answers,
    /// What symbols are called.
    pub alphabet: Alphabet,
    /// How many symbols there are.
    pub symbols: u32,
    /// No symbol occurs twice in a string.
    pub distinct: bool,
    /// With `copy`: one n-gram of this many symbols is written over another, so that strings repeat themselves. The two
    /// may overlap. 0: none.
    pub repeated_ngram: u32,
    /// With `after_ngram`: symbols of the n-gram.
    pub ngram: u32,
    /// With `after_ngram`: where the n-gram stands.
    pub query: Query,
    /// With `after_ngram`: the token between n-gram and string.
    #[serde(deserialize_with = "token")]
    pub divider: String,
    /// With `after_ngram`: the fewest symbols that follow the n-gram in the string.
    pub answer_min: u32,
    /// The first token, if any.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_token")]
    pub bos: Option<String>,
    /// The token between prompt and answer, if any.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_token")]
    pub separator: Option<String>,
    /// The label after the answer's last token, if any.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_token")]
    pub end: Option<String>,
    /// Training examples are written one after the other into lines of this many tokens, the last one of which is a
    /// label only; an example that does not fit is cut off and not scored. 0: one example to a line.
    pub packed: u32,
    /// Lengths of training and validation.
    pub train_lengths: Lengths,
    /// Lengths of the out-of-distribution split.
    pub test_lengths: Lengths,
    /// Examples of the validation split.
    pub val_examples: usize,
    /// Examples of the out-of-distribution split.
    pub test_examples: usize,
    #[serde(skip)]
    splits: Splits,
    #[serde(skip)]
    frame: Frame,
    #[serde(skip)]
    ids: Ids,
}

/// What the symbols of a [`Prompt`] are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alphabet {
    /// `0`, `1`, `2` …
    Numbers,
    /// `a`, `b`, `c` …
    #[default]
    Letters,
}

/// Where the n-gram of [`Operation::AfterNgram`] stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// `n-gram divider string separator`.
    #[default]
    Before,
    /// `string divider n-gram separator`.
    After,
}

/// The ids of symbols and marks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ids {
    zero: u16,
    symbols: u16,
    divider: u16,
    mark: u16,
    odd_mark: u16,
}

impl Default for Prompt {
    fn default() -> Self {
        Self {
            operation: Operation::Copy,
            answers: Answers::TeacherForced,
            alphabet: Alphabet::Letters,
            symbols: 26,
            distinct: false,
            repeated_ngram: 0,
            ngram: 3,
            query: Query::Before,
            divider: "|".into(),
            answer_min: 3,
            bos: None,
            separator: None,
            end: None,
            packed: 0,
            train_lengths: Lengths::new("1-50"),
            test_lengths: Lengths::new("51-150"),
            val_examples: 2000,
            test_examples: 4000,
            splits: Splits::default(),
            frame: Frame::default(),
            ids: Ids::default(),
        }
    }
}

impl Alphabet {
    fn symbols(self, n: u32) -> Vec<String> {
        match self {
            Self::Numbers => (0..n).map(|n| n.to_string()).collect(),
            Self::Letters => ('a'..='z').take(n as usize).map(String::from).collect(),
        }
    }

    /// The mark of a missing symbol, and that at the end of an odd length.
    fn marks(self, n: u32) -> [String; 2] {
        match self {
            Self::Numbers => [n, n + 1].map(|n| n.to_string()),
            Self::Letters => ["?", "-"].map(String::from),
        }
    }
}

impl Ids {
    fn symbol(&self, n: u16) -> u16 {
        self.zero + n
    }

    fn is_symbol(&self, id: u16) -> bool {
        id.wrapping_sub(self.zero) < self.symbols
    }

    /// The symbols at the beginning of a sequence.
    fn run(&self, input_ids: &[u16]) -> usize {
        input_ids.iter().position(|id| !self.is_symbol(*id)).unwrap_or(input_ids.len())
    }
}

impl Prompt {
    fn names(&self) -> Names<'_> {
        Names::new(self.answers, &self.bos, &self.separator, &self.end)
    }

    /// The marks that the operation puts between symbols.
    fn others(&self) -> Vec<String> {
        match self.operation {
            Operation::Missing => self.alphabet.marks(self.symbols).to_vec(),
            Operation::AfterNgram => vec![self.divider.clone()],
            _ => vec![],
        }
    }

    fn string(&self, length: usize, rng: &mut ChaCha8Rng) -> Vec<u16> {
        let symbols = self.ids.symbols;
        if self.distinct {
            let drawn = sample(rng, symbols.into(), length.min(symbols.into()));
            return drawn.iter().map(|n| self.ids.symbol(n as u16)).collect();
        }
        let mut x: Vec<u16> = (0..length).map(|_| self.ids.symbol(rng.random_range(0..symbols))).collect();
        let n = self.repeated_ngram as usize;
        if n > 0 && self.operation == Operation::Copy {
            // the last place of an n-gram is never drawn, as in the paper's code
            let places = sample(rng, length - n, 2);
            let (from, to) = (places.index(0), places.index(1));
            x.copy_within(from..from + n, to);
        }
        x
    }

    /// A string twice, with one symbol missing.
    fn twice(&self, length: usize, rng: &mut ChaCha8Rng) -> Vec<u16> {
        if length == 1 {
            return vec![self.ids.symbol(1)];
        }
        let half = self.string(length / 2, rng);
        let mut twice = [&half[..], &half[..]].concat();
        let at = rng.random_range(0..twice.len());
        twice[at] = self.ids.mark;
        twice.extend((length % 2 == 1).then_some(self.ids.odd_mark));
        twice
    }

    /// A string and an n-gram of it.
    fn look_up(&self, length: usize, rng: &mut ChaCha8Rng) -> Vec<u16> {
        let n = self.ngram as usize;
        let mut x = self.string(length, rng);
        for _ in 0..TRIES {
            if has_unique_ngram(&x, n) {
                break;
            }
            x = self.string(length, rng);
        }
        let at = rng.random_range(0..=length - n - self.answer_min as usize);
        let ngram = x[at..at + n].to_vec();
        match self.query {
            Query::Before => [&ngram[..], &[self.ids.divider], &x].concat(),
            Query::After => [&x[..], &[self.ids.divider], &ngram].concat(),
        }
    }

    /// The string and the n-gram of a look-up, and where they end.
    fn look_up_parts<'a>(&self, tokens: &'a [u16]) -> Result<(&'a [u16], &'a [u16], usize), Trouble> {
        let first = self.ids.run(tokens);
        match tokens.get(first) {
            None => return Err(Trouble::Cut),
            Some(id) if *id != self.ids.divider => {
                return Err(Trouble::wrong(format!("the symbols are not followed by `{}`", self.divider)));
            }
            Some(_) => {}
        }
        let rest = &tokens[first + 1..];
        let second = match (self.query, self.frame.separator) {
            (Query::After, None) if self.frame.slot.is_none() => self.ngram as usize,
            _ => self.ids.run(rest),
        };
        let Some(second) = rest.get(..second) else { return Err(Trouble::Cut) };
        let end = first + 1 + second.len();
        Ok(match self.query {
            Query::Before => (second, &tokens[..first], end),
            Query::After => (&tokens[..first], second, end),
        })
    }

    /// What an n-gram is followed by, and the length of the string.
    fn after_ngram(&self, x: &[u16], ngram: &[u16]) -> Result<Vec<u16>, Trouble> {
        let at = first_occurrence(x, ngram).filter(|_| !ngram.is_empty());
        let answer = at.map(|at| &x[at + ngram.len()..]).filter(|answer| !answer.is_empty());
        answer.map(<[u16]>::to_vec).ok_or_else(|| Trouble::wrong("nothing in the string follows the n-gram"))
    }

    fn read(&self, input_ids: &[u16]) -> Result<(u32, Vec<i16>), String> {
        self.frame.read(input_ids, |ids| self.question(ids))
    }

    /// Another program's look-up: its n-gram may have any number of symbols, which is known from where its labels
    /// begin, and its answer may end early.
    fn looked_up(&self, input_ids: &[u16], labels: &[i16]) -> Option<Vec<i16>> {
        let scored = labels.iter().position(|label| *label >= 0)?;
        let mut other = Self { packed: 0, frame: Frame { packed: 0, ..self.frame.clone() }, ..self.clone() };
        if self.query == Query::After && self.frame.separator.is_none() {
            let divider = input_ids.iter().position(|id| *id == self.ids.divider)?;
            other.ngram = scored.checked_sub(divider)? as u32;
        }
        let (_, mut expected) = other.read(input_ids).ok()?;
        let (last, end) = (expected.last_mut()?, self.frame.end? as i16);
        if labels.last() == Some(&end) && scored + 1 < input_ids.len() {
            *last = end;
        }
        Some(expected)
    }
}

impl Ask for Prompt {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn splits(&self) -> &Splits {
        &self.splits
    }

    fn possible(&self, length: u32) -> Result<(), String> {
        let least = match self.operation {
            Operation::AfterNgram => self.ngram + self.answer_min,
            Operation::Copy if self.repeated_ngram > 0 => self.repeated_ngram + 2,
            _ => 1,
        };
        if length < least {
            return Err(format!("a string has at least {least} symbols"));
        }
        let drawn = if self.operation == Operation::Missing { length / 2 } else { length };
        if self.distinct && drawn > self.symbols {
            return Err(format!("there are only {} different symbols", self.symbols));
        }
        Ok(())
    }

    fn append(&self, length: u32, _draw: Draw, rng: &mut ChaCha8Rng, out: &mut Vec<u16>) {
        let start = out.len();
        let x = match self.operation {
            Operation::Missing => self.twice(length as usize, rng),
            Operation::AfterNgram => self.look_up(length as usize, rng),
            _ => self.string(length as usize, rng),
        };
        out.reserve(2 + x.len() + self.operation.longest_answer(length as usize) + 1);
        out.extend(self.frame.bos);
        out.extend(x);
        out.extend(self.frame.separator);
        self.answered(start, out);
    }

    fn question(&self, input_ids: &[u16]) -> Result<Question, Trouble> {
        let header = usize::from(self.frame.bos.is_some());
        match (input_ids.first(), self.frame.bos) {
            (None, _) => return Err(Trouble::Cut),
            (Some(first), Some(bos)) if *first != bos => return Err(Trouble::wrong("an example does not start right")),
            _ => {}
        }
        let tokens = &input_ids[header..];
        let (x, answer, end) = match self.operation {
            Operation::AfterNgram => {
                let (x, ngram, end) = self.look_up_parts(tokens)?;
                (x, Some(ngram), end)
            }
            Operation::Missing => {
                let Ids { mark, odd_mark, .. } = self.ids;
                let other = |id: &u16| !(self.ids.is_symbol(*id) || [mark, odd_mark].contains(id));
                let end = tokens.iter().position(other).unwrap_or(tokens.len());
                (&tokens[..end], None, end)
            }
            _ => {
                let end = self.ids.run(tokens);
                (&tokens[..end], None, end)
            }
        };
        let end = header + end;
        match (input_ids.get(end), self.frame.separator) {
            (None, Some(_)) => return Err(Trouble::Cut),
            (Some(id), Some(separator)) if *id != separator => {
                return Err(Trouble::wrong(format!("token {} is not one of a prompt", end + 1)));
            }
            (Some(_), None) if self.frame.slot.is_some() => {
                return Err(Trouble::wrong(format!("token {} is not one of a prompt", end + 1)));
            }
            _ => {}
        }
        if x.is_empty() {
            return Err(Trouble::wrong("the string is empty"));
        }
        let answer = match (self.operation, answer) {
            (Operation::AfterNgram, Some(ngram)) => self.after_ngram(x, ngram)?,
            (Operation::Missing, _) => {
                let Ids { mark, odd_mark, .. } = self.ids;
                let symbol = missing(x, mark, odd_mark, self.ids.symbol(1));
                vec![symbol.ok_or_else(|| Trouble::wrong("the string is not one twice with one symbol missing"))?]
            }
            (operation, _) => operation.answer(x),
        };
        let slots = self.operation.longest_answer(x.len()) + usize::from(self.frame.end.is_some());
        let tokens = end + usize::from(self.frame.separator.is_some());
        Ok(Question { tokens, length: x.len() as u32, answer, slots })
    }
}

impl Define for Prompt {
    const NAME: &'static str = "prompt";
    const EXAMPLES: &'static [&'static str] = &[
        "operation=reverse,alphabet=numbers,symbols=5,helper=blk,bos=,end=,train_lengths=2-9,test_lengths=10-20",
        "operation=missing,answers=slots,symbols=3,bos=<s>,end=</s>,train_lengths=1-12,test_lengths=13+20",
        "operation=missing,alphabet=numbers,symbols=7,distinct=true,train_lengths=1-9,test_lengths=10-15",
        "operation=after_ngram,query=after,ngram=2,answer_min=1,train_lengths=3-9,test_lengths=12",
        "operation=after_ngram,answers=slots,symbols=4,end=.,train_lengths=6-20,test_lengths=21-30",
        "operation=sort,symbols=9,packed=64,train_lengths=1-8,test_lengths=9-40",
        "operation=duplicate,distinct=true,train_lengths=1-8,test_lengths=9-26",
        "operation=odds_first,symbols=1,train_lengths=5,test_lengths=6",
    ];

    fn tokens(&self) -> Vec<String> {
        let others = self.others();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        self.names().tokens(self.alphabet.symbols(self.symbols), &others)
    }

    fn validate(&self) -> Result<(), String> {
        let (most, teacher_forced) = match self.alphabet {
            Alphabet::Numbers => (MAX_NUMBER, self.answers == Answers::TeacherForced),
            Alphabet::Letters => (26, self.answers == Answers::TeacherForced),
        };
        check_range("symbols", self.symbols, 1..=most)?;
        check_range("ngram", self.ngram, 1..=1000)?;
        check_range("answer_min", self.answer_min, 1..=1000)?;
        check_range("repeated_ngram", self.repeated_ngram, 0..=1000)?;
        let is_look_up = self.operation == Operation::AfterNgram;
        let others = self.others();
        let others: Vec<(&str, &str)> = others.iter().map(|token| ("divider", token.as_str())).collect();
        self.names().check(&self.alphabet.symbols(self.symbols), &others)?;
        if is_look_up && self.divider.is_empty() {
            return Err("divider is empty, so that the n-gram would be part of the string".into());
        }
        if self.operation == Operation::Missing && self.symbols < 2 {
            return Err("symbols = 1 leaves nothing to guess; `missing` needs at least 2".into());
        }
        if self.operation == Operation::Missing && others.iter().any(|(_, token)| *token == self.names().separator) {
            return Err(format!("separator = {} is the mark of a missing symbol", self.names().separator));
        }
        if self.repeated_ngram > 0 && (self.operation != Operation::Copy || self.distinct) {
            return Err("repeated_ngram goes with operation = copy and strings that are not distinct".into());
        }
        if teacher_forced && self.names().separator.is_empty() && !(is_look_up && self.query == Query::After) {
            return Err("separator is empty, so that the prompt would have no end".into());
        }
        if self.packed > 0 && (!teacher_forced || self.names().end.is_empty() || self.packed < 8) {
            return Err(format!("packed = {} needs teacher-forced answers with an end, and at least 8", self.packed));
        }
        self.train_lengths.check_pairs("train_lengths", false)?;
        self.test_lengths.check_pairs("test_lengths", false)?;
        let sizes = |lengths: &Lengths, name| lengths.sizes(name, |length, _| self.possible(length));
        sizes(&self.train_lengths, "train_lengths").and(sizes(&self.test_lengths, "test_lengths")).map(|_| ())
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        let id = |token: &str| vocabulary.id(token).unwrap_or(0);
        let symbols = self.alphabet.symbols(self.symbols);
        let [mark, odd_mark] = self.alphabet.marks(self.symbols).map(|mark| vocabulary.id(&mark).unwrap_or(u16::MAX));
        let zero = symbols.first().map_or(0, |first| id(first));
        self.ids = Ids { zero, symbols: self.symbols as u16, divider: id(&self.divider), mark, odd_mark };
        self.frame = self.names().frame(vocabulary, self.packed);
        let sizes = |lengths: &Lengths| lengths.sizes("", |length, _| self.possible(length)).unwrap_or_default();
        self.splits = Splits { train: sizes(&self.train_lengths), test: sizes(&self.test_lengths) };
    }

    fn longest(&self) -> usize {
        let length = self.train_lengths.last().max(self.test_lengths.last()) as usize;
        let look_up = if self.operation == Operation::AfterNgram { self.ngram as usize + 1 } else { 0 };
        let special = usize::from(self.frame.bos.is_some()) + self.frame.separators() as usize;
        let answer = self.operation.longest_answer(length);
        let slots = answer + usize::from(self.frame.end.is_some());
        self.frame.tokens(length + look_up + special, answer, slots).max(self.packed as usize)
    }
}

impl Family for Prompt {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn train_max_length(&self) -> u32 {
        self.train_lengths.last()
    }

    fn train_lengths(&self) -> std::ops::RangeInclusive<u32> {
        self.train_lengths.span()
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        Ok(match split {
            Split::Train => train,
            Split::Val => self.val_examples,
            Split::OodTest | Split::Auxiliary(_) => self.test_examples,
        })
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        Box::new(move |index| self.split_example(split, seed, index))
    }

    /// The symbols of the string; of a line of several examples, those of the longest one that is scored.
    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        self.read(input_ids).map(|(length, _)| length)
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        self.read(input_ids).map(|(_, labels)| labels).unwrap_or_default()
    }

    fn expected(&self, input_ids: &[u16], labels: &[i16]) -> Result<Vec<i16>, String> {
        let own = self.labels(input_ids);
        if self.operation == Operation::AfterNgram && own.as_ref().ok().is_none_or(|own| own != labels) {
            return self.looked_up(input_ids, labels).map_or(own, Ok);
        }
        own
    }

    fn prefix_closed(&self) -> bool {
        false
    }

    fn distinct_tracks(&self) -> Option<usize> {
        None
    }

    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        self.track_of(seed, index, max_length)
    }

    fn test(&self, seed: u64, index: usize, length: u32) -> Result<Example, LengthLimit> {
        self.test_of(seed, index, length)
    }

    fn of_length(&self, seed: u64, index: usize, length: u32) -> Option<Example> {
        self.of_exactly(seed, index, length)
    }

    /// Of a symbol; with teacher forcing, a scored end after the answer, which stands where the question says, is right.
    fn chance(&self, length: u32) -> Option<f64> {
        let symbol = 1.0 / f64::from(self.symbols);
        if self.frame.slot.is_some() || self.frame.end.is_none() {
            return Some(symbol);
        }
        let scored = self.test(0, 0, length).ok()?.labels.iter().filter(|label| **label >= 0).count() as f64;
        Some(((scored - 1.0) * symbol + 1.0) / scored)
    }
}
