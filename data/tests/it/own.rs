//! Tasks without a rule: examples of files in the formats of the field, and of a program.

use data::{Dataset, DatasetInfo, Example, Split, Task, allow_commands, generate_split};
use std::fs;
use std::path::Path;
use toml::{Table, Value};

fn with(base: &str, settings: &[(&str, Value)]) -> Task {
    let table = settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Table>();
    Task::with_settings(base, table).unwrap_or_else(|error| panic!("{error}"))
}

fn dataset(path: &Path, settings: &[(&str, Value)]) -> Task {
    let path = ("path", Value::from(path.to_string_lossy().into_owned()));
    with("dataset", &[&[path], settings].concat())
}

/// The error of a task of files.
fn refused(path: &Path, settings: &[(&str, Value)]) -> String {
    let path = ("path".to_owned(), Value::from(path.to_string_lossy().into_owned()));
    let more = settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    Task::with_settings("dataset", std::iter::once(path).chain(more).collect()).unwrap_err().to_string()
}

fn shown(task: &Task, example: &Example) -> (String, String) {
    let tokens: Vec<&str> = example.input_ids.iter().map(|id| task.vocabulary.token(*id).unwrap()).collect();
    let labels: Vec<String> = example.labels.iter().map(|label| task.vocabulary.label(*label)).collect();
    (tokens.join(" "), labels.join(" "))
}

fn all(task: &Task, split: &str) -> Vec<(String, String)> {
    let outside = task.family.outside().unwrap();
    outside.examples(split, 0, 0..usize::MAX).unwrap().iter().map(|example| shown(task, example)).collect()
}

/// Strings of a and b in the format of FLaRe, accepted where they have an even number of `a`.
fn flare(folder: &Path, strings: &[&str], with_sets: bool) {
    fs::create_dir_all(folder).unwrap();
    let even = |string: &str| string.matches('a').count().is_multiple_of(2);
    let lines = |line: &dyn Fn(&str) -> String| strings.iter().map(|s| line(s) + "\n").collect::<String>();
    let spaced = |string: &str| string.chars().map(String::from).collect::<Vec<_>>().join(" ");
    fs::write(folder.join("main.tok"), lines(&spaced)).unwrap();
    fs::write(folder.join("labels.txt"), lines(&|s| u8::from(even(s)).to_string())).unwrap();
    if with_sets {
        let sets = |s: &str| {
            let prefix = |n: usize| format!(r#"{{"s": "a b", "e": {}}}"#, even(&s[..n]));
            format!("[{}]", (0..=s.len()).map(prefix).collect::<Vec<_>>().join(", "))
        };
        let positive = strings.iter().filter(|s| even(s)).map(|s| sets(s) + "\n");
        fs::write(folder.join("next-symbols.jsonl"), positive.collect::<String>()).unwrap();
    }
}

fn flare_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    flare(dir.path(), &["", "a", "aa", "ab", "bab", "bb"], true);
    flare(&dir.path().join("datasets/validation-short"), &["", "b", "aba"], true);
    flare(&dir.path().join("datasets/test"), &["aabab", "b", "babab", "bbbbbbb"], false);
    flare(&dir.path().join("datasets/test-short-held-out"), &["a", "b"], true);
    dir
}

#[test]
fn paths_lists_and_quotes_survive_in_names() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["plain", "a b", "a,b=c", "it's \"x\"", "[1]", "ä#ö", "1", "true", "#", "x\\y", "1..2"] {
        let path = dir.path().join(folder);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("train.txt"), "[[\"a\"], [\"b\"]]\n").unwrap();
        let vocab = Value::from(vec!["a", "b", ",", "\"", "'", "]", "\\", "<pad>"]);
        let task = dataset(&path, &[("vocab", vocab), ("val", Value::from("train"))]);
        let again = Task::by_name(&task.name).unwrap_or_else(|error| panic!("{}: {error}", task.name));
        assert_eq!((&again.name, &again.parameters), (&task.name, &task.parameters));
        assert_eq!(again.vocabulary.tokens()[2..5], [",", "\"", "'"]);
        let config: data::TaskConfig = toml::from_str(&format!("name = {}", Value::from(task.name.clone()))).unwrap();
        assert_eq!((config.name, config.train_examples), (task.name, 1));
    }
    let error = Task::by_name("dataset,path=gone/[1]").unwrap_err().to_string();
    assert!(error.contains("cannot read gone/[1]: No such file or directory"), "{error}");
}

