//! Grids and reports of them, at toy size: what is left to do is seen, failures stay in their jobs, damaged
//! files are named.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::{check_failure, command, fails, files, ok, repository, run};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

/// A grid of one task, an RNN and an LSTM, one seed.
fn grid(folder: &Path, more: &str) -> String {
    let (rnn, lstm) = (repository("configs/rnn.toml"), repository("configs/lstm.toml"));
    let text = format!(
        "tasks = ['counting_samesymbol_mod10bos']\nseeds = [7]\n\
         [set]\ntask.train_examples = 100\nmodel.hidden_size = 8\n\
         train = {{ max_steps = 6, log_every = 2, checkpoint_every = 2, device = 'cpu' }}\n\
         [eval]\nlengths = '1..60'\n[[architecture]]\nconfig = '{rnn}'\n[[architecture]]\nconfig = '{lstm}'\n{more}"
    );
    let path = folder.join("toy.toml");
    fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

fn statuses(printed: &str) -> Vec<String> {
    let document: Value = printed.parse().unwrap();
    document["cells"].as_array().unwrap().iter().map(|c| c["status"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_grid_does_what_is_left_to_do_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    let grid_run = |more: &[&str]| ok(dir.path(), &[&["grid", &grid, "--json", "--quiet"], more].concat());
    assert_eq!(statuses(&grid_run(&["--dry-run"])), ["waiting", "waiting"]);
    assert_eq!(files(dir.path()), ["toy.toml"]);

    assert_eq!(statuses(&grid_run(&[])), ["done", "done"]);
    let before = files(dir.path());
    let written = |path: &str| fs::metadata(dir.path().join(path)).unwrap().modified().unwrap();
    let results: Vec<&String> = before.iter().filter(|f| f.ends_with("sweep.parquet")).collect();
    assert_eq!(results.len(), 2);
    let times: Vec<_> = results.iter().map(|f| written(f)).collect();
    assert_eq!(statuses(&grid_run(&["--workers", "2"])), ["done", "done"]);
    assert_eq!(files(dir.path()), before);
    assert_eq!(results.iter().map(|f| written(f)).collect::<Vec<_>>(), times, "nothing was made twice");

    // Missing files are made again, from the stage where it was.
    let run = dir.path().join(Path::new(results[0]).parent().unwrap().parent().unwrap());
    fs::remove_file(dir.path().join(results[1])).unwrap();
    fs::remove_file(run.join("model.onnx")).unwrap();
    let left = statuses(&grid_run(&["--dry-run"]));
    assert!(left.contains(&"trained".into()) && left.contains(&"exported".into()), "{left:?}");
    assert_eq!(statuses(&grid_run(&[])), ["done", "done"]);
    assert_eq!(files(dir.path()), before);

    // Another length of the sweep is another evaluation of the same runs; other settings are other runs.
    let text = fs::read_to_string(&grid).unwrap();
    fs::write(&grid, text.replace("1..60", "1..70")).unwrap();
    assert_eq!(statuses(&grid_run(&["--dry-run"])), ["exported", "exported"]);
    assert_eq!(statuses(&grid_run(&["--dry-run", "--set", "train.max_steps=7"])), ["waiting", "waiting"]);
    let predicted: Value = grid_run(&["--dry-run", "--set", "train.max_steps=12"]).parse().unwrap();
    assert!(predicted["cells"][0]["predicted_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(predicted["cells"][0]["predicted_from"], predicted_handle(dir.path(), "rnn"));
    // One job alone, as a task of a job array; by the names that earlier versions had for command and option.
    assert!(ok(dir.path(), &["grid", &grid, "--job", "1"]).contains("done"));
    assert!(ok(dir.path(), &["sweep", &grid, "--cell", "1"]).contains("done"));
    assert_eq!(statuses(&grid_run(&["--dry-run"])), ["exported", "done"]);
}

fn predicted_handle(folder: &Path, arch: &str) -> String {
    let runs: Value = ok(folder, &["runs", "--json"]).parse().unwrap();
    let run = runs.as_array().unwrap().iter().find(|r| r["arch"] == arch).unwrap();
    run["handle"].as_str().unwrap().to_owned()
}

#[test]
fn a_failure_stays_in_its_job_until_it_is_to_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "set.train.init_from = 'gone.safetensors'");
    let printed = run(dir.path(), &["grid", &grid, "--json", "--quiet"]);
    assert_eq!(statuses(&printed.stdout), ["done", "failed"]);
    assert_eq!(printed.status, 1);
    for part in ["1 of 2 jobs failed", "lstm-s7: train:", "gone.safetensors", "hint:"] {
        assert!(printed.stderr.contains(part), "{part}: {}", printed.stderr);
    }
    let failure = dir.path().join("runs/sweeps/toy/failed/counting_samesymbol_mod10bos-lstm-s7.json");
    let first = fs::metadata(&failure).unwrap().modified().unwrap();
    fails(dir.path(), &["grid", &grid, "-q"], 1, &["1 of 2 jobs failed", "--retry"]);
    assert_eq!(fs::metadata(&failure).unwrap().modified().unwrap(), first, "it was left alone");
    fails(dir.path(), &["grid", &grid, "-q", "--retry"], 1, &["1 of 2 jobs failed"]);
    assert_ne!(fs::metadata(&failure).unwrap().modified().unwrap(), first, "it was tried again");
}

#[test]
fn a_report_names_what_it_cannot_read_and_shows_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    ok(dir.path(), &["grid", &grid, "-q"]);
    let results: Vec<String> = files(dir.path()).into_iter().filter(|f| f.ends_with("/sweep.parquet")).collect();
    let [torn, whole] = [&results[0], &results[1]].map(|path| dir.path().join(path));
    let bytes = fs::read(&torn).unwrap();
    fs::write(&torn, &bytes[..bytes.len() / 2]).unwrap();
    fs::write(whole.with_file_name("notes.parquet"), "no table").unwrap();
    fs::copy(whole.ancestors().nth(2).unwrap().join("metrics.parquet"), whole.with_file_name("curve.parquet")).unwrap();
    fs::create_dir_all(dir.path().join("runs/<img src=x>")).unwrap();
    fs::write(dir.path().join("runs/<img src=x>/config.toml"), "no [ TOML").unwrap();

    let report: Value = ok(dir.path(), &["report", "--json", "-q"]).parse().unwrap();
    assert_eq!((&report["results"], &report["cells"]), (&5.into(), &2.into()), "{report}");
    let notices = report["notices"].to_string();
    assert_eq!(report["notices"].as_array().unwrap().len(), 4, "{notices}");
    for part in ["sweep.parquet", "notes.parquet", "curve.parquet", "is not TOML"] {
        assert!(notices.contains(part), "{part}: {notices}");
    }
    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.contains("notes.parquet") && page.contains("&lt;img src=x&gt;") && !page.contains("<img"));

    ok(dir.path(), &["report", "-q", "-o", "out/report.md"]);
    let text = fs::read_to_string(dir.path().join("out/report.md")).unwrap();
    let figures: Vec<&str> = text.lines().filter_map(|l| l.split_once("](")?.1.strip_suffix(')')).collect();
    assert!(figures.len() >= 3, "{text}");
    assert!(figures.iter().all(|f| dir.path().join("out").join(f).exists()), "{figures:?}");
}

#[test]
fn what_a_report_cannot_be_made_of() {
    let dir = tempfile::tempdir().unwrap();
    fails(dir.path(), &["report"], 1, &["cannot read the runs folder runs", "hint:"]);
    fs::create_dir(dir.path().join("runs")).unwrap();
    fails(dir.path(), &["report"], 1, &["there are no results under runs", "hint:"]);
    fails(dir.path(), &["report", "-o", "report.pdf"], 1, &["report.pdf", "HTML or Markdown", "hint:"]);
    fails(dir.path(), &["report", "--reference", "gone.csv"], 1, &["gone.csv"]);
    fails(dir.path(), &["grid", "gone.toml"], 1, &["cannot read the grid gone.toml", "hint:"]);
    let grid = grid(dir.path(), "");
    fails(dir.path(), &["grid", &grid, "--gres", "gpu:1"], 1, &["--gres", "--launcher slurm"]);
    fails(dir.path(), &["grid", &grid, "--job", "9"], 1, &["--job 9", "2 jobs"]);
    fails(dir.path(), &["grid", &grid, "--workers", "0"], 2, &["--workers"]);
}

#[test]
fn jobs_of_one_task_train_on_datasets_of_other_sizes_and_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "set.task = { train_examples = 150, data_seed = 3 }\n");
    assert_eq!(statuses(&ok(dir.path(), &["grid", &grid, "--json", "--quiet"])), ["done", "done"]);
    let found = files(&dir.path().join("datasets"));
    let training: Vec<&String> = found.iter().filter(|file| file.ends_with("train.parquet")).collect();
    let folder = |end: &str| format!("counting_samesymbol_mod10bos-{end}/train.parquet");
    assert_eq!(training, [&folder("n100-s0"), &folder("n150-s3")]);
}

