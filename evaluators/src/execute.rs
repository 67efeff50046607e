//! Running batches: one thread builds inputs, one thread per session runs them, and the caller gets what they scored in
//! the order of the plan.

use crate::model::Interface;
use crate::plan::{Budget, Item, Job};
use crate::scoring::{LOSSES, PREDICTIONS, TARGETS};
use crate::{EvalError, Prediction, Provider, Result, Running, Score};
use data::{Batch, Collation, ExampleRef, PositionIds, PositionScheme, Vocabulary};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::value::{DynValue, Tensor, TensorElementType};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// What all batches of a sweep have in common.
pub(crate) struct Work<'a> {
    pub path: &'a Path,
    pub interface: &'a Arc<Interface>,
    pub provider: Provider,
    pub vocabulary: &'a Vocabulary,
    pub positions: PositionScheme,
    pub budget: Budget,
    pub lengths: &'a [u32],
    /// See [`Running::with_seen`].
    pub seen: Option<u64>,
    pub keep_predictions: bool,
    /// Batches of more tokens than this ran out of memory.
    pub room: AtomicUsize,
}

/// What one batch scored.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Tokens that ran, without padding.
    pub tokens: u64,
    /// Time in ONNX Runtime, divided by the number of sessions side by side.
    pub busy: Duration,
    /// Per slot of the list of lengths; slots ascend.
    pub scores: Vec<(usize, Score)>,
    /// Slots that could not be scored, and why.
    pub failures: Vec<(usize, String)>,
    /// Per sequence, in the order of the batch: its index, its labelled positions and its summed loss.
    pub losses: Vec<(usize, u64, f64)>,
    pub predictions: Vec<Prediction>,
}

impl Outcome {
    fn add(&mut self, slot: usize, running: &Running) {
        let at = match self.scores.binary_search_by_key(&slot, |(s, _)| *s) {
            Ok(at) => at,
            Err(at) => {
                self.scores.insert(at, (slot, Score::default()));
                at
            }
        };
        self.scores[at].1.add(running);
    }

    fn join(&mut self, mut other: Self) {
        self.tokens += other.tokens;
        self.busy += other.busy;
        for (slot, score) in other.scores {
            match self.scores.binary_search_by_key(&slot, |(s, _)| *s) {
                Ok(at) => self.scores[at].1.merge(&score),
                Err(at) => self.scores.insert(at, (slot, score)),
            }
        }
        self.failures.append(&mut other.failures);
        self.losses.append(&mut other.losses);
        self.predictions.append(&mut other.predictions);
    }
}

