mod group;
mod machine;
mod sampler;

pub use machine::{Kind, State};
pub use sampler::Sampler;

use super::Define;
use super::sampled::{Range, Ranges, Sampled, Splits, check_gaps};
use crate::{IGNORE, PAD, Split, Vocabulary};
use machine::{Blueprint, NEVER};
use rand_chacha::ChaCha8Rng;
use sampler::Strings;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Strings of a deterministic automaton, labelled by the state after a letter: regular languages, word problems of
/// groups, transducers.
///
/// The automaton is a table (`alphabet`, `step`, `output` or `accept`), a `group`, the group of some `generators`, or
/// the language of so many `blocks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Automaton {
    /// The letters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alphabet: Vec<String>,
    /// Names of the states; by default their numbers, from 0 on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<String>,
    /// The state before the first letter, by default the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<State>,
    /// A row for each state, in it for each letter the number of the next state, or −1 where the letter is not allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub step: Vec<Vec<i64>>,
    /// The meaning of labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The label of each state: a token, a digit 0 or 1 for each of `units`, or nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
    /// The accepting states, by name or as a flag for each; all of them by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<State>,
    /// The tokens that labels are sets of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
    /// A group by name: the letters and the states are its elements, the label is the product of all letters so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Permutations of 1..n as lists of images: the group that they generate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generators: Vec<Vec<u32>>,
    /// Only the generators are letters, not all elements.
    pub only_generators: bool,
    /// The language of so many blocks, of a and b in turn; the label says whether the last one has begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u32>,
    /// Which positions have a label.
    pub emit: Emit,
    /// The token after a string where labels stand with emit = "slot".
    pub blank: String,
    /// A token before every string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos: Option<String>,
    /// Whether this token has the label of the start.
    pub score_bos: bool,
    /// How strings are drawn.
    pub sampler: Sampler,
    /// The share of ignored instructions of sampler = "flip_flop" in training and validation.
    pub ignore: f64,
    /// The same in the out-of-distribution split and in sweeps; by default as in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_ignore: Option<f64>,
    /// The lengths of training and validation.
    pub train_lengths: Ranges,
    /// The lengths of the out-of-distribution split.
    pub test_lengths: Ranges,
    /// The size of the validation split.
    pub val_examples: usize,
    /// The size of the out-of-distribution split.
    pub test_examples: usize,
    #[serde(skip)]
    strings: Strings,
    #[serde(skip)]
    ids: Ids,
    /// Different labels, where they are tokens.
    #[serde(skip)]
    outcomes: usize,
}

/// The ids of tokens that are no letters.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Ids {
    blank: Option<u16>,
    bos: Option<u16>,
    /// The letter of emit = "after:…".
    after: Option<u16>,
}

/// The positions of an [`Automaton`]'s string that have a label, if their state has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emit {
    /// Each letter.
    Each,
    /// A blank after the last letter.
    Slot,
    /// The last letter.
    End,
    /// This letter.
    After(String),
}

impl Serialize for Emit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Each => serializer.serialize_str("each"),
            Self::Slot => serializer.serialize_str("slot"),
            Self::End => serializer.serialize_str("end"),
            Self::After(letter) => serializer.collect_str(&format_args!("after:{letter}")),
        }
    }
}

impl<'de> Deserialize<'de> for Emit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match (text.as_str(), text.strip_prefix("after:")) {
            ("each", _) => Ok(Self::Each),
            ("slot", _) => Ok(Self::Slot),
            ("end", _) => Ok(Self::End),
            (_, Some(letter)) => Ok(Self::After(letter.to_owned())),
            _ => {
                Err(serde::de::Error::custom(format!("emit = \"{text}\" is none of each, slot, end and after:LETTER")))
            }
        }
    }
}

impl Default for Automaton {
    fn default() -> Self {
        Self {
            alphabet: vec![],
            states: vec![],
            start: None,
            step: vec![],
            kind: None,
            output: vec![],
            accept: vec![],
            units: vec![],
            group: None,
            generators: vec![],
            only_generators: false,
            blocks: None,
            emit: Emit::Each,
            blank: "E".into(),
            bos: None,
            score_bos: false,
            sampler: Sampler::Uniform,
            ignore: 0.8,
            test_ignore: None,
            train_lengths: Ranges::range(1, 40),
            test_lengths: Ranges::range(41, 100),
            val_examples: 1000,
            test_examples: 3000,
            strings: Strings::default(),
            ids: Ids::default(),
            outcomes: 0,
        }
    }
}

