//! `pipeline quickstart`: the paper's headline, measured on this machine in minutes.

use super::Context;
use crate::cli::summary::{mean_last_accuracy, percent, table};
use crate::config::Config;
use crate::export::export_run;
use crate::plot::{self, Figure, Series};
use crate::run::RunDir;
use crate::train::{prepare_dataset, train};
use anyhow::{Context as _, Result};
use data::Task;
use evaluators::{Format, LengthResult, LoadOptions, Model, Sweep, write};
use serde_json::json;
use std::time::Instant;

/// The same files that `pipeline train --config` takes.
const CONFIGS: [&str; 2] =
    [include_str!("../../../configs/quickstart.toml"), include_str!("../../../configs/quickstart-transformer.toml")];

/// The longest length of the sweep.
const LONGEST: u32 = 1000;

/// A model that was trained, exported and swept.
struct Finished {
    run: RunDir,
    label: String,
    lengths: Vec<LengthResult>,
}

pub fn run(context: &Context) -> Result<()> {
    let start = Instant::now();
    let configs = CONFIGS.map(|text| Config::parse(text, &[]));
    let configs: Vec<Config> = configs.into_iter().collect::<Result<_>>()?;
    let task = Task::by_name(&configs[0].task.name)?;
    let train_max = task.family.train_max_length();
    let note = |line: String| context.progress.note(line);

    note(format!("1/3 training two models on lengths 1..{train_max} of {}", task.name));
    prepare_dataset(context, &configs[0])?;
    let runs = train_side_by_side(context, &configs)?;

    note("2/3 exporting both to ONNX".into());
    runs.iter().try_for_each(|run| export_run(context, run, &Default::default()).map(|_| ()))?;

    note(format!("3/3 sweeping both over lengths 1..{LONGEST} through ONNX Runtime"));
    let finished = runs.into_iter().zip(&configs).map(|(run, config)| sweep(context, run, config, &task));
    let finished: Vec<Finished> = finished.collect::<Result<_>>()?;

    let period = plot::period(task.family.as_ref());
    let figure = Figure {
        title: format!("Trained up to length {train_max}: who still counts at {LONGEST}?"),
        subtitle: format!("{} · last-token accuracy{}", task.name, plot::smoothing_note(LONGEST as usize, period)),
        x_title: plot::length_title(&task.name),
        train_max: Some(train_max),
        period,
        chance: plot::chance(task.family.as_ref()),
        series: finished.iter().map(|f| Series { label: f.label.clone(), points: plot::points(&f.lengths) }).collect(),
    };
    let [svg, png] = plot::write(&figure, &context.runs.join("quickstart"))?;
    let sentences: Vec<String> = finished.iter().map(|f| sentence(f, train_max)).collect();
    let seconds = start.elapsed().as_secs_f64();

    let as_json = || {
        let runs: Vec<_> = finished
            .iter()
            .zip(&sentences)
            .map(|(f, sentence)| {
                json!({
                    "handle": f.run.handle(),
                    "model": f.label,
                    "trained_lengths": mean_last_accuracy(&f.lengths, |l| l <= train_max),
                    "longer_lengths": mean_last_accuracy(&f.lengths, |l| l > train_max),
                    "first_wrong_length": first_wrong(f),
                    "finding": sentence,
                })
            })
            .collect();
        json!({ "task": task.name, "seconds": seconds, "runs": runs, "plots": [svg, png] })
    };
    let as_text = || {
        let mut text = String::new();
        for f in &finished {
            text += &format!("\n{} (run {})\n{}\n", f.label, f.run.handle(), table(&f.lengths, Some(train_max)));
        }
        text + &format!("\n{}\n\nplot: {} and {}\n", sentences.join(" "), png.display(), svg.display())
    };
    context.print(as_json, as_text)
}

/// Small models leave cores idle, so both train at once; neither's result depends on that.
fn train_side_by_side(context: &Context, configs: &[Config]) -> Result<Vec<RunDir>> {
    let begin = |config: &Config| {
        let config = config.clone();
        move || train(context, config)
    };
    let ended = data::threads::all(configs.iter().map(begin)).into_iter().map(|ended| {
        let (run, _) = ended.ok().context("a training thread broke off")??;
        Ok(run)
    });
    ended.collect()
}

fn sweep(context: &Context, run: RunDir, config: &Config, task: &Task) -> Result<Finished> {
    let _lock = run.read_models(|note| context.progress.note(note));
    let mut model = Model::load(&run.onnx(), LoadOptions::default())?;
    let result = Sweep::new(&mut model).task(task).lengths(1..=LONGEST).results()?;
    let path = run.eval().join("sweep.parquet");
    write(&result.to_record_batch()?, Format::Parquet, &path)?;
    context.progress.detail(format!("wrote {}", path.display()));
    let label = plot::display_name(config.model.arch(), config.model.positional_embedding());
    Ok(Finished { run, label, lengths: result.lengths })
}

/// The first length whose last token is not always right.
fn first_wrong(finished: &Finished) -> Option<u32> {
    let wrong = |r: &&LengthResult| r.score().and_then(|s| s.last_accuracy()).is_none_or(|a| a < 1.0);
    finished.lengths.iter().find(wrong).map(|r| r.length)
}

fn sentence(finished: &Finished, train_max: u32) -> String {
    let mean = |wanted: &dyn Fn(u32) -> bool| percent(mean_last_accuracy(&finished.lengths, wanted));
    let name = &finished.label;
    match first_wrong(finished) {
        None => format!("The {name} still counts at {LONGEST}: its last token is right at every length 1..{LONGEST}."),
        Some(length) => format!(
            "The {name} is first wrong at length {length}: right on {} of the lengths it was trained on (1..{train_max}), and on {} of those beyond.",
            mean(&|l| l <= train_max),
            mean(&|l| l > train_max),
        ),
    }
}
