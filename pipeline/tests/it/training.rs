//! Training that can be trusted: interrupted, killed, damaged and continued, it ends with the same bytes.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::{check_failure, command, fails, files, ok, repository, run};
use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const STEPS: u64 = 240;

/// Four epochs of an LSTM of width 8 with every kind of periodic work: about a second.
fn arguments(more: &[&str]) -> Vec<String> {
    let mut arguments = vec!["train".to_owned(), "--config".into(), repository("configs/lstm.toml")];
    for set in [
        "task.train_examples=1000",
        "train.batch_size=16",
        "train.epochs=4",
        "train.max_steps=240",
        "train.checkpoint_every=7",
        "train.eval_every=45",
        "train.log_every=4",
        "model.hidden_size=8",
        "model.num_layers=2",
        "optimizer.warmup_steps=20",
        "optimizer.schedule=cosine",
    ] {
        arguments.extend(["--set".into(), set.into()]);
    }
    arguments.extend(more.iter().map(|s| (*s).to_owned()));
    arguments
}

fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn train(folder: &Path, more: &[&str]) -> (String, PathBuf) {
    let arguments = arguments(&[more, &["--json", "--quiet"]].concat());
    let printed: Value = ok(folder, &strs(&arguments)).parse().unwrap();
    let handle = printed["handle"].as_str().unwrap().to_owned();
    let run = folder.join("runs").join(&handle);
    (handle, run)
}

/// A training process, and its run's handle, which is the first line that it prints.
fn spawn(folder: &Path, arguments: &[&str]) -> (Child, String) {
    use std::io::{BufRead, BufReader};
    let mut child = command(folder, arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().to_owned())
}

fn final_weights(run: &Path) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/epoch-0004-step-{STEPS}/model.safetensors"))).unwrap()
}

/// Step, split, loss, accuracy and learning rate.
type CurveRow = (u64, String, Option<f64>, Option<f64>, Option<f64>);

/// The curve without what differs from one machine or hour to the next.
fn curve(run: &Path) -> Vec<CurveRow> {
    let file = File::open(run.join("metrics.parquet")).unwrap();
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        let number = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Float64Type>().clone();
        let steps = batch.column_by_name("step").unwrap().as_primitive::<Int64Type>().clone();
        let splits = batch.column_by_name("split").unwrap().as_string::<i32>();
        let columns = (number("loss"), number("accuracy"), number("lr"));
        for i in 0..batch.num_rows() {
            let at = |column: &arrow::array::Float64Array| column.iter().nth(i).flatten();
            let row =
                (steps.value(i) as u64, splits.value(i).to_owned(), at(&columns.0), at(&columns.1), at(&columns.2));
            rows.push(row);
        }
    }
    rows
}

