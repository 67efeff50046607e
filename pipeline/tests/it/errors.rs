//! Mistakes that a person can make: one clear message, exit status 1 or 2, nothing half-written.
#![allow(clippy::unwrap_used)]

use crate::common::{check_failure, command, fails, files, repository, run};
use std::path::Path;
use std::process::Command;

fn fixture(name: &str) -> String {
    repository(&format!("evaluators/tests/fixtures/{name}"))
}

#[test]
fn lengths_that_are_no_lengths() {
    let dir = tempfile::tempdir().unwrap();
    for (lengths, part) in [("0..10", "start at 1"), ("5..1", "5..1"), ("x", "x"), ("1..10:0", "step")] {
        fails(dir.path(), &["eval", "--lengths", lengths], 2, &["--lengths", part]);
    }
}

#[test]
fn command_lines_that_make_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    fails(dir.path(), &["eval", "--provider", "gpu"], 2, &["--provider", "gpu"]);
    fails(dir.path(), &["eval", "--handle", "1", "--model", "m.onnx"], 2, &["cannot be used with"]);
    fails(dir.path(), &["eval", "--loops", "0"], 2, &["--loops"]);
    fails(dir.path(), &["eval", "--augmentation", "zoom"], 2, &["--augmentation", "zooming"]);
    fails(dir.path(), &["eval", "--samples", "0"], 2, &["--samples"]);
    fails(dir.path(), &["evaluate"], 2, &["eval"]);
}

/// A negative number is a value that is out of range, not an option that nobody knows; and every range comes with a hint.
#[test]
fn numbers_out_of_range_are_named_with_their_option_and_range() {
    let dir = tempfile::tempdir().unwrap();
    let check = |command: &[&str], option: &str, value: &str, range: &str| {
        let ran = run(dir.path(), &[command, &[option, value]].concat());
        let named = format!("'{value}' for '{option}");
        for part in [&named[..], range, "hint: "] {
            assert!(ran.stderr.contains(part), "{command:?} {option} {value}: no `{part}` in\n{}", ran.stderr);
        }
        assert_eq!(ran.status, 2, "{}", ran.stderr);
    };
    let eval = ["eval", "--model", "m.onnx"];
    for value in ["-1", "1.5", "many", "99999999999999999999"] {
        for (option, range) in [
            ("--threads", "from 1 to 1024"),
            ("--workers", "from 1 to 1024"),
            ("--loops", "1 or more"),
            ("--samples", "1 or more"),
            ("--seed", "0 or more"),
            ("--max-tokens", "1 or more"),
        ] {
            check(&eval, option, value, range);
        }
    }
    check(&eval, "--threads", "0", "from 1 to 1024");
    check(&eval, "--lengths", "-5..10", "1..1000");
    check(&eval, "--lengths", "-5", "1..1000");
    check(&["data", "generate", "--task", "debug"], "--train", "-1", "1 or more");
    check(&["data", "generate", "--task", "debug"], "--seed", "-1", "from 0 to 9223372036854775807");
    check(&["data", "show", "x.parquet"], "--examples", "-1", "0 or more");
    let model = fixture("counts_mod10.onnx");
    fails(dir.path(), &["eval", "--model", &model, "--until-width", "-0.1"], 1, &["--until-width -0.1", "hint:"]);
    #[cfg(feature = "train")]
    {
        check(&["train", "--config", "c.toml"], "--seed", "-1", "from 0 to 9223372036854775807");
        check(&["train", "--config", "c.toml"], "--keep", "-1", "0 or more");
        check(&["export"], "--opset", "-1", "0 or more");
        check(&["grid", "grid.toml"], "--workers", "-1", "from 1 to 65535");
        check(&["grid", "grid.toml"], "--job", "-1", "0 or more");
        for option in ["--hidden", "--layers", "--heads", "--batch", "--seq", "--steps"] {
            check(&["bench", "train"], option, "-1", "1 or more");
        }
        check(&["bench", "train"], "--warmup", "-1", "0 or more");
    }
}

