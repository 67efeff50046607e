use super::Define;
use super::sampled::{Ranges, Sampled, Splits, Tokens, check_gaps};
use super::words::check_range;
use crate::{IGNORE, PAD, Split, Vocabulary};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Arithmetic modulo m with single-token numbers; the value stands at a blank `E` after the expression. Source:
/// Delétang et al., arXiv 2207.02098 (modular arithmetic, with brackets, solve equation).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expressions {
    /// The expressions.
    pub form: Form,
    /// m: the numbers are 0 to m − 1.
    pub modulus: u32,
    /// The operators that occur, of `+`, `-` and `*`.
    pub operators: Vec<String>,
    /// Tokens that the vocabulary has though no expression has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unused: Vec<String>,
    /// The lengths of training and validation, the blank not counted.
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

/// The form of the expressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Numbers and operators in turn, uniform, with the usual precedence. An even length is rounded down.
    Flat,
    /// One number d as `d`, `-d`, `(d)` or `(-d)`, by its length; longer ones as `(left op right)`, where the length of
    /// the left part and the operator are uniform.
    Brackets,
    /// `expression=value` with brackets, in which one number is `x`; the label is that number. A place is drawn
    /// uniformly, and the next number from there, from the end on to the beginning, becomes `x`. Shorter than three
    /// tokens, there are only zeros.
    Equation,
}

impl Default for Expressions {
    fn default() -> Self {
        Self {
            form: Form::Brackets,
            modulus: 5,
            operators: ["+", "-", "*"].map(String::from).to_vec(),
            unused: vec![],
            train_lengths: Ranges::range(1, 40),
            test_lengths: Ranges::range(41, 100),
            val_examples: 1000,
            test_examples: 3000,
            tokens: Tokens::default(),
        }
    }
}

/// The tokens behind the numbers, in the order of the vocabulary; operators first.
const SIGNS: [&str; 8] = ["+", "-", "*", "(", ")", "x", "=", "E"];
const MINUS: u16 = 1;
const TIMES: u16 = 2;
const OPEN: u16 = 3;
const CLOSE: u16 = 4;
const X: u16 = 5;
const EQUALS: u16 = 6;
const BLANK: u16 = 7;

/// a + b·x, where x is what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Linear(u32, u32);

/// A part of an expression that is not closed yet.
enum Part {
    /// After a bracket.
    Open,
    /// After a left side and an operator.
    Left(Linear, u16),
}

impl Expressions {
    fn m(&self) -> u16 {
        self.modulus as u16
    }

    fn numbered(&self) -> impl Iterator<Item = String> {
        (0..self.modulus).map(|n| n.to_string()).chain(SIGNS.map(String::from))
    }

    /// The operators, as numbers of [`SIGNS`].
    fn drawn(&self) -> Vec<u16> {
        let signs = self.operators.iter();
        signs.filter_map(|sign| SIGNS.iter().position(|known| known == sign)).map(|at| at as u16).collect()
    }

    /// A value of `left op right` in arithmetic modulo m.
    fn apply(&self, Linear(a, b): Linear, op: u16, Linear(c, d): Linear) -> Result<Linear, String> {
        let m = self.modulus;
        match op {
            TIMES if b != 0 && d != 0 => Err("x occurs twice in a product".into()),
            TIMES => Ok(Linear(a * c % m, (a * d + b * c) % m)),
            MINUS => Ok(Linear((a + m - c) % m, (b + m - d) % m)),
            _ => Ok(Linear((a + c) % m, (b + d) % m)),
        }
    }

    /// A number or `x`; otherwise the sign.
    fn operand(&self, token: Option<u16>) -> Result<Linear, Option<u16>> {
        match token {
            Some(number) if number < self.m() => Ok(Linear(u32::from(number), 0)),
            Some(sign) if sign == self.m() + X && self.form == Form::Equation => Ok(Linear(0, 1)),
            other => Err(other.map(|token| token - self.m())),
        }
    }

    /// The value of numbers and operators in turn.
    fn flat(&self, tokens: &[u16]) -> Result<u32, String> {
        let wrong = |at: usize| format!("token {} does not continue the expression", at + 1);
        let (mut sum, mut sign, mut term) = (Linear(0, 0), 0, Linear(0, 0));
        for (at, pair) in tokens.chunks(2).enumerate() {
            let number = self.operand(pair.first().copied()).map_err(|_| wrong(2 * at))?;
            term = match at.checked_sub(1).and_then(|before| tokens.get(2 * before + 1)) {
                None => number,
                Some(op) if *op == self.m() + TIMES => self.apply(term, TIMES, number)?,
                Some(op) => {
                    sum = self.apply(sum, sign, term)?;
                    sign = op - self.m();
                    number
                }
            };
            match pair.get(1) {
                Some(op) if *op < self.m() || *op > self.m() + TIMES => return Err(wrong(2 * at + 1)),
                Some(_) if 2 * at + 2 == tokens.len() => return Err("the expression ends with an operator".into()),
                _ => {}
            }
        }
        self.apply(sum, sign, term).map(|Linear(value, _)| value)
    }