/// Runs every batch of `batches` on one of `sessions` and hands what came out to `sink`, in order.
///
/// # Errors
/// A pass fails for another reason than memory, or the sink fails; the rest is then not run.
pub(crate) fn execute(
    work: &Work<'_>,
    sessions: Vec<&mut Session>,
    batches: impl Iterator<Item = Vec<Item>> + Send,
    build: impl Fn(Item) -> Job + Sync,
    mut sink: impl FnMut(Outcome) -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let side_by_side = sessions.len() as u32;
    let (ready, prepared) = mpsc::sync_channel(2 * sessions.len());
    let (report, outcomes) = mpsc::channel();
    let prepared = Mutex::new(prepared);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ready = ready; // closed when this thread ends, which ends the others
            for (number, batch) in batches.enumerate() {
                let jobs: Vec<Job> = batch.into_iter().map(&build).collect();
                let inputs = work.prepare(&jobs);
                if stop.load(Relaxed) || ready.send((number, jobs, inputs)).is_err() {
                    break;
                }
            }
        });
        for session in sessions {
            let (report, prepared, stop) = (report.clone(), &prepared, &stop);
            scope.spawn(move || {
                let next = || prepared.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok((number, jobs, inputs)) = next() {
                    if stop.load(Relaxed) {
                        continue; // empties the channel, so that the first thread is not stuck
                    }
                    let outcome = inputs.and_then(|inputs| work.run(session, &jobs, inputs));
                    let _ = report.send((number, outcome)); // the receiver outlives this thread
                }
            });
        }
        drop(report);
        let (mut early, mut wanted, mut failure) = (BTreeMap::new(), 0, None);
        for (number, outcome) in outcomes {
            early.insert(number, outcome);
            while let Some(outcome) = early.remove(&wanted) {
                wanted += 1;
                if failure.is_none() {
                    let share = |outcome: Outcome| Outcome { busy: outcome.busy / side_by_side, ..outcome };
                    failure = outcome.map(share).and_then(&mut sink).err();
                    stop.store(failure.is_some(), Relaxed);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

/// A batch as ONNX Runtime takes it.
pub(crate) struct Inputs {
    rows: usize,
    seq: usize,
    values: Vec<(&'static str, DynValue)>,
}

impl Work<'_> {
    /// The inputs of a whole batch, or of its first piece.
    fn prepare(&self, jobs: &[Job]) -> Result<Inputs> {
        self.inputs(jobs, 0, self.piece(jobs))
    }

    /// Tokens that are fed at once.
    fn piece(&self, jobs: &[Job]) -> usize {
        let longest = jobs.iter().map(Job::tokens).max().unwrap_or(0);
        self.budget.piece.map_or(longest, |piece| piece.min(longest))
    }

    /// The tokens `start .. start + width` of every job, padded where a job has fewer.
    fn inputs(&self, jobs: &[Job], start: usize, width: usize) -> Result<Inputs> {
        let rows = jobs.iter().map(|job| {
            let range = start.min(job.tokens())..(start + width).min(job.tokens());
            let Job { draw, example, .. } = job;
            let labels = &example.labels[range.clone()];
            (*draw, ExampleRef { input_ids: &example.input_ids[range], labels, length: example.length })
        });
        let collation = Collation { positions: self.positions, pad_to: Some(width) };
        let batch = Batch::collate_rows(rows, self.vocabulary, &collation)?;
        let shape = [batch.batch, width];
        let mut values: Vec<(_, DynValue)> = Vec::with_capacity(4);
        let build = || -> ort::Result<()> {
            values.push(("input_ids", Tensor::from_array((shape, batch.input_ids))?.into_dyn()));
            let targets: Vec<i64> = batch.labels.into_iter().map(|label| label.max(0)).collect();
            values.push((TARGETS, Tensor::from_array((shape, targets))?.into_dyn()));
            let scalar = |values| Tensor::from_array((shape, values)).map(Tensor::into_dyn);
            match (self.interface.position_ids, batch.position_ids) {
                (Some(TensorElementType::Float32), PositionIds::Scalars(scalars)) => {
                    values.push(("position_ids", scalar(scalars)?));
                }
                (Some(_), PositionIds::Integers(ids)) => {
                    values.push(("position_ids", Tensor::from_array((shape, ids))?.into_dyn()));
                }
                _ => {} // no positions; Sweep has refused the other combinations
            }
            if self.interface.attention_mask {
                values.push(("attention_mask", Tensor::from_array((shape, batch.attention_mask))?.into_dyn()));
            }
            Ok(())
        };
        build().map_err(|e| self.failed(batch.batch, width, e.to_string()))?;
        Ok(Inputs { rows: shape[0], seq: width, values })
    }

    fn failed(&self, batch: usize, seq: usize, reason: String) -> EvalError {
        EvalError::Run { path: self.path.into(), batch, seq, reason }
    }

    /// Runs a batch and scores it. Where memory runs out the halves run one after the other, and later batches of that
    /// size are halved before they are tried.
    fn run(&self, session: &mut Session, jobs: &[Job], inputs: Inputs) -> Result<Outcome> {
        let size = inputs.rows * inputs.seq;
        let attempt = match size > self.room.load(Relaxed) && jobs.len() > 1 {
            false => self.pass(session, jobs, inputs),
            true => Err(self.failed(inputs.rows, inputs.seq, "out of memory before".into())),
        };
        let reason = match attempt {
            Err(EvalError::Run { reason, .. }) if is_out_of_memory(&reason) => reason,
            done => return done,
        };
        self.room.fetch_min(size - 1, Relaxed);
        match jobs {
            [job] => self.without_the_longest(session, job, &reason),
            _ => {
                let (first, second) = jobs.split_at(jobs.len() / 2);
                let mut outcome = self.run(session, first, self.prepare(first)?)?;
                outcome.join(self.run(session, second, self.prepare(second)?)?);
                Ok(outcome)
            }
        }
    }

    /// A single sequence is too long for the memory: its longer lengths fail, its shorter ones are tried again.
    fn without_the_longest(&self, session: &mut Session, job: &Job, reason: &str) -> Result<Outcome> {
        let kept = job.cuts.len() / 2;
        let mut outcome = Outcome::default();
        if kept > 0 {
            let short = [job.shortened(kept)];
            outcome = self.run(session, &short, self.prepare(&short)?)?;
        }
        let line = reason.lines().next().unwrap_or_default();
        let why = format!("out of memory on one sequence of {} tokens ({line})", job.tokens());
        outcome.failures.extend(job.cuts[kept..].iter().map(|cut| (cut.slot, why.clone())));
        Ok(outcome)
    }

    /// One batch through the model, in pieces where it is long and the model has states.
    fn pass(&self, session: &mut Session, jobs: &[Job], first: Inputs) -> Result<Outcome> {
        let (rows, width) = (first.rows, first.seq);
        let longest = jobs.iter().map(Job::tokens).max().unwrap_or(0);
        let mut outcome = Outcome::default();
        let mut walks: Vec<Walk<'_>> = jobs.iter().map(|job| Walk::new(job, self.seen)).collect();
        let (mut inputs, mut states) = (first, Vec::new());
        for start in (0..longest).step_by(width.max(1)) {
            if start > 0 {
                inputs = self.inputs(jobs, start, width.min(longest - start))?;
            }
            let last = start + width >= longest;
            let engine = |e: ort::Error| self.failed(rows, inputs.seq, e.to_string());
            let begin = Instant::now();
            let (predictions, losses) = self.feed(session, &inputs, &mut states, last).map_err(engine)?;
            outcome.busy += begin.elapsed();
            let (predictions, losses) = (predictions.extract_tensor().1, losses.extract_tensor().1);
            if predictions.len() != rows * inputs.seq || losses.len() != predictions.len() {
                return Err(self.failed(rows, inputs.seq, format!("it gave {} predictions", predictions.len())));
            }
            let predictions = predictions.chunks_exact(inputs.seq);
            for (walk, (row, losses)) in walks.iter_mut().zip(predictions.zip(losses.chunks_exact(inputs.seq))) {
                walk.advance(row, losses, self, &mut outcome);
            }
        }
        outcome.losses = walks.iter().map(Walk::loss).collect();
        outcome.tokens = jobs.iter().map(|job| job.tokens() as u64).sum();
        Ok(outcome)
    }

    /// Predictions and losses `[batch, seq]` of one piece; `states` goes in and, unless it is the last piece, comes out.
    /// Inputs are handed over without copying where the model runs on the CPU; states stay on the device.
    fn feed(
        &self,
        session: &mut Session,
        inputs: &Inputs,
        states: &mut Vec<DynValue>,
        last: bool,
    ) -> ort::Result<(Tensor<i64>, Tensor<f32>)> {
        let cpu = || MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default);
        let mut binding = session.create_binding()?;
        for (name, value) in &inputs.values {
            binding.bind_input(*name, value)?;
        }
        for (state, value) in self.interface.states.iter().zip(states.iter()) {
            binding.bind_input(&state.input, value)?;
        }
        binding.bind_output_to_device(PREDICTIONS, &cpu()?)?;
        binding.bind_output_to_device(LOSSES, &cpu()?)?;
        if !last {
            let device = match self.provider {
                Provider::Auto | Provider::Cpu => cpu()?,
                Provider::Cuda | Provider::TensorRt => {
                    MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)?
                }
            };
            for state in &self.interface.states {
                binding.bind_output_to_device(&state.output, &device)?;
            }
        }
        let mut outputs = session.run_binding(&binding)?;
        if !last {
            *states = self.interface.states.iter().filter_map(|state| outputs.remove(&state.output)).collect();
        }
        let mut take = |name: &str| outputs.remove(name).ok_or_else(|| ort::Error::new(format!("no output `{name}`")));
        Ok((take(PREDICTIONS)?.downcast()?, take(LOSSES)?.downcast()?))
    }
}

/// ONNX Runtime's providers have no common error for it.
fn is_out_of_memory(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    let signs = ["out of memory", "out_of_memory", "failed to allocate", "alloc_failed", "bad_alloc", "bad allocation"];
    signs.iter().any(|sign| reason.contains(sign))
}

/// A walk along one sequence, piece by piece, that scores it at every cut.
struct Walk<'a> {
    job: &'a Job,
    running: Running,
    tokens: usize,
    cut: usize,
    gold: Vec<u16>,
    predicted: Vec<u16>,
}

