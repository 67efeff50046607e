//! Results of runs, and reports beside them.

use super::*;
use crate::common::tiny_training;
use arrow::array::{Array, ArrayRef};
use arrow::compute::cast;
use arrow::datatypes::{Field, Schema};
use parquet::arrow::ArrowWriter;
use std::path::PathBuf;
use std::sync::Arc;

/// An exported and evaluated run.
fn with_run() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let config = repository("configs/quickstart.toml");
    let handle = ok(dir.path(), &tiny_training(&config, &["-q"])).lines().next().unwrap().to_owned();
    ok(dir.path(), &["export", "-q", "--no-verify"]);
    ok(dir.path(), &["eval", "-q", "--lengths", "1..80", "--split", "val"]);
    let run = dir.path().join("runs").join(handle);
    (dir, run)
}

/// The file as an earlier version wrote it: unsigned integers, no version.
fn make_old(path: &Path) {
    let new = table(path);
    let kind = |field: &Field| match (field.name().as_str(), field.data_type()) {
        ("length" | "num_layers" | "hidden_size", DataType::Int64) => DataType::UInt32,
        (_, DataType::Int64) => DataType::UInt64,
        (_, other) => other.clone(),
    };
    let fields = new.schema().fields().iter().map(|f| f.as_ref().clone().with_data_type(kind(f))).collect::<Vec<_>>();
    assert!(fields.iter().any(|field| field.data_type().is_unsigned_integer()), "{}", path.display());
    let columns: Vec<ArrayRef> =
        new.columns().iter().zip(&fields).map(|(c, f)| cast(c, f.data_type()).unwrap()).collect();
    assert!(columns.iter().zip(new.columns()).all(|(old, new)| old.null_count() == new.null_count()));
    let old = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), old.schema(), None).unwrap();
    writer.write(&old).unwrap();
    writer.close().unwrap();
}

#[test]
fn old_tables_are_read_and_an_old_curve_is_gone_on_with() {
    let (dir, run) = with_run();
    let schema = table(&run.join("metrics.parquet")).schema();
    assert!(schema.fields().iter().all(|field| !field.data_type().is_unsigned_integer()), "{schema:?}");
    assert_eq!(schema.metadata()["table_version"], "2");
    let seen = || {
        ok(dir.path(), &["report", "-o", "report.md", "-q"]);
        let shown = ok(dir.path(), &["runs", "show", "--json"]);
        (fs::read_to_string(dir.path().join("report.md")).unwrap(), shown)
    };
    let before = seen();
    for name in ["metrics", "eval/sweep", "eval/val", "eval/val-total"] {
        make_old(&run.join(format!("{name}.parquet")));
    }
    let after = seen();
    assert_eq!(before.0, after.0);
    assert_eq!(before.1, after.1);

    let rows = table(&run.join("metrics.parquet")).num_rows();
    let handle = run.file_name().unwrap().to_str().unwrap();
    ok(dir.path(), &["train", "--resume", handle, "--set", "train.max_steps=8", "--set", "train.epochs=3", "-q"]);
    let curve = table(&run.join("metrics.parquet"));
    assert!(curve.num_rows() > rows);
    assert_eq!(curve.column_by_name("step").unwrap().data_type(), &DataType::Int64);
    assert_eq!(curve.column_by_name("step").unwrap().null_count(), 0);
}

