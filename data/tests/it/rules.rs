//! Properties of every task: labels look back only, tracks are prefix-closed where they say so, ids stay inside the
//! vocabulary, and the rule that generates is the rule that checks.

use data::{Auxiliary, Example, Split, Task};
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::HashSet;

fn any_task() -> impl Strategy<Value = Task> {
    let names: Vec<String> = Task::names_for_tests().collect();
    select(names).prop_map(|name| Task::by_name(&name).unwrap())
}

fn any_split() -> impl Strategy<Value = Split> {
    select(Split::ALL.to_vec())
}

fn check(task: &Task, e: &Example) -> Result<(), TestCaseError> {
    let vocab = task.vocabulary.len();
    prop_assert!(!e.input_ids.is_empty() && e.input_ids.len() == e.labels.len());
    prop_assert!(e.input_ids.iter().all(|id| usize::from(*id) < vocab), "{}: {:?}", task.name, e);
    let labels = task.vocabulary.label_count() as i32;
    prop_assert!(e.labels.iter().all(|l| (-1..labels).contains(&i32::from(*l))), "{}: {:?}", task.name, e);
    task.check_labels(&e.input_ids, &e.labels)
        .map_err(|why| TestCaseError::fail(format!("{}: {why}: {e:?}", task.name)))?;
    prop_assert_eq!(task.length(&e.input_ids, &e.labels), e.length, "{}", task.name);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn generated_examples_pass_their_own_check(task in any_task(), split in any_split(), seed: u64, index in 0usize..100_000) {
        let rows = task.rows(split, 100_000).unwrap();
        let index = index % rows;
        let e = task.examples(split, seed)(index);
        check(&task, &e)?;
        prop_assert!(e.input_ids.len() <= task.max_seq_len);
        prop_assert_eq!(&task.examples(split, seed)(index), &e);
        if let Some(label) = e.labels.iter().position(|l| *l >= 0) {
            let mut wrong = e.clone();
            wrong.labels[label] = if wrong.labels[label] == 0 { 1 } else { 0 };
            prop_assert!(task.check_labels(&wrong.input_ids, &wrong.labels).is_err(), "{}: {:?}", task.name, wrong);
        }
    }

    /// `train.fresh` goes on behind the published number of examples.
    #[test]
    fn training_has_no_last_example(task in any_task(), seed: u64, index in 0usize..1 << 40) {
        let e = task.examples(Split::Train, seed)(index);
        check(&task, &e)?;
        prop_assert_eq!(&task.examples(Split::Train, seed)(index), &e);
    }

    #[test]
    fn examples_of_a_length_have_it(task in any_task(), seed: u64, index in 0usize..1 << 40, length in 0u32..300) {
        if let Some(e) = task.family.of_length(seed, index, length) {
            check(&task, &e)?;
            prop_assert_eq!(e.length, length);
            prop_assert_eq!(task.family.of_length(seed, index, length), Some(e));
        }
    }

    #[test]
    fn labels_never_look_ahead(task in any_task(), split in any_split(), seed: u64, index in 0usize..2000, cut: prop::sample::Index, other: prop::sample::Index) {
        let e = task.examples(split, seed)(index % task.rows(split, 100_000).unwrap());
        let e = if task.family.length(&e.input_ids).is_ok() { e } else { return Ok(()) }; // auxiliary
        // Another sequence with the same beginning: cut short, or continued with another token.
        let at = cut.index(e.input_ids.len());
        let mut changed = e.input_ids[..=at].to_vec();
        for tail in [None, Some(other.index(task.vocabulary.len()) as u16)] {
            changed.extend(tail);
            let Ok(labels) = task.family.labels(&changed) else { continue };
            let known = if task.family.leaves_last_open() { at } else { at + 1 };
            prop_assert_eq!(&labels[..known], &e.labels[..known], "{}: {:?}", task.name, changed);
        }
    }

    #[test]
    fn tracks_are_prefixes_of_longer_ones_and_valid(task in any_task(), seed: u64, index in 0usize..1000, length in 1u32..260, more in 0u32..300) {
        let family = &task.family;
        let long = family.track(seed, index, length + more);
        let test = family.test(seed, index, length);
        if !family.prefix_closed() {
            if long.max_length() != length { prop_assert!(long.prefix(length).is_err()) }
            if let Ok(test) = test { check(&task, &test)?; prop_assert_eq!(test.length, length) }
            return Ok(());
        }
        match (long.prefix(length), test) {
            (Ok(prefix), Ok(test)) => {
                check(&task, &test)?;
                prop_assert_eq!(test.length, length);
                prop_assert_eq!(long.tokens(length), prefix.input_ids.len());
                prop_assert_eq!(prefix.to_example(), test, "{}", task.name);
            }
            (Err(a), Err(b)) => {
                prop_assert_eq!(&a, &b, "{}", task.name);
                prop_assert!(a.reason.contains("past the vocabulary's last number") || task.name == "debug", "{}", a);
            }
            (a, b) => prop_assert!(false, "{} {length}: {a:?} but {b:?}", task.name),
        }
    }

    #[test]
    fn any_tokens_at_all_are_refused_or_labelled(task in any_task(), ids in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let ids: Vec<u16> = ids.iter().map(|i| i.index(task.vocabulary.len()) as u16).collect();
        task.family.rule(&ids);
        if let Ok(labels) = task.family.labels(&ids) {
            prop_assert_eq!(labels.len(), ids.len());
            let count = task.vocabulary.label_count() as i32;
            prop_assert!(labels.iter().all(|l| (-1..count).contains(&i32::from(*l))));
        }
    }
}

