//! Evaluation while training: the paper's metrics over a whole split, in one pass of the model as it is.

use anyhow::{Result, anyhow};
use data::{Augmentation, Batch, Dataset, ExampleRef, PAD, Vocabulary, prefix_groups};
use evaluators::{Running, Score};
use models::Model;
use models::ops::SequenceOps;

/// The scores of an evaluation while training.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    /// Counting, last, overall and sequence accuracy.
    pub score: Score,
    /// Cross entropy: the mean over batches, taken in the split's order, of the mean over a batch's labelled tokens, as the
    /// original reports it.
    pub loss: Option<f64>,
    /// Accuracy over the labelled tokens beyond the `max_seen`-th of their sequence (`Dataset::max_seen_len` of
    /// validation); `None` if there are none.
    pub unseen_accuracy: Option<f64>,
    /// An example and what the model said to it: the first one with a mistake, or the first of all.
    pub sample: Option<Sample>,
}

/// A model's answer to one example, at its labelled tokens.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The example's index in its split.
    pub index: usize,
    /// The labels.
    pub gold: Vec<u16>,
    /// The most likely ones.
    pub predicted: Vec<u16>,
}

impl Sample {
    fn is_right(&self) -> bool {
        self.gold == self.predicted
    }

    /// One line: where the first mistake is, and the answer from shortly before it on.
    pub fn describe(&self, vocabulary: &Vocabulary) -> String {
        const SHOWN: usize = 12;
        let Self { index, gold, predicted } = self;
        let mistake = gold.iter().zip(predicted).position(|(g, p)| g != p);
        let from = mistake.unwrap_or(0).saturating_sub(SHOWN / 2);
        let tokens = |ids: &[u16]| -> String {
            let words = ids[from..].iter().take(SHOWN).map(|id| vocabulary.label(*id as i16));
            words.collect::<Vec<_>>().join(" ")
        };
        match mistake {
            None => format!("example {index} is right: {} …", tokens(predicted)),
            Some(at) => format!(
                "example {index} is wrong from label {} of {} on: … {} … instead of … {} …",
                at + 1,
                gold.len(),
                tokens(predicted),
                tokens(gold)
            ),
        }
    }
}

/// The examples that one pass answers: the first of a group begins with each of the others. With positions made like `fold`
/// says; every example on its own where it is `None`, or draws at random.
///
/// Examples that begin with `<pad>` only go with copies: a query without any visible key attends to what comes after it.
pub fn groups(examples: &Dataset, vocabulary: &Vocabulary, fold: Option<Augmentation>) -> Vec<Vec<usize>> {
    let Some(positions) = fold.filter(|positions| !positions.is_random()) else {
        return (0..examples.len()).map(|index| vec![index]).collect();
    };
    let pad = vocabulary.id(PAD);
    let strings: Vec<&[u16]> = examples.iter().map(|example| example.input_ids).collect();
    prefix_groups(&strings, |first, other| {
        let [first, other] = [strings[first], strings[other]];
        first.len() == other.len() || positions.is_prefix_stable() && first.first().copied() != pad
    })
}

/// Evaluates `model` on all of `examples`, by [`groups`], `batch_size` of them at a time; `batch` puts the examples
/// with the given indices together.
#[allow(clippy::too_many_arguments)]
pub fn evaluate<B: SequenceOps>(
    model: &Model<B>,
    examples: &Dataset,
    vocabulary: &Vocabulary,
    groups: &[Vec<usize>],
    batch_size: usize,
    batch: impl Fn(&[u32]) -> Result<Batch>,
    max_seen: usize,
    device: &B::Device,
) -> Result<Evaluation> {
    // Examples of similar length are computed together, so little is padded. The loss does not depend on that: it is put
    // together in the split's order.
    let mut by_length: Vec<&Vec<usize>> = groups.iter().collect();
    by_length.sort_by_key(|group| examples.get(group[0]).input_ids.len());
    let mut out = Evaluation::default();
    let (mut unseen, mut unseen_right) = (0u64, 0u64);
    let mut losses = vec![(0.0, 0); examples.len()]; // (sum, labelled tokens)
    for chunk in by_length.chunks(batch_size) {
        let first: Vec<u32> = chunk.iter().map(|group| group[0] as u32).collect();
        let mut batch = batch(&first)?;
        // Whether the mask matters is judged by labels: those of the whole group.
        for (row, group) in batch.labels.chunks_mut(batch.seq.max(1)).zip(chunk) {
            for example in group.iter().map(|&index| examples.get(index)) {
                row.iter_mut().zip(example.labels).for_each(|(slot, &label)| *slot = i64::from(label).max(*slot));
            }
        }
        let logits = model.forward(model.input(&batch, device)).into_data();
        let logits = logits.into_vec::<f32>().map_err(|e| anyhow!("cannot read the logits back: {e:?}"))?;
        for (group, logits) in chunk.iter().zip(logits.chunks(batch.seq * vocabulary.len())) {
            for &index in *group {
                let (sequence, sample) = walk(index, examples.get(index), logits, vocabulary);
                let right = sample.gold.iter().zip(&sample.predicted).skip(max_seen);
                unseen += right.len() as u64;
                unseen_right += right.filter(|(g, p)| g == p).count() as u64;
                let mut alone = Score::default();
                alone.add(&sequence);
                losses[index] = (alone.loss_sum, alone.n_tokens);
                out.score.add(&sequence);
                let rank = |s: &Sample| (s.is_right(), s.index);
                if out.sample.as_ref().is_none_or(|best| rank(&sample) < rank(best)) {
                    out.sample = Some(sample);
                }
            }
        }
    }
    let batches = losses.chunks(batch_size).filter_map(|batch| {
        let (sum, tokens) = batch.iter().fold((0.0, 0), |(s, n), (sum, tokens)| (s + sum, n + tokens));
        (tokens > 0).then(|| sum / tokens as f64)
    });
    let (sum, count) = batches.fold((0.0, 0u32), |(sum, n), loss| (sum + loss, n + 1));
    out.loss = (count > 0).then(|| sum / f64::from(count));
    out.unseen_accuracy = (unseen > 0).then(|| unseen_right as f64 / unseen as f64);
    Ok(out)
}

/// Scores one example from its logits, row-major `[seq, vocab]`.
fn walk(index: usize, example: ExampleRef<'_>, logits: &[f32], vocabulary: &Vocabulary) -> (Running, Sample) {
    let mut sequence = Running::default();
    let mut sample = Sample { index, gold: vec![], predicted: vec![] };
    for (logits, &label) in logits.chunks(vocabulary.len()).zip(example.labels) {
        if let Ok(label) = u16::try_from(label) {
            sample.gold.push(label);
            sample.predicted.push(sequence.push_label(logits, label, vocabulary));
        }
    }
    (sequence, sample)
}