#[test]
fn options_that_would_change_nothing_are_refused_or_noted() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("counts_mod10.onnx");
    let eval = |more: &[&'static str]| [&["eval", "--model", &model[..]], more].concat();
    fails(dir.path(), &eval(&["--loops", "3"]), 1, &["--loops is about splits", "hint: add --split val"]);
    let split = ["--split", "val"];
    for more in [&["--samples", "9"][..], &["--until-width", "0.1"], &["--restart"]] {
        let parts = [more[0], "is about a sweep of lengths", "hint: add --lengths"];
        fails(dir.path(), &eval(&[&split[..], more].concat()), 1, &parts);
    }
    assert!(files(dir.path()).is_empty());
    let both = ["--lengths", "1..5", "--loops", "3", "--samples", "9", "--seed", "4"];
    let ran = run(dir.path(), &eval(&[&split[..], &both].concat()));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("--loops changes nothing") && !ran.stderr.contains("--seed changes"), "{}", ran.stderr);
    let ran = run(dir.path(), &eval(&["--split", "val", "--seed", "4"]));
    assert!(ran.status == 0 && ran.stderr.contains("--seed changes nothing"), "{}", ran.stderr);
}

#[test]
fn a_split_without_examples_has_no_scores() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("counts_mod10.onnx");
    std::fs::write(dir.path().join("empty.txt"), "").unwrap();
    for (split, reason) in [("/dev/null", "it is a device"), ("empty.txt", "it has no examples")] {
        let parts = [split, reason, "hint:"];
        fails(dir.path(), &["eval", "--model", &model, "--split", split], 1, &parts);
    }
    assert_eq!(files(dir.path()), ["empty.txt"]);
}

#[test]
fn runs_and_models_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    fails(dir.path(), &["eval"], 1, &["there is no exported run", "hint: `pipeline export`"]);
    fails(dir.path(), &["eval", "--handle", "1123_142530"], 1, &["there is no run `1123_142530`", "hint:"]);
    fails(dir.path(), &["eval", "--model", "gone.onnx"], 1, &["gone.onnx", "No such file"]);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn models_that_do_not_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text.onnx"), "this is no model").unwrap();
    fails(dir.path(), &["eval", "--model", "text.onnx"], 1, &["text.onnx"]);
    // Its only output of that shape is called `scores`, which is taken for the logits unless others are asked for.
    let no_logits = fixture("no_logits.onnx");
    let named = ["eval", "--model", &no_logits, "--logits", "logits"];
    fails(dir.path(), &named, 1, &["no_logits.onnx", "`logits`", "scores", "hint:"]);
    let other = fixture("other_vocab.onnx");
    fails(
        dir.path(),
        &["eval", "--model", &other, "--task", "counting_samesymbol_mod10"],
        1,
        &["token 12 is `b`", "hint:"],
    );
    let good = fixture("counts_mod10.onnx");
    fails(dir.path(), &["eval", "--model", &good, "--until-width", "2"], 1, &["--until-width 2", "hint:"]);
    fails(dir.path(), &["eval", "--model", &good, "--split", "vall"], 1, &["no split `vall`", "vall.parquet", "hint:"]);
    fails(dir.path(), &["eval", "--model", &good, "--split", "gone.parquet"], 1, &["gone.parquet", "No such file"]);
    fails(dir.path(), &["eval", "--model", &good, "--task", "counting_samesymbol_mod1"], 1, &["did you mean"]);
    assert_eq!(files(dir.path()), ["text.onnx"]);
}

#[test]
fn a_provider_that_is_not_there_is_never_replaced_silently() {
    let doctor = crate::common::ok(Path::new("."), &["doctor", "--json"]);
    if doctor.contains("CUDAExecutionProvider") {
        eprintln!("skipped: this machine's ONNX Runtime has CUDA");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("counts_mod10.onnx");
    for provider in ["cuda", "tensorrt"] {
        fails(dir.path(), &["eval", "--model", &model, "--provider", provider], 1, &[provider, "hint:"]);
    }
    let printed =
        crate::common::ok(dir.path(), &["eval", "--model", &model, "--provider", "auto", "--lengths", "1..5"]);
    assert!(printed.contains("cpu"), "{printed}");
}

#[test]
fn no_onnx_runtime_and_no_pip() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["eval", "--model", &fixture("counts_mod10.onnx")];
    let mut bare = command(dir.path(), &arguments);
    let ran = bare.env_clear().env("PATH", dir.path()).env("HOME", dir.path()).output().unwrap().into();
    check_failure(&ran, &arguments, 1, &["ONNX Runtime", "ORT_DYLIB_PATH", "pip install onnxruntime"]);
    assert!(files(dir.path()).is_empty(), "{:?}", files(dir.path()));

    let ran = command(dir.path(), &arguments).env("ORT_DYLIB_PATH", "gone.so").output().unwrap().into();
    check_failure(&ran, &arguments, 1, &["gone.so", "ORT_DYLIB_PATH"]);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let pipeline = env!("CARGO_BIN_EXE_pipeline");
    let script = format!("'{pipeline}' data list | true; exit ${{PIPESTATUS[0]}}");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(feature = "train")]