    /// The value of an expression with brackets.
    fn bracketed(&self, tokens: &[u16]) -> Result<Linear, String> {
        let wrong = |at: usize| format!("token {} does not continue the expression", at + 1);
        let mut open: Vec<Part> = vec![];
        let mut at = 0;
        loop {
            let (mut value, mut is_number) = match self.operand(tokens.get(at).copied()) {
                Err(Some(OPEN)) => {
                    open.push(Part::Open);
                    at += 1;
                    continue;
                }
                Err(Some(MINUS)) => {
                    at += 1;
                    let number = self.operand(tokens.get(at).copied()).map_err(|_| wrong(at))?;
                    (self.apply(Linear(0, 0), MINUS, number)?, true)
                }
                Ok(number) => (number, true),
                Err(_) => return Err(wrong(at)),
            };
            at += 1;
            // close what is complete
            loop {
                let sign = tokens.get(at).map(|token| token.wrapping_sub(self.m()));
                match (open.pop(), sign) {
                    (None, None) => return Ok(value),
                    (Some(Part::Open), Some(op @ 0..=TIMES)) => {
                        open.push(Part::Left(value, op));
                        at += 1;
                        break;
                    }
                    (Some(Part::Open), Some(CLOSE)) if is_number => {}
                    (Some(Part::Left(left, op)), Some(CLOSE)) => value = self.apply(left, op, value)?,
                    _ => return Err(wrong(at)),
                }
                is_number = false;
                at += 1;
            }
        }
    }

    /// The number that makes an equation true.
    fn solution(&self, tokens: &[u16]) -> Result<u32, String> {
        if tokens.len() < 3 {
            return if tokens.iter().all(|token| *token == 0) { Ok(0) } else { Err("there is no equation".into()) };
        }
        let [expression @ .., equals, value] = tokens else { return Err("there is no equation".into()) };
        if *equals != self.m() + EQUALS || *value >= self.m() {
            return Err("the input does not end with `=` and a number".into());
        }
        let Linear(a, b) = self.bracketed(expression)?;
        if expression.iter().filter(|token| **token == self.m() + X).count() != 1 {
            return Err("`x` does not occur once".into());
        }
        let mut solutions = (0..self.modulus).filter(|x| (a + b * x) % self.modulus == u32::from(*value));
        match (solutions.next(), solutions.next()) {
            (Some(x), None) => Ok(x),
            _ => Err("the equation has not exactly one solution".into()),
        }
    }

    /// The value of an input, and its length.
    fn value(&self, input_ids: &[u16]) -> Result<(u32, usize), String> {
        let [expression @ .., blank] = input_ids else { return Err("the input is empty".into()) };
        if *blank != self.tokens.id(self.m() + BLANK) {
            return Err("the input does not end with `E`".into());
        }
        if expression.is_empty() {
            return Err("there is no expression".into());
        }
        let number = |(at, id): (usize, &u16)| {
            self.tokens.number(*id).ok_or_else(|| format!("token {} occurs in no expression", at + 1))
        };
        let tokens: Vec<u16> = expression.iter().enumerate().map(number).collect::<Result<_, _>>()?;
        let value = match self.form {
            Form::Flat => self.flat(&tokens)?,
            Form::Brackets => self.bracketed(&tokens)?.0,
            Form::Equation => self.solution(&tokens)?,
        };
        Ok((value, expression.len()))
    }

