mod program;
mod settings;

use self::program::{Failure, Limits, output};
use self::settings::{Span, Words};
use super::outside::Outside;
use super::own_data::{check_tokens, content};
use super::{Define, Examples, Family};
use crate::dataset::field::{BOS, Record};
use crate::{DataError, Example, IGNORE, LengthLimit, PAD, SetLoss, Split, Track, Vocabulary};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Whether programs may be run.
static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Lets this process run the programs that tasks name, see [`Command`]. Until it is called none is run: a config and an
/// exported model name a task, and may come from anywhere.
pub fn allow_commands() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Examples that are asked for at a time, and their tokens.
const CHUNK: usize = 2000;
/// The longest time for a call, in seconds.
const LONGEST_TIMEOUT: u64 = 7 * 24 * 3600;
/// Examples of a split for tests, at most.
const MOST_EXAMPLES: usize = 100_000_000;
const CHUNK_TOKENS: usize = 4 << 20;
/// Tests of a length that are asked for at a time.
const TESTS: usize = 100;
/// The split that tests of a length are of.
const SWEEP: &str = "sweep";
/// Tokens of tests that are kept in memory.
const KEPT_TOKENS: usize = 64 << 20;
/// The examples that are asked for more than once, and the first of them that are asked for alone.
const TRIED: usize = 8;
const TRIED_ALONE: usize = 3;

/// Examples that a program prints, which is asked for them by split, seed and index: see [`Self::request`].
///
/// Nothing is run before [`allow_commands`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Command {
    command: Words,
    /// The tokens in id order; `<pad>` is added where it is missing.
    vocab: Vec<String>,
    /// The tokens that labels are sets of; none where a label is a token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    units: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    train_lengths: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    test_lengths: Option<Span>,
    /// The tokens that a length does not count, where the program states none.
    uncounted: Vec<String>,
    val_examples: usize,
    test_examples: usize,
    /// Tokens of the longest example; two more than the longest length by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<usize>,
    /// Seconds that a call may take.
    timeout: u64,
    #[serde(skip)]
    vocabulary: Option<Vocabulary>,
    #[serde(skip)]
    uncounted_ids: Vec<u16>,
    #[serde(skip)]
    kept: Mutex<Kept>,
}

impl Default for Command {
    fn default() -> Self {
        Self {
            command: Words::default(),
            vocab: vec![],
            units: vec![],
            train_lengths: None,
            test_lengths: None,
            uncounted: vec![BOS.into()],
            val_examples: 1000,
            test_examples: 1000,
            max_tokens: None,
            timeout: 60,
            vocabulary: None,
            uncounted_ids: vec![],
            kept: Mutex::default(),
        }
    }
}

/// Tests that were asked for, the newest last.
#[derive(Debug, Default)]
struct Kept {
    answers: HashMap<(u64, u32, usize), Answer>,
    order: VecDeque<(u64, u32, usize)>,
    tokens: usize,
}

/// The tests of a length, or why there are none.
type Answer = Arc<Result<Vec<Example>, String>>;

impl Kept {
    fn keep(&mut self, key: (u64, u32, usize), answer: &Answer) {
        let size = |answer: &Answer| match &**answer {
            Ok(examples) => 16 + examples.iter().map(|e| e.input_ids.len()).sum::<usize>(),
            Err(_) => 16,
        };
        self.tokens += size(answer);
        self.answers.insert(key, answer.clone());
        self.order.push_back(key);
        while self.tokens > KEPT_TOKENS && self.order.len() > 1 {
            let gone = self.order.pop_front().and_then(|key| self.answers.remove(&key));
            self.tokens -= gone.as_ref().map_or(0, size);
        }
    }
}

impl Command {
    /// The words of a call for the examples `range` of a split; of exactly `length` main tokens, where that is given.
    pub fn request(&self, split: &str, seed: u64, range: &Range<usize>, length: Option<u32>) -> Vec<String> {
        let mut words = self.command.0.clone();
        words.extend(["--split".into(), split.into(), "--seed".into(), seed.to_string()]);
        words.extend(["--start".into(), range.start.to_string(), "--count".into(), range.len().to_string()]);
        words.extend(length.iter().flat_map(|length| ["--length".into(), length.to_string()]));
        words
    }