/// Splits may be files, and their tables are called as `pipeline eval` calls them.
#[test]
fn a_job_whose_splits_are_files_is_done_once() {
    let dir = tempfile::tempdir().unwrap();
    let task = "counting_samesymbol_mod10bos";
    ok(dir.path(), &["data", "generate", "--task", task, "--train", "100", "-q"]);
    let found = files(dir.path()).into_iter().find(|file| file.ends_with("val.parquet")).unwrap();
    for copy in ["a/mine.parquet", "b/mine.parquet", "sweep.parquet"] {
        let copy = dir.path().join(copy);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(dir.path().join(&found), copy).unwrap();
    }
    let grid = grid(dir.path(), "");
    let text = fs::read_to_string(dir.path().join(&grid)).unwrap();
    let splits = "splits = ['a/mine.parquet', 'b/mine.parquet', 'sweep.parquet', 'val']";
    fs::write(dir.path().join(&grid), text.replace("[eval]\n", &format!("[eval]\n{splits}\n"))).unwrap();
    assert_eq!(statuses(&ok(dir.path(), &["grid", &grid, "--json", "-q"])), ["done", "done"]);
    for run in runs(dir.path()) {
        for name in ["a-mine", "b-mine", "split-sweep", "val"] {
            assert!(run.join(format!("eval/{name}-total.parquet")).is_file(), "{name}");
        }
    }
    assert_eq!(statuses(&ok(dir.path(), &["grid", &grid, "--dry-run", "--json", "-q"])), ["done", "done"]);
}

