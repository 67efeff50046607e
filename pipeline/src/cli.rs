//! The command line. Raw arguments are turned into validated values by each command, once.

use clap::{Args, Parser, Subcommand, ValueHint};
use data::Augmentation;
use evaluators::{Format, Lengths, Provider};
use std::path::PathBuf;

/// Train sequence models on counting tasks, export them to ONNX, and test them on lengths far beyond training.
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
    /// Where runs are kept
    #[arg(long, global = true, default_value = "runs", value_hint = ValueHint::DirPath)]
    pub runs_dir: PathBuf,
    /// Where datasets are kept
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
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The paper's headline in minutes: train two models on lengths up to 50, sweep both over 1..1000, plot
    #[cfg(feature = "train")]
    Quickstart,
    /// List tasks; generate and look at datasets
    #[command(subcommand)]
    Data(DataCommand),
    /// Train a model
    #[cfg(feature = "train")]
    Train(TrainArgs),
    /// List runs, look at one, delete some
    #[cfg(feature = "train")]
    Runs(RunsArgs),
    /// Make a run out of one of the original PyTorch code: its config.json and a checkpoint
    #[cfg(feature = "train")]
    Import(ImportArgs),
    /// Write a trained run as ONNX and check it against the model that was trained
    #[cfg(feature = "train")]
    Export(ExportArgs),
    /// Sweep test lengths through ONNX Runtime
    Eval(EvalArgs),
    /// Train, export and evaluate every cell of a grid: tasks, architectures, positions, layers, seeds
    #[cfg(feature = "train")]
    Sweep(SweepArgs),
    /// Put all results of all runs on one page: curves, tables, the values of the paper beside them
    #[cfg(feature = "train")]
    Report(ReportArgs),
    /// Measure how fast this machine trains
    #[cfg(feature = "train")]
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Show what this machine offers: ONNX Runtime, providers, GPUs, CPU features, versions
    Doctor,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Every task with its family, settings, vocabulary size and an example
    List,
    /// Write the splits of a task as Parquet
    Generate(GenerateArgs),
    /// Take over examples from elsewhere, checking every one: lines of JSON (tokens, then labels) or Parquet
    Import(DataImportArgs),
    /// Print examples, lengths and labels of a dataset file, Parquet or text
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Task name, see `pipeline data list`; settings after commas: modular,modulus=7,train_max=35
    #[arg(long)]
    pub task: String,
    /// Training examples, auxiliary data not counted; enumerated tasks round down to whole copies [default: the paper's]
    #[arg(long, value_name = "N")]
    pub train: Option<usize>,
    /// Seed of everything that is sampled
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace a dataset that is already there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct DataImportArgs {
    /// The task whose examples they are; its vocabulary gives the ids
    #[arg(long)]
    pub task: String,
    /// Files to import, each as a split
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// Name of the split, for a single file [default: the file's name without its ending]
    #[arg(long)]
    pub split: Option<String>,
    /// Also check every example against the task's label rule
    #[arg(long)]
    pub check_labels: bool,
    /// Replace splits that are already there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A dataset file, Parquet or text
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "task")]
    pub file: Option<PathBuf>,
    /// Instead of a file: this task's dataset under --data-dir. With a text file: the task it is of
    #[arg(long)]
    pub task: Option<String>,
    /// Which of the task's splits: train, val, ood_test, the test of its auxiliary data, or an imported one
    #[arg(long, default_value = "val", conflicts_with = "file")]
    pub split: String,
    /// How many examples to print
    #[arg(short = 'n', long, default_value_t = 5)]
    pub examples: usize,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// TOML with the tables task, model, train, optimizer and eval; see configs/
    #[arg(long, value_hint = ValueHint::FilePath, required_unless_present = "resume")]
    pub config: Option<PathBuf>,
    /// Task name; overrides task.name
    #[arg(long)]
    pub task: Option<String>,
    /// Seed of weights, batches and dropout; overrides train.seed. Several make several runs, one after the other
    #[arg(long, value_delimiter = ',')]
    pub seed: Vec<u64>,
    /// Where to train: auto, cpu, cuda or cuda:N; overrides train.device
    #[arg(long)]
    pub device: Option<String>,
    /// Override any key, for example --set optimizer.lr=3e-4
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Go on with this run from its last checkpoint, with its own config
    #[arg(long, value_name = "HANDLE", conflicts_with = "init_from")]
    pub resume: Option<String>,
    /// Start from the weights of a run's last checkpoint, or of a safetensors file; overrides train.init_from
    #[arg(long, value_name = "RUN|FILE")]
    pub init_from: Option<String>,
    /// Keep this many of the newest checkpoints, and the best one; overrides train.keep
    #[arg(long, value_name = "N")]
    pub keep: Option<u32>,
    /// Write TensorBoard event files into the run as well; overrides train.tensorboard
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
    /// Every run with its task, model, status and scores (the default)
    List,
    /// One run: config, checkpoints, the last scores of every split
    Show {
        /// The run; the newest one if left out
        handle: Option<String>,
    },
    /// Delete runs with everything in them
    Rm {
        /// The runs
        #[arg(required = true)]
        handles: Vec<String>,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The folder with config.json, and with model.safetensors or model.pt beside it, or checkpoints under ckpts/
    #[arg(value_hint = ValueHint::DirPath)]
    pub folder: PathBuf,
    /// Task name, where the config does not say it
    #[arg(long)]
    pub task: Option<String>,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run; the newest one if left out
    #[arg(long)]
    pub handle: Option<String>,
    /// Every run of the runs folder whose model is not newer than its checkpoint
    #[arg(long, conflicts_with = "handle")]
    pub all: bool,
    /// last, best, epoch-N, or the name of a checkpoint's folder; all puts a model into every checkpoint's folder
    #[arg(long, value_name = "CHECKPOINT")]
    pub checkpoint: Option<String>,
    /// Precision of the products: fp32, fp16 or bf16; the rest stays in float32
    #[arg(long, default_value = "fp32")]
    pub precision: String,
    /// Version of ONNX's operators, 20 to 23; 20 is what every TensorRT 10 reads
    #[arg(long)]
    pub opset: Option<i64>,
    /// portable: standard operators, for every runtime and GPUs; ort: what ONNX Runtime is fastest with on a CPU
    #[arg(long, default_value = "portable")]
    pub target: String,
    /// Do not compare the file with burn in ONNX Runtime
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The run; the newest exported one if left out. Can be repeated
    #[arg(long, conflicts_with = "model")]
    pub handle: Vec<String>,
    /// all: every checkpoint of one run, in one table; those without a model are exported first
    #[arg(long, value_name = "all", value_parser = ["all"], conflicts_with = "model")]
    pub checkpoints: Option<String>,
    /// Any ONNX model that keeps the contract in the README, instead of a run. Can be repeated
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub model: Vec<PathBuf>,
    /// Task name; needed where the model does not say it
    #[arg(long)]
    pub task: Option<String>,
    /// Test lengths: 1..1000 (both ends count), 10..100:10, 10,50,100. Default: 1..1000, or none where there is a --split
    #[arg(long)]
    pub lengths: Option<Lengths>,
    /// Also score examples as they are: val, ood_test, another split of the task's dataset, or a .parquet or .txt
    /// file. Can be repeated
    #[arg(long, value_name = "SPLIT|FILE")]
    pub split: Vec<String>,
    /// Passes over a split. Default: 10 where positions are drawn at random, otherwise 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub loops: Option<u32>,
    /// Test sequences per length at most; tasks with fewer different ones use all of them
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: u64,
    /// Take more sequences of every length until the 95 % interval of its last accuracy is at most this wide
    #[arg(long, value_name = "WIDTH")]
    pub until_width: Option<f64>,
    /// Seed of sampled test sequences and of drawn positions
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Run every length on its own, instead of reading all lengths off one pass
    #[arg(long)]
    pub exhaustive: bool,
    /// How positions are made, where the model does not say it: none, shift, randomized, scaler+shift or zooming
    #[arg(long, value_name = "NAME")]
    pub augmentation: Option<Augmentation>,
    /// Where to run: auto, cpu, cuda or tensorrt
    #[arg(long, default_value = "auto")]
    pub provider: Provider,
    /// Threads of the CPU provider; all cores if left out
    #[arg(long)]
    pub threads: Option<usize>,
    /// Sessions side by side. Default: one per thread on a CPU (fewer for large models and short sweeps), one on a GPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: Option<u16>,
    /// Tokens in one batch at most; bounds the memory. Default: 65536 on a GPU; on a
    /// CPU 2048, or 16384 for models without states or attention
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_tokens: Option<u64>,
    /// Begin anew, where a killed sweep with the same options would be taken up
    #[arg(long)]
    pub restart: bool,
    /// Format of the result tables: parquet, arrow, csv or json
    #[arg(long, default_value = "parquet")]
    pub format: Format,
    /// Also write one row per sequence: input, gold, predicted
    #[arg(long)]
    pub predictions: bool,
    /// Where to write the result table, of all models together; its name also names the plot and the tables of splits.
    /// Default: each run's eval/ folder
    #[arg(short, long, value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Where to write it: a page (.html, one file that needs no network) or tables and figures (.md)
    #[arg(short, long, default_value = "report.html", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Published values to set beside the measured ones: CSV with one row per model, seed and split
    #[arg(long, value_name = "CSV", value_hint = ValueHint::FilePath)]
    pub reference: Option<PathBuf>,
    /// Also write every figure as SVG and PNG into this folder. Default for .md: OUTPUT-figures
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub figures: Option<PathBuf>,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// TOML with tasks, seeds and architectures; the paper's are in configs/paper/grids/
    #[arg(value_hint = ValueHint::FilePath)]
    pub grid: PathBuf,
    /// Override a key of every cell, for example --set train.max_steps=300
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Only list the cells, how far they are and how long training them will take
    #[arg(long)]
    pub dry_run: bool,
    /// Cells at the same time; they share the cores, and take the GPUs in turn. Default: one per GPU, or one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: Option<u16>,
    /// Try cells again that failed
    #[arg(long)]
    pub retry: bool,
    /// Where cells run: here, or as a Slurm job array with a job for the report behind it
    #[arg(long, value_enum, default_value_t = Launcher::Local)]
    pub launcher: Launcher,
    /// Slurm's partition
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// What a cell gets from Slurm besides cores, for example gpu:1
    #[arg(long, value_name = "LIST")]
    pub gres: Option<String>,
    /// Slurm's time limit of a cell, for example 02:00:00; a cell that meets it goes on when the sweep is submitted again
    #[arg(long, value_name = "LIMIT")]
    pub time: Option<String>,
    /// Only this cell, counted from 0: what a task of the job array runs
    #[arg(long, value_name = "INDEX", conflicts_with_all = ["dry_run", "workers", "retry", "launcher"])]
    pub cell: Option<usize>,
}

