//! The families that need a stack or counters, against independent rules and the published files.

use crate::automata::{check_published, ids, labels, strings, task};
use crate::statistics::{fits, uniform};
use data::{Split, Task};
use std::collections::HashMap;

const BRACKETS: [&str; 4] = ["(", ")", "[", "]"];

#[test]
fn the_published_files_have_the_labels_of_the_rule() {
    for (name, units) in [
        ("bhatt/dyck1", 2),
        ("bhatt/dyck2", 4),
        ("bhatt/shuffle2", 4),
        ("bhatt/reset_dyck", 2),
        ("bhatt/counter2", 3),
        ("bhatt/counter3", 4),
        ("chomsky/modular_arithmetic", 0),
        ("chomsky/modular_arithmetic_brackets", 0),
        ("chomsky/solve_equation", 0),
        ("chomsky/stack_manipulation", 0),
        ("huang/bin_majority", 0),
        ("huang/bin_majority_interleave", 0),
        ("huang/majority", 0),
        ("huang/parity", 0),
    ] {
        check_published(name, units);
    }
}

fn shown(string: &[usize], letters: &[&str]) -> String {
    string.iter().map(|letter| letters[*letter]).collect::<Vec<_>>().join(" ")
}

/// Removes pairs until nothing changes: what is left open, or `None` if something closes wrongly.
fn left_open(string: &[usize]) -> Option<Vec<usize>> {
    let mut left = string.to_vec();
    while let Some(at) = left.windows(2).position(|pair| pair[0] % 2 == 0 && pair[1] == pair[0] + 1) {
        left.drain(at..at + 2);
    }
    left.iter().all(|bracket| bracket % 2 == 0).then_some(left)
}

fn digits(allowed: impl Fn(usize) -> bool, n: usize) -> String {
    (0..n).map(|letter| if allowed(letter) { '1' } else { '0' }).collect()
}

/// Compares a task with the sets of letters that may come next, on all strings.
fn next_sets(name: &str, letters: &[&str], units: usize, longest: usize, is_prefix: impl Fn(&[usize]) -> bool) {
    let task = task(name);
    for string in strings(letters.len(), longest) {
        let input_ids = ids(&task, &shown(&string, letters));
        if !is_prefix(&string) {
            assert!(task.family.length(&input_ids).is_err(), "{name}: {string:?}");
            continue;
        }
        let set = |n: usize| digits(|letter| is_prefix(&[&string[..n], &[letter]].concat()), units);
        let expected: Vec<String> = (1..=string.len()).map(set).collect();
        assert_eq!(labels(&task, &input_ids, units), expected, "{name}: {string:?}");
    }
}

#[test]
fn brackets_say_which_may_come_next() {
    next_sets("bhatt/dyck1", &BRACKETS[..2], 2, 10, |s| left_open(s).is_some());
    next_sets("bhatt/dyck2", &BRACKETS, 4, 8, |s| left_open(s).is_some());
    let kind =
        |s: &[usize], kind: usize| s.iter().copied().filter(|b| b / 2 == kind).map(|b| b % 2).collect::<Vec<_>>();
    next_sets("bhatt/shuffle2", &BRACKETS, 4, 8, |s| (0..2).all(|k| left_open(&kind(s, k)).is_some()));
    next_sets("bhatt/reset_dyck", &["(", ")", "1"], 2, 9, |s| {
        s.split(|token| *token == 2).all(|part| left_open(part).is_some())
    });
}

/// a^n b^n c^n: the prefixes of whole strings, and those that are whole for `T`.
#[test]
fn counters_say_which_letters_may_come_next() {
    for (name, letters) in [("bhatt/counter2", 2), ("bhatt/counter3", 3), ("counter,letters=4", 4)] {
        let task = task(name);
        let whole = |n: usize| (0..letters).flat_map(|letter| vec![letter; n]).collect::<Vec<usize>>();
        let is_prefix = |s: &[usize]| (1..=s.len()).any(|n| whole(n).starts_with(s));
        let words: Vec<String> = task.vocabulary.tokens()[..letters].to_vec();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for string in strings(letters, if letters == 2 { 10 } else { 7 }) {
            let input_ids = ids(&task, &shown(&string, &words));
            if !is_prefix(&string) {
                assert!(task.family.length(&input_ids).is_err(), "{string:?}");
                continue;
            }
            let set = |n: usize| {
                let prefix = &string[..n];
                let ends = n.is_multiple_of(letters) && whole(n / letters) == prefix;
                digits(|letter| is_prefix(&[prefix, &[letter]].concat()), letters) + if ends { "1" } else { "0" }
            };
            // after the a's of a^n, longer strings are possible too, and after the last letter only the end
            let expected: Vec<String> = (1..=string.len()).map(set).collect();
            assert_eq!(labels(&task, &input_ids, letters + 1), expected, "{name}: {string:?}");
        }
    }
}