#[test]
fn strings_of_a_language_are_classified_at_their_end() {
    let dir = flare_folder();
    let task = dataset(dir.path(), &[]);
    assert_eq!(task.vocabulary.tokens(), ["<bos>", "a", "accept", "b", "reject", "<pad>"]);
    assert_eq!((task.train_examples, task.family.train_max_length(), task.max_seen_len(0).unwrap()), (6, 3, 4));
    assert_eq!(task.rows(Split::Val, 0).unwrap(), 3);
    let mut train = all(&task, "train");
    train.sort();
    assert_eq!(train[0], ("<bos>".into(), "accept".into()), "the empty string");
    assert!(train.contains(&("<bos> b a b".into(), "-1 -1 -1 reject".into())), "{train:?}");
    assert_eq!(all(&task, "val")[2], ("<bos> a b a".into(), "-1 -1 -1 accept".into()));
    assert_eq!(task.family.outside().unwrap().more_splits(), ["test-short-held-out"]);
    assert_eq!(all(&task, "test-short-held-out")[0], ("<bos> a".into(), "-1 reject".into()));
    // tests of a length are those of the test split, or else of validation
    let test = |index, length| task.family.test(0, index, length).map(|example| shown(&task, &example).0);
    assert_eq!((test(0, 5).unwrap(), test(1, 5).unwrap()), ("<bos> a a b a b".into(), "<bos> b a b a b".into()));
    assert_eq!((test(0, 1).unwrap(), test(0, 3).unwrap()), ("<bos> b".into(), "<bos> a b a".into()));
    assert_eq!(test(0, 6).unwrap_err().reason, "no example of this length in ood_test and val");
    assert_eq!(test(2, 5).unwrap_err().reason, "there are 2 examples of this length");
    assert_eq!((task.family.distinct_tracks(), task.family.chance(5)), (Some(2), Some(0.5)));
    let track = task.family.track(0, 0, 6);
    assert_eq!((track.max_length(), track.header, track.prefix_closed), (5, 1, false));
    // labels are right by definition, and the import accepts them
    let ids = [0, 1, 1];
    assert_eq!(task.check_labels(&ids, &[-1, -1, 4]), Ok(()));
    assert_eq!(task.length(&ids, &[-1, -1, 4]), 2);
    let padded = [0, 1, 1, 5, 5];
    assert_eq!(task.without_padding(&padded, &[-1, -1, 4, -1, -1]), 3);
    // files of the same form are read by their path
    let path = dir.path().join("datasets/test");
    assert_eq!(Dataset::from_outside(&task, &path.to_string_lossy()).unwrap().unwrap().len(), 4);
}

