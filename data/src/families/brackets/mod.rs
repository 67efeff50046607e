mod words;

use super::Define;
use super::sampled::{Range, Ranges, Sampled, Splits, Tokens, check_gaps};
use super::words::check_range;
use crate::{IGNORE, PAD, Split, Vocabulary};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use words::Grammar;

/// The pairs of brackets, in the order of the vocabulary.
const PAIRS: [[&str; 2]; 7] = [["(", ")"], ["[", "]"], ["{", "}"], ["<", ">"], ["«", "»"], ["‹", "›"], ["⟦", "⟧"]];

/// The token after which nothing is open.
const RESET: &str = "1";

/// Brackets: Dyck languages, their shuffles, and Dyck languages with a reset. The label of a token is the set of the
/// brackets that may come next: each that opens, and those that close something. Source: Bhattamishra et al., arXiv
/// 2009.11264.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Brackets {
    /// What may close.
    pub kind: Closing,
    /// How many kinds of brackets there are.
    pub pairs: u32,
    /// The probability of brackets around a part in the grammar that strings are drawn with.
    pub p: f64,
    /// The probability of two parts.
    pub q: f64,
    /// Short strings are as rare as in so many different ones drawn in turn, for training; in other splits, in as many
    /// as the split has. 0 for independent strings, of which most are short.
    pub different: usize,
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
    /// What the strings of a split's range are drawn with.
    #[serde(skip)]
    laws: Vec<(Split, Range, Law)>,
    /// The grammars of words of at most so many pairs, made when they are first used.
    #[serde(skip)]
    grammars: Vec<OnceLock<Grammar>>,
}

/// Grammars that are kept: those of sweeps up to the usual 1000 tokens.
const KEPT: usize = 501;

/// What may close in [`Brackets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closing {
    /// The bracket that was opened last: the Dyck language.
    Nested,
    /// Any kind of which one is open: the shuffle of Dyck languages. As in the paper, strings are those of `nested`, in
    /// which brackets of different kinds never cross.
    Shuffled,
    /// As `nested`, but the token `1` forgets everything before it. Strings are a beginning of a word, `1`, and a word.
    /// The longest length bounds each word, as in the paper, so that strings are up to one more than twice as long.
    Reset,
}

/// The distribution of a range's strings.
#[derive(Debug, Clone, PartialEq)]
struct Law {
    grammar: Grammar,
    /// The probabilities of 0, 1, 2 … pairs in a word.
    pairs: Vec<f64>,
    /// Lengths, and the probability of each or a shorter one.
    lengths: Vec<(u32, f64)>,
}

impl Default for Brackets {
    fn default() -> Self {
        Self {
            kind: Closing::Nested,
            pairs: 1,
            p: 0.5,
            q: 0.25,
            different: 10_000,
            train_lengths: Ranges::range(2, 50),
            test_lengths: Ranges::range(52, 100),
            val_examples: 1000,
            test_examples: 3000,
            tokens: Tokens::default(),
            laws: vec![],
            grammars: vec![],
        }
    }
}

/// What has been opened.
enum Open {
    Stack(Vec<u16>),
    Counts(Vec<u32>),
}

impl Brackets {
    fn alphabet(&self) -> Vec<String> {
        let brackets = PAIRS.iter().take(self.pairs as usize).flatten().map(|bracket| (*bracket).to_owned());
        brackets.chain((self.kind == Closing::Reset).then(|| RESET.to_owned())).collect()
    }

    fn reset(&self) -> u16 {
        2 * self.pairs as u16
    }

