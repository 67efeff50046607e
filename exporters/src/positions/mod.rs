//! How positions enter a Transformer's graph: one file per scheme, the counterparts of `models::positions`.

mod absolute;
mod alibi;
mod none;
mod rope;
mod scalar;
mod sinusoidal;

use crate::ExportError;
use crate::graph::{BATCH, GraphBuilder, SEQ, Value};
use crate::onnx::tensor_proto::DataType;
use models::positions::Input;
use models::transformer::{PositionalEmbedding, TransformerConfig};
use rope::Rotation;

/// The effect of positions on the attention scores, the same in every layer.
pub(crate) enum Score {
    /// Nothing.
    Nothing,
    /// Queries and keys are rotated before their product.
    Rotation(Rotation),
    /// A bias is added to the scaled products of queries and keys.
    Bias(Box<dyn Bias>),
}

/// A term of the scores.
pub(crate) trait Bias {
    /// The bias `[heads, query, key]` between tokens, whose places in the sequence are the integers `query`
    /// `[query, 1]` and `key` `[key]`. Queries and keys may be requested in pieces, also in the body of a loop.
    fn between(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value;
}

/// A positional scheme, the counterpart of [`models::positions::Scheme`].
pub(crate) trait Scheme {
    /// Adds `positions` `[batch, seq]` to the embeddings of tokens: `x` `[batch, seq, width]` → `[batch, seq, hidden]`.
    /// `None` where nothing is added, so that the first layer's inputs are one vector per token. A scheme that takes no
    /// positions gets no value of them.
    fn embed(
        _g: &mut GraphBuilder<'_>,
        _config: &TransformerConfig,
        _x: &Value,
        _positions: &Value,
    ) -> Result<Option<Value>, ExportError> {
        Ok(None)
    }

    /// Adds the nodes that all layers share.
    fn score(_g: &mut GraphBuilder<'_>, _config: &TransformerConfig, _positions: &Value) -> Result<Score, ExportError> {
        Ok(Score::Nothing)
    }
}

macro_rules! schemes {
    ($($Variant:ident $module:ident $Type:ident $title:literal;)*) => {
        /// [`Scheme::embed`].
        pub(crate) fn embed(
            g: &mut GraphBuilder<'_>,
            config: &TransformerConfig,
            x: &Value,
            positions: &Value,
        ) -> Result<Option<Value>, ExportError> {
            match config.positional_embedding {
                $(PositionalEmbedding::$Variant => $module::$Type::embed(g, config, x, positions),)*
            }
        }

        /// [`Scheme::score`].
        pub(crate) fn score(
            g: &mut GraphBuilder<'_>,
            config: &TransformerConfig,
            positions: &Value,
        ) -> Result<Score, ExportError> {
            match config.positional_embedding {
                $(PositionalEmbedding::$Variant => $module::$Type::score(g, config, positions),)*
            }
        }
    };
}

models::positions!(schemes);

/// The input `position_ids` `[batch, seq]`, or none.
pub(crate) fn input(g: &mut GraphBuilder<'_>, config: &TransformerConfig) -> Value {
    let element = match config.positional_embedding.input() {
        Input::None => return Value::none(),
        Input::Integers => DataType::Int64,
        Input::Scalars => DataType::Float,
    };
    g.input("position_ids", "the position of each token", element, &[BATCH, SEQ])
}
