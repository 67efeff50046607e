//! Scoring inside the graph: argmax and cross entropy are computed where the logits are, so that per token one integer
//! and one number come back instead of a row as wide as the vocabulary.
//!
//! The nodes are added without decoding the model. Protobuf messages are merged by concatenation: repeated fields
//! append, nested messages merge. So a second `ModelProto` that holds nothing but further nodes, inputs and outputs of
//! the graph is written behind the first one's bytes, and ONNX Runtime reads the two as one model.
//!
//! Models that are older than these operators, or that are refused with them, are scored from their logits
//! instead; [`host`] computes the same.

use crate::error::is_out_of_memory;
use crate::metrics::score_set;
use data::Vocabulary;

/// Added input, int64 `[batch, seq]`: the token id whose cross entropy is wanted; anything inside the vocabulary where
/// none is.
pub(crate) const TARGETS: &str = "evaluators_targets";
/// Added output, int64 `[batch, seq]`: the argmax over the vocabulary, the first index on ties.
pub(crate) const PREDICTIONS: &str = "evaluators_predictions";
/// Added output, float32 `[batch, seq]`: −log softmax(logits)[target] in nats; NaN where the logits have no softmax.
pub(crate) const LOSSES: &str = "evaluators_losses";

/// Added output, float32 `[batch, seq, vocab]`, where the model's own logits are of another type.
const SINGLE: &str = "evaluators_logits";
/// The prefix of all added names.
pub(crate) const ADDED: &str = "evaluators_";
/// The first version of the standard operators that has all that scoring needs.
pub(crate) const OLDEST_OPSET: u64 = 11;

/// A model's logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Their name in the model.
    pub name: String,
    /// Whether they are float32.
    pub single: bool,
    /// Whether they are scored in the graph.
    pub scored: bool,
}

impl Output {
    /// The output that has them as float32.
    pub fn float(&self) -> &str {
        if self.single { &self.name } else { SINGLE }
    }
}

/// The bytes of `model` (a serialized `ModelProto`) with the nodes behind them that make float32 of its logits and,
/// where they are scored in the graph, the scores.
pub(crate) fn with_scores(mut model: Vec<u8>, logits: &Output) -> Vec<u8> {
    let mut nodes = Message::default();
    if !logits.single {
        nodes = nodes.node("Cast", &[&logits.name], SINGLE, &[Attribute::Int("to", FLOAT as i64)]);
        nodes = nodes.message(12, Message::tensor_info(SINGLE, FLOAT, &["batch", "seq", "vocab"]));
    }
    if logits.scored {
        nodes = scores(nodes, logits.float());
    }
    if !nodes.0.is_empty() {
        model.extend_from_slice(&Message::default().message(7, nodes).0); // ModelProto.graph
    }
    model
}

/// An error of a pass in terms of the model: where the added nodes fail, its logits do not have the required `shape`.
pub(crate) fn blame(reason: String, shape: &str) -> String {
    match (reason.contains(ADDED), is_out_of_memory(&reason)) {
        (false, _) => reason,
        (true, false) => format!("its logits do not have the shape {shape}"),
        (true, true) => "out of memory while its logits were scored".into(),
    }
}

/// Predictions and losses `[batch, seq]` from logits `[batch, seq, vocab]` and targets `[batch, seq]`, as the nodes
/// compute them: NaN is never the largest, and makes the loss NaN. Sets are scored here alone: see [`score_set`].
pub(crate) fn host(logits: &[f32], vocabulary: &Vocabulary, targets: &[i64]) -> (Vec<i64>, Vec<f32>) {
    let vocab = vocabulary.len();
    if !vocabulary.units().is_empty() {
        let score = |(logits, target): (&[f32], &i64)| {
            let (predicted, loss) = score_set(logits, u16::try_from(*target).unwrap_or(0), vocabulary);
            (i64::from(predicted), loss as f32)
        };
        return logits.chunks_exact(vocab.max(1)).zip(targets).map(score).unzip();
    }
    let score = |(logits, target): (&[f32], &i64)| {
        let mut best = 0;
        for (index, value) in logits.iter().enumerate() {
            if *value > logits[best] || logits[best].is_nan() {
                best = index;
            }
        }
        let most = f64::from(logits[best]);
        let sum: f64 = logits.iter().map(|&value| (f64::from(value) - most).exp()).sum();
        let target = usize::try_from(*target).ok().and_then(|target| logits.get(target));
        let loss = target.map_or(f64::NAN, |&target| sum.ln() - (f64::from(target) - most));
        (best as i64, loss as f32)
    };
    logits.chunks_exact(vocab.max(1)).zip(targets).map(score).unzip()
}

