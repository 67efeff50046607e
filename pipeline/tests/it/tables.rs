//! Tables of the program: tab-separated in a pipe, fitted to a terminal of 80 columns; published values beside results.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::{command, ok, repository, run, tiny_training};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The output of the program on a terminal of 80 columns, standard error included; `None` where `script` is missing.
fn on_a_terminal(folder: &Path, arguments: &[&str]) -> Option<String> {
    let quoted: Vec<String> = arguments.iter().map(|a| format!("'{a}'")).collect();
    let line = format!("stty cols 80 rows 40; exec '{}' {}", env!("CARGO_BIN_EXE_pipeline"), quoted.join(" "));
    let mut script = Command::new("script");
    script.current_dir(folder).args(["-qec", &line, "/dev/null"]).env_remove("COLUMNS");
    let Ok(output) = script.output() else {
        eprintln!("skipped: there is no `script` here");
        return None;
    };
    let text = String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n");
    assert!(output.status.success(), "{arguments:?}\n{text}");
    Some(text)
}

/// The text without what moves the cursor; of a line that was drawn again, what is there at last.
fn settled(text: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain += before;
        let end = after.find(|c: char| c.is_ascii_alphabetic()).map_or(after.len(), |end| end + 1);
        rest = &after[end..];
    }
    plain += rest;
    plain.lines().map(|line| line.rsplit('\r').next().unwrap_or_default().to_owned()).collect()
}

/// A run that was trained, exported and evaluated, and a grid like it.
fn prepare(folder: &Path) -> String {
    let config = repository("configs/rnn.toml");
    ok(folder, &tiny_training(&config, &["-q", "--task", "counting_samesymbol_mod10bos"]));
    ok(folder, &["export", "-q"]);
    ok(folder, &["eval", "-q", "--lengths", "1..60", "--split", "ood_test"]);
    let grid = format!(
        "tasks = ['counting_samesymbol_mod10bos', 'counting_samesymbol_shiftedstart3']\nseeds = [7]\n\
         [set]\ntask.train_examples = 100\nmodel.hidden_size = 8\n\
         train = {{ max_steps = 6, log_every = 2, checkpoint_every = 2, device = 'cpu' }}\n\
         [eval]\nlengths = '1..60'\n[[architecture]]\nconfig = '{config}'\n"
    );
    fs::write(folder.join("grid.toml"), grid).unwrap();
    config
}

#[test]
fn nothing_is_wider_than_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let config = prepare(dir.path());
    let training = tiny_training(&config, &["--task", "counting_samesymbol_mod10bos"]);
    let commands: [&[&str]; 12] = [
        &["data", "list"],
        &["doctor"],
        &["runs"],
        &["runs", "show"],
        &["export"],
        &["eval", "--lengths", "1..60", "--split", "val"],
        &["grid", "grid.toml", "--dry-run"],
        &["grid", "grid.toml"],
        &["report"],
        &["report", "-o", "report.md"],
        &["bench", "train", "--arch", "rnn", "--hidden", "8", "--batch", "4", "--seq", "16", "--steps", "1"],
        &training,
    ];
    for arguments in commands {
        let Some(text) = on_a_terminal(dir.path(), arguments) else { return };
        let lines = settled(&text);
        // A path is not broken, so that it can be copied.
        let wide = |line: &&String| line.chars().count() > 80 && line.trim().contains(' ');
        assert_eq!(lines.iter().find(wide), None, "{arguments:?}");
        // Colours and cursor movements are for bars alone; a table has one rule.
        assert!(lines.iter().all(|line| !line.contains(['│', '╌', '═', '┌'])), "{arguments:?}\n{text}");
    }
    let list = on_a_terminal(dir.path(), &["data", "list"]).unwrap_or_default();
    assert!(!list.contains('\u{1b}') && list.contains('─'), "{list}");
    let tasks: Value = ok(dir.path(), &["data", "list", "--json"]).parse().unwrap();
    let papers: std::collections::HashSet<&str> =
        tasks.as_array().unwrap().iter().map(|task| task["paper"].as_str().unwrap()).collect();
    let rules = list.lines().filter(|line| line.contains('─')).count();
    assert_eq!(rules, papers.len(), "one table for each paper:\n{list}");
    for task in tasks.as_array().unwrap() {
        let name = task["name"].as_str().unwrap();
        assert!(list.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} is cut:\n{list}");
    }
    // Heading, two empty lines, the table's head, its rule, and what is not shown.
    let most = tasks.as_array().unwrap().len() + 6 * papers.len() + 3;
    assert!(list.lines().count() <= most, "a line for each task:\n{list}");
}

#[test]
fn help_fits_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 18] = [
        &[],
        &["quickstart"],
        &["data"],
        &["data", "list"],
        &["data", "generate"],
        &["data", "import"],
        &["data", "show"],
        &["train"],
        &["runs"],
        &["runs", "show"],
        &["runs", "rm"],
        &["import"],
        &["export"],
        &["eval"],
        &["grid"],
        &["report"],
        &["bench", "train"],
        &["doctor"],
    ];
    for arguments in commands {
        let Some(text) = on_a_terminal(dir.path(), &[arguments, &["--help"]].concat()) else { return };
        let lines = settled(&text);
        assert_eq!(lines.iter().find(|line| line.chars().count() > 80), None, "{arguments:?}");
        assert!(lines.len() > 5, "{text}");
    }
}

