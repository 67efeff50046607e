//! Tasks of somebody's own: a folder of examples, and a program that prints them; nothing runs unasked.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::{check_failure, command, fails, files, ok, run};
use serde_json::Value;
use std::fs;
use std::path::Path;

const MODEL: &str =
    "[model]\narch = 'rnn'\nhidden_size = 8\n[train]\nbatch_size = 16\nepochs = 1\nmax_steps = 4\nlog_every = 2\n";

/// The program of the documentation, as it stands there.
fn documented_program() -> String {
    let text = fs::read_to_string(crate::common::repository("docs/own-data.md")).unwrap();
    let (_, program) = text.split_once("```python\n").unwrap();
    program.split_once("```").unwrap().0.to_owned()
}

fn task_of(command: &str) -> String {
    format!(
        "[task]\nfamily = 'command'\ncommand = {command}\nvocab = ['0', '1']\ntrain_lengths = '1..20'\ntest_lengths = '21..60'\n\
         train_examples = 64\nval_examples = 10\ntest_examples = 12\n"
    )
}

/// A folder with a config and the documented program.
fn with_program() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("parity.py"), documented_program()).unwrap();
    let config = task_of("['python3', 'parity.py']") + MODEL;
    fs::write(dir.path().join("parity.toml"), config).unwrap();
    dir
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    ok(folder, &[arguments, &["--json", "--quiet"]].concat()).parse().unwrap()
}

/// Length, and status or the number of sequences.
fn rows(table: &Path) -> Vec<(u32, String)> {
    let mut reader = csv::Reader::from_path(table).unwrap();
    let headers = reader.headers().unwrap().clone();
    let at = |name: &str| headers.iter().position(|header| header == name).unwrap();
    let (length, status, n) = (at("length"), at("status"), at("n_sequences"));
    let row = |row: csv::StringRecord| {
        let text = if &row[status] == "ok" { row[n].to_owned() } else { row[status].to_owned() };
        (row[length].parse().unwrap(), text)
    };
    reader.records().map(|record| row(record.unwrap())).collect()
}

fn table(folder: &Path, arguments: &[&str]) -> Vec<(u32, String)> {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("table.csv");
    let to = ["-o", path.to_str().unwrap(), "--provider", "cpu", "--quiet"];
    ok(folder, &[&["eval"], arguments, &to[..]].concat());
    let is_table = |file: &String| file.ends_with(".csv") && !file.ends_with("-total.csv");
    let tables: Vec<String> = files(out.path()).into_iter().filter(is_table).collect();
    assert_eq!(tables.len(), 1, "{tables:?}");
    rows(&out.path().join(&tables[0]))
}

#[test]
fn the_program_of_the_documentation_trains_exports_and_is_swept() {
    let dir = with_program();
    let folder = dir.path();
    let trained = json(folder, &["train", "--config", "parity.toml", "--allow-command"]);
    assert_eq!(trained["steps"], 4);
    ok(folder, &["export", "--quiet"]);
    let swept = table(folder, &["--lengths", "1..3,40", "--samples", "7", "--allow-command"]);
    assert_eq!(swept, [1, 2, 3, 40].map(|length| (length, "7".to_owned())));
    // the dataset is there, so that the program does not run for a split
    let scored = json(folder, &["eval", "--split", "ood_test", "--provider", "cpu"]);
    assert_eq!((&scored["splits"][0]["n_sequences"], &scored["task"]), (&12.into(), &name(folder).into()), "{scored}");
    let shown = json(folder, &["data", "show", "--task", &name(folder), "--split", "val"]);
    assert_eq!(shown["examples"], 10);
    // a program that was edited makes other examples
    fs::write(folder.join("parity.py"), documented_program() + "# edited\n").unwrap();
    let part = "was made from other examples: the files of command,command=[\"python3\",\"parity.py\"]";
    fails(folder, &["train", "--config", "parity.toml", "--allow-command"], 1, &[part, "(the command)", "--force"]);
}

