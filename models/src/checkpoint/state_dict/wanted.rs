//! The tensors that a model needs, and the prefixes under which a file may have them.

use super::StateDict;
use super::contents::Entry;
use crate::Model;
use crate::checkpoint::weights::{SHARED, checkpoint_name, is_float, with_axes};
use crate::ops::SequenceOps;
use burn_store::ModuleSnapshot;
use std::collections::{BTreeMap, BTreeSet};

/// Names that wrappers of modules put into the names of what they wrap: `torch.compile`, DeepSpeed, FSDP, activation
/// checkpointing.
const WRAPPERS: [&str; 4] = ["_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Names under which models themselves are saved.
const PLAIN: [&str; 13] = [
    "module",
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "parameters",
    "state",
    "app",
    "checkpoint",
];

/// Words in the names of running averages of weights.
pub(super) const AVERAGED: [&str; 8] = ["ema", "swa", "average", "averaged", "avg", "shadow", "polyak", "lookahead"];

/// Keys of tensors that are shaped like weights but are not: moments and gradients.
const OPTIMISER: [&str; 12] = [
    "optimizer",
    "optimizers",
    "optim",
    "optimizer_state",
    "optimizer_state_dict",
    "opt_state",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
    "grad",
    "grads",
];

/// Words in the names of modules with tensors of their own beside a model.
pub(super) const BESIDE: [&str; 4] = ["loss", "criterion", "metric", "metrics"];

/// The tensors and numbers that a model needs.
pub(super) struct Wanted {
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
    pub(super) integers: BTreeSet<String>,
}

impl Wanted {
    pub(super) fn of<B: SequenceOps>(model: &Model<B>) -> Self {
        let snapshots = model.collect(None, None, true);
        let shape = |s: &burn_store::TensorSnapshot| (checkpoint_name(&s.full_path()), s.shape.as_slice().to_vec());
        Self {
            shapes: snapshots.iter().map(shape).collect(),
            integers: model.integers().map(|(name, _)| name).collect(),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.shapes.keys().chain(&self.integers).map(String::as_str)
    }

    /// The tables that the model ties: (second name, name).
    pub(super) fn tied(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let tied =
            |(second, name): &(&str, &str)| self.shapes.contains_key(*name) && !self.shapes.contains_key(*second);
        SHARED.iter().copied().filter(tied)
    }
}

/// A prefix, and where the model's tensors after it are.
pub(super) struct Candidate {
    pub(super) prefix: String,
    pub(super) first: BTreeMap<String, usize>,
    /// Under the second names of tied tables.
    pub(super) second: BTreeMap<String, usize>,
    /// Names that occur twice with different numbers.
    pub(super) twice: Vec<String>,
}

impl Candidate {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), first: BTreeMap::new(), second: BTreeMap::new(), twice: vec![] }
    }

    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.first.get(name).or_else(|| self.second.get(name)).copied()
    }

    /// Names and places.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, usize)> {
        let more = self.second.iter().filter(|(name, _)| !self.first.contains_key(*name));
        self.first.iter().chain(more).map(|(name, i)| (name.as_str(), *i))
    }

    /// Whether every tensor is found, in the right shape.
    pub(super) fn fits(&self, file: &StateDict, wanted: &Wanted) -> bool {
        let entry = |name: &str| Some(&file.entries[self.place(name)?].1).filter(|entry| entry.view.is_ok());
        let scalar = |entry: &Entry| entry.shape.iter().product::<usize>() == 1;
        let is_number = |entry: &&Entry| entry.view.as_ref().is_ok_and(|view| is_float(view.dtype));
        self.twice.is_empty()
            && wanted
                .shapes
                .iter()
                .all(|(n, shape)| entry(n).filter(is_number).is_some_and(|e| with_axes(&e.shape) == *shape))
            && wanted.integers.iter().all(|name| entry(name).is_some_and(scalar))
    }

    pub(super) fn is_plain(&self) -> bool {
        self.prefix.split_terminator('.').all(|key| PLAIN.contains(&key))
    }

    pub(super) fn shown(&self) -> String {
        shown(&self.prefix)
    }
}

fn shown(prefix: &str) -> String {
    if prefix.is_empty() { "names without a prefix".into() } else { format!("`{prefix}`") }
}

/// A few names, and the number of further ones.
pub(super) fn few(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let more = if names.len() > SHOWN { format!(", … ({} in all)", names.len()) } else { String::new() };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

/// Whether a name has one of the words, in capitals or not, delimited by non-letters.
pub(super) fn has_word(name: &str, words: &[&str]) -> bool {
    name.split(|c: char| !c.is_alphabetic()).any(|part| words.contains(&part.to_lowercase().as_str()))
}

/// Whether a name leads through the state of an optimiser.
pub(super) fn is_optimiser(name: &str) -> bool {
    name.split('.').any(|key| OPTIMISER.contains(&key))
}

/// A name without the modules that only wrap others.
pub(super) fn unwrapped(name: &str) -> String {
    let kept: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    kept.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_what_only_wraps_them_and_words_are_whole() {
        assert_eq!(unwrapped("module._orig_mod.encoder.weight"), "module.encoder.weight");
        assert_eq!(unwrapped("_forward_module.h.0._checkpoint_wrapped_module.ln.bias"), "h.0.ln.bias");
        assert!(has_word("ema_model.", &AVERAGED) && has_word("model.EMA.", &AVERAGED));
        assert!(!has_word("schema.", &AVERAGED));
    }
}
