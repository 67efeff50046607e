//! Published values to compare with: a CSV file with one row per model, seed and split, as the authors' scripts collect
//! them.

mod dialect;

use self::dialect::*;
use super::entries::Entry;
use super::order::natural;
use super::statistics::Estimate;
use anyhow::{Context, Result, bail};
use csv::StringRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The published values.
#[derive(Debug)]
pub struct Reference {
    rows: BTreeMap<Name, Vec<Row>>,
    /// Rows of the file.
    count: usize,
    /// How the file was read, where that is not plain, and what could not be.
    notices: Vec<String>,
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
    /// Reads the CSV file, in any dialect in which spreadsheets save it.
    ///
    /// # Errors
    /// It cannot be read, or lacks a column.
    pub fn read(path: &Path) -> Result<Self> {
        let doing = || format!("cannot read the published values {}", path.display());
        let bytes = std::fs::read(path).with_context(doing)?;
        Self::parse(&decode(&bytes)).with_context(doing)
    }

    fn parse(text: &str) -> Result<Self> {
        let Source { delimiter, body } = source(text);
        let mut reader = reader(body, delimiter);
        let header: Vec<String> =
            reader.headers().context("its first line is no list of columns")?.iter().map(title).collect();
        let column = |name: &str| {
            let Some(found) = header.iter().position(|title| title == name) else {
                let nearest = data::suggest::nearest(name, header.iter().map(String::as_str));
                let nearest = nearest.map(|n| format!("; the nearest that it has is `{n}`")).unwrap_or_default();
                bail!("it has no column `{name}`\n  hint: the first line names the columns{nearest}");
            };
            Ok(found)
        };
        let keys = KEYS.iter().map(|name| column(name)).collect::<Result<Vec<_>>>()?;
        let values = VALUES.iter().map(|(_, theirs)| column(theirs)).collect::<Result<Vec<_>>>()?;
        let mut records: Vec<StringRecord> = Vec::new();
        let mut notices = Vec::new();
        for record in reader.records() {
            let record = record.context("a line is no CSV")?;
            match record.len() == header.len() {
                _ if record.iter().all(|field| field.trim().is_empty()) => {}
                true => records.push(record),
                false => notices.push(format!(
                    "line {} has {} values for {} columns: left out",
                    record.position().map_or(0, |position| position.line()),
                    record.len(),
                    header.len()
                )),
            }
        }
        let field = |record: &StringRecord, column: usize| {
            record.get(column).unwrap_or_default().trim_matches(is_around).to_owned()
        };
        let mut scales = Vec::new();
        for column in &values {
            let texts: Vec<String> = records.iter().map(|record| field(record, *column)).collect();
            let scale = Scale::of(&texts, delimiter);
            notices.extend(scale.notice(header.get(*column).map_or("", String::as_str)));
            scales.push(scale);
        }
        let mut rows: BTreeMap<Name, Vec<Row>> = BTreeMap::new();
        for record in &records {
            let key: Vec<String> = keys.iter().map(|column| field(record, *column)).collect();
            let [task, positions, layers, split, hidden_size, heads, tied] = &key[..] else { continue };
            let name = (task.clone(), positions_of(positions), count(layers, delimiter), split.clone());
            let value = |((ours, _), (column, scale)): (&(&'static str, &str), (&usize, &Scale))| {
                Some((*ours, scale.value(&field(record, *column), delimiter)?))
            };
            rows.entry(name).or_default().push(Row {
                hidden_size: count(hidden_size, delimiter),
                heads: count(heads, delimiter),
                tied: flag(tied, delimiter),
                values: VALUES.iter().zip(values.iter().zip(&scales)).filter_map(value).collect(),
            });
        }
        Ok(Self { rows, count: records.len(), notices })
    }

    /// How the file was read, and how many of its rows are about one of `entries`: one line each.
    pub fn account(&self, entries: &[Entry]) -> Vec<String> {
        let here: BTreeSet<Name> = entries.iter().flat_map(names).collect();
        let (found, missing): (Vec<_>, Vec<_>) = self.rows.iter().partition(|(name, _)| here.contains(name));
        let matched: usize = found.iter().map(|(_, rows)| rows.len()).sum();
        let mut lines: Vec<String> = self.notices.iter().map(|notice| format!("reference: {notice}")).collect();
        let total = self.count;
        if total == 0 {
            lines.push("reference: the file has no rows".to_owned());
        } else if missing.is_empty() {
            lines.push(format!("reference: all {total} rows match a model here"));
        } else if matched > 0 {
            lines.push(format!(
                "reference: {matched} of {total} rows match a model here; {} do not: {}",
                total - matched,
                first_names(missing.iter().map(|(name, _)| *name))
            ));
        } else {
            lines.push(format!(
                "warning: reference: none of the {total} rows matches a model here: {}; {}",
                first_names(missing.iter().map(|(name, _)| *name)),
                self.nearest(&here)
            ));
        }
        lines
    }

    /// In which of its parts no name of the file is one of ours, with the nearest of ours.
    fn nearest(&self, here: &BTreeSet<Name>) -> String {
        type Part = fn(&Name) -> &str;
        let parts: [(&str, Part); 4] = [
            ("task", |name| &name.0),
            ("positional_embedding", |name| &name.1),
            ("num_hidden_layers", |name| &name.2),
            ("split", |name| &name.3),
        ];
        if here.is_empty() {
            return "only Transformers that were scored on splits (`pipeline eval --split ood_test`) can match, and there are \
                    none"
                .to_owned();
        }
        for (column, part) in parts {
            let ours: BTreeSet<&str> = here.iter().map(part).collect();
            let theirs: BTreeSet<&str> = self.rows.keys().map(part).collect();
            if let Some(first) = theirs.first().filter(|_| ours.is_disjoint(&theirs)) {
                // The pair that is most alike is what was meant.
                let pair = theirs.iter().find_map(|t| Some((*t, data::suggest::nearest(t, ours.iter().copied())?)));
                let (theirs, nearest) = pair.unwrap_or((first, ours.first().copied().unwrap_or_default()));
                return format!("its {column} is `{theirs}`, and the nearest here is `{nearest}`");
            }
        }
        let nearest = here.first().map(spelled).unwrap_or_default();
        format!("tasks, positions, layers and splits occur here, but not together; here is {nearest}")
    }

    /// The published value of the entry's model, over its seeds, and in what that model differs from ours. Rows of the same
    /// width, heads and tying are preferred; without any, those of the width that was published most are taken
    /// (of several, the largest).
    pub fn find(&self, entry: &Entry, split: &str, metric: &str) -> Option<(Estimate, Vec<String>)> {
        let ours = |key: &str| entry.settings.get(key).map_or("", String::as_str);
        let layers = ours("model.num_layers").to_owned();
        let name = (entry.task.clone(), positions(entry)?, layers, split.to_owned());
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

/// The names of the rows about a entry, one per split that it was scored on.
fn names(entry: &Entry) -> Vec<Name> {
    let layers = entry.settings.get("model.num_layers").cloned().unwrap_or_default();
    let Some(positions) = positions(entry) else { return vec![] };
    let name = |split: &String| (entry.task.clone(), positions.clone(), layers.clone(), split.clone());
    entry.totals.keys().map(name).collect()
}

fn spelled((task, positions, layers, split): &Name) -> String {
    format!("{task} {positions} {layers} layers {split}")
}

/// The first of the names, and how many there are besides.
fn first_names<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    const SHOWN: usize = 3;
    let mut names: Vec<String> = names.map(spelled).collect();
    names.sort_by(|a, b| natural(a, b));
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    names.join(", ") + &rest
}

fn most_common<'a>(values: impl Iterator<Item = &'a String>) -> Option<String> {
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|(value, n)| (*n, value.len(), *value)).map(|(value, _)| value.clone())
}