/// Values by recursive descent, with `x` as each number in turn.
struct Reader<'a> {
    tokens: &'a [&'a str],
    at: usize,
    x: i64,
}

impl Reader<'_> {
    fn number(&mut self) -> Option<i64> {
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        if *token == "x" { Some(self.x) } else { token.parse().ok() }
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self.tokens.get(self.at) == Some(&sign);
        self.at += usize::from(found);
        found
    }

    /// `d`, `-d`, `(d)`, `(-d)` or `(e op e)`; and whether it is a bare number.
    fn expression(&mut self) -> Option<(i64, bool)> {
        if self.take("-") {
            return Some((-self.number()?, true));
        }
        if !self.take("(") {
            return Some((self.number()?, true));
        }
        let (left, is_number) = self.expression()?;
        if self.take(")") {
            return is_number.then_some((left, false));
        }
        let op = *self.tokens.get(self.at)?;
        self.at += 1;
        let (right, _) = self.expression()?;
        let value = match op {
            "+" => left + right,
            "-" => left - right,
            "*" => left * right,
            _ => return None,
        };
        self.take(")").then_some((value.rem_euclid(5), false))
    }
}

fn value(tokens: &[&str], x: i64) -> Option<i64> {
    let mut reader = Reader { tokens, at: 0, x };
    let (value, _) = reader.expression()?;
    (reader.at == tokens.len()).then(|| value.rem_euclid(5))
}

#[test]
fn expressions_have_their_values() {
    let brackets = task("chomsky/modular_arithmetic_brackets");
    let signs = ["2", "4", "+", "-", "*", "(", ")"];
    let mut expressions = 0;
    for string in strings(signs.len(), 7) {
        let tokens: Vec<&str> = string.iter().map(|sign| signs[*sign]).collect();
        let input_ids = ids(&brackets, &format!("{} E", tokens.join(" ")));
        match value(&tokens, 0) {
            Some(value) => {
                assert_eq!(*labels(&brackets, &input_ids, 0).last().unwrap(), value.to_string(), "{tokens:?}");
                expressions += 1;
            }
            None => assert!(brackets.family.length(&input_ids).is_err(), "{tokens:?}"),
        }
    }
    assert!(expressions > 60, "{expressions}");

    let flat = task("chomsky/modular_arithmetic");
    for operators in strings(3, 4) {
        for numbers in strings(5, 5).filter(|numbers| numbers.len() == operators.len() + 1) {
            // products first, then sums
            let mut terms = vec![numbers[0] as i64];
            let mut tokens = vec![numbers[0].to_string()];
            for (op, number) in operators.iter().zip(&numbers[1..]) {
                tokens.extend([["+", "-", "*"][*op].to_owned(), number.to_string()]);
                match op {
                    0 => terms.push(*number as i64),
                    1 => terms.push(-(*number as i64)),
                    _ => *terms.last_mut().unwrap() *= *number as i64,
                }
            }
            let expected = terms.iter().sum::<i64>().rem_euclid(5).to_string();
            let input_ids = ids(&flat, &format!("{} E", tokens.join(" ")));
            assert_eq!(labels(&flat, &input_ids, 0).last(), Some(&expected), "{tokens:?}");
        }
    }
    for wrong in ["1 + E", "+ 1 E", "1 1 E", "E", "1 + + E", "1 E E", "1 + 1"] {
        assert!(flat.family.length(&ids(&flat, wrong)).is_err(), "{wrong}");
    }

    let equation = task("chomsky/solve_equation");
    for index in 0..2000 {
        let e = equation.examples(Split::Train, 7)(index);
        let tokens: Vec<&str> = e.input_ids.iter().map(|id| equation.vocabulary.token(*id).unwrap()).collect();
        let answer: i64 = equation.vocabulary.token(*e.labels.last().unwrap() as u16).unwrap().parse().unwrap();
        match e.length {
            1 | 2 => assert_eq!((answer, tokens[..e.length as usize].concat().trim_matches('0')), (0, "")),
            n => {
                let right: i64 = tokens[n as usize - 1].parse().unwrap();
                let solves = |x| value(&tokens[..n as usize - 2], x) == Some(right);
                assert_eq!((0..5).filter(|x| solves(*x)).collect::<Vec<_>>(), [answer], "{tokens:?}");
            }
        }
    }
    for wrong in ["( x + x ) = 1 E", "( 1 + 2 ) = 3 E", "( x + 1 ) = E", "0 1 E", "x E", "( x * 1 ) = 2 E"] {
        let of = |text: &str| -> Option<Vec<u16>> { text.split(' ').map(|t| equation.vocabulary.id(t)).collect() };
        assert!(of(wrong).is_none_or(|ids| equation.family.length(&ids).is_err()), "{wrong}");
    }
}

