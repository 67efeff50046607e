//! Prompts with one right answer: strings to transform ([`Prompt`]) and numbers to calculate with ([`Arithmetic`]).
//!
//! An answer enters a sequence in one of two ways.
//!
//! - Teacher-forced: `[bos] prompt separator answer`, where every token from the separator on is labelled with the next
//!   one and the last answer token with `end`, which is a label only. All labels of an example are the argmax exactly
//!   where greedy decoding after the separator gives the answer: both start with the same token, and as long as all
//!   tokens so far are right, teacher forcing and decoding read the same input.
//! - In blank slots: `[bos] prompt E … E`, where the answer's tokens are the labels of the slots. The model answers
//!   without reading its own answer. Slots do not count as length.

mod arithmetic;
mod operation;
mod strings;

pub use arithmetic::{Arithmetic, Endian, Numbers, Operands, Operation as ArithmeticOperation, Second};
pub use operation::Operation;
pub use strings::{Alphabet, Prompt, Query};

use super::lengths::{Splits, length_rng, nearest_track};
use crate::{Example, IGNORE, LengthLimit, PAD, Split, Track, Vocabulary};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The token of a blank slot.
const SLOT: &str = "E";

/// Where the answer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answers {
    /// After the separator, as input and as labels.
    #[default]
    TeacherForced,
    /// In the labels of blank slots alone.
    Slots,
}

/// The special tokens of a family as its settings name them; those that are not set are `<bos>`, `<sep>` and `<eos>`
/// where answers are teacher-forced, and missing where they stand in slots.
#[derive(Debug, Clone, Copy)]
struct Names<'a> {
    answers: Answers,
    bos: &'a str,
    separator: &'a str,
    end: &'a str,
}

impl<'a> Names<'a> {
    fn new(answers: Answers, bos: &'a Option<String>, separator: &'a Option<String>, end: &'a Option<String>) -> Self {
        let name = |set: &'a Option<String>, usual: &'static str| match (set, answers) {
            (Some(name), _) => name.as_str(),
            (None, Answers::TeacherForced) => usual,
            (None, Answers::Slots) => "",
        };
        Self { answers, bos: name(bos, "<bos>"), separator: name(separator, "<sep>"), end: name(end, "<eos>") }
    }

    /// The vocabulary: `symbols`, then every other token once.
    fn tokens(self, symbols: Vec<String>, others: &[&str]) -> Vec<String> {
        let mut tokens = symbols;
        let slot = if self.answers == Answers::Slots { SLOT } else { "" };
        for token in others.iter().chain(&[self.bos, self.separator, self.end, slot]) {
            if !token.is_empty() && !tokens.iter().any(|known| known == token) {
                tokens.push((*token).to_owned());
            }
        }
        tokens
    }

    /// Refuses special tokens that could be taken for symbols or slots.
    fn check(self, symbols: &[String], others: &[(&str, &str)]) -> Result<(), String> {
        let own = [("bos", self.bos), ("separator", self.separator), ("end", self.end)];
        for (setting, token) in own.iter().chain(others) {
            if symbols.iter().any(|symbol| symbol == token) || [SLOT, PAD].contains(token) {
                return Err(format!("{setting} = {token} is another token of the vocabulary"));
            }
        }
        if self.answers == Answers::Slots && !self.separator.is_empty() {
            return Err(format!("separator = {} has no place: answers in slots follow the prompt", self.separator));
        }
        Ok(())
    }

    fn frame(self, vocabulary: &Vocabulary, packed: u32) -> Frame {
        let id = |token: &str| if token.is_empty() { None } else { vocabulary.id(token) };
        let slot = if self.answers == Answers::Slots { id(SLOT) } else { None };
        Frame { bos: id(self.bos), separator: id(self.separator), end: id(self.end), slot, packed: packed as usize }
    }
}

/// The ids of special tokens, and the layout that they give a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Frame {
    bos: Option<u16>,
    separator: Option<u16>,
    end: Option<u16>,
    slot: Option<u16>,
    /// Tokens of a line of several examples, the last token of which is a label only; 0: one example to a line.
    packed: usize,
}

