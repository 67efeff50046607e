//! Deterministic automata with labels, compiled to tables of indices.

use super::Automaton;
use super::group::Group;
use crate::families::MAX_UNITS;
use crate::{IGNORE, PAD, Vocabulary};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// A step that is not allowed.
pub(super) const NEVER: u16 = u16::MAX;

/// The most states, and the most letters.
const MOST: usize = 30_000;

/// The meaning of an automaton's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `output` has the label of each state.
    #[default]
    Moore,
    /// The label is the state.
    Group,
    /// The label is `accept` in the states of `accept`, otherwise `reject`.
    Acceptor,
}

/// A state by name or by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected the name of a state, its number, or true or false")]
pub enum State {
    /// Whether the state in this place is meant.
    Flag(bool),
    /// Its number, from 0 on; in `accept`, 0 or 1 for each state.
    Number(u32),
    /// Its name.
    Name(String),
}

/// What is written at a labelled position in a state.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Output {
    Nothing,
    Token(String),
    Set(i16),
}

/// An automaton as its settings describe it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blueprint {
    pub alphabet: Vec<String>,
    pub states: Vec<String>,
    start: usize,
    /// `[state][letter]`
    step: Vec<u16>,
    outputs: Vec<Output>,
    accepting: Vec<bool>,
    /// The letters that samplers draw from.
    drawn: Vec<u16>,
}

/// The automaton of a family, with the ids of its vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Machine {
    pub letters: usize,
    pub start: u16,
    /// `[state][letter]`; [`NEVER`] where a letter is not allowed.
    pub step: Vec<u16>,
    /// The label of each state.
    pub labels: Vec<i16>,
    pub accepting: Vec<bool>,
    /// The letters that samplers draw from.
    pub drawn: Vec<u16>,
    /// The id of each letter.
    pub ids: Vec<u16>,
    /// The letter of each id; [`NEVER`] for other tokens.
    pub letter_of: Vec<u16>,
}

impl Blueprint {
    /// The automaton that the settings describe.
    ///
    /// # Errors
    /// The setting that is wrong, missing, or one too many.
    pub fn new(settings: &Automaton) -> Result<Self, String> {
        let given = [
            ("step", !settings.step.is_empty()),
            ("group", settings.group.is_some()),
            ("generators", !settings.generators.is_empty()),
            ("blocks", settings.blocks.is_some()),
        ];
        let given: Vec<&str> =
            given.into_iter().filter(|(_, is_given)| *is_given).map(|(setting, _)| setting).collect();
        let hint =
            "hint: set `step` (a row for each state, a column for each letter), `group`, `generators` or `blocks`";
        match given[..] {
            [] => return Err(format!("no automaton is given\n  {hint}")),
            [_] => {}
            [first, second, ..] => {
                return Err(format!("{first} and {second} both say which automaton it is\n  {hint}"));
            }
        }
        let (table, own) = match (&settings.group, settings.blocks) {
            (Some(name), _) => (Self::of_group(settings, Group::named(name)?)?, given[0]),
            (None, Some(blocks)) => (Self::of_blocks(blocks)?, given[0]),
            (None, None) if !settings.generators.is_empty() => {
                (Self::of_group(settings, Group::generated(&settings.generators)?)?, given[0])
            }
            _ => return Self::of_table(settings),
        };
        let others = [
            ("alphabet", settings.alphabet.is_empty()),
            ("states", settings.states.is_empty()),
            ("start", settings.start.is_none()),
            ("output", settings.output.is_empty()),
            ("accept", settings.accept.is_empty()),
            ("units", settings.units.is_empty()),
            ("kind", settings.kind.is_none_or(|kind| kind == Kind::Group && own != "blocks")),
        ];
        match others.into_iter().find(|(_, is_absent)| !is_absent) {
            Some((setting, _)) => Err(format!("{setting} goes with `step`; {own} says all of the automaton")),
            None => Ok(table),
        }
    }

