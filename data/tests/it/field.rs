//! Reference files of other programs' generators, line by line. They are not part of the repository: without them,
//! these tests pass.

use data::{Task, text};
use std::path::{Path, PathBuf};

/// The files of `<origin>/<task>`, with the settings that some of them need.
fn files(task: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/field-tasks").join(task);
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let mut files: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn check(task: &Task, path: &Path) -> usize {
    let lines = std::fs::read_to_string(path).unwrap();
    for (i, line) in lines.lines().enumerate() {
        let place = format!("{} line {}", path.display(), i + 1);
        let (input_ids, labels) =
            text::parse_line(line, &task.vocabulary).unwrap_or_else(|e| panic!("{place}: {e}: {line}"));
        task.check_labels(&input_ids, &labels).unwrap_or_else(|e| panic!("{place}: {e}: {line}"));
    }
    lines.lines().count()
}

#[test]
fn every_line_of_the_reference_files_is_accepted() {
    let mut lines = 0;
    for name in Task::names().filter(|name| name.contains('/')) {
        for path in files(name) {
            let settings = match (name, path.file_stem().and_then(|stem| stem.to_str()).unwrap()) {
                ("mad/incontext_recall", "val_single_query") => ",queries=last,marker=16",
                ("mad/noisy_recall", "val_single_query") => ",queries=last,marker=32",
                _ => "",
            };
            // with labels of all positions, which both settings of `labels` accept
            if path.file_stem().is_some_and(|stem| stem == "val_trainmode") {
                lines += check(&Task::by_name(&format!("{name},labels=next")).unwrap(), &path);
            }
            lines += check(&Task::by_name(&format!("{name}{settings}")).unwrap(), &path);
        }
    }
    println!("{lines} lines");
}