#[test]
fn tracks_reach_the_published_limits() {
    for (name, limit, distinct) in [
        ("counting_samesymbol", Some(100), Some(1)),
        ("counting_diffsymbol", Some(100), None),
        ("counting_samesymbol_shiftedstart2", Some(99), Some(50)),
        ("counting_samesymbol_shiftedstart3", Some(99), Some(50)),
        ("counting_samesymbol_shiftedstart3__tr25_te50__", Some(50), Some(26)),
        ("counting_samesymbol_shiftedstart3__tr50_te200__", Some(200), Some(151)),
        ("counting_samesymbol_shiftedstart4_addbigram_blkseq", Some(99), Some(50)),
        ("counting_samesymbol_plain_addbigram", Some(100), Some(1)),
        ("counting_samesymbol_plain2_addbigram", Some(99), Some(1)),
        ("counting_samesymbol_mod10bos", None, Some(1)),
        ("counting_diffsymbol_mod20", None, None),
        ("counting_selective", Some(100), None),
        ("counting_selective_10items2bos", Some(100), None),
        ("counting_selective_modular_4items", None, None),
        ("debug", Some(5), Some(1)),
    ] {
        let family = Task::by_name(name).unwrap().family;
        assert_eq!(family.distinct_tracks(), distinct, "{name}");
        let track = family.track(0, 0, 3000);
        assert_eq!(track.limit.as_ref().map(|(limit, _)| *limit), limit, "{name}");
        assert_eq!(track.max_length(), limit.unwrap_or(3000), "{name}");
        assert_ne!(family.track(0, 1, 40).input_ids == family.track(0, 0, 40).input_ids, distinct != Some(1), "{name}");
    }
    let raspl = Task::by_name("counting_raspL").unwrap().family;
    assert!(!raspl.prefix_closed());
    assert!(raspl.test(0, 0, 155).is_ok() && raspl.test(0, 0, 156).is_err() && raspl.test(0, 0, 1).is_err());
}

#[test]
fn out_of_distribution_examples_of_enumerated_families_are_prefixes_of_tracks() {
    for name in ["counting_samesymbol_mod10", "counting_samesymbol_mod10bos", "counting_samesymbol_shiftedstart3"] {
        let task = Task::by_name(name).unwrap();
        let tracks: Vec<_> =
            (0..task.family.distinct_tracks().unwrap()).map(|i| task.family.track(0, i, 1000)).collect();
        let rows = task.rows(Split::OodTest, 1_000).unwrap();
        for e in (0..rows).map(task.examples(Split::OodTest, 0)) {
            assert!(tracks.iter().any(|t| t.prefix(e.length).is_ok_and(|p| p == e.as_ref())), "{name}: {}", e.length);
        }
    }
}

#[test]
fn validation_cells_never_occur_in_training() {
    for name in [
        "counting_samesymbol",
        "counting_diffsymbol",
        "counting_samesymbol_shiftedstart",
        "counting_samesymbol_shiftedstart2_padhelper",
    ] {
        let task = Task::by_name(name).unwrap();
        // (symbols, all tokens but symbols and helpers) identify the pair
        let cell = |e: Example| {
            let numbers: Vec<u16> = e.input_ids.iter().copied().filter(|id| *id <= 100).collect();
            (e.length, numbers)
        };
        let cells = |split, seed, n| (0..n).map(task.examples(split, seed)).map(cell).collect::<HashSet<_>>();
        for seed in [0, 1] {
            let val = cells(Split::Val, seed, task.rows(Split::Val, 0).unwrap());
            assert_eq!(val.len(), 300, "{name}");
            let train = cells(Split::Train, seed, 120_000);
            assert!(train.is_disjoint(&val), "{name}");
            assert!(train.len() > 3400, "{name}: {} of 3425 cells", train.len());
        }
        assert_ne!(cells(Split::Val, 0, 300), cells(Split::Val, 1, 300));
    }
}

#[test]
fn auxiliary_tests_pass_their_own_check() {
    let mut kinds = HashSet::new();
    for task in Task::names().map(|name| Task::by_name(name).unwrap()) {
        let Some(kind) = task.auxiliary.as_ref().map(|a| a.kind) else { continue };
        kinds.insert(kind);
        let rows = task.rows(Split::Auxiliary(kind), 0).unwrap();
        for e in (0..rows).map(task.examples(Split::Auxiliary(kind), 0)).take(60) {
            task.check_labels(&e.input_ids, &e.labels).unwrap();
            assert_eq!(task.length(&e.input_ids, &e.labels), e.length);
        }
    }
    assert_eq!(kinds.len(), Auxiliary::ALL.len());
}
