//! Trains a small LSTM from Rust, without the command line, and prints its scores and its handle:
//! `cargo run --release -p pipeline --example train_from_rust --no-default-features --features train -- runs datasets`.

use pipeline::Workspace;
use pipeline::config::Config;
use pipeline::train::train;

const CONFIG: &str = "
    [task]
    name = 'counting_samesymbol_mod10bos'
    train_examples = 200
    [model]
    arch = 'lstm'
    hidden_size = 16
    [train]
    epochs = 2
    batch_size = 32
";

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut folder = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let workspace = Workspace::new(folder("runs"), folder("datasets")).with_progress();

    // A value that depends on the program is an override, as `--set` on the command line.
    let learning_rate = ("optimizer.lr".to_owned(), 3e-3.into());
    let config = Config::parse(CONFIG, &[learning_rate])?;

    let (run, outcome) = train(&workspace, config)?;
    for (split, evaluation) in &outcome.evaluations {
        let accuracy = evaluation.score.accuracy().unwrap_or(f64::NAN);
        println!("{split}: {:.1} % of the labels", 100.0 * accuracy);
    }
    println!("{} steps, loss {:.4}", outcome.steps, outcome.loss);
    println!("{}", run.handle());
    Ok(())
}
