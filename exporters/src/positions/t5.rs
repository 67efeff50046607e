//! A bias that is looked up by the distance. The counterpart of `models::positions::t5`.

use super::{Bias, Places, Scheme, Score};
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use models::positions::t5::bucket;
use models::transformer::TransformerConfig;

pub(super) struct T5;

impl Scheme for T5 {
    fn score(g: &mut GraphBuilder<'_>, config: &TransformerConfig, _places: &Places) -> Result<Score, ExportError> {
        let (buckets, heads) = (config.t5_buckets, config.num_heads);
        let bucket = |distance| bucket(distance, buckets, config.t5_max_distance);
        // Every distance has its own column up to the first of the last bucket, which has all that are larger.
        let last = (0..=config.t5_max_distance).find(|distance| bucket(*distance) == buckets - 1);
        let last = last.unwrap_or(config.t5_max_distance);
        let table = g.scope("h.0", |g| {
            g.scope("attn", |g| {
                g.scope("relative_attention_bias", |g| {
                    let weight = &g.weight("weight", &[buckets, heads])?.values;
                    let columns = (0..heads).flat_map(|head| (0..=last).map(move |d| weight[bucket(d) * heads + head]));
                    let columns: Vec<f32> = columns.collect();
                    Ok::<_, ExportError>(g.constant("weight.by_distance", &[heads, last + 1], &columns))
                })
            })
        })?;
        Ok(Score::Bias(Box::new(ByDistance { table, last: last as i64 })))
    }
}

/// A number per head and distance `[heads, last + 1]`.
struct ByDistance {
    table: Value,
    last: i64,
}

impl Bias for ByDistance {
    fn between(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value {
        let (zero, last) = (g.scalar("zero_distance", 0i64), g.scalar("last_distance", self.last));
        let distance = g.sub(query, key); // [query, key]
        let distance = g.node("Clip", &[&distance, &zero, &last], &[]);
        g.gather(&self.table, &distance, 1) // [heads, query, key]
    }
}
