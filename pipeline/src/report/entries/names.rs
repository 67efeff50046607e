//! The names of models: as short as tells them apart.

use super::Entry;
use crate::plot::display_name;
use std::collections::{BTreeMap, BTreeSet};

impl Entry {
    fn architecture(&self) -> String {
        display_name(if self.arch.is_empty() { "model" } else { &self.arch }, "")
    }

    /// Architecture and positions.
    fn base(&self) -> String {
        let text = |key: &str| self.settings.get(key).map_or("", String::as_str);
        let positions = match (text("model.positional_embedding"), text("model.augmentation")) {
            (positions, "" | "none") => positions.to_owned(),
            (positions, augmentation) => format!("{positions}+{augmentation}"),
        };
        display_name(if self.arch.is_empty() { "model" } else { &self.arch }, &positions)
    }
}

/// Settings that names have wherever they differ, most telling first.
const SIZES: [&str; 3] = ["model.num_layers", "model.hidden_size", "precision"];

/// A setting as part of a name.
fn describe(key: &str, value: &str) -> String {
    match key {
        "model.num_layers" if value == "1" => "1 layer".to_owned(),
        "model.num_layers" => format!("{value} layers"),
        "model.hidden_size" => format!("width {value}"),
        "precision" => value.to_owned(),
        other => format!("{}={value}", other.split_once('.').map_or(other, |(_, name)| name)),
    }
}

/// The facts that all models share, of those that their names would otherwise say or readers ask for first.
pub fn common(entries: &[Entry]) -> Vec<String> {
    let one = |values: BTreeSet<Option<String>>| {
        let mut values = values.into_iter();
        values.next().flatten().filter(|_| values.next().is_none())
    };
    let names: BTreeSet<&String> = entries.iter().map(|entry| &entry.model).collect();
    let base = one(entries.iter().map(|entry| Some(entry.base())).collect());
    let base = base.or_else(|| one(entries.iter().map(|entry| Some(entry.architecture())).collect()));
    let mut shared: Vec<String> = base.filter(|_| names.len() > 1).into_iter().collect();
    for key in [&SIZES[..], &["optimizer.lr"]].concat() {
        let value = one(entries.iter().map(|entry| entry.settings.get(key).cloned()).collect());
        shared.extend(value.filter(|value| value != "fp32").map(|value| describe(key, &value)));
    }
    shared
}

/// Names every entry after its architecture and positions, unless all models share them, and after all that tells it
/// from its namesakes: sizes wherever they differ, other settings where they differ on the same task.
pub(super) fn name(entries: &mut [Entry]) {
    let bases: BTreeSet<String> = entries.iter().map(Entry::base).collect();
    let architectures: BTreeSet<String> = entries.iter().map(Entry::architecture).collect();
    // A base without the part that all models share.
    let own = |base: &str| match (bases.len(), architectures.first().filter(|_| architectures.len() == 1)) {
        (1, _) => String::new(),
        (_, Some(shared)) => {
            base.strip_prefix(shared.as_str()).unwrap_or(base).trim_start_matches(" (").trim_end_matches(')').to_owned()
        }
        _ => base.to_owned(),
    };
    let mut namesakes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        namesakes.entry(entry.base()).or_default().push(index);
    }
    for (base, members) in namesakes {
        let keys: BTreeSet<&String> = members.iter().flat_map(|i| entries[*i].settings.keys()).collect();
        let mut telling: Vec<String> = Vec::new();
        for key in keys {
            // The values of the key by task, or over all tasks.
            let mut values: BTreeMap<&str, BTreeSet<Option<&String>>> = BTreeMap::new();
            for entry in members.iter().map(|i| &entries[*i]) {
                let scope = if SIZES.contains(&key.as_str()) { "" } else { entry.task.as_str() };
                values.entry(scope).or_default().insert(entry.settings.get(key));
            }
            if values.values().any(|values| values.len() > 1) {
                telling.push(key.clone());
            }
        }
        telling.sort_by_key(|key| (SIZES.iter().position(|size| size == key).unwrap_or(SIZES.len()), key.clone()));
        for index in members {
            let entry = &mut entries[index];
            let own = Some(own(&base)).filter(|own| !own.is_empty());
            let told = telling.iter().filter_map(|key| Some(describe(key, entry.settings.get(key)?)));
            let parts: Vec<String> = own.into_iter().chain(told).collect();
            entry.model = if parts.is_empty() { base.clone() } else { parts.join(" · ") };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::group;
    use super::*;
    use crate::report::read::{CurveRow, Run};

    fn run(handle: &str, arch: &str, settings: &[(&str, &str)]) -> Run {
        let facts = [("task.name", "t"), ("model.arch", arch), ("model.num_layers", "2"), ("optimizer.lr", "0.001")];
        let settings = facts.iter().chain(settings).map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let curve = vec![CurveRow { step: 0, split: "train".into(), loss: Some(1.0), accuracy: None }];
        Run { handle: handle.into(), settings, curve, ..Run::default() }
    }

    fn named(runs: Vec<Run>) -> (Vec<String>, Vec<String>) {
        let entries = group(runs, &mut vec![]);
        (entries.iter().map(|entry| entry.model.clone()).collect(), common(&entries))
    }

    #[test]
    fn names_say_what_differs_in_numeric_order() {
        let width = |n: &'static str| run(n, "rnn", &[("model.hidden_size", n)]);
        let (names, shared) = named(Vec::from(["104", "16", "8"].map(width)));
        assert_eq!(names, ["width 8", "width 16", "width 104"]);
        assert_eq!(shared, ["RNN", "2 layers", "lr=0.001"]);

        let positions = |p: &'static str, a: &'static str| {
            run(
                p,
                "transformer",
                &[("model.positional_embedding", p), ("model.augmentation", a), ("model.hidden_size", "32")],
            )
        };
        let (names, shared) =
            named(vec![positions("rope", "shift"), positions("none", "none"), positions("absolute", "none")]);
        assert_eq!(names, ["absolute", "NoPE", "RoPE, shift"]);
        assert_eq!(shared, ["Transformer", "2 layers", "width 32", "lr=0.001"]);

        let all =
            vec![positions("rope", "shift"), width("8"), width("16"), run("l", "lstm", &[("model.hidden_size", "8")])];
        let (names, shared) = named(all);
        assert_eq!(names, ["LSTM", "RNN · width 8", "RNN · width 16", "Transformer (RoPE, shift)"]);
        assert_eq!(shared, ["2 layers", "lr=0.001"]);

        let lr = |n: &'static str| run(n, "rnn", &[("optimizer.lr", n)]);
        assert_eq!(named(Vec::from(["0.01", "3e-4", "0.001"].map(lr))).0, ["lr=3e-4", "lr=0.001", "lr=0.01"]);
        // A model on its own is called what it is.
        assert_eq!(
            named(vec![width("8")]),
            (vec!["RNN".into()], vec!["2 layers".into(), "width 8".into(), "lr=0.001".into()])
        );
    }
}
