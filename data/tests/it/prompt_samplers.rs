//! Samplers of prompts and arithmetic by their distributions; settings and lengths that make no example.

use crate::prompts::task;
use crate::published::{LEVEL, chi_square};
use data::{Example, Split, Task};
use std::collections::HashSet;

/// Counts of `of` over training examples, against probabilities in proportion to `weights`.
pub(crate) fn distributed(
    what: &str,
    examples: impl Iterator<Item = Example>,
    weights: &[f64],
    of: impl Fn(&Example) -> Option<usize>,
) {
    let mut found = vec![0; weights.len()];
    examples.filter_map(|e| of(&e)).for_each(|outcome| found[outcome] += 1);
    let normal = chi_square(&found, weights);
    assert!(normal < LEVEL, "{what}: {normal:.2}: {found:?}");
    assert!(found.iter().sum::<usize>() > 20 * weights.len().min(100), "{what}: {found:?}");
}

#[test]
fn lengths_and_numbers_are_drawn_as_described() {
    let addition = task("chomsky/binary_addition");
    let train = || (0..40_000).map(addition.examples(Split::Train, 1));
    distributed("length", train(), &[1.0; 40], |e| Some(e.length as usize - 1));
    let of = |length: u32| {
        let family = &addition.family;
        (0..20_000).map(move |index| family.of_length(5, index, length).unwrap())
    };
    distributed("first number", of(20), &[1.0; 18], |e| e.input_ids.iter().position(|id| *id == 2).map(|at| at - 1));
    // a value of three bits is 1 to 7; one number alone is never all ones
    distributed("value", of(5), &[1.0; 7], |e| {
        let bits: Vec<usize> = e.input_ids.iter().map(|id| usize::from(*id)).collect();
        (bits[3] == 2).then(|| bits[0] + 2 * bits[1] + 4 * bits[2] - 1)
    });
    distributed("two bits", of(2), &[1.0; 3], |e| Some(usize::from(e.input_ids[0] + 2 * e.input_ids[1])));
    assert!(of(1).take(99).all(|e| e.input_ids[0] == 0));

    let root = task("chomsky/compute_sqrt");
    distributed("root", (0..20_000).map(|i| root.family.of_length(0, i, 3).unwrap()), &[1.0; 7], |e| {
        Some(usize::from(4 * e.input_ids[0] + 2 * e.input_ids[1] + e.input_ids[2]) - 1)
    });
    let missing = task("chomsky/missing_duplicate_string");
    distributed("mark", (0..20_000).map(|i| missing.family.of_length(0, i, 21).unwrap()), &[1.0; 20], |e| {
        e.input_ids.iter().position(|id| *id == 2)
    });
}

#[test]
fn the_samplers_of_huang() {
    for name in ["huang/unique_copy", "huang/sort"] {
        let task = task(name);
        let train = || (0..30_000).map(task.examples(Split::Train, 0));
        distributed(name, train(), &[1.0; 50], |e| Some(e.length as usize - 1));
        let numbers = |e: &Example| e.input_ids[1..=e.length as usize].to_vec();
        distributed(name, train(), &[1.0; 150], |e| Some(numbers(e)[0].into()));
        distributed(name, train(), &[1.0; 150], |e| numbers(e).last().map(|n| usize::from(*n)));
        let all = train().chain((0..500).map(task.examples(Split::OodTest, 0)));
        all.for_each(|e| assert_eq!(numbers(&e).iter().collect::<HashSet<_>>().len(), e.length as usize));
        assert_eq!(Split::ALL.map(|split| task.rows(split, 7).unwrap()), [7, 2000, 4000]);
        let tests = (0..4000).map(task.examples(Split::OodTest, 0));
        assert_eq!(tests.filter(|e| e.length <= 100).count(), 2000);
    }
    let addition = task("huang/addition");
    let of = |length| (0..20_000).map(move |index| (index, length));
    let draw = |(index, length)| addition.family.of_length(2, index, length).unwrap();
    let plus = addition.vocabulary.id("+").unwrap();
    let first = |e: &Example| e.input_ids.iter().position(|id| *id == plus).unwrap() - 1;
    distributed("a", of(30).map(draw), &[1.0; 27], |e| Some(first(e) - 1));
    distributed("bit", of(4).map(draw), &[1.0; 4], |e| Some(usize::from(2 * e.input_ids[1] + e.input_ids[3])));
    of(30).map(draw).for_each(|e| assert!(first(&e) == 1 || e.input_ids[1] == 1));
}