/// The name of the task in the only run's config.
fn name(folder: &Path) -> String {
    let run = fs::read_dir(folder.join("runs")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(run.join("config.toml")).unwrap();
    let config: toml::Table = text.parse().unwrap();
    config["task"]["name"].as_str().unwrap().to_owned()
}

#[test]
fn nothing_runs_a_program_without_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let script = format!("open('ran', 'a').write('x')\n{}", documented_program());
    fs::write(folder.join("parity.py"), script).unwrap();
    fs::write(folder.join("parity.toml"), task_of("'python3 parity.py'") + MODEL).unwrap();
    fs::write(folder.join("fresh.toml"), task_of("'python3 parity.py'") + MODEL + "fresh = true\n").unwrap();
    let grid = format!(
        "tasks = [{:?}]\nseeds = [1]\n[eval]\nlengths = '1..3'\nsplits = []\n[[architecture]]\nconfig = 'model.toml'\n",
        task_name()
    );
    fs::write(folder.join("grid.toml"), grid).unwrap();
    fs::write(folder.join("model.toml"), format!("[task]\nname = 'debug'\n{MODEL}")).unwrap();
    let ran = folder.join("ran");
    let would = "was not run: python3 parity.py --split ";
    let flag = "hint: --allow-command runs it";
    let task = task_name();
    for arguments in [
        &["train", "--config", "parity.toml"][..],
        &["train", "--config", "fresh.toml"],
        &["data", "generate", "--task", &task, "--train", "64"],
        &["data", "show", "--task", &task],
        &["grid", "grid.toml"],
    ] {
        fails(folder, arguments, 1, &[would, flag]);
        assert!(!ran.exists(), "{arguments:?} has run the program");
        assert!(files(&folder.join("datasets")).is_empty() && files(&folder.join("runs")).is_empty(), "{arguments:?}");
    }
    ok(folder, &["grid", "grid.toml", "--dry-run"]);
    ok(folder, &["data", "list"]);
    assert!(!ran.exists());
    // the flag reaches the jobs of a grid
    ok(folder, &["grid", "grid.toml", "--allow-command", "--quiet", "--set", "task.train_examples=64"]);
    assert!(ran.exists());
    // an exported model names the task; whoever evaluates it has not allowed anything by that
    fs::remove_file(&ran).unwrap();
    let model = files(folder).into_iter().find(|file| file.ends_with("/model.onnx")).unwrap();
    for more in [&["--lengths", "1..3"][..], &["--lengths", "1..3", "--split", "val"], &["--split", "val"], &[]] {
        let arguments = [&["eval", "--model", &model, "--provider", "cpu", "--data-dir", "elsewhere"], more].concat();
        fails(folder, &arguments, 1, &[would, flag]);
        assert!(!ran.exists(), "{arguments:?} has run the program");
    }
    ok(folder, &["report", "-o", "report.html"]);
    ok(folder, &["runs", "list"]);
    assert!(!ran.exists());
}

fn task_name() -> String {
    "command,command=python3 parity.py,test_examples=12,test_lengths=21..60,train_lengths=1..20,val_examples=10,\
     vocab=[\"0\", \"1\"]"
        .into()
}

#[test]
fn programs_that_misbehave_end_with_an_error_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let lying = documented_program().replace("sum(bits[: i + 1]) % 2 for i in range(n)", "3 for i in range(n)");
    for (script, parts) in [
        ("raise SystemExit('no luck today')".to_owned(), &["ended with exit status: 1", "no luck today"][..]),
        ("import time\ntime.sleep(100)".into(), &["did not end within 1 s and was killed", "hint: timeout = SECONDS"]),
        ("while True: print('babble')".into(), &["printed more than the 8 lines", "was killed"]),
        ("print('hello')".into(), &["example 0, line 1 of its output", "`hello`"]),
        (lying, &["example 0, line 1 of its output: the label `3` is not in the vocabulary"]),
    ] {
        fs::write(folder.join("own.py"), &script).unwrap();
        fs::write(folder.join("own.toml"), task_of("['python3', 'own.py']") + "timeout = 1\n" + MODEL).unwrap();
        let ran = run(folder, &["train", "--config", "own.toml", "--allow-command"]);
        check_failure(&ran, &[&script], 1, parts);
        assert!(
            ran.stderr.contains("the command python3 own.py --split train --seed 0 --start 0 --count 8"),
            "{}",
            ran.stderr
        );
        assert!(files(&folder.join("datasets")).is_empty() && files(&folder.join("runs")).is_empty());
    }
    // in a sweep, a length that the program fails for has a row that says so
    let limited =
        documented_program().replace("for index in", "if ask.length == 3: raise SystemExit('no 3')\nfor index in");
    fs::write(folder.join("own.py"), limited).unwrap();
    fs::write(folder.join("own.toml"), task_of("['python3', 'own.py']") + MODEL).unwrap();
    ok(folder, &["train", "--config", "own.toml", "--allow-command", "--quiet"]);
    ok(folder, &["export", "--quiet"]);
    let swept = table(folder, &["--lengths", "2..4", "--samples", "5", "--allow-command"]);
    assert_eq!((swept[0].clone(), swept[2].clone()), ((2, "5".into()), (4, "5".into())));
    assert!(swept[1].1.contains("ended with exit status: 1"), "{swept:?}");
}

