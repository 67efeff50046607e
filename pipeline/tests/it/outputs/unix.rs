//! Links, devices, permissions and full disks.

use super::*;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::process::{Command, Stdio};

const EVAL: [&str; 6] = ["eval", "--model", "m.onnx", "--lengths", "1..5", "-q"];

#[test]
fn links_stay_links_and_devices_stay_devices() {
    let dir = with_model("m.onnx");
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("far")).unwrap();
    fs::write(at("far/real.csv"), "old").unwrap();
    symlink("far/real.csv", at("link.csv")).unwrap();
    symlink("far/new.csv", at("dangling.csv")).unwrap();
    for (link, real) in [("link.csv", "far/real.csv"), ("dangling.csv", "far/new.csv")] {
        ok(dir.path(), &[&EVAL[..], &["-o", link]].concat());
        assert!(at(link).is_symlink(), "{link}");
        assert_eq!(fs::read_to_string(at(real)).unwrap().lines().count(), 6);
    }

    symlink("/dev/null", at("null.csv")).unwrap();
    ok(dir.path(), &[&EVAL[..], &["-o", "null.csv"]].concat());
    ok(dir.path(), &[&EVAL[..], &["-o", "/dev/null"]].concat());
    assert!(at("null.csv").is_symlink() && fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    fails(dir.path(), &[&EVAL[..], &["-o", "/dev/full"]].concat(), 1, &["/dev/full", "No space left"]);
    let both = [&EVAL[..], &["--split", "val", "-o", "/dev/null"]].concat();
    fails(dir.path(), &both, 1, &["-o /dev/null is no file", "hint:"]);

    assert!(Command::new("mkfifo").arg(at("pipe.csv")).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = at("pipe.csv");
        move || fs::read_to_string(pipe).unwrap()
    });
    ok(dir.path(), &[&EVAL[..], &["-o", "pipe.csv"]].concat());
    assert_eq!(reader.join().unwrap().lines().count(), 6);
    assert!(at("pipe.csv").metadata().unwrap().file_type().is_fifo());
}

#[test]
fn standard_output_takes_the_table_alone() {
    let dir = with_model("m.onnx");
    for name in ["/dev/stdout", "/dev/fd/1"] {
        let printed = ok(dir.path(), &[&EVAL[..], &["--format", "csv", "-o", name]].concat());
        assert_eq!(printed.lines().count(), 6, "{printed}");
        assert!(printed.starts_with("handle,task,"), "{printed}");
    }
    // into a file that the shell has opened, and behind what is in it already
    let pipeline = env!("CARGO_BIN_EXE_pipeline");
    let script = format!("{{ echo before; '{pipeline}' {} --format csv -o /dev/stdout; }} > x.csv", EVAL.join(" "));
    assert!(Command::new("sh").args(["-c", &script]).current_dir(&dir).status().unwrap().success());
    let text = fs::read_to_string(dir.path().join("x.csv")).unwrap();
    assert!(text.starts_with("before\nhandle,") && text.lines().count() == 7, "{text}");
    let both = [&EVAL[..], &["--json", "--format", "csv", "-o", "/dev/stdout"]].concat();
    fails(dir.path(), &both, 1, &["--json", "hint:"]);
    assert_eq!(files(dir.path()), ["m.onnx", "x.csv"]);
}

#[test]
fn permissions_are_those_of_the_umask() {
    let dir = with_model("m.onnx");
    let pipeline = env!("CARGO_BIN_EXE_pipeline");
    for (umask, mode) in [("077", 0o600), ("027", 0o640), ("002", 0o664)] {
        let script = format!("umask {umask}; exec '{pipeline}' {} -o {umask}.csv", EVAL.join(" "));
        assert!(Command::new("sh").args(["-c", &script]).current_dir(&dir).status().unwrap().success());
        for file in files(dir.path()).into_iter().filter(|file| file.starts_with(umask)) {
            assert_eq!(dir.path().join(&file).metadata().unwrap().mode() & 0o777, mode, "{file}");
        }
    }
    // a replaced file keeps its own
    let script = format!("umask 022; exec '{pipeline}' {} -o 077.csv", EVAL.join(" "));
    assert!(Command::new("sh").args(["-c", &script]).current_dir(&dir).status().unwrap().success());
    assert_eq!(dir.path().join("077.csv").metadata().unwrap().mode() & 0o777, 0o600);
}

/// The last file of a call meets a full disk: what was written before is named, and the sweep is not lost.
#[test]
fn a_late_failure_says_what_was_written() {
    let dir = with_model("m.onnx");
    symlink("/dev/full", dir.path().join("out-val-total.parquet")).unwrap();
    let late = [&EVAL[..], &["--split", "val", "--predictions", "-o", "out.parquet"]].concat();
    let written = "already written: out.parquet, out-predictions.parquet, out-val.parquet";
    fails(dir.path(), &late, 1, &["out-val-total.parquet", "No space left", written]);
    assert_eq!(table(&dir.path().join("out-val.parquet")).num_rows(), 50);

    let late = [&EVAL[..], &["--split", "val", "-o", "out.parquet"]].concat();
    fails(dir.path(), &late, 1, &["already written: out.parquet", "the same command continues", ".out.progress"]);
    let journal = dir.path().join(".out.progress");
    assert!(journal.is_file());
    fs::remove_file(dir.path().join("out-val-total.parquet")).unwrap();
    ok(dir.path(), &late);
    assert!(!journal.exists());
}

/// CIFS and FUSE refuse chmod, some also fsync.
#[test]
fn without_chmod_and_fsync_results_are_written_all_the_same() {
    let dir = with_model("m.onnx");
    let library = dir.path().join("refuses.so");
    let source = repository("pipeline/tests/fixtures/refuses.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    if !cfg!(target_os = "linux") || !built.is_ok_and(|status| status.success()) {
        eprintln!("skipped: nothing compiles C here");
        return;
    }
    let eval = ["eval", "--model", "m.onnx", "--lengths", "1..5", "--split", "val", "-o", "out.csv"];
    let run = |refused: &str, more: &[&str]| -> crate::common::Ran {
        let mut command = command(dir.path(), &[&eval[..], more].concat());
        command.env("LD_PRELOAD", &library).env("REFUSED", refused).stdin(Stdio::null());
        command.output().unwrap().into()
    };
    for refused in ["fchmod", "fsync", "fchmod,fsync"] {
        let ran = run(refused, &[]);
        assert_eq!(ran.status, 0, "{refused}: {}", ran.stderr);
        let warnings = ran.stderr.lines().filter(|line| line.contains("cannot flush files to disk")).count();
        assert_eq!(warnings, usize::from(refused.contains("fsync")), "{refused}: {}", ran.stderr);
    }
    use std::os::unix::fs::PermissionsExt;
    for file in ["out.csv", "out-val.csv"] {
        fs::set_permissions(dir.path().join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let ran = run("fchmod", &[]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("has no permissions").count(), 1, "once: {}", ran.stderr);
    assert!(run("fchmod,fsync", &["-q"]).stderr.is_empty());
}
