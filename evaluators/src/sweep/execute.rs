//! Running batches: one thread builds inputs, one thread per engine runs them, and the caller gets their scores in the
//! order of the plan.
//!
//! A failed pass does not end the sweep. Where memory ran out, the halves of the batch are tried; where something else
//! did, its rows one by one. A single sequence that fails is cut down to the longest of its lengths that runs, found by
//! bisection; the longer ones get ONNX Runtime's message. The result of a length depends on the model and the length
//! alone, not on threads or earlier batches.

use crate::error::{is_out_of_memory, shortened};
use crate::model::engine::Engine;
use crate::sweep::pass::Inputs;
use crate::sweep::plan::{Item, Job};
use crate::sweep::work::{BatchScore, Edge, Work};
use crate::{EvalError, Result};
use data::threads;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a sweep asks whether it is to go on, at least.
const ASKED_EVERY: Duration = Duration::from_millis(50);

/// Runs every batch of `batches` on one of `engines` and hands the results to `sink`, in order.
///
/// # Errors
/// A pass fails for another reason than memory, the sink fails, or `interrupt` says true; the rest is then not run.
pub(crate) fn execute(
    work: &Work<'_>,
    engines: Vec<&mut Engine>,
    batches: impl Iterator<Item = Vec<Item>> + Send,
    build: impl Fn(Item) -> Job + Sync,
    mut sink: impl FnMut(BatchScore) -> Result<()>,
    interrupt: &mut dyn FnMut() -> bool,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    work.learned.crowded.store(engines.len() > 1, Relaxed);
    let (ready, prepared) = mpsc::sync_channel::<(usize, Vec<Job>, Result<Inputs>)>(2 * engines.len());
    let (report, outcomes) = mpsc::channel();
    let prepared = Mutex::new(prepared);
    let next = || prepared.lock().unwrap_or_else(PoisonError::into_inner).recv();
    // A thread that cannot be started drops its work. So each fetches its work when it runs.
    let source = Mutex::new(Some((ready, batches)));
    let engines: Vec<_> = engines.into_iter().map(|engine| Mutex::new(Some(engine))).collect();
    std::thread::scope(|scope| {
        let (source, next, stop, build) = (&source, &next, &stop, &build);
        let prepares = threads::spawn(scope, move || {
            let Some((ready, batches)) = taken(source) else { return }; // closed at the end, which ends the others
            for (number, batch) in batches.enumerate() {
                let jobs: Vec<Job> = batch.into_iter().map(build).collect();
                let inputs = work.prepare(&jobs);
                if stop.load(Relaxed) || ready.send((number, jobs, inputs)).is_err() {
                    break;
                }
            }
        });
        let runs = |index: usize| {
            let (engine, report) = (&engines[index], report.clone());
            let runs = threads::spawn(scope, move || {
                let Some(engine) = taken(engine) else { return };
                let engine: &mut Engine = engine;
                while let Ok((number, jobs, inputs)) = next() {
                    if stop.load(Relaxed) {
                        continue; // empties the channel, so that the first thread is not stuck
                    }
                    let outcome = inputs.and_then(|inputs| work.run(engine, &jobs, inputs));
                    let _ = report.send((number, outcome)); // the receiver outlives this thread
                }
            });
            runs.is_ok()
        };
        let side_by_side =
            if prepares.is_ok() { (0..engines.len()).take_while(|index| runs(*index)).count() } else { 0 };
        drop(report);
        if side_by_side == 0 {
            // No thread for a engine: this one runs the first, and builds the inputs too if it has to.
            let Some(engine) = engines.iter().find_map(taken) else { return Err(EvalError::NoSession) };
            let engine: &mut Engine = engine;
            let mut score = |jobs: Vec<Job>, inputs: Result<Inputs>| {
                let outcome = inputs.and_then(|inputs| work.run(engine, &jobs, inputs));
                outcome.and_then(&mut sink)?;
                if interrupt() { Err(EvalError::Interrupted) } else { Ok(()) }
            };
            if let Some((_, batches)) = prepares.is_err().then(|| taken(source)).flatten() {
                let mut jobs = batches.map(|batch| batch.into_iter().map(build).collect::<Vec<Job>>());
                return jobs.try_for_each(|jobs| {
                    let inputs = work.prepare(&jobs);
                    score(jobs, inputs)
                });
            }
            let mut scored = Ok(());
            while let Ok((_, jobs, inputs)) = next() {
                if scored.is_ok() {
                    scored = score(jobs, inputs);
                    stop.store(scored.is_err(), Relaxed);
                }
            }
            return scored;
        }
        let (mut early, mut wanted, mut failure) = (BTreeMap::new(), 0, None);
        loop {
            if failure.is_none() && interrupt() {
                failure = Some(EvalError::Interrupted);
                stop.store(true, Relaxed);
            }
            match outcomes.recv_timeout(ASKED_EVERY) {
                Ok((number, outcome)) => early.insert(number, outcome),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            while let Some(outcome) = early.remove(&wanted) {
                wanted += 1;
                if failure.is_none() {
                    let share =
                        |outcome: BatchScore| BatchScore { busy: outcome.busy / side_by_side as u32, ..outcome };
                    failure = outcome.map(share).and_then(&mut sink).err();
                    stop.store(failure.is_some(), Relaxed);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

fn taken<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Work<'_> {
    /// Runs a batch and scores it, as far as the model goes.
    fn run(&self, engine: &mut Engine, jobs: &[Job], inputs: Inputs) -> Result<BatchScore> {
        let edge = self.edge().clone();
        let longest = jobs.iter().map(Job::tokens).max().unwrap_or(0);
        if let Some(edge) = edge.filter(|edge| edge.tokens < longest) {
            return self.run_within(engine, jobs, &edge);
        }
        if let Some(other) = jobs.iter().position(|job| self.budget.equal && job.tokens() != jobs[0].tokens()) {
            return self.run_in_two(engine, jobs, other);
        }
        let size = inputs.rows * inputs.seq;
        let full = self.learned.full.load(Relaxed);
        let attempt = match full > 0 && size >= full && jobs.len() > 1 {
            false => self.pass(engine, jobs, inputs),
            true => Err(self.failed(inputs.rows, inputs.seq, "out of memory before".into())),
        };
        let reason = match attempt {
            Err(EvalError::Run { reason, .. }) => reason,
            done => return done,
        };
        match jobs {
            [] => Ok(BatchScore::default()),
            [job] => self.run_shortened(engine, job, &reason),
            _ if is_out_of_memory(&reason) => {
                let smallest = |full: usize| if full == 0 { size } else { full.min(size) };
                let _ = self.learned.full.fetch_update(Relaxed, Relaxed, |full| Some(smallest(full)));
                self.run_in_two(engine, jobs, jobs.len() / 2)
            }
            [first, rest @ ..] => self.run_singly(engine, first, rest),
        }
    }

    fn run_in_two(&self, engine: &mut Engine, jobs: &[Job], at: usize) -> Result<BatchScore> {
        let (first, second) = jobs.split_at(at);
        let mut outcome = self.run(engine, first, self.prepare(first)?)?;
        outcome.join(self.run(engine, second, self.prepare(second)?)?);
        Ok(outcome)
    }

    /// The rows of a batch that failed, the first one by itself. If that shows how far sequences go, the others share a
    /// batch again, up to there; if it runs, the batch as such was the reason, and they run by themselves as well.
    fn run_singly(&self, engine: &mut Engine, first: &Job, rest: &[Job]) -> Result<BatchScore> {
        let first = std::slice::from_ref(first);
        let mut outcome = self.run(engine, first, self.prepare(first)?)?;
        let longest = rest.iter().map(Job::tokens).max().unwrap_or(0);
        if self.edge().as_ref().is_some_and(|edge| edge.tokens < longest) {
            outcome.join(self.run(engine, rest, self.prepare(rest)?)?);
            return Ok(outcome);
        }
        for job in rest {
            let failed = |slot: usize| outcome.failures.iter().any(|(failed, _)| *failed == slot);
            if !job.cuts.iter().all(|cut| failed(cut.slot)) {
                let job = std::slice::from_ref(job);
                outcome.join(self.run(engine, job, self.prepare(job)?)?);
            }
        }
        Ok(outcome)
    }

    /// Runs the part of a batch within the edge; the longer lengths fail.
    fn run_within(&self, engine: &mut Engine, jobs: &[Job], edge: &Edge) -> Result<BatchScore> {
        let mut outcome = BatchScore::default();
        let mut short = Vec::new();
        for job in jobs {
            let kept = job.cuts.partition_point(|cut| cut.tokens <= edge.tokens);
            outcome.failures.extend(job.cuts[kept..].iter().map(|cut| (cut.slot, edge.why.clone())));
            if kept > 0 {
                short.push(job.shortened(kept));
            }
        }
        if !short.is_empty() {
            outcome.join(self.run(engine, &short, self.prepare(&short)?)?);
        }
        Ok(outcome)
    }

    /// A single sequence has failed: its longest lengths fail, as many as necessary.
    fn run_shortened(&self, engine: &mut Engine, job: &Job, reason: &str) -> Result<BatchScore> {
        let memory = is_out_of_memory(reason);
        if !memory && !self.regular {
            let why = shortened(reason);
            let failures = job.cuts.iter().map(|cut| (cut.slot, why.clone())).collect();
            return Ok(BatchScore { failures, ..BatchScore::default() });
        }
        let mut known = self.edge();
        let edge = match known.clone().filter(|edge| edge.tokens < job.tokens()) {
            Some(edge) => edge,
            None => {
                let _quiet = self.learned.quiet.write().unwrap_or_else(PoisonError::into_inner);
                if memory && self.learned.crowded.load(Relaxed) {
                    let alone = std::slice::from_ref(job);
                    match self.pass_unguarded(engine, alone, self.prepare(alone)?) {
                        Err(EvalError::Run { .. }) => {}
                        done => return done, // the others had the memory
                    }
                }
                let edge = self.find_edge(engine, job, reason)?;
                *known = Some(edge.clone());
                edge
            }
        };
        drop(known);
        self.run_within(engine, std::slice::from_ref(job), &edge)
    }

    /// Bisects for the longest beginning of `job` that runs, among the tokens that the lengths have; `job` itself
    /// fails, for this reason.
    fn find_edge(&self, engine: &mut Engine, job: &Job, reason: &str) -> Result<Edge> {
        let sizes: Vec<usize> = match &job.cuts[..] {
            [] | [_] => self.sizes.iter().copied().filter(|size| *size < job.tokens()).collect(),
            cuts => cuts[..cuts.len() - 1].iter().map(|cut| cut.tokens).collect(),
        };
        let (mut low, mut high) = (0, sizes.len()); // the sizes below `low` run, those from `high` on fail
        let (mut tokens, mut reason) = (job.tokens(), reason.to_owned());
        while low < high {
            let middle = low + (high - low) / 2;
            let short = [job.beginning(sizes[middle])];
            match self.pass_unguarded(engine, &short, self.prepare(&short)?) {
                Ok(_) => low = middle + 1,
                Err(EvalError::Run { reason: why, .. }) => (high, tokens, reason) = (middle, sizes[middle], why),
                Err(other) => return Err(other),
            }
        }
        let why = match is_out_of_memory(&reason) {
            true => format!("out of memory on one sequence of {tokens} tokens ({})", shortened(&reason)),
            false => shortened(&reason),
        };
        Ok(Edge { tokens: if low > 0 { sizes[low - 1] } else { 0 }, why })
    }

    fn edge(&self) -> MutexGuard<'_, Option<Edge>> {
        self.learned.edge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, engine: &mut Engine, jobs: &[Job], first: Inputs) -> Result<BatchScore> {
        let _running = self.learned.quiet.read().unwrap_or_else(PoisonError::into_inner);
        self.pass_unguarded(engine, jobs, first)
    }
}
