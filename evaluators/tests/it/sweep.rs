//! Sweeps over models whose every answer is known.

use crate::common::{MOD10, SHIFTED, fixture, model, on_cpu, statuses, sweep};
use data::{Augmentation, Dataset, DatasetInfo, Example, Split, Task};
use evaluators::{Format, LengthResult, Model, Plan, Probe, Progress, Score, Sweep, SweepResult, write};

fn score(results: &SweepResult, length: u32) -> Score {
    *results.lengths.iter().find(|r| r.length == length).unwrap().score().unwrap()
}

/// The two plans must agree on everything but rounding in the loss.
fn assert_same(single: &SweepResult, exhaustive: &SweepResult) {
    assert_eq!(single.predictions, exhaustive.predictions);
    assert_eq!(single.lengths.len(), exhaustive.lengths.len());
    for (s, e) in single.lengths.iter().zip(&exhaustive.lengths) {
        assert_eq!((s.plan, e.plan), (Plan::SinglePass, Plan::Exhaustive));
        assert_eq!((s.length, s.status(), s.in_distribution), (e.length, e.status(), e.in_distribution));
        let without_loss = |r: &LengthResult| r.score().map(|s| Score { loss_sum: 0.0, ..*s });
        assert_eq!(without_loss(s), without_loss(e), "length {}", s.length);
        if let (Some(s), Some(e)) = (s.score(), e.score()) {
            assert!((s.loss_sum - e.loss_sum).abs() < 1e-6 * (1.0 + e.loss_sum), "{} {}", s.loss_sum, e.loss_sum);
        }
    }
}

#[test]
fn one_pass_gives_what_every_length_on_its_own_gives() {
    for (name, task, lengths) in [
        ("counts_mod10", MOD10, "1..200"),
        ("breaks_at_60", MOD10, "1..200"),
        ("nan", MOD10, "1..40"),
        ("reads_positions", MOD10, "1..80"),
        ("counts_shifted", SHIFTED, "1..120"),
        ("counts_shifted", SHIFTED, "3,97..105,400"),
    ] {
        let single = sweep(name, task, lengths, |s| s.keep_predictions(true));
        let exhaustive = sweep(name, task, lengths, |s| s.keep_predictions(true).exhaustive(true));
        assert_same(&single, &exhaustive);
    }
}

#[test]
fn a_perfect_counter_scores_one_everywhere() {
    let results = sweep("counts_mod10", MOD10, "1..200", |s| s);
    assert_eq!(results.lengths.len(), 200);
    for r in &results.lengths {
        let s = r.score().unwrap();
        assert_eq!((s.n_sequences, s.n_tokens), (1, u64::from(r.length)), "the task has one track");
        assert_eq!((s.accuracy(), s.last_accuracy(), s.sequence_accuracy()), (Some(1.0), Some(1.0), Some(1.0)));
        assert_eq!(s.counting_accuracy(), (r.length > 1).then_some(1.0));
        assert!((s.loss().unwrap() - (1.0 + 12.0 * (-8f64).exp()).ln()).abs() < 1e-6);
        assert_eq!((r.in_distribution, r.status()), (r.length <= 50, "ok"));
    }
}

#[test]
fn a_counter_that_breaks_at_60_is_seen_to() {
    let results = sweep("breaks_at_60", MOD10, "1..200", |s| s);
    for r in &results.lengths {
        let (s, length) = (r.score().unwrap(), u64::from(r.length));
        let right = length <= 60;
        assert_eq!(s.last_accuracy(), Some(if right { 1.0 } else { 0.0 }), "length {length}");
        assert_eq!(s.sequence_accuracy(), s.last_accuracy());
        assert_eq!(s.accuracy(), Some(length.min(60) as f64 / length as f64));
        assert_eq!(s.counting_correct, (length - 1).min(60));
    }
}

