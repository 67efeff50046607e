//! The family `automaton`: its tables and groups against independent rules, its samplers by their distributions, and
//! its settings. Published files are compared line by line where they are there.

use crate::statistics::{fits, uniform};
use data::{Example, Split, Task};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub(crate) fn task(name: &str) -> Task {
    Task::by_name(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The ids of blank-separated tokens.
pub(crate) fn ids(task: &Task, tokens: &str) -> Vec<u16> {
    tokens.split(' ').map(|token| task.vocabulary.id(token).unwrap_or_else(|| panic!("{token}"))).collect()
}

/// The labels of an input as text; those of sets as digits for `units`.
pub(crate) fn labels(task: &Task, input_ids: &[u16], units: usize) -> Vec<String> {
    let labels = task.family.labels(input_ids).unwrap_or_else(|e| panic!("{}: {e}: {input_ids:?}", task.name));
    let show = |label: &i16| match u16::try_from(*label) {
        Err(_) => "-1".to_owned(),
        Ok(id) if units == 0 => task.vocabulary.token(id).unwrap().to_owned(),
        Ok(set) => (0..units).map(|unit| char::from(b'0' + (set >> unit & 1) as u8)).collect(),
    };
    labels.iter().map(show).collect()
}

fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/field-tasks")
}

/// Compares the published files of a task, where they are there; how many lines there are.
pub(crate) fn check_published(name: &str, units: usize) -> usize {
    let task = task(name);
    let mut lines = 0;
    for file in ["val.txt", "ood_test.txt", "val_seed2.txt", "ood_test_seed2.txt"] {
        let Ok(text) = std::fs::read_to_string(reference().join(name).join(file)) else { continue };
        for line in text.lines() {
            let (tokens, expected): (Vec<String>, Vec<String>) = serde_json::from_str(line).unwrap();
            let input_ids = ids(&task, &tokens.join(" "));
            assert_eq!(labels(&task, &input_ids, units), expected, "{name}/{file}: {line}");
            let blanks = tokens.iter().filter(|token| *token == "E" || token.starts_with('<')).count();
            if !name.starts_with("huang") {
                assert_eq!(task.family.length(&input_ids).unwrap() as usize, tokens.len() - blanks, "{name}: {line}");
            }
            lines += 1;
        }
    }
    lines
}

/// All strings over `letters` letters of lengths 1..=`longest`.
pub(crate) fn strings(letters: usize, longest: usize) -> impl Iterator<Item = Vec<usize>> {
    (1..=longest).flat_map(move |n| {
        (0..letters.pow(n as u32)).map(move |mut code| {
            let letter = |_| {
                let letter = code % letters;
                code /= letters;
                letter
            };
            (0..n).map(letter).collect()
        })
    })
}

#[test]
fn the_published_files_have_the_labels_of_the_rule() {
    let mut lines = 0;
    for name in Task::names() {
        let origin = name.split_once('/').map(|(origin, _)| origin);
        let units = match name {
            "bhatt/tomita1" | "bhatt/tomita2" | "bhatt/tomita3" | "bhatt/tomita4" | "bhatt/tomita5"
            | "bhatt/tomita6" | "bhatt/tomita7" | "bhatt/parity" => 2,
            _ => 0,
        };
        if task(name).family.name() == "automaton" && origin.is_some() {
            lines += check_published(name, units);
        }
    }
    let visible = reference().is_dir();
    assert!(!visible || lines > 3000, "{lines}");
}

/// What a string's end or each prefix is labelled with, said without a table.
type Rule = fn(&[usize]) -> String;

fn count(string: &[usize], letter: usize) -> usize {
    string.iter().filter(|other| **other == letter).count()
}

fn next_set(allowed: fn(&[usize]) -> bool, string: &[usize]) -> String {
    let digit = |letter| if allowed(&[string, &[letter]].concat()) { '1' } else { '0' };
    [digit(0), digit(1)].iter().collect()
}

fn one_hot(accepted: bool) -> String {
    if accepted { "01" } else { "10" }.into()
}

/// Runs of equal letters: (letter, length).
fn runs(string: &[usize]) -> Vec<(usize, usize)> {
    string.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
}

/// Whether a string is a prefix of one in 0*1*0*1*.
fn four_runs(string: &[usize]) -> bool {
    runs(string).len() + usize::from(string.first() == Some(&1)) <= 4
}

fn no_zeros(string: &[usize]) -> bool {
    !string.contains(&0)
}

fn alternates(string: &[usize]) -> bool {
    string.iter().enumerate().all(|(i, letter)| *letter == (i + 1) % 2)
}

fn no_three_zeros(string: &[usize]) -> bool {
    runs(string).iter().all(|run| run.0 == 1 || run.1 < 3)
}

/// The authors' sets for Tomita 3: an odd run of 0 after an odd run of 1 is fatal when it ends, 0 is called impossible
/// after an odd run of 1 and from there on after each even run of 0, and only 0 possible in an odd one.
fn tomita3(string: &[usize]) -> String {
    let runs = runs(string);
    let odd_pair = |pair: &[(usize, usize)]| pair[0].0 == 1 && pair[0].1 % 2 == 1 && pair[1].1 % 2 == 1;
    let closed = runs.len().saturating_sub(1);
    if runs[..closed].windows(2).any(odd_pair) {
        return "00".into();
    }
    let ones = |run: &(usize, usize)| run.0 == 1 && run.1 % 2 == 1;
    match runs[..] {
        [.., last] if ones(&last) => "01",
        [.., before, last] if ones(&before) => {
            if last.1 % 2 == 1 {
                "10"
            } else {
                "01"
            }
        }
        _ => "11",
    }
    .into()
}

#[test]
fn every_table_says_what_its_language_is() {
    let rules: [(&str, usize, Rule); 12] = [
        ("bhatt/tomita1", 2, |s| next_set(no_zeros, s)),
        ("bhatt/tomita2", 2, |s| next_set(alternates, s)),
        ("bhatt/tomita3", 2, tomita3),
        ("bhatt/tomita4", 2, |s| next_set(no_three_zeros, s)),
        ("bhatt/tomita5", 2, |s| one_hot(count(s, 0).is_multiple_of(2) && count(s, 1).is_multiple_of(2))),
        ("bhatt/tomita6", 2, |s| one_hot(count(s, 0).abs_diff(count(s, 1)).is_multiple_of(3))),
        ("bhatt/tomita7", 2, |s| next_set(four_runs, s)),
        ("bhatt/parity", 2, |s| one_hot(count(s, 1).is_multiple_of(2))),
        ("chomsky/parity_check", 0, |s| (count(s, 1) % 2).to_string()),
        ("chomsky/even_pairs", 0, |s| (s.windows(2).filter(|pair| pair[0] != pair[1]).count() % 2).to_string()),
        ("chomsky/cycle_navigation", 0, |s| ((s.iter().sum::<usize>() + 4 * s.len()) % 5).to_string()),
        ("crasp/L4", 0, |s| if runs(s).len() == 4 { "1" } else { "0" }.into()),
    ];
    for (name, units, rule) in rules {
        let task = task(name);
        let letters = if name.ends_with("navigation") { 3 } else { 2 };
        for string in strings(letters, 10) {
            let tokens: Vec<&str> =
                string.iter().map(|letter| task.vocabulary.token(*letter as u16).unwrap()).collect();
            let prefixes = (1..=string.len()).map(|n| rule(&string[..n]));
            let expected: Vec<String> = match name.split_once('/').unwrap().0 {
                "chomsky" => vec!["-1".into(); string.len()].into_iter().chain([rule(&string)]).collect(),
                "crasp" => std::iter::once("0".to_owned()).chain(prefixes).collect(),
                _ => prefixes.collect(),
            };
            let input = match name.split_once('/').unwrap().0 {
                "chomsky" => format!("{} E", tokens.join(" ")),
                "crasp" => format!("<bos> {}", tokens.join(" ")),
                _ => tokens.join(" "),
            };
            let input_ids = ids(&task, &input);
            if name == "crasp/L4" && (string[0] != 0 || runs(&string).len() > 4) {
                assert!(task.family.length(&input_ids).is_err(), "{input}");
            } else {
                assert_eq!(labels(&task, &input_ids, units), expected, "{name}: {input}");
            }
        }
    }
}

#[test]
fn flip_flops_are_read_as_they_were_written() {
    let task = task("flipflop/base");
    let letters = ["w", "r", "i", "0", "1"];
    for string in strings(5, 7) {
        let mut stored = None;
        let mut expected = vec![];
        let mut valid = string[0] == 0;
        for (i, letter) in string.iter().enumerate() {
            let is_bit = *letter > 2;
            valid &= is_bit == (i % 2 == 1);
            let instruction = if i > 0 { string[i - 1] } else { 2 };
            if is_bit && instruction == 0 {
                stored = Some(*letter);
            }
            // nothing is read before something is written
            valid &= !is_bit || instruction != 1 || stored == Some(*letter);
            valid &= *letter != 1 || stored.is_some();
            expected.push(if *letter == 1 { stored.map_or("-1", |bit| letters[bit]) } else { "-1" });
        }
        let input: Vec<&str> = string.iter().map(|letter| letters[*letter]).collect();
        let input_ids = ids(&task, &input.join(" "));
        match valid || task.family.length(&input_ids).is_ok() {
            true if valid => assert_eq!(labels(&task, &input_ids, 0), expected, "{input:?}"),
            true => assert!(string[0] == 2, "{input:?}"), // the table lets ignored bits stand first
            false => {}
        }
    }
}

/// The product of two elements, read off the labels of a string of two letters.
fn products(task: &Task) -> Vec<Vec<usize>> {
    let order = task.vocabulary.len() - 1; // without <pad>
    let of = |g: usize, h: usize| {
        let labels = task.family.labels(&[g as u16, h as u16]).unwrap();
        assert_eq!(usize::from(labels[0] as u16), g);
        labels[1] as usize
    };
    (0..order).map(|g| (0..order).map(|h| of(g, h)).collect()).collect()
}

#[test]
fn groups_are_groups() {
    let orders = [
        ("word/A4_x_Z5", 60),
        ("word/A5", 60),
        ("word/S5", 120),
        ("word/Z60", 60),
        ("word/S3", 6),
        ("word/S4", 24),
        ("word/Z2", 2),
        ("automaton,group=S1", 1),
        ("automaton,group=A3xZ2xS3", 36),
        ("automaton,generators=[[2,3,1,5,4]]", 6),
        ("automaton,generators=[[2,1,3,4,5],[2,3,4,5,1]]", 120),
    ];
    for (name, order) in orders {
        let product = products(&task(name));
        assert_eq!(product.len(), order, "{name}");
        for g in 0..order {
            assert_eq!((product[0][g], product[g][0]), (g, g), "{name}");
            assert_eq!((0..order).filter(|h| product[g][*h] == 0).count(), 1, "{name}: inverse of {g}");
            for h in 0..order {
                for (k, gh_k) in product[product[g][h]].iter().enumerate() {
                    assert_eq!(*gh_k, product[g][product[h][k]], "{name}");
                }
            }
        }
    }
    assert_eq!(products(&task("automaton,generators=[[2,1,3,4,5],[2,3,4,5,1]]")), products(&task("word/S5")));
}

/// Elements in lexicographic order; (p·q)(x) = p(q(x)); products by pairs.
#[test]
fn elements_have_their_published_numbers() {
    let s3 = products(&task("word/S3"));
    // 123 132 213 231 312 321: 132·213 = (x → 132(213(x))) = 312
    assert_eq!((s3[1][2], s3[2][1], s3[3][3], s3[3][4]), (4, 3, 4, 0));
    assert_eq!(products(&task("word/Z60"))[59][2], 1);
    let product = products(&task("word/A4_x_Z5"));
    let a4 = products(&task("automaton,group=A4"));
    for (g, h) in [(7, 13), (59, 59), (31, 44)] {
        assert_eq!(product[g][h], a4[g / 5][h / 5] * 5 + (g % 5 + h % 5) % 5);
    }
}

#[test]
fn the_published_tables_are_the_automata() {
    for name in ["word/A4_x_Z5", "word/A5", "word/S5", "word/Z60", "word/S3", "word/S4", "word/Z2"] {
        let path = reference().join("tables").join(name.replace('/', "_") + ".toml");
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        let table: toml::Table = text.parse().unwrap();
        let rows = table["table"].as_array().unwrap().iter().map(|row| row.as_array().unwrap().iter());
        let rows = rows.map(|row| row.map(|to| to.as_integer().unwrap() as usize).collect());
        assert_eq!(products(&task(name)), rows.collect::<Vec<Vec<usize>>>(), "{name}");
    }
    let names = (2..=12).map(|k| (format!("crasp/L{k}"), format!("crasp_L{k}")));
    for (name, file) in names {
        let Ok(text) = std::fs::read_to_string(reference().join(format!("tables/{file}.toml"))) else { continue };
        let table: toml::Table = text.parse().unwrap();
        let step: Vec<Vec<i64>> = table["step"].clone().try_into().unwrap();
        let output: Vec<String> = table["output"].clone().try_into().unwrap();
        let task = task(&name);
        for string in strings(2, 13) {
            let path = string.iter().try_fold(vec![0], |mut path, letter| {
                let to = step[*path.last().unwrap()][letter + 1];
                path.push(usize::try_from(to).ok()?);
                Some(path)
            });
            let input_ids: Vec<u16> =
                ids(&task, "<bos>").into_iter().chain(string.iter().map(|letter| *letter as u16)).collect();
            match path {
                Some(path) => {
                    let expected: Vec<String> = path.into_iter().map(|state| output[state].clone()).collect();
                    assert_eq!(labels(&task, &input_ids, 0), expected);
                }
                None => assert!(task.family.length(&input_ids).is_err()),
            }
        }
    }
}

/// Tests of one length, as text.
fn tests(name: &str, length: u32, n: usize) -> Vec<Vec<u16>> {
    let task = task(name);
    (0..n).map(|index| task.family.test(1, index, length).unwrap().input_ids).collect()
}

fn frequencies<K: std::hash::Hash + Eq + Ord>(keys: impl IntoIterator<Item = K>) -> Vec<u64> {
    let mut counts: HashMap<K, u64> = HashMap::new();
    keys.into_iter().for_each(|key| *counts.entry(key).or_default() += 1);
    let mut counts: Vec<(K, u64)> = counts.into_iter().collect();
    counts.sort();
    counts.into_iter().map(|(_, count)| count).collect()
}

#[test]
fn samplers_draw_from_their_distributions() {
    // uniform letters, also in pairs
    uniform("letters", &frequencies(tests("word/Z60", 300, 100).concat()), 60);
    let pairs = tests("word/S3", 200, 100).concat();
    uniform("pairs", &frequencies(pairs.chunks_exact(2).map(<[u16]>::to_vec)), 36);
    uniform("bits", &frequencies(tests("chomsky/parity_check", 3, 8000)), 8);
    uniform(
        "generators",
        &frequencies(tests("automaton,generators=[[2,1,3],[2,3,1]],only_generators=true", 2, 4000)),
        4,
    );
    // uniform accepted strings: Fibonacci many without two b in a row that end with a
    let fibonacci = r#"automaton,alphabet=["a","b"],step=[[0,1],[0,-1]],output=["x",""],accept=[1,0],sampler=accepted"#;
    uniform("accepted", &frequencies(tests(fibonacci, 8, 20_000)), 34);
    // Tomita 5 and 6 of one length; 2^8 strings with an even number of both, ⅓ of 2^9 with a difference of 0 or 3 …
    uniform("tomita5", &frequencies(tests("bhatt/tomita5", 8, 20_000)), 128);
    uniform("parity", &frequencies(tests("bhatt/parity", 7, 200_000)), 64);
    let tomita6 = strings(2, 9).filter(|s| s.len() == 9 && count(s, 0).abs_diff(count(s, 1)).is_multiple_of(3)).count();
    uniform("tomita6", &frequencies(tests("bhatt/tomita6", 9, 40_000)), tomita6);
    // switch points: all pairs of ends equally likely
    uniform("blocks", &frequencies(tests("crasp/L3", 12, 20_000)), 55);
    // flip-flops: 1 − p shared by w and r, bits uniform
    let strings = tests("flipflop/sparse", 1001, 400);
    let instructions = strings.iter().flat_map(|s| s[2..1000].iter().step_by(2).copied());
    fits("instructions", &frequencies(instructions), &[0.01, 0.01, 0.98]);
    let bits = strings.iter().flat_map(|s| s.chunks_exact(2).filter(|pair| pair[0] != 1).map(|pair| pair[1]));
    uniform("bits", &frequencies(bits), 2);
    assert!(strings.iter().all(|s| s[0] == 0 && s[1000] == 1));
}

/// The probability of stopping by coin, where the expected number of letters is the middle of the range.
#[test]
fn lengths_follow_from_the_coin() {
    let lengths = |name: &str, n: usize| -> Vec<u32> {
        let task = task(name);
        let examples = task.examples(Split::Train, 3);
        (0..n).map(|i| examples(i).length).collect()
    };
    let on: f64 = 26.0 / 27.0;
    // Tomita 5 accepts half of the strings of each even length
    let weight = |n: i32| if n == 50 { on.powi(n) } else { on.powi(n) * (1.0 - on) };
    let expected: Vec<f64> = (1..=25).map(|m| weight(2 * m) / 2.0).collect();
    let found = lengths("bhatt/tomita5", 30_000);
    let counts: Vec<u64> = (1..=25).map(|m| found.iter().filter(|n| **n == 2 * m).count() as u64).collect();
    assert_eq!(counts.iter().sum::<u64>(), 30_000);
    fits("tomita5", &counts, &expected);
    // parity: half of the strings are even; the others get a 1
    let expected: Vec<f64> =
        (2..=50).map(|n| weight(n) / 2.0 + if n > 2 { weight(n - 1) / 2.0 } else { 0.0 }).collect();
    let found = lengths("bhatt/parity", 30_000);
    let counts: Vec<u64> = (2..=50).map(|n| found.iter().filter(|m| **m == n).count() as u64).collect();
    fits("parity", &counts, &expected);
}

#[test]
fn random_runs_are_those_of_the_original() {
    let examples = |name: &str| {
        let task = task(name);
        (0..6000).map(task.examples(Split::Train, 5)).collect::<Vec<Example>>()
    };
    // Tomita 7: the first run has a uniform length in 0..=50, and the median string 49 letters
    let strings = examples("bhatt/tomita7");
    let mut lengths: Vec<u32> = strings.iter().map(|e| e.length).collect();
    lengths.sort_unstable();
    assert!((48..=50).contains(&lengths[3000]), "{}", lengths[3000]);
    let first = strings.iter().filter(|e| e.length > 1).map(|e| e.input_ids.iter().take_while(|id| **id == 0).count());
    let first: Vec<u64> = frequencies(first.filter(|n| *n > 0));
    assert!(first.len() == 50 && first[..49].iter().all(|n| (70..180).contains(n)), "{first:?}");
    // Tomita 3 with equal lengths: all strings of the language, and no others
    let language = |n: usize| {
        let odd_pair = |pair: &[(usize, usize)]| pair[0].0 == 1 && pair[0].1 % 2 == 1 && pair[1].1 % 2 == 1;
        strings_of(n).filter(|s| !runs(s).windows(2).any(odd_pair)).count()
    };
    assert_eq!(frequencies(tests("bhatt/tomita3", 6, 20_000)).len(), language(6));
    let lengths = frequencies(examples("bhatt/tomita3").iter().map(|e| e.length));
    uniform("lengths", &lengths, 49);
}

fn strings_of(n: usize) -> impl Iterator<Item = Vec<usize>> {
    strings(2, n).filter(move |string| string.len() == n)
}

#[test]
fn lengths_without_strings_have_a_reason_and_later_ones_go_on() {
    for (name, length, reason, later) in [
        ("bhatt/tomita2", 7, "no string of 7 letters is accepted", 8),
        ("bhatt/tomita5", 99, "no string of 99 letters is accepted", 100),
        ("crasp/L12", 11, "12 blocks have at least 12 letters", 12),
        ("flipflop/dense", 512, "odd length", 513),
        ("flipflop/dense", 1, "the shortest string has 3 letters", 3),
    ] {
        let family = task(name).family;
        let limit = family.test(0, 0, length).unwrap_err();
        assert_eq!(limit.length, length);
        assert!(limit.reason.contains(reason), "{name}: {limit}");
        assert_eq!(family.test(0, 0, later).unwrap().length, later);
        assert_eq!(family.of_length(0, 0, length), None);
        let track = family.track(0, 0, length);
        assert!(track.prefix(length).is_err() && track.max_length() < length, "{name}");
    }
    // no lengths beyond the counted ones are refused, and long ones do not underflow
    let lopsided = r#"automaton,alphabet=["a","b"],step=[[1,2],[1,-1],[2,2]],output=["x","y","z"],accept=[0,1,0],sampler=accepted"#;
    let e = task(lopsided).family.test(0, 0, 3000).unwrap();
    assert!(e.input_ids.iter().all(|id| *id == 0) && e.length == 3000);
}