    /// The labels as sets, until a token is wrong.
    fn read(&self, input_ids: &[u16]) -> (Vec<i16>, Result<(), String>) {
        let opening: i16 = (0..self.pairs).map(|kind| 1 << (2 * kind)).sum();
        let mut labels = Vec::with_capacity(input_ids.len());
        let mut open = match self.kind {
            Closing::Shuffled => Open::Counts(vec![0; self.pairs as usize]),
            Closing::Nested | Closing::Reset => Open::Stack(vec![]),
        };
        for (i, id) in input_ids.iter().enumerate() {
            let Some(number) = self.tokens.number(*id) else {
                return (labels, Err(format!("token {} is no bracket", i + 1)));
            };
            let (kind, closes) = (number / 2, number % 2 == 1);
            let is_right = match &mut open {
                Open::Stack(stack) if number == self.reset() => {
                    stack.clear();
                    true
                }
                Open::Stack(stack) if closes => stack.pop() == Some(kind),
                Open::Stack(stack) => {
                    stack.push(kind);
                    true
                }
                Open::Counts(counts) => match (closes, &mut counts[usize::from(kind)]) {
                    (true, 0) => false,
                    (true, count) => {
                        *count -= 1;
                        true
                    }
                    (false, count) => {
                        *count += 1;
                        true
                    }
                },
            };
            if !is_right {
                return (labels, Err(format!("token {} closes what is not open", i + 1)));
            }
            let closing = match &open {
                Open::Stack(stack) => stack.last().map_or(0, |kind| 2 << (2 * kind)),
                Open::Counts(counts) => {
                    let open = (0..).zip(counts).filter(|(_, count)| **count > 0);
                    open.map(|(kind, _): (i16, _)| 2 << (2 * kind)).sum()
                }
            };
            labels.push(opening | closing);
        }
        (labels, Ok(()))
    }

    /// The distribution of strings of a range, of which there are to be `different` ones.
    fn law(&self, (first, last): Range, different: usize) -> Law {
        let most = last as usize / 2;
        let grammar = Grammar::new(self.p, self.q, most);
        let pairs = grammar.lengths(most);
        let longest = self.longest_in((first, last));
        let lengths: Vec<u32> = (first..=longest).filter(|length| self.gap(*length).is_none()).collect();
        let weights: Vec<f64> = match self.kind {
            Closing::Nested | Closing::Shuffled => lengths.iter().map(|n| pairs[*n as usize / 2]).collect(),
            Closing::Reset => {
                let beginnings = beginnings(&pairs);
                lengths
                    .iter()
                    .map(|n| splits(*n as usize, &pairs, &beginnings).into_iter().map(|(_, w)| w).sum())
                    .collect()
            }
        };
        let counts: Vec<f64> = lengths.iter().map(|length| self.ln_count(*length)).collect();
        let weights = if different == 0 { weights } else { seen(&weights, &counts, different as f64) };
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let lengths = lengths.into_iter().zip(weights).map(|(length, weight)| {
            sum += weight / total;
            (length, sum)
        });
        Law { lengths: lengths.collect(), pairs, grammar }
    }

    /// ln of how many strings of a length there are.
    fn ln_count(&self, length: u32) -> f64 {
        let n = f64::from(self.pairs).ln();
        let (mut ln_factorials, mut sum) = (vec![0.0], 0.0);
        ln_factorials.extend((1..=length + 1).map(|i| {
            sum += f64::from(i).ln();
            sum
        }));
        let binomial = |n: usize, k: usize| ln_factorials[n] - ln_factorials[k] - ln_factorials[n - k];
        let catalan = |m: usize| binomial(2 * m, m) - (m as f64 + 1.0).ln() + n * m as f64;
        match self.kind {
            Closing::Nested | Closing::Shuffled => catalan(length as usize / 2),
            Closing::Reset => {
                let before = length as usize - 1;
                let beginning = |t: usize| binomial(t, t / 2) + n * t as f64 / 2.0;
                (0..=before / 2).map(|m| catalan(m) + beginning(before - 2 * m)).fold(f64::NEG_INFINITY, ln_add)
            }
        }
    }

    /// A string of a length, with words of a grammar.
    fn string(&self, length: u32, grammar: &Grammar, pairs: &[f64], rng: &mut ChaCha8Rng) -> Vec<u16> {
        let n = length as usize;
        let mut input_ids = Vec::with_capacity(n);
        if self.kind != Closing::Reset {
            self.push_word(&grammar.word(n / 2, rng), &mut input_ids, rng);
            return input_ids;
        }
        let choices = splits(n, pairs, &beginnings(pairs));
        let second = choose(&choices, rng).unwrap_or(0);
        let before = n - 1 - 2 * second;
        let words = (before.div_ceil(2)..pairs.len()).map(|m| (m, pairs[m] / (2 * m + 1) as f64));
        let first = choose(&words.collect::<Vec<_>>(), rng).unwrap_or(before.div_ceil(2));
        self.push_word(&grammar.word(first, rng)[..before], &mut input_ids, rng);
        input_ids.push(self.tokens.id(self.reset()));
        self.push_word(&grammar.word(second, rng), &mut input_ids, rng);
        input_ids
    }

