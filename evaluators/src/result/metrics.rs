//! Scores of labelled positions, as the paper's code defines them (arXiv 2405.20131, tester), pooled over sequences:
//! per sequence the labelled positions in order are q_1 … q_m. *Counting* accuracy is over q_1 … q_{m−1}, *last*
//! accuracy over q_m, *accuracy* over all of them, *sequence* accuracy over sequences that are right everywhere,
//! *unseen* accuracy over the q_j whose rank j is larger than any sequence of the validation split is long.
//! A prediction is the argmax over the whole vocabulary, the first index where there is a tie. Where labels are sets
//! (Bhattamishra et al., arXiv 2009.11264), it is the set of units with a positive logit, a probability over one half,
//! and right only as a whole.

use data::{SetLoss, Vocabulary};

/// The score of one growing sequence. Pushing position after position and reading it at the ends of prefixes scores
/// every prefix in one walk.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Running {
    labelled: u64,
    correct: u64,
    last_correct: bool,
    seen: Option<u64>,
    unseen_correct: u64,
    loss_sum: f64,
    nan: bool,
}

impl Running {
    /// A sequence whose labelled positions number `seen` + 1 and up are *unseen*; without it (the default) none are.
    pub fn with_seen(seen: Option<u64>) -> Self {
        Self { seen, ..Self::default() }
    }

    /// Adds a labelled position: its logits `[vocab]` and its label, which must be below `logits.len()`.
    /// Returns the prediction.
    pub fn push(&mut self, logits: &[f32], label: usize) -> usize {
        let (prediction, log_sum_exp) = argmax_and_log_sum_exp(logits);
        self.push_scored(prediction == label, log_sum_exp - f64::from(logits[label]));
        prediction
    }

    /// Adds a labelled position: its logits `[vocab]` and its label in `vocabulary`. Returns the prediction, a token's
    /// id or a set of units as a label has it.
    pub fn push_label(&mut self, logits: &[f32], label: u16, vocabulary: &Vocabulary) -> u16 {
        if vocabulary.units().is_empty() {
            return self.push(logits, usize::from(label)) as u16;
        }
        let (prediction, loss) = score_set(logits, label, vocabulary);
        self.push_scored(prediction == label, loss);
        prediction
    }

    /// Adds a labelled position of which the cross entropy (in nats) is known; NaN where its logits have no softmax.
    pub fn push_scored(&mut self, correct: bool, loss: f64) {
        self.labelled += 1;
        self.last_correct = correct;
        self.correct += u64::from(correct);
        self.unseen_correct += u64::from(correct && self.seen.is_some_and(|seen| self.labelled > seen));
        self.loss_sum += loss;
        self.nan |= loss.is_nan();
    }

    /// Labelled positions so far.
    pub fn labelled(&self) -> u64 {
        self.labelled
    }

    /// Cross entropies in nats, summed.
    pub fn loss_sum(&self) -> f64 {
        self.loss_sum
    }
}

/// The set of units that the logits `[vocab]` of a position predict, and its loss against the set `label`: the mean over
/// the units. NaN where a unit's logit is not finite.
pub fn score_set(logits: &[f32], label: u16, vocabulary: &Vocabulary) -> (u16, f64) {
    let (mut predicted, mut sum) = (0, 0.0);
    for (unit, &id) in vocabulary.units().iter().enumerate() {
        let logit = f64::from(logits[usize::from(id)]);
        let wanted = f64::from(label >> unit & 1);
        predicted |= u16::from(logit > 0.0) << unit;
        sum += match vocabulary.set_loss() {
            _ if !logit.is_finite() => f64::NAN,
            SetLoss::Bce => logit.max(0.0) - logit * wanted + (-logit.abs()).exp().ln_1p(),
            SetLoss::Mse => (1.0 / (1.0 + (-logit).exp()) - wanted).powi(2),
        };
    }
    (predicted, sum / vocabulary.units().len() as f64)
}

/// Argmax (first index on ties) and log Σ exp, in one pass each. Subtracting the maximum keeps the exponentials ≤ 1.
/// The second value is NaN exactly where a logit is NaN or +∞, or all are −∞.
fn argmax_and_log_sum_exp(logits: &[f32]) -> (usize, f64) {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = index;
        }
    }
    let max = f64::from(logits[best]);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    (best, max + sum.ln())
}

/// Pooled counts over sequences, and the metrics computed from them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Sequences with at least one labelled position.
    pub n_sequences: u64,
    /// Labelled positions.
    pub n_tokens: u64,
    /// Correct positions among all but each sequence's last.
    pub counting_correct: u64,
    /// Positions that are not their sequence's last.
    pub counting_total: u64,
    /// Sequences whose last labelled position is right.
    pub last_correct: u64,
    /// Sequences that are right everywhere.
    pub sequences_correct: u64,
    /// Correct positions among the unseen ones.
    pub unseen_correct: u64,
    /// Positions that are unseen, where that is counted ([`Running::with_seen`]).
    pub unseen_total: u64,
    /// Cross entropies in nats, summed over labelled positions.
    pub loss_sum: f64,
    /// Sequences with a labelled position whose logits have no softmax (NaN or infinite).
    pub nan: u64,
}