/// The folders of all runs.
fn runs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("runs")).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.join("config.toml").is_file()).collect()
}

fn wait_until(what: &str, mut come: impl FnMut() -> bool) {
    let start = Instant::now();
    while !come() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not come");
        sleep(Duration::from_millis(2));
    }
}

fn spawn(folder: &Path, arguments: &[&str]) -> Child {
    command(folder, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

/// The process that came first is stopped in its first job, until another one has done the second.
#[cfg(unix)]
#[test]
fn two_processes_train_no_job_of_a_grid_twice() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    let grid_run = ["grid", &grid, "--json", "-q"];
    let first = spawn(dir.path(), &grid_run);
    wait_until("the first run", || !runs(dir.path()).is_empty());
    signal("-STOP", first.id());
    assert_eq!(statuses(&ok(dir.path(), &grid_run)), ["elsewhere", "done"]);
    signal("-CONT", first.id());
    let first = first.wait_with_output().unwrap();
    assert_eq!(statuses(std::str::from_utf8(&first.stdout).unwrap()), ["done", "done"]);
    assert_eq!(runs(dir.path()).len(), 2, "a job was trained twice");
}

/// Children outlive a process that is killed, and are taken up by the next one.
#[cfg(unix)]
#[test]
fn a_grid_that_is_killed_at_any_moment_leaves_nothing_to_do_twice() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    let grid_run = ["grid", &grid, "--json", "-q"];
    for kill in 0..8 {
        let mut child = spawn(dir.path(), &grid_run);
        sleep(Duration::from_millis(40 + 53 * kill % 290));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(statuses(&ok(dir.path(), &grid_run)), ["done", "done"]);
    assert_eq!(runs(dir.path()).len(), 2, "a job was trained twice");
    let left: Vec<String> =
        files(dir.path()).into_iter().filter(|name| name.contains("runs/1") || name.contains("runs/0")).collect();
    assert!(!left.iter().any(|name| name.contains(".partial")), "{left:?}");
}

/// A process that was ended before it said that it is done, or before its picture, has left everything that counts.
#[test]
fn what_a_job_has_is_what_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    let grid_run = |more: &[&str]| ok(dir.path(), &[&["grid", &grid, "--json", "-q"], more].concat());
    assert_eq!(statuses(&grid_run(&[])), ["done", "done"]);
    let run = runs(dir.path())
        .into_iter()
        .find(|run| fs::read_to_string(run.join("config.toml")).unwrap().contains("\"rnn\""))
        .unwrap();
    let weights = run.join("checkpoints/epoch-0002-step-6/model.safetensors");
    let written = fs::metadata(&weights).unwrap().modified().unwrap();
    let status = fs::read_to_string(run.join("status.json")).unwrap();
    fs::write(run.join("status.json"), status.replace("finished", "running")).unwrap();
    assert_eq!(statuses(&grid_run(&["--dry-run"])), ["done", "done"]);
    // As an earlier version left it: the job had failed, since its run was finished.
    fs::remove_file(run.join("model.onnx")).unwrap();
    let failed = dir.path().join("runs/sweeps/toy/failed/counting_samesymbol_mod10bos-rnn-s7.json");
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    let failure = serde_json::json!({ "stage": "train", "message": "error: run is finished", "config": config });
    fs::create_dir_all(failed.parent().unwrap()).unwrap();
    fs::write(&failed, failure.to_string()).unwrap();
    assert_eq!(statuses(&grid_run(&["--dry-run"])), ["trained", "done"]);
    assert_eq!(statuses(&grid_run(&[])), ["done", "done"]);
    assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), written, "it was trained again");
    assert!(!failed.exists());

    fs::remove_file(run.join("eval/sweep.png")).unwrap();
    assert_eq!(statuses(&grid_run(&["--dry-run"])), ["exported", "done"]);
    assert_eq!(statuses(&grid_run(&[])), ["done", "done"]);
    assert!(run.join("eval/sweep.png").is_file());

    // A last checkpoint that is damaged is made again before it is exported.
    fs::remove_file(run.join("model.onnx")).unwrap();
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(statuses(&grid_run(&["--dry-run"])), ["half-trained", "done"]);
    assert_eq!(statuses(&grid_run(&[])), ["done", "done"]);
    assert!(fs::read(&weights).unwrap() == whole);
}

