use super::{Examples, Family};
use crate::{Example, IGNORE, LengthLimit, Split, Track};

/// Another family with a helper token after each token: the helper carries the label and gives the model one more step
/// of computation. Source: arXiv 2405.20131, appendix (helper tokens).
#[derive(Debug)]
pub(crate) struct Interleaved {
    pub inner: Box<dyn Family>,
    /// `<pad>` or `<blk>`.
    pub helper: u16,
}

/// x_1 h x_2 h … with labels −1 y_1 −1 y_2 …; a token at a bare end keeps its label and gets no helper.
pub(super) fn interleave(example: &Example, helper: u16, bare_end: bool) -> Example {
    let helped = example.input_ids.len() - usize::from(bare_end);
    let input_ids = example.input_ids.iter().enumerate();
    let input_ids = input_ids.flat_map(|(i, id)| [Some(*id), (i < helped).then_some(helper)]).flatten();
    let labels = example.labels.iter().enumerate();
    let labels = labels.flat_map(|(i, label)| [(i < helped).then_some(IGNORE), Some(*label)]).flatten();
    Example { input_ids: input_ids.collect(), labels: labels.collect(), length: example.length }
}

/// The sequence without its helpers, and whether its end is bare.
pub(super) fn strip(input_ids: &[u16], helper: u16) -> Option<(Vec<u16>, bool)> {
    let (pairs, rest) = input_ids.as_chunks::<2>();
    let right = pairs.iter().all(|[token, helper_]| *token != helper && *helper_ == helper);
    let stripped = pairs.iter().map(|[token, _]| *token).chain(rest.iter().copied()).collect();
    (right && rest.iter().all(|id| *id != helper)).then_some((stripped, !rest.is_empty()))
}

impl Interleaved {
    fn interleave(&self, example: &Example) -> Example {
        interleave(example, self.helper, self.inner.ends_bare(&example.input_ids))
    }
}

impl Family for Interleaved {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn train_max_length(&self) -> u32 {
        self.inner.train_max_length()
    }

    fn train_lengths(&self) -> std::ops::RangeInclusive<u32> {
        self.inner.train_lengths()
    }

    fn rows(&self, split: Split, train: usize) -> Result<usize, String> {
        self.inner.rows(split, train)
    }

    fn examples(&self, split: Split, seed: u64) -> Examples<'_> {
        let inner = self.inner.examples(split, seed);
        Box::new(move |index| self.interleave(&inner(index)))
    }

    fn length(&self, input_ids: &[u16]) -> Result<u32, String> {
        match strip(input_ids, self.helper) {
            Some((stripped, bare)) if bare == self.inner.ends_bare(&stripped) => self.inner.length(&stripped),
            _ => Err("helper tokens do not stand after every token".into()),
        }
    }

    fn rule(&self, input_ids: &[u16]) -> Vec<i16> {
        let (input_ids, _) = strip(input_ids, self.helper).unwrap_or_default();
        let labels = self.inner.rule(&input_ids);
        self.interleave(&Example { input_ids, labels, length: 0 }).labels
    }

    fn expected(&self, input_ids: &[u16], labels: &[i16]) -> Result<Vec<i16>, String> {
        self.length(input_ids)?;
        let (input_ids, _) = strip(input_ids, self.helper).unwrap_or_default();
        let (pairs, rest) = labels.as_chunks::<2>();
        let labels: Vec<i16> = pairs.iter().map(|[_, label]| *label).chain(rest.iter().copied()).collect();
        let labels = self.inner.expected(&input_ids, &labels)?;
        Ok(self.interleave(&Example { input_ids, labels, length: 0 }).labels)
    }

    fn leaves_last_open(&self) -> bool {
        self.inner.leaves_last_open()
    }

    fn ends_unannounced(&self) -> bool {
        self.inner.ends_unannounced()
    }

    fn prefix_closed(&self) -> bool {
        self.inner.prefix_closed()
    }

    fn distinct_tracks(&self) -> Option<usize> {
        self.inner.distinct_tracks()
    }

    fn track(&self, seed: u64, index: usize, max_length: u32) -> Track {
        let inner = self.inner.track(seed, index, max_length);
        let length = inner.max_length();
        let example = Example { input_ids: inner.input_ids, labels: inner.labels, length };
        let Example { input_ids, labels, .. } = interleave(&example, self.helper, false);
        Track { input_ids, labels, header: 2 * inner.header, stride: 2 * inner.stride, ..inner }
    }

    fn of_length(&self, seed: u64, index: usize, length: u32) -> Option<Example> {
        self.inner.of_length(seed, index, length).map(|example| self.interleave(&example))
    }

    fn chance(&self, length: u32) -> Option<f64> {
        self.inner.chance(length)
    }

    fn test(&self, seed: u64, index: usize, length: u32) -> Result<Example, LengthLimit> {
        self.inner.test(seed, index, length).map(|example| interleave(&example, self.helper, false))
    }
}