impl Score {
    /// Adds a sequence (or a prefix of one). Sequences without labels count nowhere.
    pub fn add(&mut self, sequence: &Running) {
        if sequence.labelled == 0 {
            return;
        }
        let last = u64::from(sequence.last_correct);
        self.n_sequences += 1;
        self.n_tokens += sequence.labelled;
        self.counting_correct += sequence.correct - last;
        self.counting_total += sequence.labelled - 1;
        self.last_correct += last;
        self.sequences_correct += u64::from(sequence.correct == sequence.labelled);
        self.unseen_correct += sequence.unseen_correct;
        self.unseen_total += sequence.seen.map_or(0, |seen| sequence.labelled.saturating_sub(seen));
        self.loss_sum += sequence.loss_sum;
        self.nan += u64::from(sequence.nan);
    }

    /// Adds the counts of other sequences.
    pub fn merge(&mut self, other: &Self) {
        self.n_sequences += other.n_sequences;
        self.n_tokens += other.n_tokens;
        self.counting_correct += other.counting_correct;
        self.counting_total += other.counting_total;
        self.last_correct += other.last_correct;
        self.sequences_correct += other.sequences_correct;
        self.unseen_correct += other.unseen_correct;
        self.unseen_total += other.unseen_total;
        self.loss_sum += other.loss_sum;
        self.nan += other.nan;
    }

    /// Right positions among all labelled ones.
    pub fn accuracy(&self) -> Option<f64> {
        ratio(self.counting_correct + self.last_correct, self.n_tokens)
    }

    /// Right positions among all but each sequence's last; `None` at length 1, where there are none.
    pub fn counting_accuracy(&self) -> Option<f64> {
        ratio(self.counting_correct, self.counting_total)
    }

    /// Sequences whose last position is right.
    pub fn last_accuracy(&self) -> Option<f64> {
        ratio(self.last_correct, self.n_sequences)
    }

    /// Sequences that are right everywhere.
    pub fn sequence_accuracy(&self) -> Option<f64> {
        ratio(self.sequences_correct, self.n_sequences)
    }

    /// Right positions among the unseen ones; `None` where there are none.
    pub fn unseen_accuracy(&self) -> Option<f64> {
        ratio(self.unseen_correct, self.unseen_total)
    }

    /// Mean cross entropy per labelled position, in nats.
    pub fn loss(&self) -> Option<f64> {
        (self.n_tokens > 0).then(|| self.loss_sum / self.n_tokens as f64)
    }

