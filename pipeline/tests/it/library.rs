//! Training from Rust, by a program that watches it.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use pipeline::config::Config;
use pipeline::train::{resume, train};
use pipeline::{ReportPlan, RunDir, Status, StepReport, Watcher, Workspace, write_report};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stops after so many steps.
#[derive(Default)]
struct Stops {
    after: u64,
    steps: AtomicU64,
    lines: AtomicU64,
}

impl Watcher for Stops {
    fn step(&self, report: &StepReport) -> bool {
        assert_eq!(report.total_steps, 8);
        self.steps.store(report.step, Ordering::Relaxed);
        report.step < self.after
    }

    fn note(&self, line: &str) {
        assert!(!line.is_empty());
        self.lines.fetch_add(1, Ordering::Relaxed);
    }
}

fn config() -> Config {
    let text = "[task]\nname = 'counting_samesymbol_mod10bos'\ntrain_examples = 96\n[model]\narch = 'gru'\nhidden_size = 8\n\
                [train]\nbatch_size = 16\nepochs = 2\ndevice = 'cpu'\nlog_every = 2";
    Config::parse(text, &[]).unwrap()
}

fn weights(run: &RunDir) -> Vec<u8> {
    let (steps, folder) = run.checkpoints().pop().unwrap();
    assert_eq!(steps, 8);
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn a_watcher_stops_a_run_which_goes_on_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let workspace = |watcher: &Arc<Stops>| {
        Workspace::new(dir.path().join("runs"), dir.path().join("datasets")).watched_by(watcher.clone())
    };
    let never = Arc::new(Stops { after: 100, ..Stops::default() });
    let (whole, outcome) = train(&workspace(&never), config()).unwrap();
    assert_eq!((outcome.steps, never.steps.load(Ordering::Relaxed)), (8, 8));
    assert!(never.lines.load(Ordering::Relaxed) >= 2);

    let early = Arc::new(Stops { after: 5, ..Stops::default() });
    let error = pipeline::describe(&train(&workspace(&early), config()).unwrap_err());
    assert!(error.starts_with("interrupted: run ") && error.contains("is saved at step 5 of 8"), "{error}");
    let run = workspace(&never).runs().unwrap().pop().unwrap();
    assert_eq!(run.progress().map(|p| (p.status, p.step)), Some((Status::Interrupted, 5)));
    assert!(resume(&workspace(&never), &run, &[]).unwrap().finished);
    assert_eq!(weights(&run), weights(&whole));

    let plan = ReportPlan { output: dir.path().join("report.html"), reference: None, figures: None };
    let written = write_report(&workspace(&never), &plan).unwrap();
    assert_eq!((written.results, written.entries), (0, 1), "training curves are results, too");
    assert!(Path::new(&plan.output).is_file());
}
