//! `pipeline data`: from a user's own task and a user's own files to datasets, and everything that may be wrong with them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{fails, files, ok};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

fn json(folder: &Path, arguments: &[&str]) -> Value {
    ok(folder, &[arguments, &["--json"]].concat()).parse().unwrap()
}

#[test]
fn every_task_is_listed_with_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let list = json(dir.path(), &["data", "list"]);
    let tasks = list.as_array().unwrap();
    let names: HashSet<&str> = tasks.iter().map(|task| task["name"].as_str().unwrap()).collect();
    assert_eq!((tasks.len(), names.len()), (68, 68));
    let find = |name: &str| tasks.iter().find(|task| task["name"] == name).unwrap();
    let bos = find("counting_samesymbol_mod10bos");
    assert_eq!(
        (&bos["family"], &bos["vocab_size"], &bos["parameters"]["bos"]),
        (&"modular".into(), &13.into(), &"true".into())
    );
    let splits = &find("counting_samesymbol_plain3_addbigram")["splits"];
    assert_eq!(splits.to_string(), r#"["train","val","ood_test","addbigram_test"]"#);
    let text = ok(dir.path(), &["data", "list"]);
    assert!(text.contains("counting_raspL") && text.contains("first_start=0"), "{text}");
}

#[test]
fn a_task_of_ones_own_is_generated_with_its_auxiliary_data() {
    let dir = tempfile::tempdir().unwrap();
    let task = "modular,modulus=7,auxiliary=addtable,train_max=14";
    let written = json(dir.path(), &["data", "generate", "--task", task, "--train", "1400", "--seed", "3"]);
    let name = "modular,auxiliary=addtable,modulus=7,train_max=14";
    assert_eq!(written["task"], name);
    let found: Vec<String> = files(&dir.path().join("datasets").join(name));
    assert_eq!(found, ["addtable_test.parquet", "ood_test.parquet", "train.parquet", "val.parquet"]);
    let train = json(dir.path(), &["data", "show", "--task", task, "--split", "train"]);
    assert_eq!((&train["examples"], &train["seed"], &train["imported"]), (&1539.into(), &3.into(), &false.into()));
    let shown = ok(dir.path(), &["data", "show", "--task", task, "--split", "addtable_test", "-n", "2"]);
    assert!(shown.contains("21 examples") && shown.contains("input  1 2") && shown.contains("labels 1 3"), "{shown}");
    assert!(shown.contains("\nlengths\n") && shown.contains("\nlabels\n"), "{shown}");
    fails(dir.path(), &["data", "show", "--task", task, "--split", "vall"], 1, &["vall.parquet", "No such file"]);
    fails(
        dir.path(),
        &["data", "generate", "--task", "modular,modolus=7"],
        1,
        &["`modolus`", "did you mean `modulus`?"],
    );
}

#[test]
fn files_are_imported_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let line = |n: usize| {
        let list =
            |item: &dyn Fn(usize) -> String| (1..=n).map(|i| format!("\"{}\"", item(i))).collect::<Vec<_>>().join(", ");
        format!("[[{}], [{}]]\n", list(&|_| "a".into()), list(&|i| ((i - 1) % 10 + 1).to_string()))
    };
    std::fs::write(dir.path().join("val.txt"), (1..=50).map(line).collect::<String>()).unwrap();
    std::fs::write(dir.path().join("long.txt"), line(2000)).unwrap();
    let import = |more: &[&'static str]| {
        [&["data", "import", "--task", "counting_samesymbol_mod10", "--check-labels"], more].concat()
    };
    let done = json(dir.path(), &import(&["val.txt", "long.txt"]));
    assert_eq!((&done["files"][0]["split"], &done["files"][0]["examples"]), (&"val".into(), &50.into()));
    let shown = json(dir.path(), &["data", "show", "--task", "counting_samesymbol_mod10", "--split", "long"]);
    assert_eq!(
        (&shown["imported"], &shown["lengths"][0][0], &shown["max_seen_len"]),
        (&true.into(), &"2000".into(), &2000.into())
    );
    let text = ok(dir.path(), &["data", "show", "val.txt", "-n", "1"]);
    assert!(text.contains("50 examples, 1275 tokens") && text.contains("input  a\n"), "{text}");

    fails(dir.path(), &import(&["val.txt"]), 1, &["is there already", "--force"]);
    ok(dir.path(), &import(&["val.txt", "--force"]));
    fails(dir.path(), &import(&["val.txt", "long.txt", "--split", "x"]), 1, &["--split names one split"]);
    fails(dir.path(), &import(&["val.txt", "--split", "../x"]), 1, &["is not that of a split", "hint:"]);
    fails(dir.path(), &import(&["gone.txt"]), 1, &["gone.txt", "No such file"]);
    std::fs::write(dir.path().join("bad.txt"), line(3).replace('3', "4")).unwrap();
    fails(
        dir.path(),
        &import(&["bad.txt"]),
        1,
        &["bad.txt is not imported: 1 of 1", "line 1: label 3 is `4`, but the rule gives `3`"],
    );
    let found = files(&dir.path().join("datasets/counting_samesymbol_mod10"));
    assert_eq!(found, ["long.parquet", "val.parquet"]);
}