#[test]
fn what_may_come_next_is_a_set_of_each_prefix_of_the_strings_in_the_language() {
    let dir = flare_folder();
    let task = dataset(dir.path(), &[("string_labels", "next_symbols".into())]);
    assert_eq!(task.vocabulary.tokens(), ["<bos>", "<eos>", "a", "b", "<pad>"]);
    assert_eq!(task.vocabulary.unit_tokens(), ["a", "b", "<eos>"]);
    assert_eq!(
        all(&task, "val"),
        [("<bos>", "111"), ("<bos> b", "111 111"), ("<bos> a b a", "111 110 110 111")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    // the test has no such file; what has one, but no string of the language, is refused
    assert!(!task.splits().contains(&Split::OodTest));
    assert!(task.rows(Split::OodTest, 0).unwrap_err().to_string().contains("has no split `ood_test`"));
    let companion = dir.path().join("next-symbols.jsonl");
    let text = fs::read_to_string(&companion).unwrap();
    let shorter = text.lines().take(2).map(|line| format!("{line}\n")).collect::<String>();
    let longer = text.replacen("[{", "[{\"s\": \"c\", \"e\": true}, {", 1);
    for (changed, part) in [
        (shorter, "next-symbols.jsonl ends before line 6 of main.tok, which is labelled 1"),
        (format!("{text}[]\n"), "has more lines than the 3 strings that are labelled 1"),
        (longer, "line 1 has 2 prefixes in next-symbols.jsonl, but 1 tokens"),
        (text.replacen("a b", "a c", 1), "line 1: its set in next-symbols.jsonl has `c`, which is no unit"),
        ("hello\n".into(), "line 1: its line of next-symbols.jsonl: expected value"),
    ] {
        fs::write(&companion, changed).unwrap();
        let error =
            refused(dir.path(), &[("string_labels", "next_symbols".into()), ("vocab", Value::from(vec!["a", "b"]))]);
        assert!(error.contains("hint: ") && error.contains(part), "{part}: {error}");
    }
}

#[test]
fn word_problems_have_a_label_at_each_position_and_part_of_the_training_examples_held_out() {
    let dir = tempfile::tempdir().unwrap();
    let row =
        |n: u32| format!("7,{} {} 1,{} {} {}\n", n % 3, n / 3, n % 3, (n % 3 + n / 3) % 3, (n % 3 + n / 3 + 1) % 3);
    let rows = (0..9).map(row).collect::<String>();
    fs::write(dir.path().join("Z3=3.csv"), format!("seed,input,target\n{rows}")).unwrap();
    let file = dir.path().join("Z3=3.csv");
    let task = dataset(&file, &[("held_out", 0.34.into())]);
    assert_eq!(task.vocabulary.tokens(), ["0", "1", "2", "<pad>"]);
    let (train, val) = (all(&task, "train"), all(&task, "val"));
    assert_eq!((train.len(), val.len(), task.train_examples), (6, 3, 6));
    assert!(val.iter().all(|example| !train.contains(example)));
    assert!(train.iter().chain(&val).any(|(input, target)| (&input[..], &target[..]) == ("2 2 1", "2 1 2")));
    // whatever the seed of the order, the held-out ones are the same, and the only tests of a length
    let outside = task.family.outside().unwrap();
    assert_eq!(outside.examples("val", 9, 0..99).unwrap(), outside.examples("val", 0, 0..99).unwrap());
    assert_ne!(outside.examples("train", 9, 0..99).unwrap(), outside.examples("train", 0, 0..99).unwrap());
    let tests: Vec<_> = (0..3).map(|index| shown(&task, &task.family.test(0, index, 3).unwrap())).collect();
    assert_eq!(tests, val);
    assert!(task.family.test(0, 3, 3).is_err());
    assert!(refused(&file, &[]).contains("no validation examples\n  hint: val = FILE names them; or held_out = 0.1"));
    assert!(refused(&file, &[("held_out", 0.01.into())]).contains("held_out = 0.01 of 9 training examples is none"));
    assert!(refused(&file, &[("held_out", 1.into())]).contains("held_out = 1 is no share"));
    assert!(
        task.rows(Split::Train, 7)
            .unwrap_err()
            .to_string()
            .contains("7 training examples were asked for, but there are 6")
    );
    fs::write(&file, "seed,input,target\n1,0 1,0\n").unwrap();
    assert!(refused(&file, &[("held_out", 0.5.into())]).contains("line 2 has 2 tokens but 1 labels"));
}

#[test]
fn symbols_of_mlregtest_are_characters_and_its_tests_keep_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("04.SL_Train.txt", "ab\tTRUE\n\tFALSE\nbdé\tFALSE\n");
    write("04.SL_Dev.txt", "a\tTRUE\n");
    write("04.SL_TestLR.txt", "abab\tTRUE\n");
    write("04.SL_TestSA.txt", "b\tFALSE\n");
    let task = dataset(dir.path(), &[]);
    assert_eq!(task.vocabulary.tokens(), ["<bos>", "a", "accept", "b", "d", "reject", "é", "<pad>"]);
    assert!(all(&task, "train").contains(&("<bos> b d é".into(), "-1 -1 -1 reject".into())));
    assert!(all(&task, "train").contains(&("<bos>".into(), "reject".into())));
    assert_eq!(all(&task, "ood_test"), [("<bos> a b a b".into(), "-1 -1 -1 -1 accept".into())]);
    assert_eq!(task.family.outside().unwrap().more_splits(), ["TestSA"]);
    let other = dataset(dir.path(), &[("test", "TestSA".into())]);
    assert_eq!(all(&other, "ood_test"), [("<bos> b".into(), "-1 reject".into())]);
    write("16.TSL_Train.txt", "x\tTRUE\n");
    assert!(refused(dir.path(), &[]).contains("files of several languages: 04.SL, 16.TSL\n  hint: language = NAME"));
    assert_eq!(dataset(dir.path(), &[("language", "04.SL".into())]).train_examples, 3);
    write("04.SL_Dev.txt", "a\tTRUE\nb TRUE\n");
    assert!(refused(dir.path(), &[("language", "04.SL".into())]).contains("04.SL_Dev.txt: line 2 is `b TRUE`"));
}

#[test]
fn files_that_can_be_imported_are_a_task_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    // tokens as text, in two forms; the order of the vocabulary does not depend on that of the lines
    write("train.txt", "[[\"b\", \"10\"], [\"9\", \"x\"]]\n[[\"a\"], [\"-1\"]]\n");
    write("val.jsonl", "{\"tokens\": [\"<bos>\", \"a\", \"E\"], \"labels\": [null, null, 9]}\n");
    write("hard.json", "{\"tokens\": [\"a\"], \"labels\": [\"x\"]}\n");
    write("README.md", "not examples");
    let uncounted = ("uncounted", Value::from(vec!["<bos>", "E"]));
    let task = dataset(dir.path(), std::slice::from_ref(&uncounted));
    assert_eq!(task.vocabulary.tokens(), ["9", "10", "<bos>", "E", "a", "b", "x", "<pad>"]);
    assert_eq!(task.family.outside().unwrap().examples("val", 0, 0..9).unwrap()[0].length, 1);
    assert_eq!(task.family.outside().unwrap().more_splits(), ["hard"]);
    assert_eq!(task.splits(), [Split::Train, Split::Val]);

    // ids: numbers, padding left out; lengths of a column
    let ids = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(ids.path().join(name), text).unwrap();
    write("train.jsonl", "{\"input_ids\": [4, 2, 1], \"labels\": [-100, 0, 1], \"length\": 2}\n");
    write("validation.csv", "input_ids,labels,length\n\"[3, 0]\",\"[5, -1]\",1\n");
    let task = dataset(ids.path(), &[]);
    assert_eq!(task.vocabulary.tokens().join(" "), "0 1 2 3 4 5 <pad>");
    assert_eq!(task.family.train_max_length(), 3);
    assert_eq!(dataset(ids.path(), &[("lengths", "given".into())]).family.train_max_length(), 2);
    let vocab = Value::from(vec!["<pad>", "a", "b", "c", "d", "e"]);
    let task = dataset(ids.path(), &[("vocab", vocab.clone())]);
    assert_eq!(all(&task, "val"), [("c".into(), "e".into())], "`<pad>` without a label is padding");
    let sets = dataset(ids.path(), &[("vocab", vocab), ("units", Value::from(vec!["a", "b", "c"]))]);
    assert_eq!(all(&sets, "val"), [("c".into(), "101".into())]);

    for (name, text, settings, part) in [
        ("train.jsonl", "", vec![], "train.jsonl: it has no examples"),
        ("train.txt", "[[\"a\"], [\"a\"]]\n", vec![], "several files of the split train"),
        (
            "train.jsonl",
            "{\"input_ids\": [9], \"labels\": [1]}\n",
            vec![("vocab", Value::from(vec!["a", "b"]))],
            "token id 9",
        ),
        ("train.jsonl", "{\"input_ids\": [1], \"labels\": [-1]}\n", vec![], "no token of it has a label"),
        ("train.jsonl", "{\"tokens\": [1], \"labels\": [1]}\n", vec![], "has tokens"),
        (
            "train.jsonl",
            "{\"input_ids\": [1], \"labels\": [1]}\n",
            vec![("lengths", "given".into())],
            "has no `length`",
        ),
        (
            "train.jsonl",
            "{\"input_ids\": [1], \"labels\": [1]}\n",
            vec![("vocab", Value::from(vec!["a", "a"]))],
            "`a` twice",
        ),
        (
            "train.jsonl",
            "{\"input_ids\": [1], \"labels\": [1]}\n",
            vec![("helper", "pad".into())],
            "helper and auxiliary",
        ),
        ("train.jsonl", "{\"input_ids\": [1], \"labels\": [1]}\n", vec![("test", "gone".into())], "gone"),
    ] {
        let before = fs::read(ids.path().join("train.jsonl")).unwrap();
        write(name, text);
        let error = refused(ids.path(), &settings);
        assert!(error.contains(part) && error.contains("hint: "), "{part}: {error}");
        fs::write(ids.path().join("train.jsonl"), before).unwrap();
        let _ = fs::remove_file(ids.path().join("train.txt"));
    }
}