#[test]
fn lengths_past_the_last_number_say_so() {
    let results = sweep("counts_shifted", SHIFTED, "1..120", |s| s);
    assert_eq!(results.lengths.len(), 120);
    for r in &results.lengths {
        match r.length {
            // the starts 1..=50 reach the number 100 after 99 ..= 50 symbols
            length @ 1..100 => {
                let s = r.score().unwrap();
                assert_eq!(s.n_sequences, u64::from((100 - length).min(50)));
                assert_eq!(s.accuracy(), Some(1.0));
            }
            _ => {
                assert_eq!(r.status(), "past the vocabulary's last number (100)");
                assert_eq!(r.score(), None);
            }
        }
    }
}

#[test]
fn samples_bound_the_tracks() {
    let results = sweep("counts_shifted", SHIFTED, "10", |s| s.samples(7));
    assert_eq!(score(&results, 10).n_sequences, 7);
    let results = sweep("counts_shifted", SHIFTED, "10", |s| s.samples(0));
    assert_eq!(score(&results, 10).n_sequences, 1);
}

#[test]
fn nan_logits_are_reported_not_averaged() {
    let results = sweep("nan", MOD10, "19..22", |s| s);
    let nan = "NaN logits in 1 of 1 sequences";
    assert_eq!(statuses(&results.lengths), ["ok", "ok", nan, nan]);
    assert!(results.lengths[3].score().is_none());
}

#[test]
fn lengths_past_a_position_table_say_so() {
    // 64 positions hold the first token and 63 symbols
    let results = sweep("reads_positions", MOD10, "62..65", |s| s);
    let past = "past the model's position table (64 positions)";
    assert_eq!(statuses(&results.lengths), ["ok", "ok", past, past]);
    assert_eq!(score(&results, 63).accuracy(), Some(1.0));
    // nothing is left to run, which is fine
    assert_eq!(statuses(&sweep("reads_positions", MOD10, "500", |s| s).lengths), [past]);
}

#[test]
fn augmented_positions_are_never_swept_in_one_pass() {
    let results = sweep("augmented", MOD10, "1..30", |s| s);
    assert!(results.lengths.iter().all(|r| r.plan == Plan::Exhaustive && r.status() == "ok"));
}

#[test]
fn threads_and_batch_sizes_change_nothing() {
    let task = Task::by_name(SHIFTED).unwrap();
    let with_workers = |workers, threads, max_tokens, exhaustive| {
        let mut model = Model::load(&fixture("counts_shifted"), on_cpu(threads)).unwrap();
        let sweep = Sweep::new(&mut model).task(&task).lengths(1..=60).max_tokens(Some(max_tokens)).workers(workers);
        sweep.exhaustive(exhaustive).keep_predictions(true).results().unwrap()
    };
    let run = |threads, max_tokens, exhaustive| with_workers(None, threads, max_tokens, exhaustive);
    for exhaustive in [false, true] {
        let one = run(1, 16_384, exhaustive);
        assert_eq!(one, run(2, 16_384, exhaustive));
        let small = run(1, 100, exhaustive);
        assert_eq!(one.predictions, small.predictions);
        assert_eq!(small, with_workers(Some(2), 2, 100, exhaustive), "sessions side by side");
        assert_eq!(one.predictions, run(1, 0, exhaustive).predictions, "a sequence over the budget runs alone");
    }
}

#[test]
fn progress_counts_up_to_the_total() {
    let (mut model, task) = (model("counts_shifted"), Task::by_name(SHIFTED).unwrap());
    for exhaustive in [false, true] {
        let mut seen = vec![];
        let sweep = Sweep::new(&mut model).task(&task).lengths(1..=120).max_tokens(Some(1000)).exhaustive(exhaustive);
        sweep.progress(|p| seen.push(p)).results().unwrap();
        assert!(seen.len() > 3 && seen.windows(2).all(|w| w[0].tokens < w[1].tokens && w[0].lengths <= w[1].lengths));
        let last = seen.last().unwrap();
        assert_eq!((last.tokens, last.lengths), (last.total_tokens, last.total_lengths));
    }
}