/// Strings of 0 and 1, in the language where they have an even number of 1, in the format of FLaRe.
fn flare(folder: &Path, strings: impl Iterator<Item = u32> + Clone) {
    fs::create_dir_all(folder).unwrap();
    let string = |code: u32| format!("{code:b}")[1..].to_owned(); // what follows the first 1: any string, the empty one too
    let spaced = |s: String| s.chars().map(String::from).collect::<Vec<_>>().join(" ") + "\n";
    let label = |s: String| format!("{}\n", u8::from(s.matches('1').count().is_multiple_of(2)));
    fs::write(folder.join("main.tok"), strings.clone().map(|code| spaced(string(code))).collect::<String>()).unwrap();
    fs::write(folder.join("labels.txt"), strings.map(|code| label(string(code))).collect::<String>()).unwrap();
}

#[test]
fn a_folder_of_strings_trains_exports_and_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let data = folder.join("even ones");
    flare(&data, 1..64);
    flare(&data.join("datasets/validation-short"), (1..64).step_by(3));
    flare(&data.join("datasets/test"), (1 << 8..1 << 9).step_by(16).chain(1 << 10..(1 << 10) + 3));
    flare(&data.join("datasets/test-short-held-out"), (1..64).step_by(7));
    fs::write(folder.join("own.toml"), format!("[task]\nfamily = 'dataset'\npath = 'even ones'\n{MODEL}")).unwrap();
    assert_eq!(json(folder, &["train", "--config", "own.toml"])["steps"], 4);
    ok(folder, &["export", "--quiet"]);
    let swept = table(folder, &["--lengths", "1..10", "--samples", "20"]);
    let expected = ["no example of this length in ood_test and val", "2", "2", "6", "10"]; // of validation: 1..64:3
    assert_eq!(swept.iter().map(|(_, n)| &n[..]).take(5).collect::<Vec<_>>(), expected);
    assert_eq!(swept[5].1, "no example of this length in ood_test and val");
    assert_eq!((&swept[7].1[..], &swept[9].1[..]), ("16", "3"), "after lengths that have none");
    // the empty string is one of them
    let held_out = table(folder, &["--split", "test-short-held-out"]);
    assert_eq!(held_out[0], (0, "1".into()));
    assert_eq!(held_out.iter().map(|(_, n)| n.parse::<u32>().unwrap()).sum::<u32>(), 9);
    assert_eq!(table(folder, &["--split", "even ones/datasets/test"]).len(), 2);
    let shown = ok(folder, &["data", "show", "--task", "dataset,path=even ones", "--split", "test-short-held-out"]);
    assert!(shown.contains("<bos> 0 0 0") && shown.contains("-1 -1 -1 accept"), "{shown}");

    // files that have changed are noticed, and said how to be used
    flare(&data.join("datasets/validation-short"), (1..64).step_by(5));
    let part = "was made from other examples: the files of dataset,path=even ones,token_hash=";
    let ran = run(folder, &["train", "--config", "own.toml"]);
    let hint = "hint: `pipeline data generate --task 'dataset,path=even ones,";
    check_failure(&ran, &["train"], 1, &[part, "have changed since (val)", hint]);
    let task = ran.stderr.split("--task '").nth(1).unwrap().split('\'').next().unwrap();
    let (train, seed) = (["--train", "63"], ["--seed", "0"]);
    ok(folder, &[&["data", "generate", "--task", task, "--force"], &train[..], &seed[..]].concat());
    ok(folder, &["train", "--config", "own.toml", "--quiet"]);
    fs::rename(&data, folder.join("moved")).unwrap();
    fails(
        folder,
        &["train", "--config", "own.toml"],
        1,
        &["cannot read even ones: No such file", "hint: check the path"],
    );
    let config = fs::read_to_string(folder.join("own.toml")).unwrap() + "fresh = true\n";
    fs::write(folder.join("own.toml"), config.replace("even ones", "moved")).unwrap();
    fails(
        folder,
        &["train", "--config", "own.toml"],
        1,
        &["train.fresh is set, but the examples of dataset,path=moved,token_hash=", "are those of files"],
    );
}