    /// An expression with brackets of n tokens.
    fn draw_bracketed(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<u16> {
        enum Rest {
            Expression(usize),
            Token(u16),
        }
        let operators = self.drawn();
        let mut tokens = Vec::with_capacity(n + 3);
        let mut rest = vec![Rest::Expression(n)];
        while let Some(next) = rest.pop() {
            let length = match next {
                Rest::Token(token) => {
                    tokens.push(token);
                    continue;
                }
                Rest::Expression(length) => length,
            };
            let sign = |sign: u16| self.m() + sign;
            if length < 5 {
                let number = rng.random_range(0..self.m());
                match length {
                    0 => {}
                    1 => tokens.push(number),
                    2 => tokens.extend([sign(MINUS), number]),
                    3 => tokens.extend([sign(OPEN), number, sign(CLOSE)]),
                    _ => tokens.extend([sign(OPEN), sign(MINUS), number, sign(CLOSE)]),
                }
                continue;
            }
            let left = rng.random_range(1..length - 3);
            let op = operators[rng.random_range(0..operators.len())];
            tokens.push(sign(OPEN));
            rest.push(Rest::Token(sign(CLOSE)));
            rest.push(Rest::Expression(length - left - 3));
            rest.push(Rest::Token(sign(op)));
            rest.push(Rest::Expression(left));
        }
        tokens
    }

    fn draw_equation(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<u16> {
        if n < 3 {
            return vec![0; n];
        }
        let mut tokens = self.draw_bracketed(n - 2, rng);
        let value = self.bracketed(&tokens).map_or(0, |Linear(value, _)| value);
        let place = rng.random_range(0..tokens.len());
        let numbers = (place..tokens.len()).chain(0..place).find(|at| tokens[*at] < self.m());
        if let Some(at) = numbers {
            tokens[at] = self.m() + X;
        }
        tokens.extend([self.m() + EQUALS, value as u16]);
        tokens
    }

    fn draw_flat(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<u16> {
        let operators = self.drawn();
        let token = |at: usize| match at % 2 {
            0 => rng.random_range(0..self.m()),
            _ => self.m() + operators[rng.random_range(0..operators.len())],
        };
        (0..n).map(token).collect()
    }
}

impl Define for Expressions {
    const NAME: &'static str = "expressions";
    const EXAMPLES: &'static [&'static str] = &[
        r#"form=equation,modulus=7,operators=["-"],unused=["_"],train_lengths=1..9,test_lengths=10..40"#,
        r#"form=flat,modulus=2,operators=["*"],train_lengths=3..9,helper=pad"#,
    ];

    fn tokens(&self) -> Vec<String> {
        let signs = self.operators.iter().map(String::as_str);
        let more = match self.form {
            Form::Flat => &[][..],
            Form::Brackets => &["-", "(", ")"],
            Form::Equation => &["-", "(", ")", "x", "="],
        };
        let numbers = (0..self.modulus).map(|n| n.to_string());
        let used: Vec<&str> = signs.chain(more.iter().copied()).collect();
        let signs = SIGNS.iter().filter(|sign| used.contains(sign)).map(|sign| (*sign).to_owned());
        numbers.chain(signs).chain(self.unused.iter().cloned()).chain(["E".to_owned(), PAD.to_owned()]).collect()
    }

    fn validate(&self) -> Result<(), String> {
        check_range("modulus", self.modulus, 2..=10_000)?;
        let known = |sign: &String| matches!(sign.as_str(), "+" | "-" | "*");
        if let Some(sign) = self.operators.iter().find(|sign| !known(sign)) {
            return Err(format!("operators: `{sign}` is none of +, - and *"));
        }
        if self.operators.is_empty() {
            return Err("operators is empty".into());
        }
        if self.form == Form::Equation && self.operators.iter().any(|sign| sign == "*") {
            return Err("operators: equations with `*` may have several solutions\n  hint: use [\"+\", \"-\"]".into());
        }
        let tokens = self.tokens();
        if let Some(token) = self.unused.iter().find(|token| tokens.iter().filter(|other| other == token).count() > 1) {
            return Err(format!("unused: `{token}` is in the vocabulary already"));
        }
        self.splits().check(1)?;
        check_gaps(self)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.tokens = Tokens::new(vocabulary, self.numbered());
    }

    fn longest(&self) -> usize {
        self.splits().longest() as usize + 1
    }
}

impl Sampled for Expressions {
    const NAME: &'static str = "expressions";

    fn splits(&self) -> Splits<'_> {
        Splits {
            train: &self.train_lengths,
            test: &self.test_lengths,
            val_examples: self.val_examples,
            test_examples: self.test_examples,
        }
    }

    fn gap(&self, length: u32) -> Option<String> {
        match self.form {
            _ if length == 0 => Some("the shortest expression is a number".into()),
            Form::Flat if length.is_multiple_of(2) => Some("numbers and operators in turn have an odd length".into()),
            _ => None,
        }
    }

    /// Of an even length, the original draws flat expressions that are one token shorter.
    fn rounded(&self, length: u32) -> u32 {
        if self.form == Form::Flat && length > 0 && length.is_multiple_of(2) { length - 1 } else { length }
    }

    fn draw(&self, _split: Split, length: u32, rng: &mut ChaCha8Rng) -> Vec<u16> {
        let n = length as usize;
        let tokens = match self.form {
            Form::Flat => self.draw_flat(n, rng),
            Form::Brackets => self.draw_bracketed(n, rng),
            Form::Equation => self.draw_equation(n, rng),
        };
        tokens.into_iter().chain([self.m() + BLANK]).map(|number| self.tokens.id(number)).collect()
    }

    fn main_tokens(&self, input_ids: &[u16]) -> Result<u32, String> {
        self.value(input_ids).map(|(_, length)| length as u32)
    }

    fn label(&self, input_ids: &[u16]) -> Vec<i16> {
        let mut labels = vec![IGNORE; input_ids.len()];
        if let (Ok((value, _)), Some(label)) = (self.value(input_ids), labels.last_mut()) {
            *label = self.tokens.label(value as u16);
        }
        labels
    }

    fn layout(&self) -> (usize, usize) {
        (1, 1)
    }

    fn guess(&self, _length: u32) -> Option<f64> {
        Some(1.0 / f64::from(self.modulus))
    }
}
