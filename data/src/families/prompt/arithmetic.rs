use super::{Answers, Ask, Draw, Frame, Names, Question, Trouble};
use crate::families::lengths::{Lengths, Splits};
use crate::families::words::{check_range, some_token, token};
use crate::families::{Define, Examples, Family};
use crate::{Example, LengthLimit, Split, Track, Vocabulary};
use num_bigint::BigUint;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Calculations with numbers of any size: `a operator b`, or the square root of one number.
///
/// Sources of the presets: Delétang et al., "Neural Networks and the Chomsky Hierarchy" (arXiv 2207.02098); Huang et
/// al., "A Formal Framework for Understanding Length Generalization in Transformers" (arXiv 2410.02140); McLeish et
/// al., "Transformers Can Do Arithmetic with the Right Embeddings" (arXiv 2405.17399).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Arithmetic {
    /// What is calculated.
    pub operation: Operation,
    /// Where the answer stands.
    pub answers: Answers,
    /// The base of the numbers.
    pub base: u32,
    /// Which digit comes first.
    pub endian: Endian,
    /// Which numbers are drawn.
    pub numbers: Numbers,
    /// How long the two numbers are, and what counts as length.
    pub operands: Operands,
    /// With `operands = "grid"`: the length of the second number in tests.
    pub second: Second,
    /// The token between the numbers.
    #[serde(deserialize_with = "token")]
    pub operator: String,
    /// The first token, if any.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_token")]
    pub bos: Option<String>,
    /// The token between prompt and answer, if any.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_token")]
    pub separator: Option<String>,
    /// The label after the answer's last token, if any.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_token")]
    pub end: Option<String>,
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
    zero: u16,
    #[serde(skip)]
    operator_id: u16,
}

/// What an [`Arithmetic`] calculates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// a + b.
    #[default]
    Add,
    /// a · b.
    Multiply,
    /// The largest number whose square is not larger than a.
    Sqrt,
}

/// The order of digits, in numbers and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endian {
    /// The last digit first.
    #[default]
    Little,
    /// As numbers are usually written.
    Big,
}

/// The numbers of n digits that are drawn, all equally likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numbers {
    /// From 1 on, without leading zeros.
    #[default]
    Positive,
    /// Without leading zeros; one digit may be 0.
    Plain,
    /// From 1 on, with leading zeros; a square root has half as many digits, leading zeros with them.
    Padded,
}

/// How the digits of a calculation with two numbers are distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operands {
    /// The length is the number of digits of the longer number. Training goes over all pairs of lengths up to the
    /// longest, in turn.
    #[default]
    Grid,
    /// The length is the number of tokens of both numbers, the operator and the separator; the first number has any
    /// number of digits, each equally likely. With padded numbers in slots, where there is no room for two, the prompt
    /// is one number without an operator, which is its own sum; the product is then 0, cut to length − 1 digits.
    Split,
}

/// The length of the second number in tests of [`Operands::Grid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Second {
    /// As long as the first.
    #[default]
    Equal,
    /// Half as long, rounded up.
    Half,
    /// Any pair of lengths whose longer one is the tested length.
    Any,
}

impl Default for Arithmetic {
    fn default() -> Self {
        Self {
            operation: Operation::Add,
            answers: Answers::TeacherForced,
            base: 10,
            endian: Endian::Little,
            numbers: Numbers::Positive,
            operands: Operands::Grid,
            second: Second::Equal,
            operator: "+".into(),
            bos: None,
            separator: None,
            end: None,
            train_lengths: Lengths::new("1-20"),
            test_lengths: Lengths::new("21-100"),
            val_examples: 400,
            test_examples: 8000,
            splits: Splits::default(),
            frame: Frame::default(),
            zero: 0,
            operator_id: 0,
        }
    }
}

