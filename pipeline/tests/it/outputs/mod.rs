//! The files that a command writes: every result in one of its own, nothing that is read or means something else is
//! replaced, and files that cannot be written are noticed before the work.
#![allow(clippy::unwrap_used)]

use crate::common::{command, fails, files, ok, repository, run};
use arrow::array::AsArray;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::{self, File};
use std::path::Path;

const TASK: &str = "counting_samesymbol_mod10bos";

fn fixture(name: &str) -> String {
    repository(&format!("evaluators/tests/fixtures/{name}.onnx"))
}

/// A folder with a copy of a model that counts.
fn with_model(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put_model(&dir.path().join(name), "counts_mod10");
    dir
}

fn put_model(path: &Path, of: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::copy(fixture(of), path).unwrap();
}

/// A few examples as a text file.
fn put_examples(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let line = |length: usize| {
        let labels: Vec<String> = (1..=length).map(|n| format!("\"{n}\"")).collect();
        format!("[[\"0\"{}], [\"-1\", {}]]\n", ", \"a\"".repeat(length), labels.join(", "))
    };
    fs::write(path, (1..=9).map(line).collect::<String>()).unwrap();
}

fn table(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

fn text(batch: &RecordBatch, column: &str) -> String {
    batch.column_by_name(column).unwrap().as_string::<i32>().value(0).to_owned()
}

/// Runs an evaluation and returns the files that it names, which are all that it left.
fn listed(folder: &Path, arguments: &[&str]) -> Vec<String> {
    let before = files(folder);
    let document = ok(folder, &[&["eval", "--lengths", "1..5", "--json", "-q"], arguments].concat());
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let one = [document.clone()];
    let results = document["results"].as_array().map_or(&one[..], Vec::as_slice);
    let named = results.iter().flat_map(|result| result["files"].as_array().unwrap());
    let mut named: Vec<String> = named.map(|file| file.as_str().unwrap().to_owned()).collect();
    named.sort();
    let left: Vec<String> = files(folder).into_iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(named, left, "the list is what was written");
    named
}

#[test]
fn names_with_dots_stay_whole() {
    let dir = with_model("lr0.01.onnx");
    put_model(&dir.path().join("lr0.02.onnx"), "breaks_at_60");
    let two = listed(dir.path(), &["--model", "lr0.01.onnx", "--model", "lr0.02.onnx", "--predictions"]);
    let of = |model: &str| {
        let kinds = ["sweep-predictions.parquet", "sweep.parquet", "sweep.png", "sweep.svg"];
        kinds.map(|kind| format!("{model}-{kind}"))
    };
    assert_eq!(two, [of("lr0.01"), of("lr0.02")].concat());

    let named = listed(dir.path(), &["--model", "lr0.01.onnx", "--split", "val", "-o", "out.v1.parquet"]);
    let expected = ["-val-total.parquet", "-val.parquet", ".parquet", ".png", ".svg"];
    assert_eq!(named, expected.map(|tail| format!("out.v1{tail}")));
    assert_eq!(text(&table(&dir.path().join("out.v1.parquet")), "split"), "sweep");
    assert_eq!(text(&table(&dir.path().join("out.v1-val.parquet")), "split"), "val");

    // what stands behind the last dot is no ending that anyone knows
    let named = listed(dir.path(), &["--model", "lr0.01.onnx", "--split", "val", "-o", "lr0.5"]);
    let expected = ["", "-val-total.parquet", "-val.parquet", ".png", ".svg"];
    assert_eq!(named, expected.map(|tail| format!("lr0.5{tail}")));
}

#[test]
fn models_of_one_name_have_results_of_their_own() {
    let dir = with_model("a/model.onnx");
    put_model(&dir.path().join("b/model.onnx"), "breaks_at_60");
    let models = ["--model", "a/model.onnx", "--model", "b/model.onnx"];
    let named = listed(dir.path(), &models);
    assert!(
        named.contains(&"a-model-sweep.parquet".into()) && named.contains(&"b-model-sweep.svg".into()),
        "{named:?}"
    );
    let named = listed(dir.path(), &[&models[..], &["--predictions", "-o", "both.csv"]].concat());
    assert!(named.contains(&"both-predictions-a-model.csv".into()), "{named:?}");
    assert!(named.contains(&"both-predictions-b-model.csv".into()), "{named:?}");
    let both = fs::read_to_string(dir.path().join("both.csv")).unwrap();
    assert_eq!(both.lines().count(), 1 + 2 * 5);

    // the same file twice is one model
    let twice = listed(dir.path(), &["--model", "a/model.onnx", "--model", "./a/model.onnx"]);
    assert_eq!(twice, ["model-sweep.parquet", "model-sweep.png", "model-sweep.svg"]);
}

#[test]
fn splits_that_are_called_alike_or_like_something_else() {
    let dir = with_model("m.onnx");
    for split in ["a/val.txt", "b/val.txt", "c/sweep.txt", "c/val-total.txt", "checkpoints.txt"] {
        put_examples(&dir.path().join(split));
    }
    let eval = ["--model", "m.onnx", "--task", TASK];
    let with = |splits: &[&'static str]| -> Vec<&'static str> {
        let splits = splits.iter().flat_map(|split| ["--split", *split]);
        eval.into_iter().chain(splits).collect()
    };
    let named = listed(dir.path(), &with(&["a/val.txt", "b/val.txt", "val", "a/val.txt"]));
    for split in ["a-val", "b-val", "val"] {
        for file in [format!("m-{split}.parquet"), format!("m-{split}-total.parquet")] {
            assert!(named.contains(&file), "{file} is not in {named:?}");
            assert_eq!(text(&table(&dir.path().join(&file)), "split"), split, "{file}");
        }
    }
    let sweep = fs::read(dir.path().join("m-sweep.parquet")).unwrap();
    fs::remove_file(dir.path().join("m-sweep.parquet")).unwrap();
    fs::remove_file(dir.path().join("m-sweep.png")).unwrap();
    fs::remove_file(dir.path().join("m-sweep.svg")).unwrap();
    let named = listed(dir.path(), &with(&["c/sweep.txt", "c/val-total.txt", "checkpoints.txt"]));
    for split in ["split-sweep", "val-total-split", "split-checkpoints"] {
        let file = format!("m-{split}.parquet");
        assert!(named.contains(&file), "{file} is not in {named:?}");
        assert_eq!(text(&table(&dir.path().join(&file)), "split"), split);
    }
    assert_eq!(fs::read(dir.path().join("m-sweep.parquet")).unwrap(), sweep);
}

#[test]
fn inputs_are_never_replaced() {
    let dir = with_model("m.onnx");
    let at = |name: &str| dir.path().join(name);
    ok(dir.path(), &["data", "generate", "--task", TASK, "--train", "50", "-q"]);
    let dataset = files(dir.path()).into_iter().find(|file| file.ends_with("ood_test.parquet")).unwrap();
    fs::copy(at(&dataset), at("my.parquet")).unwrap();
    fs::hard_link(at("my.parquet"), at("hard.parquet")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("my.parquet", at("soft.parquet")).unwrap();
    put_examples(&at("examples.txt"));
    fs::create_dir_all(at("runs/0101_000000")).unwrap();
    fs::write(at("runs/0101_000000/config.toml"), "").unwrap();
    put_model(&at("runs/0101_000000/model.onnx"), "counts_mod10");
    fs::write(at("runs/0101_000000/metrics.parquet"), "").unwrap();
    put_model(&at("odd.csv"), "counts_mod10");

    let before: Vec<(String, Vec<u8>)> =
        files(dir.path()).into_iter().map(|name| (name.clone(), fs::read(at(&name)).unwrap())).collect();
    let absolute = at("my.parquet").to_string_lossy().into_owned();
    let eval = ["eval", "--lengths", "1..5", "--task", TASK];
    let model = ["--model", "m.onnx"];
    let refused: [(&[&str], &[&str]); 10] = [
        (&["--model", "m.onnx", "-o", "m.onnx"], &["m.onnx", "result tables are"]),
        (&["--model", "odd.csv", "-o", "./odd.csv"], &["odd.csv is not overwritten: it is the model", "hint:"]),
        (&["--split", "my.parquet", "-o", "my.parquet"], &["it is the split my.parquet", "hint:"]),
        (&["--split", "my.parquet", "-o", &absolute], &["it is the split my.parquet"]),
        (&["--split", "my.parquet", "-o", "hard.parquet"], &["it is the split my.parquet"]),
        (&["--split", "my.parquet", "-o", "soft.parquet"], &["it is the split my.parquet"]),
        (&["--split", "soft.parquet", "-o", "my.parquet"], &["it is the split soft.parquet"]),
        (&["--split", "val", "-o", &dataset], &["it holds a dataset"]),
        (&["-o", "examples.txt"], &["it holds a dataset"]),
        (&["-o", "runs/0101_000000/metrics.parquet"], &["a part of run `0101_000000`"]),
    ];
    for (more, parts) in refused {
        let named = if more.contains(&"--model") { &[][..] } else { &model[..] };
        fails(dir.path(), &[&eval[..], named, more].concat(), 1, parts);
    }
    fails(dir.path(), &["eval", "--handle", "0101_000000", "-o", "runs/0101_000000/config.toml"], 1, &["config.toml"]);
    // without a sweep, -o only names other files, but it is an input anyway
    let only_split = ["eval", "--model", "m.onnx", "--task", TASK, "--split", "my.parquet", "-o", "my.parquet"];
    fails(dir.path(), &only_split, 1, &["it is the split"]);
    // and a name of our own can be an input
    fs::copy(at("my.parquet"), at("m-sweep.parquet")).unwrap();
    let own = [&eval[..], &model, &["--split", "m-sweep.parquet"]].concat();
    fails(dir.path(), &own, 1, &["m-sweep.parquet is not overwritten"]);
    fs::remove_file(at("m-sweep.parquet")).unwrap();
    for (name, bytes) in &before {
        assert!(fs::read(at(name)).unwrap() == *bytes, "{name} was changed");
    }
    assert_eq!(files(dir.path()).len(), before.len(), "nothing was written: {:?}", files(dir.path()));
}

#[test]
fn the_ending_says_the_format() {
    let dir = with_model("m.onnx");
    let eval = |more: &[&str]| {
        ok(dir.path(), &[&["eval", "--model", "m.onnx", "--lengths", "1..5", "-q"], more].concat());
    };
    let start = |name: &str| fs::read(dir.path().join(name)).unwrap()[..6].to_vec();
    eval(&["-o", "x.csv", "--split", "val"]);
    assert_eq!((start("x.csv"), start("x-val-total.csv")), (b"handle".to_vec(), b"handle".to_vec()));
    eval(&["-o", "x.ARROW"]);
    assert_eq!(start("x.ARROW"), b"ARROW1");
    eval(&["-o", "x.json"]);
    assert_eq!(start("x.json")[..2], *b"[{");
    eval(&["-o", "x.v1", "--format", "csv"]);
    assert_eq!(start("x.v1"), b"handle");
    eval(&["-o", "plain"]);
    assert_eq!(start("plain")[..4], *b"PAR1");

    let wrong = |more: &[&str], parts: &[&str]| {
        fails(dir.path(), &[&["eval", "--model", "m.onnx", "--lengths", "1..5"], more].concat(), 1, parts);
    };
    wrong(&["-o", "y.csv", "--format", "parquet"], &["-o y.csv", "--format parquet", "hint:"]);
    wrong(&["-o", "y.parquet", "--format", "json"], &["-o y.parquet", "--format json"]);
    wrong(&["-o", "y.xlsx"], &["-o y.xlsx", "hint:"]);
    wrong(&["-o", "folder/"], &["folder/", "directory"]);
    assert!(!files(dir.path()).iter().any(|file| file.starts_with('y')));
}

#[test]
fn what_cannot_be_written_is_noticed_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::write(dir.path().join("broken.onnx"), "loading this would be the first thing to fail").unwrap();
    fs::create_dir(dir.path().join("out-val-total.parquet")).unwrap();
    for output in ["file/out.parquet", "file/new/out.parquet"] {
        fails(dir.path(), &["eval", "--model", "broken.onnx", "-o", output], 1, &["cannot create the folder", "hint:"]);
    }
    let taken = ["eval", "--model", "broken.onnx", "--split", "val", "-o", "out.parquet"];
    fails(dir.path(), &taken, 1, &["out-val-total.parquet", "directory"]);
    let long = format!("{}.parquet", "x".repeat(250));
    fails(dir.path(), &["eval", "--model", "broken.onnx", "-o", &long], 1, &["File name too long"]);
    // folders that were made for nothing go again
    fails(dir.path(), &["eval", "--model", "broken.onnx", "-o", "new/deep/out.parquet"], 1, &["broken.onnx"]);
    assert!(!dir.path().join("new").exists());
    assert_eq!(files(dir.path()), ["broken.onnx", "file"]);
}

/// A run whose folder takes no files, as on a read-only mount: what belongs in `eval/` has no place there.
fn closed_run(folder: &Path) {
    let home = folder.join("runs/0101_000000");
    put_model(&home.join("model.onnx"), "counts_mod10");
    fs::write(home.join("config.toml"), "").unwrap();
    fs::write(home.join("eval"), "no folder").unwrap();
}

#[test]
fn a_read_only_run_is_swept_with_results_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    closed_run(dir.path());
    let eval = ["eval", "--handle", "0101_000000", "--lengths", "1..5"];
    fails(dir.path(), &eval, 1, &["cannot create the folder", "0101_000000/eval"]);
    let ran = run(dir.path(), &[&eval[..], &["-o", "out/here.parquet"]].concat());
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(table(&dir.path().join("out/here.parquet")).num_rows(), 5);
    let left = files(&dir.path().join("out"));
    assert_eq!(left, ["here.parquet", "here.png", "here.svg"], "and no journal");
}

#[test]
fn a_sweep_goes_on_without_a_journal() {
    let dir = with_model("m.onnx");
    fs::create_dir(dir.path().join(".m-sweep.progress")).unwrap();
    fs::create_dir(dir.path().join(".out.progress")).unwrap();
    for more in [&[][..], &["-o", "out.parquet"]] {
        let ran = run(dir.path(), &[&["eval", "--model", "m.onnx", "--lengths", "1..5"], more].concat());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains("has to start again"), "{}", ran.stderr);
    }
    assert!(dir.path().join("m-sweep.parquet").exists() && dir.path().join("out.parquet").exists());
}

