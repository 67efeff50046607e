//! Several processes at one run: what one of them writes is what it has checked, and nothing is deleted under another.
#![cfg(all(feature = "train", unix))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::{command, fails, files, ok, repository, tiny_training};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A trained run; its handle and folder.
fn trained(folder: &Path, more: &[&str]) -> (String, PathBuf) {
    let config = repository("configs/rnn.toml");
    let set = ["--set", "task.name=counting_samesymbol_mod10bos", "--json", "-q"];
    let arguments = tiny_training(&config, &[&set[..], more].concat());
    let printed: Value = ok(folder, &arguments).parse().unwrap();
    let handle = printed["handle"].as_str().unwrap().to_owned();
    let run = folder.join("runs").join(&handle);
    (handle, run)
}

fn spawn(folder: &Path, arguments: &[&str]) -> Child {
    command(folder, arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_until(what: &str, mut come: impl FnMut() -> bool) {
    let start = Instant::now();
    while !come() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not come");
        sleep(Duration::from_millis(2));
    }
}

fn said(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// A metadata value of an ONNX file: a protobuf text behind its key.
fn metadata(model: &Path, key: &str) -> String {
    let bytes = fs::read(model).unwrap();
    let key = [&[0x0a, key.len() as u8], key.as_bytes(), &[0x12]].concat();
    let at = bytes.windows(key.len()).rposition(|window| window == key).unwrap() + key.len();
    String::from_utf8(bytes[at + 1..][..bytes[at] as usize].to_vec()).unwrap()
}

#[test]
fn exports_of_a_run_are_made_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run) = trained(dir.path(), &[]);
    let [full, half, brain] =
        ["fp32", "fp16", "bf16"].map(|precision| ["export", "--handle", &handle, "--precision", precision]);
    for pair in [[full, half], [half, full], [full, brain]] {
        let mut children = pair.map(|arguments| spawn(dir.path(), &arguments));
        // Whoever ends last has written last.
        let mut ended = [None; 2];
        wait_until("the end of both exports", || {
            for (child, end) in children.iter_mut().zip(&mut ended) {
                if end.is_none() && child.try_wait().unwrap().is_some() {
                    *end = Some(Instant::now());
                }
            }
            ended.iter().all(Option::is_some)
        });
        for (child, arguments) in children.iter_mut().zip(pair) {
            let said = said(child);
            assert!(child.wait().unwrap().success(), "{arguments:?}: {said}");
        }
        let last = usize::from(ended[1] > ended[0]);
        assert_eq!(metadata(&run.join("model.onnx"), "precision"), pair[last][4]);
    }
    assert!(!files(&run).iter().any(|name| name.contains(".partial") || name.contains("bf16")), "{:?}", files(&run));
}

/// A file from before the fingerprint is probed like any other, but nobody is told that another program wrote it.
#[test]
fn an_export_of_an_earlier_version_is_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run) = trained(dir.path(), &[]);
    ok(dir.path(), &["export", "--handle", &handle]);
    let eval = ["eval", "--handle", &handle, "--lengths", "1..20"];
    let said = |arguments: &[&str]| {
        let ran = crate::common::run(dir.path(), arguments);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.stderr
    };
    assert!(!said(&eval).contains("probed"));
    let model = run.join("model.onnx");
    let mut bytes = fs::read(&model).unwrap();
    let key = b"graph_fingerprint";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[at] = b'G';
    fs::write(&model, bytes).unwrap();
    let stderr = said(&eval);
    let note = "is an export of an earlier version of this program, which is probed like any model (exporting it again";
    assert!(stderr.contains(note) && !stderr.contains("no plain export"), "{stderr}");
}

/// Partial files of a killed process go when the next one writes into the folder.
#[test]
fn what_was_being_written_when_a_command_was_killed_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run) = trained(dir.path(), &[]);
    ok(dir.path(), &["export", "--handle", &handle]);
    fs::create_dir(dir.path().join("out")).unwrap();
    let dead = "out/.partial-4000000000-Ab3xyz";
    let live = format!("out/.partial-{}-Ab3xyz", std::process::id());
    for name in [dead, &live] {
        fs::write(dir.path().join(name), "half").unwrap();
    }
    ok(dir.path(), &["eval", "--handle", &handle, "--lengths", "1..5", "-o", "out/x.parquet", "-q"]);
    assert!(!dir.path().join(dead).exists() && dir.path().join(&live).exists());
    fs::write(dir.path().join(dead), "half").unwrap();
    ok(dir.path(), &["report", "-o", "out/page.html", "-q"]);
    assert!(!dir.path().join(dead).exists() && dir.path().join(&live).exists());

    // and so does the folder of a run that was killed before it had a config, once that is asked for
    let unbegun = run.with_file_name("0102_030405");
    fs::create_dir(&unbegun).unwrap();
    fs::write(unbegun.join(".partial-4000000000-Ab3xyz"), "half").unwrap();
    let list = crate::common::run(dir.path(), &["runs", "list"]);
    assert!(list.status == 0 && list.stderr.contains("`pipeline runs rm 0102_030405` removes it"), "{}", list.stderr);
    assert!(list.stdout.contains(&handle) && !list.stdout.contains("0102_030405"), "{}", list.stdout);
    ok(dir.path(), &["runs", "rm", "0102_030405", "--yes"]);
    assert!(!unbegun.exists());
}