    fn of_group(settings: &Automaton, group: Group) -> Result<Self, String> {
        let names: Vec<String> = (0..group.order).map(|i| i.to_string()).collect();
        let drawn = if settings.only_generators { group.generators } else { (0..group.order as u16).collect() };
        Ok(Self {
            outputs: names.iter().cloned().map(Output::Token).collect(),
            alphabet: names.clone(),
            states: names,
            start: 0,
            step: group.product,
            accepting: vec![true; group.order],
            drawn,
        })
    }

    /// L_k of Yang et al. (arXiv 2506.16055, depth of C-RASP): k blocks, of a and b in turn, beginning with a. A state
    /// is how many blocks have begun; the label says whether it is all of them.
    fn of_blocks(blocks: u32) -> Result<Self, String> {
        super::super::words::check_range("blocks", blocks, 1..=1000)?;
        let k = blocks as u16;
        let next = |state: u16| if state < k { state + 1 } else { NEVER };
        let row = |state: u16| match (state, state % 2) {
            (0, _) => [1, NEVER],
            (_, 1) => [state, next(state)],
            _ => [next(state), state],
        };
        let digit = |state| Output::Token(if state == k { "1" } else { "0" }.to_owned());
        Ok(Self {
            alphabet: vec!["a".into(), "b".into()],
            states: (0..=k).map(|state| state.to_string()).collect(),
            start: 0,
            step: (0..=k).flat_map(row).collect(),
            outputs: (0..=k).map(digit).collect(),
            accepting: (0..=k).map(|state| state == k).collect(),
            drawn: vec![0, 1],
        })
    }

    fn of_table(settings: &Automaton) -> Result<Self, String> {
        let Automaton { alphabet, step, .. } = settings;
        let rows = step.len();
        if alphabet.is_empty() {
            return Err("alphabet is missing\n  hint: list the letters, one for each column of `step`".into());
        }
        if alphabet.len() > MOST || rows > MOST {
            return Err(format!("there are more than {MOST} letters or states"));
        }
        distinct("alphabet", alphabet)?;
        let states = match settings.states.is_empty() {
            true => (0..rows).map(|state| state.to_string()).collect(),
            false => settings.states.clone(),
        };
        distinct("states", &states)?;
        if states.len() != rows {
            return Err(format!("step has {rows} rows, but there are {} states", states.len()));
        }
        if let Some((row, state)) = step.iter().zip(&states).find(|(row, _)| row.len() != alphabet.len()) {
            let (found, wanted) = (row.len(), alphabet.len());
            return Err(format!(
                "step: the row of state `{state}` has {found} columns, but there are {wanted} letters"
            ));
        }
        let target = |&to: &i64| match to {
            -1 => Some(NEVER),
            to => u16::try_from(to).ok().filter(|to| usize::from(*to) < rows),
        };
        for (row, state) in step.iter().zip(&states) {
            if let Some(at) = row.iter().position(|to| target(to).is_none()) {
                return Err(format!(
                    "step: state `{state}` goes to {} with `{}`, but states are 0..{}, and -1 is not allowed",
                    row[at],
                    alphabet[at],
                    rows - 1
                ));
            }
        }
        let table = Self {
            start: settings.start.as_ref().map_or(Ok(0), |start| find("start", &states, start))?,
            step: step.iter().flatten().filter_map(target).collect(),
            outputs: outputs(settings, &states)?,
            accepting: accepting(settings, &states)?,
            drawn: (0..alphabet.len() as u16).collect(),
            alphabet: alphabet.clone(),
            states,
        };
        let reached = table.reached();
        match (0..rows).find(|state| !reached[*state]) {
            Some(state) => Err(format!(
                "step: no string leads to state `{}` from the start `{}`\n  hint: leave the state out, or correct the table",
                table.states[state], table.states[table.start]
            )),
            None => Ok(table),
        }
    }

