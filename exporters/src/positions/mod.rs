//! How positions enter a Transformer's graph: one file per scheme, the counterparts of `models::positions`.

mod absolute;
mod alibi;
mod cope;
mod fire;
mod kerple_log;
mod logn;
mod logn_clip;
mod none;
mod rope;
mod scalar;
mod sinusoidal;
mod ssmax;
mod t5;

use crate::ExportError;
use crate::graph::{BATCH, GraphBuilder, SEQ, Value};
use crate::onnx::tensor_proto::DataType;
use models::positions::Input;
use models::transformer::{PositionalEmbedding, TransformerConfig};
use rope::Rotation;

/// The effect of positions on the attention scores of a layer.
pub(crate) enum Score {
    /// Nothing.
    Nothing,
    /// Queries and keys are rotated before their product.
    Rotation(Rotation),
    /// A bias is added to the scaled products of queries and keys.
    Bias(Box<dyn Bias>),
    /// The scaled products are multiplied by `[query, 1]` or `[heads, query, 1]`.
    Factor(Value),
    /// A bias as above that depends on queries and keys.
    Content(Box<dyn ContentBias>),
}

/// What a scheme may know of the tokens.
pub(crate) struct Places {
    /// Token ids `[batch, seq]`, for the length.
    pub(crate) ids: Value,
    /// The input `position_ids` `[batch, seq]`, or none.
    pub(crate) positions: Value,
}

/// A term of the scores.
pub(crate) trait Bias {
    /// The bias `[heads, query, key]` between tokens, whose places in the sequence are the integers `query`
    /// `[query, 1]` and `key` `[key]`. Queries and keys may be requested in pieces, also in the body of a loop.
    fn between(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value;
}

/// A term of the scores that depends on queries and keys.
pub(crate) trait ContentBias {
    /// The bias `[batch, heads, query, key]` of some queries, in the body of a loop perhaps: `q`
    /// `[batch, heads, query, head_dim]`, scaled; `scores`, the products of these with the keys; `mask`
    /// `[batch, 1, query, key]`, 0 or a number so low that keys with it are not seen.
    fn bias(&self, g: &mut GraphBuilder<'_>, q: &Value, scores: &Value, mask: &Value) -> Value;
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

    /// Adds the nodes that all layers share; or, of a scheme that differs from layer to layer, those of one layer, in the
    /// module of its attention, where its parameters are.
    fn score(_g: &mut GraphBuilder<'_>, _config: &TransformerConfig, _places: &Places) -> Result<Score, ExportError> {
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
            places: &Places,
        ) -> Result<Score, ExportError> {
            match config.positional_embedding {
                $(PositionalEmbedding::$Variant => $module::$Type::score(g, config, places),)*
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

/// The distances between `query` `[query, 1]` and `key` `[key]`, which are integers, as floats `[query, key]`; never
/// negative where it counts.
fn distance(g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value {
    let distance = g.sub(query, key);
    let zero = g.scalar("no_distance", 0i64);
    let distance = g.node("Max", &[&distance, &zero], &[]);
    g.cast(&distance, DataType::Float)
}