#[test]
fn a_dataset_of_files_that_have_changed_since_is_no_longer_the_tasks() {
    let (dir, out) = (flare_folder(), tempfile::tempdir().unwrap());
    let task = dataset(dir.path(), &[]);
    let path = out.path().join("train.parquet");
    generate_split(&task, Split::Train, 3, 4, &path, |_| ()).unwrap();
    let (info, rows) = DatasetInfo::read(&path).unwrap();
    assert!(rows == 4 && info.is_of(&task, 3) && info.changed_files(&task).is_empty());
    let read = Dataset::read_as(&path, Some(&task)).unwrap();
    let expected = Dataset::generated(&task, Split::Train, 3, 4).unwrap();
    assert!(read.iter().eq(expected.iter()), "a file is what the task says");

    flare(&dir.path().join("datasets/test"), &["a"], false);
    let changed = Task::by_name(&task.name).unwrap();
    assert!(!info.is_of(&changed, 3));
    assert_eq!(info.changed_files(&changed), ["ood_test"]);
    fs::write(dir.path().join("labels.txt"), "1\n").unwrap();
    let error = Task::by_name(&task.name).unwrap_err().to_string();
    assert!(error.contains("main.tok has 6 lines, but labels.txt has 1"), "{error}");
}

/// A task of this Python program, which sees its request as `ask`, and of two tokens.
fn command(dir: &Path, body: &str, settings: &[(&str, Value)]) -> Task {
    allow_commands();
    let start = "import argparse, json, os, random, sys, time\nparser = argparse.ArgumentParser()\n\
                 for name in ['seed', 'start', 'count', 'length']: parser.add_argument('--' + name, type=int)\n\
                 parser.add_argument('--split')\nask = parser.parse_args()\n";
    let script = dir.join("make it.py");
    fs::write(&script, format!("{start}{body}")).unwrap();
    let own = [
        ("command", Value::from(vec!["python3".to_owned(), script.to_string_lossy().into_owned()])),
        ("vocab", Value::from(vec!["0", "1"])),
        ("train_lengths", "1..9".into()),
        ("test_lengths", "10..20".into()),
    ];
    with("command", &[&own[..], settings].concat())
}