/// The published table of expressions without brackets.
#[test]
fn expressions_are_the_published_automaton() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../shared/reference/field-tasks/tables/chomsky_modular_arithmetic.toml"
    );
    let Ok(text) = std::fs::read_to_string(path) else { return };
    let table: toml::Table = text.parse().unwrap();
    let step: Vec<Vec<i64>> = table["step"].clone().try_into().unwrap();
    let output: Vec<String> = table["output"].clone().try_into().unwrap();
    let alphabet: Vec<String> = table["alphabet"].clone().try_into().unwrap();
    let task = task("chomsky/modular_arithmetic");
    for string in strings(8, 5) {
        let state = string.iter().try_fold(0, |state, letter| usize::try_from(step[state][*letter]).ok());
        let text =
            string.iter().map(|letter| alphabet[*letter].clone()).chain(["E".into()]).collect::<Vec<_>>().join(" ");
        match state.map(|state| &output[state]).filter(|output| !output.is_empty()) {
            Some(value) => assert_eq!(labels(&task, &ids(&task, &text), 0).last(), Some(value), "{text}"),
            None => assert!(task.family.length(&ids(&task, &text)).is_err(), "{text}"),
        }
    }
}

#[test]
fn stacks_are_read_from_the_top() {
    let task = task("chomsky/stack_manipulation");
    let of = |input: &str| labels(&task, &ids(&task, input), 0).join(" ");
    assert_eq!(of("0 1 1 0 4 2 2 E E E E E E E E"), "-1 -1 -1 -1 -1 -1 -1 1 1 0 2 -1 -1 -1 -1");
    assert_eq!(of("1 1 0 2 2 2 E E E E E E E"), "-1 -1 -1 -1 -1 -1 2 -1 -1 -1 -1 -1 -1");
    assert_eq!(of("1 E E"), "-1 1 2");
    for string in strings(5, 6) {
        let mut input: Vec<String> = string.iter().map(ToString::to_string).collect();
        input.extend(vec!["E".to_owned(); string.len() + 1]);
        let input_ids = ids(&task, &input.join(" "));
        let symbols = string.iter().take_while(|token| **token < 2).count();
        if symbols == 0 || string[symbols..].iter().any(|token| *token < 2) {
            assert!(task.family.length(&input_ids).is_err(), "{string:?}");
            continue;
        }
        // a push is undone by the next pop that finds it
        let mut stack = String::new();
        for token in &string {
            match token {
                0 | 3 => stack.push('0'),
                1 | 4 => stack.push('1'),
                _ => drop(stack.pop()),
            }
        }
        let answer: Vec<String> = stack.chars().rev().chain(['2']).map(String::from).collect();
        let found = labels(&task, &input_ids, 0);
        assert_eq!(found[string.len()..][..answer.len()], answer, "{string:?}");
        assert!(found[string.len() + answer.len()..].iter().all(|label| label == "-1"));
    }
    let symbols = |n: usize| {
        let stack = |index| task.family.test(0, index, 12).unwrap().input_ids.iter().take_while(|id| **id < 2).count();
        (0..11_000).filter(|index| stack(*index) == n).count() as u64
    };
    uniform("symbols", &(1..12).map(symbols).collect::<Vec<_>>(), 11);
}