/// A prompt at the beginning of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Question {
    /// Its tokens, up to and with the one after which the answer begins.
    tokens: usize,
    /// Main tokens.
    length: u32,
    /// The right answer without its end.
    answer: Vec<u16>,
    /// How many slots follow, where answers stand in slots.
    slots: usize,
}

/// Why there is no prompt at the beginning of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    /// The sequence ends before its prompt does.
    Cut,
    Wrong(String),
}

impl Frame {
    /// Separators in the prompt, as numbers.
    fn separators(&self) -> u32 {
        u32::from(self.separator.is_some())
    }

    /// The number of tokens of an example with this prompt and answer.
    fn tokens(&self, prompt: usize, answer: usize, slots: usize) -> usize {
        match self.slot {
            Some(_) => prompt + slots,
            // an answer's last token is a label only where there is no end
            None => prompt + answer - usize::from(self.end.is_none() && answer > 0),
        }
    }

    /// Main tokens and labels of a sequence, whose prompts `question` reads.
    ///
    /// A label depends on no later token: whether a prompt's answer fits into a packed line is known at its separator.
    fn read(
        &self,
        input_ids: &[u16],
        question: impl Fn(&[u16]) -> Result<Question, Trouble>,
    ) -> Result<(u32, Vec<i16>), String> {
        match self.slot {
            Some(slot) => self.read_slots(input_ids, slot, question),
            None => self.read_answers(input_ids, question),
        }
    }

    fn read_slots(
        &self,
        input_ids: &[u16],
        slot: u16,
        question: impl Fn(&[u16]) -> Result<Question, Trouble>,
    ) -> Result<(u32, Vec<i16>), String> {
        let tokens = input_ids.iter().position(|id| *id == slot).unwrap_or(input_ids.len());
        let slots = input_ids.len() - tokens;
        let prompt = question(&input_ids[..tokens]).map_err(Trouble::reason)?;
        if slots != prompt.slots || input_ids[tokens..].iter().any(|id| *id != slot) {
            return Err(format!("the prompt is not followed by {} slots `{SLOT}` and nothing else", prompt.slots));
        }
        let mut labels = vec![IGNORE; input_ids.len()];
        let answer = prompt.answer.iter().chain(&self.end);
        labels[tokens..].iter_mut().zip(answer).for_each(|(label, id)| *label = *id as i16);
        Ok((prompt.length, labels))
    }

    fn read_answers(
        &self,
        input_ids: &[u16],
        question: impl Fn(&[u16]) -> Result<Question, Trouble>,
    ) -> Result<(u32, Vec<i16>), String> {
        let mut labels = vec![IGNORE; input_ids.len()];
        let (mut start, mut longest) = (0, 0);
        loop {
            let rest = &input_ids[start..];
            let prompt = match question(rest) {
                Ok(prompt) => prompt,
                Err(Trouble::Cut) if start > 0 => break,
                Err(trouble) => return Err(trouble.reason()),
            };
            let answer = prompt.answer.iter().chain(&self.end);
            let whole = prompt.tokens + prompt.answer.len() + usize::from(self.end.is_some());
            if start == 0 || start + whole <= self.packed {
                longest = longest.max(prompt.length);
                let scored = labels[start + prompt.tokens - 1..].iter_mut();
                scored.zip(answer.clone()).for_each(|(label, id)| *label = *id as i16);
            }
            let given = &rest[prompt.tokens..];
            if let Some(at) = given.iter().zip(answer).position(|(given, right)| given != right) {
                return Err(format!("token {} of the answer is not the right one", at + 1));
            }
            let last = if self.packed > 0 { whole } else { whole - 1 };
            match rest.len().cmp(&last) {
                std::cmp::Ordering::Less => break,
                std::cmp::Ordering::Equal => break,
                std::cmp::Ordering::Greater if self.packed > 0 => start += whole,
                std::cmp::Ordering::Greater => return Err("the sequence goes on after its answer".into()),
            }
        }
        Ok((longest, labels))
    }
}