/// A result table with the column that says of which model it is.
fn set_fingerprint(table: &Path, fingerprint: &str) {
    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(File::open(table).unwrap());
    let batches: Vec<RecordBatch> = reader.unwrap().build().unwrap().map(|batch| batch.unwrap()).collect();
    let name = "model_fingerprint";
    let mut fields: Vec<Arc<Field>> =
        batches[0].schema().fields().iter().filter(|f| f.name() != name).cloned().collect();
    let kept = fields.clone();
    fields.push(Arc::new(Field::new(name, DataType::Utf8, true)));
    let schema = Arc::new(Schema::new(fields));
    let file = File::create(table).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, Arc::clone(&schema), None).unwrap();
    for batch in batches {
        let mut columns: Vec<ArrayRef> =
            kept.iter().map(|f| Arc::clone(batch.column_by_name(f.name()).unwrap())).collect();
        columns.push(Arc::new(StringArray::from(vec![fingerprint; batch.num_rows()])));
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
    }
    writer.close().unwrap();
}

/// `cp -r`, `git clone` and `rsync` without `-t` give files the times of the copy, in any order.
#[test]
fn copied_runs_are_as_far_as_their_originals() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    let grid_run = |more: &[&str]| ok(dir.path(), &[&["grid", &grid, "--json", "-q"], more].concat());
    assert_eq!(statuses(&grid_run(&[])), ["done", "done"]);
    for run in runs(dir.path()) {
        let fingerprint = evaluators::model_fingerprint(&run.join("model.onnx")).unwrap();
        for table in ["sweep", "ood_test-total"] {
            set_fingerprint(&run.join(format!("eval/{table}.parquet")), &fingerprint);
        }
        let order = ["eval/sweep.parquet", "eval/ood_test-total.parquet", "model.onnx", "status.json"];
        for (age, name) in order.iter().rev().enumerate() {
            let file = File::options().write(true).open(run.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600 * (age as u64 + 1))).unwrap();
        }
    }
    assert_eq!(statuses(&grid_run(&["--dry-run"])), ["done", "done"]);
    // A table of another model is stale, and be it new.
    set_fingerprint(&runs(dir.path())[0].join("eval/ood_test-total.parquet"), "0123456789abcdef");
    let stale = statuses(&grid_run(&["--dry-run"]));
    assert!(stale.contains(&"exported".into()) && stale.contains(&"done".into()), "{stale:?}");
}

