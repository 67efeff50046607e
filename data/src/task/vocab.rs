use crate::IGNORE;
use crate::families::MAX_UNITS;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The padding token: right padding of batches, and the helper token of the `padhelper` tasks.
pub const PAD: &str = "<pad>";

/// The loss of labels that are sets, per unit; the mean over the units is a position's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetLoss {
    /// Binary cross entropy of the sigmoid, in nats.
    #[default]
    Bce,
    /// The squared error of the sigmoid, as Bhattamishra et al. (arXiv 2009.11264) train.
    Mse,
}

/// The tokens of a task in id order: a token's id is its index. Its labels are tokens as well, or sets of them.
///
/// Where a token is listed twice, the later index is the one it encodes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u16>,
    units: Vec<u16>,
    set_loss: SetLoss,
}

impl Vocabulary {
    /// A vocabulary of these tokens, in this order.
    pub fn new(tokens: Vec<String>) -> Self {
        let ids = tokens.iter().enumerate().map(|(i, t)| (t.clone(), i as u16)).collect();
        Self { tokens, ids, units: vec![], set_loss: SetLoss::default() }
    }

    /// The same tokens with labels that are sets of `units`, in the order of the label's digits; with tokens as labels
    /// where there are no units.
    ///
    /// # Errors
    /// A unit is no token of the vocabulary, or there are more than [`MAX_UNITS`].
    pub fn with_units(self, units: &[String], set_loss: SetLoss) -> Result<Self, String> {
        if units.len() > MAX_UNITS {
            return Err(format!("labels are sets of {} units, but at most {MAX_UNITS} are possible", units.len()));
        }
        let id = |unit: &String| self.id(unit).ok_or_else(|| format!("the unit `{unit}` is not in the vocabulary"));
        Ok(Self { units: units.iter().map(id).collect::<Result<_, _>>()?, set_loss, ..self })
    }

    /// The number words `0 ..= last`, then `others`.
    pub fn numbers_then(last: u32, others: &[&str]) -> Self {
        let numbers = (0..=last).map(|n| n.to_string());
        Self::new(numbers.chain(others.iter().map(|t| t.to_string())).collect())
    }

    /// How many ids there are; also the width of the models' output.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// All tokens in id order.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The id of `token`.
    pub fn id(&self, token: &str) -> Option<u16> {
        self.ids.get(token).copied()
    }

    /// The token with this id.
    pub fn token(&self, id: u16) -> Option<&str> {
        self.tokens.get(usize::from(id)).map(String::as_str)
    }

    /// The ids of the units that a label is a set of: bit i of a label is unit i. None where a label is a token.
    pub fn units(&self) -> &[u16] {
        &self.units
    }

    /// The units' tokens.
    pub fn unit_tokens(&self) -> Vec<String> {
        self.units.iter().filter_map(|id| self.token(*id)).map(str::to_owned).collect()
    }

    /// The loss of labels that are sets.
    pub fn set_loss(&self) -> SetLoss {
        self.set_loss
    }

    /// How many different labels there can be: one for each token, or for each set of units.
    pub fn label_count(&self) -> usize {
        if self.units.is_empty() { self.len().min(i16::MAX as usize) } else { 1 << self.units.len() }
    }

    /// A label in text: a token, or a digit 0 or 1 for each unit; `-1` where there is none, `?` for what is no label.
    pub fn label(&self, label: i16) -> String {
        match u16::try_from(label) {
            Err(_) => "-1".to_owned(),
            Ok(set) if !self.units.is_empty() => {
                (0..self.units.len()).map(|unit| if set >> unit & 1 == 1 { '1' } else { '0' }).collect()
            }
            Ok(id) => self.token(id).unwrap_or("?").to_owned(),
        }
    }

    /// The label that a text stands for, see [`Self::label`].
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that names it.
    pub fn parse_label(&self, text: &str) -> Result<i16, String> {
        if text == "-1" {
            return Ok(IGNORE);
        }
        if self.units.is_empty() {
            let id = self.id(text).ok_or("is not in the vocabulary")?;
            return i16::try_from(id).map_err(|_| "is no label".into());
        }
        let n = self.units.len();
        if text.len() != n || text.bytes().any(|digit| !matches!(digit, b'0' | b'1')) {
            return Err(format!("is no set of {n} units: {n} digits 0 and 1"));
        }
        Ok(text.bytes().rev().fold(0, |set, digit| set << 1 | i16::from(digit == b'1')))
    }

    /// The id that right padding uses: `<pad>`, or 0 where the vocabulary has none.
    pub fn pad_id(&self) -> u16 {
        self.id(PAD).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sets_are_written_with_their_first_unit_first() {
        let v = Vocabulary::numbers_then(1, &["(", ")"]);
        assert_eq!((v.label_count(), v.label(2), v.parse_label("(")), (4, "(".into(), Ok(2)));
        let units = ["(".to_owned(), ")".to_owned(), "1".to_owned()];
        let v = v.with_units(&units, SetLoss::Mse).unwrap();
        assert_eq!((v.units(), v.label_count()), (&[2, 3, 1][..], 8));
        for label in 0..8 {
            assert_eq!(v.parse_label(&v.label(label)), Ok(label));
        }
        assert_eq!((v.label(1), v.label(6), v.label(-1)), ("100".into(), "011".into(), "-1".into()));
        assert_eq!(v.parse_label("-1"), Ok(-1));
        for wrong in ["", "10", "1000", "(", "1 0", "102"] {
            assert!(v.parse_label(wrong).unwrap_err().contains("3 digits"), "{wrong}");
        }
        assert!(Vocabulary::numbers_then(9, &[]).with_units(&["x".into()], SetLoss::Bce).is_err());
        let many: Vec<String> = (0..16).map(|n| n.to_string()).collect();
        assert!(Vocabulary::numbers_then(20, &[]).with_units(&many, SetLoss::Bce).unwrap_err().contains("at most 15"));
    }

    #[test]
    fn a_token_listed_twice_encodes_to_the_later_id() {
        let v = Vocabulary::numbers_then(2, &[PAD, "a", "a", "b"]);
        assert_eq!(v.len(), 7);
        assert_eq!(v.id("a"), Some(5));
        assert_eq!(v.token(4), Some("a"));
        assert_eq!(v.pad_id(), 3);
    }
}
