//! The command line. Each command turns its raw arguments into validated values, once.

pub mod contents;
pub mod endings;
pub mod outputs;
pub mod progress;
#[cfg(feature = "train")]
mod reproduce;
pub mod shell;
pub mod summary;
pub mod table;

use clap::{Args, Parser, Subcommand, ValueHint};
use data::Augmentation;
use evaluators::{Format, Lengths, Provider};
use std::path::PathBuf;

/// A parser of whole numbers from `low` to `high`. Arguments with it allow for hyphens, so that a negative number is said to
/// be out of range, not taken for an option that is not there.
fn whole<T: TryFrom<u64>>(low: u64, high: u64) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let found = text.parse::<u64>().ok().filter(|number| (low..=high).contains(number));
        found.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            let range = match high {
                u64::MAX => format!("{low} or more"),
                high if high == u64::from(u32::MAX) || high == i64::MAX as u64 => format!("{low} or more"),
                high => format!("from {low} to {high}"),
            };
            format!("it is no whole number in the range: {range}\n  hint: name one that is, or leave the option out")
        })
    }
}

/// Numbers of iterations of a looped model.
fn iterations(text: &str) -> Result<Lengths, String> {
    const MOST: u32 = 4096;
    let numbers = text.parse::<Lengths>().ok().filter(|numbers| numbers.as_slice().iter().all(|n| *n <= MOST));
    numbers.ok_or_else(|| format!("they are no numbers from 1 to {MOST}\n  hint: write 4, or 1..16, or 1,2,4,8"))
}

/// [`whole`] from 1 on.
#[cfg(feature = "train")]
fn positive(text: &str) -> Result<u32, String> {
    whole(1, u64::from(u32::MAX))(text)
}

/// A seed. Those that no config can hold are refused later, by the same words as in a config.
fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a seed is a whole number from 0 to {}\n  hint: name one in that range", i64::MAX))
}

/// Length generalisation: train sequence models on short sequences, export them to ONNX, and measure accuracy at lengths far
/// beyond training.
#[derive(Debug, Parser)]
#[command(name = "pipeline", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Folder of the runs
    #[arg(long, global = true, default_value = "runs", value_hint = ValueHint::DirPath)]
    pub runs_dir: PathBuf,
    /// Folder of the datasets
    #[arg(long, global = true, default_value = "datasets", value_hint = ValueHint::DirPath)]
    pub data_dir: PathBuf,
    /// Print one JSON document on standard output instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes on standard error
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More notes on standard error
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Run the program that makes the examples of a task of the family `command`. Configs and models name it: use this only
    /// with those whose author you trust
    #[arg(long, global = true)]
    pub allow_command: bool,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // one of them is made, once
pub enum Command {
    /// Train two models on lengths up to 50, export both, sweep both over lengths 1..1000, and plot: minutes on a CPU
    #[cfg(feature = "train")]
    Quickstart,
    /// List tasks; generate, import and show datasets
    #[command(subcommand)]
    Data(DataCommand),
    /// List architectures and positions with their settings, parameters and state sizes, or those of a config
    #[cfg(feature = "train")]
    Models(ModelsArgs),
    /// Train a model from a config, or resume a run
    #[cfg(feature = "train")]
    Train(TrainArgs),
    /// List, show and delete runs
    #[cfg(feature = "train")]
    Runs(RunsArgs),
    /// Import a PyTorch checkpoint of the paper's code, with its config.json, as a run
    #[cfg(feature = "train")]
    Import(ImportArgs),
    /// Export a run to ONNX and compare the file with the trained model
    #[cfg(feature = "train")]
    Export(ExportArgs),
    /// Measure accuracy at every test length, or on splits, through ONNX Runtime
    Eval(EvalArgs),
    /// Train, export and evaluate every job of a grid: tasks × architectures × positions × layers × seeds
    #[cfg(feature = "train")]
    #[command(visible_alias = "sweep")]
    Grid(GridArgs),
    /// Reproduce a published table: train, export and sweep its cells, and print theirs beside ours, with a verdict for each
    #[cfg(feature = "train")]
    Reproduce(ReproduceArgs),
    /// Write one page with the results of all runs: curves, tables, published values beside them
    #[cfg(feature = "train")]
    Report(ReportArgs),
    /// Measure how fast this machine trains
    #[cfg(feature = "train")]
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Show ONNX Runtime, its providers, GPUs, CPU features and versions on this machine
    Doctor,
}