#[test]
fn predictions_hold_input_gold_and_predicted() {
    let results = sweep("breaks_at_60", MOD10, "2,61", |s| s.keep_predictions(true));
    let [short, long] = &results.predictions[..] else { unreachable!() };
    assert_eq!((short.length, short.index), (2, 0));
    assert_eq!(
        (&short.input_ids[..], &short.gold[..], &short.predicted[..]),
        (&[0, 12, 12][..], &[1, 2][..], &[1, 2][..])
    );
    assert_eq!((long.input_ids.len(), long.gold.len()), (62, 61));
    assert_eq!((long.gold.last(), long.predicted.last()), (Some(&1), Some(&0)));
    assert!(sweep("counts_mod10", MOD10, "2", |s| s).predictions.is_empty());
}

#[test]
fn a_split_is_scored_as_it_is() {
    let (mut model, task) = (model("breaks_at_60"), Task::by_name(MOD10).unwrap());
    let rows = task.rows(Split::OodTest, 1000).unwrap();
    let dataset = Dataset::generated(&task, Split::OodTest, 0, rows).unwrap();
    let mut last = Progress::default();
    let sweep = Sweep::new(&mut model).task(&task).progress(|p| last = p);
    let results = sweep.run_dataset(&dataset, "ood_test").unwrap().by_length;
    assert_eq!(results.facts.split, "ood_test");
    assert_eq!(results.lengths.iter().map(|r| r.length).collect::<Vec<_>>(), (51..=100).collect::<Vec<_>>());
    assert_eq!((last.tokens, last.total_tokens), ((52..=101).sum(), (52..=101).sum()));
    let right = results.lengths.iter().filter(|r| r.score().unwrap().last_accuracy() == Some(1.0));
    assert_eq!(right.count(), 10);
}

#[test]
fn the_worked_example_of_the_metric_definitions() {
    // counting 3/4, last 1/2, overall 4/6: two tracks of the shifted task, with three labels moved off the count
    let (mut model, task) = (model("counts_shifted"), Task::by_name(SHIFTED).unwrap());
    let mut dataset = Dataset::new(DatasetInfo::of(&task, 0));
    let a = 102;
    let long = Example { input_ids: vec![0, a, a, a, a, a], labels: vec![-1, 1, 2, 9, 4, 5], length: 5 };
    let short = Example { input_ids: vec![3, a], labels: vec![-1, 5], length: 1 };
    dataset.push(long.as_ref());
    dataset.push(short.as_ref());
    let whole = Sweep::new(&mut model).task(&task).run_dataset(&dataset, "val").unwrap();
    assert_eq!((whole.total.counting_accuracy(), whole.total.last_accuracy()), (Some(0.75), Some(0.5)));
    assert_eq!(whole.total.accuracy(), Some(4.0 / 6.0));
    let results = whole.by_length;
    let (long, short) = (score(&results, 5), score(&results, 1));
    assert_eq!((long.counting_correct, long.counting_total, long.last_correct), (3, 4, 1));
    assert_eq!((short.counting_total, short.last_correct, short.n_sequences), (0, 0, 1));
    assert_eq!((long.accuracy(), short.accuracy()), (Some(0.8), Some(0.0)));
}

#[test]
fn another_task_than_the_models_is_an_error() {
    let (mut model, task) = (model("other_vocab"), Task::by_name(MOD10).unwrap());
    let message = Sweep::new(&mut model).task(&task).run().unwrap_err().to_string();
    assert!(message.contains("token 12 is `b` for the model and `a` in the task\n  hint:"), "{message}");
    let shifted = Task::by_name(SHIFTED).unwrap();
    let message = Sweep::new(&mut model).task(&shifted).run().unwrap_err().to_string();
    assert!(message.contains("token 11 is `<pad>` for the model and `11` in the task"), "{message}");
}