    /// The 95 % interval of [`Self::last_accuracy`] (low, high).
    pub fn last_accuracy_interval(&self) -> Option<(f64, f64)> {
        (self.n_sequences > 0).then(|| wilson(self.last_correct, self.n_sequences, 1.96))
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Wilson's score interval for a proportion: with p = successes / n,
///
/// (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)
///
/// It stays inside [0, 1] and is honest at 0 of n and n of n, where the usual p ± z√(p(1−p)/n) has no width.
/// E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209–212.
/// Nothing observed (n = 0) gives (0, 1).
pub fn wilson(successes: u64, n: u64, z: f64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (none, all) = (successes == 0, successes == n);
    let (n, z2) = (n as f64, z * z);
    let p = successes as f64 / n;
    let centre = p + z2 / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    // the ends are exact by the formula, but not in floating point
    (if none { 0.0 } else { (centre - half) / scale }, if all { 1.0 } else { (centre + half) / scale })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A sequence whose model is certain of `predictions`, in a vocabulary of 10.
    fn sequence(labels: &[usize], predictions: &[usize]) -> Running {
        let mut running = Running::default();
        for (&label, &prediction) in labels.iter().zip(predictions) {
            let mut logits = [0.0; 10];
            logits[prediction] = 8.0;
            assert_eq!(running.push(&logits, label), prediction);
        }
        running
    }

    #[test]
    fn the_papers_definitions_on_a_worked_example() {
        let mut score = Score::default();
        score.add(&sequence(&[1, 2, 3, 4, 9], &[1, 2, 9, 4, 9]));
        score.add(&sequence(&[5], &[4]));
        assert_eq!((score.n_sequences, score.n_tokens), (2, 6));
        assert_eq!((score.counting_correct, score.counting_total), (3, 4));
        assert_eq!(score.last_accuracy(), Some(0.5));
        assert_eq!(score.accuracy(), Some(4.0 / 6.0));
        assert_eq!(score.sequence_accuracy(), Some(0.0));
        // 4 right and 2 wrong positions of certainty e^8 : 1 over ten tokens
        let log_sum_exp = (8f64.exp() + 9.0).ln();
        assert!((score.loss().unwrap() - (log_sum_exp - 8.0 * 4.0 / 6.0)).abs() < 1e-12);
    }

    #[test]
    fn one_position_has_a_last_accuracy_and_no_counting_accuracy() {
        let mut score = Score::default();
        score.add(&Running::default());
        assert_eq!((score, score.loss(), score.last_accuracy_interval()), (Score::default(), None, None));
        score.add(&sequence(&[3], &[3]));
        assert_eq!((score.counting_accuracy(), score.last_accuracy()), (None, Some(1.0)));
    }

    #[test]
    fn sets_are_right_as_a_whole() {
        let vocabulary = |loss| {
            let units = ["(".to_owned(), "1".to_owned()];
            Vocabulary::numbers_then(1, &["("]).with_units(&units, loss).unwrap()
        };
        let (bce, mse) = (vocabulary(SetLoss::Bce), vocabulary(SetLoss::Mse));
        let logits = [9.0, -1.0, 2.0]; // of 0, 1 and (
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (label, right) in [(0b01, true), (0b11, false), (0b00, false)] {
            let mut running = Running::default();
            assert_eq!(running.push_label(&logits, label, &bce), 0b01);
            assert_eq!(running.correct == 1, right);
            let (open, one) = (f64::from(label & 1), f64::from(label >> 1));
            let cross = |p: f64, wanted: f64| -(wanted * p.ln() + (1.0 - wanted) * (1.0 - p).ln());
            let expected = (cross(sigmoid(2.0), open) + cross(sigmoid(-1.0), one)) / 2.0;
            assert!((running.loss_sum() - expected).abs() < 1e-12);
            let squared = ((sigmoid(2.0) - open).powi(2) + (sigmoid(-1.0) - one).powi(2)) / 2.0;
            assert!((score_set(&logits, label, &mse).1 - squared).abs() < 1e-12);
        }
        assert!(score_set(&[0.0, f32::NAN, 0.0], 0, &bce).1.is_nan());
        assert!(score_set(&[0.0, 0.0, f32::INFINITY], 1, &mse).1.is_nan());
    }

    #[test]
    fn unseen_positions_are_those_past_the_rank_and_merging_is_adding() {
        // the specification's worked example: lengths up to 3 were seen
        let add = |score: &mut Score, labels: &[usize], predictions: &[usize]| {
            let mut running = Running::with_seen(Some(3));
            labels.iter().zip(predictions).for_each(|(l, p)| running.push_scored(l == p, 0.5));
            assert_eq!(running.loss_sum(), 0.5 * running.labelled() as f64);
            score.add(&running);
        };
        let (mut a, mut b, mut both) = (Score::default(), Score::default(), Score::default());
        add(&mut a, &[1, 2, 3, 4, 9], &[1, 2, 9, 4, 9]);
        add(&mut b, &[5], &[4]);
        add(&mut both, &[1, 2, 3, 4, 9], &[1, 2, 9, 4, 9]);
        add(&mut both, &[5], &[4]);
        a.merge(&b);
        assert_eq!(a, both);
        assert_eq!((a.unseen_correct, a.unseen_total, a.unseen_accuracy()), (2, 2, Some(1.0)));
        assert_eq!((b.unseen_total, b.unseen_accuracy()), (0, None));
    }

    #[test]
    fn ties_go_to_the_first_index_and_large_logits_do_not_overflow() {
        let mut running = Running::default();
        assert_eq!(running.push(&[1.0, 7.0, 7.0], 1), 1);
        assert_eq!(running.push(&[1e30, -1e30, f32::NEG_INFINITY], 0), 0);
        assert!(!running.nan);
        assert!((running.loss_sum - (2.0 + (-6f64).exp()).ln()).abs() < 1e-12);
    }

    #[test]
    fn nan_and_infinite_logits_are_noticed() {
        for bad in [[f32::NAN, 1.0], [1.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            let (mut running, mut score) = (Running::default(), Score::default());
            running.push(&bad, 0);
            running.push(&[1.0, 0.0], 0); // a later good position does not hide it
            score.add(&running);
            assert_eq!(score.nan, 1, "{bad:?}");
        }
    }

    #[test]
    fn wilson_intervals_match_published_values() {
        // Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (z = 1.959964); and R's binom::binom.wilson.
        for (successes, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let (l, h) = wilson(successes, n, 1.959964);
            assert!((l - low).abs() < 5e-5 && (h - high).abs() < 5e-5, "{successes}/{n}: {l} {h}");
        }
        assert_eq!(wilson(20, 20, 1.96).1, 1.0);
        assert_eq!(wilson(0, 0, 1.96), (0.0, 1.0));
    }
}