    fn reached(&self) -> Vec<bool> {
        let mut reached = vec![false; self.states.len()];
        let mut open = vec![self.start];
        while let Some(state) = open.pop() {
            if !std::mem::replace(&mut reached[state], true) {
                let row = self.step[state * self.alphabet.len()..][..self.alphabet.len()].iter();
                open.extend(row.filter(|to| **to != NEVER).map(|to| usize::from(*to)));
            }
        }
        reached
    }

    /// The tokens of labels, in the order of the states.
    pub fn output_tokens(&self) -> impl Iterator<Item = &String> {
        self.outputs.iter().filter_map(|output| match output {
            Output::Token(token) => Some(token),
            Output::Nothing | Output::Set(_) => None,
        })
    }

    /// How many labels there are, where they are tokens.
    pub fn outcomes(&self) -> usize {
        self.output_tokens().collect::<HashSet<_>>().len()
    }

    /// With the ids of a vocabulary.
    pub fn bind(self, vocabulary: &Vocabulary) -> Machine {
        let id = |token: &String| vocabulary.id(token).unwrap_or(0);
        let label = |output: &Output| match output {
            Output::Nothing => IGNORE,
            Output::Token(token) => id(token) as i16,
            Output::Set(set) => *set,
        };
        let ids: Vec<u16> = self.alphabet.iter().map(id).collect();
        let mut letter_of = vec![NEVER; vocabulary.len()];
        for &letter in &self.drawn {
            letter_of[usize::from(ids[usize::from(letter)])] = letter;
        }
        Machine {
            letters: self.alphabet.len(),
            start: self.start as u16,
            labels: self.outputs.iter().map(label).collect(),
            step: self.step,
            accepting: self.accepting,
            drawn: self.drawn,
            ids,
            letter_of,
        }
    }
}

impl Machine {
    /// The state after a letter; [`NEVER`] where it is not allowed.
    pub fn next(&self, state: u16, letter: u16) -> u16 {
        self.step[usize::from(state) * self.letters + usize::from(letter)]
    }

    /// The label in a state.
    pub fn label(&self, state: u16) -> i16 {
        self.labels.get(usize::from(state)).copied().unwrap_or(IGNORE)
    }

    /// The state after a string; `None` where it is not allowed.
    pub fn run(&self, string: &[u16]) -> Option<u16> {
        string.iter().try_fold(self.start, |state, letter| Some(self.next(state, *letter)).filter(|to| *to != NEVER))
    }

    /// Whether a string is allowed and accepted.
    pub fn accepts(&self, string: &[u16]) -> bool {
        self.run(string).is_some_and(|state| self.accepting[usize::from(state)])
    }

    /// How many states there are.
    pub fn states(&self) -> usize {
        self.labels.len()
    }

    /// Whether an accepting state can be reached from each state.
    pub fn live(&self) -> Vec<bool> {
        let mut before = vec![vec![]; self.states()];
        for state in 0..self.states() as u16 {
            for to in self.drawn.iter().map(|letter| self.next(state, *letter)).filter(|to| *to != NEVER) {
                before[usize::from(to)].push(state);
            }
        }
        let mut live = vec![false; self.states()];
        let mut open: Vec<u16> =
            (0..self.states() as u16).filter(|state| self.accepting[usize::from(*state)]).collect();
        while let Some(state) = open.pop() {
            if !std::mem::replace(&mut live[usize::from(state)], true) {
                open.extend(&before[usize::from(state)]);
            }
        }
        live
    }
}

/// Refuses names that are empty, reserved, or there twice.
pub(super) fn distinct(setting: &str, names: &[String]) -> Result<(), String> {
    let mut seen = HashSet::new();
    for name in names {
        if name.is_empty() {
            return Err(format!("{setting}: a name is empty"));
        }
        if name == PAD || name == "-1" {
            return Err(format!("{setting}: `{name}` has a meaning of its own\n  hint: use another token"));
        }
        if !seen.insert(name) {
            return Err(format!("{setting}: `{name}` is there twice"));
        }
    }
    Ok(())
}

