//! Queries and keys are rotated by their position. The counterpart of `models::positions::rope`.

use super::{Places, Scheme, Score};
use crate::ExportError;
use crate::graph::Attribute::Int;
use crate::graph::{GraphBuilder, Value};
use crate::onnx::tensor_proto::DataType;
use models::transformer::TransformerConfig;

pub(super) struct Rope;

impl Scheme for Rope {
    fn score(g: &mut GraphBuilder<'_>, config: &TransformerConfig, places: &Places) -> Result<Score, ExportError> {
        Ok(Score::Rotation(Rotation::new(g, &places.positions, &config.inverse_frequencies())))
    }
}

/// cos and sin of every position's angles, `[batch, 1, seq, head_dim]`; the second half of the channels repeats the
/// first.
pub(crate) struct Rotation {
    cos: Value,
    sin: Value,
}

impl Rotation {
    /// Adds the nodes that all layers share.
    fn new(g: &mut GraphBuilder<'_>, position_ids: &Value, frequencies: &[f32]) -> Self {
        g.scope("rotation", |g| {
            let frequencies = g.constant("inverse_frequencies", &[frequencies.len()], frequencies);
            let outer_axes = g.list("head_and_channel_axes", &[1, 3]);
            let positions = g.cast(position_ids, DataType::Float);
            let positions = g.unsqueeze(&positions, &outer_axes); // [batch, 1, seq, 1]
            let angles = g.mul(&positions, &frequencies); // [batch, 1, seq, head_dim / 2]
            let angles = g.concat(&[&angles, &angles], -1);
            Self { cos: g.node("Cos", &[&angles], &[]), sin: g.node("Sin", &[&angles], &[]) }
        })
    }

    /// t·cos + (−t₂ ‖ t₁)·sin, where t₁ and t₂ are the halves of the channels.
    pub(crate) fn apply(&self, g: &mut GraphBuilder<'_>, t: Value) -> Value {
        g.scope("rotation", |g| {
            let [first, second] = g.nodes("Split", &[&t], &[("axis", Int(-1)), ("num_outputs", Int(2))]);
            let second = g.neg(&second);
            let turned = g.concat(&[&second, &first], -1);
            let t = g.mul(&t, &self.cos);
            let turned = g.mul(&turned, &self.sin);
            g.add(&t, &turned)
        })
    }
}