#[test]
fn tallies_are_answered() {
    let majority = task("huang/bin_majority");
    let parity = task("huang/parity");
    for string in strings(2, 10) {
        let x = shown(&string, &["0", "1"]);
        let ones = string.iter().filter(|bit| **bit == 1).count();
        let right = if ones % 2 == 0 { "e" } else { "o" };
        let found = labels(&parity, &ids(&parity, &format!("<bos> {x} <sep> {right}")), 0);
        assert_eq!(found[string.len() + 1..], [right.to_owned(), "<eos>".into()]);
        assert!(found[..=string.len()].iter().all(|label| label == "-1"));
        for answer in [0, 1] {
            let input_ids = ids(&majority, &format!("<bos> {x} <sep> {answer}"));
            match (2 * ones).cmp(&string.len()) as i32 * (2 * answer - 1) {
                1 => assert_eq!(
                    labels(&majority, &input_ids, 0)[string.len() + 1..],
                    [answer.to_string(), "<eos>".into()]
                ),
                _ => assert!(majority.family.length(&input_ids).is_err(), "{string:?}"),
            }
        }
    }
    let empty = ids(&parity, "<bos> <sep> e");
    assert_eq!((labels(&parity, &empty, 0).join(" "), parity.family.length(&empty)), ("-1 e <eos>".into(), Ok(0)));
    let letters = task("huang/majority");
    let of = |task: &Task, input: &str| labels(task, &ids(task, input), 0).join(" ");
    assert_eq!(of(&letters, "<bos> q a q z <sep> q"), "-1 -1 -1 -1 -1 q <eos>");
    assert!(letters.family.length(&ids(&letters, "<bos> q a q a <sep> q")).is_err());
    let three = task("huang/bin_majority_interleave");
    assert_eq!(of(&three, "<bos> 0 1 1 0 1 0 0 0 0 <sep> 0 1 0"), "-1 -1 -1 -1 -1 -1 -1 -1 -1 -1 0 1 0 <eos>");
    assert_eq!(parity.vocabulary.tokens().join(" "), "0 1 e o <bos> <sep> <eos> <pad>");
    assert!((0..300).all(|i| (3..=48).contains(&three.examples(Split::Train, 0)(i).length)));
    assert_eq!((three.family.train_max_length(), three.family.chance(9)), (48, Some(0.625)));
    assert_eq!(letters.family.chance(9), Some((1.0 / 26.0 + 1.0) / 2.0), "the end is always right");
}