/// The authors' name of the entry's positions; only Transformers are published.
fn positions(entry: &Entry) -> Option<String> {
    let text = |key: &str| entry.settings.get(key).map_or("", String::as_str);
    if entry.arch != "transformer" {
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
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const CSV: &str = "task,num_hidden_layers,hidden_size,num_attention_heads,positional_embedding,seed,tie_word_embeddings,split,final_acc,final_last_acc,final_unseen_len_acc
t,2,1024,8,rotary_shift,1,False,ood_test,0.5,0.2,0.1
t,2,1024,8,rotary_shift,2,False,ood_test,0.7,0.4,-1
t,2,32,8,rotary_shift,1,False,ood_test,0.1,0.1,0.1
";

    fn entry(width: &str) -> Entry {
        let settings = [
            ("model.positional_embedding", "rope"),
            ("model.augmentation", "shift"),
            ("model.num_layers", "2"),
            ("model.hidden_size", width),
            ("model.num_heads", "8"),
            ("model.tie_word_embeddings", "false"),
        ];
        let settings = settings.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
        Entry { task: "t".into(), arch: "transformer".into(), settings, ..Entry::default() }
    }

    #[test]
    fn values_are_found_by_model_and_widths_that_differ_are_named() {
        let reference = Reference::parse(CSV).unwrap();
        let find = |width: &str, metric: &str| reference.find(&entry(width), "ood_test", metric);
        let (exact, differences) = find("1024", "accuracy").unwrap();
        assert!((exact.mean - 0.6).abs() < 1e-12 && exact.n == 2 && differences.is_empty());
        assert_eq!(find("1024", "unseen_accuracy").unwrap().0.n, 1);
        assert_eq!(find("32", "accuracy").unwrap().0.mean, 0.1);
        let (near, differences) = find("64", "last_accuracy").unwrap();
        assert!((near.mean - 0.3).abs() < 1e-12);
        assert_eq!(differences, ["width 1024"]);
        assert!(reference.find(&entry("32"), "val", "accuracy").is_none());
    }

    /// The rows of [`CSV`] as a spreadsheet might save them.
    fn dialect(delimiter: &str, quote: &str, value: impl Fn(f64) -> String) -> String {
        let line = |line: &str| {
            let field = |field: &str| match field.parse::<f64>() {
                Ok(number) if field.contains('.') || field == "-1" => value(number),
                Ok(number) => format!("{number:.1}").replace('.', if delimiter == ";" { "," } else { "." }),
                Err(_) => format!("{quote}{field}{quote}"),
            };
            line.split(',').map(field).collect::<Vec<_>>().join(delimiter)
        };
        let header =
            CSV.lines().next().unwrap().split(',').map(|name| format!("{quote}{}{quote}", name.to_uppercase()));
        let header = header.collect::<Vec<_>>().join(delimiter);
        let rows: Vec<String> = CSV.lines().skip(1).map(line).collect();
        format!("{header}\r\n{}\r\n", rows.join("\r\n"))
    }

    fn accuracy(reference: &Reference, metric: &str) -> f64 {
        reference.find(&entry("1024"), "ood_test", metric).unwrap().0.mean
    }

    #[test]
    fn dialects_of_spreadsheets_say_the_same() {
        let percent = |v: f64| if v < 0.0 { "-1".into() } else { format!("{:.1}%", 100.0 * v) };
        let hundreds = |v: f64| if v < 0.0 { "-1".into() } else { format!("{:.1}", 100.0 * v) };
        let decimal_comma = |v: f64| format!("{v:.2}").replace('.', ",");
        let plain = |v: f64| format!("{v}");
        // layers are `2.0` and widths `1024.0` in all of them
        let mut texts = vec![
            dialect(",", "", plain),
            dialect(",", "\"", plain),
            dialect("\t", "\"", plain),
            dialect("|", "", plain),
            dialect(";", "\"", decimal_comma),
            dialect(",", "", percent),
            dialect(", ", "\"", hundreds),
        ];
        texts.push(format!("sep=;\r\n{}", dialect(";", "", decimal_comma)));
        texts.push(format!("# collected in May\n\n{}", dialect(",", "", plain)));
        for text in texts {
            let utf16 =
                |unit: fn(u16) -> [u8; 2]| "\u{feff}".chars().chain(text.chars()).map(|c| unit(c as u16)).collect();
            let files: [Vec<[u8; 2]>; 2] = [utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)];
            let bytes = [text.clone().into_bytes(), format!("\u{feff}{text}").into_bytes()];
            for bytes in bytes.into_iter().chain(files.map(|file| file.concat())) {
                let reference = Reference::parse(&decode(&bytes)).expect(&text);
                assert!((accuracy(&reference, "accuracy") - 0.6).abs() < 1e-9, "{text}");
                assert!((accuracy(&reference, "last_accuracy") - 0.3).abs() < 1e-9, "{text}");
                assert!((accuracy(&reference, "unseen_accuracy") - 0.1).abs() < 1e-9, "{text}");
                let (_, differences) = reference.find(&entry("1024"), "ood_test", "accuracy").unwrap();
                assert!(differences.is_empty(), "{text}: {differences:?}");
            }
        }
        let read = |text: &str| Reference::parse(text).unwrap().account(&[]).join("\n");
        assert!(read(&dialect(",", "", percent)).contains("`final_acc` is read as percent (up to 70)"));
        assert!(!read(CSV).contains("percent"));
        let strange = read(&CSV.replace("0.5,0.2", "about half,0.2").replace("0.7", "970"));
        assert!(
            strange.contains("`final_acc` has 2 values that are no accuracies") && strange.contains("about half"),
            "{strange}"
        );
        let ragged = read(&(CSV.to_owned() + "t,2,32\n"));
        assert!(ragged.contains("line 5 has 3 values for 11 columns"), "{ragged}");
    }

    #[test]
    fn rows_that_match_and_rows_that_do_not_are_counted() {
        let scored = |task: &str, split: &str| {
            let totals = [(split.to_owned(), BTreeMap::new())].into_iter().collect();
            Entry { task: task.into(), totals, ..entry("32") }
        };
        let account = |text: &str, entries: &[Entry]| Reference::parse(text).unwrap().account(entries).join("\n");
        assert_eq!(account(CSV, &[scored("t", "ood_test")]), "reference: all 3 rows match a model here");
        let more: String = (1..=5).map(|n| format!("u{n},2,32,8,rotary_shift,1,False,val,0.1,0.1,0.1\n")).collect();
        let found = account(&(CSV.to_owned() + &more), &[scored("t", "ood_test")]);
        assert!(
            found.starts_with("reference: 3 of 8 rows match a model here; 5 do not: u1 rotary_shift 2 layers val"),
            "{found}"
        );
        assert!(found.ends_with("and 2 more"), "{found}");

        for (text, entries, part) in [
            (
                CSV.replace("t,2", "counting_mod10,2"),
                vec![scored("counting_mod10bos", "ood_test")],
                "nearest here is `counting_mod10bos`",
            ),
            (CSV.replace("ood_test", "ood-test"), vec![scored("t", "ood_test")], "its split is `ood-test`"),
            (CSV.replace(",2,", ",4,"), vec![scored("t", "ood_test")], "its num_hidden_layers is `4`"),
            (
                CSV.replace("rotary", "rotatory"),
                vec![scored("t", "ood_test")],
                "its positional_embedding is `rotatory_shift`",
            ),
            (CSV.to_owned(), vec![entry("32")], "pipeline eval --split"),
        ] {
            let found = account(&text, &entries);
            assert!(found.contains("none of the 3 rows matches") && found.contains(part), "{part}: {found}");
        }
        assert_eq!(account(CSV.lines().next().unwrap(), &[]), "reference: the file has no rows");
        // Our own names of positions are understood as well.
        assert_eq!(
            account(&CSV.replace("rotary_shift", "RoPE+shift"), &[scored("t", "ood_test")]),
            account(CSV, &[scored("t", "ood_test")])
        );
    }

    #[test]
    fn a_file_without_the_columns_is_refused() {
        let error = format!("{:#}", Reference::parse("task,split\n").unwrap_err());
        assert!(error.contains("no column `positional_embedding`") && error.contains("hint:"), "{error}");
    }
}