impl Automaton {
    /// The letters of an input, without the tokens around them, or what is missing.
    fn letters<'i>(&self, input_ids: &'i [u16]) -> Result<&'i [u16], String> {
        let after_bos = match (self.ids.bos, input_ids) {
            (None, all) => all,
            (Some(bos), [first, rest @ ..]) if *first == bos => rest,
            _ => return Err(format!("the input does not start with `{}`", self.bos.as_deref().unwrap_or_default())),
        };
        match (self.ids.blank, after_bos) {
            (None, all) => Ok(all),
            (Some(blank), [letters @ .., last]) if *last == blank => Ok(letters),
            _ => Err(format!("the input does not end with `{}`", self.blank)),
        }
    }

    /// Checks everything but the automaton itself.
    fn check_frame(&self, blueprint: &Blueprint) -> Result<(), String> {
        let is_letter = |token: &str| blueprint.alphabet.iter().any(|letter| letter == token);
        let frame = [("bos", self.bos.as_ref()), ("blank", (self.emit == Emit::Slot).then_some(&self.blank))];
        for (setting, token) in frame {
            let Some(token) = token else { continue };
            machine::distinct(setting, std::slice::from_ref(token))?;
            if is_letter(token) {
                return Err(format!("{setting}: `{token}` is a letter as well\n  hint: use another token"));
            }
        }
        match &self.emit {
            Emit::After(letter) if !is_letter(letter) => {
                Err(format!("emit = \"after:{letter}\": there is no such letter"))
            }
            _ if self.score_bos && self.bos.is_none() => Err("score_bos goes with `bos`".into()),
            _ if self.only_generators && self.generators.is_empty() => {
                Err("only_generators goes with `generators`".into())
            }
            _ => Ok(()),
        }?;
        for (setting, share) in [("ignore", Some(self.ignore)), ("test_ignore", self.test_ignore)] {
            if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
                return Err(format!("{setting} = {} is not between 0 and 1", share.unwrap_or_default()));
            }
        }
        self.splits().check(1)
    }

    fn strings(&self, blueprint: Blueprint, vocabulary: &Vocabulary) -> Result<Strings, String> {
        Strings::new(self.sampler, blueprint.bind(vocabulary), self.blocks, self.splits().longest())
    }

    /// The share of ignored instructions.
    fn ignored(&self, split: Split) -> f64 {
        match split {
            Split::Train | Split::Val => self.ignore,
            Split::OodTest | Split::Auxiliary(_) => self.test_ignore.unwrap_or(self.ignore),
        }
    }

    /// An input of these letters.
    fn framed(&self, string: &[u16]) -> Vec<u16> {
        let mut input_ids = Vec::with_capacity(string.len() + 2);
        input_ids.extend(self.ids.bos);
        input_ids.extend(string.iter().map(|letter| self.strings.machine.ids[usize::from(*letter)]));
        input_ids.extend(self.ids.blank);
        input_ids
    }
}

impl Define for Automaton {
    const NAME: &'static str = "automaton";
    const EXAMPLES: &'static [&'static str] = &[
        r#"alphabet=["x","y"],step=[[1,0],[0,-1]],states=["p","q"],start="q",output=["10",""],units=["x","z"],sampler=walk,bos="^",score_bos=true,train_lengths=2..9,test_lengths="10..20,30""#,
        r#"alphabet=["a","b"],step=[[1,0],[1,0]],kind=acceptor,accept=[0,1],emit=end,sampler=accepted,train_lengths=1..9"#,
        r#"alphabet=["a","b","c"],step=[[1,0,1],[0,0,1]],kind=group,emit="after:c",helper=pad"#,
        r#"generators=[[2,1,3],[2,3,1]],only_generators=true,emit=slot,blank="?""#,
        r#"alphabet=["0","1"],step=[[0,1],[1,0]],kind=acceptor,accept=[true,false],sampler=geometric,emit=slot,helper=blk"#,
    ];

    fn tokens(&self) -> Vec<String> {
        let Ok(blueprint) = Blueprint::new(self) else { return vec![] }; // refused by `validate`
        let mut tokens = blueprint.alphabet.clone();
        let blank = (self.emit == Emit::Slot).then_some(&self.blank);
        for token in blueprint.output_tokens().chain(&self.units).chain(blank).chain(&self.bos) {
            if !tokens.contains(token) {
                tokens.push(token.clone());
            }
        }
        tokens.push(PAD.into());
        tokens
    }

    fn units(&self) -> Vec<String> {
        self.units.clone()
    }

    fn validate(&self) -> Result<(), String> {
        let blueprint = Blueprint::new(self)?;
        self.check_frame(&blueprint)?;
        let vocabulary = Vocabulary::new(self.tokens());
        let strings = self.strings(blueprint, &vocabulary)?;
        check_gaps(&Self { strings, ..self.clone() })
    }

    fn bind(&mut self, vocabulary: &Vocabulary, _helper: bool) {
        let Ok(blueprint) = Blueprint::new(self) else { return }; // refused by `validate`
        let id = |token: &String| vocabulary.id(token);
        self.ids = Ids {
            blank: (self.emit == Emit::Slot).then(|| id(&self.blank)).flatten(),
            bos: self.bos.as_ref().and_then(id),
            after: if let Emit::After(letter) = &self.emit { id(letter) } else { None },
        };
        self.outcomes = blueprint.outcomes();
        self.strings = self.strings(blueprint, vocabulary).unwrap_or_default();
    }

    fn longest(&self) -> usize {
        self.splits().longest() as usize + usize::from(self.bos.is_some()) + usize::from(self.emit == Emit::Slot)
    }
}

