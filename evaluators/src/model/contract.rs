//! The inputs and outputs of a model under the ONNX contract.

use crate::model::feeds::{Feed, Role, describe};
use crate::model::scoring::{Output, TARGETS};
use data::Batch;
use ort::session::Session;
use ort::value::{DynValue, Outlet, Tensor, TensorElementType, ValueType};
use std::sync::Arc;

/// The largest batch that will run: TensorRT needs it before it builds an engine.
pub(crate) struct Shapes {
    pub rows: usize,
    pub tokens: usize,
    pub interface: Arc<Interface>,
}

impl Shapes {
    /// `name:1x1000,…` for every input, in ONNX Runtime's notation.
    pub(super) fn profile(&self, rows: usize, tokens: usize) -> String {
        let matrices = self.interface.feeds.iter().map(|feed| feed.name.as_str());
        let matrices = matrices.chain(self.interface.output.scored.then_some(TARGETS));
        let matrices = matrices.map(|name| format!("{name}:{rows}x{tokens}"));
        let states = self.interface.states.iter().map(|state| {
            let dims: String = state.dims.iter().map(|dim| format!("x{dim}")).collect();
            format!("{}:{rows}{dims}", state.input)
        });
        matrices.chain(states).collect::<Vec<_>>().join(",")
    }
}

/// A recurrent state: an input, and its value after the last token.
#[derive(Clone)]
pub(crate) struct State {
    /// `state_<name>_in`.
    pub input: String,
    /// `state_<name>_out`.
    pub output: String,
    /// All sizes but the first, which is the batch.
    dims: Vec<i64>,
    /// Whether it must be fed; otherwise the file has an initializer for it.
    required: bool,
}

impl State {
    /// The states of a model: inputs `state_<name>_in` of float32 with an output `state_<name>_out`.
    pub(super) fn of(session: &Session) -> Vec<Self> {
        let state = |name: &str, kind: &ValueType, required: bool| {
            let output = format!("{}_out", name.strip_prefix("state_").and(name.strip_suffix("_in"))?);
            let dims = kind.tensor_shape()?.get(1..)?.to_vec();
            let is_float = kind.tensor_type() == Some(TensorElementType::Float32);
            let found = session.outputs().iter().any(|o| o.name() == output);
            let fits = found && (!required || is_float && dims.iter().all(|dim| *dim > 0));
            fits.then(|| Self { input: name.to_owned(), output, dims, required })
        };
        let required = session.inputs().iter().filter_map(|input| state(input.name(), input.dtype(), true));
        let optional = session.overridable_initializers();
        required.chain(optional.iter().filter_map(|input| state(input.name(), input.dtype(), false))).collect()
    }
}

/// The input of looped models, an integer without axes or `[1]`.
pub(crate) const ITERATIONS: &str = "iterations";

/// The inputs and outputs that some models have and others do not.
#[derive(Clone)]
pub(crate) struct Interface {
    /// The inputs that are fed.
    pub feeds: Vec<Feed>,
    /// The logits.
    pub output: Output,
    /// The type of `position_ids`: `Int64` for integers of any width, or `Float32` for scalar positions of any type.
    pub position_ids: Option<TensorElementType>,
    /// Whether there is an `attention_mask`.
    pub attention_mask: bool,
    /// The recurrent states.
    pub states: Vec<State>,
    /// The width of the logits, where the file fixes it.
    pub vocab: Option<usize>,
    /// How often a looped model is to apply its blocks, and the axes of the input that takes the number.
    pub iterations: Option<(u32, usize)>,
}

impl Interface {
    pub(super) fn of(session: &Session, feeds: Vec<Feed>, states: Vec<State>, output: Output) -> Self {
        let feed = |role| feeds.iter().find(|feed: &&Feed| feed.role == role);
        let logits = session.outputs().iter().find(|o| o.name() == output.name);
        let width = logits.and_then(|o| o.dtype().tensor_shape()?.get(2).copied());
        let looped = session.inputs().iter().find(|input| input.name() == ITERATIONS);
        Self {
            iterations: looped.map(|input| (1, input.dtype().tensor_shape().map_or(0, |shape| shape.len()))),
            position_ids: feed(Role::Positions).map(|feed| match feed.is_float() {
                true => TensorElementType::Float32,
                false => TensorElementType::Int64,
            }),
            attention_mask: feed(Role::Mask).is_some(),
            states,
            vocab: width.and_then(|w| usize::try_from(w).ok()),
            feeds,
            output,
        }
    }

    /// That of a function, which gets whole batches and returns float32.
    pub(super) fn of_function() -> Self {
        Self {
            feeds: vec![],
            output: Output { name: "logits".into(), single: true, scored: false },
            position_ids: None,
            attention_mask: false,
            states: vec![],
            vocab: None,
            iterations: None,
        }
    }