#[test]
fn a_report_replaces_nothing_that_it_reads() {
    let (dir, run) = with_run();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("paper.csv"), "task,arch,split,seed,accuracy\n").unwrap();
    fs::hard_link(at("paper.csv"), at("paper.html")).unwrap();
    let reference = ["report", "--reference", "paper.csv", "-o", "paper.html"];
    fails(dir.path(), &reference, 1, &["paper.html is not overwritten", "published values", "hint:"]);
    fs::hard_link(run.join("eval/sweep.parquet"), at("sweep.md")).unwrap();
    fails(dir.path(), &["report", "-o", "sweep.md"], 1, &["sweep.md is not overwritten"]);
    assert!(!at("sweep-figures").exists());

    // figures below another folder than the page are found from there
    let figures = ["report", "-o", "out.v1/report.v1.md", "--figures", "my figures", "--json", "-q"];
    let document: serde_json::Value = serde_json::from_str(&ok(dir.path(), &figures)).unwrap();
    for file in document["files"].as_array().unwrap() {
        assert!(at(file.as_str().unwrap()).is_file(), "{file}");
    }
    let page = fs::read_to_string(at("out.v1/report.v1.md")).unwrap();
    let links: Vec<&str> = page.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(!links.is_empty());
    for link in links {
        assert!(link.starts_with("../my%20figures/"), "{link}");
        assert!(at("out.v1").join(link.replace("%20", " ")).is_file(), "{link}");
    }
}

/// Told by what files hold, not by what they are called.
#[test]
fn a_report_replaces_no_results_under_other_names_and_puts_no_figures_among_them() {
    let (dir, run) = with_run();
    let at = |name: &str| dir.path().join(name);
    let handle = run.file_name().unwrap().to_str().unwrap();
    fs::copy(run.join("metrics.parquet"), at("metrics-copy.html")).unwrap();
    fs::copy(fixture("counts_mod10"), at("model.md")).unwrap();
    let before = files(dir.path());
    fails(
        dir.path(),
        &["report", "-o", "metrics-copy.html"],
        1,
        &["metrics-copy.html is not overwritten: it is a Parquet file", "hint:"],
    );
    fails(dir.path(), &["report", "-o", "model.md"], 1, &["model.md is not overwritten: it is an ONNX model"]);
    fs::copy(run.join("metrics.parquet"), at("x.csv")).unwrap();
    let eval = ["eval", "--handle", handle, "--lengths", "1..5", "-o", "x.csv"];
    fails(dir.path(), &eval, 1, &["x.csv is not overwritten: it is a Parquet file", "hint:"]);
    fs::remove_file(at("x.csv")).unwrap();

    fs::create_dir(at("copied")).unwrap();
    fs::copy(run.join("eval/sweep.parquet"), at("copied/sweep.parquet")).unwrap();
    let (own, eval) = (format!("runs/{handle}"), format!("runs/{handle}/eval"));
    let checkpoints = format!("runs/{handle}/checkpoints");
    for folder in [&own[..], &eval, &checkpoints, "runs", "datasets", "copied"] {
        let parts = [&format!("nothing is written into {folder}: ")[..], "hint: name a folder of its own"];
        fails(dir.path(), &["report", "--figures", folder], 1, &parts);
    }
    fs::remove_dir_all(at("copied")).unwrap();
    assert_eq!(files(dir.path()), before);
    // an earlier report is replaced, and so are its figures
    for _ in 0..2 {
        ok(dir.path(), &["report", "-o", "page.md", "--figures", "figures", "-q"]);
    }
    ok(dir.path(), &["report", "-o", &format!("runs/{handle}/page.md"), "-q"]);
}

#[test]
fn places_that_cannot_be_written_are_noticed_first() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    // before the runs are looked for
    for more in [&["-o", "file/report.html"][..], &["--figures", "file/figures"]] {
        fails(dir.path(), &[&["report"], more].concat(), 1, &["cannot create the folder file", "hint:"]);
    }
    // before a dataset is generated
    let config = repository("configs/quickstart.toml");
    let train = tiny_training(&config, &["--runs-dir", "file/runs"]);
    fails(dir.path(), &train, 1, &["cannot create the folder file/runs"]);
    let grid = format!("tasks = ['{TASK}']\nseeds = [7]\n[[architecture]]\nconfig = '{config}'\n");
    fs::write(dir.path().join("grid.toml"), grid).unwrap();
    let grid = ["--runs-dir", "file/runs", "grid", "grid.toml"];
    fails(dir.path(), &grid, 1, &["file/runs"]);
    assert_eq!(files(dir.path()), ["file", "grid.toml"]);
}