impl Arithmetic {
    /// The special tokens; `=` stands before teacher-forced answers unless another separator is set.
    fn names(&self) -> Names<'_> {
        let mut names = Names::new(self.answers, &self.bos, &self.separator, &self.end);
        if self.separator.is_none() && self.answers == Answers::TeacherForced {
            names.separator = "=";
        }
        names
    }

    fn digits(&self) -> Vec<String> {
        (0..self.base).map(|digit| digit.to_string()).collect()
    }

    /// Tokens of a prompt with two numbers besides their digits.
    fn marks(&self) -> u32 {
        1 + self.frame.separators()
    }

    /// Whether prompts that are too short for two numbers are a single one.
    fn allows_single(&self) -> bool {
        self.numbers == Numbers::Padded && self.frame.slot.is_some()
    }

    /// Appends a number of `n` digits.
    fn number(&self, n: usize, rng: &mut ChaCha8Rng, out: &mut Vec<u16>) {
        let start = out.len();
        let base = self.base as u16;
        loop {
            out.extend((0..n).map(|_| self.zero + rng.random_range(0..base)));
            let digits = &mut out[start..];
            let leading = match self.endian {
                Endian::Little => digits.len() - 1,
                Endian::Big => 0,
            };
            if self.numbers != Numbers::Padded && n > 1 {
                digits[leading] = self.zero + rng.random_range(1..base);
            }
            let may_be_zero = self.numbers == Numbers::Plain && n == 1;
            if may_be_zero || digits.iter().any(|digit| *digit != self.zero) {
                return;
            }
            out.truncate(start);
        }
    }

    /// A number of `n` digits other than the largest.
    fn single_number(&self, n: usize, rng: &mut ChaCha8Rng, out: &mut Vec<u16>) {
        let start = out.len();
        let base = self.base as u16;
        loop {
            out.extend((0..n).map(|_| self.zero + rng.random_range(0..base)));
            if out[start..].iter().any(|digit| *digit != self.zero + base - 1) {
                return;
            }
            out.truncate(start);
        }
    }

    /// How many digits the two numbers of an example have.
    fn operand_lengths(&self, length: u32, draw: Draw, rng: &mut ChaCha8Rng) -> (u32, u32) {
        if self.operands == Operands::Split {
            let digits = length - self.marks();
            let first = rng.random_range(1..digits);
            return (first, digits - first);
        }
        match (draw, self.second) {
            (Draw::Grid(index), _) => {
                // the pairs of training lengths in turn, each with the others
                let lengths = &self.splits.train;
                (lengths.turn(index).length, lengths.turn(index / lengths.len()).length)
            }
            (Draw::Test, Second::Equal) => (length, length),
            (Draw::Test, Second::Half) => (length, length.div_ceil(2)),
            (Draw::Test, Second::Any) | (Draw::Random, _) => match rng.random_range(0..2 * length - 1) {
                other if other < length => (length, other + 1),
                other => (other - length + 1, length),
            },
        }
    }

    fn is_digit(&self, id: u16) -> bool {
        u32::from(id.wrapping_sub(self.zero)) < self.base
    }

    fn run(&self, input_ids: &[u16]) -> usize {
        input_ids.iter().position(|id| !self.is_digit(*id)).unwrap_or(input_ids.len())
    }

    fn value(&self, digits: &[u16]) -> BigUint {
        let digits: Vec<u8> = digits.iter().map(|id| (id - self.zero) as u8).collect();
        let value = match self.endian {
            Endian::Little => BigUint::from_radix_le(&digits, self.base),
            Endian::Big => BigUint::from_radix_be(&digits, self.base),
        };
        value.unwrap_or_default()
    }

    /// The digits of a number, as ids, with zeros in front up to `width` digits.
    fn written(&self, value: &BigUint, width: usize) -> Vec<u16> {
        let mut digits = value.to_radix_le(self.base);
        digits.resize(digits.len().max(width), 0);
        if self.endian == Endian::Big {
            digits.reverse();
        }
        digits.into_iter().map(|digit| self.zero + u16::from(digit)).collect()
    }

    /// The question of one number: its root, or a sum or product that has no room for a second one.
    fn one_number(&self, digits: &[u16]) -> Result<Vec<u16>, Trouble> {
        let width = if self.numbers == Numbers::Padded { digits.len().div_ceil(2) } else { 0 };
        let has_room = digits.len() as u32 >= self.marks() + 2;
        match self.operation {
            Operation::Sqrt => Ok(self.written(&self.value(digits).sqrt(), width)),
            _ if has_room || !self.allows_single() || self.operands == Operands::Grid => {
                Err(Trouble::wrong(format!("there is no `{}` after the first number", self.operator)))
            }
            Operation::Add => Ok(self.written(&self.value(digits), 0)),
            Operation::Multiply => Ok(vec![self.zero; digits.len() - 1]),
        }
    }

    fn slots(&self, length: u32) -> usize {
        let length = length as usize;
        match (self.operation, self.operands) {
            (Operation::Sqrt, _) => length.div_ceil(2) + usize::from(self.frame.end.is_some()),
            (Operation::Add, Operands::Split) => length + 1,
            (Operation::Multiply, Operands::Split) => length,
            (Operation::Add, Operands::Grid) => length + 2,
            (Operation::Multiply, Operands::Grid) => 2 * length + 1,
        }
    }

    fn read(&self, input_ids: &[u16]) -> Result<(u32, Vec<i16>), String> {
        self.frame.read(input_ids, |ids| self.question(ids))
    }
}