    /// Appends a word, with a kind for each pair.
    fn push_word(&self, word: &[bool], input_ids: &mut Vec<u16>, rng: &mut ChaCha8Rng) {
        let mut kinds = Vec::with_capacity(64);
        for opens in word {
            let number = match opens {
                true => {
                    let kind = if self.pairs == 1 { 0 } else { rng.random_range(0..self.pairs as u16) };
                    kinds.push(kind);
                    2 * kind
                }
                false => 2 * kinds.pop().unwrap_or(0) + 1,
            };
            input_ids.push(self.tokens.id(number));
        }
    }
}

/// ln(eᵃ + eᵇ).
fn ln_add(a: f64, b: f64) -> f64 {
    let (small, large) = if a < b { (a, b) } else { (b, a) };
    if large == f64::NEG_INFINITY { large } else { large + (small - large).exp().ln_1p() }
}

/// The probability that a beginning of a word has t tokens, where it ends uniformly.
fn beginnings(pairs: &[f64]) -> Vec<f64> {
    let mut beginnings = vec![0.0; 2 * pairs.len()];
    let mut sum = 0.0;
    for (m, probability) in pairs.iter().enumerate().rev() {
        beginnings[2 * m + 1] = sum;
        sum += probability / (2 * m + 1) as f64;
        beginnings[2 * m] = sum;
    }
    beginnings
}

/// The pairs of the second word in strings of n tokens with a reset, and their probabilities.
fn splits(n: usize, pairs: &[f64], beginnings: &[f64]) -> Vec<(usize, f64)> {
    let second = (0..pairs.len()).take_while(|m| 2 * m < n);
    second.map(|m| (m, pairs[m] * beginnings.get(n - 1 - 2 * m).copied().unwrap_or(0.0))).collect()
}

/// One of some things, in proportion to their weights.
fn choose(weighted: &[(usize, f64)], rng: &mut ChaCha8Rng) -> Option<usize> {
    let mut rest = rng.random::<f64>() * weighted.iter().map(|(_, weight)| weight).sum::<f64>();
    let found = weighted.iter().find(|(_, weight)| {
        rest -= weight;
        rest < 0.0
    });
    found.or_else(|| weighted.iter().rev().find(|(_, weight)| *weight > 0.0)).map(|(thing, _)| *thing)
}

/// How many strings of each length there are among `different` ones that are drawn in turn, repeated ones left out, on
/// average and where the strings of a length are equally likely: e^`ln_counts` · (1 − e^(−draws · weight / count)).
fn seen(weights: &[f64], ln_counts: &[f64], different: f64) -> Vec<f64> {
    let after = |draws: f64| -> Vec<f64> {
        let of = |(weight, ln_count): (&f64, &f64)| {
            let mean = draws * weight;
            if *ln_count > 40.0 { mean } else { -ln_count.exp() * (-mean / ln_count.exp()).exp_m1() }
        };
        weights.iter().zip(ln_counts).map(of).collect()
    };
    let (mut low, mut high) = (different, 1e15);
    for _ in 0..100 {
        let draws = (low * high).sqrt();
        if after(draws).iter().sum::<f64>() < different { low = draws } else { high = draws }
    }
    after(high)
}

