//! Machines that allow little: few processes, a library that was copied half, a full disk behind the output, a log instead
//! of a terminal.
//!
//! A process of its own: these tests copy the program and run what they wrote, which the system refuses (`ETXTBSY`) for
//! as long as a child that another test is just starting has inherited the open file.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "it/common.rs"]
mod common;

use common::{check_failure, command, fails, ok, repository, tiny_training};
use evaluators::{LoadOptions, Model, Provider, RuntimeLibrary, Sweep};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TASK: &str = "counting_samesymbol_mod10bos";

fn counts() -> String {
    repository("evaluators/tests/fixtures/counts_mod10.onnx")
}

/// ONNX Runtime's library.
fn library() -> PathBuf {
    RuntimeLibrary::find_or_fetch().unwrap().path
}

/// A copy of the program and of ONNX Runtime that any user may run, in a folder that any user may write into. `None` where
/// no limit can be set: that takes root, whom limits do not concern, to become another user, of whom there is nothing else.
fn program_for_anybody(folder: &Path) -> Option<Vec<(String, PathBuf)>> {
    let limited =
        Command::new("setpriv").args(["--reuid=54321", "--clear-groups", "prlimit", "--nproc=1", "true"]).output();
    if !limited.is_ok_and(|output| output.status.success()) {
        return None;
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    let place = |from: &Path, to: &str| {
        let to = folder.join(to);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let program = place(Path::new(env!("CARGO_BIN_EXE_pipeline")), "program");
    let runtime = place(&library(), "libonnxruntime.so");
    place(Path::new(&counts()), "model.onnx");
    Some(vec![("program".into(), program), ("runtime".into(), runtime)])
}

#[test]
fn few_processes_are_enough_for_everything() {
    let dir = tempfile::tempdir().unwrap();
    let Some(copies) = program_for_anybody(dir.path()) else { return };
    let (program, runtime) = (&copies[0].1, &copies[1].1);
    let config = fs::canonicalize(repository("configs/quickstart.toml")).unwrap();
    fs::copy(&config, dir.path().join("config.toml")).unwrap();
    for processes in ["1", "2", "3", "5"] {
        let folder = dir.path().join(processes);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let limited = |arguments: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=54321", "--clear-groups", "prlimit", &format!("--nproc={processes}")]).arg(program);
            command.args(arguments).current_dir(&folder).env("ORT_DYLIB_PATH", runtime).env("HOME", &folder);
            let ran: common::Ran = command.output().unwrap().into();
            assert_eq!(ran.status, 0, "{processes} processes: {arguments:?}\n{}{}", ran.stdout, ran.stderr);
            assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
            ran.stdout
        };
        limited(&["data", "generate", "--task", "counting_diffsymbol", "--train", "3000"]);
        limited(&tiny_training("../config.toml", &["--task", TASK]));
        limited(&["export", "--all"]);
        limited(&["eval", "--lengths", "1..20", "--exhaustive", "--max-tokens", "30", "--split", "val"]);
        limited(&["eval", "--model", "../model.onnx", "--lengths", "1..60", "--exhaustive", "--max-tokens", "60"]);
        limited(&["eval", "--model", "../model.onnx", "--lengths", "1..60", "--threads", "4", "--workers", "3"]);
        limited(&["report", "-o", "report.md"]);
        limited(&["doctor"]);
        let whole = fs::read(folder.join("model-sweep.parquet")).unwrap();
        let free = dir.path().join(format!("free-{processes}"));
        fs::create_dir(&free).unwrap();
        ok(&free, &["eval", "--model", "../model.onnx", "--lengths", "1..60", "-q"]);
        assert!(fs::read(free.join("model-sweep.parquet")).unwrap() == whole, "{processes} processes find the same");
    }
}

#[test]
fn numbers_of_threads_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = counts();
    for threads in ["0", "1025", "100000", "-1", "all"] {
        let arguments = ["eval", "--model", &model, "--lengths", "1..5", &format!("--threads={threads}")];
        fails(dir.path(), &arguments, 2, &["--threads"]);
    }
    ok(dir.path(), &["eval", "--model", &model, "--lengths", "1..5", "--threads", "7", "-q"]);
    let config = repository("configs/quickstart.toml");
    let training = tiny_training(&config, &["--task", TASK, "-q"]);
    for threads in ["0", "-3", "many", "99999999999999999999", "3000000"] {
        let ran = command(dir.path(), &training).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(ran.status.success(), "{threads}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

#[test]
fn half_a_library_is_named_and_never_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let model = counts();
    let bytes = fs::read(library()).unwrap();
    let half = dir.path().join("libonnxruntime.so.1.31.1");
    for share in [0, 1, 50, 99] {
        fs::write(&half, &bytes[..bytes.len() * share / 100]).unwrap();
        let arguments = ["eval", "--model", &model, "--lengths", "1..5"];
        let ran = command(dir.path(), &arguments).env("ORT_DYLIB_PATH", &half).output().unwrap();
        let parts = [&format!("cannot load ONNX Runtime from {}", half.display()), "the file is cut off", "hint: copy"];
        check_failure(&ran.into(), &arguments, 1, &parts);
    }

    // in the cache, where there is neither Python nor pip to fetch another
    let capi = dir.path().join("cache/inductive-counting/onnxruntime-1.31.1/onnxruntime/capi");
    fs::create_dir_all(&capi).unwrap();
    fs::rename(&half, capi.join("libonnxruntime.so.1.31.1")).unwrap();
    let mut cached = command(dir.path(), &["eval", "--model", &model, "--lengths", "1..5"]);
    cached.env_remove("ORT_DYLIB_PATH").env("XDG_CACHE_HOME", dir.path().join("cache")).env("PATH", dir.path());
    check_failure(
        &cached.output().unwrap().into(),
        &[],
        1,
        &["cannot find the ONNX Runtime library", "the file is cut off"],
    );
    let mut doctor = command(dir.path(), &["doctor"]);
    doctor.env_remove("ORT_DYLIB_PATH").env("XDG_CACHE_HOME", dir.path().join("cache")).env("PATH", dir.path());
    assert!(doctor.output().unwrap().status.success());
}

#[test]
fn a_full_disk_behind_the_output_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = counts();
    for arguments in [&["data", "list"][..], &["doctor"], &["eval", "--model", &model, "--lengths", "1..5"]] {
        let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
        let ran = command(dir.path(), arguments).stdout(full()).output().unwrap();
        let parts = ["cannot write the result to standard output", "No space left on device", "hint:"];
        check_failure(&ran.into(), arguments, 1, &parts);
        // nor does a full disk behind the notes end anything
        assert!(command(dir.path(), arguments).stderr(full()).output().unwrap().status.success());
    }
    let missing = ["eval", "--model", "absent.onnx"];
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(command(dir.path(), &missing).stderr(full).output().unwrap().status.code(), Some(1));
}

#[test]
fn a_log_has_lines_of_long_work_and_none_of_short() {
    let dir = tempfile::tempdir().unwrap();
    let config = repository("configs/quickstart.toml");
    let training = tiny_training(&config, &["--task", TASK, "--set", "train.max_steps=60", "--set", "train.epochs=20"]);
    let logged = |arguments: &[&str], seconds: Option<&str>| {
        let mut command = command(dir.path(), arguments);
        seconds.map(|seconds| command.env("PIPELINE_PROGRESS_SECONDS", seconds));
        let ran: common::Ran = command.output().unwrap().into();
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.stderr.lines().filter(|line| line.contains(" · ETA ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(logged(&training, None), [""; 0]);
    let lines = logged(&training, Some("0"));
    assert!(lines.iter().any(|line| line.contains("/60 steps · ") && line.contains(" · loss ")), "{lines:?}");
    let quiet: Vec<&str> = training.iter().copied().chain(["-q"]).collect();
    assert_eq!(logged(&quiet, Some("0")), [""; 0]);
    let model = counts();
    let sweep = ["eval", "--model", &model, "--lengths", "1..300", "--exhaustive", "--max-tokens", "300"];
    let lines = logged(&sweep, Some("0"));
    assert!(lines.iter().any(|line| line.contains(" tokens · ") && line.contains(" of 300 lengths · ")), "{lines:?}");
    assert_eq!(logged(&sweep, None), [""; 0], "a short sweep says nothing");
}

/// Two sweeps that keep their progress in one file: the second is told.
#[test]
fn two_sweeps_at_once_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let model = counts();
    let arguments = ["eval", "--model", &model, "--lengths", "1..20"];
    let journal = fs::File::create(dir.path().join(".counts_mod10-sweep.progress")).unwrap();
    journal.lock().unwrap();
    fails(dir.path(), &arguments, 1, &["another evaluation keeps its progress in", "hint: wait"]);
    assert!(!dir.path().join("counts_mod10-sweep.parquet").exists());
    drop(journal);
    ok(dir.path(), &arguments);
}

/// The program on a machine with so little free memory; `None` where there is no C compiler.
fn with_memory(folder: &Path, kilobytes: u32, arguments: &[&str]) -> Option<Command> {
    let (shim, meminfo) = (folder.join("meminfo.so"), folder.join("meminfo"));
    let source = repository("pipeline/tests/fixtures/meminfo.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(source).arg("-ldl").status();
    built.ok().filter(|status| status.success())?;
    fs::write(&meminfo, format!("MemTotal: 9999999 kB\nMemAvailable: {kilobytes} kB\n")).unwrap();
    let mut command = command(folder, arguments);
    command.env("LD_PRELOAD", shim).env("MEMINFO", meminfo);
    Some(command)
}

#[test]
fn lengths_that_do_not_fit_into_memory_say_what_they_need() {
    let dir = tempfile::tempdir().unwrap();
    let model = repository("evaluators/tests/fixtures/reads_positions.onnx");
    let arguments = ["eval", "--model", &model, "--lengths", "1..60", "--json", "-q"];
    let Some(mut command) = with_memory(dir.path(), 300, &arguments) else { return };
    let document: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let status = |length: usize| document["lengths"][length - 1]["status"].as_str().unwrap();
    assert_eq!((status(55), status(56)), ("ok", "attention needs 305 KiB, 300 KiB free"));
    assert_eq!(status(60), "attention needs 349 KiB, 300 KiB free");
}

/// A killed sweep continues with less memory, for which its plan is another one.
#[test]
fn progress_made_with_more_memory_does_not_count_for_another_plan() {
    let dir = tempfile::tempdir().unwrap();
    let task = data::Task::by_name(TASK).unwrap();
    let model = repository("evaluators/tests/fixtures/reads_positions.onnx");
    let arguments = ["eval", "--model", &model, "--lengths", "1..60", "--exhaustive", "--max-tokens", "100", "-q"];
    for (kilobytes, share) in [(300, 50), (300, 90), (30, 50)] {
        let folders = ["fresh", "resumed"].map(|name| dir.path().join(format!("{name}-{kilobytes}-{share}")));
        for folder in &folders {
            fs::create_dir(folder).unwrap();
        }
        let journal = folders[1].join(".reads_positions-sweep.progress");
        let mut loaded = Model::load(model.as_ref(), LoadOptions { provider: Provider::Cpu, threads: None }).unwrap();
        let sweep = Sweep::new(&mut loaded).task(&task).lengths(1..=60).samples(100).exhaustive(true);
        sweep.max_tokens(Some(100)).journal(Some(&journal)).run().unwrap();
        let record = fs::read(&journal).unwrap();
        fs::write(&journal, &record[..record.len() * share / 100]).unwrap();
        let [fresh, resumed] = folders.map(|folder| {
            let status = with_memory(&folder, kilobytes, &arguments).map(|mut command| command.status().unwrap());
            assert!(status.is_none_or(|status| status.success()));
            fs::read(folder.join("reads_positions-sweep.parquet")).ok()
        });
        assert!(fresh == resumed, "{kilobytes} kB, after {share} %");
    }
}
