use crate::{Example, ExampleRef};

/// Why a test sequence cannot be longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("length {length}: {reason}")]
pub struct LengthLimit {
    /// The requested length.
    pub length: u32,
    /// Why it has no label, in words for a result table.
    pub reason: String,
}

/// A test sequence that goes on: its length-L test is its first tokens, up to and including the L-th main token.
///
/// A track is laid out as `header` tokens (a beginning-of-sequence token, a start number), then `stride` tokens for
/// each main token (2 with a helper token, otherwise 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Track {
    /// Token ids of the longest test.
    pub input_ids: Vec<u16>,
    /// Labels, aligned with `input_ids`.
    pub labels: Vec<i16>,
    /// Tokens before the first main token.
    pub header: usize,
    /// Tokens per main token.
    pub stride: usize,
    /// Whether every shorter test is a prefix; otherwise the track is the test of [`Self::max_length`] and of no other
    /// length.
    pub prefix_closed: bool,
    /// Where the labels end for good, and why (`None`: the rule has no end).
    pub limit: Option<(u32, String)>,
}

impl Track {
    /// The longest length this track was built for.
    pub fn max_length(&self) -> u32 {
        ((self.input_ids.len() - self.header) / self.stride) as u32
    }

    /// How many tokens the length-`length` test has.
    pub fn tokens(&self, length: u32) -> usize {
        self.header + length as usize * self.stride
    }

    /// The length-`length` test, or why there is none.
    pub fn prefix(&self, length: u32) -> Result<ExampleRef<'_>, LengthLimit> {
        if length > self.max_length() {
            let reason = match &self.limit {
                Some((_, reason)) => reason.clone(),
                None => format!("the track was built up to {}", self.max_length()),
            };
            return Err(LengthLimit { length, reason });
        }
        if length < self.max_length() && !self.prefix_closed {
            let reason = format!("a prefix of the test of length {} is no test", self.max_length());
            return Err(LengthLimit { length, reason });
        }
        let n = self.tokens(length);
        Ok(ExampleRef { input_ids: &self.input_ids[..n], labels: &self.labels[..n], length })
    }

    /// A track out of its longest example.
    pub fn from_example(example: Example, header: usize, stride: usize, limit: Option<(u32, String)>) -> Self {
        Self { input_ids: example.input_ids, labels: example.labels, header, stride, prefix_closed: true, limit }
    }

    /// A track that is one test and no other, with `header` tokens before its main tokens.
    pub fn single(example: Example, header: usize, limit: Option<(u32, String)>) -> Self {
        Self { prefix_closed: false, ..Self::from_example(example, header, 1, limit) }
    }
}
