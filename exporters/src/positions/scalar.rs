//! The position is the last channel. The counterpart of `models::positions::scalar`.

use super::Scheme;
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use models::transformer::TransformerConfig;

pub(super) struct Scalar;

impl Scheme for Scalar {
    fn embed(
        g: &mut GraphBuilder<'_>,
        _config: &TransformerConfig,
        x: &Value,
        positions: &Value,
    ) -> Result<Option<Value>, ExportError> {
        g.scope("scalar", |g| {
            let channel_axis = g.list("channel_axis", &[2]);
            let positions = g.unsqueeze(positions, &channel_axis); // [batch, seq, 1]
            Ok(Some(g.concat(&[x, &positions], -1)))
        })
    }
}
