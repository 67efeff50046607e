//! A row per position is added. The counterpart of `models::positions::absolute`.

use super::Scheme;
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::layers::embedding;
use models::transformer::TransformerConfig;

pub(super) struct Absolute;

impl Scheme for Absolute {
    fn embed(
        g: &mut GraphBuilder<'_>,
        config: &TransformerConfig,
        x: &Value,
        positions: &Value,
    ) -> Result<Option<Value>, ExportError> {
        let rows = embedding(g, "wpe", positions, [config.max_position_embeddings, config.hidden_size])?;
        Ok(Some(g.add(x, &rows)))
    }
}
