use super::words::{Words, check_range, example_rng, numbers_then, past_last_number};
use super::{Define, Examples, Family};
use crate::{Example, IGNORE, PAD, Split, Track, Vocabulary, stream_rng};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Counting as next-token prediction, after RASP-L (Zhou et al., "What Algorithms can Transformers Learn?", arXiv
/// 2310.16028): the span `<sos> A B < A A+1 … B <eos>`, whose length is B − A + 1.
///
/// Training lines are spans of lengths 2..=`train_max`, A and B uniform among them, one after the other until a line
/// has more than `line_tokens` tokens; it is cut there. The out-of-distribution split is every longer span from A ≥ 1
/// on, without its `<eos>` in the input. Every position is labelled with the next token, also where A and B cannot be
/// known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaspL {
    /// The longest span in training.
    pub train_max: u32,
    /// Tokens of a training line, the last of which is a label only.
    pub line_tokens: usize,
    /// The largest number word.
    pub last_number: u32,
    #[serde(skip)]
    words: Words,
    #[serde(skip)]
    sos: u16,
    #[serde(skip)]
    less: u16,
    #[serde(skip)]
    eos: u16,
}

impl Default for RaspL {
    fn default() -> Self {
        Self { train_max: 50, line_tokens: 256, last_number: 155, words: Words::default(), sos: 0, less: 0, eos: 0 }
    }
}

/// The tokens that may follow a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// This token.
    Token(u16),
    /// Any number that is larger than this one, or any that has a larger one.
    Number { after: Option<u32> },
}

/// The place of a token in a span.
#[derive(Debug, Clone, Copy)]
enum State {
    Before,
    Sos,
    A(u32),
    B(u32, u32),
    Count { at: u32, end: u32 },
}

impl RaspL {
    fn push_span(&self, (a, b): (u32, u32), out: &mut Vec<u16>) {
        out.extend([self.sos, self.words.number(a), self.words.number(b), self.less]);
        out.extend((a..=b).map(|n| self.words.number(n)));
        out.push(self.eos);
    }

    /// A pair that is short enough for training, each equally likely.
    fn pair(&self, rng: &mut impl Rng) -> (u32, u32) {
        loop {
            let (a, length) = (rng.random_range(0..self.last_number), rng.random_range(2..=self.train_max));
            if a + length - 1 <= self.last_number {
                return (a, a + length - 1);
            }
        }
    }

    fn line(&self, rng: &mut impl Rng) -> Vec<u16> {
        let mut tokens = Vec::with_capacity(self.line_tokens + self.train_max as usize + 5);
        while tokens.len() <= self.line_tokens {
            self.push_span(self.pair(rng), &mut tokens);
        }
        tokens.truncate(self.line_tokens);
        tokens
    }

    /// Labels a whole text with its own next tokens; the last token is a label only.
    fn shifted(&self, mut tokens: Vec<u16>) -> Example {
        let labels = tokens.iter().skip(1).map(|id| *id as i16).collect();
        tokens.pop();
        let length = self.length(&tokens).unwrap_or(0);
        Example { input_ids: tokens, labels, length }
    }

    fn ood_pairs(&self) -> Vec<(u32, u32)> {
        let last = self.last_number;
        (1..=last).flat_map(|a| (a + self.train_max..=last).map(move |b| (a, b))).collect()
    }

    /// Reads a line: the longest span, and the tokens that may follow each token.
    fn parse(&self, input_ids: &[u16]) -> Result<(u32, Vec<Next>), String> {
        let (mut state, mut longest, mut next) = (State::Before, 0, Vec::with_capacity(input_ids.len()));
        for (i, &id) in input_ids.iter().enumerate() {
            let wrong = || format!("token {i} does not continue `<sos> A B < A … B <eos>`");
            state = match (state, self.words.value(id)) {
                (State::Before, None) if id == self.sos => State::Sos,
                (State::Sos, Some(a)) if a < self.last_number => State::A(a),
                (State::A(a), Some(b)) if b > a => State::B(a, b),
                // `<` precedes the first number: the count is at A − 1
                (State::B(a, b), None) if id == self.less => State::Count { at: a.wrapping_sub(1), end: b },
                (State::Count { at, end }, Some(n)) if at != end && n == at.wrapping_add(1) => {
                    State::Count { at: n, end }
                }
                (State::Count { at, end }, None) if at == end && id == self.eos => State::Before,
                _ => return Err(wrong()),
            };
            next.push(match state {
                State::Before => Next::Token(self.sos),
                State::Sos => Next::Number { after: None },
                State::A(a) => Next::Number { after: Some(a) },
                State::B(a, b) => {
                    longest = longest.max(b - a + 1);
                    Next::Token(self.less)
                }
                State::Count { at, end } if at == end => Next::Token(self.eos),
                State::Count { at, .. } => Next::Token(self.words.number(at.wrapping_add(1))),
            });
        }
        if input_ids.is_empty() { Err("the input is empty".into()) } else { Ok((longest, next)) }
    }
}

