//! Recall: samplers by their distributions, labels by independent rules and by hand.

use crate::prompt_samplers::distributed;
use crate::prompts::{shown, task};
use crate::published::{LEVEL, chi_square};
use data::{Example, Split, Task, text};
use std::collections::HashSet;

fn accepts(name: &str, input: &str, labels: &str) -> Result<(), String> {
    let list = |text: &str| format!("[\"{}\"]", text.replace(' ', "\",\""));
    let task = task(name);
    let (input_ids, labels) =
        text::parse_line(&format!("[{},{}]", list(input), list(labels)), &task.vocabulary).unwrap();
    task.check_labels(&input_ids, &labels)
}

fn train(task: &Task, examples: usize) -> impl Iterator<Item = Example> + '_ {
    (0..examples).map(task.examples(Split::Train, 2))
}

/// The place of the query of pair `i`, counted from the end of the pairs.
fn place(e: &Example, pairs: usize, i: usize) -> usize {
    let key = e.input_ids[2 * i];
    let scored = (2 * pairs..e.input_ids.len()).find(|at| e.labels[*at] >= 0 && e.input_ids[*at] == key);
    (scored.unwrap() - 2 * pairs) / 2
}

#[test]
fn queries_of_mqar_are_drawn_without_replacement_by_a_power_law() {
    let task = task("mqar,vocabulary=128,train_lengths=64x4,test_lengths=64x4");
    let weights: Vec<f64> = (1..=28).map(|g| f64::from(g).powf(0.01 - 1.0)).collect();
    let total: f64 = weights.iter().sum();
    distributed("first", train(&task, 40_000), &weights, |e| Some(place(e, 4, 0)));
    // the second is drawn from what the first has left
    let second = |g: usize| {
        let left = |first: usize| weights[first] / total * weights[g] / (total - weights[first]);
        (0..28).filter(|first| *first != g).map(left).sum()
    };
    let second: Vec<f64> = (0..28).map(second).collect();
    distributed("second", train(&task, 40_000), &second, |e| Some(place(e, 4, 1)));
    // with other weights, the test of distributions fails
    let mut found = vec![0; 28];
    train(&task, 40_000).for_each(|e| found[place(&e, 4, 0)] += 1);
    let slower: Vec<f64> = (1..=28).map(|g| f64::from(g).powf(0.1 - 1.0)).collect();
    assert!(chi_square(&found, &weights) < LEVEL && chi_square(&found, &slower) > 10.0);
}

#[test]
fn tokens_of_mqar_are_uniform_and_labels_are_values() {
    let task = task("mqar/v128");
    let examples = || train(&task, 20_000);
    distributed("key", examples(), &[1.0; 63], |e| Some(usize::from(e.input_ids[0]) - 1));
    distributed("value", examples(), &[1.0; 64], |e| Some(usize::from(e.input_ids[3]) - 64));
    distributed("filler", examples(), &[1.0; 128], |e| e.input_ids.last().map(|id| usize::from(*id)));
    let sizes = [(16, 2), (32, 4), (64, 8), (64, 16)];
    let size = |e: &Example| (e.input_ids.len(), e.labels.iter().filter(|label| **label >= 0).count());
    distributed("size", examples(), &[1.0; 4], |e| sizes.iter().position(|known| *known == size(e)));
    let mut with_keys = 0;
    for e in train(&task, 2000).chain((0..60).map(task.examples(Split::OodTest, 0))) {
        let (tokens, pairs) = size(&e);
        let stored: Vec<(u16, u16)> =
            e.input_ids[..2 * pairs].as_chunks::<2>().0.iter().map(|[k, v]| (*k, *v)).collect();
        assert!(stored.iter().all(|(key, value)| (1..64).contains(key) && (64..128).contains(value)));
        assert_eq!(stored.iter().map(|(key, _)| key).collect::<HashSet<_>>().len(), pairs);
        assert_eq!(stored.iter().map(|(_, value)| value).collect::<HashSet<_>>().len(), pairs);
        let mut asked = HashSet::new();
        for at in (0..tokens).filter(|at| e.labels[*at] >= 0) {
            assert!(at >= 2 * pairs && at % 2 == 0);
            assert!(stored.contains(&(e.input_ids[at], e.labels[at] as u16)) && asked.insert(e.input_ids[at]));
        }
        let filler = (2 * pairs..tokens).filter(|at| e.labels[*at] < 0).map(|at| e.input_ids[at]);
        with_keys += usize::from(filler.into_iter().any(|id| stored.iter().any(|(key, _)| *key == id)));
    }
    assert!((800..1500).contains(&with_keys), "{with_keys} of 2060 have a stored key in their filler");

    let zero = crate::prompts::task("mqar/v128_zero_filler");
    for e in train(&zero, 500) {
        let (tokens, pairs) = size(&e);
        assert!((2 * pairs..tokens).all(|at| e.labels[at] >= 0 || e.input_ids[at] == 0));
    }
    let original = crate::prompts::task("mqar/v8192");
    distributed("original sizes", train(&original, 9000), &[5.0, 1.0, 3.0], |e| {
        [64, 128, 256].iter().position(|tokens| *tokens == e.input_ids.len())
    });
    assert_eq!(original.rows(Split::OodTest, 0).unwrap(), 7000);
    assert_eq!(original.family.chance(64), Some(2.0 / 8192.0));
    let pairs = |length| size(&original.family.test(0, 0, length).unwrap()).1;
    assert_eq!([64, 130, 512].map(pairs), [16, 32, 128]);
}