/// The names in a run's folder of checkpoints, also of those being written.
fn checkpoints(run: &Path) -> Vec<String> {
    let folder = fs::read_dir(run.join("checkpoints")).into_iter().flatten().filter_map(Result::ok);
    folder.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The step of a whole checkpoint, from its name.
fn step(checkpoint: &str) -> Option<u64> {
    checkpoint.starts_with("epoch-").then(|| checkpoint.rsplit('-').next()?.parse().ok())?
}

#[test]
fn killed_at_any_moment_a_run_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (_, untouched) = train(dir.path(), &[]);
    let (steps, splits): (Vec<u64>, Vec<String>) = curve(&untouched).into_iter().map(|row| (row.0, row.1)).unzip();
    assert_eq!(steps.iter().zip(&splits).filter(|(s, n)| **s == 0 && *n == "val").count(), 1);
    assert_eq!(splits.iter().filter(|name| *name == "train").count(), STEPS as usize / 4);
    // Before the first step, at 45, 90, 135, 180, 225 and at the ends of the epochs of 63 steps (the last is cut at 240).
    assert_eq!(splits.iter().filter(|name| *name == "ood_test").count(), 1 + 5 + 4);

    let arguments = arguments(&["--quiet"]);
    let (mut child, handle) = spawn(dir.path(), &strs(&arguments));
    let killed = dir.path().join("runs").join(&handle);
    let resume = ["train", "--resume", &handle, "--quiet"];
    // Moments spread over start, steps, evaluations and saving; a third of them while a checkpoint is being written.
    // On a fast machine a kill comes earlier: when its share of the run has been trained, so that ten always fit.
    let mut delay = 37;
    for kill in 0..10 {
        let start = Instant::now();
        let trained = || checkpoints(&killed).iter().filter_map(|name| step(name)).max().unwrap_or(0);
        let come = || {
            if kill % 3 == 2 {
                let writing = checkpoints(&killed).iter().any(|name| name.starts_with(".partial-"));
                writing || start.elapsed() > Duration::from_millis(400)
            } else {
                start.elapsed() > Duration::from_millis(delay)
            }
        };
        while !come() && trained() < STEPS * (kill + 1) / 12 {
            sleep(Duration::from_micros(100));
        }
        delay = delay * 61 % 151;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(run(dir.path(), &["runs", "show", &handle]).status == 0, "kill {kill} left an unreadable run");
        child = command(dir.path(), &resume).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let status = |expected: &str| {
        let shown: Value = ok(dir.path(), &["runs", "show", &handle, "--json"]).parse().unwrap();
        assert_eq!(shown["status"], expected, "{shown}");
    };
    status("killed");
    ok(dir.path(), &resume);
    status("finished");
    assert!(final_weights(&killed) == final_weights(&untouched), "the weights differ");
    assert_eq!(curve(&killed), curve(&untouched));
    assert!(!files(&killed).iter().any(|name| name.contains(".partial")), "{:?}", files(&killed));
}

#[test]
fn a_signal_saves_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_, untouched) = train(dir.path(), &[]);
    // Of two at once the second is the same request on another way: it does not cut the saving short.
    for signal in ["INT", "TERM", "HUP", "USR1", "TERM INT"] {
        let runs = || fs::read_dir(dir.path().join("runs")).unwrap().map(|entry| entry.unwrap().path());
        let earlier: Vec<PathBuf> = runs().collect();
        let arguments = arguments(&[]);
        let mut child = command(dir.path(), &strs(&arguments));
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let send = |signal: &str| {
            let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
            assert!(sent.unwrap().success());
        };
        let start = Instant::now();
        let interrupted = loop {
            let run = runs().find(|run| !earlier.contains(run) && checkpoints(run).len() >= 2);
            if let Some(run) = run {
                break run;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no run with two checkpoints");
        };
        send("STOP"); // or a fast machine would finish the run while we ask about it
        let handle = interrupted.file_name().unwrap().to_str().unwrap().to_owned();
        let listed: Value = ok(dir.path(), &["runs", "show", &handle, "--json"]).parse().unwrap();
        assert_eq!(listed["status"], "running");
        fails(dir.path(), &["train", "--resume", &handle], 1, &["another process"]);
        fails(dir.path(), &["runs", "rm", &handle, "--yes"], 1, &["is being trained", "nothing was deleted"]);
        signal.split(' ').for_each(send);
        send("CONT");
        let ran = child.wait_with_output().unwrap().into();
        check_failure(&ran, &strs(&arguments), 1, &["interrupted", &format!("pipeline train --resume {handle}")]);
        let shown: Value = ok(dir.path(), &["runs", "show", &handle, "--json"]).parse().unwrap();
        assert_eq!(shown["status"], "interrupted");

        let printed: Value = ok(dir.path(), &["train", "--resume", &handle, "--json", "-q"]).parse().unwrap();
        assert_eq!(printed["handle"], handle.as_str());
        assert!(final_weights(&interrupted) == final_weights(&untouched));
        assert_eq!(curve(&interrupted), curve(&untouched));
    }
}

