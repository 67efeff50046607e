//! Resolved settings and limits of a sweep of a task with a model.

use crate::model::contract::Interface;
use crate::sweep::memory;
use crate::sweep::plan::Budget;
use crate::sweep::work::{Learned, Work};
use crate::{EvalError, LengthResult, Model, Plan, Probe, Provider, Result, Score};
use data::{Augmentation, Batch, Collation, ExampleRef, PositionSampling, Task};
use ort::value::TensorElementType;
use std::path::PathBuf;
use std::sync::Arc;

/// Rows × tokens² of one batch of a model with attention; 67 MB per matrix of 8 heads.
const ATTENTION_PAIRS: usize = 1 << 21;
/// Bytes that attention needs for each pair of tokens: scores, mask and weights of 8 heads in float32.
const ATTENTION_BYTES: u64 = 3 * 8 * 4;

/// Resolved settings of a sweep.
pub(crate) struct Setting<'a> {
    pub path: PathBuf,
    pub task: &'a Task,
    pub interface: Arc<Interface>,
    pub provider: Provider,
    pub positions: PositionSampling,
    /// Rows of a position table.
    pub table: Option<u32>,
    /// Longer sequences do not fit into memory, because attention compares all pairs of tokens.
    pub attention_limit: Option<usize>,
    /// How many bytes are free, where that limits the length.
    pub free: u64,
    pub quadratic: bool,
    pub train_max_length: u32,
    /// The number of tokens of a sequence, where the file fixes it.
    pub fixed_tokens: Option<usize>,
    /// The findings about the model; `None` where it has every property.
    pub probe: Option<Probe>,
}

/// How sequences may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Course {
    pub plan: Plan,
    /// Only rows of equal length share a batch.
    pub equal: bool,
    /// No rows share a batch.
    pub alone: bool,
    /// Long sequences may be fed piece by piece.
    pub pieces: bool,
}

impl<'a> Setting<'a> {
    /// Checks that model and task belong together. `augmentation` overrides the model's own; `seed` is that of its
    /// random positions.
    pub fn new(model: &mut Model, task: &'a Task, augmentation: Option<Augmentation>, seed: u64) -> Result<Self> {
        let mismatch = |model: &Model, reason| {
            Err(EvalError::TaskMismatch { path: model.path().into(), task: task.name.clone(), reason })
        };
        let wanted = task.vocabulary.tokens();
        if let Some(found) = model.info().vocab.as_deref().filter(|found| *found != wanted) {
            let reason = match wanted.iter().zip(found).position(|(w, f)| w != f) {
                Some(id) => format!("token {id} is `{}` for the model and `{}` in the task", found[id], wanted[id]),
                None => format!("the model's vocabulary has {} tokens, the task's {}", found.len(), wanted.len()),
            };
            return mismatch(model, reason);
        }
        let width = match model.interface().vocab {
            Some(width) => width,
            None => vocabulary_width(model, task)?,
        };
        if width != wanted.len() {
            let reason = format!("the model's logits are {width} wide, but the task has {} tokens", wanted.len());
            return mismatch(model, reason);
        }

        let info = model.info();
        let named = info.augmentation.as_deref().map(str::parse::<Augmentation>).transpose()?;
        let augmentation = augmentation.or(named).unwrap_or_default();
        let interface = model.interface().clone();
        match interface.position_ids {
            Some(TensorElementType::Float32) if !augmentation.is_scalar() => {
                return Err(EvalError::Positions { path: model.path().into(), kind: "float", augmentation });
            }
            Some(TensorElementType::Int64) if augmentation.is_scalar() => {
                return Err(EvalError::Positions { path: model.path().into(), kind: "int64", augmentation });
            }
            _ => {}
        }
        let drawn_below = info.max_position_embeddings.map_or(task.max_position_embeddings, |p| p as usize);
        let positions = PositionSampling {
            augmentation,
            max_position_embeddings: info.position_limit.map_or(drawn_below, |table| drawn_below.min(table as usize)),
            seed,
            draw: 0,
        };
        let quadratic = interface.attention_mask || info.arch.as_deref() == Some("transformer");
        let free = match model.provider() {
            provider if provider.is_cpu() && quadratic => memory::available(),
            _ => None,
        };
        Ok(Self {
            path: model.path().into(),
            task,
            interface,
            provider: model.provider(),
            positions,
            table: info.position_limit.filter(|_| !augmentation.is_scalar()),
            attention_limit: free.map(|bytes| (bytes / ATTENTION_BYTES).isqrt() as usize),
            free: free.unwrap_or_default(),
            quadratic,
            train_max_length: info.train_max_length.unwrap_or_else(|| task.family.train_max_length()),
            fixed_tokens: model.fixed_tokens(),
            probe: None,
        })
    }
}

