//! A bias that falls with the distance. The counterpart of `models::positions::alibi`.

use super::{Bias, Places, Scheme, Score};
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::onnx::tensor_proto::DataType;
use models::positions::alibi::slopes;
use models::transformer::TransformerConfig;

pub(super) struct Alibi;

impl Scheme for Alibi {
    fn score(_g: &mut GraphBuilder<'_>, config: &TransformerConfig, _places: &Places) -> Result<Score, ExportError> {
        Ok(Score::Bias(Box::new(Slopes { slopes: slopes(config.num_heads), causal: config.causal })))
    }
}

struct Slopes {
    /// m_h of every head.
    slopes: Vec<f32>,
    causal: bool,
}

impl Bias for Slopes {
    fn between(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value {
        let slopes = g.constant("slopes", &[self.slopes.len(), 1, 1], &self.slopes);
        let ahead = g.sub(key, query); // [query, key], never positive where it counts, if causal
        let ahead = g.cast(&ahead, DataType::Float);
        let near = if self.causal {
            ahead
        } else {
            let (half, behind) = (g.scalar("half", 0.5f32), g.neg(&ahead));
            let ahead = g.add(&ahead, &half);
            g.node("Min", &[&ahead, &behind], &[])
        };
        g.mul(&near, &slopes) // [heads, query, key]
    }
}
