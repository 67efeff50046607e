//! Models with unwanted dependences, or that run at some shapes only (written by `fixtures/make_foreign.py`): none of
//! them may get a wrong number, and none may cost the lengths at which it runs.

use crate::common::{MOD10, SHIFTED, fixture, model, on_cpu, sweep};
use data::{Augmentation, Dataset, Split, Task};
use evaluators::{DatasetResult, Finding, Model, Plan, Probe, Sweep, SweepResult};

fn probe(name: &str) -> Probe {
    let task = Task::by_name(MOD10).unwrap();
    Sweep::new(&mut model(name)).task(&task).probe().unwrap().unwrap()
}

/// All validation examples.
fn validation(name: &str, adjust: impl FnOnce(Sweep<'_>) -> Sweep<'_>) -> DatasetResult {
    let (mut model, task) = (model(name), Task::by_name(MOD10).unwrap());
    let dataset = Dataset::generated(&task, Split::Val, 0, task.rows(Split::Val, 0).unwrap()).unwrap();
    adjust(Sweep::new(&mut model).task(&task)).run_dataset(&dataset, "val").unwrap()
}

/// The lengths whose last label is right; all have the status `ok`.
fn right(result: &SweepResult) -> usize {
    assert!(result.lengths.iter().all(|r| r.status() == "ok"), "{:?}", result.lengths[0]);
    result.lengths.iter().filter(|r| r.score().unwrap().last_accuracy() == Some(1.0)).count()
}

/// The lengths with a score, and the statuses of the others, without repetition.
fn scored(result: &SweepResult) -> (Vec<u32>, Vec<&str>) {
    let ok = result.lengths.iter().filter(|r| r.score().is_some()).map(|r| r.length).collect();
    let mut statuses: Vec<&str> = result.lengths.iter().map(|r| r.status()).filter(|status| *status != "ok").collect();
    statuses.dedup();
    (ok, statuses)
}

#[test]
fn what_a_model_depends_on_is_found() {
    // causal, independent of padding, independent of the batch, repeatable
    for (name, expected, plan) in [
        ("foreign", [true, true, true, true], Plan::SinglePass),
        ("counts_mod10", [true, true, true, true], Plan::SinglePass),
        ("breaks_at_60", [true, true, true, true], Plan::SinglePass),
        ("reads_positions", [true, true, true, true], Plan::SinglePass),
        ("nan", [true, true, true, true], Plan::SinglePass),
        ("stateful", [true, true, true, true], Plan::SinglePass),
        ("stateful_required", [true, true, true, true], Plan::SinglePass),
        ("total", [false, true, true, true], Plan::Exhaustive),
        ("total_tiny", [false, true, true, true], Plan::Exhaustive),
        ("total_offset", [false, true, true, true], Plan::Exhaustive),
        ("leak", [false, false, true, true], Plan::EqualLengths),
        ("peeks_far", [false, false, true, true], Plan::EqualLengths),
        ("width_137", [false, true, true, true], Plan::Exhaustive),
        ("widths_31_of_64", [false, true, true, true], Plan::Exhaustive),
        ("places_200_229", [false, true, true, true], Plan::Exhaustive),
        ("places_300_389", [false, true, true, true], Plan::Exhaustive),
        ("many_rows", [true, true, false, true], Plan::OneByOne),
        ("peeks_at_seven", [false, true, true, true], Plan::Exhaustive),
        ("copied", [false, false, true, true], Plan::EqualLengths),
        ("pad", [false, false, true, true], Plan::EqualLengths),
        ("crowd", [true, true, false, true], Plan::OneByOne),
        ("random", [false, false, false, false], Plan::OneByOne),
        ("table_64", [true, true, true, true], Plan::SinglePass),
        ("one_row", [true, true, false, true], Plan::SinglePass),
        ("one_row_declared", [true, true, false, true], Plan::SinglePass),
        ("baked", [false, false, true, true], Plan::EqualLengths),
        ("multiples", [false, false, true, true], Plan::EqualLengths),
    ] {
        let found = probe(name);
        let Probe { causal, padding, batch, repeatable, .. } = &found;
        assert_eq!([causal, padding, batch, repeatable].map(Finding::holds), expected, "{name}: {found}");
        assert_eq!(found.plan(), plan, "{name}: {found}");
        if name != "random" {
            assert_eq!(found, probe(name), "{name}: the same answer every time");
        }
    }
    let found = probe("quantised");
    assert!(!found.batch.holds() && found.plan() == Plan::OneByOne, "{found}");
}

/// Prefixes run side by side: which of them contradicts first does not depend on how many threads there are.
#[test]
fn threads_change_nothing_about_what_is_found() {
    let task = Task::by_name(MOD10).unwrap();
    for name in ["foreign", "width_137", "widths_31_of_64", "places_200_229", "places_300_389", "multiples"] {
        let probe = |threads| {
            let mut model = Model::load(&fixture(name), on_cpu(threads)).unwrap();
            Sweep::new(&mut model).task(&task).probe().unwrap().unwrap()
        };
        let alone = probe(1);
        assert!(alone.causal.holds() == (name == "foreign"), "{name}: {alone}");
        for threads in [2, 5] {
            assert_eq!(probe(threads), alone, "{name}, {threads} threads");
        }
    }
}

#[test]
fn what_was_found_reads_well() {
    assert_eq!(
        probe("foreign").to_string(),
        "causal, independent of padding, independent of the batch; so one pass over the longest sequence can answer all \
         lengths"
    );
    assert_eq!(
        probe("table_64").to_string(),
        "causal, independent of padding, independent of the batch; runs up to 64 tokens: Attempting to broadcast an axis \
         by a dimension other than 1. 64 by 65 (in Add); so one pass over the longest sequence can answer all lengths"
    );
    let total = probe("total").to_string();
    assert!(
        total.starts_with("independent of padding, independent of the batch; not causal: the logits of"),
        "{total}"
    );
    assert!(total.ends_with("; so every length runs on its own (exhaustive)"), "{total}");
    let row = probe("one_row").to_string();
    assert!(row.contains("not known whether independent of the batch: 2 sequences at once fail: "), "{row}");
    assert!(row.ends_with("can answer all lengths, one sequence at a time"), "{row}");
}

#[test]
fn no_plan_gives_a_number_that_the_length_alone_does_not_give() {
    for (name, last_is_right) in [
        ("foreign", true),
        ("total", true),
        ("pad", true),
        ("crowd", true),
        ("leak", false),
        ("peeks_far", true),
        ("peeks_at_seven", true),
    ] {
        let expected = if last_is_right { 100 } else { 0 };
        for (exhaustive, tokens, workers) in [
            (false, None, None),
            (true, None, None),
            (false, Some(1), None),
            (false, Some(700), Some(2)),
            (true, Some(700), Some(2)),
        ] {
            let result = sweep(name, MOD10, "1..100", |s| s.exhaustive(exhaustive).max_tokens(tokens).workers(workers));
            assert_eq!(right(&result), expected, "{name} {exhaustive} {tokens:?}");
            let of_validation = validation(name, |s| s.exhaustive(exhaustive).max_tokens(tokens).workers(workers));
            assert_eq!(right(&of_validation.by_length), expected / 2, "{name} {exhaustive} {tokens:?}");
        }
    }
    assert!(sweep("total", MOD10, "1..100", |s| s).lengths.iter().all(|r| r.plan == Plan::Exhaustive));
    assert!(sweep("pad", MOD10, "1..100", |s| s).lengths.iter().all(|r| r.plan == Plan::EqualLengths));
    assert!(sweep("pad", MOD10, "1..100", |s| s.exhaustive(true)).lengths.iter().all(|r| r.plan == Plan::Exhaustive));
    assert!(validation("crowd", |s| s).by_length.lengths.iter().all(|r| r.plan == Plan::OneByOne));
    assert!(validation("pad", |s| s).by_length.lengths.iter().all(|r| r.plan == Plan::EqualLengths));
    assert!(validation("foreign", |s| s).by_length.lengths.iter().all(|r| r.plan == Plan::Exhaustive));
}

#[test]
fn what_shows_at_few_lengths_only_gets_the_numbers_of_every_length_on_its_own() {
    for (name, lengths) in [
        ("width_137", "1..300"),
        ("widths_31_of_64", "1..300"),
        ("places_200_229", "1..300"),
        ("places_300_389", "1..420"),
        ("many_rows", "1..100"),
        ("beyond_1500", "1000,1499..1502,2000"),
    ] {
        let by_default = sweep(name, MOD10, lengths, |s| s.samples(64));
        let alone = sweep(name, MOD10, lengths, |s| s.exhaustive(true).max_tokens(Some(1)));
        for (a, b) in by_default.lengths.iter().zip(&alone.lengths) {
            assert_eq!(a.score(), b.score(), "{name} at length {}", a.length);
        }
    }
    let (mut model, task) = (model("beyond_1500"), Task::by_name(MOD10).unwrap());
    assert!(Sweep::new(&mut model).task(&task).probe().unwrap().unwrap().causal.holds(), "up to 1000 nothing shows");
    let known = Sweep::new(&mut model).task(&task).probe_tokens(1600).probe().unwrap().unwrap();
    assert!(!known.causal.holds() && known.tokens == 1600, "{known}");
    // Findings about shorter sequences say nothing about longer ones.
    let short = Sweep::new(&mut model).task(&task).probe().unwrap();
    let result = Sweep::new(&mut model).task(&task).lengths(1000..=2000).probed(short).results().unwrap();
    assert!(result.lengths.iter().all(|r| r.plan == Plan::EqualLengths), "{:?}", result.lengths[0].plan);
}

#[test]
fn quantisation_that_depends_on_the_batch_gives_the_same_losses_in_every_batch() {
    let results: Vec<SweepResult> = [(None, None, false), (Some(1), None, false), (Some(300), Some(2), true)]
        .map(|(tokens, workers, exhaustive)| {
            sweep("quantised", MOD10, "1..60", |s| s.max_tokens(tokens).workers(workers).exhaustive(exhaustive))
        })
        .into();
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
    assert_eq!(validation("quantised", |s| s), validation("quantised", |s| s.max_tokens(Some(1)).workers(Some(2))));
}

#[test]
fn a_length_that_fails_costs_no_other() {
    let (multiples, few) = ((1..=6).map(|n| 16 * n - 1).collect::<Vec<_>>(), vec![49]);
    for (name, expected, statuses) in [
        ("table_64", (1..=63).collect::<Vec<_>>(), 1),
        ("multiples", multiples, 94),
        ("baked", few, 99),
        ("only_51_tokens", vec![50], 1),
        ("one_row", (1..=100).collect(), 0),
        ("one_row_declared", (1..=100).collect(), 0),
    ] {
        let run = |exhaustive, tokens, workers| {
            sweep(name, MOD10, "1..100", |s| s.exhaustive(exhaustive).max_tokens(tokens).workers(workers))
        };
        let result = run(false, None, None);
        let (ok, why) = scored(&result);
        assert_eq!(ok, expected, "{name}");
        assert!(statuses >= why.len() && (statuses == 0) == why.is_empty(), "{name}: {why:?}");
        assert!(why.iter().all(|why| why.len() < 200 && !why.contains("memory") && !why.contains(".cc:")), "{why:?}");
        for (tokens, workers) in [(Some(1), None), (Some(333), Some(2)), (None, Some(3))] {
            let other = run(false, tokens, workers);
            assert_eq!(scored(&other), scored(&result), "{name} {tokens:?} {workers:?}");
        }
        assert_eq!(scored(&run(true, None, Some(2))), scored(&result), "{name} exhaustively");
    }
    let why = sweep("table_64", MOD10, "60..70", |s| s);
    let out = "Attempting to broadcast an axis by a dimension other than 1. 64 by 65 (in Add)";
    assert_eq!(scored(&why), ((60..=63).collect(), vec![out]));
    let why = sweep("only_51_tokens", MOD10, "49..51", |s| s);
    assert_eq!(scored(&why), (vec![50], vec!["the model takes sequences of 51 tokens only"]));
}

#[test]
fn splits_keep_the_lengths_that_run() {
    for (name, expected) in
        [("one_row", 50), ("one_row_declared", 50), ("table_64", 50), ("only_51_tokens", 1), ("baked", 1)]
    {
        let result = validation(name, |s| s);
        let (ok, why) = scored(&result.by_length);
        assert_eq!(ok.len(), expected, "{name}: {why:?}");
        assert_eq!(result.total.n_sequences, 6 * expected as u64, "{name}");
        assert_eq!(result.status() == "ok", expected == 50, "{name}");
    }
}

#[test]
fn how_far_a_model_goes_is_found_by_bisection() {
    // 2000 positions, more than are probed: the pass over the longest fails, and not thousands of others do
    for exhaustive in [false, true] {
        for workers in [1, 2] {
            let lengths = if exhaustive { "1990..2010,2500,3000" } else { "1..3000" };
            let result = sweep("table_2000", MOD10, lengths, |s| s.exhaustive(exhaustive).workers(Some(workers)));
            let (ok, why) = scored(&result);
            assert_eq!(ok.last(), Some(&1999));
            assert_eq!(ok.len(), if exhaustive { 10 } else { 1999 });
            assert_eq!(why.len(), 1, "{why:?}");
            assert!(why[0].contains("2000 by 2001 (in Add)"), "{why:?}");
        }
    }
}

#[test]
fn a_model_that_runs_nowhere_is_an_error_that_says_why() {
    let refused = |name: &str, lengths: &str| {
        let (mut model, task) = (model(name), Task::by_name(MOD10).unwrap());
        let lengths = lengths.parse::<evaluators::Lengths>().unwrap();
        let error = Sweep::new(&mut model).task(&task).lengths(lengths).results().unwrap_err().to_string();
        error.replace(&fixture(name).display().to_string(), "MODEL")
    };
    let hint = "\n  hint: a model that was traced with one example may run at its shape only: export it with symbolic batch and \
                seq, or ask for the lengths that it takes";
    assert_eq!(
        refused("table_64", "100..110"),
        format!(
            "cannot run MODEL at any of the 11 lengths; at length 100: Attempting to broadcast an axis by a dimension \
             other than 1. 64 by 65 (in Add){hint}"
        )
    );
    assert_eq!(
        refused("only_51_tokens", "1..10"),
        format!(
            "cannot run MODEL at any of the 10 lengths; at length 1: the model takes sequences of 51 tokens only{hint}"
        )
    );
    assert!(
        refused("baked", "1..10").contains("at any of the 10 lengths; at length 1: "),
        "{}",
        refused("baked", "1..10")
    );
    // where the task ends, the model has not failed
    let past = sweep("counts_shifted", SHIFTED, "200..210", |s| s);
    assert!(past.lengths.iter().all(|r| r.status() == "past the vocabulary's last number (100)"));
}

#[test]
fn metadata_alone_makes_no_export_of_ours() {
    assert!(!model("copied").is_own_export() && !model("counts_mod10").is_own_export());
    let (mut copied, task) = (model("copied"), Task::by_name(MOD10).unwrap());
    assert!(Sweep::new(&mut copied).task(&task).probe().unwrap().is_some());
}

#[test]
fn who_knows_a_model_better_can_say_so() {
    let trusted = sweep("total", MOD10, "1..100", |s| s.probed(Some(Probe::trusted())));
    assert!(trusted.lengths.iter().all(|r| r.plan == Plan::SinglePass));
    assert!(right(&trusted) < 20);
}

#[test]
fn positions_that_are_drawn_are_no_dependence() {
    let task = Task::by_name(MOD10).unwrap();
    for name in ["shift", "scalar"] {
        let found = Sweep::new(&mut model(name)).task(&task).probe().unwrap().unwrap();
        assert!(found.padding.holds() && found.batch.holds() && found.repeatable.holds(), "{name}: {found}");
        assert_eq!(found.plan(), Plan::Exhaustive);
    }
    let mut model = Model::load(&fixture("reads_positions"), on_cpu(1)).unwrap();
    let sweep = Sweep::new(&mut model).task(&task).augmentation(Some(Augmentation::Shift));
    assert!(sweep.probe().unwrap().unwrap().batch.holds());
}
