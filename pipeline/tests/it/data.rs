//! `pipeline data`: from a user's own task and a user's own files to datasets, and everything that may be wrong with them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::{fails, files, ok, repository, run};
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
    assert_eq!(tasks.len(), names.len());
    assert_eq!(names.iter().filter(|name| !name.contains('/')).count(), 68);
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
    let folder = "modular-auxiliary.addtable-modulus.7-train_max.14-n1400-s3";
    let found: Vec<String> = files(&dir.path().join("datasets").join(folder));
    assert_eq!(found, ["addtable_test.parquet", "ood_test.parquet", "train.parquet", "val.parquet"]);
    let path = format!("datasets/{folder}/train.parquet");
    assert_eq!((&written["files"][0]["path"], &written["files"][0]["examples"]), (&path.into(), &1539.into()));
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
    // one of two is wrong: neither is imported
    std::fs::write(dir.path().join("first.txt"), std::fs::read(dir.path().join("val.txt")).unwrap()).unwrap();
    fails(dir.path(), &import(&["first.txt", "bad.txt"]), 1, &["bad.txt is not imported"]);
    let folder = Path::new(done["files"][0]["path"].as_str().unwrap()).parent().unwrap().to_owned();
    let names = std::fs::read_dir(dir.path().join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 2, "val and long");
    let found = files(&dir.path().join("datasets/counting_samesymbol_mod10"));
    assert_eq!(found, ["long.parquet", "val.parquet"]);
}

const TASK: &str = "counting_samesymbol_mod10bos";

/// The path of a file among the twelve examples as other programs write them.
fn foreign(name: &str) -> String {
    repository(&format!("data/tests/fixtures/{name}"))
}

fn model(name: &str) -> String {
    repository(&format!("evaluators/tests/fixtures/{name}.onnx"))
}

#[test]
fn datasets_of_other_sizes_seeds_and_settings_lie_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("modular,modulus=7,train_max={}", "9".repeat(7));
    let mut paths = HashSet::new();
    for (task, train, seed) in [
        (TASK, "50", "0"),
        (TASK, "100", "0"),
        (TASK, "100", "1"),
        ("modular,modulus=7,train_max=14", "100", "0"),
        ("modular,modulus=8,train_max=14", "100", "0"),
        ("modular,bos=true,modulus=8,train_max=14", "100", "0"),
    ] {
        let written = json(dir.path(), &["data", "generate", "--task", task, "--train", train, "--seed", seed]);
        for file in written["files"].as_array().unwrap() {
            let path = file["path"].as_str().unwrap();
            assert!(paths.insert(path.to_owned()), "{path} is written twice");
            assert!(path.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c)), "{path}");
            assert!(Path::new(path).components().all(|c| c.as_os_str().len() < 144));
        }
    }
    let found: HashSet<String> = files(dir.path()).into_iter().collect();
    assert_eq!(found, paths, "and none replaced another");
    let again = ["data", "generate", "--task", TASK, "--train", "50"];
    fails(dir.path(), &again, 1, &["counting_samesymbol_mod10bos-n50-s0 is there already", "--force"]);
    // what is missing of a dataset is made, what is there stays
    std::fs::remove_file(dir.path().join("datasets/counting_samesymbol_mod10bos-n50-s0/val.parquet")).unwrap();
    ok(dir.path(), &again);
    assert_eq!(files(dir.path()).len(), paths.len());
    // all of them have the same validation split, but not the same training split
    let shown = json(dir.path(), &["data", "show", "--task", TASK, "--split", "val"]);
    assert_eq!((&shown["examples"], &shown["seed"]), (&300.into(), &0.into()));
    let show = ["data", "show", "--task", TASK, "--split", "train"];
    fails(
        dir.path(),
        &show,
        1,
        &["several seeds or sizes", "-n50-s0/train.parquet", "-n100-s0/train.parquet", "hint:"],
    );
    // settings that make a name longer than file names can be
    let ran = run(dir.path(), &["data", "generate", "--task", &long, "--train", "100"]);
    assert!(!ran.stderr.contains("File name too long"), "{}", ran.stderr);
}

