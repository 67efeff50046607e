//! Models that count by construction (written by `fixtures/make.py`), and the tasks they were made for.

use data::Task;
use evaluators::{LengthResult, Lengths, LoadOptions, Model, Provider, Sweep, SweepResult};
use std::path::PathBuf;

pub const MOD10: &str = "counting_samesymbol_mod10bos";
pub const SHIFTED: &str = "counting_samesymbol_shiftedstart3";

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.onnx"))
}

pub fn on_cpu(threads: usize) -> LoadOptions {
    LoadOptions { provider: Provider::Cpu, threads: Some(threads) }
}

pub fn model(name: &str) -> Model {
    Model::load(&fixture(name), on_cpu(1)).unwrap()
}

/// Sweeps a fixture over `lengths`, changed by `adjust`.
pub fn sweep(name: &str, task: &str, lengths: &str, adjust: impl FnOnce(Sweep<'_>) -> Sweep<'_>) -> SweepResult {
    let (mut model, task) = (model(name), Task::by_name(task).unwrap());
    adjust(Sweep::new(&mut model).task(&task).lengths(lengths.parse::<Lengths>().unwrap())).results().unwrap()
}

pub fn statuses(results: &[LengthResult]) -> Vec<&str> {
    results.iter().map(LengthResult::status).collect()
}