#[test]
fn long_sequences_are_fed_in_pieces_with_the_same_outcome() {
    let lengths = "1..600,3000,10000..12000:500";
    let whole = sweep("counts_mod10", MOD10, lengths, |s| s.keep_predictions(true));
    for (exhaustive, name) in [false, true].into_iter().flat_map(|e| [(e, "stateful"), (e, "stateful_required")]) {
        // 256 tokens at a time, the least that a piece has
        let mut pieces =
            sweep(name, MOD10, lengths, |s| s.max_tokens(Some(1000)).exhaustive(exhaustive).keep_predictions(true));
        pieces.lengths.iter_mut().for_each(|r| r.plan = Plan::SinglePass);
        assert_eq!(pieces.predictions, whole.predictions);
        assert_eq!(statuses(&pieces.lengths), statuses(&whole.lengths));
        assert!(pieces.lengths.iter().all(|r| r.score().unwrap().accuracy() == Some(1.0)));
    }
}

/// A state that is right for some hundred tokens may not be right for thousands.
#[test]
fn states_that_lose_their_precision_are_not_handed_on() {
    for exhaustive in [false, true] {
        let results = sweep("stateful_half", MOD10, "1..100,2000..4000:77", |s| s.exhaustive(exhaustive));
        let wrong = results.lengths.iter().find(|r| r.score().unwrap().accuracy() != Some(1.0));
        assert!(wrong.is_none(), "length {}", wrong.unwrap().length);
    }
}

#[test]
fn drawn_positions_reach_the_model_as_its_type_and_end_where_they_run_out() {
    for (name, augmentation) in [("shift", "shift"), ("scalar", "scaler+shift")] {
        let results = sweep(name, MOD10, "1..130:3", |s| s.samples(5));
        for r in &results.lengths {
            assert_eq!(r.plan, Plan::Exhaustive);
            // the first token and the spare position leave 126 of 128
            if r.length <= 126 {
                let s = r.score().unwrap();
                assert_eq!((s.n_sequences, s.accuracy()), (5, Some(1.0)), "{name}, length {}", r.length);
            } else {
                assert_eq!(r.status(), format!("past the 128 positions that `{augmentation}` draws from"));
            }
        }
    }
}

#[test]
fn positions_of_the_wrong_type_are_an_error() {
    let task = Task::by_name(MOD10).unwrap();
    let refused = |name: &str, augmentation| {
        let mut model = model(name);
        let error = Sweep::new(&mut model).task(&task).augmentation(augmentation).run().unwrap_err().to_string();
        error.replace(&fixture(name).display().to_string(), "MODEL")
    };
    let hint =
        "\n  hint: float positions are `scaler+shift` or `zooming`, all others are int64; choose with --augmentation";
    assert_eq!(
        refused("float_positions", None),
        format!("cannot evaluate MODEL: its position_ids are float, but its positions are `none`{hint}")
    );
    assert_eq!(
        refused("shift", Some(Augmentation::Zooming)),
        format!("cannot evaluate MODEL: its position_ids are int64, but its positions are `zooming`{hint}")
    );
}

#[test]
fn sequences_are_added_until_the_interval_is_narrow() {
    // right for even starts only: about half of the draws
    let results = sweep("half_right", MOD10, "1..5", |s| s.samples(10).until_width(Some(0.1)));
    for r in &results.lengths {
        let score = r.score().unwrap();
        let (low, high) = score.last_accuracy_interval().unwrap();
        assert!(high - low <= 0.1 && low < 0.5 && high > 0.5, "{low} {high}");
        assert!((320..=640).contains(&score.n_sequences), "10 doubled until 380 are reached: {}", score.n_sequences);
    }
    let enough = sweep("shift", MOD10, "1..5", |s| s.samples(100).until_width(Some(0.1)));
    assert!(enough.lengths.iter().all(|r| r.score().unwrap().n_sequences == 100));
    let all = sweep("counts_shifted", SHIFTED, "1..5", |s| s.samples(10).until_width(Some(0.01)));
    assert!(all.lengths.iter().all(|r| r.score().unwrap().n_sequences == 50), "the task has no more");
}

