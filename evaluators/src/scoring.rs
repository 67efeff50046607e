//! Scoring inside the graph: arg-max and cross entropy are computed where the logits are, so that per token one integer
//! and one number come back instead of a row as wide as the vocabulary.
//!
//! The nodes are added without decoding the model. Protobuf messages are merged by concatenation: repeated fields append,
//! nested messages merge. So a second `ModelProto` that holds nothing but further nodes, inputs and outputs of the graph
//! is written behind the first one's bytes, and ONNX Runtime reads the two as one model.

/// Added input, int64 `[batch, seq]`: the token id whose cross entropy is wanted; anything inside the vocabulary where
/// none is.
pub(crate) const TARGETS: &str = "evaluators_targets";
/// Added output, int64 `[batch, seq]`: the arg-max over the vocabulary, the first index on ties.
pub(crate) const PREDICTIONS: &str = "evaluators_predictions";
/// Added output, float32 `[batch, seq]`: −log softmax(logits)[target] in nats; NaN where the logits have no soft-max.
pub(crate) const LOSSES: &str = "evaluators_losses";

/// The bytes of `model` (a serialized `ModelProto` with the output `logits`) with the scoring nodes behind them.
pub(crate) fn with_scores(mut model: Vec<u8>) -> Vec<u8> {
    model.extend_from_slice(&Message::default().message(7, scores()).0); // ModelProto.graph
    model
}

/// predictions = ArgMax(logits); losses = −GatherElements(LogSoftmax(logits), targets). Only operators and attributes
/// that are the same in every opset since 11; the shapes are changed with Reshape, because Squeeze was not.
fn scores() -> Message {
    const INT64: u64 = 7;
    const FLOAT: u64 = 1;
    Message::default()
        .node("ArgMax", &["logits"], PREDICTIONS, &[Attribute::Int("axis", -1), Attribute::Int("keepdims", 0)])
        .node("LogSoftmax", &["logits"], "evaluators_log_softmax", &[Attribute::Int("axis", -1)])
        .node("Constant", &[], "evaluators_wide", &[Attribute::Ints("value", &[0, 0, 1])])
        .node("Reshape", &[TARGETS, "evaluators_wide"], "evaluators_index", &[]) // [batch, seq, 1]
        .node(
            "GatherElements",
            &["evaluators_log_softmax", "evaluators_index"],
            "evaluators_picked", // [batch, seq, 1]
            &[Attribute::Int("axis", -1)],
        )
        .node("Constant", &[], "evaluators_flat", &[Attribute::Ints("value", &[0, 0])])
        .node("Reshape", &["evaluators_picked", "evaluators_flat"], "evaluators_log_likelihood", &[]) // [batch, seq]
        .node("Neg", &["evaluators_log_likelihood"], LOSSES, &[])
        .message(11, Message::tensor_info(TARGETS, INT64)) // GraphProto.input
        .message(12, Message::tensor_info(PREDICTIONS, INT64)) // GraphProto.output
        .message(12, Message::tensor_info(LOSSES, FLOAT))
}

enum Attribute<'a> {
    Int(&'a str, i64),
    /// A one-dimensional int64 tensor.
    Ints(&'a str, &'a [i64]),
}

/// A protobuf message under construction. Field numbers are those of onnx.proto.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn int(self, field: u64, value: u64) -> Self {
        self.varint(field << 3).varint(value)
    }

    fn bytes(self, field: u64, bytes: &[u8]) -> Self {
        let mut out = self.varint(field << 3 | 2).varint(bytes.len() as u64);
        out.0.extend_from_slice(bytes);
        out
    }

    fn message(self, field: u64, message: Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// Appends a `NodeProto` to a `GraphProto`.
    fn node(self, operator: &str, inputs: &[&str], output: &str, attributes: &[Attribute<'_>]) -> Self {
        let node = inputs.iter().fold(Self::default(), |node, input| node.bytes(1, input.as_bytes()));
        let node = node.bytes(2, output.as_bytes()).bytes(3, output.as_bytes()).bytes(4, operator.as_bytes());
        let node = attributes.iter().fold(node, |node, attribute| node.message(5, attribute.message()));
        self.message(1, node)
    }

    /// A `ValueInfoProto` of the shape `[batch, seq]`.
    fn tensor_info(name: &str, element: u64) -> Self {
        let dimension = |symbol: &str| Self::default().bytes(2, symbol.as_bytes());
        let shape = Self::default().message(1, dimension("batch")).message(1, dimension("seq"));
        let tensor = Self::default().int(1, element).message(2, shape);
        Self::default().bytes(1, name.as_bytes()).message(2, Self::default().message(1, tensor))
    }
}

impl Attribute<'_> {
    /// An `AttributeProto`.
    fn message(&self) -> Message {
        match self {
            Self::Int(name, value) => Message::default().bytes(1, name.as_bytes()).int(3, *value as u64).int(20, 2),
            Self::Ints(name, values) => {
                let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let tensor = Message::default().int(1, values.len() as u64).int(2, 7).bytes(9, &raw);
                Message::default().bytes(1, name.as_bytes()).message(5, tensor).int(20, 4)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_protobuf_wants_them() {
        assert_eq!(Message::default().varint(1).0, [1]);
        assert_eq!(Message::default().varint(300).0, [0xac, 0x02]);
        assert_eq!(Message::default().int(3, -1i64 as u64).0.len(), 1 + 10);
        assert_eq!(Message::default().bytes(2, b"ab").0, [0x12, 2, b'a', b'b']);
    }
}