/// Two runs with one config and seed are one sample of it, not two.
#[test]
fn a_report_counts_one_run_for_a_config_and_a_seed() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    ok(dir.path(), &["grid", &grid, "-q"]);
    let report = |output: &str| -> (Value, String) {
        let printed = ok(dir.path(), &["report", "--json", "-q", "-o", output]).parse().unwrap();
        (printed, fs::read_to_string(dir.path().join(output)).unwrap())
    };
    let (alone, tables) = report("alone.md");
    assert_eq!((&alone["runs"], &alone["notices"]), (&2.into(), &serde_json::json!([])));
    for (copy, run) in (0..).zip(runs(dir.path())) {
        for name in files(&run) {
            let path = dir.path().join(format!("runs/0101_00000{copy}")).join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(run.join(&name), path).unwrap();
        }
        // On a device that says nothing about what was learned.
        let config = dir.path().join(format!("runs/0101_00000{copy}/config.toml"));
        fs::write(&config, fs::read_to_string(&config).unwrap().replace("log_every = 2", "log_every = 3")).unwrap();
    }
    let (twice, same) = report("twice.md");
    assert_eq!((&twice["runs"], &twice["cells"]), (&2.into(), &2.into()), "{twice}");
    let notices: Vec<&str> = twice["notices"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert!(
        notices.len() == 2 && notices.iter().all(|n| n.contains("1 run(s) with the config and seed of another")),
        "{notices:?}"
    );
    let rows = |text: &str| text.lines().filter(|line| line.starts_with("| ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rows(&same), rows(&tables));
}

/// The child of a process, once it runs its own program: who stops it before that stops its parent, which waits for it.
#[cfg(target_os = "linux")]
fn child_of(process: u32) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?.map(|thread| thread.unwrap().path());
    let children = threads.filter_map(|thread| fs::read_to_string(thread.join("children")).ok());
    let child = children.filter_map(|children| children.split(' ').next()?.parse().ok()).next()?;
    let command = |process: u32| fs::read(format!("/proc/{process}/cmdline")).ok();
    (command(child)? != command(process)?).then_some(child)
}

#[cfg(target_os = "linux")]
#[test]
fn a_grid_that_is_asked_to_stop_waits_until_its_job_has_saved() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "set.train.max_steps = 1000000\nset.train.epochs = 1000000");
    for (option, signals) in [("--job", "-TERM"), ("--workers", "-TERM"), ("--job", "-HUP"), ("--job", "-USR1")] {
        let arguments = ["grid", &grid, option, "1", "--json", "-q"];
        let before = runs(dir.path());
        // Without --job there is an RNN before it that ends.
        let grid_run = spawn(dir.path(), &arguments);
        let is_long =
            |run: &&PathBuf| fs::read_to_string(run.join("config.toml")).unwrap().contains("max_steps = 1000000");
        let saved = |run: &PathBuf| fs::read_dir(run.join("checkpoints")).map_or(0, |entries| entries.count());
        let steps = before.iter().find(is_long).map_or(0, saved);
        wait_until("a checkpoint", || runs(dir.path()).iter().find(is_long).is_some_and(|run| saved(run) > steps + 2));
        let run = runs(dir.path()).into_iter().find(|run| is_long(&run)).unwrap();
        let log = dir.path().join("runs/sweeps/toy/logs/counting_samesymbol_mod10bos-lstm-s7-train.log");
        assert!(fs::read_to_string(log).unwrap().contains("step"), "the log is written while the job trains");
        let child = child_of(grid_run.id()).unwrap();
        signal(signals, grid_run.id());
        let ran: crate::common::Ran = grid_run.wait_with_output().unwrap().into();
        check_failure(&ran, &arguments, 1, &["interrupted", "hint: the same command continues"]);
        assert!(ran.stdout.contains("interrupted"), "{}", ran.stdout);
        assert!(!Path::new(&format!("/proc/{child}")).exists(), "the child was left behind");
        let handle = run.file_name().unwrap().to_str().unwrap();
        let shown: Value = ok(dir.path(), &["runs", "show", handle, "--json"]).parse().unwrap();
        assert_eq!(shown["status"], "interrupted");
        assert!(!dir.path().join("runs/sweeps/toy/failed").exists(), "that is no failure");
    }
    // Asked once more, after a while, it ends the job at once, and is the last to go.
    let mut grid_run = spawn(dir.path(), &["grid", &grid, "--job", "1"]);
    wait_until("the child", || child_of(grid_run.id()).is_some());
    let child = child_of(grid_run.id()).unwrap();
    signal("-STOP", child);
    signal("-TERM", grid_run.id());
    wait_until("the end", || {
        sleep(Duration::from_millis(1300)); // more than a second after it handled the first
        grid_run.try_wait().unwrap().is_some() || {
            signal("-TERM", grid_run.id());
            false
        }
    });
    let ran: crate::common::Ran = grid_run.wait_with_output().unwrap().into();
    check_failure(&ran, &["grid"], 1, &["interrupted"]);
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "the child was left behind");
    // The child alone: whoever stopped it did not want the grid to call that a failure.
    let grid_run = spawn(dir.path(), &["grid", &grid, "--job", "1"]);
    wait_until("the child", || child_of(grid_run.id()).is_some());
    let child = child_of(grid_run.id()).unwrap();
    sleep(Duration::from_millis(1500)); // it listens by now
    signal("-TERM", child);
    let ran: crate::common::Ran = grid_run.wait_with_output().unwrap().into();
    check_failure(&ran, &["grid"], 1, &["interrupted", "hint: the same command continues"]);
    assert!(!dir.path().join("runs/sweeps/toy/failed").exists(), "that is no failure");
}

