//! A bias by the number of keys that are counted. The counterpart of `models::positions::cope`.

use super::{ContentBias, Places, Scheme, Score};
use crate::ExportError;
use crate::graph::Attribute::Int;
use crate::graph::{GraphBuilder, Value};
use crate::onnx::tensor_proto::DataType;
use models::transformer::TransformerConfig;

pub(super) struct Cope;

impl Scheme for Cope {
    fn score(g: &mut GraphBuilder<'_>, config: &TransformerConfig, _places: &Places) -> Result<Score, ExportError> {
        let shape = [config.head_dim(), config.cope_positions];
        g.scope("cope", |g| {
            let weight = g.weight("pos_emb", &[1, shape[0], shape[1]])?;
            let vectors = g.factor("pos_emb", &shape, &weight.values);
            Ok(Score::Content(Box::new(Counted { vectors, last: shape[1] as i64 - 1 })))
        })
    }
}

struct Counted {
    /// `[head_dim, positions]`.
    vectors: Value,
    /// The last position.
    last: i64,
}

impl ContentBias for Counted {
    fn bias(&self, g: &mut GraphBuilder<'_>, q: &Value, scores: &Value, mask: &Value) -> Value {
        g.scope("cope", |g| {
            // The mask is the lowest float at keys that cannot be seen: their gates are 0.
            let logits = g.add(scores, mask);
            let gates = g.sigmoid(&logits); // [batch, heads, query, key]
            // In 64 bits: the rounding of many single steps would be seen.
            let gates = g.cast(&gates, DataType::Double);
            let key_axis = g.scalar("key_axis", 3i64);
            let position = g.node("CumSum", &[&gates, &key_axis], &[("reverse", Int(1))]);
            let last = g.scalar("last", self.last);
            let most = g.cast(&last, DataType::Double);
            let position = g.node("Min", &[&position, &most], &[]);
            let low = g.cast(&position, DataType::Int64);
            let whole = g.cast(&low, DataType::Double);
            let part = g.sub(&position, &whole);
            let part = g.cast(&part, DataType::Float);
            let next = g.scalar("next", 1i64);
            let high = g.add(&low, &next);
            let high = g.node("Min", &[&high, &last], &[]);
            let q = g.narrow(q);
            let by_position = g.matmul(&q, &self.vectors);
            let by_position = g.widen(&by_position); // [batch, heads, query, positions]
            let [at_low, at_high] =
                [low, high].map(|whole| g.node("GatherElements", &[&by_position, &whole], &[("axis", Int(3))]));
            let one = g.scalar("one", 1f32);
            let rest = g.sub(&one, &part);
            let at_low = g.mul(&at_low, &rest);
            let at_high = g.mul(&at_high, &part);
            g.add(&at_low, &at_high)
        })
    }
}
