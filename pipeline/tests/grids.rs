//! Sweeps over grids and reports of them, at toy size: what is left to do is seen, failures stay in their cells, damaged
//! files are named.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{fails, files, ok, repository, run};
use serde_json::Value;
use std::fs;
use std::path::Path;

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
fn a_sweep_does_what_is_left_to_do_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    let sweep = |more: &[&str]| ok(dir.path(), &[&["sweep", &grid, "--json", "--quiet"], more].concat());
    assert_eq!(statuses(&sweep(&["--dry-run"])), ["waiting", "waiting"]);
    assert_eq!(files(dir.path()), ["toy.toml"]);

    assert_eq!(statuses(&sweep(&[])), ["done", "done"]);
    let before = files(dir.path());
    let written = |path: &str| fs::metadata(dir.path().join(path)).unwrap().modified().unwrap();
    let results: Vec<&String> = before.iter().filter(|f| f.ends_with("sweep.parquet")).collect();
    assert_eq!(results.len(), 2);
    let times: Vec<_> = results.iter().map(|f| written(f)).collect();
    assert_eq!(statuses(&sweep(&["--workers", "2"])), ["done", "done"]);
    assert_eq!(files(dir.path()), before);
    assert_eq!(results.iter().map(|f| written(f)).collect::<Vec<_>>(), times, "nothing was made twice");

    // What goes missing is made again, from the stage where it was.
    let run = dir.path().join(Path::new(results[0]).parent().unwrap().parent().unwrap());
    fs::remove_file(dir.path().join(results[1])).unwrap();
    fs::remove_file(run.join("model.onnx")).unwrap();
    let left = statuses(&sweep(&["--dry-run"]));
    assert!(left.contains(&"trained".into()) && left.contains(&"exported".into()), "{left:?}");
    assert_eq!(statuses(&sweep(&[])), ["done", "done"]);
    assert_eq!(files(dir.path()), before);

    // Another length of the sweep is another evaluation of the same runs; other settings are other runs.
    let text = fs::read_to_string(&grid).unwrap();
    fs::write(&grid, text.replace("1..60", "1..70")).unwrap();
    assert_eq!(statuses(&sweep(&["--dry-run"])), ["exported", "exported"]);
    assert_eq!(statuses(&sweep(&["--dry-run", "--set", "train.max_steps=7"])), ["waiting", "waiting"]);
    let predicted: Value = sweep(&["--dry-run", "--set", "train.max_steps=12"]).parse().unwrap();
    assert!(predicted["cells"][0]["predicted_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(predicted["cells"][0]["predicted_from"], predicted_handle(dir.path(), "rnn"));
    // One cell alone, as a task of a job array.
    assert!(ok(dir.path(), &["sweep", &grid, "--cell", "1"]).contains("done"));
    assert_eq!(statuses(&sweep(&["--dry-run"])), ["exported", "done"]);
}

fn predicted_handle(folder: &Path, arch: &str) -> String {
    let runs: Value = ok(folder, &["runs", "--json"]).parse().unwrap();
    let run = runs.as_array().unwrap().iter().find(|r| r["arch"] == arch).unwrap();
    run["handle"].as_str().unwrap().to_owned()
}

#[test]
fn a_failure_stays_in_its_cell_until_it_is_to_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "set.train.init_from = 'gone.safetensors'");
    let printed = run(dir.path(), &["sweep", &grid, "--json", "--quiet"]);
    assert_eq!(statuses(&printed.stdout), ["done", "failed"]);
    assert_eq!(printed.status, 1);
    for part in ["1 of 2 cells failed", "lstm-s7: train:", "gone.safetensors", "hint:"] {
        assert!(printed.stderr.contains(part), "{part}: {}", printed.stderr);
    }
    let failure = dir.path().join("runs/sweeps/toy/failed/counting_samesymbol_mod10bos-lstm-s7.json");
    let first = fs::metadata(&failure).unwrap().modified().unwrap();
    fails(dir.path(), &["sweep", &grid, "-q"], 1, &["1 of 2 cells failed", "--retry"]);
    assert_eq!(fs::metadata(&failure).unwrap().modified().unwrap(), first, "it was left alone");
    fails(dir.path(), &["sweep", &grid, "-q", "--retry"], 1, &["1 of 2 cells failed"]);
    assert_ne!(fs::metadata(&failure).unwrap().modified().unwrap(), first, "it was tried again");
}

#[test]
fn a_report_names_what_it_cannot_read_and_shows_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let grid = grid(dir.path(), "");
    ok(dir.path(), &["sweep", &grid, "-q"]);
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
    fails(dir.path(), &["sweep", "gone.toml"], 1, &["cannot read the grid gone.toml", "hint:"]);
    let grid = grid(dir.path(), "");
    fails(dir.path(), &["sweep", &grid, "--gres", "gpu:1"], 1, &["--gres", "--launcher slurm"]);
    fails(dir.path(), &["sweep", &grid, "--cell", "9"], 1, &["--cell 9", "2 cells"]);
    fails(dir.path(), &["sweep", &grid, "--workers", "0"], 2, &["--workers"]);
}