impl Trouble {
    fn wrong(reason: impl Into<String>) -> Self {
        Self::Wrong(reason.into())
    }

    fn reason(self) -> String {
        match self {
            Self::Cut => "the input ends before its prompt does".into(),
            Self::Wrong(reason) => reason,
        }
    }
}

/// What the families of this module differ in; the rest of [`super::Family`] is the same.
trait Ask {
    fn frame(&self) -> &Frame;

    /// Appends an example of `length` main tokens, its answer with it.
    fn append(&self, length: u32, draw: Draw, rng: &mut ChaCha8Rng, out: &mut Vec<u16>);

    /// The prompt at the beginning of a sequence.
    fn question(&self, input_ids: &[u16]) -> Result<Question, Trouble>;

    /// Why there are no examples of a length.
    fn possible(&self, length: u32) -> Result<(), String>;

    fn splits(&self) -> &Splits;

    fn example_of(&self, input_ids: Vec<u16>) -> Example {
        let read = self.frame().read(&input_ids, |ids| self.question(ids));
        let (length, labels) = read.unwrap_or_else(|_| (0, vec![IGNORE; input_ids.len()]));
        Example { input_ids, labels, length }
    }

    /// Completes a prompt: the answer's tokens, or slots.
    fn answered(&self, start: usize, out: &mut Vec<u16>) {
        let frame = self.frame();
        let Ok(prompt) = self.question(&out[start..]) else { return };
        match frame.slot {
            Some(slot) => out.resize(out.len() + prompt.slots, slot),
            None => {
                out.extend(&prompt.answer);
                if frame.packed > 0 {
                    out.extend(frame.end);
                } else if frame.end.is_none() {
                    out.pop();
                }
            }
        }
    }

    fn single(&self, length: u32, draw: Draw, rng: &mut ChaCha8Rng) -> Example {
        let mut input_ids = vec![];
        self.append(length, draw, rng, &mut input_ids);
        if self.frame().packed > 0 {
            input_ids.pop(); // the end, which only a next example would follow
        }
        self.example_of(input_ids)
    }

    /// A line of several examples, cut where it is full.
    fn packed(&self, rng: &mut ChaCha8Rng) -> Example {
        let packed = self.frame().packed;
        let mut input_ids = Vec::with_capacity(2 * packed);
        while input_ids.len() < packed {
            let length = self.splits().train.draw(rng).length;
            self.append(length, Draw::Random, rng, &mut input_ids);
        }
        input_ids.truncate(packed - 1);
        self.example_of(input_ids)
    }

    fn split_example(&self, split: Split, seed: u64, index: usize) -> Example {
        let rng = &mut super::words::example_rng(seed, split, index);
        let splits = self.splits();
        match split {
            Split::Train if self.frame().packed > 0 => self.packed(rng),
            Split::Train => self.single(splits.train.draw(rng).length, Draw::Grid(index), rng),
            Split::Val => self.single(splits.train.turn(index).length, Draw::Grid(index), rng),
            Split::OodTest | Split::Auxiliary(_) => self.single(splits.test.turn(index).length, Draw::Test, rng),
        }
    }

    fn of_exactly(&self, seed: u64, index: usize, length: u32) -> Option<Example> {
        let rng = &mut length_rng(seed, "of length", index, length);
        self.splits().train.draw_of(length, rng)?;
        Some(self.single(length, Draw::Random, rng))
    }

    fn test_of(&self, seed: u64, index: usize, length: u32) -> Result<Example, LengthLimit> {
        self.possible(length).map_err(|reason| LengthLimit { length, reason })?;
        Ok(self.single(length, Draw::Test, &mut length_rng(seed, "track", index, length)))
    }

    fn track_of(&self, seed: u64, index: usize, length: u32) -> Track {
        nearest_track(length, self.splits(), |length| self.test_of(seed, index, length))
    }
}

/// How an example is drawn where the family's settings leave a choice.
#[derive(Debug, Clone, Copy)]
enum Draw {
    /// In turn, where training goes over a grid.
    Grid(usize),
    /// As in training, of a given length.
    Random,
    /// As in tests.
    Test,
}
