//! Published values to compare with: a CSV file with one row per model, seed and split, as the authors' scripts collect
//! them.

use super::cells::Cell;
use super::statistics::Estimate;
use anyhow::{Context, Result};
use arrow::array::AsArray;
use arrow::csv::ReaderBuilder;
use arrow::datatypes::{DataType, Field, Schema};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The published values.
#[derive(Debug)]
pub struct Reference {
    rows: BTreeMap<Name, Vec<Row>>,
}

/// Task, positions, layers, split.
type Name = (String, String, String, String);

#[derive(Debug)]
struct Row {
    hidden_size: String,
    heads: String,
    tied: String,
    /// By our metric's name.
    values: BTreeMap<&'static str, f64>,
}

/// The columns that tell rows apart.
const KEYS: [&str; 7] = [
    "task",
    "positional_embedding",
    "num_hidden_layers",
    "split",
    "hidden_size",
    "num_attention_heads",
    "tie_word_embeddings",
];
/// Our names of the metrics, and those of the columns.
const VALUES: [(&str, &str); 3] =
    [("accuracy", "final_acc"), ("last_accuracy", "final_last_acc"), ("unseen_accuracy", "final_unseen_len_acc")];

impl Reference {
    /// Reads the CSV file.
    ///
    /// # Errors
    /// It cannot be read, or lacks a column.
    pub fn read(path: &Path) -> Result<Self> {
        let doing = || format!("cannot read the published values {}", path.display());
        let text = std::fs::read_to_string(path).with_context(doing)?;
        Self::parse(&text).with_context(doing)
    }

    fn parse(text: &str) -> Result<Self> {
        let header = text.lines().next().unwrap_or_default().trim();
        let names: Vec<&str> = header.split(',').map(str::trim).collect();
        let column = |name: &str| {
            let found = names.iter().position(|n| *n == name);
            found.with_context(|| format!("it has no column `{name}`\n  hint: the first line names the columns"))
        };
        let keys = KEYS.iter().map(|name| column(name)).collect::<Result<Vec<_>>>()?;
        let values = VALUES.iter().map(|(ours, theirs)| Ok((*ours, column(theirs)?))).collect::<Result<Vec<_>>>()?;
        let fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
        let mut rows: BTreeMap<Name, Vec<Row>> = BTreeMap::new();
        for batch in ReaderBuilder::new(Arc::new(Schema::new(fields))).with_header(true).build(text.as_bytes())? {
            let batch = batch?;
            let text = |column: usize, row: usize| batch.column(column).as_string::<i32>().value(row).trim().to_owned();
            for row in 0..batch.num_rows() {
                let key: Vec<String> = keys.iter().map(|column| text(*column, row)).collect();
                let [task, positions, layers, split, hidden_size, heads, tied] = &key[..] else { continue };
                let name = (task.clone(), positions.clone(), layers.clone(), split.clone());
                // -1 stands for "no such tokens".
                let value = |(ours, column): &(&'static str, usize)| {
                    let value = text(*column, row).parse().ok().filter(|v| (0.0..=1.0).contains(v))?;
                    Some((*ours, value))
                };
                rows.entry(name).or_default().push(Row {
                    hidden_size: hidden_size.clone(),
                    heads: heads.clone(),
                    tied: tied.to_lowercase(),
                    values: values.iter().filter_map(value).collect(),
                });
            }
        }
        Ok(Self { rows })
    }