#[test]
fn files_of_other_programs_are_scored_like_the_original() {
    let dir = tempfile::tempdir().unwrap();
    let line = |n: usize| {
        let list = |first: &str, item: &dyn Fn(usize) -> String| {
            std::iter::once(first.to_owned())
                .chain((1..=n).map(item))
                .map(|t| format!("\"{t}\""))
                .collect::<Vec<_>>()
                .join(", ")
        };
        format!("[[{}], [{}]]\n", list("0", &|_| "a".into()), list("-1", &|i| ((i - 1) % 10 + 1).to_string()))
    };
    std::fs::write(dir.path().join("original.txt"), (1..=12).map(line).collect::<String>()).unwrap();
    let score = |model: &str, file: &str| {
        let arguments = ["eval", "--model", model, "--task", TASK, "--split", file, "-o", "out.parquet", "-q"];
        let found = json(dir.path(), &arguments);
        let mut split = found["splits"][0].clone();
        split.as_object_mut().unwrap().remove("split");
        split
    };
    let model = model("half_right"); // draws positions, so that it is 10 passes
    let original = score(&model, "original.txt");
    let accuracy = original["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.0 && accuracy < 1.0 && original["n_sequences"] == 120, "{original}");
    for name in [
        "snappy.parquet",
        "brotli.parquet",
        "large_list.parquet",
        "fixed_size_list.parquet",
        "masked.parquet",
        "other_order.parquet",
        "polars.arrow",
        "stream.arrow",
        "lines.json",
        "list.json",
        "arrays.csv",
        "spark.parquet",
        "hugging_face",
    ] {
        assert_eq!(score(&model, &foreign(name)), original, "{name}");
        let shown = json(dir.path(), &["data", "show", &foreign(name), "--task", TASK]);
        assert_eq!((&shown["examples"], &shown["lengths"][11]), (&12.into(), &serde_json::json!(["12", 1])), "{name}");
    }
    // without its task, a file shows its ids
    let shown = ok(dir.path(), &["data", "show", &foreign("snappy.parquet"), "-n", "1"]);
    assert!(shown.contains("task unknown") && shown.contains("input  0 12\n"), "{shown}");
    for (file, part) in
        [("wrong_vocab.parquet", "token 12 of its vocabulary is `c`"), ("no_labels.parquet", "no column `labels`")]
    {
        let file = foreign(file);
        let arguments = ["eval", "--model", &model, "--task", TASK, "--split", &file];
        let ran = run(dir.path(), &arguments);
        crate::common::check_failure(&ran, &arguments, 1, &[part, "hint:"]);
        assert!(!ran.stderr.contains("--force") && !ran.stderr.contains("damaged"), "{}", ran.stderr);
    }
}

#[test]
fn folders_are_imported_as_one_split_or_as_those_that_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let import =
        |more: &[&str]| json(dir.path(), &[&["data", "import", "--task", TASK, "--check-labels"], more].concat());
    import(&[&foreign("spark.parquet"), "--split", "spark"]);
    let splits = import(&[&foreign("hugging_face_splits")]);
    let names: Vec<&str> = splits["files"].as_array().unwrap().iter().map(|f| f["split"].as_str().unwrap()).collect();
    assert_eq!(names, ["train", "validation"]);
    let found = files(&dir.path().join("datasets").join(TASK));
    assert_eq!(found, ["spark.parquet", "train.parquet", "validation.parquet"]);
    // and are found by their name
    let model = model("half_right");
    let scored = json(dir.path(), &["eval", "--model", &model, "--task", TASK, "--split", "spark", "-o", "x.parquet"]);
    assert_eq!((&scored["splits"][0]["split"], &scored["splits"][0]["n_sequences"]), (&"spark".into(), &120.into()));
}

