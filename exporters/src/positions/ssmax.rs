//! Scores grow with the logarithm of the number of keys, by a factor per head. The counterpart of
//! `models::positions::ssmax`.

use super::logn::log_counts;
use super::{Places, Scheme, Score};
use crate::ExportError;
use crate::graph::GraphBuilder;
use models::transformer::TransformerConfig;

pub(super) struct Ssmax;

impl Scheme for Ssmax {
    fn score(g: &mut GraphBuilder<'_>, config: &TransformerConfig, places: &Places) -> Result<Score, ExportError> {
        let heads = config.num_heads;
        let s = g.weight("ssmax_s", &[heads])?;
        let s = g.constant("ssmax_s", &[heads, 1, 1], &s.values);
        g.scope("ssmax", |g| {
            let log = log_counts(g, places); // [query, 1]
            Ok(Score::Factor(g.mul(&log, &s))) // [heads, query, 1]
        })
    }
}
