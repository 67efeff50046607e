//! What a sweep of this task with this model has to respect.

use crate::execute::Work;
use crate::model::Interface;
use crate::plan::Budget;
use crate::{EvalError, LengthResult, Model, Plan, Provider, Result, Score, memory};
use data::{Augmentation, Batch, Collation, ExampleRef, PositionScheme, Task};
use ort::value::TensorElementType;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Rows × tokens² of one batch of a model with attention; 67 MB per matrix of 8 heads.
const ATTENTION_PAIRS: usize = 1 << 21;
/// What attention holds for each pair of tokens: scores, mask and weights of 8 heads in float32.
const ATTENTION_BYTES: u64 = 3 * 8 * 4;

/// What model, task and options come to.
pub(crate) struct Setting<'a> {
    pub path: PathBuf,
    pub task: &'a Task,
    pub interface: Arc<Interface>,
    pub provider: Provider,
    pub positions: PositionScheme,
    /// Rows of a position table.
    pub table: Option<u32>,
    /// Longer sequences do not fit into memory, because attention compares all pairs of tokens.
    pub attention_limit: Option<usize>,
    pub quadratic: bool,
    pub train_max_length: u32,
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
            None => model.run_ids(&[0], 1, 1)?.vocab(),
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
        let positions = PositionScheme {
            augmentation,
            max_position_embeddings: info.position_limit.map_or(drawn_below, |table| drawn_below.min(table as usize)),
            seed,
            draw: 0,
        };
        let quadratic = interface.attention_mask || info.arch.as_deref() == Some("transformer");
        let free = match model.provider() {
            Provider::Auto | Provider::Cpu if quadratic => memory::available(),
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
            quadratic,
            train_max_length: info.train_max_length.unwrap_or_else(|| task.family.train_max_length()),
        })
    }
}

impl Setting<'_> {
    /// Positions that depend on the length, or are drawn anew for every test, make prefixes of one pass no stand-ins.
    pub fn plan(&self, exhaustive: bool) -> Plan {
        match self.positions.augmentation.is_prefix_stable() && !exhaustive {
            true => Plan::SinglePass,
            false => Plan::Exhaustive,
        }
    }

    /// `total` tokens are to run, in sequences of at most `longest` main tokens.
    pub fn budget(&self, max_tokens: Option<usize>, total: usize, longest: usize) -> Budget {
        let cpu = matches!(self.provider, Provider::Auto | Provider::Cpu);
        let stateful = self.interface.is_stateful();
        // On a CPU the best batches are those whose intermediate results stay in a core's own cache, but for models that
        // first make a filter of the batch's length.
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
            // TensorRT reserves memory for the most rows times the most tokens.
            rows: if self.provider == Provider::TensorRt { (tokens / widest).max(1) } else { usize::MAX },
        }
    }

    pub fn work<'w>(
        &'w self,
        budget: Budget,
        lengths: &'w [u32],
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
            room: AtomicUsize::new(usize::MAX),
        }
    }

    /// Why the model cannot run this example, if it cannot.
    pub fn obstacle(&self, example: ExampleRef<'_>) -> Option<String> {
        let tokens = example.input_ids.len();
        if self.attention_limit.is_some_and(|limit| tokens > limit) {
            let gib = ((tokens as u64).pow(2) * ATTENTION_BYTES) >> 30;
            return Some(format!("attention over {tokens} tokens takes about {gib} GiB of memory, more than is free"));
        }
        let PositionScheme { augmentation, max_position_embeddings, .. } = self.positions;
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
        LengthResult { length, in_distribution: length <= self.train_max_length, plan, outcome }
    }
}