#[test]
fn splits_run_ten_times_where_positions_are_drawn() {
    let task = Task::by_name(MOD10).unwrap();
    let rows = task.rows(Split::Val, 1000).unwrap();
    let dataset = Dataset::generated(&task, Split::Val, 0, rows).unwrap();
    let run = |name: &str, loops| {
        let mut model = model(name);
        Sweep::new(&mut model).task(&task).loops(loops).run_dataset(&dataset, "val").unwrap()
    };
    let (default, five, plain) = (run("half_right", None), run("half_right", Some(5)), run("counts_mod10", None));
    assert_eq!((default.loops, five.loops, plain.loops), (10, 5, 1));
    assert_eq!(default.total.n_sequences, 10 * rows as u64);
    let right = default.total.last_accuracy().unwrap();
    assert!(right > 0.4 && right < 0.6, "every pass draws again: {right}");
    assert_eq!(plain.total.accuracy(), Some(1.0));
}

#[test]
fn the_loss_of_a_split_is_the_mean_over_batches_of_32_in_file_order() {
    // 33 examples: the last one is a batch by itself and weighs as much as the first 32
    let (mut model, task) = (model("counts_mod10"), Task::by_name(MOD10).unwrap());
    let mut dataset = Dataset::new(DatasetInfo::of(&task, 0));
    let right = Example { input_ids: vec![0, 12, 12], labels: vec![-1, 1, 2], length: 2 };
    let wrong = Example { input_ids: vec![0, 12], labels: vec![-1, 7], length: 1 };
    (0..32).for_each(|_| dataset.push(right.as_ref()));
    dataset.push(wrong.as_ref());
    let result = Sweep::new(&mut model).task(&task).run_dataset(&dataset, "made up").unwrap();
    let normaliser = (1.0 + 12.0 * (-8f64).exp()).ln();
    assert!((result.batch_mean_loss.unwrap() - (normaliser + (normaliser + 8.0)) / 2.0).abs() < 1e-6);
    assert!((result.total.loss().unwrap() - (normaliser + 8.0 / 65.0)).abs() < 1e-6);
}

#[test]
fn unseen_accuracy_leaves_out_the_ranks_of_the_validation_split() {
    // validation sequences have up to 51 tokens, so that of 100 labelled positions 49 are unseen, although training
    // reached 50 of them
    let (mut model, task) = (model("breaks_at_60"), Task::by_name(MOD10).unwrap());
    let rows = task.rows(Split::OodTest, 1000).unwrap();
    let dataset = Dataset::generated(&task, Split::OodTest, 0, rows).unwrap();
    let total = Sweep::new(&mut model).task(&task).run_dataset(&dataset, "ood_test").unwrap().total;
    assert_eq!(total.unseen_total, 1225, "as in the original's table");
    let right: u64 = (51u64..=100).map(|length| length.min(60) - 51).sum();
    assert_eq!(total.unseen_correct, right);
}

#[test]
fn a_killed_sweep_ends_with_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, table) = (dir.path().join("sweep.progress"), dir.path().join("sweep.parquet"));
    let task = Task::by_name(MOD10).unwrap();
    let run = |width| {
        let mut model = Model::load(&fixture("half_right"), on_cpu(2)).unwrap();
        let mut batches = 0;
        let sweep = Sweep::new(&mut model).task(&task).lengths(1..=40).samples(30).max_tokens(Some(500));
        let sweep = sweep.until_width(width).journal(Some(&journal)).progress(|_| batches += 1);
        let results = sweep.run().unwrap();
        write(&results, Format::Parquet, &table).unwrap();
        (std::fs::read(&table).unwrap(), batches)
    };
    for width in [None, Some(0.2)] {
        let (whole, batches) = run(width);
        assert!(batches > 20);
        let record = std::fs::read(&journal).unwrap();
        for share in [0.0, 0.3, 0.7, 1.0] {
            std::fs::write(&journal, &record[..(record.len() as f64 * share) as usize]).unwrap();
            assert_eq!(run(width), (whole.clone(), batches), "after {share}");
            assert_eq!(std::fs::read(&journal).unwrap(), record);
        }
        std::fs::remove_file(&journal).unwrap();
    }
}