#[test]
fn an_export_waits_for_readers_and_an_evaluation_for_writers() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run) = trained(dir.path(), &[]);
    ok(dir.path(), &["export", "--handle", &handle]);
    let lock =
        || File::options().read(true).write(true).create(true).truncate(false).open(run.join(".export.lock")).unwrap();
    let (export, eval) = (["export", "--handle", &handle], ["eval", "--handle", &handle, "--lengths", "1..20"]);
    let waits = |shared: bool, arguments: &[&str]| {
        let lock = lock();
        if shared { lock.lock_shared() } else { lock.lock() }.unwrap();
        let mut child = spawn(dir.path(), arguments);
        sleep(Duration::from_millis(1500));
        assert!(child.try_wait().unwrap().is_none(), "{arguments:?} did not wait");
        lock.unlock().unwrap();
        let said = said(&mut child);
        assert!(child.wait().unwrap().success() && said.contains("by another process: waiting"), "{said}");
    };
    waits(true, &export);
    waits(false, &export);
    waits(false, &eval);
    // Those who read do not wait for each other, and there is no lock to wait for in a training run.
    let shared = lock();
    shared.lock_shared().unwrap();
    ok(dir.path(), &[&eval[..], &["-o", "other.parquet"]].concat());
    drop(shared);
    let training = File::options().read(true).write(true).open(run.join(".lock")).unwrap();
    training.lock().unwrap();
    ok(dir.path(), &export);
    // Where no lock can be had, models are read without.
    fs::remove_file(run.join(".export.lock")).unwrap_or_default();
    fs::create_dir(run.join(".export.lock")).unwrap();
    ok(dir.path(), &eval);
}

#[test]
fn what_killed_exports_and_evaluations_left_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run) = trained(dir.path(), &[]);
    ok(dir.path(), &["export", "--handle", &handle]);
    ok(dir.path(), &["eval", "--handle", &handle, "--lengths", "1..20"]);
    let before = files(&run);
    let left = [
        "bf16-check.onnx",
        ".partial-model.onnx",
        ".partial-export-Ab3/model.onnx",
        "eval/.partial-x8Kq2a",
        "checkpoints/epoch-0001-step-4/.partial-model.onnx",
    ];
    for command in [&["export", "--handle", &handle][..], &["eval", "--handle", &handle, "--lengths", "1..20"]] {
        for name in left {
            let path = run.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "half").unwrap();
        }
        ok(dir.path(), command);
        let after: Vec<String> = files(&run).into_iter().filter(|name| !before.contains(name)).collect();
        assert!(after.is_empty(), "{command:?}: {after:?}");
    }
}

#[test]
fn a_run_is_not_deleted_under_those_who_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run) = trained(dir.path(), &[]);
    ok(dir.path(), &["export", "--handle", &handle]);
    let before = files(&run);
    let remove = ["runs", "rm", &handle, "--yes"];
    let is_locked = || File::open(run.join(".export.lock")).is_ok_and(|lock| lock.try_lock().is_err());
    let model = run.join("model.onnx").to_string_lossy().into_owned();
    for whose in [["--handle", &handle], ["--model", &model]] {
        let long = ["--lengths", "1..1000", "--exhaustive", "--threads", "1", "-o", "other.parquet"];
        let mut eval = spawn(dir.path(), &[&["eval"], &whose[..], &long].concat());
        let signal = |signal: &str| Command::new("kill").args([signal, &eval.id().to_string()]).status().unwrap();
        wait_until("the evaluation", is_locked);
        signal("-STOP");
        fails(dir.path(), &remove, 1, &["is being exported or evaluated", "nothing was deleted", "hint:"]);
        assert!(before.iter().all(|name| run.join(name).exists()));
        signal("-CONT");
        let said = said(&mut eval);
        assert!(eval.wait().unwrap().success(), "{said}");
    }
    ok(dir.path(), &remove);
    assert!(!run.exists());
}

