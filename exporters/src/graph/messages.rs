//! The parts of an ONNX file, and changes to a graph as a whole.

use crate::onnx::attribute_proto::AttributeType;
use crate::onnx::tensor_proto::{DataLocation, DataType};
use crate::onnx::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::{
    AttributeProto, GraphProto, NodeProto, StringStringEntryProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};
use crate::{STATEFUL_WEIGHTS_FILE, WEIGHTS_FILE};
use std::collections::HashSet;

/// Smaller constants stay in the message when the weights go to a second file: shape inference reads them.
const SMALLEST_EXTERNAL: usize = 1024;

/// The batch axis, of any size.
pub(crate) const BATCH: Dim = Dim::Symbol("batch");
/// The time axis, of any size.
pub(crate) const SEQ: Dim = Dim::Symbol("seq");

/// One axis of a graph input or output.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dim {
    Symbol(&'static str),
    Fixed(usize),
}

/// A constant argument of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attribute<'a> {
    Float(f64),
    Int(i64),
    Ints(&'a [i64]),
    Text(&'a str),
    Graph(&'a GraphProto),
}

pub(super) fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

/// 64-bit FNV-1a of the serialized graph: the evaluator relies on known properties of our graphs, and checks with it
/// that a file still holds the graph that was written.
pub(super) fn fingerprint(graph: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", graph.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Leaves out nodes that no output needs, and the constants that only they need.
pub(super) fn prune(graph: &mut GraphProto) {
    let mut needed: HashSet<String> = graph.output.iter().map(|output| output.name().to_owned()).collect();
    let mut kept: Vec<NodeProto> = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        if node.output.iter().any(|output| needed.contains(output)) {
            add_inputs(&node, &mut needed);
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    graph.initializer.retain(|tensor| needed.contains(tensor.name()));
}

/// The edges that a node reads, also in the body of a loop.
fn add_inputs(node: &NodeProto, needed: &mut HashSet<String>) {
    needed.extend(node.input.iter().cloned());
    for body in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
        needed.extend(body.output.iter().map(|output| output.name().to_owned()));
        body.node.iter().for_each(|node| add_inputs(node, needed));
    }
}

/// Takes the large constants out of the message; it then says where they are in [`WEIGHTS_FILE`] or
/// [`STATEFUL_WEIGHTS_FILE`].
pub(super) fn move_out(graph: &mut GraphProto, stateful: bool) -> Vec<u8> {
    let location = if stateful { STATEFUL_WEIGHTS_FILE } else { WEIGHTS_FILE };
    let mut file = Vec::new();
    for tensor in &mut graph.initializer {
        if tensor.raw_data().len() < SMALLEST_EXTERNAL {
            continue;
        }
        let Some(raw_data) = tensor.raw_data.take() else { continue };
        // Readers that map the file into memory prefer an alignment of 4 KiB.
        file.resize(usize::next_multiple_of(file.len(), 4096), 0);
        tensor.external_data = vec![
            entry("location", location),
            entry("offset", &file.len().to_string()),
            entry("length", &raw_data.len().to_string()),
        ];
        tensor.set_data_location(DataLocation::External);
        file.extend(raw_data);
    }
    file
}

/// Renames an edge, also where the body of a loop uses it.
pub(super) fn rename(nodes: &mut [NodeProto], from: &str, to: &str) {
    for node in nodes {
        let edges = node.input.iter_mut().chain(&mut node.output);
        edges.filter(|edge| *edge == from).for_each(|edge| *edge = to.into());
        let bodies = node.attribute.iter_mut().filter_map(|attribute| attribute.g.as_mut());
        bodies.for_each(|body| rename(&mut body.node, from, to));
    }
}

pub(super) fn value_info(name: &str, doc: &str, element: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |dim: &Dim| Dimension {
        value: Some(match *dim {
            Dim::Symbol(name) => dimension::Value::DimParam(name.into()),
            Dim::Fixed(n) => dimension::Value::DimValue(n as i64),
        }),
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(element.into()), shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(r#type), doc_string: Some(doc.into()) }
}

pub(super) fn attribute(name: &str, value: Attribute<'_>) -> AttributeProto {
    let mut proto = AttributeProto { name: Some(name.into()), ..Default::default() };
    match value {
        Attribute::Float(f) => {
            proto.set_type(AttributeType::Float);
            proto.f = Some(f as f32);
        }
        Attribute::Int(i) => {
            proto.set_type(AttributeType::Int);
            proto.i = Some(i);
        }
        Attribute::Ints(ints) => {
            proto.set_type(AttributeType::Ints);
            proto.ints = ints.to_vec();
        }
        Attribute::Text(text) => {
            proto.set_type(AttributeType::String);
            proto.s = Some(text.into());
        }
        Attribute::Graph(graph) => {
            proto.set_type(AttributeType::Graph);
            proto.g = Some(graph.clone());
        }
    }
    proto
}