/// The lines of another plan under the title of this one: only what is about the very same batches counts.
#[test]
fn progress_of_another_plan_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("sweep.progress");
    let task = Task::by_name(MOD10).unwrap();
    let run = |tokens: usize, exhaustive: bool, journal: Option<&std::path::Path>| {
        let mut model = Model::load(&fixture("half_right"), on_cpu(2)).unwrap();
        let sweep = Sweep::new(&mut model).task(&task).lengths(1..=40).samples(30).max_tokens(Some(tokens));
        sweep.exhaustive(exhaustive).journal(journal).results().unwrap().lengths
    };
    let whole = run(500, true, None);
    let mut journals = [(500, true), (100, true), (500, false)].map(|(tokens, exhaustive)| {
        run(tokens, exhaustive, Some(&journal));
        let record = String::from_utf8(std::fs::read(&journal).unwrap()).unwrap();
        record.split_inclusive('\n').map(str::to_owned).collect::<Vec<_>>()
    });
    let title = journals[0][0].clone();
    for lines in &mut journals {
        lines[0] = title.clone();
        for kept in [lines.len() / 2, lines.len()] {
            std::fs::write(&journal, lines[..kept].concat()).unwrap();
            assert_eq!(run(500, true, Some(&journal)), whole);
        }
    }
    let mut swapped = journals[0].clone();
    swapped.swap(3, 4);
    std::fs::write(&journal, swapped.concat()).unwrap();
    assert_eq!(run(500, true, Some(&journal)), whole, "lines in another order");
}

#[test]
fn full_memory_halves_the_batch_and_a_sequence_that_never_fits_says_so() {
    for (exhaustive, probed) in
        [(false, Some(Probe::trusted())), (true, Some(Probe::trusted())), (false, None), (true, None)]
    {
        let results = sweep("hungry", SHIFTED, "1..60", |s| s.samples(4).exhaustive(exhaustive).probed(probed));
        let expected = sweep("counts_shifted", SHIFTED, "1..60", |s| s.samples(4).exhaustive(exhaustive));
        for (r, e) in results.lengths.iter().zip(&expected.lengths) {
            // one start token and 49 symbols fit; the lengths are bisected until that is found
            match r.length <= 49 {
                true => assert_eq!(r.outcome, e.outcome),
                false => {
                    let start = "out of memory on one sequence of 51 tokens (";
                    assert!(r.status().starts_with(start), "{} {}", r.length, r.status())
                }
            }
        }
    }
}

#[test]
fn tests_that_are_no_prefixes_of_each_other_run_one_by_one() {
    // a span `<sos> A B < A … B`, whose B is another one for every length: 2 to 155 numbers
    let results = sweep("echo", "counting_raspL", "1..160", |s| s.samples(3));
    for r in &results.lengths {
        assert_eq!(r.plan, Plan::Exhaustive);
        let scored = (2..=155).contains(&r.length);
        assert_eq!(r.score().map(|s| s.n_sequences > 0), scored.then_some(true), "{} {}", r.length, r.status());
    }
}

/// A sweep used to end at the first length without a test.
#[test]
fn lengths_between_those_that_have_tests_have_a_reason() {
    let letters: Vec<String> = (0..156).map(|i| format!("\"t{i}\"")).collect();
    let task = format!("tally,alphabet=[{}],shares=letters,strings=3,train_lengths=3..9", letters.join(","));
    let results = sweep("echo", &task, "1..21", |s| s.samples(4));
    for r in &results.lengths {
        match r.length % 3 {
            0 => assert_eq!(r.score().map(|s| s.n_sequences), Some(4), "{} {}", r.length, r.status()),
            _ => assert!(r.status().contains("a multiple of 3 letters"), "{} {}", r.length, r.status()),
        }
    }
}

#[test]
fn a_model_that_names_no_task_needs_one() {
    let error = Sweep::new(&mut model("echo")).run().unwrap_err().to_string();
    assert!(error.contains("does not say which task it is for\n  hint: name it with --task"), "{error}");
    let task = Task::by_name(MOD10).unwrap();
    let error = Sweep::new(&mut model("echo")).task(&task).run().unwrap_err().to_string();
    assert!(error.contains("the model's logits are 160 wide, but the task has 13 tokens"), "{error}");
}
