use super::Define;
use super::sampled::{Ranges, Sampled, Splits, Tokens};
use super::words::check_range;
use crate::{IGNORE, PAD, Split, Vocabulary};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The blank where an answer stands.
const BLANK: &str = "E";

/// Stack manipulation: the contents of a stack from bottom to top, then actions: with s symbols, the token s pops, and
/// s + 1 + v pushes v; a pop of an empty stack does nothing. The answer stands at one blank more than there are tokens:
/// the stack from top to bottom, then the end mark s; the other blanks have no label. Source: Delétang et al., arXiv
/// 2207.02098.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stack {
    /// s.
    pub symbols: u32,
    /// The lengths of training and validation, blanks not counted.
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

impl Default for Stack {
    fn default() -> Self {
        Self {
            symbols: 2,
            train_lengths: Ranges::range(1, 40),
            test_lengths: Ranges::range(41, 100),
            val_examples: 1000,
            test_examples: 3000,
            tokens: Tokens::default(),
        }
    }
}

impl Stack {
    fn alphabet(&self) -> Vec<String> {
        (0..=2 * self.symbols).map(|n| n.to_string()).chain([BLANK.to_owned()]).collect()
    }

    /// s as a token's number.
    fn pop(&self) -> u16 {
        self.symbols as u16
    }

    fn blank(&self) -> u16 {
        2 * self.symbols as u16 + 1
    }

    /// The stack that is left, and the length of the input without blanks.
    fn run(&self, input_ids: &[u16]) -> Result<(Vec<u16>, usize), String> {
        let blank = self.tokens.id(self.blank());
        let length = input_ids.iter().position(|id| *id == blank).unwrap_or(input_ids.len());
        let blanks = &input_ids[length..];
        if length == 0 || blanks.len() != length + 1 || blanks.iter().any(|id| *id != blank) {
            return Err(format!("{length} tokens are not followed by {} of `{BLANK}`", length + 1));
        }
        let mut stack: Vec<u16> = Vec::with_capacity(length);
        let mut acted = false;
        for (i, id) in input_ids[..length].iter().enumerate() {
            let number = self.tokens.number(*id).ok_or_else(|| format!("token {} is no symbol or action", i + 1))?;
            match number.checked_sub(self.pop()) {
                None if acted => return Err(format!("token {}: a symbol stands behind an action", i + 1)),
                None => stack.push(number),
                Some(_) if i == 0 => return Err("the stack is empty at first".into()),
                Some(0) => {
                    stack.pop();
                }
                Some(push) => stack.push(push - 1),
            }
            acted |= number >= self.pop();
        }
        Ok((stack, length))
    }
}

impl Define for Stack {
    const NAME: &'static str = "stack";
    const EXAMPLES: &'static [&'static str] = &["symbols=3,train_lengths=2..9,test_lengths=10..20,helper=blk"];

    fn tokens(&self) -> Vec<String> {
        self.alphabet().into_iter().chain([PAD.to_owned()]).collect()
    }

    fn validate(&self) -> Result<(), String> {
        check_range("symbols", self.symbols, 1..=10_000)?;
        self.splits().check(1)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.tokens = Tokens::new(vocabulary, self.alphabet());
    }

    fn longest(&self) -> usize {
        2 * self.splits().longest() as usize + 1
    }
}

impl Sampled for Stack {
    const NAME: &'static str = "stack";

    fn splits(&self) -> Splits<'_> {
        Splits {
            train: &self.train_lengths,
            test: &self.test_lengths,
            val_examples: self.val_examples,
            test_examples: self.test_examples,
        }
    }

    fn gap(&self, length: u32) -> Option<String> {
        (length == 0).then(|| "the shortest stack has one symbol".into())
    }

    fn draw(&self, _split: Split, length: u32, rng: &mut ChaCha8Rng) -> Vec<u16> {
        let n = length as usize;
        let symbols = if n < 2 { n } else { rng.random_range(1..n) };
        let mut input_ids = Vec::with_capacity(2 * n + 1);
        input_ids.extend((0..symbols).map(|_| self.tokens.id(rng.random_range(0..self.pop()))));
        input_ids.extend((symbols..n).map(|_| self.tokens.id(rng.random_range(self.pop()..self.blank()))));
        input_ids.resize(2 * n + 1, self.tokens.id(self.blank()));
        input_ids
    }

    fn main_tokens(&self, input_ids: &[u16]) -> Result<u32, String> {
        self.run(input_ids).map(|(_, length)| length as u32)
    }

    fn label(&self, input_ids: &[u16]) -> Vec<i16> {
        let mut labels = vec![IGNORE; input_ids.len()];
        if let Ok((stack, length)) = self.run(input_ids) {
            let answer = stack.into_iter().rev().chain([self.pop()]);
            for (label, number) in labels[length..].iter_mut().zip(answer) {
                *label = self.tokens.label(number);
            }
        }
        labels
    }

    fn layout(&self) -> (usize, usize) {
        (1, 2)
    }

    fn guess(&self, _length: u32) -> Option<f64> {
        Some(1.0 / f64::from(self.symbols))
    }
}