#[test]
fn shares_of_letters_are_uniform() {
    let zeros = |name: &str, length: u32, n: usize| {
        let task = task(name);
        let zero = task.vocabulary.id("0").unwrap();
        let of = |index| {
            let e = task.family.test(2, index, length).unwrap();
            e.input_ids[1..=length as usize].iter().filter(|id| **id == zero).count()
        };
        (0..n).map(of).collect::<Vec<_>>()
    };
    let counts = |found: &[usize], length: usize| -> Vec<u64> {
        (0..=length).map(|n| found.iter().filter(|m| **m == n).count() as u64).collect()
    };
    uniform("parity", &counts(&zeros("huang/parity", 20, 21_000), 20), 21);
    let mut weights = vec![1.0; 21];
    weights[10] = 1e-12; // ties are drawn again
    let found = counts(&zeros("huang/bin_majority", 20, 20_000), 20);
    assert_eq!(found[10], 0);
    fits("majority", &found, &weights);
    // all places are alike
    let task = task("huang/parity");
    let first = |index| task.family.test(3, index, 5).unwrap().input_ids[1..6].iter().position(|id| *id == 1);
    let mut places: HashMap<usize, u64> = HashMap::new();
    (0..20_000).filter_map(first).for_each(|place| *places.entry(place).or_default() += 1);
    // the first of k ones among 5: P(place) = mean over k of C(4 − place, k − 1) / C(5, k)
    let expected: Vec<f64> = (0..5)
        .map(|place| {
            let choose = |n: usize, k: usize| (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product::<f64>();
            (1..=5 - place).map(|k| choose(4 - place, k - 1) / choose(5, k)).sum()
        })
        .collect();
    fits("places", &(0..5).map(|place| places[&place]).collect::<Vec<_>>(), &expected);
}

#[test]
fn lengths_of_brackets_are_those_of_different_strings() {
    let lengths = |name: &str, n: usize| -> Vec<u32> {
        let task = task(name);
        let examples = task.examples(Split::Train, 3);
        (0..n).map(|i| examples(i).length).collect()
    };
    // 300 different ones: one of 2 tokens, two of 4, five of 6; the published set of 300 has 1, 2, 5, 11 of 2 … 8
    let found = lengths("bhatt/dyck1,different=300,val_examples=300", 30_000);
    let count = |n: u32| found.iter().filter(|length| **length == n).count();
    let counts = [count(2), count(4), count(6)];
    let near = |(found, expected): (&usize, &usize)| found.abs_diff(*expected) < expected / 3;
    assert!(counts.iter().zip(&[100, 200, 500]).all(near), "{counts:?}");
    // independent ones are mostly short
    let found = lengths("bhatt/dyck1,different=0", 10_000);
    let two = found.iter().filter(|length| **length == 2).count(); // f_1 of 1 − f_0
    assert!((2200..2500).contains(&two), "{two}");
    // with a reset, the longest length bounds each word
    let found = lengths("bhatt/reset_dyck", 20_000);
    assert!(found.iter().all(|n| (2..=101).contains(n)) && found.iter().any(|n| *n > 60), "{:?}", found.iter().max());
    assert_eq!(task("bhatt/reset_dyck").family.train_max_length(), 101);
}

#[test]
fn gaps_have_reasons() {
    for (name, length, reason, next) in [
        ("bhatt/dyck2", 11, "even length", 12),
        ("bhatt/counter3", 100, "multiples of 3", 102),
        ("huang/bin_majority_interleave", 100, "a multiple of 3", 102),
    ] {
        let family = task(name).family;
        assert!(family.test(0, 0, length).unwrap_err().reason.contains(reason), "{name}");
        assert_eq!(family.test(0, 0, next).unwrap().length, next);
        assert!(family.of_length(0, 0, length).is_none() && family.of_length(0, 0, next).is_some());
    }
    let flat = task("chomsky/modular_arithmetic").family;
    assert_eq!(flat.test(0, 0, 40).unwrap(), flat.test(0, 0, 39).unwrap());
    assert!(flat.of_length(0, 0, 40).is_none());
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (settings, part) in [
        ("brackets,pairs=8", "pairs = 8 is not between 1 and 7"),
        ("brackets,p=0.9,q=0.2", "p = 0.9, q = 0.2"),
        ("brackets,train_lengths=3", "train_lengths: no sequence has a length of 3: balanced"),
        ("brackets,test_lengths=20000", "longest string has 10000"),
        ("counter,letters=1", "letters = 1 is not between"),
        ("counter,letters=15", "letters = 15 is not between"),
        ("counter,letters=3,train_lengths=1..2", "multiples of 3"),
        ("expressions,modulus=1", "modulus = 1"),
        (r#"expressions,operators=["/"]"#, "`/` is none of"),
        ("expressions,operators=[]", "operators is empty"),
        ("expressions,form=equation", "several solutions"),
        (r#"expressions,unused=["+"]"#, "unused: `+`"),
        ("stack,symbols=0", "symbols = 0"),
        ("tally,strings=0", "strings = 0"),
        (r#"tally,alphabet=["a","b","c"]"#, "shares = \"uniform\" is for two letters"),
        (r#"tally,alphabet=["a"]"#, "alphabet has 1 letters"),
        (r#"tally,alphabet=["a","<sep>"]"#, "`<sep>` is there twice"),
        ("tally,train_lengths=0", "none is the most frequent"),
    ] {
        let error = Task::by_name(settings).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{settings}"));
        assert!(error.contains(part) && error.contains("\n  hint: "), "{settings}: {error}");
    }
}
