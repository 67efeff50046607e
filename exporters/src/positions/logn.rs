//! Scores grow with the logarithm of the number of keys. The counterpart of `models::positions::logn`.

use super::{Places, Scheme, Score};
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::onnx::tensor_proto::DataType;
use models::transformer::TransformerConfig;

pub(super) struct Logn;

impl Scheme for Logn {
    fn score(g: &mut GraphBuilder<'_>, _config: &TransformerConfig, places: &Places) -> Result<Score, ExportError> {
        Ok(Score::Factor(g.scope("logn", |g| log_counts(g, places))))
    }
}

/// ln(n) of query number n, from 1: `[query, 1]`.
pub(super) fn log_counts(g: &mut GraphBuilder<'_>, places: &Places) -> Value {
    let one = g.scalar("one", 1i64);
    let seq = g.sizes(&places.ids, 1..2);
    let length = g.node("Squeeze", &[&seq], &[]);
    let end = g.add(&length, &one);
    let counts = g.node("Range", &[&one, &end, &one], &[]); // [query]
    let last_axis = g.list("last_axis", &[1]);
    let counts = g.unsqueeze(&counts, &last_axis); // [query, 1]
    let counts = g.cast(&counts, DataType::Float);
    g.node("Log", &[&counts], &[])
}
