//! The arguments of `pipeline reproduce`.

use super::whole;
use clap::{Args, ValueHint};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct ReproduceArgs {
    /// Table: the name of one that comes with the program (see --list), or a folder with table.toml and values.csv
    #[arg(required_unless_present = "list", value_hint = ValueHint::DirPath)]
    pub table: Option<String>,
    /// List the tables that come with the program
    #[arg(long, conflicts_with_all = ["table", "quick", "seeds", "workers", "only", "set", "dry_run", "retry", "output"])]
    pub list: bool,
    /// The quick version of the table: smaller models or fewer steps, for an afternoon on a CPU
    #[arg(long)]
    pub quick: bool,
    /// Runs of each cell that count [default: the table's]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<usize>(1, 10_000))]
    pub seeds: Option<usize>,
    /// Number of runs at the same time; they share the cores, and take the GPUs in turn [default: one per GPU, or one]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u16>(1, u64::from(u16::MAX)))]
    pub workers: Option<u16>,
    /// Only these rows of the table, or cells: ROW/COLUMN
    #[arg(long, value_name = "ROW", num_args = 1..)]
    pub only: Vec<String>,
    /// Override a key of every run, for example --set train.device=cuda; what is printed is no longer the table's then
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Only list the runs, their progress and how long training will take, and print what is known so far
    #[arg(long)]
    pub dry_run: bool,
    /// Try failed runs again
    #[arg(long)]
    pub retry: bool,
    /// Result file: one row per run and slice, and one per cell and slice; Parquet, or by its extension Arrow, CSV or JSON
    /// [default: published/TABLE.parquet in the runs folder]
    #[arg(short, long, value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}
