use super::Define;
use super::sampled::{Range, Ranges, Sampled, Splits, Tokens, check_gaps};
use super::words::check_range;
use crate::{IGNORE, PAD, Split, Vocabulary};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Questions about how often letters occur, as a prompt with an answer: `<bos> x <sep> answer <eos>`, of which answer
/// and
/// `<eos>` are scored, teacher-forced. Source: Huang et al., arXiv 2410.02140 (majority, binary majority, interleaved
/// binary majority, parity).
///
/// With several `strings`, x has their letters in turn, and the answer is one letter for each. Lengths are those of x.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tally {
    /// The question.
    pub question: Question,
    /// The letters.
    pub alphabet: Vec<String>,
    /// How many strings are interleaved.
    pub strings: u32,
    /// How strings are drawn.
    pub shares: Shares,
    /// The lengths of training and validation.
    pub train_lengths: Ranges,
    /// The lengths of the out-of-distribution split.
    pub test_lengths: Ranges,
    /// The size of the validation split.
    pub val_examples: usize,
    /// The size of the out-of-distribution split.
    pub test_examples: usize,
    #[serde(skip)]
    tokens: Tokens,
}

/// What a [`Tally`] asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Which letter is the most frequent one; there is just one.
    Majority,
    /// Whether the last letter of the alphabet occurs an even number of times: `e` or `o`.
    Parity,
}

/// How often letters occur in the strings of a [`Tally`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shares {
    /// Of two letters, the first one occurs n times, n uniform in 0 ..= length; the order is uniform.
    Uniform,
    /// Every letter is independent and uniform.
    Letters,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            question: Question::Majority,
            alphabet: vec!["0".into(), "1".into()],
            strings: 1,
            shares: Shares::Uniform,
            train_lengths: Ranges::range(1, 50),
            test_lengths: Ranges::range(51, 100),
            val_examples: 1000,
            test_examples: 3000,
            tokens: Tokens::default(),
        }
    }
}

/// The tokens that are no letters, in the order of the vocabulary; the first two are answers to [`Question::Parity`].
const FRAME: [&str; 5] = ["e", "o", "<bos>", "<sep>", "<eos>"];
const EVEN: usize = 0;
const BOS: usize = 2;
const SEP: usize = 3;
const EOS: usize = 4;

impl Tally {
    fn all(&self) -> impl Iterator<Item = &str> {
        self.alphabet.iter().map(String::as_str).chain(FRAME.iter().copied().skip(self.skipped()))
    }

    /// How many tokens of [`FRAME`] the vocabulary lacks.
    fn skipped(&self) -> usize {
        if self.question == Question::Parity { 0 } else { BOS }
    }

    /// The number of a token of [`FRAME`].
    fn frame(&self, at: usize) -> u16 {
        (self.alphabet.len() + at - self.skipped()) as u16
    }

    /// The answer for each string, by token number, or what makes the question meaningless.
    fn answers(&self, x: &[u16]) -> Result<Vec<u16>, String> {
        let strings = self.strings as usize;
        let mut counts = vec![0u32; self.alphabet.len()];
        let answer = |string: usize| {
            counts.fill(0);
            x.iter().skip(string).step_by(strings).for_each(|letter| counts[usize::from(*letter)] += 1);
            match self.question {
                Question::Parity => Ok(self.frame(EVEN + counts.last().map_or(0, |count| count % 2) as usize)),
                Question::Majority => {
                    let most = counts.iter().max().copied().unwrap_or(0);
                    let mut winners = (0u16..).zip(&counts).filter(|(_, count)| **count == most);
                    match (winners.next(), winners.next()) {
                        (Some((letter, _)), None) => Ok(letter),
                        _ => Err("two letters are equally frequent".to_owned()),
                    }
                }
            }
        };
        (0..strings).map(answer).collect()
    }

    /// The letters of x and the answers.
    fn read(&self, input_ids: &[u16]) -> Result<(usize, Vec<u16>), String> {
        let strings = self.strings as usize;
        let number = |at: usize| input_ids.get(at).and_then(|id| self.tokens.number(*id));
        let Some(n) = input_ids.len().checked_sub(2 + strings) else { return Err("the input is too short".into()) };
        if number(0) != Some(self.frame(BOS)) || number(n + 1) != Some(self.frame(SEP)) {
            return Err("the input is not of the form `<bos> x <sep> answer`".into());
        }
        let letter = |at: usize| {
            let letter = number(at).filter(|letter| usize::from(*letter) < self.alphabet.len());
            letter.ok_or_else(|| format!("token {} is no letter", at + 1))
        };
        let x: Vec<u16> = (1..=n).map(letter).collect::<Result<_, _>>()?;
        if let Some(reason) = self.gap(n as u32) {
            return Err(reason);
        }
        let answers = self.answers(&x)?;
        match answers.iter().enumerate().find(|(i, answer)| number(n + 2 + i) != Some(**answer)) {
            Some((i, _)) => Err(format!("token {} is not the answer", n + 3 + i)),
            None => Ok((n, answers)),
        }
    }