#[test]
fn the_samplers_of_ram_and_abacus() {
    let prefix = task("ram/prefix_ngram");
    let of = |index| prefix.family.of_length(0, index, 20).unwrap();
    // where the n-gram occurs first is where it was drawn unless it occurs before by chance (0.05 %)
    let letters = |e: &Example| e.input_ids[5..25].to_vec();
    distributed("n-gram", (0..20_000).map(of), &[1.0; 15], |e| {
        letters(e).windows(3).position(|ngram| *ngram == e.input_ids[1..4])
    });
    assert!((0..2000).map(of).all(|e| e.input_ids.len() >= 26 + 3));

    // two n-grams that overlap leave no repetition: probability by enumeration of all pairs of places
    let duplicate = task("ram/duplicate_ngram,alphabet=numbers,symbols=20000"); // no repetition by chance
    let (mut apart, mut pairs) = (vec![], vec![]);
    for length in 8..=20i32 {
        let places = || 0..length - 3;
        let differ: Vec<i32> = places().flat_map(|a| places().map(move |b| (a - b).abs())).collect();
        pairs.push(differ.iter().filter(|d| **d > 0).count() as f64);
        apart.push(differ.iter().filter(|d| **d > 2).count() as f64);
    }
    for (i, length) in (8..=20).enumerate() {
        let examples = (0..4000).map(|index| duplicate.family.of_length(0, index, length).unwrap());
        let weights = [pairs[i] - apart[i], apart[i]];
        distributed("repetition", examples, &weights, |e| {
            let x = &e.input_ids[1..=length as usize];
            let repeats = |ngram: &[u16]| x.windows(3).filter(|other| *other == ngram).count() > 1;
            Some(usize::from(x.windows(3).any(repeats)))
        });
    }

    let addition = task("abacus/addition");
    let plus = addition.vocabulary.id("+").unwrap();
    let digits = |e: &Example| {
        let at = e.input_ids.iter().position(|id| *id == plus).unwrap();
        let equals = e.input_ids.iter().position(|id| Some(*id) == addition.vocabulary.id("=")).unwrap();
        (at, equals - at - 1)
    };
    for split in [Split::Train, Split::Val] {
        let grid: HashSet<(usize, usize)> = (0..400).map(addition.examples(split, 0)).map(|e| digits(&e)).collect();
        assert_eq!(grid.len(), 400);
        assert!(grid.iter().all(|(a, b)| (1..=20).contains(a) && (1..=20).contains(b)));
    }
    let train = || (0..20_000).map(addition.examples(Split::Train, 0));
    distributed("leading digit", train(), &[1.0; 9], |e| Some(usize::from(e.input_ids[digits(e).0 - 1]) - 1));
    distributed("last digit", train(), &[1.0; 10], |e| (digits(e).0 > 1).then(|| e.input_ids[0].into()));
    let lengths = |settings: &str| -> HashSet<(usize, usize)> {
        let task = task(&format!("abacus/addition{settings}"));
        (0..300).map(|index| digits(&task.family.test(0, index, 9).unwrap())).collect()
    };
    assert_eq!(lengths(""), HashSet::from([(9, 9)]));
    assert_eq!(lengths(",second=half"), HashSet::from([(9, 5)]));
    assert_eq!(lengths(",second=any").len(), 17);
}

#[test]
fn lengths_without_examples_say_why() {
    for (name, length, reason) in [
        ("huang/unique_copy", 151, "there are only 150 different symbols"),
        ("huang/addition", 3, "at least 4 tokens"),
        ("ram/prefix_ngram", 5, "at least 6 symbols"),
        ("ram/duplicate_ngram", 4, "at least 5 symbols"),
        ("mqar/v128", 17, "an odd number of tokens"),
        ("mqar/v128", 128, "not larger than the length"),
        ("mqar/v128", 2, "1 pairs and their queries need 4 tokens"),
        ("mqar/v128,sweep_pairs=5", 18, "5 pairs and their queries need 20 tokens"),
        ("mad/noisy_recall", 9, "an even number of tokens"),
        ("mad/selective_copying", 32, "need a length of 33"),
        ("h3/induction_head_len3_trig3", 4, "need a length of 5"),
        ("mamba/induction_heads", 3, "need a length of 4"),
    ] {
        let family = task(name).family;
        let limit = family.test(0, 0, length).unwrap_err();
        assert!(limit.reason.contains(reason) && limit.length == length, "{name}: {limit}");
        assert_eq!(family.of_length(0, 0, length), None, "{name}");
        let track = family.track(0, 0, length);
        assert!(!track.prefix_closed && !track.input_ids.is_empty() && track.prefix(length).is_err(), "{name}");
    }
}

