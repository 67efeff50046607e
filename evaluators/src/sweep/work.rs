//! The state that the batches of a sweep share, and the scores of one batch.

use crate::model::contract::Interface;
use crate::sweep::plan::Budget;
use crate::{Prediction, Provider, Running, Score};
use data::{PositionSampling, Vocabulary};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

/// State shared by all batches of a sweep.
pub(crate) struct Work<'a> {
    pub path: &'a Path,
    pub interface: &'a Arc<Interface>,
    pub provider: Provider,
    pub vocabulary: &'a Vocabulary,
    pub positions: PositionSampling,
    pub budget: Budget,
    pub lengths: &'a [u32],
    /// See [`Running::with_seen`].
    pub seen: Option<u64>,
    pub keep_predictions: bool,
    /// The tokens of all lengths, ascending: the candidates where a longer sequence fails.
    pub sizes: Vec<usize>,
    /// Whether a sequence that is longer than one that fails, fails too. Otherwise every length is tried.
    pub regular: bool,
    pub learned: Learned,
}

/// Knowledge from failed passes. It spares later ones, and does not change results.
#[derive(Default)]
pub(crate) struct Learned {
    /// Batches of this many tokens and more ran out of memory; 0 where none did.
    pub(super) full: AtomicUsize,
    /// The edge beyond which single sequences fail.
    pub(super) edge: Mutex<Option<Edge>>,
    /// Whether sessions run side by side.
    pub(super) crowded: AtomicBool,
    /// Held by every pass, and exclusively by the search for the edge, so that no other pass uses memory then.
    pub(super) quiet: RwLock<()>,
}

/// The longest sequence that runs, and the status of every longer one.
#[derive(Debug, Clone)]
pub(super) struct Edge {
    pub tokens: usize,
    pub why: String,
}

/// The scores of one batch.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct BatchScore {
    /// Tokens that ran, without padding.
    pub tokens: u64,
    /// Time in ONNX Runtime, divided by the number of sessions side by side.
    pub busy: Duration,
    /// Per slot of the list of lengths; slots ascend.
    pub scores: Vec<(usize, Score)>,
    /// Slots that could not be scored, and why.
    pub failures: Vec<(usize, String)>,
    /// Per sequence, in the order of the batch: its index, its labelled positions and its summed loss.
    pub losses: Vec<(usize, u64, f64)>,
    pub predictions: Vec<Prediction>,
}

impl BatchScore {
    pub(super) fn add(&mut self, slot: usize, running: &Running) {
        let at = match self.scores.binary_search_by_key(&slot, |(s, _)| *s) {
            Ok(at) => at,
            Err(at) => {
                self.scores.insert(at, (slot, Score::default()));
                at
            }
        };
        self.scores[at].1.add(running);
    }

    pub(super) fn join(&mut self, mut other: Self) {
        self.tokens += other.tokens;
        self.busy += other.busy;
        for (slot, score) in other.scores {
            match self.scores.binary_search_by_key(&slot, |(s, _)| *s) {
                Ok(at) => self.scores[at].1.merge(&score),
                Err(at) => self.scores.insert(at, (slot, score)),
            }
        }
        self.failures.append(&mut other.failures);
        self.losses.append(&mut other.losses);
        self.predictions.append(&mut other.predictions);
    }
}