#[test]
fn filler_of_mqar_that_reads_as_a_query_is_scored_as_its_own_program_says() {
    let name = "mqar,vocabulary=20,train_lengths=8x2,test_lengths=8x2";
    let of = |labels| accepts(name, "1 10 1 5 1 7", labels);
    assert_eq!(of("-1 -1 10 -1 -1 -1"), Ok(()));
    assert_eq!(of("-1 -1 -1 -1 10 -1"), Ok(()), "the first one is filler");
    assert!(of("-1 -1 10 -1 10 -1").is_err() && of("-1 -1 -1 -1 -1 -1").is_err() && of("-1 -1 11 -1 -1 -1").is_err());
    // filler that reads as a third pair, and its query
    let of = |labels| accepts(name, "1 10 2 11 3 12 1 0 2 0 3 0", labels);
    assert_eq!(of("-1 -1 -1 -1 -1 -1 10 -1 11 -1 -1 -1"), Ok(()));
    assert_eq!(of("-1 -1 -1 -1 -1 -1 10 -1 11 -1 12 -1"), Ok(()));
    assert!(of("-1 -1 -1 -1 -1 -1 10 -1 -1 -1 12 -1").is_err(), "the second pair is not asked for");
    assert!(accepts(name, "1 10 2 1 1 0 0 0", "-1 -1 -1 10 -1 -1 -1 -1").is_err(), "an odd place");
}

#[test]
fn pairs_of_recall_are_drawn_as_described() {
    for (name, noise) in [("mad/incontext_recall", false), ("mad/noisy_recall", true), ("h3/associative_recall", false)]
    {
        let task = task(name);
        let (keys, values) = if name.starts_with("h3") { (9, 9) } else { (8, 8) };
        assert_eq!(task.family.chance(40), Some(1.0 / f64::from(values)));
        let (mut last, mut noisy, mut pairs) = (vec![0usize; 9], 0usize, 0usize);
        for e in train(&task, 3000) {
            let (input, labels) = (&e.input_ids, &e.labels);
            let mut bound = std::collections::BTreeMap::new();
            let shown = e.length as usize;
            for at in (0..shown).step_by(2) {
                pairs += 1;
                if noise && input[at] >= 16 {
                    assert!((16..32).contains(&input[at]) && (16..32).contains(&input[at + 1]));
                    assert_eq!(labels[at..at + 2], [-1, -1]);
                    noisy += 1;
                    continue;
                }
                assert!(input[at] < keys && (keys..keys + values).contains(&input[at + 1]));
                let known = bound.insert(input[at], input[at + 1]);
                assert!(known.is_none_or(|known| known == input[at + 1]));
                let scored = known.filter(|_| !name.starts_with("h3")).map_or(-1, |value| value as i16);
                assert_eq!(labels[at..at + 2], [scored, -1]);
            }
            let key = input[input.len() - 1];
            assert_eq!(labels[input.len() - 1], bound[&key] as i16);
            assert_eq!(input.len(), shown + 1 + usize::from(name.starts_with("h3")));
            // all nine keys occur in some examples only; each is the last one equally often among them
            if bound.len() == usize::from(keys) {
                last[usize::from(key)] += 1;
            }
        }
        let normal = chi_square(&last[..keys.into()], &vec![1.0; keys.into()]);
        assert!(normal < LEVEL, "{name}: {last:?}");
        let fraction = noisy as f64 / pairs as f64;
        let expected = if noise { 0.2 * 62.0 / 63.0 } else { 0.0 }; // one pair is never noise
        assert!((fraction - expected).abs() < 4.0 * (0.16 / pairs as f64).sqrt(), "{name}: {fraction}");
        let keys = usize::from(keys);
        let pair = |e: &Example, at: usize| (usize::from(e.input_ids[at]) < keys).then(|| usize::from(e.input_ids[at]));
        distributed("key", train(&task, 9000), &vec![1.0; keys], |e| pair(e, 10));
        distributed("value", train(&task, 9000), &vec![1.0; values as usize], |e| {
            (usize::from(e.input_ids[0]) < keys).then(|| usize::from(e.input_ids[1]) - keys)
        });
    }
}