    /// A batch as the model's inputs, with targets for scoring in the graph: the labels, where there are any.
    pub fn fed(&self, batch: Batch) -> ort::Result<Vec<(String, DynValue)>> {
        let (shape, size) = ([batch.batch, batch.seq], batch.batch * batch.seq);
        let Batch { mut input_ids, labels, mut position_ids, mut attention_mask, .. } = batch;
        let mut values = Vec::with_capacity(self.feeds.len() + 1 + self.states.len());
        for feed in &self.feeds {
            let value = match feed.role {
                Role::Tokens => feed.integers(shape, std::mem::take(&mut input_ids))?,
                Role::Mask => feed.integers(shape, std::mem::take(&mut attention_mask))?,
                Role::TokenTypes => feed.integers(shape, vec![0; size])?,
                // Fractions for a model that takes integers are refused before a sweep.
                Role::Positions => match feed.positions(shape, std::mem::take(&mut position_ids))? {
                    Some(positions) => positions,
                    None => continue,
                },
            };
            values.push((feed.name.clone(), value));
        }
        if let Some((iterations, axes)) = self.iterations {
            let shape: &[usize] = if axes == 0 { &[] } else { &[1] };
            let value = Tensor::from_array((shape, vec![i64::from(iterations)]))?.into_dyn();
            values.push((ITERATIONS.to_owned(), value));
        }
        if self.output.scored {
            let mut targets: Vec<i64> = labels.into_iter().map(|label| label.max(0)).collect();
            targets.resize(size, 0);
            values.push((TARGETS.to_owned(), Tensor::from_array((shape, targets))?.into_dyn()));
        }
        Ok(values)
    }

    /// The states before the first token of `rows` sequences, zeros, where they must be fed.
    pub fn first_states(&self, rows: usize) -> ort::Result<Vec<(&str, DynValue)>> {
        fn zeros(state: &State, rows: usize) -> ort::Result<(&str, DynValue)> {
            let shape: Vec<usize> = [rows].into_iter().chain(state.dims.iter().map(|&dim| dim as usize)).collect();
            let values = vec![0.0f32; shape.iter().product()];
            Ok((state.input.as_str(), Tensor::from_array((shape, values))?.into_dyn()))
        }
        self.states.iter().filter(|state| state.required).map(|state| zeros(state, rows)).collect()
    }

    /// Whether a long sequence can be fed in pieces. Only the state may then tell a piece where it is.
    pub fn is_stateful(&self) -> bool {
        !self.states.is_empty() && self.position_ids.is_none() && !self.attention_mask
    }
}

/// Whether the inputs take at least one sequence at a time. With a fixed number of tokens there is one length to score.
pub(super) fn check_sizes(inputs: &[Outlet]) -> std::result::Result<(), String> {
    for input in inputs.iter().filter(|input| ![TARGETS, ITERATIONS].contains(&input.name())) {
        if input.dtype().tensor_shape().and_then(|s| s.first()).is_some_and(|&rows| rows >= 0 && rows != 1) {
            let described = describe([input]);
            return Err(format!("its input {described} has a fixed batch, so it serves only batches of that size"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensorrt_is_told_the_shape_of_every_input() {
        let state =
            State { input: "state_h_in".into(), output: "state_h_out".into(), dims: vec![2, 64], required: true };
        let feed = |role, name: &str| Feed { role, name: name.into(), kind: TensorElementType::Int64 };
        let output = Output { name: "logits".into(), single: true, scored: true };
        let mut interface = Interface {
            feeds: vec![feed(Role::Tokens, "input_ids")],
            output: output.clone(),
            position_ids: None,
            attention_mask: false,
            states: vec![state],
            vocab: Some(13),
            iterations: None,
        };
        let shapes = |interface| Shapes { rows: 16, tokens: 1000, interface: Arc::new(interface) };
        let profile = shapes(interface).profile(16, 1000);
        assert_eq!(profile, "input_ids:16x1000,evaluators_targets:16x1000,state_h_in:16x2x64");
        interface = Interface {
            feeds: vec![
                feed(Role::Tokens, "ids"),
                feed(Role::Positions, "position_ids"),
                feed(Role::Mask, "attention_mask"),
            ],
            output: Output { scored: false, ..output },
            position_ids: Some(TensorElementType::Int64),
            attention_mask: true,
            states: vec![],
            vocab: None,
            iterations: Some((4, 0)),
        };
        assert_eq!(shapes(interface).profile(1, 1), "ids:1x1,position_ids:1x1,attention_mask:1x1");
    }
}
