//! The results of sweeps.

pub mod means;
pub mod metrics;
pub(crate) mod table;

use crate::{Result, Score, SweepFacts, to_record_batch};
use arrow::record_batch::RecordBatch;
use std::time::Duration;

/// How a length was evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Every track ran once, and its prefixes were scored from that pass.
    SinglePass,
    /// Every length ran on its own.
    Exhaustive,
    /// Every length ran on its own, and only sequences of equal length shared a batch, because padding changes the
    /// model's outputs.
    EqualLengths,
    /// Every sequence ran alone, because other rows of the batch change the model's outputs.
    OneByOne,
}

impl Plan {
    /// The name in result tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::SinglePass => "single_pass",
            Self::Exhaustive => "exhaustive",
            Self::EqualLengths => "equal_lengths",
            Self::OneByOne => "one_by_one",
        }
    }
}

/// The outcome of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct LengthResult {
    /// Main tokens.
    pub length: u32,
    /// Whether training reached this length.
    pub in_distribution: bool,
    /// How it was evaluated.
    pub plan: Plan,
    /// The accuracy of guessing, where the task states one.
    pub chance: Option<f64>,
    /// The score, or why there is none.
    pub outcome: std::result::Result<Score, String>,
}

impl LengthResult {
    /// The score, where there is one.
    pub fn score(&self) -> Option<&Score> {
        self.outcome.as_ref().ok()
    }

    /// `ok`, or why the length could not be scored.
    pub fn status(&self) -> &str {
        self.outcome.as_ref().err().map_or("ok", String::as_str)
    }
}

/// The model's predictions on one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// Main tokens.
    pub length: u32,
    /// Which track, or which example of a dataset.
    pub index: u64,
    /// All input token ids.
    pub input_ids: Vec<u16>,
    /// The labels at the labelled positions, in order; the last is the final count.
    pub gold: Vec<u16>,
    /// The predicted token ids at the same positions.
    pub predicted: Vec<u16>,
}

/// Everything a sweep found.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepResult {
    /// One per requested length, ascending.
    pub lengths: Vec<LengthResult>,
    /// One per sequence, ordered by (length, index); empty unless requested.
    pub predictions: Vec<Prediction>,
    /// The columns that are the same for all lengths.
    pub facts: SweepFacts,
}

impl SweepResult {
    /// The result table, one row per length.
    ///
    /// # Errors
    /// None that input can cause.
    pub fn to_record_batch(&self) -> Result<RecordBatch> {
        to_record_batch(&self.lengths, &self.facts)
    }
}

/// The result of [`Sweep::run_dataset`](crate::Sweep::run_dataset).
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetResult {
    /// By length, pooled over the passes; and the predictions of the first pass, if requested.
    pub by_length: SweepResult,
    /// Over all examples of the lengths that could be scored, and all passes. [`Score::unseen_accuracy`] is over the
    /// labelled positions whose rank is larger than any sequence of the task's validation split is long.
    pub total: Score,
    /// Cross entropy as the original reports it: the mean within each batch of 32 examples in file order, and the
    /// unweighted mean of those (a small last batch weighs as much as a full one).
    pub batch_mean_loss: Option<f64>,
    /// How often the whole dataset ran.
    pub loops: u32,
}

impl DatasetResult {
    /// `ok`, or the status of the first length without a score; the total is then over the others.
    pub fn status(&self) -> &str {
        self.by_length.lengths.iter().map(LengthResult::status).find(|status| *status != "ok").unwrap_or("ok")
    }
}

/// The progress of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Tokens that ran.
    pub tokens: u64,
    /// Tokens to run; grows where [`Sweep::until_width`](crate::Sweep::until_width) adds sequences.
    pub total_tokens: u64,
    /// Time that the sessions spent in ONNX Runtime, averaged over those side by side; the rest is overhead.
    pub busy: Duration,
    /// Lengths whose last sequence is scored.
    pub lengths: u64,
    /// Lengths to score.
    pub total_lengths: u64,
}