#[test]
fn damaged_checkpoints_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run_dir) = train(dir.path(), &[]);
    let whole = final_weights(&run_dir);
    let damage = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = run_dir.join("checkpoints").join(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    };
    damage("epoch-0004-step-240/model.safetensors", &|bytes| bytes.truncate(bytes.len() / 2));
    damage("epoch-0004-step-238/optimizer.safetensors", &|bytes| *bytes.last_mut().unwrap() ^= 4);
    damage("epoch-0004-step-231/state.json", &|bytes| bytes.truncate(20));
    let resumed = run(dir.path(), &["train", "--resume", &handle]);
    assert_eq!(resumed.status, 0, "{}", resumed.stderr);
    for step in [240, 238, 231] {
        let passed_over = format!("epoch-0004-step-{step}");
        let line = resumed.stderr.lines().find(|line| line.contains(&passed_over)).expect("a note");
        assert!(line.contains("damaged") && line.contains("using epoch-0004-step-224"), "{line}");
    }
    assert!(final_weights(&run_dir) == whole);
}

#[test]
fn a_finished_run_goes_on_for_longer_but_not_as_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let constant = ["--set", "optimizer.schedule=constant"];
    let (_, long) = train(dir.path(), &constant);
    let (handle, short) = train(dir.path(), &[&constant[..], &["--set", "train.max_steps=100"]].concat());
    fails(dir.path(), &["train", "--resume", &handle], 1, &["is finished: 100 of 100 steps", "hint:"]);
    let resume = |more: &[&'static str]| [&["train", "--resume", &handle, "--quiet"], more].concat();
    for (set, key) in [("optimizer.lr=1.0", "optimizer.lr"), ("model.hidden_size=9", "model.hidden_size")] {
        fails(dir.path(), &resume(&["--set", set]), 1, &[&format!("{key} cannot change"), "--init-from"]);
    }
    fails(dir.path(), &resume(&["--seed", "7"]), 1, &["train.seed cannot change"]);
    fails(dir.path(), &["train", "--resume", "1123_9"], 1, &["there is no run `1123_9`"]);
    ok(dir.path(), &resume(&["--set", "train.max_steps=240"]));
    assert!(final_weights(&short) == final_weights(&long));
}

#[test]
fn a_step_in_pieces_is_the_same_step() {
    let dir = tempfile::tempdir().unwrap();
    let constant = ["--set", "train.max_steps=60", "--set", "model.dropout=0.0"];
    let (_, whole) = train(dir.path(), &constant);
    let (_, pieces) = train(dir.path(), &[&constant[..], &["--set", "train.accumulate=4"]].concat());
    for (a, b) in curve(&whole).into_iter().zip(curve(&pieces)) {
        assert!((a.2.unwrap() - b.2.unwrap()).abs() < 1e-4, "{a:?} {b:?}");
    }
}

#[test]
fn divergence_names_the_step_the_examples_and_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(&["--set", "optimizer.lr=1e38", "--set", "optimizer.warmup_steps=0"]);
    let ran = run(dir.path(), &strs(&arguments));
    let parts = ["diverged at step", "its batch was the training examples", "checkpoint", "hint: lower optimizer.lr"];
    check_failure(&ran, &strs(&arguments), 1, &parts);
    let line = ran.stderr.lines().find(|l| l.contains("its batch was")).unwrap();
    assert_eq!(line.matches(", ").count(), 15, "sixteen examples: {line}");
    let listed: Value = ok(dir.path(), &["runs", "--json"]).parse().unwrap();
    assert_eq!(listed[0]["status"], "diverged");
}

#[test]
fn several_seeds_make_several_runs_and_weights_travel_between_runs() {
    let dir = tempfile::tempdir().unwrap();
    let short = ["--set", "train.max_steps=9", "--set", "train.epochs=1", "--set", "optimizer.schedule=constant"];
    let arguments = arguments(&[&short[..], &["--seed", "1,2", "--json", "-q"]].concat());
    let printed: Value = ok(dir.path(), &strs(&arguments)).parse().unwrap();
    let runs = printed["runs"].as_array().unwrap();
    let handles: Vec<&str> = runs.iter().map(|r| r["handle"].as_str().unwrap()).collect();
    assert_eq!(handles.len(), 2);
    let weights = |handle: &str, step: u64| {
        let checkpoint = format!("runs/{handle}/checkpoints/epoch-0001-step-{step}/model.safetensors");
        fs::read(dir.path().join(checkpoint)).unwrap()
    };
    assert!(weights(handles[0], 9) != weights(handles[1], 9));

    // The first step of a warm-up has learning rate 0: what comes out is what went in.
    let one = [&short[2..], &["--set", "train.max_steps=1"]].concat();
    let (from_run, _) = train(dir.path(), &[&one[..], &["--init-from", handles[1]]].concat());
    assert!(weights(&from_run, 1) == weights(handles[1], 9));
    let file = format!("runs/{}/checkpoints/epoch-0001-step-7/model.safetensors", handles[0]);
    let (from_file, _) = train(dir.path(), &[&one[..], &["--init-from", &file]].concat());
    assert!(weights(&from_file, 1) == weights(handles[0], 7));
    let wrong = self::arguments(&["--init-from", &file, "--set", "model.hidden_size=9"]);
    fails(dir.path(), &strs(&wrong), 1, &["train.init_from", "do not fit the model"]);
}