impl Sampled for Automaton {
    const NAME: &'static str = "automaton";

    fn splits(&self) -> Splits<'_> {
        Splits {
            train: &self.train_lengths,
            test: &self.test_lengths,
            val_examples: self.val_examples,
            test_examples: self.test_examples,
        }
    }

    fn gap(&self, length: u32) -> Option<String> {
        self.strings.gap(length)
    }

    fn draw(&self, split: Split, length: u32, rng: &mut ChaCha8Rng) -> Vec<u16> {
        self.framed(&self.strings.draw(length, self.ignored(split), rng))
    }

    fn draw_in(&self, _split: Split, range: Range, rng: &mut ChaCha8Rng) -> Option<Vec<u16>> {
        self.strings.draw_in(range, rng).map(|string| self.framed(&string))
    }

    fn main_tokens(&self, input_ids: &[u16]) -> Result<u32, String> {
        let letters = self.letters(input_ids)?;
        if letters.is_empty() {
            return Err("there is no letter".into());
        }
        let machine = &self.strings.machine;
        let mut state = machine.start;
        for (i, id) in letters.iter().enumerate() {
            let letter = machine.letter_of.get(usize::from(*id)).copied().unwrap_or(NEVER);
            state = if letter == NEVER { NEVER } else { machine.next(state, letter) };
            if state == NEVER {
                let at = i + 1 + usize::from(self.ids.bos.is_some());
                return Err(format!("token {at} is not allowed after the ones before it"));
            }
        }
        Ok(letters.len() as u32)
    }

    fn label(&self, input_ids: &[u16]) -> Vec<i16> {
        let machine = &self.strings.machine;
        let letters = self.letters(input_ids).unwrap_or_default();
        let mut labels = Vec::with_capacity(input_ids.len());
        if self.ids.bos.is_some() {
            labels.push(if self.score_bos { machine.label(machine.start) } else { IGNORE });
        }
        let mut state = machine.start;
        let mut read = |id: &u16| {
            let letter = machine.letter_of.get(usize::from(*id)).copied().unwrap_or(NEVER);
            state = if letter == NEVER || state == NEVER { NEVER } else { machine.next(state, letter) };
            machine.label(state)
        };
        match self.emit {
            Emit::Each => labels.extend(letters.iter().map(read)),
            Emit::After(_) => labels.extend(letters.iter().map(|id| {
                let label = read(id);
                if Some(*id) == self.ids.after { label } else { IGNORE }
            })),
            Emit::Slot | Emit::End => {
                let last = letters.iter().map(&mut read).last().unwrap_or(IGNORE);
                labels.resize(input_ids.len(), IGNORE);
                if let Some(label) = labels.last_mut() {
                    *label = last;
                }
            }
        }
        labels.resize(input_ids.len(), IGNORE); // of tokens that are no string of this family
        labels
    }

    fn layout(&self) -> (usize, usize) {
        (usize::from(self.bos.is_some()) + usize::from(self.emit == Emit::Slot), 1)
    }

    fn closed(&self) -> bool {
        matches!(self.emit, Emit::Each | Emit::After(_)) && matches!(self.sampler, Sampler::Uniform | Sampler::Walk)
    }

    fn open(&self) -> bool {
        self.emit == Emit::End
    }

    fn distinct(&self) -> Option<usize> {
        self.strings.are_single().then_some(1)
    }

    fn guess(&self, _length: u32) -> Option<f64> {
        (self.outcomes > 0 && self.blocks.is_none()).then(|| 1.0 / self.outcomes as f64)
    }
}
