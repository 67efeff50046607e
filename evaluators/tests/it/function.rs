//! Models that are no files: functions, and files in memory.

use crate::common::{MOD10, SHIFTED, fixture, model, on_cpu, statuses};
use data::{Batch, Task};
use evaluators::{EvalError, LengthResult, Model, ModelInfo, Plan, Score, Sweep, SweepResult};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A fixture as a function.
fn called(name: &str) -> Model {
    let mut inner = model(name);
    let info = inner.info().clone();
    Model::from_function(name, info, move |batch| match inner.run(batch) {
        Ok(logits) => Ok(logits.values().to_vec()),
        Err(EvalError::Run { reason, .. }) => Err(reason),
        Err(other) => Err(other.to_string()),
    })
}

fn swept(model: &mut Model, task: &str, last: u32) -> SweepResult {
    let task = Task::by_name(task).unwrap();
    Sweep::new(model).task(&task).lengths(1..=last).keep_predictions(true).results().unwrap()
}

#[test]
fn a_function_gets_the_scores_of_the_file_that_it_wraps() {
    let names = [("counts_mod10", MOD10), ("breaks_at_60", MOD10), ("nan", MOD10), ("counts_shifted", SHIFTED)];
    for (name, task) in names {
        let (file, function) = (swept(&mut model(name), task, 120), swept(&mut called(name), task, 120));
        if name != "nan" {
            assert!(file.predictions == function.predictions, "{name}"); // the largest of NaNs is any
        }
        assert_eq!(statuses(&file.lengths), statuses(&function.lengths), "{name}");
        for (a, b) in file.lengths.iter().zip(&function.lengths) {
            assert_eq!(a.plan, b.plan);
            let without_loss = |r: &LengthResult| r.score().map(|s| Score { loss_sum: 0.0, ..*s });
            assert_eq!(without_loss(a), without_loss(b), "{name}, length {}", a.length);
            if let (Some(a), Some(b)) = (a.score(), b.score()) {
                assert!((a.loss_sum - b.loss_sum).abs() <= 1e-5 * (1.0 + a.loss_sum.abs()), "{name}: {a:?} {b:?}");
            }
        }
        assert_eq!(function.facts.provider, "function");
        assert_eq!(function.facts.model_fingerprint, None);
    }
}

/// The logits of a batch in which the right answer of MOD10 has the most, but for `wrong` rows.
fn counting(batch: &Batch, wrong: impl Fn(usize) -> bool) -> Vec<f32> {
    let token = |at: usize| if wrong(at) { 11 } else { (at + 9) % 10 + 1 }; // 1, …, 10, 1, …
    let row = |at: usize| (0..13).map(move |id| f32::from(u8::from(id == token(at % batch.seq))) * 8.0);
    (0..batch.batch * batch.seq).flat_map(row).collect()
}

#[test]
fn a_function_that_looks_at_the_length_is_run_at_every_length() {
    // Right on sequences of up to 31 tokens (a start and 30) and wrong everywhere on longer ones.
    let mut peeks = Model::from_function("peeks", ModelInfo::default(), |batch: &Batch| {
        let long = batch.seq > 31;
        Ok(counting(batch, |_| long))
    });
    let results = swept(&mut peeks, MOD10, 60);
    let last = |length: usize| results.lengths[length - 1].score().unwrap().last_accuracy();
    assert_eq!(results.lengths[0].plan, Plan::EqualLengths);
    assert_eq!((last(29), last(30), last(31)), (Some(1.0), Some(1.0), Some(0.0)));
}

#[test]
fn a_function_that_fails_on_long_sequences_is_scored_on_short_ones() {
    let mut short = Model::from_function("short", ModelInfo::default(), |batch: &Batch| match batch.seq {
        0..=41 => Ok(counting(batch, |_| false)),
        more => Err(format!("only 41 positions, not {more}")),
    });
    let results = swept(&mut short, MOD10, 60);
    let failed: Vec<u32> = results.lengths.iter().filter(|r| r.score().is_none()).map(|r| r.length).collect();
    assert_eq!(failed, (41..=60).collect::<Vec<_>>(), "{:?}", statuses(&results.lengths));
    assert!(results.lengths[59].status().contains("only 41 positions"), "{}", results.lengths[59].status());
}

#[test]
fn functions_that_give_no_logits_are_errors_that_say_so() {
    let error = |forward: fn(&Batch) -> Result<Vec<f32>, String>| {
        let task = Task::by_name(MOD10).unwrap();
        let mut model = Model::from_function("mine", ModelInfo::default(), forward);
        Sweep::new(&mut model).task(&task).lengths(1..=5).results().unwrap_err().to_string()
    };
    let uneven = error(|batch| Ok(vec![0.0; 13 * batch.seq * batch.batch + usize::from(batch.seq > 1)]));
    assert!(uneven.contains("mine") && uneven.contains("are no [batch, seq, vocab]"), "{uneven}");
    let narrow = error(|batch| Ok(vec![0.0; 7 * batch.seq * batch.batch]));
    assert!(narrow.contains("logits are 7 wide, but the task has 13 tokens"), "{narrow}");
    let raised = error(|_| Err("division by zero".into()));
    assert!(raised.contains("mine") && raised.contains("division by zero"), "{raised}");
    assert!(error(|_| Ok(vec![])).contains("are no [batch, seq, vocab]"));
}

#[test]
fn a_file_in_memory_is_the_same_model() {
    let bytes = std::fs::read(fixture("counts_mod10")).unwrap();
    let mut model = Model::from_bytes("bytes", bytes, on_cpu(1), None).unwrap();
    let file = swept(&mut crate::common::model("counts_mod10"), MOD10, 50);
    let memory = swept(&mut model, MOD10, 50);
    assert_eq!((file.lengths, file.predictions), (memory.lengths, memory.predictions));
    assert_eq!(file.facts, memory.facts);
}