#[test]
fn old_checkpoints_go_and_event_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run_dir) = train(dir.path(), &["--keep", "2", "--tensorboard"]);
    let kept = fs::read_dir(run_dir.join("checkpoints")).unwrap().count();
    assert!((2..=3).contains(&kept), "the newest two and the best: {:?}", files(&run_dir));
    let events: Vec<String> = files(&run_dir).into_iter().filter(|f| f.starts_with("tensorboard/")).collect();
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(fs::metadata(run_dir.join(&events[0])).unwrap().len() > 5000);

    let listing = ok(dir.path(), &["runs"]);
    assert!(listing.contains(&handle) && listing.contains("finished") && listing.contains("240 / 240"), "{listing}");
    let shown = ok(dir.path(), &["runs", "show"]);
    assert!(
        shown.contains("best on val") && shown.contains("ood_test") && shown.contains("hidden_size = 8"),
        "{shown}"
    );
    fails(dir.path(), &["runs", "rm", &handle], 1, &["needs a confirmation", "--yes"]);
    fails(dir.path(), &["runs", "rm", "1123_9", &handle, "--yes"], 1, &["there is no run"]);
    ok(dir.path(), &["runs", "rm", &handle, "--yes"]);
    assert!(!run_dir.exists());
}

/// Dropout, random positions, kernels that depend on a length, parameter groups: nothing is left out of a checkpoint.
#[test]
fn every_architecture_resumes_to_the_same_bytes() {
    let randomized = ["model.positional_embedding=rope", "model.augmentation=randomized", "model.num_heads=2"];
    let scalar = ["model.positional_embedding=scalar", "model.augmentation=shift", "model.num_heads=2"];
    let models: [(&str, &[&str]); 6] = [
        ("transformer-rope", &randomized),
        ("transformer-scalar", &scalar),
        ("s4", &["train.pad_to=64", "model.kernel_length=64"]),
        ("mamba", &[]),
        ("rwkv5", &["model.hidden_size=12", "model.head_size=4", "train.pad_to=64"]),
        ("rwkv6", &["model.hidden_size=12", "model.head_size=4", "train.pad_to=64"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (config, own) in models {
        let config = repository(&format!("configs/paper/{config}.toml"));
        let common = [
            "task.name=counting_samesymbol_mod10bos",
            "task.train_examples=100",
            "model.hidden_size=8",
            "model.num_layers=1",
            "train.batch_size=10",
            "train.max_steps=12",
            "train.epochs=2",
            "train.checkpoint_every=5",
            "train.log_every=1",
            "optimizer.warmup_steps=0",
        ];
        let mut arguments = vec!["train", "--config", &config, "--json", "--quiet"];
        common.iter().chain(own).for_each(|set| arguments.extend(["--set", set]));
        let printed: Value = ok(dir.path(), &arguments).parse().unwrap();
        let handle = printed["handle"].as_str().unwrap();
        let run = dir.path().join("runs").join(handle);
        let weights = || fs::read(run.join("checkpoints/epoch-0002-step-12/model.safetensors")).unwrap();
        let (trained, rows) = (weights(), curve(&run));
        assert!(fs::read(run.join("checkpoints/epoch-0001-step-5/model.safetensors")).unwrap() != trained);
        for checkpoint in ["epoch-0001-step-10", "epoch-0002-step-12"] {
            fs::remove_dir_all(run.join("checkpoints").join(checkpoint)).unwrap();
        }
        ok(dir.path(), &["train", "--resume", handle, "--quiet"]);
        assert!(weights() == trained, "{config}");
        assert_eq!(curve(&run), rows, "{config}");
    }
}

/// In fp16, the scale of the loss and its age are part of what a checkpoint has to bring back.
#[test]
fn half_precision_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let fp16 = |steps: &'static str| {
        [
            "--set",
            "train.precision=fp16",
            "--set",
            "optimizer.schedule=constant",
            "--set",
            "train.epochs=1",
            "--set",
            steps,
        ]
    };
    let (_, whole) = train(folder.path(), &fp16("train.max_steps=40"));
    let (handle, parts) = train(folder.path(), &fp16("train.max_steps=17"));
    ok(folder.path(), &["train", "--resume", &handle, "--set", "train.max_steps=40", "--quiet"]);
    let files = |run: &Path| {
        let checkpoint = run.join("checkpoints/epoch-0001-step-40");
        let state: Value = serde_json::from_slice(&fs::read(checkpoint.join("state.json")).unwrap()).unwrap();
        let weights =
            ["model.safetensors", "optimizer.safetensors"].map(|name| fs::read(checkpoint.join(name)).unwrap());
        (state["loss_scale"].clone(), weights)
    };
    let (scale, weights) = files(&whole);
    assert_eq!(scale["good_steps"], 40);
    assert!((scale, weights) == files(&parts), "what is resumed differs");
    let config = fs::read_to_string(parts.join("config.toml")).unwrap();
    assert!(config.contains("precision = \"fp16\""));
}

/// A run that was started with a signal ignored and was sent it when it had a checkpoint.
fn trained_while_ignoring(folder: &Path, signal: &str, more: &[&str]) -> (Output, PathBuf) {
    let program = env!("CARGO_BIN_EXE_pipeline");
    let mut child = Command::new("sh");
    child.current_dir(folder).args(["-c", &format!("trap '' {signal}; exec \"$@\""), "sh", program]);
    child.args(arguments(more)).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let start = Instant::now();
    let run = loop {
        let runs = fs::read_dir(folder.join("runs")).into_iter().flatten().map(|entry| entry.unwrap().path());
        if let Some(run) = runs.into_iter().find(|run| !checkpoints(run).is_empty()) {
            break run;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no run with a checkpoint");
    };
    assert!(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success());
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (child.wait_with_output().unwrap(), run)
}

#[test]
fn what_nohup_started_outlives_its_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let (ran, run) = trained_while_ignoring(dir.path(), "HUP", &[]);
    assert!(ran.status.success());
    assert!(!final_weights(&run).is_empty());
}

/// A grid asks its jobs with SIGUSR1, batch systems with others: whoever ignored them before does not count.
#[test]
fn a_notice_counts_whoever_ignored_it_before() {
    for signal in ["USR1", "USR2", "XCPU"] {
        let dir = tempfile::tempdir().unwrap();
        let endless = ["--set", "train.max_steps=1000000", "--set", "train.epochs=1000000"];
        let (ran, run) = trained_while_ignoring(dir.path(), signal, &endless);
        check_failure(&ran.into(), &[signal], 1, &["interrupted", "--resume"]);
        assert!(!checkpoints(&run).is_empty());
    }
}

/// How a run is listed.
fn listed(folder: &Path, handle: &str) -> Value {
    let listed: Value = ok(folder, &["runs", "--json"]).parse().unwrap();
    listed.as_array().unwrap().iter().find(|run| run["handle"] == handle).cloned().unwrap()
}

/// A kill between the last checkpoint and the last word about it.
#[test]
fn a_run_with_its_last_checkpoint_is_finished_whatever_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run_dir) = train(dir.path(), &[]);
    let told = fs::read_to_string(run_dir.join("status.json")).unwrap();
    let before = (final_weights(&run_dir), curve(&run_dir), files(&run_dir));
    let running = told.replace("finished", "running").replacen("240", "231", 1);
    let failed = told.replace("finished", "failed");
    assert!(running != told && failed != told);
    for damaged in [Some(running.as_str()), Some(failed.as_str()), Some("{\"status\":\"runn"), Some(""), None] {
        match damaged {
            Some(text) => fs::write(run_dir.join("status.json"), text).unwrap(),
            None => fs::remove_file(run_dir.join("status.json")).unwrap(),
        }
        for left in
            [".partial-Ab3xyz", "checkpoints/.partial-240/model.safetensors", "eval/.partial-qq", "bf16-check.onnx"]
        {
            fs::create_dir_all(run_dir.join(left).parent().unwrap()).unwrap();
            fs::write(run_dir.join(left), "half").unwrap();
        }
        let shown = listed(dir.path(), &handle);
        assert_eq!((&shown["status"], &shown["steps"]), (&"finished".into(), &STEPS.into()), "{damaged:?}");
        let printed: Value = ok(dir.path(), &["train", "--resume", &handle, "--json", "-q"]).parse().unwrap();
        assert_eq!((&printed["handle"], &printed["steps"]), (&handle.as_str().into(), &STEPS.into()));
        assert!(printed["ood_test_accuracy"].is_f64() && printed["loss"].is_f64(), "{printed}");
        assert!(fs::read_to_string(run_dir.join("status.json")).unwrap().contains("finished"));
        let after = (final_weights(&run_dir), curve(&run_dir), files(&run_dir));
        assert!(after.0 == before.0 && after.1 == before.1, "nothing is trained twice");
        let more: Vec<&String> = after.2.iter().filter(|name| !before.2.contains(name)).collect();
        assert!(more.iter().all(|name| name.ends_with(".lock")), "{more:?}");
    }
    // Now it is said, and there is nothing to go on with.
    fails(dir.path(), &["train", "--resume", &handle], 1, &["is finished: 240 of 240 steps", "hint:"]);

    // The status says finished, but the checkpoint of the end is missing.
    fs::remove_dir_all(run_dir.join("checkpoints/epoch-0004-step-240")).unwrap();
    assert_eq!(
        (&listed(dir.path(), &handle)["status"], &listed(dir.path(), &handle)["steps"]),
        (&"killed".into(), &238.into())
    );
    ok(dir.path(), &["train", "--resume", &handle, "-q"]);
    assert_eq!(listed(dir.path(), &handle)["status"], "finished");
    assert!(final_weights(&run_dir) == before.0);
}

