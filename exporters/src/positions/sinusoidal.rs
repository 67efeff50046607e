//! A row of a computed table is added to √hidden times the embedding. The counterpart of
//! `models::positions::sinusoidal`.

use super::Scheme;
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use models::transformer::TransformerConfig;

pub(super) struct Sinusoidal;

impl Scheme for Sinusoidal {
    fn embed(
        g: &mut GraphBuilder<'_>,
        config: &TransformerConfig,
        x: &Value,
        positions: &Value,
    ) -> Result<Option<Value>, ExportError> {
        g.scope("sine", |g| {
            let pe = g.parameter("pe", &[config.max_position_embeddings, config.hidden_size])?;
            let rows = g.gather(&pe, positions, 0);
            let scale = g.scalar("scale", (config.hidden_size as f64).sqrt() as f32);
            let x = g.mul(x, &scale);
            Ok(Some(g.add(&x, &rows)))
        })
    }
}
