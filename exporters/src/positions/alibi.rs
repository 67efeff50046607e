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
        Ok(Score::Bias(Box::new(Slopes(slopes(config.num_heads)))))
    }
}

/// m_h of every head.
struct Slopes(Vec<f32>);

impl Bias for Slopes {
    fn between(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value {
        let slopes = g.constant("slopes", &[self.0.len(), 1, 1], &self.0);
        let distance = g.sub(key, query); // [query, key], never positive where it counts
        let distance = g.cast(&distance, DataType::Float);
        g.mul(&distance, &slopes) // [heads, query, key]
    }
}
