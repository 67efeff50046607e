//! The passes of a probe.

use super::samples::{LONG, Random, WIDTHS, checked, sequences, sorted, tokens};
use super::{Asked, Finding, Probe};
use crate::error::{is_out_of_memory, shortened};
use crate::model::contract::Shapes;
use crate::sweep::SESSION_BYTES;
use crate::sweep::setting::Setting;
use crate::{EvalError, Logits, Model, Result};
use data::{Batch, Collation, ExampleRef, threads};
use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rounding: logits may differ by this much of their scale, see [`differ`]. Other shapes make other orders of summation,
/// which change float32 by far less; quantisation with scales that depend on the input changes them by more.
const TOLERANCE: f32 = 5e-5;
/// Logits this far below the largest are masks.
const MASKED: f32 = 1e4;
/// Passes over more tokens than this are few, because attention over many costs time.
const SHORT: usize = 256;
/// Rows of a batch of random sequences, besides the sweep's own batch size.
const CROWD: usize = 16;
/// Batches of up to this many rows are tried, where so many tokens run at once, and of more where there will be more.
const USUAL_ROWS: usize = 256;
/// The most rows that are tried at once.
const MOST_ROWS: usize = 1024;
/// Passes of a probe that there must be for each session: with fewer, opening it takes longer than it saves.
const PASSES_PER_SESSION: usize = 16;
/// The most tokens of the vocabulary that are tried one by one as the next token.
const MOST_TOKENS: usize = 256;

/// Two outputs that should be the same.
pub(super) struct Difference {
    token: usize,
    tokens: usize,
    by: f32,
}

impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let by = if self.by < 0.01 { format!("{:.0e}", self.by) } else { format!("{:.2}", self.by) };
        write!(f, "the logits of token {} of {} differ by {by}", self.token + 1, self.tokens)
    }
}

/// The first token of which two rows of logits `[seq, vocab]` differ; the shorter one counts.
fn difference(a: &[f32], b: &[f32], vocab: usize) -> Option<Difference> {
    let tokens = || a.chunks_exact(vocab.max(1)).zip(b.chunks_exact(vocab.max(1)));
    let at = tokens().position(|(a, b)| differ(a, b))?;
    let row = at * vocab..(at + 1) * vocab;
    let by = a[row.clone()].iter().zip(&b[row]).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max); // ignores NaN
    Some(Difference { token: at, tokens: a.len().min(b.len()) / vocab.max(1), by })
}

/// Whether the logits of a token, `[vocab]`, are others than rounding explains.
///
/// Neither argmax nor softmax sees what is added to all logits, so they are compared by their distances to the largest, in
/// proportion to these distances and to their median (masks left out): models may have logits of any size.
fn differ(a: &[f32], b: &[f32]) -> bool {
    let same = |x: f32, y: f32| x == y || x.is_nan() && y.is_nan();
    if a.iter().zip(b).all(|(x, y)| same(*x, *y)) {
        return false;
    }
    let largest = |row: &[f32]| row.iter().copied().filter(|x| x.is_finite()).fold(f32::NEG_INFINITY, f32::max);
    let (top_a, top_b) = (largest(a), largest(b));
    let mut distances: Vec<f32> = [(a, top_a), (b, top_b)]
        .iter()
        .flat_map(|(row, top)| row.iter().map(move |x| top - x).filter(|d| *d > 0.0 && *d < MASKED))
        .collect();
    distances.sort_unstable_by(f32::total_cmp);
    let scale = distances.get(distances.len() / 2).copied().unwrap_or(0.0);
    let rounding = 4.0 * f32::EPSILON * top_a.abs().max(top_b.abs());
    let apart = |(x, y): (&f32, &f32)| {
        let (x, y) = (x - top_a, y - top_b);
        let is_close = (x - y).abs() <= TOLERANCE * scale.max(x.abs()).max(y.abs()) + rounding; // false for NaN
        !same(x, y) && !is_close
    };
    a.iter().zip(b).any(apart)
}

/// The rows as a batch. The same draw for all: where positions are random, the same sequence gets the same ones in every
/// batch.
fn collated(setting: &Setting<'_>, rows: &[&[u16]], width: usize) -> std::result::Result<Batch, String> {
    let labels = vec![-1; width];
    let examples = rows.iter().map(|row| {
        let example = ExampleRef { input_ids: row, labels: &labels[..row.len()], length: row.len() as u32 };
        (0, example)
    });
    let collation = Collation { positions: setting.positions, pad_to: Some(width) };
    Batch::collate_rows(examples, &setting.task.vocabulary, &collation).map_err(|e| e.to_string())
}