const GOOD: &str = "
for i in range(ask.start, ask.start + ask.count):
    r = random.Random(f'{ask.split} {ask.seed} {ask.length} {i}')
    n = ask.length or (r.randint(10, 20) if ask.split == 'ood_test' else r.randint(1, 9))
    bits = [r.randint(0, 1) for _ in range(n)]
    print(json.dumps({'tokens': bits, 'labels': [sum(bits[:k + 1]) % 2 for k in range(n)]}))
";

#[test]
fn a_program_makes_a_task() {
    let dir = tempfile::tempdir().unwrap();
    let task = command(dir.path(), GOOD, &[("val_examples", 5.into())]);
    assert_eq!(task.vocabulary.tokens(), ["0", "1", "<pad>"]);
    assert_eq!(
        (task.train_examples, task.family.train_max_length(), task.rows(Split::Val, 0).unwrap()),
        (10_000, 9, 5)
    );
    let path = dir.path().join("train.parquet");
    generate_split(&task, Split::Train, 7, 2500, &path, |_| ()).unwrap();
    let read = Dataset::read_as(&path, Some(&task)).unwrap();
    assert!(read.len() == 2500 && read.info().is_of(&task, 7));
    let parity = |e: data::ExampleRef| {
        let sums = e.input_ids.iter().scan(0, |sum, bit| {
            Some({
                *sum = (*sum + *bit as i16) % 2;
                *sum
            })
        });
        sums.eq(e.labels.iter().copied()) && e.length as usize == e.input_ids.len()
    };
    assert!(read.iter().all(parity));
    let some = task.family.outside().unwrap().examples("train", 7, 2100..2110).unwrap();
    assert!(some.iter().map(Example::as_ref).eq((2100..2110).map(|index| read.get(index))), "pieces are the same");
    // tests of a length
    let test = task.family.test(0, 130, 57).unwrap();
    assert!(test.length == 57 && parity(test.as_ref()) && test == task.family.test(0, 130, 57).unwrap());
    assert_eq!(task.family.track(0, 0, 33).max_length(), 33);
    // the script is part of the task; a command as one text is the same words
    fs::write(dir.path().join("make it.py"), "print('other')").unwrap();
    let edited = Task::by_name(&task.name).unwrap();
    assert!(!read.info().is_of(&edited, 7));
    assert_eq!(read.info().changed_files(&edited), ["the command"]);
    let text = Value::from(format!("python3 '{}'", dir.path().join("make it.py").display()));
    let split = command(dir.path(), GOOD, &[("command", text)]);
    assert_eq!(split.family.test(0, 130, 57).unwrap(), test);
}