#[test]
fn labels_and_queries_of_recall_are_settings() {
    let name = "mad/incontext_recall";
    assert_eq!(accepts(name, "4 14 7 8 4 14 7", "-1 -1 -1 -1 14 -1 8"), Ok(()));
    assert_eq!(accepts(&format!("{name},labels=next"), "4 14 7 8 4 14 7", "14 7 8 4 14 7 8"), Ok(()));
    assert_eq!(accepts(name, "4 14 7 8 4 14 7", "14 7 8 4 14 7 8"), Ok(()), "as training files have them");
    assert!(accepts(name, "4 14 7 8 4 14 7", "14 7 8 4 14 7 9").is_err());
    assert!(accepts(&format!("{name},labels=next"), "4 14 7 8 4 14 7", "-1 -1 -1 -1 14 -1 8").is_err());
    let single = format!("{name},queries=last,marker=16");
    assert_eq!(accepts(&single, "4 14 7 8 4 14 16 7", "-1 -1 -1 -1 -1 -1 -1 8"), Ok(()));
    assert!(accepts(name, "4 14 4 15 4", "-1 -1 14 -1 14").unwrap_err().contains("another value"));
    assert!(accepts(name, "4 14 7", "-1 -1 8").unwrap_err().contains("has not occurred"));
    assert!(accepts(name, "4 14 7 8", "-1 -1 -1 -1").is_err());
    assert!(accepts(&single, "4 14 4 4", "-1 -1 -1 14").unwrap_err().contains("`16` does not stand before"));
    let noisy = "mad/noisy_recall";
    assert_eq!(accepts(noisy, "16 31 4 14 20 20 4", "-1 -1 -1 -1 -1 -1 14"), Ok(()));
    assert!(accepts(noisy, "16 4 4 14 4", "-1 -1 -1 -1 14").is_err());
}

#[test]
fn ids_of_h3_are_numbered_in_the_order_of_strings() {
    let task = task("h3/associative_recall");
    let keys: HashSet<String> =
        train(&task, 300).flat_map(|e| shown(&task, &e).0.into_iter().step_by(2).take(20)).collect();
    let expected = ["0", "1", "10", "11", "12", "13", "14", "15", "16"].map(String::from);
    assert_eq!(keys, expected.into());
    assert_eq!(task.vocabulary.len(), 20);
    assert!(accepts("h3/associative_recall", "2 17 => 2", "-1 -1 -1 17").is_err());
    assert_eq!(accepts("h3/associative_recall", "16 17 => 16", "-1 -1 -1 17"), Ok(()));
}