impl<'a> Walk<'a> {
    fn new(job: &'a Job, seen: Option<u64>) -> Self {
        let running = Running::with_seen(seen);
        Self { job, running, tokens: 0, cut: 0, gold: vec![], predicted: vec![] }
    }

    fn loss(&self) -> (usize, u64, f64) {
        (self.job.index, self.running.labelled(), self.running.loss_sum())
    }

    /// Takes the next tokens' predictions and losses `[seq]`; what is behind the sequence's end is padding.
    fn advance(&mut self, predictions: &[i64], losses: &[f32], work: &Work<'_>, outcome: &mut Outcome) {
        let labels = &self.job.example.labels[self.tokens.min(self.job.tokens())..];
        for ((&label, &prediction), &loss) in labels.iter().zip(predictions).zip(losses) {
            self.tokens += 1;
            if let Ok(label) = u16::try_from(label) {
                self.running.push_scored(prediction == i64::from(label), f64::from(loss));
                if work.keep_predictions {
                    self.gold.push(label);
                    self.predicted.push(prediction as u16);
                }
            }
            while let Some(cut) = self.job.cuts.get(self.cut).filter(|cut| cut.tokens == self.tokens) {
                self.cut += 1;
                outcome.add(cut.slot, &self.running);
                if work.keep_predictions {
                    outcome.predictions.push(Prediction {
                        length: work.lengths[cut.slot],
                        index: self.job.index as u64,
                        input_ids: self.job.example.input_ids[..cut.tokens].to_vec(),
                        gold: self.gold.clone(),
                        predicted: self.predicted.clone(),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_of_full_memories_are_known() {
        for message in [
            "Failed to allocate memory for requested buffer of size 1024",
            "CUDA failure 2: out of memory",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
            "std::bad_alloc",
        ] {
            assert!(is_out_of_memory(message), "{message}");
        }
        assert!(!is_out_of_memory("Got invalid dimensions for input: input_ids"));
    }
}
