//! One batch through the model: its inputs, and its outputs, scored at every cut.

use super::work::{BatchScore, Work};
use crate::model::engine::{Engine, Forward, width};
use crate::model::scoring::{self, LOSSES, PREDICTIONS};
use crate::sweep::plan::Job;
use crate::{EvalError, Prediction, Provider, Result, Running};
use data::{Batch, Collation, ExampleRef};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynValue, Tensor};
use std::time::Instant;

/// A batch as the engine takes it.
pub(crate) struct Inputs {
    pub(super) rows: usize,
    pub(super) seq: usize,
    values: Vec<(String, DynValue)>,
    /// The batch itself, for a function.
    batch: Option<Batch>,
    /// The targets `[batch, seq]`, where scores are not computed inside the graph.
    targets: Vec<i64>,
}

/// Predictions and losses `[batch, seq]`.
enum Scored {
    Graph(Tensor<i64>, Tensor<f32>),
    Host(Vec<i64>, Vec<f32>),
}

impl Scored {
    /// The shape, if it is another one than `[rows, seq]`.
    fn other_shape(&self, rows: usize, seq: usize) -> Option<String> {
        let wanted = [rows as i64, seq as i64];
        match self {
            Self::Graph(predictions, losses) => {
                let shapes = [predictions.shape(), losses.shape()];
                shapes.into_iter().find(|shape| shape[..] != wanted).map(|shape| format!("{:?}", &shape[..]))
            }
            Self::Host(predictions, losses) => {
                let counts = [predictions.len(), losses.len()];
                counts.into_iter().find(|count| *count != rows * seq).map(|count| format!("[{count}]"))
            }
        }
    }

    fn slices(&self) -> (&[i64], &[f32]) {
        match self {
            Self::Graph(predictions, losses) => (predictions.extract_tensor().1, losses.extract_tensor().1),
            Self::Host(predictions, losses) => (predictions, losses),
        }
    }
}