#[test]
fn bytes_that_are_no_model_and_weights_elsewhere_are_named() {
    let refused =
        |bytes: &[u8]| Model::from_bytes("my model", bytes.to_vec(), on_cpu(1), None).err().unwrap().to_string();
    assert!(refused(b"text").starts_with("cannot load my model as an ONNX model: "), "{}", refused(b"text"));
    let external = std::fs::read(fixture("foreign/external")).unwrap();
    let message = refused(&external);
    assert!(message.contains("are a file of their own") && message.contains("give the path of the file"), "{message}");
}

#[test]
fn a_sweep_stops_when_it_is_told_to() {
    let task = Task::by_name(MOD10).unwrap();
    let passes = Arc::new(AtomicUsize::new(0));
    let counter = passes.clone();
    let mut model = Model::from_function("slow", ModelInfo::default(), move |batch: &Batch| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(counting(batch, |_| false))
    });
    // In the probe, which takes hundreds of passes
    let mut asked = 0;
    let sweep = Sweep::new(&mut model).task(&task).lengths(1..=1000).stop_when(|| {
        asked += 1;
        asked > 20
    });
    assert!(matches!(sweep.results(), Err(EvalError::Interrupted)));
    // Threads that work side by side are told within 50 ms.
    assert!(passes.load(Ordering::Relaxed) < 100, "{passes:?}");
    // In the sweep: one length after another, a batch each
    let before = passes.load(Ordering::Relaxed);
    let trusted = Some(evaluators::Probe::trusted());
    let (done, seen) = (AtomicUsize::new(0), &passes);
    let sweep =
        Sweep::new(&mut model).task(&task).lengths(1..=1000).exhaustive(true).probed(trusted).max_tokens(Some(1));
    let sweep = sweep.progress(|progress| done.store(progress.lengths as usize, Ordering::Relaxed));
    let result = sweep.stop_when(|| done.load(Ordering::Relaxed) >= 10).results();
    assert!(matches!(result, Err(EvalError::Interrupted)));
    assert!(seen.load(Ordering::Relaxed) - before < 500, "{}", seen.load(Ordering::Relaxed) - before);
}

/// Making thousands of tests to see which lengths have any took half a minute, in which nobody asked.
#[test]
fn a_sweep_stops_while_it_plans_and_while_it_makes_rows() {
    let trusted = || Some(evaluators::Probe::trusted());
    for name in ["chomsky/parity_check", "word/Z2"] {
        let task = Task::by_name(name).unwrap();
        assert_eq!(task.family.prefix_closed(), name == "word/Z2");
        let (passes, width) = (Arc::new(AtomicUsize::new(0)), task.vocabulary.len());
        let counter = passes.clone();
        let mut model = Model::from_function("zeros", ModelInfo::default(), move |batch: &Batch| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(vec![0.0; batch.batch * batch.seq * width])
        });
        let mut asked = 0;
        let sweep = Sweep::new(&mut model).task(&task).lengths(1..=5000).samples(2000).probed(trusted());
        let result = sweep
            .stop_when(|| {
                asked += 1;
                asked > 50
            })
            .results();
        assert!(matches!(result, Err(EvalError::Interrupted)), "{name}");
        assert_eq!((asked, passes.load(Ordering::Relaxed)), (51, 1), "{name}: one pass to see the width of the logits");
    }
    // Rows of lengths without scores: each makes a test to see why.
    let task = Task::by_name(MOD10).unwrap();
    let mut model = crate::common::model("reads_positions"); // 64 positions
    let (tokens, mut asked) = (AtomicUsize::new(0), 0);
    let sweep = Sweep::new(&mut model).task(&task).lengths(1..=2000).probed(trusted());
    let sweep = sweep
        .progress(|progress| tokens.store((progress.total_tokens - progress.tokens) as usize + 1, Ordering::Relaxed));
    let result = sweep
        .stop_when(|| {
            asked += u32::from(tokens.load(Ordering::Relaxed) == 1); // all have run
            asked > 100
        })
        .results();
    assert!(matches!(result, Err(EvalError::Interrupted)));
}

#[test]
fn lengths_without_end_are_refused() {
    let task = Task::by_name(MOD10).unwrap();
    let mut model = crate::common::model("counts_mod10");
    let error = Sweep::new(&mut model).task(&task).lengths(5..=20_000_000).results().err().unwrap().to_string();
    assert!(error.contains("lengths `5..20000000`: 20000000 is longer than 16777216"), "{error}");
}

#[test]
fn an_interrupted_sweep_goes_on_from_its_journal() {
    let task = Task::by_name(MOD10).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sweep.progress");
    let mut model = model("counts_mod10");
    let whole = Sweep::new(&mut model).task(&task).lengths(1..=80).exhaustive(true).results().unwrap();
    let mut asked = 0;
    fn sweep<'a>(model: &'a mut Model, task: &'a Task) -> Sweep<'a> {
        let sweep = Sweep::new(model).task(task).lengths(1..=80).exhaustive(true).max_tokens(Some(1));
        sweep.probed(Some(evaluators::Probe::trusted()))
    }
    let stopped = sweep(&mut model, &task).journal(Some(&path)).stop_when(|| {
        asked += 1;
        asked > 5
    });
    assert!(matches!(stopped.results(), Err(EvalError::Interrupted)));
    assert!(path.is_file());
    let resumed = sweep(&mut model, &task).journal(Some(&path)).results().unwrap();
    assert_eq!(resumed.lengths, whole.lengths);
}