#[test]
fn a_program_that_does_not_do_what_it_should_is_named_with_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let one = |tokens: &str, labels: &str| {
        format!("for i in range(ask.count): print(json.dumps({{'tokens': {tokens}, 'labels': {labels}}}))")
    };
    for (body, part, hint) in [
        ("print('x', file=sys.stderr); raise ValueError('no luck')".into(), "exit status: 1; its last words:", "by hand"),
        ("raise ValueError('no luck')".into(), "ValueError: no luck", "by hand"),
        ("time.sleep(60)".into(), "did not end within 1 s and was killed", "timeout"),
        ("while True: print('babble')".into(), "printed more than the 8 lines", "one line for each"),
        ("print('hello')".into(), "example 0, line 1 of its output: expected value at character 1: `hello`", "one object a line"),
        ("pass".into(), "printed 0 examples, but was asked for 8", "--count"),
        (GOOD.replace("ask.start + ask.count", "ask.start + 3"), "printed 3 examples, but was asked for 8", "--count"),
        (one("[2]", "[0]"), "example 0, line 1 of its output: the token `2` is not in the vocabulary", "vocab"),
        (one("[0]", "['<eos>']"), "the label `<eos>` is not in the vocabulary", "vocab"),
        (one("[0, 1]", "[0]"), "has 2 tokens but 1 labels", "one object a line"),
        (one("[0]", "[-1]"), "has no label at any token", "at least one"),
        (one("[0] * 10", "[0] * 10"), "has the length 10, outside of train_lengths = 1..9", "correct"),
        (one("[0] * 23", "[0] * 23"), "has the length 23, outside of", "correct"),
        (one("['<pad>', 0]", "[-1, 0]"), "padding token at position 0", "leave it out"),
        ("for i in range(ask.count): print(json.dumps({'tokens': [random.randint(0, 1) for _ in range(9)], 'labels': [0] * 9}))".into(),
         "is not deterministic: example", "seed its random numbers"),
        (GOOD.replace(" {i}'", "'").replace("    r =", "    r = r if i > ask.start else"),
         "depends on --start or --count", "its own index"),
    ] {
        let task = command(dir.path(), &body, &[("timeout", if body.contains("sleep") { 1 } else { 30 }.into())]);
        let path = dir.path().join("out/train.parquet");
        let error = generate_split(&task, Split::Train, 0, 20, &path, |_| ()).unwrap_err().to_string();
        let (reason, told) = error.split_once("\n  hint: ").unwrap();
        assert!(reason.contains(part) && told.contains(hint), "{part}: {error}");
        assert!(reason.contains("make it.py' --split train --seed 0 --start "), "{error}");
        assert!(!path.exists() && !dir.path().join("out").exists(), "nothing half-written");
    }
    // later than the trial
    let late = GOOD.replace("    print", "    if i == 13: bits[0] = 7\n    print");
    let task = command(dir.path(), &late, &[]);
    let path = dir.path().join("out/train.parquet");
    let error = generate_split(&task, Split::Train, 0, 20, &path, |_| ()).unwrap_err().to_string();
    assert!(error.contains("example 13, line 14 of its output: the token `7`") && !path.exists(), "{error}");
    // labels that are sets, and tests that are not what was asked for
    let units = ("units", Value::from(vec!["1", "0"]));
    let task = command(dir.path(), &one("[0]", "['2']"), std::slice::from_ref(&units));
    let error = task.family.outside().unwrap().examples("train", 0, 0..1).unwrap_err().to_string();
    assert!(error.contains("the label `2` is no set of 2 units: 2 digits 0 and 1"), "{error}");
    let task = command(dir.path(), &one("[0]", "['01']"), &[units]);
    assert_eq!(task.family.test(0, 0, 1).unwrap().labels, [2]);
    let reason = task.family.test(0, 0, 2).unwrap_err().reason;
    assert!(reason.contains("has the length 1, but --length 2 was asked for"), "{reason}");
    let none = command(dir.path(), "pass", &[]);
    assert_eq!(none.family.test(0, 0, 2).unwrap_err().reason, "the command has no example of this length");
}