impl Setting<'_> {
    /// One pass cannot answer for its prefixes where positions depend on the length or are drawn again for every test,
    /// or where the model is not causal. `whole` says that there are no prefixes to answer from one pass anyway, and
    /// `exhaustive` that each length is to run on its own regardless of the model.
    pub fn course(&self, whole: bool, exhaustive: bool) -> Course {
        let by_probe = self.probe.as_ref().map_or(Plan::SinglePass, Probe::plan);
        let plan = match by_probe {
            Plan::OneByOne => Plan::OneByOne,
            _ if exhaustive => Plan::Exhaustive,
            Plan::SinglePass if whole || !self.positions.augmentation.is_prefix_stable() => Plan::Exhaustive,
            other => other,
        };
        let known = |property: fn(&Probe) -> bool| self.probe.as_ref().is_none_or(property);
        // Where positions depend on the length, causality cannot be tested, and nothing relies on it.
        let causal = known(|probe| probe.causal.holds()) || !self.positions.augmentation.is_prefix_stable();
        Course {
            plan,
            equal: exhaustive || !causal || !known(|probe| probe.padding.holds()),
            alone: !known(Probe::shares_batches),
            // A model from elsewhere is not trusted with its states where nothing about it is to be trusted.
            pieces: causal
                && (self.probe.is_none() || !exhaustive)
                && known(|probe| probe.pieces.holds() && probe.repeatable.holds()),
        }
    }

    /// `total` tokens are to run, in sequences of at most `longest` main tokens.
    pub fn budget(&self, course: Course, max_tokens: Option<usize>, total: usize, longest: usize) -> Budget {
        let cpu = self.provider.is_cpu();
        let stateful = self.interface.is_stateful() && course.pieces;
        // On a CPU the best batches are those whose intermediate results stay in a core's own cache, but for models
        // that first make a filter of the batch's length.
        let tokens = max_tokens.unwrap_or(match (cpu, stateful || self.quadratic) {
            (true, true) => 2048,
            (true, false) => 16_384,
            (false, _) => 65_536,
        });
        let piece = stateful.then(|| (tokens / 16).max(256));
        let widest = piece.map_or(longest, |piece| longest.min(piece)).max(1);
        Budget {
            tokens,
            work: if cpu { (total / 8).max(4096) } else { usize::MAX },
            piece,
            square: self.quadratic.then_some(ATTENTION_PAIRS),
            rows: match self.provider {
                _ if course.alone => 1,
                // It reserves memory for the most rows times the most tokens.
                Provider::TensorRt => (tokens / widest).max(1),
                _ => usize::MAX,
            },
            equal: course.equal,
        }
    }

    pub fn work<'w>(
        &'w self,
        budget: Budget,
        lengths: &'w [u32],
        sizes: Vec<usize>,
        seen: Option<u64>,
        keep_predictions: bool,
    ) -> Work<'w> {
        Work {
            path: &self.path,
            interface: &self.interface,
            provider: self.provider,
            vocabulary: &self.task.vocabulary,
            positions: self.positions,
            budget,
            lengths,
            seen,
            keep_predictions,
            sizes,
            regular: self.probe.as_ref().is_none_or(|probe| probe.regular),
            learned: Learned::default(),
        }
    }

    /// Why the model cannot run this example, if it cannot.
    pub fn obstacle(&self, example: ExampleRef<'_>) -> Option<String> {
        let tokens = example.input_ids.len();
        if let Some(why) = self.refusal(tokens) {
            return Some(why);
        }
        if self.attention_limit.is_some_and(|limit| tokens > limit) {
            let needed = memory::human((tokens as u64).pow(2) * ATTENTION_BYTES);
            return Some(format!("attention needs {needed}, {} free", memory::human(self.free)));
        }
        let PositionSampling { augmentation, max_position_embeddings, .. } = self.positions;
        if !augmentation.is_random() && self.table.is_none() {
            return None;
        }
        let collation = Collation { positions: self.positions, pad_to: None };
        let Ok(batch) = Batch::collate(&[example], &self.task.vocabulary, &collation) else {
            let reason =
                format!("past the {max_position_embeddings} positions that `{}` draws from", augmentation.name());
            return Some(reason);
        };
        let last = batch.position_ids.as_integers().into_iter().flatten().max().copied();
        let table = self.table.filter(|table| last.is_some_and(|last| last >= i64::from(*table)))?;
        Some(format!("past the model's position table ({table} positions)"))
    }

    /// Why the model cannot run any sequence of so many tokens, if that is known beforehand.
    pub fn refusal(&self, tokens: usize) -> Option<String> {
        if let Some(fixed) = self.fixed_tokens.filter(|fixed| *fixed != tokens) {
            return Some(format!("the model takes sequences of {fixed} tokens only"));
        }
        let (_, why) = self.probe.as_ref()?.limit.as_ref().filter(|(most, _)| tokens > *most)?;
        Some(why.clone())
    }

    /// Whether a status is one of [`Self::refusal`].
    pub fn is_refusal(&self, status: &str) -> bool {
        let limit = self.probe.as_ref().and_then(|probe| probe.limit.as_ref()).map(|(most, _)| most + 1);
        let refused = [limit, self.fixed_tokens.map(|fixed| fixed + 1)];
        refused.into_iter().flatten().any(|tokens| self.refusal(tokens).as_deref() == Some(status))
    }

    pub fn result(
        &self,
        length: u32,
        plan: Plan,
        score: &Score,
        failure: Option<String>,
        obstacle: impl FnOnce() -> Option<String>,
    ) -> LengthResult {
        let outcome = match (score, failure) {
            (_, Some(failure)) => Err(failure),
            (Score { n_sequences: 0, .. }, _) => Err(obstacle().unwrap_or_else(|| "no labelled position".into())),
            (Score { nan: 0, .. }, _) => Ok(*score),
            (Score { nan, n_sequences, .. }, _) => Err(format!("NaN logits in {nan} of {n_sequences} sequences")),
        };
        let chance = self.task.family.chance(length);
        LengthResult { length, in_distribution: length <= self.train_max_length, plan, chance, outcome }
    }
}

/// The width of the logits where the file does not state it: found at the first number of tokens that runs.
fn vocabulary_width(model: &mut Model, task: &Task) -> Result<usize> {
    let trained = task.family.track(0, 0, task.family.train_max_length()).input_ids.len();
    let widths =
        model.fixed_tokens().map_or_else(|| vec![1, 2, 3, 8, trained.max(1) - 1, trained, 64, 128, 512], |n| vec![n]);
    let mut found = model.run_ids(&vec![0; widths[0]], 1, widths[0]);
    for &tokens in &widths[1..] {
        if found.is_ok() {
            break;
        }
        found = model.run_ids(&vec![0; tokens], 1, tokens);
    }
    Ok(found?.vocab())
}