/// A model is one of the tokens that it was trained on, whatever the files have become.
#[test]
fn a_run_is_tied_to_the_tokens_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let write = |second: &str| {
        let line = format!("[[\"a\", \"{second}\"], [\"a\", \"{second}\"]]\n");
        fs::create_dir_all(folder.join("d")).unwrap();
        fs::write(folder.join("d/train.txt"), line.repeat(40)).unwrap();
        fs::write(folder.join("d/val.txt"), line.repeat(4)).unwrap();
    };
    write("b");
    fs::write(folder.join("own.toml"), format!("[task]\nfamily = 'dataset'\npath = 'd'\n{MODEL}")).unwrap();
    let handle = json(folder, &["train", "--config", "own.toml"])["handle"].as_str().unwrap().to_owned();
    ok(folder, &["export", "--handle", &handle, "--quiet"]);
    let model = folder.join("runs").join(&handle).join("model.onnx");
    let before = fs::read(&model).unwrap();
    write("c");
    let told = ["its files have other tokens than they had", "hint:"];
    fails(folder, &["export", "--handle", &handle], 1, &told);
    fails(folder, &["train", "--resume", &handle, "--set", "train.max_steps=9"], 1, &told);
    fails(folder, &["eval", "--handle", &handle, "--lengths", "1..2"], 1, &told);
    assert!(fs::read(&model).unwrap() == before, "the model was exported with other tokens");
    // Labels that come from outside cannot be checked.
    let import = ["data", "import", "--task", "dataset,path=d", "--check-labels", "--split", "q", "d/val.txt"];
    fails(folder, &import, 1, &["--check-labels", "has no rule", "hint:"]);
}

/// A program has a group of its own, which signals of a terminal do not reach.
#[cfg(target_os = "linux")]
#[test]
fn a_program_ends_with_the_one_that_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let program = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(300)\n";
    fs::write(dir.path().join("slow.py"), program).unwrap();
    fs::write(dir.path().join("slow.toml"), task_of("['python3', 'slow.py']") + MODEL).unwrap();
    let arguments = ["train", "--config", "slow.toml", "--allow-command", "--quiet"];
    let mut child = command(dir.path(), &arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
    let start = std::time::Instant::now();
    let wait_for = |what: &str, mut is_there: Box<dyn FnMut() -> bool>| {
        while !is_there() {
            assert!(start.elapsed().as_secs() < 60, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let path = dir.path().join("pid");
    let pid = || fs::read_to_string(&path).ok().filter(|pid| !pid.is_empty());
    wait_for("no program", Box::new(|| pid().is_some()));
    let process = format!("/proc/{}", pid().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the program was left behind", Box::new(|| !Path::new(&process).join("exe").exists()));
}

#[test]
fn the_facts_about_large_files_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let line = format!("[[{}\"a\"], [{}\"b\"]]\n", "\"a\", ".repeat(400), "\"-1\", ".repeat(400));
    fs::write(folder.join("train.txt"), line.repeat(2000)).unwrap();
    let show = || {
        let arguments = ["data", "show", "--task", "dataset,path=train.txt,held_out=0.001", "--json"];
        let mut command = command(folder, &arguments);
        let output = command.env("XDG_CACHE_HOME", folder.join("cache")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let shown: Value = text.parse().unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        shown["examples"].as_u64().unwrap()
    };
    assert_eq!(show(), 2);
    let kept = files(&folder.join("cache"));
    assert_eq!(kept.len(), 1, "{kept:?}");
    let path = folder.join("cache").join(&kept[0]);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("train.txt") && text.contains("\"rows\":2000"), "{text}");
    fs::write(&path, "damaged").unwrap();
    assert_eq!(show(), 2, "what is kept is only for speed");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    fs::write(folder.join("train.txt"), line.repeat(3000)).unwrap();
    assert_eq!(show(), 3, "other files have other facts");
}