/// The lines of a table in a pipe, split at tabs; all have as many cells as the header.
fn cells(text: &str) -> Vec<Vec<&str>> {
    assert!(!text.contains(['─', '…', '\u{1b}']), "{text}");
    let lines: Vec<Vec<&str>> =
        text.lines().filter(|line| line.contains('\t')).map(|l| l.split('\t').collect()).collect();
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
    lines
}

#[test]
fn a_pipe_gets_rows_with_tabs() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    // A narrow or wide screen is no matter of pipes.
    let piped = |arguments: &[&str]| {
        let output = command(dir.path(), arguments).env("COLUMNS", "40").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let list = piped(&["data", "list"]);
    let tasks = cells(&list);
    assert_eq!(tasks[0], ["task", "family", "vocab", "settings", "example", "paper"]);
    assert_eq!(tasks.len(), list.lines().count(), "{list}");
    let mod10 = tasks.iter().find(|task| task[0] == "counting_samesymbol_mod10bos").unwrap();
    assert_eq!(&mod10[1..4], ["modular", "13", "bos=true"]);
    let long =
        tasks.iter().find(|task| task[0] == "counting_samesymbol_shiftedstart3_padhelper_addtablelarge").unwrap();
    assert!(
        long[3].ends_with("auxiliary_examples=499950") || long[3].contains("auxiliary_examples=499950"),
        "{long:?}"
    );

    let runs = piped(&["runs"]);
    assert_eq!(cells(&runs)[0][..3], ["run", "task", "model"]);
    assert_eq!(cells(&runs)[1][1..5], ["counting_samesymbol_mod10bos", "RNN", "1234", "finished"]);
    let plan = piped(&["grid", "grid.toml", "--dry-run"]);
    assert_eq!(cells(&plan)[1][..2], ["counting_samesymbol_mod10bos-rnn-s7", "waiting"]);
    let eval = piped(&["eval", "--lengths", "1..60", "-q"]);
    assert_eq!(cells(&eval)[0][..2], ["length", "last token right"]);
    let shown = piped(&["runs", "show"]);
    assert!(shown.contains("split\tstep\tloss\taccuracy") && shown.contains("checkpoint\tnote"), "{shown}");
}

#[test]
fn published_values_are_counted_where_they_match() {
    let dir = tempfile::tempdir().unwrap();
    let config = repository("configs/transformer.toml");
    let more =
        ["-q", "--task", "counting_samesymbol_mod10bos", "--set", "model.num_heads=2", "--set", "model.num_layers=2"];
    let rope = ["--set", "model.positional_embedding=rope", "--set", "model.augmentation=shift"];
    ok(dir.path(), &tiny_training(&config, &[&more[..], &rope].concat()));
    ok(dir.path(), &["export", "-q", "--no-verify"]);
    ok(dir.path(), &["eval", "-q", "--lengths", "1..20", "--split", "ood_test"]);
    let columns = "task;num_hidden_layers;hidden_size;num_attention_heads;positional_embedding;seed;tie_word_embeddings;split;\
                   final_acc;final_last_acc;final_unseen_len_acc";
    let quoted = columns.split(';').map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(";");
    let row = |task: &str| format!("{task};2.0;1024.0;8;rotary_shift;1;False;ood_test;97,5%;43,2%;-1\r\n");
    let write = |rows: &[&str]| {
        let rows: String = rows.iter().map(|task| row(task)).collect();
        fs::write(dir.path().join("published.csv"), format!("\u{feff}{quoted}\r\n{rows}")).unwrap();
    };
    let report = || run(dir.path(), &["report", "--reference", "published.csv"]);
    write(&["counting_samesymbol_mod10bos", "counting_samesymbol_mod10bos", "another_task"]);
    let ran = report();
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let counted = "reference: 2 of 3 rows match a model here; 1 do not: another_task rotary_shift 2 layers ood_test";
    assert!(ran.stderr.contains(counted) && ran.stderr.contains("`final_acc` is read as percent"), "{}", ran.stderr);
    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.contains(counted) && page.contains("paper 97.5") && page.contains("paper 43.2"), "{counted}");
    let (notices, accuracy) = (page.find("id=\"notices\"").unwrap(), page.find("id=\"accuracy\"").unwrap());
    assert!(notices < accuracy, "notices come first");
    ok(dir.path(), &["report", "-q", "-o", "report.md", "--reference", "published.csv"]);
    let text = fs::read_to_string(dir.path().join("report.md")).unwrap();
    assert!(text.find("## Notices").unwrap() < text.find("## Last-token").unwrap(), "{text}");

    write(&["counting_samesymbol_mod10bas"]);
    let ran = report();
    let warning = "warning: reference: none of the 1 rows matches a model here";
    let nearest = "its task is `counting_samesymbol_mod10bas`, and the nearest here is `counting_samesymbol_mod10bos`";
    assert!(ran.status == 0 && ran.stderr.contains(warning) && ran.stderr.contains(nearest), "{}", ran.stderr);
}
