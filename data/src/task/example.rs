/// The label of positions that count in no loss and no metric.
pub const IGNORE: i16 = -1;

/// One labelled sequence. `labels[i]` is the output required after reading `input_ids[..=i]`; labels are
/// aligned with the inputs, not shifted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub input_ids: Vec<u16>,
    /// Token ids, or [`IGNORE`]; as long as `input_ids`.
    pub labels: Vec<i16>,
    /// The count of main tokens (what a sweep calls length), without start, bos and helper tokens.
    pub length: u32,
}

impl Example {
    /// A borrowed view.
    pub fn as_ref(&self) -> ExampleRef<'_> {
        ExampleRef { input_ids: &self.input_ids, labels: &self.labels, length: self.length }
    }
}

/// A borrowed [`Example`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExampleRef<'a> {
    /// Token ids.
    pub input_ids: &'a [u16],
    /// Token ids, or [`IGNORE`]; as long as `input_ids`.
    pub labels: &'a [i16],
    /// The count of main tokens.
    pub length: u32,
}

impl ExampleRef<'_> {
    /// A copy that owns its tokens.
    pub fn to_example(self) -> Example {
        Example { input_ids: self.input_ids.to_vec(), labels: self.labels.to_vec(), length: self.length }
    }
}