mod training {
    use crate::common::{check_failure, fails, files, ok, repository, run, tiny_training};
    use std::path::Path;
    use std::process::Command;

    fn config() -> String {
        repository("configs/quickstart.toml")
    }

    #[test]
    fn names_that_do_not_exist_come_with_the_nearest_that_does() {
        let dir = tempfile::tempdir().unwrap();
        let config = config();
        let train = |more: &[&str], parts: &[&str]| {
            let mut arguments = vec!["train", "--config", &config];
            arguments.extend(more);
            fails(dir.path(), &arguments, 1, parts);
        };
        train(&["--task", "counting_samesymbol_mod10boss"], &["did you mean `counting_samesymbol_mod10bos`?"]);
        train(&["--set", "model.hiden_size=3"], &["unknown key model.hiden_size", "did you mean `hidden_size`?"]);
        train(&["--set", "optimiser.lr=3"], &["unknown table [optimiser]", "did you mean `optimizer`?"]);
        train(&["--set", "lr=3"], &["table.key"]);
        train(&["--set", "train.accumulate=3"], &["train.accumulate", "does not divide", "hint:"]);
        train(&["--init-from", "gone.safetensors"], &["there is no such file"]);
        train(&["--init-from", "1123_9"], &["--init-from 1123_9 is not a file", "there is no run"]);
        train(&["--device", "gpu"], &["unknown device `gpu`", "auto, cpu, cuda"]);
        train(&["--device", "cpu", "--set", "train.precision=tf32"], &["train.precision=tf32", "for CUDA", "hint:"]);
        fails(dir.path(), &["train", "--config", "gone.toml"], 1, &["gone.toml", "configs/"]);
        std::fs::write(dir.path().join("bad.toml"), "[task\nname=1").unwrap();
        fails(dir.path(), &["train", "--config", "bad.toml"], 1, &["bad.toml", "line 1"]);
        std::fs::write(dir.path().join("key.toml"), "[task]\nnam = 'x'\n[model]\narch='rnn'").unwrap();
        fails(dir.path(), &["train", "--config", "key.toml"], 1, &["key.toml", "task.nam", "did you mean `name`?"]);
        assert_eq!(files(dir.path()), ["bad.toml", "key.toml"], "nothing was created");
        let short = tiny_training(&config, &["--set", "train.pad_to=20"]);
        fails(dir.path(), &short, 1, &["train.pad_to is 20", "has 51 tokens"]);
        assert!(!dir.path().join("runs").exists());
    }

    #[test]
    fn a_damaged_dataset_is_named_and_no_run_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let task = "counting_samesymbol_mod10bos";
        ok(dir.path(), &["data", "generate", "--task", task, "--train", "100"]);
        let path = dir.path().join("datasets").join(format!("{task}-n100-s0")).join("train.parquet");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let config = config();
        fails(dir.path(), &tiny_training(&config, &[]), 1, &["train.parquet", "damaged", "--force"]);
        fails(dir.path(), &["data", "show", path.to_str().unwrap()], 1, &["train.parquet"]);
        assert!(!dir.path().join("runs").exists());

