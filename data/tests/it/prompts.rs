//! Prompts and arithmetic: answers by independent rules, and traps by hand.

use data::{Example, Split, Task, text};

pub(crate) fn task(name: &str) -> Task {
    Task::by_name(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Inputs and labels as tokens.
pub(crate) fn shown(task: &Task, e: &Example) -> (Vec<String>, Vec<String>) {
    let token = |id: u16| task.vocabulary.token(id).unwrap().to_owned();
    let label = |label: &i16| u16::try_from(*label).map_or("-1".into(), token);
    (e.input_ids.iter().map(|id| token(*id)).collect(), e.labels.iter().map(label).collect())
}

/// The labels of a line, tokens separated by blanks.
fn labels(name: &str, input: &str) -> Result<String, String> {
    let task = task(name);
    let ids = input.split(' ').map(|token| task.vocabulary.id(token).unwrap_or_else(|| panic!("{token}")));
    let input_ids: Vec<u16> = ids.collect();
    let labels = task.family.labels(&input_ids)?;
    Ok(shown(&task, &Example { input_ids, labels, length: 0 }).1.join(" "))
}

/// Examples of all splits, and tests of some lengths.
fn examples(task: &Task, tests: &[u32]) -> Vec<Example> {
    let split = |split| (0..150).map(task.examples(split, 3)).collect::<Vec<_>>();
    let tests = tests.iter().flat_map(|length| (0..5).map(|index| task.family.test(1, index, *length).unwrap()));
    Split::ALL.map(split).into_iter().flatten().chain(tests).collect()
}

/// Prompt and scored labels of an example with slots.
fn slots(task: &Task, e: &Example) -> (Vec<String>, Vec<String>) {
    let (input, labels) = shown(task, e);
    let prompt: Vec<String> = input.iter().take_while(|token| *token != "E").cloned().collect();
    assert!(input[prompt.len()..].iter().all(|token| token == "E"));
    assert!(labels[..prompt.len()].iter().all(|label| label == "-1"));
    assert_eq!(prompt.len(), e.length as usize);
    (prompt.clone(), labels[prompt.len()..].to_vec())
}

#[test]
fn strings_in_slots_are_answered_by_independent_rules() {
    for (name, slots_per_symbol) in
        [("reverse_string", 1), ("duplicate_string", 2), ("odds_first", 1), ("bucket_sort", 1)]
    {
        let task = task(&format!("chomsky/{name}"));
        for e in examples(&task, &[1, 2, 3, 500]) {
            let (prompt, answer) = slots(&task, &e);
            let n = prompt.len();
            assert_eq!(answer.len(), slots_per_symbol * n);
            for (i, symbol) in answer.iter().enumerate() {
                let from = match name {
                    "reverse_string" => n - 1 - i,
                    "duplicate_string" => i % n,
                    "odds_first" if i < n / 2 => 2 * i + 1,
                    "odds_first" => 2 * (i - n / 2),
                    _ => {
                        let smaller = |bound: &str| prompt.iter().filter(|other| other.as_str() < bound).count();
                        assert!((smaller(symbol)..n).contains(&i) && prompt.contains(symbol));
                        assert!(i < n - prompt.iter().filter(|other| *other > symbol).count());
                        continue;
                    }
                };
                assert_eq!(*symbol, prompt[from], "{name}");
            }
        }
    }
}

#[test]
fn a_missing_symbol_is_that_of_the_other_copy() {
    let task = task("chomsky/missing_duplicate_string");
    for e in examples(&task, &[1, 2, 3, 100, 101]) {
        let (prompt, answer) = slots(&task, &e);
        let n = prompt.len();
        if n == 1 {
            assert_eq!((prompt[0].as_str(), answer[0].as_str()), ("1", "1"));
            continue;
        }
        assert_eq!(prompt[n - 1] == "3", n % 2 == 1);
        let whole = n / 2 * 2;
        let at = prompt.iter().position(|token| token == "2").unwrap();
        let filled: Vec<&String> = (0..whole).map(|i| if i == at { &answer[0] } else { &prompt[i] }).collect();
        assert_eq!(filled[..whole / 2], filled[whole / 2..]);
    }
}

/// The value of digits, little-endian.
fn value(digits: &[String], base: u128) -> u128 {
    digits.iter().rev().fold(0, |value, digit| value * base + digit.parse::<u128>().unwrap())
}

fn reversed(digits: &[String]) -> Vec<String> {
    digits.iter().rev().cloned().collect()
}

#[test]
fn sums_products_and_roots_are_exact() {
    for name in ["chomsky/binary_addition", "chomsky/binary_multiplication"] {
        let task = task(name);
        for e in examples(&task, &[3, 4, 100]) {
            let (prompt, answer) = slots(&task, &e);
            let Some(operator) = prompt.iter().position(|token| token == "2").filter(|_| prompt.len() <= 100) else {
                continue;
            };
            let (a, b) = (value(&prompt[..operator], 2), value(&prompt[operator + 1..], 2));
            let end = answer.iter().position(|label| label == "2").unwrap();
            let result = if name.ends_with("addition") { a + b } else { a * b };
            assert_eq!(value(&answer[..end], 2), result);
            assert!(end == 1 || answer[end - 1] == "1", "a leading zero: {answer:?}");
            assert!(answer[end + 1..].iter().all(|label| label == "-1"));
            assert_eq!(answer.len(), prompt.len() + usize::from(name.ends_with("addition")));
        }
    }
    let task = task("chomsky/compute_sqrt");
    for e in examples(&task, &[1, 2, 60, 61]) {
        let (prompt, answer) = slots(&task, &e);
        assert_eq!(answer.len(), prompt.len().div_ceil(2));
        if prompt.len() <= 61 {
            let (n, root) = (value(&reversed(&prompt), 2), value(&reversed(&answer), 2));
            assert!(root * root <= n && n < (root + 1) * (root + 1), "{root}² is not {n}");
        }
    }
}

/// Prompt, and labels from the separator on.
fn forced(task: &Task, e: &Example, separator: &str) -> (Vec<String>, Vec<String>) {
    let (input, labels) = shown(task, e);
    let at = input.iter().position(|token| token == separator).unwrap();
    assert!(labels[..at].iter().all(|label| label == "-1"));
    assert_eq!(input[at + 1..], labels[at..labels.len() - 1], "labels are the next tokens");
    (input[..at].to_vec(), labels[at..].to_vec())
}

#[test]
fn teacher_forced_sums_and_products_are_exact() {
    for (name, operator, base, big) in [
        ("huang/addition", "+", 2, true),
        ("abacus/addition", "+", 10, false),
        ("abacus/multiplication", "x", 10, false),
    ] {
        let task = task(name);
        let tests: &[u32] = if big { &[4, 5, 100] } else { &[1, 2, 15] };
        for e in examples(&task, tests) {
            let (mut prompt, mut answer) = forced(&task, &e, "=");
            let end = answer.pop().unwrap();
            if big {
                assert_eq!(prompt.remove(0), "<bos>");
            }
            assert_eq!(end, if big { "<eos>" } else { "[EOS]" });
            let at = prompt.iter().position(|token| token == operator).unwrap();
            let numbers = [&prompt[..at], &prompt[at + 1..], &answer[..]];
            let numbers = numbers.map(|n| if big { reversed(n) } else { n.to_vec() });
            let main = if big { prompt.len() + 1 } else { numbers[0].len().max(numbers[1].len()) };
            assert_eq!(e.length as usize, main, "{name}");
            assert!(numbers.iter().all(|n| n.len() == 1 || n[n.len() - 1] != "0"), "{name}: a leading zero");
            if numbers[2].len() > 35 {
                continue;
            }
            let [a, b, c] = numbers.map(|n| value(&n, base));
            assert_eq!(c, if operator == "x" { a * b } else { a + b }, "{name}");
            assert!(big || (a > 0 && b > 0), "{name}: a number is 0");
        }
    }
}

/// Schoolbook arithmetic for numbers of any length: digits, the last one first.
fn product(a: &[u32], b: &[u32], base: u32) -> Vec<u32> {
    let mut digits = vec![0; a.len() + b.len()];
    for (i, x) in a.iter().enumerate() {
        let mut carry = 0;
        for j in 0..digits.len() - i {
            let sum = digits[i + j] + carry + if j < b.len() { x * b[j] } else { 0 };
            (digits[i + j], carry) = (sum % base, sum / base);
        }
    }
    digits
}

#[test]
fn long_numbers_are_exact() {
    let parse = |digits: &[String]| -> Vec<u32> { digits.iter().map(|digit| digit.parse().unwrap()).collect() };
    let multiplication = task("abacus/multiplication");
    let addition = task("chomsky/binary_addition");
    let root = task("chomsky/compute_sqrt");
    for length in [300, 999, 1000] {
        let e = multiplication.family.test(0, 0, length).unwrap();
        let (prompt, answer) = forced(&multiplication, &e, "=");
        let at = prompt.iter().position(|token| token == "x").unwrap();
        let mut expected = product(&parse(&prompt[..at]), &parse(&prompt[at + 1..]), 10);
        expected.truncate(answer.len() - 1);
        assert_eq!(parse(&answer[..answer.len() - 1]), expected);

        let e = addition.family.test(0, 0, length).unwrap();
        let (prompt, answer) = slots(&addition, &e);
        let at = prompt.iter().position(|token| token == "2").unwrap();
        let (a, b) = (parse(&prompt[..at]), parse(&prompt[at + 1..]));
        let end = answer.iter().position(|label| label == "2").unwrap();
        let mut carry = 0;
        for (i, bit) in parse(&answer[..end]).into_iter().enumerate() {
            let sum = a.get(i).unwrap_or(&0) + b.get(i).unwrap_or(&0) + carry;
            assert_eq!(bit, sum % 2);
            carry = sum / 2;
        }
        assert_eq!(carry, 0);

        // r² ≤ n < (r + 1)² = r² + 2r + 1
        let e = root.family.test(0, 0, length).unwrap();
        let (prompt, answer) = slots(&root, &e);
        let (n, r) = (parse(&reversed(&prompt)), parse(&reversed(&answer)));
        let square = product(&r, &r, 2);
        let compared = |digits: &[u32]| -> Vec<u32> {
            (0..=n.len() + 2).rev().map(|i| digits.get(i).copied().unwrap_or(0)).collect()
        };
        assert!(compared(&square) <= compared(&n));
        let mut next = vec![0; n.len() + 3];
        let mut carry = 1;
        for (i, digit) in next.iter_mut().enumerate() {
            let doubled = i.checked_sub(1).and_then(|i| r.get(i)).unwrap_or(&0);
            let sum = square.get(i).unwrap_or(&0) + doubled + carry;
            (*digit, carry) = (sum % 2, sum / 2);
        }
        assert!(compared(&next) > compared(&n));
    }
}

#[test]
fn traps_by_hand() {
    for (name, input, expected) in [
        // positions 2, 4, 6 … come first
        ("chomsky/odds_first", "0 1 1 E E E", "-1 -1 -1 1 0 1"),
        // one symbol has no separator; `1` alone answers itself; odd lengths end in 3
        ("chomsky/missing_duplicate_string", "1 E", "-1 1"),
        ("chomsky/missing_duplicate_string", "0 2 3 E", "-1 -1 -1 0"),
        ("chomsky/missing_duplicate_string", "1 0 2 0 E", "-1 -1 -1 -1 1"),
        // numbers that are too short for two; the end is scored, what follows it is not
        ("chomsky/binary_addition", "0 E E", "-1 0 2"),
        ("chomsky/binary_addition", "0 1 E E E", "-1 -1 0 1 2"),
        ("chomsky/binary_addition", "1 0 E E E", "-1 -1 1 2 -1"),
        ("chomsky/binary_addition", "0 0 E E E", "-1 -1 0 2 -1"),
        ("chomsky/binary_addition", "1 2 1 E E E E", "-1 -1 -1 0 1 2 -1"),
        ("chomsky/binary_multiplication", "0 E", "-1 2"),
        ("chomsky/binary_multiplication", "0 1 E E", "-1 -1 0 2"),
        ("chomsky/binary_multiplication", "1 0 E E", "-1 -1 0 2"),
        ("chomsky/binary_multiplication", "1 2 1 E E E", "-1 -1 -1 1 2 -1"),
        ("chomsky/binary_multiplication", "1 1 2 1 1 E E E E E", "-1 -1 -1 -1 -1 1 0 0 1 2"),
        // the root is padded, and all of it is scored
        ("chomsky/compute_sqrt", "0 0 0 1 E E", "-1 -1 -1 -1 0 1"),
        ("chomsky/bucket_sort", "4 0 4 1 E E E E", "-1 -1 -1 -1 0 1 4 4"),
        // the first label stands at the separator, the last is the end
        ("huang/repeat_copy", "<bos> a b <sep> a b", "-1 -1 -1 a b <eos>"),
        ("huang/sort", "<bos> 100 9 20 <sep> 9 20 100", "-1 -1 -1 -1 9 20 100 <eos>"),
        ("huang/addition", "<bos> 1 1 + 1 = 1 0 0", "-1 -1 -1 -1 -1 1 0 0 <eos>"),
        ("huang/addition", "<bos> 0 + 0 = 0", "-1 -1 -1 -1 0 <eos>"),
        ("abacus/addition", "9 9 + 1 = 0 0 1", "-1 -1 -1 -1 0 0 1 [EOS]"),
        ("abacus/multiplication", "5 x 2 1 = 0 6", "-1 -1 -1 -1 0 6 [EOS]"),
        ("ram/prefix_ngram", "$ a b | a b c a b d | c a b d", "-1 -1 -1 -1 -1 -1 -1 -1 -1 -1 c a b d ."),
        ("ram/suffix_ngram", "$ c a b d e f | a b d e f", "-1 -1 -1 -1 -1 -1 -1 -1 -1 -1 e f ."),
    ] {
        assert_eq!(labels(name, input).as_deref(), Ok(expected), "{name}: {input}");
    }
    for (name, input, reason) in [
        ("chomsky/reverse_string", "0 1 E", "2 slots `E`"),
        ("chomsky/reverse_string", "0 1 E E E", "2 slots `E`"),
        ("chomsky/reverse_string", "0 E 1 E", "1 slots `E`"),
        ("chomsky/missing_duplicate_string", "0 E", "with one symbol missing"),
        ("chomsky/missing_duplicate_string", "0 1 2 0 E", "with one symbol missing"),
        ("chomsky/missing_duplicate_string", "2 2 E", "with one symbol missing"),
        ("chomsky/binary_addition", "1 0 1 E E E E", "there is no `2` after the first number"),
        ("chomsky/binary_addition", "1 2 E E E", "a number has no digit"),
        ("huang/repeat_copy", "<bos> a b <sep> a a", "token 2 of the answer is not the right one"),
        ("huang/repeat_copy", "<bos> a b <sep> a b <eos>", "goes on after its answer"),
        ("huang/repeat_copy", "a b <sep> a b", "does not start right"),
        ("huang/repeat_copy", "<bos> a b", "ends before its prompt does"),
        ("huang/repeat_copy", "<bos> <sep>", "the string is empty"),
        ("ram/prefix_ngram", "$ a z | a b c | c", "nothing in the string follows the n-gram"),
        ("abacus/addition", "1 = 1", "there is no `+` after the first number"),
    ] {
        let error = labels(name, input).unwrap_err();
        assert!(error.contains(reason), "{name}: {input}: {error}");
    }
}

/// Greedy decoding: an answer that has begun rightly is labelled with its next token.
#[test]
fn the_beginning_of_an_answer_is_labelled_with_the_next_token() {
    assert_eq!(labels("huang/repeat_copy", "<bos> a b <sep>").unwrap(), "-1 -1 -1 a");
    assert_eq!(labels("huang/repeat_copy", "<bos> a b <sep> a").unwrap(), "-1 -1 -1 a b");
    assert_eq!(labels("ram/suffix_ngram", "$ c a b d e f | a b d").unwrap(), "-1 -1 -1 -1 -1 -1 -1 -1 -1 -1 e");
}

#[test]
fn look_ups_of_other_programs_may_have_other_ngrams_and_shorter_answers() {
    let accepts = |name: &str, line: &str| {
        let task = task(name);
        let (input_ids, labels) = text::parse_line(line, &task.vocabulary).unwrap();
        task.check_labels(&input_ids, &labels)
    };
    let line = |input: &str, labels: &str| {
        let list = |text: &str| format!("[\"{}\"]", text.replace(' ', "\",\""));
        format!("[{},{}]", list(input), list(labels))
    };
    // an n-gram of two letters, and answers that end early
    let suffix = |answer: &str, labels: &str| {
        accepts(
            "ram/suffix_ngram",
            &line(&format!("$ c a b d e f | a b {answer}"), &format!("-1 -1 -1 -1 -1 -1 -1 -1 -1 {labels}")),
        )
    };
    assert_eq!(suffix("d e f", "d e f ."), Ok(()));
    assert_eq!(suffix("d e", "d e ."), Ok(()));
    assert_eq!(suffix("d e", "d e f"), Ok(()));
    assert!(suffix("d e", "d f .").is_err() && suffix("d e", "d e e").is_err() && suffix("d f", "d f .").is_err());
    let prefix = |labels: &str| {
        accepts("ram/prefix_ngram", &line("$ a | a b c d | b c", &format!("-1 -1 -1 -1 -1 -1 -1 {labels}")))
    };
    assert_eq!(prefix("b c ."), Ok(()));
    assert_eq!(prefix("b c d"), Ok(()));
    assert!(prefix("b . .").is_err() && prefix("b c a").is_err());
}

#[test]
fn packed_lines_are_cut_and_the_cut_example_is_not_scored() {
    let task = task("ram/copy,packed=40,train_lengths=5-9");
    let (mut cut, mut whole) = (0, 0);
    for e in (0..400).map(task.examples(Split::Train, 0)) {
        let (input, labels) = shown(&task, &e);
        assert_eq!(input.len(), 39);
        let mut text = input.join("");
        let starts: Vec<usize> = text.match_indices('$').map(|(at, _)| at).collect();
        text.push('?');
        for (i, start) in starts.iter().enumerate() {
            let end = starts.get(i + 1).copied().unwrap_or(40);
            let scored: String = labels[*start..end.min(39)].iter().filter(|l| *l != "-1").cloned().collect();
            let separator = text[*start..end].find('|').map(|at| start + at);
            let x = separator.map(|at| &text[start + 1..at]);
            let fits = x.is_some_and(|x| start + 2 * x.len() + 3 <= 40);
            if i > 0 && !fits {
                assert_eq!(scored, "");
                cut += 1;
            } else {
                assert_eq!(scored, format!("{}.", x.unwrap()), "{text}");
                whole += 1;
            }
        }
    }
    assert!(cut > 300 && whole > 700, "{cut} {whole}");
    // validation has one example to a line
    assert!((0..50).map(task.examples(Split::Val, 0)).all(|e| e.input_ids.len() == 2 * e.length as usize + 2));
}

/// What somebody scores who guesses the symbols of an answer and knows where it ends, which is what accuracy above chance
/// is measured from.
#[test]
fn the_chance_of_an_answer_counts_its_end() {
    for (name, length, expected) in [
        ("huang/repeat_copy", 3, (3.0 / 2.0 + 1.0) / 4.0),
        ("huang/sort", 9, (9.0 / 150.0 + 1.0) / 10.0),
        ("ram/copy", 25, (25.0 / 26.0 + 1.0) / 26.0),
        ("chomsky/reverse_string", 8, 0.5), // no end
        ("chomsky/bucket_sort", 8, 0.2),
    ] {
        let found = task(name).family.chance(length).unwrap();
        assert!((found - expected).abs() < 1e-12, "{name}: {found}, not {expected}");
    }
    assert_eq!(task("huang/sort").family.chance(151), None, "there are 150 numbers");
}