#[test]
fn integers_are_signed_and_tables_have_a_version() {
    let dir = with_model("m.onnx");
    let eval = ["eval", "--model", "m.onnx", "--lengths", "1..5", "--split", "val", "--predictions", "-q"];
    ok(dir.path(), &[&eval[..], &["-o", "x.parquet"]].concat());
    let tables: Vec<String> = files(dir.path()).into_iter().filter(|file| file.ends_with(".parquet")).collect();
    assert_eq!(tables.len(), 5, "{tables:?}");
    let is_unsigned = |kind: &DataType| match kind {
        DataType::List(item) => item.data_type().is_unsigned_integer(),
        kind => kind.is_unsigned_integer(),
    };
    for name in tables {
        let schema = table(&dir.path().join(&name)).schema();
        let unsigned: Vec<_> = schema.fields().iter().filter(|field| is_unsigned(field.data_type())).collect();
        assert!(unsigned.is_empty(), "{name}: {unsigned:?}");
        assert_eq!(schema.metadata()["table_version"], "2", "{name}");
    }
    let lengths = table(&dir.path().join("x.parquet"));
    let lengths = lengths.column_by_name("length").unwrap().clone();
    let lengths = lengths.as_primitive::<arrow::datatypes::Int64Type>();
    assert_eq!(lengths.iter().map(|length| length.unwrap() - 3).collect::<Vec<_>>(), [-2, -1, 0, 1, 2]);
}

#[cfg(unix)]
mod unix;

#[cfg(feature = "train")]
mod training;
