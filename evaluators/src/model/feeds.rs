//! The inputs that a model needs and its logits. Exports of other programs differ in both: they call the ids
//! `tokens`, take int32 or a float mask, want `token_type_ids`, or give their logits in half precision under another
//! name.

use crate::model::scoring::{ADDED, Output};
use data::PositionIds;
use ort::value::{DynValue, Outlet, Tensor, TensorElementType};

/// The role of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The token ids.
    Tokens,
    /// Where each token is.
    Positions,
    /// 1 for tokens, 0 for padding.
    Mask,
    /// The sentence that a token belongs to, of two: always the first, 0.
    TokenTypes,
}

/// An input of shape `[batch, seq]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Feed {
    pub role: Role,
    pub name: String,
    pub kind: TensorElementType,
}

/// Other names of `input_ids` in common programs, where a model has several inputs of integers.
const TOKENS: [&str; 10] =
    ["tokens", "token_ids", "input_tokens", "ids", "idx", "input", "inputs", "src", "input_id", "x"];

impl Feed {
    /// The feeds of a model with these inputs, without those that are `ignored`, and notes about them.
    ///
    /// # Errors
    /// The mismatch, as the end of a sentence.
    pub fn of(inputs: &[Outlet], ignored: &[&str]) -> Result<(Vec<Self>, Vec<String>), String> {
        let inputs: Vec<&Outlet> = inputs.iter().filter(|input| !ignored.contains(&input.name())).collect();
        let known = |name: &str| match name {
            "input_ids" => Some(Role::Tokens),
            "position_ids" => Some(Role::Positions),
            "attention_mask" => Some(Role::Mask),
            "token_type_ids" | "segment_ids" => Some(Role::TokenTypes),
            _ => None,
        };
        let mut notes = Vec::new();
        let tokens = if inputs.iter().any(|input| input.name() == "input_ids") {
            "input_ids"
        } else {
            let fits = |input: &&&Outlet| known(input.name()).is_none() && is_matrix(input) && is_integer(input);
            let candidates: Vec<&str> = inputs.iter().filter(fits).map(|input| input.name()).collect();
            let named = candidates.iter().find(|name| TOKENS.contains(name));
            let Some(name) = named.or(candidates.first().filter(|_| candidates.len() == 1)).copied() else {
                return Err(format!("it has no input `input_ids`, but {}", describe(inputs)));
            };
            notes.push(format!("it has no input `input_ids`; its input `{name}` gets the token ids"));
            name
        };
        let mut feeds = Vec::new();
        for input in inputs {
            let (name, described) = (input.name(), describe([input]));
            let role = if name == tokens { Some(Role::Tokens) } else { known(name) };
            let Some(role) = role else {
                return Err(format!("it needs the input {described}, which the evaluator does not know"));
            };
            let kind = input.dtype().tensor_type().filter(|_| is_matrix(input));
            let Some(kind) =
                kind.filter(|kind| is_fed(*kind) && (role == Role::Mask || *kind != TensorElementType::Bool))
            else {
                return Err(format!("its input is {described} instead of integers [batch, seq]"));
            };
            feeds.push(Self { role, name: name.to_owned(), kind });
        }
        Ok((feeds, notes))
    }

    /// Whether it takes fractions.
    pub fn is_float(&self) -> bool {
        is_float(self.kind)
    }

    /// Integers as this input takes them.
    pub fn integers(&self, shape: [usize; 2], values: Vec<i64>) -> ort::Result<DynValue> {
        use TensorElementType as T;
        macro_rules! cast {
            ($convert:expr) => {
                Tensor::from_array((shape, values.into_iter().map($convert).collect::<Vec<_>>()))?.into_dyn()
            };
        }
        Ok(match self.kind {
            T::Int64 => Tensor::from_array((shape, values))?.into_dyn(),
            T::Int32 => cast!(|v| v as i32),
            T::Int16 => cast!(|v| v as i16),
            T::Int8 => cast!(|v| v as i8),
            T::Uint64 => cast!(|v| v as u64),
            T::Uint32 => cast!(|v| v as u32),
            T::Uint16 => cast!(|v| v as u16),
            T::Uint8 => cast!(|v| v as u8),
            T::Bool => cast!(|v| v != 0),
            T::Float64 => cast!(|v| v as f64),
            T::Float16 => cast!(|v| half::f16::from_f32(v as f32)),
            T::Bfloat16 => cast!(|v| half::bf16::from_f32(v as f32)),
            _ => cast!(|v| v as f32), // `of` lets nothing else pass
        })
    }