impl Work<'_> {
    /// The inputs of a whole batch, or of its first piece.
    pub(super) fn prepare(&self, jobs: &[Job]) -> Result<Inputs> {
        self.inputs(jobs, 0, self.piece(jobs))
    }

    /// Whether predictions and losses are computed inside the graph: those of sets are not.
    fn scores_in_the_graph(&self) -> bool {
        self.interface.output.scored && self.vocabulary.units().is_empty()
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
        let mut batch = Batch::collate_rows(rows, self.vocabulary, &collation)?;
        let rows = batch.batch;
        let targets = match self.scores_in_the_graph() {
            true => vec![],
            false => batch.labels.iter_mut().map(|label| std::mem::take(label).max(0)).collect(),
        };
        let (values, batch) = match self.interface.feeds.is_empty() {
            true => (vec![], Some(batch)),
            false => (self.interface.fed(batch).map_err(|e| self.failed(rows, width, e.to_string()))?, None),
        };
        Ok(Inputs { rows, seq: width, values, batch, targets })
    }

    pub(super) fn failed(&self, batch: usize, seq: usize, reason: String) -> EvalError {
        EvalError::Run { path: self.path.into(), batch, seq, reason }
    }

    /// One batch through the model, in pieces where it is long and the model has states.
    pub(super) fn pass_unguarded(&self, engine: &mut Engine, jobs: &[Job], first: Inputs) -> Result<BatchScore> {
        let (rows, width) = (first.rows, first.seq);
        let longest = jobs.iter().map(Job::tokens).max().unwrap_or(0);
        let mut outcome = BatchScore::default();
        let mut walks: Vec<Walk<'_>> = jobs.iter().map(|job| Walk::new(job, self.seen)).collect();
        let (mut inputs, mut states) = (first, Vec::new());
        for start in (0..longest).step_by(width.max(1)) {
            if start > 0 {
                inputs = self.inputs(jobs, start, width.min(longest - start))?;
            }
            let last = start + width >= longest;
            let begin = Instant::now();
            let shape = || format!("[{rows}, {}, {}]", inputs.seq, self.vocabulary.len());
            let scored = match engine {
                Engine::Session(session) => self
                    .feed(session, &inputs, &mut states, last)
                    .map_err(|error| scoring::blame(error.to_string(), &shape())),
                Engine::Function(forward) => self.call(forward, &inputs),
            };
            outcome.busy += begin.elapsed();
            let scored = scored.map_err(|reason| self.failed(rows, inputs.seq, reason))?;
            if let Some(found) = scored.other_shape(rows, inputs.seq) {
                return Err(self.failed(rows, inputs.seq, format!("its predictions have the shape {found}")));
            }
            let (predictions, losses) = scored.slices();
            let predictions = predictions.chunks_exact(inputs.seq);
            for (walk, (row, losses)) in walks.iter_mut().zip(predictions.zip(losses.chunks_exact(inputs.seq))) {
                walk.advance(row, losses, self, &mut outcome);
            }
        }
        outcome.losses = walks.iter().map(Walk::loss).collect();
        outcome.tokens = jobs.iter().map(|job| job.tokens() as u64).sum();
        Ok(outcome)
    }

    /// Predictions and losses `[batch, seq]` of a function.
    fn call(&self, forward: &mut Forward, inputs: &Inputs) -> std::result::Result<Scored, String> {
        let batch = inputs.batch.as_ref().ok_or("there is no batch for a function")?;
        let logits = forward(batch)?;
        let shape = [inputs.rows, inputs.seq, width(logits.len(), inputs.rows, inputs.seq)?].map(|size| size as i64);
        self.misshapen(inputs, &shape).map_or(Ok(()), Err)?;
        let (predictions, losses) = scoring::host(&logits, self.vocabulary, &inputs.targets);
        Ok(Scored::Host(predictions, losses))
    }

    /// Predictions and losses `[batch, seq]` of one piece; `states` goes in and, unless it is the last piece, comes
    /// out. Inputs are handed over without copying where the model runs on the CPU; states stay on the device.
    fn feed(
        &self,
        session: &mut ort::session::Session,
        inputs: &Inputs,
        states: &mut Vec<DynValue>,
        last: bool,
    ) -> ort::Result<Scored> {
        let cpu = || MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default);
        let mut binding = session.create_binding()?;
        for (name, value) in &inputs.values {
            binding.bind_input(name.as_str(), value)?;
        }
        let zeros = if states.is_empty() { self.interface.first_states(inputs.rows)? } else { vec![] };
        for (name, value) in &zeros {
            binding.bind_input(*name, value)?;
        }
        for (state, value) in self.interface.states.iter().zip(states.iter()) {
            binding.bind_input(&state.input, value)?;
        }
        let output = &self.interface.output;
        let scored = self.scores_in_the_graph();
        match scored {
            true => {
                binding.bind_output_to_device(PREDICTIONS, &cpu()?)?;
                binding.bind_output_to_device(LOSSES, &cpu()?)?;
            }
            false => binding.bind_output_to_device(output.float(), &cpu()?)?,
        }
        if !last {
            let device = match self.provider {
                Provider::Cuda | Provider::TensorRt => {
                    MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)?
                }
                _ => cpu()?,
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
        if scored {
            return Ok(Scored::Graph(take(PREDICTIONS)?.downcast()?, take(LOSSES)?.downcast()?));
        }
        let logits: Tensor<f32> = take(output.float())?.downcast()?;
        let (shape, values) = logits.extract_tensor();
        self.misshapen(inputs, shape).map_or(Ok(()), |reason| Err(ort::Error::new(reason)))?;
        let (predictions, losses) = scoring::host(values, self.vocabulary, &inputs.targets);
        Ok(Scored::Host(predictions, losses))
    }

    fn misshapen(&self, inputs: &Inputs, shape: &[i64]) -> Option<String> {
        let wanted = [inputs.rows as i64, inputs.seq as i64, self.vocabulary.len() as i64];
        (*shape != wanted).then(|| format!("its logits have the shape {shape:?} instead of {wanted:?}"))
    }
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

    /// Takes the next tokens' predictions and losses `[seq]`; tokens after the sequence's end are padding.
    fn advance(&mut self, predictions: &[i64], losses: &[f32], work: &Work<'_>, outcome: &mut BatchScore) {
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
