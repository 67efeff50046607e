//! Published tables, reproduced at toy size: what is missing is made, the rule of selection is applied, nothing is made twice.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use crate::common::{fails, files, ok, repository, run, tiny_training};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A table of two models, with a value that a model of chance cannot have, one that any has, and one of the end of training.
fn table(folder: &Path, more: &str) -> String {
    let path = folder.join("mine");
    fs::create_dir_all(&path).unwrap();
    let text = format!(
        "title = 'Toys'\nsource = 'nowhere'\nmetric = 'last_accuracy'\ndiffers = ['all of it']\n\
         [eval]\nlengths = '1..60'\nsplits = ['ood_test']\nsamples = 3\n\
         [[slice]]\nname = 'trained'\nlengths = '1..50'\n[[slice]]\nname = 'ood'\nsplit = 'ood_test'\n\
         [selection]\nrule = 'mean'\nruns = 2\n{more}\n\
         [set.task]\ntrain_examples = 100\n\
         [set.model]\nhidden_size = 8\n\
         [set.train]\nmax_steps = 6\nlog_every = 2\ndevice = 'cpu'\n\
         [row.mod10]\ntask = 'counting_samesymbol_mod10bos'\n\
         [column.RNN]\nset.model.arch = 'rnn'\n[column.LSTM]\nset.model.arch = 'lstm'\n"
    );
    fs::write(path.join("table.toml"), text).unwrap();
    let values = "row,column,slice,value,sd,runs,source\n\
                  mod10,RNN,trained,1.00,,,a paper\nmod10,RNN,ood,>=0,,,a theory\nmod10,LSTM,ood,<0.9,,,a theory\n";
    fs::write(path.join("values.csv"), values).unwrap();
    "mine".into()
}

fn document(printed: &str) -> Value {
    printed.parse().unwrap()
}

fn verdicts(document: &Value) -> Vec<(String, u64)> {
    let cells = document["cells"].as_array().unwrap().iter();
    cells.map(|c| (c["verdict"].as_str().unwrap().to_owned(), c["runs"].as_u64().unwrap())).collect()
}

#[test]
fn a_table_is_made_once_and_has_a_verdict_for_every_cell() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(dir.path(), "");
    let reproduce =
        |more: &[&str]| document(&ok(dir.path(), &[&["reproduce", &table, "--json", "--quiet"], more].concat()));
    let plan = reproduce(&["--dry-run"]);
    assert_eq!(plan["missing"].as_array().unwrap().len(), 4);
    assert!(plan["predicted_seconds"].as_f64().unwrap() > 0.0);
    assert!(verdicts(&plan).iter().all(|v| v == &("not run".to_owned(), 0)));
    assert_eq!(files(dir.path()), ["mine/table.toml", "mine/values.csv"], "a dry run writes nothing");

    // One row's cell first: the other is not run, and says so.
    let part = reproduce(&["--only", "mod10/RNN", "--seeds", "1"]);
    assert_eq!(verdicts(&part), [("outside (below)".to_owned(), 1), ("inside".to_owned(), 1)]);
    assert_eq!(reproduce(&["--dry-run"])["missing"].as_array().unwrap().len(), 3);

    let whole = reproduce(&["--workers", "2"]);
    let inside = || ("inside".to_owned(), 2);
    assert_eq!(verdicts(&whole), [("outside (below)".to_owned(), 2), inside(), inside()]);
    assert_eq!(whole["cells"][0]["values"][0], part["cells"][0]["values"][0], "the run that was there counts");
    assert_eq!(whole["cells"][0]["n_sequences"], 50, "one string of each length");
    let before = files(dir.path());
    assert!(before.contains(&"runs/published/mine.parquet".to_owned()), "{before:?}");
    let made = |name: &str| before.iter().filter(|f| f.ends_with(name)).count();
    assert_eq!((made("/model.onnx"), made("/sweep.parquet")), (4, 4));

    assert_eq!(reproduce(&[])["cells"], whole["cells"]);
    assert_eq!(files(dir.path()), before, "nothing is made twice");
    // Evaluations that are gone are made again, from the models that are there.
    let swept = before.iter().find(|f| f.ends_with("/sweep.parquet")).unwrap();
    fs::remove_file(dir.path().join(swept)).unwrap();
    assert_eq!(reproduce(&[])["cells"], whole["cells"]);
    assert_eq!(files(dir.path()), before);

    let csv = dir.path().join("out.csv");
    let text = ok(dir.path(), &["reproduce", &table, "-q", "-o", csv.to_str().unwrap()]);
    for part in ["Toys", "outside (below)", "2 of 2", "2 inside, 1 outside (below)", "differs: all of it"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Four runs at two slices, and three cells.
    assert_eq!(fs::read_to_string(csv).unwrap().lines().count(), 1 + 4 * 2 + 3);
}