impl Define for RaspL {
    const NAME: &'static str = "raspl";
    const EXAMPLES: &'static [&'static str] = &["last_number=20,train_max=6,line_tokens=40,helper=pad"];

    fn tokens(&self) -> Vec<String> {
        numbers_then(self.last_number, [PAD, "<", "<eos>", "<sos>"])
    }

    fn validate(&self) -> Result<(), String> {
        check_range("last_number", self.last_number, 3..=10_000)?;
        check_range("train_max", self.train_max, 2..=self.last_number - 1)?;
        check_range("line_tokens", self.line_tokens as u32, 8..=100_000)
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        self.words = Words::numbers(vocabulary, self.last_number);
        [self.sos, self.less, self.eos] = ["<sos>", "<", "<eos>"].map(|t| vocabulary.id(t).unwrap_or(0));
    }

    fn longest(&self) -> usize {
        (self.line_tokens - 1).max(self.last_number as usize + 4)
    }
}

impl Family for RaspL {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn train_max_length(&self) -> u32 {
        self.train_max
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        match split {
            Split::Train => Ok(train),
            Split::Val => Ok(300),
            Split::OodTest | Split::Auxiliary(_) => Ok(self.ood_pairs().len()),
        }
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        match split {
            Split::Train | Split::Val => {
                Box::new(move |index| self.shifted(self.line(&mut example_rng(seed, split, index))))
            }
            Split::OodTest | Split::Auxiliary(_) => {
                let pairs = self.ood_pairs();
                Box::new(move |index| {
                    let mut span = vec![];
                    self.push_span(pairs[index % pairs.len()], &mut span);
                    self.shifted(span)
                })
            }
        }
    }

    /// The longest span of a line.
    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        self.parse(input_ids).map(|(longest, _)| longest)
    }

    fn leaves_last_open(&self) -> bool {
        true
    }

    /// The next tokens. Where the last token of a line is followed by an A or a B, which cannot be known from the
    /// tokens before, its label is missing here; [`Self::expected`] accepts any that is possible.
    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        let next = self.parse(input_ids).map(|(_, next)| next).unwrap_or_default();
        let after = input_ids.iter().skip(1).map(|id| *id as i16);
        let last = next.last().map(|next| match next {
            Next::Token(id) => *id as i16,
            Next::Number { .. } => IGNORE,
        });
        after.chain(last).collect()
    }

    fn expected(&self, input_ids: &[u16], labels: &[i16]) -> Result<Vec<i16>, String> {
        let (_, next) = self.parse(input_ids)?;
        let mut expected = self.rule(input_ids);
        if let (Some(Next::Number { after }), Some(label)) = (next.last(), labels.last()) {
            let number = u16::try_from(*label).ok().and_then(|id| self.words.value(id));
            let possible = number.is_some_and(|n| after.map_or(n < self.last_number, |a| n > a));
            if let (true, Some(last)) = (possible, expected.last_mut()) {
                *last = *label;
            }
        }
        Ok(expected)
    }

    fn prefix_closed(&self) -> bool {
        false
    }

    fn distinct_tracks(&self) -> Option<usize> {
        None
    }

    /// The span of `max_length` numbers, or of as many as there are, with A drawn uniformly from 1 on. Spans of other
    /// lengths name another B, so they are not prefixes of it.
    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        if max_length < 2 {
            let nothing = Example { input_ids: vec![], labels: vec![], length: 0 };
            return Track::single(nothing, 0, Some((0, "a span has at least two numbers".into())));
        }
        let length = max_length.min(self.last_number);
        let a = stream_rng(seed, "track", index as u64).random_range(1..=self.last_number + 1 - length);
        let mut span = vec![];
        self.push_span((a, a + length - 1), &mut span);
        Track::single(self.shifted(span), 4, Some((self.last_number, past_last_number(self.last_number))))
    }
}