impl Ask for Arithmetic {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn splits(&self) -> &Splits {
        &self.splits
    }

    fn possible(&self, length: u32) -> Result<(), String> {
        let two = self.operation != Operation::Sqrt && self.operands == Operands::Split && !self.allows_single();
        let least = if two { 2 + self.marks() } else { 1 };
        match length < least {
            true => Err(format!("a calculation has at least {least} tokens")),
            false => Ok(()),
        }
    }

    fn append(&self, length: u32, draw: Draw, rng: &mut ChaCha8Rng, out: &mut Vec<u16>) {
        let start = out.len();
        out.extend(self.frame.bos);
        if self.operation == Operation::Sqrt {
            self.number(length as usize, rng, out);
        } else if self.operands == Operands::Split && length < 2 + self.marks() {
            self.single_number(length as usize, rng, out);
        } else {
            let (first, second) = self.operand_lengths(length, draw, rng);
            self.number(first as usize, rng, out);
            out.push(self.operator_id);
            self.number(second as usize, rng, out);
        }
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
        let a = &tokens[..self.run(tokens)];
        let is_binary = self.operation != Operation::Sqrt;
        let b = match tokens.get(a.len()) {
            Some(id) if is_binary && *id == self.operator_id => {
                let rest = &tokens[a.len() + 1..];
                Some(&rest[..self.run(rest)])
            }
            _ => None,
        };
        let end = header + a.len() + b.map_or(0, |b| 1 + b.len());
        match (input_ids.get(end), self.frame.separator) {
            (None, Some(_)) => return Err(Trouble::Cut),
            (Some(id), separator) if separator != Some(*id) => {
                return Err(Trouble::wrong(format!("token {} is not one of a prompt", end + 1)));
            }
            _ => {}
        }
        if a.is_empty() || b.is_some_and(<[u16]>::is_empty) {
            return Err(Trouble::wrong("a number has no digit"));
        }
        let answer = match b {
            None => self.one_number(a)?,
            Some(b) if self.operation == Operation::Add => self.written(&(self.value(a) + self.value(b)), 0),
            Some(b) => self.written(&(self.value(a) * self.value(b)), 0),
        };
        let tokens = end + usize::from(self.frame.separator.is_some());
        let length = match b {
            None => a.len(),
            Some(_) if self.operands == Operands::Split => tokens - header,
            Some(b) => a.len().max(b.len()),
        } as u32;
        Ok(Question { tokens, length, answer, slots: self.slots(length) })
    }
}