#[cfg(feature = "train")]
impl Command {
    /// Whether it runs models on this processor outside of ONNX Runtime: trains, or compares a file with what was trained.
    pub fn computes(&self) -> bool {
        match self {
            Self::Quickstart | Self::Train(_) | Self::Import(_) | Self::Export(_) | Self::Bench(_) => true,
            Self::Eval(args) => args.checkpoints.is_some(), // exports those that are missing
            Self::Data(_)
            | Self::Models(_)
            | Self::Runs(_)
            | Self::Grid(_)
            | Self::Reproduce(_)
            | Self::Report(_)
            | Self::Doctor => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// List every task with its family, settings, vocabulary size and an example
    List,
    /// Write the splits of a task as Parquet
    Generate(GenerateArgs),
    /// Import examples from other programs, checking each: lines of JSON (tokens, then labels), or lists of ids in Parquet,
    /// Arrow, JSON or CSV
    Import(DataImportArgs),
    /// Print examples with lengths and labels of a dataset file, in any format that can be imported
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Task name (see `pipeline data list`), with settings after commas: modular,modulus=7,train_max=35
    #[arg(long)]
    pub task: String,
    /// Number of training examples, without auxiliary data; tasks with enumerated examples round down to whole copies
    /// [default: the paper's]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<usize>(1, u64::MAX))]
    pub train: Option<usize>,
    /// Seed of all sampling
    #[arg(long, default_value_t = 0, allow_hyphen_values = true, value_parser = seed)]
    pub seed: u64,
    /// Replace an existing dataset
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct DataImportArgs {
    /// Task of the examples; its vocabulary gives the ids
    #[arg(long)]
    pub task: String,
    /// Files to import, each as a split; or folders that hold the parts of a split
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// Name of the split, for a single file [default: the file's name without its extension]
    #[arg(long)]
    pub split: Option<String>,
    /// Also check the labels of every example against the task's rule
    #[arg(long)]
    pub check_labels: bool,
    /// Replace existing splits
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Dataset file, or a folder with its parts
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "task")]
    pub file: Option<PathBuf>,
    /// Task: without a file, tests of its first lengths are shown; with one, the task of the examples, where the file does
    /// not name it
    #[arg(long)]
    pub task: Option<String>,
    /// Show this split of the task's dataset under --data-dir: train, val, ood_test, the test of its auxiliary data, or an
    /// imported one
    #[arg(long, conflicts_with = "file")]
    pub split: Option<String>,
    /// Number of examples to print
    #[arg(short = 'n', long, default_value_t = 5, allow_hyphen_values = true, value_parser = whole::<usize>(0, u64::MAX))]
    pub examples: usize,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Config: TOML with the tables task, model, train, optimizer and eval; see configs/
    #[arg(long, value_hint = ValueHint::FilePath, required_unless_present = "resume")]
    pub config: Option<PathBuf>,
    /// Task name, with settings after commas; overrides task.name
    #[arg(long)]
    pub task: Option<String>,
    /// Seed of weights, batches and dropout; overrides train.seed. A list, 1,2,3, trains one run per seed
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_parser = seed)]
    pub seed: Vec<u64>,
    /// Device to train on: auto, cpu, cuda or cuda:N; overrides train.device
    #[arg(long)]
    pub device: Option<String>,
    /// Override any key, for example --set optimizer.lr=3e-4
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Resume this run from its last checkpoint, with its own config
    #[arg(long, value_name = "HANDLE", conflicts_with = "init_from")]
    pub resume: Option<String>,
    /// Start from the weights of a run's last checkpoint, or of a safetensors file; overrides train.init_from
    #[arg(long, value_name = "RUN|FILE")]
    pub init_from: Option<String>,
    /// Keep the newest N checkpoints and the best one; overrides train.keep
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u32>(0, u64::from(u32::MAX)))]
    pub keep: Option<u32>,
    /// Also write TensorBoard event files into the run; overrides train.tensorboard
    #[arg(long)]
    pub tensorboard: bool,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct RunsArgs {
    #[command(subcommand)]
    pub command: Option<RunsCommand>,
}