        let generate = ["data", "generate", "--task", task, "--train", "100"];
        fails(dir.path(), &generate, 1, &["train.parquet", "damaged", "--train 100 --seed 0 --force"]);
        ok(dir.path(), &[&generate[..], &["--force"]].concat());
        fails(dir.path(), &generate, 1, &["is there already", "--force"]);
        fails(dir.path(), &["data", "generate", "--task", task, "--train", "3", "--force"], 1, &["at least 50"]);
    }

    #[test]
    fn a_run_that_was_not_exported_or_has_no_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let config = config();
        let handle = ok(dir.path(), &tiny_training(&config, &[])).lines().next().unwrap().to_owned();
        let hint = format!("hint: `pipeline export --handle {handle}` first");
        fails(dir.path(), &["eval", "--handle", &handle], 1, &["has not been exported", &hint]);
        fails(dir.path(), &["export", "--handle", "1123_9"], 1, &["there is no run `1123_9`"]);

        let run_dir = dir.path().join("runs").join(&handle);
        let weights = run_dir.join("checkpoints/epoch-0002-step-6/model.safetensors");
        let bytes = std::fs::read(&weights).unwrap();
        std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
        let exported = run(dir.path(), &["export", "--handle", &handle, "--json"]);
        assert!(exported.stderr.contains("model.safetensors is damaged"), "{}", exported.stderr);
        assert!(exported.stderr.contains("using epoch-0001-step-4"), "{}", exported.stderr);
        std::fs::remove_file(run_dir.join("model.onnx")).unwrap();
        std::fs::write(run_dir.join("checkpoints/epoch-0001-step-4/state.json"), "{}").unwrap();
        fails(dir.path(), &["export", "--handle", &handle], 1, &["no checkpoint that is whole", "damaged"]);
        std::fs::remove_dir_all(run_dir.join("checkpoints")).unwrap();
        fails(dir.path(), &["export", "--handle", &handle], 1, &["has no checkpoint"]);
        assert!(!run_dir.join("model.onnx").exists());
    }

    #[test]
    fn a_gpu_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        if !run(dir.path(), &["doctor"]).stdout.contains("CUDA          none") {
            eprintln!("skipped: this machine has a GPU");
            return;
        }
        let config = config();
        let cuda = ["--device", "cuda"];
        let reason = if cfg!(feature = "cuda") { "cannot train on cuda" } else { "built without CUDA" };
        fails(dir.path(), &tiny_training(&config, &cuda), 1, &[reason, "--device cpu"]);
        assert!(files(dir.path()).is_empty());
    }

    /// On a tmpfs of 64 kB, made in a user namespace of its own.
    #[test]
    fn a_full_disk_leaves_no_partial_file() {
        let dir = tempfile::tempdir().unwrap();
        let small = dir.path().join("small");
        std::fs::create_dir(&small).unwrap();
        let script = |command: &str| {
            let mount = format!("mount -t tmpfs -o size=64k tmpfs '{}' || exit 99; ", small.display());
            let list = format!("; status=$?; find '{}' -type f >&2; exit $status", small.display());
            Command::new("unshare")
                .args(["--user", "--map-root-user", "--mount", "sh", "-c", &(mount + command + &list)])
                .output()
        };
        let pipeline = env!("CARGO_BIN_EXE_pipeline");
        let command = |data: &Path, runs: &Path| {
            format!(
                "'{pipeline}' --data-dir '{}' --runs-dir '{}' train --config '{}' --set train.max_steps=3 --set task.train_examples=20000",
                data.display(),
                runs.display(),
                config()
            )
        };
        let output = script(&command(&dir.path().join("datasets"), &small.join("runs")));
        let Ok(output) = output else {
            eprintln!("skipped: there is no `unshare` here");
            return;
        };
        if output.status.code().is_none_or(|code| code == 99)
            || String::from_utf8_lossy(&output.stderr).contains("unshare")
        {
            eprintln!("skipped: a tmpfs cannot be mounted here");
            return;
        }
        // The first checkpoint (150 kB with the optimizer's state) does not fit.
        let ran = output.into();
        check_failure(&ran, &["train"], 1, &["cannot save the checkpoint", "No space left on device"]);
        let left: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with('/')).collect();
        let names: Vec<&str> = left.iter().filter_map(|l| l.rsplit('/').next()).collect();
        assert!(names.contains(&"config.toml"), "{}", ran.stderr);
        assert!(!left.iter().any(|l| l.contains(".partial") || l.contains("checkpoints/")), "{}", ran.stderr);
    }
}
