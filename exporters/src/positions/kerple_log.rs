//! A bias that falls with the logarithm of the distance. The counterpart of `models::positions::kerple_log`.

use super::{Bias, Places, Scheme, Score, distance};
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use models::positions::kerple_log::LEAST;
use models::transformer::TransformerConfig;

pub(super) struct KerpleLog;

impl Scheme for KerpleLog {
    fn score(g: &mut GraphBuilder<'_>, config: &TransformerConfig, _places: &Places) -> Result<Score, ExportError> {
        let shape = [config.num_heads, 1, 1];
        g.scope("rpe", |g| {
            let mut parameter = |name: &str, changed: &str, sign: f32| {
                let values = g.weight(name, &shape)?.values.iter().map(|x| sign * x.max(LEAST as f32));
                let values: Vec<f32> = values.collect();
                Ok::<_, ExportError>(g.constant(changed, &shape, &values))
            };
            let falls = parameter("bias_p", "bias_p.negative", -1.0)?;
            let scale = parameter("bias_a", "bias_a.clamped", 1.0)?;
            Ok(Score::Bias(Box::new(Logarithm { falls, scale })))
        })
    }
}

/// −p and a, `[heads, 1, 1]`.
struct Logarithm {
    falls: Value,
    scale: Value,
}

impl Bias for Logarithm {
    fn between(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value {
        let distance = distance(g, query, key); // [query, key]
        let one = g.scalar("one_float", 1f32);
        let scaled = g.mul(&distance, &self.scale); // [heads, query, key]
        let scaled = g.add(&scaled, &one);
        let log = g.node("Log", &[&scaled], &[]);
        g.mul(&log, &self.falls)
    }
}