#[cfg(feature = "train")]
mod training {
    use super::*;
    use crate::common::tiny_training;

    /// The validation split of the dataset that a run was trained on.
    fn scored(folder: &Path, handle: &str) -> Value {
        ok(folder, &["export", "--handle", handle, "-q"]);
        json(folder, &["eval", "--handle", handle, "--split", "val", "-q"])["splits"][0].clone()
    }

    #[test]
    fn every_config_finds_its_own_dataset() {
        let dir = tempfile::tempdir().unwrap();
        let config = repository("configs/rnn.toml");
        let task = ["--task", "counting_selective_10items2bos"];
        let train = |more: &[&str]| {
            let arguments = [&task, more, &["--json", "-q"]].concat();
            let printed = ok(dir.path(), &tiny_training(&config, &arguments));
            printed.parse::<Value>().unwrap()["handle"].as_str().unwrap().to_owned()
        };
        let runs = [train(&[]), train(&["--set", "task.train_examples=150"]), train(&["--set", "task.data_seed=5"])];
        let folders: HashSet<String> =
            files(&dir.path().join("datasets")).iter().map(|f| f.split('/').next().unwrap().to_owned()).collect();
        let name = |end: &str| format!("counting_selective_10items2bos-{end}");
        assert_eq!(folders, HashSet::from([name("n100-s0"), name("n150-s0"), name("n100-s5")]));
        // each is evaluated on the validation split that it was trained beside
        let losses = runs.map(|handle| scored(dir.path(), &handle)["loss"].as_f64().unwrap());
        for (seed, loss) in [("0", losses[0]), ("5", losses[2])] {
            let file = format!("datasets/{}/val.parquet", name(&format!("n100-s{seed}")));
            assert!(dir.path().join(&file).is_file());
            assert!(loss.is_finite());
        }
        assert_ne!(losses[0], losses[2]);
    }

    #[test]
    fn a_dataset_of_generator_1_is_trained_on_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("datasets").join(TASK);
        std::fs::create_dir_all(&folder).unwrap();
        for split in ["train", "val", "ood_test"] {
            let file = format!("{split}.parquet");
            std::fs::copy(foreign(&format!("generator1/{file}")), folder.join(&file)).unwrap();
        }
        let before: Vec<Vec<u8>> = files(&folder).iter().map(|f| std::fs::read(folder.join(f)).unwrap()).collect();
        let config = repository("configs/rnn.toml");
        let train = |more: &[&'static str]| {
            ok(dir.path(), &tiny_training(&config, &[&["--task", TASK, "-q", "--json"], more].concat()))
        };
        let weights = |printed: &str| {
            let run = printed.parse::<Value>().unwrap()["run"].as_str().unwrap().to_owned();
            std::fs::read(dir.path().join(run).join("checkpoints/epoch-0002-step-4/model.safetensors")).unwrap()
        };
        let small = ["--set", "task.train_examples=50"];
        let old = weights(&train(&small));
        assert_eq!(files(&dir.path().join("datasets")).len(), 3, "nothing was generated");
        // other sizes get a folder of their own
        train(&[]);
        let found = files(&dir.path().join("datasets"));
        assert_eq!(found.iter().filter(|f| f.starts_with("counting_samesymbol_mod10bos-n100-s0/")).count(), 3);
        let after: Vec<Vec<u8>> = files(&folder).iter().map(|f| std::fs::read(folder.join(f)).unwrap()).collect();
        assert_eq!(before, after);
        // the examples are the same: so is what is learnt from them
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(weights(&train(&small)) == old);
    }

    #[test]
    fn what_lies_in_the_place_of_a_dataset_is_neither_used_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let generate = |train: &str| ok(dir.path(), &["data", "generate", "--task", TASK, "--train", train]);
        generate("100");
        generate("200");
        let file = |n: &str| dir.path().join(format!("datasets/{TASK}-n{n}-s0/train.parquet"));
        std::fs::copy(file("200"), file("100")).unwrap();
        let config = repository("configs/rnn.toml");
        let arguments = tiny_training(&config, &["--task", TASK]);
        fails(
            dir.path(),
            &arguments,
            1,
            &["holds 200 examples", "100 of counting_samesymbol_mod10bos (seed 0", "--force"],
        );
        assert_eq!(std::fs::read(file("100")).unwrap(), std::fs::read(file("200")).unwrap());
        assert!(!dir.path().join("runs").exists());
        ok(dir.path(), &["data", "generate", "--task", TASK, "--train", "100", "--force"]);
        ok(dir.path(), &arguments);
    }

    #[test]
    fn imported_splits_are_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = foreign("polars.parquet");
        let import = |split: &str| ok(dir.path(), &["data", "import", "--task", TASK, &file, "--split", split]);
        import("train");
        import("val");
        let config = repository("configs/rnn.toml");
        let arguments = tiny_training(&config, &["--task", TASK]);
        fails(dir.path(), &arguments, 1, &["was imported, but there is no", "ood_test.parquet"]);
        import("ood_test");
        ok(dir.path(), &arguments);
        assert_eq!(files(&dir.path().join("datasets")).len(), 3, "nothing was generated");
    }
}

