//! Scores grow with the logarithm of the number of keys beyond a length. The counterpart of
//! `models::positions::logn_clip`.

use super::logn::log_counts;
use super::{Places, Scheme, Score};
use crate::ExportError;
use crate::graph::GraphBuilder;
use models::transformer::TransformerConfig;

pub(super) struct LognClip;

impl Scheme for LognClip {
    fn score(g: &mut GraphBuilder<'_>, config: &TransformerConfig, places: &Places) -> Result<Score, ExportError> {
        g.scope("logn_clip", |g| {
            let log = log_counts(g, places); // [query, 1]
            let of_training = g.scalar("log_train_length", (config.logn_clip_train_length as f64).ln() as f32);
            let ratio = g.div(&log, &of_training);
            let least = g.scalar("least", 1f32);
            Ok(Score::Factor(g.node("Max", &[&ratio, &least], &[])))
        })
    }
}