const INT64: u64 = 7;
const FLOAT: u64 = 1;

/// predictions = ArgMax(logits); losses = −GatherElements(LogSoftmax(logits), targets). Only operators and attributes
/// that are the same in every opset since 11; the shapes are changed with Reshape, because Squeeze was not.
fn scores(graph: Message, logits: &str) -> Message {
    let matrix = |name, element| Message::tensor_info(name, element, &["batch", "seq"]);
    graph
        .node("ArgMax", &[logits], PREDICTIONS, &[Attribute::Int("axis", -1), Attribute::Int("keepdims", 0)])
        .node("LogSoftmax", &[logits], "evaluators_log_softmax", &[Attribute::Int("axis", -1)])
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
        .message(11, matrix(TARGETS, INT64)) // GraphProto.input
        .message(12, matrix(PREDICTIONS, INT64)) // GraphProto.output
        .message(12, matrix(LOSSES, FLOAT))
}

enum Attribute<'a> {
    Int(&'a str, i64),
    /// A one-dimensional int64 tensor.
    Ints(&'a str, &'a [i64]),
}

/// A protobuf message under construction. Field numbers are those of onnx.proto.
#[derive(Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Appends whole fields as they are.
    pub fn raw(mut self, fields: &[u8]) -> Self {
        self.0.extend_from_slice(fields);
        self
    }

    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    pub fn int(self, field: u64, value: u64) -> Self {
        self.varint(field << 3).varint(value)
    }

    pub fn bytes(self, field: u64, bytes: &[u8]) -> Self {
        let mut out = self.varint(field << 3 | 2).varint(bytes.len() as u64);
        out.0.extend_from_slice(bytes);
        out
    }

    pub fn message(self, field: u64, message: Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// Appends a `NodeProto` to a `GraphProto`.
    fn node(self, operator: &str, inputs: &[&str], output: &str, attributes: &[Attribute<'_>]) -> Self {
        let node = inputs.iter().fold(Self::default(), |node, input| node.bytes(1, input.as_bytes()));
        let node = node.bytes(2, output.as_bytes()).bytes(3, output.as_bytes()).bytes(4, operator.as_bytes());
        let node = attributes.iter().fold(node, |node, attribute| node.message(5, attribute.message()));
        self.message(1, node)
    }

    /// A `ValueInfoProto` with symbolic sizes.
    pub fn tensor_info(name: &str, element: u64, sizes: &[&str]) -> Self {
        let dimension = |symbol: &str| Self::default().bytes(2, symbol.as_bytes());
        let shape = sizes.iter().fold(Self::default(), |shape, symbol| shape.message(1, dimension(symbol)));
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
    fn scores_on_the_host_are_arg_max_and_cross_entropy() {
        let inf = f32::NEG_INFINITY;
        let logits = [1.0, 3.0, 3.0, inf, 0.0, inf, f32::NAN, 1.0, 0.0, inf, inf, inf];
        let tokens = |last| Vocabulary::numbers_then(last, &[]);
        let (predictions, losses) = host(&logits, &tokens(2), &[0, 1, 1, 0]);
        assert_eq!(predictions, [1, 1, 1, 0], "the first on ties");
        assert!((losses[0] - (2.0 + (2.0 + (-2f32).exp()).ln())).abs() < 1e-6, "{losses:?}");
        assert_eq!(losses[1], 0.0);
        assert!(losses[2].is_nan() && losses[3].is_nan());
        assert!(host(&[0.0, 0.0], &tokens(1), &[5]).1[0].is_nan(), "a target that is no token");
    }

    #[test]
    fn numbers_are_written_as_protobuf_wants_them() {
        assert_eq!(Message::default().varint(1).0, [1]);
        assert_eq!(Message::default().varint(300).0, [0xac, 0x02]);
        assert_eq!(Message::default().int(3, -1i64 as u64).0.len(), 1 + 10);
        assert_eq!(Message::default().bytes(2, b"ab").0, [0x12, 2, b'a', b'b']);
    }
}