#[test]
fn a_run_that_had_no_time_to_say_anything_was_not_imported() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run_dir) = train(dir.path(), &["--set", "train.max_steps=30"]);
    fs::remove_dir_all(run_dir.join("checkpoints")).unwrap();
    fs::remove_file(run_dir.join("status.json")).unwrap();
    let shown = listed(dir.path(), &handle);
    assert_eq!((&shown["status"], &shown["steps"], &shown["total_steps"]), (&"killed".into(), &0.into(), &30.into()));
    ok(dir.path(), &["train", "--resume", &handle, "-q"]);
    assert_eq!(listed(dir.path(), &handle)["status"], "finished");
}

/// `huang/` writes the answer into the string, where it is the label of the token before it.
#[test]
fn a_model_that_would_see_the_answers_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let model = "[model]\narch = 'transformer'\ncausal = false\nhidden_size = 16\nnum_heads = 2\n";
    let task = |name: &str| format!("[task]\nname = '{name}'\ntrain_examples = 64\n{model}[train]\nmax_steps = 1\n");
    let arguments = ["train", "--config", config.to_str().unwrap(), "--device", "cpu", "--quiet"];
    std::fs::write(&config, task("huang/bin_majority,train_lengths=1..9,test_lengths=10..12")).unwrap();
    fails(dir.path(), &arguments, 1, &["model.causal is false, but the answers of huang/bin_majority", "hint:"]);
    std::fs::write(&config, task("chomsky/parity_check,train_lengths=1..9,test_lengths=10..12,test_examples=9"))
        .unwrap();
    ok(dir.path(), &arguments);
}
