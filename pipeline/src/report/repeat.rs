//! The commands that repeat the numbers of a report.

use super::entries::Entry;
use crate::cli::shell::quoted;
use data::GENERATOR_VERSION;

/// The versions that numbers depend on.
pub fn versions() -> String {
    let library = evaluators::RuntimeLibrary::find().ok().flatten().and_then(|library| library.version);
    format!(
        "pipeline {} · dataset generator {GENERATOR_VERSION} · ONNX Runtime {} · {}-{}. A run's config.toml is resolved: training on it \
         repeats the run, bit for bit on a CPU.",
        env!("CARGO_PKG_VERSION"),
        library.as_deref().unwrap_or("not found here"),
        std::env::consts::ARCH,
        std::env::consts::OS,
    )
}

/// For every run of a entry the line that trains, exports and evaluates it again. `runs` is the runs folder.
pub fn commands(entry: &Entry, runs: &str) -> Vec<String> {
    let mut eval = String::from("pipeline eval");
    let lengths: Vec<u32> = entry.sweeps.first().into_iter().flatten().map(|row| row.length).collect();
    match (lengths.first(), lengths.last()) {
        (Some(first), Some(last)) if lengths.len() as u32 == last - first + 1 => {
            eval += &format!(" --lengths {first}..{last}");
        }
        (Some(_), Some(_)) => {
            let all: Vec<String> = lengths.iter().map(u32::to_string).collect();
            eval += &format!(" --lengths {}", all.join(","));
        }
        _ => {}
    }
    for split in entry.totals.keys() {
        eval += &format!(" --split {}", quoted(split));
    }
    let sequences = entry.sweeps.iter().flatten().map(|row| row.sequences).max();
    if let Some(samples) = sequences.filter(|n| *n > 100) {
        eval += &format!(" --samples {samples}");
    }
    if let Some(iterations) = entry.settings.get("iterations") {
        eval += &format!(" --iterations {iterations}");
    }
    let precision = entry.settings.get("precision").filter(|p| *p != "fp32");
    let export = format!("pipeline export{}", precision.map(|p| format!(" --precision {p}")).unwrap_or_default());
    let evaluated = !entry.sweeps.is_empty() || !entry.totals.is_empty();
    let command = |(handle, _): &(String, _)| {
        let train = format!("pipeline train --config {}", quoted(&format!("{runs}/{handle}/config.toml")));
        if evaluated { format!("{train} && {export} && {eval}") } else { train }
    };
    entry.runs.iter().map(command).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::read::Length;

    #[test]
    fn a_command_names_what_was_swept() {
        let row = |length| Length { length, sequences: 200, last_accuracy: 1.0, in_distribution: true };
        let runs = vec![("1123_142530".to_owned(), Some(1))];
        let entry = Entry { runs, sweeps: vec![(1..=20).map(row).collect()], ..Entry::default() };
        let expected = "pipeline train --config 'my runs/1123_142530/config.toml' && pipeline export && \
                        pipeline eval --lengths 1..20 --samples 200";
        assert_eq!(commands(&entry, "my runs"), [expected]);
    }
}