/// Where the cells of a sweep run.
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
    /// Time whole optimisation steps of the trainer on random tokens, so that no example is a copy of another
    Train(BenchTrainArgs),
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct BenchTrainArgs {
    /// Architecture: rnn, lstm, gru, mingru, s4, mamba, rwkv5, rwkv6, deltanet or transformer
    #[arg(long, default_value = "lstm")]
    pub arch: String,
    /// Width
    #[arg(long, default_value_t = 128)]
    pub hidden: u32,
    /// Layers
    #[arg(long, default_value_t = 1)]
    pub layers: u32,
    /// Heads, where the architecture has them [default: 8 of the Transformer; one per 64 channels]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub heads: Option<u32>,
    /// Positions of the Transformer: none, absolute, sinusoidal, rope or scalar
    #[arg(long, value_name = "NAME")]
    pub positional_embedding: Option<String>,
    /// Examples in a step
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
    /// Tokens of an example
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub seq: u32,
    /// Steps that are timed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// Steps before that
    #[arg(long, default_value_t = 3)]
    pub warmup: u32,
    /// Task whose vocabulary the tokens are from
    #[arg(long, default_value = "counting_samesymbol")]
    pub task: String,
    /// Where to train: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Override any key of the config, for example --set optimizer.grad_clip=0.3
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
}