#[test]
fn runs_that_do_not_fit_are_made_up_for_until_enough_were_tried() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(dir.path(), "tries = 3\nfit = { on = 'val', at_least = 1.0 }");
    let printed = ok(dir.path(), &["reproduce", &table, "--json", "-q", "--only", "mod10/RNN"]);
    let found = document(&printed);
    assert_eq!(verdicts(&found), [("no run fits".to_owned(), 0), ("no run fits".to_owned(), 0)]);
    assert_eq!((&found["cells"][0]["tried"], &found["cells"][0]["value"]), (&3.into(), &Value::Null));
    // With a condition that all meet, two runs are enough.
    let path = dir.path().join("mine/table.toml");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("at_least = 1.0", "at_least = 0.0")).unwrap();
    let found = document(&ok(dir.path(), &["reproduce", &table, "--json", "-q", "--only", "mod10"]));
    assert_eq!(verdicts(&found).iter().map(|v| v.1).collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(found["cells"][0]["tried"], 2);
}

#[test]
fn failed_runs_are_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(dir.path(), "");
    let set = ["--set", "train.init_from=gone.safetensors", "--only", "mod10/RNN"];
    let arguments = [&["reproduce", table.as_str(), "--json", "-q"], &set[..]].concat();
    let ran = run(dir.path(), &arguments);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert_eq!(verdicts(&document(&ran.stdout)), [("no run fits".to_owned(), 0), ("no run fits".to_owned(), 0)]);
    for part in ["2 runs failed", "mod10-RNN-s0: train:", "gone.safetensors", "--retry"] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
}

#[test]
fn tables_are_listed_and_wrong_names_answered() {
    let dir = tempfile::tempdir().unwrap();
    let listed = document(&ok(dir.path(), &["reproduce", "--list", "--json"]));
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    let mut folders: Vec<String> = fs::read_dir(repository("configs/published"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, folders, "every folder is part of the program");
    fails(dir.path(), &["reproduce", "huang"], 1, &["no published table `huang`", "hint:"]);
    fails(dir.path(), &["reproduce", "huang2024", "--only", "majorty"], 1, &["did you mean `majority`?"]);
    fails(dir.path(), &["reproduce", "chomsky", "-o", "table.html"], 1, &["no such format"]);
    let plan = document(&ok(dir.path(), &["reproduce", "huang2024", "--only", "bin_majority", "--dry-run", "--json"]));
    assert_eq!(plan["missing"].as_array().unwrap().len(), 10);
    assert!(files(dir.path()).is_empty());
}

/// Evaluations every two steps; the first two of them reach what is asked for.
#[test]
fn training_ends_where_it_is_good_enough_and_the_run_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let config = repository("configs/rnn.toml");
    let stop = "train.stop_at={ metric = 'accuracy', value = 0.0001, evaluations = 2 }";
    let more = ["--set", "train.eval_every=2", "--set", stop, "--set", "optimizer.lr=0.01", "--json"];
    let trained = document(&ok(dir.path(), &tiny_training(&config, &more)));
    let trained = if trained.is_array() { trained[0].clone() } else { trained };
    assert_eq!(trained["steps"], 4, "{trained}");
    let handle = trained["handle"].as_str().unwrap();
    let runs = document(&ok(dir.path(), &["runs", "--json"]));
    assert_eq!((&runs[0]["status"], &runs[0]["steps"]), (&"finished".into(), &4.into()), "{runs}");
    fails(dir.path(), &["train", "--resume", handle], 1, &["is finished: 4 of 6 steps", "train.stop_at was reached"]);
    ok(dir.path(), &["export", "--handle", handle, "--quiet"]);

    // Ended after its checkpoint, before it could say that it was done.
    let status = dir.path().join("runs").join(handle).join("status.json");
    let told = fs::read_to_string(&status).unwrap();
    fs::write(&status, told.replace("finished", "running").replace("\"total_steps\":4", "\"total_steps\":6")).unwrap();
    assert_ne!(fs::read_to_string(&status).unwrap(), told);
    ok(dir.path(), &["train", "--resume", handle, "--quiet"]);
    let runs = document(&ok(dir.path(), &["runs", "--json"]));
    assert_eq!((&runs[0]["status"], &runs[0]["steps"]), (&"finished".into(), &4.into()), "{runs}");

    // With a higher aim it goes on, and ends as a run that had that aim from the start.
    let higher = "train.stop_at={ metric = 'accuracy', value = 1.0 }";
    ok(dir.path(), &["train", "--resume", handle, "--set", higher, "--quiet"]);
    let from_start = ["--set", "train.eval_every=2", "--set", higher, "--set", "optimizer.lr=0.01", "--json"];
    let other = document(&ok(dir.path(), &tiny_training(&config, &from_start)));
    let other = if other.is_array() { other[0].clone() } else { other };
    assert_eq!(other["steps"], 6);
    let weights = |handle: &str| {
        let folder = dir.path().join("runs").join(handle).join("checkpoints");
        let last = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).find(|p| p.ends_with("epoch-0002-step-6"));
        fs::read(last.unwrap().join("model.safetensors")).unwrap()
    };
    assert!(weights(handle) == weights(other["handle"].as_str().unwrap()));
}
