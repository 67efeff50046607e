//! Sweeps an ONNX model over lengths: `cargo run --release -p evaluators --example sweep -- model.onnx [1..1000]`.
//!
//! The task is the one that the model's metadata names. Prints where the model is right, length by length, and writes
//! `sweep.csv` into the current folder.

use evaluators::{EvalError, Format, Lengths, LoadOptions, Model, Sweep, write};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(model) = arguments.next() else {
        eprintln!("usage: sweep MODEL.onnx [LENGTHS]");
        return ExitCode::from(2);
    };
    match sweep(Path::new(&model), &arguments.next().unwrap_or_else(|| "1..1000".into())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn sweep(path: &Path, lengths: &str) -> Result<(), EvalError> {
    let mut model = Model::load(path, LoadOptions::default())?;
    eprintln!("evaluating {} on {}", path.display(), model.provider());

    let result = Sweep::new(&mut model)
        .lengths(lengths.parse::<Lengths>()?)
        .progress(|p| eprint!("\r{} of {} lengths", p.lengths, p.total_lengths))
        .results()?;
    eprintln!();

    for length in &result.lengths {
        let percent = length.score().and_then(|s| s.last_accuracy()).map(|a| format!("{:.1} %", 100.0 * a));
        println!("{:>6}  {}", length.length, percent.as_deref().unwrap_or(length.status()));
    }
    write(&result.to_record_batch()?, Format::Csv, Path::new("sweep.csv"))
}