#[test]
fn settings_of_commands_are_checked_before_anything_runs() {
    let mark = tempfile::tempdir().unwrap();
    let touch = format!("touch {}", mark.path().join("ran").display());
    let rest = "vocab=[\"a\"],train_lengths=1..4,test_lengths=5..9";
    for (name, part) in [
        ("command".to_owned(), "there is no `command`\n  hint: command = "),
        (format!("command,command={touch},{}", &rest[12..]), "there is no `vocab`"),
        (
            format!("command,command={touch},vocab=[\"a\"]"),
            "there is no `train_lengths`\n  hint: train_lengths = \"1..40\"",
        ),
        (format!("command,command={touch},{}", rest.replace("1..4", "9..4")), "lengths are a range such as \"1..40\""),
        (format!("command,command=\"'{touch}\",{rest}"), "a quotation mark is open"),
        (format!("command,command={touch},{rest},timeout=0"), "timeout must be at least 1"),
        (format!("command,command={touch},{rest},timeout=9223372036854775807"), "is more than 604800 s, a week"),
        (format!("command,command={touch},{rest},val_examples=99999999999"), "val_examples is more than 100000000"),
        (format!("command,command={touch},{rest},units=[\"b\"]"), "the unit `b` is not in the vocabulary"),
        (format!("command,command={touch},{rest},comand=x"), "did you mean `command`?"),
    ] {
        let error = Task::by_name(&name).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("hint: "), "{part}: {error}");
    }
    let task = Task::by_name(&format!("command,command={touch},{}", rest.replace("1..4", "4"))).unwrap();
    assert_eq!((task.family.train_lengths(), task.max_seq_len), (1..=4, 128));
    assert_eq!(task.rows(Split::Train, 12).unwrap(), 12);
    assert_eq!(fs::read_dir(mark.path()).unwrap().count(), 0, "making a task runs nothing");
}
