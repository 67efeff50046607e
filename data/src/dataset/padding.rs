//! Separates the tokens of an example of another program from its padding.
//!
//! Tables of equally long rows are padded at their end, and the labels of padding differ from tool to tool: -100 or −1,
//! the id of `<pad>` (labels that were padded like the inputs), 0. Padding is located by a mask (and removed while a
//! file is read); by the column `length`, or by its own pattern.

use super::reading::Found;
use crate::{PAD, Task};
use std::ops::Range;

/// The part of an example without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    /// Its tokens.
    pub range: Range<usize>,
    /// Whether `<pad>` labelled `<pad>` was treated as padding though the file does not say so.
    pub is_assumed: bool,
}

/// The part of an example without leading and trailing padding labelled as such: no task has the label `<pad>`, whose
/// id is `pad`.
///
/// # Errors
/// There is nothing else in it.
pub(crate) fn without_labelled(input_ids: &[u16], labels: &[i16], pad: Option<u16>) -> Result<Range<usize>, String> {
    let tokens = input_ids.len();
    let Some(pad) = pad else { return Ok(0..tokens) };
    let is_padding = |(id, label): (&u16, &i16)| *id == pad && u16::try_from(*label) == Ok(pad);
    let pairs = || input_ids.iter().zip(labels);
    let behind = pairs().rev().take_while(|pair| is_padding(*pair)).count();
    if behind == tokens {
        return Err("has no token but padding".into());
    }
    Ok(pairs().take_while(|pair| is_padding(*pair)).count()..tokens - behind)
}

/// The part of an example of `task` without padding.
///
/// # Errors
/// The column `length` contradicts the tokens, or there is nothing but padding.
pub(crate) fn own(task: &Task, found: &Found<'_>) -> Result<Own, String> {
    let (input_ids, labels, all) = (found.input_ids, found.labels, found.input_ids.len());
    let plain = without_labelled(input_ids, labels, task.vocabulary.id(PAD))?;
    let is_assumed = plain != (0..all) && !found.masked && found.length.is_none();
    // No task begins with `<pad>`, so that what stands before a sequence without a label is padding on the left.
    let pad = task.vocabulary.id(PAD);
    let before = plain.clone().take_while(|at| Some(input_ids[*at]) == pad && labels[*at] < 0).count();
    let start = Some(plain.start + before).filter(|start| *start < plain.end).unwrap_or(plain.start);
    let plain = start..start + task.without_padding(&input_ids[start..plain.end], &labels[start..plain.end]);
    let Some(length) = found.length else { return Ok(Own { range: plain, is_assumed }) };
    // Programs count all tokens or the main ones.
    let fits = |range: &Range<usize>| {
        range.len() == length as usize || task.main_tokens(&input_ids[range.clone()]) == Some(length)
    };
    // Some programs count the padding too; then the length does not show that it is padding.
    if fits(&plain) || length as usize == all {
        return Ok(Own { range: plain, is_assumed });
    }
    let ends = (length as usize..all).filter(|end| *end > 0 && is_filled(&input_ids[*end..], &labels[*end..], task));
    match ends.map(|end| 0..end).find(|range| !found.masked && fits(range)) {
        Some(range) => Ok(Own { range, is_assumed }),
        None => {
            // A sequence that is not one of the task has as many main tokens as labels.
            let main = task.length(&input_ids[plain.clone()], &labels[plain.clone()]);
            if main == length {
                return Ok(Own { range: plain, is_assumed });
            }
            let mask = if found.masked { " by its `attention_mask`" } else { "" };
            Err(format!("has the length {length}, but {} tokens{mask}, {main} of them main tokens", plain.len()))
        }
    }
}