#[test]
fn a_seed_that_is_none_is_named_with_its_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = grid(dir.path(), "");
    let text = fs::read_to_string(&path).unwrap();
    let limit = "seeds go up to 9223372036854775807";
    for (seed, shown) in [
        ("9223372036854775808", "seeds 9223372036854775808"),
        ("-1", "seeds -1"),
        ("1.5", "seeds 1.5"),
        ("'7'", "seeds \"7\""),
    ] {
        fs::write(&path, text.replace("seeds = [7]", &format!("seeds = [7, {seed}]"))).unwrap();
        fails(dir.path(), &["grid", &path], 1, &["toy.toml", shown, limit, "hint:"]);
    }
    fs::write(&path, text.replace("max_steps = 6", "seed = 9223372036854775808")).unwrap();
    fails(dir.path(), &["grid", &path], 1, &["toy.toml", "train.seed 9223372036854775808", limit]);
    fs::write(&path, &text).unwrap();
    let config = dir.path().join("mine.toml");
    let rnn = fs::read_to_string(repository("configs/rnn.toml")).unwrap();
    let too_large = "9223372036854775808";
    for (set, shown) in [
        ("train.seed=9223372036854775808", "--set train.seed 9223372036854775808"),
        ("task.data_seed=-3", "task.data_seed -3"),
    ] {
        fails(dir.path(), &["grid", &path, "--set", set], 1, &[shown, limit]);
        fails(dir.path(), &["train", "--config", &repository("configs/rnn.toml"), "--set", set], 1, &[shown, limit]);
    }
    fs::write(&config, rnn.replace("seed = 1234", &format!("seed = {too_large}"))).unwrap();
    let with_seed = fs::read_to_string(&config).unwrap();
    assert!(with_seed.contains(too_large));
    fails(dir.path(), &["train", "--config", "mine.toml"], 1, &["mine.toml", "train.seed 9223372036854775808", limit]);
    let option = ["train", "--config", &repository("configs/rnn.toml"), "--seed", too_large];
    fails(dir.path(), &option, 1, &["--seed 9223372036854775808", limit]);
}

/// A lock that cannot be had for another reason than another process is no reason to train without.
#[test]
fn a_grid_without_locks_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    fs::create_dir_all(dir.path().join("runs/sweeps")).unwrap();
    fs::write(dir.path().join("runs/sweeps/.locks"), "no folder").unwrap();
    fails(dir.path(), &["grid", &grid, "-q"], 1, &[".locks"]);
    assert!(runs(dir.path()).is_empty());
    fs::remove_dir_all(dir.path().join("runs")).unwrap();
    let lock = dir.path().join("runs/sweeps/toy/cells/counting_samesymbol_mod10bos-rnn-s7.lock");
    fs::create_dir_all(&lock).unwrap();
    fails(dir.path(), &["grid", &grid, "-q"], 1, &["cannot lock", "rnn-s7.lock", "hint:"]);
}