/// The logits of a pass, or the message of why there are none.
fn expected_width(logits: Result<Logits>, vocab: usize) -> std::result::Result<Logits, String> {
    let logits = logits.map_err(|error| match error {
        EvalError::Run { reason, .. } => shortened(&reason),
        other => other.to_string(),
    })?;
    match logits.vocab() == vocab {
        true => Ok(logits),
        false => Err(format!("its logits are {} wide", logits.vocab())),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of tokens at which the model contradicts the pass over a longer sequence, or does not run.
type Contradiction = (usize, std::result::Result<Difference, String>);

/// Logits of one row `[tokens, vocab]`, or ONNX Runtime's message.
type Outcome = std::result::Result<Rc<Vec<f32>>, String>;

pub(super) struct Prober<'m, 's> {
    model: &'m mut Model,
    setting: &'s Setting<'s>,
    asked: usize,
    /// The tokens of the longest sequence to try, and of each of the `sequences`.
    longest: usize,
    /// The most rows of a batch.
    rows: usize,
    /// The most tokens of a batch of several rows.
    budget: usize,
    /// The tokens of a piece of a long sequence in the sweep, where the model has states.
    piece: Option<usize>,
    sequences: Vec<Vec<u16>>,
    /// See [`tokens`].
    tokens: Vec<u16>,
    /// Outcomes of prefixes of the sequences on their own, by (sequence, tokens).
    alone: HashMap<(usize, usize), Outcome>,
    vocab: usize,
    batches: bool,
    passes: u32,
    stop: &'m mut dyn FnMut() -> bool,
    stopped: bool,
}

impl<'m, 's> Prober<'m, 's> {
    /// `stop` is asked before every pass whether to go on.
    pub fn new(
        model: &'m mut Model,
        setting: &'s Setting<'s>,
        asked: Asked,
        stop: &'m mut dyn FnMut() -> bool,
    ) -> Self {
        let longest = asked.tokens.max(LONG);
        let total = asked.rows.saturating_mul(asked.tokens);
        let budget = setting.budget(setting.course(false, false), asked.max_tokens, total, asked.tokens);
        let vocab = setting.task.vocabulary.len();
        Self {
            model,
            setting,
            asked: asked.tokens,
            longest,
            rows: asked.rows.clamp(USUAL_ROWS, MOST_ROWS),
            budget: budget.tokens.min(budget.work).max(2 * LONG),
            piece: budget.piece,
            sequences: sequences(setting, longest),
            tokens: tokens(setting),
            alone: HashMap::new(),
            vocab,
            batches: false,
            passes: 0,
            stop,
            stopped: false,
        }
    }

    /// The logits of every row, without those of the padding up to `width`.
    fn run(&mut self, rows: &[&[u16]], width: usize) -> std::result::Result<Vec<Rc<Vec<f32>>>, String> {
        self.stopped = self.stopped || (self.stop)();
        if self.stopped {
            return Err("interrupted".into());
        }
        self.passes += 1;
        let batch = collated(self.setting, rows, width)?;
        let logits = expected_width(self.model.run(&batch), self.vocab)?;
        let rows = rows.iter().enumerate();
        Ok(rows.map(|(at, row)| Rc::new(logits.sequence(at)[..row.len() * self.vocab].to_vec())).collect())
    }

    fn one(&mut self, row: &[u16], width: usize) -> Outcome {
        self.run(&[row], width).and_then(|mut rows| rows.pop().ok_or_else(|| "it gave no logits".into()))
    }

    /// Rows of equal length, at once if that works, otherwise one after the other.
    fn many(&mut self, rows: &[Vec<u16>]) -> Vec<Outcome> {
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        if self.batches {
            let views: Vec<&[u16]> = rows.iter().map(Vec::as_slice).collect();
            if let Ok(found) = self.run(&views, width) {
                return found.into_iter().map(Ok).collect();
            }
        }
        rows.iter().map(|row| self.one(row, width)).collect()
    }

    /// The first `tokens` tokens of a sequence, alone and without padding.
    fn alone(&mut self, sequence: usize, tokens: usize) -> Outcome {
        if let Some(found) = self.alone.get(&(sequence, tokens)) {
            return found.clone();
        }
        let row = self.sequences[sequence][..tokens].to_vec();
        let found = self.one(&row, tokens);
        self.alone.insert((sequence, tokens), found.clone());
        found
    }

    /// Tests every property in turn.
    ///
    /// # Errors
    /// It was stopped.
    pub fn probe(mut self) -> Result<Probe> {
        let probe = self.findings();
        if self.stopped { Err(EvalError::Interrupted) } else { Ok(probe) }
    }

    fn findings(&mut self) -> Probe {
        let widths = self.widths();
        // The point where memory runs out depends on the machine, and is found when it happens.
        let full = |found: &Outcome| found.as_ref().is_err_and(|why| is_out_of_memory(why));
        let runs = widths.iter().map(|width| (*width, self.alone(0, *width)));
        let runs: Vec<(usize, Outcome)> = runs.take_while(|(_, found)| !full(found)).collect();
        // As many logits as there are tokens are a lot to keep.
        let kept = runs.iter().rev().find(|(_, found)| found.is_ok()).map_or(0, |(width, _)| *width);
        self.alone.retain(|(_, tokens), _| *tokens <= LONG || *tokens == kept);
        let good: Vec<usize> = runs.iter().filter(|(_, found)| found.is_ok()).map(|(width, _)| *width).collect();
        let failed = runs.iter().find_map(|(width, found)| Some((*width, found.as_ref().err()?.clone())));
        let Some(&last) = good.last() else {
            let why = failed.map_or_else(|| "there is no sequence to try".to_owned(), |(_, why)| why);
            return Probe { passes: self.passes, ..Probe::untested(&why) };
        };
        let regular = failed.as_ref().is_none_or(|(width, _)| *width > last);
        let mut probe = Probe { regular, tokens: self.longest, ..Probe::trusted() };
        probe.limit = match failed {
            Some((width, why)) if probe.regular => Some(self.limit(last, width, why)),
            _ => None,
        };
        let top = probe.limit.as_ref().map_or(last, |(tokens, _)| *tokens);
        // A model may know fewer tokens than the task has.
        let smallest = good[0];
        let middle = good.iter().rfind(|width| **width <= SHORT).copied().unwrap_or(smallest);
        for sequence in (1..self.sequences.len()).rev() {
            if self.alone(sequence, middle).is_err() || self.alone(sequence, smallest).is_err() {
                self.sequences.remove(sequence);
                self.alone.retain(|(of, _), _| *of < sequence);
            }
        }
        // The shortest, some of the middle, and not too long ones
        let few: Vec<usize> =
            [2, 8, 34, 65, 129].iter().filter_map(|w| good.iter().find(|g| *g >= w)).copied().collect();
        let few: Vec<usize> = [&few[..], &[smallest, top][..]].concat();
        let few = sorted(few);

        probe.repeatable = self.repeatable(&few);
        probe.batch = self.batch(&few);
        self.batches = probe.batch.holds();
        probe.padding = self.padding(&few, top);
        probe.causal = match good.len() {
            _ if !self.setting.positions.augmentation.is_prefix_stable() => {
                Finding::Untested("its positions depend on the length".into())
            }
            1 => Finding::Untested(format!("it runs on {last} tokens only")),
            _ if !probe.regular => Finding::Untested("it runs at some lengths only".into()),
            _ => self.causal(&good, &few, [middle, top]),
        };
        if probe.causal.holds() {
            match self.prefixes(&good, top) {
                Ok(finding) => probe.causal = finding,
                Err((width, why)) => {
                    probe.causal = Finding::Untested(format!("it fails on {width} tokens: {why}"));
                    probe.regular = false;
                }
            }
        }
        probe.pieces = self.pieces(top);
        probe.passes = self.passes;
        probe
    }

    /// The numbers of tokens to try: as many as a test may have, and as the model's positions and memory allow.
    fn widths(&self) -> Vec<usize> {
        if let Some(tokens) = self.setting.fixed_tokens {
            return vec![tokens];
        }
        let shortest = self.setting.task.family.track(0, 0, 1).input_ids.len().max(1);
        let trained = self.setting.task.family.track(0, 0, self.setting.train_max_length).input_ids.len();
        let doubles = std::iter::successors(Some(2 * LONG), |width| width.checked_mul(2));
        let beyond = doubles.take_while(|width| *width < self.longest).chain([self.longest]);
        let widths = WIDTHS.into_iter().chain([trained.saturating_sub(1), trained]).chain(beyond);
        let possible = widths.filter(|width| {
            let width = *width;
            (shortest..=self.longest).contains(&width) && {
                let labels = vec![-1; width];
                let input_ids = &self.sequences[0][..width];
                let example = ExampleRef { input_ids, labels: &labels, length: width as u32 };
                self.setting.obstacle(example).is_none()
            }
        });
        sorted(possible.collect())
    }

    /// The most tokens that run, more than `low` and fewer than `high`, which does not run for this reason.
    fn limit(&mut self, mut low: usize, mut high: usize, mut why: String) -> (usize, String) {
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.alone(0, middle) {
                Ok(_) => low = middle,
                Err(reason) => (high, why) = (middle, reason),
            }
        }
        (low, why)
    }

    fn repeatable(&mut self, few: &[usize]) -> Finding {
        let mut finding = Finding::Holds;
        for &tokens in few.iter().take(4) {
            for sequence in 0..self.sequences.len() {
                let row = self.sequences[sequence][..tokens].to_vec();
                if let (Ok(once), Ok(again)) = (self.alone(sequence, tokens), self.one(&row, tokens)) {
                    finding.note(difference(&once, &again, self.vocab), || "from one run to the next".into());
                }
            }
        }
        finding
    }

    /// Sequences of equal length together, first and last, against each alone.
    fn batch(&mut self, few: &[usize]) -> Finding {
        let mut finding = Finding::Untested("it was tried at no length".into());
        for &tokens in few {
            let mut rows: Vec<(Option<usize>, Vec<u16>)> = Vec::new();
            for sequence in 0..self.sequences.len() {
                rows.push((Some(sequence), self.sequences[sequence][..tokens].to_vec()));
            }
            let reversed: Vec<_> = rows.iter().rev().cloned().collect();
            let mut crowd = rows.clone();
            let mut random = Random(tokens as u64);
            while crowd.len() < CROWD && tokens <= 64 {
                let row = rows[crowd.len() % rows.len()].1.iter().map(|_| random.of(&self.tokens)).collect();
                crowd.insert(0, (None, row));
            }
            let pair = vec![rows[0].clone(), reversed[0].clone()];
            // As many as the sweep takes at once, at a short, a middle and a great length
            let most = if [8, 34, 129].contains(&tokens) { (self.budget / tokens).min(self.rows) } else { 0 };
            let full: Vec<_> = (0..most).map(|row| rows[row % rows.len()].clone()).collect();
            let batches = if tokens <= SHORT { vec![pair, rows, reversed, crowd, full] } else { vec![pair] };
            for batch in batches {
                if batch.len() < 2 || batch.len() * tokens > self.budget {
                    continue;
                }
                let views: Vec<&[u16]> = batch.iter().map(|(_, row)| row.as_slice()).collect();
                let found = match self.run(&views, tokens) {
                    Ok(found) => found,
                    Err(why) => return Finding::Untested(format!("{} sequences at once fail: {why}", views.len())),
                };
                if matches!(finding, Finding::Untested(_)) {
                    finding = Finding::Holds;
                }
                for ((sequence, _), found) in batch.iter().zip(found) {
                    if let Some(Ok(alone)) = sequence.map(|sequence| self.alone(sequence, tokens)) {
                        let rows = batch.len();
                        finding.note(difference(&alone, &found, self.vocab), || format!("in a batch of {rows}"));
                    }
                }
            }
        }
        finding
    }

    /// Sequences padded a little and a lot, alone and beside a longer one.
    fn padding(&mut self, few: &[usize], top: usize) -> Finding {
        let mut finding = Finding::Untested("it runs at one length only".into());
        for &tokens in few {
            let widths = [tokens + 1, tokens + 7, 2 * tokens, 65, top];
            for width in sorted(widths.into_iter().filter(|width| (tokens + 1..=top).contains(width)).collect()) {
                // Far padding once for the shortest and once for a longer one
                let far = width > SHORT;
                if far && tokens != few[0] && tokens != few[few.len() / 2] {
                    continue;
                }
                for sequence in 0..if far { 1 } else { self.sequences.len() } {
                    let row = self.sequences[sequence][..tokens].to_vec();
                    let Ok(alone) = self.alone(sequence, tokens) else { continue };
                    match self.one(&row, width) {
                        Err(why) => {
                            return Finding::Untested(format!("padding {tokens} tokens to {width} fails: {why}"));
                        }
                        Ok(found) => {
                            if matches!(finding, Finding::Untested(_)) {
                                finding = Finding::Holds;
                            }
                            finding.note(difference(&alone, &found, self.vocab), || format!("padded to {width}"));
                        }
                    }
                    if self.batches && !far {
                        let other = self.sequences[(sequence + 1) % self.sequences.len()][..width].to_vec();
                        match self.run(&[&other, &row], width) {
                            Err(why) => return Finding::Untested(format!("a padded batch fails: {why}")),
                            Ok(found) => finding.note(difference(&alone, &found[1], self.vocab), || {
                                format!("padded to {width} beside another sequence")
                            }),
                        }
                    }
                }
            }
        }
        finding
    }

    /// Prefixes of sequences, alone and with several continuations.
    fn causal(&mut self, good: &[usize], few: &[usize], [middle, top]: [usize; 2]) -> Finding {
        let mut finding = Finding::Holds;
        for sequence in 0..self.sequences.len() {
            let (whole, lengths) = if sequence == 0 { (top, good) } else { (middle, few) };
            let Ok(all) = self.alone(sequence, whole) else { continue };
            for &tokens in lengths.iter().filter(|tokens| **tokens < whole) {
                if let Ok(alone) = self.alone(sequence, tokens) {
                    let more = whole - tokens;
                    finding.note(difference(&alone, &all, self.vocab), || format!("followed by {more} more"));
                }
            }
        }
        // Other continuations of the same length: here only the tokens themselves can matter.
        for &tokens in few {
            let cuts = match tokens > SHORT {
                true => vec![1, tokens / 2, tokens - 1],
                false => vec![1, tokens / 4, tokens / 2, tokens - tokens / 4, tokens - 1],
            };
            for cut in sorted(cuts.into_iter().filter(|cut| (1..tokens).contains(cut)).collect()) {
                for sequence in 0..self.sequences.len().min(if tokens > SHORT { 1 } else { 4 }) {
                    let Ok(base) = self.alone(sequence, tokens) else { continue };
                    let known = &base[..cut * self.vocab];
                    for kind in 0..if tokens > SHORT { 1 } else { 2 } {
                        let mut random = Random((tokens * 31 + cut) as u64);
                        let mut row = self.sequences[sequence][..tokens].to_vec();
                        for token in &mut row[cut..] {
                            let at = self.tokens.iter().position(|known| known == token).unwrap_or(0);
                            *token = match kind {
                                0 => random.of(&self.tokens),
                                _ => self.tokens.get(at + 1).or(self.tokens.first()).copied().unwrap_or(0),
                            };
                        }
                        if let Ok(found) = self.one(&row, tokens) {
                            finding.note(difference(known, &found, self.vocab), || {
                                format!("where the tokens from {} on are others", cut + 1)
                            });
                        }
                    }
                }
            }
        }
        finding.note(self.next_token(top), || "by what comes after it".into());
        finding
    }

    /// Prefixes of the longest sequence at as many lengths as this model's size allows, against the pass over all of
    /// it. A dependence on the width alone, or only at some place, shows at a few of them or at none.
    ///
    /// # Errors
    /// A number of tokens at which it does not run, though it does at more, and why.
    fn prefixes(&mut self, good: &[usize], top: usize) -> std::result::Result<Finding, (usize, String)> {
        let mut finding = Finding::Holds;
        let Ok(all) = self.alone(0, top) else { return Ok(finding) };
        let first = good.first().copied().unwrap_or(1);
        let asked = self.asked.min(top);
        let widths = checked(asked, self.model.bytes()).filter(|tokens| *tokens >= first && !good.contains(tokens));
        // Of longer ones, one may need all the memory there is.
        let (near, far): (Vec<usize>, Vec<usize>) = widths.partition(|tokens| *tokens <= LONG);
        let (mut contradiction, full) = self.side_by_side(&near, &all);
        for tokens in sorted([full, far].concat()) {
            if contradiction.is_some() {
                break;
            }
            let row = self.sequences[0][..tokens].to_vec();
            match self.one(&row, tokens) {
                Ok(alone) => contradiction = difference(&alone, &all, self.vocab).map(|found| (tokens, Ok(found))),
                Err(why) if is_out_of_memory(&why) => {}
                Err(why) => contradiction = Some((tokens, Err(why))),
            }
        }
        match contradiction {
            Some((tokens, Err(why))) => return Err((tokens, why)),
            Some((tokens, Ok(found))) => finding.note(Some(found), || format!("followed by {} more", top - tokens)),
            None => {}
        }
        Ok(finding)
    }

    /// Runs the first sequence at each of `widths` on its own, several of them at a time, and compares it with `all`: the
    /// first width that contradicts, in their order, with the difference or the message; and those that ran out of memory,
    /// which they may not do one at a time.
    fn side_by_side(&mut self, widths: &[usize], all: &[f32]) -> (Option<Contradiction>, Vec<usize>) {
        let (setting, vocab, row) = (self.setting, self.vocab, &self.sequences[0]);
        let most = match self.model.provider().is_cpu() {
            true => self.model.threads().min(SESSION_BYTES / self.model.bytes().max(1)),
            false => 1,
        };
        let count = most.min(widths.len() / PASSES_PER_SESSION).max(1);
        let longest = widths.last().copied().unwrap_or(1);
        let shapes = Shapes { rows: 1, tokens: longest, interface: self.model.interface().clone() };
        let Ok(runners) = self.model.runners(count, &shapes) else { return (None, widths.to_vec()) };
        let (count, runners) = (runners.len(), Mutex::new(runners));
        let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(widths.len())); // none from `end` on matters
        let found = Mutex::new((None::<Contradiction>, vec![]));
        let stopped = threads::share_until(count, self.stop, |stop| {
            let Some(mut runner) = locked(&runners).pop() else { return };
            loop {
                let at = next.fetch_add(1, Relaxed);
                if at >= end.load(Relaxed) || stop() {
                    return;
                }
                let tokens = widths[at];
                let logits = collated(setting, &[&row[..tokens]], tokens)
                    .and_then(|batch| expected_width(runner.run(&batch), vocab));
                let contradiction = match logits {
                    Ok(logits) => match difference(logits.sequence(0), all, vocab) {
                        Some(difference) => Ok(difference),
                        None => continue,
                    },
                    Err(why) if is_out_of_memory(&why) => {
                        locked(&found).1.push(tokens);
                        continue;
                    }
                    Err(why) => Err(why),
                };
                let mut found = locked(&found);
                if at < end.fetch_min(at, Relaxed) {
                    found.0 = Some((tokens, contradiction));
                }
            }
        });
        self.stopped |= stopped;
        self.passes += (end.into_inner() + 1).min(widths.len()) as u32;
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every token of the vocabulary in turn as the next token.
    fn next_token(&mut self, top: usize) -> Option<Difference> {
        let known = 8.min(top / 2);
        let step = self.tokens.len().div_ceil(MOST_TOKENS).max(1);
        let others: Vec<u16> = self.tokens.iter().copied().step_by(step).collect();
        for sequence in 0..self.sequences.len().min(2) {
            let beginning = self.sequences[sequence][..known].to_vec();
            for chunk in others.chunks(64) {
                let row = |token: &u16| [&beginning[..], &vec![*token; known]].concat();
                let rows: Vec<Vec<u16>> = chunk.iter().map(row).collect();
                let found = self.many(&rows);
                let first = found.iter().flatten().next()?.clone();
                let first = &first[..known * self.vocab];
                let different = found.iter().flatten().find_map(|found| difference(first, found, self.vocab));
                if different.is_some() {
                    return different;
                }
            }
        }
        None
    }

    /// Fed piece by piece, state by state.
    fn pieces(&mut self, top: usize) -> Finding {
        if !self.model.is_stateful() {
            return Finding::Holds;
        }
        let mut finding = Finding::Holds;
        let few = 65.min(top);
        let short = (0..self.sequences.len()).map(|sequence| (sequence, few, vec![7, 64]));
        // As the sweep does it, to the end: states may lose their precision, or only seem to be handed on.
        let long = self.piece.filter(|piece| *piece < top).map(|piece| (0, top, vec![piece]));
        for (sequence, tokens, pieces) in short.chain(long).collect::<Vec<_>>() {
            let Ok(whole) = self.alone(sequence, tokens) else { continue };
            let row = self.sequences[sequence][..tokens].to_vec();
            let labels = vec![-1; tokens];
            let example = ExampleRef { input_ids: &row, labels: &labels, length: tokens as u32 };
            let collation = Collation { positions: self.setting.positions, pad_to: None };
            for piece in pieces {
                self.passes += tokens.div_ceil(piece) as u32;
                let batch = Batch::collate(&[example], &self.setting.task.vocabulary, &collation);
                let found = batch.map_err(EvalError::from).and_then(|batch| self.model.run_pieces(&batch, piece));
                match found {
                    Ok(found) => {
                        finding.note(difference(&whole, &found, self.vocab), || format!("in pieces of {piece}"))
                    }
                    Err(error) => return Finding::Untested(error.to_string()),
                }
            }
        }
        finding
    }
}
