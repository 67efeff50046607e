//! `pipeline data list`: every preset, by the paper that it is from.

use super::{Context, decode};
use crate::cli::table::{Table, column, screen_width};
use anyhow::Result;
use data::{Split, Task};
use serde_json::{Map, Value, json};

pub fn run(context: &Context) -> Result<()> {
    let tasks = Task::names().map(Task::by_name).collect::<Result<Vec<_>, _>>()?;
    let as_json = || {
        let entry = |task: &Task| {
            let parameters: Map<String, Value> =
                task.parameters.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
            json!({
                "name": task.name,
                "family": task.family.name(),
                "paper": task.paper(),
                "chance": chance(task),
                "units": task.vocabulary.unit_tokens(),
                "parameters": parameters,
                "vocab_size": task.vocabulary.len(),
                "train_examples": task.train_examples,
                "train_max_length": task.family.train_max_length(),
                "max_seq_len": task.max_seq_len,
                "max_position_embeddings": task.max_position_embeddings,
                "splits": task.splits().into_iter().map(Split::name).collect::<Vec<_>>(),
                "example": shortest(task),
            })
        };
        tasks.iter().map(entry).collect()
    };
    let as_text = || match screen_width() {
        None => table(&tasks.iter().collect::<Vec<_>>(), true).to_string(),
        Some(_) => {
            let mut papers: Vec<Option<&str>> = Vec::new();
            tasks.iter().map(Task::paper).for_each(|paper| {
                if !papers.contains(&paper) {
                    papers.push(paper)
                }
            });
            let group = |paper: &Option<&str>| {
                let of_paper: Vec<&Task> = tasks.iter().filter(|task| task.paper() == *paper).collect();
                format!("{}\n\n{}", paper.unwrap_or("of this program"), table(&of_paper, false))
            };
            papers.iter().map(group).collect::<Vec<_>>().join("\n\n")
        }
    };
    context.print(as_json, as_text)
}

/// Tasks with their family, size and an example; and the paper that they are from, where that is no heading.
fn table(tasks: &[&Task], with_papers: bool) -> Table {
    let mut table = Table::new([
        column("task"),
        column("family").shorten(9, 17),
        column("vocab").right(),
        column("settings").shorten(16, 60).optional(),
        column("example").shorten(16, 40).optional(),
        column(if with_papers { "paper" } else { "guessing" }).right().optional(),
    ]);
    for task in tasks {
        let settings: Vec<String> = task.settings().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let (inputs, labels) = shortest(task).unwrap_or_default();
        let chance = chance(task).map_or("–".into(), |chance| format!("{:.1} %", 100.0 * chance));
        table.row([
            task.name.clone(),
            task.family.name().into(),
            task.vocabulary.len().to_string(),
            settings.join(" "),
            format!("{} → {}", inputs.join(" "), labels.join(" ")),
            if with_papers { task.paper().unwrap_or_default().to_owned() } else { chance },
        ]);
    }
    table
}

/// An example in words: a test of length 3, or of the next length that has one.
fn shortest(task: &Task) -> Option<(Vec<String>, Vec<String>)> {
    let test = (3..400).find_map(|length| task.family.test(0, 0, length).ok())?;
    Some(decode(test.as_ref(), &task.vocabulary))
}

/// The accuracy of guessing at the longest trained length.
fn chance(task: &Task) -> Option<f64> {
    task.family.chance(task.family.train_max_length())
}
