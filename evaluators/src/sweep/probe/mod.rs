//! Probes the properties of a model that a sweep relies on.
//!
//! A sweep saves work where a model's outputs are independent: one pass answers all lengths if no output depends on
//! later tokens, rows of different length share a batch if padding changes nothing, and rows share a batch at all
//! if they do not change each other. The files of this project's exporter are known to be like that. Any other
//! model is probed: it runs test sequences of the task and random ones, alone, with other continuations, padded and in
//! batches, and any difference beyond rounding counts. The probe covers the sweep's conditions: up to the longest
//! sequence, in batches as large, and, where one pass is to answer all lengths, at as many of these lengths on their
//! own as is affordable.
//!
//! The sequences are the same every time, so that the same model gets the same answer.

mod prober;
mod samples;

use crate::sweep::setting::Setting;
use crate::{Model, Plan, Provider, Result};
use prober::{Difference, Prober};
use std::fmt::{Display, Formatter};

/// Whether a model has a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// No test contradicts it.
    Holds,
    /// It does not, and where that shows.
    Fails(String),
    /// It could not be tried, and why.
    Untested(String),
}

impl Finding {
    /// Whether it was tried and holds.
    pub fn holds(&self) -> bool {
        *self == Self::Holds
    }

    fn note(&mut self, difference: Option<Difference>, what: impl FnOnce() -> String) {
        if let (Some(difference), Self::Holds | Self::Untested(_)) = (difference, &self) {
            *self = Self::Fails(format!("{difference} {}", what()));
        }
    }
}

/// The findings of [`Sweep::probe`](crate::Sweep::probe) about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// The same input gives the same output every time.
    pub repeatable: Finding,
    /// No output depends on the tokens after it, nor on how many there are.
    pub causal: Finding,
    /// No output depends on padding behind the sequence.
    pub padding: Finding,
    /// No output depends on the other rows of a batch.
    pub batch: Finding,
    /// Where states can be carried over: pieces give the same outputs as the whole.
    pub pieces: Finding,
    /// It runs at every number of tokens that was tried up to some limit.
    pub regular: bool,
    /// The most tokens of a sequence that run, and ONNX Runtime's message about more, if that is less than
    /// [`Self::tokens`].
    pub limit: Option<(usize, String)>,
    /// The longest sequence covered, in tokens.
    pub tokens: usize,
    /// How many passes it took.
    pub passes: u32,
}

impl Probe {
    /// A model that has every property. Give it to [`Sweep::probed`](crate::Sweep::probed) to trust a model
    /// without probing it.
    pub fn trusted() -> Self {
        Self {
            repeatable: Finding::Holds,
            causal: Finding::Holds,
            padding: Finding::Holds,
            batch: Finding::Holds,
            pieces: Finding::Holds,
            regular: true,
            limit: None,
            tokens: usize::MAX,
            passes: 0,
        }
    }

    /// A model that has every property but that outputs depend on later tokens.
    pub(crate) fn in_both_directions() -> Self {
        Self { causal: Finding::Fails("tokens attend to later ones, says its metadata".into()), ..Self::trusted() }
    }

    fn untested(why: &str) -> Self {
        let untested = || Finding::Untested(why.to_owned());
        let [repeatable, causal, padding, batch, pieces] = [(); 5].map(|()| untested());
        Self { repeatable, causal, padding, batch, pieces, regular: false, limit: None, tokens: 0, passes: 0 }
    }

    /// The plan of a sweep over lengths that follows from it, unless something else rules out one pass for all.
    pub fn plan(&self) -> Plan {
        let Self { repeatable, causal, padding, batch, .. } = self;
        let never_ran =
            matches!((causal, padding, batch), (Finding::Untested(_), Finding::Untested(_), Finding::Untested(_)));
        match () {
            () if never_ran || !repeatable.holds() || matches!(batch, Finding::Fails(_)) => Plan::OneByOne,
            () if !padding.holds() => Plan::EqualLengths,
            () if !causal.holds() => Plan::Exhaustive,
            () => Plan::SinglePass,
        }
    }

    /// Whether several rows may run at once.
    pub(crate) fn shares_batches(&self) -> bool {
        self.batch.holds() && self.plan() != Plan::OneByOne
    }
}

/// The findings and the resulting plan, as one line.
impl Display for Probe {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let mut found: Vec<String> = Vec::new();
        let properties = [
            (&self.repeatable, "repeatable"),
            (&self.causal, "causal"),
            (&self.padding, "independent of padding"),
            (&self.batch, "independent of the batch"),
        ];
        let holding: Vec<_> =
            properties[1..].iter().filter(|(finding, _)| finding.holds()).map(|(_, name)| *name).collect();
        if !holding.is_empty() {
            found.push(holding.join(", "));
        }
        for (finding, name) in properties {
            match finding {
                Finding::Holds => {}
                Finding::Fails(how) => found.push(format!("not {name}: {how}")),
                Finding::Untested(why) => found.push(format!("not known whether {name}: {why}")),
            }
        }
        if let Finding::Fails(how) = &self.pieces {
            found.push(format!("not the same in pieces: {how}"));
        }
        if let Some((tokens, why)) = &self.limit {
            found.push(format!("runs up to {tokens} tokens: {why}"));
        }
        let alone = if self.shares_batches() { "" } else { ", one sequence at a time" };
        let consequence = match self.plan() {
            Plan::SinglePass => format!("one pass over the longest sequence can answer all lengths{alone}"),
            Plan::Exhaustive => format!("every length runs on its own{alone} (exhaustive)"),
            Plan::EqualLengths => format!("every length runs on its own and nothing is padded{alone} (equal_lengths)"),
            Plan::OneByOne => "every length runs on its own, one sequence at a time (one_by_one)".to_owned(),
        };
        write!(f, "{}; so {consequence}", found.join("; "))
    }
}

/// The conditions under which a sweep will run a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// The tokens of the longest sequence.
    pub tokens: usize,
    /// How many there are of a length.
    pub rows: usize,
    /// [`Sweep::max_tokens`](crate::Sweep::max_tokens).
    pub max_tokens: Option<usize>,
}

/// Probes `model` on the task of `setting`.
///
/// # Errors
/// The model cannot be opened a second time, or `stop` says true between two passes. A model that does not run is a
/// finding, not an error.
pub(crate) fn probe(
    model: &mut Model,
    setting: &Setting<'_>,
    asked: Asked,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Probe> {
    if model.provider() == Provider::TensorRt {
        // An engine for every shape takes minutes to build, and these properties depend on the graph alone.
        return Prober::new(&mut model.on_cpu()?, setting, asked, stop).probe();
    }
    Prober::new(model, setting, asked, stop).probe()
}