    fn longest_length(&self) -> u32 {
        [self.train_lengths, self.test_lengths].into_iter().flatten().map(|span| span.high).max().unwrap_or(0)
    }

    /// The tokens of an example of up to `length` main tokens.
    fn most_tokens(&self, length: Option<u32>) -> usize {
        let most = self.max_tokens.unwrap_or(self.longest_length() as usize + 2);
        // longer tests have as many tokens more, in proportion
        let each = most.div_ceil(self.longest_length().max(1) as usize);
        length.map_or(most, |length| most.max(each * length as usize + 2))
    }

    /// Runs the program.
    fn ask(
        &self,
        split: &str,
        seed: u64,
        range: &Range<usize>,
        length: Option<u32>,
    ) -> Result<Vec<Example>, DataError> {
        let words = self.request(split, seed, range, length);
        let shown = || shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| format!("{words:?}"));
        if !ALLOWED.load(Ordering::Relaxed) {
            return Err(DataError::CommandNotAllowed { command: shown() });
        }
        let Some(vocabulary) = &self.vocabulary else { return Ok(vec![]) };
        let tokens = self.most_tokens(length);
        let widest = vocabulary.tokens().iter().map(String::len).max().unwrap_or(0).max(self.units.len());
        let limits = Limits {
            lines: range.len(),
            // a token and a label, quoted, escaped, with blanks around them; and other keys
            bytes: range.len() * (4096 + 2 * tokens * (6 * widest + 16)),
            timeout: Duration::from_secs(self.timeout),
        };
        let answered = output(&words, limits).and_then(|output| self.parse(&output, range, length, split, tokens));
        answered.map_err(|Failure { reason, hint }| DataError::Command { command: shown(), reason, hint })
    }

    /// The examples in the output of the program; the first wrong one is named.
    fn parse(
        &self,
        output: &str,
        range: &Range<usize>,
        length: Option<u32>,
        split: &str,
        tokens: usize,
    ) -> Result<Vec<Example>, Failure> {
        let Some(vocabulary) = &self.vocabulary else { return Ok(vec![]) };
        let mut examples = Vec::with_capacity(range.len());
        for (index, line) in output.lines().enumerate() {
            let wrong = |problem: String| {
                let colon = if problem.starts_with("has ") { "" } else { ":" };
                let start: String = line.chars().take(60).collect();
                Failure::new(
                    format!(
                        "example {}, line {} of its output{colon} {problem}: `{start}`",
                        range.start + index,
                        index + 1
                    ),
                    hint_of(&problem),
                )
            };
            let record = Record::parse(line, &mut &*vocabulary).map_err(wrong)?;
            let found = record.length.unwrap_or_else(|| self.count(&record.input_ids));
            self.check_example(&record, found, length, split, tokens).map_err(wrong)?;
            examples.push(Example { input_ids: record.input_ids, labels: record.labels, length: found });
        }
        // there may be fewer tests of a length
        if examples.len() < range.len() && length.is_none() {
            return Err(Failure::new(
                format!("printed {} examples, but was asked for {}", examples.len(), range.len()),
                "it is to print one line for each of the examples from --start on, --count of them",
            ));
        }
        Ok(examples)
    }

    fn check_example(
        &self,
        record: &Record,
        found: u32,
        length: Option<u32>,
        split: &str,
        tokens: usize,
    ) -> Result<(), String> {
        if let Some(length) = length.filter(|length| *length != found) {
            return Err(format!("has the length {found}, but --length {length} was asked for"));
        }
        let (setting, span) = match split {
            SWEEP => ("", None),
            "ood_test" => ("test_lengths", self.test_lengths),
            _ => ("train_lengths", self.train_lengths),
        };
        if let Some(Span { low, high }) = span.filter(|span| !(span.low..=span.high).contains(&found)) {
            return Err(format!("has the length {found}, outside of {setting} = {low}..{high}"));
        }
        if record.input_ids.len() > tokens {
            return Err(format!("has {} tokens, more than max_tokens = {tokens}", record.input_ids.len()));
        }
        if !record.labels.iter().any(|label| *label >= 0) {
            return Err("has no label at any token".into());
        }
        let pad = self.vocabulary.as_ref().and_then(|vocabulary| vocabulary.id(PAD));
        match record.input_ids.iter().position(|id| Some(*id) == pad) {
            Some(at) => Err(format!("has the padding token at position {at}: examples are not padded")),
            None => Ok(()),
        }
    }

    fn count(&self, input_ids: &[u16]) -> u32 {
        input_ids.iter().filter(|id| !self.uncounted_ids.contains(id)).count() as u32
    }

    /// Tests of a length, asked for the first time.
    fn tests(&self, seed: u64, length: u32, chunk: usize) -> Answer {
        let (key, range) = ((seed, length, chunk), chunk * TESTS..(chunk + 1) * TESTS);
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = kept().answers.get(&key) {
            return answer.clone();
        }
        let asked = self.ask(SWEEP, seed, &range, Some(length));
        let answer = Arc::new(asked.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned()));
        kept().keep(key, &answer);
        answer
    }
}