fn find(setting: &str, states: &[String], state: &State) -> Result<usize, String> {
    let found = match state {
        State::Name(name) => states.iter().position(|state| state == name),
        State::Number(number) => Some(*number as usize).filter(|number| *number < states.len()),
        State::Flag(_) => None,
    };
    let shown = match state {
        State::Name(name) => name.clone(),
        State::Number(number) => number.to_string(),
        State::Flag(flag) => flag.to_string(),
    };
    found.ok_or_else(|| format!("{setting}: there is no state `{shown}`\n  hint: the states are {}", listed(states)))
}

/// The first few names.
fn listed(names: &[String]) -> String {
    let more = if names.len() > 8 { ", …" } else { "" };
    names.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

/// The accepting states: by name, or a flag for each state. All of them where none is given.
fn accepting(settings: &Automaton, states: &[String]) -> Result<Vec<bool>, String> {
    let accept = &settings.accept;
    if accept.is_empty() {
        return match settings.kind {
            Some(Kind::Acceptor) => Err("accept is missing\n  hint: name the states that accept".into()),
            _ => Ok(vec![true; states.len()]),
        };
    }
    let mut accepting = vec![false; states.len()];
    if accept.iter().all(|state| matches!(state, State::Name(_))) {
        for state in accept {
            accepting[find("accept", states, state)?] = true;
        }
        return Ok(accepting);
    }
    let flag = |state: &State| match state {
        State::Flag(flag) => Some(*flag),
        State::Number(number @ 0..=1) => Some(*number == 1),
        _ => None,
    };
    match accept.iter().map(flag).collect::<Option<Vec<bool>>>() {
        Some(flags) if flags.len() == states.len() => Ok(flags),
        _ => Err(format!(
            "accept is neither a list of names nor of {} flags, one for each state\n  hint: write accept = [\"even\"] or accept = [1, 0]",
            states.len()
        )),
    }
}

fn outputs(settings: &Automaton, states: &[String]) -> Result<Vec<Output>, String> {
    let Automaton { output, units, .. } = settings;
    let kind = settings.kind.unwrap_or_default();
    if kind != Kind::Moore {
        let setting = if output.is_empty() { "units" } else { "output" };
        if !output.is_empty() || !units.is_empty() {
            return Err(format!("{setting} goes with kind = \"moore\""));
        }
        if kind == Kind::Group {
            return Ok(states.iter().cloned().map(Output::Token).collect());
        }
        let accepting = accepting(settings, states)?;
        let word = |accepts: bool| if accepts { "accept" } else { "reject" };
        return Ok(accepting.into_iter().map(|accepts| Output::Token(word(accepts).into())).collect());
    }
    if output.len() != states.len() {
        return Err(format!(
            "output has {} labels, but there are {} states\n  hint: list a label for each state, \"\" for none",
            output.len(),
            states.len()
        ));
    }
    if output.iter().all(String::is_empty) {
        return Err("output labels no state".into());
    }
    if units.len() > MAX_UNITS {
        return Err(format!("units: there are {}, more than {MAX_UNITS}", units.len()));
    }
    distinct("units", units)?;
    let one = |(output, state): (&String, &String)| match (output.as_str(), units.len()) {
        ("", _) => Ok(Output::Nothing),
        ("-1" | PAD, 0) => Err(format!("output: `{output}` has a meaning of its own\n  hint: use another token")),
        (_, 0) => Ok(Output::Token(output.clone())),
        (digits, n) if digits.len() == n && digits.bytes().all(|digit| matches!(digit, b'0' | b'1')) => {
            let bits = digits.bytes().enumerate().map(|(unit, digit)| i16::from(digit == b'1') << unit);
            Ok(Output::Set(bits.sum()))
        }
        (_, n) => {
            Err(format!("output: `{output}` of state `{state}` is not made of {n} digits 0 and 1, one for each unit"))
        }
    };
    output.iter().zip(states).map(one).collect()
}