    /// Positions as this input takes them; `None` where they are fractions and it takes integers.
    pub fn positions(&self, shape: [usize; 2], positions: PositionIds) -> ort::Result<Option<DynValue>> {
        use TensorElementType as T;
        Ok(match (positions, self.kind) {
            (PositionIds::Integers(ids), _) => Some(self.integers(shape, ids)?),
            (PositionIds::Scalars(values), T::Float32) => Some(Tensor::from_array((shape, values))?.into_dyn()),
            (PositionIds::Scalars(values), T::Float64) => {
                let values: Vec<f64> = values.into_iter().map(f64::from).collect();
                Some(Tensor::from_array((shape, values))?.into_dyn())
            }
            (PositionIds::Scalars(values), T::Float16) => {
                let values: Vec<half::f16> = values.into_iter().map(half::f16::from_f32).collect();
                Some(Tensor::from_array((shape, values))?.into_dyn())
            }
            (PositionIds::Scalars(values), T::Bfloat16) => {
                let values: Vec<half::bf16> = values.into_iter().map(half::bf16::from_f32).collect();
                Some(Tensor::from_array((shape, values))?.into_dyn())
            }
            (PositionIds::Scalars(_), _) => None,
        })
    }
}

/// Which of a model's outputs are its logits: the one called `named`, or `logits`, or else the only one of the right
/// shape. A note where that was not obvious.
///
/// # Errors
/// The mismatch, as the end of a sentence.
pub(crate) fn logits(outputs: &[Outlet], named: Option<&str>) -> Result<(Output, Option<String>), String> {
    let fits = |output: &&Outlet| {
        let shape = output.dtype().tensor_shape();
        shape.is_some_and(|shape| shape.len() == 3) && output.dtype().tensor_type().is_some_and(is_float)
    };
    let outputs: Vec<&Outlet> = outputs.iter().filter(|output| !output.name().starts_with(ADDED)).collect();
    let is_state = |output: &&Outlet| output.name().starts_with("state_") && output.name().ends_with("_out");
    let listed = || describe(outputs.iter().copied().filter(|output| !is_state(output)));
    let called = |name: &str| outputs.iter().copied().find(|output| output.name() == name);
    let candidates: Vec<&Outlet> = outputs.iter().copied().filter(fits).filter(|output| !is_state(output)).collect();
    let (chosen, note) = match (named, called("logits"), &candidates[..]) {
        (Some(name), ..) => match called(name) {
            Some(output) => (output, None),
            None => return Err(format!("it has no output `{name}`, but {}", listed())),
        },
        (None, Some(output), _) => (output, None),
        (None, None, [output]) => {
            (*output, Some(format!("it has no output `logits`; its output `{}` is taken for them", output.name())))
        }
        (None, None, []) => return Err(format!("it has no output `logits`, but {}", listed())),
        (None, None, _) => {
            return Err(format!("it has no output `logits`, but {}; --logits NAME says which to take", listed()));
        }
    };
    if !fits(&chosen) {
        return Err(format!("its output is {} instead of float32 [batch, seq, vocab]", describe([chosen])));
    }
    let single = chosen.dtype().tensor_type() == Some(TensorElementType::Float32);
    Ok((Output { name: chosen.name().to_owned(), single, scored: true }, note))
}

fn is_matrix(outlet: &Outlet) -> bool {
    outlet.dtype().tensor_shape().is_some_and(|shape| shape.len() == 2)
}

fn is_integer(outlet: &Outlet) -> bool {
    let kind = outlet.dtype().tensor_type();
    kind.is_some_and(|kind| is_fed(kind) && !is_float(kind) && kind != TensorElementType::Bool)
}

fn is_float(kind: TensorElementType) -> bool {
    use TensorElementType as T;
    matches!(kind, T::Float32 | T::Float64 | T::Float16 | T::Bfloat16)
}

fn is_fed(kind: TensorElementType) -> bool {
    use TensorElementType as T;
    let integers = [T::Int64, T::Int32, T::Int16, T::Int8, T::Uint64, T::Uint32, T::Uint16, T::Uint8, T::Bool];
    integers.contains(&kind) || is_float(kind)
}

/// Names with types and shapes.
pub(crate) fn describe<'a>(outlets: impl IntoIterator<Item = &'a Outlet>) -> String {
    outlets.into_iter().map(|o| format!("`{}` {}", o.name(), o.dtype())).collect::<Vec<_>>().join(", ")
}