#[test]
fn markers_of_induction_heads_are_drawn_as_described() {
    let task = task("h3/induction_head,train_lengths=20");
    let marker = task.vocabulary.id("=>").unwrap();
    let markers = |e: &Example| {
        let before = &e.input_ids[..e.length as usize];
        before.iter().enumerate().filter(|(_, id)| **id == marker).map(|(at, _)| at).collect::<Vec<_>>()
    };
    distributed("place", train(&task, 20_000), &[1.0; 18], |e| markers(e).first().copied());
    for e in train(&task, 500) {
        let places = markers(&e);
        assert_eq!((places.len(), e.input_ids.len(), e.input_ids[20]), (1, 21, marker));
        assert_eq!(e.labels[20], e.input_ids[places[0] + 1] as i16);
    }
    // three triggers: the number that is left of them, by enumeration of all places
    let task = crate::prompts::task("h3/induction_head_len3_trig3,train_lengths=20");
    let mut left = [0.0; 3];
    for [a, b, c] in (0..16 * 16 * 16).map(|n| [n % 16, n / 16 % 16, n / 256]) {
        let mut places = [a, b, c];
        places.sort_unstable();
        let mut kept = vec![places[0]];
        places.iter().for_each(|place| {
            if place - kept[kept.len() - 1] > 3 {
                kept.push(*place)
            }
        });
        left[kept.len() - 1] += 1.0;
    }
    left[0] += 4096.0; // half of the sequences have one
    distributed("triggers", train(&task, 20_000), &left, |e| Some(markers(e).len() - 1));
    for e in train(&task, 500) {
        let answer = &e.input_ids[markers(&e)[0] + 1..][..3];
        assert!(markers(&e).iter().all(|at| e.input_ids[at + 1..at + 4] == *answer));
        assert_eq!(e.input_ids[20..], [marker, answer[0], answer[1]]);
        assert_eq!(e.labels[20..], [answer[0], answer[1], answer[2]].map(|id| id as i16));
    }
    let mamba = crate::prompts::task("mamba/induction_heads");
    assert_eq!(mamba.vocabulary.len(), 16);
    assert!(train(&mamba, 50).all(|e| e.input_ids.len() == 256));
    assert_eq!(accepts("mamba/induction_heads", "3 S 4 5 S", "-1 -1 -1 -1 4"), Ok(()));
    assert!(accepts("mamba/induction_heads", "3 S S", "-1 -1 3").is_err());
    assert!(accepts("mamba/induction_heads", "3 4 S", "-1 -1 4").is_err());
}

#[test]
fn blanks_of_selective_copying_are_drawn_as_described() {
    let mad = task("mad/selective_copying");
    let (blank, copy) = (mad.vocabulary.id("14").unwrap(), mad.vocabulary.id("15").unwrap());
    for e in train(&mad, 1000) {
        assert_eq!((e.input_ids.len(), e.length), (256, 256));
        let at = e.input_ids.iter().position(|id| *id == copy).unwrap();
        assert_ne!(e.input_ids[at - 1], blank, "a blank follows the last token to copy");
        let content: Vec<i16> = e.input_ids[..at].iter().filter(|id| **id != blank).map(|id| *id as i16).collect();
        assert_eq!((content.len(), at), (16, 239));
        assert_eq!(e.labels[240..], content[..]);
        assert!(e.input_ids[240..].iter().all(|id| *id == blank) && e.labels[..240].iter().all(|l| *l < 0));
    }
    // four blanks before two tokens: as many before the first as heads in four tosses
    let small = task("selective_copying,content=2,placement=before,slots=blanks,train_lengths=9,test_lengths=9");
    let blank = small.vocabulary.id("N").unwrap();
    distributed("before", train(&small, 20_000), &[1.0, 4.0, 6.0, 4.0, 1.0], |e| {
        e.input_ids.iter().position(|id| *id != blank)
    });
    let uniform = task("selective_copying,content=2,train_lengths=5,test_lengths=5");
    distributed("uniform", train(&uniform, 20_000), &[1.0; 10], |e| {
        let places: Vec<usize> = (0..5).filter(|at| e.input_ids[*at] != blank).collect();
        Some(places[1] * (places[1] - 1) / 2 + places[0])
    });
    distributed("token", train(&uniform, 20_000), &[1.0; 14], |e| {
        e.input_ids.iter().find(|id| **id != blank).map(|id| usize::from(*id))
    });
    assert_eq!(accepts("mamba/selective_copying", "N 3 N 5 C C", "-1 -1 -1 -1 3 5"), Ok(()));
    assert!(accepts("mamba/selective_copying", "N 3 N 5 C C C", "-1 -1 -1 -1 3 5 5").is_err());
    assert_eq!(accepts("mad/selective_copying", "14 3 5 15 14 14", "-1 -1 -1 -1 3 5"), Ok(()));
    assert!(accepts("mad/selective_copying", "14 3 5 15 14", "-1 -1 -1 -1 3").is_err());
}