/// Padding is never scored, regardless of the mask's values and its labels: a model that counts scores 100 %.
#[test]
fn padding_of_a_split_is_not_scored() {
    let dir = tempfile::tempdir().unwrap();
    let model = repository("evaluators/tests/fixtures/counts_mod10.onnx");
    let row = |length: usize, more: &str| {
        let list = |values: Vec<String>| format!("[{}]", values.join(", "));
        let real = |at: usize| at <= length;
        let ids = (0..30)
            .map(|at| {
                if !real(at) {
                    "11"
                } else if at == 0 {
                    "0"
                } else {
                    "12"
                }
                .to_owned()
            })
            .collect();
        let labels = (0..30).map(|at| match at {
            0 => "-100".to_owned(),
            at if real(at) => ((at - 1) % 10 + 1).to_string(),
            _ => "11".to_owned(),
        });
        let mask = (0..30).map(|at| real(at).to_string()).collect();
        let mask = if more.contains("mask") { format!(", \"attention_mask\": {}", list(mask)) } else { String::new() };
        let counted = if more.contains("length") { format!(", \"length\": {}", length + 1) } else { String::new() };
        format!("{{\"input_ids\": {}, \"labels\": {}{mask}{counted}}}\n", list(ids), list(labels.collect()))
    };
    for (more, is_noted) in [("mask", false), ("length", false), ("mask and length", false), ("", true)] {
        let lines: String = (1..10).map(|length| row(length, more)).collect();
        std::fs::write(dir.path().join("padded.jsonl"), lines).unwrap();
        let ran = run(dir.path(), &["eval", "--model", &model, "--split", "padded.jsonl", "--json"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let document: Value = ran.stdout.parse().unwrap();
        let split = &document["splits"][0];
        assert_eq!((&split["accuracy"], &split["n_sequences"]), (&1.0.into(), &9.into()), "{more}");
        let note = "padded.jsonl: `<pad>` that is labelled `<pad>` was taken for padding in 9 of 9 examples";
        assert_eq!(ran.stderr.contains(note), is_noted, "{more}: {}", ran.stderr);
        let task = ["--task", "counting_samesymbol_mod10bos"];
        for command in
            [&["data", "show", "padded.jsonl"][..], &["data", "import", "padded.jsonl", "--check-labels", "--force"]]
        {
            let ran = run(dir.path(), &[command, &task].concat());
            assert_eq!((ran.status, ran.stderr.contains(note)), (0, is_noted), "{more}: {}", ran.stderr);
        }
    }
}