/// What to do about a problem of one example.
fn hint_of(problem: &str) -> &'static str {
    let hints = [
        ("is not in the vocabulary", "vocab lists all tokens, those of labels as well"),
        ("no set of", "units lists what labels are sets of; a label is a text of as many digits, \"0101\""),
        ("max_tokens", "max_tokens = N, where examples have more tokens than their length and two"),
        ("outside of", "correct the program or the setting"),
        ("length", "length counts main tokens; without it, tokens are counted that are not in `uncounted`"),
        ("no label", "labels are as many as tokens, -1 where there is none; at least one is scored"),
        ("padding", "leave it out; batches are padded later"),
    ];
    let found = hints.iter().find(|(part, _)| problem.contains(part)).map(|(_, hint)| *hint);
    found.unwrap_or(
        "it is to print one object a line, {\"tokens\": [\"a\", \"b\"], \"labels\": [\"-1\", \"1\"]}, and nothing else on \
         standard output",
    )
}

impl Define for Command {
    const NAME: &'static str = "command";

    fn tokens(&self) -> Vec<String> {
        let mut tokens = self.vocab.clone();
        if !tokens.iter().any(|token| token == PAD) {
            tokens.push(PAD.into());
        }
        tokens
    }

    fn units(&self) -> Vec<String> {
        self.units.clone()
    }