#[test]
fn of_a_run_that_is_a_link_the_link_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run) = trained(dir.path(), &[]);
    let elsewhere = dir.path().join("elsewhere");
    fs::rename(&run, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &run).unwrap();
    let printed = ok(dir.path(), &["runs", "rm", &handle, "--yes"]);
    let elsewhere = elsewhere.canonicalize().unwrap();
    assert!(printed.contains("link") && printed.contains(elsewhere.to_str().unwrap()), "{printed}");
    assert!(run.symlink_metadata().is_err() && elsewhere.join("config.toml").is_file());
    // Nothing is behind it any more.
    std::os::unix::fs::symlink(dir.path().join("gone"), &run).unwrap();
    ok(dir.path(), &["runs", "rm", &handle, "--yes"]);
    assert!(run.symlink_metadata().is_err());
    // A link inside a run.
    fs::rename(&elsewhere, &run).unwrap();
    fs::rename(run.join("checkpoints"), dir.path().join("scratch")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("scratch"), run.join("checkpoints")).unwrap();
    let printed = ok(dir.path(), &["runs", "rm", &handle, "--yes"]);
    assert!(printed.contains("link") && printed.contains("scratch"), "{printed}");
    assert!(!run.exists() && dir.path().join("scratch").is_dir());
}

/// There, a file that is open is renamed instead of deleted, and its folder cannot go.
#[cfg(target_os = "linux")]
#[test]
fn a_run_is_deleted_whole_on_nfs_too() {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("nfs.so");
    let source = repository("pipeline/tests/fixtures/nfs.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).args([&source, "-ldl"]).status();
    assert!(built.unwrap().success());
    let (handle, run) = trained(dir.path(), &[]);
    let ran = command(dir.path(), &["runs", "rm", &handle, "--yes"]).env("LD_PRELOAD", &library).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(fs::read_dir(run.parent().unwrap()).unwrap().count(), 0);
}

/// A deletion that was cut short: what is left of it is in nobody's way, and goes with the next.
#[test]
fn half_a_run_is_never_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (first, run) = trained(dir.path(), &[]);
    let (second, _) = trained(dir.path(), &[]);
    let doomed = dir.path().join(format!("runs/.deleted-{first}"));
    fs::rename(&run, &doomed).unwrap();
    let listed = ok(dir.path(), &["runs"]);
    assert!(listed.contains(&second) && !listed.contains("deleted"), "{listed}");
    let report: Value = ok(dir.path(), &["report", "--json", "-q"]).parse().unwrap();
    assert_eq!(report["notices"], serde_json::json!([]), "it is no second run: {report}");
    ok(dir.path(), &["runs", "rm", &second, "--yes"]);
    assert_eq!(fs::read_dir(dir.path().join("runs")).unwrap().count(), 0);
}

/// Of a copy, files have the times of the copy, in any order.
#[test]
fn the_newest_run_is_the_one_that_was_started_last() {
    let dir = tempfile::tempdir().unwrap();
    let (first, run) = trained(dir.path(), &[]);
    let (second, _) = trained(dir.path(), &[]);
    let touch = |path: PathBuf| {
        File::options().write(true).open(path).unwrap().set_modified(std::time::SystemTime::now()).unwrap()
    };
    sleep(Duration::from_millis(20));
    files(&run).iter().for_each(|name| touch(run.join(name)));
    let newest = || {
        let shown: Value = ok(dir.path(), &["runs", "show", "--json"]).parse().unwrap();
        shown["handle"].as_str().unwrap().to_owned()
    };
    assert_eq!(newest(), second);
    ok(dir.path(), &["export", "--handle", &first]);
    ok(dir.path(), &["export"]);
    assert_eq!(metadata(&dir.path().join("runs").join(&second).join("model.onnx"), "handle"), second);
    // Resuming a run does not make it newer.
    ok(dir.path(), &["train", "--resume", &first, "--set", "train.max_steps=8", "-q"]);
    assert_eq!(newest(), second);
}

#[test]
fn what_was_exported_stays_whatever_the_times_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, run) = trained(dir.path(), &[]);
    ok(dir.path(), &["export", "--handle", &handle]);
    let model = File::options().write(true).open(run.join("model.onnx")).unwrap();
    model.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let all = || ok(dir.path(), &["export", "--all"]);
    assert!(all().contains("0 exported, 1 kept"));
    ok(dir.path(), &["train", "--resume", &handle, "--set", "train.max_steps=8", "-q"]);
    model.set_modified(std::time::SystemTime::now() + Duration::from_secs(60)).unwrap();
    assert!(all().contains("1 exported, 0 kept"), "its weights are others now");
}