impl Define for Arithmetic {
    const NAME: &'static str = "arithmetic";
    const EXAMPLES: &'static [&'static str] = &[
        "operation=multiply,operator=x,endian=big,numbers=plain,second=half,train_lengths=1-5,test_lengths=6-9",
        "operation=add,second=any,base=2,numbers=padded,helper=blk,bos=,end=,train_lengths=1-9,test_lengths=12",
        "operation=sqrt,base=7,endian=big,train_lengths=1-9,test_lengths=10-30",
        "operation=sqrt,answers=slots,numbers=padded,end=.,train_lengths=1-9,test_lengths=10-30",
        "operation=multiply,answers=slots,end=.,train_lengths=1-9,test_lengths=10-30",
        "operation=add,answers=slots,train_lengths=2-9,test_lengths=10-30",
        "operation=multiply,operands=split,base=3,train_lengths=4-9,test_lengths=10-30",
    ];

    fn tokens(&self) -> Vec<String> {
        let operator = if self.operation == Operation::Sqrt { vec![] } else { vec![self.operator.as_str()] };
        self.names().tokens(self.digits(), &operator)
    }

    fn validate(&self) -> Result<(), String> {
        check_range("base", self.base, 2..=10)?;
        let names = self.names();
        if self.operation == Operation::Sqrt {
            names.check(&self.digits(), &[])?;
        } else {
            names.check(&self.digits(), &[("operator", &self.operator)])?;
            if self.operator.is_empty() || self.operator == names.separator {
                return Err(format!("operator = {} does not separate the numbers", self.operator));
            }
        }
        if self.answers == Answers::TeacherForced && names.separator.is_empty() {
            return Err("separator is empty, so that the prompt would have no end".into());
        }
        self.train_lengths.check_pairs("train_lengths", false)?;
        self.test_lengths.check_pairs("test_lengths", false)?;
        let frame = Frame {
            separator: (!names.separator.is_empty()).then_some(0),
            slot: (self.answers == Answers::Slots).then_some(0),
            ..Frame::default()
        };
        let laid_out = Self { frame, ..self.clone() };
        let sizes = |lengths: &Lengths, name| lengths.sizes(name, |length, _| laid_out.possible(length)).map(|_| ());
        sizes(&self.train_lengths, "train_lengths").and(sizes(&self.test_lengths, "test_lengths"))
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.zero = vocabulary.id("0").unwrap_or(0);
        self.operator_id = vocabulary.id(&self.operator).unwrap_or(u16::MAX);
        self.frame = self.names().frame(vocabulary, 0);
        let sizes = |lengths: &Lengths| lengths.sizes("", |length, _| self.possible(length)).unwrap_or_default();
        self.splits = Splits { train: sizes(&self.train_lengths), test: sizes(&self.test_lengths) };
    }

    fn longest(&self) -> usize {
        let length = self.train_lengths.last().max(self.test_lengths.last()) as usize;
        let bos = usize::from(self.frame.bos.is_some());
        let separator = self.frame.separators() as usize;
        let (prompt, answer) = match (self.operation, self.operands) {
            (Operation::Sqrt, _) => (length + separator, length.div_ceil(2)),
            (Operation::Add, Operands::Split) => (length, length),
            (Operation::Multiply, Operands::Split) => (length, length),
            (Operation::Add, Operands::Grid) => (2 * length + 1 + separator, length + 1),
            (Operation::Multiply, Operands::Grid) => (2 * length + 1 + separator, 2 * length),
        };
        self.frame.tokens(bos + prompt, answer, self.slots(length as u32))
    }
}

impl Family for Arithmetic {
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

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        self.read(input_ids).map(|(length, _)| length)
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        self.read(input_ids).map(|(_, labels)| labels).unwrap_or_default()
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
        let symbol = 1.0 / f64::from(self.base);
        if self.frame.slot.is_some() || self.frame.end.is_none() {
            return Some(symbol);
        }
        let scored = self.test(0, 0, length).ok()?.labels.iter().filter(|label| **label >= 0).count() as f64;
        Some(((scored - 1.0) * symbol + 1.0) / scored)
    }
}