    fn validate(&self) -> Result<(), String> {
        if self.command.0.first().is_none_or(String::is_empty) {
            return Err("there is no `command`\n  hint: command = [\"python3\", \"make.py\"]".into());
        }
        if self.vocab.is_empty() {
            return Err("there is no `vocab`\n  hint: vocab = [\"a\", \"b\", \"0\", \"1\"] lists all tokens".into());
        }
        check_tokens(&self.vocab)?;
        for (name, span) in [("train_lengths", self.train_lengths), ("test_lengths", self.test_lengths)] {
            match span {
                None => return Err(format!("there is no `{name}`\n  hint: {name} = \"1..40\", both ends included")),
                Some(Span { high: 0, .. }) => return Err(format!("{name} has no length above 0")),
                Some(Span { high, .. }) if high > 1 << 24 => return Err(format!("{name} goes up to {high}")),
                Some(_) => {}
            }
        }
        for (name, n) in [
            ("val_examples", self.val_examples as u64),
            ("test_examples", self.test_examples as u64),
            ("timeout", self.timeout),
            ("max_tokens", self.max_tokens.unwrap_or(1) as u64),
        ] {
            if n == 0 {
                return Err(format!("{name} must be at least 1"));
            }
        }
        if self.timeout > LONGEST_TIMEOUT {
            return Err(format!("timeout = {} is more than {LONGEST_TIMEOUT} s, a week", self.timeout));
        }
        if let Some((name, _)) = [("val_examples", self.val_examples), ("test_examples", self.test_examples)]
            .iter()
            .find(|(_, n)| *n > MOST_EXAMPLES)
        {
            return Err(format!("{name} is more than {MOST_EXAMPLES}"));
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<(), String> {
        let vocabulary = Vocabulary::new(self.tokens()).with_units(&self.units, SetLoss::default())?;
        self.uncounted_ids = self.uncounted.iter().filter_map(|token| vocabulary.id(token)).collect();
        self.vocabulary = Some(vocabulary);
        Ok(())
    }

    fn bind(&mut self, _vocabulary: &Vocabulary, _helper: bool) {}

    fn longest(&self) -> usize {
        self.most_tokens(None)
    }

    fn train_examples(&self) -> usize {
        10_000
    }

    /// Of the files among the words: a script that is edited makes other examples.
    fn content(&self) -> Option<String> {
        let files: Vec<PathBuf> = self.command.0.iter().map(PathBuf::from).filter(|path| path.is_file()).collect();
        if files.is_empty() { None } else { content(&files).ok() }
    }
}

impl Outside for Command {
    fn is_endless(&self) -> bool {
        true
    }

    fn ready(&self) -> Result<(), DataError> {
        match ALLOWED.load(Ordering::Relaxed) {
            true => Ok(()),
            false => self.ask(SWEEP, 0, &(0..TESTS), Some(self.longest_length())).map(drop), // says what it would run
        }
    }

    /// The program must say the same whenever it is asked, and however ranges are cut.
    fn check(&self, split: &str, seed: u64, rows: usize) -> Result<(), DataError> {
        let whole = 0..rows.min(TRIED);
        let part = whole.end.min(TRIED_ALONE)..whole.end;
        let ask = |range: Range<usize>| self.ask(split, seed, &range, None);
        let first = ask(whole.clone())?;
        let differs = |again: &[Example], from: usize| first[from..].iter().zip(again).position(|(a, b)| a != b);
        let told = |index: usize, range: &Range<usize>, reason: &str, hint: &str| {
            let words = self.request(split, seed, range, None);
            DataError::Command {
                command: shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default(),
                reason: format!("is not deterministic: example {index} {reason}"),
                hint: hint.into(),
            }
        };
        if let Some(index) = differs(&ask(whole.clone())?, 0) {
            let hint = "seed its random numbers with --split, --seed and the example's index";
            return Err(told(index, &whole, "is another one when it is asked for again", hint));
        }
        if part.is_empty() {
            return Ok(());
        }
        if let Some(index) = differs(&ask(part.clone())?, part.start) {
            let hint =
                "seed the random numbers of each example with --split, --seed and its own index, from --start on";
            return Err(told(part.start + index, &part, "depends on --start or --count", hint));
        }
        Ok(())
    }

    fn examples(&self, split: &str, seed: u64, range: Range<usize>) -> Result<Vec<Example>, DataError> {
        let (mut start, mut examples) = (range.start, Vec::new());
        let size = (CHUNK_TOKENS / self.most_tokens(None)).clamp(1, CHUNK);
        while start < range.end {
            let part = start..range.end.min(start + size);
            start = part.end;
            examples.extend(self.ask(split, seed, &part, None)?);
        }
        Ok(examples)
    }
}

impl Family for Command {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn outside(&self) -> Option<&dyn Outside> {
        Some(self)
    }

    fn train_max_length(&self) -> u32 {
        self.train_lengths.map_or(0, |span| span.high)
    }

    fn train_lengths(&self) -> std::ops::RangeInclusive<u32> {
        self.train_lengths.map_or(1..=1, |span| span.low.max(1)..=span.high)
    }

    fn max_seen_len(&self) -> Option<usize> {
        Some(self.train_max_length() as usize)
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        Ok(match split {
            Split::Train => train,
            Split::Val => self.val_examples,
            Split::OodTest | Split::Auxiliary(_) => self.test_examples,
        })
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        Box::new(move |index| super::outside_example(self, split.name(), seed, index))
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        super::outside_length(input_ids, self.vocabulary.as_ref()).map(|()| self.count(input_ids))
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
        None
    }

    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        super::outside_track(self.test(seed, index, max_length).ok())
    }

    fn test(&self, seed: u64, index: usize, length: u32) -> Result<Example, LengthLimit> {
        let limit = |reason: String| LengthLimit { length, reason };
        match &*self.tests(seed, length, index / TESTS) {
            Err(reason) => Err(limit(reason.clone())),
            Ok(tests) => match tests.get(index % TESTS) {
                Some(test) => Ok(test.clone()),
                None if index == 0 => Err(limit("the command has no example of this length".into())),
                None => Err(limit(format!("the command has no example {index} of this length"))),
            },
        }
    }
}