/// Whether tokens look like padding: one token, repeated, with one label that no sequence has.
fn is_filled(input_ids: &[u16], labels: &[i16], task: &Task) -> bool {
    let Some((id, label)) = input_ids.first().zip(labels.first()) else { return false };
    let is_uniform = input_ids.iter().all(|other| other == id) && labels.iter().all(|other| other == label);
    let is_padding = *label < 0 || u16::try_from(*label) == Ok(*id) || Some(*id) == task.vocabulary.id(PAD);
    is_uniform && is_padding
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Vocabulary;

    /// The assumptions of this file: `<pad>` is never the label of `<pad>`, `length` is at most the number of tokens, and generated
    /// examples have no padding.
    #[test]
    fn generated_examples_have_no_padding() {
        for task in Task::names().map(|name| Task::by_name(name).unwrap()) {
            let pad = task.vocabulary.id(PAD);
            for split in task.splits() {
                let examples = task.examples(split, 0);
                for index in 0..task.rows(split, task.train_examples).unwrap().min(60) {
                    let example = examples(index);
                    let name = format!("{} {} {index}", task.name, split.name());
                    let mut pairs = example.input_ids.iter().zip(&example.labels);
                    assert!(pairs.all(|(id, label)| Some(*id) != pad || u16::try_from(*label).ok() != pad), "{name}");
                    for length in [None, Some(example.length), Some(example.input_ids.len() as u32)] {
                        let (input_ids, labels) = (&example.input_ids[..], &example.labels[..]);
                        let found = Found { input_ids, labels, length, masked: false };
                        let whole = Own { range: 0..input_ids.len(), is_assumed: false };
                        assert_eq!(own(&task, &found).as_ref(), Ok(&whole), "{name} {length:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn padding_is_what_the_length_or_its_label_says() {
        let task = Task::by_name("counting_samesymbol_mod10bos").unwrap();
        let (pad, a) = (task.vocabulary.id(PAD).unwrap(), task.vocabulary.id("a").unwrap());
        let label = pad as i16;
        let part = |input_ids: &[u16], labels: &[i16], length| {
            own(&task, &Found { input_ids, labels, length, masked: false }).map(|own| (own.range, own.is_assumed))
        };
        let padded = [0, a, a, a, pad, pad];
        for labels in [[-1, 1, 2, 3, label, label], [-1, 1, 2, 3, -1, label], [label, 1, 2, 3, -1, -1]] {
            let is_assumed = labels[5] == label;
            assert_eq!(part(&padded, &labels, None), Ok((0..4, is_assumed)), "{labels:?}");
            for length in [3, 4, 6] {
                assert_eq!(part(&padded, &labels, Some(length)), Ok((0..4, false)), "{labels:?} {length}");
            }
            let wrong = part(&padded, &labels, Some(2)).unwrap_err();
            assert!(wrong.starts_with("has the length 2, but 4 tokens"), "{wrong}");
        }
        assert_eq!(part(&[pad, pad, 0, a], &[label, label, -1, 1], None), Ok((2..4, true)));
        assert_eq!(part(&[pad, pad, 0, a], &[-1, -1, -1, 1], None), Ok((2..4, false)));
        assert_eq!(part(&[pad, 0, a, pad], &[-1, -1, 1, -1], Some(2)), Ok((1..3, false)));
        // padding, because the length says so
        assert_eq!(part(&padded, &[-1, 1, 2, 3, 0, 0], Some(4)), Ok((0..4, false)));
        assert_eq!(part(&[0, a, a, 0, 0], &[-1, 1, 2, 0, 0], Some(3)), Ok((0..3, false)));
        assert_eq!(part(&[0, a, a, 0, 0], &[-1, 1, 2, 0, 0], Some(2)), Ok((0..3, false)));
        // and tokens that are not padding
        assert!(part(&[0, a, a, a], &[-1, 1, 2, 3], Some(1)).is_err());
        assert!(part(&[0, a, a, a], &[-1, 1, 2, 3], Some(2)).is_err());
        assert!(part(&[pad, pad], &[label, label], None).unwrap_err().contains("no token but padding"));
        assert_eq!(without_labelled(&[5, 5], &[5, 5], Vocabulary::numbers_then(9, &[]).id(PAD)), Ok(0..2));
    }
}