#[test]
fn settings_that_make_no_task() {
    for (name, reason) in [
        ("prompt,separator=", "separator is empty"),
        ("prompt,separator=q", "separator = q is another token"),
        ("prompt,answers=slots,separator=x", "is another token"),
        ("prompt,answers=slots,separator=;", "has no place"),
        ("prompt,symbols=27", "symbols = 27 is not between 1 and 26"),
        ("prompt,distinct=true", "test_lengths = 51-150: length 150: there are only 26"),
        ("prompt,distinct=true,train_lengths=30", "train_lengths = 30: length 30: there are only 26"),
        ("prompt,train_lengths=0-4", "`0-4` names no lengths"),
        ("prompt,train_lengths=5x2", "states pairs"),
        ("prompt,packed=20,end=", "packed = 20 needs"),
        ("prompt,operation=missing,symbols=1", "nothing to guess"),
        ("prompt,operation=after_ngram,divider=", "divider is empty"),
        ("prompt,helper=pad", "helper = pad"),
        ("arithmetic,base=11", "base = 11 is not between 2 and 10"),
        ("arithmetic,operator==", "does not separate"),
        ("arithmetic,operator=3", "operator = 3 is another token"),
        ("arithmetic,separator=", "separator is empty"),
        ("arithmetic,operands=split,train_lengths=3", "at least 4 tokens"),
        ("mqar,train_lengths=64", "states no pairs"),
        ("mqar,vocabulary=64", "not larger than the length"),
        ("mqar,train_lengths=63x2", "odd"),
        ("mqar,power=-1", "power = -1 is not between"),
        ("recall,noise_fraction=0.2", "needs noise tokens"),
        ("recall,marker=7", "marker = 7 is another token"),
        ("recall,train_lengths=3", "an even number"),
        ("induction_heads,marker=", "marker is empty"),
        ("selective_copying,blank=C", "is another token"),
        ("selective_copying,train_lengths=15", "need a length of 16"),
    ] {
        let error = Task::by_name(name).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("\n  hint: "), "{name}: {error}");
    }
}

const FAMILIES: [&str; 6] = ["prompt", "arithmetic", "mqar", "recall", "induction_heads", "selective_copying"];

/// The settings of a task, typed as they are shown, make the same task.
#[test]
fn shown_settings_are_settings() {
    for name in Task::names_for_tests().chain(FAMILIES.map(String::from)) {
        let task = task(&name);
        if FAMILIES.contains(&task.family.name()) && !name.contains("auxiliary") {
            let shown: Vec<String> = task.parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let again = crate::prompts::task(&format!("{},{}", task.family.name(), shown.join(",")));
            assert_eq!((&again.parameters, &again.vocabulary), (&task.parameters, &task.vocabulary), "{name}");
            for split in Split::ALL {
                assert_eq!(again.examples(split, 3)(7), task.examples(split, 3)(7), "{name}");
            }
        }
    }
}

/// The properties of `rules.rs` for every task of these families, with every label changed and every prefix.
#[test]
fn labels_are_checked_and_look_back_only() {
    for name in Task::names_for_tests() {
        let task = task(&name);
        if !FAMILIES.contains(&task.family.name()) || task.family.train_max_length() > 1000 {
            continue;
        }
        let drawn = |split| (0..12).map(task.examples(split, 9)).collect::<Vec<_>>();
        let longest = task.family.train_max_length();
        assert!(task.family.train_lengths().any(|length| task.family.of_length(0, 0, length).is_some()), "{name}");
        assert_eq!((*task.family.train_lengths().end(), task.family.of_length(0, 0, longest + 1)), (longest, None));
        let lengths = longest.saturating_sub(3)..=longest;
        let sized = lengths.filter_map(|length| {
            let e = task.family.of_length(1, 0, length)?;
            assert_eq!(e.length, length, "{name}");
            assert_eq!(task.family.of_length(1, 0, length).as_ref(), Some(&e));
            Some(e)
        });
        for e in Split::ALL.map(drawn).into_iter().flatten().chain(sized) {
            task.check_labels(&e.input_ids, &e.labels).unwrap_or_else(|why| panic!("{name}: {why}: {e:?}"));
            assert_eq!(task.length(&e.input_ids, &e.labels), e.length, "{name}");
            let scored: Vec<usize> = (0..e.labels.len()).filter(|at| e.labels[*at] >= 0).collect();
            assert!(!scored.is_empty(), "{name}: {e:?}");
            for at in scored.into_iter().take(9) {
                let mut wrong = e.labels.clone();
                wrong[at] = if wrong[at] == 0 { 1 } else { 0 };
                assert!(task.check_labels(&e.input_ids, &wrong).is_err(), "{name}: label {at} of {e:?}");
            }
            let known = usize::from(task.family.leaves_last_open());
            for end in 1..=e.input_ids.len().min(300) {
                let Ok(labels) = task.family.labels(&e.input_ids[..end]) else { continue };
                if !task.family.ends_unannounced() {
                    assert_eq!(labels[..end - known], e.labels[..end - known], "{name}: {end} of {e:?}");
                }
            }
        }
    }
}