impl Define for Brackets {
    const NAME: &'static str = "brackets";
    const EXAMPLES: &'static [&'static str] = &[
        "pairs=7,p=0.4,q=0.3,different=0,train_lengths=1..20,test_lengths=\"21..40,50\"",
        "kind=shuffled,pairs=3,q=0,helper=pad",
        "kind=reset,pairs=2,train_lengths=1..9,test_lengths=10..30",
    ];

    fn tokens(&self) -> Vec<String> {
        self.alphabet().into_iter().chain([PAD.to_owned()]).collect()
    }

    fn units(&self) -> Vec<String> {
        self.alphabet().into_iter().take(2 * self.pairs as usize).collect()
    }

    fn validate(&self) -> Result<(), String> {
        check_range("pairs", self.pairs, 1..=PAIRS.len() as u32)?;
        let (p, q) = (self.p, self.q);
        if !(0.01..=1.0).contains(&p) || !(0.0..=0.9).contains(&q) || p + q > 1.0 {
            return Err(format!("p = {p}, q = {q}: p is at least 0.01, q at most 0.9, and their sum at most 1"));
        }
        self.splits().check(1)?;
        if self.splits().longest() > 10_000 {
            return Err("train_lengths, test_lengths: the longest string has 10000 tokens".into());
        }
        check_gaps(self)?;
        let mut bound = self.clone();
        bound.bind(&Vocabulary::new(self.tokens()), false);
        match bound.laws.iter().find(|(.., law)| !law.lengths.last().is_some_and(|(_, sum)| sum.is_finite())) {
            Some((_, (first, last), _)) => {
                Err(format!("p, q: strings of {first} to {last} tokens are practically never drawn"))
            }
            None => Ok(()),
        }
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.tokens = Tokens::new(vocabulary, self.alphabet());
        self.grammars = vec![OnceLock::new(); KEPT];
        let laws = Split::ALL.into_iter().flat_map(|split| {
            let ranges = self.splits().lengths(split).ranges();
            let different = match split {
                _ if self.different == 0 => 0,
                Split::Train => self.different,
                Split::Val => self.val_examples / ranges.len(),
                Split::OodTest | Split::Auxiliary(_) => self.test_examples / ranges.len(),
            };
            ranges.iter().map(move |range| (split, *range, different))
        });
        let laws: Vec<_> = laws.collect();
        self.laws = laws.into_iter().map(|(split, range, n)| (split, range, self.law(range, n))).collect();
    }

    fn longest(&self) -> usize {
        let ranges = [&self.train_lengths, &self.test_lengths].into_iter().flat_map(Ranges::ranges);
        ranges.map(|range| self.longest_in(*range) as usize).max().unwrap_or(0)
    }
}

impl Sampled for Brackets {
    const NAME: &'static str = "brackets";

    fn splits(&self) -> Splits<'_> {
        Splits {
            train: &self.train_lengths,
            test: &self.test_lengths,
            val_examples: self.val_examples,
            test_examples: self.test_examples,
        }
    }

    fn gap(&self, length: u32) -> Option<String> {
        let balanced = self.kind != Closing::Reset;
        match length {
            0 => Some("the shortest string has a token".into()),
            _ if balanced && !length.is_multiple_of(2) => Some("balanced strings have an even length".into()),
            _ => None,
        }
    }

    fn draw(&self, _split: Split, length: u32, rng: &mut ChaCha8Rng) -> Vec<u16> {
        let most = length as usize / 2;
        let own;
        let grammar = match self.grammars.get(most) {
            Some(kept) => kept.get_or_init(|| Grammar::new(self.p, self.q, most)),
            None => {
                own = Grammar::new(self.p, self.q, most);
                &own
            }
        };
        let pairs = if self.kind == Closing::Reset { grammar.lengths(most) } else { vec![] };
        self.string(length, grammar, &pairs, rng)
    }

    fn draw_in(&self, split: Split, range: Range, rng: &mut ChaCha8Rng) -> Option<Vec<u16>> {
        let (.., law) = self.laws.iter().find(|(of, r, _)| (*of, *r) == (split, range))?;
        let u: f64 = rng.random();
        let (length, _) = law.lengths.get(law.lengths.partition_point(|(_, to)| *to <= u)).or(law.lengths.last())?;
        Some(self.string(*length, &law.grammar, &law.pairs, rng))
    }

    fn longest_in(&self, (_, last): Range) -> u32 {
        match self.kind {
            Closing::Reset => 2 * (last - last % 2) + 1,
            Closing::Nested | Closing::Shuffled => last - last % 2,
        }
    }

    fn main_tokens(&self, input_ids: &[u16]) -> Result<u32, String> {
        match input_ids {
            [] => Err("there is no bracket".into()),
            _ => self.read(input_ids).1.map(|()| input_ids.len() as u32),
        }
    }

    fn label(&self, input_ids: &[u16]) -> Vec<i16> {
        let (mut labels, _) = self.read(input_ids);
        labels.resize(input_ids.len(), IGNORE);
        labels
    }

    fn layout(&self) -> (usize, usize) {
        (0, 1)
    }
}