    /// One string of n letters.
    fn string(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<u16> {
        loop {
            let string: Vec<u16> = match self.shares {
                Shares::Uniform => {
                    let zeros = rng.random_range(0..=n);
                    let mut string: Vec<u16> = (0..n).map(|i| u16::from(i >= zeros)).collect();
                    if self.question == Question::Majority && 2 * zeros == n {
                        continue;
                    }
                    string.shuffle(rng);
                    return string;
                }
                Shares::Letters => (0..n).map(|_| rng.random_range(0..self.alphabet.len() as u16)).collect(),
            };
            if self.question == Question::Parity || one_mode(&string, self.alphabet.len()) {
                return string;
            }
        }
    }
}

/// Whether one letter is more frequent than all others.
fn one_mode(string: &[u16], letters: usize) -> bool {
    let mut counts = vec![0u32; letters];
    string.iter().for_each(|letter| counts[usize::from(*letter)] += 1);
    let most = counts.iter().max().copied().unwrap_or(0);
    counts.iter().filter(|count| **count == most).count() == 1
}

impl Define for Tally {
    const NAME: &'static str = "tally";
    const EXAMPLES: &'static [&'static str] = &[
        r#"alphabet=["x","y","z"],shares=letters,strings=2,train_lengths=2..9,test_lengths=10..30"#,
        "question=parity,shares=letters,train_lengths=0..9,helper=pad",
    ];

    fn tokens(&self) -> Vec<String> {
        self.all().map(str::to_owned).chain([PAD.to_owned()]).collect()
    }

    fn validate(&self) -> Result<(), String> {
        check_range("strings", self.strings, 1..=100)?;
        let letters = self.alphabet.len();
        if !(2..=1000).contains(&letters) {
            return Err(format!("alphabet has {letters} letters, not 2 to 1000"));
        }
        if self.shares == Shares::Uniform && letters != 2 {
            return Err(format!(
                "shares = \"uniform\" is for two letters, but alphabet has {letters}\n  hint: use shares = \"letters\""
            ));
        }
        let mut seen = HashSet::new();
        if let Some(token) = self.all().chain([PAD, "-1", ""]).find(|token| !seen.insert(*token)) {
            return Err(format!("alphabet: `{token}` is there twice, or has a meaning of its own"));
        }
        self.splits().check(0)?;
        check_gaps(self)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.tokens = Tokens::new(vocabulary, self.all());
    }

    fn longest(&self) -> usize {
        (self.splits().longest() + self.strings) as usize + 2
    }
}

impl Sampled for Tally {
    const NAME: &'static str = "tally";

    fn splits(&self) -> Splits<'_> {
        Splits {
            train: &self.train_lengths,
            test: &self.test_lengths,
            val_examples: self.val_examples,
            test_examples: self.test_examples,
        }
    }

    fn gap(&self, length: u32) -> Option<String> {
        match (self.question, length) {
            (Question::Majority, 0) => Some("without letters, none is the most frequent".into()),
            _ if !length.is_multiple_of(self.strings) => {
                Some(format!("{} strings of equal length have a multiple of {} letters", self.strings, self.strings))
            }
            _ => None,
        }
    }

    /// The nearest length in the range of which each string has an equal share.
    fn drawn_as(&self, length: u32, (first, last): Range) -> u32 {
        let rounded = (length + self.strings / 2) / self.strings * self.strings;
        match rounded {
            _ if rounded > last => rounded - self.strings,
            _ if rounded < first && rounded + self.strings <= last => rounded + self.strings,
            _ => rounded,
        }
    }

    fn longest_in(&self, (_, last): Range) -> u32 {
        last - last % self.strings
    }

    fn draw(&self, _split: Split, length: u32, rng: &mut ChaCha8Rng) -> Vec<u16> {
        let strings = self.strings as usize;
        let n = length as usize / strings;
        let mut x = vec![0; n * strings];
        for at in 0..strings {
            for (i, letter) in self.string(n, rng).into_iter().enumerate() {
                x[i * strings + at] = letter;
            }
        }
        let answers = self.answers(&x).unwrap_or_default();
        let numbers = [self.frame(BOS)].into_iter().chain(x).chain([self.frame(SEP)]).chain(answers);
        numbers.map(|number| self.tokens.id(number)).collect()
    }

    fn main_tokens(&self, input_ids: &[u16]) -> Result<u32, String> {
        self.read(input_ids).map(|(n, _)| n as u32)
    }

    fn label(&self, input_ids: &[u16]) -> Vec<i16> {
        let mut labels = vec![IGNORE; input_ids.len()];
        if let Ok((n, answers)) = self.read(input_ids) {
            let answer = answers.into_iter().chain([self.frame(EOS)]);
            for (label, number) in labels[n + 1..].iter_mut().zip(answer) {
                *label = self.tokens.label(number);
            }
        }
        labels
    }

    fn layout(&self) -> (usize, usize) {
        (2 + self.strings as usize, 1)
    }

    /// Of an answer for each string, and the end, which is always right.
    fn guess(&self, _length: u32) -> Option<f64> {
        let answers = if self.question == Question::Parity { 2 } else { self.alphabet.len() };
        let strings = f64::from(self.strings);
        Some((strings / answers as f64 + 1.0) / (strings + 1.0))
    }
}
