use std::collections::HashMap;

/// The padding token: right padding of batches, and the helper token of the `padhelper` tasks.
pub const PAD: &str = "<pad>";

/// The tokens of a task in id order: a token's id is its index.
///
/// Where a token is listed twice, the later index is the one it encodes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u16>,
}

impl Vocabulary {
    /// A vocabulary of these tokens, in this order.
    pub fn new(tokens: Vec<String>) -> Self {
        let ids = tokens.iter().enumerate().map(|(i, t)| (t.clone(), i as u16)).collect();
        Self { tokens, ids }
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

    /// The id that right padding uses: `<pad>`, or 0 where the vocabulary has none.
    pub fn pad_id(&self) -> u16 {
        self.id(PAD).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_listed_twice_encodes_to_the_later_id() {
        let v = Vocabulary::numbers_then(2, &[PAD, "a", "a", "b"]);
        assert_eq!(v.len(), 7);
        assert_eq!(v.id("a"), Some(5));
        assert_eq!(v.token(4), Some("a"));
        assert_eq!(v.pad_id(), 3);
    }
}