    /// The published value of the cell's model, over its seeds, and in what that model differs from ours. Rows of the same
    /// width, heads and tying are preferred; without any, those of the width that was published most are taken
    /// (of several, the largest).
    pub fn find(&self, cell: &Cell, split: &str, metric: &str) -> Option<(Estimate, Vec<String>)> {
        let ours = |key: &str| cell.settings.get(key).map_or("", String::as_str);
        let layers = ours("model.num_layers").to_owned();
        let name = (cell.task.clone(), positions(cell)?, layers, split.to_owned());
        let mut rows: Vec<&Row> = self.rows.get(&name)?.iter().filter(|r| r.values.contains_key(metric)).collect();
        let mut differences = Vec::new();
        type Property = fn(&Row) -> &String;
        let properties: [(&str, &str, Property); 3] = [
            ("model.hidden_size", "width", |r| &r.hidden_size),
            ("model.num_heads", "heads", |r| &r.heads),
            ("model.tie_word_embeddings", "tied", |r| &r.tied),
        ];
        for (key, what, property) in properties {
            let equal = rows.iter().any(|r| property(r) == ours(key));
            let wanted = if equal { ours(key).to_owned() } else { most_common(rows.iter().map(|r| property(r)))? };
            if !equal && !ours(key).is_empty() && !wanted.is_empty() {
                differences.push(format!("{what} {wanted}"));
            }
            rows.retain(|r| *property(r) == wanted);
        }
        let values: Vec<f64> = rows.iter().filter_map(|r| r.values.get(metric).copied()).collect();
        Some((Estimate::of_accuracies(&values)?, differences))
    }
}

fn most_common<'a>(values: impl Iterator<Item = &'a String>) -> Option<String> {
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|(value, n)| (*n, value.len(), *value)).map(|(value, _)| value.clone())
}

/// The authors' name of the cell's positions; only Transformers are published.
fn positions(cell: &Cell) -> Option<String> {
    let text = |key: &str| cell.settings.get(key).map_or("", String::as_str);
    if cell.arch != "transformer" {
        return None;
    }
    let mut name = match text("model.positional_embedding") {
        "none" => return Some("none".into()),
        "rope" => "rotary",
        "scalar" => "scaler",
        other => other,
    }
    .to_owned();
    if text("model.absolute_init") == "sinusoidal" && name == "absolute" {
        name += "_initfromsine";
    }
    if text("model.absolute_freeze") == "true" {
        name += "_freeze";
    }
    match text("model.augmentation") {
        "shift" => name += "_shift",
        "randomized" => name += "_rdmz",
        _ => {}
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CSV: &str = "task,num_hidden_layers,hidden_size,num_attention_heads,positional_embedding,seed,tie_word_embeddings,split,final_acc,final_last_acc,final_unseen_len_acc
t,2,1024,8,rotary_shift,1,False,ood_test,0.5,0.2,0.1
t,2,1024,8,rotary_shift,2,False,ood_test,0.7,0.4,-1
t,2,32,8,rotary_shift,1,False,ood_test,0.1,0.1,0.1
";

    fn cell(width: &str) -> Cell {
        let settings = [
            ("model.positional_embedding", "rope"),
            ("model.augmentation", "shift"),
            ("model.num_layers", "2"),
            ("model.hidden_size", width),
            ("model.num_heads", "8"),
            ("model.tie_word_embeddings", "false"),
        ];
        let settings = settings.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
        Cell { task: "t".into(), arch: "transformer".into(), settings, ..Cell::default() }
    }

    #[test]
    fn values_are_found_by_model_and_widths_that_differ_are_named() {
        let reference = Reference::parse(CSV).unwrap();
        let find = |width: &str, metric: &str| reference.find(&cell(width), "ood_test", metric);
        let (exact, differences) = find("1024", "accuracy").unwrap();
        assert!((exact.mean - 0.6).abs() < 1e-12 && exact.n == 2 && differences.is_empty());
        assert_eq!(find("1024", "unseen_accuracy").unwrap().0.n, 1);
        assert_eq!(find("32", "accuracy").unwrap().0.mean, 0.1);
        let (near, differences) = find("64", "last_accuracy").unwrap();
        assert!((near.mean - 0.3).abs() < 1e-12);
        assert_eq!(differences, ["width 1024"]);
        assert!(reference.find(&cell("32"), "val", "accuracy").is_none());
    }

    #[test]
    fn a_file_without_the_columns_is_refused() {
        let error = format!("{:#}", Reference::parse("task,split\n").unwrap_err());
        assert!(error.contains("no column `positional_embedding`") && error.contains("hint:"), "{error}");
    }
}