#[cfg(feature = "train")]
#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// List every run with its task, model, status and scores (the default)
    List,
    /// Show one run: config, checkpoints, the last scores of every split
    Show {
        /// Handle of the run [default: the newest]
        handle: Option<String>,
    },
    /// Delete runs and everything in them
    Rm {
        /// Handles of the runs
        #[arg(required = true)]
        handles: Vec<String>,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Folder with config.json and a checkpoint: model.safetensors, model.pt, pytorch_model.bin, shards with their index, or
    /// the newest under ckpts/ or checkpoint-N/; or a checkpoint file, with config.json in its folder or above
    #[arg(value_hint = ValueHint::AnyPath)]
    pub folder: PathBuf,
    /// Task name, where config.json does not give it
    #[arg(long)]
    pub task: Option<String>,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Config (TOML) whose model is counted [default: every architecture with its defaults]
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Task whose tokens the embedding and the decoder are for [default: the config's, or counting_samesymbol_mod10bos]
    #[arg(long)]
    pub task: Option<String>,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Handle of the run [default: the newest]
    #[arg(long)]
    pub handle: Option<String>,
    /// Export every run whose model is missing or older than its checkpoint
    #[arg(long, conflicts_with = "handle")]
    pub all: bool,
    /// Checkpoint to export: last, best, epoch-N, or the name of its folder; all writes a model into every checkpoint's
    /// folder
    #[arg(long, value_name = "CHECKPOINT")]
    pub checkpoint: Option<String>,
    /// Precision of matrix products: fp32, fp16 or bf16; everything else stays in float32
    #[arg(long, default_value = "fp32")]
    pub precision: String,
    /// Opset, the version of the ONNX operators: 20 to 23; every TensorRT 10 reads 20
    #[arg(long, allow_hyphen_values = true, value_parser = whole::<i64>(0, i64::MAX as u64))]
    pub opset: Option<i64>,
    /// Target runtime. portable: standard operators, for every runtime and GPUs; ort: fastest with ONNX Runtime on a CPU
    #[arg(long, default_value = "portable")]
    pub target: String,
    /// Do not compare the file with the trained model
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Handle of the run [default: the newest exported one]. Can be repeated
    #[arg(long, conflicts_with = "model")]
    pub handle: Vec<String>,
    /// Evaluate all checkpoints of one run, in one table; those without a model are exported first
    #[arg(long, value_name = "all", value_parser = ["all"], conflicts_with = "model")]
    pub checkpoints: Option<String>,
    /// ONNX model to evaluate instead of a run; docs/onnx-contract.md says what it must be like. Can be repeated
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub model: Vec<PathBuf>,
    /// Task name; required where the model's metadata has none
    #[arg(long)]
    pub task: Option<String>,
    /// Test lengths: 1..1000 (inclusive), 10..100:10, 10,50,100 [default: 1..1000, or none with --split]
    #[arg(long, allow_hyphen_values = true)]
    pub lengths: Option<Lengths>,
    /// Score a fixed set of examples: val, ood_test, another split of the task's dataset, or a file that `data import` takes.
    /// Can be repeated
    #[arg(long, value_name = "SPLIT|FILE")]
    pub split: Vec<String>,
    /// Passes over a split [default: 10 where positions are drawn at random, otherwise 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u32>(1, u64::from(u32::MAX)))]
    pub loops: Option<u32>,
    /// Maximum number of test sequences per length; tasks with fewer different ones use all of them [default: 100]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u64>(1, u64::MAX))]
    pub samples: Option<u64>,
    /// Sample more sequences of each length until the 95 % interval of its last-token accuracy is at most this wide
    #[arg(long, value_name = "WIDTH", allow_hyphen_values = true)]
    pub until_width: Option<f64>,
    /// Seed of sampled test sequences and random positions [default: 0]
    #[arg(long, value_name = "SEED", allow_hyphen_values = true, value_parser = whole::<u64>(0, u64::MAX))]
    pub seed: Option<u64>,
    /// Also print means over these lengths, for example 41..500: accuracy, above chance, exact match. Can be repeated
    #[arg(long, value_name = "LENGTHS", allow_hyphen_values = true)]
    pub mean: Vec<Lengths>,
    /// How often a looped model applies its blocks, one result for each number: 4, or 1..16, or 1,2,4,8 [default: as often as
    /// in training]
    #[arg(long, value_name = "NUMBERS", allow_hyphen_values = true, value_parser = iterations)]
    pub iterations: Option<Lengths>,
    /// Run every length separately, instead of scoring all lengths in one pass
    #[arg(long)]
    pub exhaustive: bool,
    /// How positions are drawn, where the model's metadata does not say: none, shift, randomized, scaler+shift or zooming
    #[arg(long, value_name = "NAME")]
    pub augmentation: Option<Augmentation>,
    /// Execution provider of ONNX Runtime: auto, cpu, cuda, tensorrt, tensorrt-rtx or openvino
    #[arg(long, default_value = "auto")]
    pub provider: Provider,
    /// Library of another provider: a plugin of ONNX Runtime 1.24 or later
    #[arg(long, value_name = "FILE", conflicts_with = "provider")]
    pub provider_library: Option<PathBuf>,
    /// Output of the model with the logits [default: `logits`, or the only output with three dimensions]
    #[arg(long, value_name = "NAME")]
    pub logits: Option<String>,
    /// Threads of the CPU provider, 1 to 1024 [default: all cores]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u16>(1, data::threads::MOST as u64))]
    pub threads: Option<u16>,
    /// ONNX Runtime sessions in parallel [default: one per thread on a CPU, fewer for large models and short sweeps; one on a
    /// GPU]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u16>(1, data::threads::MOST as u64))]
    pub workers: Option<u16>,
    /// Maximum tokens per batch, to bound memory [default: 65536 on a GPU; on a CPU 2048, or 16384 for models without states
    /// or attention]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u64>(1, u64::MAX))]
    pub max_tokens: Option<u64>,
    /// Start again, instead of continuing a killed sweep with the same options
    #[arg(long)]
    pub restart: bool,
    /// Format of the result tables: parquet, arrow, csv or json [default: by the extension of --output, or parquet]
    #[arg(long)]
    pub format: Option<Format>,
    /// Also write one row per sequence: input, gold, predicted
    #[arg(long)]
    pub predictions: bool,
    /// Result table, of all models together; plot and tables of splits are named after it [default: tables in each run's
    /// eval/ folder]
    #[arg(short, long, value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Report to write: a page (.html, one file that needs no network) or tables and figures (.md)
    #[arg(short, long, default_value = "report.html", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Published values to compare with: CSV with one row per model, seed and split
    #[arg(long, value_name = "CSV", value_hint = ValueHint::FilePath)]
    pub reference: Option<PathBuf>,
    /// Also write every figure as SVG and PNG into this folder [default for .md: OUTPUT-figures]
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub figures: Option<PathBuf>,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct GridArgs {
    /// Grid: TOML with tasks, seeds and architectures; the paper's are in configs/paper/grids/
    #[arg(value_hint = ValueHint::FilePath)]
    pub grid: PathBuf,
    /// Override a key of every job, for example --set train.max_steps=300
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Only list the jobs of the grid, their progress and how long training will take
    #[arg(long)]
    pub dry_run: bool,
    /// Number of jobs at the same time; they share the cores, and take the GPUs in turn [default: one per GPU, or one]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u16>(1, u64::from(u16::MAX)))]
    pub workers: Option<u16>,
    /// Try failed jobs again
    #[arg(long)]
    pub retry: bool,
    /// Where jobs are executed: here, or as a Slurm job array followed by a job for the report
    #[arg(long, value_enum, default_value_t = Launcher::Local)]
    pub launcher: Launcher,
    /// Slurm partition
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// Generic resources of each job in Slurm, for example gpu:1
    #[arg(long, value_name = "LIST")]
    pub gres: Option<String>,
    /// Time limit of each job in Slurm, for example 02:00:00; a job that reaches it continues when the grid is submitted again
    #[arg(long, value_name = "LIMIT")]
    pub time: Option<String>,
    /// Execute only the job with this index, from 0: used by the tasks of the job array
    #[arg(long, alias = "cell", value_name = "INDEX", conflicts_with_all = ["dry_run", "workers", "retry", "launcher"])]
    #[arg(allow_hyphen_values = true, value_parser = whole::<usize>(0, u64::MAX))]
    pub job: Option<usize>,
}

#[cfg(feature = "train")]
pub use self::reproduce::ReproduceArgs;

/// Where the jobs of a grid are executed.
#[cfg(feature = "train")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Launcher {
    /// Worker processes on this machine.
    Local,
    /// A Slurm job array.
    Slurm,
}

#[cfg(feature = "train")]
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time whole optimisation steps on random tokens (so that no example is a copy of another)
    Train(BenchTrainArgs),
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct BenchTrainArgs {
    /// Architecture
    #[arg(long, default_value = "lstm", help = format!("Architecture: {}", models::ModelConfig::ARCHITECTURES.join(", ")))]
    pub arch: String,
    /// Width of the model
    #[arg(long, default_value_t = 128, allow_hyphen_values = true, value_parser = positive)]
    pub hidden: u32,
    /// Number of layers [default: 1, or 2 for hybrids]
    #[arg(long, allow_hyphen_values = true, value_parser = positive)]
    pub layers: Option<u32>,
    /// Number of heads, where the architecture has them [default: 8 for the Transformer, otherwise one per 64 channels]
    #[arg(long, allow_hyphen_values = true, value_parser = positive)]
    pub heads: Option<u32>,
    /// Positional embedding of the Transformer, as `model.positional_embedding` of a config
    #[arg(long, value_name = "NAME")]
    pub positional_embedding: Option<String>,
    /// Examples per step
    #[arg(long, default_value_t = 32, allow_hyphen_values = true, value_parser = positive)]
    pub batch: u32,
    /// Tokens per example
    #[arg(long, default_value_t = 128, allow_hyphen_values = true, value_parser = positive)]
    pub seq: u32,
    /// Timed steps
    #[arg(long, default_value_t = 10, allow_hyphen_values = true, value_parser = positive)]
    pub steps: u32,
    /// Untimed steps before them
    #[arg(long, default_value_t = 3, allow_hyphen_values = true, value_parser = whole::<u32>(0, u64::from(u32::MAX)))]
    pub warmup: u32,
    /// Task whose vocabulary the tokens are drawn from
    #[arg(long, default_value = "counting_samesymbol")]
    pub task: String,
    /// Device to train on: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Override any key of the config, for example --set optimizer.grad_clip=0.3
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
}
